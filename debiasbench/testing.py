"""The checks that every method, dataset and network must pass: those of the suite and third-party plug-ins.

In a test file of your own:

    import pytest
    from debiasbench.testing import METHOD_CHECKS

    @pytest.mark.parametrize("check", METHOD_CHECKS)
    def test_my_method(check):
        check(MyMethod)

Each check takes the class and raises an `AssertionError` with a sentence that says what is wrong, or a `BenchmarkError`
if a run would refuse it as well. Checks that need a fit with the class defaults share one fit, which the first of them
makes.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debiasbench.data.checks import check_splits
from debiasbench.data.colouring import PGD_PALETTE, bernoulli_conflicts, colour
from debiasbench.datasets import Dataset, between
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.evaluation import rehearsal
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method
from debiasbench.nets.base import Net, Nets
from debiasbench.nets.build import build_net, check_made, check_net
from debiasbench.recipe import Recipe
from debiasbench.running.runner import check_last_row
from debiasbench.samples import Samples, Splits
from debiasbench.training.batches import Batch, Contents, Layout, Loss, State
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.digests import digest_of, name_of
from debiasbench.training.ends import StaleJournalError
from debiasbench.training.journal import Journal, StageRun
from debiasbench.training.stage import Stage
from debiasbench.training.task import Task
from debiasbench.training.updates import total


class Tiny(Dataset):
    """A few hundred coloured squares: the position of the square is the label, and its colour is the bias.

    One label in sixteen is wrong, so that no method fits the training data completely; with `clean=true` none is.
    """

    name = "tiny"
    class_names = ("0", "1", "2", "3")
    bias_names = ("colour",)
    n_bias_values = 10
    unbiased_test = True
    headline = ("acc_unbiased",)
    recipe = Recipe(epochs=2, batch_size=32, crop_scale=(0.9, 1.1), saturation=0.05, hue=0.05, rotation=10.0)

    rho: float = between(0, 1, default=0.1)
    clean: bool = False

    @property
    def conflict_ratio(self) -> float:
        """The ratio before labels are made wrong."""
        return self.rho

    def build(self, data_dir: Path) -> Splits:
        """256 / 64 / 100 samples."""
        del data_dir
        sizes = {"train": (256, self.rho), "valid": (64, self.rho), "test": (100, 0.9)}
        return Splits.of({split: self._part(k, *size) for k, (split, size) in enumerate(sizes.items())})

    def _part(self, number: int, n: int, ratio: float) -> Samples:
        generator = torch.Generator().manual_seed(number)
        y = torch.arange(n) % self.n_classes
        grey = torch.zeros(n, 28, 28, dtype=torch.uint8)
        for row, label in enumerate(y.tolist()):
            top, left = 4 + 12 * (label // 2), 4 + 12 * (label % 2)
            grey[row, top : top + 8, left : left + 8] = 255
        bias = bernoulli_conflicts(y, ratio, generator)
        if not self.clean:
            y = torch.where(torch.arange(n) % 16 == 5, (y + 1) % self.n_classes, y)
        return Samples(colour(grey, bias, PGD_PALETTE, 0.02, generator), y, bias[:, None])


def make_task(
    method: Method,
    *,
    dataset: Dataset | None = None,
    splits: Splits | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    task_class: type[Task] = Task,
    journal: Journal | None = None,
) -> Task:
    """Make a task on the tiny dataset, for tests of methods."""
    dataset = dataset or Tiny()
    splits = splits or dataset.build(Path())
    recipe = recipe or dataset.recipe
    return task_class(splits, dataset=dataset, recipe=recipe, seed=seed, access=method.access, journal=journal)


def default_method(cls: type[Method], dataset: Dataset) -> Method:
    """The method with its defaults for the tiny dataset. Skips the calling test if the method declines it."""
    method = cls(**cls.by_dataset.get(dataset.name, {}))
    reason = method.decline(dataset) or method.decline_recipe(dataset.recipe)
    if reason is not None:
        import pytest

        pytest.skip(f"{cls.name} declines: {reason}")
    return method


def _fit(cls: type[Method], **options: Any) -> tuple[Task, Tensor]:
    """Fit a method: the task, and the logits of the test split."""
    return _fit_method(default_method(cls, options.get("dataset") or Tiny()), **options)


def _fit_method(method: Method, **options: Any) -> tuple[Task, Tensor]:
    task = make_task(method, **options)
    predictor = method.fit(task)
    assert task.predictor is not None, f"{method.name}: no task.train was given predict=."
    same = predictor is task.predictor or predictor == task.predictor
    assert same, f"{method.name}: fit must return the predictor that it gave to task.train(predict=...)."
    logits = task.evaluation.logits(task.final_predictor(), task.all_nets(), task.splits.test, task.predicting_recipe)
    return task, logits


@dataclass(frozen=True)
class _DefaultFit:
    """The result of a fit with the class defaults, and its side effects.

    Attributes:
        task: the task after the fit.
        logits: of the test split, (N, C).
        moved: the packages whose global generator it advanced.
        changed: the splits whose samples it changed.
    """

    task: _NotingTask
    logits: Tensor
    moved: tuple[str, ...]
    changed: tuple[str, ...]


def _default_fit(cls: type[Method]) -> _DefaultFit:
    """The fit with the class defaults, made once for the class as it is now. Callers must not change it."""
    default_method(cls, Tiny())  # a skip must come from the calling test, not from the cached fit
    return _fit_by_default(cls, _attributes(cls))


def _attributes(cls: type[Method]) -> tuple[Any, ...]:
    """The current content of the class, so that a patched or reloaded class is fitted again."""
    attributes = [item for base in cls.__mro__ for item in vars(base).items()]
    return tuple((name, getattr(value, "__code__", None) or id(value)) for name, value in attributes)


@lru_cache(maxsize=4)  # tests proceed class by class
def _fit_by_default(cls: type[Method], attributes: tuple[Any, ...]) -> _DefaultFit:
    del attributes  # only part of the cache key
    splits = Tiny().build(Path())
    prints, states = _fingerprints(splits), _global_states()
    task, logits = _fit(cls, splits=splits, task_class=_NotingTask)
    assert isinstance(task, _NotingTask)
    return _DefaultFit(task, logits, _unequal(states, _global_states()), _unequal(prints, _fingerprints(splits)))


def _global_states() -> dict[str, Any]:
    """The state of each global generator, as comparable values."""
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is the point
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    return {"torch": torch.get_rng_state().tolist(), "numpy": of_numpy}


def _fingerprints(splits: Splits) -> dict[str, str]:
    return {name: part.fingerprint() for name, part in splits.named().items()}


def _unequal(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, value in before.items() if after[name] != value)


# ---- methods --------------------------------------------------------------------------------------------------------


def check_declaration(cls: type[Method]) -> None:
    """Name, documentation, presets, aliases and settings by dataset are valid."""
    assert cls.name.islower(), f"{cls.__name__} needs a name in lower case."
    module = inspect.getmodule(cls)
    words = cls.__doc__ or ""
    written = words and not words.startswith(f"{cls.__name__}(")  # else a dataclass has its signature there
    assert (module and module.__doc__) or written, f"{cls.name} needs documentation."
    values = cls().values()
    assert cls(**values).values() == values
    for preset in cls.presets.values():
        cls(**{key: value for key, value in preset.items() if key != "recipes"})
        for changes in preset.get("recipes", {}).values():
            Recipe().replace(**changes)
    for alias in cls.aliases.values():
        cls(**alias)
    for changes in cls.by_dataset.values():
        cls(**changes)
    for changes in cls.recipes.values():
        Recipe().replace(**changes)
    assert cls.relative_cost(cls(), Tiny()) > 0, f"{cls.name}: relative_cost must be above 0."


def check_search(cls: type[Method]) -> None:
    """Fair tuning searches parameters of the method or fields of the recipe, and they accept every drawn value."""
    own = cls().values()
    for key, one in cls.search_space().items():
        assert key in own or key in Tiny.recipe.values(), (
            f"{cls.name}: search names '{key}', which is neither a parameter of it nor a field of the recipe."
        )
        for number in range(20):
            try:
                value = one.draw(random.Random(number), {**Tiny.recipe.values(), **own}[key])
                _ = cls(**{key: value}) if key in own else Tiny.recipe.replace(**{key: value})
            except BenchmarkError as error:
                raise AssertionError(f"{cls.name}: search draws a '{key}' that is not allowed: {error}") from None


def check_fit_returns_logits(cls: type[Method]) -> None:
    """Fit returns a predictor with finite logits, (B, n_classes), and everything logged is finite."""
    fit = _default_fit(cls)
    task = fit.task  # shape and values of the logits were checked by the evaluation
    assert task.journal.epochs, f"{cls.name}: no epoch was evaluated."
    for name, column in task.journal.columns.items():
        assert column.dtype == torch.bool or torch.isfinite(column).all(), f"{cls.name}: logged {name} is not finite."


def check_same_seed_same_result(cls: type[Method]) -> None:
    """Two runs with the same seed are equal bit for bit, whatever was drawn in between."""
    first = _default_fit(cls)
    torch.rand(7)
    np.random.rand(7)  # noqa: NPY002 - the global state is the point
    second, again = _fit(cls)
    assert torch.equal(first.logits, again), f"{cls.name}: equal seeds give different results."
    same = first.task.journal.calls == second.journal.calls
    assert same, f"{cls.name}: equal seeds make different calls of the task."


def check_other_seed_other_result(cls: type[Method]) -> None:
    """Another seed gives another result."""
    assert not torch.equal(_default_fit(cls).logits, _fit(cls, seed=1)[1]), f"{cls.name} does not follow the seed."


def check_bias_labels_are_not_read(cls: type[Method]) -> None:
    """The result does not depend on the bias labels of any split, unless the method declares that it uses them."""
    if cls.needs_bias_labels:
        return
    blind: dict[str, Any] = {
        name: Samples(part.x, part.y, torch.full_like(part.bias, -1))
        for name, part in Tiny().build(Path()).named().items()
    }
    _, again = _fit(cls, splits=Splits(**blind))
    same = torch.equal(_default_fit(cls).logits, again)
    assert same, f"{cls.name} reads bias labels; declare needs_bias_labels = True."


def check_valid_and_test_do_not_train(cls: type[Method]) -> None:
    """Test labels do not affect training; nor do validation labels, unless the method declares that it uses them."""
    reads = cls.trains_on_validation or default_method(cls, Tiny()).selects_on_validation
    used = ("train", "valid") if reads else ("train",)
    changed: dict[str, Any] = {
        name: part if name in used else Samples(part.x, part.y.flip(0), part.bias)
        for name, part in Tiny().build(Path()).named().items()
    }
    _, again = _fit(cls, splits=Splits(**changed))
    same = torch.equal(_default_fit(cls).logits, again)
    assert same, f"{cls.name} trains on labels of the validation or the test split."


def check_global_randomness_is_left_alone(cls: type[Method]) -> None:
    """The method draws nothing from the global generators of torch and numpy."""
    moved = _default_fit(cls).moved
    assert not moved, f"{cls.name} draws from the global generator of {' and '.join(moved)}."


def check_data_are_not_changed(cls: type[Method]) -> None:
    """Fit does not change the samples."""
    changed = _default_fit(cls).changed
    assert not changed, f"{cls.name} changes the data ({', '.join(changed)})."


def check_what_is_returned_was_evaluated(cls: type[Method]) -> None:
    """The returned predictor predicts on test as in the last evaluated epoch, so tables describe what is returned."""
    fit = _default_fit(cls)
    try:
        check_last_row(fit.task, fit.task.evaluation.correct_by_class("test", fit.logits))
    except BenchmarkError as error:
        raise AssertionError(str(error)) from None


def check_evaluation_leaves_no_trace(cls: type[Method]) -> None:
    """Evaluation changes no batch statistics and no weights, and repeating it gives equal logits."""
    fit = _default_fit(cls)
    task = fit.task
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in task.all_nets()]
    predict = task.final_predictor()
    again = task.evaluation.logits(predict, task.all_nets(), task.splits.test, task.predicting_recipe)
    assert torch.equal(fit.logits, again), f"{cls.name}: two evaluations of one predictor differ."
    for net, state in zip(task.all_nets(), before, strict=True):
        moved = [name for name, value in net.state_dict().items() if not torch.equal(value, state[name])]
        assert not moved, f"{cls.name}: evaluating changes {', '.join(moved)}."


def check_goes_on_after_an_interruption(cls: type[Method]) -> None:
    """If it is interrupted at each checkpoint and resumed, it trains no step twice and gives the same result.

    A method's own loop (`task.batches`) runs again from its start, and its steps are not counted.
    """
    compare_with_interrupted(default_method(cls, Tiny()))


def compare_with_interrupted(method: Method) -> None:
    """Like `check_goes_on_after_an_interruption`, for a method with given parameters."""
    options = {"recipe": Tiny.recipe.replace(batch_size=128), "splits": Tiny().build(Path())}
    whole = _CountingJournal()
    logits = _fit_method(method, journal=whole, **options)[1]
    n_steps = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(10 * (whole.n_steps + len(whole.calls))):  # more than it can ever need
            part = _CountingJournal()
            part.keep_in(_OneCheckpoint(Path(folder, "cell"), {}, interval=0.0))
            try:
                again, logits_again = _fit_method(method, journal=part, **options)
                break
            except _InterruptedError:
                continue
            except (Exception, StaleJournalError) as error:
                raise AssertionError(
                    f"{method.name} cannot go on after an interruption ({type(error).__name__}: {error}). As a rule it "
                    "reads what a network was between two calls that train it: keep it with task.snapshot, or read it "
                    "in task.each or task.once."
                ) from error
            finally:
                part.close()
                n_steps += part.n_steps
        else:
            raise AssertionError(f"{method.name} does not come to an end: after an interruption it begins anew.")
    assert n_steps == whole.n_steps, (
        f"{method.name} trains {n_steps} steps if it is interrupted at each checkpoint, and {whole.n_steps} if it is "
        "not."
    )
    same = torch.equal(logits, logits_again) and whole.epochs == again.journal.epochs
    same &= {name: losses_of(run) for name, run in enumerate(whole.stages)} == {
        name: losses_of(run) for name, run in enumerate(again.journal.stages)
    }
    same &= whole.values == again.journal.values and whole.columns.keys() == again.journal.columns.keys()
    same &= all(torch.equal(column, again.journal.columns[name]) for name, column in whole.columns.items())
    same &= list(map(_values, whole.nets)) == list(map(_values, again.journal.nets))  # the networks that would be saved
    assert same, (
        f"{method.name} comes to another result if it is interrupted and goes on: something that it keeps between "
        "calls is not a function of what the calls return."
    )


def losses_of(run: StageRun) -> tuple[list[float], dict[str, Any], str]:
    """The results of a run of a stage, without its seconds."""
    return run.losses, run.end, run.proxies


def _values(net: nn.Module) -> dict[str, str]:
    """A digest of each weight and buffer of a network."""
    return {name: digest_of(value) for name, value in net.state_dict().items()}


class _InterruptedError(BaseException):
    """Stands for the end of a process."""


class _OneCheckpoint(Checkpoints):
    """Writes a checkpoint at each step and each call, and ends the process after the first one."""

    fraction = math.inf

    def write(self, journal: Mapping[str, Any], started: float | None = None) -> None:
        """See `Checkpoints`."""
        super().write(journal, started)
        raise _InterruptedError

    def _write_file(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)  # no process really ends, so there is no need to wait for the disk


class _CountingJournal(Journal):
    """Counts the steps of all stages."""

    n_steps = 0

    def between_steps(self, run: StageRun, epoch: int, epochs: int) -> bool:
        """See `Journal`."""
        self.n_steps += 1
        return super().between_steps(run, epoch, epochs)


def check_easy_data(cls: type[Method]) -> None:
    """On data that are learnt at once it trains, or says why it cannot (an empty error set, no clusters)."""
    recipe = Tiny.recipe.replace(epochs=6, augment=False, schedule="constant")
    message = None
    try:
        _fit(cls, dataset=Tiny(rho=0.02, clean=True), recipe=recipe)
    except (RuntimeError, BenchmarkError) as error:
        message = str(error)
    assert message is None or len(message) > 20, f"{cls.name}: say what is wrong and what to do. Got '{message}'."


def check_decline_is_a_reason(cls: type[Method]) -> None:
    """`decline` returns None or a sentence, also for data without a known conflict ratio."""

    class Unknown(Tiny):
        name = "unknown"

        @property
        def conflict_ratio(self) -> None:  # type: ignore[override]
            return None

        @property
        def has_bias_labels(self) -> bool:
            return False

    for dataset in (Tiny(), Tiny(rho=0.0), Unknown()):
        reason = cls().decline(dataset)
        assert reason is None or (isinstance(reason, str) and reason), f"{cls.name}: decline gives None or a reason."


def check_recipe_is_trained_or_declined(cls: type[Method]) -> None:
    """It can train with gradient accumulation and label smoothing, or declines such recipes before training."""
    method = default_method(cls, Tiny())
    taken: dict[str, Any] = {}
    for key, value in {"accumulate": 2, "label_smoothing": 0.1}.items():
        reason = method.decline_recipe(Tiny.recipe.replace(**{key: value}))
        assert reason is None or (isinstance(reason, str) and reason), (
            f"{cls.name}: decline_recipe gives None or a reason. Got {reason!r}."
        )
        taken |= {key: value} if reason is None else {}
    try:
        _fit_method(method, recipe=Tiny.recipe.replace(**taken))
    except (BenchmarkError, DivergedError) as error:
        fields = ", ".join(f"{key}={value}" for key, value in taken.items())
        raise AssertionError(
            f"{cls.name} cannot be trained with {fields}, and says so in training alone: {error} Say it before, in "
            "decline_recipe(self, recipe)."
        ) from error


def check_proxies_are_declared(cls: type[Method]) -> None:
    """It declares before training whether it gives proxies, which `debiasbench tune --rule worst_proxy` needs."""
    given, declared = _default_fit(cls).task.has_proxies, default_method(cls, Tiny()).gives_proxies
    assert given == declared, (
        f"{cls.name}: gives_proxies is {declared}, and task.train is given {'a' if given else 'no'} proxy=. Write "
        f"gives_proxies = {given}."
    )


def check_losses_are_pure(cls: type[Method]) -> None:
    """Every loss of the method is a pure function of tensors (see `lint_loss`)."""
    task = _default_fit(cls).task
    for nets, loss, contents, state, layout in task.seen:
        index = layout(torch.Generator())[0] if layout else None
        lint_loss(loss, nets, sample_batch(task, contents, index=index), state)


class _NotingTask(Task):
    """Keeps the arguments of each training stage."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[tuple[dict[str, nn.Module], Loss, Contents, State, Layout | None]] = []
        self.has_proxies = False

    def stage(self, nets: Any, loss: Loss, **options: Any) -> Stage:
        stage = super().stage(nets, loss, **options)
        layout = stage.sample if callable(stage.sample) else None
        self.has_proxies |= stage.find_proxies is not None
        state = {name: value.clone() for name, value in stage.state.items()}  # copies: the loss may change its state
        self.seen.append(({**stage.nets, **stage.frozen}, loss, stage.contents, state, layout))
        return stage


def sample_batch(task: Task, contents: Contents | None = None, *, index: Tensor | None = None) -> dict[str, Tensor]:
    """The content of a batch of these samples (default: the first 16), as plain tensors."""
    from debiasbench.data.augment import to_input

    index = torch.arange(16) if index is None else index
    contents = contents or Contents()
    x = to_input(task.x[index], task.recipe) if contents.inputs is None else contents.inputs[index]
    batch = {
        "x": x,
        "y": task.y[index],
        "index": index,
        "perm": index.flip(0),
        "step": torch.tensor(3),
        "n_steps": torch.tensor(10),
        "epoch": torch.tensor(1),
        "y_all": task.y,
        **{name: column[index] for name, column in contents.columns.items()},
        **contents.noise_of_epoch(len(index), 0, 1, 0, index.device),
    }
    if contents.views > 1:
        batch["views"] = torch.stack([x] * contents.views)
    if task.access.bias_labels:
        batch["bias"] = task.bias[index]
    return batch


def lint_loss(loss: Loss, nets: dict[str, nn.Module], batch: dict[str, Tensor], state: State) -> None:
    """Refuse a loss that is not a pure function of tensors: it could not be compiled, captured or resumed.

    Two calls must agree. The state must be returned as new tensors, not changed. No tensor may hide in a closure.
    Two copies must run at once under `torch.vmap`, which refuses `.item()`, boolean masks and `if` on a tensor.
    Networks are in eval mode.
    """
    name = name_of(loss)
    given = loss.keywords if isinstance(loss, partial) else {}
    function = loss.func if isinstance(loss, partial) else loss
    held: dict[str, Any] = dict(inspect.getclosurevars(function).nonlocals) if inspect.isroutine(function) else {}
    held |= given
    hidden = [key for key, value in held.items() if isinstance(value, Tensor | nn.Module)]
    hidden += [key for key, value in vars(getattr(function, "__self__", object)).items() if isinstance(value, Tensor)]
    assert not hidden, f"{name} holds the tensors or networks {', '.join(hidden)}: pass them as columns or nets."

    whole = _Whole(nets, loss).eval()
    kept = {key: value.clone() for key, value in state.items()}
    first, _ = whole(batch, state)
    second, _ = whole(batch, state)
    assert torch.equal(first, second), (
        f"{name}: two calls with equal arguments differ. A loss draws nothing by itself: declare what it needs with "
        "the stage, noise={'lam': torch.distributions.Beta(16.0, 16.0)}, and read batch.lam."
    )
    assert first.shape == (), f"{name} must return one number, of shape (). Got {tuple(first.shape)}."
    for key, value in kept.items():
        assert torch.equal(value.nan_to_num(-1), state[key].nan_to_num(-1)), f"{name} changes state['{key}'] in place."

    def both(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.stack([value, value]) for key, value in tensors.items()}

    parameters, buffers = torch.func.stack_module_state([whole, whole])
    single = lambda p, b, x, s: torch.func.functional_call(whole, (p, b), (x, s))  # noqa: E731
    try:
        values, _ = torch.func.vmap(single, randomness="same")(parameters, buffers, both(batch), both(state))
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise AssertionError(
                f"{name} calls autograd.grad, which cannot run under vmap: return the terms by name, "
                "{'one': ..., 'two': ...}, and combine their gradients with combine= of the stage."
            ) from error
        said = str(error).partition(". ")[0]
        for words, advice in _ADVICE.items():
            if words in str(error):
                raise AssertionError(
                    f"{name} cannot run under torch.vmap, as two copies of it at once: {advice}. ({said})"
                ) from error
        raise AssertionError(
            f"{name} is not a pure function of tensors. Two copies of it were run at once, under torch.vmap: {error}"
        ) from error
    same = torch.allclose(values, first.expand(2), rtol=1e-4, atol=1e-5)
    assert same, f"{name}: two copies at once give {values.tolist()}, one gives {float(first):g}."


_OUT_OF_PLACE = (
    "an operation in place changes a tensor that every copy has in common; use one that returns a new tensor "
    "(index_add for index_add_, scatter_add for scatter_add_, torch.where or torch.cat for an assignment to a part)"
)
_ADVICE = {  # message of vmap for a loss that may still be pure -> advice
    "autograd.Function": "write forward without ctx, and setup_context, in its autograd.Function, with "
    "generate_vmap_rule = True",
    "does not have vmap support": "set generate_vmap_rule = True in its autograd.Function",
    "out-of-place": _OUT_OF_PLACE,
    "doesn't match the broadcast shape": _OUT_OF_PLACE,
}


class _Whole(nn.Module):
    """A loss and its networks as one module."""

    def __init__(self, nets: dict[str, nn.Module], loss: Loss) -> None:
        super().__init__()
        self.nets, self.loss = nn.ModuleDict(nets), loss

    def forward(self, batch: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        result = self.loss(Nets(**dict(self.nets.items())), Batch(**batch), state)
        value, new_state = result if isinstance(result, tuple) else (result, state)
        return total(value), new_state


METHOD_CHECKS: list[Callable[[type[Method]], None]] = [
    check_declaration,
    check_search,
    check_fit_returns_logits,
    check_same_seed_same_result,
    check_other_seed_other_result,
    check_bias_labels_are_not_read,
    check_valid_and_test_do_not_train,
    check_global_randomness_is_left_alone,
    check_data_are_not_changed,
    check_what_is_returned_was_evaluated,
    check_evaluation_leaves_no_trace,
    check_goes_on_after_an_interruption,
    check_easy_data,
    check_decline_is_a_reason,
    check_recipe_is_trained_or_declined,
    check_proxies_are_declared,
    check_losses_are_pure,
]


# ---- networks --------------------------------------------------------------------------------------------------------

N_CLASSES = 4
SHAPES = ((3, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224), (1, 28, 28), (64,))  # input shapes, tried in this order


def check_net_declaration(cls: type[Net]) -> None:
    """Name and documentation are valid."""
    assert cls.name.islower(), f"{cls.__name__} needs a name in lower case."
    module = inspect.getmodule(cls)
    assert (module and module.__doc__) or cls.__dict__.get("__doc__"), f"{cls.name} needs documentation."


def check_net_takes_samples(cls: type[Net]) -> None:
    """It takes small or large images, or features. Its head is the last layer, and takes the output of `features`."""
    _shape_of(cls)


def check_net_follows_the_seed(cls: type[Net]) -> None:
    """Its initial weights depend only on torch's global generator."""
    first, again, other = (_new_net(cls, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items()), (
        f"{cls.name}: two networks of one seed differ. Draw its start from torch's global generator alone."
    )
    differs = any(not torch.equal(value, other[key]) for key, value in first.items())
    assert differs, f"{cls.name}: networks of two seeds are equal."


def check_net_looks_at_each_sample_alone(cls: type[Net]) -> None:
    """In eval mode, the logits of a sample do not depend on the other samples of its batch."""
    net, x = _new_net(cls).eval(), _samples_for(cls)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        together, alone = net(x), torch.cat([net(one) for one in x.split(1)])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4), (
        f"{cls.name}: in eval mode the logits of a sample depend on the others of its batch: evaluation would "
        "depend on the order of the samples."
    )


def check_net_is_its_state(cls: type[Net]) -> None:
    """Its state after training is all in its state_dict, so that it can be saved, resumed and reused."""
    net, x, y = _new_net(cls), _samples_for(cls), torch.arange(len(_samples_for(cls))) % N_CLASSES
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(net.train()(x), y).mean().backward()
            optimizer.step()
        other = _new_net(cls, 1)
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            one, same = net.eval()(x), other.eval()(x)
    assert torch.equal(one, same), (
        f"{cls.name}: a network that is loaded from the state_dict of another gives other logits: keep all that it "
        "learns in parameters and buffers."
    )


def check_net_learns(cls: type[Net]) -> None:
    """Cross-entropy has gradients for its head and for parameters of its body."""
    net, x = _new_net(cls).train(), _samples_for(cls)
    with torch.random.fork_rng(devices=[]):
        cross_entropy(net(x), torch.arange(len(x)) % N_CLASSES).mean().backward()
    head = {id(parameter) for parameter in net.head.parameters()}
    body = [parameter for parameter in net.parameters() if id(parameter) not in head]
    for what, some in (("head", list(net.head.parameters())), ("body", body)):
        moved = not some or any(one.grad is not None and bool(one.grad.any()) for one in some)
        assert moved, f"{cls.name}: no parameter of its {what} has a gradient."


NET_CHECKS: list[Callable[[type[Net]], None]] = [
    check_net_declaration,
    check_net_takes_samples,
    check_net_follows_the_seed,
    check_net_looks_at_each_sample_alone,
    check_net_is_its_state,
    check_net_learns,
]


def _shape_of(cls: type[Net]) -> tuple[int, ...]:
    """The first shape that the network takes."""
    reasons = []
    for shape in SHAPES:
        try:
            check_made(cls.name, partial(_made, cls, shape), shape, N_CLASSES)
        except BenchmarkError as error:
            reasons.append(str(error))
        else:
            return shape
    raise AssertionError("\n".join(reasons))


def _made(cls: type[Any], shape: tuple[int, ...]) -> Net:
    net: Net = cls(shape, N_CLASSES)  # as the contract of networks requires
    return net


def _new_net(cls: type[Net], seed: int = 0) -> Net:
    shape = _shape_of(cls)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _made(cls, shape)


def _samples_for(cls: type[Net]) -> Tensor:
    return torch.rand(6, *_shape_of(cls), generator=torch.Generator().manual_seed(0))


# ---- datasets -------------------------------------------------------------------------------------------------------


def check_dataset_declaration(dataset: Dataset, splits: Splits) -> None:
    """Names, recipe and counts are valid."""
    cls = type(dataset)
    assert cls.name.islower(), f"{cls.__name__} needs a name in lower case."
    module = inspect.getmodule(cls)
    assert module is not None
    assert module.__doc__, f"{cls.name} needs documentation: input, label, bias, splits, source, licence."
    assert dataset.n_classes > 1
    check_net(cls.recipe.net)
    for preset in cls.presets.values():
        cls(**{key: value for key, value in preset.items() if key != "recipe"})
        Recipe().replace(**preset.get("recipe", {}))
    del splits


def check_columns(dataset: Dataset, splits: Splits) -> None:
    """All splits have valid shapes, types and ranges, and texts are padded with -1."""
    check_splits(dataset, splits)
    for split, samples in splits.named().items():
        if samples.length is not None:
            padded = torch.arange(samples.x.shape[1]) >= samples.length[:, None]
            assert torch.equal(samples.x == -1, padded), (
                f"{dataset.name}: x of {split} must be -1 exactly after the length of each text."
            )


def check_headline(dataset: Dataset, splits: Splits) -> None:
    """An evaluation of the test split gives every headline metric."""
    rehearsal.check_headline(dataset, splits)


def check_builds_the_same_again(dataset: Dataset, splits: Splits, data_dir: Path) -> None:
    """Two builds are equal, whatever the state of the global generators."""
    torch.rand(3)
    assert dataset.build(data_dir).fingerprint() == splits.fingerprint(), f"{dataset.name}: two builds differ."


def check_counts(dataset: Dataset, splits: Splits) -> None:
    """Official data have the published counts."""
    counts = {split: len(samples) for split, samples in splits.named().items()}
    if splits.official:
        for split, expected in dataset.official_counts.items():
            assert counts[split] == expected, f"{dataset.name}: {counts[split]} of {split}, published {expected}."


def check_ratio(dataset: Dataset, splits: Splits) -> None:
    """The conflict ratio measured in training is the declared one, within five standard deviations."""
    if dataset.conflict_ratio is None or not dataset.has_bias_labels:
        return
    n, ratio = len(splits.train), dataset.conflict_ratio
    measured = splits.train.conflicting.double().mean(0)
    allowed = 5 * math.sqrt(ratio * (1 - ratio) / n) + 0.5 / n
    worst = float((measured - ratio).abs().max())
    if splits.official:
        assert worst <= allowed, f"{dataset.name}: conflict ratio {measured.tolist()}, declared {ratio:g}."


def check_bias_says_nothing_in_test(dataset: Dataset, splits: Splits) -> None:
    """If test is declared unbiased, label and bias are independent there: plain accuracy is then `acc_unbiased`."""
    from debiasbench.report.inspection import mutual_information  # takes a second, which workers should not wait for

    if not dataset.unbiased_test:
        return
    for column, name in enumerate(dataset.bias_names):
        y, bias = splits.test.y.cpu().numpy(), splits.test.bias[:, column].cpu().numpy()
        known = bias >= 0
        counts = np.zeros((dataset.n_classes, dataset.n_bias_values))
        np.add.at(counts, (y[known], bias[known]), 1)
        if counts.sum() < 5 * counts.size:
            continue  # too few samples (or the bias is unknown): the bias of the estimate itself would not be known
        freedom = (dataset.n_classes - 1) * (dataset.n_bias_values - 1)
        # if they are independent, the estimate without its bias has the standard deviation sqrt(2 d) / 2N
        allowed = 0.01 + 4 * math.sqrt(2 * freedom) / (2 * counts.sum())
        found = mutual_information(counts)
        assert found <= allowed, (
            f"{dataset.name}: in test the bias {name} tells {found:.3f} nats of the label (independent ones: at most "
            f"{allowed:.3f}), so accuracy there is not unbiased: set unbiased_test = False, or draw it anew."
        )


def check_no_image_in_two_splits(dataset: Dataset, splits: Splits) -> None:
    """No image of validation or test is in another split: networks would be tested on images they were trained on."""
    if splits.train.x.ndim != 4 or sum(part.x.nbytes for part in splits.named().values()) > 2**31:
        return  # short texts occur twice; large data would be read completely
    seen: dict[bytes, str] = {}
    for name in ("train", "valid", "test"):
        if name == "test" and splits.valid_is_test:
            continue  # this is declared, and no rule selects on it
        rows = np.ascontiguousarray(splits.named()[name].x.numpy())
        digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        twice = [index for index, digest in enumerate(digests) if seen.get(digest, name) != name]
        # published collections contain a few images twice
        allowed = 0.005 * len(digests) if splits.official else 0
        assert len(twice) <= allowed, (
            f"{dataset.name}: {len(twice):,} images of {name} are in {seen[digests[twice[0]]]} too (such as number "
            f"{twice[0]:,})."
        )
        for digest in digests:
            seen.setdefault(digest, name)


def check_data_seed(dataset: Dataset, splits: Splits, data_dir: Path) -> None:
    """Another data seed gives other data, or the dataset declares that it draws nothing (`draws`)."""
    other = dataset.replace(data_seed=dataset.data_seed + 1).build(data_dir)
    differs = other.fingerprint() != splits.fingerprint()
    draws = dataset.draws(data_dir)
    assert differs or not draws, (
        f"{dataset.name}: another data_seed gives equal data, and runs on them would be counted as new samples: draw "
        'with derived_generator("data", self.data_seed, ...), or let draws() return False.'
    )
    assert draws or not differs, f"{dataset.name}: draws() returns False, and another data_seed gives other data."


def check_net_runs(dataset: Dataset, splits: Splits) -> None:
    """The network of the recipe takes a batch of the data."""
    from debiasbench.data.augment import augmented

    recipe = dataset.own_recipe
    if dataset.input == "images":
        recipe.check_channels(splits.train.x.shape[1])
    shape = recipe.input_shape(tuple(splits.train.x.shape[1:]))
    pretrained = recipe.pretrained if dataset.input == "text" else "none"  # an encoder comes only with its weights
    net = build_net(recipe.net, shape, dataset.n_classes, pretrained=pretrained)
    x = augmented(splits.train.x[:4], recipe, torch.Generator().manual_seed(0))
    features = net.features(x)
    assert features.shape == (4, net.n_features), f"{dataset.name}: features {tuple(features.shape)}."
    assert net(x).shape == (4, dataset.n_classes)


DATASET_CHECKS: list[Callable[[Dataset, Splits], None]] = [
    check_dataset_declaration,
    check_columns,
    check_counts,
    check_ratio,
    check_headline,
    check_bias_says_nothing_in_test,
    check_no_image_in_two_splits,
    check_net_runs,
]
# These build the data once more.
DATASET_BUILD_CHECKS: list[Callable[[Dataset, Splits, Path], None]] = [check_builds_the_same_again, check_data_seed]


# ---- all of them, for `debiasbench test` ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        protects: what the check guarantees.
        outcome: "passed", "failed" or "skipped".
        message: what is wrong, or why it was skipped.
    """

    check: str
    protects: str
    outcome: str
    message: str = ""


def examine_method(cls: type[Method]) -> Iterator[Finding]:
    """Run every check on a method, one after another."""
    reason = cls().decline(Tiny()) or cls().decline_recipe(Tiny.recipe)
    for check in METHOD_CHECKS:
        fits = check not in (check_declaration, check_search, check_decline_is_a_reason)
        yield _skipped(check, f"it declines the small data: {reason}") if reason and fits else _found(check, cls)


def examine_net(cls: type[Net]) -> Iterator[Finding]:
    """Run every check on a network, one after another."""
    for check in NET_CHECKS:
        yield _found(check, cls)


def examine_dataset(dataset: Dataset, data_dir: Path) -> Iterator[Finding]:
    """Build a dataset and run every check on it, one after another."""
    splits = check_splits(dataset, dataset.build(data_dir))
    for check in DATASET_CHECKS:
        yield _found(check, dataset, splits)
    for again in DATASET_BUILD_CHECKS:
        yield _found(again, dataset, splits, data_dir)


def _found(check: Callable[..., None], *given: Any) -> Finding:
    try:
        check(*given)
    except AssertionError as error:
        return _finding(check, "failed", str(error))
    except Exception as error:  # a plug-in can raise anything
        return _finding(check, "failed", f"{type(error).__name__}: {error}")
    return _finding(check, "passed")


def _skipped(check: Callable[..., None], reason: str) -> Finding:
    return _finding(check, "skipped", reason)


def _finding(check: Callable[..., None], outcome: str, message: str = "") -> Finding:
    protects = (check.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
    return Finding(
        check.__name__.removeprefix("check_").replace("_", " "), " ".join(protects.split()), outcome, message
    )
