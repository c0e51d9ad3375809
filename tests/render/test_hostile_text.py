"""Whatever stands in a plan's free text reaches the engine unchanged, and nothing else happens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plans
from aim_engine.errors import InvalidInput
from aim_engine.recipe.recipe import replace
from aim_engine.render import text
from aim_engine.render.artifact import Options
from aim_engine.render.targets import TARGETS, render
from hostile import NASTY, compose_interpolated, hostile, kubelet_expanded, run

CHARACTERS = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")
TEXT = st.one_of(
    st.sampled_from(NASTY),
    st.text(CHARACTERS, max_size=20),
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=3).map("".join),
)
PATH_TEXT = TEXT.filter(lambda value: not re.search(r"[\r\n]", value)).map(lambda value: f"/srv/{value}")
PURE = settings(max_examples=100, deadline=None)
RUNS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A folder with programs called vllm and docker that only write down their arguments and environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "docker"):
        program = folder / name
        program.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$RECORD/args"\nenv -0 >"$RECORD/env"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_every_known_trick_at_once_reaches_the_engine_as_text(shell: str, recorder: Path) -> None:
    made = plans.on_cpu()
    assert made.chosen is not None
    env = {f"N{index}": value for index, value in enumerate(NASTY)}
    recipe = replace(made.chosen.recipe, env=env, extra_args=NASTY)
    plan = msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))
    (script,) = render(plan, "shell", Options(name="demo"))
    args, seen = run(shell, script.content, recorder)
    assert tuple(args[-len(NASTY) :]) == NASTY
    assert {name: seen[name] for name in env} == env
    container = next(file for file in render(plan, "docker", Options(name="demo", image="a:b")) if file.executable)
    args, _ = run(shell, container.content, recorder, home=str(recorder.parent / "home"))
    start = args.index("a:b")
    assert [arg for arg in args[start:] if arg in NASTY] == list(NASTY)
    assert {f"{name}={value}" for name, value in env.items()} <= set(args)


@pytest.mark.parametrize("shell", ["bash", "sh"])
@RUNS
@given(model_id=TEXT, value=TEXT, argument=TEXT, folder=PATH_TEXT)
def test_a_shell_hands_text_to_the_engine_unchanged(
    shell: str, recorder: Path, model_id: str, value: str, argument: str, folder: str
) -> None:
    plan = hostile(model_id, value, argument)
    (script,) = render(plan, "shell", Options(name="demo", model_path=folder))
    args, env = run(shell, script.content, recorder)
    assert args[:2] == ["serve", folder]
    assert args[args.index("--served-model-name") + 1] == f"org/{model_id}"
    assert args[-2:] == ["--chat-template", argument]
    assert env["FREE"] == value


@RUNS
@given(model_id=TEXT, value=TEXT, argument=TEXT, cache=TEXT.filter(lambda value: not re.search(r"[\r\n]", value)))
def test_docker_gets_text_unchanged(recorder: Path, model_id: str, value: str, argument: str, cache: str) -> None:
    home = recorder.parent / "home"
    plan = hostile(model_id, value, argument)
    cache = cache.replace("/", "_").replace("\x7f", "")[:40] or "x"
    options = Options(name="demo", image="local/cpu:v1", cache_dir=f"~/hub/{cache}")
    script = next(file for file in render(plan, "docker", options) if file.executable)
    args, _ = run("sh", script.content, recorder, home=str(home))
    assert f"FREE={value}" in args
    assert args[args.index("local/cpu:v1") + 1 :][:2] == ["serve", f"org/{model_id}"]
    assert args[args.index("--chat-template") + 1] == argument
    mount = csv_fields(args[args.index("--mount") + 1])
    assert f"source={home}/hub/{cache}" in mount
    assert (home / "hub" / cache).is_dir()


@PURE
@given(model_id=TEXT, value=TEXT, argument=TEXT, folder=PATH_TEXT)
def test_compose_reads_text_unchanged(model_id: str, value: str, argument: str, folder: str) -> None:
    plan = hostile(model_id, value, argument)
    options = Options(name="demo", image="local/cpu:v1", model_path=folder)
    document = yaml.safe_load(render(plan, "compose", options)[0].content)
    service = compose_interpolated(document)["services"]["demo"]
    assert service["environment"]["FREE"] == value
    assert service["command"][service["command"].index("--served-model-name") + 1] == f"org/{model_id}"
    assert service["command"][service["command"].index("--chat-template") + 1] == argument
    assert service["volumes"][0]["source"] == folder


@PURE
@given(model_id=TEXT, value=TEXT, argument=TEXT, folder=PATH_TEXT)
def test_kubernetes_reads_text_unchanged(model_id: str, value: str, argument: str, folder: str) -> None:
    plan = hostile(model_id, value, argument)
    options = Options(name="demo", image="local/cpu:v1", model_path=folder)
    files = {file.path: file.content for file in render(plan, "kubernetes", options)}
    deployment = yaml.safe_load(files["deployment.yaml"])
    assert deployment["metadata"]["annotations"]["aim-engine/model"] == f"org/{model_id}"
    pod = deployment["spec"]["template"]["spec"]
    args = [kubelet_expanded(arg) for arg in pod["containers"][0]["args"]]
    assert args[args.index("--served-model-name") + 1] == f"org/{model_id}"
    assert args[args.index("--chat-template") + 1] == argument
    env = {entry["name"]: kubelet_expanded(entry.get("value", "")) for entry in pod["containers"][0]["env"]}
    assert env["FREE"] == value
    assert next(volume for volume in pod["volumes"] if volume["name"] == "model")["hostPath"]["path"] == folder


@RUNS
@given(value=TEXT)
def test_an_env_file_reads_back_in_a_shell_or_is_refused(recorder: Path, value: str) -> None:
    plan = hostile("m", value, "x")
    try:
        (file,) = render(plan, "env", Options(name="demo"))
    except InvalidInput:
        assert re.search(r"['\r\n]", value)
        return
    script = f"set -a\n{file.content}\nset +a\nvllm\n"
    _, env = run("sh", script, recorder)
    assert env["FREE"] == value


@PURE
@given(
    document=st.recursive(
        TEXT, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3))
    )
)
def test_our_yaml_reads_back_as_it_was(document: Any) -> None:
    written = text.yaml_document({"root": document})
    assert yaml.safe_load(written) == {"root": document}
    assert yaml.load(written, Loader=yaml.CSafeLoader) == {"root": document}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["A B", "1A", "A=B", "", "A;touch PWNED", "é"])
def test_an_impossible_variable_name_is_refused(target: str, name: str) -> None:
    made = plans.on_cpu()
    assert made.chosen is not None
    recipe = replace(made.chosen.recipe, env={name: "1"})
    plan = msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))
    with pytest.raises(InvalidInput, match="environment variable"):
        render(plan, target, Options(name="demo", image="a:b"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_text_that_no_process_can_get_is_refused(target: str, bad: str) -> None:
    with pytest.raises(InvalidInput):
        render(hostile(bad, "x", "x"), target, Options(name="demo", image="a:b"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_that_looks_like_an_option_is_refused(target: str) -> None:
    made = hostile("x", "x", "x")
    model = msgspec.structs.replace(made.inputs.model, model_id="--trust-remote-code")
    made = msgspec.structs.replace(made, inputs=msgspec.structs.replace(made.inputs, model=model))
    with pytest.raises(InvalidInput, match="take it for an option"):
        render(made, target, Options(name="demo", image="a:b"))


@pytest.mark.parametrize("image", ["", "a b", "a;b", "--privileged", "A:b", "a:b:c", "a@sha256:1", "a\n"])
def test_an_impossible_image_is_refused(image: str) -> None:
    with pytest.raises(InvalidInput, match="image reference"):
        render(plans.on_cpu(), "docker", Options(name="demo", image=image))


@pytest.mark.parametrize("host", ["", "a b", "0.0.0.0;id", "--x", "::1::", "$(id)"])
def test_an_impossible_address_is_refused(host: str) -> None:
    for target in ("shell", "docker", "compose", "env"):
        with pytest.raises(InvalidInput):
            render(plans.on_cpu(), target, Options(name="demo", image="a:b", host=host))


def csv_fields(line: str) -> list[str]:
    import csv
    import io

    return next(csv.reader(io.StringIO(line)))


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker client, no engine")
@pytest.mark.parametrize("folder", ["/srv/m", '/srv/a,b "c"', "/srv/$(touch PWNED)", "/srv/a b'c"])
def test_the_real_docker_client_understands_the_script(folder: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    options = Options(name="demo", image="local/cpu:v1", cache_dir=f"~{folder}", host="::1")
    script = next(file for file in render(hostile("m", "v", "a"), "docker", options) if file.executable)
    path = tmp_path / "x.sh"
    path.write_text(script.content)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "DOCKER_CONFIG": str(tmp_path),
    }
    done = subprocess.run(["sh", path], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    # The client reads all options before it looks for the engine, which is not there.
    assert "annot connect to the Docker daemon" in done.stderr, done.stderr
    assert not (tmp_path / "PWNED").exists()
