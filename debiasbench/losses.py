"""Losses and per-sample quantities that several methods share. All are pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Smoothing:
    """Label smoothing of the stage that is being trained, and whether its loss has used it."""

    amount: float = 0.0
    used: bool = False


_smoothing = [Smoothing()]  # the last one applies


@contextmanager
def label_smoothing(amount: float) -> Iterator[Smoothing]:
    """A context in which `cross_entropy` smooths labels; the engine opens it around the loss of a stage."""
    _smoothing.append(Smoothing(amount))
    try:
        yield _smoothing[-1]
    finally:
        _smoothing.pop()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Per-sample cross-entropy: logits (B, C), y int64 (B,) -> (B,).

    In the loss of a stage, labels are smoothed by the recipe's `label_smoothing`; elsewhere they are not.
    """
    smoothing = _smoothing[-1]
    smoothing.used = True
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing.amount)


def mean_cross_entropy(nets: Any, batch: Any, state: Any) -> Tensor:  # noqa: ARG001 - as every loss
    """The loss of plain training, for `task.train`: mean cross-entropy of `nets.net`.

    Methods that start with plain training use this function, so that equal first stages are trained once
    (`reuse=True`).
    """
    return cross_entropy(nets.net(batch.x), batch.y).mean()


def mean_gce(nets: Any, batch: Any, state: Any, *, alpha: float, form: str) -> Tensor:  # noqa: ARG001 - as every loss
    """Mean generalised cross-entropy of `nets.net`; `task.train` takes `partial(mean_gce, alpha=..., form=...)`."""
    return gce(nets.net(batch.x), batch.y, alpha, form).mean()


def gce(logits: Tensor, y: Tensor, alpha: float, form: str = "paper") -> Tensor:
    """Per-sample generalised cross-entropy: logits (B, C), y (B,) -> (B,).

    "paper": (1 - p_y^alpha) / alpha, from section 3 of the PGD paper. Its limit at alpha = 0 is cross-entropy.
    "official": alpha p_y^alpha CE with the factor held constant, as in every published implementation. Its gradient is
    alpha times that of the paper. alpha = 0 is special-cased to cross-entropy, there as here. Labels are never
    smoothed, because p_y would not be defined.
    """
    ce = F.cross_entropy(logits, y, reduction="none")
    if alpha == 0:
        return ce
    if form == "paper":
        return -torch.expm1(-alpha * ce) / alpha  # p_y = exp(-ce); expm1 keeps small losses exact
    return alpha * torch.exp(-alpha * ce).detach() * ce


def gradient_norm(features: Tensor, logits: Tensor, y: Tensor, *, order: float, bias: bool = True) -> Tensor:
    """Norm of each sample's cross-entropy gradient for the last linear layer, in closed form -> (B,).

    The gradient is the outer product of a = p - e_y and the features z, so its entry-wise norm of any order s
    factorises: |a|_s |z|_s for the weight, |a|_s (|z|_s^s + 1)^(1/s) with the bias of the layer.

    Args:
        features: (B, D), the input of the layer.
        logits: (B, C).
        y: int64 (B,), the labels.
        order: the order s of the norm; it may be inf, or below 1 (a quasi-norm).
        bias: whether the layer's bias belongs to the gradient.
    """
    residual = logits.softmax(1) - F.one_hot(y, logits.shape[1])  # (B, C)
    if bias:
        features = torch.cat([features, torch.ones_like(features[:, :1])], 1)  # (B, D + 1)
    return _entry_norm(residual, order) * _entry_norm(features, order)


def _entry_norm(x: Tensor, order: float) -> Tensor:
    """(sum |x|^s)^(1/s) over dim 1, in float64: for small orders, powers leave the range of float32."""
    magnitude = x.double().abs()
    if math.isinf(order):
        return magnitude.amax(1)
    return (magnitude**order).sum(1) ** (1 / order)


def smoothed(table: Tensor, index: Tensor, value: Tensor, decay: float) -> Tensor:
    """Per-sample moving average: a new table (N,), whose rows `index` (B,) are moved towards `value` (B,).

    A row that is still nan takes the value itself, so that the first visit has no bias towards zero.
    """
    old = table[index]
    value = value.detach().to(table.dtype)
    new = torch.where(torch.isnan(old), value, decay * old + (1 - decay) * value)
    return table.index_put((index,), new)


def class_maxima(table: Tensor, y_all: Tensor, n_classes: int) -> Tensor:
    """Maximum of a per-sample table (N,) in each class of the whole training set -> (C,); unvisited rows count as 0."""
    start = torch.zeros(n_classes, dtype=table.dtype, device=table.device)
    return start.scatter_reduce(0, y_all, torch.nan_to_num(table), "amax")


def relative_difficulty(biased: Tensor, debiased: Tensor, index: Tensor, y_all: Tensor, n_classes: int) -> Tensor:
    """LfF's weight W = b / (b + d) of the samples `index` (B,) -> (B,), in [0, 1], without gradient.

    b and d are the smoothed losses of the biased and the debiased network (tables (N,)). Each is divided by its maximum
    over the sample's class in the whole training set, whose labels are `y_all` (N,), as in the official code of LfF and
    Disen.
    """
    relative = []
    for table in (biased, debiased):
        maxima = class_maxima(table, y_all, n_classes)
        relative.append(torch.nan_to_num(table)[index] / maxima[y_all[index]].clamp_min(1e-30))
    return (relative[0] / (relative[0] + relative[1] + 1e-8)).detach()


def difficulty_tables(y: Tensor) -> dict[str, Tensor]:
    """The first tables of `difficulty`: one row of nan for each of the labels (N,)."""
    empty = torch.full(y.shape, float("nan"), device=y.device)
    return {"biased_loss": empty, "debiased_loss": empty.clone()}


def difficulty(
    state: dict[str, Tensor], batch: Any, biased: Tensor, debiased: Tensor, *, smoothing: float, n_classes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """LfF's weights W (B,) of a batch, and its tables, updated with the losses of both networks, (B,) each."""
    tables = {
        "biased_loss": smoothed(state["biased_loss"], batch.index, biased, smoothing),
        "debiased_loss": smoothed(state["debiased_loss"], batch.index, debiased, smoothing),
    }
    b, d = tables["biased_loss"], tables["debiased_loss"]
    return relative_difficulty(b, d, batch.index, batch.y_all, n_classes), tables


def difficulty_of_all(tables: dict[str, Tensor], y: Tensor, n_classes: int) -> Tensor:
    """LfF's weight W of every sample, (N,), for labels y (N,)."""
    everyone = torch.arange(len(y), device=y.device)
    return relative_difficulty(tables["biased_loss"], tables["debiased_loss"], everyone, y, n_classes)


def group_dro(
    loss: Tensor, group: Tensor, q: Tensor, *, step_size: float, adjustment: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """One step of GroupDRO.

    Args:
        loss: per-sample losses (B,).
        group: their groups, int64 (B,).
        q: the weights of the groups, (G,).
        step_size: of the update of q.
        adjustment: (G,) or one number, C / sqrt(N_g) in the authors' code. It changes only q, not the loss.

    Returns:
        The loss sum_g q_g L_g, and the new q, proportional to q_g exp(step_size (L_g + adjustment_g)). L_g is the mean
        loss of the group's samples in the batch. It is 0 for a group that has none; without an adjustment, the weight
        of such a group is only renormalised.
    """
    members = F.one_hot(group, len(q)).to(loss.dtype)  # (B, G)
    # a sum: autocast would round a product of matrices to 8 bits
    mean = (loss[:, None] * members).sum(0) / members.sum(0).clamp_min(1)
    q = q * torch.exp(step_size * (mean.detach() + adjustment))
    q = q / q.sum()
    return (q * mean).sum(), q


def balancing(group: Tensor) -> Tensor:
    """Sampling weights, float64 (N,), that draw all groups equally often; `group` is int64 (N,)."""
    return (1 / torch.bincount(group)[group]).double()


def group_dro_state(group: Tensor, n_groups: int, adjustment: float = 0.0) -> dict[str, Tensor]:
    """The first state of `group_dro`: equal weights q (G,) of the groups that have samples, and C / sqrt(N_g), (G,)."""
    counts = torch.bincount(group, minlength=n_groups)
    there = (counts > 0).float()
    return {"q": there / there.sum(), "adjustment": adjustment * there / counts.clamp_min(1).sqrt()}


def scale_gradient(logits: Tensor, y: Tensor) -> Tensor:
    """EIIL's g: d CE(s logits, y) / ds at s = 1, in closed form, E_p[f] - f_y: logits (B, C), y (B,) -> float64 (B,).

    It is computed as a sum of differences, because for confident samples the two terms differ only in the last digits.
    """
    logits = logits.double()
    return (logits.softmax(1) * (logits - logits.gather(1, y[:, None]))).sum(1)
