"""The cards of this machine: what the driver's files say, and from amd-smi what they leave out.

amd-smi takes a second of processor time for a node of eight cards and hangs when the driver does. It is asked in a thread of its own, in
a process that is ended in time, and no oftener than it is cheap; nobody waits for it, and what it said too long ago no longer counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from aim_engine.errors import Corrupt
from aim_engine.hardware import amdsmi, tools
from aim_engine.hardware.cluster import Device
from aim_engine.monitor import devices
from aim_engine.monitor.totals import Totals
from aim_engine.units import MIB

logger = logging.getLogger(__name__)
Ask = Callable[[Sequence[str], float], str | None]
"""Arguments and seconds to wait at most -> what amd-smi prints; None when it does not answer."""
LIVE = Path("/")
LIMIT_S = 15.0
"""A first call may wait for the driver to wake."""
PAUSE_S = 15.0
"""Between two questions at least."""
SHARE = 0.1
"""Of the time, that amd-smi may be running."""
_STATIC_S = 3600.0
"""Limits and addresses are asked again after this, and when a card comes or goes."""
_NAMES = {
    "ecc_correctable": "gpu_ecc_correctable",
    "ecc_uncorrectable": "gpu_ecc_uncorrectable",
    "ecc_deferred": "gpu_ecc_deferred",
    "energy_j": "gpu_energy",
    "pcie_replays": "pcie_replays",
    "xgmi_errors": "xgmi_errors",
    **devices.THROTTLES,
}


class Cards:
    """Reads the cards at each call, with amd-smi's last word where the driver's files lack a figure."""

    def __init__(self, root: Path, *, ask: Ask | None = None) -> None:
        """`ask` puts a question to amd-smi; by default the one that is installed, on the live machine only."""
        self._root = root
        self._ask = ask if ask is not None else installed() if root == LIVE else None
        self._said: dict[str, Totals] = {}
        self._static, self._static_s = "", 0.0
        self._numbers: set[int] = set()
        self._pause_s = PAUSE_S
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False

    def __call__(self, time_s: float) -> dict[str, Totals]:
        """Each card by its PCI address, now. Where the driver shows any, amd-smi adds none: it lists partitions as cards."""
        found = devices.read(self._root, time_s)
        shown = set(found)
        if self._ask is not None and self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="amd-smi", daemon=True)
            self._thread.start()
        oldest_s = time_s - 3 * self._pause_s - LIMIT_S
        for address, said in dict(self._said).items():
            if said.time_s is not None and said.time_s >= oldest_s and (address in shown or not shown):
                found[address] = joined(found.get(address), said, time_s)
        return found

    def wait(self) -> None:
        """Ask amd-smi once and wait for the answer: for a single look."""
        if self._ask is not None:
            self._thread = self._thread or threading.current_thread()
            self.ask()

    def close(self) -> None:
        """No more questions. One that is under way ends within its limit."""
        self._stop.set()

    def ask(self) -> None:
        """One round of questions."""
        if self._ask is None:
            return
        began = time.monotonic()
        metric = self._ask(("metric", "--json"), LIMIT_S)
        now_s = time.time()
        if metric is not None:
            try:
                numbers = set(amdsmi.counts(metric))
                if numbers != self._numbers or began - self._static_s > _STATIC_S or not self._static:
                    self._static = (
                        self._ask(("static", "--json"), LIMIT_S) or self._ask(("list", "--json"), LIMIT_S) or ""
                    )
                    self._static = self._static if amdsmi.is_one(self._static) else ""
                    self._numbers, self._static_s = numbers, began
                self._said = read((metric, self._static) if self._static else (metric,), now_s)
                self._silent = False
            except Corrupt as err:
                self._quiet(f"{err.what}: {err.why}")
        else:
            self._quiet(f"it gave no answer within {LIMIT_S:.0f} s")
        self._pause_s = max(PAUSE_S, (time.monotonic() - began) / SHARE)

    def _quiet(self, why: str) -> None:
        if not self._silent:
            logger.warning("amd-smi says nothing of the cards: %s; the driver's files are read alone", why)
        self._silent = True

    def _go_on(self) -> None:
        while not self._stop.is_set():
            self.ask()
            self._stop.wait(self._pause_s)


def installed() -> Ask | None:
    """A way to ask the amd-smi of this machine; None where there is none."""
    program = tools.program(amdsmi.NAME)
    if program is None:
        return None

    def ask(arguments: Sequence[str], limit_s: float) -> str | None:
        output, trouble = tools.run((program, *arguments), limit_s)
        if trouble:
            logger.debug("amd-smi %s: %s", " ".join(arguments), trouble)
        return output

    return ask


def read(outputs: Sequence[str], time_s: float) -> dict[str, Totals]:
    """Outputs of `amd-smi metric`, and of static or list for their addresses, as cards. Raises: Corrupt."""
    counted: dict[int, dict[str, float]] = {}
    for output in outputs:
        for number, counts in amdsmi.counts(output).items():
            counted.setdefault(number, {}).update(counts)
    found = {}
    for device in amdsmi.parse(*outputs):
        levels = _levels(device)
        counters = {_NAMES[name]: value for name, value in counted.get(device.index, {}).items()}
        if levels or counters:
            found[device.bdf or f"gpu {device.index}"] = Totals(
                time_s=time_s,
                counters=counters,
                gauges=levels,
                families=dict.fromkeys((*levels, *counters), amdsmi.NAME),
            )
    return found


def joined(driver: Totals | None, said: Totals, time_s: float) -> Totals:
    """A card by the driver's files, and by amd-smi what those do not tell."""
    if driver is None:
        return msgspec.structs.replace(said, time_s=time_s)
    return msgspec.structs.replace(
        driver,
        counters={**said.counters, **driver.counters},
        gauges={**said.gauges, **driver.gauges},
        families={**said.families, **{name: driver.families[name] for name in (*driver.counters, *driver.gauges)}},
    )


def _levels(device: Device) -> dict[str, float]:
    now = device.readings
    found: dict[str, float | None] = {
        "gpu_memory_used": None if device.memory_used_bytes is None else device.memory_used_bytes / MIB,
        "gpu_memory_total": None if device.memory_total_bytes is None else device.memory_total_bytes / MIB,
    }
    if now is not None:
        found |= {
            "gpu_busy": now.gpu_busy_percent,
            "gpu_memory_busy": now.mem_busy_percent,
            "gpu_power": now.power_w or None,
            "gpu_power_cap": now.power_cap_w or None,
            "gpu_junction": now.temperature_c.get("junction", now.temperature_c.get("edge")),
            "gpu_junction_crit": now.temperature_critical_c.get("junction", now.temperature_critical_c.get("edge")),
            "gpu_hbm_temperature": now.temperature_c.get("mem"),
            "gpu_clock": now.sclk_mhz,
            "gpu_clock_max": now.sclk_max_mhz,
        }
    return {name: float(value) for name, value in found.items() if value is not None}
