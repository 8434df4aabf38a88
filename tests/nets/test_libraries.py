"""Models of torchvision and timm as networks: split rightly, sized rightly, or refused in words."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from debiasbench.errors import BenchmarkError
from debiasbench.nets import library, pretrained
from debiasbench.nets.build import build_net, check_fits, check_net

SPLIT = {  # torchvision's, with their widths: where the last layer is differs from family to family
    "densenet121": 1024, "efficientnet_b0": 1280, "mobilenet_v3_small": 1024, "regnet_y_400mf": 440,
    "shufflenet_v2_x0_5": 1024, "swin_t": 768,
}  # fmt: skip


@pytest.mark.parametrize("model", SPLIT)
def test_its_last_linear_layer_is_the_head_and_what_that_reads_the_features(model):
    name = f"torchvision:{model}"
    check_net(name, inputs="images")
    check_fits(name, (3, 64, 64), 7)  # the head on the features is the whole model
    net, x = build_net(name, (3, 64, 64), 7).eval(), torch.rand(2, 3, 64, 64)
    assert net.n_features == SPLIT[model] == net.features(x).shape[1]
    torch.testing.assert_close(net(x), net.as_whole(x))
    assert net(x).shape == (2, 7)
    assert not [key for key in net.state_dict() if key.startswith("body.") and key.endswith(f"{net.place}.weight")]


def test_a_resnet_starts_as_the_suites_own():
    nets = []
    for name in ("resnet18", "torchvision:resnet18"):
        torch.manual_seed(0)
        nets.append(build_net(name, (3, 32, 32), 4).state_dict())
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("squeezenet1_1", "does not end in one linear layer"), ("squeezenet1_0", "does not end in one linear layer"),
        ("googlenet", "has further heads"), ("inception_v3", "has further heads"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(model, why):
    with pytest.raises(BenchmarkError, match=rf"The net torchvision:{model} {why}.*adding-a-network\.md"):
        check_fits(f"torchvision:{model}", (3, 64, 64), 7)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet19", r"no classification model 'resnet19'\. Did you mean 'resnet18'\? \d+ are known"),
        ("torchvision:fcn_resnet50", r"no classification model 'fcn_resnet50'\. Did you mean 'resnet50'\?"),
        ("torchvision:", r"no classification model ''\. \d+ are known, such as alexnet, "),
        ("torchvison:resnet18", r"Unknown net 'torchvison:resnet18'\. Did you mean 'torchvision:NAME'\?"),
        ("timmm:resnet26", r"Unknown net 'timmm:resnet26'\. Did you mean 'timm:NAME'\?"),
    ],
)
def test_misspelt_models_are_refused(name, said):
    with pytest.raises(BenchmarkError, match=said):
        check_net(name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:alexnet", (3, 28, 28)),  # nothing is left of the image
        ("torchvision:maxvit_t", (3, 64, 64)),  # made for 224 pixels
        ("torchvision:shufflenet_v2_x0_5", (1, 32, 32)),  # made for three channels
        ("simconv2", (3, 28, 28)),
        ("resnet18", (1, 28, 28)),
    ],
)
def test_images_that_do_not_fit_are_told_before_anything_trains(name, shape):
    size = " x ".join(map(str, shape))
    with pytest.raises(BenchmarkError, match=rf"^The net {name} does not take samples of {size} \(\w+: .*\)\. Give an"):
        check_fits(name, shape, 10)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 28), (3, 56, 56)])
@pytest.mark.parametrize("name", ["mlp", "mlp16", "simconv1"])
def test_the_suites_own_networks_fit(name, shape):
    before = torch.random.get_rng_state()
    check_fits.cache_clear()
    check_fits(name, shape, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def state():
    """The entries of a small model, each value where it is."""
    model = torchvision.models.mobilenet_v3_small(weights=None)
    return {
        key: (torch.arange(value.numel()) % 97 / 97).reshape(value.shape).to(value.dtype)
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("format_", ["pth", "safetensors", "wrapped", "no last layer"])
def test_weights_come_from_a_file_without_the_last_layer(state, tmp_path, format_):
    path = tmp_path / f"weights.{'safetensors' if format_ == 'safetensors' else 'pth'}"
    if format_ == "safetensors":
        save_file(state, path)
    elif format_ == "no last layer":
        torch.save({key: value for key, value in state.items() if not key.startswith("classifier.3.")}, path)
    else:
        torch.save({"state_dict": state} if format_ == "wrapped" else state, path)
    name = "torchvision:mobilenet_v3_small"
    check_net(name, str(path))
    torch.manual_seed(0)
    net = build_net(name, (3, 32, 32), 5, pretrained=str(path))
    body = net.body.state_dict()
    assert body.keys() == {key for key in state if not key.startswith("classifier.3.")}
    assert all(torch.equal(body[key], state[key]) for key in body)
    assert net.head.out_features == 5
    check_fits(name, (3, 32, 32), 5, str(path))


def test_weights_of_another_model_are_refused(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(BenchmarkError, match="does not hold torchvision's shufflenet_v2_x0_5: "):
        check_net("torchvision:shufflenet_v2_x0_5", str(tmp_path / "weights.pth"))
    (tmp_path / "weights.safetensors").write_bytes(b"garbage")
    with pytest.raises(BenchmarkError, match=r"weights\.safetensors cannot be read as a state dict"):
        check_net("torchvision:mobilenet_v3_small", str(tmp_path / "weights.safetensors"))


def test_imagenet_weights_are_torchvisions(state, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(pretrained, "_check_name", lambda _: None)
    pretrained.pretrained_weights.cache_clear()
    pretrained.weights_sha256.cache_clear()
    entry = SimpleNamespace(url="https://x/y-0.pth", get_state_dict=lambda **_: state)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: {"IMAGENET1K_V1": entry})
    net = build_net("torchvision:mobilenet_v3_small", (3, 32, 32), 5, pretrained="imagenet")
    assert torch.equal(net.body.features[0][0].weight, state["features.0.0.weight"])
    pretrained.pretrained_weights.cache_clear()


@pytest.mark.parametrize("model", ["vit_h_14", "regnet_y_128gf"])  # large: they are not built for it
def test_where_torchvision_has_no_such_weights_it_is_said(model):
    with pytest.raises(BenchmarkError, match=rf"IMAGENET1K_V1 weights, and torchvision's {model} has none"):
        check_net(f"torchvision:{model}", "imagenet")


# ---- timm ------------------------------------------------------------------------------------------------------------


def test_without_timm_one_line_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BenchmarkError) as refused:
        check_net("timm:resnet26")
    assert str(refused.value) == (
        "net=timm:resnet26 needs the package timm, which is not installed: pip install 'debiasbench[timm]'."
    )


class Model(nn.Module):
    """As timm makes them."""

    def __init__(self, in_chans, classifier):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.fc = classifier

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))


class Doubled(Model):
    """Its answer is not what its last layer says."""

    def forward(self, x):
        return 2 * super().forward(x)


MODELS = {
    "plain": lambda in_chans: Model(in_chans, nn.Linear(4, 1000)),
    "doubled": lambda in_chans: Doubled(in_chans, nn.Linear(4, 1000)),
    "deep": lambda in_chans: Model(in_chans, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1000))),
    "headless": lambda in_chans: Model(in_chans, nn.Identity()),
}


@pytest.fixture
def fake_timm(monkeypatch):
    """The part of timm that is asked."""
    fake = SimpleNamespace(
        list_models=lambda: list(MODELS),
        list_pretrained=lambda: ["plain.in1k"],
        create_model=lambda name, in_chans, **_: MODELS[name.partition(".")[0]](in_chans),
        __spec__=None,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _: object())


def test_models_of_timm_take_as_many_channels_as_there_are(fake_timm):
    for name, channels in (("timm:plain", 1), ("timm:plain", 5), ("timm:plain.in1k", 3)):
        check_net(name, inputs="images")
        check_fits(name, (channels, 8, 8), 3)
    assert build_net("timm:plain", (5, 8, 8), 3).n_features == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep", "does not end in one linear layer"), ("headless", "does not end in one linear layer"),
        ("doubled", r"its output is not head\(features\(x\)\)"),
        ("plian", r"timm has no classification model 'plian'\. Did you mean 'plain'\?"),
        ("plain.in2k", r"timm has no classification model 'plain\.in2k'\. Did you mean 'plain\.in1k'\?"),
    ],
)  # fmt: skip
def test_other_models_of_timm_are_refused(fake_timm, name, said):
    with pytest.raises(BenchmarkError, match=said):
        check_fits(f"timm:{name}", (3, 8, 8), 3)


def test_weights_for_timm_are_a_file_of_three_channels(fake_timm, tmp_path):
    state = {key: torch.full_like(value, 0.5) for key, value in MODELS["plain"](3).state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    check_fits("timm:plain", (3, 8, 8), 2, str(tmp_path / "weights.pth"))
    net = build_net("timm:plain", (3, 8, 8), 2, pretrained=str(tmp_path / "weights.pth"))
    assert (net.body.stem.weight == 0.5).all()
    assert not (net.head.weight == 0.5).any()
    with pytest.raises(BenchmarkError, match="does not take samples of 1 x 8 x 8"):
        check_fits("timm:plain", (1, 8, 8), 2, str(tmp_path / "weights.pth"))
    with pytest.raises(BenchmarkError, match=r"pretrained=imagenet means torchvision's .* timm's plain has none"):
        check_net("timm:plain", "imagenet")


@pytest.mark.parametrize("name", ["resnet26", "convnext_atto", "vit_tiny_patch16_224.augreg_in21k"])
def test_real_models_of_timm_are_split(name):
    pytest.importorskip("timm")
    size = 224 if name.startswith("vit") else 64
    check_net(f"timm:{name}")
    check_fits(f"timm:{name}", (3, size, size), 7)
