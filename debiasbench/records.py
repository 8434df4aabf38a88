"""Records: what a cell produced, in one JSON file each, with per-sample arrays in a safetensors file beside it.

A record has two parts. `result` holds what must come out equal in every run of the cell: metrics by epoch, selection,
digests. `provenance` holds what may differ between runs: seconds, versions, device. Files are written completely or not
at all. Reading checks every field in one place, so a record that was read needs no further checks.

The records of a complete grid may be kept in one .zip (`pack`). It is read like the folder that it was made from: a
path may lead into it (`all.zip/cmnist5k/pgd/s0-1a2b3c4d.json`).
"""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import zipfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from debiasbench import files
from debiasbench.about import PROTOCOL_VERSION
from debiasbench.archives import archive_of, bytes_of, contents, files_in, is_there
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import LATER, OF_CLASSES, criterion, select_by_classes, select_by_proxy
from debiasbench.files import atomic_file, file_name, write_atomically
from debiasbench.plain import encodable, from_plain, shown, to_plain

SCHEMA = 2
MOST_GROUPS = 16  # groups of label and bias whose accuracies are shown one by one
MOST_BYTES = 2**28  # size limit of a record, and of its arrays; larger files are refused
PARTS = ("records", "logs", "reuse", "tables", "figures")  # folders that every results folder needs
BESIDE = (".safetensors", ".weights.safetensors")  # files beside a record: per-sample arrays, trained networks

Metrics = dict[str, float]  # by name, finite; a metric without a value (accuracy of an empty group) has no key


@dataclass(frozen=True)
class SplitFacts:
    """The size of a split, and the number of its samples that conflict (by bias) and that belong to each class."""

    n: int
    x_sha256: str = ""  # for cached images; other samples are only in the fingerprint
    n_conflict: dict[str, int] = field(default_factory=dict)
    n_by_class: tuple[int, ...] | None = None  # None: not recorded (schema 1)


@dataclass(frozen=True)
class DataFacts:
    """The data that a cell was run on; `official`: whether they are as published, `note`: what differs.

    The names of the labels and of the values of each bias are not compared between results. They are None where they
    were not recorded, or where labels or values are only numbered.
    """

    fingerprint: str
    official: bool
    note: str = ""
    splits: dict[str, SplitFacts] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = field(default=None, compare=False)
    bias_values: tuple[tuple[str, ...], ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class StageFacts:
    """One training stage: its call number, epochs, sizes of its networks, mean loss per sample by epoch.

    `end`: network -> split -> metrics at the end of the stage, if it has no predictor.
    """

    call: int
    epochs: int
    evaluated: bool
    parameters: dict[str, int] = field(default_factory=dict)
    end: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    train_loss: tuple[float, ...] = ()


@dataclass(frozen=True)
class EpochFacts:
    """An evaluated epoch: metrics on validation and test, and the number of correct predictions for each class."""

    epoch: int
    valid: Metrics
    test: Metrics
    learning_rate: float | None = None
    train_loss: float | None = None
    correct_by_class: dict[str, tuple[int, ...]] | None = None  # "valid", "test"; None: not recorded (schema 1)


@dataclass(frozen=True)
class GroupFacts:
    """Size and accuracy of a group, which is given by (y, bias), or by a name where evaluation groups overlap."""

    n: int
    acc: float | None = None  # None: the group is empty
    y: int | None = None
    bias: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Result:
    """What must come out equal in every run of the cell on the same device type with the same number of threads.

    Attributes:
        selection: rule -> index into `epochs`, or None where the rule cannot choose.
        identification: logged column -> how well it finds the conflicting samples.
        logged: single numbers that the method logged.
        arrays: name -> digest of the array in the file beside the record.
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
        if not self.epochs:
            raise ValueError("epochs must not be empty")
        for rule, index in self.selection.items():
            if index is not None and not 0 <= index < len(self.epochs):
                raise ValueError(f"selection.{rule} points outside of the {len(self.epochs)} evaluated epochs")

    def selected(self, rule: str = "last") -> EpochFacts | None:
        """The epoch that a rule chooses; None if the rule cannot choose or is not known."""
        index = self.chosen(rule)
        return None if index is None else self.epochs[index]

    def chosen(self, rule: str) -> int | None:
        """The index into `epochs` of the epoch that a rule chooses; None if the rule cannot choose or is not known.

        The rules in `LATER` are applied to the logged epochs if the record has no selection for them.
        """
        if rule in LATER and rule not in self.selection and self.selection.get("val_acc") is not None:
            if rule in OF_CLASSES:
                return select_by_classes(rule, self._valid_by_class)
            return select_by_proxy([epoch.valid for epoch in self.epochs])
        return self.selection.get(rule)

    def criterion(self, rule: str, headline: tuple[str, ...]) -> float | None:
        """The value that a validation rule maximises, at the epoch that it chooses; None where it cannot choose.

        headline: the dataset's headline metrics. Nothing from the test split is read.
        """
        epoch = self.selected(rule)
        if epoch is None:
            return None
        value = criterion(rule, epoch.valid, self.accuracy_by_class(epoch, "valid"), headline)
        return None if math.isnan(value) else value

    @functools.cached_property
    def _valid_by_class(self) -> list[list[float | None] | None]:
        return [self.accuracy_by_class(epoch, "valid") for epoch in self.epochs]

    def accuracy_by_class(self, epoch: EpochFacts, split: str) -> list[float | None] | None:
        """Accuracy in [0, 1] of each class of "valid" or "test" (None: no samples); None if it was not recorded."""
        n_by_class = self.data.splits[split].n_by_class if split in self.data.splits else None
        correct = (epoch.correct_by_class or {}).get(split)
        if n_by_class is None or correct is None or len(correct) != len(n_by_class):
            return None
        return [right / n if n else None for right, n in zip(correct, n_by_class, strict=True)]


@dataclass(frozen=True)
class Seconds:
    """The seconds that a cell took: in total, and for data, evaluation, each stage, and each pass between stages.

    `total` excludes the time spent waiting for a stage that another cell trains. `calls`: "each 3" -> seconds.
    """

    total: float
    data: float = 0.0
    evaluation: float = 0.0
    stages: tuple[float, ...] = ()  # for a reused stage, the seconds of its original training
    calls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where, when, with what, and for how long a cell ran.

    Attributes:
        host: the name of the machine. executor: what started the cell there: "local", "ray", "slurm".
        device: its name. device_kind: "cpu" or "cuda". precision: that networks really had ("fp32", "tf32", "bf16").
        code: digests of the source of the method and of the dataset, with the local modules that they import.
        calls: the numbered calls of the method, with what they depend on.
        resumed: where the cell was interrupted, one entry per interruption; if nothing is undetermined, the result
            equals that of an uninterrupted run.
        undetermined: operations of this run on a GPU whose results may be rounded differently in another run, because
            torch has no deterministic version of them; None on a CPU, where all are deterministic, and where it was not
            recorded.
    """

    finished: str
    seconds: Seconds
    versions: dict[str, str | int]
    device: str = ""
    threads: int = 1
    peak_memory_mib: int = 0
    commit: str = ""
    device_kind: str | None = None  # these three are None where they were not recorded (schema 1)
    precision: str | None = None
    code: dict[str, str] | None = None
    calls: tuple[dict[str, Any], ...] = ()
    resumed: tuple[str, ...] | None = None
    host: str | None = None
    executor: str | None = None
    undetermined: tuple[str, ...] | None = None

    @property
    def protocol(self) -> int | None:
        """The version of the protocol."""
        version = self.versions.get("protocol")
        return version if isinstance(version, int) else None


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; if its process was lost, how many times in a row."""

    type: str
    message: str
    traceback: str = ""
    times: int | None = None


@dataclass(frozen=True)
class Record:
    """A cell and its outcome: a result or a failure."""

    hash: str
    cell: Cell
    provenance: Provenance
    result: Result | None = None
    failure: Failure | None = None
    path: Path | None = field(default=None, compare=False, metadata={"written": False})  # where it was read from

    def __post_init__(self) -> None:
        if (self.result is None) == (self.failure is None):
            raise ValueError("exactly one of result and failure must be there")

    @property
    def done(self) -> bool:
        """Whether the record has a result."""
        return self.result is not None

    @property
    def status(self) -> str:
        """The word "done" or "failed"."""
        return "done" if self.done else "failed"

    @property
    def device_kind(self) -> str:
        """What the cell ran on: "cpu" or "cuda"; "" if unknown. In schema 1 it follows from the device's name."""
        told, name = self.provenance.device_kind, self.provenance.device
        return told if told is not None else "" if not name else "cpu" if name.startswith("cpu") else "cuda"

    @property
    def precision(self) -> str:
        """The precision that networks really had: "fp32", "tf32" or "bf16"; "" if unknown."""
        if self.provenance.precision is not None:
            return self.provenance.precision
        from debiasbench.recipe import Recipe

        asked = self.cell.recipe.get("precision", "fp32")  # missing in records from before it was an option
        if asked != "auto":
            return str(asked)
        return Recipe(precision="auto").effective_precision(self.device_kind) if self.device_kind else ""

    def to_json(self) -> dict[str, Any]:
        """The record as plain values: the inverse of `record_from_json`."""
        plain: dict[str, Any] = to_plain(self)
        return {"schema": SCHEMA, "status": self.status} | plain | {"cell": self.cell.to_record()}


@dataclass(frozen=True)
class Brief(Record):
    """A record without most of its epochs, so that thousands fit into memory: see `in_brief`.

    Attributes:
        curves: "valid" and "test" -> one metric by epoch, as (epoch numbers, values) of all epochs that have it.
    """

    curves: dict[str, tuple[array[int], array[float]]] = field(
        default_factory=dict, compare=False, metadata={"written": False}
    )


def in_brief(record: Record, *, valid: str, test: str) -> Record:
    """A finished record reduced to what tables and the report page show.

    It keeps the last epoch and those that a rule selects. From the other epochs it keeps only the metrics `valid` (on
    validation) and `test`. Losses of stages, the method's calls, and the groups of a split that has more than
    `MOST_GROUPS` of them are left out.
    """
    result = record.result
    if result is None:
        return record
    chosen = {rule: result.chosen(rule) for rule in (*result.selection, *LATER)}
    kept = sorted({len(result.epochs) - 1, *(index for index in chosen.values() if index is not None)})
    curves = {}
    for name, metric, found in (
        ("valid", valid, [one.valid for one in result.epochs]), ("test", test, [one.test for one in result.epochs])
    ):  # fmt: skip
        epochs = [one.epoch for one, metrics in zip(result.epochs, found, strict=True) if metric in metrics]
        curves[name] = array("q", epochs), array("d", [metrics[metric] for metrics in found if metric in metrics])
    groups = {split: some for split, some in result.groups.items() if len(some) <= MOST_GROUPS}
    short = replace(
        result, epochs=tuple(result.epochs[index] for index in kept), stages=(), groups=groups,
        selection={rule: None if index is None else kept.index(index) for rule, index in chosen.items()},
    )  # fmt: skip
    provenance = replace(record.provenance, calls=())
    return Brief(record.hash, record.cell, provenance, short, path=record.path, curves=curves)


class LaterSchemaError(ValueError):
    """A record that a later version of the suite wrote: it is not damaged, but cannot be read."""


def record_from_json(values: Any) -> Record:
    """A record from its plain values, in this schema or an earlier one.

    Raises:
        LaterSchemaError: a later version wrote it.
        ValueError: the values are not a record; the message says which part is wrong.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it is not a record but {shown(values)}")
    schema = from_plain(int, values.get("schema"), "record.schema")
    if schema > SCHEMA:
        raise LaterSchemaError(f"it has schema {schema}, and this version of debiasbench reads up to {SCHEMA}")
    if schema < 1:
        raise ValueError(f"record.schema must be at least 1, but is {schema}")
    if schema == 1:
        values = _from_schema_1(values)
    status = values.get("status")
    if status not in ("done", "failed"):
        raise ValueError(f"record.status must be 'done' or 'failed', but is {shown(status)}")
    wanted, other = ("result", "failure") if status == "done" else ("failure", "result")
    if values.get(wanted) is None:
        raise ValueError(f"record.{wanted} is missing")
    if values.get(other) is not None:
        raise ValueError(f"record.{other} must not be there, because record.status is '{status}'")
    record: Record = from_plain(Record, values, "record")
    _check(record)
    return record


def _check(record: Record) -> None:
    """Refuse values of the right type that no run writes: records with them could not be compared."""
    cell, result = record.cell, record.result
    if not re.fullmatch("[0-9a-f]{64}", record.hash):
        raise ValueError(f"record.hash must be a SHA-256 in hexadecimal, but is {shown(record.hash)}")
    if cell.seed < 0:
        raise ValueError(f"record.cell.seed must be at least 0, but is {cell.seed}")
    for name in ("method", "dataset", "method_title", "dataset_title"):
        if not getattr(cell, name):
            raise ValueError(f"record.cell.{name} must not be empty")
    from_plain(int, record.provenance.versions.get("protocol"), "record.provenance.versions.protocol")
    if result is not None and not result.data.fingerprint:
        raise ValueError("record.result.data.fingerprint must not be empty")
    if result is not None and result.selection.get("last") is None:
        raise ValueError("record.result.selection.last must be a whole number, but is null or missing")


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """The fields under their present names; nan was written as null, and now the key is left out."""

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
    if "cell" in values:
        values["cell"] = renamed(values["cell"], {"method_label": "method_title", "dataset_label": "dataset_title"})
    if isinstance(values.get("provenance"), dict):
        values["provenance"] = {"finished": ""} | values["provenance"]
        seconds = renamed(values["provenance"].get("seconds"), {"phases": "stages"})
        if isinstance(seconds, dict):
            calls = {key: one for key, one in seconds.items() if key.partition(" ")[0] in ("each", "once")}
            values["provenance"]["seconds"] = seconds | {"calls": calls}
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
    """The path of a cell's record: records/<dataset title>/<method title>/s<seed>-<hash>.json."""
    return results_dir / "records" / _place_of(cell)


def running_path(record: Path) -> Path:
    """The folder that a cell uses while it runs: the path of its record, with running/ in place of records/."""
    dataset, method = record.parent.parent.name, record.parent.name
    return record.parents[3] / "running" / dataset / method / record.stem


def _place_of(cell: Cell) -> Path:
    folder = Path(file_name(cell.dataset_title)) / file_name(cell.method_title)
    return folder / f"s{cell.seed}-{cell.hash[:8]}.json"


def find_record(results_dir: Path, cell: Cell) -> Path | None:
    """The path of `found_record`."""
    found = found_record(results_dir, cell)
    return found.path if found is not None else None


def found_record(results_dir: Path, cell: Cell) -> Record | None:
    """The record of an equal cell, also if it was written before a parameter existed that has its default here.

    A record with the same hash comes first. Otherwise a record with the same titles and seed counts, if all values that
    it has are equal and those that it lacks have their class defaults here: a new option does not invalidate existing
    results. Records in archives count like those beside them, and a finished record comes before a failed one. A
    damaged record is ignored.
    """
    places = list(_places_of(results_dir, cell))
    exact = [record for path in places if (record := _readable(path)) is not None and record.hash == cell.hash]
    if exact:
        return min(exact, key=lambda record: not record.done)
    for place in places:
        for path in files_in(place.parent):
            if path.suffix == ".json" and path.name.startswith(f"s{cell.seed}-"):
                other = _readable(path)
                if other is None or other.provenance.protocol != PROTOCOL_VERSION:
                    continue
                if _equal_but_for_new_defaults(other.cell, cell):
                    return other
    return None


def _places_of(results_dir: Path, cell: Cell) -> Iterator[Path]:
    """The places of a cell's record: in its folder, in the archive of a folder above it, in the archive of a grid."""
    records, place = results_dir / "records", _place_of(cell)
    if not any(one.exists() for one in (records, records.with_name("records.zip"))):
        return  # a new folder: do not search it for each of thousands of cells
    yield records / place
    for depth in range(len(place.parts)):  # the archive of a folder lies beside it: records/cmnist.zip/pgd/s0-...
        folder = records.joinpath(*place.parts[:depth])
        archive = folder.with_name(f"{folder.name}.zip")
        if archive.is_file():
            yield archive.joinpath(*place.parts[depth:])
    for archive in sorted(records.glob("*.zip")):
        yield archive / place


def _readable(path: Path) -> Record | None:
    try:
        return read_record(path) if is_there(path) else None
    except BenchmarkError:
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
    """Write the arrays (name -> tensor), then the record."""
    if arrays:
        from safetensors.torch import save

        write_atomically(arrays_path(path), save(arrays))
    write_atomically(path, (dump(record.to_json()) + "\n").encode("utf-8"))


def failed_path(path: Path) -> Path:
    """Where a failed run is recorded: at `path`, or beside it if it holds a finished record, which is kept."""
    return path.with_name(path.name + ".failed") if _is_done(path) else path


def failure_at(path: Path) -> Failure | None:
    """The failure that is recorded at `path`, if there is one."""
    record = _readable(path)
    return record.failure if record is not None else None


def _is_done(path: Path) -> bool:
    record = _readable(path)
    return record is not None and record.done


def arrays_path(record: Path) -> Path:
    """The file of per-sample arrays that belongs to a record."""
    return record.with_suffix(BESIDE[0])


def has_arrays(record: Path) -> bool:
    """Whether the file of per-sample arrays exists."""
    return is_there(arrays_path(record))


def read_arrays(record: Path) -> dict[str, np.ndarray]:
    """The per-sample arrays of a record.

    Raises:
        BenchmarkError: their file does not exist or cannot be read.
    """
    from safetensors.numpy import load

    path = arrays_path(record)
    try:
        return load(bytes_of(path, MOST_BYTES))
    except Exception as error:  # on damaged files the library raises almost anything
        raise BenchmarkError(f"{encodable(str(path))}: it cannot be read as arrays ({_first_line(error)}).") from None


def read_scores(record: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(scores (N,), conflicting bool (N,)) of a record; None if it has none, or if scores below 0 show another meaning.

    Scores are shown as fractions of the largest, so they must be at least 0.

    Raises:
        BenchmarkError: the arrays cannot be read, differ in length, or are not finite.
    """
    if not has_arrays(record):
        return None
    arrays = read_arrays(record)
    if "score" not in arrays or "train_conflict" not in arrays:
        return None
    score, conflict = arrays["score"].astype(float), arrays["train_conflict"]
    path = encodable(str(arrays_path(record)))
    if score.ndim != 1 or conflict.ndim != 2 or len(score) != len(conflict):
        raise BenchmarkError(f"{path}: its columns differ in length.")
    if not (len(score) and np.isfinite(score).all()):
        raise BenchmarkError(f"{path}: its scores are not finite, or there are none.")
    return (score, np.any(conflict != 0, axis=1)) if (score >= 0).all() else None


def read_record(path: Path) -> Record:
    """Read one record and check all of it.

    Raises:
        BenchmarkError: the file cannot be read, is damaged, is not a record, or has a later schema.
    """
    try:
        content = bytes_of(path, MOST_BYTES)
        return replace(decoded(content) or record_from_json(_parsed(content)), path=path)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        whole = isinstance(error, LaterSchemaError) or archive_of(path) is not None
        advice = "" if whole else " Run its grid again, or delete it."
        raise BenchmarkError(f"{encodable(str(path))}: {_first_line(error)}.{advice}") from None


@dataclass(frozen=True)
class _Written:
    """A record of this schema, as it is in its file."""

    schema: int
    status: str
    hash: str
    cell: Cell
    provenance: Provenance
    result: Result | None = None
    failure: Failure | None = None


_DECODER = msgspec.json.Decoder(_Written)
_MANY_DIGITS = b" " + b"0" * 19  # a whole number with this many digits may need more than 64 bits
_DIGITS_AS_ZEROS = bytes(48 if 48 <= byte < 58 else byte if byte == 46 else 32 for byte in range(256))  # "0", ".", " "


def decoded(content: bytes) -> Record | None:
    """A valid record of this schema, read many times faster than with `record_from_json`.

    None for everything else: `record_from_json` says what is wrong with it, and reads earlier schemas.
    """
    if _MANY_DIGITS in content.translate(_DIGITS_AS_ZEROS):
        return None
    try:
        content.decode()  # msgspec does not check the characters in keys that no record has
        found = _DECODER.decode(content)
        if found.schema != SCHEMA or found.status != ("done" if found.result is not None else "failed"):
            return None
        record = Record(found.hash, found.cell, found.provenance, found.result, found.failure)
        _check(record)
        cell, weights = record.cell, record.result and record.result.weights
        anybodys = [cell.method_parameters, cell.dataset_parameters, cell.recipe, cell.recipe_changes, weights]
        from_plain(Any, [*anybodys, *record.provenance.calls])  # they may be nested too deeply to be written
    except (ValueError, RecursionError):
        return None
    return record


def _parsed(content: bytes) -> Any:
    """The value of a JSON file."""
    try:
        text = content.decode("utf-8-sig")  # some editors write a byte-order mark first
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def sources(folder: Path) -> list[Path]:
    """Where the records of a folder are: in `records` and `records.zip` for a results folder, else in it."""
    known = [one for one in (folder / "records", folder / "records.zip") if one.exists()]
    return known or [folder]


def read_records(
    *folders: Path, shorten: Callable[[Record], Record] = lambda record: record
) -> tuple[list[Record], list[str]]:
    """All records below folders (or in archives), and a complaint about each file that cannot be read as a record.

    If a cell has one record in an archive and another at the same place in a folder, the one in the folder counts,
    unless it failed and the archived one is done. `shorten` reduces each record (see `in_brief`).
    """
    records: list[Record] = []
    complaints: list[str] = []
    for path in (path for folder in folders for path in _record_files(folder, complaints)):
        try:
            records.append(shorten(read_record(path)))
        except BenchmarkError as error:
            complaints.append(str(error))
    return _without_replaced(records), complaints


def _without_replaced(records: list[Record]) -> list[Record]:
    in_folders = {record.path: record for record in records if record.path and not archive_of(record.path)}
    dropped = set()
    for record in records:
        inside = archive_of(record.path) if record.path else None
        if inside is not None:
            archive, place = inside
            for folder in (archive.with_suffix(""), archive.parent):  # the archive of a folder, or of a grid
                other = in_folders.get(folder / place)
                if other is not None and other.hash == record.hash:
                    dropped.add(other.path if record.done and not other.done else record.path)
    return [record for record in records if record.path not in dropped]


def without_copies(records: list[Record]) -> list[Record]:
    """The records that count when all are evaluated together, such as overlapping records of two machines.

    A cell counts once if its records are equal in everything that must come out equal, whatever their titles and paths;
    unequal ones are all kept. A failure does not count if there is a finished record or a later failure.
    """
    of_cell: dict[str, list[Record]] = {}
    for record in records:
        of_cell.setdefault(record.hash, []).append(record)
    kept = set()
    for some in of_cell.values():
        done = [record for record in some if record.done] if len(some) > 1 else []
        if done:
            distinct: list[Record] = []
            for record in sorted(done, key=_lack):
                if not any(_are_equal(record, other) for other in distinct):
                    distinct.append(record)
            kept |= set(map(id, distinct))
        else:
            kept.add(id(max(some, key=lambda record: record.provenance.finished)))
    return [record for record in records if id(record) in kept]


def _lack(record: Record) -> tuple[bool, bool]:
    """What a record lacks and a copy of it may have: trained networks, per-sample arrays."""
    saved = record.result is not None and record.result.weights is not None
    return not saved, record.path is None or not has_arrays(record.path)


def _are_equal(one: Record, other: Record) -> bool:
    """Whether two finished records agree in everything that must come out equal; saved networks are not compared."""
    whole = [
        read_record(record.path) if isinstance(record, Brief) and record.path else record for record in (one, other)
    ]
    results = [replace(record.result, weights=None) for record in whole if record.result is not None]
    return results[0] == results[1]


def _record_files(folder: Path, complaints: list[str]) -> Iterator[Path]:
    """The paths of records below `folder`, in order; unreadable archives are added to the complaints."""
    if folder.suffix == ".zip" and not folder.is_dir():
        found, archives = [], [folder] if folder.exists() else []
    else:
        found = [path for path in folder.rglob("*.json") if _is_named_as_record(path.name)]
        archives = sorted(path for path in folder.rglob("*.zip") if not path.name.startswith("."))
    for archive in archives:
        if archive.is_dir():  # an ordinary folder
            if not any(archive in path.parents for path in found):
                complaints.append(f"{encodable(str(archive))}: it is a folder without records.")
            continue
        try:
            inside, problems = _records_inside(archive)
        except (OSError, ValueError) as error:
            inside, problems = [], [f"it cannot be read as an archive of records ({_first_line(error)})"]
        found += inside
        complaints += [f"{encodable(str(archive))}: {problem}." for problem in problems]
    return iter(sorted(found))


def _records_inside(archive: Path) -> tuple[list[Path], list[str]]:
    """The paths of records in an archive, and what is wrong with it."""
    known = contents(archive)
    found = [archive / name for name in known.members if _is_named_as_record(PurePosixPath(name).name)]
    outside = [name for name in known.outside if _is_named_as_record(PurePosixPath(name).name)]
    inner = [name for name in known.members if name.endswith(".zip")]
    problems = [f"{shown(name)} leads out of the archive, and is not read" for name in outside]
    problems += [f"{shown(name)} is an archive in an archive, and is not read" for name in inner]
    return found, problems or ([] if found else ["it holds no records"])


def _is_named_as_record(name: str) -> bool:
    return re.fullmatch(r"s.*-.*\.json", name) is not None


# ---- archives -------------------------------------------------------------------------------------------------------


def pack(folder: Path, archive: Path) -> int:
    """Put the records below a folder, with their arrays and weights, into one .zip; returns the number of files.

    Equal files give an equal archive (names sorted, no dates) with the same version of zlib. Failures of cells that
    have a finished record are left out.

    Raises:
        BenchmarkError: a record cannot be read, or there is none; the folder already holds archives.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"There is no folder {folder}.")
    records, complaints = read_records(folder)
    if complaints or not records:
        raise BenchmarkError("\n".join(complaints) or f"There are no records in {folder}.")
    paths = [record.path for record in records if record.path is not None]
    known = {inside[0] for path in paths if (inside := archive_of(path))}
    if known:
        raise BenchmarkError(f"{', '.join(map(str, sorted(known)))}: an archive in {folder} cannot be packed again.")
    together = [path.with_suffix(suffix) for path in paths for suffix in (".json", *BESIDE)]
    names = sorted(path.relative_to(folder).as_posix() for path in together if path.is_file())
    with atomic_file(archive) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name in names:
            entry = zipfile.ZipInfo(name)  # dated 1980, whatever the file's date
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target)
    return len(names)


def check_writable(results_dir: Path) -> None:
    """Refuse a results folder in which a run could not write all its files, before anything trains."""
    for name in PARTS:
        files.check_writable(results_dir / name, "--results-dir", what=f"The results folder {results_dir}")


# ---- as text --------------------------------------------------------------------------------------------------------


def dump(value: Any, indent: str = "", width: int = 118) -> str:
    """JSON for people: a value that fits on one line is written on one line."""
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
