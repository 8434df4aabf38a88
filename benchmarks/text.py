"""The cost of padding and tokenising: `python benchmarks/text.py --encoder FOLDER --root FOLDER`.

FOLDER of `--root` contains civilcomments_v1.0/all_data_with_identities.csv. Prints JSON: seconds per 1,000 comments of
training and of evaluation, with all padded to 300 tokens (as WILDS and JTT do) and with our padding; and of
tokenising, one comment at a time at each read (as WILDS does), and once in blocks.

`--rows N` measures the peak memory of building N comments instead: those of the file, repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from debiasbench.data.encoders import tokenizer_of
from debiasbench.datasets import registry
from debiasbench.losses import cross_entropy
from debiasbench.nets.build import build_net

FILE = "civilcomments_v1.0/all_data_with_identities.csv"


def seconds(function, n):
    """Seconds per 1,000 comments; the function processes n."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1000 / n


def measure(options):
    """Measure the seconds per 1,000 comments in one run."""
    dataset = registry.get("civilcomments")[0](encoder=options.encoder, root=options.root)
    splits = dataset.build(Path()).to(torch.device(options.device))
    recipe = dataset.own_recipe
    train, device = splits.train, splits.train.y.device
    net = build_net(recipe.net, (300,), 2, pretrained=options.encoder).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-5, fused=True)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: options.comments].to(device)
    plan = list(order.split(recipe.batch_size))

    def steps(widths):
        net.train()
        for index, width in zip(plan, widths, strict=False):
            with recipe.autocast(device):
                loss = cross_entropy(net(train.x[index, :width]), train.y[index]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def passes(batches, widths):
        net.eval()
        with torch.no_grad(), recipe.autocast(device):
            for rows, width in zip(batches, widths, strict=True):
                net(train.x[rows, :width])

    for width in sorted({*train.widths(plan), 300}):  # the first use of a length takes longer
        steps([width])
    long = [300] * len(plan)
    in_order = list(order.split(100))
    by_length = list(order[train.length[order.cpu()].argsort().to(device)].split(100))
    table = pd.read_csv(Path(options.root) / FILE, dtype={"comment_text": str}, keep_default_na=False)
    texts = table["comment_text"][: options.comments]
    tokenizer = tokenizer_of(options.encoder, 300)
    one = {"truncation": True, "max_length": 300, "padding": "max_length", "return_tensors": "pt"}
    return {
        "training, padded to 300": seconds(lambda: steps(long), len(order)),
        "training, padded to the batch": seconds(lambda: steps(train.widths(plan)), len(order)),
        "evaluation, padded to 300": seconds(lambda: passes(in_order, [300] * len(in_order)), len(order)),
        "evaluation, padded to the batch": seconds(lambda: passes(in_order, train.widths(in_order)), len(order)),
        "evaluation, like lengths together": seconds(lambda: passes(by_length, train.widths(by_length)), len(order)),
        "tokens, one comment at a time": seconds(lambda: [tokenizer(text, **one) for text in texts], len(texts)),
        "tokens, in blocks": seconds(lambda: tokenizer(list(texts), truncation=True, max_length=300), len(texts)),
        "tokens a comment, mean": float(train.length.double().mean()),
        "comments": len(order),
    }


BUILD = """
import resource, sys, time
from pathlib import Path
from debiasbench.datasets import registry
started = time.perf_counter()
splits = registry.get("civilcomments")[0](encoder=sys.argv[1], root=sys.argv[2]).build(Path())
splits.fingerprint()
status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
mapped = [int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("RssFile")]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, time.perf_counter() - started, *mapped)
"""


def memory(options):
    """Peak memory of a build that makes the tokens, and of one that finds them in the cache."""
    table = pd.read_csv(Path(options.root) / FILE, index_col=0, dtype={"comment_text": str}, keep_default_na=False)
    table = table.iloc[[place % len(table) for place in range(options.rows)]].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.parent.mkdir()
        table.to_csv(path)
        environment = dict(os.environ, DEBIASBENCH_CACHE=str(Path(folder) / "cache"))
        command = [sys.executable, "-c", BUILD, options.encoder, folder]
        result = {"rows": options.rows, "file_mb": path.stat().st_size / 1e6}
        for name in ("tokens made", "tokens found"):
            told = subprocess.run(
                command, check=True, capture_output=True, encoding="utf-8", env=environment
            ).stdout.split()
            result[name] = dict(zip(("peak_mib", "seconds", "mapped_files_mib"), map(float, told), strict=False))
    return result


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--comments", type=int, default=480)
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = memory(options) if options.rows else measure(options)
    print(json.dumps(result | {"torch": torch.__version__, "device": options.device}, indent=1))


if __name__ == "__main__":
    main()
