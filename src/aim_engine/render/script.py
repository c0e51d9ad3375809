"""Shell text that others wrote, read without running anything: its simple commands, and what is known of its variables.

Values that a script sets itself are filled in; what only its caller or another command knows stays as it was written, and so do
variables that branches set differently. Prose around commands is passed over.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)(.*)", re.DOTALL)
_BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9])(?:\[[@*]\])?(?::?[-=](.*))?", re.DOTALL)
_LIST = re.compile(r'"?\$\{([A-Za-z_][A-Za-z0-9_]*)\[[@*]\]\}"?')
_PLACEHOLDER = re.compile(r"<[A-Za-z_][^<>\n|&;]*>")
_PROGRAMS = re.compile(r"\b(?:docker|podman|nerdctl|serve|launch_server)\b|vllm\.entrypoints")
"""What a command substitution holds that is worth reading by itself."""
_OPERATORS = ";&|()<>"
_WRAPPERS = frozenset(("exec", "sudo", "nohup", "time", "env", "command", "$", "%"))
"""Words in front of a command that leave it what it is; prompts among them."""
_DECLARES = frozenset(("export", "declare", "typeset", "readonly", "local"))
_OPENING = frozenset(("if", "case", "for", "while", "until", "select"))
_CLOSING = frozenset(("fi", "esac", "done"))
_BREAKS = frozenset(("{", "}", "then", "do", "else", "elif", "!", "```"))
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "zsh", "ssh", "tmux", "screen"))
_MOST_LINES = 200
"""A list that goes on for longer was none."""
_MOST_WORDS = 4096
"""A variable that would unfold to more is left as it is written."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One command of a text."""

    words: tuple[str, ...]
    env: dict[str, str]
    """Assignments in front of it and exports before it."""
    unexported: dict[str, str] = {}
    """Variables that neither its commands nor the script itself ask for."""


class _OpenList(ValueError):
    """A list of words goes on."""


class _Command(NamedTuple):
    words: list[str]
    """As they are written, with quotes."""
    depth: int
    """Branches and loops around it."""


def commands(
    content: str, starts: Callable[[tuple[str, ...]], bool], exported: Mapping[str, str] | None = None
) -> tuple[Line, ...]:
    """The simple commands of a text; `starts` tells the words of one that matters from others, `exported` is its environment.

    A line that ends inside quotes goes on with the next, unless that one matters by itself: then the quote was an apostrophe in
    some prose. What a shell is given as one word (`bash -c "..."`) is read as well.
    """
    return tuple(_Reader(starts, exported or {}).read(content))


def handed_on(words: Sequence[str]) -> dict[str, str]:
    """What `docker exec -e A=1` and its kin give to the command behind them."""
    pairs = [
        after if before in ("-e", "--env") else after.removeprefix("--env=")
        for before, after in itertools.pairwise(words)
        if before in ("-e", "--env") or after.startswith("--env=")
    ]
    return {match[1]: match[3] for pair in pairs if (match := _ASSIGNMENT.fullmatch(pair)) is not None}


class _Reader:
    """A text from its first line to its last."""

    def __init__(self, starts: Callable[[tuple[str, ...]], bool], exported: Mapping[str, str]) -> None:
        self.starts = starts
        self.known: dict[str, list[str] | None] = {name: [value] for name, value in exported.items()}
        """What variables hold, as words; None where that is not known."""
        self.exported: set[str] = set(exported)
        self.used: set[str] = set()
        """Variables that the script itself asks for."""
        self.in_branch: set[str] = set()
        """Variables that were first set in a branch."""

    def read(self, content: str) -> Iterator[Line]:
        depth = 0
        for parts in self._logical(re.sub(r"\\\r?\n", " ", content)):
            for command in _simple(parts, depth):
                depth = command.depth
                if command.words:
                    yield from self._command(command)

    def _logical(self, content: str) -> Iterator[list[str]]:
        """The parts of each line that is whole."""
        pending, lines_of_list = "", 0
        for line in content.splitlines():
            if pending and lines_of_list in (0, _MOST_LINES) and self._matters(line):
                pending = ""
            pending = f"{pending}\n{line}" if pending else line
            try:
                parts = list(_parts(pending))
            except _OpenList:
                lines_of_list = min(lines_of_list + 1, _MOST_LINES)
                continue
            except ValueError:
                lines_of_list = 0
                continue
            yield parts
            pending, lines_of_list = "", 0

    def _matters(self, line: str) -> bool:
        try:
            found = [command.words for command in _simple(_parts(line), 0)]
        except ValueError:
            return False
        return any(self.starts(tuple(word for each in words for word in self._words(each))) for words in found)

    def _command(self, command: _Command) -> Iterator[Line]:
        env: dict[str, str] = {}
        raw = list(command.words)
        if raw[0] == "for" and len(raw) > 1:
            self.known[raw[1]] = None
        declares = exports = wrapped = False
        while raw:
            word = raw[0]
            match = _ASSIGNMENT.fullmatch(word)
            if match is not None:
                env[match[1]] = self._assign(match[1], match[2], match[3], command.depth)
            elif word in _DECLARES:
                declares, exports = True, word == "export"
            elif declares and re.fullmatch(r"-[a-zA-Z]+|[A-Za-z_]\w*", word):
                exports = exports or (word.startswith("-") and "x" in word)
                self.exported |= {word} if exports and not word.startswith("-") else set()
            elif word in _WRAPPERS or (wrapped and word.startswith("-")):
                wrapped = True
            else:
                break
            raw.pop(0)
        if exports:
            self.exported |= set(env)
        if not raw or declares:
            return
        line = self._line(tuple(word for each in raw for word in self._words(each)), env)
        yield line
        if not self.starts(line.words):
            yield from self._inner(line)

    def _line(self, words: tuple[str, ...], env: dict[str, str]) -> Line:
        held = {name: " ".join(value) for name, value in self.known.items() if value is not None and name not in env}
        return Line(
            words=words,
            env={name: value for name, value in held.items() if name in self.exported} | env,
            unexported={n: value for n, value in held.items() if n not in self.exported and n not in self.used},
        )

    def _inner(self, line: Line) -> Iterator[Line]:
        """The commands in a word that another shell reads."""
        shells = [place for place, word in enumerate(line.words) if word.rsplit("/", 1)[-1] in _SHELLS]
        env = line.env | handed_on(line.words[: shells[0]]) if shells else {}
        for word in line.words[shells[0] + 1 :] if shells else ():
            for inner in commands(word, self.starts) if " " in word.strip() else ():
                if self.starts(inner.words):
                    yield msgspec.structs.replace(inner, env=env | inner.env)

    def _assign(self, name: str, how: str, value: str, depth: int) -> str:
        """Note what a variable holds, on the way that takes no branch; of one that only branches set, and differently, nothing is known."""
        words = self._list(value) if value.startswith("(") else self._words(value, one=True)
        before = self.known.get(name, [])
        after: list[str] | None = words
        if how == "+=" and depth > 0:
            after = before if before is None or f"${{{name}[@]}}" in before else [*before, f"${{{name}[@]}}"]
        elif how == "+=":
            after = (
                None if before is None else [*before, *words] if value.startswith("(") else ["".join((*before, *words))]
            )
        elif depth > 0 and before not in ([], [""], words):
            after = None if name in self.in_branch else before
        if depth > 0 and name not in self.known:
            self.in_branch.add(name)
        self.known[name] = after if after is None or len(after) <= _MOST_WORDS else None
        return " ".join(words)

    def _list(self, value: str) -> list[str]:
        """The words of `(a b c)`."""
        return [word for part in _parts(value[1:-1]) if part != "\n" for word in self._words(part)]

    def _words(self, raw: str, *, one: bool = False) -> list[str]:
        """What a written word stands for: several where an unquoted variable holds several, unless it is `one`, in an assignment."""
        whole = _LIST.fullmatch(raw)
        if whole is not None and not one:
            held = self.known.get(whole[1])
            return [raw.strip('"')] if held is None else list(held)
        parts: list[str] = []
        text, quote, quoted = "", "", False
        position = 0
        while position < len(raw):
            char = raw[position]
            end = position + 1
            if char == "\\" and quote != "'" and end < len(raw):
                text += raw[end] if not quote or raw[end] in '"\\$`' else char + raw[end]
                end += 1
            elif char in "'\"" and quote in ("", char):
                quote, quoted = "" if quote else char, True
            elif char in "$`" and quote != "'":
                end = _reference_end(raw, position)
                reference = raw[position:end]
                pieces = self._pieces(reference, split=not quote and not one)
                if not any(pieces) and raw.strip('"') != reference:
                    pieces = [reference]  # set where this is not read, in all likelihood
                text += pieces[0] if pieces else ""
                for piece in pieces[1:]:
                    parts.append(text)
                    text = piece
            else:
                text += char
            position = end
        return [*parts, text] if text or quoted or one else parts

    def _pieces(self, reference: str, *, split: bool) -> list[str]:
        """The words a reference stands for; itself where that is not known."""
        inside = reference[2:-1] if reference.startswith("${") else reference[1:]
        match = _BRACED.fullmatch(inside)
        if match is None or reference.startswith(("$(", "`")):
            return [reference]
        name, default = match.groups()
        self.used.add(name)
        held = self.known.get(name)
        if default is not None and (name not in self.known or held in ([], [""])):
            held = self._words(default, one=True)
        if held is None:
            return [reference]
        text = " ".join(held)
        return text.split() if split else [text]


def _simple(parts: Iterable[str], depth: int) -> Iterator[_Command]:
    """The simple commands of a line, each with the depth that holds from there on."""
    words: list[str] = []
    branch = 0
    for part in parts:
        first = not words
        if part == "\n" or (part[0] in _OPERATORS and _PLACEHOLDER.match(part) is None):
            yield _Command(words, depth + branch)
            words, branch = [], 1 if part in ("&&", "||") else 0
        elif first and part in _OPENING:
            depth += 1
            words = ["for"] if part == "for" else []
        elif first and part in _CLOSING:
            depth = max(0, depth - 1)
        elif part in _BREAKS:
            yield _Command(words, depth + branch)
            words = []
        else:
            words.append(part)
    yield _Command(words, depth + branch)
    yield _Command([], depth)


def _parts(text: str) -> Iterator[str]:
    """Words as they are written, operators and line ends. Raises: ValueError where a quote or a bracket stays open."""
    word = ""
    position = 0
    while position < len(text):
        char = text[position]
        end = position + 1
        if char in "'\"":
            end = _quote_end(text, position)
        elif char == "\\":
            end += 1
        elif char in "$`":
            end = _reference_end(text, position, strict=True)
            if text.startswith("$(", position) and _PROGRAMS.search(text[position:end]):
                if word:
                    yield word
                word, end = "", position + 2
                yield "("
                position = end
                continue
        elif char == "(" and re.fullmatch(r"[A-Za-z_]\w*\+?=", word):
            try:
                end = _bracket_end(text, position, "()")
            except ValueError as err:
                raise _OpenList(*err.args) from err
        elif char == "<" and (match := _PLACEHOLDER.match(text, position)) is not None:
            end = match.end()
        elif char.isspace() or char in _OPERATORS or (char == "#" and not word):
            if word and not (char in "<>" and word.isdecimal()):
                yield word
            word = ""
            if char == "#":
                end = text.find("\n", position)
                end = len(text) if end < 0 else end
            elif char == "\n":
                yield char
            elif not char.isspace():
                while end < len(text) and text[end] in _OPERATORS:
                    end += 1
                yield text[position:end]
            position = end
            continue
        word += text[position:end]
        position = end
    if word:
        yield word


def _quote_end(text: str, start: int) -> int:
    """After the quote that closes the one at `start`. Raises: ValueError when none does."""
    quote, position = text[start], start + 1
    while position < len(text):
        if text[position] == "\\" and quote == '"':
            position += 1
        elif text.startswith("$(", position) and quote == '"':
            position = _reference_end(text, position) - 1
        elif text[position] == quote:
            return position + 1
        position += 1
    raise ValueError(f"no closing {quote}")


def _reference_end(text: str, start: int, *, strict: bool = False) -> int:
    """After the variable or command substitution at `start`. Raises: ValueError when it is not closed and `strict`."""
    pair = {"$(": "()", "${": "{}"}.get(text[start : start + 2])
    try:
        if pair is not None:
            return _bracket_end(text, start + 1, pair)
        if text[start] == "`":
            return text.index("`", start + 1) + 1
    except ValueError:
        if strict and pair is not None:
            raise
        return start + 1
    match = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-])").match(text, start)
    return match.end() if match is not None else start + 1


def _bracket_end(text: str, start: int, pair: str) -> int:
    """After the bracket that closes the one at `start`. Raises: ValueError when none does."""
    depth, position = 0, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char in "'\"":
            position = _quote_end(text, position) - 1
        elif char == "#" and pair == "()" and text[position - 1].isspace():
            position = text.find("\n", position)
            if position < 0:
                break
        elif char in pair:
            depth += 1 if char == pair[0] else -1
            if depth == 0:
                return position + 1
        position += 1
    raise ValueError(f"no closing {pair[1]}")
