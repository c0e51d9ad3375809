"""Command lines: our own scripts are clean, mistakes in `vllm serve` and `docker run` lines are found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plans
from aim_engine import backend
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.render import check_command
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render

ENGINE = backend.get("vllm")
GOOD = (
    "docker run -d --device /dev/kfd --device=/dev/dri --group-add video --shm-size 16g -p 127.0.0.1:8000:8000 "
    "-v ~/.cache/huggingface:/root/.cache/huggingface vllm/vllm-openai-rocm:v0.32.0 Qwen/Qwen3-32B -tp 2"
)


def found(text: str, version: str | None = None) -> set[str]:
    return {finding.id for finding in check_command.check(text, ENGINE, version) if finding.severity != "info"}


@pytest.mark.parametrize("target", ["shell", "docker"])
@pytest.mark.parametrize("case", plans.ALL)
def test_our_own_scripts_are_clean(target: str, case: str) -> None:
    image = "registry.local/vllm:v0.32.0" if case == "small-cpu" else None
    script = next(
        file for file in render(plans.ALL[case](), target, Options(name="demo", image=image)) if file.executable
    )
    lines = [line for line in check_command.commands(script.content) if check_command.starts_engine(line)]
    recipe = plans.ALL[case]().chosen
    assert recipe is not None
    assert len(lines) == recipe.recipe.replicas
    assert found(script.content, "0.32.0") == set()


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("vllm serve m --host 127.0.0.1 --max-modle-len 4", "VER001"),
        ("vllm serve m --host 127.0.0.1 --swap-space 4", "VER002"),
        ("vllm serve m --host 127.0.0.1 --dtype bf16", "VER021"),
        ("vllm serve m --host 127.0.0.1 --max-num-seqs many", "VER022"),
        ("VLLM_USE_V1=1 vllm serve m --host 127.0.0.1", "VER003"),
        ("export VLLM_USE_V1=1\nvllm serve m --host 127.0.0.1", "VER003"),
        ("vllm serve m --host 127.0.0.1 --gpu-memory-utilization 1.5", "MEM010"),
        ("vllm serve m --api-key s3cret --host 127.0.0.1", "SEC004"),
        ("vllm serve m", "SEC001"),
        ("vllm serve m --host 0.0.0.0", "SEC001"),
        ("vllm serve --host 127.0.0.1", "MOD006"),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", "VER010"),
        ("numactl --interleave=all vllm serve m --swap-space 4", "VER002"),
        ("sudo -E docker run vllm/vllm-openai-rocm:v0.32.0 m", "DOC001"),
        ("podman run --device /dev/kfd vllm/vllm-openai-rocm:v0.32.0 m", "DOC001"),
        (GOOD.replace("--shm-size 16g", ""), "MEM009"),
        (GOOD.replace("--shm-size 16g", "--shm-size=64m"), "MEM009"),
        (GOOD.replace("127.0.0.1:8000", "8000"), "SEC001"),
        (GOOD.replace("-p 127.0.0.1:8000:8000", "-p8000:8000"), "SEC001"),
        (GOOD.replace("v0.32.0", "latest"), "VER009"),
        (GOOD.replace(":v0.32.0", ""), "VER009"),
        (GOOD.replace("vllm-openai-rocm", "vllm-openai"), "VER008"),
        (GOOD.replace("vllm/vllm-openai-rocm:v0.32.0", "rocm/vllm:rocm7_vllm_0.28.0 vllm serve"), "VER007"),
        (GOOD.replace("-d ", "-d --privileged "), "DOC006"),
        (GOOD.replace("-d ", "-d --network host "), "DOC007"),
        (GOOD.replace("-d ", "-d --cap-add SYS_PTRCE "), "DOC010"),
        (GOOD.replace("-d ", "-itd --gpus all "), "DOC003"),
        (GOOD.replace("-d ", "-e HF_TOKEN=hf_abc "), "K8S021"),
        (GOOD.replace("Qwen/Qwen3-32B", "vllm serve Qwen/Qwen3-32B"), "VER010"),
        (GOOD.replace("-d ", "-d -e HSA_OVERRIDE_GFX_VERSION=10.3.0 "), "ENV005"),
        ("HIP_VISIBLE_DEVICES= vllm serve m --host 127.0.0.1", "ENV004"),
        (GOOD + " --trust-remote-code", "SEC003"),
        ("VLLM_ROCM_USE_AITER=1\nvllm serve m --host 127.0.0.1", "ENV014"),
        ("TP=3\nvllm serve m --host 127.0.0.1 --max-num-seqs ${X:-many}", "VER022"),
        ("docker exec -e VLLM_USE_V1=1 c vllm serve m --host 127.0.0.1", "VER003"),
        ("vllm serve m --host 127.0.0.1 --compilation-config '{\"full_cuda_graph\":\n true}'", "VER024"),
        ("vllm serve m --host 127.0.0.1 -cc.no_such_key=1", "VER024"),
        ("docker run --rm", "DOC011"),
        ("docker run --rm --name", "DOC011"),
    ],
)
def test_a_mistake_is_found(text: str, identity: str) -> None:
    assert identity in found(text)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace(" --", " \\\n  --"),
        f"#!/bin/sh\nset -eu\n# docker run of the engine\nif true; then {GOOD}; fi\n",
        GOOD.replace("-d ", '-d --env "HF_TOKEN=$HF_TOKEN" --env-file x.env "$@" '),
        GOOD.replace("--device /dev/kfd --device=/dev/dri", "--device amd.com/gpu=0,1"),
        GOOD.replace("--shm-size 16g", "--ipc=host"),
        GOOD.replace("docker run", "docker container run"),
        GOOD + " --trust-remote-code --revision 0123abc",
        "docker run --rm $IMAGE",
        "vllm serve Qwen/Qwen3-32B --host 127.0.0.1 --max-model-len 4k --tensor-parallel-size=2",
        "VLLM_API_KEY=$KEY vllm serve m --host 0.0.0.0",
        "vllm serve m --host 127.0.0.1 --tensor-parallel-size $TP --max-num-seqs ${SEQS} --dtype $D",
        "vllm serve m --host 127.0.0.1 --no-enable-prefix-caching",
        "vllm serve m --host 127.0.0.1 -cc.pass_config.fuse_rope_kvcache=True -O3",
        "vllm serve a/Unknown-48B --host 127.0.0.1 --max-model-len 1048576",
        "docker run --rm $IMAGE bash -c 'sleep 1'",
    ],
)
def test_a_good_line_has_no_findings(text: str) -> None:
    assert found(text) == set()


def test_the_release_comes_from_the_image_or_the_user() -> None:
    line = GOOD + " --shutdown-timeout 60"
    assert found(line) == set()
    older = {finding.message for finding in check_command.check(line.replace("0.32.0", "0.24.0"), ENGINE)}
    has = any("--shutdown-timeout" in flag.flags for flag in ENGINE.release("0.24.0").flags)
    assert any("--shutdown-timeout" in message for message in older) is not has


@pytest.mark.parametrize("text", ["", "ls -l", "docker ps", "echo 'vllm serve'", "docker run"[:-4], "'", "vllm bench"])
def test_text_that_starts_no_engine_is_wrong_input(text: str) -> None:
    with pytest.raises(InvalidInput, match="starts no engine"):
        check_command.check(text, ENGINE)


def test_a_command_in_prose_is_found_although_apostrophes_are_no_quotes() -> None:
    text = f"# It's easy\n\nDon't forget the driver, it's needed.\n\n```bash\n{GOOD} --swap-space 4\n```\nThat's all.\n"
    assert found(text) == {"VER002"}


def test_separate_words_are_checked_as_they_are() -> None:
    words = ("VLLM_USE_V1=1", "vllm", "serve", "m; rm -rf /", "--host", "127.0.0.1")
    assert {finding.id for finding in check_command.argv(words, "command", ENGINE, "0.32.0")} == {"VER003"}
    with pytest.raises(InvalidInput):
        check_command.argv(("ls",), "command", ENGINE, None)


TOKENS = st.sampled_from(
    [
        *GOOD.split(),
        "vllm",
        "serve",
        "-m",
        "vllm.entrypoints",
        "$X",
        "\n",
        "\\\n",
        "'",
        '"',
        ";",
        "#",
        "--",
        "-",
        "=",
        "A=1",
        "export",
        "-e",
        "&&",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(TOKENS, max_size=20).map(" ".join)))
def test_no_text_breaks_the_checker(text: str) -> None:
    try:
        found = check_command.check(text, ENGINE)
    except InvalidInput:
        return
    assert all(isinstance(finding, Finding) for finding in found)
