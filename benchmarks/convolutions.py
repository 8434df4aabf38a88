"""The speed of SimConv-1's convolutions on a CPU, and of alternatives: `python benchmarks/convolutions.py`.

Prints JSON: for each variant, milliseconds of CPU time for a forward and backward pass of 128 images (the median of
rounds in which all variants take turns); for the convolutions alone, the fraction of the speed that one core reaches in
a matrix product; and an evaluation pass with batch normalisation folded into the convolutions.
"""

import argparse
import copy
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from debiasbench.losses import cross_entropy
from debiasbench.nets.build import build_net

SHAPE, BATCH = (3, 28, 28), 128
LAST, FIRST = torch.channels_last, torch.contiguous_format


class Unfolded(nn.Module):
    """A convolution as one matrix product."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        """Compute the same as the convolution."""
        size = self.conv.kernel_size[0]
        columns = F.unfold(x, size).transpose(1, 2)
        out = columns @ self.conv.weight.flatten(1).T + self.conv.bias
        side = x.shape[2] - size + 1
        return out.transpose(1, 2).unflatten(2, (side, side))


def unfolded(net):
    """A copy of the network with such convolutions."""
    net = copy.deepcopy(net)
    for name, layer in net.body.named_children():
        if isinstance(layer, nn.Conv2d):
            setattr(net.body, name, Unfolded(layer))
    return net


def folded(net):
    """A copy in eval mode, with its first two batch normalisations folded into the convolutions before them."""
    net = copy.deepcopy(net).eval()
    layers = list(net.body)
    for number, layer in enumerate(layers[1:], 1):
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[number - 1], nn.Conv2d):
            net.body[number - 1] = fuse_conv_bn_eval(layers[number - 1], layer)
            net.body[number] = nn.Identity()
    return net


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build_net("simconv1", SHAPE, 10)
    x, y = torch.rand(BATCH, *SHAPE), torch.randint(0, 10, (BATCH,))

    def step(network, layout, *, bf16=False, mkldnn=True):
        network, images = copy.deepcopy(network).to(memory_format=layout).train(), x.to(memory_format=layout)

        def run():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.backends.mkldnn.flags(enabled=mkldnn):
                loss = cross_entropy(network(images), y).mean()
            loss.backward()

        return run

    def passes(network):
        network, images = network.eval().to(memory_format=LAST), torch.rand(500, *SHAPE).to(memory_format=LAST)

        def run():
            with torch.no_grad():
                network(images)

        return run

    convolutions = [layer for layer in net.body if isinstance(layer, nn.Conv2d)]
    inputs = []
    for layer, side in zip(convolutions, (28, 12, 4), strict=True):
        images = torch.rand(BATCH, layer.in_channels, side, side).to(memory_format=LAST)
        inputs.append(images.requires_grad_(layer.in_channels > 3))

    def convolve():
        for layer, images in zip(convolutions, inputs, strict=True):
            layer(images).sum().backward()

    square = torch.rand(1024, 1024)
    variants = {
        "as it is (channels last)": step(net, LAST), "channels first": step(net, FIRST),
        "without oneDNN": step(net, LAST, mkldnn=False), "bf16 autocast": step(net, LAST, bf16=True),
        "convolutions as products of matrices": step(unfolded(net), FIRST),
        "the convolutions alone": convolve, "product of matrices": lambda: square @ square,
        "evaluation of 500": passes(copy.deepcopy(net)), "evaluation of 500, folded": passes(folded(net)),
    }  # fmt: skip
    taken = {name: [] for name in variants}
    for number in range(options.rounds + 2):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number > 1:
                taken[name].append(1000 * (time.process_time() - started))
    milliseconds = {name: statistics.median(values) for name, values in taken.items()}
    n_products = 0
    for layer, images in zip(convolutions, inputs, strict=True):
        side = images.shape[2] - layer.kernel_size[0] + 1
        ways = 3 if images.requires_grad else 2  # forward; gradient of the weight; and of the input if it needs one
        n_products += ways * BATCH * side**2 * layer.weight.numel()
    reached = {
        "convolutions": 2 * n_products / milliseconds["the convolutions alone"] / 1e6,
        "product of matrices": 2 * 1024**3 / milliseconds["product of matrices"] / 1e6,
    }
    result = {
        "device": f"cpu ({platform.machine()}), one thread", "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__, "ms": {name: round(value, 2) for name, value in milliseconds.items()},
        "gigaflops": {name: round(value, 1) for name, value in reached.items()},
        "fraction_reached": round(reached["convolutions"] / reached["product of matrices"], 2),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
