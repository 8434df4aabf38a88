"""Train cells on a SLURM cluster: an array of jobs shares the cells of a grid by claims on the results folder.

Each job (`slurm_job`) trains cells on its cores or GPUs until nothing is left. Before its time is over, or when it is
preempted, it writes checkpoints, gives its claims back and is queued again (by submitit). If a job is lost, its claims
end: SLURM queues it again, or other running jobs go on from its checkpoints. This process only looks at claims and
records, so jobs go on without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pickle
import re
import shlex
import shutil
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from debiasbench.about import PACKAGE
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path
from debiasbench.parameters import suggestion
from debiasbench.records import record_path
from debiasbench.running import slurm_queue
from debiasbench.running.claims import Holder, Work, claim_path, holder_of
from debiasbench.running.executor import POLL, Event, Settings
from debiasbench.running.following import failure_beside, name_of, states_of
from debiasbench.running.nodes import shared_folders, versions
from debiasbench.running.slurm_job import REFUSED, Job
from debiasbench.running.slurm_queue import folder_of_jobs, tell_jobs, told_jobs

CLUSTER = "slurm"  # submitit's kind of cluster; for tests "local", where jobs are processes of this machine
LOOK = 5.0  # seconds between queries to SLURM, and between looks at records of cells that no job holds
CANCEL = 60.0  # seconds for cancelled jobs to write checkpoints
REQUEUED = 1000  # number of times that a job may reach its time limit


@dataclass(frozen=True)
class SlurmOptions:
    """The resources and options that SLURM is asked for, for each job.

    Attributes:
        time: minutes. memory: such as "16G". gpus, cpus: of a job, which trains as many cells at a time as it has GPUs
            (or cores, if it has no GPUs).
        setup: shell commands that run first (`module load cuda`). more: other options of sbatch, without dashes.
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
    more: tuple[tuple[str, str | bool], ...] = ()

    def for_submitit(self) -> dict[str, Any]:
        """The options under submitit's names."""
        package = f'export PYTHONPATH={shlex.quote(str(PACKAGE.parent))}"${{PYTHONPATH:+:$PYTHONPATH}}"'  # for clones
        named = {
            "timeout_min": self.time, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus or None,
            "name": "debiasbench", "slurm_partition": self.partition, "slurm_mem": self.memory,
            "slurm_account": self.account, "slurm_qos": self.qos, "slurm_constraint": self.constraint,
            "slurm_setup": [*self.setup, package],
            "slurm_additional_parameters": {
                name: value for name, value in {"requeue": True, **dict(self.more)}.items() if value is not False
            },
            "slurm_signal_delay_s": min(90, self.time * 60 // 3),
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}


def read_options(words: Sequence[str]) -> SlurmOptions:
    """Options from `key=value` and TOML files; later ones replace earlier ones.

    Raises:
        BenchmarkError: a key is unknown, a value has the wrong form, or a file cannot be read.
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
        raise BenchmarkError(f"--slurm: {path} is not valid TOML: {error}") from None


def _refused(key: str, value: Any, allowed: str) -> BenchmarkError:
    return BenchmarkError(f"--slurm: {key} must be {allowed}. Got {value!r}.")


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.,:+@%&|*()\[\]/=-]+", value):
        raise _refused(key, value, "a word that sbatch accepts")
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


def _table(key: str, value: Any) -> tuple[tuple[str, str | bool], ...]:
    if not isinstance(value, dict):
        raise _refused(key, value, "a table of a TOML file, [more]")
    return tuple((_word(key, name), _option(name, one)) for name, one in value.items())


def _option(name: str, value: Any) -> str | bool:
    if isinstance(value, bool):  # true: an option without a value, such as --exclusive; false: no such option
        return value
    if not isinstance(value, str | int | float):
        raise _refused(name, value, "a word that sbatch accepts, a number or true")
    return _word(name, str(value))


_FORMS: dict[str, Callable[[str, Any], Any]] = {
    "partition": _word, "time": _minutes, "memory": _memory, "gpus": _count, "cpus": _count, "account": _word,
    "qos": _word, "constraint": _word, "setup": _lines, "more": _table,
}  # fmt: skip


class SlurmExecutor:
    """Trains cells in an array of SLURM jobs."""

    threads = 1

    def __init__(self, options: SlurmOptions, device: str, workers: int | None, per_device: int = 1) -> None:
        """Check and keep the kind and number of jobs.

        Args:
            options: SLURM options of each job.
            device: "auto" (GPUs if jobs have any), "cpu" or "cuda".
            workers: jobs at a time; None: 4.
            per_device: cells that share a GPU.

        Raises:
            BenchmarkError: submitit or SLURM is not installed, or jobs do not have the device.
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
        self._arrays: dict[Path, str] = {}  # folder -> number of its array
        self._shared: set[str] = set()  # numbers of arrays that also train cells of other commands
        self._jobs: list[Any] = []
        self._is_done = False
        self.n_jobs = workers or 4
        self.at_a_time = options.gpus * per_device if self.device == "cuda" else options.cpus
        self.devices = (self.device,) * (self.n_jobs * self.at_a_time)

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Ask SLURM whether it would accept the job."""
        where = str(settings.results_dir)
        if "%" in where or not where.isprintable():
            raise BenchmarkError(
                f"--results-dir {where!a}: --executor slurm takes no folder with a % (which SLURM replaces), a line "
                "break, or a character that cannot be printed in its path. Give another."
            )
        if not cells or CLUSTER != "slurm":
            return
        asked = slurm_queue.ask("sbatch", "--test-only", given=self.script(settings))
        if asked.returncode:
            raise _not_taken(asked.stderr)

    def script(self, settings: Settings) -> str:
        """The script for sbatch."""
        made = self._submitit(folder_of_jobs(settings.results_dir))._executor
        made.parameters["map_count"] = self.n_jobs
        return str(made._make_submission_file_text(made._submitit_command_str, uuid.uuid4().hex))

    def submit(self, work: Work, settings: Settings) -> None:
        """Queue jobs, except for cells that queued jobs of an earlier command will train."""
        self.work, self.settings = work, settings
        self._before = {cell.hash: states_of(self._record(cell)) for cell in work.cells}
        queued = self._queued_before()
        mine = [cell for cell in work.cells if self._name(cell) not in queued]
        if not mine:
            return
        folder = folder_of_jobs(settings.results_dir) / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
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
        try:
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit prints its errors too
                self._jobs = [executor.submit(job) for _ in range(n_jobs)]
        except RuntimeError as error:
            raise _not_taken(str(error)) from None
        self._arrays[folder] = str(self._jobs[0].job_id).partition("_")[0]
        tell_jobs(folder, self._arrays[folder], {self._name(cell): self._before[cell.hash] for cell in mine})

    def leave(self, work: Work, settings: Settings) -> str:
        """Queue the jobs; returns the command that cancels them."""
        self.submit(work, settings)
        own = [number for number in self._arrays.values() if number not in self._shared]
        return f"scancel {' '.join(own)}" if own else "(its jobs are to train cells of other commands as well)"

    def events(self) -> Iterator[Event | None]:
        """Events from claims and records."""
        left = {cell.hash: cell for cell in self.work.cells}
        held: dict[str, Holder] = {}
        rows: dict[str, int] = {}  # cell hash -> its row in the display, until it is finished
        for folder, number in self._arrays.items():
            yield Event("note", self.work.cells[0], 0, message=f"SLURM array {number}; output of its jobs: {folder}")
        looked = -LOOK
        while left:
            thorough = time.monotonic() - looked > LOOK
            alive = not thorough or self._is_alive(self._arrays.values())  # before the records are read
            looked = time.monotonic() if thorough else looked
            now = {name: one for name, cell in left.items() if (one := holder_of(self._claim(cell)))}
            for name, holder in now.items():
                if name not in held:
                    taken = {rows[one] for one in [*held, *now] if one != name and one in rows}
                    rows[name] = min(set(range(len(taken) + 1)) - taken)
                    yield Event("started", left[name], rows[name])
                if holder.stage and held.get(name) != holder:
                    stage = f"{holder.stage} ({holder.host})"
                    yield Event("epoch", left[name], rows[name], stage=stage, epoch=holder.epoch, epochs=holder.epochs)
            for name in [one for one in left if one not in now and (thorough or one in held)]:
                path = self.work.new_record(left[name]) or self._new_failure(left[name])
                if path is not None:
                    yield Event("finished", left.pop(name), rows.get(name, 0), path=path)
            held = now
            self._check_refusals()
            if not alive:
                message = "its jobs have ended without a record of it"
                for name in [one for one in left if one not in now]:  # otherwise another run trains it
                    yield Event("lost", left.pop(name), rows.get(name, 0), message=message)
            yield None
            if left:
                time.sleep(POLL)
        self._is_done = True

    def stop(self) -> None:
        """Cancel the jobs, which write checkpoints; jobs that also train cells of other commands go on.

        Raises:
            BenchmarkError: SLURM does not answer, so the jobs go on.
        """
        mine = [number for number in self._arrays.values() if number not in self._shared]
        deadline, refusal = time.monotonic() + CANCEL, "it was not asked yet"
        while self._is_alive(mine) and time.monotonic() < deadline:
            refusal = refusal and self._cancel(mine)
            time.sleep(POLL)
        if refusal and not self._is_done and self._is_alive(mine):
            raise BenchmarkError(
                f"SLURM could not be asked to cancel the jobs, which go on ({refusal}). When it answers: "
                f"scancel {' '.join(mine)}"
            )

    def _cancel(self, arrays: Sequence[str]) -> str:
        """Cancel arrays; returns why SLURM does not, "" if it does."""
        if CLUSTER == "slurm":
            asked = slurm_queue.ask("scancel", *arrays)
            return _last_line(asked.stderr) if asked.returncode else ""
        for job in self._jobs:
            job.cancel(check=False)
        return ""

    def _claim(self, cell: Cell) -> Path:
        return claim_path(self.settings.results_dir, cell)

    def _submitit(self, folder: Path) -> Any:
        import submitit

        made = submitit.AutoExecutor(folder=folder, cluster=CLUSTER, slurm_max_num_timeout=REQUEUED)
        made.update_parameters(**self.options.for_submitit(), slurm_array_parallelism=self.n_jobs)
        return made

    def _queued_before(self) -> set[str]:
        """Names of cells that queued arrays of earlier commands will train; this run follows such arrays as well."""
        mine = {self._name(cell) for cell in self.work.cells}
        queued: set[str] = set()
        results_dir = self.settings.results_dir
        for folder, number, before in told_jobs(results_dir) if CLUSTER == "slurm" else ():
            left = {name for name, one in before.items() if states_of(results_dir / name) == one}
            if left & mine and slurm_queue.is_queued(number):
                self._arrays[folder] = number
                self._shared |= {number} if left - mine else set()
                queued |= left
        return queued

    def _is_alive(self, arrays: Iterable[str]) -> bool:
        """Whether a job is pending or running."""
        if CLUSTER == "slurm":
            return any(map(slurm_queue.is_queued, arrays))
        return not all(job.done() for job in self._jobs)

    def _record(self, cell: Cell) -> Path:
        return record_path(self.settings.results_dir, cell)

    def _name(self, cell: Cell) -> str:
        return name_of(self.settings.results_dir, cell)

    def _new_failure(self, cell: Cell) -> Path | None:
        """The path of a failure that was recorded meanwhile beside a finished record, which it does not replace."""
        path = failure_beside(self._record(cell))
        return path if states_of(self._record(cell))[1] not in (None, self._before[cell.hash][1]) else None

    def _check_refusals(self) -> None:
        for folder in self._arrays:
            if (folder / REFUSED).exists():
                raise BenchmarkError((folder / REFUSED).read_text(encoding="utf-8"))


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _not_taken(said: str) -> BenchmarkError:
    return BenchmarkError(f"SLURM does not take the jobs: {_last_line(said)}")
