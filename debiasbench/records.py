"""Records: what a cell produced, one JSON file each, with per-sample arrays in a safetensors file beside it.

A record has two parts. `result` is what must come out equal again: metrics by epoch, selection, digests. What may
differ from run to run (seconds, versions, device) is in `provenance`. Files are written whole or not at all, and read
through one door that checks every field: what comes out of it needs no further look.

The records of a complete grid may be kept in one .zip (`pack`), which is read as the folder that it was made of: a path
may lead into it (`all.zip/cmnist5k/pgd/s0-1a2b3c4d.json`).
"""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from debiasbench import files
from debiasbench.about import PROTOCOL_VERSION
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import file_name, write_atomically
from debiasbench.plain import from_plain, to_plain

SCHEMA = 2
MOST_BYTES = 2**28  # of a record: what is larger is none

Metrics = dict[str, float]  # by name, finite; a metric that has no value (an empty group's accuracy) has no key


@dataclass(frozen=True)
class SplitFacts:
    """A split's size, how many of its samples conflict (by bias), and how many are of each class."""

    n: int
    x_sha256: str = ""  # of cached images; else they are in the fingerprint alone
    n_conflict: dict[str, int] = field(default_factory=dict)
    n_by_class: tuple[int, ...] | None = None  # None: not told (schema 1)


@dataclass(frozen=True)
class DataFacts:
    """Which data a cell was run on; `official`: whether they are as published, `note`: what is not."""

    fingerprint: str
    official: bool
    note: str = ""
    splits: dict[str, SplitFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class StageFacts:
    """One training stage: its call number, epochs, sizes of its networks, mean loss a sample by epoch.

    `end`: network -> split -> metrics at its end, of networks that no predictor speaks for.
    """

    call: int
    epochs: int
    evaluated: bool
    parameters: dict[str, int] = field(default_factory=dict)
    end: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    train_loss: tuple[float, ...] = ()


@dataclass(frozen=True)
class EpochFacts:
    """An evaluated epoch: metrics on validation and test, and how many of each class were predicted rightly."""

    epoch: int
    valid: Metrics
    test: Metrics
    learning_rate: float | None = None
    train_loss: float | None = None
    correct_by_class: dict[str, tuple[int, ...]] | None = None  # "valid", "test"; None: not told (schema 1)


@dataclass(frozen=True)
class GroupFacts:
    """Size and accuracy of a group: of (y, bias), or of a name where evaluation groups overlap."""

    n: int
    acc: float | None = None  # None: it is empty
    y: int | None = None
    bias: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Result:
    """What must come out equal again, on the same device type and number of threads.

    Attributes:
        selection: rule -> index into `epochs`, or None where it cannot choose.
        identification: logged column -> how well it finds the conflicting samples.
        logged: single numbers that the method logged.
        arrays: name -> digest of what is in the file beside the record.
        weights: how to build the predictor from the saved weights; None if they were not saved.
    """

    data: DataFacts
    selection: dict[str, int | None]
    epochs: tuple[EpochFacts, ...]
    stages: tuple[StageFacts, ...] = ()
    identification: dict[str, Metrics] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    groups: dict[str, tuple[GroupFacts, ...]] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    pretrained_sha256: str = ""
    tune: Metrics | None = None
    weights: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        chosen = [index for index in self.selection.values() if index is not None]
        if not self.epochs or any(not 0 <= index < len(self.epochs) for index in chosen):
            raise ValueError(f"result.selection points outside of the {len(self.epochs)} evaluated epochs")

    def selected(self, rule: str = "last") -> EpochFacts | None:
        """The epoch that a rule chose; None where it could not, or is not known."""
        index = self.selection.get(rule)
        return None if index is None else self.epochs[index]

    def accuracy_by_class(self, epoch: EpochFacts, split: str) -> list[float | None] | None:
        """Accuracies in [0, 1] of the classes of "valid" or "test" (None: no sample); None where it was not kept."""
        n_by_class = self.data.splits[split].n_by_class if split in self.data.splits else None
        correct = (epoch.correct_by_class or {}).get(split)
        if n_by_class is None or correct is None or len(correct) != len(n_by_class):
            return None
        return [right / n if n else None for right, n in zip(correct, n_by_class, strict=True)]


@dataclass(frozen=True)
class Seconds:
    """How long a cell took, in seconds: in all, and of that for data, evaluation, each stage, each pass in between.

    `total` is without the time that it waited for a stage of another cell. `calls`: "each 3" -> seconds.
    """

    total: float = 0.0
    data: float = 0.0
    evaluation: float = 0.0
    stages: tuple[float, ...] = ()  # where a stage was reused, of the training that took place
    calls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where, when, with what and how long.

    Attributes:
        device: its name. device_kind: "cpu" or "cuda". precision: that networks really had ("fp32", "bf16").
        code: digests of the source of the method and of the dataset, with the local modules that they import.
        calls: the numbered calls of the method, with what they depend on.
    """

    finished: str
    seconds: Seconds
    versions: dict[str, str | int]
    device: str = ""
    threads: int = 1
    peak_memory_mib: int = 0
    commit: str = ""
    device_kind: str | None = None  # these three are None where they were not told (schema 1)
    precision: str | None = None
    code: dict[str, str] | None = None
    calls: tuple[dict[str, Any], ...] = ()

    @property
    def protocol(self) -> int | None:
        """The protocol's version."""
        version = self.versions.get("protocol")
        return version if isinstance(version, int) else None


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Record:
    """A cell and what became of it: a result, or a failure."""

    hash: str
    cell: Cell
    provenance: Provenance
    result: Result | None = None
    failure: Failure | None = None
    path: Path | None = field(default=None, compare=False, metadata={"written": False})  # where it was read from

    def __post_init__(self) -> None:
        if (self.result is None) == (self.failure is None):
            raise ValueError("a record has either a result or a failure")

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return self.result is not None

    @property
    def status(self) -> str:
        """Done or failed, as a word."""
        return "done" if self.done else "failed"

    @property
    def device_kind(self) -> str:
        """What it was run on: "cpu" or "cuda"; "" where nothing tells. Of schema 1 the device's name tells."""
        told, name = self.provenance.device_kind, self.provenance.device
        return told if told is not None else "" if not name else "cpu" if name.startswith("cpu") else "cuda"

    @property
    def precision(self) -> str:
        """What its networks really had: "fp32" or "bf16"; "" where nothing tells."""
        if self.provenance.precision is not None:
            return self.provenance.precision
        from debiasbench.recipe import Recipe

        asked = self.cell.recipe.get("precision", "fp32")  # a record of before there was a choice lacks it
        if asked != "auto":
            return str(asked)
        return Recipe(precision="auto").effective_precision(self.device_kind) if self.device_kind else ""

    def to_json(self) -> dict[str, Any]:
        """As plain values, the inverse of `record_from_json`."""
        plain: dict[str, Any] = to_plain(self)
        return {"schema": SCHEMA, "status": self.status} | plain | {"cell": self.cell.to_record()}


def record_from_json(values: Any) -> Record:
    """A record from its plain values, of this schema or an earlier one.

    Raises:
        ValueError: it is none, or of a later schema; the message says which part is wrong.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no record")
    schema = from_plain(int, values.get("schema"), "schema")
    if schema > SCHEMA:
        raise ValueError(f"it has schema {schema}, and this version of debiasbench reads up to {SCHEMA}")
    if schema < 2:
        values = _from_schema_1(values)
    status = values.get("status")
    if status not in ("done", "failed"):
        raise ValueError(f"status must be done or failed, and is {str(status)[:40]!r}")
    record: Record = from_plain(Record, values, "record")
    if record.status != status:
        raise ValueError(f"its status is {status}, and what it holds says otherwise")
    return record


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """The fields under the names that they have now; nan was null, and is no key now."""

    def renamed(part: Any, names: dict[str, str]) -> Any:
        return {names.get(key, key): value for key, value in part.items()} if isinstance(part, dict) else part

    def present(metrics: Any) -> Any:
        return {key: one for key, one in metrics.items() if one is not None} if isinstance(metrics, dict) else metrics

    def each(parts: Any, change: Any) -> Any:
        if isinstance(parts, dict):
            return {key: change(part) for key, part in parts.items()}
        return [change(part) for part in parts] if isinstance(parts, list) else parts

    def of_splits(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return part | {split: present(part[split]) for split in ("valid", "test") if split in part}

    values = renamed(values, {"error": "failure"})
    values["cell"] = renamed(values.get("cell"), {"method_label": "method_title", "dataset_label": "dataset_title"})
    provenance = values.get("provenance")
    if isinstance(provenance, dict) and isinstance(provenance.get("seconds"), dict):
        seconds = renamed(provenance["seconds"], {"phases": "stages"})
        calls = {key: one for key, one in seconds.items() if key.partition(" ")[0] in ("each", "once")}
        values["provenance"] = {"finished": ""} | provenance | {"seconds": seconds | {"calls": calls}}
    result = values.get("result")
    if isinstance(result, dict):
        result = renamed(result, {"phases": "stages", "numbers": "logged"})
        changes = {
            "epochs": of_splits,
            "identification": present,
            "stages": lambda stage: stage | {"end": each(stage.get("end"), of_splits)} if _has(stage, "end") else stage,
            "groups": lambda groups: each(groups, present),
        }
        for key, change in changes.items():
            if key in result:
                result[key] = each(result[key], change)
        for key in ("tune", "logged"):
            if key in result:
                result[key] = present(result[key])
        values["result"] = result
    return values


def _has(part: Any, key: str) -> bool:
    return isinstance(part, dict) and key in part


# ---- where records are ----------------------------------------------------------------------------------------------


def record_path(results_dir: Path, cell: Cell) -> Path:
    """Where a cell's record goes: records/<dataset title>/<method title>/s<seed>-<hash>.json."""
    return results_dir / "records" / _place_of(cell)


def _place_of(cell: Cell) -> Path:
    folder = Path(file_name(cell.dataset_title)) / file_name(cell.method_title)
    return folder / f"s{cell.seed}-{cell.hash[:8]}.json"


def find_record(results_dir: Path, cell: Cell) -> Path | None:
    """The record of an equal cell, also one written before a parameter existed that has its default here.

    An exact hash is looked for first. Else a record of the same titles and seed counts, if all values that it knows
    are equal and those that it does not know have their class defaults: so a new option does not make everybody's
    results stale. Records in archives of the folder count as those beside them.
    """
    place = _place_of(cell)
    roots = [results_dir / "records", *_archives(results_dir / "records")]
    for root in roots:
        if _is_there(root / place):
            return root / place
    for root in roots:
        for path in _siblings(root / place.parent, f"s{cell.seed}-"):
            try:
                record = read_record(path)
                if record.provenance.protocol == PROTOCOL_VERSION and _equal_but_for_new_defaults(record.cell, cell):
                    return path
            except BenchmarkError:
                continue
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


def write_record(path: Path, record: Record, arrays: dict[str, Any] | None = None) -> None:
    """Write a record, and before it its arrays (name -> tensor)."""
    if arrays:
        from safetensors.torch import save

        write_atomically(arrays_path(path), save(arrays))
    write_atomically(path, (dump(record.to_json()) + "\n").encode())


def failed_path(path: Path) -> Path:
    """Where a failed run is recorded whose cell has a finished record: that one is never replaced by a failure."""
    return path.with_name(path.name + ".failed") if _is_done(path) else path


def _is_done(path: Path) -> bool:
    try:
        return read_record(path).done
    except BenchmarkError:
        return False


def arrays_path(record: Path) -> Path:
    """The file of per-sample arrays that belongs to a record."""
    return record.with_suffix(".safetensors")


def has_arrays(record: Path) -> bool:
    """Whether that file is there."""
    return _is_there(arrays_path(record))


def read_arrays(record: Path) -> dict[str, np.ndarray]:
    """The per-sample arrays of a record.

    Raises:
        BenchmarkError: their file is not there, or cannot be read.
    """
    from safetensors.numpy import load

    path = arrays_path(record)
    try:
        return load(_bytes_of(path))
    except Exception as error:  # garbage makes the library raise almost anything
        raise BenchmarkError(f"{path}: it cannot be read as arrays ({_first_line(error)}).") from None


def read_scores(record: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(scores (N,), conflicting bool (N,)) of a record; None if its method kept none, or such with another meaning.

    Scores that can be shown as fractions of the largest are at least 0.

    Raises:
        BenchmarkError: its arrays cannot be read.
    """
    if not has_arrays(record):
        return None
    arrays = read_arrays(record)
    if "score" not in arrays or "train_conflict" not in arrays:
        return None
    score, conflict = arrays["score"].astype(float), arrays["train_conflict"]
    if score.ndim != 1 or conflict.ndim != 2 or len(score) != len(conflict):
        raise BenchmarkError(f"{arrays_path(record)}: its columns are not of one length.")
    return (score, np.any(conflict != 0, axis=1)) if (score >= 0).all() else None


def read_record(path: Path) -> Record:
    """Read one record, and check all of it.

    Raises:
        BenchmarkError: the file cannot be read, is damaged in any part, no record, or of a later schema.
    """
    try:
        return replace(record_from_json(json.loads(_bytes_of(path).decode())), path=path)
    except (OSError, ValueError, RecursionError, MemoryError, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"{path}: {_first_line(error)}. Delete it to have its cell run again.") from None


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def read_records(folder: Path) -> tuple[list[Record], list[str]]:
    """All records below a folder (or in an archive), and a complaint about each file that cannot be read as one."""
    records: list[Record] = []
    complaints: list[str] = []
    for path in _record_files(folder, complaints):
        try:
            records.append(read_record(path))
        except BenchmarkError as error:
            complaints.append(str(error))
    return records, complaints


def _record_files(folder: Path, complaints: list[str]) -> Iterator[Path]:
    """The paths of records below `folder`, in order; archives that cannot be opened are complained of."""
    found = []
    for path in [folder] if folder.suffix == ".zip" else [*folder.rglob("s*-*.json"), *folder.rglob("*.zip")]:
        if path.name.startswith("."):
            continue
        if path.suffix != ".zip":
            found.append(path)
            continue
        try:
            found += [path / name for name in _members(path) if re.fullmatch(r"s.*-.*\.json", PurePosixPath(name).name)]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            complaints.append(f"{path}: it cannot be read as an archive of records ({_first_line(error)}).")
    return iter(sorted(found))


# ---- archives -------------------------------------------------------------------------------------------------------


def pack(folder: Path, archive: Path) -> int:
    """Put the records below a folder, and what is beside them, into one .zip; returns how many files.

    Equal files give equal bytes (names sorted, no dates), up to the version of zlib.

    Raises:
        BenchmarkError: a record cannot be read, or there is none.
    """
    records, complaints = read_records(folder)
    if complaints or not records:
        raise BenchmarkError("\n".join(complaints) or f"There are no records in {folder}.")
    names = sorted(
        path.relative_to(folder).as_posix()
        for record in records
        for path in record.path.parent.glob(f"{record.path.stem}.*")  # type: ignore[union-attr] # it was read from there
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name in names:
            entry = zipfile.ZipInfo(name)  # of 1980, whatever the file's date
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, (folder / name).read_bytes())
    write_atomically(archive, content.getvalue())
    return len(names)


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zip") if path.is_file())


def _archive_of(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the name in it; None for a file of its own."""
    for parent in path.parents:
        if parent.suffix == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


@functools.lru_cache(maxsize=8)
def _opened(archive: Path, _changed: int) -> tuple[zipfile.ZipFile, frozenset[str]]:
    packed = zipfile.ZipFile(archive)
    return packed, frozenset(packed.namelist())


def _open(archive: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
    return _opened(archive, archive.stat().st_mtime_ns)


def _members(archive: Path) -> frozenset[str]:
    return _open(archive)[1]


def _is_there(path: Path) -> bool:
    """Whether a file is there, also in an archive."""
    inside = _archive_of(path)
    if inside is None:
        return path.is_file()
    try:
        return inside[1] in _members(inside[0])
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _siblings(folder: Path, start: str) -> list[Path]:
    """The records in a folder, which may be one of an archive, whose names begin with `start`."""
    inside = _archive_of(folder)
    if inside is None:
        return sorted(folder.glob(f"{start}*.json"))
    try:
        names = sorted(_members(inside[0]))
    except (OSError, ValueError, zipfile.BadZipFile):
        return []
    return [
        inside[0] / name for name in names if re.fullmatch(re.escape(f"{inside[1]}/{start}") + r"[^/]*\.json", name)
    ]


def _bytes_of(path: Path) -> bytes:
    """The content of a file, also of one in an archive.

    Raises:
        OSError, ValueError, BadZipFile: it is not there, no plain file, or too large to be read.
    """
    inside = _archive_of(path)
    if inside is not None:
        packed, names = _open(inside[0])
        if inside[1] not in names:
            raise FileNotFoundError(2, "it is not in the archive")
        if packed.getinfo(inside[1]).file_size > MOST_BYTES:
            raise ValueError("it is too large for a record")
        return packed.read(inside[1])
    if path.exists() and not path.is_file():  # a pipe, a device: reading might never end
        raise ValueError("it is no plain file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError("it is too large for a record")
    return path.read_bytes()


def check_writable(results_dir: Path) -> None:
    """Refuse a results folder that cannot be written, before anything trains."""
    files.check_writable(results_dir / "records", "--results-dir", what=f"The results folder {results_dir}")


# ---- as text --------------------------------------------------------------------------------------------------------


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
