"""Write what follows from the code: `python docs/generate.py`.

docs/methods.md is made of the methods themselves and the committed records, docs/record.schema.json of the classes that
records are read into. Tests compare the files with what this gives.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import types
import typing
from pathlib import Path
from typing import Any
from unittest import mock

from debiasbench.cell import Cell
from debiasbench.datasets import registry as datasets
from debiasbench.grid import expand
from debiasbench.methods import Method
from debiasbench.methods import registry as methods
from debiasbench.parameters import write_value
from debiasbench.plugins import is_shipped
from debiasbench.records import SCHEMA, Record, read_records

DOCS = Path(__file__).parent
DATASET, SEEDS = "cmnist5k", 3
WITHOUT_RATIO = "celeba"  # its biases are known, and its conflict ratio is not
HEAD = f"""# The methods

Written by `python docs/generate.py` from the files of the methods and the records in `docs/reproduction/records`.

- *Knows*: what a method is told about the bias, or reads of the validation split before training ends. Compare methods
  fairly only with others that know as much.
- *Cost*: how many trainings of one plain network it takes, with the defaults on `{DATASET}`.
- *Accuracy*: on the unbiased test set of `{DATASET}`, in per cent: last epoch, mean ± sample standard deviation over
  three seeds, from the committed records of the current version; a dash where there are none.

See [reproduction](reproduction.md) for what was expected and how methods were tuned. `debiasbench list` shows all
parameters.

| method | idea | knows | cost | accuracy | paper |
| --- | --- | --- | --- | --- | --- |
"""
ALIASES = """
Aliases, which stand for a method with certain parameters:

| name | stands for | cost | accuracy | paper |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole text."""
    found, _ = read_records(DOCS / "reproduction" / "records")
    done = sorted((one for one in found if one.done), key=lambda record: record.provenance.finished)
    accuracies = {_key(one.cell): 100 * one.result.selected().test["acc_avg"] for one in done}  # the newest of equals,
    # which README.md and the table of every method in one run have
    names = sorted(name for name, cls in methods.classes().items() if is_shipped(cls))
    aliases = {name: owner for name, (owner, _) in methods.aliases().items() if owner in names}
    lines = [_row(name, methods.get(name)[0], accuracies) for name in names]
    lines += [ALIASES, *(_alias_row(name, owner, accuracies) for name, owner in sorted(aliases.items()))]
    return f"{HEAD}{''.join(lines)}"


def _row(name: str, cls: type[Method], accuracies: dict[str, float]) -> str:
    cells = [f"`{name}`", _idea(cls), _knows(cls), *_measured(name, accuracies), _paper(cls.citation)]
    return f"| {' | '.join(cells)} |\n"


def _alias_row(name: str, owner: str, accuracies: dict[str, float]) -> str:
    cls = methods.get(owner)[0]
    values = ",".join(f"{key}={write_value(value)}" for key, value in cls.aliases[name].items())
    paper = _paper(cls.alias_citation.get(name, cls.citation))
    return f"| {' | '.join([f'`{name}`', f'`{owner}:{values}`', *_measured(name, accuracies), paper])} |\n"


def _measured(name: str, accuracies: dict[str, float]) -> tuple[str, str]:
    """Cost and accuracy; also of a method that declines for want of a package here."""
    with mock.patch.object(methods.get(name)[0], "decline", return_value=None):
        grid = expand([name], [DATASET], seeds=SEEDS)
    values = [accuracies[key] for cell in grid.cells if (key := _key(cell)) in accuracies]
    accuracy = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) == SEEDS else "-"
    return f"{grid.relative_costs[grid.cells[0].hash]:.1f}" if grid.cells else "-", accuracy


def _key(cell: Cell) -> str:
    """Equal for cells of one title and seed that are trained alike, whatever parameters have come since."""
    return f"{cell.dataset_title} {cell.method_title} {cell.method_version} {cell.seed} {cell.build_recipe()}"


def _idea(cls: type[Method]) -> str:
    """The first sentence of its docstring."""
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return text.rstrip(".").replace("|", "\\|")


def _knows(cls: type[Method]) -> str:
    known = []
    if cls.needs_bias_labels:
        known.append("bias labels of train")
    if "conflict ratio" in (cls().decline(datasets.get(WITHOUT_RATIO)[0]()) or ""):  # asked for what it lacks
        known.append("conflict ratio")
    if cls.trains_on_validation:
        known.append("trains on validation")
    if cls().selects_on_validation:
        known.append("labels of validation")
    return ", ".join(known) or "nothing"


def _paper(entry: str) -> str:
    """First author and year, with the title, of BibTeX."""
    field = {key: " ".join(re.sub(r"[{}]", "", value).split()) for key, value in _fields(entry)}
    if "title" not in field:
        return "-"
    author = field.get("author", "").partition(" and ")[0]
    surname = author.partition(",")[0] if "," in author else author.rpartition(" ")[2]
    return f"{surname} {field.get('year', '')}: {field['title']}".strip()


def _fields(entry: str) -> list[tuple[str, str]]:
    """Key and value of each `key={value}`, whose braces may hold others."""
    found = re.findall(r"(\w+)\s*=\s*\{((?:[^{}]|\{[^{}]*\})*)\}", entry)
    return [(key.lower(), value) for key, value in found]


# ---- the schema of records -------------------------------------------------------------------------------------------

_FINITE = {"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, type(None): {"type": "null"},
    int: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    float: {"type": "number", **_FINITE}, Any: dict(_FINITE),
}  # fmt: skip
_NOT_EMPTY = {"minLength": 1}
_INDEX = {**_SIMPLE[int], "minimum": 0}
_LIMITS: dict[tuple[str, str], dict[str, Any]] = {  # what is asked of values beyond their types
    ("Record", "hash"): {"pattern": "^[0-9a-f]{64}$"},
    ("Cell", "seed"): {"minimum": 0},
    **{("Cell", name): _NOT_EMPTY for name in ("method", "dataset", "method_title", "dataset_title")},
    ("DataFacts", "fingerprint"): _NOT_EMPTY,
    ("Result", "epochs"): {"minItems": 1},
    ("Result", "selection"): {
        "required": ["last"], "properties": {"last": _INDEX},
        "additionalProperties": {**_INDEX, "type": ["integer", "null"]},
    },
    ("Provenance", "versions"): {"required": ["protocol"], "properties": {"protocol": _SIMPLE[int]}},
}  # fmt: skip


def record_schema() -> str:
    """The JSON Schema of a record, as text."""
    parts: dict[str, Any] = {}
    _of(Record, parts)
    record = parts.pop("Record")
    record["properties"] = {"schema": {"const": SCHEMA}, "status": {"enum": ["done", "failed"]}} | record["properties"]
    record["required"] = ["schema", "status", *record["required"]]
    present, absent = {"type": "object"}, {"type": "null"}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A record of debiasbench, schema {SCHEMA}",
        **record,
        "if": {"properties": {"status": {"const": "done"}}},
        "then": {"required": ["result"], "properties": {"result": present, "failure": absent}},
        "else": {"required": ["failure"], "properties": {"failure": present, "result": absent}},
        "$defs": dict(sorted(parts.items())),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _of(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; `parts` grows by those of the dataclasses in it."""
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        options = [_of(one, parts) for one in of]
        if all(one in _SIMPLE for one in of):
            limits = {key: value for option in options for key, value in option.items() if key != "type"}
            return {"type": [option["type"] for option in options], **limits}
        return {"anyOf": options}
    if origin is tuple:
        return {"type": "array", "items": _of(of[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(of[1], parts)}
    if kind.__name__ not in parts:
        fields = [one for one in dataclasses.fields(kind) if one.metadata.get("written", True)]
        hints = typing.get_type_hints(kind)
        parts[kind.__name__] = {}  # its place, before those of its fields
        parts[kind.__name__] |= {
            "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
            "type": "object",
            "required": [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING],
            "properties": {
                one.name: _of(hints[one.name], parts) | _LIMITS.get((kind.__name__, one.name), {}) for one in fields
            },
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


if __name__ == "__main__":
    (DOCS / "methods.md").write_text(page(), encoding="utf-8")
    (DOCS / "record.schema.json").write_text(record_schema(), encoding="utf-8")
