"""What ideal times cost in practice: coefficients, what engines and cards shift, effects of situations, and how far off it all is."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from aim_engine import facts
from aim_engine.errors import Corrupt, MissingFigure
from aim_engine.hardware.gpu import Gpu, Provenance
from aim_engine.perf.features import CLASSES, NAMES
from aim_engine.perf.local import Local
from aim_engine.perf.situation import SHAPES, Situation

FILE = "calibration/sets.yaml"
Metric = Literal["tpot", "ttft", "throughput"]
SERVERS = "servers"
"""Kernels of engines that serve many requests at once."""
Level = Literal["configuration", "family", "unseen family", "unseen card"]


class Band(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiples of a predicted value between which about 90 % of held-out measurements fell."""

    low: float
    high: float
    count: int = 0
    """Held-out measurements behind it; 0: assumed."""


class Law(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one time follows from its features: the sum of coefficient x feature, multiplied by the effects of the situation."""

    coefficients: dict[str, float]
    """Feature -> seconds for each unit of it; for features that are ideal times, a multiple."""
    shifts: dict[str, dict[str, float]] = {}
    """`engine=` or `arch=` key -> class of features -> logarithm of the factor on their coefficients."""
    effects: dict[str, tuple[float, ...]] = {}
    """Key of a situation -> logarithms by the shapes that key has (see `perf.situation`)."""

    def factor(self, situation: Situation, shifted: str) -> float:
        """What this engine and card multiply the coefficients of a class with."""
        keys = (f"engine={situation.engine}", f"arch={situation.arch}")
        return math.exp(sum(self.shifts[key].get(shifted, 0.0) for key in keys if key in self.shifts))

    def curve(self, situation: Situation) -> dict[str, float]:
        """Sum of all effects of a situation by their shape."""
        total = dict.fromkeys(SHAPES, 0.0)
        for key, _ in situation.effects():
            for shape, value in zip(SHAPES, self.effects.get(key, ()), strict=False):
                total[shape] += value
        return total


class Laws(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The times that are predicted."""

    step: Law
    """Time of a step, over `perf.features.NAMES`."""
    first_token: Law
    """Mean time to first token, over `perf.roofline.FIRST_TOKEN`."""
    first_token_median: Law
    """The same for the median, which the burst at the start of a benchmark hardly moves."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fit over measurements, with what it was fitted on and how well it did on what it had not seen."""

    name: str
    fitted: str
    """ISO date."""
    rows: int
    families: int
    inputs_sha256: str
    """Of the table the fit read."""
    laws: dict[str, Laws]
    """By kernels: those of servers for the data centre, and llama.cpp's, which are written for single devices."""
    bands: dict[Level, dict[Metric, Band]]
    error: dict[str, dict[str, float]]
    """Held-out protocol and metric -> n, mean and median of the relative error."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of the catalogue: for which devices, and either a fit by reference or assumed laws."""

    name: str
    archs: tuple[str, ...]
    """Device targets it serves; `cpu` for every CPU."""
    fit: str | None = None
    """File of the fit, below `data/`."""
    step: Law | None = None
    first_token: Law | None = None
    band: Band | None = None
    load_bytes_s: float
    start_s: float
    provenance: Provenance


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """One set, complete, used as a whole."""

    name: str
    archs: tuple[str, ...]
    laws: Mapping[str, Laws]
    """By `Situation.kernels`."""
    bands: Mapping[Level, Mapping[Metric, Band]]
    load_bytes_s: float
    """Rate at which a checkpoint on local disk reaches the device."""
    start_s: float
    """From process start to ready, without the weights: imports, compilation, graph capture."""
    provenance: Provenance
    local: Local | None = None
    """Corrections from the user's own measurements."""

    def of(self, situation: Situation) -> Laws:
        """The laws of the kernels that a situation's engine runs."""
        return self.laws.get(situation.kernels) or self.laws[SERVERS]

    def level(self, situation: Situation) -> Level:
        """How much of a situation the set has seen."""
        step = self.of(situation).step
        if f"arch={situation.arch}" not in step.shifts:
            return "unseen card"
        if situation.configuration in step.effects:
            return "configuration"
        if f"family={situation.family}|engine={situation.engine}" in step.effects:
            return "family"
        return "unseen family"

    def band(self, situation: Situation, metric: Metric) -> Band:
        """The band on a metric in a situation."""
        return self.bands[self.level(situation)][metric]


def load(overlay: Path | None = None, measured: Path | None = None) -> tuple[Calibration, ...]:
    """All coefficient sets. `measured` is the file that `aim-engine calibrate` keeps; absent or for another fit, it says nothing.

    Raises: Corrupt when it is not readable.
    """
    sets = tuple(_complete(entry, overlay) for entry in facts.load(FILE, tuple[Entry, ...], overlay))
    local = _local(measured)
    if local is None:
        return sets
    return tuple(msgspec.structs.replace(one, local=local) if one.name == local.base else one for one in sets)


def _local(path: Path | None) -> Local | None:
    if path is None or not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Local)
    except (OSError, msgspec.MsgspecError) as err:
        raise Corrupt(
            f"{path} is not readable as measurements of your own",
            why=str(err),
            hint="remove it, then aim-engine calibrate",
        ) from err


def pick(sets: Iterable[Calibration], gpu: Gpu) -> Calibration:
    """The set for a device. Raises: MissingFigure."""
    arch = "cpu" if gpu.kind == "cpu" else gpu.arch
    for candidate in sets:
        if arch in candidate.archs:
            return candidate
    raise MissingFigure(f"speed coefficients for {arch}", file=f"data/{FILE}")


def _complete(entry: Entry, overlay: Path | None) -> Calibration:
    if entry.fit is not None:
        path = facts.find(entry.fit, overlay) or facts.BUNDLED / entry.fit
        fitted = read_fit(path, path.stat().st_mtime_ns)
        laws, bands = fitted.laws, fitted.bands
        name = f"{fitted.name} of {fitted.rows:,} rows, {fitted.fitted}"
    else:
        if entry.step is None or entry.first_token is None or entry.band is None:
            raise MissingFigure(f"laws of the set {entry.name}", file=f"data/{FILE}")
        laws = {SERVERS: Laws(step=entry.step, first_token=entry.first_token, first_token_median=entry.first_token)}
        name = f"{entry.name}, {entry.provenance.checked}"
        levels: tuple[Level, ...] = ("configuration", "family", "unseen family", "unseen card")
        metrics: tuple[Metric, ...] = ("tpot", "ttft", "throughput")
        bands = {level: dict.fromkeys(metrics, entry.band) for level in levels}
    steps = [each.step for each in laws.values()]
    unknown = sorted({name for step in steps for name in step.coefficients} - set(NAMES)) + sorted(
        {shifted for step in steps for shift in step.shifts.values() for shifted in shift} - set(CLASSES)
    )
    if unknown:
        raise MissingFigure(f"the feature {unknown[0]} of the set {entry.name}", file=f"data/{FILE}")
    return Calibration(
        name=name,
        archs=entry.archs,
        laws=laws,
        bands=bands,
        load_bytes_s=entry.load_bytes_s,
        start_s=entry.start_s,
        provenance=entry.provenance,
    )


@functools.cache
def read_fit(path: Path, modified_ns: int) -> Fitted:  # noqa: ARG001 - a changed file is read again
    """A fit's file, once per process and version of it."""
    return msgspec.json.decode(path.read_bytes(), type=Fitted)
