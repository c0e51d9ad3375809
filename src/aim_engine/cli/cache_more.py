"""The commands of `aim-engine cache` that keep a cache over time: updates, schedules, quotas, room, and other nodes."""

from __future__ import annotations

import datetime as dt
import os
import signal
import threading
import time
from pathlib import Path

import click

from aim_engine import settings as all_settings
from aim_engine.cache import manager as managers
from aim_engine.cache import names
from aim_engine.cli import output
from aim_engine.errors import Unreachable
from aim_engine.units import format_bytes, parse_bytes


@click.command(epilog="Example: aim-engine cache outdated")
@click.argument("models", nargs=-1)
@click.option("--fresh", is_flag=True, help="Ask even where the last answer is less than an hour old.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def outdated(models: tuple[str, ...], fresh: bool, as_json: bool) -> int:
    """Say which of MODELS, or of all, have newer versions and what these change. Fetches nothing; exits 1 when one has."""
    from aim_engine.cache import updates

    found = updates.check(_manager(), models, ttl_s=0.0 if fresh else updates.TTL_S)
    if as_json:
        output.data({"schema": "aim-engine/cache-outdated/v1", "updates": found})
    else:
        for each in found:
            output.text(each.describe())
            for change in each.changes:
                output.text(f"  {change.how:<8} {format_bytes(change.size_bytes):>10}  {change.path} ({change.kind})")
            if each.outdated:
                output.text(f"  {format_bytes(each.fetch_bytes)} to fetch")
    behind = [each for each in found if each.outdated]
    if behind:
        output.next_step(f"aim-engine cache pull {behind[0].model_id} --revision {behind[0].ref} --dry-run")
    return 1 if behind else 0


@click.command(epilog="Example: aim-engine cache schedule Qwen/Qwen3-32B --at weekdays@08:00 --hours 10")
@click.argument("model", required=False)
@click.option(
    "--at", "when", metavar="TIME", help="2026-11-30T08:00, daily@08:00, weekdays@08:00 or mon,thu@22:30; UTC."
)
@click.option("--hours", type=float, default=8.0, show_default=True, help="For so long it is needed each time.")
@click.option("--drop", is_flag=True, help="Forget the appointments of MODEL.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def schedule(model: str | None, when: str | None, hours: float, drop: bool, as_json: bool) -> None:
    """Say when MODEL will be needed, so that it does not go and may be fetched before; without arguments, list appointments."""
    from aim_engine.cache import schedule as schedules

    manager = _manager()
    if model is not None and drop:
        output.note(f"{schedules.drop(manager.store, model)} appointments of {model} were dropped")
    elif model is not None and when is not None:
        manager.store.ensure()
        appointment = schedules.Appointment(model_id=model, when=when, hours=hours)
        start_s = schedules.add(manager.store, appointment, manager.store.now_s())
        output.note(f"{model} is needed next at {_utc(start_s)}")
        output.next_step("aim-engine cache prefetch --dry-run")
    elif model is not None:
        raise click.UsageError("give --at TIME or --drop")
    now_s = time.time()
    found = schedules.appointments(manager.store) if manager.store.exists else ()
    if as_json:
        output.data({"schema": "aim-engine/cache-schedule/v1", "appointments": found})
        return
    for each in found:
        next_s = schedules.next_start_s(each, now_s)
        output.text(f"{each.model_id}  {each.when}  {each.hours:g} h  next {_utc(next_s) if next_s else 'never'}")


@click.command(epilog="Example: aim-engine cache quota 'Qwen/*' 500GiB")
@click.argument("pattern", required=False)
@click.argument("size", required=False)
@click.option("--drop", is_flag=True, help="No longer limit PATTERN.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def quota(pattern: str | None, size: str | None, drop: bool, as_json: bool) -> None:
    """Limit what the models of PATTERN take together; without arguments, list quotas."""
    from aim_engine.cache import holds

    manager = _manager()
    if pattern is not None:
        if not drop and size is None:
            raise click.UsageError("give a SIZE or --drop")
        manager.store.ensure()
        holds.set_quota(manager.store, pattern, None if drop or size is None else parse_bytes(size))
    found = holds.quotas(manager.store) if manager.store.exists else ()
    if as_json:
        output.data({"schema": "aim-engine/cache-quotas/v1", "quotas": found})
        return
    for each in found:
        output.text(f"{each.pattern}  {format_bytes(each.limit_bytes)}")


@click.command(epilog="Example: aim-engine cache prefetch --dry-run")
@click.option("--dry-run", is_flag=True, help="Show every decision with its numbers, and fetch nothing.")
@click.option("--budget", metavar="SIZE", help="Most to fetch in one go, such as 500GiB.")
@click.option("--watch", is_flag=True, help="Go on until interrupted, deciding anew every ten minutes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def prefetch(dry_run: bool, budget: str | None, watch: bool, as_json: bool) -> None:
    """Fetch models that will probably be needed, behind everything that somebody waits for."""
    from aim_engine.cache import ahead, writeback

    manager = _manager()
    stop = threading.Event()
    if watch:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    while True:
        decisions = ahead.decide(manager, budget_bytes=parse_bytes(budget) if budget else None)
        if as_json:
            output.data({"schema": "aim-engine/cache-prefetch/v1", "decisions": decisions})
        else:
            for each in decisions:
                size = "?" if each.size_bytes is None else format_bytes(each.size_bytes)
                gone = f"; {', '.join(model for model, _ in each.evicts)} goes for it" if each.evicts else ""
                output.text(f"{each.does:<5} {each.model_id}  {size}  worth {each.value_s:.0f} s: {each.why}{gone}")
            if not decisions:
                output.note("no model has an appointment or was used before and is missing")
        if not dry_run:
            ahead.carry_out(manager, decisions, output.note)
            writeback.drain(manager, output.note, stop=stop)
        if not watch or stop.wait(600):
            return


@click.command(epilog="Example: aim-engine cache scrub --mend")
@click.option(
    "--cycle",
    "cycle_days",
    type=click.FloatRange(min=0.001),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Every file is read once in so long.",
)
@click.option(
    "--for", "minutes", type=click.FloatRange(min=0), metavar="MINUTES", help="Read no longer; the next run goes on."
)
@click.option("--mend", is_flag=True, help="Fetch what is damaged again.")
@click.option("--watch", is_flag=True, help="Go on until interrupted, a part every hour.")
@click.option(
    "--unit", type=click.Choice(["systemd", "kubernetes"]), help="Write what starts it every day, and read nothing."
)
@click.option("--claim", metavar="NAME", help="Kubernetes: the volume claim that a rendered Job filled.")
@click.option("--image", metavar="IMAGE", help="Kubernetes: an image with aim-engine in it, by its digest.")
@click.option("--namespace", default="default", show_default=True, help="Kubernetes: namespace of the claim.")
@click.option(
    "--user", type=click.IntRange(0), default=10001, show_default=True, help="Kubernetes: who filled the claim."
)
@click.option("-o", "--output", "place", metavar="FOLDER", help="Where --unit writes its files; default: to stdout.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def scrub(
    cycle_days: float,
    minutes: float | None,
    mend: bool,
    watch: bool,
    unit: str | None,
    claim: str | None,
    image: str | None,
    namespace: str,
    user: int,
    place: str | None,
    as_json: bool,
) -> int:
    """Read a part of the store against its checksums, on from the last run. What is damaged is set aside and its deployments are named; exits 1 then."""
    from aim_engine.cache import scrub as scrubbing
    from aim_engine.cache import timers

    if unit is not None:
        options = ("--cycle", f"{cycle_days:g}", *(("--mend",) if mend else ()))
        loaded = all_settings.load()
        if unit == "systemd":
            written = timers.systemd(str(_manager().cache_dir), str(Path(loaded.state_dir).expanduser()), options)
            hint = (
                "copy both to ~/.config/systemd/user, then: systemctl --user enable --now aim-engine-cache-scrub.timer"
            )
        elif claim is None or image is None:
            raise click.UsageError("--unit kubernetes needs --claim and --image")
        else:
            written = timers.kubernetes(claim, image, options, namespace, user)
            hint = f"kubectl apply -f {place or '.'}/{next(iter(written))}"
        _write_units(written, place)
        output.next_step(hint)
        return 0
    manager = _manager()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    os.nice(19)
    while True:
        done = scrubbing.scrub(
            manager,
            cycle_days=cycle_days,
            most_s=None if minutes is None else minutes * 60,
            mend=mend,
            stop=stop,
            tell=output.note,
        )
        if as_json:
            output.data(done)
        else:
            output.text(scrubbing.describe(done))
            for each in done.damaged:
                output.text(f"{each.model_id}@{each.commit[:12]} {each.path}: {'mended' if each.mended else 'damaged'}")
        if not watch or stop.wait(3600):
            break
    if not done.fine:
        output.note(f"fetch them again: aim-engine cache pull {done.damaged[0].model_id}, or scrub with --mend")
    return 0 if done.fine else 1


def _write_units(written: dict[str, str], place: str | None) -> None:
    for name, content in written.items():
        if place is None:
            output.text(f"# {name}\n{content}")
            continue
        folder = Path(place).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        output.text(str(folder / name))


@click.command(epilog="Example: aim-engine cache compress --dry-run")
@click.argument("models", nargs=-1)
@click.option("--idle-days", type=float, default=7.0, show_default=True, help="Weights that nobody used for so long.")
@click.option("--dry-run", is_flag=True, help="Show what would be packed, and why the rest would not.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def compress(models: tuple[str, ...], idle_days: float, dry_run: bool, as_json: bool) -> None:
    """Keep weights that nobody uses, or those of MODELS, in a third less room; they come back bit for bit when they are needed."""
    from aim_engine.cache import pack

    manager = _manager()
    if not manager.store.exists:
        output.note("there is no cache yet")
        return
    opened = manager.opened()
    choices = pack.choose(manager.store, manager.index, idle_days=idle_days, models=models, in_use=opened)
    for each in choices if not as_json else ():
        output.text(
            f"{'pack' if each.packs else 'leave'}  {format_bytes(each.size_bytes):>10}  {', '.join(each.models)}: {each.why}"
        )
    if dry_run:
        if as_json:
            output.data({"schema": "aim-engine/cache-compress/v1", "choices": choices})
        return
    gained = pack.apply(choices, manager.store, manager.index)
    if as_json:
        output.data(gained)
    else:
        output.text(
            f"{gained.files} files packed: {format_bytes(gained.before_bytes)} -> {format_bytes(gained.after_bytes)} "
            f"in {gained.seconds:.1f} s"
        )


@click.command(epilog="Example: aim-engine cache serve --port 8471")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8471, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--token-file", metavar="PATH", help="File with the token that other nodes must send.")
@click.option("--insecure-i-know", is_flag=True, help="Let everybody who reaches the address read the models.")
def serve(host: str, port: int, token_file: str | None, insecure_i_know: bool) -> None:
    """Let other nodes, and any hub client, fetch from this cache; also gives aim_cache_* metrics at /metrics."""
    from aim_engine.cache import serve as serving

    token = None
    if token_file is not None:
        try:
            token = Path(token_file).expanduser().read_text().strip()
        except OSError as err:
            raise click.UsageError(f"{token_file} cannot be read: {err.strerror}") from err
        if not token:
            raise click.UsageError(f"{token_file} holds no token")
    loaded = all_settings.load()
    server = serving.Server(
        lambda: managers.ModelCacheManager(loaded.cache_dir), host, port, token=token, insecure=insecure_i_know
    )
    with server:
        output.text(server.address)
        output.next_step(f"elsewhere: AIM_ENGINE_CACHE_PEERS={server.address} aim-engine cache pull MODEL")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever(poll_interval=0.2)


@click.command(epilog="Example: aim-engine cache sync Qwen/Qwen3-32B --to s3://models")
@click.argument("models", nargs=-1)
@click.option("--to", "target", metavar="PLACE", help="s3://BUCKET/PATH, gs://, az://, or a folder.")
@click.option(
    "--pending", is_flag=True, help="What was fetched and waits for the place of the setting cache_write_back."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def sync(models: tuple[str, ...], target: str | None, pending: bool, as_json: bool) -> int:
    """Write MODELS to where other caches fetch from, with a SHA256SUMS file that proves them; what is there already stays.

    With --pending, exits 1 when something still waits.
    """
    from aim_engine.cache import sync as syncing
    from aim_engine.cache import writeback

    if pending == bool(models) or pending == (target is not None):
        raise click.UsageError("name models and --to PLACE, or give --pending alone")
    manager = _manager()
    if pending:
        done = list(writeback.drain(manager, output.note))
    else:
        done = [syncing.write(manager, model, target or "", output.note) for model in models]
    left = writeback.pending(manager.store) if pending and manager.store.exists else ()
    if as_json:
        output.data({"schema": "aim-engine/cache-synced/v1", "models": done, "pending": left})
        return 1 if left else 0
    for each in done:
        output.text(
            f"{each.place}: {format_bytes(each.written_bytes)} written, {format_bytes(each.present_bytes)} were there"
        )
    for wish in left:
        output.text(f"{wish.place}: {wish.model_id} waits{': ' + wish.problem if wish.problem else ''}")
    if done:
        output.next_step(f"elsewhere: aim-engine cache pull {done[0].model_id} --from {target or 'the same place'}")
    return 1 if left else 0


@click.command(epilog="Example: aim-engine cache metrics")
def metrics() -> None:
    """Print the aim_cache_* metrics of this node as Prometheus reads them."""
    from aim_engine.cache import metrics as said

    output.text(said.render(_manager()).rstrip("\n"))


@click.command(epilog="Example: aim-engine cache rebuild")
def rebuild() -> None:
    """Make the index anew from the store's files. Checksums are not read again."""
    manager = _manager()
    if not manager.store.exists:
        output.note("there is no cache yet")
        return
    began = time.monotonic()
    manager.index.rebuild()
    models, revisions, files, total = manager.index.totals()
    output.text(
        f"{models} models, {revisions} revisions, {files} files, {format_bytes(total)} in {time.monotonic() - began:.1f} s"
    )


@click.command(epilog="Example: aim-engine cache unlock index")
@click.argument("name")
@click.option("--force", is_flag=True, help="Break the lock. Only when its holder certainly does not run any more.")
def unlock(name: str, force: bool) -> None:
    """Say who holds the lock NAME of a shared file system, and with --force break it, as after a node died."""
    from aim_engine.cache import locks

    if "/" in name or name.startswith("."):
        raise click.UsageError(f"'{name}' is not the name of a lock")
    manager = _manager()
    holder = locks.unlock(manager.store, name, force=force) if manager.store.exists else None
    output.text(f"{name}: {holder or 'nobody holds it'}" + (", no longer" if holder and force else ""))


@click.command(epilog="Example: aim-engine cache approve microsoft/Phi-4-multimodal-instruct")
@click.argument("model")
@click.argument("files", nargs=-1)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit on the hub.")
@click.option("--drop", is_flag=True, help="Take the approval of FILES, or of all, back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def approve(model: str, files: tuple[str, ...], revision: str, drop: bool, yes: bool, as_json: bool) -> None:
    """Let programs of MODEL into its folder: its code or pickles, by name, or any content by its sha256. Without FILES, list them.

    What counts is the content: a file that changed is not approved any more.
    """
    from aim_engine.cache import programs

    manager = _manager()
    if drop:
        gone = programs.revoke(manager, model, files) if manager.store.exists else ()
        for each in gone if not as_json else ():
            output.text(f"no longer approved: {each.path or each.sha256}")
        if as_json:
            output.data({"schema": "aim-engine/cache-approvals/v1", "model_id": model, "revoked": gone})
        return
    if all_settings.load().offline and not (files and all(names.is_sha256(each) for each in files)):
        raise Unreachable(
            f"the programs of {model} cannot be read",
            why="settings say offline",
            hint=f"by its checksum a program is approved without asking anybody: aim-engine cache approve {model} SHA256",
        )
    if files:
        if not yes:
            click.confirm(f"Have you read {', '.join(files)}? They run as you, on this machine.", abort=True, err=True)
        approved = programs.approve(manager, model, files, revision)
        if as_json:
            output.data({"schema": "aim-engine/cache-approvals/v1", "model_id": model, "approved": approved})
        for known in approved if not as_json else ():
            output.text(f"{known.sha256}  {known.path}")
        output.next_step(f"aim-engine cache pull {model}")
        return
    found = programs.of(manager, model, revision)
    if as_json:
        output.data({"schema": "aim-engine/cache-programs/v1", "model_id": model, "programs": found})
        return
    for program in found:
        said = "approved" if program.approved else "not approved"
        output.text(
            f"{program.path}  {format_bytes(program.size_bytes)}  {said}\n  {program.sha256}\n  {program.address}"
        )
    waiting = [program.path for program in found if not program.approved]
    if waiting:
        output.next_step(f"read them, then: aim-engine cache approve {model} {' '.join(waiting)}")
    elif not found:
        output.note(f"{model} has no programs that an engine would run")


COMMANDS = (approve, outdated, schedule, quota, prefetch, compress, scrub, sync, serve, metrics, rebuild, unlock)


def _manager() -> managers.ModelCacheManager:
    return managers.ModelCacheManager(all_settings.load().cache_dir, progress=output.note)


def _utc(moment_s: float) -> str:
    return f"{dt.datetime.fromtimestamp(moment_s, dt.UTC):%Y-%m-%d %H:%M} UTC"
