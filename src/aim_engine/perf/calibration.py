"""Coefficient sets of the speed model: which to use for a device, and how wide its band is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aim_engine import facts
from aim_engine.errors import MissingFigure
from aim_engine.hardware.gpu import Gpu, Provenance

FILE = "calibration/prior.yaml"


class Band(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiples of a predicted time between which about 90 % of held-out measurements fell."""

    low: float
    high: float
    archs: tuple[str, ...] = ()


class Coefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multipliers of ideal times, except where a unit is given: those are seconds each."""

    dense_weights: float
    expert_weights: float
    kv_read: float
    decode_compute: float
    prefill_compute: float
    allreduce_bytes: float
    allreduce_count: float
    """Seconds per all-reduce."""
    layers: float
    """Seconds per layer."""
    requests: float
    """Seconds per running request."""
    step: float
    """Seconds per step."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fitted or assumed set, used as a whole."""

    name: str
    archs: tuple[str, ...]
    """Device targets it serves; `cpu` for every CPU."""
    coefficients: Coefficients
    prompt_compute: dict[str, float]
    """Arch -> ideal-time multiple of a prompt-only step, for the time to first token; `default` for the others."""
    fixed_ttft_s: float
    """API, tokenizer and scheduling before the first step."""
    load_bytes_s: float
    """Rate at which a checkpoint on local disk reaches the device."""
    start_s: float
    """From process start to ready, without the weights: imports, compilation, graph capture."""
    band: Band
    band_known: Band | None = None
    """Narrower band for the archs that the fit has seen."""
    provenance: Provenance

    def band_for(self, arch: str) -> Band:
        """The band on `arch`."""
        if self.band_known is not None and arch in self.band_known.archs:
            return self.band_known
        return self.band


def load(overlay: Path | None = None) -> tuple[Calibration, ...]:
    """All coefficient sets."""
    return facts.load(FILE, tuple[Calibration, ...], overlay)


def pick(sets: tuple[Calibration, ...], gpu: Gpu) -> Calibration:
    """The set for a device. Raises: MissingFigure."""
    arch = "cpu" if gpu.kind == "cpu" else gpu.arch
    for candidate in sets:
        if arch in candidate.archs:
            return candidate
    raise MissingFigure(f"speed coefficients for {arch}", file=f"data/{FILE}")
