"""Written files handed to the programs that read them for real. `make consumers` needs the programs on PATH."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import hostile_values
import plans
from aim_engine.errors import InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import render
from aim_engine.render.watch import panels, rules
from aim_engine.workload import Slo

pytestmark = pytest.mark.consumers
COMPOSE = Path(__file__).parents[2] / ".tools" / "compose" / "docker-compose"


def written(folder: Path, target: str, case: str) -> list[Path]:
    image = "registry.local/vllm:v0.32.0" if case == "small-cpu" else None
    found: list[Artifact] = list(render(plans.ALL[case](), target, Options(name="demo", image=image)))
    for file in found:
        (folder / file.path).write_text(file.content, encoding="utf-8")
    return [folder / file.path for file in found if not file.secret]


def accepted(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("case", plans.ALL)
def test_systemd_finds_nothing_to_say_about_our_units(case: str, tmp_path: Path) -> None:
    assert accepted("systemd-analyze", "--man=no", "verify", *written(tmp_path, "systemd", case)) == ""


def test_systemd_reads_ten_thousand_hostile_values_unchanged(tmp_path: Path) -> None:
    """As it says itself when it loads the unit: variables as they are, the command in quotes, with `$$` still to be halved."""
    count = 0
    for words in hostile_values.batches():
        (service, _) = render(hostile_values.plan(words), "systemd", Options(name="demo"))
        (tmp_path / service.path).write_text(service.content, encoding="utf-8", newline="")
        done = subprocess.run(
            ["systemd-analyze", "--man=no", "verify", tmp_path / service.path],
            env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"}, capture_output=True, check=True,
        )  # fmt: skip
        loaded = (done.stdout + done.stderr).decode()
        (command,) = re.findall(r"^\t+Command Line: (.*)$", loaded.replace("\r", "\0"), re.MULTILINE)
        arguments = [word.replace("$$", "$") for word in quoted(command.replace("\0", "\r"))]
        assert hostile_values.contains(arguments, words, str)
        names = sorted(f"N{index}" for index in range(len(words)))
        given = {f"N{index}": value for index, value in enumerate(words)}
        assert "".join(f"\t\tEnvironment: {name}={given[name]}\n" for name in names) in loaded
        count += len(words)
    assert count > 9_900


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def quoted(line: str) -> list[str]:
    """The words of a line that systemd wrote: bare, or in double quotes with the escapes of C."""
    found = []
    for bare, inside in re.findall(r'([^" ]+)|"((?:[^"\\]|\\.)*)"', line, re.DOTALL):
        value = re.sub(
            r"\\([0-7]{3}|.)",
            lambda match: chr(int(match[1], 8)) if len(match[1]) == 3 else ESCAPES.get(match[1], match[1]),
            inside,
        )
        found.append(bare or value)
    return found


@pytest.mark.parametrize("case", plans.ALL)
@pytest.mark.parametrize("target", ["shell", "docker"])
def test_shellcheck_finds_nothing_to_say_about_our_scripts(target: str, case: str, tmp_path: Path) -> None:
    # SC2030, SC2031: replicas' variables are meant to stay in their subshells.
    assert accepted("shellcheck", "--exclude=SC2030,SC2031", *written(tmp_path, target, case)) == ""


def composed(file: Path) -> Any:
    """What Docker Compose makes of a file, the monitoring profile included. It doubles `$` again where it writes."""
    if not COMPOSE.exists():
        pytest.skip("no Docker Compose: make .tools/compose/docker-compose")
    done = accepted(COMPOSE, "--file", file, "--profile", "monitoring", "config", "--format", "json")
    return json.loads(done)


@pytest.mark.parametrize("case", [*plans.ALL, *plans.FURTHER])
def test_docker_compose_reads_our_file_as_it_was_meant(case: str, tmp_path: Path) -> None:
    plan = {**plans.ALL, **plans.FURTHER}[case]()
    try:
        files = render(plan, "compose", Options(name="demo", image="registry.local/vllm:v1", labels={"team": "nlp"}))
    except InvalidInput:
        if case != "large-16xmi300x":  # two hosts
            raise
        return
    for file in files:
        (tmp_path / file.path).write_text(file.content, encoding="utf-8")
    written, read = yaml.safe_load(files[0].content), composed(tmp_path / "compose.yaml")
    assert set(read["services"]) == set(written["services"])
    assert set(read["configs"]) == set(written["configs"])
    for name, service in read["services"].items():
        asked = written["services"][name]
        assert service.get("command") == asked.get("command")
        assert service.get("environment") == asked.get("environment")
        assert service.get("cap_drop", []) == asked.get("cap_drop", [])
        assert service.get("profiles") == asked.get("profiles")
        assert len(service.get("volumes", ())) == len(asked.get("volumes", ()))


def test_docker_compose_hands_ten_thousand_hostile_values_on_unchanged(tmp_path: Path) -> None:
    count = 0
    for words in hostile_values.batches():
        files = render(hostile_values.plan(words), "compose", Options(name="demo", image="local/cpu:v1"))
        for file in files:
            (tmp_path / file.path).write_text(file.content, encoding="utf-8")
        service = composed(tmp_path / "compose.yaml")["services"]["demo"]
        assert hostile_values.contains(service["command"], words, hostile_values.undoubled)
        env = {name: hostile_values.undoubled(value) for name, value in service["environment"].items()}
        assert [env[f"N{index}"] for index in range(len(words))] == words
        count += len(words)
    assert count > 9_900


def limited() -> Plan:
    """A plan that was asked to keep all three limits."""
    made = plans.replicas()
    slo = Slo(ttft_ms=500, tpot_ms=50, e2e_ms=9000)
    return msgspec.structs.replace(made, inputs=msgspec.structs.replace(made.inputs, slo=slo))


def test_prometheus_accepts_the_rules_and_every_query_of_the_dashboard(tmp_path: Path) -> None:
    found = rules(limited(), Options(name="demo"))
    queries = [query for _, _, entries in panels(limited(), Options(name="demo")) for _, query in entries]
    recorded = [{"record": f"panel:{index}", "expr": query} for index, query in enumerate(queries)]
    found["groups"].append({"name": "dashboard", "rules": recorded})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found))
    written = len(recorded) + len(found["groups"][0]["rules"])
    assert f"{written} rules found" in accepted("promtool", "check", "rules", tmp_path / "rules.yaml")


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(limited(), Options(name="demo"))))
    own, cards = 'namespace="default",app_kubernetes_io_instance="demo"', 'namespace="default",pod="demo-1",gpu_id="3"'

    def engine(**values: str) -> list[dict[str, str]]:
        """Series of the engine by name; `error` and `stop` are requests by how they ended."""
        ends = {"error", "stop"}
        found = [{"series": f"vllm:{key}{{{own}}}", "values": each} for key, each in values.items() if key not in ends]
        reasons = [(key, each) for key, each in values.items() if key in ends]
        name = "vllm:request_success_total"
        return found + [{"series": f'{name}{{{own},finished_reason="{key}"}}', "values": each} for key, each in reasons]

    up = [{"series": f'up{{{own},pod="demo-{index}"}}', "values": "1x120"} for index in range(2)]
    seen = [
        {"series": f"gpu_package_power{{{cards}}}", "values": "400x120"},
        {"series": f"gpu_gfx_activity{{{cards}}}", "values": "90x120"},
    ]
    healthy = engine(
        num_requests_waiting="0x120",
        num_requests_running="8x120",
        generation_tokens_total="0+500x120",
        kv_cache_usage_perc="0.99x120",
        num_preemptions_total="7x120",
        time_to_first_token_seconds_sum="0+3x120",
        time_to_first_token_seconds_count="0+10x120",
        stop="0+100x120",
        error="0x120",
    )
    ill = engine(
        num_requests_waiting="0+9x120",
        num_requests_running="8x120",
        generation_tokens_total="0x120",
        kv_cache_usage_perc="0.99x120",
        num_preemptions_total="0+7x120",
        time_to_first_token_seconds_sum="0+9x120",
        time_to_first_token_seconds_count="0+10x120",
        stop="0+100x120",
        error="0+3x120",
    )
    fires = {
        "ReplicaMissing", "QueueGrowing", "KvSaturated", "RequestErrors", "TimeToFirstTokenMissed", "GpuEccUncorrectable",
        "GpuStuck",
    }  # fmt: skip
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = []
    damaged = {"series": f"gpu_ecc_uncorrect_total{{{cards}}}", "values": "0x100 1x20"}
    for series, told in (([*up, *seen, *healthy], set()), ([up[0], *seen, damaged, *ill], fires)):
        samples = [{"labels": f'{{alertname="AimEngine{name}"}}', "value": 1} for name in sorted(told)]
        asked = {"expr": firing, "eval_time": "110m", "exp_samples": samples}
        tests.append({"interval": "1m", "input_series": series, "promql_expr_test": [asked]})
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    assert "SUCCESS" in accepted("promtool", "test", "rules", tmp_path / "test.yaml")
