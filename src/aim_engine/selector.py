"""Recipe selection as one call, under the names of the product's first specification."""

from __future__ import annotations

from typing import Any

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import AimError, InvalidInput
from aim_engine.planner.plan import Plan
from aim_engine.recipe.heuristics import calculate_optimal_gpu_count, select_optimal_precision
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources
from aim_engine.settings import Settings
from aim_engine.units import GIB
from aim_engine.workflow import Request
from aim_engine.workload import Objective, Slo, Workload

FALLBACK_PRECISIONS = ("bf16", "fp16", "fp8")
FALLBACK_CONTEXT_TOKENS = 4096
"""Context of the recipe made from a name alone: short enough for every model of the size table."""


class RecipeSelector:
    """Chooses recipes with one set of settings; a selector holds no other state."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings if settings is not None else all_settings.load()

    def plan(
        self,
        model_id: str,
        *,
        gpus: str | None = None,
        precision: str | None = None,
        objective: Objective = "throughput",
        workload: Workload | None = None,
        slo: Slo | None = None,
        **request: Any,
    ) -> Plan:
        """The whole plan: chosen recipe, alternatives, rejections, reasons. `gpus` such as 8xMI300X; None means here."""
        return workflow.choose(
            Request(
                model=model_id,
                gpus=gpus,
                precision=precision,
                objective=objective,
                workload=workload or Workload(),
                slo=slo or Slo(),
                **request,
            ),
            self._settings,
        )

    def select_optimal_recipe(
        self, model_id: str, available_gpus: int | str, precision: str | None = None
    ) -> Recipe | None:
        """The best recipe on `available_gpus`, or the best that a change of count or precision allows; None if neither.

        `available_gpus` is a number of this machine's GPUs, or a request such as 8xMI300X.
        """
        chosen = self._chosen(model_id, self._request(available_gpus), precision)
        return chosen if chosen is not None else self.select_fallback_recipe(model_id, available_gpus)

    def select_fallback_recipe(self, model_id: str, available_gpus: int | str) -> Recipe | None:
        """The first recipe that works: all GPUs, half, one; other precisions; a recipe somebody ran; the size in the name.

        `provenance_note` says which step it is from and what the steps before it came to: nothing is downgraded silently.
        """
        card, count = self._card(available_gpus)
        tried: list[str] = []
        try:
            self._require_shapes(model_id)
            for fewer in dict.fromkeys((count, count // 2, 1)):
                if fewer < 1:
                    continue
                if (recipe := self._chosen(model_id, f"{fewer}x{card}", None)) is not None:
                    return _marked(recipe, f"chosen for {fewer} of {count} GPUs", tried)
                tried.append(f"{fewer} x {card}: no configuration")
            for precision in FALLBACK_PRECISIONS:
                if (recipe := self._chosen(model_id, f"{count}x{card}", precision)) is not None:
                    lossy = ", made on load, which changes answers" if recipe.online_quantization else ""
                    return _marked(recipe, f"chosen in {precision}{lossy}", tried)
                tried.append(f"{precision}: no configuration")
        except AimError as err:
            known = self._known_recipe(model_id, card, count, err)
            return known if known is not None else self._default_recipe(model_id, card, count, err)
        return None

    def _known_recipe(self, model_id: str, card: str, count: int, cause: AimError) -> Recipe | None:
        """A recipe that somebody ran on this card, for a model whose shapes are not known here; None without one."""
        from aim_engine import backend
        from aim_engine.hardware import catalog
        from aim_engine.recipe.database import RecipeDatabase

        overlay = workflow.overlay_dir(self._settings)
        asked = {"model_id": model_id, "gpu": card, "gpu_count": count, "engine": "vllm"}
        found = [match.known for match in RecipeDatabase(overlay).match(asked)]
        known = next((each for each in found if each.parallelism is not None), None)
        if known is None or known.parallelism is None:
            return None
        engine, gpu = backend.get("vllm", overlay), catalog.load(card, overlay)
        version = workflow.engine_version(Request(model=model_id), self._settings, gpu)
        defaults = engine.defaults(version, gpu)
        gpus = known.gpu_count
        recipe = Recipe(
            model_id=model_id,
            gpu=card,
            gpu_count=gpus,
            engine="vllm",
            engine_version=version,
            parallelism=known.parallelism,
            precision=known.precision,
            kv_cache_dtype=known.kv_cache_dtype,
            attention_backend=known.attention_backend,
            max_model_len=known.max_model_len or FALLBACK_CONTEXT_TOKENS,
            max_num_seqs=known.max_num_seqs or min(256, defaults.max_num_seqs),
            max_num_batched_tokens=known.max_num_batched_tokens or defaults.max_num_batched_tokens,
            gpu_memory_utilization=known.gpu_memory_utilization or defaults.gpu_memory_utilization,
            resources=_resources(gpus),
        )
        note = f"as run on {', '.join(known.gpus)} ({known.provenance.source}); memory is not proven"
        return _marked(engine.adopt(recipe, known), note, [str(cause)])

    def _chosen(self, model_id: str, gpus: str, precision: str | None) -> Recipe | None:
        plan = self.plan(model_id, gpus=gpus, precision=precision)
        by_name = plan.inputs.model.basis == "name"
        return plan.chosen.recipe if plan.chosen is not None and not by_name else None

    def _require_shapes(self, model_id: str) -> None:
        """A recipe that nobody reviews is not chosen for a likeness. Raises: InvalidInput when only the name is known."""
        spec = workflow.describe(model_id, self._settings)
        if spec.basis == "name":
            raise InvalidInput(f"of {model_id} only the name is known")

    def _request(self, available_gpus: int | str) -> str:
        card, count = self._card(available_gpus)
        return f"{count}x{card}"

    def _card(self, available_gpus: int | str) -> tuple[str, int]:
        from aim_engine.hardware import catalog

        overlay = workflow.overlay_dir(self._settings)
        if isinstance(available_gpus, str):
            count, gpu = catalog.parse_request(available_gpus, overlay)
            return gpu.name, count
        _, gpu = workflow.hardware(None, self._settings)
        if gpu.kind == "cpu":
            raise InvalidInput(
                f"{available_gpus} GPUs of which kind? None was found here", hint="name the card, such as '8xMI300X'"
            )
        if available_gpus < 1:
            raise InvalidInput(f"{available_gpus} GPUs are not enough", hint="give at least 1")
        return gpu.name, available_gpus

    def _default_recipe(self, model_id: str, card: str, count: int, cause: AimError) -> Recipe:
        """A recipe from the size in the name. Raises: `cause` when the name has no size or the table's count is not there."""
        from aim_engine.hardware import catalog
        from aim_engine.model.source import size_from_name

        size = size_from_name(model_id)
        if size is None:
            raise cause
        gpus = min(calculate_optimal_gpu_count({"size": size}), count)
        gpu = catalog.load(card, workflow.overlay_dir(self._settings))
        precision = select_optimal_precision({"size": size}, {"memory_per_gpu": gpu.memory_bytes / GIB})
        return Recipe(
            model_id=model_id,
            gpu=card,
            gpu_count=gpus,
            engine="vllm",
            engine_version=workflow.engine_version(Request(model=model_id), self._settings, gpu),
            parallelism=Parallelism(tp=gpus),
            precision="bf16" if precision == "bf16" else "fp16",
            max_model_len=FALLBACK_CONTEXT_TOKENS,
            max_num_seqs=256,
            max_num_batched_tokens=FALLBACK_CONTEXT_TOKENS,
            gpu_memory_utilization=0.9,
            resources=_resources(gpus),
            provenance="fallback",
            provenance_note=f"from the size in the name alone ({size:g}B): {cause}",
        )


def select_optimal_recipe(model_id: str, available_gpus: int | str, precision: str | None = None) -> Recipe | None:
    """The best recipe for a model on `available_gpus` (a count here, or such as 8xMI300X)."""
    return RecipeSelector().select_optimal_recipe(model_id, available_gpus, precision)


def select_fallback_recipe(model_id: str, available_gpus: int | str) -> Recipe | None:
    """The nearest recipe that works when the optimal one is not available."""
    return RecipeSelector().select_fallback_recipe(model_id, available_gpus)


def _resources(gpus: int) -> Resources:
    return Resources(cpu_cores=8 * gpus, memory_bytes=(16 * gpus + 24) * GIB, shm_bytes=16 * GIB, gpus=gpus)


def _marked(recipe: Recipe, note: str, tried: list[str]) -> Recipe:
    import msgspec

    before = f"; before that, {'; '.join(tried)}" if tried else ""
    return msgspec.structs.replace(recipe, provenance="fallback", provenance_note=note + before)
