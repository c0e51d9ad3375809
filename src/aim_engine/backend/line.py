"""A command line with what is known of release, model and card, and what every engine's rules call the same.

A name that is absent is not known, and rules that ask for it are not judged.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aim_engine.backend import kernels, lint, rules
from aim_engine.backend.base import Image
from aim_engine.backend.release import FlagTable, ReleaseFacts, number
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.database import Family
from aim_engine.units import GIB

ROOMY_FRACTION = 0.7
"""Share of a card's memory that weights may take and leave room for a cache worth having."""
SMALLEST_CDNA3 = 192 * GIB
"""Memory of an MI300X, the smallest of its kind: what a model is held against where no card is named."""
STAGING_GIB = (16, 8)
"""Host memory for staging: per rank, and for the server. Engineering judgement, as in the planner's container sizes."""
_LIST = re.compile(r"\[[@*]\]|\$[@*]|^\.\.\.$|(?i:args|opts|options|flags|extra)")
"""What a variable that holds options looks like."""
_ONE_OF_EACH = (
    "--tensor-parallel-size=8",
    "--tp-size=8",
    "--pipeline-parallel-size=2",
    "--pp-size=2",
    "--data-parallel-size=2",
    "--dp-size=2",
    "--nnodes=2",
    "--enable-expert-parallel",
    "--ep-size=8",
    "--decode-context-parallel-size=2",
    "--distributed-executor-backend=mp",
    "--attention-backend=other",
    "--kv-cache-dtype=other",
    "--block-size=1",
    "--page-size=1",
    "--dtype=other",
    "--quantization=other",
    "--max-model-len=1",
    "--context-length=1",
    "--max-num-seqs=1",
    "--max-running-requests=1",
    "--max-num-batched-tokens=1",
    "--chunked-prefill-size=1",
    "--gpu-memory-utilization=0.1",
    "--mem-fraction-static=0.1",
    "--tool-call-parser=other",
    "--all2all-backend=other",
    "--disable-radix-cache",
    "--host=0.0.0.0",
    "--api-key=other",
)
"""What a list of options may say that rules ask for."""
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A command line and its environment."""

    args: tuple[str, ...]
    env: Mapping[str, str]
    version: str
    """The release that runs it."""
    table: FlagTable
    """Its arguments, or those of the nearest release where they are not known."""
    release: ReleaseFacts | None = None
    model: ModelSpec | None = None
    family: Family | None = None
    gpu: Gpu | None = None
    overlay: Path | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        """Those of its release for AMD cards."""
        return () if self.release is None else tuple(each for each in self.release.images if each.device == "rocm")

    def names(self, given: Mapping[str, str], *, places: int) -> dict[str, Any]:
        """What rules of every engine may ask of it. `given`: its arguments by name; `places` of its version make a minor release."""
        found: dict[str, Any] = {
            "version": rules.version_of(self.version),
            "version_text": self.version,
            "minor": ".".join(str(part) for part in number(self.version)[:places]),
            "args": given,
            "words": self.args,
            "envs": self.env,
            "token_given": any(name in self.env for name in _TOKENS),
        }
        if self.images and self.images[0].rocm is not None:
            found |= {"rocm": rules.version_of(self.images[0].rocm), "rocm_text": self.images[0].rocm}
        if self.family is not None:
            found |= _family(self.family)
        if self.gpu is not None:
            found |= _card(self.gpu)
        if self.model is not None:
            found |= _model(self.model)
        return found


def supposed(line: Line, value: str, *, more: bool) -> Line:
    """`line` as if all that only its caller knows were `value`; with `more`, as if its lists of options held one of each that matters."""

    def filled(word: str) -> str:
        name, equals, given = word.partition("=")
        if equals and word.startswith("-") and not lint.is_open(name):
            return f"{name}={value}" if lint.is_open(given) else word
        return value if lint.is_open(word) else word

    lists = more and any(
        lint.is_open(word) and not word.startswith("-") and (not before.startswith("-") or _LIST.search(word))
        for before, word in itertools.pairwise(line.args)
    )
    env = {name: value if lint.is_open(given) else given for name, given in line.env.items()}
    args = (*(_ONE_OF_EACH if lists else ()), *(filled(word) for word in line.args))
    return msgspec.structs.replace(line, args=args, env=env)


def staging_gib(ranks: int, nodes: int) -> int:
    """Host memory that loading takes on each node."""
    return STAGING_GIB[0] * ranks // nodes + STAGING_GIB[1]


def whole(text: str | None, default: int | None = None) -> int | None:
    """A whole number; `default` for anything else."""
    return int(text) if text is not None and text.lstrip("-").isdecimal() else default


def fraction(text: str | None) -> float | None:
    """A number; None for anything else."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def roomy(model: ModelSpec, memory_bytes: int) -> int:
    """Cards of that size on which the weights leave room for a cache worth having; 8 where that is not enough."""
    return next((n for n in (1, 2, 4, 8) if weight_bytes(model) <= n * memory_bytes * ROOMY_FRACTION), 8)


def weight_bytes(model: ModelSpec) -> int:
    """Bytes of the checkpoint: read from it, else parameters times the bytes of its format."""
    scheme = model.quantization
    return model.weight_bytes or int(model.served_parameters * (scheme.bytes_per_weight if scheme is not None else 2))


def _family(family: Family) -> dict[str, Any]:
    """What the recipe database says of the model's family."""
    least = family.least_vllm
    return {
        "family_tool_parser": family.tool_parser,
        "family_tokenizer_mode": family.tokenizer_mode,
        "least": rules.version_of(least) if least is not None and number(least) else None,
        "least_text": least or "",
        "draft": family.speculative_default or next(iter(sorted(family.speculative)), None),
        **({"gated": family.gated} if family.gated is not None else {}),
    }


def _card(gpu: Gpu) -> dict[str, Any]:
    """What is known of the card."""
    links = gpu.links
    return {
        "arch": gpu.arch,
        "card": gpu.name,
        "kind": gpu.kind,
        "memory_gib": gpu.memory_bytes // GIB,
        "node_gpus": gpu.devices_per_node,
        **({"link": links.kind, "full_mesh": links.kind == "xgmi" and links.peers >= 7} if links is not None else {}),
    }


def _model(model: ModelSpec) -> dict[str, Any]:
    """What is known of the model."""
    scheme, moe = model.quantization, model.moe
    return {
        "model_type": model.model_type,
        "architecture": model.architecture,
        "group_size": scheme.group_size if scheme is not None else None,
        "mlp_width": model.intermediate_size,
        "model_id": model.model_id,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "is_moe": model.is_moe,
        "is_mla": model.is_mla,
        "is_sparse": kernels.has_sparse_indexer(model),
        "is_hybrid": model.is_hybrid,
        "is_vision": model.modality in ("vision", "omni"),
        "has_sinks": model.has_sinks,
        "bidirectional": kernels.is_bidirectional(model),
        "needs_code": model.needs_remote_code,
        "model_len": model.max_position_embeddings,
        "method": scheme.method if scheme is not None else "",
        "form": model.format,
        "kv_calibrated": scheme is not None and scheme.kv_cache_dtype == "fp8",
        "expert_width": moe.intermediate_size if moe is not None else 0,
        "total_gib": weight_bytes(model) // GIB,
        "roomy_tp": roomy(model, SMALLEST_CDNA3),
        "roomy_gib": SMALLEST_CDNA3 // GIB,
        **({"gated": model.gated} if model.gated is not None else {}),
    }
