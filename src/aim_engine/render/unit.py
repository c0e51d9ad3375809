"""Lines of systemd unit files, and of the quadlets that become units.

Words are quoted as systemd reads them: C escapes inside double quotes; `%` and, in commands, `$` are doubled, because
systemd expands both. Source: systemd.syntax(7) quoting, systemd.service(5) command lines, systemd.unit(5) specifiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aim_engine.errors import InvalidInput
from aim_engine.render import text

MAX_LINE_BYTES = 1_000_000
"""systemd refuses longer lines (LONG_LINE_MAX, 1 MiB)."""
_BARE = re.compile(r"[A-Za-z0-9_./:=@,+-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def word(value: str) -> str:
    """`value` as one word of a setting that expands specifiers only, such as Environment=."""
    if _BARE.fullmatch(value):
        return value
    return '"' + "".join(_escaped(character) for character in text.data(value, "value")).replace("%", "%%") + '"'


def command(words: Iterable[str]) -> str:
    """`words` as a command line, an option and its values on each continued line. Raises: InvalidInput."""
    line = ""
    for value in words:
        quoted = word(value).replace("$", "$$")
        line += quoted if not line else (" \\\n    " if value.startswith("--") else " ") + quoted
    return bounded(line)


def bounded(line: str) -> str:
    """`line` when systemd can read it. Raises: InvalidInput."""
    if len(line.encode()) > MAX_LINE_BYTES:
        raise InvalidInput(
            f"a line of {len(line.encode()):,} bytes cannot stand in a unit file", hint="render for shell"
        )
    return line


def path(value: str, what: str) -> str:
    """`value` as the source of a mount. Raises: InvalidInput when its characters have a meaning there."""
    if any(character in value for character in ':\\"'):
        raise InvalidInput(f"the {what} '{value}' cannot stand in a unit file", why='it holds one of : \\ "')
    return text.host_path(value, what).replace("%", "%%")


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{ord(character):02x}" if ord(character) < 0x20 or ord(character) == 0x7F else character
