"""A scanner of manifests finds in ours what the checklist of the documentation says, and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

import plans
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

pytestmark = pytest.mark.consumers
ROOT = Path(__file__).parents[2]
SCANNER = ROOT / ".tools" / "checkov" / "bin" / "checkov"
PAGE = (ROOT / "docs" / "reference" / "checklist.md").read_text(encoding="utf-8")
PLAIN = Options(name="demo", image="registry.local/vllm:v0.32.0")
HARDENED = msgspec.structs.replace(
    PLAIN,
    namespace="serving",
    image=f"registry.local/vllm@sha256:{'a' * 64}",
    create_namespace=True,
    render_gid=109,
    offline=True,
)


def failed(folder: Path, case: str, target: str, options: Options) -> set[str]:
    """The checks that the scanner says the objects of a target fail."""
    if not SCANNER.exists():
        pytest.skip("no scanner: make .tools/checkov")
    for file in render(plans.ALL[case](), target, options):
        if "/" not in file.path:
            (folder / file.path).write_text(file.content, encoding="utf-8")
    words = ("--directory", folder, "--framework", "kubernetes", "--compact", "--quiet", "--output", "json")
    done = subprocess.run(
        [SCANNER, *words, "--skip-download"],
        env={**os.environ, "BC_SKIP_MAPPING": "TRUE"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["passed"] > 50
    assert report["summary"]["parsing_errors"] == 0
    return {check["check_id"] for check in report["results"]["failed_checks"]}


def test_what_the_checklist_says_is_not_set_is_what_a_scanner_misses(tmp_path: Path) -> None:
    found: set[str] = set()
    for target in ("kubernetes", "job"):
        (tmp_path / target).mkdir()
        found |= failed(tmp_path / target, "mixture-2x2xmi355x", target, PLAIN)
    rows = PAGE.partition("## Not set")[2].splitlines()
    told = {identity for row in rows for identity in re.findall(r"CKV2?_K8S_\d+", row)}
    assert found == told


@pytest.mark.parametrize("case", ["qwen3-32b-8xmi300x", "mixture-2x2xmi355x", "small-cpu"])
@pytest.mark.parametrize("per_replica", [False, True])
def test_a_hardened_deployment_lacks_only_the_limit_of_cores(case: str, per_replica: bool, tmp_path: Path) -> None:
    options = msgspec.structs.replace(HARDENED, cache_per_replica=per_replica, offline=not per_replica)
    token = {"CKV_K8S_35"} if per_replica else set()  # where each replica fetches for itself
    assert failed(tmp_path, case, "kubernetes", options) == {"CKV_K8S_11", *token}
