"""Closing the loop in a cluster: the objects are changed in place, each pod is measured, and what does not help is taken back."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import kube_api
import kube_engines
import plans
from aim_engine import improve
from aim_engine import settings as all_settings
from aim_engine.advise.diagnose import Change
from aim_engine.cli.main import run
from aim_engine.deploy import chat, kubernetes, reach
from aim_engine.deploy.kubernetes import KubernetesRunner
from aim_engine.deploy.pods import Pods
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.errors import EngineFailed, Unreachable
from aim_engine.monitor import scrape, totals
from aim_engine.render.artifact import Options
from aim_engine.settings import Settings
from diagnoses import advice

NAME = "qwen3-32b"


class Place:
    """A cluster whose pods are processes, with one deployment in it."""

    def __init__(self, cluster: kube_api.Cluster, address: str, settings: Settings, replicas: int) -> None:
        self.cluster, self.address, self.settings = cluster, address, settings
        self.kubelet: kube_engines.Kubelet = cluster.kubelet
        self.store = Store(settings.state_dir)
        self.runner = KubernetesRunner(self.store, ready_timeout_s=20.0)
        self.plan = plans.replicas() if replicas > 1 else plans.dense_on_all()
        self.deployment: Deployment = self.runner.start(self.plan, Options(name=NAME))
        self.service = f"{address}/api/v1/namespaces/default/services/{NAME}:http/proxy"

    def slots(self) -> str:
        """What the Deployment in the cluster asks for."""
        (found,) = [each for (kind, _, _), each in self.cluster.objects.items() if kind == "deployments"]
        container = found["spec"]["template"]["spec"]["containers"][0]
        words = [*container.get("command", ()), *container.get("args", ())]
        return str(words[words.index("--max-num-seqs") + 1])

    def apply(self, change: Change, *, requests: int = 48, concurrency: int = 12) -> tuple[improve.Outcome, list[str]]:
        said: list[str] = []
        found = improve.apply(
            advice(change),
            self.deployment,
            self.plan,
            self.settings,
            self.runner,
            load=improve.drive(requests, concurrency, endpoint=self.service),
            tell=said.append,
        )
        return found, said


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Place]:
    monkeypatch.setattr(kubernetes, "_POLL_S", 0.05)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    cluster = kube_api.Cluster()
    cluster.kubelet = kube_engines.Kubelet()
    settings = all_settings.load({"offline": True, "state_dir": str(tmp_path / "state")})
    try:
        with kube_api.serving(cluster, tmp_path / "kubeconfig") as address:
            yield Place(cluster, address, settings, getattr(request, "param", 1))
    finally:
        cluster.kubelet.close()


def fewer(place: Place, slots: int) -> None:
    """Deploy with so few slots that requests wait."""
    assert place.plan.chosen is not None
    recipe = msgspec.structs.replace(place.plan.chosen.recipe, max_num_seqs=slots)
    place.plan = msgspec.structs.replace(place.plan, chosen=msgspec.structs.replace(place.plan.chosen, recipe=recipe))
    place.deployment = place.runner.start(place.plan, Options(name=NAME))


def test_a_change_that_helps_is_rolled_out_in_place_and_stays(place: Place) -> None:
    fewer(place, 2)
    claims = [name for name in place.cluster.names() if name.startswith("persistentvolumeclaims")]
    rolled = place.kubelet.rolled
    outcome, said = place.apply(Change(say="run more requests at once", recipe={"max_num_seqs": 16}))
    assert outcome.kept, outcome.why
    assert outcome.after is not None
    assert outcome.before.requests == outcome.after.requests == 48
    assert outcome.before.figure is not None
    assert outcome.after.figure is not None
    assert outcome.after.figure < 0.5 * outcome.before.figure
    assert place.slots() == "16"
    assert place.kubelet.rolled == rolled + 1
    assert "updated Deployment qwen3-32b" in said
    assert not any(line.startswith("deleting") for line in said), "nothing is deleted on the way"
    assert [name for name in place.cluster.names() if name.startswith("persistentvolumeclaims")] == claims
    kept = place.store.plan(NAME).chosen
    assert kept is not None
    assert kept.recipe.max_num_seqs == 16
    assert place.store.load(NAME).state == "applied"


def test_a_change_that_does_not_help_is_rolled_back(place: Place) -> None:
    fewer(place, 8)
    outcome, _ = place.apply(Change(say="fewer at once", recipe={"max_num_seqs": 1}), requests=24, concurrency=6)
    assert not outcome.kept
    assert "queue_ms went from" in outcome.why
    assert place.slots() == "8"
    assert place.kubelet.ready(NAME) == 1


def test_a_change_whose_pods_crash_is_rolled_back_and_its_error_told(place: Place) -> None:
    fewer(place, 4)
    with pytest.raises(EngineFailed, match="the rollout of qwen3-32b failed"):
        place.apply(Change(say="break it", env={"SLOT_ENGINE_DIES": "1"}), requests=24)
    kube_engines.wait_ready(place.kubelet, NAME, 1)
    kept = place.store.plan(NAME).chosen
    assert kept is not None
    assert "SLOT_ENGINE_DIES" not in kept.recipe.env
    assert place.runner.status(place.store.load(NAME)).state == "ready"


def test_nothing_is_changed_when_the_pods_cannot_be_measured(place: Place) -> None:
    place.cluster.refuse["proxy"] = (403, "pods/proxy is forbidden")
    rolled = place.kubelet.rolled
    with pytest.raises(Unreachable) as caught:
        place.apply(Change(say="x", recipe={"max_num_seqs": 16}))
    assert "403" in str(caught.value.why)
    assert caught.value.hint == "kubectl auth can-i get pods/proxy --namespace default"
    assert place.kubelet.rolled == rolled


@pytest.mark.parametrize("place", [2], indirect=True)
def test_the_page_of_each_replica_is_had_through_the_api_server(place: Place) -> None:
    kube_engines.wait_ready(place.kubelet, NAME, 2)
    pods = Pods("default", NAME)
    improve.drive(7, 1, endpoint=place.service)("", "m")
    found = {pod: page for pod, page in pods.pages().items() if isinstance(page, str)}
    pods.close()
    assert len(found) == 2
    counted = [totals.read(scrape.parse(page)).counters["requests"] for page in found.values()]
    assert sorted(counted) == [0.0, 7.0], "a Service may lead to one replica; the sum is told all the same"


def test_the_command_brings_a_load_into_the_cluster(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From looking to the change: history, advice, rollout, and the answer as one document."""
    fewer(place, 1)
    assert run(["monitor", NAME, "--once", "--no-cards"]) == 0
    improve.drive(60, 12, endpoint=place.service)("", "m")
    assert run(["monitor", NAME, "--once", "--no-cards"]) == 0
    capsys.readouterr()
    assert run(["report", NAME, "--since", "5m", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["figures"]["readings"]["requests_s"]["count"] == 60
    assert run(["suggest", NAME, "--since", "5m", "--no-doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    applicable = [each["id"] for each in told["found"] if each["change"] and each["change"]["recipe"]]
    assert "P1" in applicable
    words = [
        "suggest",
        NAME,
        "--since",
        "5m",
        "--no-doctor",
        "--apply",
        "P1",
        "--load",
        "48",
        "--concurrency",
        "12",
        "--yes",
    ]
    with monkeypatch.context() as bare:
        bare.setenv("PATH", "")
        assert run(words) == 3
        assert "kubectl is not installed" in capsys.readouterr().err
    assert place.slots() == "1"
    if shutil.which("kubectl") is None:
        words += ["--endpoint", place.service]
    assert run([*words, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["kept"] is True
    assert outcome["after"]["requests"] == 48
    assert place.slots() == "2"


HOLDS = """
import sys, time
from aim_engine.deploy import reach
with reach.service("default", sys.argv[1]) as address:
    print(address, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_way_into_the_cluster_leads_to_the_service_alone_and_is_gone_after_an_interruption(
    place: Place, number: signal.Signals
) -> None:
    kube_engines.wait_ready(place.kubelet, NAME, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, NAME], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        try:
            assert chat.models(address) == ("serve",)
            base = address.partition("/api/")[0]
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{base}/api/v1/namespaces/default/pods", timeout=5)
        finally:
            holder.send_signal(number)
        assert holder.wait(20) != 0
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_a_kubectl_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text("no: [kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(Unreachable) as caught, reach.service("default", NAME):
        pass
    assert "kubectl proxy: " in str(caught.value.why)
