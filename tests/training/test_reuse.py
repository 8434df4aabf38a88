"""Equal first phases are trained once, and nothing comes out otherwise for it."""

import functools
import importlib
import json
import threading
from pathlib import Path

import pytest
import torch

import debiasbench
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method
from debiasbench.records import read_records
from debiasbench.training import reuse as sharing
from debiasbench.training.reuse import Shared

FAMILY = ["pgd", "pgd:norm=l1", "pgd-loss"]
QUICK = "cmnist5k:steps=6,batch_size=64"


class TwoPhases(Method):
    """A shared phase, and one that is evaluated."""

    name = "two-phases"
    word: str = "plain"  # what the author declares

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy, share=(self.word,))
        task.train(net, mean_cross_entropy, predict=net)
        return net


class OtherLoss(TwoPhases):
    """The same words, another loss."""

    name = "other-loss"

    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, share=("plain",))
        task.train(net, mean_cross_entropy, predict=net)
        return net

    def loss(self, nets, batch, state):
        return 2 * mean_cross_entropy(nets, batch, state)


class OtherStart(TwoPhases):
    """Another network before it: the shared one starts from other weights."""

    name = "other-start"

    def fit(self, task):
        task.new_net()
        return super().fit(task)


def fitted(make_task, shared, method=None, **options):
    """A task after `fit`, with a folder of shared phases."""
    task = make_task(method or TwoPhases(), **options)
    task.shared = shared
    task.method.fit(task)
    return task


def reused(task):
    return [call.get("reused", False) for call in task.calls if call["kind"] == "train"]


def weights(task):
    return {name: value.clone() for name, value in task.all_nets()[-1].state_dict().items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same grid with and without sharing -> folder and table of each."""
    runs = {}
    for share in (True, False):
        folder = tmp_path_factory.mktemp("shared" if share else "alone")
        table = debiasbench.run(FAMILY, [QUICK], seeds=2, results_dir=folder, share=share, workers=2)
        assert (table.status == "done").all()
        runs[share] = folder
    return runs


def test_results_are_equal_with_and_without(folders):
    with_it, without = (
        {record["hash"]: record for record in read_records(folders[share])[0]} for share in (True, False)
    )
    assert with_it.keys() == without.keys()
    assert len(with_it) == 6
    for key, record in with_it.items():
        assert json.dumps(record["result"]) == json.dumps(without[key]["result"])


def test_one_training_a_seed_and_the_record_says_so(folders):
    records, _ = read_records(folders[True])
    for seed in (0, 1):
        of_seed = [record for record in records if record["cell"]["seed"] == seed]
        marks = [any(call.get("reused") for call in record["provenance"]["calls"]) for record in of_seed]
        assert sorted(marks) == [False, True, True]
        # the seconds are those of the training that took place
        assert len({record["provenance"]["seconds"]["phases"][0] for record in of_seed}) == 1
    assert len(list((folders[True] / "shared").glob("*.safetensors"))) == 2
    assert not (folders[False] / "shared").exists()
    for record in read_records(folders[False])[0]:
        assert not any("reused" in call for call in record["provenance"]["calls"])


def test_the_second_task_loads_what_the_first_trained(make_task, tmp_path):
    shared = Shared(tmp_path)
    first, second = fitted(make_task, shared), fitted(make_task, shared)
    assert (reused(first), reused(second)) == ([False, False], [True, False])
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    assert first.phases[0].losses == second.phases[0].losses
    assert first.phases[0].seconds == second.phases[0].seconds
    assert first.phases[0].end == second.phases[0].end
    assert first.epochs == second.epochs


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("seed", {"seed": 1}),
        ("recipe", {"learning_rate": 0.01}),
        ("epochs", {"epochs": 3}),
        ("data", {"n": 220}),
        ("what the author declares", {"method": TwoPhases(word="other")}),
    ],
)
def test_nothing_is_shared_across(make_task, tmp_path, what, options):
    shared = Shared(tmp_path)
    fitted(make_task, shared)
    assert reused(fitted(make_task, shared, **options)) == [False, False], what


def test_nothing_is_shared_between_losses_starts_or_versions(make_task, tmp_path, monkeypatch):
    shared = Shared(tmp_path)
    fitted(make_task, shared)

    for method in (OtherLoss(), OtherStart()):
        assert reused(fitted(make_task, shared, method)) == [False, False]
    monkeypatch.setattr(sharing, "_digest", lambda _: "another engine")
    assert reused(fitted(make_task, shared)) == [False, False]


class Scaled(Method):
    """A shared phase whose loss reads a parameter that the author forgot to declare, through other functions."""

    name = "scaled"
    factor: float = 1.0
    other: float = 1.0  # which the shared phase does not read

    def fit(self, task):
        net = task.new_net()
        task.train(net, self.first_loss, share=("scaled",))
        task.train(net, self.second_loss, predict=net)
        return net

    def first_loss(self, nets, batch, state):
        return self.scaled(mean_cross_entropy(nets, batch, state))

    def second_loss(self, nets, batch, state):
        return self.other * mean_cross_entropy(nets, batch, state)

    def scaled(self, value):
        return self.weight * value

    @property
    def weight(self):
        return self.factor


class Halved(Scaled):
    """Another weight."""

    name = "halved"

    def scaled(self, value):
        return 0.5 * value


def test_what_the_loss_reads_is_part_of_the_key(make_task, tmp_path):
    shared = Shared(tmp_path)
    assert reused(fitted(make_task, shared, Scaled())) == [False, False]
    assert reused(fitted(make_task, shared, Scaled(factor=0.1))) == [False, False]
    assert reused(fitted(make_task, shared, Scaled(other=0.1))) == [True, False]


def test_a_subclass_that_overrides_what_the_loss_calls_shares_nothing(make_task, tmp_path):
    shared = Shared(tmp_path)
    fitted(make_task, shared, Scaled())
    assert reused(fitted(make_task, shared, Halved())) == [False, False]


class Indirect(Scaled):
    """Reads its parameter in ways that its code does not show."""

    name = "indirect"

    @functools.cached_property
    def weight(self):
        return getattr(self, "fac" + "tor")


class Same(Scaled):
    """Inherits all; another class all the same."""

    name = "same"


def test_parameters_read_by_name_or_kept_are_part_of_the_key(make_task, tmp_path):
    shared = Shared(tmp_path)
    assert reused(fitted(make_task, shared, Indirect())) == [False, False]
    assert reused(fitted(make_task, shared, Indirect(factor=0.1))) == [False, False]
    assert reused(fitted(make_task, shared, Indirect(other=0.1))) == [True, False]
    assert reused(fitted(make_task, shared, Same())) == [False, False]


class Prepared(TwoPhases):
    """Does something to the network before its shared phase."""

    name = "prepared"
    what: str = "nothing"

    def fit(self, task):
        net = task.new_net()
        if self.what == "frozen":
            net.head.requires_grad_(False)
        if self.what == "momentum":
            for part in net.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.momentum = 0.5
        if self.what == "hook":
            net.head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
        task.train(net, mean_cross_entropy, share=("prepared",))
        net.head.requires_grad_(True)
        task.train(net, mean_cross_entropy, predict=net)
        return net


@pytest.mark.parametrize("what", ["frozen", "momentum", "hook"])
def test_what_was_done_to_the_network_is_part_of_the_key(make_task, tmp_path, what):
    shared = Shared(tmp_path)
    assert reused(fitted(make_task, shared, Prepared())) == [False, False]
    assert reused(fitted(make_task, shared, Prepared(what=what))) == [False, False]
    assert reused(fitted(make_task, shared, Prepared())) == [True, False]


def with_default(nets, batch, state, factor=1.0):
    return factor * mean_cross_entropy(nets, batch, state)


def from_nowhere():
    """A loss whose source is in no file, as one typed into an interpreter."""
    names = {"mean": mean_cross_entropy, "__name__": "nowhere"}
    exec("def loss(nets, batch, state):\n    return mean(nets, batch, state)", names)
    return names["loss"]


def scaled_by(factor):
    return lambda nets, batch, state: factor * mean_cross_entropy(nets, batch, state)


class Callable:
    """A loss that is an object."""

    def __call__(self, nets, batch, state):
        return mean_cross_entropy(nets, batch, state)


@pytest.mark.parametrize(
    "loss", [scaled_by(1.0), Callable(), functools.partial(mean_cross_entropy), with_default, from_nowhere()]
)
def test_what_may_hold_anything_is_not_shared(make_task, tmp_path, loss):
    class Given(TwoPhases):
        """A loss from outside."""

        name = "given"

        def fit(self, task):
            net = task.new_net()
            task.train(net, loss, share=("given",))
            task.train(net, mean_cross_entropy, predict=net)
            return net

    shared = Shared(tmp_path)
    for _ in range(2):
        assert reused(fitted(make_task, shared, Given())) == [False, False]


def test_a_source_that_changed_since_it_was_imported_is_not_shared(make_task, tmp_path, monkeypatch):
    """What is on disk is then not what runs."""
    shared = Shared(tmp_path)
    fitted(make_task, shared)
    monkeypatch.setattr(sharing, "IMPORTED", 0.0)
    sharing._digest.cache_clear()
    try:
        assert reused(fitted(make_task, shared)) == [False, False]
    finally:
        sharing._digest.cache_clear()


def test_sources_are_followed_through_imports(tmp_path, monkeypatch):
    """A method's helpers in other files of its author count; torch and Python do not."""
    (tmp_path / "own_helper.py").write_text("import json\nimport torch\nK = {'k': 1}\n")
    (tmp_path / "own_method.py").write_text("from own_helper import K\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sharing, "IMPORTED", 2e10)
    importlib.import_module("own_method")
    first = sharing._sources("own_method")
    assert len(first) == 2
    (tmp_path / "own_helper.py").write_text("K = {'k': 2}\n")
    for cached in (sharing._digest, sharing._sources):
        cached.cache_clear()
    assert sharing._sources("own_method") != first


def test_trying_a_loss_leaves_no_trace(make_task, tmp_path):
    """With a folder for sharing or without, what is trained is the same."""
    alone, shared = (fitted(make_task, one, Scaled()) for one in (None, Shared(tmp_path)))
    assert all(torch.equal(value, weights(alone)[name]) for name, value in weights(shared).items())
    assert alone.epochs == shared.epochs


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_tied_weights_cost_the_sharing_alone(make_task, tmp_path):
    class Tied(TwoPhases):
        """Two layers with one weight."""

        name = "tied"

        def fit(self, task):
            net, one, two = task.new_net(), task.new_head(64, 64), task.new_head(64, 64)
            two.weight = one.weight
            task.train({"net": net, "one": one, "two": two}, self.loss, share=("tied",))
            task.train(net, mean_cross_entropy, predict=net)
            return net

        def loss(self, nets, batch, state):
            return (nets.two(nets.one(nets.net.features(batch.x))) ** 2).mean()

    shared = Shared(tmp_path)
    for _ in range(2):
        assert reused(fitted(make_task, shared, Tied())) == [False, False]


@pytest.mark.parametrize(
    ("rerun", "share", "shared"), [("missing", True, True), ("missing", False, False), ("all", True, False)]
)
def test_rerunning_all_trains_all(tmp_path, monkeypatch, rerun, share, shared):
    """What was kept would make a check of reproducibility void."""
    seen = {}
    monkeypatch.setattr("debiasbench.api.run_plan", lambda *_, **options: seen.update(options))
    debiasbench.run(["pgd"], [QUICK], seeds=1, results_dir=tmp_path, rerun=rerun, share=share)
    assert seen["share"] is shared


def test_a_damaged_file_is_trained_anew(make_task, tmp_path):
    shared = Shared(tmp_path)
    whole = fitted(make_task, shared)
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\xff" * 64):
        path.write_bytes(damaged)
        task = fitted(make_task, shared)
        assert reused(task) == [False, False]
        assert all(torch.equal(value, weights(task)[name]) for name, value in weights(whole).items())
        assert path.read_bytes()[:8] == content[:8]  # kept again


def test_a_full_disk_costs_the_sharing_alone(make_task, tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing, "write_atomically", full)
    shared = Shared(tmp_path)
    assert reused(fitted(make_task, shared)) == reused(fitted(make_task, shared)) == [False, False]
    below_a_file = tmp_path / "file"
    below_a_file.write_text("")
    assert reused(fitted(make_task, Shared(below_a_file / "shared"))) == [False, False]


def test_who_comes_second_waits(make_task, tmp_path):
    """While one holds the key the other does not train; then it finds the phase there."""
    shared, holding, go = Shared(tmp_path), threading.Event(), threading.Event()
    fitted(make_task, shared)
    (path,) = tmp_path.glob("*.safetensors")
    content, order = path.read_bytes(), []
    path.unlink()

    def hold() -> None:
        with shared.entry(path.stem):
            holding.set()
            assert go.wait(60)
            order.append("first")
            path.write_bytes(content)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(60)
    result = []
    other = threading.Thread(target=lambda: result.append(fitted(make_task, shared)))
    other.start()
    other.join(timeout=1.5)
    assert other.is_alive()
    go.set()
    thread.join(60)
    other.join(60)
    assert order == ["first"]
    assert reused(result[0]) == [True, False]
