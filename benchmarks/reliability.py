"""Kill runs on purpose, and measure what is lost: `python benchmarks/reliability.py --kills 200`, prints JSON.

The benchmark starts a grid, kills a part of it while a worker trains (the worker, the parent, or all; by SIGKILL,
SIGTERM, SIGHUP or Ctrl-C), and starts it again, until `--kills` kills have hit a cell in training. Then it finishes the
grid and compares it with the same grid without kills. A kill counts if the cell had written a checkpoint and was not
finished, and if its process existed. Progress is kept in the folder, so the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from debiasbench.records import read_records

KINDS = (
    "worker SIGKILL",
    "parent SIGKILL",
    "all SIGKILL",
    "worker SIGTERM",
    "parent SIGTERM",
    "parent SIGHUP",
    "Ctrl-C",
)
EVERY = 0.2  # seconds between checkpoints


def command(folder: Path, options: argparse.Namespace) -> list[str]:
    """The command of the run to be killed."""
    words = [sys.executable, "-m", "debiasbench", "run", "--methods", *options.methods, "--datasets", options.dataset]
    words += ["--seeds", str(options.seeds), "--workers", str(options.workers), "--device", "cpu"]
    return [*words, "--checkpoint-every", f"{EVERY}s", "--rerun", "failed", "--results-dir", str(folder)]


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start the run in its own session, as from its own terminal."""
    with (folder.parent / "output.log").open("ab") as log:
        return subprocess.Popen(command(folder, options), stdout=log, stderr=log, start_new_session=True)


def children(pid: int) -> list[int]:
    """The worker processes of a run."""
    try:
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text(encoding="ascii").split()
        ]
    except OSError:
        return []


def kill(parent: int, kind: str) -> bool:
    """Send the signal of `kind`; False if a process did not exist."""
    who, _, name = kind.partition(" ")
    number = signal.SIGINT if kind == "Ctrl-C" else getattr(signal, name)
    workers = children(parent)
    targets = {"worker": workers[:1], "parent": [parent], "all": [parent, *workers], "Ctrl-C": [parent]}[who]
    for pid in targets:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return bool(targets) and bool(workers)


def checkpoints(folder: Path) -> dict[Path, float]:
    """The checkpoints of running cells -> when they were written."""
    found = {}
    for path in (folder / "running").rglob("journal.json"):
        try:
            found[path] = path.stat().st_mtime
        except OSError:
            continue
    return found


def hit(folder: Path, options: argparse.Namespace, kind: str, wait: float) -> dict[str, float | str] | None:
    """Start the grid and kill it in training; returns what was lost, or None if no cell was hit."""
    before = checkpoints(folder)
    began = time.time()
    process = start(folder, options)
    try:
        while process.poll() is None:
            now = checkpoints(folder)
            news = [path for path, written in now.items() if written > before.get(path, 0.0)]
            if news:
                resumed = min(now[path] for path in news) - began
                time.sleep(wait)
                if process.poll() is not None or not any(path.exists() for path in news):
                    break  # it finished before the kill
                at = time.time()
                written = max((path.stat().st_mtime for path in news if path.exists()), default=at)
                if not kill(process.pid, kind):
                    break
                if kind.startswith("worker"):  # the parent must notice it without help
                    time.sleep(1.0)
                process.send_signal(signal.SIGINT)
                process.wait(120)
                return {"kind": kind, "seconds_to_resume": resumed, "seconds_lost": max(0.0, at - written)}
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return None


def results(folder: Path) -> dict[str, str]:
    """Title of each finished cell -> its result as text."""
    return {
        record.cell.title: json.dumps(record.to_json()["result"], sort_keys=True)
        for record in read_records(folder / "records")[0]
        if record.result is not None
    }


def main() -> None:
    """Run the benchmark, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where progress is kept (default: a temporary one)")
    parser.add_argument("--methods", nargs="+", default=["vanilla", "pgd", "jtt", "disen"])
    parser.add_argument("--dataset", default="cmnist5k:steps=60")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "kills.json"
    progress = (
        json.loads(kept.read_text(encoding="utf-8"))
        if kept.exists()
        else {"kills": [], "rounds": 0, "attempts": 0, "bad": []}
    )
    plain, killed = folder / "plain", folder / "killed"
    for path in (plain, killed):
        path.mkdir(exist_ok=True)
    start(plain, options).wait()
    expected = results(plain)
    while True:
        hits = len(progress["kills"])
        rng = random.Random(progress["attempts"])
        progress["attempts"] += 1
        found = hit(killed, options, KINDS[hits % len(KINDS)], rng.uniform(0.1, 1.5)) if hits < options.kills else None
        if found is not None:
            progress["kills"].append(found)
        elif results(killed).keys() == expected.keys() or hits >= options.kills:
            start(killed, options).wait()
            progress["rounds"] += 1
            got = results(killed)
            progress["bad"] += [title for title in expected if got.get(title) != expected[title]]
            progress["lost"] = progress.get("lost", 0) + len(expected.keys() - got.keys())
            files = list((killed / "records").rglob("*.json"))
            progress["duplicated"] = progress.get("duplicated", 0) + len(files) - len(got)
            progress["left_over"] = progress.get("left_over", 0) + len(checkpoints(killed))
            (killed).rename(folder / f"round-{progress['rounds']}")
            killed.mkdir()
        kept.write_text(json.dumps(progress), encoding="utf-8")
        if len(progress["kills"]) >= options.kills and found is None:
            break
    lost = [one["seconds_lost"] for one in progress["kills"]]
    resumed = [one["seconds_to_resume"] for one in progress["kills"]]
    print(json.dumps({
        "kills": len(progress["kills"]), "grids": progress["rounds"], "cells": progress["rounds"] * len(expected),
        "kinds": {kind: sum(one["kind"] == kind for one in progress["kills"]) for kind in KINDS},
        "lost": progress["lost"], "duplicated": progress["duplicated"], "results that differ": len(progress["bad"]),
        "left over": progress["left_over"],
        "seconds lost, median and worst": [statistics.median(lost), max(lost)] if lost else None,
        "seconds to resume, median and worst": [statistics.median(resumed), max(resumed)] if resumed else None,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
