"""Finished cells in TensorBoard's files, as their records have them."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest

from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.records import read_record, read_records, record_path, write_record
from debiasbench.running import logs

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
RUN = ["run", "--methods", "vanilla", "--datasets", "cmnist5k:steps=4,eval_every=1", "--seeds", "1", "--workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One cell, logged."""
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    folder = tmp_path_factory.mktemp("results")
    assert main([*RUN, "--results-dir", str(folder), "--device", "cpu", "--log", "tensorboard"]) == 0
    return folder


@needs_tensorboard
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_curve_is_in_the_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (record,), _ = read_records(folder / "records")
    (place,) = {events.parent for events in (folder / "tensorboard").rglob("events.*")}
    assert place == folder / "tensorboard" / record.path.relative_to(folder / "records").with_suffix("")
    found = EventAccumulator(str(place)).Reload()
    expected = list(logs.curves(record))
    assert {name for name, _, _ in expected} <= set(found.Tags()["scalars"])
    for name, value, epoch in expected:
        points = {event.step: event.value for event in found.Scalars(name)}
        assert points[epoch] == pytest.approx(value, rel=1e-6)
    assert "test/acc_unbiased" in {name for name, _, _ in expected}


@pytest.mark.parametrize(
    ("kind", "message"),
    [("tensorbord", "Did you mean 'tensorboard'"), ("wandb", "pip install 'debiasbench[wandb]'")],
)
def test_what_cannot_be_logged_is_told_before_anything_trains(tmp_path, capsys, monkeypatch, kind, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main([*RUN, "--results-dir", str(tmp_path), "--log", kind]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


@needs_tensorboard
def test_a_log_that_fails_costs_nothing_else(tmp_path, capsys, monkeypatch):
    def failing(cell, folder):
        raise OSError("no space left")

    monkeypatch.setitem(logs._LOGS, "tensorboard", failing)
    assert main([*RUN, "--results-dir", str(tmp_path), "--device", "cpu", "--log", "tensorboard"]) == 0
    assert capsys.readouterr().err.count("was not logged (no space left)") == 2  # as it began, and once more at its end


class WandB:
    """A stand-in for the package, which wants an account: what it would be told."""

    def __init__(self, monkeypatch):
        self.logged, self.summary, self.started, self.n_finished, self.axes = [], {}, [], 0, {}
        monkeypatch.setitem(sys.modules, "wandb", self)

    def init(self, **options):
        self.started.append(options)
        return self

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.n_finished += 1

    def points(self):
        """(name, value, epoch) of all that was logged."""
        return [
            (name, value, values["epoch"])
            for values in self.logged
            for name, value in values.items()
            if name != "epoch"
        ]


@pytest.fixture
def wandb(monkeypatch):
    return WandB(monkeypatch)


def test_wandb_gets_the_same_numbers(folder, wandb, tmp_path):
    (record,), _ = read_records(folder / "records")
    with logs.Live(["wandb"], tmp_path) as live:
        live.end(record)  # one that was finished before
    assert sorted(wandb.points()) == sorted(logs.curves(record))
    assert wandb.axes == {"*": "epoch"}
    (started,) = wandb.started
    assert started["config"]["recipe.learning_rate"] == 0.02
    assert wandb.summary["last/acc_unbiased"] == record.result.epochs[-1].test["acc_unbiased"]
    assert wandb.n_finished == 1
    json.dumps(started["config"])


# ---- while cells train -----------------------------------------------------------------------------------------------


def seen_while_training(monkeypatch, tmp_path, methods, workers):
    """Points that were there when each epoch's event had been handled, and the records."""
    seen, add = [], logs.Live.add

    def watched(self, cell, curve):
        add(self, cell, curve)
        seen.extend((cell.hash, *point) for point in curve)

    monkeypatch.setattr(logs.Live, "add", watched)
    monkeypatch.setattr(logs, "check", lambda _: None)  # the package is not installed
    data = "cmnist5k:steps=6,eval_every=1,batch_size=2000,net=mlp,augment=false"
    command = ["run", "--methods", *methods, "--datasets", data, "--seeds", "1", "--workers", str(workers)]
    assert main([*command, "--device", "cpu", "--results-dir", str(tmp_path), "--log", "wandb"]) == 0
    return seen, read_records(tmp_path / "records")[0]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_points_are_logged_as_epochs_end(monkeypatch, tmp_path, wandb, workers):
    """Of each stage of each cell, in this process and from a worker's; at the end nothing is logged twice."""
    seen, records = seen_while_training(monkeypatch, tmp_path, ["vanilla", "pgd"], workers)
    expected = sorted((record.hash, *point) for record in records for point in logs.curves(record))
    assert sorted(seen) == expected
    assert len({epoch for _, _, _, epoch in seen}) == 3
    assert sorted(wandb.points()) == sorted(tuple(point) for _, *point in expected)
    assert len(wandb.started) == wandb.n_finished == 2


@needs_tensorboard
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_can_read_a_cell_while_it_trains(folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (record,), _ = read_records(folder / "records")
    points = list(logs.curves(record))
    half = points[: len(points) // 2]
    with logs.Live(["tensorboard"], tmp_path) as live:
        live.add(record.cell, half)
        (place,) = {events.parent for events in (tmp_path / "tensorboard").rglob("events.*")}
        found = EventAccumulator(str(place)).Reload()
        assert set(found.Tags()["scalars"]) == {name for name, _, _ in half}
        live.end(record)
        found = EventAccumulator(str(place)).Reload()
        for name in {name for name, _, _ in points}:
            drawn = [(event.step, event.value) for event in found.Scalars(name)]
            assert drawn == [(epoch, pytest.approx(value)) for one, value, epoch in points if one == name]


def test_what_is_logged_of_a_cell_that_is_stopped_is_kept(folder, wandb, tmp_path):
    (record,), _ = read_records(folder / "records")
    with logs.Live(["wandb"], tmp_path) as live:
        live.add(record.cell, [("test/acc_avg", 0.5, 1)])
    assert wandb.points() == [("test/acc_avg", 0.5, 1)]
    assert wandb.n_finished == 1
    assert not wandb.summary


def test_a_log_that_fails_is_not_tried_at_each_epoch(folder, monkeypatch, tmp_path):
    (record,), _ = read_records(folder / "records")
    tried = []

    class Failing:
        def __init__(self, cell, folder):
            tried.append(cell)

        def add(self, curve):
            raise OSError("no space left")

    monkeypatch.setitem(logs._LOGS, "tensorboard", Failing)
    live = logs.Live(["tensorboard"], tmp_path)
    with pytest.raises(OSError, match="no space left"):
        live.add(record.cell, [("test/acc_avg", 0.5, 1)])
    live.add(record.cell, [("test/acc_avg", 0.5, 2)])
    assert len(tried) == 1


# ---- records of others -----------------------------------------------------------------------------------------------

TITLES = ["..", ".", "../../..", "/tmp/x", "C:\\x", "a\x00b", "a" * 300, "中文", "[/x]\n| =cmd"]


@pytest.fixture
def foreign(folder, tmp_path):
    """A function: titles -> a record with them as it is read from a file, in a folder between files of somebody's."""
    (made,), _ = read_records(folder / "records")

    def make(dataset_title, method_title):
        cell = replace(made.cell, dataset_title=dataset_title, method_title=method_title)
        path = record_path(tmp_path / "above" / "results", cell)
        write_record(path, replace(made, cell=cell))
        return read_record(path)

    return make


def everything_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@needs_tensorboard
@pytest.mark.parametrize("title", TITLES, ids=ascii)
def test_a_log_stays_in_its_folder_whatever_the_titles_of_a_record(foreign, tmp_path, title):
    record = foreign(title, title)
    results = tmp_path / "above" / "results"
    name = f"s{record.cell.seed}-{record.hash[:8]}"
    for place in (tmp_path, tmp_path / "above", results):  # where the title would lead to
        (place / name).mkdir(parents=True)
        (place / name / "mine.txt").write_text("", encoding="utf-8")
        (place / name / "events.out.tfevents.mine").write_text("", encoding="utf-8")
    before = everything_below(tmp_path)
    for _ in range(2):  # again: one file of events each for curves and settings
        with logs.Live(["tensorboard"], results) as live:
            live.end(record)
    after = everything_below(tmp_path)
    assert set(before) <= set(after)
    new = set(after) - set(before)
    assert {path.relative_to(results).parts[0] for path in new} == {"tensorboard"}
    assert {len(path.relative_to(results).parts) for path in new} == {5}
    assert len({path.parent for path in new}) == 1
    assert record.path.resolve().is_relative_to((results / "records").resolve())


@needs_tensorboard
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_log_follows_no_link_out_of_its_folder(foreign, tmp_path, depth):
    record = foreign("data", "method")
    names = ["data", "method", f"s{record.cell.seed}-{record.hash[:8]}"]
    mine = tmp_path / "mine"
    mine.joinpath(*names[depth + 1 :]).mkdir(parents=True)
    events = mine.joinpath(*names[depth + 1 :], "events.out.tfevents.mine")
    events.write_text("", encoding="utf-8")
    results = tmp_path / "above" / "results"
    link = (results / "tensorboard").joinpath(*names[: depth + 1])
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    with pytest.raises(BenchmarkError, match=r"leads out of .*tensorboard: remove the link"):
        logs.Live(["tensorboard"], results).end(record)
    assert everything_below(mine) == [events]


@pytest.mark.parametrize("title", TITLES, ids=ascii)
def test_names_for_services_are_short_and_on_one_line(foreign, tmp_path, wandb, title):
    logs.Live(["wandb"], tmp_path).end(foreign(title, title))
    (started,) = wandb.started
    for name in ("name", "group", "job_type", "id"):
        assert 0 < len(started[name]) <= 128
        assert started[name].isprintable()
    assert started["dir"] == str(tmp_path)
