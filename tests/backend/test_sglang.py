"""SGLang: tables by release, the command line of a recipe, its joint choice, and its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import specs
from aim_engine import backend, settings, workflow
from aim_engine.backend import lint, release, sglang_kernels
from aim_engine.cli import main
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec, Quantization
from aim_engine.recipe.database import RecipeDatabase
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources, replace
from aim_engine.render import targets
from aim_engine.render.artifact import Options
from aim_engine.workflow import Request

ENGINE = backend.get("sglang")
VERSIONS = ENGINE.versions()
MI300X, MI355X = catalog.load("MI300X"), catalog.load("MI355X")
OFFLINE = settings.load({"offline": True})


def recipe(spec: ModelSpec, version: str = VERSIONS[0], **changes: Any) -> Recipe:
    split = changes.pop("parallelism", Parallelism())
    base = Recipe(
        model_id=spec.model_id,
        gpu="MI300X",
        gpu_count=split.world_size,
        engine="sglang",
        engine_version=version,
        parallelism=split,
        precision="bf16",
        max_model_len=32768,
        max_num_seqs=64,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.72,
        resources=Resources(cpu_cores=8, memory_bytes=2**35, shm_bytes=2**34, gpus=split.world_size),
    )
    return replace(base, **changes)


def words(made: Recipe) -> dict[str, str]:
    command = ENGINE.command(made, model_ref=made.model_id, host="127.0.0.1", port=8000)
    known = lint.by_flag(release.flags("sglang", made.engine_version))
    return {given[0]: " ".join(given[1:]) for given, _ in lint.groups(command.args, known)}


def test_there_are_twelve_releases_or_more_with_their_images_and_classes() -> None:
    assert len(VERSIONS) >= 12
    for version in VERSIONS:
        found, table = ENGINE.release(version), release.flags("sglang", version)
        assert table.version == version
        assert {arch for image in found.images for arch in image.archs} <= {"gfx942", "gfx950"}
        assert all(image.reference.startswith(f"lmsysorg/sglang:v{version}-rocm") for image in found.images)
        assert all(image.source and image.rocm for image in found.images)
        assert len(table.flags) > 300
        assert "LlamaForCausalLM" in table.architectures
        assert "SGLANG_USE_AITER" in table.env


def test_a_release_whose_image_nobody_saw_is_planned_only_when_asked_for() -> None:
    without = [version for version in VERSIONS if not ENGINE.release(version).images]
    assert len(without) < len(VERSIONS) - 10
    for gpu in (MI300X, MI355X):
        assert ENGINE.image(ENGINE.newest(gpu), gpu).archs == (gpu.arch,)
    for version in without:
        with pytest.raises(InvalidInput) as wrong:
            ENGINE.image(version, MI300X)
        assert f"engines/sglang/{version}.yaml" in (wrong.value.hint or "")
        assert f"--engine-version {ENGINE.newest(MI300X)}" in (wrong.value.hint or "")


def test_newest_comes_first_and_post_releases_count() -> None:
    assert VERSIONS[0] == max(VERSIONS, key=release.number)
    assert VERSIONS.index("0.5.16") < VERSIONS.index("0.5.15.post1")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "split",
    [Parallelism(), Parallelism(tp=8), Parallelism(tp=8, ep=True), Parallelism(dp=8, ep=True), Parallelism(tp=4, pp=2)],
    ids=Parallelism.describe,
)
def test_every_emitted_argument_exists_in_its_release(version: str, split: Parallelism) -> None:
    spec = specs.mixture()
    made = ENGINE.tune(spec, MI300X, recipe(spec, version, parallelism=split), allow_lossy=False)
    command = ENGINE.command(made, model_ref="/model", host="0.0.0.0", port=8000)
    found = lint.check(command.args, command.env, release.flags("sglang", version), lambda: release.removed("sglang"))
    assert not found


def test_attention_ranks_divide_those_of_tensor_parallelism_under_either_name() -> None:
    spec = specs.mixture()
    split = Parallelism(dp=8, ep=True)
    new, old = words(recipe(spec, parallelism=split)), words(recipe(spec, "0.5.16", parallelism=split))
    assert (new["--tp-size"], new["--attn-dp-size"], new["--ep-size"]) == ("8", "8", "8")
    assert (old["--tp-size"], old["--dp-size"]) == ("8", "8")
    assert "--enable-dp-attention" in old
    assert new["--max-running-requests"] == str(64 * 8)


def test_the_share_that_is_said_makes_up_for_what_aiter_takes() -> None:
    spec = specs.dense()
    long = ENGINE.tune(spec, MI300X, recipe(spec))
    assert float(words(long)["--mem-fraction-static"]) == pytest.approx(0.72 / 0.85, abs=0.001)
    short = ENGINE.tune(spec, MI300X, recipe(spec, max_model_len=8192))
    assert words(short)["--mem-fraction-static"] == "0.72"
    assert words(recipe(spec, attention_backend="triton"))["--mem-fraction-static"] == "0.72"


def test_the_share_by_default_is_the_engines_own_less_that() -> None:
    found = ENGINE.defaults(VERSIONS[0], MI300X)
    static = (192 * 1024 - (512 + 128 + 1.5 * 16384 + 2 * 512)) / (192 * 1024)
    assert found.gpu_memory_utilization == pytest.approx(0.85 * static, abs=0.002)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (16384, 512)


def test_latent_attention_takes_aiter_only_for_heads_it_has_kernels_for() -> None:
    spec = models.load("deepseek-ai/DeepSeek-R1")
    assert spec is not None
    for tp, expected in ((8, "aiter"), (4, "triton")):
        made = ENGINE.tune(spec, MI355X, recipe(spec, parallelism=Parallelism(tp=tp), precision="fp8"))
        assert made.attention_backend == expected, spec.heads // tp


def test_what_the_image_rounds_between_ranks_is_switched_off_unless_allowed() -> None:
    spec = specs.dense()
    two = recipe(spec, parallelism=Parallelism(tp=2))
    assert ENGINE.tune(spec, MI300X, two).env["ROCM_QUICK_REDUCE_QUANTIZATION"] == "NONE"
    assert ENGINE.tune(spec, MI300X, two, allow_lossy=True).env["ROCM_QUICK_REDUCE_QUANTIZATION"] == "INT8"
    assert "ROCM_QUICK_REDUCE_QUANTIZATION" not in ENGINE.tune(spec, MI300X, recipe(spec)).env
    said = [reason for reason in ENGINE.explain(spec, MI300X, two, allow_lossy=True) if reason.lossy]
    assert any("INT8" in reason.choice for reason in said)


def test_parsers_are_said_in_this_engines_words_as_far_as_the_release_has_them() -> None:
    spec = models.load("Qwen/Qwen3-32B")
    assert spec is not None
    given = words(ENGINE.tune(spec, MI300X, recipe(spec)))
    assert (given["--tool-call-parser"], given["--reasoning-parser"]) == ("qwen25", "qwen3")


def test_every_parser_in_the_list_exists_in_the_newest_release() -> None:
    table = release.flags("sglang", VERSIONS[0])
    for flag, named in (("--tool-call-parser", "tool"), ("--reasoning-parser", "reasoning")):
        choices = next(entry.choices for entry in table.flags if flag in entry.flags) or ()
        assert set(getattr(sglang_kernels.parsers(), named).values()) <= set(choices)


def stored_as(method: str, form: str, spec: ModelSpec) -> ModelSpec:
    kind = Quantization(method=method, format=form, bytes_per_weight=0.53, quantised_parts=("attention",))  # type: ignore[arg-type]
    return msgspec.structs.replace(spec, quantization=kind)


@pytest.mark.parametrize(
    ("card", "method", "form", "reason"),
    [
        ("R9700", "fp8", "fp8", "built for gfx942, gfx950"),
        ("MI300X", "quark", "mxfp4", "FP4 hardware"),
        ("MI300X", "gptq", "int4", "does not take gptq"),
        ("MI355X", "modelopt", "nvfp4", "does not take modelopt"),
        ("MI355X", "quark", "mxfp4", None),
        ("MI300X", "mxfp4", "mxfp4", None),
        ("MI300X", "compressed-tensors", "fp8", None),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(card: str, method: str, form: str, reason: str | None) -> None:
    said = ENGINE.supports(stored_as(method, form, specs.dense()), catalog.load(card), form)
    assert (said is None) if reason is None else (said is not None and reason in said)


def test_a_class_that_it_lacks_is_refused() -> None:
    spec = msgspec.structs.replace(specs.dense(), architecture="NobodyForCausalLM")
    assert "no class for NobodyForCausalLM" in str(ENGINE.supports(spec, MI300X, "bf16"))


def test_a_plan_is_written_checked_and_sound_on_every_target_for_any_engine(tmp_path: Path) -> None:
    plan = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="4xMI300X", engine="sglang"), OFFLINE)
    assert plan.chosen is not None
    assert plan.chosen.recipe.engine == "sglang"
    for name in ("env", "shell", "systemd", "docker", "compose", "podman", "kubernetes", "kustomize", "helm"):
        made = targets.render(plan, name, Options(name="qwen"))
        text = "\n".join(artifact.content for artifact in made)
        assert "vllm" not in text.lower(), name
        for artifact in made:
            path = tmp_path / name / artifact.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(artifact.content)
    for place in ("docker", "compose/compose.yaml", "kubernetes", "helm/values.yaml"):
        assert main.run(["validate", "--gpu", "MI300X", str(tmp_path / place)]) == 0


@pytest.mark.parametrize("target", ["lws", "keda", "hpa", "kserve", "kuberay", "gateway"])
def test_a_target_that_is_about_vllm_says_so(target: str) -> None:
    plan = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="1xMI300X", engine="sglang"), OFFLINE)
    with pytest.raises(InvalidInput, match="written for vllm"):
        targets.render(plan, target, Options(name="qwen"))


def test_a_key_is_not_put_where_everyone_sees_it() -> None:
    plan = workflow.choose(Request(model="Qwen/Qwen3-32B", gpus="1xMI300X", engine="sglang"), OFFLINE)
    with pytest.raises(InvalidInput, match="only as an argument"):
        targets.render(plan, "docker", Options(name="qwen", api_key_secret=True))


def test_a_line_is_recognised_judged_and_repaired_whatever_engine_was_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [
        "python3",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "m",
        "--tp",
        "4",
        "--ep",
        "8",
        "--nsa-decode-backend",
        "aiter",
    ]
    assert main.run(["validate", "--json", "--", *line]) == 1
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert {"VER002", "SGL002"} <= {finding["id"] for finding in entry["findings"]}
    assert main.run(["validate", "--fix", "--", *line]) == 0
    fixed = capsys.readouterr().out.splitlines()[1]
    assert "--dsa-decode-backend aiter" in fixed
    assert "--ep-size 4" in fixed


def test_an_image_for_other_makers_cards_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["docker", "run", "lmsysorg/sglang:v0.5.23", "python3", "-m", "sglang.launch_server", "--model-path", "m"]
    main.run(["validate", "--json", "--", *run])
    assert "VER008" in {f["id"] for f in json.loads(capsys.readouterr().out)["files"][0]["findings"]}


def test_an_image_for_another_card_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for tag, expected in (("mi35x", True), ("mi30x", False)):
        run = ["docker", "run", f"lmsysorg/sglang:v0.5.23-rocm720-{tag}", "sglang", "serve", "--model-path", "m"]
        main.run(["validate", "--gpu", "MI300X", "--json", "--", *run])
        found = {f["id"] for f in json.loads(capsys.readouterr().out)["files"][0]["findings"]}
        assert ("SGL021" in found) is expected
        assert "VER030" not in found  # the release is read from the tag


def test_recipes_of_one_engine_are_not_those_of_another() -> None:
    database = RecipeDatabase()
    found = database.load_recipes("Qwen/Qwen3.5-397B-A17B", "sglang")
    assert found
    assert all(known.engine == "sglang" and known.engine_version is not None for known in found)
    assert all(known.engine == "vllm" for known in database.load_recipes("Qwen/Qwen3.5-397B-A17B", "vllm"))
    asked = {"model_id": "Qwen/Qwen3.5-397B-A17B", "gpu": "MI300X", "gpu_count": 8, "engine": "sglang"}
    match = database.find_matching_recipe(asked)
    assert match is not None
    assert match.parallelism == Parallelism(tp=8)
