"""Networks, metrics and rules of other files in whole runs: records, tables, edits, workers."""

import re
import sys
from dataclasses import replace

import pytest
import torch

from debiasbench import load_predictor
from debiasbench.cell import Cell
from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.grid import expand
from debiasbench.records import find_record, read_record
from debiasbench.report.make import Shown, make, status
from debiasbench.running import nodes, ray_cluster
from debiasbench.running.run import RunOptions, plan_grid, run_grid
from debiasbench.training.reuse import facts_of_nets

NET = """
from torch import nn
from debiasbench.nets.own import Net

class Mine(Net):
    name = "mine"
    def __init__(self, shape, n_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 6), nn.ReLU())
        self.n_features = 6
        self.head = nn.Linear(6, n_classes)
    def features(self, x):
        return 1.0 * self.body(x)
"""
FUNCTIONS = """
import numpy as np
from debiasbench.evaluation.own import metric, rule

@metric
def sureness(logits):
    return 1.0 * np.exp(-logits.std())
@rule
def first(rows):
    return 0
@rule
def group_first(rows):
    return 0
"""
pytestmark = pytest.mark.usefixtures("cmnist5k")
QUICK = "cmnist5k:epochs=2,batch_size=256,net="


def planned(tmp_path, *nets, methods=("vanilla",), workers=0, folder="results", **options):
    asked = Experiment("", list(methods), [f"{QUICK}{net}" for net in nets], seeds=1)
    return plan_grid(asked, RunOptions(tmp_path, tmp_path / folder, device="cpu", workers=workers, **options))


def run(tmp_path, *nets, **options):
    """Run vanilla on cmnist5k with these networks, in this process -> the records, in order."""
    ready = planned(tmp_path, *nets, **options)
    run_grid(ready, lambda _: None)
    return [read_record(find_record(ready.options.results_dir, cell)) for cell in ready.plan.grid.cells]


# ---- records and tables ----------------------------------------------------------------------------------------------


def test_a_run_has_them_in_its_records_and_tables(own_files, tmp_path):
    own_files(net=NET, functions=FUNCTIONS)
    mine, other = run(tmp_path, "mine", "mlp")
    for record, parts in ((mine, {"net"}), (other, set())):
        assert record.done
        assert record.provenance.code.keys() == {
            "method", "dataset", "metric sureness", "rule first", "rule group_first", *parts,
        }  # fmt: skip
        assert len(record.result.epochs) == 2
        for epoch in record.result.epochs:
            assert 0 < epoch.test["sureness"] < 1
            assert 0 < epoch.valid["sureness"] < 1
            assert epoch.test["sureness"] != epoch.valid["sureness"]
        assert record.result.selection["first"] == record.result.selection["group_first"] == 0
        assert record.result.selected("first") is record.result.epochs[0]
        assert record.result.selected("last") is record.result.epochs[1]

    own_files(net="", functions="")  # a report is made of records alone
    shown = Shown(metrics=("sureness", "acc_unbiased"), select=("last", "first", "group_first"))
    report = make(tmp_path / "results", shown=shown, figures=False)
    comparison, selection = report.tables[:2]
    heads = [column.heading for column in comparison.columns]
    title = f"{QUICK}mine"
    for metric in ("sureness", "acc_unbiased"):
        assert f"{title} {metric} (%)" in heads
        assert f"{title} {metric}, first (%)" in heads
        assert f"{title} {metric}, group_first§ (%)" in heads
    assert "by first, a function outside the suite; by group_first, a function" in comparison.notes[0]
    heads = [column.heading for column in selection.columns]
    assert heads[-1] == "sureness, last"
    assert {"first", "group_first§", "last"} <= {*heads}
    values = dict(zip(heads, (entry.value for entry in selection.rows[0]), strict=True))
    assert values["first"] == pytest.approx(mine.result.epochs[0].test["acc_unbiased"])
    assert values["sureness, last"] == pytest.approx(mine.result.epochs[1].test["sureness"])
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"\bgroup_first\b", page)) >= 2
    with pytest.raises(BenchmarkError, match=r"No metric 'surenes'\. Did you mean 'sureness'\?"):
        make(tmp_path / "results", shown=Shown(metrics=("surenes",)))
    with pytest.raises(BenchmarkError, match=r"No selection rule 'frist'\. Did you mean 'first'\?"):
        make(tmp_path / "results", shown=Shown(select=("frist",)))


def test_records_of_the_suites_networks_are_equal_but_for_them(own_files, tmp_path):
    own_files()
    (before,) = run(tmp_path, "mlp", folder="before")
    assert before.provenance.code.keys() == {"method", "dataset"}
    own_files(net=NET, functions=FUNCTIONS)
    (after,) = run(tmp_path, "mlp", folder="after")
    assert after.hash == before.hash
    plain = [
        replace(
            epoch,
            valid={name: value for name, value in epoch.valid.items() if name != "sureness"},
            test={name: value for name, value in epoch.test.items() if name != "sureness"},
        )
        for epoch in after.result.epochs
    ]
    selection = {name: row for name, row in after.result.selection.items() if "first" not in name}
    tune = {name: value for name, value in (after.result.tune or {}).items() if name != "sureness"} or None
    assert replace(after.result, epochs=tuple(plain), selection=selection, tune=tune) == before.result


def test_a_worker_process_has_them_too(own_files, tmp_path):
    own_files(net=NET, functions=FUNCTIONS)
    (here,) = run(tmp_path, "mine", folder="here")
    (there,) = run(tmp_path, "mine", folder="there", workers=1)
    assert there.result == here.result
    assert there.provenance.code == here.provenance.code


def test_trained_networks_are_read_again_where_their_file_is_known(own_files, tmp_path):
    own_files(net=NET)
    (record,) = run(tmp_path, "mine", save_weights=True)
    assert load_predictor(record.path)(torch.rand(2, 3, 28, 28)).shape == (2, 10)
    own_files(net="")
    with pytest.raises(BenchmarkError, match=r"cannot be read as weights of its record \(Unknown net 'mine'"):
        load_predictor(record.path)


def test_a_metric_that_fails_later_is_a_failure_in_words(own_files, tmp_path):
    text = """
    from debiasbench.evaluation.own import metric
    @metric
    def bad(conflicting):
        assert conflicting.mean() < LIMIT, "few are aligned"
        return 1.0
    """
    own_files(bad=text.replace("LIMIT", "0.5"))
    with pytest.raises(BenchmarkError, match="The metric bad failed on test: AssertionError: few are aligned"):
        planned(tmp_path, "mlp")  # before anything trains
    own_files(bad=text.replace("LIMIT", "1.5"))
    ready = planned(tmp_path, "mlp")
    own_files(bad=text.replace("LIMIT", "0.5"))
    run_grid(ready, lambda _: None)
    record = read_record(find_record(tmp_path / "results", ready.plan.grid.cells[0]))
    assert not record.done
    assert record.failure.type == "BenchmarkError"
    assert record.failure.message == "The metric bad failed on test: AssertionError: few are aligned."


def test_a_file_that_breaks_meanwhile_is_a_failure_in_words(own_files, tmp_path):
    own_files(net=NET, functions=FUNCTIONS)
    ready = planned(tmp_path, "mine")
    own_files(functions="import no_such_package")
    run_grid(ready, lambda _: None)
    record = read_record(find_record(tmp_path / "results", ready.plan.grid.cells[0]))
    assert record.failure.message.startswith("The file functions.py of --nets-dir cannot be used: ModuleNotFoundError")


def test_what_cannot_be_is_told_before_anything_trains(own_files, tmp_path, capsys):
    folder = own_files(net=NET.replace("nn.Linear(6, n_classes)", "nn.Linear(6, 3)"))
    arguments = ["run", "--methods", "vanilla", "--results-dir", str(tmp_path / "r"), "--nets-dir", str(folder)]
    for net, said in (
        ("mine", r"cmnist5k:.*The net mine cannot be used for samples of 3 x 28 x 28 and 10 classes: head must be"),
        ("simconv2", r"The net simconv2 does not take samples of 3 x 28 x 28"),
        ("torchvision:squeezenet1_1", r"The net torchvision:squeezenet1_1 does not end in one linear layer"),
    ):
        assert main([*arguments, "--datasets", f"{QUICK}{net}"]) == 2
        assert re.match(rf"error: .*{said}", capsys.readouterr().err)
    assert not list((tmp_path / "r").rglob("*.json"))


def test_the_list_has_them(own_files, capsys):
    folder = own_files(
        net=NET, functions=FUNCTIONS.replace("def first(rows):", 'def first(rows):\n    """The start."""')
    )
    assert main(["list", "--nets-dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "simconv1" in said
    assert "torchvision:NAME" in said
    for line in ("  mine: ", "metrics", "  sureness: ", "rules", "  first: The start."):
        assert re.search(rf"^{line}", said, re.MULTILINE), line
    own_files(functions="import no_such_package")
    assert main(["list", "--nets-dir", str(folder)]) == 0
    assert "functions: could not be imported (ModuleNotFoundError" in capsys.readouterr().out


# ---- edits -----------------------------------------------------------------------------------------------------------

EDITS = {
    "net": ("net", "the net mine", lambda text: text.replace("1.0 *", "2.0 *")),
    "metric": ("functions", "the metric sureness", lambda text: text.replace("1.0 *", "0.5 *")),
    "rule": ("functions", "the rule first", lambda text: text.replace("return 0", "return len(rows) - 1")),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_stops_the_run_and_both_ways_out_work(own_files, tmp_path, kind):
    file, what, edit = EDITS[kind]
    texts = {"net": NET, "functions": FUNCTIONS}
    own_files(**texts)
    (old,) = run(tmp_path, "mine")
    own_files(**{file: "# a comment\n" + texts[file]})
    assert run(tmp_path, "mine") == [old]
    own_files(**{file: edit(texts[file])})
    with pytest.raises(BenchmarkError, match=rf"(?s)The code of {what} has changed since 1 finished cell.*--rerun ch"):
        planned(tmp_path, "mine")
    assert run(tmp_path, "mine", keep_changed=True) == [old]
    (new,) = run(tmp_path, "mine", rerun="changed")
    assert new.result != old.result
    assert run(tmp_path, "mine") == [new]


def test_an_edited_network_is_no_matter_of_others(own_files, tmp_path):
    own_files(net=NET, functions=FUNCTIONS)
    (old,) = run(tmp_path, "mlp")
    own_files(net=EDITS["net"][2](NET))
    assert run(tmp_path, "mlp") == [old]


def test_an_edited_helper_of_a_network_counts(own_files, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for factor in ("1.0", "2.0"):
        sys.modules.pop("helper_of_a_net", None)
        (tmp_path / "helper_of_a_net.py").write_text(f"FACTOR = {factor}\n", encoding="utf-8")
        own_files(net="import helper_of_a_net\n" + NET.replace("1.0 *", "helper_of_a_net.FACTOR *"))
        if factor == "1.0":
            run(tmp_path, "mine")
    with pytest.raises(BenchmarkError, match="The code of the net mine has changed"):
        planned(tmp_path, "mine")
    sys.modules.pop("helper_of_a_net")


def test_what_is_new_is_a_notice_and_changed_runs_it(own_files, tmp_path):
    own_files()
    (old,) = run(tmp_path, "mlp")
    own_files(functions=FUNCTIONS)
    ready = planned(tmp_path, "mlp")
    assert not ready.plan.to_run
    for what in ("metric sureness", "rule first", "rule group_first"):
        notice = f"1 finished cell was run without the {what}, and will show none. To run it again: --rerun changed."
        assert notice in ready.plan.grid.notices
    (new,) = run(tmp_path, "mlp", rerun="changed")
    assert new.result.selection["first"] == 0
    assert new.result.epochs[0].test["acc_avg"] == old.result.epochs[0].test["acc_avg"]
    assert not planned(tmp_path, "mlp", rerun="changed").plan.to_run
    own_files(functions="")  # without them it counts all the same
    assert run(tmp_path, "mlp") == [new]


def test_status_says_what_is_stale(own_files, tmp_path):
    own_files(net=NET)
    run(tmp_path, "mine")
    assert not [note for note in status(tmp_path / "results").notes if note.startswith("Stale")]
    own_files(net=EDITS["net"][2](NET))
    (note,) = [note for note in status(tmp_path / "results").notes if note.startswith("Stale")]
    assert "1 of vanilla (the code of its net mine has changed: --rerun changed or --keep-changed)" in note


def test_a_stage_is_reused_with_equal_code_of_its_network_alone(own_files):
    from debiasbench.nets.build import build_net

    facts = []
    for text in (NET, f"# a comment\n{NET}", EDITS["net"][2](NET)):
        own_files(net=text)
        torch.manual_seed(0)
        facts.append(facts_of_nets({"net": build_net("mine", (3, 4, 4), 2)}))
    assert facts[0] == facts[1] != facts[2]


# ---- other machines --------------------------------------------------------------------------------------------------


def cell_of(net) -> Cell:
    (cell,) = expand(["vanilla"], [f"{QUICK}{net}"], seeds=1).cells
    return cell


def test_their_files_go_along_with_a_cell(own_files, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_a_net.py").write_text("", encoding="utf-8")
    own_files(net="import helper_of_a_net\n" + NET, functions=FUNCTIONS, unused=NET.replace("mine", "unused"))
    files = ray_cluster.plugin_files([cell_of("mine")])
    assert files.keys() == {"nets/own/net.py", "nets/own/functions.py", "modules/helper_of_a_net.py"}
    assert ray_cluster.plugin_files([cell_of("mlp")]).keys() == {"nets/own/functions.py"}
    variables = ray_cluster.unpacked(files, tmp_path / "there")
    assert variables["DEBIASBENCH_NETS_PATH"] == str(tmp_path / "there" / "nets" / "own")
    assert (tmp_path / "there" / "nets" / "own" / "functions.py").read_bytes() == files["nets/own/functions.py"]
    own_files(net="", functions="", unused="")
    assert ray_cluster.unpacked(ray_cluster.plugin_files([cell_of("mlp")]), tmp_path)["DEBIASBENCH_NETS_PATH"] == ""


def test_a_machine_with_other_files_is_refused(own_files):
    own_files(net=NET, functions=FUNCTIONS)
    cell = cell_of("mine")
    expected = cell.code()
    assert nodes.other_code(cell, expected) == ""
    for texts, what in (
        ({"net": EDITS["net"][2](NET)}, "net mine"),
        ({"net": NET, "functions": EDITS["metric"][2](FUNCTIONS)}, "metric sureness"),
        ({"functions": ""}, "metric sureness"),
        ({"functions": FUNCTIONS, "more": FUNCTIONS.replace("first", "second").replace("sureness", "x")}, "metric x"),
    ):
        own_files(**texts)
        assert re.match(rf"The {what} on \S+ differs from that of the run", nodes.other_code(cell, expected))
