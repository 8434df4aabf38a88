"""A metric: how far the probabilities are from the labels."""

import numpy as np

from debiasbench.evaluation.own import metric


@metric
def brier(logits: np.ndarray, y: np.ndarray) -> float:
    """One minus half the Brier score: 1 if certain and right, 0 if certain and wrong."""
    likelihoods = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = likelihoods / likelihoods.sum(1, keepdims=True)
    labels = np.eye(logits.shape[1])[y]
    return float(1 - ((probabilities - labels) ** 2).sum(1).mean() / 2)
