"""Races and full disks, each met on purpose."""

import os
import queue
import signal
import subprocess
import sys
import time

import pytest

from debiasbench.cell import Cell
from debiasbench.grid import expand
from debiasbench.records import failure_at, record_path
from debiasbench.running import local
from debiasbench.running.claims import Work
from debiasbench.running.executor import Settings
from debiasbench.running.runner import failed_record


@pytest.fixture
def cell():
    return expand(["vanilla"], ["cmnist"], seeds=1).cells[0]


class _FinishedAndGone:
    """A worker that has said that it is finished and has left, before its words were read."""

    is_over, was_killed_by_others = True, False

    def __init__(self, settings, variables):
        self.words = queue.SimpleQueue()

    def send(self, request):
        of = Cell.from_json(request["cell"]).hash
        self.words.put({"event": "finished", "cell": of, "path": "there", "leaves": True})

    def next_message(self, timeout):
        return self.words.get() if timeout > 0 and not self.words.empty() else None

    def end(self):
        pass

    def cause_of_death(self):
        return "exit code 0"


def test_a_worker_that_finishes_and_leaves_at_once_has_finished(tmp_path, cell, monkeypatch):
    monkeypatch.setattr(local, "WorkerProcess", _FinishedAndGone)
    executor = local.LocalExecutor("cpu", 1)
    executor.submit(Work([cell], tmp_path), Settings(tmp_path, tmp_path, ("cpu",)))
    assert [event.kind for event in executor.events() if event] == ["started", "finished"]


class _Ended:
    """A worker that says `words` and ends, whatever it is asked."""

    is_lost = was_killed_by_others = waits = False
    words: tuple[dict, ...] = ()

    def __init__(self, settings, variables):
        self.left = []
        self.is_over = False

    def send(self, request):
        of = Cell.from_json(request["cell"]).hash
        self.left = [{"cell": of} | words for words in self.words]

    def next_message(self, timeout):
        self.is_over = len(self.left) < 2
        return dict(self.left.pop(0)) if self.left else None

    def end(self):
        pass

    def cause_of_death(self):
        return "SIGTERM"


def trained(cell, results, monkeypatch, process):
    """The events of a cell whose worker is `process`."""
    monkeypatch.setattr(local, "WorkerProcess", process)
    executor = local.LocalExecutor("cpu", 1)
    executor.submit(Work([cell], results), Settings(results, results, ("cpu",)))
    return [event for event in executor.events() if event]


@pytest.mark.parametrize("option", ["cell_timeout", "silence_timeout"])
def test_a_process_that_hangs_before_its_first_word_is_ended(tmp_path, cell, monkeypatch, option):
    """So its start counts, as the help of --silence-timeout says."""

    class Hangs(_Ended):
        def next_message(self, timeout):
            return None

    monkeypatch.setattr(local, "WorkerProcess", Hangs)
    executor = local.LocalExecutor("cpu", 1)
    executor.submit(Work([cell], tmp_path), Settings(tmp_path, tmp_path, ("cpu",), **{option: 0.0}))
    *_, last = [event for event in executor.events() if event]
    assert last.kind == "lost"
    assert f"--{option.replace('_', '-')} allows (0 s)" in last.message


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"words": ({"event": "stopped"},)}, "Its process was asked to stop, and not by this run."),
        ({"is_lost": True}, "The worker process died: SIGTERM."),
    ],
    ids=["asked to stop", "lost with its machine"],
)
def test_what_is_ended_by_others_goes_on_but_not_for_ever(tmp_path, cell, monkeypatch, of, message):
    """A cell may send the signal to its own process, again and again."""
    events = trained(cell, tmp_path, monkeypatch, type("Ends", (_Ended,), of))
    assert [event.kind for event in events] == ["started", "note"] * 3 + ["started", "lost"]
    assert events[-1].message == message
    assert failure_at(record_path(tmp_path, cell)).message == message


@pytest.mark.parametrize(
    "strange", [{"event": "finished", "path": "/etc/passwd"}, {"event": "epoch"}, {"cell": "x"}, {}]
)
def test_what_a_cell_writes_into_the_pipe_is_no_message(tmp_path, cell, monkeypatch, strange):
    finished = {"event": "finished", "path": "there", "leaves": False}
    words = ({"cell": ""} | strange, {"event": "ready", "cell": ""}, finished)
    events = trained(cell, tmp_path, monkeypatch, type("Says", (_Ended,), {"words": words}))
    assert [(event.kind, str(event.path)) for event in events] == [("started", "None"), ("finished", "there")]


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("was_killed_by_others", [False, True])
def test_a_worker_that_dies_after_its_record_has_finished(tmp_path, cell, monkeypatch, is_lost, was_killed_by_others):
    class Dies(_Ended):
        def send(self, request):
            failed_record(cell, tmp_path, "ValueError", "of the method", "cpu")

    Dies.is_lost, Dies.was_killed_by_others = is_lost, was_killed_by_others
    events = trained(cell, tmp_path, monkeypatch, Dies)
    assert [(event.kind, event.path) for event in events] == [
        ("started", None), ("finished", record_path(tmp_path, cell)),
    ]  # fmt: skip
    assert failure_at(record_path(tmp_path, cell)).message == "of the method"


def is_running(pid):
    """Whether a process is there, and not only its entry, which its new parent has yet to take."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, encoding="utf-8", check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


@pytest.mark.skipif(os.name != "posix", reason="groups of processes are those of Unix")
def test_what_a_cell_has_started_ends_with_a_run_that_was_killed(tmp_path, monkeypatch):
    """Its worker ends itself with all that belongs to it: nobody else is left to do so."""
    (tmp_path / "sitecustomize.py").write_text(  # a child of the worker
        "import os, subprocess, sys\n"
        "if 'debiasbench.running.worker' in sys.orig_argv:\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    settings = {
        "data_dir": str(tmp_path), "results_dir": str(tmp_path), "device": "cpu", "threads": 1, "save_weights": False,
        "reuse": True, "resume": True, "checkpoint_every": 60.0, "memory_fraction": 0.5,
        "executor": "local",
    }  # fmt: skip
    script = (
        "import time; from debiasbench.running.process import WorkerProcess\n"
        f"print(WorkerProcess({settings!r}).next_message(60.0), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8") as parent:
        assert "ready" in parent.stdout.readline()
        child = int((tmp_path / "pid").read_text(encoding="utf-8"))
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 30.0
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = is_running(child)
    if left:
        os.kill(child, signal.SIGKILL)
    assert not left
