"""Finished cells in TensorBoard's files, as their records have them."""

import importlib.util
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

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
    def failing(kind, record, folder):
        raise OSError("no space left")

    monkeypatch.setattr(logs, "write", failing)
    assert main([*RUN, "--results-dir", str(tmp_path), "--device", "cpu", "--log", "tensorboard"]) == 0
    assert "was not logged (no space left)" in capsys.readouterr().err


def test_wandb_gets_the_same_numbers(folder, monkeypatch, tmp_path):
    """Against a stand-in for the package, which wants an account: what it would be told."""
    (record,), _ = read_records(folder / "records")
    told = SimpleNamespace(logged={}, summary={}, finished=False)
    run = SimpleNamespace(
        log=lambda values, step: told.logged.update({step: values}), summary=told.summary,
        finish=lambda: setattr(told, "finished", True),
    )  # fmt: skip
    started = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: (started.update(options), run)[1]))
    logs.write("wandb", record, tmp_path)
    flat = {(name, epoch): value for epoch, values in told.logged.items() for name, value in values.items()}
    assert flat == {(name, epoch): value for name, value, epoch in logs.curves(record)}
    assert started["config"]["recipe.learning_rate"] == 0.02
    assert told.summary["last/acc_unbiased"] == record.result.epochs[-1].test["acc_unbiased"]
    assert told.finished
    json.dumps(started["config"])


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
    logs.write("tensorboard", record, results)
    logs.write("tensorboard", record, results)  # again: one file of events each for curves and settings
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
        logs.write("tensorboard", record, results)
    assert everything_below(mine) == [events]


@pytest.mark.parametrize("title", TITLES, ids=ascii)
def test_names_for_services_are_short_and_on_one_line(foreign, tmp_path, monkeypatch, title):
    started = {}

    class Run(SimpleNamespace):
        summary, log, finish = {}, staticmethod(lambda *_, **__: None), staticmethod(lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **told: (started.update(told), Run())[1]))
    logs.write("wandb", foreign(title, title), tmp_path)
    for name in ("name", "group", "job_type", "id"):
        assert 0 < len(started[name]) <= 128
        assert started[name].isprintable()
    assert started["dir"] == str(tmp_path)
