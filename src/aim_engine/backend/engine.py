"""What all engines share: releases and their tables, images, command lines judged, translated and repaired."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from aim_engine.backend import lint, release, rules, translate
from aim_engine.backend.base import Backend, Defaults, Image, Release, Translation
from aim_engine.backend.line import Line, supposed
from aim_engine.backend.release import Family as NamedFamily
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Family, RecipeDatabase


class Engine(abc.ABC):
    """One serving engine over the files of `data/engines/<name>`."""

    name: str
    title: str
    """As its makers write it."""

    def __init__(
        self,
        overlay: Path | None = None,
        *,
        describe: Callable[[str], ModelSpec | None] | None = None,
        gpu: Gpu | None = None,
        around: Mapping[str, Any] | None = None,
    ) -> None:
        self._overlay = overlay
        self._describe = None if describe is None else functools.cache(describe)
        self._gpu = gpu
        self._around: Mapping[str, Any] = around or {}
        self._siblings: dict[str, Backend] = {}
        self._facts = functools.cache(lambda version: release.load(self.name, version, overlay))
        self._flags = functools.cache(lambda version: release.flags(self.name, version.removeprefix("v"), overlay))
        self._removed = functools.cache(lambda: release.removed(self.name, overlay))
        self._database = RecipeDatabase(overlay)
        self._bundled = functools.cache(self._database.family)
        self._by_name = functools.cache(lambda model_id: release.family("vllm", model_id, overlay))

    def versions(self) -> tuple[str, ...]:
        """Known releases, newest first."""
        return release.versions(self.name, self._overlay)

    def newest(self, gpu: Gpu) -> str:
        """The newest known release with an image for this device, the newest of all where none has one; on a CPU the newest with a CPU
        build. Raises: InvalidInput.
        """
        known = self.versions()
        if gpu.kind != "cpu":
            built = (version for version in known if self._image(version, gpu) is not None)
            return next(built, known[0])
        for version in known:
            if self._facts(version).cpu_package is not None:
                return version
        raise InvalidInput(f"no known {self.title} release has a CPU build", hint="plan with --engine vllm")

    def release(self, version: str) -> Release:
        """Flags, environment and images of a release. Raises: InvalidInput with the known ones."""
        found = self._facts(version)
        table = self._flags(found.version)
        return Release(
            engine=self.name,
            version=found.version,
            flags=table.flags,
            env=table.env,
            images=found.images,
            source=table.source,
        )

    def image(self, version: str, gpu: Gpu) -> Image:
        """The image of a release for this device. Raises: InvalidInput when none was built for it."""
        found = self._image(version, gpu)
        if found is not None:
            return found
        target = "a CPU" if gpu.kind == "cpu" else gpu.arch
        built = sorted({arch for image in self._facts(version).images for arch in image.archs})
        if gpu.kind == "cpu":
            hint = "use --target local, or name your own image with --image"
        elif built and self._image(self.newest(gpu), gpu) is None:
            hint = "choose another card, or name your own image with --image"
        else:
            number = version.removeprefix("v")
            hint = f"name it with --image or in engines/{self.name}/{number}.yaml of your catalogue folder"
            if self._image(self.newest(gpu), gpu) is not None:
                hint += f", or plan with --engine-version {self.newest(gpu)}"
        raise InvalidInput(
            f"{self.title} {version} has no known image for {target}",
            why=f"its images are built for {', '.join(built)}" if built else "no tag of an image of it is known here",
            hint=hint,
        )

    def _image(self, version: str, gpu: Gpu) -> Image | None:
        device = "cpu" if gpu.kind == "cpu" else "rocm"
        images = self._facts(version).images
        return next((i for i in images if i.device == device and (device == "cpu" or gpu.arch in i.archs)), None)

    def defaults(self, version: str, gpu: Gpu) -> Defaults:
        """The engine's own defaults on this device; of memory that others partly hold, the same share of what is free.

        vLLM refuses to start when less is free than its share of the whole.
        Source: vllm-project/vllm:vllm/v1/worker/utils.py request_memory@v0.32.0.
        """
        found = self._facts(version)
        device = "cpu" if gpu.kind == "cpu" else "gpu"
        fitting = [d for d in found.batch_defaults if d.device == device and gpu.memory_bytes >= d.at_least_bytes]
        best = max(fitting, key=lambda entry: entry.at_least_bytes)
        share = found.gpu_memory_utilization if best.memory_fraction is None else best.memory_fraction
        if gpu.free_fraction < share:
            share = max(0.001, math.floor(1000 * share * gpu.free_fraction) / 1000)
        return Defaults(
            gpu_memory_utilization=share,
            max_num_seqs=best.max_num_seqs,
            max_num_batched_tokens=best.max_num_batched_tokens,
        )

    def translate(self, args: tuple[str, ...], env: dict[str, str], version: str) -> Translation:
        """A command line and environment in the words of a release, with every change listed."""
        return translate.translate(args, env, self._flags(version), self._removed)

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
        """What that release would not accept in a command line and environment, and which rules fire."""
        found = lint.check(args, env, self._flags(version), self._removed)
        hits = self._hits(args, env, version, model, gpu, exact, about)
        return (*found, *(hit.finding for hit in hits))

    def judge(self, about: Mapping[str, Any]) -> tuple[Finding, ...]:
        """The rules that fire for facts which are no command line, such as those of a manifest."""
        hits = rules.judge({**self._around, **about}, self.name, self._overlay)
        alone = (
            {hit.finding.id for hit in rules.judge(self._around, self.name, self._overlay)} if self._around else set()
        )
        return tuple(hit.finding for hit in hits if hit.finding.id not in alone)

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
        done = self.translate(args, env, version)
        by_flag = lint.by_flag(self._flags(version))
        seen: set[str] = set()
        while True:
            hits = self._hits(done.args, done.env, version, model, gpu, None, None)
            hit = next((each for each in hits if each.repair is not None and each.finding.id not in seen), None)
            if hit is None or hit.repair is None:
                return done
            seen.add(hit.finding.id)
            done = translate.repaired(done, hit.repair, hit.finding, by_flag)

    def knowing(
        self, describe: Callable[[str], ModelSpec | None], gpu: Gpu | None, around: Mapping[str, Any] | None = None
    ) -> Self:
        """The same engine, judging command lines of others with what `describe`, `gpu` and `around` tell."""
        return type(self)(self._overlay, describe=describe, gpu=gpu, around=around)

    def _hits(
        self,
        args: tuple[str, ...],
        env: dict[str, str],
        version: str,
        model: ModelSpec | None,
        gpu: Gpu | None,
        exact: str | None,
        about: Mapping[str, Any] | None,
    ) -> tuple[rules.Hit, ...]:
        by_flag = lint.by_flag(self._flags(version), hidden=True)
        named = model.model_id if model is not None else lint.model_of(args, by_flag)
        told = model is not None
        if model is None and named is not None and self._describe is not None:
            model = self._describe(named)
        line = Line(
            args=args,
            env=env,
            version=exact or version.removeprefix("v"),
            table=self._flags(version),
            release=self._facts(version) if exact is None else None,
            model=model,
            family=self._bundled(named) if named is not None else None,
            gpu=gpu or self._gpu,
            overlay=self._overlay,
        )
        found = self._known(line, named)
        if not told and model is not None and model.basis == "name":
            found = {name: value for name, value in found.items() if name not in _OF_ONE_CHECKPOINT}
        if named is not None:
            found.setdefault("model_id", named)
        return rules.judge({**UNPLANNED, **self._around, **found, **(about or {})}, self.name, self._overlay)

    def _known(self, line: Line, named: str | None) -> dict[str, Any]:
        """What is known of a line: not what would change with a value that only its caller knows."""
        found = self._subject(line, named)
        if not any(lint.is_open(word) for word in (*line.args, *line.env.values())):
            return found
        one, other = (
            self._subject(supposed(line, value, more=more), named) for value, more in (("1", False), ("8", True))
        )
        return {
            name: value
            for name, value in found.items()
            if name in _WRITTEN or one.get(name) == other.get(name) == value
        }

    def sibling(self, name: str) -> Backend:
        """Another engine that knows the same of models, card and host. Raises: InvalidInput."""
        from aim_engine import backend

        if name not in self._siblings:
            plain = backend.get(name, self._overlay)
            self._siblings[name] = plain.knowing(self._describe or (lambda _: None), self._gpu, self._around)
        return self._siblings[name]

    @abc.abstractmethod
    def _subject(self, line: Line, named: str | None) -> dict[str, Any]:
        """What the engine's rules are judged over; `named` is the model as the line calls it."""

    def _family_of(self, model_id: str) -> Family | NamedFamily:
        """What the recipe database says of the model, else what its family's name tells."""
        return self._bundled(model_id) or self._by_name(model_id)


_WRITTEN = ("args", "words", "envs")
"""What rules look up in a line as it is written."""
_OF_ONE_CHECKPOINT = frozenset(
    [
        "model_len",
        "method",
        "form",
        "group_size",
        "kv_calibrated",
        "total_gib",
        "roomy_tp",
        "roomy_gib",
        "least_tp",
        "kv_left_gib",
        "moe_dtype",
        "moe_tuned",
        "needs_code",
        "gated",
        "fallback",
    ]
)
"""What a checkpoint need not share with the one that its name is taken for."""
UNPLANNED: dict[str, Any] = {
    "objective": "",
    "tpot_limit": None,
    "concurrency": None,
    "measured_minor": None,
    "fewer_gpus": None,
    "planned_gpus": 0,
    "official_image": False,
}
"""What is said of a command line that stands for itself."""


def without(args: list[str], given: tuple[str, ...]) -> list[str]:
    """`args` less those that `given` sets already."""
    names = {word.partition("=")[0] for word in given if word.startswith("-")}
    kept: list[str] = []
    skipping = False
    for word in args:
        skipping = word in names if word.startswith("-") else skipping
        if not skipping:
            kept.append(word)
    return kept
