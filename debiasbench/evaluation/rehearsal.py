"""Metrics and rules outside the suite, tried on the data before anything trains."""

from __future__ import annotations

import torch

from debiasbench.datasets import Dataset
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.own import own_functions, own_selection
from debiasbench.samples import Splits


def rehearse(dataset: Dataset, splits: Splits) -> None:
    """Call each once, with the labels of the validation split and logits that are drawn.

    Raises:
        BenchmarkError: one fails, or returns what it may not.
    """
    if not (own_functions("metric") or own_functions("rule")):
        return
    n = len(splits.valid)
    logits = torch.randn(n, dataset.n_classes, generator=torch.Generator().manual_seed(0))
    metrics = Evaluation(dataset, splits).metrics("valid", logits)
    own_selection([metrics, metrics], validation=not splits.valid_is_test)
