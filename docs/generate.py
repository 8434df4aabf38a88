"""Write docs/methods.md from the methods themselves and the committed records: `python docs/generate.py`.

A test compares the file with what this gives.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from debiasbench.cell import Cell
from debiasbench.grid import expand
from debiasbench.methods import Method
from debiasbench.methods import registry as methods
from debiasbench.plugins import is_shipped
from debiasbench.records import read_records

DOCS = Path(__file__).parent
DATASET, SEEDS = "cmnist5k", 3
HEAD = f"""# The methods

Written by `python docs/generate.py` from the files of the methods and the records in `docs/reproduction/records`.

*Knows*: what it is told of the bias, or reads of validation before the end; only what knows as much is a fair
comparison. *Cost*: in trainings of one plain network, with the defaults on `{DATASET}`. *Accuracy*: unbiased test
accuracy there in per cent, last epoch, mean ± sample standard deviation over three seeds, by the committed records of
the present version; a dash where there are none. See [reproduction](reproduction.md) for what was expected, and how it
was tuned. All parameters: `debiasbench list`.

| method | idea | knows | cost | accuracy | paper |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole text."""
    found, _ = read_records(DOCS / "reproduction" / "records")
    done = sorted((one for one in found if one.done), key=lambda record: record.provenance.finished, reverse=True)
    accuracies = {_key(one.cell): 100 * one.result.selected().test["acc_avg"] for one in done}  # the oldest of equals,
    # which the table of all methods in reproduction.md has
    names = sorted(name for name, cls in methods.classes().items() if is_shipped(cls))
    aliases = {name: owner for name, (owner, _) in methods.aliases().items() if owner in names}
    lines = [_row(name, methods.get(name)[0], accuracies) for name in names]
    known = "".join(
        f"- {owner}: {', '.join(f'`{name}`' for name, of in aliases.items() if of == owner)}\n"
        for owner in dict.fromkeys(sorted(aliases.values()))
    )
    return (
        f"{HEAD}{''.join(lines)}\nOther names, for settings of one of them (`debiasbench list` shows which):\n\n{known}"
    )


def _row(name: str, cls: type[Method], accuracies: dict[str, float]) -> str:
    grid = expand([name], [DATASET], seeds=SEEDS)
    values = [accuracies[key] for cell in grid.cells if (key := _key(cell)) in accuracies]
    accuracy = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) == SEEDS else "-"
    cost = f"{grid.relative_costs[grid.cells[0].hash]:.1f}" if grid.cells else "-"
    cells = [f"`{name}`", _idea(cls), _knows(cls), cost, accuracy, _paper(cls)]
    return f"| {' | '.join(cells)} |\n"


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
    if cls.trains_on_validation:
        known.append("trains on validation")
    if cls.selects_on_validation:
        known.append("labels of validation")
    return ", ".join(known) or "nothing"


def _paper(cls: type[Method]) -> str:
    """First author and year, with the title, of its BibTeX."""
    entry = cls.citation
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


if __name__ == "__main__":
    (DOCS / "methods.md").write_text(page(), encoding="utf-8")
