"""A library's classification model as a network: its last linear layer is the head, whose input are the features."""

from __future__ import annotations

from torch import Tensor, nn

from debiasbench.nets.base import Net
from debiasbench.nets.library import last_linear, new_model
from debiasbench.nets.pretrained import pretrained_weights


class Split(Net):
    """A model of torchvision or timm without its last linear layer, and a new head.

    Models of timm are built for the channels of the data; with pretrained weights, for three. Everything before the
    last layer, including dropout, is part of the features.
    """

    def __init__(self, library: str, model: str, shape: tuple[int, ...], n_classes: int, pretrained: str) -> None:
        super().__init__()
        body = new_model(library, model, shape[0] if pretrained == "none" else 3)
        self.place = last_linear(body) or ""
        last = body.get_submodule(self.place)
        assert isinstance(last, nn.Linear)
        body.set_submodule(self.place, nn.Identity())
        if pretrained != "none":
            weights = pretrained_weights(f"{library}:{model}", pretrained)
            body.load_state_dict({key: value for key, value in weights.items() if not key.startswith(f"{self.place}.")})
        self.body, self.n_features = body, last.in_features
        self.head = nn.Linear(self.n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.body(x)

    def as_whole(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) with the head put back as the last layer: equal to `forward` if the split is right."""
        self.body.set_submodule(self.place, self.head)
        try:
            return self.body(x)
        finally:
            self.body.set_submodule(self.place, nn.Identity())
