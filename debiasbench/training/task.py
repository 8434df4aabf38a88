"""One seed's view of the training data and the tools for it: what a method's `fit` receives."""

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
    """What a network was at a time; without weights if an earlier process took it, and a later one took its place."""

    net: nn.Module
    weights: dict[str, Tensor] | None


@dataclass(frozen=True)
class Access:
    """What a method may see besides images and labels of the training samples, and its name for messages."""

    name: str
    bias_labels: bool = False
    validation: bool = False


def _run_once(
    stage: Callable[Concatenate[Task, Arguments], Stage],
) -> Callable[Concatenate[Task, Arguments], State]:
    """`Task.train`: the stage of these arguments, run to its end."""

    def train(self: Task, *arguments: Arguments.args, **options: Arguments.kwargs) -> State:
        """Run one training stage, with a fresh optimiser and schedule, and return its end state.

        `task.stage(...).run()`: the arguments are those of `stage`.
        """
        begin: Callable[..., Stage] = self.stage  # also where a subclass has its own
        whole = begin(*arguments, **options)
        whole.goes_on = False  # nobody else has it
        return whole.run()

    train.__signature__ = inspect.signature(stage)  # type: ignore[attr-defined] # for help() and editors
    return train


class Task:
    """The training data of one cell and the tools to train on it.

    Every call of `new_net`, `new_head`, `new_parameter`, `train` (or a stage's `run`), `batches`, `each`, `once`,
    `snapshot`, `restore` and `log` has a number, and all randomness is a function of (purpose, seed, call number,
    epoch, step).

    Attributes:
        y: int64 (N,), the labels of the training samples, on the device. x: their images, uint8 (N, C, H, W), or
            texts, int32 (N, L), or features, float32 (N, D), on the device or, where they did not fit, on the host.
        n_classes, n_samples, recipe, dataset: what the data are and how to train on them.
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
        """`splits` are where they are to be trained on: nothing is moved. `reuse`: where ends of stages are kept."""
        self.splits, self.dataset, self.recipe, self.seed = splits, dataset, recipe, seed
        self.access, self.journal, self.reuse = access, journal or Journal(), reuse
        self.x, self.y = splits.train.x, splits.train.y
        self.device = self.y.device
        self.n_samples, self.n_classes = len(self.y), dataset.n_classes
        self.source = Source(splits.train, seed, with_bias=access.bias_labels)
        self.evaluation = Evaluation(dataset, splits)
        self.predictor: Any = None
        self.predicting_recipe = recipe  # how x is made for the predictor
        self._predicting: dict[str, nn.Module] = {}

    # ---- what a method uses -------------------------------------------------------------------------------------

    @property
    def bias(self) -> Tensor:
        """int64 (N, A), the biases of the training samples; only for a method that declares that it needs them."""
        if not self.access.bias_labels:
            raise PermissionError(
                f"{self.access.name} reads bias labels but does not declare needs_bias_labels = True."
            )
        return _all_known(self.splits.train, "training", self.access.name).bias

    @property
    def conflicting(self) -> Tensor:
        """Bool (N, A): which training samples conflict; only for a method that declares that it needs bias labels."""
        _ = self.bias  # the same declaration
        return self.splits.train.conflicting

    @property
    def validation(self) -> Samples:
        """The validation samples with labels and biases; only for a method that declares that it trains on them."""
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
        """The ratio that the dataset was built for (not a label of any sample).

        Raises:
            BenchmarkError: it is not known; a method that needs it declines such a dataset.
        """
        ratio = self.dataset.conflict_ratio
        if ratio is None:
            raise BenchmarkError(
                f"{self.access.name} needs the conflict ratio, and that of {self.dataset.name} is not known."
            )
        return ratio

    def new_net(self, *, head: bool = True) -> Net:
        """A new network of the recipe's kind; with `head=False` its `.head` is the identity (an encoder)."""
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
        """A tensor that is learnt, filled with `start`: among the networks of a stage it is `nets.<name>.value`."""
        call = self.journal.number("new_parameter", {"shape": shape, "start": start})
        learnable: Learnable = self._placed(Learnable(shape, start), call)
        return learnable

    def new_head(self, n_in: int, n_out: int) -> nn.Linear:
        """A new linear layer, in torch's own initialisation."""
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
        """A training stage, which may be run in parts (`Stage.run`); `train` runs it to its end at once.

        Args:
            nets: one network (`nets.net` in the loss) or several by name.
            loss: `(nets, batch, state) -> loss` or `(loss, new state)`; a pure function of tensors. The loss is one
                number, or a dictionary of terms, which are added up (but see `recipe`, `turns` and `combine`).
            epochs: length of the stage and of its schedule; default: the recipe's.
            sample: see `debiasbench.training.batches.plan_epoch`.
            draws: how many samples an epoch has, where `sample` holds probabilities.
            columns: per-sample tensors (N, ...), gathered into the batch by name.
            state: tensors that the loss reads and returns anew.
            recipe: another recipe for this stage; or {network: recipe}, which gives each network an optimiser of its
                own (others have the stage's recipe): a term of the loss then trains the network of its name alone.
            predict: a method `(self, nets, x) -> logits` of the class, or the network itself. A stage with it is
                evaluated every `recipe.eval_every` epochs, and its epochs are what selection rules choose from.
            proxy: a biased network whose predictions stand in for the bias of validation samples, or `(x, y) -> int64
                (B,)`, a kind of sample: the rule worst_proxy chooses among the epochs by them. They are found once,
                before the stage trains, and the method never sees them.
            reuse: equal stages of several cells are trained once (`debiasbench.training.reuse`); the loss is then a
                function of a module, or a `partial` of one. Without effect on a stage with `predict`.
            frozen: networks by name that the loss or the predictor uses and that are not trained here, such as a
                teacher: in eval mode, without gradient, saved with the weights.
            noise: distributions by name (`{"lam": torch.distributions.Beta(16.0, 16.0)}`); `batch.lam` is then drawn
                anew for each sample, (B,).
            views: `batch.views` holds so many augmented views of each image, (V, B, C, H, W); the first is `batch.x`.
            inputs: per-sample tensors (N, ...) in place of the images, such as features made by `task.each`:
                `batch.x` is then gathered from them.
            turns: names of networks that step in turns, one a step: ("critic", "critic", "net").
            combine: makes one gradient of those of the terms: {term: [gradient a parameter]} -> [gradient a
                parameter], in the order of the networks and of their parameters.

        Raises:
            BenchmarkError: networks that are not the task's; a predictor that could not be saved.
            ValueError, TypeError: arguments that do not go together; the message says which.
        """
        named = self._own_nets({"net": nets} if isinstance(nets, nn.Module) else nets)
        still = self._own_nets(frozen or {})
        if named.keys() & still.keys():
            raise ValueError(f"{', '.join(named.keys() & still.keys())}: a network is either trained or frozen.")
        own, recipes = (self.recipe, dict(recipe)) if isinstance(recipe, Mapping) else (recipe or self.recipe, None)
        if epochs is not None:
            own = own.replace(epochs=epochs, steps=None)
            recipes = recipes and {name: one.replace(epochs=epochs, steps=None) for name, one in recipes.items()}
        # copies: what the method does to its own is no part of the stage, nor would it be after an interruption
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
        """The weights and buffers of a network as they are now, for `restore`."""
        call = self.journal.number("snapshot", {"net": self._index(net)})
        key = f"snapshot-{call}"
        if self.journal.finished(call) is None:
            snapshot = Snapshot(net, {name: value.clone() for name, value in net.state_dict().items()})
            self.journal.end(call, {key: to_bytes(net.state_dict(), {})} if self.journal.is_kept else {})
        else:
            kept = self.journal.is_newest(key, call)
            snapshot = Snapshot(net, self.journal.file(key, self.device)[0] if kept else None)
        weakref.finalize(snapshot, self.journal.forget, key)  # what nobody can restore is not kept
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Put a network back to what it was when the snapshot was taken."""
        call = self.journal.number("restore", {"net": self._index(snapshot.net)})
        nets = {"net": snapshot.net}
        if self.journal.finished(call) is not None:
            self.journal.fill_nets(call, nets, self.device)
            return
        if snapshot.weights is None:
            raise StaleJournalError("a snapshot is restored that was not kept")
        snapshot.net.load_state_dict(snapshot.weights)
        self.journal.end(call, self.journal.files_of_nets(nets))

    def each(
        self, function: Callable[[Tensor, Tensor], Tensor], *, split: str = "train", augment: bool = False
    ) -> Tensor:
        """`function(x, y) -> (B, ...)` of every sample, in the order of the split -> (N, ...), on the device.

        Networks are in eval mode and no gradient is kept; x is not augmented unless asked for.
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

        # in float32 whatever the recipe: scores of 8 bits would be equal
        with torch.no_grad(), evaluating(self.journal.nets):
            result = samples.map(of_batch, self.evaluation.batch_size, "The function of task.each must return (B, ...)")
        if result.is_floating_point() and not bool(torch.isfinite(result).all()):
            raise DivergedError(f"task.each (call {call}) returned values that are not finite.")
        self._spent(f"each {call}", started)
        self.journal.end_with(call, result, traces)
        return result

    def once(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """`function(*tensors, generator=...)`: for work outside the loop, such as k-means.

        The generator is on the device of the first tensor. After an interruption a result is there that is a tensor, a
        plain value, or a tuple, list or dictionary of them; anything else is computed again.
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
        finally:  # numba, under UMAP, sets those of torch too: then steps are thirty times slower, and sums differ
            torch.set_num_threads(n_threads)
        self._spent(f"once {call}", started)
        self.journal.end_with(call, result, traces)
        return result

    def log(self, **columns: Tensor) -> None:
        """Keep per-sample values (N,) or single numbers () with the record.

        Per-sample values are compared with the true conflicts. score: float (N,), the higher the likelier a sample
        is bias-conflicting; for a method that samples by it, in proportion to the probability. selected: bool (N,),
        the samples taken for conflicting.
        """
        call = self.journal.number("log", {"columns": sorted(columns)})
        if self.journal.logged_before(call):
            return
        for name, column in columns.items():
            shape = tuple(column.shape)
            if shape == ():
                self.journal.values[name] = float(column)
            elif shape == (self.n_samples,):
                half = column.dtype in (torch.float16, torch.bfloat16)  # numpy does not know the latter
                # a copy: the method may write into its own afterwards
                self.journal.columns[name] = (column.float() if half else column).detach().to("cpu", copy=True)
            else:
                raise ValueError(f"task.log({name}=...) must have shape ({self.n_samples},) or (). Got {shape}.")
        self.journal.end_log(call, columns)

    def column(self, value: float) -> Tensor:
        """A per-sample table (N,) filled with `value`, for `state`."""
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
        """The slow path: batches as a loss sees them, for a loop of the method's own (such as bilevel optimisation).

        Networks are put into train mode at each step. Such a method calls `task.evaluate` itself. Arguments as of
        `stage`; see `Loop` for optimisers that follow the schedule and for the check that the loss is finite.
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
        """Evaluate a predictor now, as one more epoch to select from; for methods with a loop of their own.

        `nets` are what the predictor is called with (`nets.<name>`); a network that predicts itself needs none.
        """
        named = {"net": predict} if nets is None and isinstance(predict, nn.Module) else dict(nets or {})
        self._announce(predict, self._own_nets(named), recipe or self.recipe)
        self.journal.evaluation(lambda: self._row(bound(predict, named), recipe or self.recipe))

    # ---- what the runner uses ---------------------------------------------------------------------------------------

    def _own_nets(self, nets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The networks by name, all of them made by this task."""
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
        """A predictor that is evaluated from now on, with what it is called with and how x is made for it."""
        if isinstance(predict, nn.Module):
            if not any(predict is net for net in nets.values()):
                raise BenchmarkError(
                    f"{self.access.name}: the network that predicts is none of the stage's: give it among the "
                    "networks, or frozen={'net': ...}."
                )
        elif not (inspect.ismethod(predict) and hasattr(type(predict.__self__), predict.__name__)):
            raise BenchmarkError(
                f"{self.access.name}: a predictor is a network or a method of the class, so that it can be saved and "
                f"loaded; {name_of(predict)} is neither. Write def predict(self, nets, x): ... and give "
                "predict=self.predict; networks that it needs are among the stage's, or in frozen=."
            )
        self.predictor, self._predicting, self.predicting_recipe = predict, nets, recipe

    def _row(self, predict: Callable[[Tensor], Tensor], recipe: Recipe, proxies: Proxies | None = None) -> Row:
        """Evaluate on validation and test, with every network of the task in eval mode."""
        return self.evaluation.row(predict, self.journal.nets, recipe, proxies)

    def _proxies(self, proxy: nn.Module | Callable[[Tensor, Tensor], Tensor], recipe: Recipe) -> Proxies:
        """What stands in for the bias of validation samples."""
        net = proxy if isinstance(proxy, nn.Module) else None
        function = proxy if net is None else lambda x, _: net(x).argmax(1)
        return self.evaluation.proxies(function, self.journal.nets, recipe)

    def final_predictor(self) -> Callable[[Tensor], Tensor]:
        """X -> logits, by the predictor of the last evaluated stage."""
        return bound(self.predictor, self._predicting)

    def all_nets(self) -> list[nn.Module]:
        """Every network that this task made."""
        return list(self.journal.nets)

    def predicting_nets(self) -> dict[str, nn.Module]:
        """The networks of the stage that the predictor speaks for, by name."""
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
    """Refuse to form groups of samples whose bias is not known."""
    n_unknown = int((samples.bias < 0).any(1).sum())
    if n_unknown:
        raise BenchmarkError(f"{method} needs the bias of every {what} sample; {n_unknown:,} have none.")
    return samples
