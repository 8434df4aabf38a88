"""Who is best, and whether that is certain: each text against the tests that it tells of."""

import functools

import pytest
from made_records import made_record

from debiasbench.cli import main
from debiasbench.experiments import read_experiment
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report.phrases import displayed
from debiasbench.report.results import Measure, compare_by, to_frame
from debiasbench.report.verdict import verdicts

HIGH, NEAR, LOW = [0.84, 0.85, 0.83], [0.82, 0.86, 0.81], [0.39, 0.38, 0.42]


@functools.cache
def cells(method, dataset):
    return expand([method], [dataset], seeds=3).cells


def table(values, dataset="cmnist5k"):
    """Method -> its runs' accuracies, as a frame of records."""
    records = []
    for method, runs in values.items():
        for cell, value in zip(cells(method, dataset), runs, strict=False):
            metrics = {"acc_unbiased": value, "acc_avg": value}
            records.append(made_record(cell, [EpochFacts(1, metrics, metrics)], {"last": 0, "test_oracle": 0}))
    return to_frame(records)


def told(values, *, reference="vanilla", select="last"):
    frame = table(values)
    measures = [Measure("cmnist5k", "acc_unbiased", select)]
    tests = compare_by(frame, measures, reference=reference) if len(values) > 1 else None
    return verdicts(frame, measures, tests)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {"vanilla": LOW, "pgd": HIGH},
            "cmnist5k: pgd is best with 84.0 % (acc_unbiased), 44.3 points above vanilla: significant (p {p} after "
            "correction).",
            id="certain",
        ),
        pytest.param(
            {"vanilla": LOW, "lff": NEAR, "pgd": HIGH},
            "cmnist5k: pgd is best with 84.0 % (acc_unbiased), 44.3 points above vanilla: significant (p {p} after "
            "correction). Statistically indistinguishable from it: lff.",
            id="a tie",
        ),
        pytest.param(
            {"vanilla": NEAR, "pgd": HIGH},
            "cmnist5k: pgd is best with 84.0 % (acc_unbiased), 1.0 points above vanilla: not significant (p {p} "
            "after correction).",
            id="chance",
        ),
        pytest.param(
            {"vanilla": [0.79, 0.8, 0.775], "lff": [0.82, 0.84, 0.83], "pgd": [0.83, 0.86, 0.815]},
            "cmnist5k: pgd is best with 83.5 % (acc_unbiased), 4.7 points above vanilla: significant (p {p} after "
            "correction). Statistically indistinguishable from it: lff.",
            id="the table of tests has more small p than the comparison: the reference is no tie as well",
        ),
        pytest.param(
            {"vanilla": LOW[:1], "pgd": HIGH[:1]},
            "cmnist5k: pgd is best with 84.0 % (acc_unbiased), 45.0 points above vanilla: these runs allow no test.",
            id="one run",
        ),
        pytest.param(
            {"vanilla": LOW, "lff": NEAR[:1], "pgd": HIGH},
            "cmnist5k: pgd is best with 84.0 % (acc_unbiased), 44.3 points above vanilla: significant (p {p} after "
            "correction). No test of it against lff.",
            id="another of one run",
        ),
        pytest.param(
            {"vanilla": LOW, "lff": [0.8, 0.8, 0.8], "pgd": [0.8, 0.8, 0.8], "jtt": [0.7, 0.7, 0.7]},
            "cmnist5k: lff and pgd are best with 80.0 % (acc_unbiased), 40.3 points above vanilla: significant (p {p} "
            "after correction). No test of them against jtt.",
            id="equal",
        ),
        pytest.param(
            {"vanilla": HIGH, "pgd": LOW},
            "cmnist5k: vanilla is best with 84.0 % (acc_unbiased); no method here is shown to be better than it, the "
            "reference.",
            id="the reference",
        ),
        pytest.param(
            {"vanilla": HIGH, "pgd": HIGH[::-1], "lff": NEAR},
            "cmnist5k: vanilla and pgd are best with 84.0 % (acc_unbiased); no method here is shown to be better than "
            "the reference. Statistically indistinguishable from them: lff.",
            id="as good as the reference",
        ),
        pytest.param(
            {"vanilla": LOW, "groupdro": HIGH, "lff": NEAR},
            "cmnist5k: lff is best among the methods without bias labels with 83.0 % (acc_unbiased), 43.3 points above "
            "vanilla: significant (p {p} after correction).",
            id="an oracle above",
        ),
        pytest.param(
            {"vanilla": NEAR, "groupdro": [0.95, 0.96, 0.94], "lff": LOW},
            "cmnist5k: vanilla is best among the methods without bias labels with 83.0 % (acc_unbiased); none of them "
            "is shown to be better than it, the reference.",
            id="an oracle shown to be better than the reference",
        ),
    ],
)
def test_the_text_is_of_the_numbers(values, expected):
    (text,) = told(values)
    tests = compare_by(table(values), [Measure("cmnist5k", "acc_unbiased")], reference="vanilla")
    best = text.split()[1]
    p = tests.set_index("method").welch_holm.get(best, float("nan"))
    shown = "< .0001" if p < 0.0001 else f"= {p:.4f}".replace("0.", ".")
    assert text == expected.replace("{p}", shown)


def test_an_oracle_as_the_reference_may_be_above():
    (text,) = told({"groupdro": HIGH, "vanilla": LOW, "lff": NEAR}, reference="groupdro")
    assert (
        "lff is best among the methods without bias labels with 83.0 % (acc_unbiased), 1.0 points below groupdro."
        in text
    )


@pytest.mark.parametrize("values", [{"pgd": HIGH}, {"vanilla": LOW, "pgd": []}, {"vanilla": LOW, "groupdro": HIGH}])
def test_one_method_alone_is_not_best(values):
    """Nor is one beside those that are told the bias."""
    assert told({name: runs for name, runs in values.items() if runs}) == []


def test_nobody_is_best_by_a_rule_that_reads_the_test_split():
    assert told({"vanilla": LOW, "pgd": HIGH}, select="test_oracle") == []


def test_data_that_are_not_the_published_ones_are_marked():
    frame = table({"vanilla": LOW, "pgd": HIGH}).assign(official=False)
    measures = [Measure("cmnist5k", "acc_unbiased")]
    (text,) = verdicts(frame, measures, compare_by(frame, measures, reference="vanilla"))
    assert text.startswith("cmnist5k†: pgd is best")


def test_it_can_be_said_with_display_titles():
    (text,) = told({"vanilla": LOW, "lff": NEAR, "pgd": HIGH})
    displays = {"method": {"pgd": "PGD", "lff": "LfF"}, "dataset": {"cmnist5k": "Colored MNIST, 5,000"}}
    shown = displayed(text, displays)
    assert shown.startswith("Colored MNIST, 5,000: PGD is best")
    assert shown.endswith("Statistically indistinguishable from it: LfF.")


def test_the_demo_says_what_it_does_and_what_to_try_next(tmp_path, capsys):
    """Before anything trains; and not of another grid than it tells of."""
    demo = read_experiment("demo")
    assert "vanilla is plain training" in demo.about
    assert {word for word in demo.methods if word in demo.about} == set(demo.methods)
    assert main(["run", "--results-dir", str(tmp_path / "results"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert demo.about.strip().splitlines()[0] in told
    assert "--epochs does not change" not in told
    assert main(["run", "--results-dir", str(tmp_path / "results"), "--epochs", "1", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "The demo." in told
    assert "--epochs does not change stages whose length is a parameter of the method" in told
    words = ["run", "--experiment", "demo", "--methods", "vanilla", "--results-dir", str(tmp_path / "results")]
    assert main([*words, "--dry-run"]) == 0
    assert "The demo." not in capsys.readouterr().out
