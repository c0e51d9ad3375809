"""`aim-engine gpus`."""

from __future__ import annotations

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import output
from aim_engine.errors import Corrupt, InvalidInput
from aim_engine.hardware import amdsmi, detect
from aim_engine.hardware.cluster import Cluster, Device, Node
from aim_engine.units import format_bytes


@click.command(epilog="Example: aim-engine gpus --json")
@click.option(
    "--root", type=click.Path(path_type=Path), help="A recorded tree (folder or tar) instead of this machine."
)
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Recorded output of amd-smi ... --json; - for stdin."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def gpus(root: Path | None, source: Path | None, as_json: bool) -> None:
    """Show the GPUs and the CPU of this machine, and where each figure comes from."""
    if root is not None and source is not None:
        raise InvalidInput("--root and --from are two different sources", hint="give one of them")
    settings = all_settings.load()
    overlay = workflow.overlay_dir(settings)
    if source is not None:
        devices = tuple(detect.named(device, overlay) for device in amdsmi.parse(_read(source)))
        cluster = Cluster(origin="detected", nodes=(Node(name=str(source), devices=devices),))
    else:
        with opened(root or Path(settings.sysfs_root)) as folder:
            cluster = detect.detect(folder, run_tools=folder == Path("/"), overlay=overlay)
    if as_json:
        output.data(cluster)
    else:
        _show(cluster)
        output.next_step("aim-engine plan Qwen/Qwen3-32B")


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A folder as it is; a tar archive unpacked aside for as long as it is needed. Raises: InvalidInput, Corrupt."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise InvalidInput(f"{path} does not exist", hint="give a folder that holds sys/, or a tar archive of one")
    with tempfile.TemporaryDirectory(prefix="aim-engine-") as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as err:
            raise Corrupt(f"{path} cannot be unpacked", why=str(err)) from err
        yield Path(folder)


def _read(source: Path) -> str:
    if str(source) == "-":
        return sys.stdin.read()
    try:
        return source.read_text("utf-8", "replace")
    except OSError as err:
        raise InvalidInput(f"{source} cannot be read", why=err.strerror) from err


def _show(cluster: Cluster) -> None:
    for node in cluster.nodes:
        if node.devices:
            output.table(
                f"{cluster.describe()} on {node.name}",
                ("#", "product", "arch", "partition", "memory", "used", "CUs", "PCI", "NUMA", "hive"),
                [_row(device, node) for device in node.devices],
                right=("#", "memory", "used", "CUs", "NUMA"),
            )
        else:
            output.heading(f"no AMD GPU on {node.name}")
        if node.cpu is not None:
            cpu = node.cpu
            output.text(
                f"CPU: {cpu.model}, {cpu.cores} cores, {', '.join(cpu.features) or 'no vector features known'}; "
                f"{format_bytes(cpu.memory_available_bytes)} of {format_bytes(cpu.memory_total_bytes)} free"
            )
        for name, version in (("amdgpu driver", node.driver_version), ("ROCm", node.rocm_version)):
            if version:
                output.text(f"{name}: {version}")
        for finding in node.findings:
            evidence = f" [{finding.evidence}]" if finding.evidence else ""
            remedy = f": {finding.remedy}" if finding.remedy else ""
            output.text(f"{finding.severity}: {finding.message}{evidence}{remedy}")


def _row(device: Device, node: Node) -> tuple[str, ...]:
    hives = sorted({each.hive for each in node.devices if each.hive is not None})
    mode = "/".join(part for part in (device.partition, device.memory_partition) if part)
    return (
        str(device.index),
        device.product,
        device.arch or "?",
        mode or "?",
        format_bytes(device.memory_total_bytes) if device.memory_total_bytes is not None else "?",
        format_bytes(device.memory_used_bytes) if device.memory_used_bytes is not None else "?",
        str(device.compute_units) if device.compute_units is not None else "?",
        device.bdf or "?",
        str(device.numa_node) if device.numa_node is not None else "?",
        str(hives.index(device.hive)) if device.hive is not None else "",
    )
