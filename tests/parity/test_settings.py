"""Settings that are said to be the authors': those of their commands, as tables."""

import sys

import pytest

from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.methods import registry as methods


def cell_of(method, dataset):
    """The cell of one method on one dataset."""
    (cell,) = expand([method], [dataset], seeds=1).cells
    return cell


@pytest.mark.parametrize(
    ("method", "dataset", "factors", "recipe"),
    [
        (
            "disen:preset=official", "cmnist", (10, 10, 1),
            {"net": "mlp16", "augment": False, "learning_rate": 0.01, "batch_size": 256, "gamma": 0.5},
        ),
        (
            "disen:preset=official", "bffhq", (2, 2, 0.1),
            {"net": "resnet18", "augment": True, "learning_rate": 1e-4, "batch_size": 64, "gamma": 0.1},
        ),
        (
            "disen:preset=official", "ccifar", (1, 1, 1),
            {"net": "resnet18", "augment": True, "learning_rate": 5e-4, "batch_size": 256, "gamma": 0.5},
        ),
        (
            "disen:preset=official-1pct", "ccifar:rho=0.02", (5, 5, 1),
            {"net": "resnet18", "augment": True, "learning_rate": 1e-3, "batch_size": 256, "gamma": 0.5},
        ),
        (
            "disen:preset=official-5pct", "ccifar:rho=0.05", (1, 1, 1),
            {"net": "resnet18", "augment": True, "learning_rate": 1e-3, "batch_size": 256, "gamma": 0.5},
        ),
    ],
)  # fmt: skip
def test_the_official_presets_of_disen(method, dataset, factors, recipe):
    """The table of the authors' commands: rate, factors (lambda_dis, lambda_swap_b, lambda_swap), decay."""
    cell = cell_of(method, dataset)
    found = cell.method_parameters
    assert (found["bias_factor"], found["swap_bias_factor"], found["swap_factor"]) == factors
    common = {"optimizer": "adam", "weight_decay": 0, "steps": 50_000, "drop_last": True, "milestones": [0.4, 0.6, 0.8]}
    expected = {**common, **recipe}
    assert {name: cell.recipe[name] for name in expected} == expected
    assert cell.method_title == method


def test_what_jtt_costs():
    """On CelebA 4 % of the samples come fifty times; with a known ratio half of what is seen conflicts."""
    costs = {name: expand(["jtt"], [name], seeds=1) for name in ("celeba", "cmnist5k")}
    (celeba,), (coloured,) = (grid.relative_costs.values() for grid in costs.values())
    assert celeba == pytest.approx(1 / 100 + 1 + 50 * 0.04)
    assert coloured == pytest.approx(5 / 20 + 1 + 1)


def some(values, expected):
    """Of the values of a cell, those that are expected of it."""
    return {name: values[name] for name in expected}


def test_the_official_preset_of_pgd():
    """Section 4.2: order 0.7, weight only, augmented images for scoring, GCE with a constant factor."""
    default = {
        "gce_form": "paper", "norm": "l2", "order": None, "score_bias": True, "score_augment": False, "alpha": 0.7,
    }  # fmt: skip
    released = {
        "gce_form": "official", "norm": "lp", "order": 0.7, "score_bias": False, "score_augment": True, "alpha": 0.7,
    }  # fmt: skip
    assert some(cell_of("pgd", "cmnist").method_parameters, default) == default
    assert some(cell_of("pgd:preset=official", "cmnist").method_parameters, released) == released


def test_the_official_preset_of_lff():
    """Section 4.3: on Colored MNIST their Adam and batches; of their CelebA, on a frozen ResNet, it has nothing."""
    recipe = {
        "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0, "batch_size": 256, "schedule": "constant",
    }  # fmt: skip
    assert some(cell_of("lff:preset=official", "cmnist").recipe, recipe) == recipe
    parameters = {"alpha": 0.7, "smoothing": 0.7, "gce_form": "official", "score": "loss"}
    assert some(cell_of("lff", "cmnist").method_parameters, parameters) == parameters
    with pytest.raises(BenchmarkError, match="no settings for celeba"):
        cell_of("lff:preset=official", "celeba")
    assert methods.get("lff-grad") == (methods.get("lff")[0], {"score": "gradnorm"})
    assert "frozen ImageNet ResNet-18" in sys.modules[methods.get("lff")[0].__module__].__doc__


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        (
            "celeba",
            {
                "T": 1, "lambda_up": 50, "first_optimizer": "sgd", "first_learning_rate": 1e-5,
                "first_weight_decay": 0.1, "first_batch_size": 64,
            },
        ),
        (
            "civilcomments",
            {
                "T": 2, "lambda_up": 6, "first_optimizer": "sgd", "first_learning_rate": 2e-5,
                "first_weight_decay": 0, "first_batch_size": 24,
            },
        ),
    ],
)  # fmt: skip
def test_jtt_as_in_the_readme(dataset, settings):
    """Section 4.4: T and lambda_up belong to how the first training steps."""
    assert some(cell_of("jtt", dataset).method_parameters, settings) == settings


def test_the_official_preset_of_jtt():
    """Section 4.4: errors as they are met while epoch index T is trained, and lambda_up copies more."""
    settings = {"copies": "lambda+1", "error_pass": "online"}
    assert some(cell_of("jtt:preset=official", "cmnist").method_parameters, settings) == settings


@pytest.mark.parametrize(
    ("dataset", "settings", "recipe"),
    [
        (
            "cmnist",
            {"n_each": 32, "sets": 32, "temperature": 0.05, "anchor_fraction": 1, "first_epochs": 5},
            {
                "optimizer": "sgd", "learning_rate": 1e-3, "weight_decay": 1e-4, "epochs": 3, "batch_size": 32,
                "schedule": "constant", "augment": False,
            },
        ),
        (
            "celeba",
            {"n_each": 64, "temperature": 0.05, "anchor_fraction": 0.1},
            {"optimizer": "sgd", "learning_rate": 1e-5, "momentum": 0.9, "weight_decay": 0.1, "epochs": 15},
        ),
        (
            "civilcomments",
            {"n_each": 16, "temperature": 0.1, "anchor_fraction": 0.1},
            {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "epochs": 10},
        ),
    ],
)  # fmt: skip
def test_the_official_preset_of_cnc(dataset, settings, recipe):
    """Section 4.6: sets, temperature and optimiser by data; both sides, and epochs of the smallest slice."""
    cell = cell_of("cnc:preset=official", dataset)
    settings = settings | {"two_sided": True, "epoch": "anchors", "contrastive_weight": 0.75}
    assert some(cell.method_parameters, settings) == settings
    assert some(cell.recipe, recipe) == recipe


def test_eiil_as_in_the_command():
    """Section 4.7: environments by 10,000 steps of Adam 0.001; IRM's rate, L2, penalty and when it begins."""
    settings = {
        "ei_steps": 10_000, "ei_learning_rate": 0.001, "penalty_weight": 191_257, "irm_learning_rate": 4.8986e-4,
        "irm_l2": 1.1079e-3,
    }  # fmt: skip
    found = cell_of("eiil:backend=irm", "cmnist").method_parameters
    assert some(found, settings) == settings
    assert found["penalty_start"] == pytest.approx(190 / 501, abs=1e-3)


def test_george_as_published():
    """Section 4.8: normalised features of the best epoch, by UMAP; on CelebA C = 3 and clusters equally often."""
    settings = {"first_epoch": "best", "normalize": True, "reduction": "umap", "step_size": 0.01, "adjustment": 0}
    default = methods.get("george")[0]()
    assert {name: getattr(default, name) for name in settings} == settings
    assert default.by_dataset["celeba"] == {"adjustment": 3, "uniform": True}


def test_bpa_as_released():
    """Section 4.9: eight clusters a class, smoothing without memory; the paper's has 0.3 of the new weight."""
    for method, smoothing in (("bpa", "exponential"), ("bpa:preset=paper", "average")):
        settings = {"clusters": 8, "smoothing": smoothing, "momentum": 0.3}
        assert some(cell_of(method, "celeba").method_parameters, settings) == settings


def test_groupdro_as_published():
    """Section 4.10: the step of the groups' weights, and no adjustment."""
    settings = {"groups": "cells", "step_size": 0.01, "adjustment": 0}
    assert some(cell_of("groupdro", "celeba").method_parameters, settings) == settings


def test_dfr_as_published():
    """Balanced subsets of groups, and the penalty chosen."""
    settings = {"groups": "cells", "balance": "subsets", "strength": None}
    assert some(cell_of("dfr", "celeba").method_parameters, settings) == settings
