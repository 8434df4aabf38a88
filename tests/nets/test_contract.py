"""The contract suite of networks: the example passes, and each check tells what breaks it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from debiasbench.cli import main
from debiasbench.nets.own import Net, registry
from debiasbench.testing import (
    NET_CHECKS,
    check_net_declaration,
    check_net_follows_the_seed,
    check_net_is_its_state,
    check_net_learns,
    check_net_looks_at_each_sample_alone,
    check_net_takes_samples,
    examine_net,
)

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "nets"


class Honest(Net):
    """A small network of images; the subclasses break a rule each."""

    name = "honest"

    def __init__(self, shape, n_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(shape[0], 6, 5, stride=4), nn.BatchNorm2d(6), nn.ReLU())
        self.n_features = 6
        self.head = nn.Linear(6, n_classes)

    def features(self, x):
        return self.body(x).mean((2, 3))


class OfFeatures(Net):
    """A network of feature vectors."""

    name = "of-features"

    def __init__(self, shape, n_classes):
        super().__init__()
        (self.n_features,) = shape
        self.head = nn.Linear(self.n_features, n_classes)

    def features(self, x):
        return x


class Loud(Honest):
    """Its name is in upper case."""

    name = "LOUD"


class Wide(Honest):
    """Its head has a class too many."""

    name = "wide"

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        self.head = nn.Linear(6, n_classes + 1)


class Raises(Honest):
    """It cannot be made."""

    name = "raises"

    def __init__(self, shape, n_classes):
        raise RuntimeError("no such thing")


class Unseeded(Honest):
    """Its start is drawn elsewhere."""

    name = "unseeded"

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        with torch.no_grad():
            self.head.bias += float(np.random.default_rng().random())


class Fixed(Honest):
    """Its start is always the same."""

    name = "fixed"

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


class Mixes(Honest):
    """It takes the mean of the batch away, in eval mode too."""

    name = "mixes"

    def features(self, x):
        features = super().features(x)
        return features - features.mean(0)


class Drops(Honest):
    """Its dropout never ends."""

    name = "drops"

    def features(self, x):
        return nn.functional.dropout(super().features(x), training=True)


class Counts(Honest):
    """How often it has trained is in no buffer."""

    name = "counts"
    n_batches = 0

    def features(self, x):
        self.n_batches += self.training
        return super().features(x) * (1 + self.n_batches)


class Remembers(Honest):
    """What it keeps is not in its state_dict."""

    name = "remembers"

    def __init__(self, shape, n_classes):
        super().__init__(shape, n_classes)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def features(self, x):
        features = super().features(x)
        if self.training:
            self.mean = features.detach().mean(0)
        return features - self.mean


class Detached(Honest):
    """Nothing below its head learns."""

    name = "detached"

    def features(self, x):
        return super().features(x).detach()


@pytest.mark.parametrize("check", NET_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("cls", [Honest, OfFeatures], ids=lambda cls: cls.name)
def test_good_networks_pass(cls, check):
    check(cls)


@pytest.mark.parametrize(
    ("check", "cls", "said"),
    [
        (check_net_declaration, Loud, "needs a name in lower case"),
        (
            check_net_takes_samples,
            Wide,
            r"(?s)3 x 28 x 28.*head must be torch\.nn\.Linear\(6, 4\).*224 x 224.*\n.*of 64 ",
        ),
        (check_net_takes_samples, Raises, "RuntimeError: no such thing"),
        (check_net_follows_the_seed, Unseeded, "two networks of one seed differ"),
        (check_net_follows_the_seed, Fixed, "networks of two seeds are equal"),
        (check_net_looks_at_each_sample_alone, Mixes, "depend on the others of its batch"),
        (check_net_takes_samples, Drops, r"its output is not head\(features\(x\)\)"),
        (check_net_is_its_state, Counts, "gives other logits: keep all that it learns in parameters and buffers"),
        (check_net_is_its_state, Remembers, "gives other logits"),
        (check_net_learns, Detached, "no parameter of its body has a gradient"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_network_that_breaks_a_rule_is_told(check, cls, said):
    with pytest.raises(AssertionError, match=said):
        check(cls)


def test_all_checks_are_examined_and_moved_no_generator():
    before = torch.get_rng_state()
    found = list(examine_net(Honest))
    assert [one.outcome for one in found] == ["passed"] * len(NET_CHECKS)
    assert all(one.protects for one in found)
    assert torch.equal(before, torch.get_rng_state())
    assert [one.outcome for one in examine_net(Raises)].count("failed") == len(NET_CHECKS) - 1


def test_the_command_tests_networks(own_files, capsys):
    own_files(tiny=(EXAMPLES / "tiny.py").read_text(encoding="utf-8"), broken="import nothing_of_this_name")
    name = next(iter(registry.classes()))
    assert main(["test", name]) == 0
    assert f"{len(NET_CHECKS)} checks: {len(NET_CHECKS)} passed." in capsys.readouterr().out
    for given, said in (
        (f"{name}:width=3", "A net has no parameters"),
        ("broken", "The file of net 'broken' could not be imported: ModuleNotFoundError"),
        ("nosuch", "Unknown method 'nosuch'"),
    ):
        assert main(["test", given]) == 2
        assert said in capsys.readouterr().err
    assert "debiasbench.nets.own.tiny" in sys.modules
