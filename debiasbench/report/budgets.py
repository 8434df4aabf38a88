"""How the values of a run were chosen: what a fair comparison has equal for all methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from debiasbench.cell import Cell
from debiasbench.records import Record


@dataclass(frozen=True)
class Budget:
    """How the values of a method were chosen for a dataset, as far as a record tells.

    Attributes:
        draws: how many settings of its search space were compared; 0: none, its values are published ones or defaults;
            None: some were, and how many is not told.
        rule: the rule that chose among them; "" where nothing was chosen, or it is not told.
        bias_labels: whether that rule used bias labels.
    """

    draws: int | None = 0
    rule: str = ""
    bias_labels: bool = False

    @property
    def words(self) -> str:
        """For people: `not tuned`, `tuned with bias labels, draws not told`, `16 draws by worst_class`."""
        if self.draws == 0:
            return "not tuned"
        by = f" by {self.rule}" if self.rule else ""
        labels = " with bias labels" if self.bias_labels else ""
        return f"tuned{by}{labels}, draws not told" if self.draws is None else f"{self.draws:,} draws{by}{labels}"


def budget_of(record: Record) -> Budget:
    """The budget of a record's method for its dataset: the one place that knows where a record tells it.

    Today that is what its method declares as tuned; where a record itself says draws, rule and use of bias labels, that
    goes before it, here.
    """
    return Budget(None, bias_labels=True) if tuned_values(record.cell) else Budget()


def tuned_values(cell: Cell) -> dict[str, Any]:
    """The values of a cell that its method declares as chosen with bias knowledge (`Method.tuned`).

    Of methods known here.
    """
    from debiasbench.methods import registry

    cls = registry.classes().get(cell.method)
    values = {**cell.recipe, **cell.method_parameters}
    tuned = cls.tuned.get(cell.dataset, {}) if cls else {}
    return {key: value for key, value in tuned.items() if values.get(key) == value}


def untuned(cell: Cell) -> str | None:
    """The same method without tuned values, as it is written on the command line.

    None where that cannot be written: they are its defaults as well, or are in its title.
    """
    from debiasbench.methods import registry
    from debiasbench.parameters import split_spec, write_value
    from debiasbench.plugins import defaults

    own = defaults(registry.get(cell.method)[0])
    changes: dict[str, str] = {}
    for key, value in tuned_values(cell).items():
        if key in own and own[key] == value:
            return None
        changes |= {key: write_value(own[key])} if key in own else {"recipes": "shared"}
    _, given = split_spec(cell.method_title)
    if not changes or changes.keys() & given.keys():
        return None
    parts = [f"{key}={text}" for key, text in changes.items()]
    return cell.method_title + ("," if given else ":") + ",".join(parts)
