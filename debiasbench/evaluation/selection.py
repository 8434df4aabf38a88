"""The rules that select an epoch, from what was logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

NAN = float("nan")

SELECTION_RULES = {
    "last": "the last epoch (headline)",
    "val_loss": "lowest cross-entropy on the biased validation split",
    "val_acc": "highest accuracy on the biased validation split",
    "worst_class": "highest accuracy of the worst class on the biased validation split",
    "class_gap": "smallest gap between the best and the worst class on the biased validation split",
    "worst_proxy": "highest accuracy of the worst group of (label, prediction of a biased network) on the biased "
    "validation split",
    "group_val": "best group metric on validation; uses bias labels",
    "test_oracle": "best headline metric on test; an upper bound, never a result",
}
OF_CLASSES: dict[str, Callable[[Sequence[float]], float]] = {  # class accuracies -> value to maximise
    "worst_class": min,
    "class_gap": lambda accuracies: min(accuracies) - max(accuracies),
}
WORST_PROXY = "acc_worst_proxy"  # the metric on validation that worst_proxy maximises, for stages with `proxy=`
LATER = (*OF_CLASSES, "worst_proxy")  # rules that also apply to the logged epochs of records older than the rule
USES_BIAS_LABELS = ("group_val", "test_oracle")
SMALLEST = ("val_loss", "class_gap")  # rules that minimise
CHOOSING = tuple(rule for rule in SELECTION_RULES if rule not in ("last", "test_oracle"))  # on validation; tuning, too


def direction(metric: str) -> int:
    """1 if a higher value of a metric is better, -1 if a lower one is; every comparison of metrics uses this.

    Lower is better for `loss`, and for metrics outside the suite whose names end in `_loss` or `_error`.
    """
    is_lower = metric == "loss" or (metric.endswith(("_loss", "_error")) and not metric.startswith("acc_"))
    return -1 if is_lower else 1


def uses_bias_labels(rule: str) -> bool:
    """Whether a rule reads bias labels or the test split; outside the suite, the name `group_...` declares it."""
    return rule in USES_BIAS_LABELS or rule.startswith("group_")


class Evaluated(Protocol):
    """Metrics of an epoch on validation and on test."""

    @property
    def valid(self) -> Mapping[str, float]:
        """Metrics on validation."""

    @property
    def test(self) -> Mapping[str, float]:
        """Metrics on test."""


def select(epochs: Sequence[Evaluated], headline: tuple[str, ...], *, validation: bool = True) -> dict[str, int | None]:
    """Rule -> index of the epoch that it selects, or None if it cannot select one.

    The rules of `LATER` are not included: see `select_by_classes` and `select_by_proxy`. Ties go to the later epoch.
    Rules read only logged metrics; `last`, `val_loss` and `val_acc` never read the test split or a bias label.
    `validation=False` means that the validation split is the test split, so rules that need validation select nothing.
    """
    return {
        "last": len(epochs) - 1 if epochs else None,
        **{
            rule: _best([criterion(rule, row.valid, None, headline) for row in epochs]) if validation else None
            for rule in ("val_loss", "val_acc", "group_val")
        },
        "test_oracle": _best([direction(headline[0]) * row.test.get(headline[0], NAN) for row in epochs]),
    }


def select_by_classes(rule: str, accuracies: Sequence[Sequence[float | None] | None]) -> int | None:
    """Index of the epoch that a rule of `OF_CLASSES` selects by class accuracies on validation (BAM; SubpopBench).

    It reads no group label. Ties go to the later epoch.

    Args:
        rule: "worst_class" or "class_gap".
        accuracies: in [0, 1], by epoch and class; None for a class without samples, and for an epoch without logged
            accuracies.
    """
    return _best([criterion(rule, {}, row, ()) for row in accuracies])


def criterion(
    rule: str, valid: Mapping[str, float], accuracies: Sequence[float | None] | None, headline: tuple[str, ...]
) -> float:
    """The value that a rule of `CHOOSING` maximises, at one epoch; nan if it has no value.

    Args:
        rule: the name of the rule.
        valid: the metrics on validation.
        accuracies: class accuracies on validation, None for a class without samples; None if they were not logged.
        headline: the dataset's headline metrics.
    """
    if rule in OF_CLASSES:
        there = [value for value in accuracies or () if value is not None]
        return OF_CLASSES[rule](there) if len(there) > 1 else NAN  # a single class has no worst one
    if rule == "group_val":
        return _of_groups(valid, headline)
    if rule == "val_loss":
        return -valid.get("loss", NAN)
    return valid.get(WORST_PROXY if rule == "worst_proxy" else "acc_avg", NAN)


def _of_groups(valid: Mapping[str, float], headline: tuple[str, ...]) -> float:
    """The group metric on validation; nan if fewer than ten samples conflict or are in the smallest group."""
    deciding = [number for name, number in valid.items() if name.startswith(("n_conflict", "n_smallest"))]
    if min(deciding, default=0) < 10:
        return NAN
    if "acc_worst" in headline:
        return valid.get("acc_worst", NAN)
    sides = [number for name, number in valid.items() if name.startswith(("acc_aligned", "acc_conflict"))]
    return sum(sides) / len(sides) if sides else NAN


def select_by_proxy(valid: Sequence[Mapping[str, float]]) -> int | None:
    """Index of the epoch that `worst_proxy` selects on validation (uLA, EVaLS, XRM); None without proxies.

    It reads no group label. Ties go to the later epoch.
    """
    return _best([criterion("worst_proxy", row, None, ()) for row in valid])


def _best(values: Sequence[float]) -> int | None:
    """The index of the highest number (the last one, if tied); None if all are nan."""
    usable = [index for index, number in enumerate(values) if not math.isnan(number)]
    return max(usable, key=lambda index: (values[index], index)) if usable else None
