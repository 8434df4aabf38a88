"""The training loop, written once: what a method gives to `task.train` is carried out here.

The engine draws the order of the samples, gathers and augments batches on the device, runs the loss, steps the
optimiser by the recipe's schedule, and reads losses back once an epoch. A method's loss is a pure function of
tensors, so it says nothing of all this.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from debiasbench import sharing
from debiasbench.augment import augmented
from debiasbench.errors import DivergedError
from debiasbench.randomness import derived_generator, derived_seed
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples

if TYPE_CHECKING:
    from debiasbench.task import Phase, Task

State = dict[str, Tensor]
Loss = Callable[[Any, "Batch", State], Tensor | tuple[Tensor, State]]
Layout = Callable[[torch.Generator], list[Tensor]]
Sample = Tensor | Layout | None
READERS, AHEAD = 4, 8  # threads and batches, where images are read from the host while the device works


class Batch(SimpleNamespace):
    """What a loss sees of one step.

    Attributes:
        x: float32 (B, C, H, W), augmented and normalised; for text, token numbers (B, L), -1 where it is padded.
        y: int64 (B,). index: int64 (B,), places in the training set. perm: int64 (B,), a permutation of the batch.
        step, epoch: int64 (), 0-based in the phase. n_steps: int64 (), steps of the whole phase.
        y_all: int64 (N,), all labels of the training set.
        bias: int64 (B, A), only for a method that declares `needs_bias_labels`.
        Declared columns, by name: (B, ...).
    """

    def __getattr__(self, name: str) -> NoReturn:
        """Say what a batch holds, and why `bias` is not there."""
        if name == "bias":
            raise AttributeError("batch.bias is only there for a method that declares needs_bias_labels = True")
        raise AttributeError(f"a batch has no '{name}'; it has {', '.join(sorted(vars(self)))}")


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
        from debiasbench.task import evaluating

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
        if callable(sample) and _tables(self.state, self.task.n_samples):
            for batch in plan:
                if len(batch.unique()) < len(batch):
                    raise ValueError("State tables need batches without duplicates; this layout repeats a sample.")
        return plan

    def _signature(self, epochs: int | None, sample: Sample) -> dict[str, Any]:
        from debiasbench.task import digest_of, source_of

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


def fetched(samples: Samples, plan: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The indices and the rows of x (on the device) of each batch of a plan.

    Where x did not fit on the device, the next batches are read while one is trained on.
    """
    widths = samples.widths(plan)
    if samples.x.device == samples.y.device:
        for index, width in zip(plan, widths, strict=True):
            yield index, samples.rows(index, width)
        return
    hosts = [index.cpu() for index in plan]  # all at once: each of these waits for the device
    with ThreadPoolExecutor(READERS) as pool:
        coming = deque(map(pool.submit, repeat(samples.rows), hosts[:AHEAD], widths))
        try:
            for number, index in enumerate(plan):
                x = coming.popleft().result()
                if number + AHEAD < len(hosts):
                    coming.append(pool.submit(samples.rows, hosts[number + AHEAD], widths[number + AHEAD]))
                yield index, x
        finally:
            for future in coming:
                future.cancel()


def make_batch(
    task: Task,
    recipe: Recipe,
    index: Tensor,
    x: Tensor,
    place: tuple[int, int, int, int],
    *,
    n_steps: Tensor,
    columns: Mapping[str, Tensor],
) -> Batch:
    """Augment one batch; x are its rows as stored. `place` is (seed, call, epoch, step): all randomness follows it.

    Dropout layers draw from the global generators, so these are set as well: call it inside `fork_rng`.
    """
    device = index.device
    batch = Batch(
        x=augmented(x, recipe, derived_generator("augment", *place, device=device)),
        y=task.y[index],
        index=index,
        perm=torch.randperm(
            len(index), generator=derived_generator("permutation", *place, device=device), device=device
        ),
        step=torch.tensor(place[3], device=device),
        n_steps=n_steps,
        epoch=torch.tensor(place[2], device=device),
        y_all=task.y,
        **{name: column[index] for name, column in columns.items()},
    )
    if task.method.needs_bias_labels:
        batch.bias = task.splits.train.bias[index]
    # torch.manual_seed would do, but it walks the stack at each call until CUDA is in use
    torch.default_generator.manual_seed(derived_seed("dropout", *place))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed("dropout", *place))
    return batch


def plan_epoch(
    sample: Sample,
    *,
    n_samples: int,
    batch_size: int,
    generator: torch.Generator,
    drop_last: bool = False,
    draws: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Lay out one epoch as batches of indices.

    sample: None: each sample once, shuffled. Float (N,): `draws` (default N) independent draws with replacement,
        in proportion to the values. Int64 (N,): so many copies of each sample, shuffled. Callable: lays out the
        batches itself, from a generator.

    The last batch is kept as a smaller one unless `drop_last`; a tail of one sample joins the batch before it, as
    batch normalisation cannot train on one.
    """
    if callable(sample):
        return [batch.to(device) for batch in sample(generator)]
    if sample is None:
        order = torch.randperm(n_samples, generator=generator)
    elif sample.dtype == torch.int64:
        order = torch.arange(n_samples).repeat_interleave(sample.cpu())
        order = order[torch.randperm(len(order), generator=generator)]
    else:
        # float64: in float32 the running sum of many small probabilities loses some of them
        edges = sample.detach().cpu().double().cumsum(0)
        points = torch.rand(draws or n_samples, generator=generator, dtype=torch.float64) * edges[-1]
        order = torch.searchsorted(edges, points, right=True).clamp_max(n_samples - 1)
    batches = list(order.to(device).split(batch_size))
    if len(batches) > 1 and drop_last and len(batches[-1]) < batch_size:
        batches.pop()
    elif len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def check_sample(sample: Any, n_samples: int, state: Mapping[str, Tensor]) -> None:
    """Refuse samplings that would train on something else than meant."""
    if sample is None or callable(sample):
        return
    if not isinstance(sample, Tensor) or sample.shape != (n_samples,):
        shape = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(f"sample must be None, a tensor of shape ({n_samples},) or a function. Got {shape}.")
    if not (sample.is_floating_point() or sample.dtype == torch.int64):
        raise TypeError(f"sample must be float (probabilities) or int64 (copies). Got {sample.dtype}.")
    values = sample.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise DivergedError("The sampling probabilities hold values that are not finite: look at the scores.")
    if bool((values < 0).any()) or not bool((values > 0).any()):
        raise ValueError("sample must not be negative anywhere, and above 0 somewhere.")
    tables = _tables(state, n_samples)
    if tables:
        raise ValueError(
            f"State tables ({', '.join(tables)}) cannot go with sampling that repeats samples: two rows of one batch "
            "would write to one place. Use sample=None, or keep the table in another phase."
        )


def _tables(state: Mapping[str, Tensor], n_samples: int) -> list[str]:
    """Names of the per-sample tables in a state."""
    return [name for name, value in state.items() if value.ndim and len(value) == n_samples]


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
