"""Finished cells in TensorBoard's files, as their records have them."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from debiasbench.cli import main
from debiasbench.records import read_records
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
