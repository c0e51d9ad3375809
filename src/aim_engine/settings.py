"""What a user may set once instead of on every command line.

Precedence: flag, then `AIM_ENGINE_*` variable, then the settings file, then the default. Only edges read settings;
the core gets values as arguments. `aim-engine settings` prints each value and where it came from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.errors import InvalidInput

PREFIX = "AIM_ENGINE_"


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "aim-engine"


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting with its unit and the reason for its default."""

    state_dir: str = ""
    """Folder of deployments and their logs. Default: XDG_STATE_HOME/aim-engine, where logs and history belong."""
    data_dir: str = ""
    """Folder of engine environments and converted models. Default: XDG_DATA_HOME/aim-engine; gigabytes, can be recreated."""
    cache_dir: str = ""
    """Folder of the model cache. Default: aim-engine in HF_HOME, so that weights lie on the disk that the user chose for the
    hub's own cache, whose models can then be taken over without a copy."""
    cache_limit: str = ""
    """Most that the model cache may take, such as 2TiB; models that were used least go when a download needs their room.
    Default: no limit, and nothing goes by itself."""
    cache_sources: str = ""
    """Where models come from, in order of preference and separated by commas: https://HOST (a hub or mirror), modelscope,
    web+https://HOST/PATH, s3://BUCKET/PATH, gs://, az://, or a folder. Default: HF_ENDPOINT, else the hub."""
    cache_peers: str = ""
    """Addresses of other nodes that run `aim-engine cache serve`, separated by commas; content comes from them first, and is
    proved as if it came from a stranger. Default: none."""
    cache_bandwidth: str = ""
    """Most that all downloads of this node together may take, such as 500MB/s. Default: no limit."""
    cache_xet: bool = False
    """Fetch all large files of a hub through its library for Xet storage (`aim-engine[xet]`). Default: only files over 50 GB, and those
    that the hub does not give out otherwise, because the library takes more memory and proves nothing."""
    cache_write_back: str = ""
    """Where fetched models are written to as well, for other nodes: s3://BUCKET/PATH, gs://, az://, or a shared folder. Default: nowhere."""
    catalog_dir: str = ""
    """Folder laid out like the bundled `data/`, whose files win over the bundled ones. Default: none."""
    history_limit: str = "2GiB"
    """Most that the history of figures may take; the oldest and finest go first. Default: a year of hours and two weeks of minutes
    for some fifty deployments; empty is no limit."""
    notify_file: str = ""
    """File of the receivers of alerts, one address a line: a webhook, alertmanager+http://..., or what Apprise knows. A file, because
    such addresses hold secrets. Default: nobody is told."""
    sysfs_root: str = "/"
    """Root under which `sys` and `proc` are read. Default: this machine."""
    engine_version: str = ""
    """Engine release to plan for. Default: the newest one known."""
    ready_timeout_s: float = 0.0
    """Seconds to wait for an engine to become ready. Default 0: three times the predicted load time, at least 900 s,
    because first starts compile kernels for minutes."""
    offline: bool = False
    """Never ask the hub. Default: ask when neither catalogue nor cache knows a model."""
    log_format: str = "text"
    """`text` for people, `json` for log collectors; logs go to stderr either way."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A setting's value and what said it."""

    name: str
    value: Any
    origin: str


def load(overrides: dict[str, Any] | None = None) -> Settings:
    """The settings in force. `overrides` are flags; None values are ignored. Raises: InvalidInput."""
    return _build(resolve(overrides))


def resolve(overrides: dict[str, Any] | None = None) -> tuple[Origin, ...]:
    """Each setting with its value and origin, in declaration order. Raises: InvalidInput."""
    path = file_path()
    from_file = _read_file(path)
    computed = {
        "state_dir": str(_xdg("XDG_STATE_HOME", ".local/state")),
        "data_dir": str(_xdg("XDG_DATA_HOME", ".local/share")),
        "cache_dir": str(_hub_home() / "aim-engine"),
    }
    origins = []
    for field in msgspec.structs.fields(Settings):
        variable = PREFIX + field.name.upper()
        if overrides and overrides.get(field.name) is not None:
            value, origin = overrides[field.name], "flag"
        elif variable in os.environ:
            value, origin = _from_text(field.name, field.type, os.environ[variable], variable), variable
        elif field.name in from_file:
            value, origin = from_file[field.name], str(path)
        else:
            value, origin = computed.get(field.name, field.default), "default"
        origins.append(Origin(name=field.name, value=value, origin=origin))
    _build(tuple(origins))
    return tuple(origins)


def file_path() -> Path:
    """The settings file: `AIM_ENGINE_CONFIG`, else XDG_CONFIG_HOME/aim-engine/settings.yaml."""
    explicit = os.environ.get(PREFIX + "CONFIG")
    return Path(explicit) if explicit else _xdg("XDG_CONFIG_HOME", ".config") / "settings.yaml"


def _build(origins: tuple[Origin, ...]) -> Settings:
    try:
        return msgspec.convert({origin.name: origin.value for origin in origins}, Settings)
    except msgspec.ValidationError as err:
        raise InvalidInput("the settings are not usable", why=str(err), hint="aim-engine settings") from err


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise InvalidInput(f"the settings file {path} cannot be read", why=err.strerror) from err
    import yaml

    try:
        values = yaml.safe_load(text) or {}
        msgspec.convert(values, Settings)
    except (yaml.YAMLError, msgspec.ValidationError) as err:
        raise InvalidInput(
            f"the settings file {path} is not usable", why=str(err), hint="aim-engine settings lists the names"
        ) from err
    return dict(values)


def _from_text(name: str, kind: Any, text: str, variable: str) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[
                text.lower()
            ]
        return kind(text)
    except (KeyError, ValueError) as err:
        raise InvalidInput(f"{variable}={text} is not a usable value for {name}") from err
