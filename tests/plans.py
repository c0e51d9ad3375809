"""Plans with a fixed recipe, for tests of what happens to a plan after it was made."""

from __future__ import annotations

from typing import Any

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
