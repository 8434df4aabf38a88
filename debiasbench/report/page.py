"""The report as one HTML page: tables that sort, figures, learning curves, and every cell.

The page is whole in itself (styles, script and figures are in it, nothing is loaded), and equal inputs give equal
bytes. Its text, styles and script are in `page.html`, a Jinja template that escapes whatever it is given.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.parameters import write_value
from debiasbench.report.figures import learning_curves
from debiasbench.report.results import dataset_title, headline_of, to_frame

if TYPE_CHECKING:
    from markupsafe import Markup

    from debiasbench.report.tables import Table

# What the figures show, by how their file names begin: "scores-<dataset>.png"
_FIGURES = {
    "scores": "Histograms of the per-sample scores of aligned and of conflicting samples, a panel for each method",
    "accuracies": "Histograms of the runs' test accuracies, a panel for each method, with every run as a tick",
    "figure2": "Variants of a method over datasets: mean, standard deviation and every run",
    "figure3": "Traces of the inverse Fisher information of the final layer, a point a run",
    "figure10": "Histograms of the accuracies of many runs, a panel for each dataset",
    "theorem2": "The one-dimensional example of Theorem 2: the objective, and its minimum at h proportional to |g|",
    "ranks": "Average ranks of the methods; a bar joins those that cannot be told apart",
}
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


def page(
    title: str, tables: list[Table], figures: list[Path], records: list[dict[str, Any]], *, notes: Sequence[str] = ()
) -> str:
    """The whole page as text, to be written as UTF-8.

    Args:
        title: the headline.
        tables: in the order wanted.
        figures: PNG or SVG files, which become part of the page; others (the PDFs beside them) are left out.
        records: as `read_records` gives them, done and failed, in the order wanted; colours are those of the figures.
        notes: what the reader should know first, such as files that could not be read.

    Raises:
        OSError: a figure cannot be read.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"breakable": _breakable, "sha256": _sha256}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    done = [record for record in records if record["status"] == "done"]
    failed = [record for record in records if record["status"] != "done"]
    frame = to_frame(records)
    metrics = {name: headline_of(frame, name) for name in dict.fromkeys(_dataset(record) for record in records)}
    by_dataset = {name: [record for record in done if _dataset(record) == name] for name in metrics}
    methods = {_method(record) for record in done}
    return template.render(
        title=title,
        notes=notes,
        summary=_summary(records),
        facts=_facts(records),
        failed=[_block(record, metrics[_dataset(record)]) for record in failed],
        tables=[(table, _numeric_columns(table)) for table in tables],
        charts=[
            _chart(name, group, metrics[name], methods, f"curve-{place}")
            for place, (name, group) in enumerate(by_dataset.items(), 1)
            if group
        ],
        figures=[_figure(path) for path in figures if path.suffix in _MEDIA],
        cells=[(name, metrics[name], _blocks(group, metrics[name])) for name, group in by_dataset.items() if group],
    )


def _method(record: dict[str, Any]) -> str:
    return str(record["cell"]["method_title"])


def _dataset(record: dict[str, Any]) -> str:
    return dataset_title(record["cell"])


def _breakable(text: str) -> Markup:
    """Escaped text in which long labels may be broken after a separator, so that narrow columns stay narrow."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([:,/])(?=[^\W\d])", r"\1<wbr>", str(escape(text))))


def _sha256(text: str) -> str:
    """The digest by which the page's policy knows its own script: no other may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- what is told first ----------------------------------------------------------------------------------------------


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _summary(records: list[dict[str, Any]]) -> str:
    """How many cells, methods, datasets and seeds, in a sentence."""
    methods, datasets = ({part(record) for record in records} for part in (_method, _dataset))
    seeds = sorted({record["cell"]["seed"] for record in records})
    whole = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    span = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))
    return (
        f"{_counted(len(records), 'cell')}: {_counted(len(methods), 'method')} on "
        f"{_counted(len(datasets), 'dataset')}, training {'seed' if len(seeds) == 1 else 'seeds'} {span}."
    )


def _facts(records: list[dict[str, Any]]) -> list[str]:
    """Versions, commits, dates and devices of all records, each told once."""
    provenances = [record["provenance"] for record in records]
    facts = []
    for name in ("debiasbench", "protocol", "torch", "python"):
        found = sorted({str(one["versions"][name]) for one in provenances if one["versions"].get(name)})
        facts += [f"{name} {', '.join(found)}"] if found else []
    commits = dict.fromkeys(_short_commit(one["commit"]) for one in provenances if one.get("commit"))
    facts += [f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"] if commits else []
    dates = sorted({one["finished"][:10] for one in provenances if one.get("finished")})
    facts += [f"finished {' to '.join(dict.fromkeys((dates[0], dates[-1])))} (UTC)"] if dates else []
    facts += sorted({one["device"] for one in provenances if one.get("device")})
    return [*facts, f"{_duration(sum(one['seconds'].get('total', 0.0) for one in provenances))} of computing"]


def _short_commit(commit: str) -> str:
    """Twelve digits, and whether the checkout differed from the commit."""
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def _duration(seconds: float) -> str:
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:,.1f} h"


# ---- tables and figures ----------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[<+-]?\s?\.?\d")


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, dashes aside: these stand to the right, and the script sorts them by value."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    numeric = [all(_NUMBER.match(text) for text, _ in column if text != "-") for column in columns]
    return [place > 0 and found for place, found in enumerate(numeric)]  # the first column names the row


def _figure(path: Path) -> dict[str, str]:
    kind, _, name = path.stem.partition("-")
    what = _FIGURES.get(kind, kind) + (f": {name.replace('+', ':', 1)}" if name else "")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"source": f"data:{_MEDIA[path.suffix]};base64,{data}", "what": what}


# ---- learning curves -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """The learning curves of one dataset: an `<svg>` element, and what its caption tells."""

    dataset: str
    metric: str
    name: str
    svg: Markup
    has_runs: bool
    has_validation: bool


def _chart(dataset: str, records: list[dict[str, Any]], metric: str, order: Iterable[str], name: str) -> Chart:
    """Curves of the epochs that were evaluated. order: all methods of the page; name: of the chart in it."""
    from markupsafe import Markup

    test: dict[str, list[dict[int, float]]] = {}
    validation: dict[str, list[dict[int, float]]] = {}
    for record in records:
        test.setdefault(_method(record), []).append(_by_epoch(record, "test", metric))
        # where no rule may select on validation, it is the test split, or was trained on
        if record["result"]["selection"].get("val_acc") is not None:
            validation.setdefault(_method(record), []).append(_by_epoch(record, "valid", "acc_avg"))
    element = learning_curves(test, validation, metric=metric, order=order, name=name)
    return Chart(
        dataset, metric, name, Markup(element),
        has_runs=any(len(runs) > 1 for runs in test.values()),
        has_validation=any(map(any, validation.values())),
    )  # fmt: skip


def _by_epoch(record: dict[str, Any], split: str, metric: str) -> dict[int, float]:
    """Epoch -> a metric, without epochs that lack it."""
    values = {row["epoch"]: row[split].get(metric, math.nan) for row in record["result"]["epochs"]}
    return {epoch: value for epoch, value in values.items() if not math.isnan(value)}


# ---- cells -----------------------------------------------------------------------------------------------------------

Pairs = list[tuple[str, str]]


def _blocks(records: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The cells of one dataset: methods in the order given, seeds in their own."""
    methods = list(dict.fromkeys(map(_method, records)))
    records = sorted(records, key=lambda one: (methods.index(_method(one)), _data_seed(one), one["cell"]["seed"]))
    return [_block(record, metric) for record in records]


def _data_seed(record: dict[str, Any]) -> int:
    return int(record["cell"]["dataset_parameters"].get("data_seed", 0))


def _block(record: dict[str, Any], metric: str) -> dict[str, Any]:
    """What a cell's block shows: a line, named lists of values, the metrics, and the error if it failed."""
    cell, provenance, result = record["cell"], record["provenance"], record.get("result", {})
    last = result["epochs"][-1] if result else {}
    seed = f"seed {cell['seed']}" + (f", data seed {_data_seed(record)}" if _data_seed(record) else "")
    return {
        "method": _method(record),
        "dataset": _dataset(record),
        "seed": seed,
        "value": _number(metric, last["test"].get(metric, math.nan)) if last else "",
        "duration": _duration(provenance["seconds"].get("total", 0.0)),
        "error": record.get("error"),
        "metrics": [
            (name, *(_number(name, last[split][name]) if name in last[split] else "" for split in ("test", "valid")))
            for name in dict.fromkeys([*last["test"], *last["valid"]])
        ] if last else [],
        "epoch": last.get("epoch"),
        "settings": _filled(_settings(cell)),
        "parts": _filled([*_outcome(result, metric), *_origin(record)]),
    }  # fmt: skip


def _filled(parts: Iterable[tuple[str, Pairs]]) -> list[tuple[str, Pairs]]:
    return [(name, pairs) for name, pairs in parts if pairs]


def _settings(cell: dict[str, Any]) -> list[tuple[str, Pairs]]:
    recipe, own = cell["recipe"], cell["recipe_changes"]
    parts = {
        "Method": cell["method_parameters"],
        "Dataset": cell["dataset_parameters"],
        "Recipe": {name: value for name, value in recipe.items() if name not in own},
        "The method's own": {name: value for name, value in recipe.items() if name in own},
    }
    return [(part, [(name, write_value(value)) for name, value in values.items()]) for part, values in parts.items()]


def _outcome(result: dict[str, Any], metric: str) -> list[tuple[str, Pairs]]:
    if not result:
        return []
    selected = []
    for rule, place in result["selection"].items():
        if place is not None:
            row = result["epochs"][place]
            text = f"epoch {row['epoch']}, {_number(metric, row['test'].get(metric, math.nan))}"
            selected.append((rule, text))
    found = [
        (f"Identification by {name}", [(key, _number(key, value)) for key, value in numbers.items()])
        for name, numbers in result["identification"].items()
    ]
    numbers = [(name, write_value(value)) for name, value in result.get("numbers", {}).items()]
    return [(f"Selected epochs, test {metric}", selected), *found, ("Numbers of the method", numbers)]


def _origin(record: dict[str, Any]) -> list[tuple[str, Pairs]]:
    provenance, result = record["provenance"], record.get("result", {})
    seconds: Pairs = []
    for name, value in provenance["seconds"].items():
        if isinstance(value, list):
            seconds += [(f"phase {place}", f"{one:,.1f}") for place, one in enumerate(value, 1)]
        else:
            seconds.append((name, f"{value:,.1f}"))
    where = [(name, provenance.get(name)) for name in ("finished", "device", "threads", "peak_memory_mib")]
    where += [*provenance["versions"].items(), ("commit", _short_commit(provenance.get("commit") or ""))]
    files = [
        ("file", "/".join(Path(record["path"]).parts[-3:])),  # not where the results folder is
        ("hash", record["hash"][:16]),
        ("data", result["data"]["fingerprint"][:16] if result else ""),
    ]
    return [
        ("Seconds", seconds),
        ("Run with", [(name, str(value)) for name, value in where if value]),
        ("Record", [(name, value) for name, value in files if value]),
    ]


def _number(name: str, value: float) -> str:
    """A metric by its name: accuracies in per cent, counts whole, others with four digits."""
    if math.isnan(value):
        return "-"
    if name.startswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name == "n" or name.startswith("n_") else f"{value:.4f}"
