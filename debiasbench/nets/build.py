"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net
from debiasbench.nets.pretrained import weights_sha256
from debiasbench.nets.resnet import ResNet
from debiasbench.nets.small import MLP, Linear, SimConv1, SimConv2
from debiasbench.parameters import suggestion


def _transformer(_: tuple[int, ...], n_classes: int, pretrained: str) -> Net:
    from debiasbench.nets.transformer import Transformer

    return Transformer(n_classes, pretrained)


NETS: dict[str, Callable[[tuple[int, ...], int, str], Net]] = {
    "simconv1": lambda shape, n_classes, _: SimConv1(shape, n_classes),
    "simconv2": lambda shape, n_classes, _: SimConv2(shape, n_classes),
    "simconv2-pool3": lambda shape, n_classes, _: SimConv2(shape, n_classes, pool=3),
    "mlp": lambda shape, n_classes, _: MLP(shape, n_classes),
    "linear": lambda shape, n_classes, _: Linear(shape, n_classes),
    "mlp16": lambda shape, n_classes, _: MLP(shape, n_classes, width=16),  # Disen's
    "resnet18": lambda _, n_classes, pretrained: ResNet(n_classes, depth=18, pretrained=pretrained),
    "resnet50": lambda _, n_classes, pretrained: ResNet(n_classes, depth=50, pretrained=pretrained),
    "resnet18-small": lambda _, n_classes, pretrained: ResNet(
        n_classes, depth=18, pretrained=pretrained, small_images=True
    ),
    "transformer": _transformer,
}
TAKES = {"transformer": ("text",), "linear": ("features",), "mlp": ("images", "features")}  # others: images
PRETRAINED_NETS = ("resnet18", "resnet50", "transformer")


def check_net(name: str, pretrained: str = "none", *, inputs: str | None = None) -> None:
    """Refuse a network that does not exist or is not made for such inputs, and weights that cannot be had.

    ImageNet weights are downloaded if need be.
    """
    if name not in NETS:
        raise BenchmarkError(f"Unknown net '{name}'.{suggestion(name, NETS)} Known: {', '.join(NETS)}.")
    if inputs is not None and inputs not in TAKES.get(name, ("images",)):
        fitting = [net for net in NETS if inputs in TAKES.get(net, ("images",))]
        raise BenchmarkError(f"The net {name} does not take {inputs}. Allowed: {', '.join(fitting)}.")
    if pretrained != "none":
        if name not in PRETRAINED_NETS:
            raise BenchmarkError(
                f"There are no pretrained weights for the net {name}: give pretrained=none. "
                f"Got pretrained={pretrained}; nets with weights: {', '.join(PRETRAINED_NETS)}."
            )
        weights_sha256(name, pretrained)


def build_net(
    name: str, shape: tuple[int, ...], n_classes: int, *, pretrained: str = "none", recompute: bool = False
) -> Net:
    """A new network for samples of `shape`, (C, H, W) or (D,); its start is drawn from torch's global generator.

    `pretrained` is "none", "imagenet" or the path of a state dict in torchvision's format. `recompute` is for ResNets.
    """
    check_net(name)
    net = NETS[name](shape, n_classes, pretrained)
    if isinstance(net, ResNet):
        net.recompute = recompute
    net.input_shape, net.n_classes = shape, n_classes
    return net
