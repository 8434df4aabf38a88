"""What is told of a run where there is no terminal: the log file of a cluster, a pipe."""

from types import SimpleNamespace

import pytest

from debiasbench.grid import expand
from debiasbench.running import pace, progress
from debiasbench.running.executor import Event
from debiasbench.running.progress import Display, Running


class Clock:
    """In place of the module time."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress, pace):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def grid():
    return expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2)


@pytest.fixture
def display(clock, grid):
    with Display(SimpleNamespace(grid=grid, to_run=grid.cells)) as shown:
        yield shown


def lines(capsys):
    return [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]


def test_a_line_a_minute_tells_how_far_running_cells_are(display, clock, grid, capsys):
    vanilla, pgd = grid.cells[:2]
    display.handle(Event("started", vanilla, 0))
    display.handle(Event("started", pgd, 1))
    for second in range(0, 301):
        clock.now = 1000.0 + second
        display.handle(Event("epoch", vanilla, 0, stage="stage 1", epoch=second // 30, epochs=20))
        if second >= 130:
            display.handle(Event("epoch", pgd, 1, stage="stage 1", epoch=(second - 130) // 10, epochs=20))
    told = lines(capsys)
    assert len(told) == 5
    vanilla_then = "vanilla on cmnist5k, seed 0: stage 1, epoch 2/20, 30 s an epoch"
    assert told[0].startswith(f"0/4 done; {vanilla_then}; pgd on cmnist5k, seed 0: loading data;")
    assert "pgd on cmnist5k, seed 0: stage 1, epoch 16/20, 10 s an epoch" in told[4]
    assert all("left" in line for line in told)


def test_the_time_left_follows_from_epochs_before_any_cell_has_ended(display, clock, grid):
    """Two vanilla runs of 20 epochs, and two of pgd, which cost twice as much: 120 epochs of a vanilla run."""
    assert display._left() == ""
    display.handle(Event("started", grid.cells[0], 0))
    assert display._left() == ""
    clock.now += 100
    display.handle(Event("epoch", grid.cells[0], 0, stage="stage 1", epoch=10, epochs=20))
    total = sum(grid.relative_costs[cell.hash] for cell in grid.cells)
    assert display._left() == f"about {progress.duration(100 * (total - 0.5) / 0.5)} left"


def test_nothing_is_told_twice_in_a_minute(display, clock, grid, capsys):
    cell = grid.cells[0]
    display.handle(Event("started", cell, 0))
    clock.now += 61
    for _ in range(5):
        display.handle(Event("epoch", cell, 0, stage="stage 1", epoch=1, epochs=20))
    assert len(lines(capsys)) == 1
    clock.now += 59
    display.handle(Event("epoch", cell, 0, stage="stage 1", epoch=2, epochs=20))
    assert not lines(capsys)


def test_a_cell_that_ends_is_a_line_and_puts_the_next_off(display, clock, grid, capsys):
    cell = grid.cells[0]
    display.handle(Event("started", cell, 0))
    clock.now += 59
    display.handle(Event("finished", cell, 0))
    display.handle(Event("started", grid.cells[1], 0))
    clock.now += 2
    display.handle(Event("epoch", grid.cells[1], 0, stage="stage 1", epoch=1, epochs=20))
    told = lines(capsys)
    assert len(told) == 1
    assert told[0].startswith("done 1/4 vanilla on cmnist5k, seed 0 (59 s)")


def test_a_cell_of_another_run_is_told_as_well(display, clock, grid, capsys):
    cell = grid.cells[0]
    display.handle(Event("elsewhere", cell, 0, stage="in another run (far) stage 1", epoch=15, epochs=20))
    for seconds, epoch in ((3, 16), (58, 18)):
        clock.now += seconds
        display.handle(Event("elsewhere", cell, 0, stage="in another run (far) stage 1", epoch=epoch, epochs=20))
    (told,) = lines(capsys)
    assert "in another run (far) stage 1, epoch 18/20, 29 s an epoch" in told


@pytest.mark.parametrize("n", [1, 3, 4, 64])
def test_a_line_names_few_of_many_running_cells(clock, capsys, n):
    cells = expand(["vanilla"], ["cmnist5k"], seeds=64).cells
    with Display(SimpleNamespace(grid=SimpleNamespace(relative_costs={}), to_run=cells)) as display:
        for worker in range(n):
            display.handle(Event("started", cells[worker], worker))
        clock.now += 61
        display.handle(Event("epoch", cells[0], 0, stage="stage 1", epoch=1, epochs=20))
    (told,) = lines(capsys)
    assert told.count("vanilla on cmnist5k") == min(n, 3)
    assert (f"; and {n - 3} more; about" in told) == (n > 3)
    assert ("more" in told) == (n > 3)


@pytest.mark.parametrize(
    ("heard", "fraction", "each"),  # ten seconds apart, after a minute in which data are loaded
    [
        ([], 0.0, None),
        ([("stage 1", 0, 20)], 0.0, None),
        ([("stage 1", 1, 20)], 0.025, None),
        ([("stage 1", 5, 20), ("stage 1", 5, 20), ("stage 1", 10, 20)], 0.25, 4.0),  # gone on with from epoch 5
        ([("stage 1", 1, 20), ("stage 1", 20, 20), ("stage 2", 10, 20)], 0.75, 20 / 29),
        ([("stage 1", 1, 20), ("stage 1", 20, 20), ("stage 2", 40, 40)], 0.95, 20 / 59),  # never all
    ],
)
def test_how_far_a_cell_is(heard, fraction, each, clock):
    running = Running("pgd", cost=2.0, epochs=20, started=clock.now)
    clock.now += 60
    for one in heard:
        running.hear(*one)
        clock.now += 10
    assert running.fraction == pytest.approx(fraction)
    assert running.pace.seconds_an_epoch == pytest.approx(each)


def test_where_a_recipe_counts_steps_a_stage_is_a_vanilla_run(clock):
    running = Running("lff", cost=1.0, epochs=None, started=clock.now)
    running.hear("stage 1", 30, 60)
    assert running.fraction == 0.5
