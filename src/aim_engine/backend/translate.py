"""A command line written for one release, said in the words of another; every change is listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from aim_engine.backend import lint
from aim_engine.backend.base import Change, Flag, Translation
from aim_engine.backend.release import FlagTable, Gone, Removed
from aim_engine.backend.rules import Repair
from aim_engine.hardware.cluster import Finding


def translate(
    args: tuple[str, ...], env: dict[str, str], table: FlagTable, removed: Callable[[], Removed]
) -> Translation:
    """`args` and `env` for the release of `table`. What has the same meaning under another name is renamed, the rest dropped.

    Nothing is guessed: an argument without a known equivalent goes, and the change says so.
    """
    changes: list[Change] = []
    kept: list[str] = []
    known = lint.by_flag(table)
    for words, flag in lint.groups(args, known):
        if flag is not None and _refused(words, flag):
            meant = lint.DTYPE_NAMES.get(words[-1].rpartition("=")[2])
            if meant is not None and meant in (flag.choices or ()):
                said = (words[0].partition("=")[0], meant)
                kept += said
                why = f"{lint.title(table)} calls it {meant}"
                changes.append(Change(what=" ".join(words), to=" ".join(said), kind="renamed", why=why))
                continue
            why = f"{lint.title(table)} {table.version} does not take that value"
            changes.append(Change(what=" ".join(words), to="", kind="dropped", why=why))
            continue
        if flag is not None and flag.keys:
            words, lost = _with_known_keys(words, flag)
            changes += [
                Change(
                    what=f"{flag.flags[0]}.{key}",
                    to="",
                    kind="dropped",
                    why=f"{lint.title(table)} {table.version} has no such key",
                )
                for key in lost
            ]
        if flag is not None or not words[0].startswith("-"):
            kept += words
            continue
        name = words[0].partition("=")[0].replace("_", "-")
        inline = words[0].partition("=")[2]
        value = (inline,) if inline else words[1:]
        gone = removed().flags.get(name) or removed().flags.get(name.replace("--no-", "--", 1))
        denied = lint.negation(name, known)
        new = (denied,) if denied is not None else _words(gone, tuple(value), known)
        kept += new
        changes.append(_change(" ".join(words), new, gone, table))
        if denied is not None and len(words) > 1:
            kept += words[1:]  # it takes no value, so what follows was a positional
    found = dict(env)
    for name in sorted(env):
        if not name.startswith(lint.PREFIXES[table.engine]) or name in table.env:
            continue
        gone = removed().env.get(name)
        del found[name]
        new = () if gone is None or (gone.use and gone.use[0] in kept) else _words(gone, (env[name],), known)
        kept += new
        changes.append(_change(f"{name}={env[name]}", new, gone, table))
    return Translation(args=tuple(kept), env=found, changes=tuple(changes))


def repaired(done: Translation, repair: Repair, finding: Finding, known: dict[str, Flag]) -> Translation:
    """`done` with one rule's remedy applied."""
    gone = {*repair.drop, *repair.set}
    kept: list[str] = []
    changes = list(done.changes)
    dropped: dict[str, str] = {}
    for words, flag in lint.groups(done.args, known):
        hit = next((name for name in (flag.flags if flag is not None else ()) if name in gone), None)
        if hit is None:
            kept += words
        else:
            dropped[hit] = " ".join(words)
    for name, value in repair.set.items():
        kept += [name, value]
    env = {name: value for name, value in done.env.items() if name not in repair.unset} | repair.env
    for name in (*repair.drop, *repair.set):
        new = f"{name} {repair.set[name]}" if name in repair.set else ""
        if name in dropped or new:
            kind: Literal["renamed", "dropped", "added"] = (
                "added" if name not in dropped else "renamed" if new else "dropped"
            )
            changes.append(
                Change(what=dropped.get(name, ""), to=new, kind=kind, why=f"{finding.id}: {finding.message}")
            )
    for name in sorted({*repair.unset, *repair.env}):
        old = f"{name}={done.env[name]}" if name in done.env else ""
        new = f"{name}={repair.env[name]}" if name in repair.env else ""
        if old != new:
            kind = "added" if not old else "renamed" if new else "dropped"
            changes.append(Change(what=old, to=new, kind=kind, why=f"{finding.id}: {finding.message}"))
    return Translation(args=tuple(kept), env=env, changes=tuple(changes))


def _with_known_keys(words: tuple[str, ...], flag: Flag) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A structured argument less the keys that the release refuses, and those keys; no words when nothing is left."""
    name, equals, inline = words[0].partition("=")
    value = inline if equals else " ".join(words[1:])
    lost = lint.refused_keys(name, value, flag)
    if not lost or "." in name:
        return (() if lost else words), lost
    held = json.loads(value)
    for key in lost:
        first, dot, inner = key.partition(".")
        if not dot:
            del held[first]
        elif isinstance(held.get(first), dict):
            del held[first][inner]
            held = {k: v for k, v in held.items() if k != first or v}
    said = json.dumps(held)
    return ((f"{name}={said}",) if equals else (name, said)) if held else (), lost


def _refused(words: tuple[str, ...], flag: Flag) -> bool:
    name, equals, inline = words[0].partition("=")
    value = inline if equals else " ".join(words[1:])
    return flag.choices is not None and bool(value) and "." not in name and value not in flag.choices


def _words(gone: Gone | None, value: tuple[str, ...], known: dict[str, Flag]) -> tuple[str, ...]:
    """The equivalent in words of this release; nothing when there is none or the release lacks that too."""
    if gone is None or not gone.use:
        return ()
    flag = known.get(gone.use[0].partition(".")[0])
    if flag is None:
        return ()
    new = (*gone.use, *value) if len(gone.use) == 1 and not lint.is_switch(flag) else gone.use
    if flag.choices is not None and new[1:] and new[1] not in flag.choices:
        return ()
    return new


def _change(what: str, new: tuple[str, ...], gone: Gone | None, table: FlagTable) -> Change:
    if gone is None:
        why = f"{lint.title(table)} {table.version} does not have it"
    else:
        why = f"gone since {lint.title(table)} {gone.gone_by}" + (f": {gone.instead}" if gone.instead else "")
    return Change(what=what, to=" ".join(new), kind="renamed" if new else "dropped", why=why)
