"""The learning rate during a stage, by the `schedule` of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from debiasbench.recipe import Recipe


def fraction_done(recipe: Recipe, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
    """The fraction of a stage that is done: by steps if the recipe counts them or for "linear", else by epochs."""
    return step / n_steps if recipe.steps or recipe.schedule == "linear" else epoch / n_epochs


def rate_at(recipe: Recipe, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
    """The learning rate of a step in a stage with `n_steps` and `n_epochs`; steps and epochs count from 0.

    With `warm_up` it rises linearly to the scheduled rate over that fraction of the steps.
    """
    rate = learning_rate_at(recipe, fraction_done(recipe, step, n_steps, epoch, n_epochs))
    return rate * min(1.0, (step + 1) / (recipe.warm_up * n_steps)) if recipe.warm_up else rate


def learning_rate_at(recipe: Recipe, done: float) -> float:
    """The scheduled rate after the fraction `done` of the stage, in [0, 1]."""
    if recipe.schedule == "step":  # 1e-9: 3 of 5 epochs reach the milestone 0.6 despite rounding
        return recipe.learning_rate * recipe.gamma ** sum(done >= at - 1e-9 for at in recipe.milestones)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if recipe.schedule == "linear":  # to zero, by steps
        return recipe.learning_rate * max(0.0, 1 - done)
    return recipe.learning_rate
