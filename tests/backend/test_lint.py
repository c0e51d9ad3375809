"""Command lines are judged as the release's own parser would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine import backend
from aim_engine.backend import lint, release
from aim_engine.errors import AimError, InvalidInput

ENGINE = backend.get("vllm")
RELEASE = "0.32.0"


def found(*args: str, **env: str) -> list[tuple[str, str, str]]:
    return [(f.id, f.message, f.remedy) for f in ENGINE.check(args, env, RELEASE)]


@pytest.mark.parametrize(
    "args",
    [
        ("M", "--max-model-len", "4096"),
        ("M", "--max-model-len=32k"),
        ("M", "--max_model_len", "auto"),
        ("M", "--tensor-parallel-size", "8", "--no-enable-prefix-caching"),
        ("M", "-tp", "8", "-O2"),
        ("M", "-O.mode=3"),
        ("M", "--compilation-config.cudagraph_mode", "FULL"),
        ("M", "--compilation-config", '{"mode": 3}'),
        ("M", "--gpu-memory-utilization", "0.9"),
        ("M", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ("M", "--cpu-offload-gb", "-1"),
        ("M", "--lora-modules", "a=b", "c=d", "--port", "8000"),
        ("M", "--gpu-memory-util", "0.9"),
    ],
)
def test_what_the_parser_takes_is_not_reported(args: tuple[str, ...]) -> None:
    assert found(*args) == []


@pytest.mark.parametrize(
    ("args", "identity", "words"),
    [
        (("M", "--swap-space", "4"), "VER002", "gone since"),
        (("M", "--disable-log-requests"), "VER002", "gone since"),
        (("M", "--max-modle-len", "4096"), "VER001", "no argument"),
        (("M", "--dtype", "bf16"), "VER021", "does not take 'bf16'"),
        (("M", "--max-num-seqs", "many"), "VER022", "number"),
        (("M", "--gpu-memory-utilization", "much"), "VER022", "number"),
        (("M", "--gpu-memory-utilization", "1.5"), "MEM010", "outside"),
        (("M", "--max-num-seqs", "512", "--max-num-batched-tokens", "256"), "SCH002", "below"),
        (("M", "--compilation-config", "{mode: 3}"), "VER023", "JSON"),
        (("M", "--port"), "VER020", "needs a value"),
    ],
)
def test_what_the_parser_refuses_is_reported(args: tuple[str, ...], identity: str, words: str) -> None:
    matching = [message for each, message, _ in found(*args) if each == identity]
    assert matching
    assert words in matching[0]


def test_remedies_name_the_way_out() -> None:
    assert found("M", "--dtype", "bf16")[0][2] == "use bfloat16"
    assert "--max-model-len" in found("M", "--max-modle-len", "4096")[0][2]


def test_variables_that_nobody_reads_are_warnings() -> None:
    (gone,) = found("M", VLLM_USE_TRITON_FLASH_ATTN="1")
    assert gone[0] == "VER003"
    (typo,) = found("M", VLLM_ROCM_USE_AITR="1")
    assert "VLLM_ROCM_USE_AITER" in typo[2]
    assert found("M", PATH="/bin", VLLM_ROCM_USE_AITER="1") == []


def test_two_visibility_variables_that_differ_are_an_error() -> None:
    assert [each[0] for each in found("M", HIP_VISIBLE_DEVICES="0", CUDA_VISIBLE_DEVICES="1")] == ["ENV003"]
    assert found("M", HIP_VISIBLE_DEVICES="0", CUDA_VISIBLE_DEVICES="0") == []


def test_a_shell_line_is_taken_apart() -> None:
    text = "# serve it\nexport A=1\nB='two words' exec vllm serve M \\\n  --port 8000 # here\n"
    line = lint.parse_command_line(text)
    assert line.env == {"A": "1", "B": "two words"}
    assert line.args == ("M", "--port", "8000")
    assert line.findings == ()


def test_the_old_entry_point_is_reported() -> None:
    line = lint.parse_command_line("python3 -m vllm.entrypoints.openai.api_server --model M")
    assert [finding.id for finding in line.findings] == ["VER010"]


@pytest.mark.parametrize("text", ["", "ls -l", "echo 'unclosed", "vllm bench serve"])
def test_text_that_starts_no_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        lint.parse_command_line(text)


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["--", "-", "--port", "--dtype", "-O", "=", "--a=b"]), max_size=8)
)
def test_no_argument_list_raises(args: list[str]) -> None:
    assert isinstance(ENGINE.check(tuple(args), {}, RELEASE), tuple)


@given(st.text(max_size=80))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        lint.parse_command_line(text)
    except AimError as err:
        assert err.what  # noqa: PT017 - the refusal itself is looked at


def test_spellings_that_a_release_hides_are_taken_and_mean_the_same() -> None:
    table = release.flags("vllm", "0.33.0")
    for word in ("--no-enable-prefix-caching", "--disable-prefix-caching"):
        assert lint.check((word,), {}, table, lambda: release.removed("vllm")) == ()
        assert lint.values((word,), table)["enable_prefix_caching"] == "false"
    assert lint.values(("--enable-prefix-caching",), table)["enable_prefix_caching"] == "true"
    assert lint.values(("--disable-cascade-attn",), table)["disable_cascade_attn"] == "true"
    assert lint.values(("--enable-cascade-attn",), table)["disable_cascade_attn"] == "false"


def test_a_value_that_only_the_caller_knows_is_not_judged() -> None:
    table = release.flags("vllm", "0.33.0")
    args = ("m", "--tensor-parallel-size", "$TP", "--dtype=${D}", "--port", "{{ port }}")
    assert lint.check(args, {}, table, lambda: release.removed("vllm")) == ()
    judged = {finding.id for finding in ENGINE.check((*args, "--enable-expert-parallel"), {}, RELEASE)}
    assert not any(identity.startswith("PAR") for identity in judged)
    assert "PAR027" not in judged


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        (("--compilation-config", '{"mode": 3, "pass_config": {"fuse_rope_kvcache": true}}'), ""),
        (("--compilation-config", '{"full_cuda_graph": true}'), "full_cuda_graph"),
        (("--compilation-config.pass_config.no_such", "1"), "pass_config.no_such"),
        (("--attention-config.use-prefill-decode-attention-no", "1"), "use_prefill_decode_attention_no"),
    ],
)
def test_keys_of_structured_arguments_are_those_of_the_release(args: tuple[str, ...], wrong: str) -> None:
    said = [
        each.message for each in lint.check(args, {}, release.flags("vllm", "0.33.0"), lambda: release.removed("vllm"))
    ]
    assert [message.endswith(f"no key {wrong}") for message in said] == ([True] if wrong else [])
