"""What a prediction is about besides shapes and loads: engine, release, format, card, model family. Each may have an effect of its own.

An effect multiplies a time; it was estimated from measurements that share the key, pulled towards none the fewer they are. A
situation without measurements has no effects, and the physical model speaks alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import msgspec

from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Workload

MIDDLE_LOG2 = 4.5
"""Slopes over the load turn around 2^4.5 = 23 requests, the middle of what is measured."""
MOST_LOG2 = 12.0
OPEN_LOOP = "open loop"
"""Kind of a benchmark in which requests arrive whether others are finished or not."""
SHAPES = ("level", "load", "lengths", "bend", "twist")
"""How an effect varies: not at all, with the log of the load, with prompt to answer length, with the load squared, with load x lengths."""
EFFECTS: Mapping[str, tuple[float, ...]] = {
    "part": (0.05,),
    "engine": (0.10,),
    "engine and form": (0.08,),
    "form": (0.05,),
    "arch": (0.15,),
    "release": (0.05,),
    "drafts": (0.15, 0.05),
    "drafts of engine": (0.10, 0.04),
    "number of drafts": (0.10,),
    "separate prefill": (0.20,),
    "kind": (0.40,),
    "kind of engine": (0.40, 0.06, 0.06),
    "profile": (0.10, 0.05),
    "profile of engine": (0.10, 0.05),
    "attention": (0.10, 0.04, 0.04),
    "attention of engine": (0.08, 0.04, 0.04),
    "family": (0.25, 0.06, 0.07),
    "family of engine": (0.12, 0.05, 0.05),
    "family and split": (0.10, 0.04, 0.04),
    "family, engine and split": (0.10, 0.04, 0.04),
    "family and checkpoint": (0.10, 0.03, 0.03),
    "configuration": (0.30, 0.05, 0.05, 0.04, 0.05),
}
"""The hierarchy, from the general to the particular: what a level may add to the logarithm of a time (standard deviation before any
measurement), for each of its shapes in the order of `SHAPES`."""
_RELEASE = re.compile(r"(?:vllm|sglang|atom)[-_ a-z:]{0,12}?v?(\d+\.\d+)", re.IGNORECASE)


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the effects of a prediction are looked up by."""

    engine: str
    release: str
    family: str
    """Models of the same shapes: DeepSeek-V3, R1 and V3.1 are one."""
    checkpoint: str
    attention: str
    """How the model remembers: full, window, mla, sparse or state."""
    form: str
    """Weight format, coarse."""
    arch: str
    gpu: str
    split: str
    """Parallelism of one replica."""
    profile: str = ""
    """Lengths of prompt and answer that a benchmark asks for: those of the same lengths mostly start and end alike, which the time to
    first token shows."""
    drafts: int = 0
    separate_prefill: bool = False
    kind: str = "serving"
    lengths: float = 0.0
    """log2(prompt / answer tokens) / 3."""

    def effects(self) -> Iterator[tuple[str, str]]:
        """Keys from the general to the particular, each with its level of `EFFECTS`."""
        engine = f"engine={self.engine}"
        for part in self.engine_parts():
            yield part, "part"
        yield engine, "engine"
        yield f"{engine}|form={self.form}", "engine and form"
        yield f"form={self.form}", "form"
        yield f"arch={self.arch}", "arch"
        if self.release:
            yield f"{engine}|release={self.release}", "release"
        if self.drafts:
            yield "drafts", "drafts"
            yield f"drafts|{engine}", "drafts of engine"
            yield f"drafts={self.drafts}", "number of drafts"
        if self.separate_prefill:
            yield "separate prefill", "separate prefill"
        if self.kind != "serving":
            yield f"kind={self.kind}", "kind"
            yield f"kind={self.kind}|{engine}", "kind of engine"
        if self.profile:
            yield f"profile={self.profile}", "profile"
            yield f"profile={self.profile}|{engine}", "profile of engine"
        yield f"attention={self.attention}", "attention"
        yield f"attention={self.attention}|{engine}", "attention of engine"
        family = f"family={self.family}"
        yield family, "family"
        yield f"{family}|{engine}", "family of engine"
        yield f"{family}|split={self.split}", "family and split"
        yield f"{family}|{engine}|split={self.split}", "family, engine and split"
        yield f"{family}|checkpoint={self.checkpoint}", "family and checkpoint"
        yield self.configuration, "configuration"

    @property
    def configuration(self) -> str:
        """The most particular key: everything but the load."""
        drafts = f"|drafts={self.drafts}" if self.drafts else ""
        own = f"|separate={self.separate_prefill:d}|kind={self.kind}"
        return f"{self.checkpoint}|{self.engine}|{self.gpu}|{self.split}{drafts}{own}"

    @property
    def kernels(self) -> str:
        """Whose laws hold: engines for single devices have kernels of their own."""
        return "llama.cpp" if self.engine.split("/")[0] in ("llama.cpp", "ollama") else "servers"

    @property
    def prefills_elsewhere(self) -> bool:
        """No prompts are computed among the decode steps: other devices do it, or a benchmark of decoding alone."""
        return self.separate_prefill or self.kind == "llama_bench_decode"

    def engine_parts(self) -> tuple[str, ...]:
        """An engine and what it is made of: a plugin shares the kernels of one and the scheduler of another."""
        names = self.engine.replace("-", "+").split("+")
        kernels = "atom" if "atom" in names else "stock"
        scheduler = next((name for name in ("vllm", "sglang", "llama.cpp") if name in names), names[0])
        return f"kernels={kernels}", f"scheduler={scheduler}"

    def at(self, shape: str, requests: float) -> float:
        """The value an effect of this shape is multiplied with at a load of one replica."""
        if shape == "level":
            return 1.0
        if shape == "lengths":
            return self.lengths
        load = min(MOST_LOG2, math.log2(max(1.0, requests))) - MIDDLE_LOG2
        if shape == "load":
            return load
        return load * load / 4 - 1 if shape == "bend" else load * self.lengths / 2


def of(
    spec: ModelSpec,
    gpu: Gpu,
    recipe: Recipe,
    workload: Workload,
    *,
    engine: str | None = None,
    checkpoint: str | None = None,
    drafts: int = 0,
    separate_prefill: bool = False,
    kind: str = "serving",
    profile: str = "",
) -> Situation:
    """The situation of a recipe; `engine` and `checkpoint` where a table names them otherwise than the recipe does, `profile` where
    a benchmark sets the lengths.
    """
    name = engine or recipe.engine
    return Situation(
        engine=name,
        release=release(recipe.engine_version),
        family=family(spec),
        checkpoint=(checkpoint or spec.model_id).split("/")[-1].lower(),
        attention=attention(spec),
        form=_form(recipe),
        arch=gpu.arch,
        gpu=gpu.name,
        split=recipe.parallelism.describe(),
        profile=profile,
        drafts=drafts,
        separate_prefill=separate_prefill,
        kind=kind,
        lengths=max(-1.5, min(1.5, math.log2(workload.input_tokens / workload.output_tokens) / 3)),
    )


def release(version: str) -> str:
    """The minor release, as `0.19`, that a text names: a version, an image, a build. Empty when none.

    >>> release("docker rocm/atom-dev:vllm-v0.19.0-nightly")
    '0.19'
    """
    found = _RELEASE.search(version) or re.match(r"v?(\d+\.\d+)", version)
    return found[1] if found else ""


def attention(spec: ModelSpec) -> str:
    """The kind of layer that sets a model apart: a sparse indexer before MLA, that before a state, that before a window."""
    kinds = {"sparse" if group.indexer_dim else group.kind for group in spec.groups}
    for name, among in (("sparse", {"sparse"}), ("mla", {"mla"}), ("state", {"linear", "mamba"})):
        if kinds & among:
            return name
    return "window" if kinds & {"sliding", "chunked"} else "full"


def family(spec: ModelSpec) -> str:
    """Layers, width, experts and whether attention is sparse: what models of one family share and others do not."""
    experts = (
        f"-{spec.moe.experts}x{spec.moe.intermediate_size}" if spec.moe is not None else f"-{spec.intermediate_size}"
    )
    sparse = "-sparse" if any(group.indexer_dim for group in spec.groups) else ""
    return f"{spec.layers}x{spec.hidden_size}{experts}{sparse}"


def _form(recipe: Recipe) -> str:
    groups = {"bf16": "16bit", "fp16": "16bit", "fp32": "32bit", "mxfp4": "fp4", "nvfp4": "fp4", "mxfp8": "fp8"}
    return groups.get(recipe.precision, recipe.precision)
