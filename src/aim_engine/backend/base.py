"""What AIM Engine must know of a serving engine to plan for it, start it and judge its command lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Recipe


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container image of an engine release."""

    reference: str
    """Repository and tag, such as vllm/vllm-openai-rocm:v0.32.0."""
    digest: str | None = None
    device: Literal["rocm", "cpu"]
    archs: tuple[str, ...]
    """Device targets that the image was built for."""
    rocm: str | None = None
    entrypoint: tuple[str, ...]
    """What the image runs; arguments are appended."""
    source: str


class Flag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One argument of an engine's command line in one release."""

    flags: tuple[str, ...]
    """Option strings, aliases and the --no- form included; empty for a positional."""
    hidden: tuple[str, ...] = ()
    """Older spellings that the release takes and does not show."""
    dest: str
    keys: tuple[str, ...] = ()
    """Those of a structured argument that refuses others, inner ones with a dot; none where it takes any."""
    type: str | None = None
    action: str = "store"
    nargs: str | int | None = None
    choices: tuple[str, ...] | None = None
    default: object = None
    deprecated: bool = False
    instead: str | None = None
    """The flag that replaces a deprecated one, where the release's own parser says it."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release of an engine: what its command line and its environment accept."""

    engine: str
    version: str
    flags: tuple[Flag, ...]
    env: frozenset[str]
    """Environment variables the engine itself reads."""
    images: tuple[Image, ...]
    source: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an engine: arguments after the image's entrypoint, or after `argv0` as a process."""

    argv0: tuple[str, ...]
    """Program and sub-command of a bare process, such as ("vllm", "serve")."""
    args: tuple[str, ...]
    env: dict[str, str]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the joint choice of kernels, and what speaks for it."""

    topic: str
    """attention, KV cache, block size, experts, weights, AITER, switches."""
    choice: str
    why: str
    source: str
    lossy: bool = False
    """Changes the model's answers; taken only when the user allowed that."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One argument or variable that a release does not have, and what became of it."""

    what: str
    """As it was written, value included."""
    to: str
    """What stands there now; empty when it was dropped."""
    kind: Literal["renamed", "dropped", "added"]
    why: str


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments and variables that the release accepts, and what had to change."""

    args: tuple[str, ...]
    env: dict[str, str]
    changes: tuple[Change, ...]


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine would use for a flag that is not given."""

    gpu_memory_utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int


class Backend(Protocol):
    """One serving engine."""

    name: str
    title: str
    """As its makers write it."""

    def newest(self, gpu: Gpu) -> str:
        """The newest known release that can run on this kind of device."""
        ...

    def versions(self) -> tuple[str, ...]:
        """Known releases, newest first."""
        ...

    def release(self, version: str) -> Release:
        """Flags, environment and images of a release. Raises: InvalidInput with the known ones."""
        ...

    def image(self, version: str, gpu: Gpu) -> Image:
        """The image of a release for this device. Raises: InvalidInput when none was built for it."""
        ...

    def defaults(self, version: str, gpu: Gpu) -> Defaults:
        """The engine's own defaults on this device."""
        ...

    def supports(self, model: ModelSpec, gpu: Gpu, precision: str) -> str | None:
        """None when this engine has kernels for it, else the reason why not."""
        ...

    def tune(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with attention backend, environment and extra arguments that suit model, device and release."""
        ...

    def explain(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> tuple[Reason, ...]:
        """What `tune` decided for `recipe`, part by part, with its evidence."""
        ...

    def adopt(self, recipe: Recipe, known: Known, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with what somebody found out by running `known`, in the words of the recipe's release."""
        ...

    def translate(self, args: tuple[str, ...], env: dict[str, str], version: str) -> Translation:
        """A command line and environment in the words of a release, with every change listed."""
        ...

    def command(self, recipe: Recipe, *, model_ref: str, host: str, port: int) -> Command:
        """How to serve `recipe`. `model_ref` is a hub id or a folder."""
        ...

    def check(
        self,
        args: tuple[str, ...],
        env: dict[str, str],
        version: str,
        *,
        model: ModelSpec | None = None,
        gpu: Gpu | None = None,
        exact: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> tuple[Finding, ...]:
        """What that release would not accept in a command line and environment, and which rules fire.

        `model` and `gpu` are what is known of them; `exact` is the release that runs, where its tables are not known and those
        of `version` stand in; `about` is what else rules may ask for, such as the goal of a plan.
        """
        ...

    def judge(self, about: Mapping[str, Any]) -> tuple[Finding, ...]:
        """The rules that fire for facts which are no command line, such as those of a manifest."""
        ...

    def repair(
        self,
        args: tuple[str, ...],
        env: dict[str, str],
        version: str,
        *,
        model: ModelSpec | None = None,
        gpu: Gpu | None = None,
    ) -> Translation:
        """The command line and environment with every remedy that has one right answer, and what was changed."""
        ...

    def sibling(self, name: str) -> Backend:
        """Another engine that knows the same of models, card and host. Raises: InvalidInput."""
        ...

    def knowing(
        self, describe: Callable[[str], ModelSpec | None], gpu: Gpu | None, around: Mapping[str, Any] | None = None
    ) -> Backend:
        """The same engine, judging command lines of others.

        `describe` tells of models, `gpu` of the card, `around` of the host.
        """
        ...
