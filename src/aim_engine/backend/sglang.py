"""SGLang on ROCm: what it has kernels for on which card, what suits a model there, and its command line by release.

Sources: the `sglang` packages from PyPI (server_args.py, arg_groups, layers/quantization), docker/rocm.Dockerfile, and the
benchmarks that AMD's engineers publish; each rule names its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aim_engine.backend import sglang_kernels, sglang_subject
from aim_engine.backend.base import Command, Defaults, Reason
from aim_engine.backend.engine import Engine, without
from aim_engine.backend.line import Line
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Known
from aim_engine.recipe.recipe import Recipe
from aim_engine.units import MIB

PROGRAM = ("python3", "-m", "sglang.launch_server")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_RESERVED_MIB, _MIB_PER_TOKEN, _MIB_PER_SEQUENCE, _MIB_PER_RANK, _LEAST_MIB = 512, 1.5, 2, 128, 10 * 1024
"""What the engine leaves beside weights and cache. Source: handle_gpu_memory_settings of sglang 0.5.8 to 0.5.23."""
_LEAST_ABOVE_MIB = 60 * 1024


class Sglang(Engine):
    """The SGLang engine."""

    name = "sglang"
    title = "SGLang"

    def defaults(self, version: str, gpu: Gpu) -> Defaults:
        """The engine's own limits, and the share of memory that weights and cache get in the end.

        The share is what the engine computes for its own limits and one rank, less what AITER's attention takes of it for
        contexts beyond 8,192 tokens (`sglang_kernels.long_context_share`).
        """
        found = super().defaults(version, gpu)
        memory_mib = gpu.memory_bytes / MIB
        reserved: float = _RESERVED_MIB + _MIB_PER_RANK
        reserved += _MIB_PER_TOKEN * found.max_num_batched_tokens + _MIB_PER_SEQUENCE * found.max_num_seqs
        if memory_mib > _LEAST_ABOVE_MIB:
            reserved = max(reserved, _LEAST_MIB)
        share = min((memory_mib - reserved) / memory_mib, gpu.free_fraction)
        return msgspec.structs.replace(
            found, gpu_memory_utilization=max(0.001, round(share * sglang_kernels.long_context_share(gpu.arch), 3))
        )

    def supports(self, model: ModelSpec, gpu: Gpu, precision: str) -> str | None:
        """None when there are kernels for it, else the reason why not. `kv_fp8` asks about an FP8 KV cache."""
        if gpu.kind == "cpu":
            return "SGLang's CPU build is not planned for here; use --engine vllm"
        table = self._flags(self.versions()[0])
        if table.architectures and model.architecture not in table.architectures:
            return f"SGLang {table.version} has no class for {model.architecture}"
        return sglang_kernels.objection(model, gpu, precision)

    def tune(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with attention backend, environment and arguments that suit model, device and release."""
        choice = sglang_kernels.choose(model, gpu, recipe, allow_lossy=allow_lossy)
        args = without([*choice.args, *self._parsers(model, recipe.engine_version)], recipe.extra_args)
        return msgspec.structs.replace(
            recipe,
            attention_backend=recipe.attention_backend or choice.attention_backend,
            env={**choice.env, **recipe.env},
            extra_args=(*recipe.extra_args, *args),
        )

    def explain(self, model: ModelSpec, gpu: Gpu, recipe: Recipe, *, allow_lossy: bool = False) -> tuple[Reason, ...]:
        """What `tune` decided for `recipe`, part by part, with its evidence."""
        return sglang_kernels.choose(model, gpu, recipe, allow_lossy=allow_lossy).reasons

    def adopt(self, recipe: Recipe, known: Known, *, allow_lossy: bool = False) -> Recipe:
        """`recipe` with arguments and variables that somebody ran, in the words of its release."""
        wanted = {**known.env, **(known.lossy_env if allow_lossy else {})}
        said = self.translate(known.extra_args, wanted, recipe.engine_version)
        return msgspec.structs.replace(
            recipe, extra_args=(*recipe.extra_args, *said.args), env={**said.env, **recipe.env}
        )

    def command(self, recipe: Recipe, *, model_ref: str, host: str, port: int) -> Command:
        """How to serve `recipe`. `model_ref` is a hub id or a folder, which is then served under the model's id."""
        known = {name for flag in self._flags(recipe.engine_version).flags for name in flag.flags}
        split = recipe.parallelism
        ranks = split.tp * split.dp  # attention data parallelism divides the ranks of tensor parallelism here
        args = ["--model-path", model_ref, "--host", host, "--port", str(port)]
        if model_ref != recipe.model_id:
            args += ["--served-model-name", recipe.model_id]
        if recipe.precision in _DTYPES:
            args += ["--dtype", _DTYPES[recipe.precision]]
        if recipe.online_quantization is not None:
            args += ["--quantization", recipe.online_quantization]
        if recipe.kv_cache_dtype != "auto":
            cache = "fp8_e4m3" if recipe.kv_cache_dtype == "fp8" else recipe.kv_cache_dtype
            args += ["--kv-cache-dtype", cache]
        args += ["--context-length", str(recipe.max_model_len)]
        args += ["--max-running-requests", str(recipe.max_num_seqs * split.dp)]
        args += ["--chunked-prefill-size", str(recipe.max_num_batched_tokens * split.dp)]
        args += ["--mem-fraction-static", f"{sglang_kernels.said_share(recipe):g}"]
        if ranks > 1:
            args += ["--tp-size", str(ranks)]
        if split.pp > 1:
            args += ["--pp-size", str(split.pp)]
        if split.dp > 1:
            new = "--attn-dp-size" in known
            args += [
                "--attn-dp-size" if new else "--dp-size",
                str(split.dp),
                *([] if new else ["--enable-dp-attention"]),
            ]
        if split.ep:
            args += ["--ep-size", str(ranks)]
        if recipe.attention_backend is not None:
            args += ["--attention-backend", recipe.attention_backend]
        if recipe.trust_remote_code:
            args.append("--trust-remote-code")
        args.append("--enable-metrics")
        return Command(argv0=PROGRAM, args=(*args, *recipe.extra_args), env=dict(sorted(recipe.env.items())))

    def _parsers(self, model: ModelSpec, version: str) -> tuple[str, ...]:
        """The parsers of the model's family in this engine's words, as far as the release has them."""
        family = self._family_of(model.model_id)
        table, words = self._flags(version), sglang_kernels.parsers(self._overlay)
        args: list[str] = []
        for flag, meant in (
            ("--tool-call-parser", words.tool.get(family.tool_parser or "")),
            ("--reasoning-parser", words.reasoning.get(family.reasoning_parser or "")),
        ):
            choices = next((each.choices for each in table.flags if flag in each.flags), ()) or ()
            if meant in choices:
                args += [flag, str(meant)]
        return tuple(args)

    def _subject(self, line: Line, named: str | None) -> dict[str, Any]:
        return sglang_subject.of_command(line)
