"""A live view of a grid that runs elsewhere: what `debiasbench status --follow` shows."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from debiasbench.console import PlainConsole
from debiasbench.running.following import Following, Seen
from debiasbench.wording import duration

EVERY = 1.0  # seconds between looks at the folder
MOST_SHOWN = 20  # running cells, and failures, that are shown


def watch(console: PlainConsole, folder: Path) -> Following:
    """Show the progress of the run that was started last on a folder, until it has ended.

    On a terminal this is a live view, elsewhere a line whenever a cell has ended.

    Raises:
        BenchmarkError: there is no run, or it is no longer at work and records are missing.
        KeyboardInterrupt: after Ctrl-C, which does not affect the run.
    """
    following = Following.of(folder)
    n_told = -1
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            running = following.look()
            if console.is_terminal:
                live.update(_view(console, following, running), refresh=True)
            elif n_told != (n_told := len(following.done) + len(following.failed)):
                console.print(summary(following, len(running)), soft_wrap=True)
            if not following.waiting:
                return following
            time.sleep(EVERY)


def summary(following: Following, n_running: int) -> str:
    """Progress in words: `3 of 9 cells done, 1 failed, 2 running, about 4 min left`."""
    n_done, n_failed, left = len(following.done), len(following.failed), following.seconds_left
    parts = [f"{n_done} of {n_done + n_failed + len(following.waiting)} cells done"]
    parts += [f"{n_failed} failed"] if n_failed else []
    parts += [f"{n_running or 'none'} running"] if following.waiting else []
    return ", ".join(parts) + (f", about {duration(left)} left" if left else "")


def _view(console: PlainConsole, following: Following, running: list[Seen]) -> Group:
    ended = len(following.done) + len(following.failed)
    parts: list[Text | Table | ProgressBar] = [
        Text(summary(following, len(running)), "bold"),
        ProgressBar(total=ended + len(following.waiting), completed=ended, width=60),
    ]
    if running:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("running", "stage", "epoch", "an epoch", "since", "worker"):
            table.add_column(heading, justify="right" if heading in ("epoch", "an epoch", "since") else "left")
        for one in running[:MOST_SHOWN]:
            far = f"{one.holder.epoch}/{one.holder.epochs}" if one.holder.stage else ""
            rate = one.pace.seconds_an_epoch
            words = (
                one.name, one.holder.stage or "starts", far, f"{rate:.3g} s" if rate else "",
                duration(one.seconds), f"{one.holder.host}, process {one.holder.pid}",
            )  # fmt: skip
            table.add_row(*(Text(console.shown(word)) for word in words))
        parts.append(table)
        if len(running) > MOST_SHOWN:
            parts.append(Text(f"and {len(running) - MOST_SHOWN} more", "dim"))
    for title, reason in list(following.failed.items())[-MOST_SHOWN:]:
        parts.append(Text(console.shown(f"failed  {title}: {reason}"), "red", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)
