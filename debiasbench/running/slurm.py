"""Train cells on a SLURM cluster: an array of jobs shares the cells of a grid by claims on the results folder.

Each job (`slurm_job`) trains cells on what it was given until nothing is left. Before its time is over, or when it is
preempted, it writes checkpoints, gives its claims back and is queued again (submitit); a job that is lost loses nothing
else, as its claims end and other jobs go on from its checkpoints. This process only looks at claims and records: jobs
go on without it.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import shutil
import subprocess
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path, write_atomically
from debiasbench.parameters import suggestion
from debiasbench.running.claims import Holder, Work, claim_path, holder_of
from debiasbench.running.executor import POLL, Event, Settings
from debiasbench.running.nodes import shared_folders, versions
from debiasbench.running.slurm_job import REFUSED, Job

CLUSTER = "slurm"  # of submitit; "local" has jobs that are processes of this machine: for tests
LOOK = 5.0  # seconds between questions to SLURM, and between looks at records of cells that nobody holds
CANCEL = 60.0  # seconds that cancelled jobs have to write checkpoints
REQUEUED = 1000  # times that a job may run out of its time
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for, for each job.

    Attributes:
        time: minutes. memory: such as "16G". gpus, cpus: of a job, which trains as many cells at a time as it has of
            the first (or of the second, without GPUs).
        setup: lines of shell that come first (`module load cuda`). more: other options of sbatch, without their dashes.
    """

    partition: str | None = None
    time: int = 240
    memory: str | None = None
    gpus: int = 0
    cpus: int = 1
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    more: tuple[tuple[str, str], ...] = ()

    def for_submitit(self) -> dict[str, Any]:
        """As submitit names them."""
        named = {
            "timeout_min": self.time, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus or None,
            "name": "debiasbench", "slurm_partition": self.partition, "slurm_mem": self.memory,
            "slurm_account": self.account, "slurm_qos": self.qos, "slurm_constraint": self.constraint,
            "slurm_setup": list(self.setup) or None,
            "slurm_additional_parameters": {"requeue": True, **dict(self.more)},
            "slurm_signal_delay_s": min(90, self.time * 60 // 3),
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}


def read_options(words: Sequence[str]) -> SlurmOptions:
    """Options from `key=value` and TOML files; later ones replace earlier ones.

    Raises:
        BenchmarkError: unknown keys, values of another form, files that cannot be read.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            given[key] = value
        elif word.endswith(".toml"):
            given |= _read(to_path(word))
        else:
            raise BenchmarkError(f"--slurm takes key=value and files that end in .toml. Got '{word}'.")
    known = [field.name for field in fields(SlurmOptions)]
    for key in given:
        if key not in known:
            raise BenchmarkError(
                f"--slurm: unknown option '{key}'.{suggestion(key, known)} Allowed: {', '.join(known)}."
            )
    return SlurmOptions(**{key: _FORMS[key](key, value) for key, value in given.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkError(f"--slurm: {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BenchmarkError(f"--slurm: {path} is no valid TOML: {error}") from None


def _refused(key: str, value: Any, allowed: str) -> BenchmarkError:
    return BenchmarkError(f"--slurm: {key} must be {allowed}. Got {value!r}.")


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.,:+@%&|*()\[\]/=-]+", value):
        raise _refused(key, value, "a word, as sbatch takes it")
    return value


def _memory(key: str, value: Any) -> str:
    if not re.fullmatch(r"[1-9]\d{0,8}[MG]B?", str(value)):
        raise _refused(key, value, "such as 16G or 500M")
    return str(value).rstrip("B")


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", str(value)) or (key == "cpus" and not int(value)):
        raise _refused(key, value, "a whole number" + (" of at least 1" if key == "cpus" else ""))
    return int(value)


def _minutes(key: str, value: Any) -> int:
    found = re.fullmatch(r"(\d{1,5})(min|h|d)", str(value))
    if found is None or not int(found[1]):
        raise _refused(key, value, "a time of at least a minute with its unit: 90min, 8h or 2d")
    return int(found[1]) * {"min": 1, "h": 60, "d": 1440}[found[2]]


def _lines(key: str, value: Any) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise _refused(key, value, "a list of lines")
    return tuple(lines)


def _table(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise _refused(key, value, "a table of a TOML file, [more]")
    return tuple((_word(key, name), _word(key, str(one))) for name, one in value.items())


_FORMS: dict[str, Callable[[str, Any], Any]] = {
    "partition": _word, "time": _minutes, "memory": _memory, "gpus": _count, "cpus": _count, "account": _word,
    "qos": _word, "constraint": _word, "setup": _lines, "more": _table,
}  # fmt: skip


class SlurmExecutor:
    """An array of jobs."""

    name: ClassVar[str] = "slurm"
    threads = 1

    def __init__(self, options: SlurmOptions, device: str, workers: int | None, per_device: int = 1) -> None:
        """What jobs there will be.

        Args:
            options: of each job.
            device: "auto" (GPUs if jobs have any), "cpu" or "cuda".
            workers: jobs at a time; None: 4.
            per_device: cells that share a GPU.

        Raises:
            BenchmarkError: submitit or SLURM is not there; a device that jobs do not have.
        """
        if importlib.util.find_spec("submitit") is None:
            raise BenchmarkError(
                "--executor slurm needs the package submitit, which is not installed: pip install 'debiasbench[slurm]'."
            )
        if CLUSTER == "slurm" and (shutil.which("sbatch") is None or shutil.which("srun") is None):
            raise BenchmarkError(
                "--executor slurm: there is no sbatch or srun here. Run this on a machine of the cluster that has them."
            )
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not options.gpus):
            raise BenchmarkError(
                f"--device {device}: jobs have {options.cpus} cores and {options.gpus} GPUs (--slurm gpus=1). Allowed: "
                "auto, cpu, cuda."
            )
        self.device = "cuda" if options.gpus and device != "cpu" else "cpu"
        if per_device < 1 or (self.device == "cpu" and per_device > 1):
            raise BenchmarkError(f"--per-device must be at least 1, and 1 without GPUs. Got {per_device}.")
        self.options, self.per_device = options, per_device
        self.n_jobs = workers or 4
        self.at_a_time = options.gpus * per_device if self.device == "cuda" else options.cpus
        self.devices = (self.device,) * (self.n_jobs * self.at_a_time)

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Let SLURM say whether it would take the job."""
        if not cells or CLUSTER != "slurm":
            return
        asked = subprocess.run(
            ["sbatch", "--test-only"], input=self.script(settings), capture_output=True, encoding="utf-8",
            errors="replace", check=False,
        )  # fmt: skip
        if asked.returncode:
            said = asked.stderr.strip().splitlines() or ["no reason given"]
            raise BenchmarkError(f"SLURM does not take the jobs: {said[-1]}")

    def script(self, settings: Settings) -> str:
        """What sbatch is given."""
        made = self._submitit(settings.results_dir / "logs" / "slurm")._executor
        made.parameters["map_count"] = self.n_jobs
        return str(made._make_submission_file_text(made._submitit_command_str, uuid.uuid4().hex))

    def submit(self, work: Work, settings: Settings) -> None:
        """Queue the jobs; not those for cells that the jobs of an earlier command are still to train."""
        self.work, self.settings = work, settings
        self._arrays: dict[Path, str] = {}  # folder -> number of the array
        self._jobs: list[Any] = []
        queued = self._queued_before()
        mine = [cell for cell in work.cells if cell.hash not in queued]
        if not mine:
            return
        folder = settings.results_dir / "logs" / "slurm" / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        folder.mkdir(parents=True)
        mark = folder / "mark"
        mark.touch()
        job = Job(
            versions(), shared_folders(mine, settings.data_dir, settings.results_dir), mark,
            pickle.dumps(([(cell, cell.code()) for cell in mine], work.before, work.accepts, settings)),
            self.device, self.options.cpus, self.at_a_time, self.per_device,
        )  # fmt: skip
        n_jobs = min(self.n_jobs, -(-len(mine) // self.at_a_time))
        executor = self._submitit(folder)
        with executor.batch():
            self._jobs = [executor.submit(job) for _ in range(n_jobs)]
        self._arrays[folder] = str(self._jobs[0].job_id).partition("_")[0]
        told = {"array": self._arrays[folder], "cells": [cell.hash for cell in mine]}
        write_atomically(folder / "jobs.json", json.dumps(told).encode())

    def leave(self, work: Work, settings: Settings) -> str:
        """Queue the jobs."""
        self.submit(work, settings)
        return f"scancel {' '.join(self._arrays.values())}"

    def events(self) -> Iterator[Event | None]:
        """What claims and records tell."""
        left = {cell.hash: cell for cell in self.work.cells}
        held: dict[str, Holder] = {}
        rows: dict[str, int] = {}  # of the display: a cell's, until it is finished
        for folder, number in self._arrays.items():
            yield Event("note", self.work.cells[0], 0, message=f"SLURM array {number}; what its jobs say: {folder}")
        looked = -LOOK
        while left:
            thorough = time.monotonic() - looked > LOOK
            alive = not thorough or self._is_alive()  # before records are looked at
            looked = time.monotonic() if thorough else looked
            now = {name: one for name, cell in left.items() if (one := holder_of(self._claim(cell)))}
            for name, holder in now.items():
                if name not in held:
                    rows[name] = min(set(range(len(rows) + 1)) - {rows[one] for one in held if one in rows})
                    yield Event("started", left[name], rows[name])
                if holder.stage and held.get(name) != holder:
                    stage = f"{holder.stage} ({holder.host})"
                    yield Event("epoch", left[name], rows[name], stage=stage, epoch=holder.epoch, epochs=holder.epochs)
            for name in [one for one in left if one not in now and (thorough or one in held)]:
                path = self.work.new_record(left[name])
                if path is not None:
                    yield Event("finished", left.pop(name), rows.get(name, 0), path=path)
            held = now
            self._check_refusals()
            if not alive:
                for name, cell in left.items():
                    yield Event("lost", cell, rows.get(name, 0), message="its jobs have ended without a record of it")
                return
            yield None
            time.sleep(POLL)

    def stop(self) -> None:
        """Cancel the jobs, which write checkpoints."""
        if not self._is_alive():
            return
        for job in self._jobs:
            job.cancel(check=False)
        for number in self._arrays.values():
            if CLUSTER == "slurm":
                subprocess.run(["scancel", number], capture_output=True, check=False)
        deadline = time.monotonic() + CANCEL
        while self._is_alive() and time.monotonic() < deadline:
            time.sleep(POLL)

    def _claim(self, cell: Cell) -> Path:
        return claim_path(self.settings.results_dir, cell)

    def _submitit(self, folder: Path) -> Any:
        import submitit

        made = submitit.AutoExecutor(folder=folder, cluster=CLUSTER, slurm_max_num_timeout=REQUEUED)
        made.update_parameters(**self.options.for_submitit(), slurm_array_parallelism=self.n_jobs)
        return made

    def _queued_before(self) -> set[str]:
        """Hashes of the cells of arrays of this results folder that have not ended; they are followed as well."""
        cells: set[str] = set()
        for told in sorted((self.settings.results_dir / "logs" / "slurm").glob("*/jobs.json")):
            content = json.loads(told.read_bytes())
            if CLUSTER == "slurm" and _is_queued(content["array"]):
                self._arrays[told.parent] = content["array"]
                cells |= set(content["cells"])
        return cells

    def _is_alive(self) -> bool:
        """Whether a job waits or runs."""
        if CLUSTER == "slurm":
            return any(map(_is_queued, self._arrays.values()))
        return not all(job.done() for job in self._jobs)

    def _check_refusals(self) -> None:
        for folder in self._arrays:
            if (folder / REFUSED).exists():
                raise BenchmarkError((folder / REFUSED).read_text(encoding="utf-8"))


def _is_queued(array: str) -> bool:
    """Whether SLURM has a job of an array that is not over; where it does not answer, it may have."""
    asked = subprocess.run(
        ["squeue", "-h", "-j", array, "-o", "%T"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return any(state not in OVER for state in asked.stdout.split())
