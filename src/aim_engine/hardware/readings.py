"""What a card's sensors say at one moment. None or absent means that nothing said it."""

from __future__ import annotations

import msgspec

from aim_engine.hardware import gpu_metrics


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one card."""

    temperature_c: dict[str, float] = {}
    """By place: edge, junction (hotspot), mem."""
    temperature_critical_c: dict[str, float] = {}
    """Where the card slows down."""
    temperature_emergency_c: dict[str, float] = {}
    """Where it switches off."""
    power_w: float | None = None
    power_cap_w: float | None = None
    power_cap_min_w: float | None = None
    """0 is what some drivers say; it is not a usable limit."""
    power_cap_max_w: float | None = None
    power_cap_default_w: float | None = None
    power_caps_w: dict[str, float] = {}
    """By rail, where there is more than one: slowPPT and fastPPT of an APU."""
    gpu_busy_percent: int | None = None
    mem_busy_percent: int | None = None
    sclk_mhz: int | None = None
    """Shader clock as the level list marks it."""
    sclk_levels_mhz: tuple[int, ...] = ()
    sclk_max_mhz: int | None = None
    mclk_mhz: int | None = None
    """Memory clock."""
    mclk_max_mhz: int | None = None
    fan_percent: float | None = None
    throttle_counts: dict[str, int] = {}
    """Samples in which something held the clock down, since boot, by cause; of them all: `samples`. Only a difference says anything."""
    throttle_reasons: tuple[str, ...] = ()
    """What holds the clock down now, where the card says it; an idle card may say it too."""
    link: str | None = None
    """Current PCIe speed and width, as `16.0 GT/s x16`; an idle card lowers both."""
    performance_level: str | None = None
    pcie_replay_count: int | None = None
    vram_vendor: str | None = None
    metrics: gpu_metrics.Header | None = None
    """Which gpu_metrics table the driver offers. Its size counts, not that of the file."""
