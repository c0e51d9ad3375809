"""From last lines and exit codes to causes: recorded failures, known messages, and what must never be claimed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aim_engine import facts
from aim_engine.deploy import diagnose

RECORDED = Path(__file__).parent.parent / "recorded" / "failures" / "vllm-0.32.0"
RULES = diagnose.rules("vllm")
EXPECTED = {
    "bad_dtype": ("argument-value", "--dtype"),
    "corrupt_config": ("corrupt-config", "JSON"),
    "killed_EngineCore": ("worker-died", "killed"),
    "killed_Worker": ("worker-died", "killed"),
    "kv_over_ram": ("host-kv-memory", "6.42 of 8.09 GiB"),
    "max_model_len": ("model-len-config", "made for 8192 tokens of context, 16384 were asked"),
    "model_missing": ("no-such-folder", "/srv/models/no_such_model"),
    "model_missing_relative": ("hub-unreachable", "hub cannot be reached"),
    "no_tokenizer": ("tokenizer", "no tokenizer"),
    "no_weights": ("missing-file", "lacks a file"),
    "port_in_use": ("port-in-use", "another process listens"),
    "sigterm_early": ("terminated", "asked the process to end"),
    "tp2": ("heads", "2 does not divide 9 attention heads"),
    "truncated_weights": ("corrupt-weights", "damaged"),
    "unknown_flag": ("arguments", "--no-such-flag"),
}


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.log")), ids=lambda path: path.stem)
def test_a_recorded_failure_is_understood(path: Path) -> None:
    lines = path.read_text().splitlines()
    code = re.match(r"exit (-?\d+)", lines[0])
    assert code is not None
    found = diagnose.diagnose(lines[1:], int(code.group(1)), RULES)
    rule, words = EXPECTED[path.stem]
    assert found.id == rule
    assert words in found.cause
    assert found.remedy
    assert "{" not in found.cause + found.remedy


MESSAGES = [
    (
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
        "device-oom",
    ),
    ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", "device-oom"),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "no-kv-memory"),
    (
        "ValueError: Free memory on device cuda:0 (12.50/191.98 GiB) on startup is less than desired GPU memory utilization (0.9, 172.79 GiB).",
        "memory-taken",
    ),
    ("RuntimeError: Failed to infer device type, please set the environment variable", "no-device"),
    ("RuntimeError: No HIP GPUs are available", "no-device"),
    ("ValueError: Inconsistent GPU visibility env vars: HIP_VISIBLE_DEVICES='0' vs", "visibility-conflict"),
    ("huggingface_hub.errors.GatedRepoError: 401 Client Error.", "gated"),
    ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/x", "unauthorised"),
    ("ValueError: Model architectures ['Foo4ForCausalLM'] are not supported for now.", "architecture"),
    (
        "contains custom code which must be executed to correctly load the model. `trust_remote_code=True`",
        "remote-code",
    ),
    ("OSError: [Errno 28] No space left on device", "disk-full"),
    ("ERROR: Unexpected bus error encountered in worker. Bus error (core dumped)", "shm"),
    ("RuntimeError: HIP error: invalid device function", "kernel-arch"),
    ("ModuleNotFoundError: No module named 'torchvision'", "missing-module"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/models/x/config.json'", "missing-file"),
]


@pytest.mark.parametrize(("message", "rule"), MESSAGES)
def test_a_known_message_is_understood(message: str, rule: str) -> None:
    log = [
        "(Worker pid=9) INFO 11-23 14:00:00 [x.py:1] loading",
        f"(Worker pid=9) ERROR 11-23 14:00:01 [x.py:2] {message}",
    ]
    log.append("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    found = diagnose.diagnose(log, 1, RULES)
    assert found.id == rule
    assert found.evidence.startswith(message[:40])


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        (-9, "host-oom"),
        (137, "host-oom"),
        (-11, "segfault"),
        (-4, "illegal-instruction"),
        (143, "terminated"),
        (-7, "shm"),
    ],
)
def test_a_silent_end_is_read_from_its_exit_code(code: int, rule: str) -> None:
    assert diagnose.diagnose(["INFO 11-23 14:00:00 [x.py:1] all is well"], code, RULES).id == rule


def test_what_the_log_says_counts_before_the_exit_code() -> None:
    assert diagnose.diagnose(["torch.OutOfMemoryError: HIP out of memory."], -9, RULES).id == "device-oom"


def test_an_unknown_failure_quotes_the_last_exception_and_claims_no_more() -> None:
    log = [
        "Traceback (most recent call last):",
        "  File x",
        "(EngineCore pid=1) ERROR 11-23 14:00:01 [core.py:1510] foo.BarError: no frobs",
        "bye",
    ]
    found = diagnose.diagnose(log, 1, RULES)
    assert (found.id, found.cause) == ("unknown", "foo.BarError: no frobs")


def test_an_empty_log_says_that_nothing_is_known() -> None:
    assert "names no error" in diagnose.diagnose([], None, RULES).cause


@pytest.mark.parametrize("path", sorted((facts.BUNDLED / "engines" / "vllm").glob("failures.yaml")), ids=str)
def test_every_rule_has_a_trigger_and_only_names_groups_it_has(path: Path) -> None:
    seen = set()
    for rule in diagnose.rules(path.parent.name):
        assert rule.id not in seen
        seen.add(rule.id)
        assert rule.pattern or rule.returncodes
        groups = set(re.compile(rule.pattern).groupindex) if rule.pattern else set()
        assert set(re.findall(r"\{(\w+)\}", rule.cause + rule.remedy)) <= groups, rule.id


def test_progress_is_read_from_the_log_of_a_start() -> None:
    log = (RECORDED / "no_weights.log").read_text().splitlines()
    known = diagnose.milestones("vllm")
    said = [says for line in log if (says := diagnose.progress_line(line, known))]
    assert said[:3] == ["read the model's configuration: LlamaForCausalLM", "starting engine 0.32.0", "loading weights"]
