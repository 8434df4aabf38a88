"""Records: what a cell produced, one JSON file each, with per-sample arrays in a safetensors file beside it.

A record has two parts. `result` is what must come out equal again: metrics by epoch, selection, digests. What may
differ from run to run (seconds, versions, device) is in `provenance`. Files are written whole or not at all.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from debiasbench.about import PROTOCOL_VERSION
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically

SCHEMA = 1


def record_path(results_dir: Path, cell: Cell) -> Path:
    """Where a cell's record goes: records/<dataset label>/<method label>/s<seed>-<hash>.json."""
    folder = results_dir / "records" / _file_name(cell.dataset_label) / _file_name(cell.method_label)
    return folder / f"s{cell.seed}-{cell.hash[:8]}.json"


def find_record(results_dir: Path, cell: Cell) -> Path | None:
    """The record of an equal cell, also one written before a parameter existed that has its default here.

    An exact hash is looked for first. Else a record of the same labels and seed counts, if all values that it knows
    are equal and those that it does not know have their class defaults: so a new option does not make everybody's
    results stale.
    """
    exact = record_path(results_dir, cell)
    if exact.is_file():
        return exact
    for path in sorted(exact.parent.glob(f"s{cell.seed}-*.json")):
        try:
            record = read_record(path)
            known = Cell.from_json(record["cell"])
        except (BenchmarkError, TypeError):
            continue
        if record["provenance"]["versions"].get("protocol") == PROTOCOL_VERSION and _equal_but_for_new_defaults(
            known, cell
        ):
            return path
    return None


def _equal_but_for_new_defaults(known: Cell, cell: Cell) -> bool:
    from debiasbench.plugins import defaults
    from debiasbench.recipe import Recipe

    old, new = json.loads(json.dumps(known.identity())), json.loads(json.dumps(cell.identity()))
    classes = {
        "method_parameters": type(cell.build_method()),
        "dataset_parameters": type(cell.build_dataset()),
        "recipe": Recipe,
    }
    for part, cls in classes.items():
        values = defaults(cls)
        added = {key: values[key] for key in new[part].keys() - old[part].keys() if values[key] is not MISSING}
        old[part] = {**json.loads(json.dumps(added)), **old[part]}
    return old == new


def _file_name(text: str) -> str:
    """A label as a file name on every system; the hash in the record's name tells apart what this merges."""
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "-", text.replace(":", "+", 1))[:120]


def write_record(path: Path, record: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
    """Write a record, and before it its arrays (name -> tensor)."""
    if arrays:
        from safetensors.torch import save

        write_atomically(arrays_path(path), save(arrays))
    write_atomically(path, (dump(_without_nan(record)) + "\n").encode())


def failed_path(path: Path) -> Path:
    """Where a failed run is recorded whose cell has a finished record: that one is never replaced by a failure."""
    return path.with_name(path.name + ".failed") if _is_done(path) else path


def _is_done(path: Path) -> bool:
    try:
        return bool(read_record(path)["status"] == "done")
    except BenchmarkError:
        return False


def arrays_path(record: Path) -> Path:
    """The file of per-sample arrays that belongs to a record."""
    return record.with_suffix(".safetensors")


def read_scores(record: Path) -> Any:
    """(scores (N,), conflicting bool (N,)) of a record; None if its method kept none, or such with another meaning.

    Scores that can be shown as shares of the largest are at least 0.
    """
    path = arrays_path(record)
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    arrays = load_file(path)
    if "score" not in arrays or "train_conflict" not in arrays:
        return None
    score = arrays["score"].astype(float)
    return (score, arrays["train_conflict"].any(axis=1)) if (score >= 0).all() else None


def read_record(path: Path) -> dict[str, Any]:
    """Read one record; numbers that were nan are nan again.

    Raises:
        BenchmarkError: the file is cut off, no record, or of a later schema.
    """
    try:
        record = json.loads(path.read_text())
        schema = int(record["schema"])
        record["status"], record["hash"], record["cell"]["method_label"], record["cell"]["dataset_label"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} cannot be read as a record ({error}); delete it to have its cell run again."
        ) from None
    if schema > SCHEMA:
        raise BenchmarkError(f"{path} has schema {schema}; this version of debiasbench reads up to {SCHEMA}.")
    result = record.get("result", {})
    names = ("epochs", "phases", "identification", "groups", "tune")
    return record | ({"result": {k: _with_nan(v) if k in names else v for k, v in result.items()}} if result else {})


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records below a folder, and complaints about files that cannot be read. Each record gets its `path`."""
    records, complaints = [], []
    for path in _record_files(folder):
        try:
            records.append({**read_record(path), "path": path})
        except BenchmarkError as error:
            complaints.append(str(error))
    return records, complaints


def _record_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("s*-*.json")) if not path.name.startswith("."))


def check_writable(results_dir: Path) -> None:
    """Refuse a results folder that cannot be written, before anything trains."""
    try:
        folder = results_dir / "records"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchmarkError(
            f"The results folder {results_dir} cannot be written ({error.strerror}): give another with --results-dir."
        ) from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_METRIC = re.compile(r"acc_|loss$|auroc|precision|recall|conflict_mass|spearman|^acc$")


def _with_nan(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part, key) for part in value]
    return float("nan") if value is None and _METRIC.search(key) else value


def dump(value: Any, indent: str = "", width: int = 118) -> str:
    """JSON for people: what fits on a line is on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= width or not isinstance(value, dict | list):
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {dump(part, deeper, width)}" for key, part in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + "\n" + indent + "}"
    parts = [dump(part, deeper, width) for part in value]
    if all(isinstance(part, int | float | None) for part in value):  # long lists of numbers: fill the lines
        lines, line = [], ""
        for part in parts:
            if line and len(deeper) + len(line) + len(part) + 2 > width:
                lines.append(line)
                line = ""
            line += (", " if line else "") + part
        return "[\n" + ",\n".join(deeper + line for line in [*lines, line]) + "\n" + indent + "]"
    return "[\n" + ",\n".join(deeper + part for part in parts) + "\n" + indent + "]"
