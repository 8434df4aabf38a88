"""Every metric of predictions; networks are not used here.

Metric names are those of the field, made unambiguous (see docs/metrics.md): `acc_avg` is plain accuracy on a split;
`acc_unbiased` is the same on a test split whose bias is independent of the label. Accuracies are fractions in [0, 1];
an accuracy without samples is nan.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from debiasbench.samples import Samples

NAN = float("nan")
FEWEST = 10  # samples of a (label, proxy) cell that counts


def overlapping(correct: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Accuracies over groups that overlap.

    `acc_overlapavg` is CNC's average: each sample counts once for every group that it is in.

    Args:
        correct: bool (N,), the samples predicted correctly.
        groups: bool (N, G), the members of each group.
    """
    n = groups.sum(0)
    n_correct = (groups & correct[:, None]).sum(0)
    fraction = n_correct[n > 0] / n[n > 0]  # an empty group has no accuracy
    if not len(fraction):
        return {
            "acc_worst": NAN,
            "n_worst": 0.0,
            "acc_groupmean": NAN,
            "acc_overlapavg": NAN,
            "n_groups": 0.0,
            "n_smallest": 0.0,
        }
    return {
        "acc_worst": float(fraction.min()),
        "n_worst": float(n[n > 0][fraction.argmin()]),
        "acc_groupmean": float(fraction.mean()),
        "acc_overlapavg": float(n_correct.sum() / n.sum()),
        "n_groups": float(len(fraction)),
        "n_smallest": float(n[n > 0].min()),
    }


def accuracies(
    correct: np.ndarray,
    y: np.ndarray,
    bias: np.ndarray,
    *,
    bias_names: tuple[str, ...],
    unbiased: bool,
    conflict: np.ndarray | None = None,
) -> dict[str, float]:
    """Accuracies by name.

    With several biases, `acc_aligned` and `acc_conflict` are given for each (`acc_conflict.colour`), and no groups are
    formed.

    Args:
        correct: bool (N,), the samples predicted correctly.
        y: int (N,), the labels.
        bias: int (N, A), -1 where unknown.
        bias_names: the name of each bias.
        unbiased: whether the bias is independent of the label in this split.
        conflict: bool (N, A); default: the known biases that differ from y.
    """
    result = {"n": float(len(y)), "acc_avg": mean_or_nan(correct)}
    if unbiased:
        result["acc_unbiased"] = result["acc_avg"]
    for column, name in enumerate(bias_names):
        suffix = f".{name}" if len(bias_names) > 1 else ""
        known = bias[:, column] >= 0
        conflicting = known & (bias[:, column] != y if conflict is None else conflict[:, column])
        result[f"acc_aligned{suffix}"] = mean_or_nan(correct[known & ~conflicting])
        result[f"acc_conflict{suffix}"] = mean_or_nan(correct[conflicting])
        result[f"n_conflict{suffix}"] = float(conflicting.sum())
    if len(bias_names) == 1 and bool((bias[:, 0] >= 0).any()):
        known = bias[:, 0] >= 0
        groups = y[known].astype(np.int64) * (int(bias.max()) + 1) + bias[known, 0]
        n_group = np.bincount(groups)
        fraction = np.bincount(groups, correct[known])[n_group > 0] / n_group[n_group > 0]
        # an empty group has no accuracy
        result["acc_worst"] = float(fraction.min())
        result["n_worst"] = float(n_group[n_group > 0][fraction.argmin()])
        result["acc_cellmean"] = result["acc_groupmean"] = float(fraction.mean())
        result["n_groups"] = float(len(fraction))
    return result


def mean_or_nan(values: np.ndarray) -> float:
    """The mean of values (N,); nan if there are none."""
    return float(values.mean()) if len(values) else NAN


def adjusted_accuracy(group_accuracies: np.ndarray, train_counts: np.ndarray) -> float:
    """`acc_adjusted`: group accuracies weighted by *training* frequencies of the groups (the Waterbirds convention)."""
    return float(np.average(group_accuracies, weights=train_counts))


def identification(column: Tensor, samples: Samples, bias_names: tuple[str, ...]) -> dict[str, float]:
    """How well per-sample values identify the bias-conflicting training samples.

    For a bool column: precision and recall. For scores: AUROC; the fraction of the total score on conflicting samples
    (`conflict_mass`; if the sampling distribution is proportional to the score, the fraction of that distribution); and
    precision among the n highest, where n is the number of true conflicts (so it equals recall). With several biases,
    each has its own numbers (`auroc.fashion`), and `spearman` is the rank correlation with the number of conflicting
    biases.

    Args:
        column: bool (N,), the samples judged conflicting; or float (N,), scores.
        samples: the training samples.
        bias_names: the name of each bias.
    """
    from sklearn.metrics import roc_auc_score

    result: dict[str, float] = {}
    values = column.numpy()
    conflicts = samples.conflicting.cpu().numpy()
    for index, name in enumerate(bias_names):
        suffix = f".{name}" if len(bias_names) > 1 else ""
        truth = conflicts[:, index]
        n_true = int(truth.sum())
        if values.dtype == bool:
            found = int((values & truth).sum())
            result |= {
                f"n_selected{suffix}": float(values.sum()),
                f"precision{suffix}": found / values.sum() if values.any() else NAN,
                f"recall{suffix}": found / n_true if n_true else NAN,
            }
            continue
        total = float(values.sum(dtype=np.float64)) if values.min() >= 0 else 0.0  # no fraction if scores are signed
        highest = np.argsort(-values, kind="stable")[:n_true]
        result |= {
            f"auroc{suffix}": float(roc_auc_score(truth, values)) if 0 < n_true < len(truth) else NAN,
            f"conflict_mass{suffix}": float(values[truth].sum(dtype=np.float64)) / total if total else NAN,
            f"precision_at_n{suffix}": float(truth[highest].mean()) if n_true else NAN,
        }
    if len(bias_names) > 1 and values.dtype != bool:
        result["spearman"] = spearman(values, conflicts.sum(1))
    return {name: float(value) for name, value in result.items()}


def spearman(score: np.ndarray, n_conflicts: np.ndarray) -> float:
    """Rank correlation of a score (N,) with the number of conflicting biases (N,); nan if either is constant."""
    from scipy.stats import spearmanr

    if np.ptp(score) == 0 or np.ptp(n_conflicts) == 0:
        return NAN
    return float(spearmanr(score, n_conflicts).statistic)


def worst_of_proxies(correct: np.ndarray, y: np.ndarray, proxy: np.ndarray) -> float | None:
    """The lowest accuracy among the (label, proxy) cells with at least ten samples.

    None if no class has two such cells, because then it would be an accuracy of classes.

    Args:
        correct: bool (N,), the samples predicted correctly.
        y: int (N,), the labels.
        proxy: int (N,), the kind of each sample.
    """
    cells, cell, n = np.unique(np.stack([y, proxy], 1), axis=0, return_inverse=True, return_counts=True)
    usable = n >= FEWEST
    labels = cells[usable, 0]
    if len(np.unique(labels)) == len(labels):
        return None
    return float((np.bincount(cell.ravel(), weights=correct) / n)[usable].min())
