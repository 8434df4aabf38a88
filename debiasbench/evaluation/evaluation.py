"""Evaluation of predictors on the splits of a dataset: logits are computed once, and every metric from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from debiasbench.data.augment import to_input
from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.evaluation.metrics import (
    NAN,
    accuracies,
    adjusted_accuracy,
    mean_or_nan,
    overlapping,
    worst_of_proxies,
)
from debiasbench.evaluation.own import own_metrics
from debiasbench.evaluation.selection import WORST_PROXY
from debiasbench.nets.base import evaluating
from debiasbench.recipe import Recipe
from debiasbench.samples import INPUTS, Samples, Splits

LOGITS = "The predictor must return logits (N, C)"
PROXIES = "proxy= must give each validation sample one whole number in 0..65535"


@dataclass(frozen=True)
class Row:
    """Metrics of one evaluation on validation and on test, and the number of correct predictions per class."""

    valid: dict[str, float]
    test: dict[str, float]
    correct_by_class: dict[str, tuple[int, ...]]  # split -> (C,)


class Evaluation:
    """Evaluates predictors on the splits of one dataset."""

    def __init__(self, dataset: Dataset, splits: Splits, *, batch_size: int | None = None) -> None:
        large = splits.train.x.dtype == INPUTS["text"] or splits.train.x[0].numel() > 3 * 64 * 64
        self.dataset, self.splits, self.batch_size = dataset, splits, batch_size or (100 if large else 500)
        self._columns = {
            name: (samples.y.cpu().numpy(), samples.bias.cpu().numpy(), samples.conflicting.cpu().numpy())
            for name, samples in splits.named().items()
        }

    def logits(
        self, predict: Callable[[Tensor], Tensor], nets: Iterable[nn.Module], samples: Samples, recipe: Recipe
    ) -> Tensor:
        """Logits of all samples, (N, C), on the device: in eval mode, without augmentation."""
        nets = list(nets)
        buffers = [(buffer, buffer._version) for net in nets for buffer in net.buffers()]
        device = self.splits.test.y.device
        with torch.no_grad(), evaluating(nets), recipe.autocast(device), recipe.tf32(device):
            logits = samples.map(lambda _, __, x: predict(to_input(x, recipe)), self.batch_size, LOGITS).float()
        if any(buffer._version != version for buffer, version in buffers):
            raise BenchmarkError(
                "The predictor changed a buffer of a network (batch statistics?) while it was evaluated: validation "
                "and test images must leave no trace. Let it put no network into train mode."
            )
        if logits.shape != (len(samples), self.dataset.n_classes):
            raise BenchmarkError(
                f"{LOGITS}, one row per image and one column per class: here "
                f"{(len(samples), self.dataset.n_classes)}. Got {tuple(logits.shape)}."
            )
        if not bool(torch.isfinite(logits).all()):
            raise DivergedError("The predictor returned logits that are not finite (nan or infinite).")
        return logits

    def proxies(
        self, function: Callable[[Tensor, Tensor], Tensor], nets: Iterable[nn.Module], recipe: Recipe
    ) -> NDArray[np.uint16]:
        """Apply `function(x, y) -> int64 (B,)` to all validation samples -> uint16 (N,), a kind 0..65535 for each."""
        valid = self.splits.valid
        with torch.no_grad(), evaluating(list(nets)):
            proxy = valid.map(
                lambda _, rows, x: function(to_input(x, recipe), valid.y[rows]),
                self.batch_size,
                PROXIES,
            )
        fits = proxy.shape == valid.y.shape and not (proxy.is_floating_point() or proxy.is_complex())
        if not fits or int(proxy.min()) < 0 or int(proxy.max()) > 65_535:
            raise BenchmarkError(f"{PROXIES}. Got {tuple(proxy.shape)}, {proxy.dtype}, for {len(valid)} samples.")
        return proxy.cpu().numpy().astype(np.uint16)

    def row(
        self,
        predict: Callable[[Tensor], Tensor],
        nets: Iterable[nn.Module],
        recipe: Recipe,
        proxies: NDArray[np.uint16] | None = None,
    ) -> Row:
        """Evaluate a predictor on validation and test; the rule worst_proxy needs `proxies` of validation samples."""
        nets, named = list(nets), self.splits.named()
        logits = {split: self.logits(predict, nets, named[split], recipe) for split in ("valid", "test")}
        metrics = {split: self.metrics(split, logits[split]) for split in logits}
        if proxies is not None:
            y = self._columns["valid"][0]
            correct = logits["valid"].argmax(1).cpu().numpy() == y
            worst = worst_of_proxies(correct, y, proxies)
            metrics["valid"] |= {} if worst is None else {WORST_PROXY: worst}
        return Row(**metrics, correct_by_class={split: self.correct_by_class(split, logits[split]) for split in logits})

    def metrics(self, split: str, logits: Tensor) -> dict[str, float]:
        """Compute every metric of one split from its logits (N, C)."""
        y, bias, conflict = self._columns[split]
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(y).to(logits.device)).item()
        correct = logits.argmax(1).cpu().numpy() == y
        groups = self._groups(split)
        own = own_metrics(split, logits, y, bias, conflict)
        if groups is not None:
            found = {"loss": loss, "n": float(len(y)), "acc_avg": mean_or_nan(correct)}
            return found | overlapping(correct, groups) | own
        unbiased = split == "test" and self.dataset.unbiased_test
        names = self.dataset.bias_names
        found = accuracies(correct, y, bias, bias_names=names, unbiased=unbiased, conflict=conflict)
        if "acc_adjusted" in self.dataset.headline:
            found["acc_adjusted"] = self._adjusted(self.groups(split, logits))
        return {"loss": loss} | found | own

    def correct_by_class(self, split: str, logits: Tensor) -> tuple[int, ...]:
        """The number of correct predictions per class, (C,)."""
        y, _, _ = self._columns[split]
        right = y[logits.argmax(1).cpu().numpy() == y]
        return tuple(np.bincount(right, minlength=self.dataset.n_classes).tolist())

    def groups(self, split: str, logits: Tensor) -> list[dict[str, Any]]:
        """Accuracy and size of every group of a split; groups by (label, bias) exist only for a single bias."""
        y, bias, _ = self._columns[split]
        correct = logits.argmax(1).cpu().numpy() == y
        groups = self._groups(split)
        if groups is not None:
            names = self.dataset.group_names
            return [
                {"group": name, "n": int(members.sum()), "acc": mean_or_nan(correct[members])}
                for name, members in zip(names, groups.T, strict=True)
            ]
        if len(self.dataset.bias_names) != 1:
            return []
        rows = []
        for label in range(self.dataset.n_classes):
            for value in range(self.dataset.n_bias_values):
                members = (y == label) & (bias[:, 0] == value)
                rows.append({"y": label, "bias": value, "n": int(members.sum()), "acc": mean_or_nan(correct[members])})
        return rows

    def _adjusted(self, groups: list[dict[str, Any]]) -> float:
        """The mean accuracy of the groups with samples, each weighted by its number of training samples."""
        y, bias, _ = self._columns["train"]
        there = [group for group in groups if group["n"]]
        counts = np.array([((y == group["y"]) & (bias[:, 0] == group["bias"])).sum() for group in there])
        return adjusted_accuracy(np.array([group["acc"] for group in there]), counts) if counts.sum() else NAN

    def _groups(self, split: str) -> np.ndarray | None:
        groups = self.splits.named()[split].groups
        return None if groups is None else groups.numpy()
