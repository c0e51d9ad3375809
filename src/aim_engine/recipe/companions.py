"""Other models that a configuration loads beside its own: a draft model or EAGLE head, and LoRA adapters.

They are named in the engine's own arguments, by hub id or as a folder. Whoever fetches the model must fetch them too: an engine that is
not allowed to ask the hub ends at its start without them.
Source: vllm-project/vllm vllm/config/speculative.py SpeculativeConfig.model, vllm/entrypoints/openai/cli_args.py LoRAParserAction;
sgl-project/sglang python/sglang/srt/server_args.py speculative_draft_model_path, lora_paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
_DRAFT_CONFIG = ("--speculative-config", "--speculative_config", "-sc")
_DRAFT = (
    "--speculative-config.model",
    "--speculative_config.model",
    "--speculative-model",
    "--speculative-draft-model-path",
    "--speculative-draft-model",
)
_ADAPTERS = ("--lora-modules", "--lora-paths")


def of(args: Sequence[str], own: str = "") -> tuple[str, ...]:
    """Hub ids of the other models, in the order of the arguments; `own`, the model that is served, is not one of them."""
    found = [name for _, name in _named(args) if _HUB_ID.fullmatch(name) and name != own]
    return tuple(dict.fromkeys(found))


def placed(args: Sequence[str], places: Mapping[str, str]) -> tuple[str, ...]:
    """The arguments with hub ids replaced by where those models lie."""
    changed = list(args)
    for position, name in _named(args):
        if name not in places:
            continue
        flag, equals, value = (
            args[position].partition("=") if args[position].startswith("-") else ("", "", args[position])
        )
        changed[position] = f"{flag}{equals}{_with(changed[position][len(flag + equals) :], value, name, places[name])}"
    return tuple(changed)


def _with(current: str, value: str, name: str, place: str) -> str:
    """One value with a name in it replaced: the name alone, `adapter=name`, or a field of a JSON object."""
    if value == name:
        return place
    if not value.lstrip().startswith(("{", "[")):
        return f"{current.rpartition('=')[0]}={place}"
    document = json.loads(current)
    for entry in document if isinstance(document, list) else [document]:
        for key in ("model", "path", "lora_path"):
            if isinstance(entry, dict) and entry.get(key) == name:
                entry[key] = place
    return json.dumps(document)


def _named(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Position of the word, and the name of a model in it."""
    flag = ""
    for position, word in enumerate(args):
        value: str | None = word
        if word.startswith("-") and not word[1:2].isdigit():
            flag, equals, joined = word.partition("=")
            value = joined if equals else None
        if value is None:
            continue
        if flag in _DRAFT:
            yield position, value
        elif flag in _DRAFT_CONFIG:
            yield from ((position, name) for name in _fields(value, ("model",)))
        elif flag in _ADAPTERS:
            named = _fields(value, ("path", "lora_path")) if value.lstrip().startswith(("{", "[")) else ()
            yield from ((position, name) for name in named or (value.rpartition("=")[2],))


def _fields(text: str, keys: Iterable[str]) -> tuple[str, ...]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    entries = document if isinstance(document, list) else [document]
    return tuple(
        entry[key] for entry in entries if isinstance(entry, dict) for key in keys if isinstance(entry.get(key), str)
    )
