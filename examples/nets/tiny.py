"""Tiny: two convolutions, and the average over the image."""

from torch import Tensor, nn

from debiasbench.nets.own import Net


class Tiny(Net):
    """A convolutional body, whose average over the image gives the features, and a linear head."""

    name = "tiny"  # as in net=tiny

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.n_features = 32
        self.head = nn.Linear(32, n_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))
