"""Ask SLURM about the jobs that were queued for a results folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debiasbench.files import write_atomically

JOBS = "jobs.json"  # in the folder of an array: the array's number and its cells
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


def folder_of_jobs(results_dir: Path) -> Path:
    """The folder that contains a folder for each array."""
    return results_dir / "logs" / "slurm"


def tell_jobs(folder: Path, array: str, cells: dict[str, Any]) -> None:
    """Write down an array; `cells`: place of the record -> its state before."""
    write_atomically(folder / JOBS, json.dumps({"array": array, "cells": cells}).encode())


def told_jobs(results_dir: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Folder, number and cells of each array; damaged files are ignored, as claims are enough."""
    for path in sorted(folder_of_jobs(results_dir).glob(f"*/{JOBS}")):
        try:
            told = json.loads(path.read_bytes())
            number, cells = str(told["array"]), dict(told["cells"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield path.parent, number, cells


def is_queued(array: str) -> bool:
    """Whether SLURM has a job of an array that is not over; True if SLURM does not answer."""
    if shutil.which("squeue") is None:
        return True
    asked = ask("squeue", "-h", "-j", array, "-o", "%T")
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return any(state not in OVER for state in asked.stdout.split())


def ask(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a SLURM command."""
    return subprocess.run(
        command, input=given, capture_output=True, encoding="utf-8", errors="replace", check=False
    )  # fmt: skip
