"""Networks of other files: found by name, and refused in words before anything trains."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from debiasbench import plugins
from debiasbench.errors import BenchmarkError
from debiasbench.nets import own
from debiasbench.nets.build import build_net, check_fits, check_net

NET = '''
"""Mine: a net of one file."""
import torch
from torch import nn
from debiasbench.nets.own import Net

class Mine(Net):
    name = "mine"
    def __init__(self, shape, n_classes):
        super().__init__()
        n = shape[0] * shape[1] * shape[2]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(n, 6), nn.ReLU())
        self.n_features = 6
        self.head = nn.Linear(6, n_classes)
    def features(self, x):
        return self.body(x)
'''


def test_a_network_is_found_by_its_name(own_files):
    own_files(some_file=NET)
    check_net("mine", inputs="images")
    check_fits("mine", (3, 8, 8), 4)
    net = build_net("mine", (3, 8, 8), 4)
    assert (net.n_features, net.input_shape, net.n_classes) == (6, (3, 8, 8), 4)
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert own.own_net("mine") is type(net)
    assert own.own_net("mlp") is None


def test_its_start_follows_the_seed(own_files, make_task):
    own_files(some_file=NET)
    starts = []
    for seed in (0, 0, 1):
        task = make_task(seed=seed)
        task.recipe = task.recipe.replace(net="mine")
        starts.append(task.new_net().head.weight)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mien", r"Unknown net 'mien'\. Did you mean 'mine'\? Known: .*simconv1.*--nets-dir"),
        ("simcnv1", r"Unknown net 'simcnv1'\. Did you mean 'simconv1'\? Known: .*mine"),
        ("zzz", r"Unknown net 'zzz'\. Known: "),
    ],
)
def test_misspelt_names_are_refused(own_files, name, said):
    own_files(some_file=NET)
    with pytest.raises(BenchmarkError, match=said):
        check_net(name)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "simconv2-pool3"])
def test_a_name_of_the_suite_cannot_be_taken(own_files, name):
    own_files(some_file=NET.replace('"mine"', repr(name)))
    for asked in (name, "simconv1"):
        with pytest.raises(BenchmarkError, match=rf"The suite has a net '{name}' already: give yours another name"):
            check_net(asked)


def test_features_are_for_it_as_well(own_files):
    own_files(some_file=NET.replace("shape[0] * shape[1] * shape[2]", "shape[0]"))
    check_net("mine", inputs="features")
    check_fits("mine", (12,), 4)
    assert build_net("mine", (12,), 4)(torch.rand(3, 12)).shape == (3, 4)


def test_text_and_pretrained_weights_are_not_for_it(own_files):
    own_files(some_file=NET)
    with pytest.raises(BenchmarkError, match="The net mine does not take text"):
        check_net("mine", inputs="text")
    with pytest.raises(BenchmarkError, match="There are no pretrained weights for the net mine"):
        check_net("mine", "imagenet")


BROKEN = {
    "syntax": ("def (", "SyntaxError"),
    "an import": ("import no_such_package", "No module named 'no_such_package'"),
    "a script": ("raise SystemExit(3)", "SystemExit: 3"),
    "no name": (NET.replace('name = "mine"', "pass"), "Mine has no name: give it one of its own"),
    "a word that is none": (NET.replace('"mine"', '"my net"'), "a name is at most 60 letters"),
    "no features": (NET.replace("features(self, x)", "other(self, x)"), r"lacks features\(self, x\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_stops_every_run(own_files, kind):
    """It might hold a metric, which would be missing without a word."""
    text, said = BROKEN[kind]
    own_files(fine=NET.replace('"mine"', '"fine"').replace("Mine", "Fine"), broken=text)
    for name in ("fine", "mlp"):
        with pytest.raises(BenchmarkError, match=said):
            check_net(name)


UNFIT = {
    "a size": ("nn.Linear(n, 6)", "nn.Linear(5, 6)", r"does not take samples of 3 x 8 x 8 \(RuntimeError: .*size=224"),
    "a layout": ("self.body(x)", "self.body(x.view(len(x), -1))", r"\(RuntimeError: view size is not compatible"),
    "a width": ("n_features = 6", "n_features = 7", "n_features must be the width of its features, 6, but is 7"),
    "no width": ("self.n_features = 6", "pass", "n_features must be the width of its features, 6, but is None"),
    "a map": ("return self.body(x)", "return x", r"features\(x\) must be of shape \(B, D\), .* is \(2, 3, 8, 8\)"),
    "a tuple": ("return self.body(x)", "return x, x", r"features\(x\) must be of shape \(B, D\), .* is a tuple"),
    "no bias": ("nn.Linear(6, n_classes)", "nn.Linear(6, n_classes, bias=False)", "head must be .* but has no bias"),
    "a deep head": ("nn.Linear(6, n_classes)", "nn.Sequential(nn.Linear(6, 4))", "head must be .* but is a Sequential"),
    "the classes": ("nn.Linear(6, n_classes)", "nn.Linear(6, 10)", r"head must be torch.nn.Linear\(6, 4\), but is"),
    "no head": ("self.head =", "self.last =", r"AttributeError: .*has no attribute 'head'"),
    "its arguments": ("shape, n_classes)", "n_classes)", "TypeError: .*takes 2 positional arguments but 3 were given"),
    "another output": (
        "def features", "def forward(self, x):\n        return 2 * super().forward(x)\n    def features",
        r"its output is not head\(features\(x\)\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit_is_told_in_words(own_files, kind):
    old, new, said = UNFIT[kind]
    assert old in NET
    own_files(some_file=NET.replace(old, new, 1))
    check_net("mine")
    with pytest.raises(BenchmarkError, match=rf"^The net mine .*{said}") as refused:
        check_fits("mine", (3, 8, 8), 4)
    assert "\n" not in str(refused.value)


def test_two_files_of_one_name_are_refused(own_files):
    own_files(one=NET, other=NET)
    with pytest.raises(BenchmarkError, match=r"The net name 'mine' is used twice: by \S+\.one and \S+\.other"):
        check_net("mine")


def test_packages_offer_classes_and_modules(own_files, monkeypatch):
    """As methods do; a package that cannot be imported stops nothing."""
    module = type(sys)("a_package_of_nets")
    exec(NET, vars(module))  # its classes say that they are of it
    loaded = {"class": lambda: module.Mine, "module": lambda: module, "broken": lambda: 1 / 0}
    for kinds in (["class"], ["module"], ["module", "broken"]):
        own_files()
        entries = [SimpleNamespace(name=kind, value=kind, load=loaded[kind]) for kind in kinds]
        monkeypatch.setattr(plugins, "entry_points", lambda group, found=entries: found * (group == "debiasbench.nets"))
        check_net("mine")
        assert isinstance(build_net("mine", (3, 2, 2), 2).head, nn.Linear)


def test_a_folder_that_is_not_there_is_told(own_files, tmp_path, monkeypatch, capsys):
    """A metric in it would be missing without a word."""
    from debiasbench.cli import main

    own_files(some_file=NET)
    place, package = str(tmp_path / "gone"), sys.modules["debiasbench.nets.own"]
    assert main(["list", "--nets-dir", place]) == 2
    assert f"--nets-dir: '{place}' is not a folder." in capsys.readouterr().err
    monkeypatch.setattr(package, "__path__", [*package.__path__, place])
    for name in ("mine", "mlp"):
        with pytest.raises(BenchmarkError, match=r"There is no folder \S+gone: correct \$DEBIASBENCH_NETS_PATH"):
            check_net(name)


# ---- names, before torch is imported ---------------------------------------------------------------------------------


def test_the_suites_names_are_read_from_its_source():
    from debiasbench.nets.build import NETS

    assert plugins._nets_of_suite() == NETS.keys()


def test_unknown_networks_are_refused_before_torch_is_imported(own_files):
    folder = own_files(some_file=NET)
    lines = [
        "import sys",
        "from debiasbench.cli import main",
        "for net in ('mien', 'simcnv1', 'mlp|mien', 'torchvison:x'):",
        f"    places = ['--nets-dir', {str(folder)!r}]",
        "    main(['run', '--methods', 'vanilla', '--datasets', 'cmnist5k:net=' + net, *places])",
        "assert 'torch' not in sys.modules",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    said = [line.partition(" Known: ")[0] for line in done.stderr.splitlines()]
    assert said == [
        "error: Unknown net 'mien'. Did you mean 'mine'?", "error: Unknown net 'simcnv1'. Did you mean 'simconv1'?",
        "error: Unknown net 'mien'. Did you mean 'mine'?",
        "error: Unknown net 'torchvison:x'. Did you mean 'torchvision:NAME'?",
    ]  # fmt: skip


def test_known_networks_and_specs_that_do_not_read_are_left_to_the_grid(monkeypatch, own_files):
    from debiasbench.cli import _check_names

    own_files(some_file=NET)
    monkeypatch.delitem(sys.modules, "debiasbench.nets.own")
    _check_names(dataset=["cmnist5k:net=mine", "cmnist5k:net=mlp|simconv1", "cmnist5k:net=timm:x", "cmnist5k:net"])
    with pytest.raises(BenchmarkError, match="Did you mean 'mine'"):
        _check_names(dataset=["cmnist5k:net=minne,epochs=3"])
