"""Steps from the value of a loss: one optimiser for all networks of a stage, or one for each.

A loss returns one number or named terms. By default terms are added up. If networks have their own recipes or take
turns, a term trains only the network that it is named after. With `combine`, the method makes one gradient from the
gradients of the terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from debiasbench.errors import BenchmarkError
from debiasbench.recipe import Recipe
from debiasbench.schedule import rate_at
from debiasbench.training.digests import source_of

Terms = dict[str, Tensor]
Gradients = list[Tensor]  # one per trained parameter, in the order of the networks
Combine = Callable[[dict[str, Gradients]], Gradients]

# fields in which recipes of networks trained side by side may differ
OF_THE_OPTIMIZER = (
    "optimizer", "learning_rate", "momentum", "weight_decay", "decayed", "schedule", "milestones", "gamma", "warm_up",
    "clip_norm",
)  # fmt: skip


class Update(Protocol):
    """How a stage steps."""

    optimizers: dict[str, torch.optim.Optimizer]
    combine: Combine | None

    def set_rates(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """Set learning rates by the schedules, for a step of a stage; returns that of the first optimiser."""

    def step(self, values: Iterable[tuple[float, Tensor | Terms]], number: int) -> None:
        """Compute gradients and step; `number` is the number of steps that the stage has done.

        `values` are the fraction of the batch and the loss for each part of a batch. They are read one after another,
        so that only one graph is in memory at a time.
        """

    def signature(self) -> dict[str, Any]:
        """What the steps depend on besides the recipe of the stage."""


class Together:
    """One optimiser for all networks."""

    def __init__(self, nets: Mapping[str, nn.Module], recipe: Recipe, combine: Combine | None) -> None:
        self.nets, self.recipe, self.combine = nets, recipe, combine
        self.stepped = [_trained(net) for net in nets.values()]  # what the optimiser trains, even if frozen later
        self.optimizer = new_optimizer(nets, recipe)
        self.optimizers = {"": self.optimizer}

    def set_rates(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """As in `Update`."""
        rate = rate_at(self.recipe, step, n_steps, epoch, n_epochs)
        set_rate(self.optimizer, rate)
        return rate

    def signature(self) -> dict[str, Any]:
        """As in `Update`."""
        return {"combine": source_of(self.combine)}

    def step(self, values: Iterable[tuple[float, Tensor | Terms]], number: int) -> None:
        """As in `Update`."""
        del number
        self.optimizer.zero_grad(set_to_none=True)
        for fraction, value in values:
            if self.combine is None or isinstance(value, Tensor):
                whole = total(value)
                (whole if fraction == 1 else whole * fraction).backward()
            else:
                self._combine(value, self.combine)
        _clip(self.stepped, self.recipe)
        self.optimizer.step()

    def _combine(self, terms: Terms, combine: Combine) -> None:
        parameters = [one for net in self.nets.values() for one in _trained(net)]
        names = list(terms)
        gradients = {}
        for name in names:  # the terms share a graph, which the last one frees
            found = _gradients(terms[name], parameters, keep=name != names[-1])
            pairs = zip(parameters, found, strict=True)
            gradients[name] = [torch.zeros_like(one) if gradient is None else gradient for one, gradient in pairs]
        combined = combine(gradients)
        if len(combined) != len(parameters) or any(
            gradient.shape != parameter.shape for gradient, parameter in zip(combined, parameters, strict=False)
        ):
            raise TypeError(
                f"combine= must return a gradient for each of the {len(parameters)} trained parameters, as it is given "
                f"them for each term. Got {len(combined)}, or other shapes."
            )
        for parameter, gradient in zip(parameters, combined, strict=True):
            parameter.grad = gradient


class ByNetwork:
    """One optimiser per network; they step together or in turns."""

    combine: Combine | None = None

    def __init__(self, nets: Mapping[str, nn.Module], recipes: Mapping[str, Recipe], turns: Sequence[str]) -> None:
        self.nets, self.recipes, self.turns = nets, recipes, turns
        self.stepped = {name: _trained(net) for name, net in nets.items()}
        self.optimizers = {name: new_optimizer({name: net}, recipes[name]) for name, net in nets.items()}

    def set_rates(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """As in `Update`."""
        rates = {name: rate_at(recipe, step, n_steps, epoch, n_epochs) for name, recipe in self.recipes.items()}
        for name, optimizer in self.optimizers.items():
            set_rate(optimizer, rates[name])
        return next(iter(rates.values()))

    def signature(self) -> dict[str, Any]:
        """As in `Update`."""
        return {"recipes": {name: one.values() for name, one in self.recipes.items()}, "turns": list(self.turns)}

    def step(self, values: Iterable[tuple[float, Tensor | Terms]], number: int) -> None:
        """As in `Update`; all gradients are computed before any optimiser steps."""
        ((_, value),) = values
        names = [self.turns[number % len(self.turns)]] if self.turns else list(self.nets)
        if not isinstance(value, Tensor) and set(value) != set(self.nets):
            raise TypeError(
                f"Each network has an optimiser of its own here, so the terms of the loss must be named after the "
                f"networks {', '.join(self.nets)}. Got {', '.join(value)}."
            )
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)  # also of parameters frozen meanwhile
            term = value if isinstance(value, Tensor) else value[name]
            parameters = _trained(self.nets[name])
            found = _gradients(term, parameters, keep=name != names[-1])
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
        for name in names:
            _clip([self.stepped[name]], self.recipes[name])
            self.optimizers[name].step()


def new_update(
    nets: Mapping[str, nn.Module],
    recipe: Recipe,
    recipes: Mapping[str, Recipe] | None,
    turns: Sequence[str],
    combine: Combine | None,
) -> Update:
    """Make the update of a stage.

    Args:
        nets: the trained networks, by name.
        recipe: recipe of the stage.
        recipes: recipes of networks that have their own; the others use that of the stage.
        turns: names of the networks that step, one per step, repeated in this order; empty: all networks step in every
            step.
        combine: makes one gradient from those of the terms.

    Raises:
        ValueError: names are not networks; recipes differ in more than the optimiser; arguments exclude each other.
        BenchmarkError: the recipe accumulates gradients, which is not possible here.
    """
    unknown = [name for name in [*(recipes or {}), *turns] if name not in nets]
    if unknown:
        raise ValueError(f"recipe= and turns= name {', '.join(unknown)}; the trained networks are {', '.join(nets)}.")
    if recipe.accumulate > 1 and (recipes is not None or turns or combine is not None):
        raise BenchmarkError(
            f"accumulate={recipe.accumulate} adds up gradients for one optimiser. This method gives networks recipes "
            "of their own, lets them take turns, or combines gradients itself: train it with accumulate=1."
        )
    if recipes is None and not turns:
        return Together(nets, recipe, combine)
    if combine is not None:
        raise ValueError(
            "combine= makes one gradient for one optimiser: it does not go with turns= or several recipes."
        )
    own = {name: (recipes or {}).get(name, recipe) for name in nets}
    for name, one in own.items():
        differing = [
            key for key, given in one.values().items() if key not in OF_THE_OPTIMIZER and given != getattr(recipe, key)
        ]
        if differing:
            raise ValueError(
                f"The recipe of {name} differs from the stage's in {', '.join(differing)}: networks that are trained "
                f"side by side may differ in {', '.join(OF_THE_OPTIMIZER)} alone."
            )
    return ByNetwork(nets, own, turns)


def total(value: Tensor | Terms) -> Tensor:
    """The sum of the terms."""
    return value if isinstance(value, Tensor) else torch.stack(list(value.values())).sum()


def new_optimizer(nets: Mapping[str, nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    """Make the recipe's optimiser for the trained parameters of some networks."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    # names within the network; its own name ("biased") says nothing about its parameters
    named = [pair for net in nets.values() for pair in net.named_parameters() if pair[1].requires_grad]
    parameters = [parameter for _, parameter in named]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay, fused=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    decayed = [_is_decayed(name, parameter, recipe.decayed) for name, parameter in named]
    groups = [
        {
            "params": [parameter for parameter, its in zip(parameters, decayed, strict=True) if its is side],
            "weight_decay": decay if side else 0.0,
        }
        for side in (True, False)
    ]
    return torch.optim.AdamW(groups, rate, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters of an optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _is_decayed(name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule == "wilds":  # by name; the layer norms of DistilBERT have other names and are decayed there
        return not ("bias" in name or "LayerNorm.weight" in name)
    return parameter.ndim >= 2  # biases and normalisation weights are vectors


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def _gradients(term: Tensor, parameters: Sequence[nn.Parameter], *, keep: bool) -> Sequence[Tensor | None]:
    """Gradients of a term, None for parameters it does not depend on; `keep` the graph for another term."""
    return torch.autograd.grad(term, parameters, retain_graph=keep, allow_unused=True)


def _clip(stepped: Sequence[Sequence[nn.Parameter]], recipe: Recipe) -> None:
    """Clip only the parameters that step, a list per network; others may hold gradients of earlier stages."""
    if recipe.clip_norm is not None:
        for parameters in stepped:  # separately: networks trained side by side must not affect each other
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
