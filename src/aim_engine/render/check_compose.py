"""Compose files: what the specification's reader refuses, what it lets pass, and what AMD GPUs and the engine need."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_host
from aim_engine.render.check_host import HostContainer
from aim_engine.render.document import get, mapping, mappings, strings
from aim_engine.render.findings import error, info, warning

MAX_ERRORS = 20
_DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(h|m|s|ms|us))+")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s*(b|k|m|g|t|kb|mb|gb|tb)?", re.IGNORECASE)
_PORTS = re.compile(
    r"((?P<host>\[[0-9a-fA-F:]+\]|[0-9]+(?:\.[0-9]+){3}):)?((?P<outside>[0-9-]*):)?(?P<inside>[0-9-]+)(/(tcp|udp))?"
)
_VARIABLE = re.compile(
    r"\$(?:\$|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::?(?P<how>[-+?])(?P<text>[^}]*))?\})"
)
UNKNOWN = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for a variable whose value only the user's shell knows."""
_DURATIONS = (
    ("stop_grace_period",),
    *(("healthcheck", key) for key in ("interval", "timeout", "start_period", "start_interval")),
)
_SIZES = (("shm_size",), ("mem_limit",), ("mem_reservation",), ("deploy", "resources", "limits", "memory"))


def is_compose(document: object) -> bool:
    """`document` looks like a Compose file."""
    return isinstance(document, dict) and isinstance(document.get("services"), dict)


def check(document: dict[str, Any], backend: Backend, version: str | None = None) -> tuple[Finding, ...]:
    """Everything wrong or risky about a Compose file. `version` overrides the images' release."""
    unfolded = interpolate(document)
    found = [*_specification(unfolded), *_references(unfolded)]
    for name, service in mapping(unfolded.get("services")).items():
        if not isinstance(service, dict):
            continue
        where = f"services.{name}"
        found += _values(service, where)
        found += check_host.check(container(service, where), backend, version)
    return tuple(dict.fromkeys(found))


def interpolate(value: Any) -> Any:
    """`value` as Compose reads it: `$$` is `$`, a variable is its default, or UNKNOWN without one."""
    if isinstance(value, dict):
        return {key: interpolate(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [interpolate(entry) for entry in value]
    return _VARIABLE.sub(_substitute, value) if isinstance(value, str) else value


def _substitute(match: re.Match[str]) -> str:
    if match[0] == "$$":
        return "$"
    return match["text"] if match["how"] == "-" else UNKNOWN


def _specification(document: dict[str, Any]) -> Iterator[Finding]:
    """What the reader of the specification refuses; each is taken out before it is asked again, since it stops at the first."""
    try:
        import compose_spec
        from compose_spec import models
    except ImportError:
        yield info(
            "CMP000",
            "the Compose specification was not checked: the package compose-spec is not installed",
            "pip install 'aim-engine[compose]'",
            "",
        )
        return
    import json

    known = set(models.Service.model_fields)
    top = set(models.ComposeSpecification.model_fields)
    rest = copy.deepcopy(document)
    yield from _unknown_keys(rest, top, "the file")
    for name, service in mapping(rest.get("services")).items():
        if isinstance(service, dict):
            yield from _unknown_keys(service, known, f"services.{name}")
            for newer in ("gpus", "models", "provider", "use_api_socket", "post_start", "pre_stop", "develop"):
                service.pop(newer, None)  # in the specification, not in this reader's release
            named, _, digest = str(service.get("image")).partition("@")
            if digest and ":" in named.rpartition("/")[2]:  # Compose takes a tag before a digest, this reader does not
                service["image"] = f"{named.rpartition(':')[0]}@{digest}"
            _lengthen(service)
    rest = _fill_in(rest)
    for _ in range(MAX_ERRORS):
        try:
            text = json.dumps(rest, ensure_ascii=False)
        except (TypeError, ValueError) as err:
            yield error("CMP001", "a key or value has no place in a Compose file", str(err), "the file")
            return
        try:
            compose_spec.PyCompose.from_yaml(text)  # which, unlike from_json, says where
            return
        except ValueError as err:
            where, message = _located(str(err))
            yield error("CMP001", message, "", where or "the file")
            if not _take_out(rest, where):
                return


def _lengthen(service: dict[str, Any]) -> None:
    """Write out what Compose understands in short and the reader does not: a device without its place inside, a home folder."""
    if isinstance(service.get("devices"), list):
        service["devices"] = [
            f"{each}:{each}" if isinstance(each, str) and each.startswith("/") and ":" not in each else each
            for each in service["devices"]
        ]
    if isinstance(service.get("volumes"), list):
        service["volumes"] = [
            f"/x{each[1:]}" if isinstance(each, str) and each.startswith("~") else each for each in service["volumes"]
        ]


def _unknown_keys(holder: dict[str, Any], known: set[str], where: str) -> Iterator[Finding]:
    import difflib

    for key in [key for key in holder if key not in known and not str(key).startswith("x-")]:
        close = difflib.get_close_matches(str(key), known, n=1)
        yield error("CMP001", f"there is no key '{key}'", f"did you mean {close[0]}?" if close else "", where)
        del holder[key]


def _fill_in(value: Any) -> Any:
    """`value` with something plausible for variables nobody gave a default; what is only such a variable is left out."""
    if isinstance(value, dict):
        return {
            key: "/x" if entry == UNKNOWN else _fill_in(entry)
            for key, entry in value.items()
            if entry != UNKNOWN or key == "source"
        }
    if isinstance(value, list):
        return [_fill_in(entry) for entry in value if entry != UNKNOWN]
    if isinstance(value, str):
        return value.replace(f"{UNKNOWN}/", "/x/").replace(UNKNOWN, "1")
    return value


def _located(text: str) -> tuple[str, str]:
    """The reader's `path: message at line 1 column 2` as (path, message)."""
    text = re.sub(r" at line \d+ column \d+$", "", " ".join(text.split()))
    match = re.match(r"((?:services|networks|volumes|secrets|configs|name|include)[^\s:]*): (.*)", text)
    return (match[1], match[2]) if match else ("", text)


def _take_out(document: dict[str, Any], where: str) -> bool:
    """Remove what `where` names; False when it cannot be followed."""
    parts: list[Any] = []
    for piece in where.split("."):
        name, *positions = re.split(r"[\[\]]+", piece.rstrip("]"))
        parts += [name, *(int(position) for position in positions if position.isdecimal())]
    holder: Any = document
    for part in parts[:-1]:
        if not _holds(holder, part):
            return False
        holder = holder[part]
    if not _holds(holder, parts[-1]):
        return False
    del holder[parts[-1]]
    return True


def _holds(holder: Any, part: Any) -> bool:
    """`holder[part]` exists."""
    return (isinstance(holder, dict) and part in holder) or (
        isinstance(holder, list) and isinstance(part, int) and part < len(holder)
    )


def _references(document: dict[str, Any]) -> Iterator[Finding]:
    """Names that are used and not defined."""
    services = mapping(document.get("services"))
    for name, service in services.items():
        where = f"services.{name}"
        wanted = get(service, "depends_on")
        for other in wanted if isinstance(wanted, dict) else strings(wanted):
            if other not in services:
                yield error("CMP002", f"depends on '{other}', which is no service here", "", f"{where}.depends_on")
        for key in ("volumes", "secrets", "configs", "networks"):
            for used in _used(service, key):
                if used not in mapping(document.get(key)) and not (key == "networks" and used == "default"):
                    yield error(
                        "CMP002",
                        f"uses '{used}', which is not among the file's {key}",
                        f"add it to {key}",
                        f"{where}.{key}",
                    )


def _used(service: Any, key: str) -> Iterator[str]:
    entries = get(service, key)
    if key == "networks" and isinstance(entries, dict):
        yield from (str(name) for name in entries)
        return
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            source = entry.get("source")
            if isinstance(source, str) and (key != "volumes" or entry.get("type") == "volume"):
                yield source
        elif isinstance(entry, str) and key == "volumes":
            source, colon, _ = entry.partition(":")
            if colon and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", source):
                yield source
        elif isinstance(entry, str):
            yield entry


def _values(service: dict[str, Any], where: str) -> Iterator[Finding]:
    """Durations, sizes, ports and restart policies, which not every reader looks at."""
    for path in _DURATIONS:
        value = get(service, *path)
        if isinstance(value, str) and UNKNOWN not in value and not _DURATION.fullmatch(value):
            yield error(
                "CMP003", f"'{value}' is not a duration", "write for example 90s or 1m30s", f"{where}.{'.'.join(path)}"
            )
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield error(
                "CMP003", f"{value} is a duration without a unit", f"write {value}s", f"{where}.{'.'.join(path)}"
            )
    for path in _SIZES:
        value = get(service, *path)
        if isinstance(value, str) and UNKNOWN not in value and not _SIZE.fullmatch(value):
            yield error("CMP003", f"'{value}' is not a size", "write for example 16g", f"{where}.{'.'.join(path)}")
    for index, entry in enumerate(service["ports"] if isinstance(service.get("ports"), list) else []):
        place = f"{where}.ports[{index}]"
        for port in _port_numbers(entry):
            if not 1 <= port <= 65535:
                yield error("CMP004", f"port {port} is not between 1 and 65535", "", place)
    policy = service.get("restart")
    if (
        isinstance(policy, str)
        and UNKNOWN not in policy
        and not re.fullmatch(r"no|always|unless-stopped|on-failure(:\d+)?", policy)
    ):
        yield error(
            "CMP003",
            f"'{policy}' is not a restart policy",
            "no, always, on-failure or unless-stopped",
            f"{where}.restart",
        )
    if "image" not in service and "build" not in service and "provider" not in service and "extends" not in service:
        yield error("CMP003", "has neither an image nor a build", "", where)
    if service.get("container_name") and str(get(service, "deploy", "replicas") or service.get("scale") or "1") not in (
        "0",
        "1",
    ):
        yield warning(
            "CMP003", "several replicas cannot share one container_name", "drop it", f"{where}.container_name"
        )


def _port_numbers(entry: Any) -> Iterator[int]:
    """All port numbers of a `ports` entry, short or long."""
    if isinstance(entry, dict):
        texts = [str(entry[key]) for key in ("target", "published") if key in entry]
    else:
        match = _PORTS.fullmatch(str(entry))
        texts = [text for text in (match["outside"], match["inside"]) if text] if match else []
    for text in texts:
        yield from (int(number) for number in re.findall(r"[0-9]+", text))


def published(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(address, port) of everything a service publishes; without an address it is 0.0.0.0."""
    for entry in service["ports"] if isinstance(service.get("ports"), list) else []:
        if isinstance(entry, dict):
            if entry.get("published") is not None:
                yield str(entry.get("host_ip") or "0.0.0.0"), str(entry["published"])  # noqa: S104 - Compose's default
        else:
            match = _PORTS.fullmatch(str(entry))
            if match is not None and match["outside"] is not None:
                yield (match["host"] or "0.0.0.0").strip("[]"), match["outside"]  # noqa: S104 - Compose's default


def container(service: dict[str, Any], where: str) -> HostContainer:
    """A service, or a mapping of the same keys, as the container it starts; its `args` follow its `command`."""
    entrypoint, command = service.get("entrypoint"), service.get("command")
    reserved = mappings(get(service, "deploy", "resources", "reservations", "devices"))
    devices = [*strings(service.get("devices"))]
    devices += [str(entry["source"]) for entry in mappings(service.get("devices")) if "source" in entry]
    return HostContainer(
        where=where,
        image=str(service.get("image") or "").replace(UNKNOWN, ""),
        entrypoint=_words(entrypoint) if entrypoint else None,
        args=(*_words(command), *strings(service.get("args"))),
        env=_environment(service.get("environment")),
        devices=tuple(device for device in devices if device),
        asks_engine_for_gpus=bool(service.get("gpus") or reserved or service.get("runtime") == "amd"),
        shm_bytes=check_host.GIB
        if UNKNOWN in str(service.get("shm_size"))
        else check_host.size(service.get("shm_size")),
        host_ipc=service.get("ipc") == "host",
        privileged=service.get("privileged") is True,
        host_network=service.get("network_mode") == "host",
        published=tuple(published(service)),
        capabilities=strings(service.get("cap_add")) + strings(service.get("cap_drop")),
        mounts=tuple(_targets(service)),
        user=str(service.get("user") or ""),
        groups=strings(service.get("group_add")),
    )


def _targets(service: dict[str, Any]) -> Iterator[str]:
    for entry in service["volumes"] if isinstance(service.get("volumes"), list) else []:
        if isinstance(entry, dict):
            yield str(entry.get("target") or "")
        else:
            parts = str(entry).split(":")
            yield parts[1] if len(parts) > 1 else parts[0]


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError:
            return tuple(value.split())
    return strings(value)


def _environment(value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {
            str(name): _known(entry) for name, entry in value.items() if entry is not None and _known(entry) is not None
        }
    return {
        name: text
        for name, equals, text in (entry.partition("=") for entry in strings(value))
        if equals and UNKNOWN not in text
    }


def _known(value: Any) -> Any:
    """`value` as text; nothing when only the user's shell knows it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return None if UNKNOWN in text else text
