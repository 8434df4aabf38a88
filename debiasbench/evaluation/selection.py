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
    "class_gap": "smallest difference between the accuracies of two classes there",
    "worst_proxy": "highest accuracy there of the worst (label, prediction of a biased network) cell",
    "group_val": "best group metric on validation; uses bias labels",
    "test_oracle": "best headline metric on test; an upper bound, never a result",
}
OF_CLASSES: dict[str, Callable[[Sequence[float]], float]] = {  # accuracies of the classes -> what is to be highest
    "worst_class": min,
    "class_gap": lambda accuracies: min(accuracies) - max(accuracies),
}
WORST_PROXY = "acc_worst_proxy"  # the metric on validation that worst_proxy chooses by; of stages with `proxy=`
LATER = (*OF_CLASSES, "worst_proxy")  # rules that follow from what records have of their epochs, whatever chose then
USES_BIAS_LABELS = ("group_val", "test_oracle")
SMALLEST = ("val_loss", "class_gap")  # what they go by is best when it is smallest
CHOOSING = tuple(rule for rule in SELECTION_RULES if rule not in ("last", "test_oracle"))  # by validation, also of runs


def uses_bias_labels(rule: str) -> bool:
    """Whether a rule reads bias labels, or test; one outside the suite says so by its name."""
    return rule in USES_BIAS_LABELS or rule.startswith("group_")


class Evaluated(Protocol):
    """Metrics of an epoch on validation and on test."""

    @property
    def valid(self) -> Mapping[str, float]:
        """On validation."""

    @property
    def test(self) -> Mapping[str, float]:
        """On test."""


def select(epochs: Sequence[Evaluated], headline: tuple[str, ...], *, validation: bool = True) -> dict[str, int | None]:
    """Rule -> the row of `epochs` that it chooses, or None where it cannot choose.

    Rules of `LATER` are left to `select_by_classes` and `select_by_proxy`, whatever was logged when. Ties go to the
    later epoch. Rules read logged metrics only; `last`, `val_loss` and `val_acc` never read the test split or a bias
    label. `validation=False`: there is no validation split apart from test, and the rules that need one do not choose.
    """
    return {
        "last": len(epochs) - 1 if epochs else None,
        **{
            rule: _best([criterion(rule, row.valid, None, headline) for row in epochs]) if validation else None
            for rule in ("val_loss", "val_acc", "group_val")
        },
        "test_oracle": _best([row.test.get(headline[0], NAN) for row in epochs]),
    }


def select_by_classes(rule: str, accuracies: Sequence[Sequence[float | None] | None]) -> int | None:
    """The row that a rule of `OF_CLASSES` chooses by the accuracies of the classes on validation (BAM; SubpopBench).

    No group label is read. Ties go to the later row.

    Args:
        rule: "worst_class" or "class_gap".
        accuracies: by row and class; None for a class without samples, and for a row where they were not kept.
    """
    return _best([criterion(rule, {}, row, ()) for row in accuracies])


def criterion(
    rule: str, valid: Mapping[str, float], accuracies: Sequence[float | None] | None, headline: tuple[str, ...]
) -> float:
    """What a rule of `CHOOSING` is to be highest of, at one epoch; nan where it has no value.

    Args:
        rule: its name.
        valid: the metrics on validation.
        accuracies: of the classes there, None for a class without samples; None where they were not kept.
        headline: the dataset's headline metrics.
    """
    if rule in OF_CLASSES:
        there = [value for value in accuracies or () if value is not None]
        return OF_CLASSES[rule](there) if len(there) > 1 else NAN  # of a single class nothing is the worst
    if rule == "group_val":
        return _of_groups(valid, headline)
    if rule == "val_loss":
        return -valid.get("loss", NAN)
    return valid.get(WORST_PROXY if rule == "worst_proxy" else "acc_avg", NAN)


def _of_groups(valid: Mapping[str, float], headline: tuple[str, ...]) -> float:
    """The group metric on validation; nan where too few samples conflict to choose by."""
    deciding = [number for name, number in valid.items() if name.startswith(("n_conflict", "n_smallest"))]
    if min(deciding, default=0) < 10:
        return NAN
    if "acc_worst" in headline:
        return valid.get("acc_worst", NAN)
    sides = [number for name, number in valid.items() if name.startswith(("acc_aligned", "acc_conflict"))]
    return sum(sides) / len(sides) if sides else NAN


def select_by_proxy(valid: Sequence[Mapping[str, float]]) -> int | None:
    """The row that `worst_proxy` chooses by metrics on validation (uLA, EVaLS, XRM); None where there are no proxies.

    No group label is read. Ties go to the later row.
    """
    return _best([criterion("worst_proxy", row, None, ()) for row in valid])


def _best(values: Sequence[float]) -> int | None:
    """The index of the highest number, the last one of equals; None where there is none."""
    usable = [index for index, number in enumerate(values) if not math.isnan(number)]
    return max(usable, key=lambda index: (values[index], index)) if usable else None
