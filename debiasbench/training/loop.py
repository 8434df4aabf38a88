"""Batches for a training loop written by the method, with everything else that a stage does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.recipe import Recipe
from debiasbench.schedule import rate_at
from debiasbench.training.batches import (
    Batch,
    Contents,
    Sample,
    Source,
    batches_of_epoch,
    check_finite,
    plan_epoch,
)
from debiasbench.training.digests import source_of
from debiasbench.training.journal import Journal
from debiasbench.training.updates import new_optimizer, set_rate


class Loop:
    """Batches for a method that writes its own training loop; iterate over it.

        loop = task.batches(epochs=5)
        optimizer = loop.optimizer(net)
        for batch in loop:
            value = ...
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            loop.note(value)

    Attributes:
        losses: mean of the noted values over the samples, by epoch.
    """

    def __init__(
        self,
        source: Source,
        journal: Journal,
        nets: Sequence[nn.Module],
        recipe: Recipe,
        sample: Sample,
        draws: int | None,
        contents: Contents,
    ) -> None:
        if recipe.accumulate > 1 or recipe.label_smoothing:
            raise BenchmarkError(
                f"This method has a training loop of its own, which computes losses and steps itself: the recipe's "
                f"accumulate={recipe.accumulate} and label_smoothing={recipe.label_smoothing:g} would be ignored. "
                "Leave them out."
            )
        self.source, self.journal, self.nets, self.recipe = source, journal, nets, recipe
        self.sample, self.draws, self.contents = sample, draws, contents
        self.losses: list[float] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._noted: list[tuple[Tensor, int]] = []
        self._n_samples = 0
        self.call = journal.number(
            "batches", {"recipe": recipe.values(), "sample": source_of(sample), "draws": draws, "views": contents.views}
        )

    def optimizer(self, *nets: nn.Module) -> torch.optim.Optimizer:
        """Make the recipe's optimiser for some networks; its learning rate follows the schedule in the loop."""
        optimizer = new_optimizer({str(index): net for index, net in enumerate(nets)}, self.recipe)
        self._optimizers.append(optimizer)
        return optimizer

    def note(self, value: Tensor) -> None:
        """Keep the loss of this step; the end of each epoch checks that the mean is finite."""
        self._noted.append((value.detach().double(), self._n_samples))

    def __iter__(self) -> Iterator[Batch]:
        recipe, source, call = self.recipe, self.source, self.call
        named = {str(index): net for index, net in enumerate(self.nets)}
        run = self.journal.begin_run(call, named, recipe.epochs, evaluated=False)
        started, step, epoch, rate = time.perf_counter(), 0, 0, recipe.learning_rate
        while epoch < run.epochs and step != recipe.steps:
            plan = plan_epoch(
                self.sample, n_samples=len(source.samples), batch_size=recipe.batch_size, drop_last=recipe.drop_last,
                draws=self.draws, generator=derived_generator("order", source.seed, call, epoch),
            )  # fmt: skip
            n_steps = recipe.steps or recipe.epochs * len(plan)
            run.epochs = -(-n_steps // len(plan))
            batches = batches_of_epoch(
                source, recipe, plan, self.contents, call=call, epoch=epoch, step=step, n_steps=n_steps
            )
            while True:
                # the method's step runs inside the fork, which seeds dropout and leaves all other draws unchanged
                own_draws = torch.random.fork_rng(devices=[source.device] if source.device.type == "cuda" else [])
                with own_draws, recipe.tf32(source.device):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    rate = rate_at(recipe, step, n_steps, epoch, run.epochs)
                    for optimizer in self._optimizers:
                        set_rate(optimizer, rate)
                    for net in self.nets:
                        net.train()
                    self._n_samples = len(batch.index)
                    yield batch
                step += 1
                if self.journal.between_steps(run, epoch, run.epochs):
                    self.journal.stop_if_asked()
            epoch += 1
            if self._noted:
                self._end_epoch(epoch, rate)
                run.losses = self.losses
            self.journal.report_epoch(run, epoch, run.epochs)
        run.seconds = time.perf_counter() - started

    def _end_epoch(self, epoch: int, rate: float) -> None:
        """Read the noted losses from the device, once per epoch."""
        n_samples = sum(n for _, n in self._noted)
        mean = float(torch.stack([value * n for value, n in self._noted]).sum()) / n_samples
        self._noted.clear()
        check_finite(mean, call=self.call, epoch=epoch, rate=rate)
        self.losses.append(mean)
