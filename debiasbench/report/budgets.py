"""How the values of a run were chosen. A fair comparison chooses them in the same way for all methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from debiasbench.cell import Cell
from debiasbench.evaluation.selection import uses_bias_labels
from debiasbench.records import Record


@dataclass(frozen=True)
class Budget:
    """How the values of a method were chosen for a dataset, as far as a record tells.

    Attributes:
        draws: number of settings of its search space that were compared; 0: none, its values are published ones or
            defaults; None: some, but their number is unknown.
        seeds: number of runs of each setting.
        rule: the rule that chose among them; "" if nothing was chosen, or the rule is unknown.
        bias_labels: whether that rule used bias labels.
    """

    draws: int | None = 0
    seeds: int = 0
    rule: str = ""
    bias_labels: bool = False

    @property
    def words(self) -> str:
        """As text: `not tuned`, `tuned with bias labels, number of draws unknown`, `16 draws of 1 seed by ...`."""
        if self.draws == 0:
            return "not tuned"
        labels = " with bias labels" if self.bias_labels else ""
        if self.draws is None:
            return f"tuned{labels}, number of draws unknown"
        return f"{self.draws:,} draws of {self.seeds} seed{'s' * (self.seeds != 1)} by {self.rule}{labels}"


def budget_of(record: Record) -> Budget:
    """The budget of a record's method for its dataset: from its tuning, else from what the method declares as tuned."""
    tuned = record.cell.tuned
    if tuned is not None:
        return Budget(tuned.draws, len(tuned.seeds), tuned.rule, uses_bias_labels(tuned.rule))
    return Budget(None, bias_labels=True) if declared(record.cell) else Budget()


def as_asked(title: str) -> tuple[str, bool]:
    """A method's title as in a command, and whether its values come from a tuning (then `run --tuned` sets them)."""
    name, _, options = title.partition(":")
    parts = options.split(",") if options else []
    kept = [part for part in parts if not part.startswith("tuned=")]
    return name + (":" + ",".join(kept) if kept else ""), len(kept) < len(parts)


def declared(cell: Cell) -> dict[str, Any]:
    """The values of a cell that its method declares as chosen with bias knowledge (`Method.tuned`).

    Empty if the method is not known here.
    """
    from debiasbench.methods import registry

    cls = registry.classes().get(cell.method)
    values = {**cell.recipe, **cell.method_parameters}
    tuned = cls.tuned.get(cell.dataset, {}) if cls else {}
    return {key: value for key, value in tuned.items() if values.get(key) == value}


def untuned(cell: Cell) -> str | None:
    """The same method without tuned values, as written on the command line.

    None if that cannot be written: there are no tuned values, one is also the default, or one is set in the title.
    """
    from debiasbench.methods import registry
    from debiasbench.parameters import split_spec, write_value
    from debiasbench.plugins import defaults

    own = defaults(registry.get(cell.method)[0])
    changes: dict[str, str] = {}
    for key, value in declared(cell).items():
        if key in own and own[key] == value:
            return None
        changes |= {key: write_value(own[key])} if key in own else {"recipes": "shared"}
    _, given = split_spec(cell.method_title)
    if not changes or changes.keys() & given.keys():
        return None
    parts = [f"{key}={text}" for key, text in changes.items()]
    return cell.method_title + ("," if given else ":") + ",".join(parts)
