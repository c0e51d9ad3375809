"""Write the flag and environment table of one SGLang release, asked of that release's own argument parser.

    .venv/bin/python tools/engine_release_sglang.py FOLDER VERSION > src/aim_engine/data/engines/sglang/X.Y.Z.flags.json
    .venv/bin/python tools/engine_release_sglang.py FOLDER VERSION --judge < LINES

With --judge it parses command lines instead: LINES holds a JSON list of lists of arguments, and a JSON list comes back with the parser's
complaint about each, or null.

FOLDER holds the unpacked `sglang` package. Its server needs a GPU build of PyTorch and forty other packages to import; building
the parser needs none of what they do. So what is not installed is replaced by stand-ins that answer every question with another
stand-in, and a module of the package that stumbles over one of them becomes a stand-in too. A stand-in that ends up in the
table is an error: every name, choice and default printed is the release's own.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import re
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from engine_judge import complaint

PACKAGE = "sglang"
VARIABLE = re.compile(r"""["']((?:SGLANG|SGL)_[A-Z0-9_]+|ROCM_QUICK_REDUCE_[A-Z0-9_]+)["']""")


class Standing(type):
    """A class that has every attribute, is its own instance, and holds nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """What it decorates, else itself."""
        plain = len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type)
        return args[0] if plain else cls  # a decorator leaves what it decorates

    def __or__(cls, _: object) -> Any:
        return object

    def __ror__(cls, _: object) -> Any:
        return object

    def __getitem__(cls, _: object) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __bool__(cls) -> bool:
        return False

    def __contains__(cls, _: object) -> bool:
        return False

    def __lt__(cls, _: object) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__

    def __enter__(cls) -> Any:
        return cls

    def __exit__(cls, *_: object) -> None:
        return None


def stand_in(name: str) -> Any:
    """A class to stand for whatever `name` is; subclasses may take any keyword."""
    return Standing(name, (_Open,), {"__module__": "stand_in"})


class _Open:
    def __init_subclass__(cls, **_: object) -> None:
        """Accept any keyword."""


class Absent(types.ModuleType):
    """A module that is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class Lenient(importlib.abc.Loader):
    """Runs a module of the package; where that fails, the rest of it is absent."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        """As the real loader does."""
        found: types.ModuleType | None = self._real.create_module(spec)
        return found

    def exec_module(self, module: types.ModuleType) -> None:
        """Run it, or leave out what fails."""
        try:
            self._real.exec_module(module)
        except Exception as err:  # noqa: BLE001 - whatever a stand-in causes; a table with one in it is refused
            sys.stderr.write(f"{module.__name__} is left out: {err!r:.120}\n")
            module.__class__ = Absent


class Empty(importlib.abc.Loader):
    """The package itself, whose start patches other libraries."""

    def create_module(self, _: ModuleSpec) -> None:
        """The usual kind of module."""
        return

    def exec_module(self, _: types.ModuleType) -> None:
        """Run nothing."""
        return


class Own(importlib.abc.MetaPathFinder):
    """Finds the package's modules, leniently."""

    def find_spec(self, name: str, path: Sequence[str] | None, _: object = None) -> ModuleSpec | None:
        """The real place, with a lenient loader."""
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        if name == PACKAGE:
            found = ModuleSpec(name, Empty(), is_package=True)
            found.submodule_search_locations = list(spec.submodule_search_locations or ())
            return found
        spec.loader = Lenient(spec.loader)
        return spec


class Last(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for every module that nobody else has."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _: object = None) -> ModuleSpec | None:
        """Always this."""
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """A module without anything in it."""
        module = Absent(spec.name)
        module.__path__ = []
        module.__dict__["__version__"] = "99.0"
        return module

    def exec_module(self, _: types.ModuleType) -> None:
        """Run nothing."""
        return


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("version")
    options.add_argument("--judge", action="store_true", help="parse the command lines on standard input")
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(asked.folder))
    sys.meta_path.insert(0, Own())
    sys.meta_path.append(Last())
    with contextlib.redirect_stdout(io.StringIO()):
        server = importlib.import_module("sglang.srt.server_args").ServerArgs
        parser = argparse.ArgumentParser()
        server.add_cli_args(parser)
    if asked.judge:
        said = [complaint(parser, line) for line in json.load(sys.stdin)]
        json.dump([text and text.splitlines()[-1] for text in said], sys.stdout)
        return
    flags = sorted((row(action) for action in parser._actions), key=lambda each: (each["flags"][:1], each["dest"]))  # noqa: SLF001
    document = {
        "engine": PACKAGE,
        "version": asked.version,
        "source": f"ServerArgs.add_cli_args and variables named in the package {PACKAGE} {asked.version}",
        "env": sorted(variables(asked.folder / PACKAGE)),
        "architectures": sorted(architectures(asked.folder / PACKAGE)),
        "flags": flags,
    }
    json.dump(document, sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")


def architectures(package: Path) -> set[str]:
    """The model classes that the package registers."""
    found: set[str] = set()
    for path in (package / "srt/models").rglob("*.py"):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass":
                found |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    return found


def row(action: argparse.Action) -> dict[str, Any]:
    """One argument as plain data. Raises: SystemExit when a stand-in is part of it."""
    parts = (action.type, action.default, action.choices, action.const, *(action.choices or ()))
    if any(isinstance(part, Standing) for part in parts) or (action.choices is not None and not list(action.choices)):
        raise SystemExit(f"{action.option_strings} depends on something that is not installed")
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
    if isinstance(action.default, str | int | float) and action.default != argparse.SUPPRESS:
        found["default"] = action.default
    if "deprecated" in type(action).__name__.lower() or str(action.help or "").lower().startswith("[deprecated"):
        found["deprecated"] = True
    instead = getattr(action, "new_flag", None)
    if isinstance(instead, str):
        found["instead"] = instead
    return found


def variables(package: Path) -> set[str]:
    """The environment variables that the package names: fields of its own list, and names in its sources."""
    found = {
        name
        for path in package.rglob("*.py")
        if "/test/" not in path.as_posix()
        for name in VARIABLE.findall(path.read_text(encoding="utf-8", errors="replace"))
    }
    listed = re.findall(
        r"^    ((?:SGLANG|SGL)_[A-Z0-9_]+)\s*[:=]", (package / "srt/environ.py").read_text(), re.MULTILINE
    )
    return found | set(listed)


if __name__ == "__main__":
    main()
