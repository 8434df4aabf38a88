"""The training loop, written once: what a method gives to `task.train` is carried out here.

The engine draws the order of the samples, gathers and augments batches on the device, runs the loss, steps the
optimiser by the recipe's schedule, and reads losses back once an epoch. A method's loss is a pure function of
tensors, so it says nothing of all this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from debiasbench.errors import DivergedError
from debiasbench.randomness import derived_generator
from debiasbench.recipe import Recipe
from debiasbench.training import reuse as sharing
from debiasbench.training.batches import (
    Batch,
    Loss,
    Sample,
    State,
    check_sample,
    fetched,
    make_batch,
    plan_epoch,
    tables_in,
)

if TYPE_CHECKING:
    from debiasbench.training.task import Phase, Task


class Stage:
    """One training phase: optimiser, schedule and epoch count live as long as the stage.

    `run` may be called several times, for methods that take turns between networks.
    """

    def __init__(  # noqa: PLR0913 - the arguments of task.train, handed on
        self,
        task: Task,
        nets: dict[str, nn.Module],
        loss: Loss,
        *,
        recipe: Recipe,
        sample: Sample,
        draws: int | None,
        columns: Mapping[str, Tensor],
        state: State,
        predict: Any,
        share: tuple[Any, ...] | None,
    ) -> None:
        self.task, self.nets, self.loss, self.recipe, self.share = task, nets, loss, recipe, share
        self.sample, self.draws, self.columns, self.state, self.predict = sample, draws, columns, state, predict
        self.epoch = 0
        self.step = 0
        self.optimizer = _optimizer(nets, recipe)

    def run(self, epochs: int | None = None, *, sample: Sample = None, draws: int | None = None) -> State:
        """Train for `epochs` more epochs (default: to the end of the recipe) and return the state.

        Where the recipe counts steps, the stage ends with the last of them, whatever `epochs` says.
        `sample` and `draws` replace those of the stage for this call.
        """
        sample = self.sample if sample is None else sample
        draws = self.draws if draws is None else draws
        check_sample(sample, self.task.n_samples, self.state)
        signature = self._signature(epochs, sample) | {"draws": draws}
        call = self.task._numbered("train", signature)
        length = self._length(len(self._plan(sample, draws, call, 0)))
        last_epoch = length[1] if epochs is None else self.epoch + epochs
        phase = self.task._begin_phase(call, self, last_epoch - self.epoch)
        train = partial(self._train, phase, last_epoch, length, sample, draws)
        # a phase run in parts has an optimiser to keep, one with a predictor epochs to evaluate
        whole = epochs is None and self.step == 0 and self.predict is None
        shared = self.task.shared if self.share is not None and whole else None
        key = sharing.key_of(self, call, signature, partial(self._try, sample, draws, call)) if shared else None
        if shared is None or key is None:
            train()
        else:
            started = time.perf_counter()
            with shared.entry(key) as path:
                self.task.waited += time.perf_counter() - started
                if sharing.load(path, self, phase):
                    self.task.calls[call - 1]["reused"] = True
                    self.task._report(phase, self.epoch, last_epoch)
                else:
                    train()
                    sharing.save(path, self, phase)
        self.task._end_phase(phase, self)
        return self.state

    def _try(self, sample: Sample, draws: int | None, call: int, loss: Loss) -> None:
        """Run a loss on the first batch, which leaves no trace: eval mode, no gradient, nobody's generators."""
        from debiasbench.nets.base import evaluating

        devices = [self.task.device] if self.task.device.type == "cuda" else []
        plan = self._plan(sample, draws, call, 0)[:1]
        with torch.no_grad(), evaluating(self.nets.values()), torch.random.fork_rng(devices=devices):
            for index, x in fetched(self.task.splits.train, plan):
                place, one = (self.task.seed, call, 0, 0), torch.ones((), device=self.task.device)
                batch = make_batch(self.task, self.recipe, index, x, place, n_steps=one, columns=self.columns)
                with self.recipe.autocast(self.task.device):
                    loss(SimpleNamespace(**self.nets), batch, dict(self.state))

    def _train(self, phase: Phase, last_epoch: int, length: tuple[int, int], sample: Sample, draws: int | None) -> None:
        """Train up to `last_epoch`, of a phase of `length` (steps, epochs)."""
        started = time.perf_counter()
        evaluating = 0.0
        devices = [self.task.device] if self.task.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout is seeded a step; nobody else's draws change
            ended = self.step == self.recipe.steps
            while self.epoch < last_epoch and not ended:
                loss, rate = self._run_epoch(sample, draws, phase.call, *length)
                self.epoch += 1
                phase.losses.append(loss)
                ended = self.epoch == last_epoch or self.step == self.recipe.steps
                due = self.epoch % self.recipe.eval_every == 0 or ended
                before = time.perf_counter()
                if self.predict is not None and due:
                    self.task._evaluate_epoch(phase, self, rate)
                evaluating += time.perf_counter() - before
                self.task._report(phase, self.epoch, last_epoch)
        phase.seconds = time.perf_counter() - started - evaluating
        phase.evaluation_seconds = evaluating

    @property
    def n_epochs(self) -> int:
        """Epochs of the whole phase, each sample once an epoch; where the recipe counts steps, rounded up."""
        n_samples = self.task.n_samples
        plan = plan_epoch(
            None,
            n_samples=n_samples,
            batch_size=self.recipe.batch_size,
            drop_last=self.recipe.drop_last,
            generator=torch.Generator(),
        )
        return self._length(len(plan))[1]

    def _length(self, steps_per_epoch: int) -> tuple[int, int]:
        """Steps and epochs of the whole phase."""
        steps = self.recipe.steps or self.recipe.epochs * steps_per_epoch
        return steps, -(-steps // steps_per_epoch)

    def _run_epoch(
        self, sample: Sample, draws: int | None, call: int, total_steps: int, total_epochs: int
    ) -> tuple[float, float]:
        """One epoch -> (mean loss a sample, learning rate at its end)."""
        task, recipe, device = self.task, self.recipe, self.task.device
        plan = self._plan(sample, draws, call, self.epoch)
        for net in self.nets.values():
            net.train()
        nets = SimpleNamespace(**self.nets)
        total = torch.zeros((), device=device, dtype=torch.float64)
        n_seen = 0
        rate = recipe.learning_rate
        n_steps = torch.tensor(total_steps, device=device)
        for index, x in fetched(task.splits.train, plan):
            if self.step == recipe.steps:
                break
            by_step = recipe.steps or recipe.schedule == "linear"
            done = self.step / total_steps if by_step else self.epoch / total_epochs
            rate = recipe.learning_rate_at(done)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            place = (task.seed, call, self.epoch, self.step)
            batch = make_batch(task, recipe, index, x, place, n_steps=n_steps, columns=self.columns)
            value = self._loss(nets, batch)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            if recipe.clip_norm is not None:
                for net in self.nets.values():  # each by itself: nets that learn side by side must not meet here
                    nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm)
            self.optimizer.step()
            total += value.detach() * len(index)
            n_seen += len(index)
            self.step += 1
        mean = float(total) / max(n_seen, 1)  # the one read of the epoch
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise DivergedError(
                f"The training loss became {mean} in epoch {self.epoch + 1} of training call {call}. "
                f"Lower the learning rate (now {rate:g}) or look at the loss for logarithms and divisions."
            )
        return mean, rate

    def _loss(self, nets: Any, batch: Batch) -> Tensor:
        with self.recipe.autocast(self.task.device):
            result = self.loss(nets, batch, self.state)
        value, self.state = result if isinstance(result, tuple) else (result, self.state)
        if not isinstance(value, Tensor) or value.ndim != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"A loss must return one number (a tensor of shape ()), or (number, state). Got {shape}.")
        return value

    def _plan(self, sample: Sample, draws: int | None, call: int, epoch: int) -> list[Tensor]:
        """The batches of an epoch, as int64 indices on the device; a function of (seed, call, epoch) alone."""
        generator = derived_generator("order", self.task.seed, call, epoch)
        plan = plan_epoch(
            sample,
            n_samples=len(self.task.y),
            batch_size=self.recipe.batch_size,
            drop_last=self.recipe.drop_last,
            draws=draws,
            generator=generator,
            device=self.task.device,
        )
        if callable(sample) and tables_in(self.state, self.task.n_samples):
            for batch in plan:
                if len(batch.unique()) < len(batch):
                    raise ValueError("State tables need batches without duplicates; this layout repeats a sample.")
        return plan

    def _signature(self, epochs: int | None, sample: Sample) -> dict[str, Any]:
        from debiasbench.training.digests import digest_of, source_of

        return {
            "loss": source_of(self.loss),
            "nets": {name: sum(p.numel() for p in net.parameters()) for name, net in self.nets.items()},
            "recipe": self.recipe.values(),
            "epochs": epochs,
            "sample": digest_of(sample) if isinstance(sample, Tensor) else source_of(sample),
            "columns": {name: digest_of(column) for name, column in self.columns.items()},
            "state": {name: tuple(value.shape) for name, value in self.state.items()},
            "share": self.share,
        }


def _optimizer(nets: Mapping[str, nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    # names within their network: what it is called ("biased") says nothing of its parameters
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


def _is_decayed(name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule == "wilds":  # by name: the layer norms of DistilBERT are called otherwise, and are decayed there
        return not ("bias" in name or "LayerNorm.weight" in name)
    return parameter.ndim >= 2  # biases and normalisation are vectors
