"""ResNets."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from debiasbench.nets.base import Net
from debiasbench.nets.pretrained import pretrained_weights

HEAD = "fc."  # prefix of torchvision's last layer, whose weights are never used


class ResNet(Net):
    """A torchvision ResNet: body up to the average pool, and a new linear head.

    `small_images=True` uses the usual CIFAR stem (3 x 3 convolution, no pooling) instead of the ImageNet stem (7 x 7
    with stride 2, pooling), with which the body reduces 32 x 32 pixels to one. `recompute` computes the residual blocks
    again in the backward pass instead of keeping their activations: about a third more time, much less memory.
    """

    recompute = False

    def __init__(self, n_classes: int, *, depth: int, pretrained: str, small_images: bool = False) -> None:
        super().__init__()
        import torchvision

        net = torchvision.models.get_model(f"resnet{depth}", weights=None)
        self.n_features = net.fc.in_features
        net.fc = nn.Identity()  # the head is new
        if pretrained != "none":
            weights = pretrained_weights(f"resnet{depth}", pretrained)
            net.load_state_dict({key: value for key, value in weights.items() if not key.startswith(HEAD)})
        if small_images:
            net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        self.body = net
        self.head = nn.Linear(self.n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        if not (self.recompute and self.training):
            return self.body(x)
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        for block in (*body.layer1, *body.layer2, *body.layer3, *body.layer4):
            contexts = functools.partial(_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return body.avgpool(x).flatten(1)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts for the forward pass and for its repetition in the backward pass."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep batch normalisation from counting the same batch twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr] # counts on
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
