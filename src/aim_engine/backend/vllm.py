"""vLLM: what it has kernels for on which card, which switches suit a model there, and its command line by release.

Sources: vllm-project/vllm vllm/platforms/rocm.py, vllm/v1/attention/backends, vllm/model_executor/kernels/linear and
docs/getting_started at v0.32.0; reports are named where a rule rests on them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from aim_engine.backend import kernels, lint, release, rules, subject, translate
from aim_engine.backend.base import Command, Defaults, Image, Reason, Release, Translation
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Family, Known, RecipeDatabase
from aim_engine.recipe.recipe import Recipe

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_NOT_ADOPTED = frozenset(
    {
        "--no-enable-prefix-caching",  # switched off by benchmarks; traffic with shared prefixes is served faster with it
        "--language-model-only",
        "--limit-mm-per-prompt",  # these two take abilities away, which is the user's to decide
        "--enforce-eager",
        "--served-model-name",
        "--tensor-parallel-size",
        "--max-model-len",
    }
)
"""Arguments of published recipes that are not taken over."""
_CPU_PRECISIONS = ("bf16", "fp16", "fp32", "int8", "int4")


class Vllm:
    """The vLLM engine."""

    name = "vllm"

    def __init__(self, overlay: Path | None = None) -> None:
        self._overlay = overlay
        self._describe: Callable[[str], ModelSpec | None] | None = None
        self._gpu: Gpu | None = None
        self._facts = functools.cache(lambda version: release.load("vllm", version, overlay))
        self._flags = functools.cache(lambda version: release.flags("vllm", version, overlay))
        self._removed = functools.cache(lambda: release.removed("vllm", overlay))
        self._chosen = functools.lru_cache(maxsize=256)(self._choose)
        self._bundled = functools.cache(RecipeDatabase(overlay).family)
        self._family = functools.cache(lambda model_id: release.family("vllm", model_id, overlay))

    def versions(self) -> tuple[str, ...]:
        """Known releases, newest first."""
        return release.versions("vllm", self._overlay)

    def newest(self, gpu: Gpu) -> str:
        """The newest known release that can run on this kind of device. Raises: InvalidInput."""
        known = self.versions()
        if gpu.kind != "cpu":
            return known[0]
        for version in known:
            if self._facts(version).cpu_package is not None:
                return version
        raise InvalidInput("no known vLLM release has a CPU build", hint="name one with --engine-version")

    def release(self, version: str) -> Release:
        """Flags, environment and images of a release. Raises: InvalidInput with the known ones."""
        found, table = self._facts(version), self._flags(version.removeprefix("v"))
        return Release(
            engine="vllm",
            version=found.version,
            flags=table.flags,
            env=table.env,
            images=found.images,
            source=table.source,
        )

    def image(self, version: str, gpu: Gpu) -> Image:
        """The image of a release for this device. Raises: InvalidInput when none was built for it."""
        images = self._facts(version).images
        device = "cpu" if gpu.kind == "cpu" else "rocm"
        for image in images:
            if image.device == device and (device == "cpu" or gpu.arch in image.archs):
                return image
        built = sorted({arch for image in images for arch in image.archs})
        raise InvalidInput(
            f"vLLM {version} has no known image for {'a CPU' if device == 'cpu' else gpu.arch}",
            why=f"its images are built for {', '.join(built)}",
            hint="use --target local, or name your own image with --image"
            if device == "cpu"
            else "choose another card",
        )

    def defaults(self, version: str, gpu: Gpu) -> Defaults:
        """The engine's own defaults on this device; of memory that others partly hold, the same share of what is free.

        The engine refuses to start when less is free than its share of the whole.
        Source: vllm-project/vllm:vllm/v1/worker/utils.py request_memory@v0.32.0.
        """
        found = self._facts(version)
        device = "cpu" if gpu.kind == "cpu" else "gpu"
        fitting = [d for d in found.batch_defaults if d.device == device and gpu.memory_bytes >= d.at_least_bytes]
        best = max(fitting, key=lambda entry: entry.at_least_bytes)
        share = found.gpu_memory_utilization
        if gpu.free_fraction < share:
            share = max(0.001, math.floor(1000 * share * gpu.free_fraction) / 1000)
        return Defaults(
            gpu_memory_utilization=share,
            max_num_seqs=best.max_num_seqs,
            max_num_batched_tokens=best.max_num_batched_tokens,
        )

    def supports(self, model: ModelSpec, gpu: Gpu, precision: str) -> str | None:
        """None when there are kernels for it, else the reason why not. `kv_fp8` asks about an FP8 KV cache.

        Source: vllm/model_executor/kernels/linear/__init__.py and each kernel's is_supported; platforms/rocm.py
        supported_quantization.
        """
        form = model.quantization.format if model.quantization is not None else None
        method = model.quantization.method if model.quantization is not None else ""
        if gpu.kind == "cpu":
            return self._supports_cpu(model, precision, form)
        if precision == "kv_fp8":
            cache = kernels.computed_kv_fp8(gpu.arch, self._overlay)
            return f"{cache.note} on {gpu.arch}" if cache.how == "none" else None
        if method in ("bitsandbytes", "gguf"):
            return f"{method} checkpoints need a plugin that the ROCm image does not have"
        weights = kernels.computed("nvfp4" if form == "nvfp4" else precision, gpu.arch, self._overlay)
        if weights.how == "none":
            return f"{weights.note} on {gpu.name} ({gpu.arch}); {_other_formats(precision, form)}"
        if gpu.arch == "gfx1250":
            return None
        known = {arch for image in self._facts(self.versions()[0]).images for arch in image.archs}
        return (
            None
            if gpu.arch in known or gpu.arch == "gfx908"
            else f"{gpu.name} ({gpu.arch}) is not a device vLLM is built for"
        )

    def tune(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with attention backend, environment and arguments that suit model, device and release."""
        if gpu.kind == "cpu":
            # Compiled, 0.32.0 took 200 s to start on two AVX2 cores and answered wrongly; eager 40 s, and rightly.
            return msgspec.structs.replace(
                recipe,
                env={**recipe.env, "VLLM_TARGET_DEVICE": "cpu"},
                extra_args=(*recipe.extra_args, "--enforce-eager", *self._parsers(model)),
            )
        choice = self._choice(model, gpu, recipe, allow_lossy=allow_lossy)
        env = dict(choice.env)
        args: list[str] = []
        if gpu.kind in ("radeon", "apu") and model.modality != "text":
            env["FLASH_ATTENTION_TRITON_AMD_ENABLE"] = "TRUE"
        if model.is_moe and recipe.parallelism.world_size > 1:
            args += ["--distributed-executor-backend", "mp"]
        for flag, value in (
            ("--block-size", choice.block_size),
            ("--moe-backend", choice.moe_backend),
            ("--linear-backend", choice.linear_backend),
        ):
            if value is not None:
                args += [flag, str(value)]
        args += self._parsers(model)
        args = _without(args, recipe.extra_args)
        return msgspec.structs.replace(
            recipe,
            attention_backend=recipe.attention_backend or choice.attention_backend,
            env={**env, **recipe.env},
            extra_args=(*recipe.extra_args, *args),
        )

    def explain(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> tuple[Reason, ...]:
        """What `tune` decided for `recipe`, part by part, with its evidence; nothing on a CPU, where there is no choice."""
        return () if gpu.kind == "cpu" else self._choice(model, gpu, recipe, allow_lossy=allow_lossy).reasons

    def _choice(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool) -> kernels.Choice:
        features = kernels.Features.of(recipe, allow_lossy=allow_lossy)
        return self._chosen(model, gpu.arch, recipe.engine_version, features)

    def _choose(self, model: ModelSpec, arch: str, version: str, features: kernels.Features) -> kernels.Choice:
        table = self._flags(version.removeprefix("v"))
        return kernels.choose(model, arch, version, features, table=table, overlay=self._overlay)

    def adopt(self, recipe: Recipe, known: Known, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with arguments and variables that somebody ran, in the words of its release.

        Limits of the scheduler are left to planning, and so is what takes abilities away.
        """
        table = self._flags(recipe.engine_version)
        by_flag = lint.by_flag(table)
        wanted = {**known.env, **(known.lossy_env if allow_lossy else {})}
        said = translate.translate(known.extra_args, wanted, table, self._removed)
        args = [
            word
            for words, _ in lint.groups(said.args, by_flag)
            if not (set(lint.spellings(words[0], by_flag)) & _NOT_ADOPTED)
            for word in words
        ]
        return msgspec.structs.replace(recipe, extra_args=(*recipe.extra_args, *args), env={**said.env, **recipe.env})

    def translate(self, args: tuple[str, ...], env: dict[str, str], version: str) -> Translation:
        """A command line and environment in the words of a release, with every change listed."""
        return translate.translate(args, env, self._flags(version.removeprefix("v")), self._removed)

    def command(self, recipe: Recipe, *, model_ref: str, host: str, port: int) -> Command:
        """How to serve `recipe`. `model_ref` is a hub id or a folder, which is then served under the model's id."""
        args = [model_ref, "--host", host, "--port", str(port)]
        if model_ref != recipe.model_id:
            args += ["--served-model-name", recipe.model_id]
        if recipe.precision in _DTYPES:
            args += ["--dtype", _DTYPES[recipe.precision]]
        if recipe.online_quantization is not None:
            args += ["--quantization", recipe.online_quantization]
        if recipe.kv_cache_dtype != "auto":
            args += ["--kv-cache-dtype", recipe.kv_cache_dtype]
        args += ["--max-model-len", str(recipe.max_model_len)]
        args += ["--max-num-seqs", str(recipe.max_num_seqs)]
        args += ["--max-num-batched-tokens", str(recipe.max_num_batched_tokens)]
        if recipe.kv_cache_memory_bytes is not None:
            args += ["--kv-cache-memory-bytes", str(recipe.kv_cache_memory_bytes)]
        else:
            args += ["--gpu-memory-utilization", f"{recipe.gpu_memory_utilization:g}"]
        split = recipe.parallelism
        for flag, value in (
            ("--tensor-parallel-size", split.tp),
            ("--pipeline-parallel-size", split.pp),
            ("--data-parallel-size", split.dp),
        ):
            if value > 1:
                args += [flag, str(value)]
        if split.ep:
            args.append("--enable-expert-parallel")
        if recipe.attention_backend is not None:
            args += ["--attention-backend", recipe.attention_backend]
        if recipe.trust_remote_code:
            args.append("--trust-remote-code")
        return Command(argv0=("vllm", "serve"), args=(*args, *recipe.extra_args), env=dict(sorted(recipe.env.items())))

    def check(
        self,
        args: tuple[str, ...],
        env: dict[str, str],
        version: str,
        *,
        model: ModelSpec | None = None,
        gpu: Gpu | None = None,
        exact: str | None = None,
    ) -> tuple[Finding, ...]:
        """What that release would not accept in a command line and environment, and which rules fire."""
        found = lint.check(args, env, self._flags(version.removeprefix("v")), self._removed)
        hits = self._hits(args, env, version, model, gpu, exact)
        return (*found, *(hit.finding for hit in hits))

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
        by_flag = lint.by_flag(self._flags(version.removeprefix("v")))
        seen: set[str] = set()
        while True:
            hits = self._hits(done.args, done.env, version, model, gpu, None)
            hit = next((each for each in hits if each.repair is not None and each.finding.id not in seen), None)
            if hit is None or hit.repair is None:
                return done
            seen.add(hit.finding.id)
            done = translate.repaired(done, hit.repair, hit.finding, by_flag)

    def knowing(self, describe: Callable[[str], ModelSpec | None], gpu: Gpu | None) -> Vllm:
        """The same engine, judging command lines of others with what `describe` and `gpu` tell of model and card."""
        found = Vllm(self._overlay)
        found._describe, found._gpu = functools.cache(describe), gpu
        return found

    def _hits(
        self,
        args: tuple[str, ...],
        env: dict[str, str],
        version: str,
        model: ModelSpec | None,
        gpu: Gpu | None,
        exact: str | None,
    ) -> tuple[rules.Hit, ...]:
        table = self._flags(version.removeprefix("v"))
        named = model.model_id if model is not None else lint.model_of(args, lint.by_flag(table))
        if model is None and named is not None and self._describe is not None:
            model = self._describe(named)
        about = subject.of_command(
            args,
            env,
            exact or version.removeprefix("v"),
            table,
            release=self._facts(version) if exact is None else None,
            model=model,
            family=self._bundled(named) if named is not None else None,
            gpu=gpu or self._gpu,
            overlay=self._overlay,
        )
        if named is not None:
            about.setdefault("model_id", named)
        return rules.judge(about, self._overlay)

    def _supports_cpu(self, model: ModelSpec, precision: str, form: str | None) -> str | None:
        if precision == "kv_fp8":
            return "the CPU engine keeps its KV cache in 16 bit"
        if form is not None and (
            form not in ("int8", "int4")
            or (model.quantization is not None and model.quantization.method in ("gguf", "bitsandbytes"))
        ):
            return f"{form} checkpoints have no kernel on a CPU; use a 16-bit one"
        if precision not in _CPU_PRECISIONS:
            return f"{precision} has no kernel on a CPU; use bf16"
        return None

    def _parsers(self, model: ModelSpec) -> tuple[str, ...]:
        """The parsers that the recipe database names for the model, else those of its family by name."""
        family: Family | release.Family = self._bundled(model.model_id) or self._family(model.model_id)
        args: list[str] = []
        if family.tool_parser is not None:
            args += ["--enable-auto-tool-choice", "--tool-call-parser", family.tool_parser]
        if family.reasoning_parser is not None:
            args += ["--reasoning-parser", family.reasoning_parser]
        return tuple(args)


def _without(args: list[str], given: tuple[str, ...]) -> list[str]:
    """`args` less those that `given` sets already."""
    names = {word.partition("=")[0] for word in given if word.startswith("-")}
    kept: list[str] = []
    skipping = False
    for word in args:
        skipping = word in names if word.startswith("-") else skipping
        if not skipping:
            kept.append(word)
    return kept


def _other_formats(precision: str, form: str | None) -> str:
    return (
        "use bf16, int8 or int4" if precision == "fp8" and form != "nvfp4" else "use an fp8, mxfp4 or 16-bit checkpoint"
    )
