"""Networks: their shapes and quirks, and the cheap dropout against what dropout must be."""

import hashlib
import pathlib
import shutil
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from debiasbench.data.augment import to_input
from debiasbench.errors import BenchmarkError
from debiasbench.nets import pretrained as nets
from debiasbench.nets.base import Nets, bound
from debiasbench.nets.build import NETS, build_net, check_net
from debiasbench.nets.small import MLP, HalfDropout, SimConv1, half_mask
from debiasbench.recipe import Recipe


@pytest.mark.parametrize("name", ["mlp", "mlp16"])
def test_mlp_divides_by_255_once_more(name):
    """Trap 15: white pixels reach the first linear layer of LfF's and Disen's network as 1/255."""
    net = build_net(name, (3, 28, 28), 10)
    seen = []
    first = next(module for module in net.modules() if isinstance(module, nn.Linear))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    x = to_input(images, Recipe())
    assert x.max() == 1
    net(x)
    assert seen[0].max().item() == pytest.approx(1 / 255, rel=1e-6)
    torch.testing.assert_close(seen[0], images.flatten(1) / 255 / 255)  # in the order of an image's own layout


def test_simconv_does_not_divide_again():
    """Trap 15: only the multi-layer perceptrons do; SimConv sees pixels up to 1."""
    net = SimConv1((3, 28, 28), 10)
    seen = []
    net.body[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.ones(2, 3, 28, 28))
    assert seen[0].max() == 1


@pytest.mark.parametrize(("name", "width", "count"), [("mlp", 100, 256_510), ("mlp16", 16, None)])
def test_mlp_has_the_published_size(name, width, count):
    """Section 1.4: 256,510 parameters for LfF's network; 100-100-16 for Disen's."""
    net = build_net(name, (3, 28, 28), 10)
    sizes = [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]
    assert sizes == [100, 100, width, 10]
    assert count is None or sum(p.numel() for p in net.parameters()) == count
    assert net.n_features == width


def test_mlp_takes_features_as_they_are():
    """They are no pixels: nothing is divided."""
    net = build_net("mlp", (20,), 3)
    x = torch.randn(4, 20)
    torch.testing.assert_close(net.features(x), net.body(x))
    assert [module.in_features for module in net.modules() if isinstance(module, nn.Linear)] == [20, 100, 100, 100]
    assert net(x).shape == (4, 3)


def test_linear_is_its_head_alone():
    net = build_net("linear", (20,), 3)
    x = torch.randn(4, 20)
    assert net.features(x) is x
    torch.testing.assert_close(net(x), x @ net.head.weight.T + net.head.bias)
    assert (net.n_features, sum(p.numel() for p in net.parameters())) == (20, 63)


@pytest.mark.parametrize(
    ("inputs", "takes", "not_these"),
    [
        ("images", ["simconv1", "mlp", "mlp16"], ["linear", "transformer"]),
        ("features", ["mlp", "linear"], ["simconv1", "mlp16", "resnet18", "transformer"]),
        ("text", ["transformer"], ["simconv1", "mlp", "linear"]),
    ],
)
def test_each_kind_of_input_has_its_networks(inputs, takes, not_these):
    for name in takes:
        check_net(name, inputs=inputs)
    for name in not_these:
        with pytest.raises(BenchmarkError, match=f"The net {name} does not take {inputs}"):
            check_net(name, inputs=inputs)


def test_simconv1_has_38210_parameters():
    """Trap 16: the count that follows from the paper's table and the official code."""
    assert sum(p.numel() for p in build_net("simconv1", (3, 28, 28), 10).parameters()) == 38_210


def test_simconv1_has_relu_before_normalisation_in_block_3_only():
    """Trap 16: the order of the blocks as published."""
    kinds = [type(module).__name__ for module in SimConv1((3, 28, 28), 10).body]
    first = ["Conv2d", "BatchNorm2d", "HalfDropout", "ReLU", "AvgPool2d"]  # dropout and ReLU commute
    third = ["Conv2d", "ReLU", "BatchNorm2d", "HalfDropout"]
    assert kinds == first + first + third


def test_dropout_before_relu_is_dropout_after_relu():
    """Values and gradients are equal bit for bit, though the network works in place."""
    x = torch.randn(8, 5, 7, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for order in ([nn.ReLU(), HalfDropout()], [HalfDropout(inplace=True), nn.ReLU(inplace=True)]):
        norm = nn.BatchNorm2d(5)
        torch.manual_seed(1)
        y = nn.Sequential(norm, *order)(x)
        gradient = torch.autograd.grad(y.square().sum(), [x, norm.weight])
        results.append([y.detach(), *gradient])
    for after, before in zip(*results, strict=True):
        assert torch.equal(after, before)
    assert (results[0][0] > 0).float().mean() < 0.3


def test_simconv1_maps_have_the_published_sizes():
    """Section 1.4: 28 -> 25 -> 12 -> 9 -> 4 -> 1 with 8, 32 and 64 channels; no padding."""
    net, x, shapes = SimConv1((3, 28, 28), 10).eval(), torch.rand(2, 3, 28, 28), []
    for module in net.body:
        x = module(x)
        if isinstance(module, nn.Conv2d | nn.AvgPool2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(8, 25, 25), (8, 12, 12), (32, 9, 9), (32, 4, 4), (64, 1, 1)]
    assert x.shape == (2, 64, 1, 1)


def test_simconv1_features_can_be_negative(make_task):
    """Trap 16: min(z) < 0 in eval mode, because the last ReLU is before the last normalisation."""
    task = make_task()
    net = task.new_net()
    x = to_input(task.x, task.recipe)
    for _ in range(5):
        net(x)  # batch statistics
    net.eval()
    assert net.features(x).min() < 0


@pytest.mark.parametrize("name", ["simconv1", "mlp", "mlp16"])
def test_every_network_is_its_head_on_its_features(name):
    """Scores are computed from features and head: together they must be the network."""
    net = build_net(name, (3, 28, 28), 7).eval()
    x = torch.rand(5, 3, 28, 28)
    assert net.features(x).shape == (5, net.n_features)
    assert torch.equal(net.head(net.features(x)), net(x))
    assert net(x).shape == (5, 7)


def test_unknown_network_is_refused():
    """A misspelt name says which ones exist."""
    with pytest.raises(BenchmarkError, match="Did you mean 'simconv1'"):
        build_net("simcnv1", (3, 28, 28), 10)
    assert "simconv1" in NETS
    assert isinstance(build_net("mlp", (1, 2, 2), 2), MLP)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
def test_dropout_zeroes_half_and_doubles_the_rest(layout):
    """Element-wise dropout with p = 0.5: every value is 0 or twice what it was, in equal shares."""
    torch.manual_seed(0)
    x = (1 + torch.rand(40, 16, 12, 12)).contiguous(memory_format=layout)
    out = HalfDropout()(x)
    assert torch.equal(out, torch.where(out == 0, 0.0, 2 * x))
    share = (out == 0).double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / x.numel() ** 0.5
    assert out.shape == x.shape
    assert out.stride() == x.stride() == half_mask(x).stride()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
def test_dropout_is_fair_at_every_place(layout):
    """Each channel, position and sample loses half of its values: no bit of the words is special."""
    torch.manual_seed(1)
    x = torch.ones(64, 32, 16, 16).contiguous(memory_format=layout)
    kept = (HalfDropout()(x) > 0).double()
    for dims in ((0, 1), (0, 2, 3), (1, 2, 3)):
        shares = kept.mean(dims)
        n = kept.numel() / shares.numel()
        assert (shares - 0.5).abs().max().item() < 6 * 0.5 / n**0.5
    by_bit = kept.permute(0, 2, 3, 1).reshape(-1, 64) if layout is torch.channels_last else kept.view(-1, 64)
    assert (by_bit.mean(0) - 0.5).abs().max().item() < 6 * 0.5 / len(by_bit) ** 0.5


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
def test_dropout_is_independent_between_places(layout):
    """Element-wise, not by channel: masks of other channels, positions and samples are uncorrelated."""
    torch.manual_seed(2)
    x = torch.ones(64, 32, 16, 16).contiguous(memory_format=layout)
    mask = HalfDropout()(x).double() - 1  # -1 or 1
    for dim in range(4):
        for lag in (1, 2, 3, 7, 8):
            n = mask.shape[dim] - lag
            product = mask.narrow(dim, 0, n) * mask.narrow(dim, lag, n)
            assert abs(product.mean().item()) < 6 / product.numel() ** 0.5, (dim, lag)
    flat = (mask.permute(0, 2, 3, 1) if layout is torch.channels_last else mask).reshape(-1)
    for lag in (1, 8, 32, 64, 128):  # along the random words, in memory
        correlation = (flat[:-lag] * flat[lag:]).mean().item()
        assert abs(correlation) < 6 / len(flat) ** 0.5, lag


def test_dropout_draws_anew_at_every_call():
    """Two calls give uncorrelated masks; a mask that is kept would be another network."""
    torch.manual_seed(3)
    x, dropout = torch.ones(100, 1000), HalfDropout()
    product = (dropout(x) - 1) * (dropout(x) - 1)
    assert abs(product.mean().item()) < 6 / x.numel() ** 0.5


def test_dropout_works_for_any_number_of_values():
    """Sizes that do not fill the last word of 64 bits, odd shapes and views with gaps."""
    torch.manual_seed(4)
    for shape in [(1,), (7,), (63,), (64,), (65,), (3, 5, 7, 11)]:
        x = torch.ones(shape)
        assert set(HalfDropout()(x).unique().tolist()) <= {0.0, 2.0}
        assert HalfDropout()(x).shape == shape
    for x in (torch.ones(10, 20)[:, ::2], torch.ones(6, 4, 10, 10)[:, :, 2:5, 1:9], torch.ones(5, 9).T):
        assert HalfDropout()(x).shape == x.shape
        assert set(HalfDropout()(x).unique().tolist()) == {0.0, 2.0}


def test_dropout_is_the_identity_in_eval_mode():
    """In eval mode nothing is dropped and nothing is drawn."""
    dropout, x = HalfDropout().eval(), torch.randn(4, 3, 5, 5)
    state = torch.get_rng_state()
    assert torch.equal(dropout(x), x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
def test_dropout_is_a_function_of_the_seed(layout):
    """The same seed gives the same mask, another seed another one."""
    x = torch.ones(8, 4, 6, 6).contiguous(memory_format=layout)
    outs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs.append(HalfDropout()(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
def test_dropout_passes_gradients_through_the_same_mask(layout):
    """The gradient is the mask itself: 2 where a value was kept, 0 where it was dropped."""
    torch.manual_seed(6)
    x = (1 + torch.rand(6, 5, 4, 4)).contiguous(memory_format=layout).requires_grad_()
    out = HalfDropout()(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(slope, torch.where(out.detach() == 0, 0.0, 2.0))


def test_recomputed_blocks_give_equal_numbers():
    """Less memory, the same logits, gradients and running statistics (which count a batch once)."""
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    plain = build_net("resnet18", (3, 64, 64), 3)
    again = build_net("resnet18", (3, 64, 64), 3, recompute=True)
    again.load_state_dict(plain.state_dict())
    for net in (plain, again):
        nn.functional.cross_entropy(net.train()(x), y).backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, again.get_parameter(name).grad), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert int(again.body.bn1.num_batches_tracked) == 1
    assert again.body.layer2[0].bn1.momentum == 0.1
    assert torch.equal(plain.eval()(x), again.eval()(x))


def test_the_stem_for_small_images_keeps_their_size():
    """ImageNet's stem leaves one pixel of 32 x 32; the other one 4 x 4."""
    x = torch.rand(2, 3, 32, 32)
    for name, side in (("resnet18", 1), ("resnet18-small", 4)):
        net = build_net(name, (3, 32, 32), 10).eval()
        sizes = []
        net.body.layer4.register_forward_hook(lambda *given, sizes=sizes: sizes.append(given[2].shape[2]))
        assert net(x).shape == (2, 10)
        assert sizes == [side]


# ---- pretrained weights: one of three, never one silently for another ------------------------------------------------


@pytest.fixture
def weights_file(tmp_path):
    """Weights in torchvision's format, told apart from a random start."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 0.25)
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_weights_come_from_a_file(weights_file):
    net = build_net("resnet18", (3, 32, 32), 6, pretrained=str(weights_file))
    assert (net.body.conv1.weight == 0.25).all()
    assert net.head.out_features == 6  # the head is new


def test_reading_weights_draws_nothing(weights_file):
    """Whether a process has read them before must not matter to how the head starts."""
    heads = []
    nets.pretrained_weights.cache_clear()
    for _ in range(2):
        torch.manual_seed(0)
        heads.append(build_net("resnet18", (3, 32, 32), 6, pretrained=str(weights_file)).head.weight)
    assert torch.equal(*heads)


def test_imagenet_weights_come_through_torchvisions_own_interface(weights_file, tmp_path, monkeypatch):
    """The file is looked for in torch's hub folder; one of another checksum, or that cannot be had, is an error."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    nets.pretrained_weights.cache_clear()

    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(
        BenchmarkError, match=r"could not be downloaded or read .*resnet18-f37072fd\.pth.*pretrained=none"
    ):
        build_net("resnet18", (3, 32, 32), 6, pretrained="imagenet")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(weights_file, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(BenchmarkError, match=r"has the checksum .*not f37072fd: it is not the published file"):
        build_net("resnet18", (3, 32, 32), 6, pretrained="imagenet")

    # the published file cannot be had here: another one takes its name and its address
    told = hashlib.sha256(weights_file.read_bytes()).hexdigest()[:8]
    shutil.copy(weights_file, tmp_path / "hub" / "checkpoints" / f"resnet18-{told}.pth")
    url = f"https://download.pytorch.org/models/resnet18-{told}.pth"
    other = SimpleNamespace(
        url=url, get_state_dict=lambda **options: torch.hub.load_state_dict_from_url(url, **options)
    )
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: {"IMAGENET1K_V1": other})
    net = build_net("resnet18", (3, 32, 32), 6, pretrained="imagenet")
    assert (net.body.conv1.weight == 0.25).all()
    nets.pretrained_weights.cache_clear()


def test_weights_are_known_by_what_they_hold(weights_file, tmp_path):
    """Not by the name of their file, which a record would be found by."""
    copy = shutil.copy(weights_file, tmp_path / "copy.pth")
    assert nets.weights_sha256("resnet18", str(weights_file)) == nets.weights_sha256("resnet18", str(copy))
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "other.pth")
    assert nets.weights_sha256("resnet18", str(tmp_path / "other.pth")) != nets.weights_sha256("resnet18", str(copy))
    assert nets.weights_sha256("resnet18", "none") == ""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot be read as a state dict"),
        (b"", "cannot be read as a state dict"),
        (b"hello", "cannot be read as a state dict"),
        ({"a": torch.zeros(2)}, "does not hold torchvision's resnet18: 101 entries"),
        (torch.zeros(3), "does not hold torchvision's resnet18: 100 entries"),
        ({"state_dict": {}, "options": pathlib.PurePosixPath("x")}, r"\(it holds pathlib\S* beside tensors, .*run any"),
        (b"<html><body>Please log in</body></html>", r"\(it is another kind of file: a web page, perhaps"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"\(it is another kind of file: .*Git LFS"),
        ({"state_dict": "a word", "epoch": 3}, "does not hold torchvision's resnet18: 102 entries"),
    ],
    ids=["absent", "empty", "no weights", "of another network", "a tensor", "objects", "a page", "a pointer", "a word"],
)
def test_wrong_weights_are_refused(tmp_path, contents, message):
    path = tmp_path / "weights.pth"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    with pytest.raises(BenchmarkError, match=message):
        check_net("resnet18", str(path))


def saved(contents, path):
    """A state dict (or what a script wraps it in) as a file; the text is its path."""
    torch.save(contents, path)
    return str(path)


def resnet18_state(net=torchvision.models.resnet18):
    """The entries of a ResNet-18 in which each value says where it is."""
    with torch.device("meta"):
        state = net(weights=None).state_dict()
    return {
        key: (torch.arange(value.numel()) / 1000).reshape(value.shape).to(value.dtype) for key, value in state.items()
    }


def named(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_head(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


WRAPPED = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}},
    "model": lambda state: {"model": state, "arch": "resnet18"},
    "module.": lambda state: named(state, "module."),
    "model. in state_dict": lambda state: {"state_dict": named(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "_orig_mod.module.": lambda state: named(state, "_orig_mod.module."),
    "backbone. without a last layer, beside a head": lambda state: {
        **named(without_head(state), "backbone."), "projector.0.weight": torch.zeros(3),
    },
    "checkpoint in checkpoint": lambda state: {"checkpoint": {"network": state}},
    "no last layer": without_head,
    "a last layer of two classes": lambda state: {
        **state, "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2),
    },
    "half precision": lambda state: {key: value.bfloat16() if value.is_floating_point() else value
                                     for key, value in state.items()},
    "of an old version": lambda state: {
        key: value for key, value in state.items() if not key.endswith("num_batches_tracked")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_however_they_were_saved(kind, tmp_path):
    state = resnet18_state()
    path = saved(WRAPPED[kind](state), tmp_path / "weights.pth")
    check_net("resnet18", path)
    body = build_net("resnet18", (3, 32, 32), 6, pretrained=path).body.state_dict()
    for key, value in without_head(state).items():
        wanted = value.bfloat16().float() if kind == "half precision" and value.is_floating_point() else value
        assert torch.equal(body[key], wanted), key
    if kind in ("state_dict", "module.", "model. in state_dict"):  # what is equal is known as equal
        assert nets.weights_sha256("resnet18", path) == nets.weights_sha256("resnet18", saved(state, tmp_path / "x"))


@pytest.mark.parametrize(
    ("wrap", "places"),
    [
        (lambda state: {"model": state, "model_ema": state}, "'model', 'model_ema'"),
        (lambda state: {**named(state, "encoder_q."), **named(state, "encoder_k.")}, "'encoder_k', 'encoder_q'"),
        (lambda state: {"state_dict": {**named(state, "module.a."), **named(state, "b.")}},
         "'state_dict.b', 'state_dict.module.a'"),
    ],
    ids=["two dictionaries", "two prefixes", "both"],
)  # fmt: skip
def test_of_two_networks_none_is_taken(wrap, places, tmp_path):
    path = saved(wrap(resnet18_state()), tmp_path / "weights.pth")
    with pytest.raises(BenchmarkError, match=rf"several networks are in it \({places}\).*save that one alone"):
        check_net("resnet18", path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)},
         r": 1 entry is .*: conv1\.weight has the shape \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)\."),
        (lambda state: {"state_dict": named({**state, "bn1.bias": torch.zeros(2)}, "module.")},
         r"\(below 'state_dict\.module'\): bn1\.bias has the shape \(2,\) instead of \(64,\)\."),
        (lambda state: {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"},
         r": 1 entry is .*: layer1\.0\.conv1\.weight is missing\."),
        (lambda state: {**state, "layer5.weight": torch.zeros(2)}, r": layer5\.weight is not part of it\."),
        (lambda state: {**state, "bn1.weight": "a word"}, r": bn1\.weight is not a tensor of decimals\."),
        (lambda state: {**state, "bn1.weight": torch.ones(64, dtype=torch.int8)}, r"bn1\.weight is not a tensor of"),
        (lambda _: resnet18_state(torchvision.models.resnet34), r": .* entries are .* is not part of it; "),
    ],
    ids=["a shape", "a wrapped shape", "one missing", "one too many", "a word", "whole numbers", "another network"],
)  # fmt: skip
def test_what_is_wrong_with_weights_is_named(change, words, tmp_path):
    path = saved(change(resnet18_state()), tmp_path / "weights.pth")
    with pytest.raises(BenchmarkError, match=f"does not hold torchvision's resnet18.*{words}"):
        check_net("resnet18", path)


@pytest.mark.parametrize("kind", ["itself", "each other", "beside a network"])
def test_weights_in_themselves_are_refused(kind, tmp_path):
    """As a checkpoint that holds its trainer may be."""
    contents = resnet18_state() if kind == "beside a network" else {}
    contents["trainer"] = {"checkpoint": contents} if kind == "each other" else contents
    path = saved(contents, tmp_path / "weights.pth")
    with pytest.raises(BenchmarkError, match="resnet18: a dictionary in it contains itself"):
        check_net("resnet18", path)


@pytest.mark.parametrize(
    ("value", "kind"), [("nan", "no last layer"), ("inf", "state_dict"), ("-inf", "half precision")]
)
def test_weights_that_are_not_finite_are_refused(value, kind, tmp_path):
    state = resnet18_state()
    state["layer2.0.bn1.running_var"][3] = float(value)
    path = saved(WRAPPED[kind](state), tmp_path / "weights.pth")
    with pytest.raises(
        BenchmarkError,
        match=r"cannot be used: 1 of its entries hold NaN or .* layer2\.0\.bn1\.running_var \(1 of 128\)",
    ):
        check_net("resnet18", path)


def test_weights_for_a_net_without_any_are_refused():
    with pytest.raises(BenchmarkError, match="no pretrained weights for the net simconv1"):
        check_net("simconv1", "imagenet")


def test_networks_by_name_say_what_is_there():
    networks = Nets(biased=nn.Linear(2, 3), debiased=nn.Identity())
    assert networks.biased(torch.zeros(1, 2)).shape == (1, 3)
    with pytest.raises(AttributeError, match="no network 'net'; there are biased, debiased"):
        _ = networks.net
    predict = bound(lambda nets, x: nets.head(x), {"head": nn.Identity()})
    assert predict(torch.ones(1)) == 1
