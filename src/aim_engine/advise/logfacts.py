"""What an engine's log says beside its errors: seconds of the start by cause, kernels that were built, shapes without tuning.

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
    r"|Using default W8A8 Block FP8 kernel config[^\n]*)",
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
    return found
