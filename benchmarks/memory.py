"""Peak memory of a ResNet's training step, one process per variant: `python benchmarks/memory.py [--device cuda]`.

Prints JSON: MiB per image of the batch (from the difference between two batch sizes, so that constant memory cancels
out) and for the rest. The variants are the plain network and one with recomputed blocks; on a GPU also both with bf16.
"""

import argparse
import itertools
import json
import subprocess
import sys

STEP = """
import resource, sys, torch
from debiasbench.nets.build import build_net
from debiasbench.recipe import Recipe
net_name, device, size, batch, recompute, precision = sys.argv[1:]
device = torch.device(device)
recipe = Recipe(net=net_name, precision=precision)
net = build_net(net_name, (3, int(size), int(size)), 2, recompute=recompute == "True")
net = net.to(device, memory_format=torch.channels_last).train()
optimizer = torch.optim.Adam(net.parameters(), fused=True)
for _ in range(2):
    x = torch.rand(int(batch), 3, int(size), int(size), device=device).to(memory_format=torch.channels_last)
    with recipe.autocast(device):
        loss = net(x).float().logsumexp(1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
if device.type == "cuda":
    print(torch.cuda.max_memory_allocated(device) / 2**20)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def peak(net, device, size, batch, recompute, precision):
    """Peak memory of a variant, in MiB."""
    arguments = [net, device, size, batch, recompute, precision]
    command = [sys.executable, "-c", STEP, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.split()[-1])


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs=2, default=(4, 12))
    options = parser.parse_args()
    few, many = options.batches
    result = {"net": options.net, "size": options.size, "device": options.device}
    precisions = ("fp32", "bf16") if options.device != "cpu" else ("fp32",)
    for recompute, precision in itertools.product((False, True), precisions):
        low, high = (
            peak(options.net, options.device, options.size, batch, recompute, precision) for batch in (few, many)
        )
        each = (high - low) / (many - few)
        name = precision + (" recomputed" if recompute else "")
        result[name] = {"MiB_an_image": round(each, 1), "MiB_else": round(low - few * each)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
