"""Rows of a measurement table, read as what they measured: a model, a card, a recipe and a load.

The columns are those of public collections of serving results: model, gpu, gpu_count, tp, pp, dp, ep, dp_attention, engine,
engine_version, precision, kv_dtype, input_len, output_len, concurrency_or_batch (or concurrency), request_rate, metric_kind, gpu_memory_utilization,
max_num_seqs, max_model_len; others are carried along. Cells may be empty and columns absent. A row that cannot be read says why, and
the others go on.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from aim_engine.errors import AimError, Corrupt, InvalidInput
from aim_engine.hardware.gpu import Gpu
from aim_engine.model.naming import Library
from aim_engine.model.spec import ModelSpec
from aim_engine.perf import memory
from aim_engine.planner.arguments import filled
from aim_engine.planner.search import own_precision
from aim_engine.recipe.recipe import Parallelism, Recipe, Resources
from aim_engine.workload import Workload

Row = Mapping[str, str]
_DECODING = re.compile(r"decode tp(\d+) ep(\d+) x\d+ \((\d+) GPUs\)")
"""The half of a disaggregated deployment that decodes, as notes of collections state it."""
_DEPTH = re.compile(r"\bdepth (\d+)")
"""Tokens already in the cache when llama-bench starts to time."""
CHAT_TOKENS = 229.0
"""Mean prompt of collected conversations where a row names no length. Source: 741,334 tokens of 1,000 ShareGPT prompts with answers of 512
(kyuz0/amd-r9700-vllm-toolboxes@18a88f1, throughput results)."""
_CHAT = re.compile(r"sharegpt|openorca", re.IGNORECASE)
DRAFTING_SEQS = 48
"""Requests SGLang runs at once when it drafts and nothing else is asked. Source: sgl-project/sglang pull request 34290, "hardcoded 48"
in python/sglang/srt/arg_groups/speculative_hook.py."""
_NEEDED = ("model", "gpu")
_DEVICES = ("gpu_count", "tp", "pp", "dp", "ep")
MOST_DEVICES = 100_000
"""More devices than any machine has are a damaged cell."""
MOST_TOKENS = 1_000_000_000
"""Of a context, a step or a request; more are a damaged cell."""
_FULL = 0.9
"""Share of a device that weights may take where a row does not say how they are split; beyond it they are split over all devices."""
_KV_DTYPES = {"fp8": "fp8", "fp8_e4m3": "fp8", "q8_0": "int8", "int8": "int8"}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row, understood."""

    row_id: str
    spec: ModelSpec
    known_as: str
    """How its model was recognised."""
    checkpoint: str
    """The model as the table names it."""
    gpu: Gpu
    gpu_count: int
    recipe: Recipe
    workload: Workload
    engine: str
    """As the table names it, lower case: vllm, sglang, atom, vllm+atom, llama.cpp; `vllm` where it says nothing."""
    engine_version: str
    kind: str
    speculation: str = ""
    """Method of speculative decoding, such as mtp3; empty without."""
    disaggregated: bool = False
    """Prefill and decode on devices of their own."""
    length_ratio_min: float = 1.0
    """Lengths are drawn evenly from this share of the nominal ones up to them."""
    profile: str = ""
    """Nominal lengths of prompt and answer."""
    prompts: int | None = None
    """Requests that the benchmark sent."""


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be understood, and why."""

    row_id: str
    reason: str


def parse(content: str, name: str) -> list[dict[str, str]]:
    """The rows of a CSV table with a header, cells stripped. Raises: Corrupt, InvalidInput."""
    text = content.lstrip("﻿").replace("\x00", "")
    first = text.split("\n", 1)[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
    except csv.Error as err:
        raise Corrupt(f"{name} is not readable as a table", why=str(err)) from err
    missing = [column for column in _NEEDED if column not in columns]
    if missing:
        raise InvalidInput(
            f"{name} is not a table of measurements",
            why=f"it has no column {' and '.join(missing)}",
            hint="its first line must name the columns: model, gpu, tp, ...",
        )
    return rows


class Reader:
    """Understands rows with one set of models and cards, each looked up once."""

    def __init__(
        self,
        library: Library,
        card: Callable[[str], Gpu],
        defaults: Callable[[Gpu, str], tuple[int, int, float]],
        arguments: Mapping[str, str] | None = None,
    ):
        """`card` finds a GPU by name and raises InvalidInput; `defaults` gives max_num_seqs,
        max_num_batched_tokens and gpu_memory_utilization on it of an engine's release, of the newest where its text names none; `arguments` are command lines by `server_args_id`.
        """
        self._arguments = arguments or {}
        self._library = library
        self._card = card
        self._defaults = defaults
        self._cards: dict[str, Gpu | str] = {}

    def read(self, rows: Iterable[Row]) -> list[Case | Unreadable]:
        """One answer for each row, in order."""
        found: list[Case | Unreadable] = []
        for number, row in enumerate(rows, 1):
            row_id = row.get("row_id") or str(number)
            try:
                found.append(self._case(filled(row, self._arguments), row_id))
            except AimError as err:
                found.append(Unreadable(row_id=row_id, reason=str(err)))
        return found

    def _case(self, row: Row, row_id: str) -> Case:
        gpu = self._gpu(row["gpu"])
        named = self._library.find(row["model"], row.get("model_base", ""), stated_format=row.get("precision", ""))
        if named is None:
            raise InvalidInput(f"the model '{row['model']}' is not known here", hint="add its config with --models")
        spec = named.spec
        parallelism, replicas = _parallelism(row, spec, gpu)
        stated_seqs = _whole(row, "max_num_seqs")
        seqs, budget, utilisation = self._defaults(gpu, row.get("engine_version", "") if "vllm" in _engine(row) else "")
        stated_budget = _whole(row, "max_num_batched_tokens")
        workload, concurrency = _workload(row)
        if stated_seqs is not None and "sglang" in _engine(row):
            stated_seqs = max(1, stated_seqs // parallelism.dp)  # SGLang counts those of all ranks together
        if stated_seqs is None and _drafts_on_sglang(row) and parallelism.dp == 1:
            stated_seqs = DRAFTING_SEQS
        precision = own_precision(spec)
        longest = _whole(row, "max_model_len") or max(spec.max_position_embeddings, workload.total_tokens)
        recipe = Recipe(
            model_id=spec.model_id,
            gpu=gpu.name,
            gpu_count=replicas * parallelism.world_size,
            replicas=replicas,
            engine="vllm",
            engine_version=row.get("engine_version", ""),
            parallelism=parallelism,
            precision=precision,
            kv_cache_dtype=_KV_DTYPES.get(row.get("kv_dtype", "").lower(), "auto"),
            max_model_len=longest,
            max_num_seqs=stated_seqs or max(seqs, math.ceil(concurrency / replicas) if concurrency else 1),
            max_num_batched_tokens=stated_budget or max(budget, stated_seqs or 1),
            gpu_memory_utilization=_share(row, "gpu_memory_utilization") or utilisation,
            resources=Resources(cpu_cores=1, memory_bytes=1, shm_bytes=1, gpus=parallelism.world_size),
        )
        return Case(
            row_id=row_id,
            spec=spec,
            known_as=named.how,
            checkpoint=row["model"],
            gpu=gpu,
            gpu_count=recipe.gpu_count,
            recipe=recipe,
            workload=workload,
            engine=_engine(row),
            engine_version=row.get("engine_version", ""),
            kind=row.get("metric_kind", "") or "serving",
            speculation=row.get("spec_decoding", "").lower(),
            disaggregated=row.get("disagg", "") == "1",
            length_ratio_min=_ratio(row),
            profile="/".join(
                row.get(nominal) or str(mean)
                for nominal, mean in (("input_len", workload.input_tokens), ("output_len", workload.output_tokens))
            ),
            prompts=_whole(row, "num_prompts"),
        )

    def _gpu(self, cell: str) -> Gpu:
        if cell not in self._cards:
            try:
                self._cards[cell] = _as_served(self._card(_card_name(cell)))
            except InvalidInput as err:
                self._cards[cell] = err.what
        found = self._cards[cell]
        if isinstance(found, str):
            raise InvalidInput(found)
        return found


def _drafts_on_sglang(row: Row) -> bool:
    served_whole = row.get("disagg", "") != "1"
    return served_whole and bool(row.get("spec_decoding")) and row.get("engine", "").lower().startswith("sglang")


def _engine(row: Row) -> str:
    """The engine as tables name it; vLLM with a plugin that only its version tells of is named with it."""
    name = row.get("engine", "").lower() or "vllm"
    return "vllm+atom" if name == "vllm" and "atom" in row.get("engine_version", "").lower() else name


def _as_served(gpu: Gpu) -> Gpu:
    """An APU with all the memory that its driver can be given, which is how people serve on it."""
    return (
        gpu if gpu.unified_memory_bytes is None else msgspec.structs.replace(gpu, memory_bytes=gpu.unified_memory_bytes)
    )


def _card_name(cell: str) -> str:
    """`Ryzen AI Max+ 395 (Strix Halo)`, `8x AMD Instinct MI300X OAM`, `Radeon RX 7900 XTX` -> what the catalogue may know."""
    if re.search(r"strix.?halo|8060s|ai max", cell, re.IGNORECASE):
        return "STRIX-HALO"
    return re.sub(r"^\s*\d+\s*[x*]\s*", "", cell).strip()


def _parallelism(row: Row, spec: ModelSpec, gpu: Gpu) -> tuple[Parallelism, int]:
    """How one replica is spread, and how many replicas the row's devices hold.

    Attention data-parallel over a tensor-parallel group (dp_attention) is dp ranks here, with the experts over all of them.
    """
    decoding = _DECODING.search(row.get("notes", "")) if row.get("disagg", "") == "1" else None
    count = _whole(row, "gpu_count")
    tp, pp, dp = (_whole(row, name) or 1 for name in ("tp", "pp", "dp"))
    wide = _whole(row, "ep") or 1
    if decoding is not None:
        tp, wide, count = int(decoding[1]), int(decoding[2]), int(decoding[3])
    elif row.get("disagg", "") == "1" and count and tp * pp * dp < count:
        count = max(tp * pp * dp, count // 2)
    ep = wide > 1 and spec.is_moe
    if row.get("dp_attention", "") == "1" and spec.is_moe:
        dp, tp, ep = max(dp, tp, wide), 1, True
    elif dp > 1 and count is not None and tp * pp * dp > count:
        dp = max(1, count // (tp * pp))
    elif tp == 1 and decoding is not None and wide > 1:
        dp = wide
    if not _whole(row, "tp") and count and dp == 1 and memory.checkpoint_bytes(spec) > _FULL * gpu.memory_bytes:
        tp = count
    if dp > 1 and not (spec.is_moe or spec.is_mla):
        dp = 1
    parallelism = Parallelism(tp=tp, pp=pp, dp=dp, ep=ep)
    replicas = max(1, (count or parallelism.world_size) // parallelism.world_size)
    return parallelism, replicas


def _workload(row: Row) -> tuple[Workload, int | None]:
    """Mean lengths and the load. Lengths drawn evenly from a share of the nominal one up to it have that mean."""
    mean = (1 + _ratio(row)) / 2
    lengths = []
    prompt = CHAT_TOKENS if _CHAT.search(row.get("notes", "")) else 1024.0
    for nominal, average, default in (("input_len", "avg_in_tok", prompt), ("output_len", "avg_out_tok", 512.0)):
        exact, stated = _number(row, average), _number(row, nominal)
        if exact is not None and 0 < exact < 1:
            raise InvalidInput(f"{average} {row[average]} is not a number of tokens")
        if max(exact or 0, stated or 0) > MOST_TOKENS or min(exact or 0, stated or 0) < 0:
            raise InvalidInput(f"{nominal} {row.get(nominal) or row[average]} is not a count up to {MOST_TOKENS:,}")
        lengths.append(max(1, round(exact or (stated * mean if stated else default if stated is None else 1))))
    depth = _DEPTH.search(row.get("notes", "")) if row.get("metric_kind", "").startswith("llama_bench") else None
    cached = int(depth[1]) if depth is not None else 0
    hit = 0.0
    if row.get("metric_kind", "") == "llama_bench_prefill":
        hit = cached / (cached + lengths[0])
        lengths[0] += cached
    elif cached:
        lengths[0] = cached
    concurrency, rate = (
        (_number(row, "concurrency_or_batch") or _number(row, "concurrency")),
        _number(row, "request_rate"),
    )
    offered = rate if rate is not None and 0 < rate < 1e6 else None
    if concurrency is not None and not 0 <= concurrency <= MOST_TOKENS:
        raise InvalidInput(f"concurrency {concurrency:g} is not a count up to {MOST_TOKENS:,}")
    running = max(1, round(concurrency)) if concurrency else None
    workload = Workload(
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        concurrency=running,
        rate_requests_s=offered if running is None else None,
        prefix_hit_fraction=hit,
    )
    return workload, running


def _ratio(row: Row) -> float:
    ratio = _number(row, "length_ratio_min")
    return ratio if ratio is not None and 0 <= ratio <= 1 else 1.0


def _number(row: Row, name: str) -> float | None:
    """A finite number; None when the cell is empty or absent. Raises: InvalidInput."""
    text = row.get(name, "").replace(",", "")
    if not text or text.lower() in ("inf", "nan", "none", "null", "n/a", "-"):
        return None
    try:
        value = float(text)
    except ValueError as err:
        raise InvalidInput(f"{name} '{text}' is not a number") from err
    return value if math.isfinite(value) else None


def _whole(row: Row, name: str) -> int | None:
    """A count; None where the cell is empty or 0, as tables write what was not set. Raises: InvalidInput."""
    value = _number(row, name)
    if value is None or value == 0:
        return None
    most = MOST_DEVICES if name in _DEVICES else MOST_TOKENS
    if not 1 <= value <= most:
        raise InvalidInput(f"{name} {row[name]} is not a count from 1 to {most:,}")
    return round(value)


def _share(row: Row, name: str) -> float | None:
    value = _number(row, name)
    if value is not None and not 0 <= value <= 1:
        raise InvalidInput(f"{name} {row[name]} is not a share from 0 to 1")
    return value or None
