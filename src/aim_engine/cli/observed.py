"""What the commands of the monitor work on: deployments by name or address, their plans, and the files that hold what is known of them."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from aim_engine import units
from aim_engine.deploy.records import Store
from aim_engine.errors import AimError, Corrupt, InvalidInput
from aim_engine.monitor import scrape
from aim_engine.monitor.collect import Watched
from aim_engine.monitor.history import History, Target
from aim_engine.monitor.ledger import Ledger
from aim_engine.planner.plan import Plan
from aim_engine.settings import Settings

logger = logging.getLogger(__name__)


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment to look at."""

    name: str
    pages: tuple[Watched, ...]
    plan: Plan | None = None
    members: tuple[str, ...] = ()
    """Names of its records; none when it was given by address."""


def history(settings: Settings) -> History:
    """The history of this user on this machine. Raises: Corrupt, Unreachable."""
    limit = units.parse_bytes(settings.history_limit) if settings.history_limit else None
    return History(Path(settings.state_dir).expanduser() / "history.db", limit_bytes=limit)


def ledger(settings: Settings) -> Ledger:
    """Alerts, ratings and the rest. Raises: Corrupt, Unreachable."""
    return Ledger(Path(settings.state_dir).expanduser() / "ledger.db")


def key() -> str | None:
    """What is sent to engines that ask for a key."""
    return os.environ.get("VLLM_API_KEY")


def deployments(names: Sequence[str], settings: Settings) -> tuple[Observed, ...]:
    """The deployments that were named, or all of them. An address such as http://127.0.0.1:8000 needs no record; several with
    commas between them are the replicas of one.

    Raises: InvalidInput.
    """
    store = Store(settings.state_dir)
    if not names:
        groups = dict.fromkeys(group(store, name) for name in store.names())
        return tuple(_recorded(store, name) for name in groups)
    return tuple(_by_address(name) if _is_address(name) else _recorded(store, name) for name in names)


class Followed:
    """The deployments that a monitor looks at, while others come and some of them go."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        """Without `names` all that are deployed. Raises: InvalidInput."""
        self._names, self._settings = tuple(names), settings
        self._written = Store(settings.state_dir).written()
        self.now = deployments(names, settings)

    def changed(self) -> bool:
        """Look again; were records written or taken away? Raises: Unreachable."""
        store = Store(self._settings.state_dir)
        written = store.written()
        if written == self._written:
            return False
        found = []
        for name in self._names or dict.fromkeys(group(store, name) for name in store.names()):
            if _is_address(name):
                found.append(_by_address(name))
                continue
            try:
                found.append(_recorded(store, name, settled=True))
            except (InvalidInput, Corrupt) as err:
                logger.info("%s is not watched: %s", name, err)
        self._written, self.now = written, tuple(each for each in found if each.pages)
        return True


def one(name: str | None, settings: Settings) -> Observed:
    """The deployment that was named; without a name the only one there is. Raises: InvalidInput."""
    if name is not None:
        return deployments((name,), settings)[0]
    found = deployments((), settings)
    if len(found) == 1:
        return found[0]
    if not found:
        raise InvalidInput(
            "nothing is deployed",
            hint="name an address, such as http://127.0.0.1:8000, or start with: aim-engine up MODEL",
        )
    raise InvalidInput("several deployments are there", hint=f"name one of {', '.join(each.name for each in found)}")


def window(since: str, until: str | None = None) -> tuple[float, float]:
    """`24h` before now, or before `until`, as two times. Raises: InvalidInput."""
    end_s = time.time() - (units.parse_ms(until) / 1000 if until else 0.0)
    return end_s - seconds(since), end_s


def seconds(text: str) -> float:
    """`90s`, `5m`, `24h`, `7d` as seconds. Raises: InvalidInput."""
    if text.strip().endswith("d") and text.strip()[:-1].replace(".", "", 1).isdigit():
        return float(text.strip()[:-1]) * 86400
    found = units.parse_ms(text) / 1000
    if found <= 0:
        raise InvalidInput(f"'{text}' is no length of time", hint="for example 5m, 24h or 7d")
    return found


def exporter(url: str, deployment: str, pods: str | None = None) -> Watched:
    """The page of a device exporter whose cards, or those that `pods` hold, belong to a deployment. Raises: InvalidInput."""
    if pods is not None:
        try:
            re.compile(pods)
        except re.error as err:
            raise InvalidInput(f"'{pods}' is no regular expression", why=str(err), hint="--pods 'qwen-.*'") from err
    return Watched(
        target=Target(deployment=deployment, kind="exporter", name=url, endpoint=url),
        url=scrape.address(url),
        exporter=True,
        pods=pods or "",
    )


def _is_address(name: str) -> bool:
    return "://" in name or (":" in name and name.rpartition(":")[2].isdigit())


def _by_address(text: str) -> Observed:
    """One deployment by the addresses of its replicas, with commas between them."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    urls = [scrape.address(part) for part in parts]
    each = [url.removesuffix("/metrics").partition("://")[2] for url in urls]
    deployment = ",".join(each)
    return Observed(
        name=deployment,
        pages=tuple(
            Watched(target=Target(deployment=deployment, name=name, endpoint=part), url=url)
            for part, url, name in zip(parts, urls, each, strict=True)
        ),
    )


def group(store: Store, name: str) -> str:
    """What the deployment of a record is called: that of its replicas together, else its own."""
    try:
        return store.load(name).group or name
    except Corrupt:
        return name


def _recorded(store: Store, name: str, *, settled: bool = False) -> Observed:
    """A deployment by its records; of those that are being started or stopped no page where it must be `settled`."""
    members = store.members(name)
    plan = None
    pages = []
    for member in members:
        record = store.load(member)
        if settled and record.state in ("starting", "stopped"):
            continue
        try:
            plan = plan or store.plan(member)
        except AimError:
            plan = None  # a deployment without a readable plan is watched without targets
        target = Target(deployment=record.group or record.name, name=record.name, endpoint=record.endpoint)
        namespace = (record.namespace or "default") if record.target == "kubernetes" else ""
        pages.append(Watched(target=target, url=scrape.address(record.endpoint), namespace=namespace))
    return Observed(name=pages[0].target.deployment if pages else name, pages=tuple(pages), plan=plan, members=members)


def served_as(found: Observed, settings: Settings) -> str:
    """The name that requests to a deployment must use. Raises: Unreachable."""
    if found.members:
        return Store(settings.state_dir).load(found.members[0]).served_as
    from aim_engine.deploy import chat

    return chat.models(found.pages[0].target.endpoint)[0]
