"""The long table of results as a file for other programs."""

import importlib.util

import pandas as pd
import pytest
from made_records import made_record, stored

from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report import make as report
from debiasbench.report.export import write_export
from debiasbench.report.results import load_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods on two datasets, two seeds."""
    made = tmp_path_factory.mktemp("results")
    for dataset in ("cmnist5k", "cmnist:rho=0.01"):
        for cell in expand(["vanilla", "pgd:norm=l1"], [dataset], seeds=2).cells:
            test = {"acc_avg": 0.5, "acc_unbiased": 0.4 + 0.01 * cell.seed + 0.1 * (cell.method == "pgd")}
            rules = {"last": 0, "val_loss": 0, "val_acc": 0, "group_val": 0, "test_oracle": 0}
            stored(made, made_record(cell, [EpochFacts(1, {"loss": 0.1, "acc_avg": 0.9}, test)], rules))
    return made


@pytest.mark.parametrize("name", ["all.csv", "all.JSON", "deep/all.parquet"])
def test_the_long_table_is_exported(folder, tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: [])
    path = tmp_path / name
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    assert main(["report", str(folder), "--export", str(path)]) == 0
    assert f"export: {path}" in " ".join(capsys.readouterr().out.split())
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}[path.suffix.lower()]
    found, expected = read(path), load_results(folder)
    assert len(found) == len(expected)
    key = ["dataset", "method", "seed", "split", "select"]
    joined_tables = found.merge(expected, on=key, suffixes=("", " expected"))
    assert len(joined_tables) == len(expected)
    for column in ("acc_unbiased", "method.alpha", "dataset.rho", "recipe.learning_rate"):
        pd.testing.assert_series_equal(
            joined_tables[column].astype(float), joined_tables[f"{column} expected"].astype(float), check_names=False
        )


def test_columns_of_several_types_become_text_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({
        "mixed": pd.Series([1, "a", None, (0.2, 0.4), True], dtype=object),
        "flags": pd.Series([True, None, False, None, True], dtype=object),
        "whole": pd.Series([1, 2, None, 3, 4], dtype=object),
        "numbers": pd.Series([1, 2.5, None, 3, 4], dtype=object),
        "text": pd.Series(["漢", "\udc80", None, "", "x"], dtype=object),
        "none": pd.Series([None] * 5, dtype=object),
    })  # fmt: skip
    found = pd.read_parquet(write_export(tmp_path / "x.parquet", table))
    assert found.mixed.dropna().tolist() == ["1", "a", "0.2/0.4", "true"]
    assert found["flags"].dropna().tolist() == [True, False, True]
    assert found.whole.dropna().tolist() == [1, 2, 3, 4]
    assert found.numbers.dropna().tolist() == [1, 2.5, 3, 4]
    assert found.text.dropna().tolist() == ["漢", "\\udc80", "", "x"]
    assert found.none.isna().all()


@pytest.mark.parametrize(
    ("name", "told"), [("all.xlsx", ".parquet, .csv, .json"), ("all", "all.parquet"), ("", "name it")]
)
def test_an_export_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, name, told):
    with pytest.raises(BenchmarkError, match="--export") as refused:
        report.make(tmp_path / "nowhere", export=tmp_path / name)
    assert told in str(refused.value)
    (tmp_path / "is.csv").mkdir()
    with pytest.raises(BenchmarkError, match="is a folder"):
        report.make(tmp_path / "nowhere", export=tmp_path / "is.csv")


@pytest.mark.parametrize("name", ["file/x.csv", "file/far/x.json", "link/x.csv", "link/far/x.parquet"])
def test_an_export_into_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(BenchmarkError, match=r"cannot be written .* another folder with --export"):
        report.make(tmp_path / "nowhere", export=tmp_path / name)


def test_parquet_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else found(name, *rest)
    )
    with pytest.raises(BenchmarkError, match=r"pip install 'debiasbench\[parquet\]'"):
        report.make(tmp_path / "nowhere", export=tmp_path / "all.parquet")
