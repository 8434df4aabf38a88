"""Folders of features: layouts, types, tables, conflicts, what trains on them, and what damaged data say."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from debiasbench.cli import main
from debiasbench.data import features as of_features
from debiasbench.data.checks import check_splits
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.methods import registry as methods
from debiasbench.samples import Samples, Splits
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS

D = 5
ROWS = {  # (label, bias) of the rows of each split
    "train": [(0, 0)] * 12 + [(0, 1)] * 3 + [(1, 0)] * 2 + [(1, 1)] * 13,
    "valid": [(0, 0)] * 4 + [(1, 1)] * 4 + [(0, 1), (1, 0)],
    "test": [(0, 0), (0, 1), (1, 0), (1, 1)] * 3,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def values(split, dtype="float32", width=D):
    """Rows that differ by label and bias."""
    noise = np.random.default_rng(len(split)).normal(size=(len(ROWS[split]), width))
    noise[:, :2] += 2 * np.array(ROWS[split])
    return noise.astype(dtype)


def write_table(root, head="y,split,place", lines=None, name="metadata.csv"):
    """By default a line a row, the splits in turn."""
    if lines is None:
        lines = [f"{y},{split},{bias}" for split, rows in ROWS.items() for y, bias in rows]
    (root / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """A folder as `debiasbench` would read it: three files and their table."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    for split in ROWS:
        np.save(folder / f"{split}.npy", values(split))
    write_table(folder)
    return folder


def new(root, **options):
    return datasets.get("features")[0](**{"root": str(root), "title": "t", **options})


def built(root, **options):
    return new(root, **options).build(Path())


def refusal(root, **options):
    with pytest.raises(BenchmarkError) as caught:
        built(root, **options)
    return str(caught.value)


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_rows_labels_and_biases_are_those_of_the_files(root):
    splits = check_splits(new(root, scale="none"), built(root, scale="none"))
    for split, part in splits.named().items():
        assert part.x.dtype == torch.float32
        assert torch.equal(part.x, torch.from_numpy(values(split)))
        assert torch.stack([part.y, part.bias[:, 0]], 1).tolist() == [list(row) for row in ROWS[split]]
    dataset = new(root)
    assert (dataset.class_names, dataset.bias_names, dataset.n_bias_values) == (("0", "1"), ("place",), 2)
    assert not dataset.draws(Path())


@pytest.mark.parametrize(
    ("head", "line", "names"),
    [
        ("y,split,place", "0,{split},{word}", (("Land", "deep water"),)),
        ("y,split,place,tint", "{y},{split},{word},1", (("Land", "deep water"), ("1",))),
        ("y,split,tint,place", "{y},{split},{y},{word}", (("0", "1"), ("Land", "deep water"))),
    ],
)
def test_values_of_biases_are_called_as_the_table_has_them(root, head, line, names):
    lines = [
        line.format(y=y, split=split, word=("Land", "deep water")[bias])
        for split, rows in ROWS.items() for y, bias in rows
    ]  # fmt: skip
    write_table(root, head, lines)
    assert new(root).bias_values == names
    column = head.split(",").index("place") - 2
    assert [new(root).bias_value(column, value) for value in range(3)] == ["Land", "deep water", "2"]


def test_features_are_scaled_by_those_of_training(root):
    """Mean 0 and standard deviation 1 there; a constant feature becomes 0 and stays finite."""
    for split in ROWS:
        x = values(split)
        x[:, 3] = 7.1
        np.save(root / f"{split}.npy", x)
    splits = built(root)
    train = values("train")
    torch.testing.assert_close(splits.train.x[:, :3].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(splits.train.x[:, :3].std(0, correction=0), torch.ones(3))
    expected = (values("test") - train.mean(0)) / train.std(0)
    torch.testing.assert_close(splits.test.x[:, :3], torch.from_numpy(expected[:, :3]), atol=1e-5, rtol=1e-5)
    assert not splits.test.x[:, 3].any()


@pytest.mark.parametrize(
    "names",
    [
        ("feats_train.npy", "feats_val.npy", "feats_test.npy"),
        ("tr.npy", "va.npy", "te.npy"),
        ("Training.npy", "dev-features.npy", "resnet50.Testing.npy"),
        ("train.safetensors", "x_valid.safetensors", "test.npy"),
    ],
)
def test_files_of_any_usual_name_are_read(root, names):
    expected = built(root).fingerprint()
    for split, name in zip(ROWS, names, strict=True):
        (root / f"{split}.npy").unlink()
        if name.endswith(".npy"):
            np.save(root / name, values(split))
        else:
            save_file({"anything": torch.from_numpy(values(split))}, root / name)
    np.save(root / "centres.npy", values("test"))
    splits = built(root)
    assert splits.fingerprint() == expected
    assert "Files left out, because their names contain no split: centres.npy." in splits.note


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float16", ".npy"), ("float64", ".npy"), ("float16", ".safetensors"), ("float64", ".safetensors"),
        ("bfloat16", ".safetensors"),
    ],
)  # fmt: skip
def test_other_precisions_are_converted_and_told(root, dtype, kind):
    tensor = torch.from_numpy(values("train", "float64")).to(getattr(torch, dtype))
    (root / "train.npy").unlink()
    if kind == ".npy":
        np.save(root / "train.npy", tensor.numpy())
    else:
        save_file({"x": tensor}, root / "train.safetensors")
    splits = built(root, scale="none")
    assert torch.equal(splits.train.x, tensor.float())
    assert f"Converted to float32: train{kind} from {dtype}." in splits.note


@pytest.mark.parametrize("layout", ["fortran", "other byte order", "version 2"])
def test_every_layout_of_an_npy_file_is_read(root, layout):
    expected = built(root).fingerprint()
    x = values("test")
    if layout == "version 2":
        with (root / "test.npy").open("wb") as file:
            np.lib.format.write_array(file, x, version=(2, 0))
    else:
        np.save(root / "test.npy", np.asfortranarray(x) if layout == "fortran" else x.astype(">f4"))
    assert built(root).fingerprint() == expected


def test_files_are_converted_once_in_blocks_and_mapped(root, monkeypatch):
    whole = built(root).fingerprint()
    monkeypatch.setattr(of_features, "BLOCK", 3 * D)  # three rows at a time
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(root / "other"))
    assert built(root).fingerprint() == whole
    monkeypatch.setattr(of_features.Rows, "blocks", lambda _: pytest.fail("they were converted before"))
    splits = built(root)
    assert splits.fingerprint() == whole
    assert splits.train.x_sha256


def test_files_that_have_changed_are_converted_again(root):
    """Also where neither size nor time says so."""
    before = built(root)
    x = values("train")
    x[0, 0] += 1
    stamp = (root / "train.npy").stat()
    np.save(root / "train.npy", x)
    os.utime(root / "train.npy", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = built(root)
    assert after.train.fingerprint() != before.train.fingerprint()
    assert after.test.fingerprint() != before.test.fingerprint()  # it is scaled by training


def test_without_a_validation_split_a_tenth_of_training_serves(root):
    (root / "valid.npy").unlink()
    write_table(root, lines=[f"{y},{s},{b}" for s in ("train", "test") for y, b in ROWS[s]])
    dataset = new(root)
    splits, again, other = (new(root, data_seed=seed, scale="none").build(Path()) for seed in (0, 0, 1))
    assert dataset.draws(Path())
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 26, "valid": 4, "test": 12}
    assert splits.fingerprint() == again.fingerprint() != other.fingerprint()
    together = torch.cat([splits.train.x, splits.valid.x]).sort(0).values
    assert torch.equal(together, torch.from_numpy(values("train")).sort(0).values)
    assert "No validation split was given" in splits.note


# ---- the table ------------------------------------------------------------------------------------------------------


def test_what_is_not_most_frequent_in_a_class_conflicts(root):
    splits = built(root)
    assert splits.train.conflicting[:, 0].nonzero()[:, 0].tolist() == [*range(12, 17)]
    assert splits.test.conflicting[:, 0].tolist() == [False, True, True, False] * 3


def test_the_table_may_say_who_conflicts(root):
    """As `embed` writes it: in CelebA only blond men do."""
    lines = [f"{y},{s},{b},{int(y == b == 1)}" for s, rows in ROWS.items() for y, b in rows]
    write_table(root, "y,split,place,conflict", lines)
    splits = built(root)
    assert all(torch.equal(part.conflicting[:, 0], (part.y == 1) & (part.bias[:, 0] == 1)) for part in
               splits.named().values())  # fmt: skip
    write_table(root, "y,split,place,conflict", [*lines[:-1], "1,test,1,yes"])
    assert "line 53: conflict must be 0 or 1. Got 'yes'." in refusal(root)


def test_several_biases_have_a_column_each(root):
    lines = [f"{y},{s},{b},{9 - y},{b}" for s, rows in ROWS.items() for y, b in rows]
    write_table(root, "y,split,place,size,conflict.place", lines)
    dataset = new(root)
    splits = dataset.build(Path())
    assert dataset.bias_names == ("place", "size")
    assert torch.equal(splits.test.bias, torch.stack([splits.test.bias[:, 0], 1 - splits.test.y], 1))
    assert torch.equal(splits.test.conflicting[:, 0], splits.test.bias[:, 0] == 1)
    assert not splits.test.conflicting[:, 1].any()
    assert new(root, bias="Size").bias_names == ("size",)
    assert new(root, bias="size/place").bias_names == ("size", "place")


def test_tables_of_others_are_read(root):
    """GroupDRO's Waterbirds, and dpe4subpop's: splits as numbers, columns that are no bias."""
    number = {"train": 0, "valid": 1, "test": 2}
    lines = [f"{k},a/{k}.jpg,{y},{number[s]},{b},p{k}" for s, rows in ROWS.items() for k, (y, b) in enumerate(rows)]
    expected = built(root).fingerprint()
    write_table(root, "img_id,img_filename,y,split,place,place_filename", lines)
    assert built(root).fingerprint() == expected
    assert "Columns not used: img_id, img_filename, place_filename." in built(root).note
    lines = [
        f"{k},a/{k}.jpg,{number[s]},{y},{b},{2 * y + b}" for s, rows in ROWS.items() for k, (y, b) in enumerate(rows)
    ]
    write_table(root, ",filename,split,y,a,g", lines)
    assert built(root).fingerprint() == expected
    assert new(root).bias_names == ("a",)


def test_numbers_are_in_their_order_and_names_in_that_of_their_letters(root):
    label = {0: "10", 1: "9"}
    write_table(root, lines=[f"{label[y]},{s},{b}" for s, rows in ROWS.items() for y, b in rows])
    assert new(root).class_names == ("9", "10")
    assert built(root).test.y.tolist() == [1, 1, 0, 0] * 3
    label = {0: "bird", 1: " apple"}
    write_table(root, lines=[f"{label[y]},{s},{b}" for s, rows in ROWS.items() for y, b in rows])
    assert new(root).class_names == ("apple", "bird")


@pytest.mark.parametrize("written", ["", "nan", "-1", "unknown", " NA "])
def test_a_bias_that_is_missing_is_unknown(root, written):
    lines = [f"{y},{s},{written if k == 0 else b}" for s, rows in ROWS.items() for k, (y, b) in enumerate(rows)]
    write_table(root, lines=lines)
    splits = built(root)
    assert [part.bias[0, 0].item() for part in splits.named().values()] == [-1, -1, -1]
    assert not splits.train.conflicting[0, 0]
    assert (f"Bias values counted as unknown: 3 {written!r}." in splits.note) == bool(written)


@pytest.mark.parametrize("known", [True, False])
def test_without_bias_labels_what_needs_them_declines(root, known):
    column = ",place" if known else ""
    write_table(
        root, f"y,split{column}", [f"{y},{s}{',-1' if known else ''}" for s, rows in ROWS.items() for y, _ in rows]
    )
    splits = built(root)
    assert (splits.train.bias == -1).all()
    assert not splits.train.conflicting.any()
    grid = expand(["vanilla", "groupdro"], [f"features:root={root},title=t"], seeds=1)
    assert [cell.method for cell in grid.cells] == ["vanilla"]
    assert "groupdro needs the bias of each sample, and features does not have it" in grid.skips[0].reason


TABLES = {
    "no column": ("y,place\n0,1\n", "lacks the columns split. Needed: y, split, and a column for each bias"),
    "empty": ("", "lacks the columns y, split"),
    "unknown split": ("y,split,a\n0,train2,1\n", "line 2: split must be train, valid, test, or 0, 1, 2. Got 'train2'"),
    "no split of that number": ("y,split,a\n0,3,1\n", "line 2: split must be"),
    "no label": ("y,split,a\n0,0,1\nnan,0,1\n", "line 3: 'nan' as a label says that it is missing, and every row"),
    "short line": ("y,split,a\n0,0\n", "line 2: its number of values differs from the number of columns"),
    "long line": ("y,split,a\n0,0,1,2\n", "line 2: its number of values differs from the number of columns"),
    "two columns": ("y,split,a, A\n0,0,1,2\n", "has several columns a"),
    "two labels": ("y,split,a,y\n0,0,1,2\n", "has several columns y"),
    "no train": ("y,split,a\n0,2,1\n", "has no line whose split is train"),
    "no test": ("y,split,a\n0,0,1\n", "has no line whose split is test"),
    "no table": ("\0", "cannot be read as a table|lacks the columns"),
}


@pytest.mark.parametrize("mistake", TABLES)
def test_mistakes_in_the_table_are_told(root, mistake):
    text, message = TABLES[mistake]
    (root / "metadata.csv").write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=message):
        built(root)


def test_a_class_that_training_lacks_is_told(root):
    lines = [f"{y},{s},{b}" for s, rows in ROWS.items() for y, b in rows]
    write_table(root, lines=[*lines[:-1], "2,test,1"])
    assert "2 occurs in test, but not in train, so it cannot be learnt" in refusal(root)


def test_a_column_that_names_samples_is_no_bias(root, monkeypatch):
    monkeypatch.setattr(of_features, "MOST_VALUES", 20)
    lines = [f"{y},{s},{b},{k}" for s, rows in ROWS.items() for k, (y, b) in enumerate(rows)]
    write_table(root, "y,split,place,face", lines)
    assert "The column face of" in refusal(root)
    assert "has 30 different values, too many for a bias (at most 20)" in refusal(root)
    assert new(root, bias="place").bias_names == ("place",)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("target,split,place", {"y": "target"}), ("y,part,place", {"split": "part"}),
        ("Class,Fold,place", {"y": "class", "split": "FOLD"}), ("label,set,place", {"y": "label", "split": "set"}),
        ("label,set,place", {"y": "label", "split": "set", "bias": "place"}),
    ],
)  # fmt: skip
def test_columns_of_other_names_are_named(root, head, options):
    expected = built(root).fingerprint()
    write_table(root, head)
    assert built(root, **options).fingerprint() == expected
    assert new(root, **options).bias_names == ("place",)


@pytest.mark.parametrize(
    ("head", "options", "said"),
    [
        ("target,part,place", {}, "Needed: y, split, and a column for each bias. Columns there: target, part, place. "
         "To say which is which: features:table=metadata.csv,y=target,split=part"),
        ("label,split,place", {}, "features:table=metadata.csv,y=label"),
        ("y,split,place", {"y": "Targt"}, "lacks the columns targt (given as y=)"),
        ("y,split,place", {"y": "split"}, "The column split of"),
        ("target,split,place", {"y": "target", "bias": "target"}, "(but target and split)"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_told_with_those_that_are(root, head, options, said):
    write_table(root, head)
    assert said in refusal(root, **options)


def test_usual_names_of_columns_are_no_part_of_the_identity(root):
    usual = new(root)
    assert list(usual.key()) == ["data_seed", "title", "table", "bias", "scale", "rho"]
    assert usual.replace(y="target").key() == usual.key() | {"y": "target"}


@pytest.mark.parametrize("named", ["colour", "y", "place/split", "place/place"])
def test_columns_that_are_no_bias_cannot_be_named(root, named):
    assert f"bias={named} must name columns of" in refusal(root, bias=named)


# ---- damaged files --------------------------------------------------------------------------------------------------


class Loud:
    """What would be seen if it were unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def _pickled(path):
    path.write_bytes(pickle.dumps(Loud()))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


FILES = {
    "absent": (Path.unlink, "has no features of test: a file test.npy or feats_test.npy"),
    "empty": (lambda path: path.write_bytes(b""), "test.npy is empty"),
    "cut off": (_cut, "test.npy is cut off: it has [0-9,]+ bytes of [0-9,]+"),
    "cut off in its head": (lambda path: path.write_bytes(path.read_bytes()[:20]), "test.npy cannot be read"),
    "text": (lambda path: path.write_text("a,b\n1,2\n", encoding="utf-8"), "test.npy cannot be read"),
    "pickle": (_pickled, "test.npy cannot be read"),
    "objects": (lambda path: np.save(path, np.array([[Loud()] * D] * 12, dtype=object), allow_pickle=True),
                "test.npy holds Python objects"),
    "whole numbers": (lambda path: np.save(path, values("test").astype("int64")), "holds int64, and features are"),
    "bytes": (lambda path: np.save(path, values("test").astype("uint8")), "holds uint8, and features are"),
    "complex": (lambda path: np.save(path, values("test").astype("complex64")), "holds complex64"),
    "words": (lambda path: np.save(path, np.full((12, D), "a")), "holds str"),
    "one dimension": (lambda path: np.save(path, values("test")[:, 0]), r"must hold an array \(N, D\)"),
    "four dimensions": (lambda path: np.save(path, values("test")[:, :, None, None]), r"Got \(12, 5, 1, 1\): pool"),
    "no row": (lambda path: np.save(path, values("test")[:0]), r"is empty: it holds an array \(0, 5\)"),
    "no feature": (lambda path: np.save(path, values("test")[:, :0]), r"is empty: it holds an array \(12, 0\)"),
    "too few rows": (lambda path: np.save(path, values("test")[:-1]), "has 11 rows, and metadata.csv 12 lines of test"),
    "too many rows": (lambda path: np.save(path, values("train")), "has 30 rows, and metadata.csv 12 lines of test"),
    "another width": (lambda path: np.save(path, values("test", width=D + 1)),
                      "different numbers of features a row: train.npy 5, valid.npy 5, test.npy 6"),
    "two of one split": (lambda path: np.save(path.with_name("eval.npy"), values("test")), "which both mean test"),
    "two splits in a name": (lambda path: path.rename(path.with_name("train_test.npy")), "contains several splits"),
}  # fmt: skip


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files_are_told_by_name(root, damage):
    spoil, message = FILES[damage]
    spoil(root / "test.npy")
    with pytest.raises(BenchmarkError, match=message) as caught:
        built(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ROWS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_are_told_by_place(root, split, value):
    """Also those of double precision that are too large for single."""
    x = values(split, "float64")
    x[[3, 7], 4] = value
    np.save(root / f"{split}.npy", x)
    said = refusal(root)
    assert f"{split}.npy: 2 values are NaN, infinite or too large for float32, the first in row 4, column 5" in said


DAMAGED_TENSORS = {
    "two tensors": (lambda path: save_file({"x": torch.zeros(12, D), "y": torch.zeros(12)}, path), "holds 2 tensors"),
    "no tensor": (lambda path: save_file({}, path), "holds 0 tensors"),
    "whole numbers": (lambda path: save_file({"x": torch.zeros(12, D, dtype=torch.int32)}, path), "holds int32"),
    "cut off": (lambda path: (save_file({"x": torch.zeros(12, D)}, path), _cut(path)), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "test.safetensors is empty"),
    "text": (lambda path: path.write_text("nothing of the kind", encoding="utf-8"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGED_TENSORS)
def test_damaged_safetensors_are_told_by_name(root, damage):
    (root / "test.npy").unlink()
    spoil, message = DAMAGED_TENSORS[damage]
    spoil(root / "test.safetensors")
    with pytest.raises(BenchmarkError, match=message):
        built(root)


def test_the_folder_and_its_table_are_asked_for_before_anything_is_read(tmp_path, root, capsys):
    (needed,) = new(tmp_path / "absent").needed_files(Path())
    assert needed.path == tmp_path / "absent" / "metadata.csv"
    assert new(root).needed_files(Path()) == []
    with pytest.raises(BenchmarkError, match="features needs a title"):
        new(root, title="")
    spec = f"features:root={tmp_path / 'absent'},title=t"
    assert main(["run", "--methods", "vanilla", "--datasets", spec, "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert "debiasbench embed makes one" in shown
    assert str(tmp_path / "absent") in shown


# ---- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [*DATASET_CHECKS, *DATASET_BUILD_CHECKS], ids=lambda check: check.__name__)
def test_it_passes_the_contract_suite(root, check):
    dataset = new(root)
    given = (dataset, dataset.build(Path()), Path())
    check(*(given if check in DATASET_BUILD_CHECKS else given[:2]))


def changed(root, **columns):
    splits = built(root)
    parts = {name: Samples(part.x, part.y, part.bias, part.conflict) for name, part in splits.named().items()}
    part = parts["test"]
    parts["test"] = Samples(columns["x"](part.x.clone()), part.y, part.bias, part.conflict)
    return Splits.of(parts)


def _with_nan(x):
    x[2, 1] = float("nan")
    return x


def _with_infinity(x):
    x[2, 1] = -float("inf")
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torch.Tensor.double, "x of test must be float32. Got float64"),
        (torch.Tensor.int, "x of test must be float32. Got int32"),
        (lambda x: x[:, :, None], r"x of test must be \(N, D\), one row per sample"),
        (lambda x: x[:, :-1], "test has 4 features per sample, and train has 5"),
        (_with_nan, "x of test holds NaN or infinite values"),
        (_with_infinity, "x of test holds NaN or infinite values"),
    ],
)
def test_the_contract_refuses_features_that_no_network_takes(root, spoil, message):
    """Of any dataset of features, not of this one alone."""
    splits = changed(root, x=spoil)
    with pytest.raises(BenchmarkError, match=message):
        check_splits(new(root), splits)


def test_a_kind_of_input_that_is_not_known_is_refused(root, monkeypatch):
    monkeypatch.setattr(datasets.get("features")[0], "input", "sounds")
    with pytest.raises(BenchmarkError, match=r"input must be one of images, text, features\. Got 'sounds'"):
        check_splits(new(root), built(root))


@pytest.mark.parametrize("net", ["resnet18", "simconv1", "transformer", "mlp16"])
def test_networks_that_take_no_features_are_refused(root, net, capsys):
    spec = f"features:root={root},title=t,net={net}"
    assert main(["run", "--methods", "vanilla", "--datasets", spec, "--dry-run"]) == 2
    assert f"The net {net} does not take features. Allowed: mlp, linear." in capsys.readouterr().err


def run_on(spec, names, tmp_path):
    from debiasbench.api import run

    options = {"seeds": 1, "workers": 0, "device": "cpu", "results_dir": tmp_path / "results"}
    return run(["dfr:balance=weights" if name == "dfr" else name for name in names], [spec], **options)


def test_every_method_runs_on_features_or_declines_by_name(root, tmp_path):
    """Those that augment or mix pixels say that they are made for images."""
    spec = f"features:root={root},title=t,epochs=2,rho=0.2"
    names = [name for name in methods.classes() if name != "george"]  # which needs more than a few samples
    images_alone = {name for name in names if methods.get(name)[0].inputs == ("images",)}
    assert {"disen", "randaugment", "selecmix", "selecmix-lff"} == images_alone
    table = run_on(spec, names, tmp_path)
    assert set(table["method.name"]) == set(names) - images_alone
    assert {skip.reason for skip in expand(names, [spec], seeds=1).skips} == {
        f"{name} is made for images only, and features is features" for name in images_alone
    }


def test_features_are_learnt_from(root, tmp_path):
    """By each of the networks that take them."""
    for net in ("linear", "mlp"):
        table = run_on(f"features:root={root},title=t,epochs=60,learning_rate=0.05,net={net}", ["vanilla"], tmp_path)
        assert table[table.split == "test"].acc_avg.iloc[-1] > 0.6


# ---- how they were made ---------------------------------------------------------------------------------------------


def embedding_of(root, **changes):
    """What `debiasbench embed` would write beside the files of this folder."""
    made = {
        "encoder": "torchvision:resnet18", "weights_sha256": "ab" * 32, "code_sha256": "", "preprocessing": {},
        "dataset": "bar", "fingerprint": "cd" * 32, "official": False, "note": "A part.",
        "class_names": ["bird", "dog"], "bias_names": ["place"], "conflict_ratio": 0.25,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*.npy")},
    }  # fmt: skip
    (root / "embedding.json").write_text(json.dumps(made | changes), encoding="utf-8")


def test_what_made_the_features_is_in_their_note(root):
    assert built(root).official
    embedding_of(root)
    dataset = new(root)
    splits = dataset.build(Path())
    assert not splits.official
    assert splits.note.endswith(
        "Made by torchvision:resnet18 (weights abababababababab) from bar (data cdcdcdcdcdcdcdcd). A part."
    )
    assert (dataset.class_names, dataset.conflict_ratio) == (("bird", "dog"), 0.25)
    assert new(root, rho=0.5).conflict_ratio == 0.5
    embedding_of(root, official=True, class_names=["bird"], conflict_ratio=None)
    assert new(root).class_names == ("bird", "1")
    assert built(root).official


def test_files_that_were_exchanged_are_refused(root):
    embedding_of(root)
    np.save(root / "test.npy", values("test") + 1)
    assert "test.npy is not the file that embedding.json beside it describes" in refusal(root)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"encoder": 3}', "\udc80"])
def test_a_damaged_embedding_json_is_told(root, text):
    (root / "embedding.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "embedding.json cannot be read" in refusal(root)
