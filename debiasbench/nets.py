"""The networks of the benchmarks. Each has `.features(x) -> (B, D)`, `.n_features` (D) and a final `.head`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from debiasbench.errors import BenchmarkError
from debiasbench.parameters import nearest


class HalfDropout(nn.Module):
    """Element-wise dropout with p = 0.5, whose mask is made of random bits.

    Drawing one bit a value instead of one float makes the mask almost free: with `nn.Dropout` it is half of a
    SimConv step on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero half of the values and double the others; in eval mode, x itself."""
        if not self.training:
            return x
        return x * half_mask(x)


_BIT_TABLES: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _bit_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, 8): row b holds the eight bits of byte b, as 0 or 2."""
    key = (device, dtype)
    if key not in _BIT_TABLES:
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        _BIT_TABLES[key] = (2 * bits).to(device, dtype)
    return _BIT_TABLES[key]


def half_mask(like: Tensor) -> Tensor:
    """A mask of zeros and twos, each with probability 1/2, in the shape and memory layout of `like`."""
    n_values = like.numel()
    words = torch.empty((n_values + 63) // 64, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None)  # the full range: 64 fair bits a word
    table = _bit_table(like.device, like.dtype)
    flat = table.index_select(0, words.view(torch.uint8).int()).view(-1)[:n_values]
    return flat.as_strided(like.shape, like.stride()) if _dense(like) else flat.view(like.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


class Net(nn.Module):
    """A network that is a body and a final head.

    Attributes:
        head: from features to logits; the identity in an encoder.
        n_features: D, the width of the head's input.
        input_shape, n_classes: what the network was built for.
    """

    head: nn.Module
    n_features: int
    input_shape: tuple[int, ...]
    n_classes: int

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes)."""
        return self.head(self.features(x))


class SimConv1(Net):
    """The paper's network for Colored MNIST (appendix B; equal in the official code): 38,210 parameters.

    Input (B, 3, 28, 28), no padding; spatial 28 -> 25 -> 12 -> 9 -> 4 -> 1. The third block has ReLU *before*
    batch normalisation, so features can be negative.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Conv2d(shape[0], 8, 4), nn.BatchNorm2d(8), nn.ReLU(), HalfDropout(), nn.AvgPool2d(2)],
            *[nn.Conv2d(8, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), HalfDropout(), nn.AvgPool2d(2)],
            *[nn.Conv2d(32, 64, 4), nn.ReLU(), nn.BatchNorm2d(64), HalfDropout()],
        )
        self.n_features = 64
        self.head = nn.Linear(64, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 28, 28) -> (B, 64)."""
        return self.body(x).mean((2, 3))  # adaptive pooling's CUDA gradient would not be deterministic


class MLP(Net):
    """Three hidden layers on flat pixels, as in the official LfF and Disen code.

    Their networks divide images that are already in [0, 1] by 255 once more; so does this one, as it is part of
    what they report.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, *, width: int = 100) -> None:
        super().__init__()
        n_inputs = shape[0] * shape[1] * shape[2]
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in [(n_inputs, 100), (100, 100), (100, width)]:
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.n_features = width
        self.head = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, width)."""
        return self.body(x.contiguous() / 255)


class ResNet(Net):
    """A torchvision ResNet with ImageNet's stem: body to the average pool, and a new linear head."""

    def __init__(self, n_classes: int, *, depth: int, pretrained: str) -> None:
        super().__init__()
        import torchvision

        name = f"ResNet{depth}"
        weights = getattr(torchvision.models, f"{name}_Weights").IMAGENET1K_V1 if pretrained == "imagenet" else None
        net = torchvision.models.get_model(name.lower(), weights=weights)
        if pretrained not in ("none", "imagenet"):
            net.load_state_dict(torch.load(pretrained, map_location="cpu", weights_only=True))
        self.n_features = net.fc.in_features
        net.fc = nn.Identity()
        self.body = net
        self.head = nn.Linear(self.n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self.body(x)


NETS: dict[str, Callable[[tuple[int, ...], int, str], Net]] = {
    "simconv1": lambda shape, n_classes, _: SimConv1(shape, n_classes),
    "mlp": lambda shape, n_classes, _: MLP(shape, n_classes),
    "mlp16": lambda shape, n_classes, _: MLP(shape, n_classes, width=16),  # Disen's
    "resnet18": lambda _, n_classes, pretrained: ResNet(n_classes, depth=18, pretrained=pretrained),
    "resnet50": lambda _, n_classes, pretrained: ResNet(n_classes, depth=50, pretrained=pretrained),
}


def check_net(name: str) -> None:
    """Refuse a network that does not exist."""
    if name not in NETS:
        raise BenchmarkError(f"Unknown net '{name}'.{nearest(name, NETS)} Known: {', '.join(NETS)}.")


def build_net(name: str, shape: tuple[int, ...], n_classes: int, *, pretrained: str = "none") -> Net:
    """A new network for samples of `shape` (C, H, W); its start is drawn from torch's global generator.

    `pretrained` is "none", "imagenet" or the path of a state dict in torchvision's format.
    """
    check_net(name)
    net = NETS[name](shape, n_classes, pretrained)
    net.input_shape, net.n_classes = shape, n_classes
    return net


def n_parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters())
