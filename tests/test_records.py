"""Records: written whole or not at all, readable for people, and found again. No training."""

import copy
import errno
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.grid import expand
from debiasbench.records import (
    SCHEMA,
    arrays_path,
    check_writable,
    dump,
    find_record,
    read_record,
    read_records,
    record_path,
    write_record,
)

NAN = math.nan


def new_cell(method="pgd", dataset="cmnist5k", seed=0):
    """The only cell of a grid with one seed."""
    (cell,) = expand([method], [dataset], seeds=[seed]).cells
    return cell


def record_of(cell, *, status="done", n_epochs=3):
    """A record as a finished cell leaves it, with made-up numbers."""
    metrics = {
        "loss": 0.25,
        "n": 40.0,
        "acc_avg": 0.75,
        "acc_conflict": NAN,
        "n_conflict": 0.0,
        "acc_worst": 0.5,
    }
    epochs = [{"epoch": epoch, "valid": {**metrics}, "test": {**metrics}} for epoch in range(n_epochs)]
    record = {
        "schema": SCHEMA, "status": status, "hash": cell.hash, "cell": cell.to_json(),
        "provenance": {"seconds": {"total": 1.5}, "versions": {"protocol": 1}, "command": ["x"]},
    }  # fmt: skip
    if status == "done":
        record["result"] = {
            "data": {"fingerprint": "f" * 64, "official": True, "note": "", "splits": {"train": {"n": 200}}},
            "selection": {"last": n_epochs - 1, "val_loss": 0, "group_val": None},
            "identification": {"score": {"auroc": NAN, "conflict_mass": 0.5, "precision_at_n": NAN}},
            "phases": [{"epochs": n_epochs, "train_loss": [0.125 * epoch for epoch in range(n_epochs)]}],
            "epochs": epochs,
            "groups": {"test": [{"y": 0, "bias": 1, "n": 0, "acc": NAN}]},
        }
    else:
        record["error"] = {"type": "RuntimeError", "message": "no", "traceback": "Traceback\n  no"}
    return record


def written(folder, cell, **changes):
    """Write the record of a cell where it belongs."""
    path = record_path(folder, cell)
    write_record(path, {**record_of(cell), **changes})
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
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_atomically(path, b"new " * 1000)
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
            written(tmp_path, cell, status="failed")
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


def test_numbers_that_are_nan_are_null_in_the_file_and_nan_again(tmp_path):
    record = record_of(new_cell())
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    plain = strict(path.read_text())
    assert plain["result"]["epochs"][0]["valid"]["acc_conflict"] is None
    assert plain["result"]["identification"]["score"]["auroc"] is None
    assert repr(read_record(path)) == repr(record)  # repr: nan equals nan
    write_record(path, read_record(path))
    assert repr(read_record(path)) == repr(record)


def test_what_is_not_a_number_by_nature_stays_null(tmp_path):
    path = written(tmp_path, new_cell())
    found = read_record(path)
    assert found["result"]["selection"]["group_val"] is None
    assert found["cell"]["recipe"]["steps"] is None
    assert found["cell"]["method_parameters"]["order"] is None
    assert Cell.from_json(found["cell"]) == new_cell()


def test_parameters_of_a_cell_stay_null_whatever_their_names(tmp_path):
    record = record_of(new_cell())
    record["cell"]["method_parameters"] |= {"aux_loss": None, "precision": None}
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    assert read_record(path)["cell"] == record["cell"]


def test_infinite_numbers_do_not_make_the_file_unreadable_for_others(tmp_path):
    record = record_of(new_cell())
    record["result"]["epochs"][0]["valid"]["loss"] = math.inf
    path = tmp_path / "s0-x.json"
    write_record(path, record)
    strict(path.read_text())
    assert not math.isfinite(read_record(path)["result"]["epochs"][0]["valid"]["loss"])


def test_writing_leaves_the_record_in_memory_alone(tmp_path):
    record = record_of(new_cell())
    before = repr(copy.deepcopy(record))
    write_record(tmp_path / "s0-x.json", record)
    assert repr(record) == before


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


DAMAGED = {
    "half": lambda text: text[: len(text) // 2],
    "empty": "",
    "no-json": "not JSON at all",
    "null": "null",
    "list": "[1, 2]",
    "text": '"a text"',
    "no-keys": "{}",
    "no-cell": json.dumps({"schema": SCHEMA, "status": "done"}),
    "schema-null": lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": null'),
    "schema-text": lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": "one"'),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_record_is_one_clear_error_that_names_the_file(tmp_path, damage):
    path = written(tmp_path, new_cell())
    path.write_text(damage(path.read_text()) if callable(damage) else damage)
    with pytest.raises(BenchmarkError) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    good = written(tmp_path, new_cell(seed=1))
    records, complaints = read_records(tmp_path)
    assert [record["path"] for record in records] == [good]
    assert len(complaints) == 1
    assert str(path) in complaints[0]


def test_bytes_that_are_no_text_are_a_clear_error(tmp_path):
    path = tmp_path / "s0-x.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BenchmarkError, match=r"s0-x\.json"):
        read_record(path)


def test_the_error_says_what_to_do(tmp_path):
    path = tmp_path / "s0-x.json"
    path.write_text("")
    with pytest.raises(BenchmarkError, match="delete it to have its cell run again"):
        read_record(path)


def test_a_missing_record_is_a_clear_error(tmp_path):
    with pytest.raises(BenchmarkError, match=r"s9-none\.json"):
        read_record(tmp_path / "s9-none.json")


def test_a_later_schema_is_refused_with_both_numbers(tmp_path):
    path = written(tmp_path, new_cell(), schema=SCHEMA + 4)
    with pytest.raises(BenchmarkError) as error:
        read_record(path)
    assert str(error.value) == f"{path} has schema {SCHEMA + 4}; this version of debiasbench reads up to {SCHEMA}."


def test_all_records_below_a_folder_are_read_in_order_and_leftovers_are_not(tmp_path):
    cells = [new_cell(method, seed=seed) for method in ("pgd", "vanilla") for seed in (0, 1)]
    paths = [written(tmp_path, cell) for cell in cells]
    (paths[0].parent / f".{paths[0].name}.abc").write_text("half")
    (tmp_path / "notes.json").write_text("{}")
    records, complaints = read_records(tmp_path)
    assert [record["path"] for record in records] == sorted(paths)
    assert {record["hash"] for record in records} == {cell.hash for cell in cells}
    assert complaints == []
    assert read_records(tmp_path / "none") == ([], [])


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
    (folder / "s0-00000000.json").write_text("{")
    (folder / "s0-00000001.json").write_text(json.dumps({**record_of(cell), "cell": {"method": "pgd"}}))
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
    (tmp_path / "file").write_text("")
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
    write_record(record_path(tmp_path, cell), record_of(cell))
    assert find_record(tmp_path, cell) is not None
    monkeypatch.setattr("debiasbench.cell.PROTOCOL_VERSION", 2)
    monkeypatch.setattr("debiasbench.records.PROTOCOL_VERSION", 2)
    assert find_record(tmp_path, cell) is None


def test_a_rule_that_chose_nothing_stays_none(tmp_path):
    cell = new_cell()
    record = record_of(cell)
    record["result"]["selection"]["val_loss"] = None
    write_record(tmp_path / "s0-x.json", record)
    assert read_record(tmp_path / "s0-x.json")["result"]["selection"]["val_loss"] is None
