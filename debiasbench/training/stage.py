"""The training loop, written once: it carries out what a method passes to `task.train`.

A stage draws the order of the samples, gathers and augments batches on the device, computes the loss, steps the
optimiser with the schedule of the recipe, and reads losses back once per epoch. The loss of a method is a pure function
of tensors and deals with none of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Row
from debiasbench.losses import label_smoothing
from debiasbench.nets.base import Net, Nets, bound, held
from debiasbench.randomness import derived_generator
from debiasbench.recipe import Recipe
from debiasbench.training.batches import (
    Batch,
    Contents,
    Loss,
    Sample,
    Source,
    State,
    batches_of_epoch,
    check_finite,
    check_sample,
    draws_of,
    n_batches,
    plan_epoch,
    tables_in,
)
from debiasbench.training.digests import digest_of, source_of
from debiasbench.training.ends import StageEnd, put_state, state_of
from debiasbench.training.journal import EvaluatedEpoch, Journal, StageRun
from debiasbench.training.reuse import DeclinedReuse, Reuse, facts_of_loss, facts_of_nets, facts_of_noise
from debiasbench.training.updates import Terms, Update
from debiasbench.training.updates import total as total_of

Proxies = NDArray[np.uint16]  # (N,), a kind for each validation sample
Evaluate = Callable[[Callable[[Tensor], Tensor], Recipe, Proxies | None], Row]


@dataclass
class EpochUnderWay:
    """An epoch in progress: sum of the losses, float64 (); samples and batches so far; the last learning rate."""

    total: Tensor
    n_seen: int
    n_batches: int
    rate: float


class Stage:
    """One training stage. Its optimiser, schedule and epoch count last as long as the stage.

    `run` may be called several times, for methods that alternate between networks.

    Attributes:
        losses: mean training loss per sample in each epoch so far, for stopping rules of your own.
    """

    def __init__(  # noqa: PLR0913 - the arguments of task.stage, and what all stages of a cell share
        self,
        nets: dict[str, nn.Module],
        loss: Loss,
        *,
        source: Source,
        journal: Journal,
        evaluate: Evaluate,
        update: Update,
        recipe: Recipe,
        sample: Sample,
        draws: int | None,
        contents: Contents,
        state: State,
        frozen: dict[str, nn.Module],
        predict: Any,
        find_proxies: Callable[[], Proxies] | None,
        reuse: Reuse | None,
    ) -> None:
        self.nets, self.frozen, self.loss, self.recipe, self.reuse = nets, frozen, loss, recipe, reuse
        self.source, self.journal, self.evaluate, self.update = source, journal, evaluate, update
        self.sample, self.draws, self.contents, self.state, self.predict = sample, draws, contents, state, predict
        self.find_proxies, self.proxies = find_proxies, ""  # the latter in hexadecimal digits, once computed
        self.key = journal.new_stage()
        self.goes_on = True  # whether it can be run again
        self.epoch = 0
        self.step = 0
        self.losses: list[float] = []

    def run(self, epochs: int | None = None, *, sample: Sample = None, draws: int | None = None) -> State:
        """Train for `epochs` more epochs (default: to the end of the recipe) and return the state.

        If the recipe counts steps, the stage ends with its last step, whatever `epochs` says. `sample` and `draws`
        replace those of the stage for this run.
        """
        sample = self.sample if sample is None else sample
        draws = self.draws if draws is None else draws
        check_sample(sample, len(self.source.samples), self.state)
        signature = self._signature(epochs, sample) | {"draws": draws}
        call = self.journal.number("train", signature)
        length = self._length(self._n_batches(sample, draws, call))
        last_epoch = length[1] if epochs is None else self.epoch + epochs
        evaluated = self.predict is not None
        run = self.journal.begin_run(call, self.nets, last_epoch - self.epoch, evaluated=evaluated)
        finished = self.journal.finished(call)
        if finished is not None:
            self._as_it_was(run, finished["epoch"], finished["step"])
            return self.state

        def train() -> None:
            self._train(run, last_epoch, length, sample, draws)

        if self.reuse is None:
            train()
        else:
            self._reuse_or(train, self.reuse, run, signature, sample, whole=epochs is None and self.step == 0)
        self._evaluate_end(run)
        self._keep(run)
        return self.state

    @property
    def n_epochs(self) -> int:
        """Epochs of the whole stage if each epoch has each sample once; if the recipe counts steps, rounded up."""
        n_samples = len(self.source.samples)
        return self._length(n_batches(n_samples, self.recipe.batch_size, drop_last=self.recipe.drop_last))[1]

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _train(
        self, run: StageRun, last_epoch: int, length: tuple[int, int], sample: Sample, draws: int | None
    ) -> None:
        """Train from the current epoch to `last_epoch`; the whole stage has the `length` (steps, epochs)."""
        begun = self._go_on(run)
        if self.find_proxies is not None:  # with the networks as they are before this stage trains
            self.proxies = run.proxies = self.proxies or self.find_proxies().tobytes().hex()
        clock = self._clock(run)
        device = self.source.device
        # dropout is seeded at each step; the fork leaves all other draws unchanged
        own_draws = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with own_draws, held(self.frozen.values()), self.recipe.tf32(device):
            ended = begun is None and self.step == self.recipe.steps
            while self.epoch < last_epoch and not ended:
                loss, rate = self._run_epoch(run, begun, clock, last_epoch, length, sample, draws)
                begun = None
                self.epoch += 1
                run.losses.append(loss)
                self.losses.append(loss)
                ended = self.epoch == last_epoch or self.step == self.recipe.steps
                if self.predict is not None and (self.epoch % self.recipe.eval_every == 0 or ended):
                    self._evaluate_epoch(run, rate)
                self.journal.report_epoch(run, self.epoch, last_epoch)
        run.seconds = clock()

    def _run_epoch(
        self,
        run: StageRun,
        begun: EpochUnderWay | None,
        clock: Callable[[], float],
        last_epoch: int,
        length: tuple[int, int],
        sample: Sample,
        draws: int | None,
    ) -> tuple[float, float]:
        """Train one epoch, or the rest of one that was `begun` -> (mean loss per sample, last learning rate)."""
        total_steps, total_epochs = length
        plan = self._plan(sample, draws, run.call, self.epoch)
        for net in self.nets.values():
            net.train()
        nets = Nets(**self.nets, **self.frozen)
        zero = torch.zeros((), device=self.source.device, dtype=torch.float64)
        now = begun or EpochUnderWay(zero, 0, 0, self.recipe.learning_rate)
        for batch in batches_of_epoch(
            self.source, self.recipe, plan, self.contents,
            call=run.call, epoch=self.epoch, step=self.step, n_steps=total_steps, skip=now.n_batches,
        ):  # fmt: skip
            now.rate = self.update.set_rates(self.step, total_steps, self.epoch, total_epochs)
            self.update.step(self._losses(nets, batch, now.total), self.step)
            now.n_seen += len(batch.index)
            now.n_batches += 1
            self.step += 1
            if self.journal.between_steps(run, self.epoch, last_epoch):
                run.seconds = clock()
                self._keep_running(run, now)
        mean = float(now.total) / max(now.n_seen, 1)  # the only read from the device in this epoch
        check_finite(mean, call=run.call, epoch=self.epoch + 1, rate=now.rate)
        return mean, now.rate

    @staticmethod
    def _clock(run: StageRun) -> Callable[[], float]:
        """Seconds of training in this run, with earlier processes and without evaluation."""
        started, before, evaluation = time.perf_counter(), run.seconds, run.evaluation_seconds
        return lambda: before + time.perf_counter() - started - (run.evaluation_seconds - evaluation)

    def _losses(self, nets: Nets, batch: Batch, total: Tensor) -> Iterator[tuple[float, Tensor | Terms]]:
        """Yield each part's fraction of the batch and its loss; add the loss, times the samples, to `total`."""
        size = len(batch.index)
        for part in [batch] if self.recipe.accumulate == 1 else batch.parts(self.recipe.accumulate):
            value = self._loss(nets, part)
            yield len(part.index) / size, value
            total += total_of(value).detach() * len(part.index)

    def _loss(self, nets: Nets, batch: Batch) -> Tensor | Terms:
        with self.recipe.autocast(self.source.device), label_smoothing(self.recipe.label_smoothing) as smoothing:
            result = self.loss(nets, batch, self.state)
        if smoothing.amount and not smoothing.used and self.predict is not None:
            raise BenchmarkError(
                f"The recipe has label_smoothing={smoothing.amount:g}, and the loss that trains the predictor does not "
                "use debiasbench.losses.cross_entropy, which smooths labels. Use it there, or leave the field out."
            )
        value, self.state = result if isinstance(result, tuple) else (result, self.state)
        for one in value.values() if isinstance(value, dict) and value else [value]:
            if not isinstance(one, Tensor) or one.ndim != 0:
                shape = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise TypeError(
                    f"A loss must return one number (a tensor of shape ()) or a dictionary of such terms, or (either, "
                    f"state). Got {shape}."
                )
        return value

    # ---- order and length -------------------------------------------------------------------------------------------

    def _plan(self, sample: Sample, draws: int | None, call: int, epoch: int) -> list[Tensor]:
        """The batches of an epoch, as int64 indices on the host; they depend only on (seed, call, epoch)."""
        n_samples = len(self.source.samples)
        if callable(sample) and self.recipe.accumulate > 1:
            raise BenchmarkError(
                f"accumulate={self.recipe.accumulate} takes batches apart, and this method lays out its own, whose "
                "samples belong together: train it with accumulate=1."
            )
        plan = plan_epoch(
            sample,
            n_samples=n_samples,
            batch_size=self.recipe.batch_size,
            drop_last=self.recipe.drop_last,
            draws=draws,
            generator=derived_generator("order", self.source.seed, call, epoch),
        )
        if callable(sample) and tables_in(self.state, n_samples):
            for batch in plan:
                if len(batch.unique()) < len(batch):
                    raise ValueError("State tables need batches without duplicates; this layout repeats a sample.")
        return plan

    def _n_batches(self, sample: Sample, draws: int | None, call: int) -> int:
        """The number of batches in an epoch, computed; a function that lays them out and has no length is called."""
        n_draws = draws_of(sample, len(self.source.samples), draws)
        if n_draws is not None:
            return n_batches(n_draws, self.recipe.batch_size, drop_last=self.recipe.drop_last)
        n = len(sample) if isinstance(sample, Sized) else len(self._plan(sample, draws, call, 0))
        if n == 0:
            raise ValueError("The function that is given as sample= says that an epoch has no batch: its len() is 0.")
        return n

    def _length(self, steps_per_epoch: int) -> tuple[int, int]:
        """Numbers of steps and epochs in the whole stage."""
        steps = self.recipe.steps or self.recipe.epochs * steps_per_epoch
        return steps, -(-steps // steps_per_epoch)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _evaluate_epoch(self, run: StageRun, rate: float) -> None:
        """Evaluate an epoch that selection rules can choose."""
        started = time.perf_counter()
        proxies = np.frombuffer(bytes.fromhex(self.proxies), np.uint16) if self.proxies else None
        row = self.evaluate(bound(self.predict, {**self.nets, **self.frozen}), self.recipe, proxies)
        self.journal.evaluated(run, EvaluatedEpoch(self.epoch, row, rate, run.losses[-1]))
        run.evaluation_seconds += time.perf_counter() - started

    def _evaluate_end(self, run: StageRun) -> None:
        """Evaluate complete networks of a stage without a predictor, so that the biased network's accuracy is known."""
        if self.predict is not None:
            return
        started = time.perf_counter()
        for name, net in self.nets.items():
            if isinstance(net, Net) and not isinstance(net.head, nn.Identity):
                run.end[name] = self.evaluate(net, self.recipe, None)
        run.evaluation_seconds += time.perf_counter() - started

    # ---- reuse ------------------------------------------------------------------------------------------------------

    def _reuse_or(
        self,
        train: Callable[[], None],
        reuse: Reuse,
        run: StageRun,
        signature: dict[str, Any],
        sample: Sample,
        *,
        whole: bool,
    ) -> None:
        """Load the end of an equal stage from another cell, or train and keep the end."""
        try:
            if self.predict is not None:
                raise DeclinedReuse("it has a predictor, whose epochs must be evaluated")
            if not whole:
                raise DeclinedReuse("it is run in parts, and its optimiser goes on")
            key = reuse.key(
                signature=signature, loss=facts_of_loss(self.loss), nets=facts_of_nets({**self.nets, **self.frozen}),
                layout=facts_of_loss(sample, "layout of batches") if callable(sample) else None,
                combine=facts_of_loss(self.update.combine, "combine=") if self.update.combine else None,
                noise={name: facts_of_noise(name, one) for name, one in self.contents.noise.items()},
                call=run.call, seed=self.source.seed,
                state={name: digest_of(value) for name, value in self.state.items()},
            )  # fmt: skip
        except DeclinedReuse as reason:
            self.journal.note(run.call, not_reused=str(reason))
            train()
            return
        started = time.perf_counter()
        with reuse.entry(key, lambda: self._wait(run)) as entry:
            self.journal.waited += time.perf_counter() - started
            end = entry.load(self.source.device)
            if end is None:
                train()
                entry.save(self._end(run))
            else:
                self._go_to(end, run)
                self.journal.note(run.call, reused=True)
                self.journal.report(run, self.epoch, self.epoch)

    # ---- resume -----------------------------------------------------------------------------------------------------

    def _wait(self, run: StageRun) -> None:
        """Wait while another worker trains this stage."""
        self.journal.report(run, 0, self.recipe.epochs)
        self.journal.stop_if_asked()

    def _end(self, run: StageRun, *, goes_on: bool = False) -> StageEnd:
        nets = {name: net.state_dict() for name, net in self.nets.items()}
        optimizers = {name: state_of(one) for name, one in self.update.optimizers.items()} if goes_on else {}
        return StageEnd(nets, self.state, run.losses, self.epoch, self.step, run.seconds, optimizers)

    def _go_to(self, end: StageEnd, run: StageRun) -> None:
        for name, net in self.nets.items():
            net.load_state_dict(end.nets[name])
        for name, state in end.optimizers.items():
            put_state(self.update.optimizers[name], state)
        self.state, self.epoch, self.step = end.state, end.epoch, end.step
        run.losses, run.seconds = list(end.losses), end.seconds
        self.losses += end.losses
        self.proxies = run.proxies

    def _keep(self, run: StageRun) -> None:
        """Keep the end of a finished run."""
        end = replace(self._end(run, goes_on=self.goes_on), nets={})
        files = self.journal.files_of_nets(self.nets) | {self.key: end.to_bytes()}
        self.journal.end(run.call, files, run=asdict(run), epoch=self.epoch, step=self.step)

    def _keep_running(self, run: StageRun, now: EpochUnderWay) -> None:
        self.journal.keep_running(
            run, self._end(run, goes_on=True),
            total=float(now.total), n_seen=now.n_seen, n_batches=now.n_batches, rate=now.rate,
        )  # fmt: skip

    def _go_on(self, run: StageRun) -> EpochUnderWay | None:
        """Resume this run where an earlier process left it; None if there is nothing to resume."""
        kept = self.journal.running(run, self.source.device)
        if kept is None:
            return None
        end, now = kept
        self._go_to(end, run)
        total = torch.full((), now["total"], device=self.source.device, dtype=torch.float64)
        return EpochUnderWay(total, now["n_seen"], now["n_batches"], now["rate"])

    def _as_it_was(self, run: StageRun, epoch: int, step: int) -> None:
        """Restore a run that an earlier process finished. What later calls changed again is left without values."""
        self.epoch, self.step, self.proxies = epoch, step, run.proxies
        self.losses += run.losses
        if run.losses:
            for net in self.nets.values():
                net.train()  # training leaves them in train mode
        self.journal.fill_nets(run.call, self.nets, self.source.device)
        if self.journal.is_newest(self.key, run.call):
            end = self.journal.stage_end(self.key, self.source.device)
            self.state = end.state
            for name, state in end.optimizers.items():
                put_state(self.update.optimizers[name], state)
        else:
            self.state = {name: value.to("meta") for name, value in self.state.items()}

    def _signature(self, epochs: int | None, sample: Sample) -> dict[str, Any]:
        return {
            "loss": source_of(self.loss),
            "nets": {name: sum(p.numel() for p in net.parameters()) for name, net in self.nets.items()},
            "recipe": self.recipe.values(),
            "epochs": epochs,
            "sample": digest_of(sample) if isinstance(sample, Tensor) else source_of(sample),
            "columns": {name: digest_of(column) for name, column in self.contents.columns.items()},
            "state": {name: tuple(value.shape) for name, value in self.state.items()},
            "update": self.update.signature(),
            "frozen": sorted(self.frozen),
            "noise": {name: repr(distribution) for name, distribution in sorted(self.contents.noise.items())},
            "views": self.contents.views,
            "inputs": None if self.contents.inputs is None else digest_of(self.contents.inputs),
        }
