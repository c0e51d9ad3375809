"""Recipe selection as one call, under the names of the product's first specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aim_engine import settings as all_settings
from aim_engine import workflow
from aim_engine.errors import AimError, InvalidInput
from aim_engine.model.spec import ModelSpec
from aim_engine.planner.plan import Plan
from aim_engine.recipe.database import Known, RecipeDatabase
from aim_engine.recipe.heuristics import calculate_optimal_gpu_count, select_optimal_precision
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources, replace
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
        """The best recipe on `available_gpus`, else that of `select_fallback_recipe`.

        `available_gpus` is a number of this machine's GPUs, or a request such as 8xMI300X.
        """
        chosen = self._chosen(model_id, self._request(available_gpus), precision)
        return chosen if chosen is not None else self.select_fallback_recipe(model_id, available_gpus)

    def select_fallback_recipe(self, model_id: str, available_gpus: int | str) -> Recipe | None:
        """The first recipe there is: all GPUs, half, one; other precisions; the default recipe; the size table.

        The default recipe is what somebody ran, on this card if they did, else on another; it may take more or other GPUs than are there.
        `provenance_note` says which step it is from and what the steps before it came to: nothing is downgraded silently.
        None when not even the size table's GPUs hold the model. Raises: what kept a model from being read that has neither a default
        recipe nor a size in its name.
        """
        card, count = self._card(available_gpus)
        tried: list[str] = []
        try:
            spec = self._shapes(model_id)
        except AimError as err:
            tried.append(str(err))
            return self._default_recipe(model_id, card, count, tried) or self._by_size(
                model_id, card, count, tried, err
            )
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
        default = self._default_recipe(model_id, card, count, tried) or self._planned_default(
            model_id, card, count, tried
        )
        return default if default is not None else self._by_table(spec, card, count, tried)

    def _default_recipe(self, model_id: str, card: str, count: int, tried: list[str]) -> Recipe | None:
        """What somebody ran: on this card with the GPUs that are there, else with more of them, else on another card.

        None where nobody did in a split that is named.
        """
        from aim_engine import backend
        from aim_engine.hardware import catalog

        overlay = workflow.overlay_dir(self._settings)
        database = self._database()
        found: list[tuple[str, Known]] = []
        for asked in ({"gpu": card, "gpu_count": count}, {"gpu": card}, {}):
            matches = database.match({"model_id": model_id, "engine": "vllm", **asked})
            found += [(card if asked else each.known.gpus[0], each.known) for each in matches if each.known.parallelism]
        if not found:
            tried.append("default recipe: none is known whose split is named")
            return None
        name, known = found[0]
        gpu, engine = catalog.load(name, overlay), backend.get("vllm", overlay)
        split, gpus = known.parallelism or Parallelism(), known.gpu_count
        version = workflow.engine_version(Request(model=model_id), self._settings, gpu)
        defaults = engine.defaults(version, gpu)
        recipe = Recipe(
            model_id=model_id,
            gpu=name,
            gpu_count=gpus,
            engine="vllm",
            engine_version=version,
            parallelism=split,
            precision=known.precision,
            kv_cache_dtype=known.kv_cache_dtype,
            attention_backend=known.attention_backend,
            max_model_len=known.max_model_len or FALLBACK_CONTEXT_TOKENS,
            max_num_seqs=known.max_num_seqs or min(256, defaults.max_num_seqs),
            max_num_batched_tokens=known.max_num_batched_tokens or defaults.max_num_batched_tokens,
            gpu_memory_utilization=known.gpu_memory_utilization or defaults.gpu_memory_utilization,
            resources=_resources(gpus),
        )
        note = (
            f"the default recipe: as run on {', '.join(known.gpus)} ({known.provenance.source}); memory is not proven"
        )
        return _marked(engine.adopt(recipe, known), note + self._lacking(recipe, card, count), tried)

    def _planned_default(self, model_id: str, card: str, count: int, tried: list[str]) -> Recipe | None:
        """The least GPUs, of this card or else another, that hold what somebody ran without saying in which split; None without one."""
        from aim_engine.hardware import catalog

        known = self._database().load_recipes(model_id)
        cards = list(dict.fromkeys(name for each in known for name in each.gpus))
        for name in sorted(cards, key=lambda name: name != card):
            gpus = 1
            while gpus <= catalog.load(name, workflow.overlay_dir(self._settings)).devices_per_node:
                if (recipe := self._chosen(model_id, f"{gpus}x{name}", None)) is not None:
                    note = (
                        f"the default recipe: planned for {recipe.gpu_count} x {name}, one of the cards it was run on"
                    )
                    return _marked(recipe, note + self._lacking(recipe, card, count), tried)
                gpus *= 2
        if not known:
            tried.append("nobody is known to have run this model")
        return None

    def _database(self) -> RecipeDatabase:
        return RecipeDatabase(workflow.overlay_dir(self._settings), Path(self._settings.state_dir).expanduser())

    def _chosen(self, model_id: str, gpus: str, precision: str | None) -> Recipe | None:
        plan = self.plan(model_id, gpus=gpus, precision=precision)
        by_name = plan.inputs.model.basis == "name"
        return plan.chosen.recipe if plan.chosen is not None and not by_name else None

    def _shapes(self, model_id: str) -> ModelSpec:
        """The model; a recipe that nobody reviews is not chosen for a likeness. Raises: InvalidInput when only the name is known."""
        spec = workflow.describe(model_id, self._settings)
        if spec.basis == "name":
            raise InvalidInput(f"of {model_id} only the name is known")
        return spec

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

    def _by_size(self, model_id: str, card: str, count: int, tried: list[str], cause: AimError) -> Recipe:
        """A recipe from the size in the name, on no more GPUs than are there. Raises: `cause` when the name has no size."""
        from aim_engine.model.source import size_from_name

        size = size_from_name(model_id)
        if size is None:
            raise cause
        recipe = self._from_table(model_id, size, card, min(calculate_optimal_gpu_count({"size": size}), count))
        return _marked(recipe, f"from the size in the name alone ({size:g}B)", tried)

    def _by_table(self, spec: ModelSpec, card: str, count: int, tried: list[str]) -> Recipe | None:
        """A recipe from the model's size, on as many GPUs as the table takes; None when it does not fit these either."""
        from aim_engine.hardware import catalog
        from aim_engine.perf import memory
        from aim_engine.planner.search import own_precision

        size = spec.parameters.total / 1e9
        recipe = self._from_table(spec.model_id, size, card, calculate_optimal_gpu_count({"size": size}))
        if spec.quantization is not None:
            recipe = replace(recipe, precision=own_precision(spec))
        gpu = catalog.load(card, workflow.overlay_dir(self._settings))
        if memory.split_problem(spec, recipe.parallelism) or not memory.breakdown(spec, gpu, recipe, Workload()).fits:
            return None
        note = f"from the size table: {recipe.gpu_count} GPUs for {size:.0f}B" + self._lacking(recipe, card, count)
        return _marked(recipe, note, tried)

    def _lacking(self, recipe: Recipe, card: str, count: int) -> str:
        """What of a recipe's GPUs is not there; empty when all are."""
        from aim_engine.hardware import catalog

        if recipe.gpu == card and recipe.gpu_count <= count:
            return ""
        most = catalog.load(recipe.gpu, workflow.overlay_dir(self._settings)).devices_per_node
        nodes = f", in nodes of {most}" if recipe.gpu_count > most else ""
        return f"; it takes {recipe.gpu_count} x {recipe.gpu}{nodes}, and {count} x {card} are there"

    def _from_table(self, model_id: str, size: float, card: str, gpus: int) -> Recipe:
        """What the tables of the product's first specification say of a size in billions of parameters."""
        from aim_engine.hardware import catalog

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
