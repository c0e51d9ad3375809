"""Plans with a fixed recipe, for tests of what happens to a plan after it was made."""

from __future__ import annotations

from typing import Any

import msgspec

import specs
from aim_engine.hardware import catalog
from aim_engine.hardware.cluster import Cluster, Device, Node, asked
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.perf.estimate import Estimate, Range
from aim_engine.planner.plan import Candidate, Inputs, Plan, Rejection
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources
from aim_engine.units import GIB
from aim_engine.workload import Slo, Workload

VERSION = "0.32.0"


def plan(recipe: Recipe, spec: ModelSpec, gpu: Gpu, cluster: Cluster, *, load_s: float = 120.0) -> Plan:
    """A plan that chose `recipe`; speed figures are placeholders of the right shape, memory is computed."""
    workload = Workload()
    figure = Range(value=10.0, low=8.0, high=12.0, basis="modelled", source="test")
    estimate = Estimate(
        memory=memory.breakdown(spec, gpu, recipe, workload),
        concurrency=64,
        ttft_ms=figure,
        tpot_ms=figure,
        e2e_ms=figure,
        output_tok_s=figure,
        requests_s=figure,
        output_tok_s_per_gpu=10.0,
        output_tok_s_per_user=10.0,
        step_ms={"weights": 10.0},
        load_s=load_s,
        meets_slo=True,
    )
    inputs = Inputs(
        model=spec,
        cluster=cluster,
        gpu=gpu,
        workload=workload,
        slo=Slo(),
        objective="throughput",
        engine="vllm",
        engine_version=VERSION,
    )
    return Plan(inputs=inputs, chosen=Candidate(recipe=recipe, estimate=estimate))


def dense_on_all() -> Plan:
    """One replica of Qwen3-32B's shapes over all eight MI300X of a node that somebody asked about."""
    spec, gpu = specs.dense(model_id="Qwen/Qwen3-32B"), catalog.load("MI300X")
    recipe = _recipe(spec, gpu, Parallelism(tp=8), attention_backend="ROCM_AITER_FA", env={"VLLM_ROCM_USE_AITER": "1"})
    return plan(recipe, spec, gpu, asked(8, gpu))


def replicas() -> Plan:
    """Two replicas of two MI355X each, a mixture of experts."""
    spec, gpu = specs.mixture(), catalog.load("MI355X")
    recipe = _recipe(
        spec,
        gpu,
        Parallelism(tp=2, ep=True),
        replicas=2,
        extra_args=("--distributed-executor-backend", "mp"),
    )
    return plan(recipe, spec, gpu, asked(4, gpu))


def detected_part() -> Plan:
    """Two of three detected W7900, whose device files are known."""
    spec, gpu = specs.small(), catalog.load("W7900")
    devices = tuple(
        Device(index=index, gpu=gpu.name, product=gpu.product, arch=gpu.arch, render_minor=128 + index)
        for index in range(3)
    )
    cluster = Cluster(origin="detected", nodes=(Node(name="workstation", devices=devices),))
    return plan(_recipe(spec, gpu, Parallelism(tp=2)), spec, gpu, cluster, load_s=20.0)


def gated() -> Plan:
    """A large model behind a licence, on one card whose PCI id is shared with nobody."""
    gpu = catalog.load("MI325X")
    spec = specs.dense(
        hidden=8192, layers=80, intermediate=28672, vocab=128256, model_id="meta-llama/Llama-3.3-70B", gated=True
    )
    return plan(_recipe(spec, gpu, Parallelism()), spec, gpu, asked(1, gpu), load_s=400.0)


def on_cpu() -> Plan:
    """A small model on a CPU."""
    spec = specs.small()
    gpu = Gpu(
        name="cpu", product="AMD EPYC", arch="x86-64-v4-bf16", kind="cpu", memory_bytes=24 * GIB, shared_memory=True
    )
    recipe = _recipe(
        spec,
        gpu,
        Parallelism(),
        gpu_count=0,
        kv_cache_memory_bytes=GIB,
        env={"VLLM_TARGET_DEVICE": "cpu"},
        resources=Resources(cpu_cores=2, memory_bytes=8 * GIB, shm_bytes=4 * GIB, gpus=0),
    )
    return plan(recipe, spec, gpu, Cluster(origin="detected", nodes=(Node(name="here"),)), load_s=30.0)


def partitions() -> Plan:
    """Four replicas, each on one CPX partition of an MI300X."""
    spec, gpu = specs.small(), catalog.load("MI300X")
    devices = tuple(
        Device(
            index=index,
            gpu=gpu.name,
            product=gpu.product,
            arch=gpu.arch,
            partition="CPX",
            memory_partition="NPS4",
            resource="amd.com/cpx_nps4",
        )
        for index in range(8)
    )
    cluster = Cluster(origin="detected", nodes=(Node(name="worker", devices=devices),))
    return plan(_recipe(spec, gpu, Parallelism(), replicas=4), spec, gpu, cluster, load_s=20.0)


def two_hosts() -> Plan:
    """One replica over sixteen MI300X of two hosts."""
    spec, gpu = specs.dense(model_id="test/large"), catalog.load("MI300X")
    return plan(_recipe(spec, gpu, Parallelism(tp=8, pp=2)), spec, gpu, asked(16, gpu), load_s=300.0)


def latent() -> Plan:
    """A model with a compressed KV latent, experts spread over eight MI355X."""
    spec, gpu = specs.latent(), catalog.load("MI355X")
    return plan(_recipe(spec, gpu, Parallelism(tp=8, ep=True)), spec, gpu, asked(8, gpu), load_s=400.0)


def radeon() -> Plan:
    """A workstation card."""
    spec, gpu = specs.small(), catalog.load("R9700")
    return plan(_recipe(spec, gpu, Parallelism()), spec, gpu, asked(1, gpu), load_s=20.0)


def fp8() -> Plan:
    """A checkpoint in fp8 with an fp8 KV cache, two replicas."""
    spec, gpu = specs.dense(model_id="test/dense-FP8"), catalog.load("MI325X")
    recipe = _recipe(spec, gpu, Parallelism(), replicas=2, precision="fp8", kv_cache_dtype="fp8")
    return plan(recipe, spec, gpu, asked(2, gpu))


def adapters() -> Plan:
    """LoRA adapters by name, on one card."""
    spec, gpu = specs.dense(model_id="test/dense"), catalog.load("MI300X")
    words = ("--enable-lora", "--max-lora-rank", "32", "--lora-modules", "law=org/law lora", "code=org/code")
    return plan(_recipe(spec, gpu, Parallelism(), extra_args=words), spec, gpu, asked(1, gpu))


def tools() -> Plan:
    """A model that calls tools and shows its reasoning apart, asked to keep limits."""
    spec, gpu = specs.dense(model_id="test/dense"), catalog.load("MI300X")
    words = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    made = plan(_recipe(spec, gpu, Parallelism(tp=2), extra_args=words), spec, gpu, asked(2, gpu))
    slo = Slo(ttft_ms=500, tpot_ms=50, e2e_ms=9000)
    return msgspec.structs.replace(made, inputs=msgspec.structs.replace(made.inputs, slo=slo))


def shared_memory() -> Plan:
    """An APU, whose GPU shares the machine's memory."""
    spec, gpu = specs.small(), catalog.load("STRIX-HALO")
    return plan(_recipe(spec, gpu, Parallelism()), spec, gpu, asked(1, gpu), load_s=20.0)


def images() -> Plan:
    """A model that is given images and guesses tokens ahead by n-grams: options whose values are JSON."""
    spec, gpu = specs.dense(model_id="test/images"), catalog.load("MI300X")
    words = (
        "--limit-mm-per-prompt",
        '{"image": 4, "video": 0}',
        "--speculative-config",
        '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}',
        "--allowed-local-media-path",
        "/srv/images, scanned",
    )
    return plan(_recipe(spec, gpu, Parallelism(tp=2), extra_args=words), spec, gpu, asked(2, gpu))


def long_context() -> Plan:
    """A context of 262,144 tokens of a checkpoint made for 40,960, few requests at once, the KV cache in fp8."""
    spec, gpu = specs.dense(model_id="test/dense"), catalog.load("MI325X")
    stretch = '{"rope_scaling": {"rope_type": "yarn", "factor": 6.4, "original_max_position_embeddings": 40960}}'
    recipe = _recipe(
        spec,
        gpu,
        Parallelism(tp=4),
        max_model_len=262144,
        max_num_seqs=8,
        max_num_batched_tokens=16384,
        kv_cache_dtype="fp8",
        extra_args=("--hf-overrides", stretch),
    )
    return plan(recipe, spec, gpu, asked(4, gpu))


def nothing() -> Plan:
    """A plan that found no way."""
    made = dense_on_all()
    return Plan(
        inputs=made.inputs,
        chosen=None,
        rejected=(Rejection(recipe="tp1 bf16", reason="the weights exceed the memory"),),
        hint="aim-engine plan Qwen/Qwen3-32B --gpus 2xMI300X",
    )


ALL = {
    "qwen3-32b-8xmi300x": dense_on_all,
    "mixture-2x2xmi355x": replicas,
    "small-2xw7900": detected_part,
    "llama-70b-1xmi325x": gated,
    "small-cpu": on_cpu,
}
FURTHER = {
    "small-4xcpx": partitions,
    "large-16xmi300x": two_hosts,
    "latent-8xmi355x": latent,
    "small-1xr9700": radeon,
    "fp8-2x1xmi325x": fp8,
    "adapters-1xmi300x": adapters,
    "tools-2xmi300x": tools,
    "small-1xstrix-halo": shared_memory,
    "images-2xmi300x": images,
    "long-context-4xmi325x": long_context,
}
"""Kept as what differs from the first plan, so that a change of all files is read once."""


def _recipe(spec: ModelSpec, gpu: Gpu, parallelism: Parallelism, **changes: Any) -> Recipe:
    devices = parallelism.world_size
    shm = (16 if devices > 1 else 4) * GIB
    resources = Resources(
        cpu_cores=8 * devices, memory_bytes=shm + (16 * devices + 8) * GIB, shm_bytes=shm, gpus=devices
    )
    values: dict[str, Any] = {
        "gpu": gpu.name,
        "parallelism": parallelism,
        "engine_version": VERSION,
        "resources": resources,
    }
    return specs.recipe(spec, **{**values, **changes})
