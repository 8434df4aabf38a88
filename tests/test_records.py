"""Records: written whole or not at all, readable for people, found again, and damaged in every way. No training."""

import contextlib
import copy
import errno
import functools
import html
import importlib.util
import json
import math
import os
import random
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from debiasbench.archives import bytes_of, contents, files_in
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.grid import expand
from debiasbench.records import (
    SCHEMA,
    DataFacts,
    EpochFacts,
    Failure,
    GroupFacts,
    Provenance,
    Record,
    Result,
    Seconds,
    SplitFacts,
    StageFacts,
    arrays_path,
    check_writable,
    decoded,
    dump,
    failed_path,
    find_record,
    has_arrays,
    pack,
    read_arrays,
    read_record,
    read_records,
    read_scores,
    record_from_json,
    record_path,
    without_copies,
    write_record,
)
from debiasbench.report.make import make
from debiasbench.running.plan import Built, plan
from debiasbench.weights import has_weights, load, weights_path

COMMITTED = Path(__file__).parent.parent / "docs" / "reproduction" / "records"


@functools.cache
def grid_of(method="pgd", dataset="cmnist5k", seed=0):
    """A grid of one cell."""
    return expand([method], [dataset], seeds=[seed])


def new_cell(method="pgd", dataset="cmnist5k", seed=0):
    """The only cell of a grid with one seed."""
    (cell,) = grid_of(method, dataset, seed).cells
    return cell


def record_of(cell, *, done=True, n_epochs=3, **result):
    """A record as a finished cell leaves it, with made-up numbers in every field; `result` is what differs."""
    metrics = {"loss": 0.25, "n": 40.0, "acc_avg": 0.75, "n_conflict": 0.0, "acc_worst": 0.5, "acc_unbiased": 0.7}
    correct = {"valid": (30, 9), "test": (28, 8)}
    splits = {
        name: SplitFacts(n, "a" * 64, {"colour": 2}, (n - 10, 10))
        for name, n in (("train", 200), ("valid", 40), ("test", 40))
    }
    losses = tuple(0.125 * epoch for epoch in range(n_epochs))
    values = {
        "data": DataFacts("f" * 64, True, "", splits),
        "selection": {"last": n_epochs - 1, "val_loss": 0, "group_val": None},
        "epochs": tuple(EpochFacts(1 + k, {**metrics}, {**metrics}, 0.125, 0.5, correct) for k in range(n_epochs)),
        "stages": (StageFacts(1, n_epochs, True, {"net": 9}, {"biased": {"valid": {}, "test": {**metrics}}}, losses),),
        "identification": {"score": {"conflict_mass": 0.5}},
        "logged": {"temperature": 2.0},
        "groups": {"test": (GroupFacts(0, None, 0, 1), GroupFacts(9, 0.5, group="female"))},
        "arrays": {"score": "b" * 64},
        "pretrained_sha256": "c" * 64,
        "tune": {"acc_avg": 0.5},
        "weights": {"nets": {"net": {"linear": [4, 2]}}, "net": "net"},
    }
    provenance = Provenance(
        finished="2026-11-23T00:00:00+00:00",
        seconds=Seconds(1.5, 0.25, 0.25, (1.0,), {"each 2": 0.125}),
        versions={"protocol": 1, "debiasbench": "0.1.0", "torch": "2.11"},
        device="cpu (x86_64)",
        peak_memory_mib=100,
        commit="d" * 40,
        device_kind="cpu",
        precision="fp32",
        code={"method": "e" * 64},
        calls=({"kind": "new_net", "call": 0}, {"kind": "train", "rho": 0.5}),
    )
    if not done:
        return Record(cell.hash, cell, provenance, failure=Failure("RuntimeError", "no", "Traceback\n  no"))
    return Record(cell.hash, cell, provenance, Result(**{**values, **result}))


def written(folder, cell, arrays=None, **changes):
    """Write the record of a cell where it belongs."""
    path = record_path(folder, cell)
    write_record(path, record_of(cell, **changes), arrays)
    return path


def strict(text):
    """Parse JSON by the standard: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- writing


def test_a_file_is_written_as_given_with_its_folders_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new \x00\xff")
    assert path.read_bytes() == b"new \x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


class HalfWriter:
    """A file that takes half of the first write and then finds the disk full."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def break_write(monkeypatch):
    original = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *given, **named: HalfWriter(original(*given, **named)))


def break_fsync(monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def break_replace(monkeypatch):
    def fail(self, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.replace", fail)


def break_by_hand(monkeypatch):
    def fail(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("break_it", [break_write, break_fsync, break_replace, break_by_hand])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, break_it, existing):
    path = tmp_path / "s0-abc.json"
    if existing:
        path.write_bytes(b"old and whole")
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises((OSError, KeyboardInterrupt)) as caught:
            write_atomically(path, b"new " * 1000)
    assert getattr(caught.value, "filename", str(path)) == str(path)  # not a temporary one, and not none
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == (
        {"s0-abc.json": b"old and whole"} if existing else {}
    )


def test_a_record_whose_write_fails_is_still_the_old_record(tmp_path, monkeypatch):
    cell = new_cell()
    path = written(tmp_path, cell)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        break_write(patch)
        with pytest.raises(OSError, match="No space left"):
            written(tmp_path, cell, done=False)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert find_record(tmp_path, cell) == path


def test_arrays_lie_beside_the_record_and_come_back_bit_for_bit(tmp_path):
    path = record_path(tmp_path, new_cell())
    arrays = {
        "score": torch.rand(20, dtype=torch.float64),
        "test_prediction": torch.arange(5, dtype=torch.int16),
    }
    write_record(path, record_of(new_cell()), arrays)
    assert arrays_path(path) == path.with_suffix(".safetensors")
    found = load_file(arrays_path(path))
    assert found.keys() == arrays.keys()
    assert all(found[name].dtype == arrays[name].dtype for name in arrays)
    assert all(torch.equal(found[name], arrays[name]) for name in arrays)
    other = path.with_name("s1-without.json")
    write_record(other, record_of(new_cell()))
    assert not arrays_path(other).exists()


def test_a_record_is_readable_for_others(tmp_path):
    assert written(tmp_path, new_cell()).stat().st_mode & 0o777 == 0o644


# --- what is written


@pytest.mark.parametrize("done", [True, False])
def test_a_record_comes_back_as_it_was(tmp_path, done):
    record = record_of(new_cell(), done=done)
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    assert (read_record(path), read_record(path).path, record.path) == (record, path, None)
    again = tmp_path / "s1-x.json"
    write_record(again, read_record(path))
    assert again.read_bytes() == path.read_bytes()
    assert record_from_json(record.to_json()) == record
    assert (record.done, record.status) == (done, "done" if done else "failed")


def test_the_file_is_json_by_the_standard_and_names_no_place_on_a_machine(tmp_path):
    path = written(tmp_path, replace(new_cell(), root="/home/somebody/data"))
    plain = strict(path.read_text(encoding="utf-8"))
    assert (plain["schema"], plain["status"], plain["cell"]["root"]) == (SCHEMA, "done", None)
    assert set(plain) == {"schema", "status", "hash", "cell", "provenance", "result"}
    assert "/home" not in path.read_text(encoding="utf-8")


def test_a_number_that_is_nan_has_no_key_in_the_file_and_none_again(tmp_path):
    metrics = {"acc_avg": 0.5, "acc_conflict": math.nan}
    record = record_of(
        new_cell(),
        epochs=(EpochFacts(1, metrics, metrics, math.nan),),
        selection={"last": 0},
        identification={"score": {"auroc": math.nan, "conflict_mass": 0.5}},
        groups={"test": (GroupFacts(0, math.nan),)},
    )
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    plain = strict(path.read_text(encoding="utf-8"))["result"]
    assert plain["epochs"] == [{"epoch": 1, "valid": {"acc_avg": 0.5}, "test": {"acc_avg": 0.5}}]
    assert plain["identification"] == {"score": {"conflict_mass": 0.5}}
    assert plain["groups"] == {"test": [{"n": 0}]}
    found = read_record(path).result
    assert found.epochs == (EpochFacts(1, {"acc_avg": 0.5}, {"acc_avg": 0.5}),)
    assert found.groups == {"test": (GroupFacts(0),)}
    write_record(path, read_record(path))
    assert read_record(path).result == found


def test_what_is_not_a_number_by_nature_stays_null(tmp_path):
    found = read_record(written(tmp_path, new_cell()))
    assert found.result.selection["group_val"] is None
    assert found.cell.recipe["steps"] is None
    assert found.cell.method_parameters["order"] is None
    assert found.cell == new_cell()


def test_parameters_of_a_cell_stay_null_whatever_their_names(tmp_path):
    cell = new_cell()
    cell = replace(cell, method_parameters={**cell.method_parameters, "aux_loss": None, "precision": None})
    path = tmp_path / "s0-x.json"
    write_record(path, record_of(cell))
    assert read_record(path).cell == cell


def test_infinite_numbers_do_not_make_the_file_unreadable_for_others(tmp_path):
    record = record_of(new_cell(), logged={"kept": 1.0, "loss": math.inf, "other": -math.inf})
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    strict(path.read_text(encoding="utf-8"))
    assert read_record(path).result.logged == {"kept": 1.0}


def test_writing_leaves_the_record_in_memory_alone(tmp_path):
    record = record_of(new_cell(), logged={"loss": math.inf})
    before = repr(copy.deepcopy(record))
    write_record(tmp_path / "s0-x.json", record)
    assert repr(record) == before


def test_text_is_utf_8_and_half_a_character_in_it_costs_no_record(tmp_path):
    cell = replace(new_cell(), method_title="pgd:word=größe中")
    record = replace(record_of(cell, done=False), failure=Failure("OSError", "no file b\udcf6se", "größe\n\ud83d"))
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    assert "größe中".encode() in path.read_bytes()
    found = read_record(path)
    assert found.cell.method_title == "pgd:word=größe中"
    assert found.failure == Failure("OSError", r"no file b\udcf6se", "größe\n\\ud83d")


@pytest.mark.parametrize(
    "value",
    [
        {}, [], [[]], {"a": {}}, None, True, 3, 0.1, "é \"quoted\" \n line", [None, 1, 2.5, True],
        {"long": [0.1 * number for number in range(200)]},
        {"epochs": [{"epoch": n, "test": {"acc_avg": n / 7, "name": "x" * 40}} for n in range(30)]},
        {"words": ["word " * 5] * 20, "nested": [[0.5] * 50, [1] * 3]},
    ],
)  # fmt: skip
def test_what_is_dumped_is_json_of_the_same_value(value):
    assert strict(dump(value)) == value


def test_long_lists_are_broken_over_full_lines_and_short_things_stay_on_one():
    value = {
        "status": "done",
        "losses": [round(1 / (epoch + 1), 6) for epoch in range(100)],
        "epochs": [{"epoch": epoch, "valid": {"acc_avg": 0.5, "loss": 1.25}} for epoch in range(3)],
        "long": {f"parameter_{number}": number for number in range(12)},
    }
    lines = dump(value).splitlines()
    assert max(map(len, lines)) <= 119
    assert '  "status": "done",' in lines
    assert '      {"epoch": 1, "valid": {"acc_avg": 0.5, "loss": 1.25}},'[2:] in lines
    start = lines.index('  "losses": [')
    numbers = lines[start + 1 : lines.index("  ],", start)]
    assert 5 < len(numbers) < 15  # many to a line, and more than one line
    assert min(map(len, numbers[:-1])) > 100
    assert '    "parameter_0": 0,' in lines


# --- reading


def test_a_missing_record_is_a_clear_error(tmp_path):
    with pytest.raises(BenchmarkError, match=r"s9-none\.json: No such file or directory"):
        read_record(tmp_path / "s9-none.json")


def test_a_later_schema_is_refused_with_both_numbers_and_not_called_damaged(tmp_path):
    path = written(tmp_path, new_cell())
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "schema": SCHEMA + 4}), encoding="utf-8")
    with pytest.raises(BenchmarkError) as error:
        read_record(path)
    assert str(error.value) == (
        f"{path}: it has schema {SCHEMA + 4}, and this version of debiasbench reads up to {SCHEMA}."
    )


def test_all_records_below_a_folder_are_read_in_order_and_leftovers_are_not(tmp_path):
    cells = [new_cell(method, seed=seed) for method in ("pgd", "vanilla") for seed in (0, 1)]
    paths = [written(tmp_path, cell) for cell in cells]
    (paths[0].parent / f".{paths[0].name}.abc").write_text("half", encoding="utf-8")
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    records, complaints = read_records(tmp_path)
    assert [record.path for record in records] == sorted(paths)
    assert {record.hash for record in records} == {cell.hash for cell in cells}
    assert complaints == []
    assert read_records(tmp_path / "none") == ([], [])


@functools.cache
def text_of(schema, done):
    """A whole record of that schema as JSON: a committed one of schema 1, one made here of schema 2."""
    if schema == 2:
        return json.dumps(record_of(new_cell(), done=done).to_json())
    (path,) = files_in(COMMITTED / "short.zip" / "bffhq+size=64,epochs=2" / "pgd")
    values = json.loads(bytes_of(path))
    if not done:
        del values["result"]
        values |= {"status": "failed", "error": {"type": "KeyError", "message": "no", "traceback": "Traceback"}}
    return json.dumps(values)


def values_of(schema, done=True):
    """The same as plain values, to be changed."""
    return json.loads(text_of(schema, done))


def test_a_record_of_schema_1_is_read_with_all_that_it_says():
    values = values_of(1)
    record, result = record_from_json(values), values["result"]
    assert (values["schema"], record.hash, record.done) == (1, values["hash"], True)
    assert record.cell.method_title == values["cell"]["method_label"]
    assert record.cell.method_parameters == values["cell"]["method_parameters"]
    assert record.provenance.protocol == 1
    assert record.provenance.seconds.total == values["provenance"]["seconds"]["total"]
    assert record.provenance.seconds.stages == tuple(values["provenance"]["seconds"]["phases"])
    last = record.result.selected("last")
    assert last.test["acc_avg"] == result["epochs"][result["selection"]["last"]]["test"]["acc_avg"]
    assert [stage.call for stage in record.result.stages] == [phase["call"] for phase in result["phases"]]
    assert record.result.stages[0].train_loss == tuple(result["phases"][0]["train_loss"])
    assert record.result.selection == result["selection"]
    assert record.result.identification["score"] == result["identification"]["score"]
    assert (record.provenance.code, record.provenance.device_kind, last.correct_by_class) == (None, None, None)
    assert record.result.accuracy_by_class(last, "test") is None
    assert record_from_json(values_of(1, done=False)).failure == Failure("KeyError", "no", "Traceback")


def test_what_was_null_in_schema_1_for_nan_has_no_key():
    values = values_of(1)
    result = values["result"]
    result["epochs"][0]["test"]["acc_conflict"] = None
    result["epochs"][0]["train_loss"] = None
    result["identification"]["score"]["auroc"] = None
    result["groups"]["test"][0]["acc"] = None
    result["numbers"] = {"kept": 1.0, "lost": None}
    result["phases"][0]["end"] = {"biased": {"valid": {"acc_avg": None, "loss": 1}, "test": {}}}
    result["selection"]["group_val"] = None
    found = record_from_json(values).result
    assert "acc_conflict" not in found.epochs[0].test
    assert found.epochs[0].train_loss is None
    assert "auroc" not in found.identification["score"]
    assert found.groups["test"][0].acc is None
    assert found.logged == {"kept": 1.0}
    assert found.stages[0].end == {"biased": {"valid": {"loss": 1.0}, "test": {}}}
    assert found.selection["group_val"] is None  # it could not choose


def test_accuracies_of_classes_are_told_where_they_were_kept():
    result = record_of(new_cell()).result
    assert result.accuracy_by_class(result.epochs[0], "test") == [28 / 30, 8 / 10]
    assert result.accuracy_by_class(result.epochs[0], "tune") is None
    epochs = tuple(
        replace(result.epochs[0], epoch=number, correct_by_class={"valid": correct})
        for number, correct in enumerate([(9, 2), (6, 5), (5, 5)], 1)
    )
    rules = {"last": 2, "val_acc": 0}
    chosen = replace(
        result, epochs=epochs, selection=rules,
        data=replace(result.data, splits={"valid": SplitFacts(20, n_by_class=(10, 10))}),
    )  # fmt: skip
    assert [chosen.selected(rule).epoch for rule in ("worst_class", "class_gap")] == [3, 3]
    without = replace(chosen, selection=rules | {"val_acc": None})  # no validation split apart from test
    assert [without.selected(rule) for rule in ("worst_class", "class_gap")] == [None, None]
    empty = replace(result, data=replace(result.data, splits={"test": SplitFacts(30, n_by_class=(30, 0))}))
    assert empty.accuracy_by_class(replace(result.epochs[0], correct_by_class={"test": (15, 0)}), "test") == [0.5, None]


def test_what_a_later_version_of_this_schema_adds_is_no_damage():
    values = values_of(2)
    values["more"] = [1]
    values["result"]["more"] = {"a": None}
    assert record_from_json(values) == record_of(new_cell())


# --- damaged


VALUES = {
    "null": None, "text": "x", "no text": "", "half a character": "\ud800", "true": True, "whole": 1, "negative": -1,
    "large": 10**400, "fraction": 0.5, "infinite": math.inf, "nan": math.nan, "list": [[]], "no list": [],
    "object": {"x": "x"}, "nothing": {}, "missing": ...,
}  # fmt: skip
TEXT, NAME, WHOLE, NUMBER = {"text", "no text"}, {"text"}, {"whole", "negative"}, {"whole", "negative", "fraction"}
MAYBE, LACK, PLAIN = {"missing", "null"}, {"missing"}, {"object", "nothing"}
ANY = set(VALUES) - {"half a character", "large", "infinite", "nan"}
# field -> the kinds of values that it may have; every other kind is damage
FIELDS = {
    "schema": {"whole"}, "status": set(), "hash": set(),
    "cell": set(), "cell.method": NAME, "cell.method_version": WHOLE | TEXT, "cell.method_parameters": PLAIN,
    "cell.dataset": NAME, "cell.dataset_version": WHOLE | TEXT, "cell.dataset_parameters": PLAIN,
    "cell.recipe": PLAIN, "cell.recipe.learning_rate": ANY, "cell.seed": {"whole"},
    "cell.method_title": NAME, "cell.dataset_title": NAME, "cell.recipe_changes": PLAIN, "cell.root": MAYBE | TEXT,
    "provenance": set(), "provenance.finished": TEXT, "provenance.versions": set(),
    "provenance.versions.protocol": WHOLE, "provenance.versions.torch": LACK | TEXT | WHOLE,
    "provenance.seconds": set(), "provenance.seconds.total": NUMBER, "provenance.seconds.data": LACK | NUMBER,
    "provenance.seconds.stages": LACK | {"no list"}, "provenance.device": LACK | TEXT,
    "provenance.threads": LACK | WHOLE, "provenance.calls": LACK | {"no list"}, "failure": MAYBE,
    "result": set(), "result.data": set(), "result.data.fingerprint": NAME, "result.data.official": {"true"},
    "result.data.note": LACK | TEXT, "result.data.splits": LACK | {"nothing"}, "result.data.splits.train": LACK,
    "result.data.splits.train.n": WHOLE, "result.data.splits.train.n_conflict": LACK | {"nothing"},
    "result.selection": set(), "result.selection.last": {"whole"}, "result.selection.val_loss": MAYBE | {"whole"},
    "result.epochs": set(), "result.epochs.0": set(), "result.epochs.0.epoch": WHOLE,
    "result.epochs.0.test": {"nothing"}, "result.epochs.0.test.acc_avg": LACK | NUMBER,
    "result.epochs.0.train_loss": MAYBE | NUMBER, "result.logged": LACK | {"nothing"},
    "result.identification": LACK | {"nothing"}, "result.identification.score": LACK | {"nothing"},
    "result.groups": LACK | {"nothing"}, "result.groups.test": LACK | {"no list"}, "result.groups.test.0": set(),
    "result.groups.test.0.n": WHOLE, "result.groups.test.0.acc": MAYBE | NUMBER,
    "result.arrays": LACK | PLAIN, "result.weights": MAYBE | PLAIN, "result.tune": MAYBE | {"nothing"},
    "result.stages": LACK | {"no list"}, "result.stages.0": set(), "result.stages.0.call": WHOLE,
    "result.stages.0.epochs": WHOLE, "result.stages.0.train_loss": LACK | {"no list"},
    "result.stages.0.end": LACK | {"nothing"},
}  # fmt: skip
IN_SCHEMA_2 = {
    "provenance.seconds.calls": LACK | {"nothing"}, "provenance.code": MAYBE | PLAIN,
    "provenance.precision": MAYBE | TEXT, "result.epochs.0.correct_by_class": MAYBE | {"nothing"},
    "result.data.splits.train.n_by_class": MAYBE | {"no list"},
    "result.data.class_names": MAYBE | {"no list"}, "result.data.bias_values": MAYBE | {"no list", "list"},
}  # fmt: skip
IN_SCHEMA_1 = {"provenance.finished": LACK | TEXT, "result.epochs.0.test.acc_avg": MAYBE | NUMBER}  # null was nan
OF_A_FAILURE = {
    "status": set(), "result": MAYBE, "failure": set(), "failure.type": TEXT, "failure.message": TEXT,
    "failure.traceback": LACK | TEXT,
}  # fmt: skip
OLD_NAMES = {
    "cell.method_title": "cell.method_label", "cell.dataset_title": "cell.dataset_label", "failure": "error",
    "result.stages": "result.phases", "provenance.seconds.stages": "provenance.seconds.phases",
    "result.logged": "result.numbers",
}  # fmt: skip


def with_value(schema, done, field, value):
    """A record of which one field has that value; None where it would be another field that is damaged."""
    if schema == 1:
        for new, old in OLD_NAMES.items():
            field = old + field.removeprefix(new) if f"{field}.".startswith(f"{new}.") else field
    values = values_of(schema, done)
    *above, last = (int(name) if name.isdigit() else name for name in field.split("."))
    part = functools.reduce(lambda part, name: part[name], above, values)
    if value is not ...:
        part[last] = value
    elif isinstance(last, int):
        return None  # a shorter list
    else:
        part.pop(last, None)
    return values


def as_named(field):
    """A field as complaints name it."""
    return "record" + "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in field.split("."))


KINDS = {
    "schema 1": (1, FIELDS | IN_SCHEMA_1),
    "schema 2": (2, FIELDS | IN_SCHEMA_2),
    "failure of schema 1": (1, OF_A_FAILURE),
    "failure of schema 2": (2, OF_A_FAILURE),
}


@pytest.mark.parametrize(("schema", "fields"), KINDS.values(), ids=KINDS.keys())
def test_a_field_of_a_wrong_kind_is_one_complaint_that_names_it_and_its_cell_runs_again(tmp_path, schema, fields):
    done = fields is not OF_A_FAILURE
    cell = record_from_json(values_of(schema, done)).cell
    path = record_path(tmp_path, cell)
    path.parent.mkdir(parents=True)
    n_damaged = 0
    for field, allowed in fields.items():
        for kind, value in VALUES.items():
            values = with_value(schema, done, field, value)
            if values is None:
                continue
            path.write_text(json.dumps(values), encoding="utf-8")
            records, complaints = read_records(tmp_path)
            if kind in allowed:
                assert (len(records), complaints) == (1, []), (field, kind)
                continue
            n_damaged += 1
            assert (records, len(complaints)) == ([], 1), (field, kind, complaints)
            assert complaints[0].startswith(f"{path}: "), (field, kind, complaints)
            assert as_named(field) in complaints[0], (field, kind, complaints)
            assert complaints[0].isprintable(), (field, kind)
            assert find_record(tmp_path, cell) is None, (field, kind)
    assert n_damaged > (600 if done else 50)
    path.write_text(text_of(schema, done), encoding="utf-8")
    assert find_record(tmp_path, cell) == path


# ---- the schema for others -----------------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def by_schema():
    """What the committed schema refuses in a record: none, if it is one."""
    schema = json.loads((DOCS / "record.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_is_that_of_the_classes():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (DOCS / "record.schema.json").read_text(encoding="utf-8") == generate.record_schema(), (
        "python docs/generate.py"
    )


@pytest.mark.parametrize("done", [True, False])
def test_a_record_passes_the_schema(by_schema, done):
    written = json.loads(json.dumps(record_from_json(values_of(2, done)).to_json()))
    assert list(by_schema.iter_errors(written)) == []
    assert list(by_schema.iter_errors(values_of(2, done))) == []


@pytest.mark.parametrize("kind", ["schema 2", "failure of schema 2"])
def test_the_schema_refuses_what_the_reader_refuses_and_nothing_else(by_schema, kind):
    """But for what is no JSON (nan, infinite) or no text (half a character), and older schemas."""
    schema, fields = KINDS[kind]
    done = fields is not OF_A_FAILURE
    n_refused = 0
    for field, allowed in fields.items():
        for value_kind in VALUES.keys() - {"nan", "infinite", "half a character"}:
            values = with_value(schema, done, field, VALUES[value_kind])
            if values is None or (field, value_kind) == ("schema", "whole"):
                continue
            passes = by_schema.is_valid(values)
            assert passes == (value_kind in allowed), (field, value_kind)
            n_refused += not passes
    assert n_refused > (450 if done else 30)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.update(status="broken"),
        lambda values: values.update(hash="A" * 64),
        lambda values: values.update(failure={"type": "E", "message": "m"}),
        lambda values: values["result"].update(epochs=[]),
        lambda values: values["result"]["selection"].update(val_loss=-1),
        lambda values: values["provenance"].update(versions={"torch": "2"}),
        lambda values: values["cell"].update(seed=2**63),
        lambda values: values["result"]["epochs"][0]["test"].update(acc_avg="0.5"),
    ],
)
def test_a_spoilt_record_fails_in_both(by_schema, spoil):
    values = values_of(2)
    spoil(values)
    assert not by_schema.is_valid(values)
    with pytest.raises(ValueError, match="record"):
        record_from_json(values)


def test_the_document_names_every_field_of_a_record():
    schema = json.loads((DOCS / "record.schema.json").read_text(encoding="utf-8"))
    text = (DOCS / "records.md").read_text(encoding="utf-8")
    for part in (schema, *schema["$defs"].values()):
        for name in part["properties"]:
            assert f"`{name}`" in text, name


def places_in(values):
    """(container, key) of every value inside."""
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        yield values, key
        if isinstance(value, dict | list):
            yield from places_in(value)


@pytest.mark.parametrize("schema", [1, 2])
def test_values_put_anywhere_make_it_a_record_or_a_complaint_and_nothing_else(schema):
    draws = random.Random(schema)
    n_whole = 0
    for _ in range(500):
        values = values_of(schema)
        for _ in range(draws.choice((1, 1, 2, 5))):
            container, key = draws.choice(list(places_in(values)))
            kind = draws.choice(list(VALUES))
            if kind == "missing":
                del container[key]
            else:
                container[key] = copy.deepcopy(VALUES[kind])
        with contextlib.suppress(ValueError):
            record_from_json(json.loads(json.dumps(values)))
            n_whole += 1
    assert 50 < n_whole < 400


@pytest.mark.parametrize("done", [True, False])
def test_a_record_that_nothing_is_wrong_with_is_read_the_quick_way_and_equal(done):
    content = text_of(2, done).encode()
    assert decoded(content) == record_from_json(json.loads(content))


@pytest.mark.parametrize("archive", sorted(COMMITTED.glob("*.zip")), ids=lambda path: path.stem)
def test_committed_records_are_equal_by_both_ways(archive):
    for name in contents(archive).members:
        if name.endswith(".json"):
            content = bytes_of(archive / name)
            values = json.loads(content)
            assert decoded(content) == (record_from_json(values) if values["schema"] == SCHEMA else None), name


def test_what_the_quick_way_reads_is_what_the_careful_one_reads():
    draws = random.Random(0)
    n_read = n_left = 0
    kinds = VALUES | {"beyond 64 bits": 2**63, "below 64 bits": -(2**63) - 1, "of 64 bits": -(2**63), "1.0": 1.0}
    for _ in range(1000):
        values = values_of(2, draws.random() < 0.8)
        container, key = draws.choice(list(places_in(values)))
        kind = draws.choice(list(kinds))
        if kind == "missing":
            del container[key]
        else:
            container[key] = copy.deepcopy(kinds[kind])
        content = json.dumps(values).encode()
        quick = decoded(content)
        n_left += quick is None
        if quick is not None:
            n_read += 1
            assert quick == record_from_json(json.loads(content)), (key, kind)
    assert min(n_read, n_left) > 100


@pytest.mark.parametrize("odd", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"])
@pytest.mark.parametrize("place", [b'{"%s": 1, ', b'{"unknown": "%s", ', b'{"unknown": {"deep": ["%s"]}, '])
def test_bytes_that_are_no_text_are_refused_even_where_no_field_is(tmp_path, place, odd):
    content = text_of(2, True).encode()
    assert decoded(place % b"known" + content[1:]) == decoded(content)
    assert decoded(place % odd + content[1:]) is None
    (tmp_path / "s0-odd.json").write_bytes(place % odd + content[1:])
    with pytest.raises(BenchmarkError, match="it is not text in UTF-8"):
        read_record(tmp_path / "s0-odd.json")


def in_text(before, after):
    """A whole record's text with a replacement."""

    def change(text):
        assert before in text
        return text.replace(before, after, 1)

    return change


FILES = {  # what is in the file, and what the complaint says
    "cut off in a name": (lambda text: text[: text.index("n_by_class") + 5], "it is not JSON (Unterminated string"),
    "cut off before a value": (lambda text: text[: text.index("n_by_class") + 12], "it is not JSON (Expecting value"),
    "empty": ("", "it is empty"),
    "spaces": (" \n\t ", "it is empty"),
    "no JSON": ("not JSON at all", "it is not JSON (Expecting value: line 1 column 1"),
    "two records": (lambda text: text + text, "it is not JSON (Extra data"),
    "null": ("null", "it is not a record but null"),
    "number": ("3", "it is not a record but 3"),
    "text": ('"a text"', "it is not a record but 'a text'"),
    "list": ("[1, 2]", "it is not a record but [1, 2]"),
    "no keys": ("{}", "record.schema must be a whole number, but is null"),
    "nothing but a schema": ('{"schema": 2, "status": "done"}', "record.result is missing"),
    "schema 0": (in_text('"schema": 2', '"schema": 0'), "record.schema must be at least 1, but is 0"),
    "running": (in_text('"done"', '"running"'), "record.status must be 'done' or 'failed', but is 'running'"),
    "failed with a result": (
        in_text('"status": "done"', '"status": "failed", "failure": {"type": "A", "message": "b"}'),
        "record.result must not be there, because record.status is 'failed'",
    ),
    "seconds as text": (
        in_text('"total": 1.5', '"total": "x"'),
        "record.provenance.seconds.total must be a finite number, but is 'x'. Run its grid again, or delete it.",
    ),
    "1e999": (in_text('"acc_avg": 0.75', '"acc_avg": 1e999'), "valid.acc_avg must be a finite number, but is inf"),
    "accuracy as text": (in_text('"acc_avg": 0.75', '"acc_avg": "0.5"'), "must be a finite number, but is '0.5'"),
    "selection outside": (
        in_text('"val_loss": 0', '"val_loss": 3'),
        "record.result.selection.val_loss points outside of the 3 evaluated epochs",
    ),
    "selection from the end": (in_text('"val_loss": 0', '"val_loss": -1'), "val_loss points outside of the 3"),
    "a number of many digits": (in_text('"seed": 0', '"seed": 1' + "0" * 5000), "digits"),
    "an odd name": (in_text('"arrays": {', '"arrays": {"a\\nb": null, '), r"record.result.arrays['a\nb'] must be text"),
    "lists in lists": ("[" * 200_000, "it is nested too deeply"),
    "objects in objects": ('{"schema": ' * 200_000, "it is nested too deeply"),
    "lists in a parameter": (
        in_text('"method_parameters": {', f'"method_parameters": {{"deep": {"[" * 900}{"]" * 900}, '),
        "it is nested too deeply",
    ),
    "no UTF-8": (lambda text: text.encode()[:-1] + b"\xff}", "it is not text in UTF-8 (byte "),
    "UTF-16": (lambda text: text.encode("utf-16"), "it is not text in UTF-8 (byte 0)"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "it is not JSON"),
    "noughts": (b"\0" * 1000, "it is not JSON"),
}


def within(seconds, call):
    """What a call returns; fails if it does not return in time (it waits for a pipe, say)."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no answer within {seconds} s"
    return found[0]


def only_complaint(folder, path):
    """The one complaint about the files below a folder: it is about `path`, and a good record beside it is read."""
    good = written(folder, new_cell(seed=1))
    records, complaints = within(60, lambda: read_records(folder))
    assert [record.path for record in records] == [good]
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith(f"{path}: ")
    assert complaints[0].endswith(".")
    assert complaints[0].isprintable()
    return complaints[0]


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES.keys())
def test_a_damaged_file_is_one_complaint_that_says_what_is_wrong(tmp_path, content, says):
    content = content(text_of(2, True)) if callable(content) else content
    path = record_path(tmp_path, new_cell())
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in only_complaint(tmp_path, path)
    assert find_record(tmp_path, new_cell()) is None
    with pytest.raises(BenchmarkError) as error:
        read_record(path)
    assert str(error.value) == only_complaint(tmp_path, path)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = record_path(tmp_path, new_cell())
    path.parent.mkdir(parents=True)
    path.write_text(text_of(2, True), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf{")
    assert read_record(path) == record_of(new_cell())
    assert find_record(tmp_path, new_cell()) == path


ODD_FILES = {
    "a pipe": (os.mkfifo, "it is not a regular file"),
    "a link to a device without an end": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "a folder": (Path.mkdir, "it is not a regular file"),
}


@pytest.mark.parametrize(("make", "says"), ODD_FILES.values(), ids=ODD_FILES.keys())
def test_what_is_no_file_is_one_complaint_and_hangs_nothing(tmp_path, make, says):
    path = record_path(tmp_path, new_cell())
    path.parent.mkdir(parents=True)
    make(path)
    assert says in only_complaint(tmp_path, path)
    assert within(60, lambda: [find_record(tmp_path, new_cell())]) == [None]


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = written(tmp_path, new_cell())
    monkeypatch.setattr("debiasbench.records.MOST_BYTES", path.stat().st_size)
    assert read_record(path).done
    path.write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it is read"))
    with pytest.raises(BenchmarkError, match="it is too large"):
        read_record(path)


def test_a_file_that_may_not_be_read_is_one_complaint(tmp_path, monkeypatch):
    path = written(tmp_path, new_cell())
    original = Path.read_bytes

    def refuse(one):
        if one == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(one))
        return original(one)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in only_complaint(tmp_path, path)
    assert find_record(tmp_path, new_cell()) is None


def test_a_file_whose_name_is_no_text_is_complained_of_in_words_that_can_be_printed(tmp_path):
    path = tmp_path / os.fsdecode(b"s0-\xff.json")
    path.write_bytes(b"{")
    _, (complaint,) = read_records(tmp_path)
    assert complaint.startswith(rf"{tmp_path}/s0-\udcff.json: ")


@pytest.mark.parametrize(
    "damage", ["", "[" * 200_000, '{"schema": 2}', None], ids=["empty", "lists in lists", "no keys", "a pipe"]
)
def test_a_grid_runs_the_cell_of_a_damaged_record_again_and_no_other(tmp_path, monkeypatch, damage):
    grid = expand(["pgd"], ["cmnist5k"], seeds=2)
    for cell in grid.cells:
        written(tmp_path, cell)
    path = record_path(tmp_path, grid.cells[0])
    path.unlink()
    os.mkfifo(path) if damage is None else path.write_text(damage, encoding="utf-8")
    monkeypatch.setattr("debiasbench.running.plan.check_data", lambda *_: None)
    monkeypatch.setattr("debiasbench.running.plan.build_all", lambda given, _: dict.fromkeys(given, Built("f" * 64)))
    monkeypatch.setattr("debiasbench.running.plan._weights_of", lambda _: "c" * 64)
    planned = within(60, lambda: plan(grid, data_dir=tmp_path, results_dir=tmp_path))
    assert planned.to_run == [grid.cells[0]]
    assert planned.finished == {grid.cells[1].hash: record_path(tmp_path, grid.cells[1])}
    write_record(path, record_of(grid.cells[0]))  # as its run does, whatever is there
    assert not plan(grid, data_dir=tmp_path, results_dir=tmp_path).to_run


# --- arrays beside a record


ARRAYS = {"score": torch.tensor([0.25, 1.0, 0.0]), "train_conflict": torch.tensor([[True], [False], [True]])}
BAD_ARRAYS = {
    "garbage": b"garbage" * 100,
    "empty": b"",
    "cut": save(ARRAYS)[:-5],
    "cut in its header": save(ARRAYS)[:20],
    "a header that never ends": b"\xff" * 8 + b"{}",
    "a large header": (2**40).to_bytes(8, "little") + b"{}" + b"\0" * 100,
    "a header that is no JSON": (4).to_bytes(8, "little") + b"nope",
    "a header of lists": (10_000).to_bytes(8, "little") + b"[" * 10_000,
    "a kind of number that nobody knows": save(ARRAYS).replace(b'"F32"', b'"F99"'),
}


@pytest.mark.parametrize("content", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_damaged_arrays_and_weights_are_one_error_that_names_the_file(tmp_path, content):
    path = written(tmp_path, new_cell())
    arrays_path(path).write_bytes(content)
    weights_path(path).write_bytes(content)
    assert has_arrays(path)
    for read in (read_arrays, read_scores, load):
        with pytest.raises(BenchmarkError) as error:
            read(path)
        file = weights_path(path) if read is load else arrays_path(path)
        assert str(error.value).startswith(f"{file}: it cannot be read as ")
        assert len(str(error.value).splitlines()) == 1
    assert read_record(path).done  # the record itself is whole


@pytest.mark.parametrize(
    "form",
    [
        {}, {"nets": 3, "net": "net"}, {"nets": {"net": {}}, "net": "net"}, {"nets": {"net": {"linear": [9, 9]}}},
        {"nets": {"net": {"linear": [4, 2]}}, "net": "other"}, {"nets": {"net": {"linear": [4, 2]}}, "function": "no"},
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_their_record_are_an_error(tmp_path, form):
    path = written(tmp_path, new_cell(), weights=form)
    weights_path(path).write_bytes(save({"net.weight": torch.ones(2, 4), "net.bias": torch.zeros(2)}))
    with pytest.raises(BenchmarkError, match="it cannot be read as weights of its record"):
        load(path)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({**ARRAYS, "score": torch.ones(4)}, "its columns differ in length"),
        ({**ARRAYS, "score": torch.ones(3, 1)}, "its columns differ in length"),
        ({**ARRAYS, "train_conflict": torch.ones(3)}, "its columns differ in length"),
        ({"score": torch.ones(0), "train_conflict": torch.ones(0, 1)}, "not finite, or there are none"),
        ({**ARRAYS, "score": torch.tensor([math.nan, 1.0, 1.0])}, "not finite"),
        ({**ARRAYS, "score": torch.tensor([math.inf, 1.0, 1.0])}, "not finite"),
    ],
)
def test_columns_that_do_not_go_together_are_an_error(tmp_path, arrays, says):
    path = written(tmp_path, new_cell(), arrays)
    with pytest.raises(BenchmarkError, match=says):
        read_scores(path)


def test_scores_are_read_where_they_can_be_shown(tmp_path):
    path = written(tmp_path, new_cell(), ARRAYS)
    score, conflict = read_scores(path)
    assert (score.tolist(), conflict.tolist()) == ([0.25, 1.0, 0.0], [True, False, True])
    written(tmp_path, new_cell(), {**ARRAYS, "score": torch.tensor([-0.5, 1.0, 1.0])})
    assert read_scores(path) is None
    written(tmp_path, new_cell(), {"score": ARRAYS["score"]})
    assert read_scores(path) is None
    assert np.array_equal(read_arrays(path)["score"], ARRAYS["score"].numpy())
    arrays_path(path).unlink()
    assert (has_arrays(path), read_scores(path)) == (False, None)
    with pytest.raises(BenchmarkError, match="No such file or directory"):
        read_arrays(path)


# --- finding


def test_a_record_lies_by_dataset_method_seed_and_hash(tmp_path):
    cell = new_cell("pgd:score=loss", "cmnist5k:rho=0.05", seed=7)
    path = record_path(tmp_path, cell)
    assert path.relative_to(tmp_path).as_posix() == (
        f"records/cmnist5k+rho=0.05/pgd+score=loss/s7-{cell.hash[:8]}.json"
    )


def test_names_of_folders_are_safe_on_every_system(tmp_path):
    cell = new_cell("vanilla", 'cmnist5k:pretrained="../a b|c:d?"')
    parts = record_path(tmp_path, cell).relative_to(tmp_path).parts
    assert len(parts) == 4
    assert all(set(part) & set('/\\:|?*"<> ') == set() for part in parts)


def test_the_record_of_the_same_cell_is_found_and_of_another_is_not(tmp_path):
    cell = new_cell()
    assert find_record(tmp_path, cell) is None
    path = written(tmp_path, cell)
    assert find_record(tmp_path, cell) == path
    for other in (new_cell(seed=1), new_cell("pgd:alpha=0.8"), new_cell(dataset="cmnist5k:rho=0.05")):
        assert find_record(tmp_path, other) is None


def older(cell, part, key):
    """The same cell as a version without that parameter would have stored it."""
    values = cell.to_json()
    del values[part][key]
    return Cell.from_json(values)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("method_parameters", "score_augment"), ("method_parameters", "order"),
        ("dataset_parameters", "data_seed"),
        ("recipe", "clip_norm"), ("recipe", "eval_every"), ("recipe", "crop_ratio"),
    ],
)  # fmt: skip
def test_a_record_from_before_a_parameter_existed_still_counts_if_its_value_is_the_default(tmp_path, part, key):
    cell = new_cell()
    old = older(cell, part, key)
    assert old.hash != cell.hash
    path = written(tmp_path, old)
    assert find_record(tmp_path, cell) == path


def test_a_record_from_before_several_parameters_existed_still_counts(tmp_path):
    cell = new_cell("jtt:T=3")
    old = older(older(older(cell, "method_parameters", "copies"), "method_parameters", "lambda_up"), "recipe", "flip")
    assert find_record(tmp_path, cell) is None
    path = written(tmp_path, old)
    assert find_record(tmp_path, cell) == path


def as_if_labelled(old, cell):
    """`old` with the labels of `cell`, so that only the values can tell them apart."""
    return Cell.from_json({**old.to_json(), "method_title": cell.method_title, "dataset_title": cell.dataset_title})


def test_a_record_from_before_a_parameter_existed_does_not_count_for_another_value(tmp_path):
    cell = new_cell("pgd:score=loss")
    written(tmp_path, older(cell, "method_parameters", "score"))  # the default is gradnorm
    assert find_record(tmp_path, cell) is None
    cell = new_cell("pgd", "cmnist5k:flip=true")
    written(tmp_path, older(cell, "recipe", "flip"))
    assert find_record(tmp_path, cell) is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("method_parameters", {"alpha": 0.9}), ("dataset_parameters", {"rho": 0.5}),
        ("recipe", {"batch_size": 64}),
        (None, {"method_version": 99}), (None, {"dataset_version": 99}),
    ],
)  # fmt: skip
def test_a_record_with_another_value_does_not_count(tmp_path, part, change):
    cell = new_cell()
    values = older(cell, "method_parameters", "score_augment").to_json()
    values = {**values, part: {**values[part], **change}} if part else {**values, **change}
    other = as_if_labelled(Cell.from_json(values), cell)
    path = written(tmp_path, other)
    assert path.parent == record_path(tmp_path, cell).parent
    assert find_record(tmp_path, cell) is None


def test_a_record_with_a_parameter_that_is_gone_does_not_count(tmp_path):
    cell = new_cell()
    values = cell.to_json()
    values["method_parameters"]["gone"] = 1
    written(tmp_path, Cell.from_json(values))
    assert find_record(tmp_path, cell) is None


def test_the_exact_record_comes_before_an_older_one_and_broken_ones_are_passed_over(tmp_path):
    cell = new_cell()
    folder = record_path(tmp_path, cell).parent
    old = written(tmp_path, older(cell, "method_parameters", "score_augment"))
    (folder / "s0-00000000.json").write_text("{", encoding="utf-8")
    (folder / "s0-00000001.json").write_text(json.dumps({**values_of(2), "cell": {"method": "pgd"}}), encoding="utf-8")
    assert find_record(tmp_path, cell) == old
    exact = written(tmp_path, cell)
    assert find_record(tmp_path, cell) == exact


def test_seed_1_is_not_found_as_seed_11(tmp_path):
    written(tmp_path, older(new_cell(seed=11), "recipe", "flip"))
    assert find_record(tmp_path, new_cell(seed=1)) is None


# --- the folder


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new" / "results")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_below_a_file_is_refused_before_anything_trains(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BenchmarkError) as error:
        check_writable(tmp_path / "file" / "results")
    assert str(tmp_path / "file" / "results") in str(error.value)
    assert "--results-dir" in str(error.value)


def test_a_read_only_results_folder_is_refused(tmp_path, monkeypatch):
    def fail(**given):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(BenchmarkError, match="Read-only file system"):
        check_writable(tmp_path)


def test_a_record_of_another_protocol_is_not_this_cells(tmp_path, monkeypatch):
    cell = new_cell()
    written(tmp_path, cell)
    assert find_record(tmp_path, cell) is not None
    monkeypatch.setattr("debiasbench.cell.PROTOCOL_VERSION", 2)
    monkeypatch.setattr("debiasbench.records.PROTOCOL_VERSION", 2)
    assert find_record(tmp_path, replace(cell)) is None  # a new one: a hash is made once


def test_a_record_under_the_name_of_another_cell_is_not_that_cells(tmp_path):
    path = written(tmp_path, new_cell(seed=1))
    elsewhere = record_path(tmp_path, new_cell())
    path.rename(elsewhere)
    assert read_record(elsewhere).cell == new_cell(seed=1)
    assert find_record(tmp_path, new_cell()) is None


# --- archives


def a_grid(folder):
    """Two methods and two seeds; the first has arrays and weights; a failure beside a finished record."""
    cells = [new_cell(method, seed=seed) for method in ("pgd", "vanilla") for seed in (0, 1)]
    first, *_ = [written(folder, cell, ARRAYS if cell == cells[0] else None) for cell in cells]
    weights_path(first).write_bytes(save({"net.weight": torch.ones(2, 4), "net.bias": torch.zeros(2)}))
    assert failed_path(first).name.endswith(".json.failed")
    write_record(failed_path(first), record_of(cells[0], done=False))
    return cells


def without_paths(records):
    return [replace(record, path=None) for record in records]


def test_an_archive_holds_what_the_folder_holds_and_is_read_as_the_folder(tmp_path):
    cells = a_grid(tmp_path)
    folder, archive = tmp_path / "records", tmp_path / "packed" / "grid.zip"
    assert pack(folder, archive) == 6
    assert [entry.name for entry in archive.parent.iterdir()] == ["grid.zip"]
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == sorted(packed.namelist())
        for name in packed.namelist():
            assert packed.read(name) == (folder / name).read_bytes()
        assert not [name for name in packed.namelist() if "failed" in name]
    records, complaints = read_records(archive)
    assert complaints == []
    assert [record.path.relative_to(archive) for record in records] == [
        record.path.relative_to(folder) for record in read_records(folder)[0]
    ]
    assert records == read_records(folder)[0]
    assert read_records(archive.parent)[0] == records
    first = archive / record_path(tmp_path, cells[0]).relative_to(folder)
    assert [has_arrays(record.path) for record in records] == [True, False, False, False]
    assert read_scores(first)[0].tolist() == ARRAYS["score"].tolist()
    assert [has_weights(record) for record in records] == [True, False, False, False]
    assert load(first)(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    with pytest.raises(BenchmarkError, match="it is not in the archive"):
        read_arrays(records[1].path)


def test_equal_folders_give_equal_archives(tmp_path):
    for name, order in (("one", (0, 1, 2)), ("two", (2, 0, 1))):
        for seed in order:
            path = written(tmp_path / name, new_cell(seed=seed), ARRAYS)
            os.utime(path, (1_000_000_000 + seed, 1_700_000_000 + 10_000 * len(name) * order[seed]))
            path.chmod(0o600 if name == "one" else 0o644)
        pack(tmp_path / name / "records", tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    written(tmp_path / "two", new_cell(seed=2), ARRAYS, n_epochs=4)
    pack(tmp_path / "two" / "records", tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() != (tmp_path / "two.zip").read_bytes()


def test_what_cannot_be_packed_is_refused_and_leaves_no_archive(tmp_path):
    archive = tmp_path / "grid.zip"
    for folder, says in ((tmp_path / "none", "There is no folder"), (tmp_path, "There are no records in")):
        with pytest.raises(BenchmarkError, match=says):
            pack(folder, archive)
    path = written(tmp_path / "results", new_cell())
    pack(path.parent.parent, path.parent.parent / "cmnist5k.zip")
    written(tmp_path / "results", new_cell(seed=1))
    path.unlink()
    with pytest.raises(BenchmarkError, match="cannot be packed again"):
        pack(tmp_path / "results" / "records", archive)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"it is not JSON"):
        pack(tmp_path / "results" / "records", archive)
    assert not archive.exists()


def test_a_full_disk_leaves_the_old_archive(tmp_path, monkeypatch):
    a_grid(tmp_path)
    archive = tmp_path / "grid.zip"
    pack(tmp_path / "records", archive)
    before = archive.read_bytes()
    written(tmp_path, new_cell(seed=5))
    break_fsync(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path / "records", archive)
    assert archive.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["grid.zip", "records"]


@pytest.mark.parametrize(
    ("packed", "archive"),
    [
        ("records", "records.zip"), ("records", "records/any name.zip"),
        ("records/cmnist5k", "records/cmnist5k.zip"), ("records/cmnist5k/pgd", "records/cmnist5k/pgd.zip"),
    ],
)  # fmt: skip
def test_records_in_archives_are_found(tmp_path, packed, archive):
    """A folder's archive beside it counts as the folder, and so does one of all records among them."""
    cells = a_grid(tmp_path)
    old = older(new_cell(seed=7), "recipe", "flip")
    written(tmp_path, old)
    before = {cell.hash: find_record(tmp_path, cell).name for cell in cells[:2]}
    pack(tmp_path / packed, tmp_path / "grid.zip")
    shutil.rmtree(tmp_path / packed)
    (tmp_path / archive).parent.mkdir(exist_ok=True)
    (tmp_path / "grid.zip").rename(tmp_path / archive)
    for cell in cells[:2]:
        path = find_record(tmp_path, cell)
        assert path.is_relative_to(tmp_path / archive)
        assert path.name == before[cell.hash]
        assert read_record(path).cell == cell
    assert find_record(tmp_path, new_cell(seed=7)).is_relative_to(tmp_path / archive)  # of an earlier version
    assert find_record(tmp_path, new_cell(seed=3)) is None
    read = read_records(tmp_path)[0]
    assert {record.path for record in read if record.cell in cells[:2]} == {
        find_record(tmp_path, cell) for cell in cells[:2]
    }


def test_a_cell_with_a_record_in_an_archive_and_beside_it_has_one(tmp_path):
    """A finished one before a failure, then what lies in a folder."""
    cell, other = new_cell(), new_cell(seed=1)
    path = written(tmp_path, cell)
    written(tmp_path, other)
    records = tmp_path / "records"
    pack(records, records / "grid.zip")
    assert [record.path for record in read_records(records)[0]] == [path, record_path(tmp_path, other)]
    record_path(tmp_path, other).unlink()
    inside = records / "grid.zip" / record_path(tmp_path, other).relative_to(records)
    assert [record.path for record in read_records(records)[0]] == [path, inside]
    assert find_record(tmp_path, other) == inside
    written(tmp_path, other, done=False)  # run again, in vain
    assert find_record(tmp_path, other) == inside
    assert [record.path for record in read_records(records)[0]] == [path, inside]
    again = written(tmp_path, other, n_epochs=4)
    assert find_record(tmp_path, other) == again
    assert [record.path for record in read_records(records)[0]] == [path, again]
    again.write_text("{", encoding="utf-8")
    assert find_record(tmp_path, other) == inside


def test_records_of_one_cell_in_two_folders_or_archives_are_both_read(tmp_path):
    """They may belong to two grids; a report of both refuses them."""
    for folder in ("one", "two"):
        written(tmp_path / folder, new_cell())
    assert len(read_records(tmp_path)[0]) == 2
    for folder in ("one", "two"):
        pack(tmp_path / folder, tmp_path / f"{folder}.zip")
    assert len(read_records(tmp_path)[0]) == 2  # each as its folder
    for folder in ("one", "two"):
        shutil.rmtree(tmp_path / folder)
        assert len(read_records(tmp_path)[0]) == 2


def copied(folder, path, name="s0-copy.json"):
    """A copy of a record under another name."""
    copy = folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
    return copy


def of_two_machines(folder, cell, **other):
    """The records of two machines, laid side by side; `other` is what the second differs in."""
    return written(folder / "one", cell), written(folder / "two", cell, **other)


def in_an_archive(folder, cell, **other):
    one, two = of_two_machines(folder, cell, **other)
    pack(folder / "two", folder / "of two.zip")
    shutil.rmtree(folder / "two")
    return one, folder / "of two.zip" / two.relative_to(folder / "two")


def in_two_archives(folder, cell, **other):
    places = of_two_machines(folder, cell, **other)
    for name in ("one", "two"):
        pack(folder / name, folder / f"{name}.zip")
        shutil.rmtree(folder / name)
    return tuple(folder / f"{path.relative_to(folder).parts[0]}.zip" / Path(*path.relative_to(folder).parts[1:])
                 for path in places)  # fmt: skip


def under_another_name(folder, cell, **other):
    one, two = of_two_machines(folder, cell, **other)
    copy = copied(one.parent, two)
    shutil.rmtree(folder / "two")
    return one, copy


OVERLAPS = [of_two_machines, in_an_archive, in_two_archives, under_another_name]


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_equal_records_of_a_cell_count_once_wherever_they_are(tmp_path, overlap):
    cell, other = new_cell(), new_cell(seed=1)
    overlap(tmp_path, cell)
    written(tmp_path / "one", other)
    records = read_records(tmp_path)[0]
    assert sorted(record.cell.seed for record in records) == [0, 0, 1]
    assert sorted(record.cell.seed for record in without_copies(records)) == [0, 1]


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_unequal_records_of_a_cell_are_all_given(tmp_path, overlap):
    places = overlap(tmp_path, new_cell(), n_epochs=4)
    copied(tmp_path / "three", places[0]) if places[0].is_file() else None
    assert {record.path for record in without_copies(read_records(tmp_path)[0])} == set(places)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("first", [True, False], ids=["the first failed", "the second failed"])
def test_a_failure_does_not_count_beside_a_finished_record(tmp_path, overlap, first):
    one, two = overlap(tmp_path, new_cell(), done=False)
    if first and one.is_file() and two.is_file():
        other = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(other)
    (record,) = without_copies(read_records(tmp_path)[0])
    assert record.done


def test_a_cell_that_failed_several_times_failed_once(tmp_path):
    for day in (1, 3, 2):
        made = record_of(new_cell(), done=False)
        made = replace(made, provenance=replace(made.provenance, finished=f"2026-11-0{day}T00:00:00+00:00"))
        write_record(tmp_path / f"s0-{day}.json", made)
    (record,) = without_copies(read_records(tmp_path)[0])
    assert record.path.name == "s0-3.json"


def test_of_equal_records_the_one_counts_that_has_networks_and_arrays(tmp_path):
    """What a run took and where does not make records unequal, and neither does what was kept of it."""
    cell = new_cell()
    written(tmp_path / "a", cell, weights=None)
    slow = record_of(cell)
    slow = replace(slow, provenance=replace(slow.provenance, seconds=Seconds(99.0), device="another", commit=""))
    write_record(record_path(tmp_path / "b", cell), slow)
    whole = written(tmp_path / "c", cell, ARRAYS)
    written(tmp_path / "d", cell)
    assert [record.path for record in without_copies(read_records(tmp_path)[0])] == [whole]


def test_an_archive_that_changes_is_read_anew(tmp_path):
    written(tmp_path, new_cell())
    archive = tmp_path / "grid.zip"
    for n in (1, 2, 3):
        assert pack(tmp_path / "records", archive) == n
        assert len(read_records(archive)[0]) == n
        written(tmp_path, new_cell(seed=n))


def test_an_archive_is_opened_once_for_many_cells(tmp_path, monkeypatch):
    cells = [new_cell(seed=seed) for seed in range(20)]
    for cell in cells:
        written(tmp_path, cell)
    pack(tmp_path / "records", tmp_path / "grid.zip")
    shutil.rmtree(tmp_path / "records")
    (tmp_path / "records").mkdir()
    (tmp_path / "grid.zip").rename(tmp_path / "records" / "grid.zip")
    for number in range(80):
        zip_of(tmp_path / "records" / f"a{number}.zip", {"s0-00000000.json": "{}"})
    opened, original = [], zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *given: opened.append(given) or original(*given))
    assert all(find_record(tmp_path, cell) for cell in cells)
    assert len(opened) <= 81


def zip_of(path, members, **options):
    """A .zip with these members."""
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


def of_one_record(path):
    zip_of(path, {"pgd/s0-00000000.json": text_of(2, True)}, compression=zipfile.ZIP_DEFLATED)


def changed(path, start, *changes):
    """Write bytes into a file: (offset from where `start` is, bytes)."""
    content = bytearray(path.read_bytes())
    where = content.index(start)
    for offset, values in changes:
        content[where + offset : where + offset + len(values)] = values
    path.write_bytes(content)


def garbage(path):
    path.write_bytes(random.Random(0).randbytes(5000))


def cut(path):
    of_one_record(path)
    path.write_bytes(path.read_bytes()[:-30])


def damaged_inside(path):
    of_one_record(path)
    changed(path, b"s0-00000000.json", (20, b"\xff" * 40))


def encrypted(path):
    of_one_record(path)
    changed(path, b"PK\3\4", (6, b"\1"))
    changed(path, b"PK\1\2", (8, b"\1"))


def packed_in_an_unknown_way(path):
    of_one_record(path)
    changed(path, b"PK\3\4", (8, b"\x63"))
    changed(path, b"PK\1\2", (10, b"\x63"))


def larger_than_it_says(path):
    of_one_record(path)
    changed(path, b"PK\1\2", (24, (50).to_bytes(4, "little")))


def of_a_later_version(path):
    of_one_record(path)
    changed(path, b"PK\1\2", (6, b"\xff"))


def nested(path):
    of_one_record(path)
    zip_of(path, {"inner.zip": path.read_bytes()})


def too_large(path):
    zip_of(path, {"s0-0.json": b" " * (2**20 + 1)}, compression=zipfile.ZIP_DEFLATED)


RECORD = "s0-00000000.json"
BAD_ARCHIVES = {
    "empty": (lambda path: path.write_bytes(b""), "", "it cannot be read as an archive of records (File is not a zip"),
    "garbage": (garbage, "", "it cannot be read as an archive of records (File is not a zip file)"),
    "cut": (cut, "", "it cannot be read as an archive of records (File is not a zip file)"),
    "of a later version": (of_a_later_version, "", "it cannot be read as an archive of records (zip file version"),
    "damaged inside": (damaged_inside, f"pgd/{RECORD}", "it cannot be unpacked (Error -3 while decompressing"),
    "encrypted": (encrypted, f"pgd/{RECORD}", "it is encrypted"),
    "an unknown way of packing": (packed_in_an_unknown_way, f"pgd/{RECORD}", "it cannot be unpacked (That compression"),
    "larger than it says": (larger_than_it_says, f"pgd/{RECORD}", "it cannot be unpacked (Bad CRC-32"),
    "too large": (too_large, "s0-0.json", "it is too large"),
    "no archive within": (nested, "", "'inner.zip' is an archive in an archive, and is not read"),
    "above": (lambda path: zip_of(path, {f"../{RECORD}": "{}"}), "", f"'../{RECORD}' leads out of the archive"),
    "within and above": (
        lambda path: zip_of(path, {f"pgd/../../x/{RECORD}": "{}"}), "", f"'pgd/../../x/{RECORD}' leads out of the arch",
    ),
    "absolute": (lambda path: zip_of(path, {f"/etc/{RECORD}": "{}"}), "", f"'/etc/{RECORD}' leads out of the archive"),
    "no records": (lambda path: zip_of(path, {"notes.txt": "x"}), "", "it holds no records"),
    "a damaged record": (lambda path: zip_of(path, {RECORD: "{"}), RECORD, "it is not JSON"),
    "a folder": (Path.mkdir, "", "it is a folder without records"),
    "a pipe": (os.mkfifo, "", "it is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "", "No such file or directory"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "", "it is not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "member", "says"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_a_damaged_archive_is_one_complaint(tmp_path, monkeypatch, make, member, says):
    monkeypatch.setattr("debiasbench.records.MOST_BYTES", 2**20)
    archive = tmp_path / "records" / "grid.zip"
    archive.parent.mkdir()
    make(archive)
    complaint = only_complaint(tmp_path, archive / member)
    assert says in complaint
    assert "delete it" not in complaint  # other records may be in it
    cell = new_cell(seed=3)
    assert within(60, lambda: [find_record(tmp_path, cell)]) == [None]
    written(tmp_path, cell)
    assert find_record(tmp_path, cell) == record_path(tmp_path, cell)


def test_an_absolute_name_in_an_archive_reads_nothing_of_this_machine(tmp_path):
    secret = written(tmp_path / "elsewhere", new_cell())
    for name in (str(secret), f"../elsewhere/{secret.relative_to(tmp_path / 'elsewhere')}"):
        zip_of(tmp_path / "grid.zip", {name: "{}"})
        records, complaints = read_records(tmp_path / "grid.zip")
        assert (records, len(complaints)) == ([], 1)


def test_names_with_dots_and_folders_of_their_own_are_read(tmp_path):
    text = text_of(2, True)
    archive = tmp_path / "grid.zip"
    zip_of(archive, {"./": "", "./pgd/": "", "./pgd/s0-00000000.json": text, "a//s0-11111111.json": text})
    assert read_record(archive / "pgd" / "s0-00000000.json").done
    assert read_records(archive)[1] == []


def test_a_folder_that_is_named_as_an_archive_is_a_folder(tmp_path):
    path = written(tmp_path, replace(new_cell(), dataset_title="imagefolder:name=a.zip"))
    assert path.parent.parent.name.endswith(".zip")
    records, complaints = read_records(tmp_path)
    assert ([record.path for record in records], complaints) == ([path], [])
    assert [record.path for record in read_records(path.parent.parent)[0]] == [path]
    assert find_record(tmp_path, records[0].cell) == path


# --- all damage at once


def test_the_report_of_a_folder_with_all_damage_is_made_and_tells_each(tmp_path, monkeypatch):
    monkeypatch.setattr("debiasbench.records.MOST_BYTES", 2**20)
    records, texts = tmp_path / "records", []
    for schema, fields in KINDS.values():
        done = fields is not OF_A_FAILURE
        for field, allowed in fields.items():
            variants = [with_value(schema, done, field, VALUES[kind]) for kind in VALUES if kind not in allowed]
            texts += [json.dumps(values) for values in variants if values is not None]
    texts += [content(text_of(2, True)) if callable(content) else content for content, _ in FILES.values()]
    records.mkdir()
    for number, content in enumerate(texts):
        path = records / f"s0-{number}.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for number, (make_odd, *_) in enumerate([*ODD_FILES.values(), *BAD_ARCHIVES.values()]):
        make_odd(records / (f"s1-{number}.json" if number < len(ODD_FILES) else f"{number}.zip"))
    n_damaged = len(texts) + len(ODD_FILES) + len(BAD_ARCHIVES)
    written(tmp_path, new_cell())
    made = within(300, lambda: make(tmp_path, figures=False))
    assert [[entry.text for entry in row] for row in made.table("comparison").rows] == [["pgd", "70.00", "1"]]
    assert len(made.complaints) == len(set(made.complaints)) == n_damaged > 1500
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8").replace("<wbr>", ""))
    assert [complaint for complaint in made.complaints if complaint not in page] == []
