"""Take the pictures of the monitor in the documentation from a real run.

    python tools/screenshots.py NAME [--minutes 6]

NAME is a deployment that runs, such as one of `aim-engine up HuggingFaceTB/SmolLM2-135M-Instruct --name demo`. It gets questions of its
own: few at once, then as many as it was planned for, then more than it has slots. Needs chromium for the picture of the report.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from aim_engine import improve, workflow
from aim_engine import settings as all_settings
from aim_engine.cli import observed, top
from aim_engine.cli.advice import subject_of
from aim_engine.monitor import page, views
from aim_engine.monitor.collect import Collector
from aim_engine.monitor.history import Look
from aim_engine.monitor.watch import Watch
from aim_engine.render import alert_rules

IMAGES = Path(__file__).parent.parent / "docs" / "images"
INTERVAL_S = 2.0


def main() -> int:
    """Run, watch, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--minutes", type=float, default=6.0)
    given = parser.parse_args()
    settings = all_settings.load()
    found = observed.one(given.name, settings)
    history, ledger = observed.history(settings), observed.ledger(settings)
    watch = Watch(history, ledger, alert_rules.load(), {found.name: found.plan})
    collector = Collector(found.pages, history, interval_s=INTERVAL_S, deployment=found.name)
    screen = top.Screen(found)
    begin_s = time.time()
    stop = threading.Event()

    def seen(looks: list[Look]) -> None:
        if looks:
            screen.add(looks)
            watch.judge(time.time())

    runner = threading.Thread(target=collector.run, args=(stop, seen))
    runner.start()
    slots = found.plan.chosen.recipe.max_num_seqs if found.plan is not None and found.plan.chosen is not None else 4
    target = found.pages[0].target
    served = observed.served_as(found, settings)
    try:
        for at_once in (1, slots, slots * 3):
            ends = time.monotonic() + given.minutes * 60 / 3
            while time.monotonic() < ends:
                improve.drive(2 * at_once, at_once)(target.endpoint, served)
        time.sleep(INTERVAL_S)
    finally:
        stop.set()
        runner.join()
        collector.close()
    IMAGES.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=112, file=sys.stderr, force_terminal=True)
    console.print(top.frame([screen], ledger.alerts()))
    drawn = console.export_svg(title="aim-engine top")
    # No font from the network: the reader's own monospace does.
    (IMAGES / "top.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")
    end_s = time.time()
    history.roll_up(end_s)
    document = views.of_history(
        history,
        found.name,
        begin_s,
        end_s,
        plan=found.plan,
        ledger=ledger,
        points=90,
        predict=lambda plan, load: workflow.expect(plan, load, settings),
    )
    told = subject_of(found, history, begin_s, end_s, settings).found
    advice = [(each.id, each.change.say if each.change is not None else each.title, each.evidence) for each in told]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        report.write_text(page.page(document, advice), encoding="utf-8")
        picture(report, IMAGES / "report.png", 2330)
    history.close()
    ledger.close()
    return 0


def picture(source: Path, to: Path, height: int) -> None:
    """A page as a PNG."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("chromium is needed: apt-get install chromium")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
    subprocess.run(
        [program, *flags, f"--window-size=1240,{height}", f"--screenshot={to}", source.resolve().as_uri()],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    sys.exit(main())
