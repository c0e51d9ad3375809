"""What is emitted exists in its release, and what has no kernel is refused."""

from __future__ import annotations

import msgspec
import pytest

import specs
from aim_engine import backend, facts
from aim_engine.backend import release
from aim_engine.errors import InvalidInput
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import Cpu
from aim_engine.hardware.cpu import as_gpu
from aim_engine.model import catalog as models
from aim_engine.model.spec import ModelSpec, Quantization
from aim_engine.recipe.recipe import Parallelism

ENGINE = backend.get("vllm")
CPU = as_gpu(
    Cpu(
        model="test",
        vendor="AuthenticAMD",
        architecture="x86_64",
        sockets=1,
        cores=4,
        threads=4,
        numa_nodes=1,
        memory_total_bytes=2**34,
        memory_available_bytes=2**34,
        features=("avx2",),
        clock_hz=10**9,
    )
)


def model(name: str) -> ModelSpec:
    found = models.load(name)
    assert found is not None
    return found


def quantised(method: str, form: str) -> ModelSpec:
    scheme = Quantization(method=method, format=form, bytes_per_weight=0.6, quantised_parts=("dense_mlp",))  # type: ignore[arg-type]
    return specs.dense(quantization=scheme)


@pytest.mark.parametrize(
    ("version", "card", "every"),
    [
        *((ENGINE.versions()[0], card, 1) for card in ("MI210", "MI300X", "MI355X", "W7900", "R9700")),
        *((version, card, 4) for version in ENGINE.versions()[1:] for card in ("MI300X", "MI355X")),
    ],
)
def test_every_emitted_argument_exists_in_its_release(version: str, card: str, every: int) -> None:
    gpu = catalog.load(card)
    for name in models.names()[::every]:
        spec = model(name)
        for split in (Parallelism(), Parallelism(tp=2), Parallelism(tp=4, pp=2), Parallelism(dp=8, ep=True)):
            recipe = specs.recipe(
                spec,
                gpu=card,
                parallelism=split,
                engine_version=version,
                kv_cache_dtype="fp8" if split.pp > 1 else "auto",
                trust_remote_code=split.ep,
            )
            tuned = ENGINE.tune(spec, gpu, recipe)
            command = ENGINE.command(tuned, model_ref=name, host="127.0.0.1", port=8000)
            found = ENGINE.check(command.args, command.env, version)
            assert not [finding for finding in found if finding.id[:5] in ("VER00", "VER02")], (name, split)


def test_each_release_has_its_table_and_they_name_themselves() -> None:
    assert ENGINE.versions()[0] == max(ENGINE.versions(), key=release.number)
    for path in (facts.BUNDLED / "engines" / "vllm").glob("*.flags.json"):
        version = path.name.removesuffix(".flags.json")
        found = ENGINE.release(version)
        assert found.version == version
        assert len(found.flags) > 200
        assert "VLLM_ROCM_USE_AITER" in found.env


def test_an_unknown_release_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput) as raised:
        ENGINE.release("9.9.9")
    assert ENGINE.versions()[0] in (raised.value.why or "")


def test_a_cpu_takes_the_newest_release_with_a_cpu_package() -> None:
    assert release.load("vllm", ENGINE.newest(CPU)).cpu_package is not None
    assert ENGINE.newest(catalog.load("MI300X")) == ENGINE.versions()[0]


@pytest.mark.parametrize(
    ("card", "precision", "refused"),
    [
        ("MI210", "fp8", True),
        ("MI300X", "fp8", False),
        ("MI355X", "fp8", False),
        ("W7900", "fp8", True),
        ("R9700", "fp8", False),
        ("MI300X", "nvfp4", True),
        ("MI355X", "mxfp4", False),
        ("MI300X", "mxfp4", False),
        ("W7900", "mxfp8", True),
        ("MI210", "kv_fp8", True),
        ("MI300X", "kv_fp8", False),
    ],
)
def test_precisions_without_kernels_are_refused_by_card(card: str, precision: str, refused: bool) -> None:
    reason = ENGINE.supports(specs.dense(), catalog.load(card), precision)
    assert (reason is not None) == refused
    assert reason is None or catalog.load(card).arch in reason or card in reason


@pytest.mark.parametrize(("method", "form"), [("bitsandbytes", "nf4"), ("gguf", "gguf"), ("modelopt", "nvfp4")])
def test_checkpoints_the_image_cannot_load_are_refused(method: str, form: str) -> None:
    assert ENGINE.supports(quantised(method, form), catalog.load("MI300X"), "int4") is not None


def test_a_cpu_serves_16_bit_and_integers_only() -> None:
    assert ENGINE.supports(specs.dense(), CPU, "bf16") is None
    assert ENGINE.supports(specs.dense(), CPU, "fp32") is None
    assert ENGINE.supports(quantised("gptq", "int4"), CPU, "int4") is None
    assert ENGINE.supports(quantised("fp8", "fp8"), CPU, "fp8") is not None


def test_aiter_is_switched_on_only_where_it_is_built() -> None:
    for card, expected in (("MI300X", "1"), ("MI355X", "1"), ("MI210", None), ("W7900", None)):
        tuned = ENGINE.tune(specs.dense(), catalog.load(card), specs.recipe(specs.dense(), gpu=card))
        assert tuned.env.get("VLLM_ROCM_USE_AITER") == expected
        assert (tuned.attention_backend is not None) == (expected is not None)


def test_what_the_user_set_wins_over_the_tuning() -> None:
    recipe = specs.recipe(specs.dense(), env={"VLLM_ROCM_USE_AITER": "0"})
    assert ENGINE.tune(specs.dense(), catalog.load("MI300X"), recipe).env["VLLM_ROCM_USE_AITER"] == "0"


def test_a_cpu_starts_eager_with_its_cache_set_outright() -> None:
    recipe = specs.recipe(specs.small(), gpu="cpu", gpu_count=0, kv_cache_memory_bytes=2**30)
    command = ENGINE.command(ENGINE.tune(specs.small(), CPU, recipe), model_ref="/m", host="127.0.0.1", port=1)
    assert "--enforce-eager" in command.args
    assert command.args[command.args.index("--kv-cache-memory-bytes") + 1] == str(2**30)
    assert "--gpu-memory-utilization" not in command.args
    assert command.args[command.args.index("--served-model-name") + 1] == recipe.model_id


def test_an_image_is_given_only_for_what_it_was_built_for() -> None:
    assert ENGINE.image("0.32.0", catalog.load("MI300X")).reference == "vllm/vllm-openai-rocm:v0.32.0"
    for gpu in (catalog.load("MI455X"), CPU):
        with pytest.raises(InvalidInput, match="no known image"):
            ENGINE.image("0.32.0", gpu)


def test_defaults_shrink_with_the_memory_of_the_device() -> None:
    large, small = (ENGINE.defaults("0.32.0", catalog.load(name)) for name in ("MI300X", "RX7900XTX"))
    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 16384)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)
    assert msgspec.structs.asdict(large).keys() == msgspec.structs.asdict(small).keys()
