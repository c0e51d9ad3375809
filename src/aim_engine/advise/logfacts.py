"""What an engine's log says beside its errors: seconds of the start by cause, kernels that were built, shapes without tuning, and how
it was started.

Words as they stand in ROCm/aiter aiter/jit/core.py build_module (2025-01 to 2026-11), aiter/ops/gemm_op_a8w8.py and
aiter/fused_moe.py; vllm-project/vllm vllm/compilation/monitor.py and decorators.py, v1/worker/gpu_worker.py and gpu_model_runner.py,
v1/core/kv_cache_utils.py (0.6 to 0.33); sgl-project/sglang model_runner.py (0.4 to 0.5).
"""

from __future__ import annotations

import re
from typing import Any

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""AITER paints the end of a build green, when nobody looks too."""
_BUILT = re.compile(r"finish build \[([^\]]+)\], cost ([\d.]+) ?s")
_UNTUNED = re.compile(
    r"(shape[^\n]*?not found tuned config"
    r"|\[fused_moe\] using [12]stage default for[^\n]*"
    r"|no tuned FlyDSL config for[^\n]*?(?=, using|$)"
    r"|Using default (?:W8A8 Block (?:FP8|INT8) kernel|Mamba SSU) config[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_SECONDS = {
    "compile_s": re.compile(
        r"torch\.compile (?:takes|took|and initial profiling/warmup run together took) ([\d.]+) ?s"
        r"|Compiling a graph .*takes ([\d.]+) ?s"
    ),
    "load_s": re.compile(
        r"Loading weights took ([\d.]+) seconds|Model loading took .*?(?:and|in) ([\d.]+) seconds"
        r"|Load weight end\. elapsed=([\d.]+) ?s"
    ),
    "graph_s": re.compile(
        r"Graph capturing finished in ([\d.]+) secs"
        r"|Capture [^\n]{0,60}graph end\. (?:Time elapsed: |elapsed=)([\d.]+) ?s"
    ),
}
_CONCURRENCY = re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x")
_LENGTH = re.compile(r"estimated maximum model length is (\d+)")
_UTILIZATION = re.compile(
    r"same effective KV cache size as before, increase --gpu-memory-utilization to (\d+(?:\.\d+)?)"
)
"""The line names two values; the one it is "equivalent to" is lower than what is set."""
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens|KV Cache is allocated\. [^\n]*?#tokens: ([\d,]+)")
_DUMPED = re.compile(r"LLM engine [^\n]*?with config: |server_args=ServerArgs\(|non-default args: ")
"""What begins the lines in which an engine says how it was started."""
_ARGUMENTS = {
    "tp": ("tensor_parallel_size", "tp_size"),
    "pp": ("pipeline_parallel_size", "pp_size"),
    "dp": ("data_parallel_size", "dp_size"),
    "max_num_seqs": ("max_num_seqs", "max_running_requests"),
    "max_num_batched_tokens": ("max_num_batched_tokens",),
    "max_model_len": ("max_seq_len", "max_model_len", "context_length"),
    "gpu_memory_utilization": ("gpu_memory_utilization",),
}
"""Name for the rules -> what vLLM and SGLang call it there."""
_EAGER = re.compile(r"\b(?:enforce_eager|disable_cuda_graph)['\"]?(?:=|: )(True|False)")
_DEVICE = re.compile(r"\b(?:device_config|device)['\"]?(?:=|: )['\"]?(cpu|cuda)\b")
_BATCHED = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
_SET_UTILIZATION = re.compile(r"The current --gpu-memory-utilization=(\d+(?:\.\d+)?)")
_VERSION = re.compile(r"(?:version |LLM engine \(v)(\d+\.\d+\.\d+)")


def plain(log: str) -> str:
    """A log without colours, as the rules search it."""
    return _COLOUR.sub("", log) if "\x1b" in log else log


def read(log: str) -> dict[str, Any]:
    """Names for the rules. Seconds that the log does not tell are absent; counts of an own line are zero then."""
    log = plain(log)
    built = [float(seconds) for _, seconds in _BUILT.findall(log)]
    found: dict[str, Any] = {
        "log": log,
        "jit_builds": len(built),
        "jit_build_s": sum(built),
        "jit_longest_s": max(built, default=0.0),
        "compile_s": 0.0,
        # Each rank and each call says it again.
        "untuned_shapes": len(set(_UNTUNED.findall(log))),
        "logged_length": 0,
    }
    for name, pattern in _SECONDS.items():
        seconds = [float(next(filter(None, groups))) for match in pattern.finditer(log) if (groups := match.groups())]
        if seconds:
            found[name] = max(seconds)  # one line is the total of others
    for name, pattern in (
        ("max_concurrency", _CONCURRENCY),
        ("logged_length", _LENGTH),
        ("logged_utilization", _UTILIZATION),
    ):
        match = pattern.search(log)
        if match is not None:
            found[name] = float(match[1])
    tokens = [next(filter(None, groups)) for groups in _KV_TOKENS.findall(log)]
    if tokens:
        found["logged_kv_tokens"] = int(tokens[-1].replace(",", ""))
    version = _VERSION.search(log)
    if version is not None:
        found["logged_version"] = version[1]
    found["logged_length"] = int(found["logged_length"])
    return found | _started(log)


def _started(log: str) -> dict[str, Any]:
    """How the engine was started, as far as its own log says it: for those who watch an engine that others started."""
    found: dict[str, Any] = {}
    for line in log.splitlines():
        begin = _DUMPED.search(line)
        if begin is None:
            continue
        said = line[begin.end() :]
        for name, called in _ARGUMENTS.items():
            match = re.search(rf"\b(?:{'|'.join(called)})['\"]?(?:=|: )(\d+(?:\.\d+)?)\b", said)
            if match is not None:
                found[name] = float(match[1]) if "." in match[1] else int(match[1])
        eager, device = _EAGER.search(said), _DEVICE.search(said)
        if eager is not None:
            found["eager"] = eager[1] == "True"
        if device is not None:
            found["kind"] = "cpu" if device[1] == "cpu" else "gpu"
    for name, pattern in (("max_num_batched_tokens", _BATCHED), ("gpu_memory_utilization", _SET_UTILIZATION)):
        match = pattern.search(log)
        if match is not None:
            found[name] = float(match[1]) if "." in match[1] else int(match[1])
    if "tp" in found:
        found["world"] = found["tp"] * found.get("pp", 1)
    return found
