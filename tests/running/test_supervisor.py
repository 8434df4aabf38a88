"""Nothing that a cell does hangs a grid, and a cell that was ended goes on where it stood."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import debiasbench
from debiasbench.cli import build_parser, main
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.records import find_record, read_record
from debiasbench.running import claims, process, supervision
from debiasbench.running.claims import Claims, Holder, Presence, claim_path, read_claim, running_cells
from debiasbench.running.process import WorkerProcess
from debiasbench.running.run import RunOptions, part_of, plan_grid, run_grid
from debiasbench.running.runner import Runner, failed_record, settle_torch
from debiasbench.training import checkpoints, reuse
from debiasbench.training.journal import StoppedError

METHODS = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method

class Plain(Method):
    name = "plain"
    def fit(self, task):
        self.before(task)
        net = task.new_net()
        task.train(net, mean_cross_entropy, predict=net)
        return net
    def before(self, task): pass

class ReadsInput(Plain):
    name = "reads-input"
    def before(self, task): input("A number, please: ")

class LeavesThread(Plain):
    name = "leaves-thread"
    def before(self, task): threading.Thread(target=time.sleep, args=(600,)).start()

class LeavesChild(Plain):
    name = "leaves-child"
    def before(self, task): subprocess.Popen(["sleep", "600"])

class ForksAndReturns(Plain):
    name = "forks-and-returns"
    def before(self, task): os.fork()

class ClosesOutput(Plain):
    name = "closes-output"
    def before(self, task): sys.stdout.close()

class ClosesPipes(Plain):
    name = "closes-pipes"
    def before(self, task):
        for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
            if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}"):
                if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                    os.close(int(name))

class Interrupts(Plain):
    name = "interrupts"
    def before(self, task): raise KeyboardInterrupt

class Exits(Plain):
    name = "exits"
    def before(self, task): os._exit(3)

class Says(Plain):
    name = "says"
    def before(self, task): sys.exit("no licence found")

class HalfACharacter(Plain):
    name = "half-a-character"
    def before(self, task): raise RuntimeError("a file named \\udc80")

class KilledOnce(Plain):
    name = "killed-once"
    def before(self, task):
        flag = Path(os.environ["DEBIASBENCH_TEST_FLAG"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

class Sleeps(Plain):
    name = "sleeps"
    def before(self, task): time.sleep(600)

class ReadsBetween(Method):
    name = "reads-between"
    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        size = float(next(net.parameters()).detach().abs().sum())
        task.train(net, mean_cross_entropy)
        task.log(size=task.y.new_tensor(size, dtype=float))
        task.train(net, mean_cross_entropy, predict=net)
        return net
"""
DATASET = """
from debiasbench.testing import Tiny

class Small(Tiny):
    name = "small"
"""
QUICK = "small:steps=4"
LONG = "small:steps=48"  # six epochs


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory):
    """Methods that misbehave and a quick dataset, known to this process and to those that it starts."""
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patched:
        for kind, name, text in (("methods", "misbehaving", METHODS), ("datasets", "quickly", DATASET)):
            (folder / kind).mkdir()
            (folder / kind / f"{name}.py").write_text(text, encoding="utf-8")
            package = sys.modules[f"debiasbench.{kind}"]
            patched.setattr(package, "__path__", [*package.__path__, str(folder / kind)])
            patched.setattr(package.registry, "_scanned", None)
            patched.setenv(f"DEBIASBENCH_{kind.upper()}_PATH", str(folder / kind))
        patched.setenv("DEBIASBENCH_TEST_FLAG", str(folder / "flag"))
        yield
    for kind in ("methods", "datasets"):
        sys.modules[f"debiasbench.{kind}"].registry._scanned = None  # the names of these are known no more
    for name in ("methods.misbehaving", "datasets.quickly"):
        sys.modules.pop(f"debiasbench.{name}", None)


def ready(results, *methods, data=QUICK, seeds=1, workers=2, **options):
    asked = Experiment("", list(methods), [data], seeds=seeds)
    return plan_grid(asked, RunOptions(results, results, device="cpu", workers=workers, **options))


def run(results, *methods, handle=lambda _: None, **options):
    """Run methods -> title -> record."""
    grid = ready(results, *methods, **options)
    run_grid(grid, handle)
    records = [read_record(find_record(results, cell)) for cell in grid.plan.grid.cells]
    return {record.cell.method_title: record for record in records}


LEFT_AND_CLOSED = ["leaves-child", "forks-and-returns", "closes-output", "interrupts"]  # a new process after each


@pytest.mark.parametrize("others", [[], pytest.param(LEFT_AND_CLOSED, marks=pytest.mark.slow)], ids=["some", "all"])
def test_what_a_cell_does_to_its_process_is_recorded_and_hangs_nothing(tmp_path, monkeypatch, others):
    monkeypatch.setenv("DEBIASBENCH_TEST_FLAG", str(tmp_path / "flag"))
    events = []
    names = [
        *others, "reads-input", "leaves-thread", "closes-pipes", "exits", "says", "half-a-character", "killed-once",
        "plain",
    ]  # fmt: skip
    records = run(tmp_path, *names, handle=events.append)
    failures = {
        name: (record.failure.type, record.failure.message)
        for name, record in records.items()
        if record.failure is not None
    }
    assert failures.pop("reads-input")[0] == "EOFError"
    assert failures == {
        "exits": ("LostWorker", "The worker process died: exit code 3."),
        "says": ("SystemExit", "no licence found"),
        "half-a-character": ("RuntimeError", r"a file named \udc80"),
    } | ({"interrupts": ("LostWorker", "The cell raised KeyboardInterrupt.")} if others else {})
    (note,) = [event.message for event in events if event.kind == "note"]
    assert "killed-once" in note
    assert "SIGKILL (killed from outside, perhaps because memory ran out). It is tried once more, alone." in note
    left = {path.name for path in (tmp_path / "running").rglob("*")}
    assert left <= {".lock"}  # neither claims nor checkpoints


def test_a_cell_that_ends_its_worker_is_tried_three_times(tmp_path):
    for times in (1, 2, 3):
        (cell,) = ready(tmp_path, "exits").plan.to_run
        path = failed_record(cell, tmp_path, "LostWorker", "The worker process died: exit code 3.", "cpu")
        assert read_record(path).failure.times == times
    assert not ready(tmp_path, "exits").plan.to_run
    assert ready(tmp_path, "exits", rerun="failed").plan.to_run == [cell]


@pytest.mark.parametrize("limit", ["cell_timeout", "silence_timeout"])
def test_a_cell_that_takes_too_long_is_ended(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.1)
    failure = run(tmp_path, "sleeps", workers=1, **{limit: 1.0})["sleeps"].failure
    assert failure.type == "TimedOut"
    assert f"--{limit.replace('_', '-')} allows (1 s)" in failure.message
    assert not ready(tmp_path, "sleeps").plan.to_run  # it would be too long again


def test_silence_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "SILENCE", 1.0)
    for module in (supervision, process):
        monkeypatch.setattr(module, "GRACE", 0.1)
    notes = []

    def handle(event):
        if event.kind == "note":
            notes.append(event.message)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "sleeps", workers=1, handle=handle)
    assert notes[0].startswith("sleeps on small:steps=4, seed 0: no progress reported for ")


def test_a_deleted_results_folder_ends_the_run_at_once(tmp_path, monkeypatch):
    for module in (supervision, process):
        monkeypatch.setattr(module, "GRACE", 0.1)
    results = tmp_path / "results"
    results.mkdir()

    def handle(event):
        if event.kind == "started":
            results.rename(tmp_path / "elsewhere")

    with pytest.raises(BenchmarkError, match=r"results was deleted or replaced while its cells ran"):
        run(results, "sleeps", workers=1, handle=handle)


@pytest.mark.parametrize("gone", ["deleted", "moved", "replaced"])
def test_a_deleted_results_folder_ends_a_cell_of_this_process_at_its_next_step(tmp_path, gone):
    results, epochs = tmp_path / "results", []

    def handle(event):
        if event.kind == "epoch":
            epochs.append(event.epoch)
        if len(epochs) == 1 and results.exists():
            shutil.rmtree(results) if gone == "deleted" else results.rename(tmp_path / "elsewhere")
            if gone == "replaced":
                results.mkdir()

    with pytest.raises(BenchmarkError, match=r"results was deleted or replaced while its cells ran"):
        run(results, "plain", data=LONG, workers=0, handle=handle)
    assert len(epochs) == 1
    assert not list(results.rglob("records/**/*.json"))


def test_a_run_that_sleeps_keeps_its_mark(tmp_path):
    """Another run that starts meanwhile removes those of runs that were killed a week ago, and no others."""
    with Presence(tmp_path) as asleep:
        marks = {age: asleep._mark.with_name(f".present-{age}") for age in (claims.LEASE + 1, 8 * 86_400)}
        for age, mark in marks.items():
            mark.touch()
            os.utime(mark, (time.time() - age,) * 2)
        os.utime(asleep._mark, (time.time() - 86_400,) * 2)
        with Presence(tmp_path):
            asleep.check()
        assert [mark.exists() for mark in marks.values()] == [True, False]


def test_an_error_of_a_worker_thread_ends_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("not of a cell")

    monkeypatch.setattr(supervision.Worker, "_run_cell", broken)
    with pytest.raises(ValueError, match="not of a cell"):
        run(tmp_path, "plain")


# ---- stopped, and gone on with ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The record of the cell that is interrupted, without an interruption."""
    return run(tmp_path_factory.mktemp("undisturbed"), "pgd", data=LONG, workers=0)["pgd"]


def n_steps(results):
    """How far the checkpoint of the running cell is."""
    found = list((results / "running").rglob("journal.json"))
    if not found:
        return 0
    journal = json.loads(found[0].read_text(encoding="utf-8"))["journal"]
    running = journal["running"] or {"run": {"losses": []}, "n_batches": 0}
    return 10_000 * len(journal["ended"]) + 100 * len(running["run"]["losses"]) + running["n_batches"]


EVERY_END = ("SIGTERM", "SIGKILL", "SIGINT twice")  # SIGHUP has the handler of SIGTERM: see test_windows.py


@pytest.mark.parametrize(
    ("ends", "steps"),
    [(("SIGTERM", "SIGKILL"), 200), pytest.param(EVERY_END, 300, marks=pytest.mark.slow)],
    ids=["two ends", "every end"],
)
@pytest.mark.skipif(os.name != "posix", reason="signals are those of Unix")
def test_a_run_that_is_ended_goes_on_whatever_ends_it(tmp_path, ends, steps):
    """Workers leave as well, no finished record is touched, and nothing is half written."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "debiasbench",
        "run",
        "--methods",
        "pgd",
        "--datasets",
        f"small:steps={steps}",
        "--seeds",
        "1",
    ]
    command += ["--workers", "1", "--device", "cpu", "--checkpoint-every", "0.02s", "--results-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(debiasbench.__file__).parent.parent)}
    for how in ends:
        before = n_steps(tmp_path)
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip
        while n_steps(tmp_path) <= before and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(getattr(signal, how.split()[0]))
        if how == "SIGINT twice":
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=100)  # to the end of what workers may write to as well
        if how != "SIGKILL":
            assert process.returncode == 130, output
            assert "the same command goes on" in output
            assert "Traceback" not in output
        assert not list((tmp_path / "records").rglob("*.json"))
        assert n_steps(tmp_path) > before
        assert "1 cells to run, 0 finished before" in output
        assert (", 1 with a checkpoint;" in output) == (before > 0)
    record = run(tmp_path, "pgd", data=f"small:steps={steps}", workers=0)["pgd"]
    assert len(record.provenance.resumed) == len(ends)
    assert record.result == run(tmp_path / "undisturbed", "pgd", data=f"small:steps={steps}", workers=0)["pgd"].result
    left = {path.name.partition("-")[0] for path in (tmp_path / "running").rglob("*")}
    assert left <= {".lock", ".present"}  # the latter of the run that was killed, until it is old


def interrupted(results, cell, after=2):
    """A cell that was asked to stop in its `after`-th epoch, in this process."""
    runner = Runner(results, results, checkpoint_every=0.0)
    settle_torch(1)
    told = []

    def progress(stage, epoch, epochs, curve):
        told.append(epoch)
        if len(told) == after:
            runner.stop()

    with pytest.raises(StoppedError):
        runner.run(cell, progress)
    (journal,) = results.rglob("journal.json")
    return journal


@pytest.mark.parametrize("change", ["nothing", "a file is damaged"])
def test_what_is_damaged_is_not_gone_on_from(change, tmp_path, undisturbed):
    """The cell begins anew, and comes to its result."""
    (cell,) = ready(tmp_path, "pgd", data=LONG).plan.grid.cells
    journal = interrupted(tmp_path, cell, after=9)  # in its second stage
    for path in journal.parent.glob("*.safetensors"):
        if change != "nothing":
            path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    record = run(tmp_path, "pgd", data=LONG, workers=0)["pgd"]
    assert (record.provenance.resumed is not None) == (change == "nothing")
    assert record.result == undisturbed.result


def test_a_cell_that_fails_after_it_went_on_is_run_from_its_start(tmp_path):
    """A failure counts only if it does not follow from going on: here of what a network was between two calls."""
    (cell,) = ready(tmp_path, "reads-between", data="small:steps=16").plan.grid.cells
    interrupted(tmp_path, cell, after=5)  # in its third stage
    record = run(tmp_path, "reads-between", data="small:steps=16", workers=0)["reads-between"]
    assert record.done
    assert record.provenance.resumed is None
    assert (
        record.result
        == run(tmp_path / "other", "reads-between", data="small:steps=16", workers=0)["reads-between"].result
    )


@pytest.mark.parametrize("place", ["checkpoints", "claims", "reuse"])
def test_a_full_disk_costs_what_is_kept_and_not_the_cell(place, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    module = {"checkpoints": checkpoints, "claims": claims, "reuse": reuse}[place]
    before = run(tmp_path / "before", "pgd", workers=0)["pgd"]
    monkeypatch.setattr(module, "write_atomically", full)
    record = run(tmp_path, "pgd", workers=0, checkpoint_every=0.01)["pgd"]
    assert record.result == before.result


# ---- work that is shared ---------------------------------------------------------------------------------------------


def test_two_runs_on_one_folder_train_each_cell_once(tmp_path):
    """The second waits for what the first trains, shows it, and has all records in the end."""
    grids = [ready(tmp_path, "plain", "vanilla", "pgd", seeds=2, workers=1) for _ in range(2)]
    events = [[], []]
    threads = [
        threading.Thread(target=run_grid, args=(grid, found.append)) for grid, found in zip(grids, events, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    trained = [{event.cell.hash for event in found if event.kind == "started"} for found in events]
    finished = [{event.cell.hash for event in found if event.kind == "finished"} for found in events]
    assert trained[0] & trained[1] == set()
    assert finished[0] == finished[1] == trained[0] | trained[1] == {cell.hash for cell in grids[0].plan.grid.cells}
    assert not list((tmp_path / "running").rglob("*.claim"))


def cell_of(results):
    return ready(results, "plain").plan.grid.cells[0]


def test_what_another_run_has_finished_since_the_plan_is_not_trained_again(tmp_path):
    """But for a record that lacks what this run was asked for."""
    plans = [ready(tmp_path, "plain", workers=0, save_weights=weights) for weights in (False, False, True)]
    kinds = []
    for grid in plans:
        events = []
        run_grid(grid, events.append)
        kinds.append([(event.kind, event.by_other) for event in events if event.kind in ("started", "finished")])
    trained = [("started", False), ("finished", False)]
    assert kinds == [trained, [("finished", True)], trained]


def test_a_claim_holds_until_it_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    cell = cell_of(tmp_path)
    with Claims(tmp_path) as mine, Claims(tmp_path) as yours:
        assert mine.take(cell)
        assert not yours.take(cell)
        mine.tell(cell, "stage 1", 3, 10)
        deadline = time.monotonic() + 60
        while not next(running_cells(tmp_path))[1].stage and time.monotonic() < deadline:
            time.sleep(0.01)
        ((path, holder),) = running_cells(tmp_path)
        assert path == claim_path(tmp_path, cell)
        assert (holder.pid, holder.stage, holder.epoch, holder.epochs) == (os.getpid(), "stage 1", 3, 10)
        mine.release(cell)
        assert list(running_cells(tmp_path)) == []
        assert yours.take(cell)
    assert not path.exists()


def claim_of(**values):
    holder = Holder("0", claims.socket.gethostname(), claims._machine(), os.getpid())
    return json.dumps(asdict(holder) | values)


VOID = {"its process has ended": None, "it was not renewed": claim_of(), "it is damaged, and old": "{"}


@pytest.mark.parametrize("why", VOID)
def test_a_claim_that_is_void_is_taken(why, tmp_path):
    cell = cell_of(tmp_path)
    path = claim_path(tmp_path, cell)
    path.parent.mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(VOID[why] or claim_of(pid=gone.pid), encoding="utf-8")
    with Claims(tmp_path) as taking:
        if VOID[why] is not None:
            assert not taking.take(cell)  # a fresh one holds, whatever it says
            long_ago = time.time() - 2 * claims.LEASE
            os.utime(path, (long_ago, long_ago))
        assert taking.take(cell)


def test_the_process_of_another_machine_is_not_known_to_have_ended(tmp_path):
    cell = cell_of(tmp_path)
    path = claim_path(tmp_path, cell)
    path.parent.mkdir(parents=True)
    path.write_text(claim_of(machine="elsewhere", pid=2**22 + 1), encoding="utf-8")
    assert not Claims(tmp_path).take(cell)


def test_a_claim_that_was_taken_over_is_left_to_whoever_took_it(tmp_path, monkeypatch):
    """By a run that slept for longer than its lease: it neither renews it nor removes it."""
    monkeypatch.setattr(claims, "BEAT", 0.01)
    cell = cell_of(tmp_path)
    path = claim_path(tmp_path, cell)
    with Claims(tmp_path) as slept:
        assert slept.take(cell)
        with slept._lock:  # between two beats
            path.write_text(claim_of(token="another"), encoding="utf-8")
        time.sleep(0.1)
        slept.release(cell)
    assert read_claim(path).token == "another"


@pytest.mark.parametrize("content", ['{"pid": 99999999999}', claim_of(epochs=[1]), claim_of(pid=10**17), "[]", "\0"])
def test_a_foreign_claim_is_no_traceback(content, tmp_path, capsys):
    path = claim_path(tmp_path, cell_of(tmp_path))
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    assert main(["status", str(tmp_path)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_was_set_makes_no_claim_void(hours, tmp_path, monkeypatch):
    """Ages are those of time stamps of one file system."""
    cell, now = cell_of(tmp_path), time.time
    with Claims(tmp_path) as mine:
        assert mine.take(cell)
        monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
        assert not Claims(tmp_path).take(cell)


def test_a_part_of_a_grid_is_run_and_reported(tmp_path, capsys):
    words = ["run", "--methods", "vanilla", "plain", "--datasets", QUICK, "--seeds", "1", "--workers", "0"]
    words += ["--device", "cpu", "--results-dir", str(tmp_path)]
    for index in (1, 2, 3):
        assert main([*words, "--shard", f"{index}/3"]) == 0
        shown = capsys.readouterr().out
        assert ("Part 3 of 3 has no cells." if index == 3 else f"This is part {index} of 3.") in shown
    assert not ready(tmp_path, "vanilla", "plain").plan.to_run


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [("--shard", "2/8", (2, 8)), ("--cell-timeout", "1.5min", 90.0), ("--silence-timeout", "2h", 7200.0)],
)
def test_options_are_read(option, text, value):
    read = build_parser().parse_args(["run", option, text])
    assert getattr(read, option[2:].replace("-", "_")) == value


@pytest.mark.parametrize(
    ("option", "text"),
    [("--shard", text) for text in ("0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3")]
    + [("--cell-timeout", text) for text in ("0s", "10", "-1s", "1y", "nan", "s")],
)
def test_options_that_mean_nothing_are_refused(option, text, capsys):
    assert main(["run", "--methods", "plain", "--datasets", QUICK, f"{option}={text}"]) == 2
    assert f"Got '{text}'" in capsys.readouterr().err


def test_limits_cannot_be_kept_in_this_process(tmp_path):
    with pytest.raises(BenchmarkError, match="--cell-timeout cannot be kept with --workers 0"):
        ready(tmp_path, "plain", workers=0, cell_timeout=5.0)


def test_the_parts_of_a_grid_are_the_grid(tmp_path):
    grid = ready(tmp_path, "plain", "vanilla", "pgd", seeds=3).plan.grid
    parts = [part_of(grid, index, 4) for index in range(1, 5)]
    hashes = [cell.hash for part in parts for cell in part.cells]
    assert sorted(hashes) == sorted(cell.hash for cell in grid.cells)
    costs = [sum(part.relative_costs[cell.hash] for cell in part.cells) for part in parts]
    assert max(costs) - min(costs) <= max(grid.relative_costs.values())
    for index, count in ((0, 4), (5, 4)):
        with pytest.raises(BenchmarkError, match="I from 1 to N"):
            part_of(grid, index, count)


# ---- one process -----------------------------------------------------------------------------------------------------


IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(600)"


def test_a_process_that_does_not_leave_is_killed(monkeypatch):
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", IGNORES])
    unwilling = WorkerProcess({"threads": 1})
    assert unwilling.next_message(60) == {}
    unwilling.end(grace=0.1)
    assert unwilling.is_over
    assert not unwilling.was_killed_by_others
    unwilling.send({"cell": 1})  # nobody is there, and nothing happens
    assert unwilling.next_message(0.1) is None


def test_how_a_process_ended_is_told(monkeypatch):
    for code, cause in (("import os; os._exit(7)", "exit code 7"), ("import os; os.kill(os.getpid(), 15)", "SIGTERM")):
        monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", code])
        ended = WorkerProcess({"threads": 1})
        while not ended.is_over:
            time.sleep(0.01)
        assert ended.cause_of_death() == cause
        ended.end()
