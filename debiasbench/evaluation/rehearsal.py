"""Rules, and metrics and rules outside the suite, tried on the data before anything trains."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from debiasbench.datasets import Dataset
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.own import own_functions, own_selection
from debiasbench.evaluation.selection import CHOOSING, criterion
from debiasbench.samples import Splits


def rehearse(dataset: Dataset, splits: Splits) -> None:
    """Call each once, with the labels of the validation split and logits that are drawn.

    Raises:
        BenchmarkError: one fails, or returns what it may not.
    """
    if not (own_functions("metric") or own_functions("rule")):
        return
    metrics = Evaluation(dataset, splits).metrics("valid", _logits(dataset, splits))
    own_selection([metrics, metrics], validation=not splits.valid_is_test)


def without_value(dataset: Dataset, splits: Splits) -> frozenset[str]:
    """The rules of `CHOOSING` that have no value on the validation split, whatever is trained.

    Whether worst_proxy has one is a matter of the method: `Method.gives_proxies`.
    """
    evaluation, logits = Evaluation(dataset, splits), _logits(dataset, splits)
    metrics = evaluation.metrics("valid", logits)
    n_of = np.bincount(splits.valid.y.cpu().numpy(), minlength=dataset.n_classes)
    pairs = zip(evaluation.correct_by_class("valid", logits), n_of.tolist(), strict=True)
    accuracies = [right / n if n else None for right, n in pairs]
    rules = (rule for rule in CHOOSING if rule != "worst_proxy")
    return frozenset(rule for rule in rules if math.isnan(criterion(rule, metrics, accuracies, dataset.headline)))


def _logits(dataset: Dataset, splits: Splits) -> Tensor:
    """Some of each validation sample (N, C), drawn."""
    return torch.randn(len(splits.valid), dataset.n_classes, generator=torch.Generator().manual_seed(0))
