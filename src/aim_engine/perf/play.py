"""A recipe's own traffic, played through the engine's scheduler with the model's step times.

The fit says how long a steady step takes and how long one prompt takes alone; here both become the time of any step: decode rows
over what they hold, beside so many prompt tokens. What one request alone waits for beyond its steps (server, tokenizer,
transport) is the same for all.
"""

from __future__ import annotations

import math

from aim_engine.perf.estimate import MemoryBreakdown, Simulated
from aim_engine.perf.features import INDEX, OF_PROMPTS
from aim_engine.perf.roofline import Model, combined
from aim_engine.perf.simulate import Engine, Outcome, Traffic, simulate
from aim_engine.recipe.recipe import Recipe
from aim_engine.workload import Slo, Workload

SEED = 0
MEASURED = 500
"""Requests of one replica that are measured, at least."""
PER_USER = 10
"""... of each user of a closed loop, as serving benchmarks send: all start at once, and the burst weighs as it does in them."""
MOST = 3000
"""Requests that are played at most: what keeps a simulation of one recipe below a tenth of a second or so."""
LEAST_FIXED_S = 0.005
"""What a request takes beyond its steps, at least: 5 to 16 ms of server and transport were published for vLLM."""
_CACHE = tuple(
    INDEX[name] for name in ("kv_read", "kv_flop", "full_context", "latent_context", "indexer_read", "latent_rereads")
)
_BY_CONTEXT = tuple(INDEX[name] for name in ("prefill_attention_flop", "prefill_sparse_flop"))
_PLAIN = tuple(INDEX[f"{part}_{bound}"] for part in ("attention", "dense", "expert") for bound in ("weights", "flop"))
"""Weights in a step that only decodes; in one with prompt tokens their `mixed` twins stand in for them."""


class Steps:
    """Seconds of one step of one data-parallel rank, the others doing alike."""

    def __init__(self, model: Model) -> None:
        self._model = model
        features = model.features
        self._ranks = features.dp
        self._context = features.context
        self._before = max(1.0, features.before)
        self._share = 1.0 / features.prompt_tokens
        self._rows: dict[int, tuple[float, float, float, float]] = {}
        self._prompts: dict[tuple[int, int], tuple[float, float]] = {}

    def __call__(self, decode_rows: int, decode_context: float, prompt_tokens: int, prompt_context: float, /) -> float:
        """See `perf.simulate.StepTime`."""
        fixed_s, weights_s, cache_s, scale = self._decode(decode_rows)
        seconds = fixed_s
        if decode_rows:
            seconds += cache_s * decode_context / (decode_rows * self._context)
        if prompt_tokens:
            own_s, attention_s = self._prompt(decode_rows, prompt_tokens)
            seconds += own_s + attention_s * prompt_context / self._before
        else:
            seconds += weights_s
        return seconds * scale

    def _decode(self, rows: int) -> tuple[float, float, float, float]:
        """Of a step with so many decode rows: what is always there, weights without prompts, the cache's part, the effects' factor."""
        found = self._rows.get(rows)
        if found is None:
            parts = self._parts(self._model.features.one_step(float(rows), self._context, 0.0, 0.0, 0.0))
            cache_s, weights_s = (sum(parts[number] for number in group) for group in (_CACHE, _PLAIN))
            scale = self._model.factor(float(max(1, rows) * self._ranks))
            found = self._rows[rows] = (sum(parts) - cache_s - weights_s, weights_s, cache_s, scale)
        return found

    def _prompt(self, rows: int, tokens: int) -> tuple[float, float]:
        """What prompt tokens add beside decode rows, weights of all included, and their attention."""
        found = self._prompts.get((rows, tokens))
        if found is None:
            features = self._model.features
            step = features.one_step(float(rows), self._context, tokens * self._share, float(tokens), self._before)
            parts = self._parts([value if own else 0.0 for value, own in zip(step, OF_PROMPTS, strict=True)])
            attention_s = sum(parts[number] for number in _BY_CONTEXT)
            exchange = INDEX["expert_exchange_bytes"]
            exchanged_s = self._model.coefficients[exchange] * features.exchange_row_s * tokens * self._ranks
            found = self._prompts[rows, tokens] = (sum(parts) - attention_s + exchanged_s, attention_s)
        return found

    def _parts(self, features: list[float]) -> list[float]:
        return combined([c * x for c, x in zip(self._model.coefficients, features, strict=True)])


def alone_s(steps: Steps, prompt_tokens: int, max_num_batched_tokens: int) -> float:
    """The steps to the first token of one request with nothing beside it."""
    done, seconds = 0, 0.0
    while done < prompt_tokens:
        count = min(max_num_batched_tokens, prompt_tokens - done)
        seconds += steps(0, 0.0, count, done + count / 2)
        done += count
    return seconds


def fixed_s(model: Model, steps: Steps, most_tokens: int) -> float:
    """What a request takes beyond its steps, by the fit's time to first token of one request alone."""
    prompt = max(1, round(model.features.prompt_tokens))
    return max(LEAST_FIXED_S, model.ttft_median_s(1.0) - alone_s(steps, prompt, most_tokens))


def play(
    model: Model,
    recipe: Recipe,
    breakdown: MemoryBreakdown,
    slo: Slo,
    *,
    default_tokens: int,
    running: float,
    length_ratio_min: float = 1.0,
    seed: int = SEED,
) -> Outcome:
    """What requests of one replica of `recipe` see under its workload, which has a rate or a concurrency.

    `default_tokens` is the engine's own max_num_batched_tokens, with which the fit's measurements were made; `running` is how many are
    expected in flight at one replica. Raises: InvalidInput when the load cannot be carried.
    """
    workload, ranks = model.workload, recipe.parallelism.dp
    steps = Steps(model)
    each = max(1, breakdown.max_sequences // ranks)
    engine = Engine(
        max_num_seqs=recipe.max_num_seqs,
        max_num_batched_tokens=recipe.max_num_batched_tokens,
        cache_tokens=max(each, 1) * workload.total_tokens,
        fixed_s=fixed_s(model, steps, default_tokens),
        tokens_per_step=model.features.yielded,
    )
    in_flight = math.ceil(running / ranks)
    closed = workload.rate_requests_s is None
    around = 0 if closed else min(MOST // 4, 2 * in_flight)
    requests = min(MOST - 2 * around, max(MEASURED, (PER_USER if closed else 4) * in_flight))
    shares = recipe.replicas * ranks
    traffic = Traffic(
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        requests=requests,
        around=around,
        rate_requests_s=None if workload.rate_requests_s is None else workload.rate_requests_s / shares,
        concurrency=max(1, in_flight) if closed else None,
        length_ratio_min=length_ratio_min,
        prefix_hit_fraction=workload.prefix_hit_fraction,
        seed=seed,
    )
    limits = {f"{limit.name}_limit_ms": limit.ms for limit in slo.limits}
    return simulate(engine, traffic, steps, **limits)


def told(outcome: Outcome, seed: int = SEED) -> Simulated:
    """An outcome as an estimate carries it."""
    return Simulated(
        requests=outcome.requests,
        seed=seed,
        ttft_ms=outcome.ttft_ms,
        tpot_ms=outcome.tpot_ms,
        itl_ms=outcome.itl_ms,
        e2e_ms=outcome.e2e_ms,
        preemptions=outcome.preemptions,
        goodput_fraction=outcome.goodput_fraction,
    )


def needs_load(workload: Workload) -> bool:
    """Whether a workload names no load that could be played."""
    return workload.rate_requests_s is None and workload.concurrency is None
