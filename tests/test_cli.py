"""The whole way through the command line: what a user types, and what is on the disk and the screen afterwards."""

import errno
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import debiasbench
from debiasbench.cli import main
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import SELECTION_RULES
from debiasbench.grid import dataset_from_spec
from debiasbench.methods import registry as methods
from debiasbench.report import make as report

DATASET = '''
"""Small: the tiny data of the contract suite, for one epoch."""
from debiasbench.testing import Tiny

class Small(Tiny):
    name = "small"
    recipe = Tiny.recipe.replace(epochs=1)

class OneClass(Small):
    """A dataset with one class in its training data."""
    name = "one-class"
    def build(self, data_dir):
        import dataclasses
        splits = super().build(data_dir)
        keep = splits.train.y == 0
        train = type(splits.train)(splits.train.x[keep], splits.train.y[keep], splits.train.bias[keep])
        return dataclasses.replace(splits, train=train)
'''
METHODS = '''
"""Methods that go wrong in several ways."""
import os, signal, time
import torch
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method

class Base(Method):
    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net
    def loss(self, nets, batch, state):
        return cross_entropy(nets.net(batch.x), batch.y).mean()

class Raising(Base):
    name = "raising"
    def loss(self, nets, batch, state):
        print("printed by the method")
        raise KeyError("no such thing")

class NotANumber(Base):
    name = "notanumber"
    def loss(self, nets, batch, state):
        return super().loss(nets, batch, state) * float("nan")

class Killed(Base):
    name = "killed"
    def fit(self, task):
        os.kill(os.getpid(), signal.SIGKILL)

class WrongReturn(Base):
    name = "wrongreturn"
    def fit(self, task):
        super().fit(task)
        return "a string"

class NanLogits(Base):
    name = "nanlogits"
    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, predict=self.predict)
        return self.predict
    def predict(self, nets, x):
        return nets.net(x) * float("nan")

class OwnLoop(Base):
    """Uses the slow path."""
    name = "ownloop"
    def fit(self, task):
        net = task.new_net()
        for batch in task.batches(epochs=1):
            loss = cross_entropy(net(batch.x), batch.y[batch.perm][batch.perm.argsort()]).mean()
            loss.backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None
        task.evaluate(net)
        return net

class FailsOnce(Base):
    """Fails if the file that DEBIASBENCH_TEST names is there."""
    name = "failsonce"
    def fit(self, task):
        if os.path.exists(os.environ.get("DEBIASBENCH_TEST", "")):
            raise RuntimeError("the file is there")
        return super().fit(task)

class Slow(Base):
    name = "slow"
    def fit(self, task):
        time.sleep(60 if task.seed else 0)
        return super().fit(task)
'''


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory):
    """Folders with a quick dataset and with methods that fail, given as --methods-dir and --datasets-dir."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in (("quick_data", DATASET), ("bad_methods", METHODS)):
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(text, encoding="utf-8")
    kept = {name: os.environ.get(name) for name in ("DEBIASBENCH_METHODS_PATH", "DEBIASBENCH_DATASETS_PATH")}
    yield ["--methods-dir", str(folder / "bad_methods"), "--datasets-dir", str(folder / "quick_data")]
    for registry in (methods, datasets):
        path = sys.modules[registry.package].__path__
        path[:] = [part for part in path if not part.startswith(str(folder))]
    for name, value in kept.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def results(tmp_path_factory, plugins):
    """The results of one small grid, run once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("results")
    code = main(["run", *plugins, "--methods", "vanilla", "pgd", "--datasets", "small", "--seeds", "2",
                 "--results-dir", str(folder), "--device", "cpu", "--workers", "1", "--save-weights"])  # fmt: skip
    assert code == 0
    return folder


def records_of(folder):
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("s*.json"))}


def run(folder, plugins, *words):
    return main(["run", *plugins, "--datasets", "small", "--results-dir", str(folder), "--device", "cpu", *words])


def test_a_grid_leaves_records_tables_and_figures(results):
    records = records_of(results)
    assert sorted(path.parent.name for path in records) == ["pgd", "pgd", "vanilla", "vanilla"]
    assert {record["status"] for record in records.values()} == {"done"}
    for path in ("tables/comparison.md", "tables/comparison.tex", "tables/results.csv", "tables/tests.csv"):
        assert (results / path).stat().st_size > 100
    for stem in ("scores-small", "accuracies-small"):
        assert (results / "figures" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
        assert (results / "figures" / f"{stem}.pdf").read_bytes()[:4] == b"%PDF"


def test_a_record_holds_what_produced_it(results):
    path, record = next(item for item in records_of(results).items() if item[0].parent.name == "pgd")
    assert record["schema"] == 2
    assert record["cell"]["method_parameters"]["norm"] == "l2"
    assert record["cell"]["recipe"]["epochs"] == 1
    assert len(record["result"]["data"]["fingerprint"]) == 64
    assert set(record["result"]["selection"]) == {"last", "val_loss", "val_acc", "group_val", "test_oracle"}
    assert 0 <= record["result"]["identification"]["score"]["conflict_mass"] <= 1
    correct = record["result"]["epochs"][-1]["correct_by_class"]["test"]
    assert sum(correct) == round(100 * record["result"]["epochs"][-1]["test"]["acc_avg"])
    assert sum(record["result"]["data"]["splits"]["test"]["n_by_class"]) == 100
    assert (record["provenance"]["device_kind"], record["provenance"]["precision"]) == ("cpu", "fp32")
    assert set(record["provenance"]["code"]) == {"method", "dataset"}
    assert record["result"]["stages"][0]["end"]["net"]["test"]["n"] == 100  # the biased model's accuracy is known
    seconds = record["provenance"]["seconds"]
    assert seconds["total"] > sum(seconds["stages"]) > 0
    assert record["provenance"]["peak_memory_mib"] > 0
    assert set(record["provenance"]["versions"]) >= {"debiasbench", "torch", "python", "protocol"}
    assert path.with_suffix(".safetensors").is_file()


def test_finished_cells_are_not_run_again(results, plugins, capsys):
    before = {path: path.stat().st_mtime_ns for path in records_of(results)}
    assert run(results, plugins, "--methods", "vanilla", "pgd", "--seeds", "2") == 0
    assert "0 cells to run, 4 finished before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in records_of(results)}


def test_a_lost_and_a_cut_record_are_made_again_equal(results, plugins, capsys):
    first, second = list(records_of(results))[:2]
    kept = {path: records_of(results)[path]["result"] for path in (first, second)}
    first.unlink()
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    assert run(results, plugins, "--methods", "vanilla", "pgd", "--seeds", "2", "--save-weights", "--workers", "0") == 0
    assert "2 cells to run, 2 finished before" in capsys.readouterr().out
    assert {path: records_of(results)[path]["result"] for path in (first, second)} == kept


def test_the_screen_shows_the_table_the_tests_and_the_paths(results, capsys):
    assert main(["report", str(results)]) == 0
    shown = capsys.readouterr().out
    for words in ("Comparison", "±", "Tests against the reference", "p Welch", "comparison.tex", "scores-small"):
        assert words in shown


def test_the_python_interface_knows_executors(results, plugins, monkeypatch):
    asked = []

    def refuse(given, options):
        asked.append((options.executor, options.slurm, options.per_device))
        raise BenchmarkError("as asked")

    monkeypatch.setattr("debiasbench.running.run.plan_grid", refuse)
    for options in (
        {},
        {"executor": "ray:a:1", "per_device": 2},
        {"executor": "slurm", "slurm": ["time=8h", "gpus=1"]},
    ):
        with pytest.raises(BenchmarkError, match="as asked"):
            debiasbench.run(["vanilla"], ["small"], results_dir=results, **options)
    with pytest.raises(BenchmarkError, match="as asked"):
        debiasbench.run(["vanilla"], ["small"], results_dir=results, executor="slurm", slurm="cluster.toml")
    assert asked == [
        ("local", (), 1), ("ray:a:1", (), 2), ("slurm", ("time=8h", "gpus=1"), 1), ("slurm", ("cluster.toml",), 1),
    ]  # fmt: skip


def test_python_interface_gives_one_tidy_table(results, plugins):
    table = debiasbench.run(["vanilla", "pgd"], ["small"], seeds=2, results_dir=results, device="cpu")
    assert len(table) == 4 * 2 * len(SELECTION_RULES)  # cells x splits
    assert {"method", "dataset", "seed", "status", "select", "split", "acc_unbiased", "seconds"} <= set(table.columns)
    order = ["hash", "split", "select"]
    loaded = debiasbench.load_results(results).sort_values(order).acc_avg
    np.testing.assert_array_equal(loaded, table.sort_values(order).acc_avg)
    tests = debiasbench.compare(table, reference="vanilla")
    assert tests.method.tolist() == ["pgd"]
    assert tests.n_pairs.tolist() == [2]


def test_saved_weights_predict_what_the_record_says(results):
    import torch
    from safetensors.torch import load_file

    from debiasbench.data.augment import to_input
    from debiasbench.testing import Tiny

    samples = Tiny().build(Path()).test
    for path in records_of(results):
        predict = debiasbench.load_predictor(path)
        with torch.no_grad():
            predicted = predict(to_input(samples.x, Tiny.recipe)).argmax(1)
        assert torch.equal(predicted.short(), load_file(path.with_suffix(".safetensors"))["test_prediction"])


def test_failures_are_recorded_and_the_others_finish(tmp_path, plugins, capsys):
    bad = ["raising", "notanumber", "nanlogits", "killed", "wrongreturn"]
    words = ["--methods", "raising", "vanilla", *bad[1:], "--seeds", "1", "--workers", "1"]
    assert run(tmp_path, plugins, *words) == 1
    records = {path.parent.name: record for path, record in records_of(tmp_path).items()}
    assert records["vanilla"]["status"] == "done"
    assert {name: records[name]["status"] for name in bad} == dict.fromkeys(bad, "failed")
    assert "no such thing" in records["raising"]["failure"]["traceback"]
    assert "became nan in epoch 1" in records["notanumber"]["failure"]["message"]
    assert "logits that are not finite" in records["nanlogits"]["failure"]["message"]
    assert "SIGKILL" in records["killed"]["failure"]["message"]
    assert "fit must return the predictor" in records["wrongreturn"]["failure"]["message"]
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "no such thing" in shown.out
    logs = [path.read_text(encoding="utf-8") for path in (tmp_path / "logs").rglob("*.log")]
    assert any("printed by the method" in text for text in logs)

    assert run(tmp_path, plugins, "--methods", "vanilla", "raising", "--seeds", "1") == 1
    assert "0 cells to run" in capsys.readouterr().out  # failed cells wait for --rerun failed
    assert (
        run(tmp_path, plugins, "--methods", "vanilla", "raising", "--seeds", "1", "--rerun", "failed", "--workers", "0")
        == 1
    )
    assert "1 cells to run, 1 finished before" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_damaged_files_are_told_before_anything_trains(damage, tmp_path, capsys, mnist_data_dir):
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_data_dir / "MNIST" / "raw", raw, copy_function=shutil.copyfile)
    file = next(raw.glob("train-labels*"))
    data = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "cut": data[: len(data) // 2], "other": gzip.compress(b"\0\0\x08\x01\0\0\0\x01\0")}[damage]
    )
    words = ["run", "--methods", "vanilla", "pgd", "--datasets", "cmnist", "--data-dir", str(tmp_path)]
    assert main([*words, "--results-dir", str(tmp_path / "results")]) == 2
    shown = capsys.readouterr().err
    assert shown.count(file.name) == 1  # one message, not one a cell
    assert "debiasbench prepare" in shown
    assert not (tmp_path / "results" / "logs").exists()


@pytest.mark.parametrize("name", ["celeba", "waterbirds", "cmnist2"])
@pytest.mark.parametrize("folder", ["there", "a place, odd"])
def test_the_command_that_fetches_what_is_missing_fetches_it_where_it_is_looked_for(name, folder, tmp_path, capsys):
    root, places = tmp_path / folder, ["--data-dir", str(tmp_path), "--dry-run"]
    assert main(["run", "--methods", "vanilla", "--datasets", f'{name}:root="{root}"', *places]) == 2
    told = next(line for line in capsys.readouterr().err.splitlines() if "To download them: " in line)
    *_, spec = shlex.split(told.partition(": ")[2])
    assert dataset_from_spec(spec)[0].root == str(root)
    assert main(["run", "--methods", "vanilla", "--datasets", name, *places]) == 2
    assert f"debiasbench prepare {name} --data-dir {tmp_path}" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_finished(tmp_path, plugins):
    words = [sys.executable, "-P", "-m", "debiasbench", "run", *plugins, "--methods", "slow", "--datasets", "small"]
    words += ["--seeds", "2", "--workers", "1", "--device", "cpu", "--results-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(debiasbench.__file__).parent.parent)}
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True, encoding="utf-8"
    )
    deadline = time.monotonic() + 120
    while not records_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    (record,) = records_of(tmp_path).values()
    assert record["status"] == "done"
    assert not list(tmp_path.rglob(".s*"))  # no half-written files


@pytest.mark.parametrize("refused", ["grid.json", "cells.json", "s1000-", "tuned.toml"])
def test_a_full_disk_is_one_clear_error_wherever_it_is_met(tmp_path, plugins, monkeypatch, capsys, refused):
    make = tempfile.mkstemp

    def full(*, prefix, **where):
        if prefix.startswith(f".{refused}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make(prefix=prefix, **where)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    words = ["tune", *plugins, "--methods", "vanilla", "--datasets", "small", "--draws", "1", "--workers", "0"]
    assert main([*words, "--device", "cpu", "--results-dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"error: {tmp_path}/\S*{refused}\S* cannot be written: the disk is full\. Make room, .* is kept\.", told
    )


SECOND_INTERRUPTION = """
import atexit, os, signal, sys
from debiasbench import cli
atexit.register(os.kill, os.getpid(), signal.SIGINT)
def interrupted(options):
    raise KeyboardInterrupt
cli.status_command = interrupted
sys.argv = ["debiasbench", "status"]
sys.exit(cli.main())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of Unix")
def test_a_second_interruption_finds_nothing_to_interrupt():
    """One that comes while Python ends, and runs what packages have left for then."""
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + SECOND_INTERRUPTION
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (
        130,
        "Stopped. Finished cells are kept; the same command goes on with the rest.",
    )


@pytest.mark.parametrize("place", ["running.run.plan_grid", "running.run.run_grid", "report.make.make"])
def test_an_interruption_is_told_wherever_it_comes(place, tmp_path, plugins, monkeypatch, capsys):
    """While data are built, cells train, or the report is written; what was finished before is there."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"debiasbench.{place}", interrupted)
    assert run(tmp_path, plugins, "--methods", "vanilla", "--seeds", "1", "--workers", "0") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(records_of(tmp_path)) == (1 if place == "report.make.make" else 0)


MISTAKES = {
    "unknown method": (["--methods", "pdg", "--datasets", "small"], "Did you mean 'pgd'?"),
    "unknown dataset": (["--methods", "pgd", "--datasets", "smal"], "Did you mean 'small'?"),
    "unknown parameter": (["--methods", "pgd:alpa=1", "--datasets", "small"], "Did you mean 'alpha'?"),
    "ratio above 1": (["--methods", "pgd", "--datasets", "small:rho=1.5"], "in [0, 1]. Got 1.5"),
    "ratio below 0": (["--methods", "pgd", "--datasets", "small:rho=-0.1"], "in [0, 1]. Got -0.1"),
    "ratio no number": (["--methods", "pgd", "--datasets", "small:rho=abc"], "must be a number. Got 'abc'"),
    "no seeds": (["--methods", "pgd", "--datasets", "small", "--seeds", "0"], "at least 1. Got 0"),
    "no epochs": (["--methods", "pgd", "--datasets", "small", "--epochs", "0"], "at least 1. Got 0"),
    "no datasets": (["--methods", "pgd"], "--datasets is missing"),
    "unknown option": (["--metods", "pgd"], "--methods"),
    "unknown experiment": (["--experiment", "dmeo"], "Did you mean 'demo'?"),
    "unknown preset": (["--methods", "pgd:preset=oficial", "--datasets", "small"], "Did you mean 'official'?"),
    "unknown reference": (["--methods", "pgd", "--datasets", "small", "--reference", "vanilla"], "not among"),
    "unknown device": (["--methods", "pgd", "--datasets", "small", "--device", "gpu"], "Allowed: auto, cpu"),
    "unknown net": (["--methods", "pgd", "--datasets", "small:net=simcnv1"], "Did you mean 'simconv1'?"),
    "no worker": (
        ["--methods", "pgd", "--datasets", "small", "--workers", "-1"],
        "at least 0 (0: cells run in this process). Got -1",
    ),
    "one class": (["--methods", "pgd", "--datasets", "one-class"], "one class only"),
    "missing files": (["--methods", "pgd", "--datasets", "cmnist", "--data-dir", "nowhere"], "9.9 MB"),
    "missing folder": (["--methods", "pgd", "--datasets", "bffhq", "--data-dir", "nowhere"], "bffhq:root="),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_gets_one_message_before_anything_trains(case, tmp_path, plugins, capsys):
    words, answer = MISTAKES[case]
    assert main(["run", *plugins, "--results-dir", str(tmp_path / "results"), *words]) == 2
    shown = capsys.readouterr()
    assert answer in shown.err
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert not (tmp_path / "results" / "logs").exists()


def test_results_that_cannot_be_written_are_refused_first(tmp_path, plugins, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run(tmp_path / "file" / "results", plugins, "--methods", "vanilla", "--seeds", "1") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_ratio_0_is_allowed_and_jtt_declines_it(tmp_path, plugins, capsys):
    words = ["--methods", "vanilla", "jtt", "--dry-run", "--results-dir", str(tmp_path)]
    assert main(["run", *plugins, "--datasets", "small:rho=0|1", *words]) == 0
    shown = capsys.readouterr().out
    assert "skip: jtt on small:rho=0: lambda_up is 1 / (conflict ratio)" in shown
    assert "jtt on small:rho=1, seed 2 (" in shown
    assert not (tmp_path / "records").exists()


def test_list_inspect_prepare_and_status(results, plugins, tmp_path, capsys):
    assert main(["list", *plugins]) == 0
    assert "pgd-loss: pgd:score=loss" in capsys.readouterr().out
    assert main(["inspect", "small", *plugins, "--results-dir", str(tmp_path)]) == 0
    assert "information (nats)" in capsys.readouterr().out
    assert (tmp_path / "inspect" / "small-colour.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["prepare", "--check", *plugins, "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "cmnist: not complete" in shown
    assert "small: complete" in shown
    assert main(["status", str(results)]) == 0
    assert "pgd" in capsys.readouterr().out
    assert main(["report", str(results), "--bibtex"]) == 0
    assert "@inproceedings{ahn2023pgd" in capsys.readouterr().out


def test_addresses_of_missing_data_are_on_one_line_to_be_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = ("bffhq", "cmnist", "features", "imagefolder")  # of the last two a sentence, not an address
    assert main(["prepare", "--check", *names, "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name in names:
        dataset, _ = datasets.get(name)
        for file in dataset().needed_files(tmp_path):
            assert f"\n  from: {file.source}\n" in shown


def test_records_in_an_archive_count_as_those_of_the_folder(results, plugins, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    before = report.make(folder, figures=False)
    assert main(["archive", str(folder / "records")]) == 0
    assert f"{folder / 'records.zip'}: 12 files.\n" in capsys.readouterr().out  # arrays and weights go along
    assert main(["archive", str(folder / "records")]) == 2
    assert "records.zip exists already" in capsys.readouterr().err
    shutil.rmtree(folder / "records")
    assert main(["status", str(folder)]) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"small\W+(pgd|vanilla)\W+2\W+0\b", told)) == 2
    assert "not finished" not in told
    made = report.make(folder, figures=False)
    assert made.complaints == []
    assert made.tables == before.tables
    assert made.paths["records"] == [folder / "records.zip"]
    grid = ["--methods", "vanilla", "pgd", "--seeds", "2", "--save-weights"]
    assert run(folder, plugins, *grid, "--dry-run") == 0
    assert "0 cells to run, 4 finished before" in capsys.readouterr().out
    more = [*grid[:-2], "3", "--rerun", "failed", "--workers", "0"]
    assert run(folder, plugins, *more) == 0  # more seeds go beside the archive
    made = report.make(folder, figures=False)
    assert [row[-1].value for row in made.table("comparison").rows] == [3, 3]
    assert made.paths["records"] == [folder / "records", folder / "records.zip"]


def test_the_report_of_an_archive_goes_into_the_folder_of_its_name(results, tmp_path, capsys):
    archive = tmp_path / "given.zip"
    assert main(["archive", str(results / "records"), "--output", str(archive)]) == 0
    made = report.make(archive, figures=False)
    shutil.copytree(results / "records", tmp_path / "folder")
    assert made.tables == report.make(tmp_path / "folder", figures=False).tables
    assert made.paths["report"] == [tmp_path / "given" / "report.html"]
    assert main(["status", str(archive)]) == 0
    assert main(["archive", str(results / "records"), "--output", str(tmp_path / "given.tar")]) == 2
    assert "--output must end in .zip" in capsys.readouterr().err
    assert main(["archive", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path / "none.zip")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: There is no results folder {tmp_path / 'none.zip'}."


def test_help_does_not_import_torch():
    code = "import sys; from debiasbench.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    code += "assert main(['run', '--metods', 'pgd']) == 2\nassert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(debiasbench.__file__).parent.parent
    )


def test_what_is_misspelt_or_not_there_is_told_without_importing_torch(tmp_path):
    none = str(tmp_path / "none")
    commands = [
        ["run", "--methods", "pdg", "all", "vanila:x=1", "--datasets", "cmnist5"], ["inspect", "cmnist5"],
        ["embed", "cmnist5", "--encoder", "file:x.py"],
        ["prepare", "cmnist", "cmnist5"], ["run", "--experiment", "tabel1"], ["run", "--experiment", "none.toml"],
        ["report", none], ["status", none], ["list", "--methods-dir", none],
        ["run", "--datasets-dir", none, "--methods", "pgd", "--datasets", "cmnist5k"],
    ]  # fmt: skip
    code = f"import sys\nfrom debiasbench.cli import main\nassert [main(one) for one in {commands}] == [2] * 10\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=Path(debiasbench.__file__).parent.parent, text=True,
        encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    assert [line.partition(" Known:")[0] for line in lines] == [
        "Unknown method 'pdg'. Did you mean 'pgd'?", "Unknown method 'vanila'. Did you mean 'vanilla'?",
        *["Unknown dataset 'cmnist5'. Did you mean 'cmnist5k'?"] * 4,
        "Unknown experiment 'tabel1'. Did you mean 'table1'?", "Unknown experiment 'none.toml'.",
        *[f"There is no results folder {none}."] * 2,
        f"--methods-dir: '{none}' is not a folder.", f"--datasets-dir: '{none}' is not a folder.",
    ]  # fmt: skip


def test_run_works_from_a_script_without_a_main_guard(results, plugins, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import debiasbench
        table = debiasbench.run(["vanilla"], ["small"], seeds=[7], results_dir={str(tmp_path)!r}, device="cpu")
        assert set(table.status) == {{"done"}}, table.status
    """),
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(Path(debiasbench.__file__).parent.parent)}
    subprocess.run([sys.executable, "-P", str(script)], check=True, env=environment, timeout=120)


def test_a_failure_never_replaces_a_finished_record(tmp_path, plugins, monkeypatch, capsys):
    words = ["--methods", "failsonce", "--seeds", "1", "--workers", "0"]
    assert run(tmp_path, plugins, *words) == 0
    (before,) = records_of(tmp_path).values()
    (tmp_path / "flag").write_text("", encoding="utf-8")
    monkeypatch.setenv("DEBIASBENCH_TEST", str(tmp_path / "flag"))
    assert run(tmp_path, plugins, *words, "--rerun", "all") == 1
    assert "the file is there" in capsys.readouterr().err
    assert list(records_of(tmp_path).values()) == [before]


def test_a_loop_of_the_methods_own_gives_equal_results_again(plugins):
    from debiasbench.testing import check_global_randomness_is_left_alone, check_same_seed_same_result

    cls = methods.get("ownloop")[0]
    check_same_seed_same_result(cls)
    check_global_randomness_is_left_alone(cls)
