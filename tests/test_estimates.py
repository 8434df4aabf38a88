"""What a grid will take: in runs of plain training, and in hours where records tell how long one takes here."""

import re
import socket
from dataclasses import replace

import pytest

from debiasbench.cli import main
from debiasbench.estimates import seconds_for
from debiasbench.grid import expand
from debiasbench.records import (
    DataFacts,
    EpochFacts,
    Failure,
    Provenance,
    Record,
    Result,
    Seconds,
    record_path,
    write_record,
)

HERE = socket.gethostname()


def finished(cell, seconds, *, host=HERE, kind="cpu", done=True):
    """A record of a cell that took so long."""
    metrics = {"acc_avg": 0.5, "acc_unbiased": 0.5}
    result = Result(DataFacts("f", True), {"last": 0}, (EpochFacts(1, metrics, metrics),))
    provenance = Provenance("2026-11-26T00:00:00+00:00", Seconds(seconds), {"protocol": 1}, device_kind=kind, host=host)
    if done:
        return Record(cell.hash, cell, provenance, result)
    return Record(cell.hash, cell, provenance, failure=Failure("RuntimeError", "no"))


def cells_of(methods, dataset="cmnist5k", seeds=1, **options):
    return expand(methods, [dataset], seeds=seeds, **options).cells


def estimated(grid, records, **options):
    given = {"n_workers": 1, "device_kind": "cpu", "host": HERE, **options}
    return seconds_for(grid.cells, grid.relative_costs, records, **given)


@pytest.mark.parametrize(
    ("methods", "seeds", "n_workers", "runs"),
    [
        (["vanilla"], 3, 1, 3), (["lff"], 2, 1, 4), (["vanilla", "lff"], 3, 1, 9), (["vanilla", "lff"], 3, 3, 3),
        (["lff"], 1, 8, 2),  # no cell is shared by workers
    ],
)  # fmt: skip
def test_hours_are_the_cost_times_the_median_of_a_plain_run(methods, seeds, n_workers, runs):
    grid = expand(methods, ["cmnist5k"], seeds=seeds)
    before = [finished(cell, seconds) for cell, seconds in
              zip(cells_of(["vanilla"], seeds=[7, 8, 9]), (100.0, 90.0, 800.0), strict=True)]  # fmt: skip
    assert estimated(grid, before, n_workers=n_workers) == pytest.approx(100 * runs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True), ({"host": "elsewhere"}, False), ({"kind": "cuda"}, False), ({"done": False}, False),
        ({"dataset": "cmnist5k:rho=0.05"}, False), ({"dataset": "cmnist5k:net=simconv2"}, False),
        ({"dataset": "cmnist5k:data_seed=4"}, True), ({"dataset": "cmnist5k:learning_rate=0.5"}, True),
        ({"methods": ["lff"]}, False), ({"methods": ["groupdro"]}, True), ({"epochs": 10}, True),
    ],
)  # fmt: skip
def test_records_of_the_same_data_and_machine_tell_it(change, told):
    """Of methods that cost more than plain training only cells of this grid do."""
    options = {key: change[key] for key in ("dataset", "epochs") if key in change}
    (cell,) = cells_of(change.get("methods", ["vanilla"]), seeds=[5], **options)
    about = {key: value for key, value in change.items() if key in ("host", "kind", "done")}
    grid = expand(["pgd"], ["cmnist5k"], seeds=1)
    found = estimated(grid, [finished(cell, 60.0, **about)])
    assert (found is not None) is told
    if "epochs" in change:  # half of a run
        assert found == pytest.approx(2 * estimated(grid, [finished(*cells_of(["vanilla"], seeds=[5]), 60.0)]))


def test_finished_cells_of_the_grid_tell_it_whatever_their_method():
    grid = expand(["lff", "pgd"], ["cmnist5k"], seeds=1)
    assert estimated(grid, [finished(grid.cells[0], 50.0)]) == pytest.approx(
        sum(25.0 * grid.relative_costs[cell.hash] for cell in grid.cells)
    )


def test_every_dataset_of_the_grid_must_be_known():
    grid = expand(["vanilla"], ["cmnist5k", "cmnist5k:rho=0.05"], seeds=1)
    assert estimated(grid, [finished(grid.cells[0], 50.0)]) is None
    assert estimated(grid, [finished(cell, 50.0) for cell in grid.cells]) == pytest.approx(100)


def test_records_of_what_is_not_here_any_more_cost_nothing():
    (cell,) = cells_of(["vanilla"])
    strange = [replace(cell, dataset="nobodys"), replace(cell, recipe={"epochs": "many"})]
    assert estimated(expand(["lff"], ["cmnist5k"], seeds=1), [finished(one, 9.0) for one in strange]) is None


# ---- the plan -----------------------------------------------------------------------------------------------------


def plan_of(tmp_path, capsys, *methods, datasets=("cmnist5k",), seeds="1"):
    words = ["--methods", *methods, "--datasets", *datasets, "--seeds", seeds, "--workers", "2", "--device", "cpu"]
    assert main(["run", *words, "--dry-run", "--results-dir", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    return re.search(r"\d+ cells to run.*", shown)[0]


UNIT = "(each the plain training of one network on that dataset)"


def test_the_plan_tells_the_unit_once_and_hours_where_they_are_known(tmp_path, capsys):
    said = plan_of(tmp_path, capsys, "lff", seeds="3")
    assert said == f"3 cells to run, 0 finished before; estimated cost: 6 vanilla runs {UNIT} on 2 workers."
    for cell in cells_of(["vanilla"], seeds=[10, 11]):
        write_record(record_path(tmp_path, cell), finished(cell, 600.0))
    assert plan_of(tmp_path, capsys, "lff", seeds="3") == f"{said[:-1]}, about 30 min judging by finished runs."
    assert plan_of(tmp_path, capsys, "lff", datasets=["cmnist5k", "cmnist5k:rho=0.05"]).count("vanilla run") == 1


@pytest.mark.parametrize(
    ("methods", "datasets", "said"),
    [
        (["vanilla"], ["cmnist5k"], ""), (["vanilla", "rwy"], ["cmnist5k"], ""),
        (["vanilla", "lff"], ["cmnist5k"], " The costliest cells start first."),
        (["vanilla", "lff"], ["cmnist5k", "cmnist5k:rho=0.05"], " The costliest cells of each dataset start first."),
    ],
)  # fmt: skip
def test_the_plan_says_which_cells_start_first(tmp_path, capsys, methods, datasets, said):
    assert plan_of(tmp_path, capsys, *methods, datasets=datasets).partition(" on 2 workers.")[2] == said
