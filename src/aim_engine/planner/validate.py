"""Whether a recipe or a plan is sound: the rules that need model, device and engine together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.planner.plan import Candidate, Plan
from aim_engine.recipe.recipe import Recipe
from aim_engine.units import format_bytes
from aim_engine.workload import Workload

HIGH_UTILISATION = 0.95
"""Above it graph capture has been seen to run out of memory."""


def recipe_findings(
    recipe: Recipe, spec: ModelSpec, gpu: Gpu, backend: Backend, about: Mapping[str, Any] | None = None
) -> tuple[Finding, ...]:
    """Everything wrong or notable about serving `spec` on `gpu` with `recipe`. `about` is what else rules may ask for."""
    found: list[Finding] = []
    problem = memory.split_problem(spec, recipe.parallelism)
    if problem is not None:
        found.append(_error("PAR001", problem, "choose tp from the divisors of the head counts"))
        return tuple(found)
    unsupported = backend.supports(spec, gpu, recipe.precision)
    if unsupported is not None:
        found.append(_error("QNT001", unsupported, "choose a precision that this card has kernels for"))
    if recipe.max_model_len > spec.max_position_embeddings:
        found.append(
            _error(
                "MEM002",
                f"max_model_len {recipe.max_model_len} exceeds the model's {spec.max_position_embeddings}",
                f"use at most {spec.max_position_embeddings}",
            )
        )
    if recipe.max_num_batched_tokens < recipe.max_num_seqs:
        found.append(
            _error(
                "SCH002",
                f"max_num_batched_tokens {recipe.max_num_batched_tokens} is below max_num_seqs {recipe.max_num_seqs}",
                "raise max_num_batched_tokens",
            )
        )
    breakdown = memory.breakdown(spec, gpu, recipe, Workload(input_tokens=1, output_tokens=1))
    if not breakdown.fits:
        lacking = breakdown.missing_bytes
        why = f"{format_bytes(lacking)} are missing" if lacking else "the KV cache holds no request of max_model_len"
        found.append(
            _error("MEM001", f"does not fit on {gpu.name}: {why}", "more devices, less precision or a shorter context")
        )
    if gpu.kind != "cpu" and recipe.gpu_memory_utilization > HIGH_UTILISATION:
        found.append(
            Finding(
                id="MEM006",
                severity="warning",
                message=f"gpu_memory_utilization {recipe.gpu_memory_utilization} leaves little for graph capture",
                remedy="use 0.92",
            )
        )
    if recipe.trust_remote_code:
        found.append(
            Finding(
                id="MOD003",
                severity="warning",
                message="code from the model's repository will run on this host",
                remedy=f"review it, then: aim-engine cache approve {spec.model_id}",
            )
        )
    if recipe.online_quantization is not None or (recipe.kv_cache_dtype != "auto"):
        found.append(
            Finding(
                id="QNT100",
                severity="info",
                message="lossy: weights or KV cache in a format the checkpoint was not made for",
                remedy="compare answers before production",
            )
        )
    if recipe.parallelism.tp > max(1, spec.kv_heads) and not spec.is_mla:
        found.append(
            Finding(
                id="PAR004",
                severity="info",
                message=f"tp {recipe.parallelism.tp} exceeds the {spec.kv_heads} KV heads: the KV cache is replicated, not split",
            )
        )
    command = backend.command(recipe, model_ref=spec.model_id, host="127.0.0.1", port=8000)
    said = {finding.id for finding in found}
    checked = backend.check(
        command.args,
        command.env,
        recipe.engine_version,
        model=spec,
        gpu=gpu,
        about={**_measured(recipe, gpu), **(about or {})},
    )
    found.extend(finding for finding in checked if finding.id not in said)
    return tuple(found)


def plan_findings(plan: Plan, backend: Backend) -> tuple[Finding, ...]:
    """The findings for a plan that was stored: its chosen recipe against its own inputs, and its arithmetic."""
    if plan.chosen is None:
        return (Finding(id="PLN001", severity="error", message="the plan chose nothing", remedy=plan.hint),)
    about = _planned_for(plan, plan.chosen)
    found = list(recipe_findings(plan.chosen.recipe, plan.inputs.model, plan.inputs.gpu, backend, about))
    again = memory.breakdown(plan.inputs.model, plan.inputs.gpu, plan.chosen.recipe, plan.inputs.workload)
    if again != plan.chosen.estimate.memory:
        found.append(
            Finding(
                id="PLN002",
                severity="warning",
                message="the memory figures in the plan differ from what this version computes",
                remedy="plan again",
            )
        )
    return tuple(found)


def _measured(recipe: Recipe, gpu: Gpu) -> dict[str, Any]:
    """The minor release that the recipe's figures come from, where it was run on this card."""
    minors = {run.engine_version.rsplit(".", 1)[0] for run in recipe.verified if run.gpu == gpu.name}
    ours = recipe.engine_version.rsplit(".", 1)[0]
    return {"measured_minor": None if not minors else ours if ours in minors else max(minors), "official_image": True}


def _planned_for(plan: Plan, chosen: Candidate) -> dict[str, Any]:
    """The goal and load of a plan, and a smaller configuration that keeps the same limits, where it holds one."""
    inputs = plan.inputs
    limited = any(limit is not None for limit in (inputs.slo.ttft_ms, inputs.slo.tpot_ms, inputs.slo.e2e_ms))
    fewer = min(
        (
            other
            for other in plan.alternatives
            if limited and other.estimate.meets_slo and other.recipe.gpu_count < chosen.recipe.gpu_count
        ),
        key=lambda other: (other.recipe.gpu_count, other.recipe.key),
        default=None,
    )
    shown = None if fewer is None else f"{fewer.recipe.gpu_count} x {fewer.recipe.gpu} ({fewer.recipe.key})"
    return {
        "objective": inputs.objective,
        "tpot_limit": inputs.slo.tpot_ms,
        "concurrency": inputs.workload.concurrency,
        "fewer_gpus": shown,
        "planned_gpus": chosen.recipe.gpu_count,
    }


class ConfigurationValidator:
    """Checks recipes and resources; the names are those of the product's first specification."""

    def __init__(self, spec: ModelSpec, gpu: Gpu, backend: Backend) -> None:
        self._spec = spec
        self._gpu = gpu
        self._backend = backend

    def validate_recipe(self, recipe: Recipe) -> tuple[Finding, ...]:
        """Findings on the recipe's own configuration; an error among them means it will not start or not work right."""
        return recipe_findings(recipe, self._spec, self._gpu, self._backend)

    def validate_resources(self, recipe: Recipe, available_resources: Mapping[str, Any]) -> tuple[Finding, ...]:
        """Findings on what is there: `gpu_count`, `memory_bytes`, `cpu_cores`, each optional in `available_resources`."""
        wanted = {
            "gpu_count": recipe.gpu_count,
            "memory_bytes": recipe.resources.memory_bytes * recipe.replicas,
            "cpu_cores": recipe.resources.cpu_cores * recipe.replicas,
        }
        found = []
        for name, need in wanted.items():
            have = available_resources.get(name)
            if have is not None and have < need:
                shown = (format_bytes(need), format_bytes(have)) if name == "memory_bytes" else (str(need), str(have))
                found.append(
                    Finding(
                        id="RES001",
                        severity="error" if name == "gpu_count" else "warning",
                        message=f"{name}: {shown[0]} needed, {shown[1]} available",
                        remedy="fewer replicas or a smaller split",
                    )
                )
        return tuple(found)


def _error(identity: str, message: str, remedy: str) -> Finding:
    return Finding(id=identity, severity="error", message=message, remedy=remedy)
