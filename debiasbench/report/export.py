"""The long table of results as one file for other programs: Parquet, CSV or JSON, chosen by the file's ending."""

from __future__ import annotations

import codecs
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.files import atomic_file, check_writable
from debiasbench.parameters import write_value
from debiasbench.plain import encodable, to_plain
from debiasbench.report.tables import frame_csv

ENDINGS = (".parquet", ".csv", ".json")


def check_export(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is read.

    Raises:
        BenchmarkError: the ending is not one of `ENDINGS`, it is a folder, its folder cannot be written, or a package
            is missing.
    """
    if path.suffix.lower() not in ENDINGS:
        raise BenchmarkError(
            f"--export chooses the format by the file's ending: {', '.join(ENDINGS)}. Got '{path}': name it, for "
            f"example, {path.name or 'results'}.parquet."
        )
    if path.is_dir():
        raise BenchmarkError(f"--export: '{path}' is a folder. Name a file in it: {path / f'results{path.suffix}'}.")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise BenchmarkError(
            f"--export {path.name} needs the package pyarrow, which is not installed: pip install "
            "'debiasbench[parquet]'. Or name the file .csv or .json, which need nothing."
        )
    check_writable(path.parent, "--export")


def write_export(path: Path, table: pd.DataFrame) -> Path:
    """Write a table of `results.to_frame` to a file that `check_export` has accepted."""
    with atomic_file(path) as file:
        match path.suffix.lower():
            case ".parquet":
                pd.DataFrame({name: _of_one_type(table[name]) for name in table}).to_parquet(
                    file, engine="pyarrow", index=False
                )
            case ".json":
                for part in _json(table):
                    file.write(part.encode())
            case _:
                file.write(codecs.BOM_UTF8)  # without it Excel does not recognise UTF-8
                for part in frame_csv(table):
                    file.write(encodable(part).encode())
    return path


def _of_one_type(column: pd.Series) -> pd.Series:
    """The column with values of one type, as Parquet requires; mixed types become text, as on the command line."""
    if column.dtype != object:
        return column
    there = column[column.notna()]
    kinds = set(map(type, there))
    kind: Any = {frozenset({bool}): "boolean", frozenset({int}): "Int64"}.get(frozenset(kinds))
    if kind is None and kinds and kinds <= {int, float}:
        kind = "float64"
    if kind is not None:
        return column.astype(kind)
    text = [encodable(one if isinstance(one, str) else write_value(one)) for one in there]
    return pd.Series(text, index=there.index, dtype=object).reindex(column.index)


def _json(table: pd.DataFrame) -> Iterator[str]:
    """A list of objects, one per row and on its own line, without the fields that have no value."""
    yield "["
    for index, row in enumerate(table.to_dict("records")):
        known = {name: value for name, value in row.items() if value is not None and value == value}
        yield ("," if index else "") + "\n" + json.dumps(to_plain(known), ensure_ascii=False)
    yield "\n]\n"
