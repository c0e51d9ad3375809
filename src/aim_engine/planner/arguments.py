"""What the command line of a measured server says that the columns of its row do not.

Tables of measurements often name only a command line for each row; drafts, cache format and limits of the scheduler stand there.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping

_COLUMNS = {
    "--kv-cache-dtype": "kv_dtype",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--mem-fraction-static": "gpu_memory_utilization",
    "--max-num-seqs": "max_num_seqs",
    "--max-running-requests": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-model-len": "max_model_len",
    "--num-speculative-tokens": "drafts",
    "--speculative-num-steps": "drafts",
}
"""Arguments of vLLM, SGLang and ATOM -> columns."""
_ATOM_KV_DTYPE = "fp8"
"""KV cache that ATOM's benchmarks start every engine with unless its arguments say otherwise: ROCm/ATOM@ffdf3bb
.github/benchmark/README.md (kv_cache_dtype), .github/scripts/atom_oot_test.sh and atom_sglang_test.sh (default arguments).
"""
_DRAWN_FROM = "0.8"
"""Share of the nominal length from which two public benchmarks draw lengths evenly: ROCm/ATOM@ffdf3bb .github/workflows/
atom-vllm-benchmark.yaml and InferenceX (--random-range-ratio 0.8)."""
_DRAWING = re.compile(r"\batom dashboard\b|^rocm/atom:|\binference(x|max)\b", re.IGNORECASE)
_BENCH_NAME = re.compile(r"-mtp(\d*)(?:-tp\d+)?'", re.IGNORECASE)
"""A dashboard's name of a run that drafts: `...-mtp-tp4'`, `...-mtp3'`."""


def columns(arguments: str, notes: str = "") -> dict[str, str]:
    """The cells that a server's arguments (or a note on them) fill; `spec_decoding` as `mtp3`, `mtp` where the count is not said."""
    found: dict[str, str] = {}
    words = _words(arguments)
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, _, joined = word.partition("=")
        flag = flag.replace("_", "-")
        value = joined or after
        if flag in _COLUMNS:
            found[_COLUMNS[flag]] = value
        elif flag == "--speculative-config":
            found["drafts"] = _drafts(value)
    named = _BENCH_NAME.search(notes)
    drafts = found.pop("drafts", "" if named is None else named[1] or "some")
    if drafts:
        found["spec_decoding"] = f"mtp{drafts}" if drafts.isdigit() else "mtp"
    if found.get("kv_dtype", "").startswith("fp8"):
        found["kv_dtype"] = "fp8"
    return found


def filled(row: Mapping[str, str], arguments: Mapping[str, str]) -> Mapping[str, str]:
    """The row with its empty cells filled from the arguments that its `server_args_id` names, and what its engine is measured with."""
    said = columns(arguments.get(row.get("server_args_id", ""), ""), row.get("notes", ""))
    if "atom" in row.get("engine", "").lower():
        said.setdefault("kv_dtype", _ATOM_KV_DTYPE)
    if "length_ratio_min" not in row and _DRAWING.search(row.get("source") or row.get("source_family") or ""):
        said["length_ratio_min"] = _DRAWN_FROM
    return {**row, **{name: value for name, value in said.items() if not row.get(name)}} if said else row


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError:  # an unbalanced quote: the rest of the line still says something
        return arguments.split()


def _drafts(config: str) -> str:
    try:
        return str(json.loads(config).get("num_speculative_tokens", "some"))
    except (ValueError, AttributeError):
        return "some"
