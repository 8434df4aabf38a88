"""Races and full disks, each met on purpose."""

import os
import queue
import signal
import subprocess
import sys
import time

import pytest

from debiasbench.grid import expand
from debiasbench.running import local
from debiasbench.running.claims import Work
from debiasbench.running.executor import Settings


@pytest.fixture
def cell():
    return expand(["vanilla"], ["cmnist"], seeds=1).cells[0]


class _FinishedAndGone:
    """A worker that has said that it is finished and has left, before its words were read."""

    is_over, was_killed_by_others = True, False

    def __init__(self, settings, variables):
        self.words = queue.SimpleQueue()
        self.words.put({"event": "finished", "path": "there", "leaves": True})

    def send(self, request):
        pass

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
