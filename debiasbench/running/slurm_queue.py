"""What SLURM says of the jobs that were queued for a results folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debiasbench.files import write_atomically

JOBS = "jobs.json"  # in the folder of an array: its number, and which cells it trains
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


def folder_of_jobs(results_dir: Path) -> Path:
    """Where each array has a folder."""
    return results_dir / "logs" / "slurm"


def tell_jobs(folder: Path, array: str, cells: dict[str, Any]) -> None:
    """Write down an array; `cells`: where their records go -> what was there of them before."""
    write_atomically(folder / JOBS, json.dumps({"array": array, "cells": cells}).encode())


def told_jobs(results_dir: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Folder, number and cells of each array; what is damaged is as if it were not there, as claims are enough."""
    for path in sorted(folder_of_jobs(results_dir).glob(f"*/{JOBS}")):
        try:
            told = json.loads(path.read_bytes())
            number, cells = str(told["array"]), dict(told["cells"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield path.parent, number, cells


def is_queued(array: str) -> bool:
    """Whether SLURM has a job of an array that is not over; where it does not answer, it may have."""
    if shutil.which("squeue") is None:
        return True
    asked = ask("squeue", "-h", "-j", array, "-o", "%T")
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return any(state not in OVER for state in asked.stdout.split())


def ask(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM."""
    return subprocess.run(
        command, input=given, capture_output=True, encoding="utf-8", errors="replace", check=False
    )  # fmt: skip
