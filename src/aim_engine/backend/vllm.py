"""vLLM: what it has kernels for on which card, which switches suit a model there, and its command line by release.

Sources: vllm-project/vllm vllm/platforms/rocm.py, vllm/v1/attention/backends, vllm/model_executor/kernels/linear and
docs/getting_started at v0.32.0; reports are named where a rule rests on them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.backend import kernels, lint, subject, translate
from aim_engine.backend.base import Command, Reason
from aim_engine.backend.engine import Engine, without
from aim_engine.backend.line import Line
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Known
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


class Vllm(Engine):
    """The vLLM engine."""

    name = "vllm"

    title = "vLLM"

    def __init__(self, overlay: Path | None = None, **knowing: Any) -> None:
        super().__init__(overlay, **knowing)
        self._chosen = functools.lru_cache(maxsize=256)(self._choose)

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
        args = without(args, recipe.extra_args)
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
        table = self._flags(version)
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

    def _subject(self, line: Line, named: str | None) -> dict[str, Any]:
        found = subject.of_command(line)
        return found if named is None else {**found, "mxfp4_sibling": self._sibling(named)}

    def _sibling(self, model_id: str) -> str | None:
        """AMD's own MXFP4 checkpoint of a model, where the recipe database has one."""
        wanted = f"amd/{model_id.rpartition('/')[2]}-MXFP4"
        entry = self._database.file(wanted)
        return wanted if entry is not None and entry.base_model == model_id else None

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
        family = self._family_of(model.model_id)
        args: list[str] = []
        if family.tool_parser is not None:
            args += ["--enable-auto-tool-choice", "--tool-call-parser", family.tool_parser]
        if family.reasoning_parser is not None:
            args += ["--reasoning-parser", family.reasoning_parser]
        return tuple(args)


def _other_formats(precision: str, form: str | None) -> str:
    return (
        "use bf16, int8 or int4" if precision == "fp8" and form != "nvfp4" else "use an fp8, mxfp4 or 16-bit checkpoint"
    )
