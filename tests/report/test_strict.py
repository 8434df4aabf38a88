"""What a table must hold to be published: one good folder, many spoilt ones, and the seal of what passed."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from made_records import changed, failed_record, made_record, stored

from debiasbench import cli
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment, write_grid
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, pack, read_records, record_path, write_record
from debiasbench.report import make as report
from debiasbench.report import strict
from debiasbench.report.budgets import Budget, budget_of, untuned
from debiasbench.tuned import Draw, Tuned
from debiasbench.tuning import with_values

METHODS = ["vanilla", "pgd", "disen"]
DATASETS, OTHER = ["cmnist5k"], "cmnist5k:rho=0.05"
SEEDS = list(range(6))  # 2^-6 is below .05 over two or three comparisons
MADE_ON = {"device_kind": "cpu", "precision": "fp32"}


def record(cell, **provenance):
    """A finished record by hand, as a run of today would leave it."""
    value = {"vanilla": 0.4, "pgd": 0.8, "disen": 0.6}.get(cell.method, 0.7) + 0.01 * (cell.seed % 4)
    test = {"acc_avg": value, "acc_unbiased": value, "acc_worst": value / 2}
    rows = [EpochFacts(epoch, {"loss": 0.1 * epoch, "acc_avg": 0.9}, test) for epoch in (1, 2)]
    rules = {"last": 1, "val_loss": 0, "val_acc": 1, "group_val": 1, "test_oracle": 1}
    return made_record(cell, rows, rules, provenance={**MADE_ON, "code": cell.code(), **provenance})


def cells_of(methods=METHODS, datasets=DATASETS, seeds=SEEDS, **options):
    return expand(list(methods), list(datasets), seeds=list(seeds), **options).cells


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Three methods with six seeds, as their run left them."""
    folder = tmp_path_factory.mktemp("good")
    for cell in cells_of():
        stored(folder, record(cell))
    write_grid(folder, Experiment("", METHODS, DATASETS, seeds=SEEDS), METHODS)
    return folder


@pytest.fixture(scope="module")
def passed(good):
    """The good folder, reported."""
    return report.make(good, figures=False, strict=True)


@pytest.fixture
def copied(good, tmp_path):
    """A copy of the good folder without what reports write."""
    shutil.copytree(good, tmp_path / "results", ignore=shutil.ignore_patterns("tables", "report.html"))
    return tmp_path / "results"


def of(method, dataset="cmnist5k", seed=2, **options):
    """A cell."""
    (cell,) = cells_of([method], [dataset], [seed], **options)
    return cell


def refused(folder, **options):
    """What a strict report is refused with; nothing was written."""
    with pytest.raises(BenchmarkError) as caught:
        report.make(folder, figures=False, strict=True, **options)
    assert not (folder / "tables").exists()
    return str(caught.value)


def grid_of(command):
    """The options of a command line that a message gives, and the cells that it would train."""
    words = shlex.split(command)
    assert words[0] == "debiasbench"
    options = cli.build_parser().parse_args(words[1:])
    asked = cli._asked(options)
    return options, {(cell.method_title, cell.dataset_title, cell.seed) for cell in cells_of(
        asked.methods, asked.datasets, asked.seeds)}  # fmt: skip


def commands_in(message):
    return [line.strip() for line in message.splitlines() if line.startswith("    ")]


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_a_good_folder_passes_and_its_tables_carry_the_digest(good, passed):
    seal = json.loads((good / "tables" / "strict.json").read_text(encoding="utf-8"))
    assert len(seal["records"]) == len(METHODS) * len(DATASETS) * len(SEEDS)
    assert seal["methods"] == METHODS
    assert seal["datasets"] == DATASETS
    assert seal["select"] == ["last"]
    assert seal["budgets"] == {key: {"draws": 0, "seeds": 0, "rule": "", "bias_labels": False} for key in DATASETS}
    assert seal["digest"] in passed.passed
    last = (good / "tables" / "comparison.md").read_text(encoding="utf-8").splitlines()[-1]
    assert f"digest {seal['digest']}" in last
    first = (good / "tables" / "comparison.tex").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("% Passed")
    assert seal["digest"] in first
    assert seal["digest"] in (good / "report.html").read_text(encoding="utf-8")


def test_the_command_tells_the_digest_and_the_exit_code_is_zero(good, passed, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: [])
    assert cli.main(["report", str(good), "--strict"]) == 0
    assert " ".join(passed.passed.split()) in " ".join(capsys.readouterr().out.split())


def test_each_record_is_read_again_once_to_be_checked_and_sealed(copied, monkeypatch):
    read, paths = strict.read_record, []
    monkeypatch.setattr(strict, "read_record", lambda path: paths.append(path) or read(path))
    report.make(copied, figures=False, strict=True)
    assert len(paths) == len(set(paths)) == 18


def test_without_being_asked_nothing_is_sealed(copied):
    made = report.make(copied, figures=False)
    assert made.passed == ""
    assert not (copied / "tables" / "strict.json").exists()


def test_a_method_that_declines_a_dataset_lacks_no_cell_there(tmp_path):
    """JTT's factor follows from a ratio that nobody knows of BAR."""
    assert not cells_of(["jtt"], ["bar"])
    for cell in cells_of(["vanilla", "pgd"], ["bar"], range(6)) + cells_of(["jtt:T=1"], ["cmnist5k"], range(6)):
        stored(tmp_path, record(cell))
    message = refused(tmp_path)
    assert "jtt:T=1 on bar" not in message
    assert "No record, although other methods have one: pgd, vanilla on cmnist5k, seeds 0 to 5." in message


def test_a_row_that_chooses_by_bias_labels_passes_when_that_was_asked_for(copied):
    made = report.make(copied, figures=False, strict=True, shown=report.Shown(select=("group_val",)))
    assert "§" in made.table("comparison").columns[1].heading
    assert json.loads((copied / "tables" / "strict.json").read_bytes())["select"] == ["group_val"]


# ---- what does not ---------------------------------------------------------------------------------------------------


def spoil(folder, spoilt):
    """Replace the record of its cell."""
    path = record_path(folder, spoilt.cell)
    path.unlink(missing_ok=True)
    write_record(path, spoilt)


def failed(folder):
    spoil(folder, failed_record(of("pgd")))


def missing(folder):
    record_path(folder, of("pgd")).unlink()


def absent_there(folder):
    for cell in cells_of(["vanilla", "disen"], [OTHER]):
        stored(folder, record(cell))


def another_data_seed(folder):
    for method in METHODS[:2]:
        for seed in SEEDS:
            cell = of(method, "cmnist5k:data_seed=1", seed)
            stored(folder, record(cell))


def asked_for(folder):
    write_grid(folder, Experiment("", METHODS, DATASETS, seeds=7), METHODS)


def other_data(folder):
    spoilt = record(of("pgd"))
    spoil(folder, changed(spoilt, data=replace(spoilt.result.data, fingerprint="0" * 64)))


def stand_in(folder):
    spoilt = record(of("pgd"))
    spoil(folder, changed(spoilt, data=replace(spoilt.result.data, official=False, note="A stand-in.")))


def other_code(folder):
    spoil(folder, record(of("pgd"), code={"method": "f" * 64}))


def other_net(folder):
    spoilt = record(of("pgd"))
    spoil(folder, record(of("pgd"), code={**spoilt.provenance.code, "net": "f" * 64}))


def untold_code(folder):
    spoil(folder, record(of("pgd"), code=None))


def other_device(folder):
    spoil(folder, record(of("pgd"), device_kind="cuda"))


def other_precision(folder):
    spoil(folder, record(of("pgd"), precision="bf16"))


def untold_device(folder):
    spoil(folder, record(of("pgd"), device_kind="", device=""))


def few_seeds(folder):
    for seed in SEEDS[3:]:
        for cell in cells_of(seeds=[seed]):
            record_path(folder, cell).unlink()
    write_grid(folder, Experiment("", METHODS, DATASETS, seeds=3), METHODS)


def tuned(folder):
    for cell in cells_of(["pgd", "disen"]):
        record_path(folder, cell).unlink()
    for cell in cells_of(["jtt", "lff"]):
        stored(folder, record(cell))
    write_grid(folder, Experiment("", ["vanilla", "jtt", "lff"], DATASETS), ["vanilla", "jtt", "lff"])


def without_a_value(folder):
    spoilt = record(of("pgd"))
    for row in spoilt.result.epochs:
        row.test.pop("acc_unbiased", None)  # both have one dictionary
    spoil(folder, spoilt)


def edited(folder, change):
    """One finished record is another, as if somebody had opened its file."""
    path = record_path(folder, of("pgd"))
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def another_hash(folder):
    edited(folder, lambda content: content.update(hash="0" * len(content["hash"])))


def more_than_all(folder):
    edited(folder, lambda content: content["result"]["epochs"][0]["test"].update(acc_worst=1.25))


def less_than_none(folder):
    edited(folder, lambda content: content["result"]["epochs"][1]["valid"].update(acc_avg=-0.5))


def better_than_counted(folder):
    def change(content):
        content["result"]["data"]["splits"]["test"]["n"] = 100
        for row in content["result"]["epochs"]:
            row["correct_by_class"] = {"test": [20, 30]}

    edited(folder, change)


def with_groups(folder, *groups):
    """In 100 test samples; acc_avg is 0.82 and acc_worst 0.41."""
    edited(folder, lambda content: content["result"].update(groups={"test": list(groups)}))


def group_above_one(folder):
    with_groups(folder, {"n": 50, "y": 0, "bias": 0, "acc": 0.41}, {"n": 50, "y": 0, "bias": 1, "acc": 1.23})


def named_group_below_none(folder):
    with_groups(folder, {"n": 50, "group": "male", "acc": -0.41})


def group_below_the_worst(folder):
    with_groups(folder, {"n": 50, "y": 0, "bias": 0, "acc": 0.31}, {"n": 20, "y": 0, "bias": 1, "acc": 0.5})


def named_groups_above_the_worst(folder):
    with_groups(folder, {"n": 50, "group": "male", "acc": 0.5}, {"n": 80, "group": "female", "acc": 0.6})


def groups_above_the_average(folder):
    with_groups(folder, {"n": 20, "y": 0, "bias": 0, "acc": 0.41}, {"n": 80, "y": 0, "bias": 1, "acc": 1})


def chosen_otherwise(folder):
    edited(folder, lambda content: content["result"]["selection"].update(last=0))


def epochs_reversed(folder):
    edited(folder, lambda content: content["result"]["epochs"].reverse())


def other_metric(folder):
    spoilt = record(of("pgd"))
    spoil(folder, record(of("pgd"), code={**spoilt.provenance.code, "metric acc_unbiased": "f" * 64}))


def other_rule(folder):
    spoilt = record(of("pgd"))
    spoil(folder, record(of("pgd"), code={**spoilt.provenance.code, "rule last": "f" * 64}))


PGD = {("pgd", "cmnist5k", 2)}
EVERY = {(method, "cmnist5k", seed) for method in METHODS for seed in SEEDS}
UNTUNED = {(method, dataset, seed) for method in ("jtt:T=1", "lff:recipes=shared") for dataset in DATASETS
           for seed in SEEDS}  # fmt: skip

SPOILT = {
    failed: ("Failed: pgd on cmnist5k, seed 2 (RuntimeError: it did not work).", PGD, {"rerun": "failed"}),
    missing: ("No record, although other methods have one: pgd on cmnist5k, seed 2.", PGD, {"rerun": "missing"}),
    absent_there: (
        "No record, although other methods have one: pgd on cmnist5k:rho=0.05, seeds 0 to 5.",
        {("pgd", OTHER, seed) for seed in SEEDS}, {},
    ),
    another_data_seed: (
        "other methods have one: disen on cmnist5k:data_seed=1, seeds 0 to 5",
        {("disen", "cmnist5k:data_seed=1", seed) for seed in SEEDS}, {},
    ),
    asked_for: (
        "Cells of the last run have no record yet: vanilla, pgd, disen on cmnist5k, seed 6",
        {(method, "cmnist5k", 6) for method in METHODS}, {},
    ),
    other_data: (
        "Different data under one name, cmnist5k with data seed 0: pgd on cmnist5k, seed 2 (fingerprint 000000000000; "
        "the others cmnist5k)", EVERY, {"rerun": "missing"},
    ),
    stand_in: ("† cmnist5k is not the published data (train 100, valid 100, test 100): pgd on cmnist5k, seed 2. A "
               "stand-in.", PGD, {}),
    other_code: ("The row of pgd has different digests of its code, or lacks some. Trained with other or unknown code: "
                 "pgd on cmnist5k, seed 2.", PGD, {"rerun": "all"}),
    other_net: ("The net simconv1 on cmnist5k has different digests of its code, or lacks some. Unlike most: pgd on "
                "cmnist5k, seed 2.", PGD, {"rerun": "all"}),
    other_metric: ("The metric acc_unbiased on cmnist5k has different digests of its code, or lacks some. Unlike most: "
                   "pgd", PGD, {"rerun": "all"}),
    other_rule: ("The rule last on cmnist5k has different digests of its code", PGD, {"rerun": "all"}),
    another_hash: (
        "A record contradicts itself, so one of its parts is not what the run gave: pgd on cmnist5k, seed 2 (its hash "
        "does not match its cell).", PGD, {"rerun": "all"},
    ),
    more_than_all: ("pgd on cmnist5k, seed 2 (acc_worst on test is 1.25 in epoch 1).", PGD, {"rerun": "all"}),
    less_than_none: ("pgd on cmnist5k, seed 2 (acc_avg on valid is -0.5 in epoch 2).", PGD, {"rerun": "all"}),
    better_than_counted: ("(acc_avg on test is 0.82 in epoch 1, but 0.5 of the predictions were correct).", PGD,
                          {"rerun": "all"}),
    group_above_one: ("pgd on cmnist5k, seed 2 (the accuracy of group 0 / 1 on test is 1.23)", PGD, {"rerun": "all"}),
    named_group_below_none: ("(the accuracy of group male on test is -0.41)", PGD, {"rerun": "all"}),
    group_below_the_worst: ("(acc_worst on test is 0.41 in epoch 2, but 0.31 by its groups)", PGD, {"rerun": "all"}),
    named_groups_above_the_worst: ("(acc_worst on test is 0.41 in epoch 2, but 0.5 by its groups)", PGD,
                                   {"rerun": "all"}),
    groups_above_the_average: ("(acc_avg on test is 0.82 in epoch 2, but 0.882 by its groups)", PGD, {"rerun": "all"}),
    chosen_otherwise: ("seed 2 (by its logged metrics, last selects epoch 2 and not another)", PGD, {"rerun": "all"}),
    epochs_reversed: ("seed 2 (by its logged metrics, val_loss selects epoch 1", PGD, {"rerun": "all"}),
    untold_code: ("The row of pgd has different digests of its code, or lacks some", PGD, {"rerun": "all"}),
    other_device: ("Different or unknown kinds of device or precisions: pgd on cmnist5k, seed 2 ran on cuda in fp32, "
                   "the others on cpu in fp32.", PGD, {"rerun": "all", "device": "cpu"}),
    other_precision: ("pgd on cmnist5k, seed 2 ran on cpu in bf16, the others on cpu in fp32", PGD, {"rerun": "all"}),
    untold_device: ("pgd on cmnist5k, seed 2 ran on an unknown kind of device in fp32", PGD, {"rerun": "all"}),
    few_seeds: (
        "vanilla, pgd, disen on cmnist5k, seeds 0 to 2. With 3 pairs of runs, p of the sign-flip test is at least "
        "0.12, but the level is 0.025 (0.05 over 2 comparisons): 6 pairs are needed.", EVERY, {},
    ),
    tuned: (
        "Unequal tuning budgets. vanilla on cmnist5k, seeds 0 to 5: not tuned. jtt (T 5), lff (learning_rate 0.01) on "
        "cmnist5k, seeds 0 to 5: tuned with bias labels, number of draws unknown.", UNTUNED, {},
    ),
}  # fmt: skip


GOOD_GROUPS = [
    [("y", 0, 20, 0.41), ("y", 1, 80, 0.9225)],  # all of the 100 samples: 0.82 on average
    [("y", 0, 20, 0.41), ("y", 1, 50, 1), ("y", 2, 0, None)],  # the bias of 30 is not known
    [("group", "male", 60, 0.41), ("group", "female", 40, 0.9)],  # they may overlap: no average
]


@pytest.mark.parametrize("groups", GOOD_GROUPS)
def test_groups_that_contradict_nothing_pass_and_count_for_the_seal(copied, groups):
    made = [{kind: name, "n": n, "acc": accuracy} for kind, name, n, accuracy in groups]
    with_groups(copied, *({"bias": 0} | one if "y" in one else one for one in made))
    found = report.make(copied, figures=False, strict=True)
    assert found.passed
    assert report.verify(copied / "tables" / "strict.json", copied)[0]
    with_groups(copied)
    assert not report.verify(copied / "tables" / "strict.json", copied)[0]


@pytest.mark.parametrize("spoiling", SPOILT, ids=lambda one: one.__name__)
def test_a_spoilt_folder_is_refused_with_its_cells_and_the_command_that_mends_it(copied, spoiling):
    said, cells, options = SPOILT[spoiling]
    spoiling(copied)
    message = refused(copied)
    assert said in message
    mended = set()
    for command in commands_in(message):
        if command.startswith("debiasbench run"):
            given, trained = grid_of(command)
            assert str(given.results_dir) == str(copied)
            assert {name: getattr(given, name) for name in options} == options
            mended |= trained
    assert mended == cells
    assert message.count("\n- ") == 1


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (("last", "val_acc"), "Several selection rules (last, val_acc): a table must have one"),
        (("test_oracle",), "The rule test_oracle selects on the test split: an upper bound, never a result."),
    ],
)
def test_rules_are_refused_with_the_report_that_has_one(copied, rules, said):
    message = refused(copied, shown=report.Shown(methods=("vanilla", "pgd"), select=rules))
    assert said in message
    again = f"debiasbench report {copied} --methods vanilla pgd --reference vanilla --strict"
    assert f"    {again} --select last" in message
    assert message.endswith(f"\nThen: {again}")
    for command in commands_in(message):
        cli.build_parser().parse_args(shlex.split(command)[1:])


def test_a_rule_that_cannot_choose_is_refused_with_its_cells(copied):
    spoilt = record(of("pgd"))
    spoil(copied, changed(spoilt, selection=spoilt.result.selection | {"val_acc": None}))
    message = refused(copied, shown=report.Shown(select=("val_acc",)))
    why = "the rule cannot select, or the group is empty"
    assert f"No value of acc_unbiased by the rule val_acc ({why}): pgd on cmnist5k, seed 2." in message
    assert "--strict --select last" in message


def test_a_metric_without_a_value_is_refused_with_its_cells(copied):
    without_a_value(copied)
    assert "No value of acc_unbiased by the rule last (the group is empty): pgd on cmnist5k, seed 2." in refused(copied)


def test_all_that_is_wrong_is_one_message(copied, capsys):
    failed(copied)
    spoil(copied, record(of("vanilla", seed=1), device_kind="cuda"))
    path = record_path(copied, of("disen"))
    path.write_bytes(path.read_bytes()[:50])
    assert cli.main(["report", str(copied), "--strict"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    for part in ("Failed: pgd", "No record, although other methods have one: disen on cmnist5k, seed 2.", "ran on cuda",
                 f"A file could not be read: {path}: it is not JSON"):  # fmt: skip
        assert part in told.err


def test_only_failures_are_refused_too(tmp_path):
    stored(tmp_path, failed_record(of("pgd")))
    assert "Failed: pgd on cmnist5k, seed 2" in refused(tmp_path)


def test_what_no_table_mixes_is_told_in_the_same_words(copied):
    values = of("pgd").to_json() | {"method_parameters": of("pgd").method_parameters | {"alpha": 0.5}}
    spoil(copied, record(Cell.from_json(values)))
    assert "The title 'pgd' on cmnist5k stands for runs with different settings" in refused(copied)


def test_what_is_left_out_need_not_be_whole(copied):
    failed(copied)
    made = report.make(copied, figures=False, strict=True, shown=report.Shown(methods=("vanilla", "disen")))
    assert made.passed


def test_a_grid_whose_methods_are_unknown_here_is_refused(copied):
    write_grid(copied, Experiment("", ["mine"], DATASETS), ["mine"])
    assert "The cells of the last run cannot be determined here (Unknown method 'mine'" in refused(copied)


@pytest.mark.parametrize(
    ("given", "into"),
    [
        ("results", "results"), ("results/records", "results"), ("results/records/cmnist5k", "results"),
        ("loose", "loose/more"), ("results/records.zip", "results"),
    ],
)  # fmt: skip
def test_more_cells_are_trained_where_the_report_finds_them(copied, given, into):
    top = copied.parent
    pack(copied / "records", top / "results" / "records.zip") if given.endswith(".zip") else None
    if given == "loose":
        (copied / "records").rename(top / "loose")
    assert report._trained_into(top / given) == top / into


# ---- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(), "not tuned"),
        (Budget(16, 1, "worst_class"), "16 draws of 1 seed by worst_class"),
        (Budget(16, 3, "group_val", bias_labels=True), "16 draws of 3 seeds by group_val with bias labels"),
        (Budget(None, bias_labels=True), "tuned with bias labels, number of draws unknown"),
    ],
)
def test_a_budget_is_told_in_words(budget, words):
    assert budget.words == words


def as_tuned(cell, *, draws=16, rule="worst_class", number=3):
    """The cell as `run --tuned` trains it."""
    how = Tuned(rule, draws, (1000,), number)
    return replace(cell, tuned=how, method_title=with_values(cell.method_title, {"tuned": rule}))


def tuned_folder(folder, methods=METHODS, **options):
    for cell in cells_of(methods):
        stored(folder, record(as_tuned(cell, **options)))
    return folder


def test_equal_draws_are_equal_budgets(tmp_path):
    """Also where their draws, which are no results, are in the folder."""
    folder = tuned_folder(tmp_path)
    for cell in cells_of(seeds=[1000]):
        stored(folder, record(replace(cell, draw=Draw(cell.method_title, 0))))
    titles = [f"{method}:tuned=worst_class" for method in METHODS]
    write_grid(folder, Experiment("", METHODS, DATASETS, seeds=SEEDS), titles)
    assert report.make(folder, figures=False, strict=True).passed
    seal = json.loads((folder / "tables" / "strict.json").read_bytes())
    assert seal["budgets"]["cmnist5k"] == {"draws": 16, "seeds": 1, "rule": "worst_class", "bias_labels": False}
    assert set(seal["methods"]) == set(titles)
    assert report.verify(folder / "tables" / "strict.json")[0]


def test_a_method_with_fewer_draws_is_refused(tmp_path):
    tuned_folder(tmp_path, ["vanilla", "pgd"])
    tuned_folder(tmp_path, ["disen"], draws=4)
    message = refused(tmp_path)
    assert (
        "pgd:tuned=worst_class, vanilla:tuned=worst_class on cmnist5k, seeds 0 to 5: 16 draws of 1 seed by" in message
    )
    assert "disen:tuned=worst_class on cmnist5k, seeds 0 to 5: 4 draws of 1 seed by worst_class" in message
    tune, run = map(shlex.split, commands_in(message))
    options = cli.build_parser().parse_args(tune[1:])
    assert (options.command, options.draws, options.seeds, options.rule) == ("tune", 16, 1, "worst_class")
    assert sorted(options.methods) == sorted(METHODS)  # the file has what one command tunes
    assert options.datasets == DATASETS
    options = cli.build_parser().parse_args(run[1:])
    assert options.methods == ["disen"]
    assert options.tuned == tmp_path / "tuned.toml"
    assert options.seed_list == SEEDS


def test_untuned_runs_beside_tuned_ones_are_left_out(copied):
    """As `tune` advises: what was chosen, and the defaults beside it."""
    tuned_folder(copied)
    message = refused(copied)
    assert "vanilla, pgd, disen on cmnist5k, seeds 0 to 5: not tuned." in message
    command = next(line for line in commands_in(message) if line.startswith("debiasbench report"))
    options = cli.build_parser().parse_args(shlex.split(command)[1:])
    assert set(options.methods) == {f"{method}:tuned=worst_class" for method in METHODS}
    assert options.reference == "vanilla:tuned=worst_class"
    shown = report.Shown(methods=tuple(options.methods))
    assert report.make(copied, figures=False, strict=True, shown=shown, reference=options.reference).passed


def test_methods_that_were_not_tuned_beside_others_are_tuned_by_the_command(copied):
    tuned_folder(copied, ["vanilla"])
    tune, run = (cli.build_parser().parse_args(shlex.split(line)[1:]) for line in commands_in(refused(copied))
                 if "tune" in line)  # fmt: skip
    assert sorted(tune.methods) == sorted(METHODS)
    assert (sorted(run.methods), run.seed_list) == (["disen", "pgd"], SEEDS)


def test_a_lost_run_with_tuned_values_is_made_by_its_file(tmp_path):
    tuned_folder(tmp_path)
    record_path(tmp_path, as_tuned(of("pgd"))).unlink()
    message = refused(tmp_path)
    assert "pgd:tuned=worst_class on cmnist5k, seed 2" in message
    (command,) = commands_in(message)
    options = cli.build_parser().parse_args(shlex.split(command)[1:])
    assert (options.methods, options.seed_list) == (["pgd"], [2])
    assert options.tuned == tmp_path / "tuned.toml"


def test_a_tuning_that_was_run_last_is_no_grid_to_wait_for(copied):
    """Its cells are draws; whether all are there is what `tune` says."""
    (drawn,) = cells_of(["pgd:alpha=0.5"], seeds=[1000])
    stored(copied, record(replace(drawn, draw=Draw("pgd", 1))))
    write_grid(copied, Experiment("", METHODS, DATASETS, seeds=1), ["pgd", drawn.method_title])
    assert report.make(copied, figures=False, strict=True).passed


def test_a_tuned_method_says_so_and_how_it_is_written_untuned():
    tuned_one, plain = record(of("jtt")), record(of("jtt:T=1"))
    assert (budget_of(tuned_one), budget_of(plain)) == (Budget(None, bias_labels=True), Budget())
    assert untuned(tuned_one.cell) == "jtt:T=1"
    assert untuned(of("jtt:copies=lambda+1")) == "jtt:copies=lambda+1,T=1"
    assert untuned(of("lff")) == "lff:recipes=shared"
    assert untuned(of("vanilla")) is None


# ---- the seal --------------------------------------------------------------------------------------------------------


def verified(folder, file, capsys):
    code = cli.main(["report", str(folder), "--verify", str(file)])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def sealed(copied, passed, good):
    """A copy of the good folder, with the file of its seal."""
    file = copied / "tables" / "strict.json"
    file.parent.mkdir()
    shutil.copy(good / "tables" / "strict.json", file)
    return copied, file


def test_equal_records_are_equal(sealed, capsys):
    folder, file = sealed
    code, lines = verified(folder, file, capsys)
    assert code == 0
    digest = json.loads(file.read_bytes())["digest"]
    assert lines == [f"Equal: 18 records and the tables, digest {digest}."]


def test_the_folder_need_not_be_named(sealed, capsys):
    _, file = sealed
    assert cli.main(["report", "--verify", str(file)]) == 0
    assert capsys.readouterr().out.startswith("Equal")


def test_an_archive_of_the_records_is_equal_too(sealed, capsys):
    folder, file = sealed
    pack(folder / "records", folder.parent / "all.zip")
    code, _ = verified(folder.parent / "all.zip", file, capsys)
    assert code == 0


def test_what_a_report_on_an_archive_sealed_is_found_beside_it(copied, capsys):
    archive = copied.parent / "all.zip"
    pack(copied / "records", archive)
    made = report.make(archive, figures=False, strict=True)
    assert cli.main(["report", "--verify", str(made.paths["strict"][0])]) == 0


def test_records_made_again_are_equal(sealed, capsys):
    """Seconds, dates and machines may differ; what they give does not."""
    folder, file = sealed
    spoil(folder, record(of("pgd"), finished="2027-01-01T00:00:00+00:00", host="elsewhere", threads=4))
    assert verified(folder, file, capsys)[0] == 0


@pytest.mark.parametrize("names", [{"class_names": ("a", "b")}, {"bias_values": (("red",),)}])
def test_what_classes_and_biases_are_called_is_not_sealed(sealed, capsys, names):
    folder, file = sealed
    one = record(of("pgd"))
    spoil(folder, changed(one, data=replace(one.result.data, **names)))
    assert verified(folder, file, capsys)[0] == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (missing, "missing: pgd on cmnist5k, seed 2"),
        (other_data, "changed: pgd on cmnist5k, seed 2 ("),
        (other_code, "changed: pgd on cmnist5k, seed 2 ("),
        (failed, "changed: pgd on cmnist5k, seed 2 (it failed: "),
        (without_a_value, "changed: pgd on cmnist5k, seed 2 ("),
        (lambda folder: stored(folder, record(of("pgd", seed=9))), "additional: pgd on cmnist5k, seed 9 ("),
    ],
)
def test_records_that_differ_are_named(sealed, capsys, change, line):
    folder, file = sealed
    change(folder)
    code, lines = verified(folder, file, capsys)
    assert code == 1
    (first, last) = lines
    assert first.startswith(line)
    assert last.startswith("Not equal")


def test_records_of_what_was_not_shown_are_no_difference(sealed, capsys):
    folder, file = sealed
    for cell in cells_of(["lff"], seeds=[0]):
        stored(folder, record(cell))
    assert verified(folder, file, capsys)[0] == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda seal: seal["tables"]["comparison"][1].__setitem__(1, "99.99 ± 0.01"),
        lambda seal: seal["records"].popitem(),
        lambda seal: seal["budgets"]["cmnist5k"].update(draws=16),
    ],
)
def test_an_edited_file_is_told(sealed, capsys, edit):
    folder, file = sealed
    seal = json.loads(file.read_bytes())
    edit(seal)
    file.write_text(json.dumps(seal), encoding="utf-8")
    code, lines = verified(folder, file, capsys)
    assert code == 1
    assert lines[0].startswith("edited: the file was changed after it was written")


def test_tables_that_come_out_otherwise_are_told(sealed, capsys, monkeypatch):
    """As by another version of the suite."""
    folder, file = sealed
    made = report._compared

    def otherwise(*given, **options):
        tables, tests = made(*given, **options)
        return [replace(tables[0], rows=tables[0].rows[::-1]), *tables[1:]], tests

    monkeypatch.setattr(report, "_compared", otherwise)
    code, lines = verified(folder, file, capsys)
    assert code == 1
    assert lines[0].startswith("different: the table 'comparison' is not the one that version")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"), ("", "Expecting value"), ("[]", "must be an object"), ("{}", "suite is missing"),
        ("[" * 100_000, "nested too deeply"), ('{"suite": 1}', "suite must be text"),
    ],
)  # fmt: skip
def test_what_is_no_seal_is_one_error(tmp_path, capsys, content, said):
    file = tmp_path / "strict.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert cli.main(["report", str(tmp_path), "--verify", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"{file} is not a file that `debiasbench report --strict` wrote" in told
    assert said in told


def test_verify_stands_alone(tmp_path, capsys):
    assert cli.main(["report", "--verify", str(tmp_path / "strict.json"), "--strict", "--methods", "pgd"]) == 2
    assert "leave out --methods, --strict" in capsys.readouterr().err


def test_the_records_of_the_good_folder_are_whole(good):
    records, complaints = read_records(good)
    assert (len(records), complaints) == (18, [])


def test_odd_titles_are_one_word_of_a_command_and_move_no_cursor(copied, capsys):
    title = "odd $(x) 'name'\x1b[2J"
    for cell in cells_of(["pgd:alpha=0.9"], seeds=SEEDS[1:]):
        one = record(cell)
        write_record(
            copied / "records" / "odd" / f"s{cell.seed}-00000000.json",
            replace(one, cell=replace(cell, method_title=title)),
        )
    message = refused(copied)
    (command,) = commands_in(message)
    words = shlex.split(command)
    assert words[words.index("--methods") + 1] == title
    assert cli.main(["report", str(copied), "--strict"]) == 2
    assert "\x1b" not in capsys.readouterr().err
