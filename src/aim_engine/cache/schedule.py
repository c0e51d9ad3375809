"""When models will be needed: what people said, so that they are here in time and do not go before.

    2026-11-30T08:00            once, UTC unless it names an offset
    daily@08:00                 every day
    weekdays@08:00, mon,thu@22:30

Appointments are files in the store, as pins are: every node sees them, and losing the index loses none.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re

import msgspec

from aim_engine.cache import layout, names
from aim_engine.cache.layout import Store, typed
from aim_engine.errors import InvalidInput

HOLD_AHEAD_S = 86_400.0
"""A model that is needed within a day does not go."""
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(r"(daily|weekdays|weekends|[a-z]{3}(?:,[a-z]{3})*)@(\d{2}):(\d{2})")
_FOLDER = ("pins", "schedule")


class Appointment(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="aim-engine/cache-appointment/v1"):
    """A model that will be needed."""

    model_id: str
    when: str
    """As a person wrote it."""
    hours: float = 8.0
    """For so long it is needed each time."""
    revision: str = "main"


def next_start_s(appointment: Appointment, now_s: float) -> float | None:
    """When it is needed next, or since when it is needed; None when that is over. Raises: InvalidInput."""
    lasting_s = appointment.hours * 3600
    weekly = _WEEKLY.fullmatch(appointment.when)
    if weekly is None:
        start = _moment(appointment.when)
        return start if start + lasting_s > now_s else None
    days = _weekdays(weekly[1], appointment.when)
    hour, minute = int(weekly[2]), int(weekly[3])
    if hour > 23 or minute > 59:
        raise InvalidInput(f"'{appointment.when}' names no time of day", hint="for example weekdays@08:00")
    today = dt.datetime.fromtimestamp(now_s, dt.UTC).replace(hour=hour, minute=minute, second=0, microsecond=0)
    first = -int(lasting_s // 86_400) - 1  # an appointment of some days ago may still last
    for ahead in range(first, 9):
        start_at = today + dt.timedelta(days=ahead)
        if start_at.weekday() in days and start_at.timestamp() + lasting_s > now_s:
            return start_at.timestamp()
    return None


def add(store: Store, appointment: Appointment, now_s: float) -> float:
    """Remember an appointment; gives when it is next. Raises: InvalidInput, Unreachable."""
    names.require_model_id(appointment.model_id)
    names.require_revision(appointment.revision)
    if not 0 < appointment.hours <= 24 * 366:
        raise InvalidInput(f"{appointment.hours:g} hours are not possible", hint="give more than 0, up to a year")
    start = next_start_s(appointment, now_s)
    if start is None:
        raise InvalidInput(f"'{appointment.when}' is over", hint="give a time to come, UTC unless it names an offset")
    with typed(store.root):
        with layout.inside(store.root, *_FOLDER, create=True):
            pass
        content = msgspec.json.encode(appointment)
        digest = hashlib.sha256(content).hexdigest()[:16]
        layout.write(store.path(*_FOLDER, f"{digest}.json"), content)
    return start


def drop(store: Store, model_id: str) -> int:
    """Forget a model's appointments; gives how many there were. Raises: Unreachable."""
    dropped = 0
    with typed(store.root):
        for path in store.path(*_FOLDER).glob("*.json"):
            found = _read(path.read_bytes())
            if found is not None and found.model_id == model_id:
                path.unlink(missing_ok=True)
                dropped += 1
    return dropped


def appointments(store: Store) -> tuple[Appointment, ...]:
    """All appointments, by model and time."""
    found = []
    for path in store.path(*_FOLDER).glob("*.json"):
        try:
            each = _read(path.read_bytes())
        except OSError:  # another process dropped it
            continue
        if each is not None:
            found.append(each)
    return tuple(sorted(found, key=lambda each: (each.model_id, each.when)))


def needed(store: Store, now_s: float) -> dict[str, float]:
    """Model -> when it is needed next, of all with an appointment that is not over."""
    found: dict[str, float] = {}
    for each in appointments(store):
        start = next_start_s(each, now_s)
        if start is not None:
            found[each.model_id] = min(start, found.get(each.model_id, start))
    return found


def _read(content: bytes) -> Appointment | None:
    try:
        found = msgspec.json.decode(content, type=Appointment)
        next_start_s(found, 0.0)
    except (msgspec.DecodeError, InvalidInput):
        return None
    return found


def _moment(text: str) -> float:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as err:
        raise InvalidInput(
            f"'{text}' is not a time", hint="for example 2026-11-30T08:00, daily@08:00 or mon,thu@22:30 (UTC)"
        ) from err
    return (found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)).timestamp()


def _weekdays(text: str, whole: str) -> set[int]:
    if text in ("daily", "weekdays", "weekends"):
        return {"daily": set(range(7)), "weekdays": set(range(5)), "weekends": {5, 6}}[text]
    unknown = [day for day in text.split(",") if day not in _DAYS]
    if unknown:
        raise InvalidInput(f"'{whole}' names no day '{unknown[0]}'", hint=f"days are {', '.join(_DAYS)}")
    return {_DAYS.index(day) for day in text.split(",")}
