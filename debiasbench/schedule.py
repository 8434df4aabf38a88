"""The learning rate in the course of a stage, by a recipe's `schedule`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from debiasbench.recipe import Recipe


def fraction_done(recipe: Recipe, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
    """What the schedule counts as done of a stage: by steps where the recipe counts them, else by epochs."""
    return step / n_steps if recipe.steps or recipe.schedule == "linear" else epoch / n_epochs


def learning_rate_at(recipe: Recipe, done: float) -> float:
    """The learning rate after the fraction `done` of the stage, in [0, 1]."""
    if recipe.schedule == "step":  # 1e-9: 3 of 5 epochs is at the milestone 0.6, whatever the floats say
        return recipe.learning_rate * recipe.gamma ** sum(done >= at - 1e-9 for at in recipe.milestones)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if recipe.schedule == "linear":  # to zero, by steps
        return recipe.learning_rate * max(0.0, 1 - done)
    return recipe.learning_rate
