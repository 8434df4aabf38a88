"""A metric: how far the probabilities are from the labels."""

import numpy as np

from debiasbench.evaluation.own import metric


@metric
def brier(logits: np.ndarray, y: np.ndarray) -> float:
    """One minus half of Brier's score: 1 for sure and right, 0 for sure and wrong."""
    likelihoods = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = likelihoods / likelihoods.sum(1, keepdims=True)
    labels = np.eye(logits.shape[1])[y]
    return float(1 - ((probabilities - labels) ** 2).sum(1).mean() / 2)
