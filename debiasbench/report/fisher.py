"""Empirical Fisher information of the final layer, and the trace of its inverse (PGD paper, section 5, Figure 3).

The paper says that debiasing should make the trace of the inverse small (equation 7), and proves in one dimension that
sampling in proportion to the norm of the gradient does so (Theorem 2). It does not say for which parameters Figure 3
shows the trace, nor how the matrix is inverted. Here the parameters are those of the final linear layer, for which the
full matrix can be computed. Two more choices are needed, and a number means nothing without them:

- Softmax ignores what is added to all logits alike, so the information of the C (D + 1) parameters has rank
  (C - 1) (D + 1) at most. The inverse is taken on the subspace that contains the gradients.
- In this subspace, too, some eigenvalues of a trained network are almost zero, and those of features that are equal for
  all samples (dead units) are zero. `damping`, a fraction of the mean eigenvalue, is added to all eigenvalues, and such
  directions then count 1 / damping. Before you believe an order, compare several dampings (`inverse_traces`;
  "sensitivity" in `of_record`), and the trace without dead directions ("objective_in_rank"): either can reverse it.

The trace has units of one over the squared gradient, so it grows as a network fits its training data. Between networks
it compares how well they fit as much as how evenly. `objective * mean_eigenvalue / dimension` of `of_record` is free of
the first: it is 1 / (1 + damping) if all eigenvalues are equal, and at most 1 / damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debiasbench.data.augment import to_input
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.nets.base import Net
from debiasbench.records import Result, arrays_path, has_arrays, read_arrays, read_record
from debiasbench.samples import Samples
from debiasbench.weights import load

DAMPING = 1e-3  # of the mean eigenvalue
SAMPLING_COLUMNS = ("sampling", "score")  # columns that a method may log of its sampling, the more reliable first
CHUNK_VALUES = 2**22  # float64 values of gradients in memory at once: 32 MiB


def fisher_information(
    features: Tensor, logits: Tensor, y: Tensor, weight: Tensor, *, chunk: int | None = None
) -> Tensor:
    """The empirical Fisher information of the final linear layer, weight and bias (equation 5) -> float64 (K, K).

    I_h = sum_i h_i g_i g_i^T, where g_i is the gradient of log p(y_i), the outer product of e_y - p and (z, 1). As
    e_y - p sums to zero, it is written in an orthonormal basis (Helmert's) of such vectors, so K = (C - 1) (D + 1).
    Nothing is lost: the eigenvalues are those of the whole layer except for D + 1 zeros.

    Args:
        features: float (N, D), the input z of the layer.
        logits: float (N, C).
        y: int64 (N,), labels in 0..C-1.
        weight: float (N,), the sampling distribution h: at least 0, with sum 1.
        chunk: samples at a time; it changes the result only by rounding.

    Returns:
        A symmetric matrix, on the device of the features.

    Raises:
        ValueError: the weights are not a distribution, or lengths differ.
    """
    if not len(features) == len(logits) == len(y) == len(weight):
        raise ValueError(f"Lengths differ: {len(features)}, {len(logits)}, {len(y)} and {len(weight)} weights.")
    weight = weight.double()
    if not (bool((weight >= 0).all()) and abs(float(weight.sum()) - 1) < 1e-6):
        raise ValueError(f"The weights must be at least 0 and sum to 1. Got a sum of {float(weight.sum()):.7g}.")
    basis = _directions(logits.shape[1]).to(features.device)  # (C - 1, C)
    size = len(basis) * (features.shape[1] + 1)
    information = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    for rows in torch.arange(len(y), device=y.device).split(chunk or max(1, CHUNK_VALUES // size)):
        others = logits[rows].double().softmax(1).scatter(1, y[rows, None], 0.0)
        # 1 - p_y as the sum of the others: for confident samples it is far below the rounding of 1
        residual = (-others).scatter(1, y[rows, None], others.sum(1, keepdim=True))
        residual = residual * weight[rows, None].sqrt() @ basis.T
        inputs = torch.cat([features[rows].double(), residual.new_ones(len(rows), 1)], 1)
        gradients = (residual[:, :, None] * inputs[:, None]).flatten(1)  # (B, K)
        information.addmm_(gradients.T, gradients)
    return information


def _directions(n_classes: int) -> Tensor:
    """An orthonormal basis of the vectors orthogonal to (1, ..., 1) -> float64 (C - 1, C)."""
    from scipy.linalg import helmert

    return torch.from_numpy(helmert(n_classes))


def inverse_trace(information: Tensor, damping: float = DAMPING) -> float:
    """Tr[(I + damping m Id)^-1], where m is the mean eigenvalue of I: the objective of equation 7.

    It has units of 1 / I, so it grows as gradients shrink. It is inf if it has no bound: without damping, if an
    eigenvalue is zero up to rounding; with any damping, if all are.

    Args:
        information: float (K, K), symmetric and positive semidefinite, as from `fisher_information`.
        damping: at least 0, as a fraction of the mean eigenvalue.
    """
    return inverse_traces(information, [damping])[0]


def inverse_traces(information: Tensor, dampings: Sequence[float]) -> list[float]:
    """`inverse_trace` at each damping, for the cost of one: shows how much the trace depends on the damping."""
    return _traces(_eigenvalues(information), dampings)


def _eigenvalues(information: Tensor) -> Tensor:
    """Eigenvalues in increasing order; those that are zero up to rounding are 0."""
    values = torch.linalg.eigvalsh(information.double())
    return torch.where(values > len(values) * torch.finfo(values.dtype).eps * values[-1], values, 0.0)


def _traces(eigenvalues: Tensor, dampings: Sequence[float]) -> list[float]:
    if min(dampings) < 0:
        raise ValueError(f"A damping must be at least 0. Got {min(dampings)}.")
    mean = eigenvalues.mean()
    return [float((1 / (eigenvalues + damping * mean)).sum()) for damping in dampings]


def of_record(record: Path, data_dir: Path, *, damping: float = DAMPING, device: str = "cpu") -> dict[str, Any]:
    """The number of Figure 3 for a finished run: the trace for its trained network and its own sampling distribution.

    The information is computed on all training samples without augmentation, with the network in eval mode and in
    float32. h is the logged column "sampling", or else "score", divided by its sum; it is uniform for a method that
    logged neither. A score equals h only if the method samples or weights in proportion to it: the caller must know.

    Args:
        record: the record of a cell that was run with saved weights.
        data_dir: the data folder.
        damping: as a fraction of the mean eigenvalue of each information; see `inverse_trace`.
        device: where to compute; the 4,617 dimensions of a ResNet take some minutes on a CPU.

    Returns:
        Plain values. "objective": the trace at h; "uniform": the same with equal weights for all samples.
        "objective_in_rank" and "uniform_in_rank": the same over the eigenvalues that are not zero, with a damping
        relative to their mean. "sensitivity": lists of these four at a tenth of the damping, at the damping, and at ten
        times the damping ("damping"). At h: "mean_eigenvalue"; "damped_share", the fraction of eigenvalues below the
        damping, in [0, 1]; "rank", the number of eigenvalues that are not zero. "sampled_by": the column that gives h,
        or "uniform". Also "method", "dataset", "seed", "net", "damping", "n_samples", and "dimension", which is K.

    Raises:
        BenchmarkError: the record has no weights; its predictor is not a single network that ends in a linear layer;
            the data are not those that it was trained on; its arrays are missing, or its scores are not a distribution.
    """
    net = load(record)
    if not (isinstance(net, Net) and isinstance(net.head, nn.Linear) and net.head.bias is not None):
        raise BenchmarkError(
            f"The predictor of {record} is not a single network that ends in a linear layer with a bias, so the "
            "information of its final layer is not defined here."
        )
    content = read_record(record)
    assert content.result is not None  # else it had no weights
    cell = content.cell
    dataset, recipe = cell.build_dataset(), cell.build_recipe()
    splits = dataset.build(data_dir)
    trained_on = content.result.data.fingerprint
    if splits.fingerprint() != trained_on:
        raise BenchmarkError(
            f"The data of {cell.dataset_title} in {data_dir} are not those that {record} was trained on (fingerprint "
            f"{splits.fingerprint()[:12]}, not {trained_on[:12]}). Give the data folder of that run (--data-dir)."
        )
    column, h = _sampling(record, content.result, len(splits.train))
    samples = splits.train.to(torch.device(device), with_x=False)
    net = net.to(device)

    def of_batch(_: int, __: slice | Tensor, x: Tensor) -> Tensor:
        features = net.features(to_input(x, recipe)).float()
        return torch.cat([features, net.head(features)], 1)

    with torch.no_grad():
        both = samples.map(of_batch, Evaluation(dataset, splits).batch_size)
    if not bool(torch.isfinite(both).all()):
        raise BenchmarkError(f"The network of {record} returns NaN or infinite values.")
    features, logits = both[:, : net.n_features], both[:, net.n_features :]
    eigenvalues = _eigenvalues_at(features, logits, samples, h)
    uniform = eigenvalues
    if column != "uniform":
        uniform = _eigenvalues_at(features, logits, samples, torch.full_like(h, 1 / len(h)))
    dampings = (damping / 10, damping, damping * 10)
    traces = {
        "objective": _traces(eigenvalues, dampings),
        "uniform": _traces(uniform, dampings),
        "objective_in_rank": _traces(eigenvalues[eigenvalues > 0], dampings),
        "uniform_in_rank": _traces(uniform[uniform > 0], dampings),
    }
    return {
        "method": cell.method_title,
        "dataset": cell.dataset_title,
        "seed": cell.seed,
        "net": recipe.net,
        "damping": damping,
        "sampled_by": column,
        "n_samples": len(h),
        "dimension": len(eigenvalues),
        **{name: values[1] for name, values in traces.items()},
        "sensitivity": {"damping": list(dampings), **traces},
        "mean_eigenvalue": float(eigenvalues.mean()),
        "rank": int((eigenvalues > 0).sum()),
        "damped_share": float((eigenvalues < damping * eigenvalues.mean()).double().mean()),
    }


def _eigenvalues_at(features: Tensor, logits: Tensor, samples: Samples, h: Tensor) -> Tensor:
    return _eigenvalues(fisher_information(features, logits, samples.y, h.to(features.device)))


def _sampling(record: Path, result: Result, n_samples: int) -> tuple[str, Tensor]:
    """The logged column that gives the sampling distribution, or "uniform", and that distribution h, float64 (N,)."""
    column = next((name for name in SAMPLING_COLUMNS if name in result.arrays), "uniform")
    if column == "uniform":
        return column, torch.full((n_samples,), 1 / n_samples, dtype=torch.float64)
    path = arrays_path(record)
    if not has_arrays(record):
        raise BenchmarkError(f"{path} is missing, which has the sampling distribution of {record}. Run its cell again.")
    arrays = read_arrays(record)
    if column not in arrays:
        raise BenchmarkError(f"{path} lacks the column '{column}' that {record} names. Run its cell again.")
    values = torch.from_numpy(arrays[column].astype(float))
    total = float(values.sum())
    if not (len(values) == n_samples and bool((values >= 0).all()) and 0 < total < float("inf")):
        raise BenchmarkError(
            f"The column '{column}' of {path} is not a sampling distribution over {n_samples:,} samples: its values "
            f"must be finite, at least 0 and not all 0. It has {len(values):,} values from {float(values.min()):.3g} "
            f"to {float(values.max()):.3g}."
        )
    return column, values / total


# ---- Theorem 2: the one-dimensional example --------------------------------------------------------------------------
#
# Samples of a set M have the loss (theta + a)^2 / 2, and those of a set m (theta - a)^2 / 2. Each sample of M is drawn
# with probability h_M, and each of m with h_m, so |M| h_M + |m| h_m = 1. Training ends where the mean gradient is zero.


def gradients_of_sets(fraction: Any, a: float) -> tuple[Any, Any]:
    """The gradients g_M and g_m of a sample of each set at the end of training.

    Args:
        fraction: |M| h_M, the probability of drawing from M, in [0, 1]; a number or an array.
        a: half of the distance between the two optima.
    """
    fraction = np.asarray(fraction, dtype=float)
    theta = a * (1 - fraction) - a * fraction  # where fraction (theta + a) + (1 - fraction) (theta - a) = 0
    return theta + a, theta - a


def objective_of_sets(fraction: Any, a: float) -> Any:
    """Tr[I_h^-1] of the example at the end of training with h; inf at fractions of 0 and 1.

    Args:
        fraction: |M| h_M, the probability of drawing from M, in [0, 1]; a number or an array.
        a: half of the distance between the two optima, not 0.
    """
    fraction = np.asarray(fraction, dtype=float)
    g_major, g_minor = gradients_of_sets(fraction, a)
    with np.errstate(divide="ignore"):
        return 1 / (fraction * g_major**2 + (1 - fraction) * g_minor**2)


def optimal_sampling(a: float, n_major: int, n_minor: int) -> tuple[float, float]:
    """Theorem 2: the probabilities (h*_M, h*_m) of one sample of each set that minimise `objective_of_sets`.

    As the theorem states, they are proportional to |g_M| and |g_m| at the end of training with *uniform* sampling. They
    equal 1 / (2 |M|) and 1 / (2 |m|), so both sets are drawn equally often. (The intermediate result in the appendix,
    as printed, does not sum to 1.)

    Args:
        a: half of the distance between the two optima, not 0.
        n_major: |M|, at least 1.
        n_minor: |m|, at least 1.

    Raises:
        ValueError: a is 0, or a set is empty.
    """
    if a == 0 or min(n_major, n_minor) < 1:
        raise ValueError(f"a must not be 0, and no set may be empty. Got a = {a}, |M| = {n_major}, |m| = {n_minor}.")
    major, minor = (abs(float(g)) for g in gradients_of_sets(n_major / (n_major + n_minor), a))
    total = n_major * major + n_minor * minor
    return major / total, minor / total
