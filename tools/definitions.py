"""Write data/definitions/<API group>.json: what operators' custom resources may hold, from the definitions that they publish.

    python tools/definitions.py [CLONES]

CLONES is a folder with clones of the repositories below as OWNER/NAME; without it they are fetched from GitHub, at the release alone.
A new release of an operator is its tag here. All of them are under Apache-2.0; descriptions, defaults, status and rules in CEL are
left out, and what kinds have in common is said once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from aim_engine.render import definitions, document

ROOT = Path(__file__).parents[1] / "src/aim_engine/data/definitions"
KSERVE = ("inferenceservices", "servingruntimes", "clusterservingruntimes", "inferencegraphs")
KEDA = ("scaledobjects", "scaledjobs", "triggerauthentications", "clustertriggerauthentications")
PROMETHEUS = ("podmonitors", "servicemonitors", "prometheusrules", "probes", "scrapeconfigs", "alertmanagerconfigs")
GATEWAY = ("gateways", "gatewayclasses", "httproutes", "grpcroutes", "referencegrants", "backendtlspolicies")
RAY = ("rayclusters", "rayservices", "rayjobs", "raycronjobs")
PROJECTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "kserve/kserve": (
        "KServe",
        "v0.20.0",
        (
            *(f"config/crd/full/serving.kserve.io_{name}.yaml" for name in KSERVE),
            "config/crd/full/llmisvc/serving.kserve.io_llminferenceservices.yaml",
            "config/crd/full/llmisvc/serving.kserve.io_llminferenceserviceconfigs.yaml",
        ),
    ),
    "kubernetes-sigs/lws": (
        "LeaderWorkerSet",
        "v0.10.0",
        (
            "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
            "config/crd/bases/disaggregatedset.x-k8s.io_disaggregatedsets.yaml",
        ),
    ),
    "kedacore/keda": ("KEDA", "v2.20.2", tuple(f"config/crd/bases/keda.sh_{name}.yaml" for name in KEDA)),
    "prometheus-operator/prometheus-operator": (
        "Prometheus operator",
        "v0.93.0",
        tuple(f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml" for name in PROMETHEUS),
    ),
    # The experimental channel: who installed the standard one is told the same by the API server.
    "kubernetes-sigs/gateway-api": (
        "Gateway API",
        "v1.6.1",
        tuple(f"config/crd/experimental/gateway.networking.k8s.io_{name}.yaml" for name in GATEWAY),
    ),
    "kubernetes-sigs/gateway-api-inference-extension": (
        "Gateway API inference extension",
        "v1.6.0",
        ("config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",),
    ),
    "ray-project/kuberay": (
        "KubeRay",
        "v1.7.0",
        tuple(f"ray-operator/config/crd/bases/ray.io_{name}.yaml" for name in RAY),
    ),
    "ROCm/gpu-operator": ("AMD GPU operator", "v1.5.1", ("config/crd/bases/amd.com_deviceconfigs.yaml",)),
}
"""Repository -> what it is called, the release, the definitions."""


def git(clone: Path, *words: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", "-C", clone, *words], capture_output=True, text=True, check=True).stdout


def clone(repository: str, tag: str, folder: Path) -> Path:
    """A clone that has the release."""
    words = ("--quiet", "--depth=1", "--filter=blob:none", "--no-checkout", f"--branch={tag}")
    place = folder / repository
    subprocess.run(["git", "clone", *words, f"https://github.com/{repository}", place], check=True)
    return place


def lines(name: str, entries: dict[str, Any]) -> str:
    """A member of the document with one line for each of its entries, so that a change shows where it is."""
    written = (f"  {json.dumps(key)}: {json.dumps(entry, separators=(',', ':'))}" for key, entry in entries.items())
    return f" {json.dumps(name)}: {{\n" + ",\n".join(written) + "\n }"


def main(clones: Path | None, folder: Path) -> None:
    """Write every group."""
    ROOT.mkdir(exist_ok=True)
    for repository, (project, tag, paths) in PROJECTS.items():
        place = clones / repository if clones is not None else clone(repository, tag, folder)
        kinds: dict[str, dict[str, Any]] = defaultdict(dict)
        origins: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            (definition,), _ = document.read(git(place, "show", f"{tag}:{path}"), path)
            group = definition["spec"]["group"]
            kinds[group][definition["spec"]["names"]["kind"]] = definitions.schemas(definition)
            origins[group].append(path)
        for group, found in kinds.items():
            short, parts = definitions.shared(found)
            origin = {
                "project": project,
                "release": tag.removeprefix("v"),
                "repository": repository,
                "commit": git(place, "rev-list", "-1", tag).strip(),
                "paths": origins[group],
                "licence": "Apache-2.0",
            }
            content = ",\n".join(
                (lines("origin", origin), lines("kinds", dict(sorted(short.items()))), lines("parts", parts))
            )
            (ROOT / f"{group}.json").write_text(f"{{\n{content}\n}}\n", encoding="utf-8")
            print(f"{group}: {len(found)} kinds of {project} {tag}, {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, Path(temporary))
