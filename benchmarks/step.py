"""Seconds of a training step and of PGD's scoring, as ratios in one run: `python benchmarks/step.py [--device cuda]`.

Prints JSON. It compares our dropout mask with torch's, channels-last with the default layout, the parts of a step,
PGD's step 2 with a plain evaluation pass, and the closed form with one backward pass per sample, as in the official
code.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from debiasbench.data.augment import augmented, to_input
from debiasbench.datasets import registry as datasets
from debiasbench.losses import cross_entropy
from debiasbench.methods import registry as methods
from debiasbench.nets.build import build_net
from debiasbench.nets.small import HalfDropout


def seconds(function, device, repeats):
    """Median seconds of a call, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def with_torch_dropout(net):
    """The same network with torch's own dropout."""
    for name, layer in net.body.named_children():
        if isinstance(layer, HalfDropout):
            setattr(net.body, name, nn.Dropout(0.5))
    return net


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    dataset = datasets.get("cmnist5k")[0]()
    samples = dataset.build(Path()).train.to(device)
    recipe, pgd = dataset.recipe, methods.get("pgd")[0]()
    x, y = samples.x[:128], samples.y[:128]
    generator = torch.Generator(device).manual_seed(0)
    net = build_net("simconv1", tuple(x.shape[1:]), 10).to(device, memory_format=torch.channels_last)
    plain = with_torch_dropout(build_net("simconv1", tuple(x.shape[1:]), 10)).to(device)
    images = augmented(x, recipe, generator)

    def step(network, inputs):
        cross_entropy(network.train()(inputs), y).mean().backward()

    def timed(function, repeats=options.repeats):
        return seconds(function, device, repeats)

    full = timed(lambda: step(net, augmented(x, recipe, generator)))
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "step_ms": 1000 * full,
        "augmentation_fraction_of_step": timed(lambda: augmented(x, recipe, generator)) / full,
    }
    ours = timed(lambda: step(net, images))
    plain = plain.to(memory_format=torch.channels_last)
    result["torch_dropout_over_ours"] = timed(lambda: step(plain, images)) / ours
    plain = plain.to(memory_format=torch.contiguous_format)
    result["torch_dropout_contiguous_over_ours"] = timed(lambda: step(plain, images.contiguous())) / ours

    net.eval()
    with torch.no_grad():
        chunks = list(zip(samples.x.split(500), samples.y.split(500), strict=True))
        passes = timed(lambda: [net(to_input(cx, recipe)) for cx, _ in chunks], 5)
        scoring = timed(lambda: [pgd.scores(net, to_input(cx, recipe), cy) for cx, cy in chunks], 5)
    result["pgd_scoring_over_evaluation_pass"] = scoring / passes

    few = to_input(samples.x[:200], recipe)

    def one_by_one():
        for row in range(len(few)):
            net.zero_grad()
            cross_entropy(net(few[row : row + 1]), samples.y[row : row + 1]).mean().backward()
            net.head.weight.grad.norm()

    with torch.no_grad():
        closed = timed(lambda: pgd.scores(net, few, samples.y[:200]), 5)
    result["per_sample_backward_over_closed_form"] = timed(one_by_one, 3) / closed
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
