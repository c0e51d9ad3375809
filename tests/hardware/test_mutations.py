"""100,000 damaged inputs over every reader of hardware: an answer or one of our own errors, soon, and nothing else.

AIM_ENGINE_MUTATIONS says how many if fewer are wanted. Damage is drawn from a seed that a failure names: bytes flipped, cut out,
doubled and swapped, values that tools print for unknown, numbers no type holds, deep nesting, lines in another order, files that
vanish. What real machines recorded is damaged too where AIM_ENGINE_CORPUS has it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import yaml

import kube_nodes
import machines
from aim_engine.doctor import examine, host
from aim_engine.errors import AimError
from aim_engine.hardware import detect, gpu_metrics, nodes, recording, topology
from recordings import (
    AMD_SMI_BOX,
    AMD_SMI_ENTRY,
    HWLOC,
    LSPCI,
    LSPCI_MACHINE_READABLE,
    ROCM_SMI_OLD,
    ROCM_SMI_TABLES,
    ROCM_SMI_TEXT,
    ROCPROF,
    ROCPROF_OLD,
    rccl,
)

pytestmark = pytest.mark.mutation
COUNT = int(os.environ.get("AIM_ENGINE_MUTATIONS", "100000"))
LIMIT_S = 20
"""No input of a few kilobytes may take longer than this, even on a busy machine."""
TREES_FRACTION, TABLES_FRACTION, ARCHIVES_FRACTION = 0.1, 0.2, 0.01
JUNK = (
    b"N/A",
    b"65535",
    b"4294967295",
    b"18446744073709551615",
    b"-1",
    b"-9223372036854775809",
    b"1e309",
    b"nan",
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b"[" * 3000,
    b'{"a":' * 500,
    b"9" * 5000,
    b"0x",
    b"\n\n",
    b"\r",
    b'"',
    b",",
    b": ",
    b"&lol;",
    b"<object>",
    b"\xe2\x80\xae",
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four kinds of damage."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 1, 4, 40, 400)))
        match rng.randrange(8):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + content[end:]
            case 2:
                content = content[:at] + rng.choice(JUNK) + content[end:]
            case 3:
                content = content[:end] + content[at:]
            case 4:
                content = content[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + content[end:]
            case 5:
                lines = content.split(b"\n")
                rng.shuffle(lines)
                content = b"\n".join(lines)
            case 6:
                numbers = [place for place, byte in enumerate(content) if byte in b"0123456789"]
                if numbers:
                    place = rng.choice(numbers)
                    content = content[:place] + rng.choice(JUNK) + content[place + 1 :]
            case _:
                content = content.replace(b":", rng.choice((b"", b"::", b":null,")), 1)
    return content


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Lets our own errors pass, and ends what does not come to an end."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{what} took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    try:
        yield
    except AimError:
        return
    except Exception as err:
        raise AssertionError(f"{what}: {type(err).__name__}: {err}") from err
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def texts() -> list[bytes]:
    own = [
        json.dumps([AMD_SMI_ENTRY]),
        json.dumps({"gpu_data": [AMD_SMI_ENTRY, {**AMD_SMI_ENTRY, "gpu": 1}]}),
        AMD_SMI_BOX,
        json.dumps(ROCM_SMI_OLD),
        ROCM_SMI_TEXT,
        ROCM_SMI_TABLES,
        ROCPROF,
        ROCPROF_OLD,
        LSPCI,
        LSPCI_MACHINE_READABLE,
        HWLOC,
        rccl(4),
        kube_nodes.listed(kube_nodes.node()),
        yaml.safe_dump(kube_nodes.node()),
        "\n".join(f"{key}={value}" for key, value in kube_nodes.MI300X.items()),
    ]
    corpus = Path(os.environ.get("AIM_ENGINE_CORPUS", "/nowhere"))
    kinds = ("amd_smi", "rocm_smi", "topology_xml", "rocprof_sysinfo", "kubernetes")
    paths = [path for kind in kinds for path in sorted(corpus.glob(f"hardware/{kind}/*/*"))]
    recorded = [path.read_bytes() for path in paths if path.name != "expected.json" and path.stat().st_size < 60_000]
    return [text.encode() for text in own] + recorded


def read(content: bytes) -> None:
    """As the command line reads a file whose format it does not know."""
    text = topology.unpacked(content, "x")
    found = nodes.read(text, name="x") if nodes.is_one(text) else detect.from_recorded(text, readings=True)
    for device in found.devices:
        assert device.memory_total_bytes != 0, "unknown memory is None, never 0"
        assert device.compute_units != 0


def test_damaged_recordings_are_answered() -> None:
    originals = texts()
    assert len(originals) >= 14
    rest = 1 - TREES_FRACTION - TABLES_FRACTION - ARCHIVES_FRACTION
    for number in range(round(COUNT * rest)):
        content = damaged(originals[number % len(originals)], random.Random(number))
        with answered(f"recording {number % len(originals)}, seed {number}"):
            read(content)


def test_damaged_tables_of_the_driver_are_answered() -> None:
    versions = [(1, minor) for minor in range(10)] + [(2, minor) for minor in range(5)] + [(3, 0)]
    for number in range(round(COUNT * TABLES_FRACTION)):
        rng = random.Random(number)
        head = rng.choice((80, 120, 168, 264, 288, 1664, 3360)).to_bytes(2, "little") + bytes(rng.choice(versions))
        with answered(f"table, seed {number}"):
            gpu_metrics.parse(damaged(head + rng.randbytes(rng.choice((0, 50, 300, 3400))), rng))


BUILDERS: tuple[Callable[[Path], Path], ...] = (
    machines.radeon,
    machines.strix_halo,
    machines.rx9070xt,
    lambda path: machines.well_kept(machines.mi300x(path, count=1, partition="CPX")),
    machines.radeon_under_old_driver,
)


def test_damaged_trees_are_answered(tmp_path: Path) -> None:
    for number in range(round(COUNT * TREES_FRACTION)):
        rng = random.Random(number)
        root = tmp_path / str(number % len(BUILDERS))
        if number < len(BUILDERS):
            BUILDERS[number](root)
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
        kept = {path: path.read_bytes() for path in rng.sample(files, k=min(len(files), rng.choice((1, 3, 12))))}
        for path, content in kept.items():
            if rng.random() < 0.2:
                path.unlink()
            else:
                path.write_bytes(damaged(content, rng))
        with answered(f"tree {number % len(BUILDERS)}, seed {number}"):
            detect.detect(root, run_tools=False, readings=True)
            if number % 4 == 0:
                examine.examine(host.read(root))
        for path, content in kept.items():
            path.write_bytes(content)


def test_damaged_archives_are_answered(tmp_path: Path) -> None:
    machines.radeon(tmp_path / "machine")
    archives = [
        Path(shutil.make_archive(str(tmp_path / form), form, tmp_path / "machine")).read_bytes()
        for form in ("tar", "gztar", "xztar")
    ]
    for number in range(round(COUNT * ARCHIVES_FRACTION)):
        path = tmp_path / "damaged"
        path.write_bytes(damaged(archives[number % len(archives)], random.Random(number)))
        with answered(f"archive, seed {number}"), recording.opened(path) as root:
            detect.detect(root, run_tools=False)
