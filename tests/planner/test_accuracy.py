"""Predictions against tables: the arithmetic of errors, order and regret, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.cli import main
from aim_engine.planner import accuracy
from aim_engine.planner.accuracy import Accuracy

HEADER = "row_id,model,gpu,gpu_count,tp,engine,precision,input_len,output_len,concurrency_or_batch,metric_kind,tpot_ms_mean,output_tok_s"
SETTINGS = all_settings.load({"offline": True})


def predicted(model: str, tp: int, load: int) -> dict[str, float]:
    line = f"x,{model},MI300X,{tp},{tp},vllm,bf16,1024,512,{load},serving,,"
    return workflow.answer_table(f"{HEADER}\n{line}\n", "t", None, SETTINGS)[0]


def table(factor: float, *, model: str = "Qwen/Qwen3-32B", loads: tuple[int, ...] = (4, 16, 64)) -> str:
    """What would be measured if every time were `factor` of its prediction."""
    lines = [HEADER]
    for tp in (1, 4):
        for load in loads:
            ours = predicted(model, tp, load)
            tpot_ms, rate = ours["tpot_ms_mean"] * factor, ours["output_tok_s"] / factor
            lines.append(f"{tp}-{load},{model},MI300X,{tp},{tp},vllm,bf16,1024,512,{load},serving,{tpot_ms},{rate}")
    return "\n".join(lines) + "\n"


def scored(content: str) -> Accuracy:
    return workflow.score_table(content, "t", None, SETTINGS)


def test_measurements_equal_to_predictions_have_no_error_and_no_regret() -> None:
    found = scored(table(1.0))
    assert found.answered == found.rows == 6
    assert found.metrics["tpot_ms"].mean == pytest.approx(0, abs=1e-3)
    assert found.metrics["tpot_ms"].covered_fraction == 1
    assert found.ranking["number of devices"].right_fraction == 1
    assert found.regret is not None
    assert found.regret.mean == 0


def test_a_bias_is_told_with_its_sign() -> None:
    slow = scored(table(1.25)).metrics["tpot_ms"]
    assert slow.bias == pytest.approx(-0.2, abs=1e-3)
    assert slow.median == pytest.approx(0.2, abs=1e-3)


def test_regret_is_what_the_choice_loses_against_the_best_measured() -> None:
    row = {"gpu_count": "1", "model": "m", "concurrency_or_batch": "8"}
    speeds: accuracy.Speeds = [(row, 100.0, 90.0), (row | {"gpu_count": "2"}, 80.0, 95.0)]
    ranking, regret = accuracy.choices(speeds)
    assert ranking["number of devices"].right_fraction == 0
    assert regret is not None
    assert regret.mean == pytest.approx(0.2)


def test_rows_that_cannot_be_compared_are_counted_by_reason() -> None:
    found = scored(
        f"{HEADER}\n1,nobody/knows,MI300X,1,1,vllm,bf16,8,8,1,serving,5,\n2,Qwen/Qwen3-32B,NOCARD,1,1,vllm,bf16,8,8,1,serving,5,\n"
    )
    assert found.answered == 0
    assert sum(found.unanswered.values()) == 2


def test_a_handful_of_measurements_corrects_predictions_and_bad_rows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path / "state"))
    content = table(1.4)
    bad = "bad,Qwen/Qwen3-32B,MI300X,1,1,vllm,bf16,1024,512,16,serving,99999,\nodd,no/such,MI300X,1,1,vllm,bf16,1,1,1,serving,1,\n"
    path = tmp_path / "measured.csv"
    path.write_text(content + bad)
    assert main.run(["calibrate", str(path), "--dry-run", "--json"]) == 0
    assert not (tmp_path / "state" / "measured.json").exists()
    shown = json.loads(capsys.readouterr().out)
    assert shown["used"] == 6
    assert {one["row_id"] for one in shown["dropped"]} == {"bad", "odd"}
    assert shown["tpot"]["before"] == pytest.approx(1 - 1 / 1.4, abs=1e-3)
    assert shown["tpot"]["after"] < 0.05
    assert main.run(["calibrate", str(path)]) == 0
    capsys.readouterr()
    assert main.run(["accuracy", str(path), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["metrics"]["tpot_ms"]["median"] < 0.03


def test_a_broken_file_of_own_measurements_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIM_ENGINE_STATE_DIR", str(tmp_path))
    (tmp_path / "measured.json").write_text("{")
    assert main.run(["plan", "Qwen/Qwen3-32B", "--gpus", "1xMI300X"]) == 3
    assert "measured.json" in capsys.readouterr().err
