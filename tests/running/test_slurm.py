"""Cells in SLURM jobs: of a real SLURM where there is one, and of submitit's stand-in, whose jobs are processes."""

import contextlib
import itertools
import shutil
import subprocess
import sys

import pytest

from debiasbench.about import PACKAGE
from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.records import find_record, read_record
from debiasbench.running import nodes, slurm, slurm_queue
from debiasbench.running.claims import Claims
from debiasbench.running.run import RunOptions, leave_grid, plan_grid, run_grid
from debiasbench.running.runner import failed_record
from debiasbench.running.slurm import SlurmExecutor, SlurmOptions, read_options

pytest.importorskip("submitit")
METHOD = """
import time
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method

class Queued(Method):
    name = "queued"
    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy, predict=net)
        return net
"""
DATASET = """
from debiasbench.testing import Tiny

class Shared(Tiny):
    name = "shared"
"""
LONG = {"steps": 1600, "checkpoint_every": 0.02}  # some ten seconds


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patched:
        for kind, name, text in (("methods", "queued", METHOD), ("datasets", "shared", DATASET)):
            (folder / kind).mkdir()
            (folder / kind / f"{name}.py").write_text(text, encoding="utf-8")
            package = sys.modules[f"debiasbench.{kind}"]
            patched.setattr(package, "__path__", [*package.__path__, str(folder / kind)])
            patched.setattr(package.registry, "_scanned", None)
            patched.setenv(f"DEBIASBENCH_{kind.upper()}_PATH", str(folder / kind))
        yield
    for kind in ("methods", "datasets"):
        sys.modules[f"debiasbench.{kind}"].registry._scanned = None  # the names of these are known no more
    for name in ("methods.queued", "datasets.shared"):
        sys.modules.pop(f"debiasbench.{name}", None)


@pytest.fixture
def real_slurm(monkeypatch):
    """A SLURM that answers."""
    _need_slurm()
    monkeypatch.setattr(slurm, "LOOK", 1.0)


def _need_slurm():
    if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("needs a SLURM that answers (one node will do)")


@pytest.fixture(params=["local", "slurm"])
def cluster(request, monkeypatch):
    """Which cluster the jobs are of."""
    if request.param == "slurm":
        _need_slurm()
    monkeypatch.setattr(slurm, "CLUSTER", request.param)
    monkeypatch.setattr(slurm, "LOOK", 1.0)
    return request.param


def ready(results, *methods, steps=4, seeds=1, **options):
    asked = Experiment("", list(methods), [f"shared:steps={steps}"], seeds=seeds)
    options = {"slurm": ("time=10min",), **options} if options.get("executor") == "slurm" else options
    return plan_grid(asked, RunOptions(results, results, **{"device": "cpu", **options}))


def run(results, *methods, handle=lambda _: None, **options):
    grid = ready(results, *methods, **options)
    run_grid(grid, lambda event: handle(grid, event))
    found = [read_record(find_record(grid.options.results_dir, cell)) for cell in grid.plan.grid.cells]
    return {f"{record.cell.method_title} {record.cell.seed}": record for record in found}


def nothing(grid, event):
    pass


def equal_results(these, those):
    return {name: record.result for name, record in these.items()} == {
        name: record.result for name, record in those.items()
    }


@pytest.mark.slow
def test_jobs_share_the_cells_and_results_are_those_of_this_machine(tmp_path, cluster):
    there = run(tmp_path / "there", "queued", "pgd", seeds=2, executor="slurm", workers=2, handle=nothing)
    assert equal_results(there, run(tmp_path / "here", "queued", "pgd", seeds=2, workers=0, handle=nothing))
    assert {record.provenance.executor for record in there.values()} == {"slurm"}
    assert all(record.provenance.host for record in there.values())


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path, cluster):
    told = []

    def preempt(grid, event):
        if event.kind == "epoch" and event.epoch >= 4 and not told:
            told.append(event)
            if cluster == "slurm":
                (number,) = grid.executor._arrays.values()
                subprocess.run(["scancel", "--signal=USR2", number], check=True)
            else:
                (job,) = grid.executor._jobs
                subprocess.run(["pkill", "-USR2", "-P", job.job_id], check=True)

    there = run(tmp_path / "there", "queued", executor="slurm", workers=1, handle=preempt, **LONG)
    assert told
    assert there["queued 0"].provenance.resumed
    assert equal_results(there, run(tmp_path / "here", "queued", workers=0, handle=nothing, **LONG))


@pytest.mark.slow
def test_jobs_of_a_run_that_is_stopped_leave_checkpoints(tmp_path, real_slurm):
    def stop(grid, event):
        if event.kind == "epoch" and event.epoch >= 3:
            raise KeyboardInterrupt

    settings = LONG | {"checkpoint_every": 3600.0}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "there", "queued", executor="slurm", workers=1, handle=stop, **settings)
    assert list((tmp_path / "there" / "running").rglob("journal.json"))
    assert not list((tmp_path / "there" / "running").rglob("*.claim"))
    there = run(tmp_path / "there", "queued", workers=0, handle=nothing, **settings)
    assert there["queued 0"].provenance.resumed
    assert equal_results(there, run(tmp_path / "here", "queued", workers=0, handle=nothing, **settings))


@pytest.mark.slow
def test_a_job_that_is_killed_costs_its_cell_and_the_same_command_goes_on(tmp_path, real_slurm):
    told = []

    def kill(grid, event):
        told.append(event)
        if event.kind == "epoch" and [one.kind for one in told].count("epoch") == 1:
            (number,) = grid.executor._arrays.values()
            subprocess.run(["scancel", "--signal=KILL", number], check=True)

    grid = ready(tmp_path / "there", "queued", executor="slurm", workers=1, **LONG)
    run_grid(grid, lambda event: kill(grid, event))
    assert told[-1].kind == "lost"
    assert told[-1].message == "its jobs have ended without a record of it"
    there = run(tmp_path / "there", "queued", executor="slurm", workers=1, handle=nothing, **LONG)
    assert there["queued 0"].provenance.resumed
    assert equal_results(there, run(tmp_path / "here", "queued", workers=0, handle=nothing, **LONG))


@pytest.mark.slow
def test_jobs_of_other_versions_end_the_run_before_anything_trains(tmp_path, cluster, monkeypatch):
    other = {**nodes.versions(), "torch": "1.0"}
    monkeypatch.setattr(slurm, "versions", lambda: other)
    with pytest.raises(BenchmarkError, match=r"^\S+ has torch \S+ \(the run has 1\.0\)\. Install equal versions"):
        run(tmp_path, "queued", executor="slurm", workers=1, handle=nothing)
    assert not list(tmp_path.rglob("records"))


@pytest.mark.slow
def test_a_command_may_leave_and_come_back(tmp_path, real_slurm):
    left = ready(tmp_path, "queued", executor="slurm", workers=1, **LONG)
    assert leave_grid(left).startswith("scancel ")
    back = ready(tmp_path, "queued", executor="slurm", workers=1, **LONG)
    events = []
    run_grid(back, events.append)
    assert back.executor._arrays == left.executor._arrays
    assert events[-1].kind == "finished"


class StandIn:
    """What SLURM and submitit do, as far as an executor sees it: arrays that are queued until they are cancelled."""

    def __init__(self, monkeypatch):
        self.queued, self.cancelled, self.refusal = [], [], ""
        monkeypatch.setattr(slurm_queue, "ask", self.ask)
        monkeypatch.setattr(slurm, "POLL", 0.01)
        monkeypatch.setattr(slurm, "LOOK", 0.0)
        monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
        monkeypatch.setattr(SlurmExecutor, "_submitit", lambda *_: self)
        monkeypatch.setattr(SlurmExecutor, "script", lambda *_: "")

    def ask(self, *command, given=""):
        del given
        if command[0] == "scancel" and not self.refusal:
            self.cancelled += command[1:]
            self.queued = [one for one in self.queued if one not in command]
        out = "RUNNING" if command[0] == "squeue" and command[3] in self.queued else ""
        return subprocess.CompletedProcess(command, bool(self.refusal), out, self.refusal)

    def batch(self):
        return contextlib.nullcontext()

    def submit(self, job):
        del job
        self.job_id = f"{len(self.queued) + 1}_0"
        self.queued.append(str(len(self.queued) + 1))
        return self


@pytest.fixture
def stand_in(monkeypatch):
    return StandIn(monkeypatch)


def submitted(results, *methods, **options):
    """A grid whose jobs were queued."""
    grid = ready(results, *methods, executor="slurm", workers=1, **options)
    leave_grid(grid)
    return grid


def test_jobs_that_train_cells_of_other_commands_are_left_alone(tmp_path, stand_in):
    submitted(tmp_path, "queued", "pgd")
    part = submitted(tmp_path, "queued")
    other = submitted(tmp_path, "lff")
    assert (list(part.executor._arrays.values()), list(other.executor._arrays.values())) == (["1"], ["2"])
    part.executor.stop()
    assert stand_in.cancelled == []
    other.executor.stop()
    assert stand_in.cancelled == ["2"]
    submitted(tmp_path, "queued", "pgd").executor.stop()
    assert stand_in.cancelled == ["2", "1"]


def test_a_cell_that_has_failed_in_a_job_is_queued_again_while_its_array_goes_on(tmp_path, stand_in):
    (cell, _) = submitted(tmp_path, "queued", "pgd").plan.grid.cells
    failed_record(cell, tmp_path, "LostWorker", "as a job tells it", "cpu")
    again = submitted(tmp_path, "queued", "pgd", rerun="failed")
    assert sorted(again.executor._arrays.values()) == ["1", "2"]
    assert stand_in.queued == ["1", "2"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"array": "1", "cells": ["a"]}', '{"array": "1", "cells": 3}'])
def test_a_damaged_list_of_jobs_is_as_if_it_were_not_there(content, tmp_path, stand_in):
    first = submitted(tmp_path, "queued")
    (folder,) = first.executor._arrays
    (folder / "jobs.json").write_text(content, encoding="utf-8")
    assert list(submitted(tmp_path, "queued").executor._arrays.values()) == ["2"]
    assert stand_in.queued == ["1", "2"]


def test_a_cell_that_another_run_holds_is_lost_only_when_that_run_gives_it_up(tmp_path, stand_in):
    executor = submitted(tmp_path, "queued").executor
    (cell,) = executor.work.cells
    stand_in.queued.clear()
    with Claims(tmp_path) as other:
        other.take(cell)
        events = executor.events()
        kinds = [event and event.kind for event in itertools.islice(events, 5)]
    assert kinds == ["note", "started", None, None, None]
    assert [event.kind for event in events if event] == ["lost"]


def test_a_failure_beside_a_finished_record_is_no_lost_cell(tmp_path, stand_in):
    run(tmp_path, "queued", workers=0, handle=nothing)
    executor = submitted(tmp_path, "queued", rerun="all").executor
    (cell,) = executor.work.cells
    failed_record(cell, tmp_path, "LostWorker", "as a job tells it", "cpu")
    (event,) = [event for event in executor.events() if event and event.kind != "note"]
    assert (event.kind, event.path.suffix) == ("finished", ".failed")
    assert stand_in.queued == ["1"]


def test_jobs_that_could_not_be_cancelled_are_named(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(slurm, "CANCEL", 0.1)
    executor = submitted(tmp_path, "queued").executor
    stand_in.refusal = "slurm_kill_job error: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(BenchmarkError, match=r"go on \(slurm_kill_job error: .*\)\. When it answers: scancel 1$"):
        executor.stop()


def test_what_slurm_does_not_take_is_told_in_a_line(tmp_path, stand_in, monkeypatch):
    grid = ready(tmp_path, "queued", executor="slurm")

    def refuse(*_):
        raise RuntimeError("sbatch: error: a warning\nsbatch: error: Invalid account\n")

    monkeypatch.setattr(stand_in, "submit", refuse)
    with pytest.raises(BenchmarkError, match=r"^SLURM does not take the jobs: sbatch: error: Invalid account$"):
        run_grid(grid, print)
    for name in ("100%", "a%jb", "a\nb", "a\udcffb"):
        with pytest.raises(BenchmarkError, match=r"--executor slurm takes no folder with a %"):
            ready(tmp_path / name, "queued", executor="slurm")


@pytest.mark.parametrize("setup", [(), ("module load cuda",), ("a", "b")])
def test_jobs_find_a_suite_that_is_not_installed(setup):
    *first, last = SlurmOptions(setup=setup).for_submitit()["slurm_setup"]
    assert tuple(first) == setup
    for before, after in (("", str(PACKAGE.parent)), ("/x:y z", f"{PACKAGE.parent}:/x:y z")):
        told = subprocess.run(
            ["bash", "-c", f'{last}; printf %s "$PYTHONPATH"'], env={"PYTHONPATH": before}, capture_output=True,
            encoding="utf-8", check=True,
        )  # fmt: skip
        assert told.stdout == after


def test_what_jobs_have_is_read_from_words_and_files(tmp_path):
    file = tmp_path / "cluster.toml"
    file.write_text(
        'partition = "gpu"\ntime = "2d"\nsetup = ["module load cuda"]\n'
        "[more]\nnice = 5\nexclusive = true\nrequeue = false\noversubscribe = false\n",
        encoding="utf-8",
    )
    found = read_options([str(file), "time=90min", "memory=16GB", "gpus=2", "cpus=8"])
    assert found == SlurmOptions(
        partition="gpu",
        time=90,
        memory="16G",
        gpus=2,
        cpus=8,
        setup=("module load cuda",),
        more=(("nice", "5"), ("exclusive", True), ("requeue", False), ("oversubscribe", False)),
    )
    assert read_options([]) == SlurmOptions()
    assert found.for_submitit()["slurm_additional_parameters"] == {"nice": "5", "exclusive": True}
    assert read_options([]).for_submitit()["slurm_additional_parameters"] == {"requeue": True}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("partitoin=gpu", r"unknown option 'partitoin'\. Did you mean 'partition'\?"),
        ("time=8", "time must be a time of at least a minute with its unit: 90min, 8h or 2d. Got '8'"),
        ("time=0h", "time must be"),
        ("memory=lots", "memory must be such as 16G or 500M. Got 'lots'"),
        ("gpus=-1", "gpus must be a whole number. Got '-1'"),
        ("cpus=0", "cpus must be a whole number of at least 1. Got '0'"),
        ("partition=a b", "partition must be a word"),
        ("account=$(reboot)", "account must be a word|Got"),
        ("more=x", r"more must be a table of a TOML file"),
        ("gpu", r"--slurm takes key=value and files that end in \.toml\. Got 'gpu'"),
        ("lists.toml", r"nice must be a word that sbatch accepts, a number or true\. Got \[1\]"),
        ("nowhere.toml", "nowhere.toml cannot be read: No such file"),
        ("broken.toml", "is not valid TOML"),
        ("latin.toml", "is not valid TOML"),
    ],
)
def test_what_jobs_cannot_have_is_told(word, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("time = ", encoding="utf-8")
    (tmp_path / "lists.toml").write_text("[more]\nnice = [1]", encoding="utf-8")
    (tmp_path / "latin.toml").write_bytes('partition = "gr\xfcn"'.encode("latin-1"))
    with pytest.raises(BenchmarkError, match=said):
        read_options([word])


def test_what_is_missing_is_told_before_anything_trains(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(slurm.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(BenchmarkError, match=r"pip install 'debiasbench\[slurm\]'"):
            SlurmExecutor(SlurmOptions(), "auto", None)
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    with pytest.raises(BenchmarkError, match="there is no sbatch or srun here"):
        SlurmExecutor(SlurmOptions(), "auto", None)
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    with pytest.raises(BenchmarkError, match=r"--device cuda: jobs have 1 cores and 0 GPUs \(--slurm gpus=1\)"):
        SlurmExecutor(SlurmOptions(), "cuda", None)
    assert SlurmExecutor(SlurmOptions(gpus=2), "auto", 3, per_device=2).devices == ("cuda",) * 12
    grid = ["run", "--methods", "vanilla", "--datasets", "cmnist5k", "--results-dir", str(tmp_path)]
    assert main([*grid, "--slurm", "time=8h"]) == 2
    assert "--slurm belongs to --executor slurm. The executor is local." in capsys.readouterr().err
    assert main([*grid, "--executor", "slurm", "--workers", "0"]) == 2
    assert "--workers must be at least 1 with --executor slurm. Got 0." in capsys.readouterr().err
