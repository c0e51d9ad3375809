"""Which model a printed name means: people write the same checkpoint in many ways, and most models share their shapes.

`RedHatAI/gemma-3-12b-it-FP8-dynamic`, `llama-2-7b.Q4_0 (GGUF)` and `qwen3:0.6b` each name a known model in some weight format. A
name is taken apart into its family and size, and the format that the checkpoint is stored in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.model import quantization
from aim_engine.model.spec import ModelSpec, WeightFormat

FILE = "models/aliases.yaml"
GGUF_FILE = "formats/gguf.yaml"
MAKERS_FILE = "formats/makers.yaml"
_BRACKETS = re.compile(r"\([^)]*\)|\[[^\]]*\]")
_FORMAT = re.compile(
    r"^(?:fp\d+\w*|mxfp\d\w*|nvfp\d\w*|bf16|f(?:p)?16|f(?:p)?32|u?int\d\w*|awq\w*|gptq\w*|bnb|nf4|gguf|ggml|exl\d|autoround|"
    r"i?q\d\w*|w\d+a\d+\w*|\d?bits?|\d+bit|ud|k|m|s|l|xl|xs|xxs|nl|dynamic|static|per|tensor|block|channel|kv|fp8kv|preview|"
    r"ptpc|mtp\d*|attn\w*|moefp\d|quark|quantized\w*|qat|unquantized|compressed)$"
)
_KIND = re.compile(
    r"^(?:instruct|chat|it|pt|hf|base|text|thinking|reasoning|preview|meta|\d{4}|moe|model|latest|d1|pd|\dp\d|\dd\d)$"
)
_SIZE = re.compile(r"^(?:\d+x)?\d+(?:\.\d+)?[bm]$")
_OWNERS = frozenset(
    ["mistralai", "microsoft", "google", "nvidia", "baidu", "huggingfacetb", "amd", "unsloth", "redhatai", "openai"]
)
_DERIVED = frozenset({"distill", "distilled", "reap", "pruned", "merge", "slerp"})
"""Words of models whose shapes are not those of the model they are named after."""


class Alias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A family and size whose shapes are those of a model in the catalogue."""

    name: str
    """As `core` gives it: lower case words with blanks between."""
    model_id: str
    source: str


class GgufType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mean size of a weight in one llama.cpp file type."""

    name: str
    bits_per_weight: float
    source: str


class Maker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How somebody's quantised checkpoints are stored."""

    owner: str
    format: str
    group: int
    keeps: tuple[str, ...] = ()
    experts_only: bool = False
    """`keeps` holds for models with experts only."""
    source: str


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A model found for a name."""

    spec: ModelSpec
    how: str
    """What of the name was known: the id itself, its family and size, or an alias."""


def core(name: str) -> tuple[str, ...]:
    """Family and size of a name, as words: no owner, format, tuning or date.

    >>> core("RedHatAI/gemma-3-12b-it-FP8-dynamic")
    ('gemma', '3', '12b')
    """
    plain = _BRACKETS.sub(" ", name.strip().lower()).strip()
    plain = re.sub(r"\.gguf$", "", plain).rsplit("/", 1)[-1]
    plain = re.sub(r"[._-](i?q\d(?:_\w+)*|bf16|f16|f32|mxfp4)$", " ", plain)
    words = [word for word in re.split(r"[\s_:+-]+", plain) if word]
    kept = [word for word in words if not _FORMAT.match(word) and not _KIND.match(word)]
    while len(kept) > 1 and (kept[0] in _OWNERS or kept[1].startswith(kept[0])):
        kept = kept[1:]
    return tuple(kept)


def weight_format(name: str, stated: str = "") -> str | None:
    """The weight format a name or a table's own column says, in this project's words; None when neither does.

    A llama.cpp file type is given as `gguf-Q4_K_M`.
    """
    for text in (stated, name):
        low = text.lower()
        if (found := re.search(r"gguf-(\w+)", low)) is not None:
            return f"gguf-{found[1].upper()}"
        if "gguf" in low and (found := re.search(r"\b(i?q\d(?:_\w+)*|bf16|f16|f32|mxfp4)\b", low.replace("-", " "))):
            return f"gguf-{found[1].upper()}"
        for pattern, form in (
            ("mxfp4|fp4\\+fp8|moefp4", "mxfp4"),
            ("mxfp6", "mxfp6"),
            ("mxfp8", "mxfp8"),
            ("nvfp4", "nvfp4"),
            ("int8|8.?bit|w8a8|w8a16", "int8"),
            ("int4|4.?bit|w4a16|awq|gptq", "int4"),
            ("fp8|ptpc", "fp8"),
            ("bf16|bfloat16", "bf16"),
            ("fp16|float16|\\bf16", "fp16"),
        ):
            if re.search(pattern, low):
                return form
    return None


class Library:
    """Models by id, from the catalogue and from configs that a user adds; each is read once."""

    def __init__(
        self,
        ids: Iterable[str],
        load: Callable[[str], ModelSpec | None],
        aliases: Iterable[Alias] = (),
        copies: Container[str] = (),
    ) -> None:
        """`copies` are ids of checkpoints that somebody made from another in a format of their own."""
        self._ids = {name.lower(): name for name in ids}
        self._load = functools.cache(load)
        self._cores: dict[tuple[str, ...], list[str]] = {}
        for name in sorted(self._ids.values()):
            self._cores.setdefault(core(name), []).append(name)
        self._aliases = {alias.name: alias.model_id for alias in aliases}
        self._copies = copies
        self._found: dict[tuple[str, ...], Named | None] = {}

    def find(self, *names: str, stated_format: str = "") -> Named | None:
        """The model that the first usable of `names` means, in the format it says; None when none is known."""
        key = (*names, stated_format)
        if key not in self._found:
            self._found[key] = self._look_up(names, stated_format)
        return self._found[key]

    def _look_up(self, names: tuple[str, ...], stated: str) -> Named | None:
        form = weight_format(names[0], stated) if names else None
        for name in filter(None, names):
            exact = self._ids.get(name.strip().lower())
            if exact is not None and (spec := self._load(exact)) is not None:
                return Named(spec=in_format(spec, form, name), how=exact)
            close = self._by_core(core(name), form)
            if close is not None:
                # What others made of a model in fewer bits does not say that the model itself has so few.
                stored = form or ("bf16" if close.model_id in self._copies else None)
                return Named(spec=in_format(close, stored, name), how=f"shapes of {close.model_id}")
        return None

    def _by_core(self, wanted: tuple[str, ...], form: str | None) -> ModelSpec | None:
        if not wanted:
            return None
        alias = self._aliases.get(" ".join(wanted))
        if alias is not None:
            return self._load(self._ids.get(alias.lower(), alias))
        if wanted in self._cores:
            return self._best(self._cores[wanted], form)
        if _DERIVED & set(wanted):
            return None
        sizes = {word for word in wanted if _SIZE.match(word)}
        near = [
            known
            for known in self._cores
            if known and set(known) <= set(wanted) and {word for word in known if _SIZE.match(word)} == sizes and sizes
        ]
        if not near:
            return None
        return self._best(self._cores[max(near, key=lambda known: (len(known), known))], form)

    def _best(self, ids: list[str], form: str | None) -> ModelSpec | None:
        """Of checkpoints with the same shapes the one stored as asked, else a plain one, else the first."""
        specs = [spec for name in ids if (spec := self._load(name)) is not None]
        wanted = {"fp8": ("fp8", "fp8_block")}.get(form or "", (form,))
        for spec in specs:
            if spec.format in wanted:
                return spec
        return next((spec for spec in specs if spec.quantization is None), specs[0] if specs else None)


def in_format(spec: ModelSpec, form: str | None, name: str = "") -> ModelSpec:
    """`spec` with its weights stored in `form`: as it is when it already is, else all its linear layers re-stored.

    Checkpoints in four bits keep attention in 16 bit unless the name says otherwise (MXFP4 of mixture models), as their makers
    publish them. A format that says nothing leaves the model as it is.
    """
    known: dict[str, tuple[WeightFormat, ...]] = {"fp8": ("fp8", "fp8_block"), "int4": ("int4", "nf4")}
    if form is None or spec.format in known.get(form, (form,)):
        return spec
    if form in ("bf16", "fp16"):
        return msgspec.structs.replace(spec, quantization=None, weight_bytes=None)
    if form.startswith("gguf-"):
        bits = gguf_bits(form.removeprefix("gguf-"))
        return spec if bits is None else quantization.stored_as(spec, "gguf", bits / 8)
    maker = next((m for m in _makers() if name.lower().startswith(f"{m.owner}/") and m.format == form), None)
    if maker is not None:
        kept = maker.keeps if spec.is_moe or not maker.experts_only else ()
        return quantization.stored_as(spec, form, 0.5 + 2 / maker.group, but=kept)
    keeps_attention = form == "mxfp4" and spec.is_moe and not re.search(r"attn.?fp|attn-mtp", name.lower())
    return quantization.stored_as(
        spec, form, None, but=("attention", "attention_replicated") if keeps_attention else ()
    )


def gguf_bits(file_type: str) -> float | None:
    """Mean bits per weight of a llama.cpp file type; None for one that is not known."""
    return _gguf_types().get(file_type.upper())


def aliases(overlay: Path | None = None) -> tuple[Alias, ...]:
    """The bundled aliases, or the overlay's."""
    return facts.load(FILE, tuple[Alias, ...], overlay)


@functools.cache
def _makers() -> tuple[Maker, ...]:
    return facts.load(MAKERS_FILE, tuple[Maker, ...])


@functools.cache
def _gguf_types() -> Mapping[str, float]:
    return {entry.name: entry.bits_per_weight for entry in facts.load(GGUF_FILE, tuple[GgufType, ...])}
