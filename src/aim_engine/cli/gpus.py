"""`aim-engine gpus`."""

from __future__ import annotations

from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import hardware_source, output
from aim_engine.errors import InvalidInput
from aim_engine.hardware import detect, links, nodes, recording
from aim_engine.hardware.cluster import Cluster, Cpu, Device, Finding, Node
from aim_engine.units import format_bytes

MATRIX_DEVICES = 16
"""More devices than these do not make a table that a person reads."""
WATCH_S = 2.0


@click.command(epilog="Example: aim-engine gpus --json")
@click.option(
    "--root", type=click.Path(path_type=Path), help="A recorded tree (folder or tar) instead of this machine."
)
@click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Recorded output of amd-smi (JSON, CSV or text), rocm-smi (JSON or text), kubectl get nodes (JSON, YAML, labels) or lspci, a topology file of "
    "RCCL or hwloc, or a sysinfo.csv of rocprof; - for stdin. May be given several times for one machine.",
)
@hardware_source.LIVE
@click.option(
    "--watch",
    "every_s",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=WATCH_S,
    metavar="[SECONDS]",
    help="Look again and again, every 2 seconds or as given, until Ctrl-C; with load, power and temperatures. With --json one document a line.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def gpus(root: Path | None, sources: tuple[Path, ...], live: bool, every_s: float | None, as_json: bool) -> None:
    """Show the GPUs and the CPU of this machine, and where each figure comes from.

    Or those of a recording, or of a Kubernetes cluster: its nodes, their GPUs and how many are free.
    """
    hardware_source.one_of(root=root, **{"from": sources}, kubernetes=live)
    if every_s is not None:
        if any(str(source) == "-" for source in sources):
            raise InvalidInput("stdin can be read once, not watched", hint="give a file, or leave out --watch")
        _watch(root, sources, live, every_s, as_json)
        return
    cluster = _read(root, sources, live)
    if as_json:
        output.data(cluster)
        return
    _show_all(cluster, live)
    if cluster.origin == "detected" and not sources and root is None:
        output.next_step("aim-engine plan Qwen/Qwen3-32B")


def _watch(root: Path | None, sources: tuple[Path, ...], live: bool, every_s: float, as_json: bool) -> None:
    """Look until Ctrl-C, which is how a watch ends."""
    import time

    import msgspec

    try:
        while True:
            cluster = _read(root, sources, live)
            if as_json:
                output.text(msgspec.json.encode(cluster, order="deterministic").decode())
            else:
                output.fresh_page()
                _show_all(cluster, live)
                _show_readings(cluster)
            output.flush()
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _read(root: Path | None, sources: tuple[Path, ...], live: bool) -> Cluster:
    settings = all_settings.load()
    overlay = workflow.overlay_dir(settings)
    if live:
        from aim_engine.deploy import inventory

        return inventory.read(overlay)
    if sources:
        name = sources[0].name if str(sources[0]) != "-" else "stdin"
        texts = [hardware_source.read(source) for source in sources]
        if any(map(nodes.is_one, texts)):
            return nodes.read(*texts, name=name, overlay=overlay)
        return detect.from_recorded(*texts, name=name, overlay=overlay, readings=True)
    with recording.opened(root or Path(settings.sysfs_root)) as folder:
        recorded = None if root is None else root.name.removesuffix(".gz").removesuffix(".tar")
        return detect.detect(folder, run_tools=folder == detect.LIVE, overlay=overlay, readings=True, name=recorded)


def _show_all(cluster: Cluster, live: bool) -> None:
    if any(node.scheduling is not None for node in cluster.nodes):
        _show_cluster(cluster)
        if live:
            output.next_step("aim-engine plan Qwen/Qwen3-32B --kubernetes")
        return
    for node in cluster.nodes:
        _show(node, cluster)


def _show_readings(cluster: Cluster) -> None:
    rows = []
    for device in cluster.devices:
        now = device.readings
        if now is None:
            continue
        hottest = max(now.temperature_c.items(), key=lambda item: item[1], default=None)
        rows.append(
            (
                str(device.index),
                _or_unknown(now.gpu_busy_percent, "%"),
                _or_unknown(now.mem_busy_percent, "%"),
                format_bytes(device.memory_used_bytes) if device.memory_used_bytes is not None else "?",
                _or_unknown(now.power_w, " W") + (f" of {now.power_cap_w:.0f}" if now.power_cap_w else ""),
                f"{hottest[1]:.0f} \u00b0C {hottest[0]}" if hottest is not None else "?",
                _or_unknown(now.sclk_mhz, " MHz"),
                ", ".join(now.throttle_reasons) or "-",
            )
        )
    if rows:
        output.table(
            "now",
            ("#", "busy", "memory busy", "used", "power", "hottest", "clock", "held down by"),
            rows,
            right=("#", "busy", "memory busy", "used"),
        )


def _or_unknown(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.0f}{unit}"


def _show_cluster(cluster: Cluster) -> None:
    rows = hardware_source.rows(cluster)
    numbers = ("memory", "there", "usable", "held", "free")
    if rows:
        output.table(
            f"{cluster.describe() if cluster.devices else 'no usable GPU known'} in {len(cluster.nodes)} node{'s' * (len(cluster.nodes) != 1)}",
            ("node", "card", "memory", "resource", "there", "usable", "held", "free", "state"),
            rows,
            right=numbers,
        )
    without = len(cluster.nodes) - len({row[0] for row in rows})
    if without:
        output.text(f"{without} node{'s' * (without != 1)} without AMD GPU")
    for node in cluster.nodes:
        for finding in node.findings:
            output.text(_finding(finding))


def _show(node: Node, cluster: Cluster) -> None:
    if node.devices:
        output.table(
            f"{cluster.describe()} on {node.name}",
            ("#", "product", "arch", "mode", "memory", "used", "CUs", "PCI", "NUMA", "hive", "source"),
            [_row(device, node) for device in node.devices],
            right=("#", "memory", "used", "CUs", "NUMA"),
        )
    else:
        output.text(f"no AMD GPU that can serve models on {node.name}")
    if node.link_weights and len(node.devices) <= MATRIX_DEVICES:
        output.table("links", ("", *(str(device.index) for device in node.devices)), list(links.matrix(node)))
    if node.cpu is not None:
        for line in _cpu_lines(node.cpu):
            output.text(line)
    for name, version in (("amdgpu driver", node.driver_version), ("ROCm", node.rocm_version)):
        if version:
            output.text(f"{name}: {version}")
    if node.findings:
        output.text()
    for finding in node.findings:
        output.text(_finding(finding))


def _row(device: Device, node: Node) -> tuple[str, ...]:
    hives = sorted({each.hive for each in node.devices if each.hive is not None})
    mode = "/".join(part for part in (device.partition, device.memory_partition) if part)
    memory = device.sources.get("memory_total_bytes", "")
    return (
        str(device.index),
        device.product,
        device.arch or "?",
        mode or "-",
        (format_bytes(device.memory_total_bytes) if device.memory_total_bytes is not None else "?"),
        format_bytes(device.memory_used_bytes) if device.memory_used_bytes is not None else "?",
        str(device.compute_units) if device.compute_units is not None else "?",
        device.bdf or "?",
        str(device.numa_node) if device.numa_node is not None else "?",
        str(hives.index(device.hive)) if device.hive is not None else "-",
        ", ".join(
            dict.fromkeys(
                each for each in (device.sources.get("bdf") or device.sources.get("arch", ""), memory) if each
            )
        )
        or "?",
    )


def _cpu_lines(cpu: Cpu) -> list[str]:
    sockets = f"{cpu.sockets} sockets, " if cpu.sockets > 1 else ""
    clock = f" at {cpu.clock_hz / 1e9:.2f} GHz" if cpu.clock_hz else ""
    numa = f"{cpu.numa_nodes} NUMA node{'s' if cpu.numa_nodes > 1 else ''}"
    return [
        f"CPU: {cpu.model}, {sockets}{cpu.cores} cores ({cpu.threads} threads){clock}, {numa}",
        f"  vector features: {', '.join(cpu.features) or 'none known'}",
        f"  memory: {format_bytes(cpu.memory_available_bytes)} of {format_bytes(cpu.memory_total_bytes)} free",
    ]


def _finding(finding: Finding) -> str:
    evidence = f" [{finding.evidence}]" if finding.evidence else ""
    remedy = f"\n  {finding.remedy}" if finding.remedy else ""
    return f"{finding.severity}: {finding.message}{evidence}{remedy}"
