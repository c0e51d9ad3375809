"""Free text on its way into a file that something else will parse: what may pass, and in which quotes.

Names become labels, so they are refused unless they are one. Everything else is data that must arrive unchanged, so it is
quoted by the library of its language: `shlex` for shells, a YAML emitter for YAML; Compose and Kubernetes expand `$` after
YAML is read, which `no_expansion` undoes in advance.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from aim_engine.errors import InvalidInput

MAX_NAME = 50
"""A DNS label has 63 characters; ours get suffixes such as -hf-token."""
MAX_PORT = 65535
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_IMAGE = re.compile(
    r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?(?::[0-9]+)?(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_UNPRINTABLE = re.compile("[^\t\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?")
_PLAIN = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./@:=-]*[A-Za-z0-9_/])?|--[a-z][a-z0-9-]*|[0-9]+(?:s|g|Mi|Gi)")
_BLOCK = re.compile(r"[!-~](?:[ -~]*[!-~])?\n(?:(?:[ -~]*[!-~])?\n)+")
"""Lines that a literal block keeps in every reader: plain ASCII, no blank at an end, a line break after the last."""
_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


def dns_label(name: str, what: str = "name") -> str:
    """`name` when it can name a container, a Service and a pod. Raises: InvalidInput."""
    if len(name) > MAX_NAME or not _LABEL.fullmatch(name):
        raise InvalidInput(
            f"'{name}' cannot be used as a {what}",
            why=f"it must be a DNS label: lower-case letters, digits and -, a letter first, at most {MAX_NAME} characters",
            hint=f"for example {suggest_name(name)}",
        )
    return name


def suggest_name(text: str) -> str:
    """A DNS label made of `text`, such as `qwen3-32b` of `Qwen/Qwen3-32B`."""
    words = re.sub(r"[^a-z0-9]+", "-", text.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    if not words:
        return "model"
    if not words[0].isalpha():
        words = f"m-{words}"
    return words[:MAX_NAME].rstrip("-")


def dns_subdomain(name: str, what: str) -> str:
    """`name` when it is a DNS subdomain, as StorageClasses are called. Raises: InvalidInput."""
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise InvalidInput(f"'{name}' cannot be used as a {what}", why="it is not a DNS subdomain")
    return name


def image_reference(reference: str) -> str:
    """`reference` when it can name a container image. Raises: InvalidInput."""
    if len(reference) > 512 or not _IMAGE.fullmatch(reference):
        raise InvalidInput(
            f"'{reference}' is not an image reference", hint="for example registry.local/vllm-rocm:v0.32.0"
        )
    return reference


def data(value: str, what: str) -> str:
    """`value` when it can be an argument, a variable's value or a path at all. Raises: InvalidInput."""
    if "\0" in value:
        raise InvalidInput(f"the {what} holds a NUL character", why="no argument or variable can")
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise InvalidInput(f"the {what} is not valid Unicode text", why=f"at character {err.start}") from err
    return value


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """`env` sorted by name, when every name can be one. Raises: InvalidInput."""
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise InvalidInput(
                f"'{name}' cannot be the name of an environment variable", why="letters, digits and _ only"
            )
    return {name: data(env[name], f"value of {name}") for name in sorted(env)}


def labels(given: Mapping[str, str]) -> dict[str, str]:
    """`given` sorted, when they can be labels of Kubernetes objects, which any container may have too. Raises: InvalidInput."""
    for key, value in given.items():
        _label_key(key, "label")
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            raise InvalidInput(
                f"'{value}' cannot be the value of the label {key}",
                why="at most 63 letters, digits, - _ and ., a letter or digit first and last",
            )
    return {key: given[key] for key in sorted(given)}


def annotation_values(given: Mapping[str, str]) -> dict[str, str]:
    """`given` sorted, when the keys can be those of annotations; the values are free. Raises: InvalidInput."""
    for key in given:
        _label_key(key, "annotation")
    return {key: data(given[key], f"annotation {key}") for key in sorted(given)}


def _label_key(key: str, what: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if (slash and not _SUBDOMAIN.fullmatch(prefix)) or not name or len(name) > 63 or not _LABEL_VALUE.fullmatch(name):
        raise InvalidInput(f"'{key}' cannot be the key of a {what}", hint="for example team or example.com/team")
    if prefix == "app.kubernetes.io":
        raise InvalidInput(f"the {what} {key} is set by aim-engine", why="selectors and clean-up depend on it")


def ip_address(host: str) -> str:
    """`host` when it is an address that a container engine can publish on. Raises: InvalidInput."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError as err:
        raise InvalidInput(
            f"'{host}' is not an IP address",
            why="container ports are published on addresses",
            hint="127.0.0.1 or 0.0.0.0",
        ) from err


def host_name(host: str) -> str:
    """`host` when a server can listen on it: an address or a host name. Raises: InvalidInput."""
    if not _HOST.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError as err:
            raise InvalidInput(f"'{host}' is neither a host name nor an address") from err
    return host


def port_number(port: int) -> int:
    """`port` when it is one. Raises: InvalidInput."""
    if not 1 <= port <= MAX_PORT:
        raise InvalidInput(f"{port} is not a port", why=f"ports go from 1 to {MAX_PORT}")
    return port


def host_path(path: str, what: str) -> str:
    """`path` when it means the same from every working folder. Raises: InvalidInput."""
    data(path, what)
    if "\n" in path or "\r" in path:
        raise InvalidInput(f"the {what} holds a line break", why="not every reader of mounts keeps one")
    if not path.startswith(("/", "~/")):
        raise InvalidInput(
            f"the {what} '{path}' is relative", why="rendered files run from any folder", hint="give an absolute path"
        )
    return path


def shell_path(path: str) -> str:
    """`path` as one shell word; a leading `~/` becomes the home folder of whoever runs the script."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}' if path[2:] else '"$HOME"'
    return shlex.quote(path)


def no_expansion(value: str) -> str:
    """`value` as Compose and Kubernetes must read it in order to pass it on unchanged: `$` doubled."""
    return value.replace("$", "$$")


def comment(lines: Iterable[str]) -> str:
    """`lines` as `#` comments: whatever breaks a line in any language starts a new comment, what nobody prints is `?`."""
    found = [_UNPRINTABLE.sub("?", part) for line in lines for part in (line.splitlines() or [""])]
    return "".join(f"# {line}".rstrip() + "\n" for line in found)


def yaml_document(document: Mapping[str, Any]) -> str:
    """`document` as block YAML in the given key order.

    A string stands bare only when no reader of YAML 1.1 or 1.2 could take it for something else; `1e3` and `0o17` are
    numbers to some and text to others, so they are quoted.
    """
    import yaml

    class Emitter(yaml.SafeDumper):
        """Indents lists, writes no anchors and quotes by the rule above."""

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(emitter: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        bare = _PLAIN.fullmatch(value) is not None and value.lower() not in _YAML_WORDS
        style = None if bare else "|" if _BLOCK.fullmatch(value) else '"'
        return emitter.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Emitter.add_representer(str, text)
    return yaml.dump(
        dict(document), Dumper=Emitter, sort_keys=False, allow_unicode=True, width=1_000_000, default_flow_style=False
    )
