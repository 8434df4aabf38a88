"""Metrics and selection rules outside the suite: functions in the files of `--nets-dir`, by name.

    @metric
    def brier(logits, y): ...                 # arguments by name, as numpy arrays -> one number

    @rule
    def smooth(rows): ...                     # metrics of the evaluated epochs on validation -> the index of one

They are called with copies, so they cannot change other numbers.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from debiasbench.code import digest_of_module
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import SELECTION_RULES, WORST_PROXY, uses_bias_labels
from debiasbench.nets.own import registry
from debiasbench.plain import shown

GIVEN = {  # the arguments that a metric can have, by name
    "logits": "float32 (N, C)", "predictions": "int64 (N,)", "y": "int64 (N,)",
    "bias": "int64 (N, A), -1 where unknown", "conflicting": "bool (N, A)",
}  # fmt: skip
OF_BIAS = ("bias", "conflicting")
WITHOUT_BIAS = ("loss", "acc_avg", "n", WORST_PROXY)  # metrics of the suite that read no bias label
# names of other columns of the tables of results
TAKEN = (
    "loss", "n", "method", "dataset", "seed", "data_seed", "status", "split", "select", "epoch", "seconds",
    "device_kind", "precision", "official", "fingerprint", "protocol", "hash", "path", "value",
)  # fmt: skip
OF_SUITE = ("acc_", "n_")  # prefixes of the suite's metrics
MARK = "debiasbench_kind"
Function = TypeVar("Function", bound=Callable[..., Any])


def metric(function: Function) -> Function:
    """Make a function in a file of `--nets-dir` a metric; records and tables use its name.

    Its arguments are any of `logits` float32 (N, C), `predictions` int64 (N,), `y` int64 (N,), `bias` int64 (N, A) with
    -1 where unknown, and `conflicting` bool (N, A). It returns a number, which tables multiply by 100 as they do
    accuracies, or None if it has no value. Higher is better, unless its name ends in `_loss` or `_error`: then lower is
    better (see `selection.direction`).

    Raises:
        BenchmarkError: it has other arguments, or its name is taken.
    """
    strange = [name for name in _arguments(function) if name not in GIVEN]
    if strange or not _arguments(function):
        raise BenchmarkError(
            f"The metric {function.__name__} asks for {', '.join(strange) or 'nothing'}. Its arguments are any of "
            f"{', '.join(f'{name} {kind}' for name, kind in GIVEN.items())}."
        )
    return _marked(function, "metric", TAKEN, OF_SUITE)


def rule(function: Function) -> Function:
    """Make a function in a file of `--nets-dir` a selection rule; records and tables use its name.

    Its argument is a list with one dictionary per evaluated epoch, the metrics on validation: `loss`, `acc_avg`, and
    those of `@metric` that read no bias. It returns the index of an epoch, from 0, or None if it cannot choose. A rule
    whose name begins with `group_` receives all metrics on validation; tables mark it, because it uses bias labels.

    Raises:
        BenchmarkError: it takes other arguments, or its name is taken.
    """
    if len(_arguments(function)) != 1:
        raise BenchmarkError(f"The rule {function.__name__} must take one argument, the list of rows.")
    return _marked(function, "rule", tuple(SELECTION_RULES), ())


def is_own_metric(column: str) -> bool:
    """Whether a column of a table of results is a metric outside the suite."""
    return "." not in column and column not in TAKEN and not column.startswith(OF_SUITE)


def _arguments(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.default is one.empty]


def _marked(function: Function, kind: str, taken: Sequence[str], beginnings: tuple[str, ...]) -> Function:
    name = function.__name__
    if not re.fullmatch(r"[A-Za-z]\w{0,39}", name, re.ASCII) or name in taken or name.startswith(beginnings):
        raise BenchmarkError(
            f"A {kind} is called by the name of its function: at most 40 letters, digits or '_', and not a name that "
            f"the suite uses ({', '.join([*taken, *(f'{one}...' for one in beginnings)])}). Got {name!r}."
        )
    setattr(function, MARK, kind)
    return function


def own_functions(kind: str) -> dict[str, Callable[..., Any]]:
    """The metrics or rules outside the suite, by name; `kind` is "metric" or "rule".

    Raises:
        BenchmarkError: two files define the same name.
    """
    registry.classes()  # imports them
    found: dict[str, Callable[..., Any]] = {}
    for module in registry.modules:
        for value in vars(module).values():
            if getattr(value, MARK, "") != kind or getattr(value, "__module__", "") != module.__name__:
                continue
            other = found.setdefault(value.__name__, value)
            if other is not value:
                raise BenchmarkError(
                    f"The {kind} {value.__name__} is defined twice: by {other.__module__} and {value.__module__}."
                )
    return dict(sorted(found.items()))


def digests_of_functions() -> dict[str, str | None]:
    """`metric brier`, `rule smooth` -> digest of the source of its file and of the local modules that it imports."""
    return {
        f"{kind} {name}": digest_of_module(function.__module__)
        for kind in ("metric", "rule")
        for name, function in own_functions(kind).items()
    }


def own_metrics(
    split: str, logits: Tensor, y: np.ndarray, bias: np.ndarray, conflicting: np.ndarray
) -> dict[str, float]:
    """The metrics outside the suite for one split, by name; nan for a metric without a value.

    Raises:
        BenchmarkError: a metric fails, or returns anything but a finite number or None; or a file cannot be used.
    """
    registry.check()
    found = {}
    for name, function in own_functions("metric").items():
        values = {"y": y, "bias": bias, "conflicting": conflicting, "logits": logits.cpu().numpy()}
        values["predictions"] = values["logits"].argmax(1)
        result = _called(f"metric {name}", split, function, **{one: values[one].copy() for one in _arguments(function)})
        if result is None:
            found[name] = math.nan
            continue
        number = None if isinstance(result, bool | str) else _as(float, result)
        if number is None or not math.isfinite(number):
            raise BenchmarkError(
                f"The metric {name} must return a finite number, or None where it has no value. On {split} it returned "
                f"{shown(result)}."
            )
        found[name] = number
    return found


def own_selection(valid: Sequence[Mapping[str, float]], *, validation: bool = True) -> dict[str, int | None]:
    """Rule outside the suite -> the row that it chooses, or None.

    Args:
        valid: metrics of each evaluated epoch on validation; nan for a metric without a value.
        validation: False: there is no validation split separate from test, so no rule can choose.

    Raises:
        BenchmarkError: a rule fails, or returns anything but the index of a row or None.
    """
    without_bias = {
        *WITHOUT_BIAS,
        *(n for n, one in own_functions("metric").items() if not {*OF_BIAS} & {*_arguments(one)}),
    }
    chosen: dict[str, int | None] = {}
    for name, function in own_functions("rule").items():
        rows = [
            {
                key: value
                for key, value in row.items()
                if not math.isnan(value) and (uses_bias_labels(name) or key in without_bias)
            }
            for row in valid
        ]
        result = _called(f"rule {name}", "validation", function, rows) if validation else None
        index = None if isinstance(result, bool) else _as(operator.index, result)
        if result is not None and (index is None or not 0 <= index < len(valid)):
            raise BenchmarkError(
                f"The rule {name} must return the index of a row, here 0..{len(valid) - 1}, or None where it cannot "
                f"choose. It returned {shown(result)}."
            )
        chosen[name] = index
    return chosen


def _called(what: str, where: str, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """Call a function of the user, and put its failure into words.

    Raises:
        BenchmarkError: the function raises.
    """
    try:
        with _apart():
            return function(*values, **named)
    except (Exception, SystemExit) as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise BenchmarkError(
            f"The {what} failed on {where}: {type(error).__name__}{': ' * bool(said)}{said}."
        ) from error


def _as(kind: Callable[[Any], Any], value: Any) -> Any:
    """Convert a value with `kind`; None if that fails."""
    try:
        return kind(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


@contextmanager
def _apart() -> Iterator[None]:
    """Isolate a function of the user: it changes no random numbers, gradients or thread counts of the cell."""
    n_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)
