"""What notebooks show: tables, the display of a run, and examples/quickstart.ipynb as it is run."""

import pickle
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import IPython.display
import nbclient
import nbformat
import pandas as pd
import pytest
from made_records import failed_record, made_record, stored

import debiasbench
from debiasbench import console
from debiasbench.console import NotebookLive, PlainConsole
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report import make as report
from debiasbench.report import notebook
from debiasbench.running.executor import Event
from debiasbench.running.progress import Display

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SELECTION = {"last": 0, "val_loss": 0, "val_acc": 0, "group_val": 0, "test_oracle": 0}
NASTY = "<script>alert(1)</script> & \x1b[31m \ud83d"

# ---- tables ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The cells of a page's tables, with the ones in bold, its other texts, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.bold, self.paragraphs, self.tags = [], [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.last = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("p", "br"):
            self.paragraphs.append("")
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        if tag == "table":
            self.last = None

    def handle_data(self, data):
        data = data.strip("\n")
        if self.rows and self.last in ("td", "th", "strong") and self.rows[-1]:
            self.rows[-1][-1] += data
            self.bold += [data] if self.last == "strong" else []
        elif self.paragraphs:
            self.paragraphs[-1] += data


def fill(folder, methods=("vanilla", "pgd:norm=l1", "groupdro"), official=False, note=""):
    for cell in expand(list(methods), ["cmnist5k", "cmnist5k:rho=0.1"], seeds=3).cells:
        value = 0.5 + 0.01 * cell.seed + 0.1 * methods.index(cell.method_title)
        rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_unbiased": value, "acc_avg": value})]
        stored(folder, made_record(cell, rows, SELECTION, data={"official": official, "note": note}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three methods, one of which knows the bias, on two datasets that are not the published ones."""
    return fill(tmp_path_factory.mktemp("results"), note="a <part> of it")


def shown(table):
    """The rows and notes that the terminal shows."""
    rows = [[column.heading for column in table.columns], *([one.shown for one in row] for row in table.rows)]
    return rows, [one.shown for row in table.rows for one in row if one.best], table.notes


@pytest.mark.parametrize("kind", ["comparison", "tests"])
def test_a_notebook_shows_the_table_of_the_terminal(folder, kind):
    made = report.make(folder, figures=False, reference="vanilla", shown=report.Shown(order="name"))
    table = debiasbench.load_results(folder)
    frame = table if kind == "comparison" else debiasbench.compare(table, reference="vanilla")
    html = frame._repr_html_()
    page, (rows, bold, notes) = Page(html), shown(made.table(kind))
    assert sorted(page.rows[1:]) == sorted(rows[1:])
    assert page.rows[0] == rows[0]
    assert page.bold == bold
    assert [text for text in page.paragraphs if text in notes] == notes
    assert made.table(kind).title in html
    assert "‡" in html
    assert f"A data frame of {len(frame):,} rows and" in html
    two = table[(table.dataset == "cmnist5k") & (table.method != "groupdro")]
    assert "A data frame of 1 row and" in debiasbench.compare(two)._repr_html_()
    if kind == "comparison":
        assert "†" in html
        assert "a &lt;part&gt; of it" in html


def test_titles_and_messages_of_others_are_text(tmp_path):
    cells = expand(["vanilla", "pgd"], ["cmnist5k"], seeds=1).cells
    rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_unbiased": 0.5})]
    stored(tmp_path, made_record(cells[0], rows, SELECTION, data={"official": False, "note": NASTY}))
    stored(tmp_path, failed_record(cells[1], message=NASTY))
    html = debiasbench.load_results(tmp_path)._repr_html_()
    assert Page(html).tags <= {"p", "strong", "small", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert html.count("&lt;script&gt;") == 2
    assert "failed: pgd on cmnist5k, seed 0: RuntimeError: &lt;script&gt;" in html
    html.encode()
    assert "\x1b" not in html


def test_failures_alone_and_many_are_told(tmp_path):
    for cell in expand(["vanilla"], ["cmnist5k"], seeds=12).cells:
        stored(tmp_path, failed_record(cell))
    page = Page(debiasbench.load_results(tmp_path)._repr_html_())
    assert not page.rows
    assert len([text for text in page.paragraphs if text.startswith("failed: vanilla")]) == 10
    assert "failed: 2 more." in page.paragraphs


def test_what_is_made_of_it_is_a_plain_data_frame(folder):
    table = debiasbench.load_results(folder)
    tests = debiasbench.compare(table)
    for frame in (table, tests):
        assert isinstance(frame, pd.DataFrame)
        for made in (frame[frame.method == "pgd:norm=l1"], frame.head(), frame.copy(), frame[["method"]],
                     pd.concat([frame, frame]), frame.sort_values("method"), frame.assign(a=1)):  # fmt: skip
            assert type(made) is pd.DataFrame
        again = pickle.loads(pickle.dumps(frame))
        assert again._repr_html_() == frame._repr_html_()


def test_what_was_changed_is_shown_as_it_is_now(folder):
    table = debiasbench.load_results(folder)
    table.loc[table.method == "vanilla", "acc_unbiased"] = 0.25
    assert "25.00 ± 0.00" in table._repr_html_()
    del table["method"]
    assert table._repr_html_() == pd.DataFrame(table)._repr_html_()
    renamed = debiasbench.load_results(folder)
    renamed.columns = ["cell" if name == "hash" else name for name in renamed]
    assert renamed._repr_html_() == pd.DataFrame(renamed)._repr_html_()
    tests = debiasbench.compare(debiasbench.load_results(folder))
    del tests["gap"]
    assert tests._repr_html_() == pd.DataFrame(tests)._repr_html_()


@pytest.mark.parametrize("error", [KeyError("gap"), AttributeError("gap"), TypeError("gap")])
@pytest.mark.parametrize("kind", ["results", "tests"])
def test_a_mistake_of_the_suite_is_not_hidden(folder, kind, error, monkeypatch):
    def broken(*_):
        raise error

    table = debiasbench.load_results(folder)
    frame = debiasbench.compare(table) if kind == "tests" else table
    monkeypatch.setattr(notebook, "marked", broken)
    with pytest.raises(type(error), match="gap"):
        frame._repr_html_()


def test_data_frames_are_text_where_their_user_wants_them_so(folder):
    table = debiasbench.load_results(folder)
    with pd.option_context("display.notebook_repr_html", False):
        assert table._repr_html_() is None
        assert debiasbench.compare(table)._repr_html_() is None


def test_what_must_not_stand_in_one_table_is_told_above_the_rows(tmp_path):
    fill(tmp_path, ("vanilla", "pgd"))
    (cell,) = expand(["pgd"], ["cmnist5k"], seeds=[3]).cells
    rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_unbiased": 0.5})]
    stored(tmp_path, made_record(cell, rows, SELECTION, provenance={"versions": {"protocol": 0}}))
    html = debiasbench.load_results(tmp_path)._repr_html_()
    assert "come from different versions" in html
    assert "dataframe" in html


# ---- the display of a run --------------------------------------------------------------------------------------------


class Output:
    """What IPython gives for an output, and all that it showed."""

    def __init__(self, data):
        self.shown = [data]

    def update(self, data, *, raw):
        assert raw
        self.shown.append(data)


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a notebook's cell."""
    found = []

    def display(data, *, raw=False, display_id=False):
        found.append(Output(data))
        assert raw is display_id
        return found[-1]

    monkeypatch.setattr(IPython.display, "display", display)
    return found


def test_a_run_is_one_output_that_changes(outputs, capsys):
    grid = expand(["vanilla", "pgd"], ["cmnist5k"], seeds=1)
    notebook = PlainConsole(force_jupyter=True)
    with Display(SimpleNamespace(grid=grid, to_run=grid.cells), notebook) as display:
        assert isinstance(display.live, NotebookLive)
        for cell in grid.cells:
            display.handle(Event("started", cell, 0))
            display.handle(Event("epoch", cell, 0, stage="stage <1>", epoch=3, epochs=20))
        display.handle(Event("finished", grid.cells[0], 0))
    (output,) = outputs
    first, last = output.shown[0], output.shown[-1]
    assert "0/2" in first["text/plain"]
    assert "1/2" in last["text/plain"]
    assert "epoch 3/20" in last["text/plain"]
    assert "stage &lt;1&gt;" in last["text/html"]
    assert last["text/html"].startswith("<pre style=")
    assert capsys.readouterr() == ("", "")


def test_it_is_looked_at_again_while_nothing_happens(outputs, monkeypatch):
    monkeypatch.setattr(console, "EACH", 0.001)
    shown = ["one"]
    live = console.live(console.Text("one"), PlainConsole(force_jupyter=True, highlight=False))
    monkeypatch.setattr(live, "_now", lambda: {"text/plain": shown[-1]})
    live.start()
    live._ended.wait(0.05)  # many looks, at which nothing has changed
    assert len(outputs[0].shown) == 1
    shown.append("two")
    for _ in range(1000):
        if len(outputs[0].shown) > 1:
            break
        live._ended.wait(0.01)
    live.stop()
    assert [one["text/plain"] for one in outputs[0].shown] == ["one", "two", "two"]


def test_a_failure_is_told_in_an_output_of_its_own(outputs):
    grid = expand(["vanilla"], ["cmnist5k"], seeds=1)
    with Display(
        SimpleNamespace(grid=grid, to_run=grid.cells), PlainConsole(force_jupyter=True, highlight=False)
    ) as display:
        display.handle(Event("started", grid.cells[0], 0))
        display.handle(Event("failed", grid.cells[0], 0, message="<it> broke"))
    assert len(outputs) == 2
    assert "<it> broke" in outputs[1].shown[0].text


@pytest.mark.parametrize(
    ("given", "notebook", "displayed"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
@pytest.mark.parametrize("function", ["run", "tune"])
def test_a_notebook_shows_progress_unless_told_otherwise(function, given, notebook, displayed, tmp_path, monkeypatch):
    asked = []

    class AskedError(Exception):
        pass

    def run_grid(ready, handle):
        asked.append(type(getattr(handle, "__self__", None)) is Display)
        raise AskedError

    grid = expand(["vanilla"], ["cmnist5k"], seeds=1)
    ready = SimpleNamespace(left_out={}, plan=SimpleNamespace(grid=grid, to_run=grid.cells))
    monkeypatch.setattr("debiasbench.running.run.plan_grid", lambda *_: ready)
    monkeypatch.setattr("debiasbench.running.run.plan_tuning", lambda *_, **__: SimpleNamespace(ready=ready))
    monkeypatch.setattr("debiasbench.running.run.run_grid", run_grid)
    monkeypatch.setattr(console, "in_a_notebook", lambda: notebook)
    with pytest.raises(AskedError):
        getattr(debiasbench, function)(["vanilla"], ["cmnist5k"], results_dir=tmp_path, progress=given)
    assert asked == [displayed]


def test_nothing_else_is_a_notebook():
    assert console.in_a_notebook() is False
    assert console.live(console.Text("one"), PlainConsole(force_jupyter=False, force_terminal=False)) is None


# ---- the example -----------------------------------------------------------------------------------------------------

SMALL = """
from debiasbench.testing import Tiny


class Small(Tiny):
    name = "small"
    recipe = Tiny.recipe.replace(epochs=1)
"""


def executed(folder, changes, monkeypatch):
    """The notebook, run in a folder; what to replace in its code -> by what."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        for old, new in changes.items() if cell.cell_type == "code" else ():
            cell.source = cell.source.replace(old, new)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]


def check(outputs, methods):
    """Progress, the comparison, the runs, the tests and two figures."""
    kinds = [(one.output_type, sorted(one.data)) for one in outputs]
    table, figure = ["text/html", "text/plain"], ["image/png", "text/plain"]
    assert kinds == [("display_data", table), *[("execute_result", table)] * 3, *[("execute_result", figure)] * 2]
    progress, comparison, _, tests = (one.data for one in outputs[:4])
    assert "4/4" in progress["text/plain"]
    assert [row[0] for row in Page(comparison["text/html"]).rows[1:]] == methods
    assert "Tests against the reference" in tests["text/html"]


def test_the_example_runs_on_small_data(tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "small.py").write_text(textwrap.dedent(SMALL), encoding="utf-8")
    monkeypatch.setenv("DEBIASBENCH_DATASETS_PATH", str(tmp_path / "small"))
    changes = {'"cmnist5k"': '"small"', "epochs=2": "epochs=1, workers=0"}
    assert all(any(old in cell.source for cell in nbformat.read(NOTEBOOK, 4).cells) for old in changes)
    check(executed(tmp_path, changes, monkeypatch), ["vanilla", "pgd"])


@pytest.mark.slow
def test_the_example_runs_as_it_is(tmp_path, monkeypatch):
    check(executed(tmp_path, {}, monkeypatch), ["vanilla", "pgd"])


def test_the_example_is_short_and_without_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 6
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert NOTEBOOK.stat().st_size < 10_000


def test_importing_the_suite_imports_nothing_large():
    code = "import sys, debiasbench; print({'torch', 'pandas', 'matplotlib', 'rich', 'IPython'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "set()"
