"""The example dataset of docs/adding-a-dataset.md is what the page says, for 2, 10 and 26 classes."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from debiasbench.report.inspection import mutual_information
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS, make_task

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "datasets" / "coloured.py"
KINDS = [("kmnist", 10), ("fashion", 2), pytest.param(("letters", 26), marks=pytest.mark.slow)]  # the most images


@pytest.fixture(scope="module")
def cls():
    spec = importlib.util.spec_from_file_location("coloured_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["coloured_example"] = module
    spec.loader.exec_module(module)
    yield module.Coloured
    del sys.modules["coloured_example"]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def built(request, cls, mnist_data_dir):
    source, n_classes = request.param
    dataset = cls(source=source, classes=n_classes)
    missing = dataset.needed_files(mnist_data_dir)
    if missing:
        pytest.skip(f"needs {missing[0].path}")
    return dataset, dataset.build(mnist_data_dir), mnist_data_dir


@pytest.mark.parametrize("check", DATASET_CHECKS, ids=lambda check: check.__name__)
def test_it_passes_the_contract_suite(built, check):
    dataset, splits, _ = built
    check(dataset, splits)


@pytest.mark.parametrize("check", DATASET_BUILD_CHECKS, ids=lambda check: check.__name__)
def test_it_passes_when_it_is_built_again(built, check):
    check(*built)


def test_its_colours_follow_the_class_in_training_and_nothing_in_test(built):
    dataset, splits, _ = built
    for name, part in splits.named().items():
        counts = torch.zeros(dataset.n_classes, dataset.n_classes)
        counts.index_put_((part.y, part.bias[:, 0]), torch.ones(len(part)), accumulate=True)
        assert bool((counts.sum(1) > 0).all()), name
        assert (mutual_information(counts.numpy()) < 0.02) == (name == "test")
    conflicts = splits.train.conflicting[:, 0]
    for label in range(dataset.n_classes):
        of_class = conflicts[splits.train.y == label]
        assert int(of_class.sum()) == round(0.02 * len(of_class))


def test_plain_training_runs_on_it(built, new_method):
    dataset, splits, _ = built
    method = new_method("vanilla")
    task = make_task(method, dataset=dataset, splits=splits, recipe=dataset.recipe.replace(steps=3, net="mlp"))
    method.fit(task)
    assert 0 <= task.journal.epochs[-1].test["acc_unbiased"] <= 1


def test_the_page_shows_it_as_it_is():
    assert EXAMPLE.read_text(encoding="utf-8").strip() in (ROOT / "docs" / "adding-a-dataset.md").read_text(
        encoding="utf-8"
    )
