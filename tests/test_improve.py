"""Closing the loop with real processes: a change that helps stays, one that does not is taken back, and what was measured is learned."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aim_engine import improve, workflow
from aim_engine import settings as all_settings
from aim_engine.advise.diagnose import Change
from aim_engine.deploy.environment import Environment, Marker
from aim_engine.deploy.local import LocalRunner
from aim_engine.deploy.records import Store
from aim_engine.deploy.runner import Deployment
from aim_engine.errors import EngineFailed, InvalidInput
from aim_engine.monitor import figures, scrape
from aim_engine.monitor.ledger import Ledger
from aim_engine.monitor.span import Gauge, Histogram, Span
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Options
from aim_engine.settings import Settings
from aim_engine.workflow import Request
from aim_engine.workload import Slo, Workload
from diagnoses import advice

ENGINE = Path(__file__).parent / "slot_engine.py"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return all_settings.load({"offline": True, "state_dir": str(tmp_path / "state")})


@pytest.fixture
def plan(settings: Settings) -> Plan:
    return workflow.choose(
        Request(model=MODEL, gpus="cpu", workload=Workload(input_tokens=128, output_tokens=32, concurrency=4)), settings
    )


@pytest.fixture
def running(settings: Settings, plan: Plan, tmp_path: Path) -> Iterator[tuple[LocalRunner, Store, Deployment]]:
    store = Store(settings.state_dir)
    environment = Environment(
        name="slots",
        engine="vllm",
        version="0.32.0",
        device="cpu",
        root=tmp_path,
        python=Path(sys.executable),
        argv0=(sys.executable, str(ENGINE)),
        env={},
        marker=msgspec.convert(dict.fromkeys(Marker.__struct_fields__, "0"), Marker, strict=False),
        current=True,
    )
    runner = LocalRunner(store, environment, ready_timeout_s=30.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    deployment = runner.start(plan, Options(name="demo", port=port))
    yield runner, store, deployment
    for name in store.names():
        runner.stop(store.load(name))


def slots(deployment: Deployment) -> str:
    return deployment.command[deployment.command.index("--max-num-seqs") + 1]


def test_a_change_that_helps_stays(
    running: tuple[LocalRunner, Store, Deployment], plan: Plan, settings: Settings
) -> None:
    runner, store, deployment = running
    assert plan.chosen is not None
    more = plan.chosen.recipe.max_num_seqs * 4
    said: list[str] = []
    outcome = improve.apply(
        advice(Change(say="run more requests at once", recipe={"max_num_seqs": more})),
        deployment,
        plan,
        settings,
        runner,
        load=improve.drive(48, 12),
        tell=said.append,
    )
    assert outcome.kept, outcome.why
    assert outcome.before.figure is not None
    assert outcome.after is not None
    assert outcome.after.figure is not None
    assert outcome.after.figure < 0.5 * outcome.before.figure
    assert f"+  --max-num-seqs {more}" in outcome.diff or str(more) in outcome.diff
    now = store.load("demo")
    assert slots(now) == str(more)
    assert store.plan("demo").chosen is not None
    assert scrape.fetch(now.endpoint).samples


def test_a_change_that_does_not_help_is_taken_back(
    running: tuple[LocalRunner, Store, Deployment], plan: Plan, settings: Settings
) -> None:
    runner, store, deployment = running
    outcome = improve.apply(
        advice(Change(say="fewer at once", recipe={"max_num_seqs": 1})),
        deployment,
        plan,
        settings,
        runner,
        load=improve.drive(24, 6),
        tell=lambda _: None,
    )
    assert not outcome.kept
    assert "queue_ms went from" in outcome.why
    assert slots(store.load("demo")) == slots(deployment)
    assert runner.status(store.load("demo")).state == "ready"


def test_a_change_that_does_not_start_is_taken_back_and_its_error_told(
    running: tuple[LocalRunner, Store, Deployment], plan: Plan, settings: Settings
) -> None:
    runner, store, deployment = running
    with pytest.raises(EngineFailed):
        improve.apply(
            advice(Change(say="break it", env={"SLOT_ENGINE_DIES": "1"})),
            deployment,
            plan,
            settings,
            runner,
            load=improve.drive(20, 4),
            tell=lambda _: None,
        )
    assert runner.status(store.load("demo")).state == "ready"
    kept = store.plan("demo").chosen
    assert kept is not None
    assert "SLOT_ENGINE_DIES" not in kept.recipe.env


def test_an_argument_that_the_release_does_not_have_is_refused(plan: Plan, settings: Settings) -> None:
    with pytest.raises(InvalidInput, match="has no argument --no-such"):
        improve.replanned(plan, Change(say="x", args=("--no-such",)), settings)


def test_what_the_engine_could_not_run_is_refused_before_anything_stops(plan: Plan, settings: Settings) -> None:
    with pytest.raises(InvalidInput, match="the change cannot be made"):
        improve.replanned(plan, Change(say="three ways", recipe={"tp": 7}), settings)
    with pytest.raises(InvalidInput, match="the change cannot be made"):
        improve.replanned(plan, Change(say="endless", recipe={"max_model_len": 10**9}), settings)


def measured(requests: float, figure: float | None, *, tpot_ms: float = 20.0, errors: float = 0.0) -> improve.Measured:
    return improve.Measured(
        requests=requests, ttft_ms=100.0, tpot_ms=tpot_ms, output_tok_s=100.0, figure=figure, errors=errors
    )


@pytest.mark.parametrize(
    ("before", "after", "keep", "why"),
    [
        (measured(50, 100.0), measured(50, 40.0), True, "from 100 to 40"),
        (measured(50, 100.0), measured(50, 99.0), False, "it should be so that it falls"),
        (measured(50, 100.0), measured(5, 40.0), False, "too few"),
        (measured(50, 100.0), measured(50, 40.0, errors=0.1), False, "10.0% of the requests fail"),
        (measured(50, None), measured(50, 40.0), False, "was not told"),
    ],
)
def test_what_decides(before: improve.Measured, after: improve.Measured, keep: bool, why: str) -> None:
    found = improve.judge(advice(Change(say="x")), before, after)
    assert found[0] is keep
    assert why in found[1]


def test_another_latency_may_not_pay_for_it_unless_the_advice_says_so() -> None:
    other = msgspec.structs.replace(advice(Change(say="x")), id="A1")
    assert not improve.judge(other, measured(50, 100.0), measured(50, 40.0, tpot_ms=40.0))[0]
    assert improve.judge(advice(Change(say="x")), measured(50, 100.0), measured(50, 40.0, tpot_ms=40.0))[0]


def window(tpot_ms: float, ttft_ms: float) -> figures.KpiReport:
    """A window of 500 requests of 1,000 tokens in and 200 out, 32 at once."""
    edges = (0.001, 0.1, 10.0, 10_000.0)

    def all_at(value: float, count: float) -> Histogram:
        return Histogram(
            edges,
            tuple(
                count if value <= edge and (n == 0 or value > edges[n - 1]) else 0.0
                for n, edge in enumerate((*edges, 1e9))
            ),
            value * count,
        )

    return figures.of(
        Span(
            300.0,
            {"requests": 500.0, "output_tokens": 100_000.0, "input_tokens": 500_000.0},
            {"running": Gauge(32.0, 32.0, 32.0, 32.0, 1)},
            {
                "ttft": all_at(ttft_ms / 1000, 500.0),
                "tpot": all_at(tpot_ms / 1000, 500.0),
                "prompt_length": all_at(1000.0, 500.0),
                "output_length": all_at(200.0, 500.0),
            },
            60,
        ),
        endpoint="demo",
    )


def test_a_measured_window_corrects_the_next_plan(settings: Settings, tmp_path: Path) -> None:
    request = Request(
        model="Qwen/Qwen3-32B", gpus="1xMI300X", workload=Workload(input_tokens=1000, output_tokens=200, concurrency=32)
    )
    before = workflow.choose(request, settings)
    assert before.chosen is not None
    predicted = before.chosen.estimate.tpot_ms.value
    ledger = Ledger(tmp_path / "ledger.db")
    said = improve.learn(before, window(predicted * 1.4, 300.0), settings, ledger, now_s=1.0)
    assert said == "1 measurements correct the next predictions"
    after = workflow.choose(request, settings)
    assert after.chosen is not None
    moved = after.chosen.estimate.tpot_ms.value / predicted
    assert 1.15 < moved < 1.5  # the first token came sooner than predicted too, which leaves more requests decoding
    again = improve.learn(before, window(predicted * 1.4, 300.0), settings, ledger, now_s=2.0)
    ledger.close()
    assert again == "1 measurements correct the next predictions", "the same load replaces what was measured under it"


def test_measurements_that_the_user_gave_stay(settings: Settings, tmp_path: Path) -> None:
    table = (
        "row_id,model,gpu,tp,input_len,output_len,concurrency,tpot_ms_mean\n"
        "mine,Qwen/Qwen3-32B,MI300X,1,1000,200,32,33.0\n"
    )
    workflow.keep_measured(workflow.calibrate(table, "table", None, settings).local, settings)
    plan = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="1xMI300X", slo=Slo()), settings)
    ledger = Ledger(tmp_path / "ledger.db")
    improve.learn(plan, window(30.0, 300.0), settings, ledger, now_s=1.0)
    ledger.close()
    kept = msgspec.json.decode(workflow.measured(settings).read_bytes())
    assert {point["row_id"].partition(":")[0] for point in kept["points"]} == {"mine", "monitor"}


def test_a_window_that_says_too_little_teaches_nothing(settings: Settings, tmp_path: Path) -> None:
    plan = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="1xMI300X"), settings)
    ledger = Ledger(tmp_path / "ledger.db")
    few = figures.of(Span(10.0, {"requests": 3.0}), endpoint="")
    assert (
        improve.learn(plan, few, settings, ledger, now_s=1.0)
        == "nothing learned: 3 requests are too few; 20 are needed"
    )
    assert not workflow.measured(settings).exists()
    ledger.close()


def test_what_was_measured_on_the_processor_corrects_the_next_plan_for_it(settings: Settings, tmp_path: Path) -> None:
    load = Workload(input_tokens=1000, output_tokens=200, concurrency=4)
    request = Request(model=MODEL, gpus="cpu", workload=load)
    plan = workflow.choose(request, settings)
    # What a busy machine copies differs from plan to plan; the figures below are for one that copies 20 GB/s.
    gpu = msgspec.structs.replace(plan.inputs.gpu, bandwidth_bytes_s=20_000_000_000)
    plan = msgspec.structs.replace(plan, inputs=msgspec.structs.replace(plan.inputs, gpu=gpu))
    before = workflow.expect(plan, load, settings)
    assert before is not None
    assert "corrected" not in before.tpot_ms.source
    ledger = Ledger(tmp_path / "ledger.db")
    seen = window(before.tpot_ms.value * 1.6, before.ttft_ms.value)
    readings = {**seen.readings, "batch": msgspec.structs.replace(seen.readings["batch"], value=4.0)}
    said = improve.learn(plan, msgspec.structs.replace(seen, readings=readings), settings, ledger, now_s=1.0)
    (kept,) = ledger.measurements()
    ledger.close()
    assert said == "1 measurements correct the next predictions"
    assert kept.device == plan.inputs.gpu
    after = workflow.expect(plan, load, settings)
    assert after is not None
    assert 1.2 < after.tpot_ms.value / before.tpot_ms.value < 1.8
    # A new plan measures the machine's bandwidth again, so only what it says of its source is the same.
    again = workflow.choose(request, settings).chosen
    assert again is not None
    assert "corrected by 1 measurements of your own" in again.estimate.tpot_ms.source
    card = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="1xMI300X"), settings).chosen
    assert card is not None
    assert "corrected" not in card.estimate.tpot_ms.source, "a processor says nothing of cards"
