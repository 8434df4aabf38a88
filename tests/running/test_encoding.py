"""Text is UTF-8 whatever the locale: in settings, in the pipes to workers, in logs, records and reports."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from debiasbench.datasets import registry as datasets
from debiasbench.files import to_path
from debiasbench.records import read_records
from debiasbench.running.supervision import for_worker, from_worker

ROOT = Path(__file__).parent.parent.parent
DATASET = '''
"""Small: the tiny data of the contract suite, for one epoch."""
from debiasbench.testing import Tiny

class Small(Tiny):
    name = "small"
    recipe = Tiny.recipe.replace(epochs=1)
'''
METHODS = '''
"""Methods that say what no locale holds."""
import torch
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method

class Speaking(Method):
    name = "speaking"
    word: str = ""

    def fit(self, task):
        print(f"prints {self.word} and half a character \\ud800", flush=True)
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        task.log(größe=torch.tensor(2.0))
        return net

    def loss(self, nets, batch, state):
        return cross_entropy(nets.net(batch.x), batch.y).mean()

class Failing(Speaking):
    name = "failing"

    def fit(self, task):
        raise OSError(f"no file {self.word}\\udcf6.txt")
'''
WORD = "größe中"


METHOD_TITLES = [f"speaking:word={WORD}", f"failing:word={WORD}"]


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory):
    """The variables of a locale whose text is ISO 8859-1, made here where the system can make one."""
    folder = tmp_path_factory.mktemp("locales")
    tool = shutil.which("localedef")
    words = [tool, "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if tool is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a locale of ISO 8859-1 cannot be made here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the grid on the command line, in a locale and with Python's own UTF-8 mode off."""
    folder = tmp_path_factory.mktemp("speaking")
    for name, text in (("speaking_data", DATASET), ("speaking_methods", METHODS)):
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(text, encoding="utf-8")
    grid = f'methods = ["{METHOD_TITLES[0]}", "{METHOD_TITLES[1]}"]\ndatasets = ["small"]\nseeds = 1\n'
    (folder / "grid.toml").write_text(grid, encoding="utf-8")
    results = folder / "results of ö"

    def run(locale, *asked):
        command = [
            sys.executable, "-m", "debiasbench", "run", *asked, "--results-dir", results, "--device", "cpu",
            "--workers", "1", "--methods-dir", folder / "speaking_methods", "--datasets-dir", folder / "speaking_data",
        ]  # fmt: skip
        others = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
        off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=others | off | locale, capture_output=True, check=False, timeout=300)
        told = done.stdout.decode("latin-1") + done.stderr.decode("latin-1")
        assert done.returncode == 1, told  # as one method fails
        return folder, results, told

    return run


@pytest.fixture(scope="module")
def ran(run):
    """The grid, given on the command line in the locale C, which is ASCII."""
    return run({"LC_ALL": "C"}, "--methods", *METHOD_TITLES, "--datasets", "small", "--seeds", "1")


def test_a_grid_runs_and_is_reported_in_a_locale_that_lacks_its_characters(ran):
    _, results, told = ran
    records, complaints = read_records(results)
    assert complaints == []
    by_title = {record.cell.method_title: record for record in records}
    finished, failed = (by_title[title] for title in METHOD_TITLES)
    assert finished.done, finished.failure
    assert finished.result.logged == {"größe": 2.0}
    assert finished.cell.method_parameters == {"word": WORD}
    assert failed.failure.message == rf"no file {WORD}\udcf6.txt"
    (log,) = (results / "logs").rglob("speaking*/*.log")
    assert rf"prints {WORD} and half a character \ud800" in log.read_text(encoding="utf-8")
    assert WORD in (results / "report.html").read_text(encoding="utf-8")
    assert WORD in (results / "tables" / "results.csv").read_text(encoding="utf-8-sig")
    assert r"gr\xf6\xdfe\u4e2d" in told  # what the terminal lacks is told by its code


@pytest.mark.slow
def test_its_cells_count_as_finished_in_another_locale(ran, run, latin_1):
    folder, results, _ = ran
    shutil.rmtree(results / "tables")
    _, _, told = run(latin_1, "--experiment", folder / "grid.toml")
    assert "0 cells to run, 1 finished before" in told
    assert WORD in (results / "tables" / "results.csv").read_text(encoding="utf-8-sig")
    assert r"größe\u4e2d" in told


def test_paths_come_to_a_worker_and_back(monkeypatch):
    """A worker's file names are UTF-8, this process' may be something else."""
    for path in (Path("größe中"), Path(os.fsdecode(b"\xff"))):
        assert from_worker(for_worker(path)) == path
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("latin-1"))
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("latin-1"))
    assert for_worker(Path("ö")) == "\udcf6"  # whose bytes, in a process with UTF-8, are those of ISO 8859-1
    assert from_worker("\udcf6") == Path("ö")


def test_a_folder_in_a_setting_is_found_where_the_locale_cannot_write_its_name(monkeypatch):
    assert to_path("größe") == Path("größe")
    dataset = datasets.get("imagefolder")[0](root="größe", title="x")
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    assert os.fsencode(str(to_path("größe"))) == "größe".encode()
    assert to_path("plain") == Path("plain")
    assert os.fsencode(str(dataset.folder(Path()))) == "größe".encode()


def without_encoding(tree):
    """Lines that read or write text and leave the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        values = [getattr(argument, "value", None) for argument in node.args]
        as_text = words.get("text") is True or words.get("universal_newlines") is True
        if name in ("open", "fdopen") and owner not in ("Image", "gzip", "tarfile", "zipfile"):
            is_method = name == "open" and isinstance(called, ast.Attribute)
            mode = words.get("mode", (values[0:1] if is_method else values[1:2]) or "r")
            mode = mode[0] if isinstance(mode, list) else mode
            as_text |= isinstance(mode, str) and "b" not in mode and set(mode) <= set("rwax+t")
        as_text |= (name, len(node.args)) in (("read_text", 0), ("write_text", 1))
        if as_text:
            yield node.lineno


def test_no_file_leaves_the_encoding_of_text_to_the_locale():
    folders = ("debiasbench", "methods", "datasets", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()", "path.write_text(text)", "open(path)", "open(path, 'w')", "path.open()", "path.open('a')",
        "path.open(mode='r+')", "os.fdopen(1, 'w')", "run(words, text=True)", "open(path, newline='')",
    ],
)  # fmt: skip
def test_an_encoding_that_is_missing_is_seen(source):
    assert list(without_encoding(ast.parse(source))) == [1]
    assert not list(without_encoding(ast.parse(source.replace(")", ", encoding='utf-8')").replace("(, ", "("))))


@pytest.mark.parametrize(
    "source", ["open(path, 'rb')", "path.open('wb')", "Image.open(file)", "run(words)", "x.open(o)"]
)
def test_bytes_need_no_encoding(source):
    assert not list(without_encoding(ast.parse(source)))
