"""How long cells will take, from the seconds of what was trained on the same data by the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from debiasbench.cell import Cell
from debiasbench.grid import relative_cost
from debiasbench.records import Record

AS_LONG = ("net", "size", "batch_size", "precision", "recompute", "accumulate")  # by which an epoch takes as long


def seconds_for(
    cells: Sequence[Cell],
    costs: Mapping[str, float],
    records: Iterable[Record],
    *,
    n_workers: int,
    device_kind: str | None,
    host: str | None,
) -> float | None:
    """How many seconds cells will take on equal workers; None where nothing tells it for each of their datasets.

    What tells it are finished runs on the same data, seconds by cost: of cells of the same grid, and of methods that
    cost as much as plain training, which is the unit.

    Args:
        cells: to be trained.
        costs: cell hash -> in runs of plain training, of the whole grid.
        records: of any cells; those that are not on this kind of device or machine count for nothing.
        n_workers: that train at once.
        device_kind: "cpu" or "cuda"; None: any.
        host: the machine by name; None: any.
    """
    rates: dict[str, list[float]] = {}
    for record in records:
        elsewhere = (device_kind and record.device_kind != device_kind) or (host and record.provenance.host != host)
        if not record.done or elsewhere:
            continue
        cost = costs.get(record.hash) or _cost_of_plain(record.cell)
        if cost:
            rates.setdefault(_data(record.cell), []).append(record.provenance.seconds.total / cost)
    if not all(_data(cell) in rates for cell in cells):
        return None
    seconds = [costs[cell.hash] * statistics.median(rates[_data(cell)]) for cell in cells]
    return max(sum(seconds) / n_workers, max(seconds, default=0.0))  # no cell is shared by workers


def _cost_of_plain(cell: Cell) -> float | None:
    """The cost of a run of one plain training; None for methods that train more, and where it cannot be told now."""
    try:
        method, data = cell.build_method(), cell.build_dataset()
        return relative_cost(method, data, cell.build_recipe()) if method.relative_cost(data) == 1 else None
    except Exception:  # a plug-in of others, or values that it no longer takes: an estimate less
        return None


def _data(cell: Cell) -> str:
    """Equal for cells whose data and network are as large."""
    parameters = {name: value for name, value in cell.dataset_parameters.items() if name != "data_seed"}
    return f"{cell.dataset} {sorted(parameters.items())} {[cell.recipe.get(name) for name in AS_LONG]}"
