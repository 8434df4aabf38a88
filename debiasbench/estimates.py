"""Estimates of how long cells take, from runs on the same data and the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from debiasbench.cell import Cell
from debiasbench.grid import relative_cost
from debiasbench.records import Record

AS_LONG = ("net", "size", "batch_size", "precision", "recompute", "accumulate")  # decide the time of an epoch


def seconds_for(
    cells: Sequence[Cell],
    costs: Mapping[str, float],
    records: Iterable[Record],
    *,
    n_workers: int,
    device_kind: str | None,
    host: str | None,
) -> float | None:
    """How many seconds cells will take on equal workers; None if a dataset has no suitable finished run.

    The estimate uses the seconds per unit of cost of finished runs on the same data: of cells in the same grid, and of
    methods that cost as much as plain training, which is the unit.

    Args:
        cells: the cells to train.
        costs: cell hash -> cost in runs of plain training, for the whole grid.
        records: records of any cells; those from another kind of device or another machine are ignored.
        n_workers: number of workers that train at once.
        device_kind: "cpu" or "cuda"; None: any.
        host: name of the machine; None: any.
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
    return max(sum(seconds) / n_workers, max(seconds, default=0.0))  # workers do not share a cell


def _cost_of_plain(cell: Cell) -> float | None:
    """The cost of a run whose method costs one plain training; None for other methods, or if it is unknown now."""
    try:
        method, data = cell.build_method(), cell.build_dataset()
        return relative_cost(method, data, cell.build_recipe()) if method.relative_cost(data) == 1 else None
    except Exception:  # a foreign plug-in, or values it no longer takes: skip this record
        return None


def _data(cell: Cell) -> str:
    """A text that is equal for cells with data and a network of the same size; the data seed may differ."""
    parameters = {name: value for name, value in cell.dataset_parameters.items() if name != "data_seed"}
    return f"{cell.dataset} {sorted(parameters.items())} {[cell.recipe.get(name) for name in AS_LONG]}"
