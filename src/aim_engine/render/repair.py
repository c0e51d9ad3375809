"""Documents of others with every remedy that has one right answer: image, entry point, arguments, environment.

Only the engine's own parts of a container are touched; everything else is passed through as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.backend.base import Backend, Change
from aim_engine.recipe import exchange
from aim_engine.render import check_engine
from aim_engine.render.check_engine import Container


def document(value: Any, backend: Backend, version: str | None) -> tuple[Any, tuple[Change, ...]]:
    """`value`, a Compose file, manifest, container, recipe or configuration file of others, repaired, and what was changed in it."""
    shape = exchange.shape_of(value)
    if shape is not None:
        return _recipe(value, shape, backend, version or backend.versions()[0])
    if isinstance(value, dict) and exchange.is_arguments(value):
        return _arguments(value, backend, version or backend.versions()[0])
    changes: list[Change] = []
    return _walk(value, backend, version, changes), tuple(changes)


def _arguments(value: Mapping[str, Any], backend: Backend, version: str) -> tuple[dict[str, Any], tuple[Change, ...]]:
    """An engine's configuration file. It has no place for variables: arguments that would need one are left to the findings."""
    words = exchange.words_of(value)
    switch = (
        "1" if any(word.startswith("--attention-backend") for word in words) else "0"
    )  # as whoever named one has it
    done = backend.repair(words, {"VLLM_ROCM_USE_AITER": switch}, version)
    changes = tuple(change for change in done.changes if "=" not in change.to.partition(" ")[0])
    return (exchange.with_words(value, done.args) if changes else dict(value)), changes


def _recipe(
    value: Mapping[str, Any], shape: exchange.Shape, backend: Backend, version: str
) -> tuple[dict[str, Any], tuple[Change, ...]]:
    args, env = exchange.command_line(value)
    done = backend.repair(args, env, version)
    return exchange.with_command_line(value, shape, done.args, done.env), done.changes


def _walk(value: Any, backend: Backend, version: str | None, changes: list[Change]) -> Any:
    if isinstance(value, list):
        return [_walk(each, backend, version, changes) for each in value]
    if not isinstance(value, dict):
        return value
    entry = {key: _walk(each, backend, version, changes) for key, each in value.items()}
    if isinstance(entry.get("image"), str) and any(isinstance(entry.get(key), list) for key in ("args", "command")):
        return _container(entry, backend, version, changes)
    return entry


def _container(entry: dict[str, Any], backend: Backend, version: str | None, changes: list[Change]) -> dict[str, Any]:
    """One container: `command` and `args` as Kubernetes has them, else `entrypoint` and `command` as Compose has."""
    entry_key, args_key = ("command", "args") if "args" in entry else ("entrypoint", "command")
    env_key = "env" if "env" in entry else "environment"
    env = _variables(entry.get(env_key))
    if env is None or not all(isinstance(entry.get(key, []), list) for key in (entry_key, args_key)):
        return entry
    written = tuple(str(word) for word in entry.get(args_key) or ())
    first = entry.get(entry_key)
    container = Container(
        where="container",
        image=entry["image"],
        entrypoint=tuple(str(word) for word in first) if first else None,
        args=written,
        env=env,
    )
    repository, tag, _ = check_engine.split_image(container.image)
    args, _ = check_engine.engine_args(container, repository)
    if args is None:
        return entry
    found = dict(entry)
    if (
        repository in check_engine.OLD_ROCM
        or repository.endswith(f"/{check_engine.CUDA}")
        or repository == check_engine.CUDA
    ):
        named = check_engine.named_release(tag)
        release = named if named in backend.versions() else version or backend.versions()[0]
        found["image"] = f"{check_engine.OFFICIAL}:v{release}"
        changes.append(_change(entry["image"], found["image"], "the engine's own image for AMD cards"))
    repository, tag, _ = check_engine.split_image(found["image"])
    if repository.endswith(check_engine.OFFICIAL) and (first or args != written):
        found.pop(entry_key, None)
        old = " ".join((*(container.entrypoint or ()), *written))[
            : len(" ".join((*(container.entrypoint or ()), *written))) - len(" ".join(args))
        ].strip()
        changes.append(_change(old, "", "the image runs `vllm serve` by itself"))
        found[args_key] = list(args)
    known = backend.versions()
    release = check_engine.named_release(tag) or known[0]
    done = backend.repair(args, env, version or (release if release in known else known[0]))
    if done.changes:
        changes += done.changes
        head = written[: len(written) - len(args)] if found.get(args_key) == list(written) else ()
        found[args_key] = [*head, *done.args]
        found[env_key] = _written(entry.get(env_key), done.env)
    return found


def _variables(value: Any) -> dict[str, str] | None:
    """The environment in any of the ways it is written down; None when it is none of them."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return {str(name): str(each) for name, each in value.items() if each is not None}
    if not isinstance(value, list):
        return None
    found: dict[str, str] = {}
    for each in value:
        if isinstance(each, str):
            name, _, text = each.partition("=")
            found[name] = text
        elif isinstance(each, dict) and isinstance(each.get("name"), str):
            found[each["name"]] = str(each.get("value", "$from-a-secret"))
    return found


def _written(value: Any, env: Mapping[str, str]) -> Any:
    """`env` in the way `value` has it; entries that stay keep their place and form."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        kept = [
            each
            for each in value
            if each.partition("=")[0] in env and each.partition("=")[2] == env[each.partition("=")[0]]
        ]
        names = {each.partition("=")[0] for each in kept}
        return [*kept, *(f"{name}={text}" for name, text in env.items() if name not in names)]
    if isinstance(value, list):
        kept = [
            each
            for each in value
            if isinstance(each, dict)
            and each.get("name") in env
            and str(each.get("value", "$from-a-secret")) == env[each["name"]]
        ]
        names = {each["name"] for each in kept}
        return [*kept, *({"name": name, "value": text} for name, text in env.items() if name not in names)]
    return dict(env)


def _change(old: str, new: str, why: str) -> Change:
    return Change(what=old, to=new, kind="renamed" if new else "dropped", why=why)
