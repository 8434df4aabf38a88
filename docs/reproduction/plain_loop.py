"""Step 1 of PGD by plain PyTorch and torchvision, to hold the suite's against: `python plain_loop.py --help`.

Network, loss and loop are written out, with the settings of the official code. With `--images own` (the default),
nothing is the suite's: Colored MNIST is made anew from the four files of MNIST, and torchvision augments PIL images one
by one. An epoch then takes about 40 seconds on one CPU core. With `--images suite`, images and augmentation are the
suite's, and an epoch takes about 10 seconds. Prints one JSON line per epoch, with accuracies in per cent; those of our
runs are in plain-loop.csv.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

PALETTE = [
    (220, 20, 60), (0, 128, 128), (253, 233, 16), (0, 149, 182), (237, 145, 33),
    (145, 30, 188), (70, 240, 240), (250, 197, 187), (210, 245, 60), (128, 0, 0),
]  # fmt: skip
AUGMENT = transforms.Compose(
    [
        transforms.ToPILImage(),
        transforms.RandomResizedCrop(28, scale=(0.9, 1.1)),
        transforms.ColorJitter(saturation=0.05, hue=0.05),
        transforms.RandomRotation(10, interpolation=InterpolationMode.NEAREST),
        transforms.ToTensor(),
    ]
)


def read(folder, name, header):
    """One file of MNIST as uint8, without its header."""
    data = gzip.decompress((folder / f"{name}.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).copy())


def coloured(images, y, rho):
    """Images (N, 3, 28, 28) in [0, 1], of the label's colour or, with probability rho, of another one; and colours."""
    other = (y + torch.randint(1, 10, y.shape)) % 10
    colour = torch.where(torch.rand(len(y)) < rho, other, y)
    rgb = torch.tensor(PALETTE)[colour] / 255 + 1e-4 * torch.randn(len(y), 3)
    return (images.view(-1, 1, 28, 28) / 255 * rgb[:, :, None, None]).clamp(0, 1), y, colour


def new_net():
    """SimConv-1."""
    return nn.Sequential(
        *[nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.AvgPool2d(2)],
        *[nn.Conv2d(8, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(), nn.AvgPool2d(2)],
        *[nn.Conv2d(32, 64, 4), nn.ReLU(), nn.BatchNorm2d(64), nn.Dropout(), nn.AdaptiveAvgPool2d(1)],
        *[nn.Flatten(), nn.Linear(64, 10)],
    )


def gce(logits, y, alpha):
    """The official form: cross-entropy with the factor alpha p^alpha, held constant."""
    p = logits.softmax(1).gather(1, y[:, None])[:, 0].detach()
    return (alpha * p**alpha * F.cross_entropy(logits, y, reduction="none")).mean()


def own_images(folder, rho):
    """Training and test images, each as (x, y, colour); and what augments a batch of training images."""
    images = read(folder, "train-images-idx3-ubyte", 16).view(-1, 28, 28)
    parts = coloured(images, read(folder, "train-labels-idx1-ubyte", 8).long(), rho)
    images = read(folder, "t10k-images-idx3-ubyte", 16).view(-1, 28, 28)
    test = coloured(images, read(folder, "t10k-labels-idx1-ubyte", 8).long(), 0.9)
    return [part[:54_000] for part in parts], test, lambda x: torch.stack([AUGMENT(image) for image in x])


def suite_images(folder, rho):
    """The same of the suite."""
    from debiasbench.data.augment import augmented
    from debiasbench.datasets import registry

    dataset = registry.get("cmnist")[0](rho=rho)
    splits = dataset.build(folder.parent.parent)
    generator = torch.Generator().manual_seed(0)
    train, test = splits.train, splits.test
    return (
        (train.x, train.y, train.bias[:, 0]), (test.x / 255, test.y, test.bias[:, 0]),
        lambda x: augmented(x, dataset.recipe, generator),
    )  # fmt: skip


def main():
    """Train, and print a line per epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="folder of MNIST's four .gz files, MNIST/raw")
    parser.add_argument("--images", choices=("own", "suite"), default="own")
    parser.add_argument("--rho", type=float, default=0.05)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    make = own_images if options.images == "own" else suite_images
    (x, y, colour), (test_x, test_y, _), augment = make(options.mnist, options.rho)
    print(json.dumps({"conflicting": int((colour != y).sum())}), flush=True)
    net = new_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.1)
    for epoch in range(1, options.epochs + 1):
        net.train()
        for rows in torch.randperm(len(x)).split(128):
            batch = augment(x[rows])
            optimizer.zero_grad()
            gce(net(batch), y[rows], options.alpha).backward()
            optimizer.step()
        schedule.step()
        net.eval()
        with torch.no_grad():
            predicted = torch.cat([net(part).argmax(1) for part in test_x.split(500)])
        accuracy = 100 * (predicted == test_y).double().mean().item()
        print(json.dumps({"epoch": epoch, "test": round(accuracy, 2)}), flush=True)


if __name__ == "__main__":
    main()
