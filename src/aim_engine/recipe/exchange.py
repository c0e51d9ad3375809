"""Recipes in the shapes of others: AMD's AIM profiles and the product's first specification, read and written.

Both keep engine arguments in a mapping by name. What has a field of its own goes there, the rest stays an argument, so that
reading and writing again loses nothing. Shape of a profile: amd-enterprise-ai/aim-build docs/custom_profiles.md@2be2cf8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from aim_engine.errors import InvalidInput
from aim_engine.hardware.gpu import Provenance
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Parallelism, Precision
from aim_engine.recipe.seed_shape import PRECISIONS, UNNAMED_GPU, is_seed_shape

Shape = Literal["aim", "seed"]
GENERAL = "general"
"""The model id of profiles that hold for every model."""
_FIELDS = {
    "attention-backend": "attention_backend",
    "kv-cache-dtype": "kv_cache_dtype",
    "max-model-len": "max_model_len",
    "max-num-seqs": "max_num_seqs",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "gpu-memory-utilization": "gpu_memory_utilization",
}
_SPLIT = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "enable-expert-parallel")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_LOSSY = re.compile(r"QUICK_REDUCE_QUANTIZATION$")


def shape_of(document: object) -> Shape | None:
    """Whose shape `document` has; None when it is neither."""
    if isinstance(document, Mapping) and "engine_args" in document and isinstance(document.get("metadata"), Mapping):
        return "aim"
    return "seed" if is_seed_shape(document) else None


def read(document: Mapping[str, Any], *, source: str, checked: str) -> Known:
    """`document` as a known configuration. `source` says where it comes from, `checked` when. Raises: InvalidInput."""
    shape = shape_of(document)
    if shape == "aim":
        return _from_aim(document, source, checked)
    if shape == "seed":
        return _from_seed(document, source, checked)
    raise InvalidInput("this is neither an AIM profile nor a recipe of the first specification")


def write(known: Known, shape: Shape) -> dict[str, Any]:
    """`known` in the shape of others. Raises: InvalidInput when that shape needs a split and none is named."""
    if known.engine != "vllm":
        raise InvalidInput(
            f"the recipe of {known.model_id} is one of {known.engine}, and this shape holds vLLM's arguments"
        )
    if known.parallelism is None:
        raise InvalidInput(
            f"the recipe of {known.model_id} names no split", hint="aim-engine plan works one out; export its recipe"
        )
    return _to_aim(known) if shape == "aim" else _to_seed(known)


def command_line(document: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The engine arguments and variables of a profile, as a command line has them. Raises: InvalidInput."""
    known = read(document, source="", checked="")
    words = [known.model_id] if known.model_id != GENERAL else []
    for name, value in _arguments(known, none=None).items():
        flag = f"-{name}" if name.startswith("cc.") else f"--{name}"
        words.append(flag)
        words += [] if value is None else [_text(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(words), {**known.env, **known.lossy_env}


def words_of(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """A mapping of engine arguments by name, as an engine's configuration file holds them, as the words of a command line."""
    given = {str(name).lstrip("-").replace("_", "-"): value for name, value in arguments.items()}
    words = [str(given.pop("model"))] if isinstance(given.get("model"), str) else []
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words += [f"--{name}", *(_text(item) for item in (value if isinstance(value, list) else [value]))]
    return tuple(words)


def is_arguments(document: Mapping[str, Any]) -> bool:
    """Whether a document is an engine's configuration file: its arguments by name, the model among them."""
    return isinstance(document.get("model"), str) and not {"image", "recipes", "services"} & set(document)


def with_words(document: Mapping[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """An engine's configuration file for other words of a command line; names that stay keep their place and spelling."""
    args = words if words[:1] and words[0].startswith("-") else ("--model", *words)
    new = _mapping(args, none=True)
    spelled = {str(name).lstrip("-").replace("_", "-"): name for name in document}
    under = any("_" in str(name) for name in document)
    kept = {spelled[name]: value for name, value in new.items() if name in spelled}
    more = {name.replace("-", "_") if under else name: value for name, value in new.items() if name not in spelled}
    return {**{name: kept[name] for name in document if name in kept}, **more}


def with_command_line(
    document: Mapping[str, Any], shape: Shape, args: tuple[str, ...], env: Mapping[str, str]
) -> dict[str, Any]:
    """`document` with other engine arguments and variables, as `command_line` gives them; the rest stays."""
    words = args if args[:1] and args[0].startswith("-") else args[1:]
    if shape == "aim":
        return {**document, "engine_args": dict(sorted(_mapping(words, none=None).items())), "env_vars": dict(env)}
    config = {**(document.get("config") or {})}
    config["args"] = {name.replace("-", "_"): value for name, value in _mapping(words, none=True).items()}
    config["env_vars"] = dict(env)
    return {**document, "config": config}


def _from_aim(document: Mapping[str, Any], source: str, checked: str) -> Known:
    about, model_id = document["metadata"], document.get("model_id") or document.get("aim_id") or GENERAL
    for name in ("engine_args", "env_vars"):
        if not isinstance(document.get(name) or {}, Mapping):
            raise InvalidInput(f"the profile's {name} is {document[name]!r}, not a mapping")
    if about.get("engine", "vllm") != "vllm":
        raise InvalidInput(f"profiles of the engine {about.get('engine')} are not read", hint="vllm profiles are")
    kind = f" (profile type {about['type']})" if about.get("type") else ""
    return _known(
        str(model_id),
        about.get("gpu"),
        about.get("precision"),
        about.get("gpu_count"),
        document["engine_args"] or {},
        document.get("env_vars"),
        objective=about.get("metric"),
        provenance=Provenance(kind="vendor", source=source + kind, checked=checked),
    )


def _from_seed(document: Mapping[str, Any], source: str, checked: str) -> Known:
    config = document.get("config") or {}
    if not isinstance(config, Mapping):
        raise InvalidInput(f"the recipe's config is {config!r}, not a mapping")
    for name in ("args", "env_vars"):
        if not isinstance(config.get(name) or {}, Mapping):
            raise InvalidInput(f"the recipe's config.{name} is {config[name]!r}, not a mapping")
    return _known(
        str(document["huggingface_id"]),
        document.get("gpu") or document.get("hardware") or UNNAMED_GPU,
        document.get("precision"),
        document.get("gpu_count"),
        config.get("args") or {},
        config.get("env_vars"),
        objective=None,
        provenance=Provenance(kind="unsourced", source=source, checked=checked),
    )


def _known(
    model_id: str,
    gpu: object,
    precision: object,
    gpu_count: object,
    arguments: Mapping[str, Any],
    env: Mapping[str, Any] | None,
    *,
    objective: str | None,
    provenance: Provenance,
) -> Known:
    given = {_name(str(key)): value for key, value in arguments.items()}
    pp, dp = (_whole(given, name, 1) for name in _SPLIT[1:3])
    count = gpu_count if isinstance(gpu_count, int) and gpu_count > 0 else 1
    split = Parallelism(
        tp=_whole(given, _SPLIT[0], max(1, count // (pp * dp))),
        pp=pp,
        dp=dp,
        ep=_SPLIT[3] in given and given[_SPLIT[3]] is not False,
    )
    fields = {field: given[name] for name, field in _FIELDS.items() if given.get(name) not in (None, "auto", "None")}
    variables = {str(name): _text(value) for name, value in (env or {}).items()}
    lossy = {name: value for name, value in variables.items() if _LOSSY.search(name)}
    try:
        return Known(
            model_id=model_id,
            gpus=(str(gpu).upper() if str(gpu).lower().startswith("mi") else str(gpu),),
            parallelism=split,
            precision=_precision(precision, given),
            objective=objective if objective in ("latency", "throughput") else None,
            extra_args=tuple(_words(given)),
            env={name: value for name, value in variables.items() if name not in lossy},
            lossy_env=lossy,
            provenance=provenance,
            **_typed(fields),
        )
    except (TypeError, ValueError) as err:
        raise InvalidInput(f"the recipe of {model_id} cannot be read", why=str(err)) from err


def _to_aim(known: Known) -> dict[str, Any]:
    precision = "fp4" if known.precision == "mxfp4" else known.precision
    return {
        "aim_id": known.model_id,
        "model_id": known.model_id,
        "metadata": {
            "engine": "vllm",
            "gpu": known.gpus[0],
            "gpu_count": known.gpu_count,
            "manual_selection_only": False,
            "metric": known.objective or "throughput",
            "precision": precision,
            "type": "unoptimized",
        },
        "engine_args": dict(sorted(_arguments(known, none=None).items())),
        "env_vars": dict(sorted({**known.env, **known.lossy_env}.items())),
    }


def _to_seed(known: Known) -> dict[str, Any]:
    arguments = {name.replace("-", "_"): value for name, value in _arguments(known, none=True).items()}
    return {
        "huggingface_id": known.model_id,
        "gpu": known.gpus[0],
        "precision": known.precision,
        "gpu_count": known.gpu_count,
        "config": {"args": arguments, "env_vars": {**known.env, **known.lossy_env}},
    }


def _arguments(known: Known, *, none: Any) -> dict[str, Any]:
    """Engine arguments by name; a switch has the value `none`."""
    found: dict[str, Any] = {}
    if known.precision in _DTYPES:
        found["dtype"] = _DTYPES[known.precision]
    for name, field in _FIELDS.items():
        value = getattr(known, field)
        if value not in (None, "auto"):
            found[name] = value
    split = known.parallelism or Parallelism()
    found["tensor-parallel-size"] = split.tp
    found |= {name: value for name, value in zip(_SPLIT[1:3], (split.pp, split.dp), strict=True) if value > 1}
    if split.ep:
        found[_SPLIT[3]] = none
    return found | _mapping(known.extra_args, none=none)


def _mapping(args: tuple[str, ...], *, none: Any) -> dict[str, Any]:
    """Command-line words as a mapping; whole and decimal numbers become numbers."""
    found: dict[str, Any] = {}
    words = list(args)
    while words:
        name, _, inline = words.pop(0).partition("=")
        values = [inline] if inline else []
        while words and not re.match(r"-(?!\d)", words[0]):
            values.append(words.pop(0))
        plain = [_plain(value) for value in values]
        found[name.lstrip("-")] = none if not plain else plain[0] if len(plain) == 1 else plain
    return found


def _plain(text: str) -> Any:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


def _words(given: Mapping[str, Any]) -> list[str]:
    """What has no field of its own, as command-line words."""
    found: list[tuple[str, ...]] = []
    for name in set(given) - set(_FIELDS) - set(_SPLIT) - {"model", "dtype", "host", "port"}:
        value = given[name]
        flag = f"-{name}" if name.startswith("cc.") else f"--{name}"
        if value is None or value is True:
            found.append((flag,))
        elif value is False:
            found.append((flag.replace("--", "--no-", 1),))
        elif isinstance(value, (list, tuple)):
            found.append((flag, *(_text(item) for item in value)))
        elif flag.startswith("-cc."):
            found.append((f"{flag}={_text(value)}",))
        else:
            found.append((flag, _text(value)))
    return [word for words in sorted(found) for word in words]


def _name(key: str) -> str:
    """An argument's name with hyphens; fields of a nested one keep their underscores."""
    head, dot, field = key.lstrip("-").partition(".")
    return (head if dot else head.replace("_", "-")) + dot + field


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, type] = {"attention_backend": str, "kv_cache_dtype": str, "gpu_memory_utilization": float}
    return {name: kinds.get(name, int)(value) for name, value in fields.items()}


def _precision(name: object, given: Mapping[str, Any]) -> Precision:
    plain = str(name).lower()
    if plain == "fp4":
        return "mxfp4"
    found = PRECISIONS.get(plain) or PRECISIONS.get(str(given.get("dtype", "")).lower())
    if found is None:
        raise InvalidInput(f"precision '{name}' is not known", hint=f"one of {', '.join(sorted(set(PRECISIONS)))}")
    return found


def _whole(given: Mapping[str, Any], name: str, default: int) -> int:
    value = given.get(name, default)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"{name} is {value!r}, not a whole number of at least 1")
    return value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    return str(value).lower() if isinstance(value, bool) else str(value)
