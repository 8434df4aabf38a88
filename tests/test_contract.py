"""Every registered method and dataset passes the contract suite that we ship."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from debiasbench import testing
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.methods import registry as methods
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS, METHOD_CHECKS, Tiny

NO_DATA = Path("no-such-folder")
# Data that are not at their usual place below the data folder: parameters for the tests' copies of them.
ELSEWHERE = {"bffhq": {"root": "bffhq_standin_from_celeba/bffhq"}}
# Methods that are interrupted at each of their checkpoints by default: of one stage, of several, of two networks.
INTERRUPTED = ("vanilla", "pgd", "lff", "jtt", "groupdro", "dfr")
# Real data that take long to make; their test files check few images by default.
WHOLE = ("ccifar", "mbmnist")
# Data that take seconds to make: the test file that gives them another data seed.
LARGE = {"bar": "test_image_datasets.py", "ccifar": "test_cifar.py", "mbmnist": "test_mbmnist.py"}


def marks(name, check):
    is_long = check is testing.check_goes_on_after_an_interruption and name not in INTERRUPTED
    return pytest.mark.slow if is_long else ()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=marks(name, check), id=f"{name}-{check.__name__}")
        for name in methods.classes()
        for check in METHOD_CHECKS
    ],
)
def test_method(name, check):
    check(methods.get(name)[0])


def test_no_plugin_file_is_broken():
    methods.classes()
    datasets.classes()
    assert methods.broken == {}
    assert datasets.broken == {}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in WHOLE else ()) for name in datasets.classes()],
)
def built(request):
    data_dir = Path(os.environ.get("DEBIASBENCH_DATA", NO_DATA))
    options = dict(ELSEWHERE.get(request.param, {}))
    if "root" in options:
        options["root"] = str(data_dir / options["root"])
    dataset = datasets.get(request.param)[0](**options)
    missing = dataset.needed_files(data_dir)
    if missing:
        pytest.skip(f"{request.param} needs {missing[0].path} (set DEBIASBENCH_DATA)")
    return dataset, dataset.build(data_dir), data_dir


@pytest.mark.parametrize("check", DATASET_CHECKS, ids=lambda check: check.__name__)
def test_dataset(built, check):
    dataset, splits, _ = built
    check(dataset, splits)


@pytest.mark.parametrize("check", DATASET_BUILD_CHECKS, ids=lambda check: check.__name__)
def test_dataset_built_again(built, check):
    name = built[0].name
    if check is testing.check_data_seed and name in LARGE:
        pytest.skip(f"{name} takes long to make: another data seed has few images, in tests/datasets/{LARGE[name]}")
    check(*built)


# ---- each new check sees what it is there for ------------------------------------------------------------------------


def changed(splits, name, **columns):
    """Splits of which one has other columns."""
    return dataclasses.replace(splits, **{name: dataclasses.replace(getattr(splits, name), **columns)})


def test_a_test_split_with_the_bias_of_training_is_no_unbiased_one():
    splits = Tiny().build(NO_DATA)
    splits = dataclasses.replace(splits, test=splits.train)  # enough of them to tell
    with pytest.raises(AssertionError, match=r"the bias colour tells .* nats of the label.*unbiased_test = False"):
        testing.check_bias_says_nothing_in_test(Tiny(), changed(splits, "test", bias=splits.test.y[:, None]))


class Misspelt(Tiny):
    """Says that its conflict ratio follows from what it does not have."""

    name = "misspelt"
    ratio_parameters = ("rho", "ratio")


def test_the_parameters_of_the_ratio_are_parameters():
    splits = Tiny().build(NO_DATA)
    with pytest.raises(BenchmarkError, match="ratio_parameters names ratio"):
        testing.check_columns(Misspelt(), splits)


class Still(Tiny):
    """Reads its data as they are, no image of which is there twice."""

    name = "still"

    def draws(self, data_dir):
        return False

    def build(self, data_dir):
        splits = super().build(data_dir)
        for number, (name, part) in enumerate(splits.named().items()):
            x = part.x.clone()
            x[:, 0, 0] = number
            x[:, 0, 1] = torch.arange(len(part))[:, None] % 256
            splits = changed(splits, name, x=x)
        return splits


def test_an_image_in_two_splits_is_found():
    splits = Still().build(NO_DATA)
    testing.check_no_image_in_two_splits(Still(), splits)
    x = splits.test.x.clone()
    x[7] = splits.train.x[100]
    twice = dataclasses.replace(changed(splits, "test", x=x), official=False)
    with pytest.raises(AssertionError, match=r"1 images of test are in train too \(such as number 7\)"):
        testing.check_no_image_in_two_splits(Still(), twice)


class Drawn(Still):
    """Says that it draws nothing, and does."""

    name = "drawn"

    def build(self, data_dir):
        splits = super().build(data_dir)
        return changed(splits, "train", y=splits.train.y.roll(self.data_seed))


def test_data_seeds_draw_or_the_dataset_says_so():
    with pytest.raises(AssertionError, match="another data_seed gives equal data"):
        testing.check_data_seed(Tiny(), Tiny().build(NO_DATA), NO_DATA)
    testing.check_data_seed(Still(), Still().build(NO_DATA), NO_DATA)
    with pytest.raises(AssertionError, match="and another data_seed gives other data"):
        testing.check_data_seed(Drawn(), Drawn().build(NO_DATA), NO_DATA)


def test_all_checks_are_examined_with_what_they_protect_from():
    findings = [*testing.examine_dataset(Still(), NO_DATA)]
    assert len(findings) == len(DATASET_CHECKS) + len(DATASET_BUILD_CHECKS)
    assert {finding.outcome for finding in findings} == {"passed"}
    assert all(finding.protects for finding in findings)
    broken = {one.check: one.message for one in testing.examine_dataset(Tiny(), NO_DATA) if one.outcome == "failed"}
    assert broken.keys() == {"data seed", "no image in two splits"}
    assert "another data_seed gives equal data" in broken["data seed"]


def test_the_command_tells_what_it_found(capsys, monkeypatch):
    from debiasbench.cli import main

    assert main(["test", "vanilla"]) == 0
    shown = capsys.readouterr().out
    assert f"{len(METHOD_CHECKS)} checks: {len(METHOD_CHECKS)} passed." in shown
    assert "Two runs with the same seed are equal bit for bit" in shown
    cls = methods.get("vanilla")[0]
    monkeypatch.setattr(cls, "fit", lambda *_: None)
    assert main(["test", "vanilla"]) == 1
    assert "no task.train was given predict=" in capsys.readouterr().out
    assert main(["test", "vanila"]) == 2


def test_data_seeds_of_data_that_draw_nothing_are_refused(tmp_path, monkeypatch):
    """Six runs on three equal drawings gave p = .005 for .146."""
    from debiasbench.experiments import Experiment
    from debiasbench.running.run import RunOptions, plan_grid

    cls = datasets.get("cmnist5k")[0]
    one = Tiny(clean=True).build(NO_DATA)
    monkeypatch.setattr(cls, "build", lambda *_: one)
    options = RunOptions(tmp_path, tmp_path, device="cpu", workers=0)
    with pytest.raises(BenchmarkError, match="The data seeds 0 and 1 give equal data: nothing is drawn in cmnist5k"):
        plan_grid(Experiment("", ["vanilla"], ["cmnist5k"], seeds=1, data_seeds=2), options)
    plan_grid(Experiment("", ["vanilla"], ["cmnist5k"], seeds=2, data_seeds=1), options)
