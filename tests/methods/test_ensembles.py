"""BiasEnsemble on lff and disen: what both hold of the contract, its cost, and what it refuses; loops: tests/parity."""

import pytest
import torch

from debiasbench import ensembles, testing
from debiasbench.grid import expand
from debiasbench.methods import registry as methods
from debiasbench.testing import Tiny, make_task


@pytest.fixture(params=["lff", "disen"])
def with_ensemble(request, monkeypatch):
    """The class with an ensemble by default, which few steps make sure of something."""
    monkeypatch.setattr(ensembles, "SURE", 0.2)
    parent = methods.get(request.param)[0]
    short = {"ensemble": 3, "ensemble_steps": 4, "__annotations__": {"ensemble": int, "ensemble_steps": int}}
    return type(parent)(f"Short{parent.__name__}", (parent,), {"name": f"{request.param}-short", **short})


@pytest.mark.parametrize(
    "check",
    [
        testing.check_fit_returns_logits, testing.check_same_seed_same_result, testing.check_bias_labels_are_not_read,
        testing.check_valid_and_test_do_not_train, testing.check_losses_are_pure,
    ],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_the_contract_holds_with_an_ensemble(with_ensemble, check):
    check(with_ensemble)


@pytest.mark.parametrize("name", ["lff", "disen"])
def test_an_ensemble_that_is_sure_of_nothing_is_told(new_method, name):
    method = new_method(name, ensemble=2, ensemble_steps=1)
    with pytest.raises(RuntimeError, match=r"no aligned sample: after 1 steps .* Raise ensemble_steps"):
        method.fit(make_task(method))


def test_where_nothing_is_kept_nothing_is_learnt():
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert ensembles.mean_of_kept(losses, torch.tensor([True, False, True])).item() == 3.5
    value = ensembles.mean_of_kept(losses, torch.zeros(3, dtype=torch.bool))
    assert value.item() == 0
    assert torch.autograd.grad(value, losses)[0].tolist() == [0, 0, 0]


def test_what_an_ensemble_costs():
    """1,000 steps each; a vanilla run on cmnist5k is 20 epochs of 4,000 / 128 steps. Without a size, a run each."""
    names = ["lff", "lff-be", "disen-be", "lff:ensemble=3,ensemble_steps=100"]
    costs = list(expand(names, ["cmnist5k"], seeds=1).relative_costs.values())
    runs = 1000 / (20 * 4000 / 128)
    assert costs == pytest.approx([2, 2 + 5 * runs, 2.2 + 5 * runs, 2 + 3 * runs / 10])
    assert ensembles.cost_of_vote(Tiny(), networks=5, steps=1000) == 5


def test_an_ensemble_is_a_name():
    cells = expand(["lff-be", "disen-be"], ["cmnist5k"], seeds=1).cells
    assert [cell.method_title for cell in cells] == ["lff:ensemble=5", "disen:ensemble=5"]
