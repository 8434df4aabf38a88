"""Networks by name: those of the suite, of libraries, and in files of your own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net
from debiasbench.nets.library import check_model, parts_of
from debiasbench.nets.own import own_net, registry
from debiasbench.nets.pretrained import needed_weights, weights_sha256
from debiasbench.nets.resnet import ResNet
from debiasbench.nets.small import MLP, Linear, SimConv1, SimConv2
from debiasbench.nets.split import Split
from debiasbench.plugins import MODELS, unknown


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


def check_net(name: str, pretrained: str = "none", *, inputs: str | None = None, fetch: bool = True) -> None:
    """Refuse a network that does not exist or does not take these inputs, and weights that are not available.

    Args:
        name: as in `build_net`.
        pretrained: as in `build_net`. ImageNet weights are downloaded if necessary.
        inputs: "images", "text" or "features"; None: any.
        fetch: False: do not check weights that would have to be downloaded.

    Raises:
        BenchmarkError: the reason, and the alternatives.
    """
    registry.check()
    of_library, is_own = parts_of(name), own_net(name) is not None
    if of_library is not None:
        check_model(*of_library)
    elif not is_own and name not in NETS:
        raise unknown(name, "net", [*NETS, *registry.classes(), *MODELS])
    taken = sorted(registry.classes().keys() & NETS.keys())
    if taken:
        raise BenchmarkError(f"The suite has a net '{taken[0]}' already: give yours another name.")
    takes = ("images", "features") if is_own else TAKES.get(name, ("images",))  # an own network is told the shape
    if inputs is not None and inputs not in takes:
        fitting = [net for net in NETS if inputs in TAKES.get(net, ("images",))]
        raise BenchmarkError(f"The net {name} does not take {inputs}. Allowed: {', '.join(fitting)}.")
    if pretrained != "none":
        if name not in PRETRAINED_NETS and of_library is None:
            raise BenchmarkError(
                f"There are no pretrained weights for the net {name}: give pretrained=none. "
                f"Got pretrained={pretrained}; nets with weights: {', '.join([*PRETRAINED_NETS, *MODELS])}."
            )
        if needed_weights(name, pretrained) is None or fetch:
            weights_sha256(name, pretrained)


def build_net(
    name: str, shape: tuple[int, ...], n_classes: int, *, pretrained: str = "none", recompute: bool = False
) -> Net:
    """Build a new network; its start weights are drawn from torch's global generator.

    Args:
        name: a network of the suite ("resnet18"), of a library ("timm:resnet26"), or of a file of your own.
        shape: shape of the samples, (C, H, W) or (D,).
        n_classes: width of its head.
        pretrained: "none", "imagenet", or the path of a state dict in the library's format; for a transformer, the
            encoder.
        recompute: whether ResNets recompute their blocks in the backward pass.

    Raises:
        BenchmarkError: the network does not exist, or its weights are not available.
    """
    check_net(name)
    of_library, own = parts_of(name), own_net(name)
    if of_library is not None:
        net: Net = Split(*of_library, shape, n_classes, pretrained)
    elif own is not None:
        net = own(shape, n_classes)  # the contract of own networks
    else:
        net = NETS[name](shape, n_classes, pretrained)
    if isinstance(net, ResNet):
        net.recompute = recompute
    net.input_shape, net.n_classes = shape, n_classes
    return net


ROUNDING = 1e-4  # relative, between two ways to compute the same logits


@functools.lru_cache(maxsize=64)
def check_fits(name: str, shape: tuple[int, ...], n_classes: int, pretrained: str = "none") -> None:
    """Refuse a network that does not take samples of `shape`, (C, H, W) or (D,), or differs from its head on features.

    Two samples pass through a new network in eval mode, in the same memory layout as in training.

    Raises:
        BenchmarkError: what the network returns or how it fails.
    """
    check_made(name, lambda: build_net(name, shape, n_classes, pretrained=pretrained), shape, n_classes)


def check_made(name: str, make: Callable[[], Net], shape: tuple[int, ...], n_classes: int) -> None:
    """Like `check_fits`, for the network that `make` builds."""
    size = " x ".join(map(str, shape))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            net = make().eval()
            layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
            x = torch.rand(2, *shape).contiguous(memory_format=layout)
            problem = _problem(net.to(memory_format=layout), x, n_classes)
        except BenchmarkError:
            raise
        except Exception as error:  # a user's network can raise anything
            said = str(error).strip().partition("\n")[0] or "no message"
            raise BenchmarkError(
                f"The net {name} does not take samples of {size} ({type(error).__name__}: {said}). Give another net, "
                "or another size of its input (size=224, say)."
            ) from None
    if problem:
        raise BenchmarkError(f"The net {name} cannot be used for samples of {size} and {n_classes} classes: {problem}.")


def _problem(net: Net, x: Tensor, n_classes: int) -> str:
    """What is wrong with a network and its output for two samples; "" if nothing is."""
    features = net.features(x)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        return f"features(x) must be of shape (B, D), here (2, D), but is {_shape(features)}"
    width, head = getattr(net, "n_features", None), net.head
    if width != features.shape[1]:
        return f"n_features must be the width of its features, {features.shape[1]}, but is {width}"
    if not isinstance(head, nn.Linear) or head.bias is None:
        has = "has no bias" if isinstance(head, nn.Linear) else f"is a {type(head).__name__}"
        return f"head must be torch.nn.Linear with a bias, which methods read, but {has}"
    if head.in_features != width or head.out_features != n_classes:
        return f"head must be torch.nn.Linear({width}, {n_classes}), but is {head}"
    logits = net(x)
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        return f"its output must be of shape (2, {n_classes}) for two samples, but is {_shape(logits)}"
    for other in (head(features), *([net.as_whole(x)] if isinstance(net, Split) else [])):
        if not torch.allclose(logits, other, rtol=ROUNDING, atol=ROUNDING):
            return "its output is not head(features(x)), by which methods compute their scores"
    return ""


def _shape(found: object) -> str:
    return str(tuple(found.shape)) if isinstance(found, Tensor) else f"a {type(found).__name__}"
