"""What is fetched before anybody asks: by appointment, by past uses, behind everything that is needed now."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from pathlib import Path

import pytest

import hub_server
from aim_engine.cache import acquire, ahead, evict, prefetch, schedule
from aim_engine.cache.evict import Candidate
from aim_engine.cache.faults import NoSpace
from aim_engine.cache.manager import ModelCacheManager
from aim_engine.cache.pace import Pace
from aim_engine.cache.prefetch import DAY_S, WEEK_S, Wish
from aim_engine.cache.schedule import Appointment
from aim_engine.errors import InvalidInput
from caches import MODEL, Make

MONDAY_S = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC).timestamp()
GB = 10**9


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2026-11-23T20:00", "2026-11-23 20:00"),
        ("2026-11-23T20:00+02:00", "2026-11-23 18:00"),
        ("2026-11-23T08:00", "2026-11-23 08:00"),  # it lasts eight hours
        ("2026-11-23T02:00", None),
        ("daily@13:00", "2026-11-23 13:00"),
        ("daily@03:00", "2026-11-24 03:00"),
        ("weekends@09:00", "2026-11-28 09:00"),
        ("mon@06:00", "2026-11-23 06:00"),
        ("sun@22:00", "2026-11-29 22:00"),
    ],
)
def test_appointments_are_in_utc_and_last(when: str, expected: str | None) -> None:
    start = schedule.next_start_s(Appointment(model_id=MODEL, when=when), MONDAY_S)
    assert (None if start is None else f"{dt.datetime.fromtimestamp(start, dt.UTC):%Y-%m-%d %H:%M}") == expected


@pytest.mark.parametrize("when", ["soon", "25:00", "xyz@08:00", "daily@24:10", "2020-01-01T00:00"])
def test_what_is_no_time_to_come_is_refused(manager: ModelCacheManager, when: str) -> None:
    manager.store.ensure()
    with pytest.raises(InvalidInput):
        schedule.add(manager.store, Appointment(model_id=MODEL, when=when), MONDAY_S)


def test_a_model_that_is_needed_within_a_day_does_not_go(make: Make, server: hub_server.Hub) -> None:
    for number in range(3):
        server.models[f"org/m{number}"] = {
            "config.json": b"{}", "model.safetensors": hub_server.safetensors(100_000, number),
        }  # fmt: skip
    manager = make(limit_bytes=220_000)
    manager.download_model("org/m0")
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)
    schedule.add(manager.store, Appointment(model_id="org/m0", when=soon.isoformat()), time.time())
    manager.download_model("org/m1")
    manager.download_model("org/m2")
    assert [model.model_id for model in manager.models()] == ["org/m0", "org/m2"]
    with pytest.raises(InvalidInput, match="must stay: scheduled for"):
        manager.remove_model("org/m0")
    assert schedule.drop(manager.store, "org/m0") == 1
    manager.download_model("org/m1")
    assert not manager.is_cached("org/m0")


def test_uses_of_lately_and_of_this_time_of_the_week_count() -> None:
    now = MONDAY_S
    assert prefetch.probability((), now) == 0
    once, often = (
        prefetch.probability((now - DAY_S,), now),
        prefetch.probability(tuple(now - n * 3600 for n in range(40)), now),
    )
    assert 0 < once < 0.1 < 0.9 < often <= 1
    mondays = tuple(now + 3600 * 6 - week * WEEK_S for week in range(1, 5))
    fridays = tuple(now + 4 * DAY_S - week * WEEK_S for week in range(1, 5))
    assert prefetch.probability(mondays, now) > 0.8 > 0.3 > prefetch.probability(fridays, now)


def wish(name: str, size: int, **changes: object) -> Wish:
    return Wish(model_id=name, size_bytes=size, **changes)  # type: ignore[arg-type]


def candidate(name: str, size: int, **changes: object) -> Candidate:
    values: dict[str, object] = {"model_id": name, "commit": "c", "content": {name: size}, "idle_s": 0.0, "uses": 1.0}
    return Candidate(**{**values, **changes})  # type: ignore[arg-type]


def choose(wishes: list[Wish], here: list[Candidate], free: int, **options: object) -> dict[str, prefetch.Decision]:
    values: dict[str, object] = {"now_s": MONDAY_S, "refetch_bytes_s": 1e9, "free_bytes": free, "uses_s": {}}
    decided = prefetch.choose(wishes, here, **{**values, **options})  # type: ignore[arg-type]
    return {decision.model_id: decision for decision in decided}


def test_only_what_is_worth_less_goes_for_a_wish() -> None:
    often = tuple(MONDAY_S - n * 3600 for n in range(40))
    here = [candidate("idle", 50 * GB), candidate("often", 60 * GB), candidate("pinned", 10 * GB, held=("pinned",))]
    decided = choose([wish("soon", 40 * GB, needed_in_s=3600.0)], here, 0, uses_s={"often": often})
    assert decided["soon"].does == "fetch"
    assert decided["soon"].evicts == (("idle", "c"),)
    decided = choose([wish("soon", 105 * GB, needed_in_s=3600.0)], here, 0, uses_s={"often": often})
    assert decided["soon"].does == "fetch"
    decided = choose(
        [wish("soon", 60 * GB, needed_in_s=3600.0)], [candidate("often", 80 * GB)], 0, uses_s={"often": often}
    )
    assert decided["soon"].does == "skip"
    assert "worth more" in decided["soon"].why
    decided = choose([wish("soon", 20 * GB, needed_in_s=0.0)], [candidate("pinned", 61 * GB, held=("pinned",))], 0)
    assert decided["soon"].why.endswith("there is no room")


def test_a_budget_and_small_chances_are_respected_and_told() -> None:
    decided = choose(
        [
            wish("a", 40 * GB, needed_in_s=60.0), wish("b", 30 * GB, needed_in_s=60.0), wish("c", 1 * GB, uses_s=(MONDAY_S - 93 * DAY_S,)),
        ], [], 1000 * GB, budget_bytes=50 * GB,
    )  # fmt: skip
    assert [decided[name].does for name in "abc"] == ["fetch", "skip", "skip"]
    assert "budget" in decided["b"].why
    assert "too unlikely" in decided["c"].why
    assert decided["a"].value_s == 40


def test_an_appointment_is_kept_before_anybody_asks(make: Make, server: hub_server.Hub) -> None:
    manager = make()
    manager.store.ensure()
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)
    schedule.add(manager.store, Appointment(model_id=MODEL, when=soon.isoformat()), time.time())
    (decision,) = ahead.decide(manager)
    assert decision.does == "fetch"
    assert "appointment in 5.0 h" in decision.why
    said: list[str] = []
    assert ahead.carry_out(manager, (decision,), said.append, pace=Pace()) > 300_000
    assert make(endpoint="http://127.0.0.1:9").is_cached(MODEL)
    assert manager.index.counters()["prefetched_bytes"] > 300_000
    assert ahead.decide(manager) == ()


def test_what_was_used_often_comes_back(make: Make, server: hub_server.Hub) -> None:
    manager = make()
    for _ in range(20):
        manager.download_model(MODEL)
    manager.remove_model(MODEL)
    evict.empty_trash(manager.store, grace_s=0)
    (decision,) = ahead.decide(manager)
    assert decision.does == "fetch"
    assert "uses, the last" in decision.why
    server.fail_api = 404
    (decision,) = ahead.decide(make())
    assert decision.does == "skip"
    assert "does not tell its size" in decision.why


def test_a_download_that_somebody_waits_for_goes_first(make: Make, server: hub_server.Hub, tmp_path: Path) -> None:
    server.models["org/later"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(400_000, 9)}
    front = make().pace()
    behind = make().pace(background_fraction=0.3)
    front.active()
    began = time.monotonic()
    waiting = threading.Thread(target=behind.take, args=(1000,))
    waiting.start()
    waiting.join(0.6)
    assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert time.monotonic() - began > 1.5


def test_a_prefetch_moves_next_to_nothing_while_somebody_waits(make: Make, server: hub_server.Hub) -> None:
    server.models["org/later"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(8 << 20, 9)}
    server.models["org/now"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(4 << 20, 8)}
    server.rate_bytes_s = 500_000
    back, front = make(), make()
    front.store.ensure()
    back.store.ensure()
    moved: list[tuple[float, int]] = []

    class Counting(Pace):
        def take(self, count: int) -> float:
            waited = super().take(count)
            moved.append((time.monotonic(), count))
            return waited

    decision = prefetch.Decision(
        model_id="org/later", does="fetch", why="", probability=1.0, value_s=1.0, size_bytes=8 << 20
    )
    pace = Counting(back.index.path.with_suffix(".pace"), background=True)
    worker = threading.Thread(target=ahead.carry_out, args=(back, (decision,)), kwargs={"pace": pace})
    plan = front.plan_download("org/now")
    worker.start()
    time.sleep(1.0)
    began = time.monotonic()
    acquire.apply(plan, front.store, front.index, front.client(), piece_bytes=1 << 20, pace=front.pace())
    ended = time.monotonic()
    worker.join(120)
    assert make().is_cached("org/later")
    assert sum(count for _, count in moved) >= 8 << 20
    assert sum(count for at, count in moved if began + 0.2 < at < ended) <= 0.05 * (4 << 20)


def test_all_downloads_of_a_store_share_one_bucket(make: Make, server: hub_server.Hub) -> None:
    server.models["org/other"] = {"config.json": b"{}", "model.safetensors": hub_server.safetensors(300_000, 5)}
    managers = [make(bandwidth_bytes_s=400_000.0) for _ in range(2)]
    began = time.monotonic()
    threads = [
        threading.Thread(target=manager.download_model, args=(model,))
        for manager, model in zip(managers, (MODEL, "org/other"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    took = time.monotonic() - began
    assert all(manager.is_cached(model) for manager, model in zip(managers, (MODEL, "org/other"), strict=True))
    assert took >= 0.9 * (600_000 - 40_000 * 2) / 400_000


def test_a_quota_bounds_the_models_it_names(make: Make, server: hub_server.Hub) -> None:
    from aim_engine.cache import holds

    for number in range(4):
        server.models[f"tenant/m{number}"] = {
            "config.json": b"{}", "model.safetensors": hub_server.safetensors(100_000, number),
        }  # fmt: skip
    manager = make()
    manager.download_model(MODEL)
    holds.set_quota(manager.store, "tenant/*", 210_000)
    for number in range(3):
        manager.download_model(f"tenant/m{number}")
    assert [model.model_id for model in manager.models()] == [MODEL, "tenant/m1", "tenant/m2"]
    manager.stand("tenant/m1", pinned=True)
    manager.stand("tenant/m2", pinned=True)
    asked = len(server.requests)
    with pytest.raises(NoSpace, match="does not fit its quota"):
        manager.download_model("tenant/m3")
    assert not any("/resolve/" in each for each in server.requests[asked:])
    holds.set_quota(manager.store, "tenant/*", None)
    assert manager.download_model("tenant/m3").is_dir()


def test_what_is_opportunistic_takes_room_only_from_its_like(make: Make, server: hub_server.Hub) -> None:
    for number in range(3):
        server.models[f"org/m{number}"] = {
            "config.json": b"{}", "model.safetensors": hub_server.safetensors(100_000, number),
        }  # fmt: skip
    manager = make(limit_bytes=220_000)
    manager.download_model("org/m0")
    for number in (1, 2):
        manager.stand(f"org/m{number}", priority="opportunistic")
        manager.download_model(f"org/m{number}")
    assert [model.model_id for model in manager.models()] == ["org/m0", "org/m2"]


class Trace:
    """Deployments over months: 80 models, some far more wanted than others, and 40 % of deployments known half a day ahead."""

    def __init__(self, seed: int, deployments: int) -> None:
        rng = random.Random(seed)
        self.sizes = [int(min(900.0, max(2.0, rng.lognormvariate(4.0, 1.3))) * GB) for _ in range(80)]
        order = list(range(80))
        rng.shuffle(order)
        weights = [1 / (rank + 1) ** 0.9 for rank in range(80)]
        self.events: list[tuple[float, int, bool]] = []
        now = 0.0
        for number in range(deployments):
            now += rng.expovariate(1 / 3600)
            if number % 40 == 0:  # what people want drifts
                a, b = rng.randrange(80), rng.randrange(80)
                order[a], order[b] = order[b], order[a]
            self.events.append((now, rng.choices(order, weights)[0], rng.random() < 0.4))
        self.capacity = int(0.15 * sum(self.sizes))

    def lru(self) -> float:
        """Hours that deployments wait when the oldest goes first."""
        here: dict[int, float] = {}
        waited = 0.0
        for now, model, _ in self.events:
            if model not in here:
                waited += self.sizes[model] / 1e9
                while here and sum(self.sizes[each] for each in here) + self.sizes[model] > self.capacity:
                    del here[min(here, key=here.__getitem__)]
            here[model] = now
        return waited / 3600

    def ours(self) -> float:
        """The same by what `evict` and `prefetch` choose."""
        here: set[int] = set()
        uses: dict[int, list[float]] = {}
        waited = 0.0
        known = sorted((now - 12 * 3600, now, model) for now, model, ahead_known in self.events if ahead_known)
        events = sorted(
            [(at, 0, model, due) for at, due, model in known] + [(now, 1, model, now) for now, model, _ in self.events]
        )
        due: dict[int, list[float]] = {}
        for now, kind, model, when in events:
            if kind == 0:
                due.setdefault(model, []).append(when)
                self._fetch_ahead(here, uses, due, now)
                continue
            due[model] = [each for each in due.get(model, []) if each > now]
            if model not in here:
                waited += self.sizes[model] / 1e9
                self._room(here, uses, due, model, now)
                here.add(model)
            uses.setdefault(model, []).append(now)
        return waited / 3600

    def _candidates(
        self, here: set[int], uses: dict[int, list[float]], due: dict[int, list[float]], now: float
    ) -> list[Candidate]:
        return [
            candidate(
                str(model), self.sizes[model], idle_s=now - max(uses.get(model, [0.0])), uses=float(len(uses.get(model, []))),
                held=("scheduled",) if any(now <= when <= now + DAY_S for when in due.get(model, [])) else (),
            )
            for model in sorted(here)
        ]  # fmt: skip

    def _room(
        self, here: set[int], uses: dict[int, list[float]], due: dict[int, list[float]], model: int, now: float
    ) -> None:
        short = sum(self.sizes[each] for each in here) + self.sizes[model] - self.capacity
        found = self._candidates(here, uses, due, now)
        gone = evict.choose(found, target_bytes=short) if short > 0 else None
        if gone is not None and gone.freed_bytes < short:  # someone waits now: what is only scheduled goes after all
            freed = evict.choose(
                [
                    candidate(each.model_id, self.sizes[int(each.model_id)], idle_s=each.idle_s, uses=each.uses)
                    for each in found
                ],
                target_bytes=short,
            )
            gone = freed
        here -= {int(each.model_id) for each in gone.revisions} if gone is not None else set()

    def _fetch_ahead(
        self, here: set[int], uses: dict[int, list[float]], due: dict[int, list[float]], now: float
    ) -> None:
        wishes = [
            wish(str(model), self.sizes[model], needed_in_s=min(times) - now)
            for model, times in due.items()
            if times and model not in here
        ]
        free = self.capacity - sum(self.sizes[each] for each in here)
        past = {str(model): tuple(times[-50:]) for model, times in uses.items()}
        decided = prefetch.choose(
            wishes, self._candidates(here, uses, due, now), now_s=now, refetch_bytes_s=1e9, free_bytes=free, uses_s=past
        )
        for decision in decided:
            if decision.does == "fetch":
                here -= {int(name) for name, _ in decision.evicts}
                here.add(int(decision.model_id))


def test_knowing_the_schedule_saves_two_fifths_of_the_waiting() -> None:
    traces = [Trace(seed, 700) for seed in range(1, 5)]
    assert sum(trace.ours() for trace in traces) <= 0.60 * sum(trace.lru() for trace in traces)
