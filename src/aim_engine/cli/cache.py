"""`aim-engine cache`."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aim_engine import settings as all_settings
from aim_engine.cache import manager as managers
from aim_engine.cache import weights
from aim_engine.cli import output
from aim_engine.settings import Settings
from aim_engine.units import GIB, format_bytes

if TYPE_CHECKING:
    from aim_engine.cache import acquire, holds
    from aim_engine.cache.progress import Progress

_EVERY_S = 5.0
"""Between two lines of progress where there is no terminal."""


class _Group(click.Group):
    """The commands of this file, and those of `cache_more`, which is imported when one of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from aim_engine.cli import cache_more

        return sorted({*self.commands, *(str(each.name) for each in cache_more.COMMANDS)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        from aim_engine.cli import cache_more

        return next((each for each in cache_more.COMMANDS if each.name == cmd_name), None)


@click.group(cls=_Group, epilog="Example: aim-engine cache ls")
def cache() -> None:
    """Fetch, prove, keep and clear model weights."""


@cache.command(epilog="Example: aim-engine cache pull HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("models", nargs=-1)
@click.option("--plan", "plan_file", metavar="FILE", help="What this plan needs: its model, draft model, adapters.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of the first model.")
@click.option("--from", "source", metavar="SOURCE", help="Where it comes from, such as s3://bucket/models or a folder.")
@click.option("--force", is_flag=True, help="Fetch every file again.")
@click.option("--allow-pickle", "approved", metavar="SHA256", multiple=True, help="Accept this pickle; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and fetch nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; progress as JSON lines on stderr.")
def pull(
    models: tuple[str, ...],
    plan_file: str | None,
    revision: str,
    source: str | None,
    force: bool,
    approved: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch MODELS, unless they are there, and print their folders. With --plan they stay while that file is there."""
    settings = all_settings.load({"cache_sources": source})
    wanted = [(model, revision if number == 0 else "main") for number, model in enumerate(models)]
    if plan_file is not None:
        from aim_engine.cli import files

        plan = files.read_plan(plan_file)
        wanted = [*weights.needed(plan, revision), *wanted]
        if not dry_run and plan_file != "-":
            weights.hold_for_plan(plan, Path(plan_file), settings, revision)
    if not wanted:
        raise click.UsageError("name a model, or a plan with --plan")
    if dry_run:
        manager = _manager(settings)
        found = [manager.plan_download(model, ref, force=force, approved=approved) for model, ref in wanted]
        if as_json:
            output.data(found[0] if len(found) == 1 else {"schema": "aim-engine/cache-plans/v1", "plans": found})
        for each in found if not as_json else ():
            _show_plan(each)
        return
    paths: list[tuple[str, Path]] = []
    with _progress(as_json=as_json) as (note, transfer):
        for model, ref in wanted:
            try:
                path = weights.fetch(
                    model,
                    settings,
                    note,
                    python=lambda: _converter(settings),
                    revision=ref,
                    force=force,
                    approved=approved,
                    transfer=transfer,
                )
            except KeyboardInterrupt:
                note("what arrived is kept: the same command goes on there")
                raise
            paths.append((model, path))
    for _, path in paths if not as_json else ():
        output.text(str(path))
    documents = [
        {"schema": "aim-engine/cached-model/v1", "model_id": model, "path": str(path)} for model, path in paths
    ]
    if as_json:
        many = {"schema": "aim-engine/cached-models/v1", "models": documents}
        output.data(documents[0] if len(documents) == 1 else many)
    if settings.cache_write_back:
        from aim_engine.cache import writeback

        writeback.drain(_manager(settings), output.note)
    output.next_step(f"aim-engine up {wanted[0][0]}")


@cache.command(epilog="Example: aim-engine cache ls")
@click.option("--files", is_flag=True, help="Every stored file with its checksum.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ls(files: bool, as_json: bool) -> None:
    """List the models on this machine."""
    if files:
        _list_files(as_json=as_json)
        return
    models = _models(all_settings.load())
    if as_json:
        output.data({"schema": "aim-engine/cache/v1", "models": models})
        return
    output.table(
        None,
        ("model", "size", "revisions", "complete", "last used", "from"),
        [
            (
                each.model_id,
                format_bytes(each.size_bytes),
                str(each.revisions),
                "yes" if each.complete else "no",
                dt.datetime.fromtimestamp(each.last_used).astimezone().strftime("%Y-%m-%d %H:%M"),
                each.origin,
            )
            for each in models
        ],
        right=("size", "revisions"),
    )
    if not models:
        output.next_step("aim-engine cache pull HuggingFaceTB/SmolLM2-135M-Instruct")


@cache.command(epilog="Example: aim-engine cache stats --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def stats(as_json: bool) -> None:
    """Count the models, what they take, and what the cache saved."""
    settings = all_settings.load()
    manager = _manager(settings)
    shared = manager.get_cache_stats()
    converted = weights.converted_models(settings.data_dir)
    counted = manager.index.counters() if manager.store.exists else {}
    total_bytes = shared["total_size_gb"] * GIB + sum(each.size_bytes for each in converted)
    document = {
        **shared,
        "total_models": shared["total_models"] + len(converted),
        "total_size_gb": total_bytes / GIB,
        "converted_dir": str(Path(settings.data_dir).expanduser() / "models"),
        "counters": counted,
    }
    if as_json:
        output.data({"schema": "aim-engine/cache-stats/v1", **document})
        return
    lines = [
        ("models", str(document["total_models"])),
        ("size", format_bytes(total_bytes)),
        ("cache", str(document["cache_dir"])),
        ("converted models", str(document["converted_dir"])),
        *((name.replace("_", " "), _amount(name, value)) for name, value in counted.items()),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        output.text(f"{name:<{width}}  {value}")


@cache.command(epilog="Example: aim-engine cache verify")
@click.argument("model", required=False)
@click.option(
    "--older-than",
    "older_than_days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Read only what was not proved for so long.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def verify(model: str | None, older_than_days: float | None, as_json: bool) -> int:
    """Read every stored file, or those of MODEL, against its checksum. Asks nobody; exits 1 when something is damaged."""
    manager = _manager(all_settings.load())
    damaged = manager.verify(model, older_than_days=older_than_days)
    if as_json:
        found = [{"model_id": each[0], "commit": each[1], "path": each[2]} for each in damaged]
        output.data({"schema": "aim-engine/cache-verify/v1", "damaged": found})
    else:
        for model_id, commit, path in damaged:
            output.text(f"{model_id}@{commit[:12]} {path}: damaged or missing")
        if not damaged:
            output.text("everything is as it was fetched")
    if damaged:
        output.note(f"damaged files were set aside; fetch them again: aim-engine cache pull {damaged[0][0]}")
    return 1 if damaged else 0


@cache.command(epilog="Example: aim-engine cache prune --dry-run")
@click.option(
    "--older-than", "older_than_days", type=float, metavar="DAYS", help="Models that nobody used for so long."
)
@click.option("--free", metavar="SIZE", help="Models used least, until so much is free, such as 500GiB.")
@click.option("--trash", is_flag=True, help="Empty the trash now, not a day after something went there.")
@click.option("--dry-run", is_flag=True, help="Show what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def prune(
    older_than_days: float | None, free: str | None, trash: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove content that no model has and, when asked, models. Pinned and running ones stay."""
    from aim_engine.cache import evict
    from aim_engine.units import parse_bytes

    manager = _manager(all_settings.load())
    chosen = manager.plan_prune(target_bytes=parse_bytes(free) if free else 0, older_than_days=older_than_days)
    binned = evict.trash(manager.store) if trash else ()
    if as_json:
        output.data(chosen)
    else:
        for each in chosen.revisions:
            output.text(f"{each.model_id}@{each.commit[:12]}  idle {each.idle_s / 86_400:.1f} days")
        output.text(f"{format_bytes(chosen.freed_bytes)} in {len(chosen.digests)} files go to the trash")
        if binned:
            output.text(f"{format_bytes(sum(path.stat().st_size for path in binned))} leave the trash")
    if dry_run or not manager.store.exists:
        return
    if chosen.revisions and not yes and not as_json:
        click.confirm("Remove these models?", abort=True, err=True)
    evict.apply(chosen, manager.store, manager.index)
    evict.empty_trash(manager.store, grace_s=0.0 if trash else evict.GRACE_S)


@cache.command(epilog="Example: aim-engine cache rm Qwen/Qwen3-32B --yes")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(model: str, yes: bool) -> None:
    """Remove MODEL. What no other model has goes to the trash for a day."""
    manager = _manager(all_settings.load())
    if not yes:
        click.confirm(f"Remove {model}?", abort=True, err=True)
    gone = manager.remove_model(model)
    output.text(f"removed {model}: {format_bytes(gone.freed_bytes)} went to the trash")


@cache.command(epilog="Example: aim-engine cache pin Qwen/Qwen3-32B --priority critical")
@click.argument("model")
@click.option(
    "--priority", type=click.Choice(["critical", "normal", "opportunistic"]), help="Which go last or first otherwise."
)
def pin(model: str, priority: holds.Priority | None) -> None:
    """Keep MODEL whatever needs room; with --priority, only set how late it goes."""
    manager = _manager(all_settings.load())
    said = manager.stand(model, pinned=True) if priority is None else manager.stand(model, priority=priority)
    output.text(f"{model}: {'pinned, ' if said.pinned else ''}{said.priority}")


@cache.command(epilog="Example: aim-engine cache unpin Qwen/Qwen3-32B")
@click.argument("model")
def unpin(model: str) -> None:
    """Let MODEL go when room is needed."""
    said = _manager(all_settings.load()).stand(model, pinned=False)
    output.text(f"{model}: {said.priority}")


@cache.command(epilog="Example: aim-engine cache why 9e26dfee")
@click.argument("blob")
def why(blob: str) -> None:
    """Say why the content whose sha256 begins with BLOB is kept, or that it will go."""
    for reason in _manager(all_settings.load()).why(blob):
        output.text(reason)


@cache.command("export", epilog="Example: aim-engine cache export Qwen/Qwen3-32B -o qwen.tar")
@click.argument("models", nargs=-1)
@click.option("-o", "--output", "place", required=True, metavar="PATH", help="New folder, or a file named *.tar.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def export(models: tuple[str, ...], place: str, as_json: bool) -> None:
    """Write MODELS, or everything, as an OCI image layout to carry to where no network is."""
    from aim_engine.cache import bundle

    manager = _manager(all_settings.load())
    moved = bundle.write(manager.store, manager.index, models, Path(place).expanduser().absolute())
    if as_json:
        output.data(moved)
    else:
        output.text(f"{moved.place}: {len(moved.models)} models, {format_bytes(moved.size_bytes)}")
    output.next_step(f"aim-engine cache import {place}")


@cache.command("import", epilog="Example: aim-engine cache import qwen.tar")
@click.argument("place", metavar="PATH")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def import_(place: str, as_json: bool) -> None:
    """Take the models of an exported folder or .tar file, or of another cache's folder, proving every file."""
    moved = _manager(all_settings.load()).import_bundle(Path(place).expanduser().absolute())
    if as_json:
        output.data(moved)
        return
    for model in moved.models:
        output.text(model)


@cache.command(epilog="Example: aim-engine cache doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(as_json: bool) -> int:
    """Check the cache's folder, index, locks and leftovers; rebuild the index. Exits 1 when something is wrong."""
    from aim_engine.cache import doctor as doctors

    findings = doctors.examine(_manager(all_settings.load()))
    if as_json:
        output.data({"schema": "aim-engine/cache-doctor/v1", "findings": findings})
    else:
        for each in findings:
            output.text(f"{'ok' if each.fine else 'wrong'}: {each.what}" + (f" - {each.remedy}" if each.remedy else ""))
    return 0 if all(each.fine for each in findings) else 1


def _amount(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.1f} s" if name.endswith("_seconds") else f"{value:.0f}"


def _manager(settings: Settings) -> managers.ModelCacheManager:
    return managers.ModelCacheManager(settings.cache_dir, endpoint=settings.cache_sources or None, progress=output.note)


def _models(settings: Settings) -> list[managers.CachedModel]:
    found = [*_manager(settings).models(), *weights.converted_models(settings.data_dir)]
    return sorted(found, key=lambda each: (each.model_id, each.origin))


def _converter(settings: Settings) -> Path:
    from aim_engine.deploy import environment
    from aim_engine.workflow import overlay_dir

    name = environment.for_device("vllm", "cpu", overlay_dir(settings))
    return environment.ensure(name, settings, output.note).python


def _list_files(*, as_json: bool) -> None:
    revisions = [known.revision for known in _manager(all_settings.load()).revisions()]
    if as_json:
        output.data({"schema": "aim-engine/cache-files/v1", "revisions": revisions})
        return
    for revision in revisions:
        for file in revision.files:
            output.text(
                f"{file.sha256}  {format_bytes(file.size_bytes):>10}  {revision.model_id}@{revision.commit[:12]} {file.path}"
            )


def _show_plan(plan: acquire.Plan) -> None:
    output.text(f"{plan.describe()} (commit {plan.commit[:12]}, licence {plan.licence or 'not stated'})")
    for file in plan.missing:
        output.text(f"  {format_bytes(file.size_bytes):>10}  {file.path}")


@contextmanager
def _progress(*, as_json: bool) -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """How to tell messages and progress: a bar on a terminal, lines elsewhere, JSON lines when asked for."""
    if as_json:
        yield _event_line, _event_progress
        return
    if not sys.stderr.isatty():
        yield output.note, _Lines()
        return
    from rich import progress as bars

    columns = (
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=output.console(sys.stderr), transient=True) as bar:
        task: list[bars.TaskID] = []

        def show(progress: Progress) -> None:
            if not task:
                task.append(bar.add_task("", total=progress.total_bytes))
            bar.update(task[0], completed=progress.done_bytes)

        yield lambda line: bar.console.print(line, markup=False, highlight=False), show


class _Lines:
    """A line of progress every few seconds."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + _EVERY_S

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next_s or not progress.total_bytes:
            return
        self._next_s = now + _EVERY_S
        left = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
        output.note(
            f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.total_bytes)} "
            f"({100 * progress.done_bytes // progress.total_bytes} %), {format_bytes(progress.rate_bytes_s)}/s{left}"
        )


def _event_line(line: str) -> None:
    import json

    output.note(json.dumps({"schema": "aim-engine/cache-event/v1", "kind": "message", "message": line}))


def _event_progress(progress: Progress) -> None:
    import json

    output.note(
        json.dumps(
            {
                "schema": "aim-engine/cache-event/v1",
                "kind": "progress",
                "done_bytes": progress.done_bytes,
                "total_bytes": progress.total_bytes,
                "rate_bytes_s": round(progress.rate_bytes_s),
                "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
            }
        )
    )
