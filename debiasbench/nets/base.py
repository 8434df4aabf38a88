"""The base class of networks, a body and a head; and context managers that put networks in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class evaluating:  # noqa: N801 - reads as a statement: with evaluating(nets)
    """Context manager: puts networks in eval mode, and restores their modes at the end."""

    def __init__(self, nets: Any) -> None:
        self.nets = list(nets)

    def __enter__(self) -> None:
        self.modes = [net.training for net in self.nets]
        for net in self.nets:
            net.eval()

    def __exit__(self, *_: object) -> None:
        for net, mode in zip(self.nets, self.modes, strict=True):
            net.train(mode)


@contextmanager
def held(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Context manager: networks in eval mode, with parameters that get no gradient; restores both at the end."""
    nets = list(nets)
    trained = [parameter for net in nets for parameter in net.parameters() if parameter.requires_grad]
    with evaluating(nets):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def refuse_not_finite(weights: dict[str, Tensor]) -> None:
    """Refuse weights that training has broken; a network that starts with them cannot learn.

    Raises:
        ValueError: weights are NaN or infinite.
    """
    bad = {key: int(n) for key, value in weights.items() if (n := (~torch.isfinite(value)).sum())}
    if bad:
        key = next(iter(bad))
        raise ValueError(
            f"{len(bad)} of its entries hold NaN or infinite values, such as {key} ({bad[key]:,} of "
            f"{weights[key].numel():,})"
        )


class Learnable(nn.Module):
    """A learnt tensor in the form of a network: `nets.<name>.value`."""

    def __init__(self, shape: tuple[int, ...], start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full(shape, start))


def bound(predict: Any, nets: Mapping[str, nn.Module]) -> Callable[[Tensor], Tensor]:
    """A predictor as a function of x alone."""
    if isinstance(predict, nn.Module):
        return predict
    named = Nets(**nets)
    return lambda x: predict(named, x)


class Net(nn.Module):
    """A network with a body and a final head.

    Attributes:
        name: name of a network outside the suite, as in `net=NAME`.
        head: maps features to logits; the identity in an encoder.
        n_features: D, the width of the head's input.
        input_shape, n_classes: what the network was built for.
    """

    name: ClassVar[str] = ""
    head: nn.Module
    n_features: int
    input_shape: tuple[int, ...]
    n_classes: int

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), tokens (B, L) or features (B, D), whichever the network takes -> (B, n_features)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes)."""
        return self.head(self.features(x))


class Nets(SimpleNamespace):
    """The networks of a stage by name, as losses and predictors receive them: `nets.net`, or names from `task.train`.

    Attributes:
        net: the network of a stage that was given one network without a name.
        Others, by name: networks; heads, which are called in the same way but have no `features`; learnt tensors
            (`.value`).
    """

    net: Net

    def __getattr__(self, name: str) -> Any:
        """Called only for unknown names: says which networks exist."""
        raise AttributeError(f"there is no network '{name}'; there are {', '.join(sorted(vars(self)))}")
