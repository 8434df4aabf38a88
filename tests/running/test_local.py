"""Which device each worker has, and a run that is left and followed from its files."""

import contextlib
import json
import subprocess
import sys

import pytest
import torch

from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.records import record_path
from debiasbench.running import claims, local, runner, slurm_queue, watch
from debiasbench.running import following as following_module
from debiasbench.running import run as run_module
from debiasbench.running.claims import Claims, Work
from debiasbench.running.following import CELLS, Following, failure_beside, tell_cells
from debiasbench.running.local import LocalExecutor, own_device, visible_gpu, worker_devices
from debiasbench.running.run import RunOptions, plan_grid, run_grid


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(runner, "n_cores", lambda: 16)


@pytest.mark.parametrize(
    ("device", "workers", "per_device", "expected", "threads"),
    [
        ("auto", None, 1, "0123", 4),
        ("cuda", None, 3, "012301230123", 1),
        ("cuda", 6, 1, "012301", 2),
        ("cuda:2", None, 1, "2", 16),
        ("cuda:2", None, 2, "22", 8),
        ("cuda:2", 3, 1, "222", 5),
    ],
)
def test_each_worker_has_a_gpu_and_its_share_of_the_cores(four_gpus, device, workers, per_device, expected, threads):
    executor = LocalExecutor(device, workers, per_device)
    assert executor.devices == tuple(f"cuda:{index}" for index in expected)
    assert executor.threads == threads


def test_on_a_cpu_a_worker_has_one_thread(monkeypatch):
    monkeypatch.setattr(runner, "n_cores", lambda: 16)
    assert (LocalExecutor("cpu", None).devices, LocalExecutor("cpu", None).threads) == (("cpu",) * 16, 1)


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": "3"}, {}),
        ("cuda:1", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda", {}, {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "5, 7"}, {"CUDA_VISIBLE_DEVICES": "7"}),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "MIG-1234,GPU-99"}, {"CUDA_VISIBLE_DEVICES": "MIG-1234"}),
        ("cuda:2", {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "2"}),
    ],
)
def test_a_worker_sees_its_own_gpu_only(device, environment, expected):
    assert visible_gpu(device, environment) == expected
    assert own_device(device) == ("cpu" if device == "cpu" else "cuda:0")


def test_workers_are_started_with_what_they_may_see(four_gpus, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(local, "WorkerProcess", lambda settings, variables: started.append((settings, variables)))
    executor = LocalExecutor("cuda", None, 2)
    executor.settings = local.Settings(tmp_path, tmp_path, executor.devices, threads=executor.threads)
    for number in range(8):
        executor.start(number)
    assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in started] == list("01230123")
    assert {settings["device"] for settings, _ in started} == {"cuda:0"}
    assert {settings["memory_fraction"] for settings, _ in started} == {0.25}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu", "per_device": 2}, "--per-device 2 is for GPUs, but the device is cpu. Use --workers."),
        ({"device": "cpu", "per_device": 0}, "--per-device must be at least 1"),
        ({"device": "cpu", "workers": -1}, "--workers must be at least 0"),
        ({"device": "cuda:9"}, "--device cuda:9: 4 GPUs are visible to torch here"),
    ],
)
def test_workers_that_cannot_be_are_refused(four_gpus, options, said):
    with pytest.raises(BenchmarkError, match=said):
        worker_devices(**{"workers": None, **options})


def grid(results, seeds=2, **options):
    asked = Experiment("", ["vanilla"], ["cmnist5k:steps=2"], seeds=seeds)
    return plan_grid(asked, RunOptions(results, results, device="cpu", workers=0, **options))


def test_a_run_is_followed_by_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.01)
    ready = grid(tmp_path)
    seen = []

    def handle(event):
        if event.kind == "epoch":
            running = following[0].look() if following else []
            seen.append((len(following[0].done), [one.holder.stage for one in running]))

    following = []

    def told(event):
        if event.kind == "started" and not following:
            following.append(Following.of(tmp_path))
        handle(event)

    run_grid(ready, told)
    assert [n_done for n_done, _ in seen] == sorted(n_done for n_done, _ in seen)
    assert all(len(stages) == 1 for _, stages in seen)
    following[0].look()
    assert len(following[0].done) == 2
    assert (following[0].waiting, following[0].failed) == ({}, {})
    assert following[0].seconds_left == 0
    assert main(["status", "--follow", str(tmp_path)]) == 0
    assert "2 of 2 cells done. The tables: debiasbench report" in capsys.readouterr().out


def test_what_was_there_before_a_run_does_not_count_as_its_own(tmp_path):
    run_grid(grid(tmp_path), lambda _: None)
    again = grid(tmp_path, rerun="all")
    cells = again.plan.to_run

    def handle(event):
        if event.kind == "started":
            following = Following.of(tmp_path)
            assert len(following.waiting) == 2 - cells.index(event.cell)

    run_grid(again, handle)
    assert not Following.of(tmp_path).waiting


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"a": 3}', b"\xff"])
def test_a_folder_without_a_run_cannot_be_followed(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / CELLS).write_bytes(content)
    assert main(["status", "--follow", str(tmp_path)]) == 2
    assert f"No run was started on {tmp_path}: there is nothing to follow." in capsys.readouterr().err


def test_a_run_that_has_ended_before_its_cells_is_no_longer_followed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(following_module, "LEASE", -1.0)
    run_module._work(grid(tmp_path))  # it was started, and killed
    with claims.Presence(tmp_path):
        assert Following.of(tmp_path).look() == []  # one that gets ready is waited for
    assert main(["status", "--follow", str(tmp_path)]) == 2
    assert f"No run is at work on {tmp_path}, and 2 cells have no record." in capsys.readouterr().err
    name, *_ = Following(tmp_path, json.loads((tmp_path / CELLS).read_bytes())).waiting
    slurm_queue.tell_jobs(tmp_path / "logs" / "slurm" / "one", "7", {name: [None, None]})
    for queued in (True, False):
        monkeypatch.setattr(following_module, "is_queued", lambda array, queued=queued: queued and array == "7")
        with contextlib.nullcontext() if queued else pytest.raises(BenchmarkError, match="No run is at work"):
            Following.of(tmp_path).look()


def test_a_run_that_is_left_goes_on_in_a_process_of_its_own(tmp_path, capsys, monkeypatch):
    started = []

    class Started:
        pid = 4711

        def __init__(self, command, **options):
            started.append((command, options))

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(runner, "git_commit", lambda: "")
    words = ["run", "--methods", "vanilla", "--datasets", "cmnist5k:steps=2", "--seeds", "1", "--device", "cpu"]
    assert main([*words, "--detach", "--results-dir", str(tmp_path)]) == 0
    ((command, options),) = started
    assert command == [sys.executable, "-P", "-m", "debiasbench", *words, "--results-dir", str(tmp_path)]
    assert options["start_new_session"]
    output = capsys.readouterr().out
    assert "To stop it: kill 4711" in output
    told = json.loads((tmp_path / CELLS).read_text(encoding="utf-8"))
    (cell,) = grid(tmp_path, seeds=1).plan.to_run
    assert list(told) == [record_path(tmp_path, cell).relative_to(tmp_path).as_posix()]


def test_a_cell_that_another_run_held_is_looked_at_again_when_nothing_else_is_left(tmp_path):
    """Jobs do not wait, but take what was given back meanwhile."""
    cells = grid(tmp_path).plan.to_run
    other, work = Claims(tmp_path), Work(cells, tmp_path, waits=False)
    assert other.take(cells[0])
    assert work.next(lambda *_: None) == (cells[1], None)
    other.release(cells[0])
    assert work.next(lambda *_: None) == (cells[0], None)
    assert work.next(lambda *_: None) is None
    again = Work(cells[:1], tmp_path, waits=False)  # held all along: it is left to who holds it
    assert again.next(lambda *_: None) is None
    work.claims.release(cells[0])
    work.claims.release(cells[1])


def test_a_supervisor_that_was_stopped_tries_nothing_once_more(tmp_path, monkeypatch):
    executor, cells = LocalExecutor("cpu", 2), grid(tmp_path).plan.to_run
    monkeypatch.setattr(executor, "_start", lambda *_, **__: None)
    executor.submit(Work(cells, tmp_path), local.Settings(tmp_path, tmp_path, executor.devices))
    executor._killed.append((cells[0], "SIGKILL"))
    executor.stop()
    assert list(executor.events()) == []


def test_a_failure_that_is_cleared_is_none_of_the_run(tmp_path):
    """Beside a finished record: the run that is followed has mended it."""
    run_grid(grid(tmp_path, seeds=1), lambda _: None)
    again = grid(tmp_path, seeds=1, rerun="all")
    (cell,) = again.plan.to_run
    failure = failure_beside(record_path(tmp_path, cell))
    failure.write_text("{}", encoding="utf-8")
    tell_cells(tmp_path, again.plan)
    following = Following.of(tmp_path)
    assert len(following.waiting) == 1
    run_grid(again, lambda _: failure.unlink(missing_ok=True))
    following.look()
    assert (following.done, following.failed) == ([cell.title], {})
