"""What an engine's log says beside its errors: seconds of the start by cause, kernels that were built, shapes without tuning."""

from __future__ import annotations

import re
from typing import Any

_BUILT = re.compile(r"\[aiter\] finish build \[([^\]]+)\], cost ([\d.]+) ?s")
_UNTUNED = re.compile(r"not found tuned config|is not tuned for|no tuned config", re.IGNORECASE)
_SECONDS = {
    "compile_s": re.compile(r"torch\.compile (?:takes|took) ([\d.]+) ?s|Compiling a graph .*takes ([\d.]+) ?s"),
    "load_s": re.compile(r"Loading weights took ([\d.]+) seconds|Model loading took .*?(?:and|in) ([\d.]+) seconds"),
    "graph_s": re.compile(r"Graph capturing finished in ([\d.]+) secs"),
}
_CONCURRENCY = re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x")
_LENGTH = re.compile(r"estimated maximum model length is (\d+)")
_UTILIZATION = re.compile(r"equivalent to --gpu-memory-utilization=([\d.]+)")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_VERSION = re.compile(r"(?:version |LLM engine \(v)(\d+\.\d+\.\d+)")


def read(log: str) -> dict[str, Any]:
    """Names for the rules. Seconds that the log does not tell are absent; counts of an own line are zero then."""
    built = [float(seconds) for _, seconds in _BUILT.findall(log)]
    found: dict[str, Any] = {
        "log": log,
        "jit_builds": len(built),
        "jit_build_s": sum(built),
        "jit_longest_s": max(built, default=0.0),
        "compile_s": 0.0,
        "untuned_shapes": len(_UNTUNED.findall(log)),
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
            found[name] = match[1] if name == "logged_utilization" else float(match[1])
    tokens = _KV_TOKENS.findall(log)
    if tokens:
        found["logged_kv_tokens"] = int(tokens[-1].replace(",", ""))
    version = _VERSION.search(log)
    if version is not None:
        found["logged_version"] = version[1]
    found["logged_length"] = int(found["logged_length"])
    return found
