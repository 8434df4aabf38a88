"""The networks of the benchmarks. Each has `.features(x) -> (B, D)`, `.n_features` (D) and a final `.head`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from debiasbench.errors import BenchmarkError
from debiasbench.parameters import nearest


class HalfDropout(nn.Module):
    """Element-wise dropout with p = 0.5, whose mask is made of random bits.

    Drawing one bit a value instead of one float makes the mask almost free: with `nn.Dropout` it is half of a
    SimConv step on a CPU.

    inplace: write into the input, which nothing else may need (such as the output of batch normalisation).
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Zero half of the values and double the others; in eval mode, x itself."""
        if not self.training:
            return x
        return x.mul_(half_mask(x)) if self.inplace else x * half_mask(x)


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
    batch normalisation, so features can be negative. Dropout stands before ReLU instead of after it, which gives the
    same values (a mask is never negative) and lets both work in place: a tenth of a step.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Conv2d(shape[0], 8, 4), nn.BatchNorm2d(8), HalfDropout(True), nn.ReLU(True), nn.AvgPool2d(2)],
            *[nn.Conv2d(8, 32, 4), nn.BatchNorm2d(32), HalfDropout(True), nn.ReLU(True), nn.AvgPool2d(2)],
            *[nn.Conv2d(32, 64, 4), nn.ReLU(), nn.BatchNorm2d(64), HalfDropout()],
        )
        self.n_features = 64
        self.head = nn.Linear(64, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 28, 28) -> (B, 64)."""
        return self.body(x).mean((2, 3))  # adaptive pooling's CUDA gradient would not be deterministic


class SimConv2(Net):
    """The paper's network for Multi-bias MNIST (appendix B): 140,634 parameters.

    Input (B, 3, 56, 56). Pooling of 3 x 3 with stride 3, as printed, runs out of pixels: below 87 there is no
    output. `pool=2` (default here) pools 2 x 2 (56 -> 50 -> 25 -> 19 -> 9 -> 5 -> 3); `pool=3` pools 3 x 3 as
    printed, with padded convolutions that keep the size (56 -> 18 -> 6). Blocks 3 and 4 have ReLU *before* batch
    normalisation.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, *, pool: int = 2) -> None:
        super().__init__()
        padding: int | str = 0 if pool == 2 else "same"
        self.body = nn.Sequential(
            *[nn.Conv2d(shape[0], 8, 7, padding=padding), nn.BatchNorm2d(8), HalfDropout(True), nn.ReLU(True)],
            nn.AvgPool2d(pool),
            *[nn.Conv2d(8, 32, 7, padding=padding), nn.BatchNorm2d(32), HalfDropout(True), nn.ReLU(True)],
            nn.AvgPool2d(pool),
            *[nn.Conv2d(32, 64, 5, padding=padding), nn.ReLU(), nn.BatchNorm2d(64), HalfDropout()],
            *[nn.Conv2d(64, 128, 3, padding=padding), nn.ReLU(), nn.BatchNorm2d(128), HalfDropout()],
        )
        self.n_features = 128
        self.head = nn.Linear(128, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 56, 56) -> (B, 128)."""
        return self.body(x).mean((2, 3))


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
    """A torchvision ResNet: body to the average pool, and a new linear head.

    `small_images=True` has the stem that is usual for CIFAR (3 x 3 convolution, no pooling) instead of ImageNet's
    (7 x 7 with stride 2, pooling), after which 32 x 32 pixels are one. With `recompute` the residual blocks are
    computed again in the backward pass instead of being kept: about a third more time, much less memory.
    """

    recompute = False

    def __init__(self, n_classes: int, *, depth: int, pretrained: str, small_images: bool = False) -> None:
        super().__init__()
        import torchvision

        net = torchvision.models.get_model(f"resnet{depth}", weights=None)
        if pretrained != "none":
            net.load_state_dict(pretrained_weights(f"resnet{depth}", pretrained))
        if small_images:
            net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        self.n_features = net.fc.in_features
        net.fc = nn.Identity()
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
    """For the forward pass and for its repetition in the backward pass."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch normalisation that does not count the same batch twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr] # they do count
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches


def _transformer(_: tuple[int, ...], n_classes: int, pretrained: str) -> Net:
    from debiasbench.encoders import Transformer

    return Transformer(n_classes, pretrained)


NETS: dict[str, Callable[[tuple[int, ...], int, str], Net]] = {
    "simconv1": lambda shape, n_classes, _: SimConv1(shape, n_classes),
    "simconv2": lambda shape, n_classes, _: SimConv2(shape, n_classes),
    "simconv2-pool3": lambda shape, n_classes, _: SimConv2(shape, n_classes, pool=3),
    "mlp": lambda shape, n_classes, _: MLP(shape, n_classes),
    "mlp16": lambda shape, n_classes, _: MLP(shape, n_classes, width=16),  # Disen's
    "resnet18": lambda _, n_classes, pretrained: ResNet(n_classes, depth=18, pretrained=pretrained),
    "resnet50": lambda _, n_classes, pretrained: ResNet(n_classes, depth=50, pretrained=pretrained),
    "resnet18-small": lambda _, n_classes, pretrained: ResNet(
        n_classes, depth=18, pretrained=pretrained, small_images=True
    ),
    "transformer": _transformer,
}
PRETRAINED_NETS = ("resnet18", "resnet50", "transformer")


def check_net(name: str, pretrained: str = "none", *, inputs: str | None = None) -> None:
    """Refuse a network that does not exist or is not made for such inputs, and weights that cannot be had.

    ImageNet weights are downloaded if need be.
    """
    if name not in NETS:
        raise BenchmarkError(f"Unknown net '{name}'.{nearest(name, NETS)} Known: {', '.join(NETS)}.")
    if inputs is not None and (name == "transformer") != (inputs == "text"):
        fitting = [net for net in NETS if (net == "transformer") == (inputs == "text")]
        raise BenchmarkError(f"The net {name} does not take {inputs}. Allowed: {', '.join(fitting)}.")
    if pretrained != "none":
        if name not in PRETRAINED_NETS:
            raise BenchmarkError(
                f"There are no pretrained weights for the net {name}: give pretrained=none. "
                f"Got pretrained={pretrained}; nets with weights: {', '.join(PRETRAINED_NETS)}."
            )
        weights_sha256(name, pretrained)


@functools.lru_cache(maxsize=2)
def pretrained_weights(name: str, pretrained: str) -> dict[str, Tensor]:
    """The state dict of a torchvision network: "imagenet" (its IMAGENET1K_V1 weights) or the path of a file.

    Raises:
        BenchmarkError: the file cannot be read or is of another network; the download failed. Never a random start
            instead.
    """
    import torchvision

    expected = torchvision.models.get_model(name, weights=None).state_dict()
    if pretrained == "imagenet":
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
            _check_name(weights.url)  # what was there already is not checked by torchvision
            _check_shapes(state, expected)
        except Exception as error:  # no network, a wrong checksum, or a damaged file, which raises almost anything
            file = _hub_file(weights.url)
            raise BenchmarkError(
                f"The ImageNet weights of {name} could not be downloaded or read ({error}). Fetch {weights.url} "
                f"elsewhere and put it at {file}, or give pretrained=FILE, or pretrained=none for a random start."
            ) from None
        return state
    try:
        state = torch.load(pretrained, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no state dict makes torch raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchmarkError(
            f"pretrained={pretrained} cannot be read as a state dict ({reason}). Give a file made by torch.save of "
            "a torchvision network's state_dict(), or imagenet, or none."
        ) from None
    try:
        _check_shapes(state, expected)
    except ValueError as error:
        raise BenchmarkError(f"pretrained={pretrained} does not hold torchvision's {name}: {error}.") from None
    return state


def _hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _check_name(url: str) -> None:
    """The file that torchvision keeps of this address must have the checksum that its name begins to tell."""
    path = _hub_file(url)
    told = path.stem.rsplit("-", 1)[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(told):
        raise ValueError(f"{path} has the checksum {found[:8]}, not {told}: it is not the published file")


def _check_shapes(state: Any, expected: dict[str, Tensor]) -> None:
    state = state if isinstance(state, dict) else {}
    wrong = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    wrong += sorted(set(state) - set(expected))
    if wrong:
        raise ValueError(f"{len(wrong)} entries are missing, of another shape or not its own, such as {wrong[0]}")


@functools.lru_cache(maxsize=8)
def weights_sha256(name: str, pretrained: str) -> str:
    """What the pretrained weights are, whatever their file is called; "" for a random start."""
    if pretrained == "none":
        return ""
    digest = hashlib.sha256()
    if name == "transformer":
        from debiasbench.encoders import encoder_weights

        weights = encoder_weights(pretrained)  # not kept: each network reads its own
    else:
        weights = pretrained_weights(name, pretrained)
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def build_net(
    name: str, shape: tuple[int, ...], n_classes: int, *, pretrained: str = "none", recompute: bool = False
) -> Net:
    """A new network for samples of `shape` (C, H, W); its start is drawn from torch's global generator.

    `pretrained` is "none", "imagenet" or the path of a state dict in torchvision's format. `recompute` is for ResNets.
    """
    check_net(name)
    net = NETS[name](shape, n_classes, pretrained)
    if isinstance(net, ResNet):
        net.recompute = recompute
    net.input_shape, net.n_classes = shape, n_classes
    return net


def n_parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters())
