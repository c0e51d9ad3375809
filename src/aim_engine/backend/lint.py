"""Judging an engine's command line and environment by one release's own tables, the way its parser would."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence

import msgspec

from aim_engine.backend.base import Flag
from aim_engine.backend.release import FlagTable, Removed
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding

_HUMAN = re.compile(r"^\d+(\.\d+)?[kKmMgGtT]?$")
_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")
_NESTED = re.compile(r"^(--[a-z][a-z0-9_-]*|-[a-z]{2,})\.")
_OPEN = re.compile(r"\$[A-Za-z_{(0-9@*]|`|\{\{|<[A-Za-z_][^<>]*>|^\.\.\.$")
TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
PREFIXES = {"vllm": ("VLLM_",), "sglang": ("SGLANG_", "SGL_")}
"""What the variables begin with that only this engine reads."""
DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """A shell line taken apart."""

    env: dict[str, str]
    program: tuple[str, ...]
    args: tuple[str, ...]
    """After `vllm serve` or the module."""
    findings: tuple[Finding, ...] = ()


def parse_command_line(text: str) -> CommandLine:
    """`A=1 vllm serve MODEL --flag`, `python3 -m sglang.launch_server ...`, with continuation lines, comments and exports.

    Raises: InvalidInput when it starts no engine.
    """
    joined = re.sub(r"\\\r?\n", " ", text)
    env: dict[str, str] = {}
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as err:
            raise InvalidInput("the command line cannot be read", why=f"{err} in: {line.strip()[:80]}") from err
        found = command_of(words, env)
        if found is not None:
            return found
    raise InvalidInput(
        "this starts no engine",
        why="neither `vllm serve` nor `sglang.launch_server` was found in it",
        hint="give a line such as: vllm serve MODEL --port 8000",
    )


def command_of(words: Sequence[str], env: dict[str, str]) -> CommandLine | None:
    """The engine's command in separate words, None when they start none; assignments before it are noted in `env`."""
    rest = list(words)
    while rest and (rest[0] in ("export", "exec", "env", "nohup", "sudo") or _ASSIGNMENT.match(rest[0])):
        word = rest.pop(0)
        if _ASSIGNMENT.match(word):
            name, _, value = word.partition("=")
            env[name] = value
    found = _server(rest)
    return None if found is None else CommandLine(env=env, program=found[0], args=found[1], findings=found[2])


def is_open(text: str) -> bool:
    """`text` holds a variable whose value only somebody else knows, or a placeholder."""
    return _OPEN.search(text) is not None


def check(
    args: tuple[str, ...], env: dict[str, str], table: FlagTable, removed: Callable[[], Removed]
) -> tuple[Finding, ...]:
    """What the release of `table` would not accept, as findings. `removed` is asked only when something is unknown."""
    found = list(_arguments(args, table, removed))
    found.extend(_environment(env, table, removed))
    return tuple(found)


def title(table: FlagTable) -> str:
    """The engine's name as its makers write it."""
    return TITLES[table.engine]


def values(args: tuple[str, ...], table: FlagTable) -> dict[str, str]:
    """Dest -> last value given, for arguments of the table that take one; switches map to true or false."""
    known = by_flag(table, hidden=True)
    found: dict[str, str] = {}
    for name, value, flag in _walk(args, known):
        if flag is not None:
            found[flag.dest] = value if value is not None else ("false" if _denies(name, flag) else "true")
    return found


def model_of(args: tuple[str, ...], known: dict[str, Flag]) -> str | None:
    """The model that a command line names, in front or behind; None when it names none."""
    found = None
    for words, flag in groups(args, known):
        if flag is not None and {"--model", "--model-path"} & set(flag.flags):
            found = words[0].partition("=")[2] or " ".join(words[1:])
        elif flag is None and not _is_flag(words[0]):
            return words[0]
    return found or None


def _server(words: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Finding, ...]] | None:
    for index, word in enumerate(words):
        if word.rsplit("/", 1)[-1] == "vllm" and words[index + 1 : index + 2] == ["serve"]:
            return ("vllm", "serve"), tuple(words[index + 2 :]), ()
        if word.rsplit("/", 1)[-1] == "sglang" and words[index + 1 : index + 2] == ["serve"]:
            return ("sglang", "serve"), tuple(words[index + 2 :]), ()
        if word == "-m" and words[index + 1 : index + 2] == ["sglang.launch_server"]:
            return ("python3", "-m", "sglang.launch_server"), tuple(words[index + 2 :]), ()
        if word == "-m" and words[index + 1 : index + 2] and words[index + 1].startswith("vllm.entrypoints"):
            module = words[index + 1]
            finding = Finding(
                id="VER010",
                severity="error",
                message=f"the entry point {module} belongs to older releases",
                remedy="use: vllm serve MODEL [arguments]",
                source="vllm-project/vllm:docker/Dockerfile.rocm@v0.33.0",
            )
            return ("python3", "-m", module), tuple(words[index + 2 :]), (finding,)
    return None


def _arguments(args: tuple[str, ...], table: FlagTable, removed: Callable[[], Removed]) -> Iterator[Finding]:
    known = by_flag(table, hidden=True)
    given: dict[str, str] = {}
    for name, value, flag in _walk(args, known):
        if flag is None:
            yield _unknown(name, known, table, removed)
            continue
        if flag.deprecated:
            instead = f"use {flag.instead}" if flag.instead is not None else ""
            yield _finding("VER002", "warning", f"{name} is deprecated in {title(table)} {table.version}", instead)
        problem = _value_problem(name, value, flag)
        if problem is not None:
            yield problem
        elif flag.keys:
            yield from _key_problems(name, value or "", flag, table)
        elif value is not None:
            given[flag.dest] = value
    yield from _ranges(given)


def groups(args: tuple[str, ...], known: dict[str, Flag]) -> Iterator[tuple[tuple[str, ...], Flag | None]]:
    """The words of each argument with its entry; a positional or an unknown flag has none. Nested `--a.b` belongs to `--a`.

    A word that follows an unknown flag is taken for its value.
    """
    words = list(args)
    position = 0
    while position < len(words):
        start = position
        word = words[position]
        position += 1
        if word == "--":
            yield tuple(words[start:]), None
            return
        if not _is_flag(word):
            yield (word,), None
            continue
        name, equals, _ = word.partition("=")
        nested = _NESTED.match(name)
        flag = known.get(nested[1].replace("_", "-")) if nested else _resolve(name, known)
        if flag is None and re.fullmatch(r"-O[.\w]*", name):
            yield (word,), known.get("-O") or known.get("--optimization-level")
            continue
        if not equals and (flag is None or not is_switch(flag)):
            many = flag is not None and (flag.nargs in ("+", "*") or isinstance(flag.nargs, int))
            while position < len(words) and not _is_flag(words[position]) and (many or position == start + 1):
                position += 1
        yield tuple(words[start:position]), flag


def _walk(args: tuple[str, ...], known: dict[str, Flag]) -> Iterator[tuple[str, str | None, Flag | None]]:
    """(flag as written, its value, its entry); positionals are passed over."""
    for words, flag in groups(args, known):
        if words[0] == "--":
            return
        if not _is_flag(words[0]):
            continue
        name, equals, inline = words[0].partition("=")
        if flag is None:
            yield name, None, None
        elif re.fullmatch(r"-O[.\w]*", name) and name not in known:
            yield name, name[2:] or None, flag
        elif equals:
            yield name, inline, flag
        elif is_switch(flag):
            yield name, None, flag
        else:
            yield name, " ".join(words[1:]) if words[1:] else ("" if flag.nargs in ("?", "*") else None), flag


def _denies(name: str, flag: Flag) -> bool:
    """A switch is written so that it says no to what it is called after."""
    plain = name.replace("_", "-")
    other = {"enable": "--disable-", "disable": "--enable-"}.get(flag.dest.partition("_")[0])
    return plain.startswith("--no-") or (other is not None and plain.startswith(other))


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _negative(word)


def _resolve(name: str, known: dict[str, Flag]) -> Flag | None:
    """An entry by exact name, underscores for hyphens, or an abbreviation that only one flag has."""
    plain = name.replace("_", "-") if name.startswith("--") else name
    if plain in known:
        return known[plain]
    if not plain.startswith("--") or len(plain) < 4:
        return None
    fitting = {id(flag): flag for option, flag in known.items() if option.startswith(plain)}
    return next(iter(fitting.values())) if len(fitting) == 1 else None


def spellings(word: str, known: dict[str, Flag]) -> tuple[str, ...]:
    """A flag as older and newer releases write it: itself, and both ways of denying it."""
    name = word.partition("=")[0].replace("_", "-") if word.startswith("--") else word
    denied = negation(name, known)
    found = [name, *([denied] if denied else [])]
    if name.startswith("--disable-"):
        found.append(name.replace("--disable-", "--no-enable-", 1))
    return tuple(found)


def negation(name: str, known: dict[str, Flag]) -> str | None:
    """How a release says "not": `--no-enable-x` became `--disable-x` in 0.33. None when `name` denies nothing it has."""
    plain = name.replace("_", "-")
    for start, positives in (("--no-", ("--",)), ("--disable-", ("--enable-", "--"))):
        if not plain.startswith(start):
            continue
        for positive in positives:
            entry = known.get(positive + plain.removeprefix(start))
            if entry is not None:
                return next((o for o in entry.flags if o.startswith(("--no-", "--disable-")) and o != plain), None)
    return None


def _value_problem(name: str, value: str | None, flag: Flag) -> Finding | None:
    if is_switch(flag) or (value is not None and is_open(value)):
        return None
    if value is None:
        return _finding("VER020", "error", f"{name} needs a value", "")
    if flag.choices is not None and value not in flag.choices and value:
        wanted = DTYPE_NAMES.get(value)
        close = [wanted] if wanted in flag.choices else difflib.get_close_matches(value, flag.choices, n=2)
        remedy = f"use {' or '.join(str(c) for c in close)}" if close else f"use one of {', '.join(flag.choices[:12])}"
        return _finding("VER021", "error", f"{name} does not take '{value}'", remedy)
    kind = flag.type or ""
    if kind == "int" and not re.fullmatch(r"-?\d+", value):
        return _finding("VER022", "error", f"{name} needs a whole number, not '{value}'", "")
    if kind.startswith("human_readable_int") and not (_HUMAN.match(value) or value in ("auto", "-1")):
        return _finding("VER022", "error", f"{name} needs a number such as 4096 or 4k, not '{value}'", "")
    if kind == "float" and not _is_float(value):
        return _finding("VER022", "error", f"{name} needs a number, not '{value}'", "")
    if kind in ("loads", "parse_dataclass") and value.startswith(("{", "[")):
        try:
            json.loads(value)
        except ValueError as err:
            return _finding("VER023", "error", f"{name} needs JSON", str(err))
    return None


def _key_problems(name: str, value: str, flag: Flag, table: FlagTable) -> Iterator[Finding]:
    """Keys of a structured argument that the release refuses: of `--a.b` and of JSON, and of what lies inside one level below."""
    for key in refused_keys(name, value, flag):
        close = difflib.get_close_matches(key, flag.keys, n=1, cutoff=0.75)
        remedy = f"did you mean {close[0]}?" if close else "leave it out"
        what = f"{name.partition('.')[0]} of {title(table)} {table.version} has no key {key}"
        yield _finding("VER024", "error", what, remedy)


def refused_keys(name: str, value: str, flag: Flag) -> tuple[str, ...]:
    """The keys in a structured argument that its release does not take; inner ones with a dot."""
    _, dot, path = name.partition(".")
    nested = {key.partition(".")[0] for key in flag.keys if "." in key}
    found = []
    for key in [path.replace("-", "_").rstrip("+")] if dot else _json_keys(value):
        first, _, rest = key.partition(".")
        known = f"{first}.{rest.partition('.')[0]}" if rest and first in nested else first
        if flag.keys and known not in flag.keys:
            found.append(known)
    return tuple(dict.fromkeys(found))


def _json_keys(value: str) -> Iterator[str]:
    try:
        found = json.loads(value)
    except ValueError:
        return
    for key, below in found.items() if isinstance(found, dict) else ():
        yield str(key)
        yield from (f"{key}.{each}" for each in (below if isinstance(below, dict) else ()))


def _ranges(given: dict[str, str]) -> Iterator[Finding]:
    share = given.get("gpu_memory_utilization")
    if share is not None and _is_float(share) and not 0 < float(share) <= 1:
        yield _finding("MEM010", "error", f"--gpu-memory-utilization {share} lies outside 0 to 1", "use 0.92")
    seqs, tokens = given.get("max_num_seqs"), given.get("max_num_batched_tokens")
    if seqs and tokens and seqs.isdigit() and tokens.isdigit() and int(tokens) < int(seqs):
        yield _finding(
            "SCH002", "error", f"--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs}", "raise it"
        )


def _environment(env: dict[str, str], table: FlagTable, removed: Callable[[], Removed]) -> Iterator[Finding]:
    for name in sorted(env):
        if not name.startswith(PREFIXES[table.engine]) or name in table.env:
            continue
        gone = removed().env.get(name)
        if gone is not None:
            instead = f"use {gone.instead}" if gone.instead else "remove it"
            identity, severity = (gone.rule, "error") if gone.rule is not None else ("VER003", "warning")
            instead = f"use {gone.use[0]}" if gone.use and not gone.instead else instead
            yield _finding(identity, severity, f"{name} is gone since {title(table)} {gone.gone_by}", instead)
        else:
            close = difflib.get_close_matches(name, table.env, n=1, cutoff=0.8)
            remedy = f"did you mean {close[0]}?" if close else "remove it"
            yield _finding("VER003", "warning", f"{title(table)} {table.version} does not read {name}", remedy)
    hip, cuda = env.get("HIP_VISIBLE_DEVICES"), env.get("CUDA_VISIBLE_DEVICES")
    if hip and cuda and hip != cuda:
        yield _finding(
            "ENV003", "error", "HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES differ", "unset CUDA_VISIBLE_DEVICES"
        )


def _unknown(name: str, known: dict[str, Flag], table: FlagTable, removed: Callable[[], Removed]) -> Finding:
    plain = name.replace("_", "-")
    gone = removed().flags.get(plain) or removed().flags.get(plain.replace("--no-", "--", 1))
    if gone is not None:
        said = gone.instead or " ".join(gone.use)
        instead = f"use {said}" if said.startswith("-") else (said or "remove it")
        return _finding("VER002", "error", f"{name} is gone since {title(table)} {gone.gone_by}", instead)
    renamed = negation(plain, known)
    if renamed is not None:
        return _finding("VER002", "error", f"{title(table)} {table.version} has no argument {name}", f"use {renamed}")
    close = difflib.get_close_matches(plain, known, n=2, cutoff=0.75)
    remedy = f"did you mean {' or '.join(close)}?" if close else "remove it"
    return _finding("VER001", "error", f"{title(table)} {table.version} has no argument {name}", remedy)


def by_flag(table: FlagTable, *, hidden: bool = False) -> dict[str, Flag]:
    """The entries of a table by each of their option strings, with those that the release takes and does not show or without."""
    return {option: flag for flag in table.flags for option in (*flag.flags, *(flag.hidden if hidden else ()))}


def is_switch(flag: Flag) -> bool:
    """It takes no value."""
    return flag.nargs == 0


def _negative(word: str) -> bool:
    return re.fullmatch(r"-\d+(\.\d+)?", word) is not None


def _is_float(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _finding(identity: str, severity: str, message: str, remedy: str) -> Finding:
    return Finding(id=identity, severity=severity, message=message, remedy=remedy)  # type: ignore[arg-type]
