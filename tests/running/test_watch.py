"""The live view of a grid that runs elsewhere: rates, who does what, failures."""

import io
import time
from dataclasses import replace

import pytest

from debiasbench.console import PlainConsole
from debiasbench.running import following as following_module
from debiasbench.running import watch
from debiasbench.running.claims import Holder
from debiasbench.running.following import Following, Seen

HOLDER = Holder("token", "node7", "machine", 4711)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("looks", "each"),  # ten seconds apart
    [
        pytest.param([("stage 1", 0), ("stage 1", 1), ("stage 1", 5)], 10 / 4, id="from the beginning"),
        pytest.param([("", 0), ("", 0), ("", 0), ("stage 1", 1), ("stage 1", 2)], 10.0, id="not while data are loaded"),
        pytest.param([("stage 1", 30), ("stage 1", 30), ("stage 1", 32), ("stage 1", 34)], 5.0, id="in mid-stage"),
        pytest.param([("stage 1", 30), ("stage 1", 31), ("stage 1", 31)], None, id="part of an epoch alone"),
        pytest.param([("", 0), ("stage 1", 1), ("stage 1", 1)], None, id="one end alone"),
        pytest.param([("stage 1", 8), ("stage 1", 9), ("stage 2", 2), ("stage 2", 3)], 20 / 3, id="over two stages"),
        pytest.param(
            [("stage 1", 8), ("stage 1", 9), ("stage 1", 4), ("stage 1", 6)], 10.0, id="gone back to a checkpoint"
        ),
    ],
)
def test_the_rate_is_from_one_end_of_an_epoch_to_another(clock, looks, each):
    first, *rest = [replace(HOLDER, stage=stage, epoch=epoch, epochs=50) for stage, epoch in looks]
    seen = Seen("a", first, started=clock.now)
    for holder in rest:
        clock.now += 10.0
        seen.see(holder)
    clock.now += 5.0  # the epoch that is under way does not count
    assert seen.pace.seconds_an_epoch == each


def drawn(following, running, *, width=120):
    """The view as text, as a terminal shows it."""
    output = io.StringIO()
    console = PlainConsole(file=output, force_terminal=True, width=width, color_system=None)
    console.print(watch._view(console, following, running))
    return output.getvalue()


def test_the_view_shows_who_does_what_and_how_fast(tmp_path, clock):
    following = Following(
        tmp_path, {"c": [None, None], "d": [None, None]}, done=["a"],
        failed={"b": "RuntimeError: it did \x1b[31mnot work"}, started=0.0,
    )  # fmt: skip
    seen = Seen("pgd/c", replace(HOLDER, stage="stage 1", epoch=20, epochs=20), clock.now)
    for seconds, epoch in ((12.5, 1), (25, 3)):
        clock.now += seconds
        seen.see(replace(HOLDER, stage="stage 2", epoch=epoch, epochs=20))
    clock.now += 12.5
    text = drawn(following, [seen, Seen("jtt/d", HOLDER, clock.now)])
    assert text.startswith("1 of 4 cells done, 1 failed, 2 running, about 18 min left")
    rows = [line.split() for line in text.splitlines() if "node7" in line]
    assert rows[0] == ["pgd/c", "stage", "2", "3/20", "12.5", "s", "50", "s", "node7,", "process", "4711"]
    assert rows[1][:2] == ["jtt/d", "starts"]
    assert "failed  b: RuntimeError: it did" in text
    assert "\x1b" not in text


def test_a_wide_grid_does_not_run_off_the_screen(tmp_path):
    following = Following(tmp_path, {}, failed={f"cell {n}": "x" * 300 for n in range(100)})
    text = drawn(following, [Seen(f"c{n}", HOLDER) for n in range(100)], width=80)
    assert "and 80 more" in text
    assert len(text.splitlines()) < 2 * watch.MOST_SHOWN + 6
    assert "cell 99: xxx" in text


def test_it_is_drawn_until_the_run_has_ended(tmp_path, monkeypatch):
    looks = iter([["c"], ["c"], []])

    def look(self):
        self.waiting = dict.fromkeys(next(looks))
        return [Seen("pgd/c", HOLDER)] if self.waiting else []

    monkeypatch.setattr(Following, "look", look)
    monkeypatch.setattr(following_module.Following, "of", classmethod(lambda cls, folder: cls(folder, {"c": None})))
    monkeypatch.setattr(watch, "EVERY", 0.0)
    output = io.StringIO()
    ended = watch.watch(PlainConsole(file=output, force_terminal=True, width=100, color_system=None), tmp_path)
    assert not ended.waiting
    assert "pgd/c" in output.getvalue()
