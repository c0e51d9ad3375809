"""Every target over every kind of plan: golden files, schemas, and that nothing said to a shell or YAML reader is lost."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import plans
from aim_engine import __version__, backend
from aim_engine.errors import InvalidInput
from aim_engine.planner import plan as plan_module
from aim_engine.planner.plan import Plan
from aim_engine.recipe.recipe import replace
from aim_engine.render.artifact import Artifact, Options
from aim_engine.render.targets import TARGETS, render

CASES = [
    (target, case)
    for target, case in itertools.product(TARGETS, plans.ALL)
    if (target, case) not in (("job", "small-2xw7900"), ("kuberay", "small-cpu"), ("kuberay", "llama-70b-1xmi325x"))
    # A folder needs no fetching; Ray Serve needs a GPU, and asks for no key.
]
ABOUT = re.compile("# (Model|Recipe|Plan): ").match
OPTIONS = {
    "qwen3-32b-8xmi300x": Options(name="qwen3-32b"),
    "mixture-2x2xmi355x": Options(name="mixture", port=9000, host="0.0.0.0", cache_dir="/srv/hub cache"),
    "small-2xw7900": Options(name="small", model_path="/models/small, 'new'"),
    "llama-70b-1xmi325x": Options(name="llama", namespace="serving", storage_class="fast.ssd", api_key_secret=True),
    "small-cpu": Options(name="small-cpu", image="registry.local:5000/vllm-cpu:v0.32.0"),
}


def files(case: str, target: str) -> tuple[Artifact, ...]:
    return render(plans.ALL[case](), target, OPTIONS[case])


def recorded(artifacts: tuple[Artifact, ...]) -> dict[str, str]:
    """Path -> content as golden files hold it: without our version, and without what is the same in every chart.

    Nor with the base of a kustomization, which is what target `kubernetes` writes.
    """
    found = {}
    for file in artifacts:
        if file.path.startswith("base/") and file.path != "base/kustomization.yaml":
            continue
        content = file.content.replace(f"aim-engine {__version__}", "aim-engine X.Y.Z")
        content = re.sub(r"^(# Plan: .* sha256) [0-9a-f]{12}$", r"\1 ...", content, flags=re.MULTILINE)
        if file.path == "Chart.yaml":
            content = content.replace(f'version: "{__version__}"', "version: X.Y.Z")
        if not file.path.startswith("templates/") and file.path != "values.schema.json":
            found[file.path] = content
    return found


@pytest.mark.parametrize(("target", "case"), CASES)
def test_rendered_files_are_the_golden_ones(
    target: str, case: str, golden: Callable[[str, dict[str, str]], None]
) -> None:
    golden(f"{target}/{case}", recorded(files(case, target)))


@pytest.mark.parametrize("case", plans.ALL)
def test_the_base_of_a_kustomization_is_the_plain_manifests(case: str) -> None:
    base = {
        file.path.removeprefix("base/"): file.content.replace("for kustomize.", "for kubernetes.")
        for file in files(case, "kustomize")
        if file.path.startswith("base/") and file.path != "base/kustomization.yaml"
    }
    assert base == {file.path: file.content for file in files(case, "kubernetes")}


@pytest.mark.parametrize("case", plans.FURTHER)
def test_further_plans_differ_from_the_first_as_recorded(
    case: str, golden: Callable[[str, dict[str, str]], None]
) -> None:
    first = plans.ALL["qwen3-32b-8xmi300x"]()
    produced = {}
    for target in TARGETS:
        base = recorded(render(first, target, Options(name="demo")))
        try:
            found = recorded(render(plans.FURTHER[case](), target, Options(name="demo")))
        except InvalidInput as err:
            produced[f"{target}.diff"] = f"refused: {err}\n  {err.why}\n  {err.hint}\n"
            continue
        lines: list[str] = []
        for path in sorted({*base, *found}):
            # The lines on the plan are the same in every file, and the environment's tell what they are.
            old, new = (
                [line for line in text.get(path, "").splitlines(keepends=True) if path == "demo.env" or not ABOUT(line)]
                for text in (base, found)
            )
            if old == new:
                continue
            changes = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=0)
            # Positions move when anything above them does, which would hide what changed.
            lines += ["@@\n" if line.startswith("@@") else line for line in changes]
        produced[f"{target}.diff"] = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
    golden(f"further/{case}", produced)


@pytest.mark.parametrize(("target", "case"), CASES)
def test_rendering_twice_gives_the_same_bytes(target: str, case: str) -> None:
    assert files(case, target) == files(case, target)


def test_the_header_says_which_plan_file_it_was(tmp_path: Path) -> None:
    """As `sha256sum plan.json` does; another plan has another."""
    file = tmp_path / "plan.json"
    file.write_bytes(plan_module.encode(plans.replicas()) + b"\n")
    summed = hashlib.sha256(file.read_bytes()).hexdigest()
    for target in TARGETS:
        written = render(plans.replicas(), target, Options(name="demo"))
        for each in written:
            inside = "# Plan: " in each.content
            assert inside is (not each.secret and not each.path.startswith(("templates/", "values.schema"))), each.path
            assert not inside or f"; sha256 {summed[:12]}\n" in each.content
        assert all(
            summed[:12] not in each.content for each in render(plans.dense_on_all(), target, Options(name="demo"))
        )


@pytest.mark.parametrize("target", TARGETS)
def test_a_plan_read_back_from_its_file_renders_the_same(target: str) -> None:
    made = plans.replicas()
    again = msgspec.json.decode(plan_module.encode(made), type=Plan)
    assert render(again, target, Options(name="demo")) == render(made, target, Options(name="demo"))


@pytest.mark.parametrize("target", TARGETS)
def test_no_token_or_placeholder_of_one_is_anywhere_but_in_the_secret_file(target: str) -> None:
    options = msgspec.structs.replace(OPTIONS["llama-70b-1xmi325x"], api_key_secret=target != "kuberay")
    for file in render(plans.gated(), target, options):
        if file.secret:
            assert [line for line in file.content.splitlines() if not line.startswith("#")] == []
        else:
            assert "HF_TOKEN=" not in file.content
            assert "--api-key" not in file.content


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name", ["", "Qwen", "a_b", "a b", "-a", "a-", "1a", "a" * 51, "a;touch x", "a\nb", "$(id)", "ü"]
)
def test_a_name_that_is_no_dns_label_is_refused(target: str, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be used as a name"):
        render(plans.dense_on_all(), target, Options(name=name))


@pytest.mark.parametrize("target", TARGETS)
def test_one_letter_names_no_container(target: str) -> None:
    if target in ("docker", "compose", "podman"):
        with pytest.raises(InvalidInput, match="'x' cannot be the name of a container"):
            render(plans.dense_on_all(), target, Options(name="x"))
    else:
        assert render(plans.dense_on_all(), target, Options(name="x"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_outside_the_range_is_refused(target: str, port: int) -> None:
    with pytest.raises(InvalidInput, match="is not a port"):
        render(plans.dense_on_all(), target, Options(name="demo", port=port))


def test_replicas_that_run_out_of_ports_are_refused() -> None:
    with pytest.raises(InvalidInput, match="65536 is not a port"):
        render(plans.replicas(), "docker", Options(name="demo", port=65535))


def test_a_service_called_vllm_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput) as caught:
        render(plans.dense_on_all(), "kubernetes", Options(name="vllm"))
    assert "VLLM_PORT" in (caught.value.why or "")


def test_a_relative_model_folder_is_refused() -> None:
    for target in TARGETS:
        with pytest.raises(InvalidInput, match="relative"):
            render(plans.dense_on_all(), target, Options(name="demo", model_path="models/x"))


def test_a_cpu_plan_without_a_cpu_image_says_so() -> None:
    for target in ("docker", "compose", "podman", "kubernetes", "job"):
        with pytest.raises(InvalidInput, match="no known image for a CPU"):
            render(plans.on_cpu(), target, Options(name="demo"))


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        render(plans.dense_on_all(), "nomad", Options(name="demo"))
    assert "kubernetes" in (caught.value.hint or "")


def test_a_plan_that_chose_nothing_cannot_be_rendered() -> None:
    with pytest.raises(InvalidInput, match="chose nothing"):
        render(plans.nothing(), "shell", Options(name="demo"))


def test_the_draining_flag_is_given_only_to_releases_that_have_it() -> None:
    engine = backend.get("vllm")
    made = plans.dense_on_all()
    assert made.chosen is not None
    for version in engine.versions():
        recipe = replace(made.chosen.recipe, engine_version=version)
        changed = msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))
        has = any("--shutdown-timeout" in flag.flags for flag in engine.release(version).flags)
        content = "".join(file.content for file in render(changed, "kubernetes", Options(name="demo")))
        assert ("--shutdown-timeout" in content) == has
        assert f":v{version}" in content


def test_loading_more_bytes_gives_more_patience() -> None:
    from aim_engine.render import serving

    options = Options(name="demo")
    small, large = (serving.startup_s(made, options) for made in (plans.detected_part(), plans.gated()))
    assert serving.MIN_STARTUP_S <= small < large
    share = serving.startup_s(plans.gated(), Options(name="demo", read_bytes_s=50_000_000))
    assert share - large == pytest.approx(serving.weight_bytes(plans.gated()) / 50_000_000, abs=60)
    with pytest.raises(InvalidInput, match="cannot be read at 0"):
        serving.startup_s(plans.gated(), Options(name="demo", read_bytes_s=0))
    here = Options(name="demo", model_path="/models/x")
    assert serving.startup_s(plans.gated(), here) < large


@pytest.mark.parametrize("target", TARGETS)
def test_a_recipe_of_an_older_plan_with_an_argument_that_is_gone_is_refused(target: str) -> None:
    made = plans.dense_on_all()
    assert made.chosen is not None
    recipe = replace(made.chosen.recipe, extra_args=("--swap-space", "4"))
    changed = msgspec.structs.replace(made, chosen=msgspec.structs.replace(made.chosen, recipe=recipe))
    with pytest.raises(InvalidInput, match="would not start with the recipe of this plan") as caught:
        render(changed, target, Options(name="demo"))
    assert "--swap-space is gone" in (caught.value.why or "")
    assert caught.value.hint == "plan again: aim-engine plan Qwen/Qwen3-32B -o plan.json"
