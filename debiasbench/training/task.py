"""What the `fit` of a method receives: the training data of one seed, and the tools to train on them."""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor, nn

from debiasbench.data.augment import augmented, to_input
from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.evaluation.evaluation import Evaluation, Row
from debiasbench.nets.base import Learnable, Net, Nets, bound, evaluating
from debiasbench.nets.build import build_net
from debiasbench.randomness import derived_generator, derived_seed
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits
from debiasbench.training.batches import Contents, Loss, Noise, Sample, Source, State, check_sample
from debiasbench.training.digests import digest_of, name_of, source_of
from debiasbench.training.ends import StaleJournalError, to_bytes
from debiasbench.training.journal import ABSENT, Journal
from debiasbench.training.loop import Loop
from debiasbench.training.reuse import Reuse
from debiasbench.training.stage import Proxies, Stage
from debiasbench.training.traces import Traces
from debiasbench.training.updates import Combine, new_update

Predict = nn.Module | Callable[[Nets, Tensor], Tensor]
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a network at one time; without weights if an earlier process took it and no longer keeps it."""

    net: nn.Module
    weights: dict[str, Tensor] | None


@dataclass(frozen=True)
class Access:
    """What a method may see besides the images and labels of training samples, and its name for messages."""

    name: str
    bias_labels: bool = False
    validation: bool = False


def _run_once(
    stage: Callable[Concatenate[Task, Arguments], Stage],
) -> Callable[Concatenate[Task, Arguments], State]:
    """Make `Task.train` from `Task.stage`: a stage with these arguments, run to its end."""

    def train(self: Task, *arguments: Arguments.args, **options: Arguments.kwargs) -> State:
        """Run one training stage, with a new optimiser and schedule, and return its final state.

        It is the same as `task.stage(...).run()`; the arguments are those of `stage`.
        """
        begin: Callable[..., Stage] = self.stage  # also if a subclass overrides it
        whole = begin(*arguments, **options)
        whole.goes_on = False  # nobody else can run it
        return whole.run()

    train.__signature__ = inspect.signature(stage)  # type: ignore[attr-defined] # for help() and editors
    return train


class Task:
    """The training data of one cell, and the tools to train on them.

    Every call of `new_net`, `new_head`, `new_parameter`, `train` (or `run` of a stage), `batches`, `each`, `once`,
    `snapshot`, `restore` and `log` has a number. All randomness is a function of (purpose, seed, call number, epoch,
    step).

    Attributes:
        y: int64 (N,), the labels of the training samples, on the device.
        x: their images, uint8 (N, C, H, W), or texts, int32 (N, L), or features, float32 (N, D). On the device, or on
            the host if they do not fit there.
        n_samples: the number N of training samples.
        n_classes: the number of classes.
        recipe: how to train.
        dataset: the dataset of the cell.
        journal: what has been done so far.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        access: Access,
        journal: Journal | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        """`splits` must be on the device already: nothing is moved. `reuse` keeps the ends of stages."""
        self.splits, self.dataset, self.recipe, self.seed = splits, dataset, recipe, seed
        self.access, self.journal, self.reuse = access, journal or Journal(), reuse
        self.x, self.y = splits.train.x, splits.train.y
        self.device = self.y.device
        self.n_samples, self.n_classes = len(self.y), dataset.n_classes
        self.source = Source(splits.train, seed, with_bias=access.bias_labels)
        self.evaluation = Evaluation(dataset, splits)
        self.predictor: Any = None
        self.predicting_recipe = recipe  # prepares x for the predictor
        self._predicting: dict[str, nn.Module] = {}

    # ---- what a method uses -------------------------------------------------------------------------------------

    @property
    def bias(self) -> Tensor:
        """int64 (N, A), the biases of the training samples; only for methods that declare `needs_bias_labels`."""
        if not self.access.bias_labels:
            raise PermissionError(
                f"{self.access.name} reads bias labels but does not declare needs_bias_labels = True."
            )
        return _all_known(self.splits.train, "training", self.access.name).bias

    @property
    def conflicting(self) -> Tensor:
        """Bool (N, A), which training samples conflict; only for methods that declare `needs_bias_labels`."""
        _ = self.bias  # requires the same declaration
        return self.splits.train.conflicting

    @property
    def validation(self) -> Samples:
        """The validation samples with labels and biases.

        Only for methods that declare `trains_on_validation` and `needs_bias_labels`.
        """
        if not (self.access.validation and self.access.bias_labels):
            raise PermissionError(
                f"{self.access.name} reads validation labels and biases but does not declare trains_on_validation = "
                "True and needs_bias_labels = True."
            )
        if self.splits.valid_is_test:
            raise BenchmarkError(
                f"{self.access.name} trains on validation samples, and here they are the test samples: there would be "
                "nothing left to test on."
            )
        return _all_known(self.splits.valid, "validation", self.access.name)

    @property
    def conflict_ratio(self) -> float:
        """The conflict ratio that the dataset was built with (it is not a label of any sample).

        Raises:
            BenchmarkError: it is not known. A method that needs it should decline such a dataset.
        """
        ratio = self.dataset.conflict_ratio
        if ratio is None:
            raise BenchmarkError(
                f"{self.access.name} needs the conflict ratio, and that of {self.dataset.name} is not known."
            )
        return ratio

    def new_net(self, *, head: bool = True) -> Net:
        """Make a network of the recipe's kind. With `head=False`, its `.head` is the identity (an encoder)."""
        call = self.journal.number("new_net", {"net": self.recipe.net, "head": head})
        shape = self.recipe.input_shape(tuple(self.x.shape[1:]))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed("init", self.seed, call))
            net = build_net(
                self.recipe.net, shape, self.n_classes,
                pretrained=self.recipe.pretrained, recompute=self.recipe.recompute,
            )  # fmt: skip
        if not head:
            net.head = nn.Identity()
        return self._placed(net, call)

    def new_parameter(self, *shape: int, start: float = 0.0) -> Learnable:
        """Make a learnable tensor, filled with `start`. Among the networks of a stage it is `nets.<name>.value`."""
        call = self.journal.number("new_parameter", {"shape": shape, "start": start})
        learnable: Learnable = self._placed(Learnable(shape, start), call)
        return learnable

    def new_head(self, n_in: int, n_out: int) -> nn.Linear:
        """Make a linear layer with torch's default initialisation."""
        call = self.journal.number("new_head", {"n_in": n_in, "n_out": n_out})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed("init", self.seed, call))
            head = nn.Linear(n_in, n_out)
        return self._placed(head, call)

    def stage(  # noqa: PLR0913 - the contract's arguments, keyword-only
        self,
        nets: nn.Module | Mapping[str, nn.Module],
        loss: Loss,
        *,
        epochs: int | None = None,
        sample: Sample = None,
        draws: int | None = None,
        columns: Mapping[str, Tensor] | None = None,
        state: State | None = None,
        recipe: Recipe | Mapping[str, Recipe] | None = None,
        predict: Predict | None = None,
        proxy: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        reuse: bool = False,
        frozen: Mapping[str, nn.Module] | None = None,
        noise: Noise | None = None,
        views: int = 1,
        inputs: Tensor | None = None,
        turns: Sequence[str] = (),
        combine: Combine | None = None,
    ) -> Stage:
        """Make a training stage, which can be run in parts (`Stage.run`); `train` runs it to its end at once.

        Args:
            nets: one network (`nets.net` in the loss), or several by name.
            loss: `(nets, batch, state) -> loss` or `(loss, new state)`, a pure function of tensors. The loss is one
                number, or a dictionary of terms, which are added up (but see `recipe`, `turns` and `combine`).
            epochs: length of the stage and of its schedule; default: that of the recipe.
            sample: how samples are drawn; see `debiasbench.training.batches.plan_epoch`.
            draws: number of samples in an epoch, if `sample` holds probabilities.
            columns: per-sample tensors (N, ...) by name; each batch holds its rows of them.
            state: tensors that the loss reads, and returns as new tensors.
            recipe: another recipe for this stage; or {network: recipe}, which gives each of these networks its own
                optimiser (other networks use the recipe of the stage). Each term of the loss then trains only the
                network of its name.
            predict: a method `(self, nets, x) -> logits` of the class, or the network itself. A stage with a predictor
                is evaluated every `recipe.eval_every` epochs, and selection rules choose among its epochs.
            proxy: a biased network whose predictions stand in for the bias of validation samples, or a function `(x, y)
                -> int64 (B,)` that gives a kind for each sample. The rule worst_proxy uses them to choose among the
                epochs. They are computed once, before the stage trains, and the method never sees them.
            reuse: train equal stages of several cells only once (`debiasbench.training.reuse`). The loss must then be a
                function of a module, or a `partial` of one. It has no effect on a stage with `predict`.
            frozen: networks by name that the loss or the predictor uses but that this stage does not train, such as a
                teacher. They are in eval mode, without gradient, and are saved with the weights.
            noise: distributions by name (`{"lam": torch.distributions.Beta(16.0, 16.0)}`). Then `batch.lam`, (B,), has
                a new draw for each sample.
            views: number V of augmented views of each image in `batch.views`, (V, B, C, H, W); the first is `batch.x`.
            inputs: per-sample tensors (N, ...) that replace the images in `batch.x`, such as features made by
                `task.each`.
            turns: names of the networks that are updated in turn, one per step: ("critic", "critic", "net").
            combine: a function that makes one gradient from those of the terms: {term: [gradient per parameter]} ->
                [gradient per parameter], in the order of the networks and of their parameters.

        Raises:
            BenchmarkError: networks that this task did not make; a predictor that could not be saved.
            ValueError: arguments that do not go together; the message says which.
            TypeError: likewise.
        """
        named = self._own_nets({"net": nets} if isinstance(nets, nn.Module) else nets)
        still = self._own_nets(frozen or {})
        if named.keys() & still.keys():
            raise ValueError(f"{', '.join(named.keys() & still.keys())}: a network is either trained or frozen.")
        own, recipes = (self.recipe, dict(recipe)) if isinstance(recipe, Mapping) else (recipe or self.recipe, None)
        if epochs is not None:
            own = own.replace(epochs=epochs, steps=None)
            recipes = recipes and {name: one.replace(epochs=epochs, steps=None) for name, one in recipes.items()}
        # copies, so that the method cannot change them during the stage, which would be lost after an interruption
        state = {name: value.to(self.device, copy=True) for name, value in (state or {}).items()}
        contents = Contents(
            {name: value.to(self.device) for name, value in (columns or {}).items()}, noise or {}, views,
            None if inputs is None else inputs.to(self.device),
        )  # fmt: skip
        contents.check(self.source.samples, own)
        check_sample(sample, self.n_samples, state)
        update = new_update(named, own, recipes, turns, combine)
        if predict is not None:
            self._announce(predict, {**named, **still}, own)
        elif proxy is not None:
            raise ValueError("proxy= is for selecting among the epochs of a predictor: it goes with predict=.")
        return Stage(
            named, loss, source=self.source, journal=self.journal, evaluate=self._row, update=update, recipe=own,
            sample=sample, draws=draws, contents=contents, state=state, frozen=still, predict=predict,
            find_proxies=None if proxy is None else partial(self._proxies, proxy, own),
            reuse=self.reuse if reuse else None,
        )  # fmt: skip

    train = _run_once(stage)

    def snapshot(self, net: nn.Module) -> Snapshot:
        """Keep the current weights and buffers of a network, for `restore`."""
        call = self.journal.number("snapshot", {"net": self._index(net)})
        key = f"snapshot-{call}"
        if self.journal.finished(call) is None:
            snapshot = Snapshot(net, {name: value.clone() for name, value in net.state_dict().items()})
            self.journal.end(call, {key: to_bytes(net.state_dict(), {})} if self.journal.is_kept else {})
        else:
            kept = self.journal.is_newest(key, call)
            snapshot = Snapshot(net, self.journal.file(key, self.device)[0] if kept else None)
        weakref.finalize(snapshot, self.journal.forget, key)  # not kept once nothing can restore it
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Put a network back into its state at the time of the snapshot."""
        call = self.journal.number("restore", {"net": self._index(snapshot.net)})
        nets = {"net": snapshot.net}
        if self.journal.finished(call) is not None:
            self.journal.fill_nets(call, nets, self.device)
            return
        if snapshot.weights is None:
            raise StaleJournalError("a snapshot is restored that was never taken")
        snapshot.net.load_state_dict(snapshot.weights)
        self.journal.end(call, self.journal.files_of_nets(nets))

    def each(
        self, function: Callable[[Tensor, Tensor], Tensor], *, split: str = "train", augment: bool = False
    ) -> Tensor:
        """Apply `function(x, y) -> (B, ...)` to every sample -> (N, ...), on the device, in the order of the split.

        Networks are in eval mode, and no gradient is computed. x is augmented only with `augment=True`.

        Args:
            function: of the images (or texts, or features) and labels of a batch.
            split: "train" or "valid".
            augment: whether x is augmented.

        Raises:
            DivergedError: the result is not finite.
            ValueError: another split.
        """
        if split not in ("train", "valid"):
            raise ValueError(f"task.each reads the train or the valid split, never test. Got {split!r}.")
        call = self.journal.number("each", {"function": source_of(function), "split": split, "augment": augment})
        kept = self.journal.result(call, self.device)
        if kept is not ABSENT:
            return kept
        traces = Traces(function, harmless=self)
        started = time.perf_counter()
        samples = self.splits.named()[split]

        def of_batch(number: int, rows: slice | Tensor, x: Tensor) -> Tensor:
            self.journal.stop_if_asked()
            if augment:
                generator = derived_generator("augment", self.seed, call, 0, number, device=self.device)
                return function(augmented(x, self.recipe, generator), samples.y[rows])
            return function(to_input(x, self.recipe), samples.y[rows])

        # float32 whatever the recipe says: with 8 bits, many scores would be equal
        with torch.no_grad(), evaluating(self.journal.nets):
            result = samples.map(of_batch, self.evaluation.batch_size, "The function of task.each must return (B, ...)")
        if result.is_floating_point() and not bool(torch.isfinite(result).all()):
            raise DivergedError(f"task.each (call {call}) returned values that are not finite.")
        self._spent(f"each {call}", started)
        self.journal.end_with(call, result, traces)
        return result

    def once(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Call `function(*tensors, generator=...)`, for work outside the training loop, such as k-means.

        The generator is on the device of the first tensor. The result is kept for a resumed run if it is a tensor, a
        plain value, or a tuple, list or dictionary of these; anything else is computed again after an interruption.
        """
        call = self.journal.number(
            "once", {"function": source_of(function), "tensors": [digest_of(tensor) for tensor in tensors]}
        )
        device = tensors[0].device if tensors else "cpu"
        kept = self.journal.result(call, self.device)
        if kept is not ABSENT:
            return kept
        traces = Traces(function, *tensors, harmless=self)
        started = time.perf_counter()
        n_threads = torch.get_num_threads()
        try:
            result = function(*tensors, generator=derived_generator("once", self.seed, call, device=device))
        finally:  # numba, used by UMAP, changes torch's threads: steps become thirty times slower, and sums differ
            torch.set_num_threads(n_threads)
        self._spent(f"once {call}", started)
        self.journal.end_with(call, result, traces)
        return result

    def log(self, **columns: Tensor) -> None:
        """Store per-sample values (N,) or single numbers () in the record.

        Per-sample values are compared with the true conflicts. Names with a meaning:

        - score: float (N,), higher if a sample is more likely to be bias-conflicting. For a method that samples by it,
          it is proportional to the sampling probability.
        - selected: bool (N,), the samples that the method takes for conflicting.
        """
        call = self.journal.number("log", {"columns": sorted(columns)})
        if self.journal.logged_before(call):
            return
        for name, column in columns.items():
            shape = tuple(column.shape)
            if shape == ():
                self.journal.values[name] = float(column)
            elif shape == (self.n_samples,):
                half = column.dtype in (torch.float16, torch.bfloat16)  # numpy has no bfloat16
                # a copy, because the method may change its tensor later
                self.journal.columns[name] = (column.float() if half else column).detach().to("cpu", copy=True)
            else:
                raise ValueError(f"task.log({name}=...) must have shape ({self.n_samples},) or (). Got {shape}.")
        self.journal.end_log(call, columns)

    def column(self, value: float) -> Tensor:
        """Make a per-sample table (N,), filled with `value`, for `state`."""
        return torch.full((self.n_samples,), value, device=self.device)

    def batches(
        self,
        *,
        epochs: int | None = None,
        sample: Sample = None,
        draws: int | None = None,
        columns: Mapping[str, Tensor] | None = None,
        recipe: Recipe | None = None,
        noise: Noise | None = None,
        views: int = 1,
    ) -> Loop:
        """Yield batches as a loss sees them, for methods with their own loop (such as bilevel optimisation); slower.

        Networks are put into train mode at each step. Such a method must call `task.evaluate` itself. The arguments are
        those of `stage`. See `Loop` for optimisers that follow the schedule, and for the check that the loss is finite.
        """
        recipe = recipe or self.recipe
        if epochs is not None:
            recipe = recipe.replace(epochs=epochs, steps=None)
        moved = {name: value.to(self.device) for name, value in (columns or {}).items()}
        contents = Contents(moved, noise or {}, views)
        contents.check(self.source.samples, recipe)
        check_sample(sample, self.n_samples, {})
        return Loop(self.source, self.journal, self.journal.nets, recipe, sample, draws, contents)

    def evaluate(
        self, predict: Predict, nets: Mapping[str, nn.Module] | None = None, *, recipe: Recipe | None = None
    ) -> None:
        """Evaluate a predictor now, as one more epoch that rules can select; for methods with their own loop.

        `nets` are the networks that the predictor is called with (`nets.<name>`). If the predictor is a network itself,
        it needs none.
        """
        named = {"net": predict} if nets is None and isinstance(predict, nn.Module) else dict(nets or {})
        self._announce(predict, self._own_nets(named), recipe or self.recipe)
        self.journal.evaluation(lambda: self._row(bound(predict, named), recipe or self.recipe))

    # ---- what the runner uses ---------------------------------------------------------------------------------------

    def _own_nets(self, nets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return the networks by name, and refuse networks that this task did not make."""
        unknown = [name for name, net in nets.items() if not any(net is own for own in self.journal.nets)]
        if unknown:
            raise BenchmarkError(
                f"The networks {', '.join(unknown)} were not made by task.new_net, task.new_head or "
                "task.new_parameter: their start would not follow the seed."
            )
        return dict(nets)

    def _index(self, net: nn.Module) -> int:
        self._own_nets({"net": net})
        return self.journal.index(net)

    def _announce(self, predict: Predict, nets: dict[str, nn.Module], recipe: Recipe) -> None:
        """Set the predictor that is evaluated from now on, its networks, and the recipe that prepares its input."""
        if isinstance(predict, nn.Module):
            if not any(predict is net for net in nets.values()):
                raise BenchmarkError(
                    f"{self.access.name}: the network that predicts is none of the stage's: give it among the "
                    "networks, or frozen={'net': ...}."
                )
        elif not (inspect.ismethod(predict) and hasattr(type(predict.__self__), predict.__name__)):
            raise BenchmarkError(
                f"{self.access.name}: a predictor must be a network or a method of the class, so that it can be saved "
                f"and loaded; {name_of(predict)} is neither. Write def predict(self, nets, x): ... and give "
                "predict=self.predict; networks that it needs are among the stage's, or in frozen=."
            )
        self.predictor, self._predicting, self.predicting_recipe = predict, nets, recipe

    def _row(self, predict: Callable[[Tensor], Tensor], recipe: Recipe, proxies: Proxies | None = None) -> Row:
        """Evaluate on validation and test, with every network of the task in eval mode."""
        return self.evaluation.row(predict, self.journal.nets, recipe, proxies)

    def _proxies(self, proxy: nn.Module | Callable[[Tensor, Tensor], Tensor], recipe: Recipe) -> Proxies:
        """Compute the values that stand in for the bias of validation samples."""
        net = proxy if isinstance(proxy, nn.Module) else None
        function = proxy if net is None else lambda x, _: net(x).argmax(1)
        return self.evaluation.proxies(function, self.journal.nets, recipe)

    def final_predictor(self) -> Callable[[Tensor], Tensor]:
        """The predictor of the last evaluated stage, x -> logits."""
        return bound(self.predictor, self._predicting)

    def all_nets(self) -> list[nn.Module]:
        """All networks that this task made."""
        return list(self.journal.nets)

    def predicting_nets(self) -> dict[str, nn.Module]:
        """The networks that the predictor is called with, by name."""
        return dict(self._predicting)

    def _placed(self, net: Any, call: int) -> Any:
        net = net.to(self.device, memory_format=torch.channels_last)
        self.journal.made(net)
        self.journal.end(call)
        return net

    def _spent(self, what: str, started: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.journal.seconds[what] = time.perf_counter() - started


def _all_known(samples: Samples, what: str, method: str) -> Samples:
    """Return the samples, and refuse them if the bias of any is not known."""
    n_unknown = int((samples.bias < 0).any(1).sum())
    if n_unknown:
        raise BenchmarkError(f"{method} needs the bias of every {what} sample; {n_unknown:,} have none.")
    return samples
