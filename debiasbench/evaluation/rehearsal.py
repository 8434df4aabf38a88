"""Trial of rules, and of metrics and rules outside the suite, on the data before anything trains."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.own import own_functions, own_selection
from debiasbench.evaluation.selection import CHOOSING, criterion
from debiasbench.parameters import suggestion
from debiasbench.samples import Samples, Splits


def rehearse(dataset: Dataset, splits: Splits) -> None:
    """Call metrics and rules outside the suite before training, to find their errors.

    Metrics are called with the labels of validation and test, once with random logits and once with logits that predict
    a single class, as networks often do at first. Rules are called with one epoch, which some methods have, and with
    more.

    Raises:
        BenchmarkError: a metric or rule fails, or returns an invalid value.
    """
    if not (own_functions("metric") or own_functions("rule")):
        return
    evaluation, rows = Evaluation(dataset, splits), {}
    for split in ("valid", "test"):
        drawn = _logits(dataset, splits.named()[split])
        first = 100.0 * (torch.arange(dataset.n_classes) == 0)
        rows[split] = [evaluation.metrics(split, logits) for logits in (drawn, drawn + first)]
    for epochs in (rows["valid"][:1], rows["valid"], 2 * rows["valid"]):
        own_selection(epochs, validation=not splits.valid_is_test)


def check_headline(dataset: Dataset, splits: Splits) -> None:
    """Refuse headline metrics that the test split does not have: their columns would be empty.

    Raises:
        BenchmarkError: names them, and the metrics that there are.
    """
    known = Evaluation(dataset, splits).metrics("test", _logits(dataset, splits.test))
    unknown = [name for name in dataset.headline if name not in known]
    if unknown:
        raise BenchmarkError(
            f"{dataset.name}: headline names {', '.join(unknown)}, which the test split does not have."
            f"{suggestion(unknown[0], known)} Known: {', '.join(known)}. Correct headline, or declare what the metric "
            "needs (acc_unbiased: unbiased_test = True)."
        )


def without_value(dataset: Dataset, splits: Splits) -> frozenset[str]:
    """The rules of `CHOOSING` that have no value on the validation split, whatever is trained.

    Whether worst_proxy has a value depends on the method: see `Method.gives_proxies`.
    """
    evaluation, logits = Evaluation(dataset, splits), _logits(dataset, splits.valid)
    metrics = evaluation.metrics("valid", logits)
    n_of = np.bincount(splits.valid.y.cpu().numpy(), minlength=dataset.n_classes)
    pairs = zip(evaluation.correct_by_class("valid", logits), n_of.tolist(), strict=True)
    accuracies = [right / n if n else None for right, n in pairs]
    rules = (rule for rule in CHOOSING if rule != "worst_proxy")
    return frozenset(rule for rule in rules if math.isnan(criterion(rule, metrics, accuracies, dataset.headline)))


def _logits(dataset: Dataset, samples: Samples) -> Tensor:
    """Random logits (N, C)."""
    return torch.randn(len(samples), dataset.n_classes, generator=torch.Generator().manual_seed(0))
