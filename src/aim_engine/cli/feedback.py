"""`aim-engine feedback`."""

from __future__ import annotations

import time

import click

from aim_engine import settings as all_settings
from aim_engine.cli import observed, output
from aim_engine.deploy import chat
from aim_engine.errors import InvalidInput
from aim_engine.monitor import page, quality
from aim_engine.monitor.ledger import Rating, Score


@click.command(
    epilog="Example: aim-engine feedback http://127.0.0.1:8000 bad --comment 'answers in the wrong language'"
)
@click.argument("name", required=False, metavar="[NAME|ADDRESS]")
@click.argument("verdict", required=False, type=click.Choice(["good", "bad"]))
@click.option("--comment", default="", help="What was good or bad.")
@click.option("--request-id", default="", help="Id of the answer.")
@click.option("--check", is_flag=True, help="Ask the bundled questions and rate the answers by what a program can see.")
@click.option("--score", metavar="TASK=VALUE", help="Keep the result of an evaluation, such as gsm8k=0.71.")
@click.option("--items", type=click.IntRange(min=0), default=0, help="Items of that evaluation.")
@click.option("--since", metavar="TIME", default="7d", show_default=True, help="What to show without a verdict.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def feedback(
    name: str | None,
    verdict: str | None,
    comment: str,
    request_id: str,
    check: bool,
    score: str | None,
    items: int,
    since: str,
    as_json: bool,
) -> int:
    """Rate an answer of a deployment, check its answers, or show how they were rated.

    Exit code 1 when --check found a flaw.
    """
    settings = all_settings.load()
    if name in ("good", "bad") and verdict is None:
        name, verdict = None, name
    found = observed.one(name, settings)
    ledger = observed.ledger(settings)
    now_s = time.time()
    bad = False
    try:
        if verdict is not None:
            ledger.rate(
                Rating(
                    deployment=found.name, time_s=now_s, good=verdict == "good", comment=comment, request_id=request_id
                )
            )
        if score is not None:
            ledger.store_score(_score(score, items, found.name, now_s))
        if check:
            endpoint = found.pages[0].target.endpoint
            checked = quality.check(endpoint, chat.models(endpoint)[0], quality.probes())
            for rating in quality.ratings(found.name, checked, time_s=now_s):
                ledger.rate(rating)
                bad = bad or not rating.good
            for each in checked:
                output.note(f"{', '.join(each.flaws) or 'fine'}: {each.question} {each.answer[:100]}")
        ratings = ledger.ratings(found.name, now_s - observed.seconds(since), now_s)
        scores = ledger.scores(found.name)
    finally:
        ledger.close()
    good = sum(rating.good for rating in ratings)
    if as_json:
        output.data(
            {
                "schema": "aim-engine/feedback/v1",
                "deployment": found.name,
                "good": good,
                "rated": len(ratings),
                "ratings": ratings,
                "scores": scores,
            }
        )
    else:
        share = f"{good / len(ratings):.0%} good of {len(ratings)} rated answers" if ratings else "no answer was rated"
        output.text(f"{found.name}: {share}")
        for kept in scores[-5:]:
            output.text(
                f"{page.when(kept.time_s)} {kept.task}: {kept.value:g}"
                + (f" of {kept.items} items" if kept.items else "")
            )
    return int(bad)


def _score(text: str, items: int, deployment: str, now_s: float) -> Score:
    task, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError as err:
        raise InvalidInput(f"'{text}' is no score", hint="--score gsm8k=0.71") from err
    if not task or not 0 <= value <= 1:
        raise InvalidInput(
            f"'{text}' is no score", why="a task and a share from 0 to 1 are needed", hint="--score gsm8k=0.71"
        )
    return Score(deployment=deployment, time_s=now_s, task=task, value=value, items=items)
