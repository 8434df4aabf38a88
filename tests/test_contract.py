"""Every registered method and dataset passes the contract suite that we ship."""

import os
from pathlib import Path

import pytest

from debiasbench.datasets import registry as datasets
from debiasbench.methods import registry as methods
from debiasbench.testing import DATASET_CHECKS, METHOD_CHECKS, check_builds_the_same_again

NO_DATA = Path("no-such-folder")
# Data that are not at their usual place below the data folder: parameters for the tests' copies of them.
ELSEWHERE = {"bffhq": {"root": "bffhq_standin_from_celeba/bffhq"}}


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", methods.classes())
def test_method(name, check):
    check(methods.get(name)[0])


def test_no_plugin_file_is_broken():
    methods.classes()
    datasets.classes()
    assert methods.broken == {}
    assert datasets.broken == {}


@pytest.fixture(scope="module", params=datasets.classes())
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


def test_dataset_builds_the_same_again(built):
    check_builds_the_same_again(*built)
