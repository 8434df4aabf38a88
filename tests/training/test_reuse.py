"""Equal first stages are trained once, and nothing comes out otherwise for it."""

import functools
import importlib
import json
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

import debiasbench
from debiasbench import code
from debiasbench.losses import mean_cross_entropy, mean_gce
from debiasbench.methods import Method
from debiasbench.records import read_records
from debiasbench.training import reuse
from debiasbench.training.ends import StageEnd
from debiasbench.training.reuse import Reuse, facts_of_nets

FAMILY = ["pgd", "pgd:norm=l1", "pgd-loss"]
QUICK = "cmnist5k:steps=6,batch_size=64"


def scaled(nets, batch, state, *, factor=1.0):
    """A loss with a value of its own."""
    return factor * mean_cross_entropy(nets, batch, state)


def other(nets, batch, state, *, factor=1.0):
    """The same by another name."""
    return factor * mean_cross_entropy(nets, batch, state)


class TwoStages(Method):
    """A stage that may be reused, with a loss that tests replace, and one that is evaluated."""

    name = "two-stages"
    factor: float = 1.0  # read by the first stage
    second: float = 1.0  # read by the second

    def fit(self, task):
        net = task.new_net()
        self.prepare(net)
        task.train(net, self.first_loss, reuse=True)
        net.head.requires_grad_(True)
        task.train(net, partial(scaled, factor=self.second), predict=net)
        return net

    def prepare(self, net):
        """Nothing is done to the network."""

    @property
    def first_loss(self):
        return partial(scaled, factor=self.factor)


class OtherLoss(TwoStages):
    """Another loss with the same values."""

    name = "other-loss"

    @property
    def first_loss(self):
        return partial(other, factor=self.factor)


class OtherStart(TwoStages):
    """Another network before it: the first stage starts from other weights."""

    name = "other-start"

    def fit(self, task):
        task.new_net()
        return super().fit(task)


@pytest.fixture
def fitted(make_task, tmp_path):
    """A function: a task after `fit`, with a folder of ends; `folder=None`: without one."""

    def fit(method=None, *, folder=tmp_path, **options):
        method = method or TwoStages()
        task = make_task(method, **{"n": 64, **options})
        if folder is not None:
            task.reuse = Reuse(folder, data=task.splits.fingerprint(), device=task.device)
        method.fit(task)
        return task

    return fit


def reused(task):
    return [call.get("reused", False) for call in task.journal.calls if call["kind"] == "train"]


def reasons(task):
    return [call["not_reused"] for call in task.journal.calls if "not_reused" in call]


def weights(task):
    return {name: value.clone() for name, value in task.all_nets()[-1].state_dict().items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same grid with reuse, by two workers at once, and without, here -> folder of each."""
    runs = {}
    for again in (True, False):
        folder = tmp_path_factory.mktemp("reuse" if again else "alone")
        table = debiasbench.run(FAMILY, [QUICK], seeds=2, results_dir=folder, reuse=again, workers=2 if again else 0)
        assert (table.status == "done").all()
        runs[again] = folder
    return runs


def test_results_are_equal_with_and_without(folders):
    with_it, without = ({record.hash: record for record in read_records(folders[one])[0]} for one in (True, False))
    assert with_it.keys() == without.keys()
    assert len(with_it) == 6
    for key, record in with_it.items():
        assert json.dumps(record.to_json()["result"]) == json.dumps(without[key].to_json()["result"])


def test_one_training_a_seed_and_the_record_says_so(folders):
    records, _ = read_records(folders[True])
    for seed in (0, 1):
        of_seed = [record for record in records if record.cell.seed == seed]
        marks = [any(call.get("reused") for call in record.provenance.calls) for record in of_seed]
        assert sorted(marks) == [False, True, True]
        # the seconds are those of the training that took place
        assert len({record.provenance.seconds.stages[0] for record in of_seed}) == 1
    assert len(list((folders[True] / "reuse").glob("*.safetensors"))) == 2
    assert not (folders[False] / "reuse").exists()
    for record in read_records(folders[False])[0]:
        assert not any("reused" in call or "not_reused" in call for call in record.provenance.calls)


def test_the_second_task_loads_what_the_first_trained(fitted):
    first, second = fitted(), fitted()
    assert (reused(first), reused(second)) == ([False, False], [True, False])
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    assert first.journal.stages[0].losses == second.journal.stages[0].losses
    assert first.journal.stages[0].seconds == second.journal.stages[0].seconds
    assert first.journal.stages[0].end == second.journal.stages[0].end
    assert first.journal.epochs == second.journal.epochs


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("seed", {"seed": 1}),
        ("recipe", {"learning_rate": 0.01}),
        ("epochs", {"epochs": 3}),
        ("data", {"n": 74}),
        ("a value of the loss", {"method": TwoStages(factor=0.5)}),
        ("the loss", {"method": OtherLoss()}),
        ("the start", {"method": OtherStart()}),
    ],
)
def test_nothing_is_reused_across(fitted, what, options):
    fitted()
    assert reused(fitted(**options)) == [False, False], what


def test_what_the_loss_does_not_take_is_no_part_of_the_key(fitted):
    fitted()
    assert reused(fitted(TwoStages(second=0.1))) == [True, False]


@pytest.mark.parametrize("name", ["digest_of_suite", "digest_of_module"])
def test_nothing_is_reused_across_versions_of_the_code(fitted, monkeypatch, name):
    fitted()
    monkeypatch.setattr(reuse, name, lambda *_: "another")
    assert reused(fitted()) == [False, False]


class Frozen(TwoStages):
    """Trains without the head first."""

    name = "frozen"

    def prepare(self, net):
        net.head.requires_grad_(False)


class Momentum(TwoStages):
    """Another momentum of batch statistics."""

    name = "momentum"

    def prepare(self, net):
        for part in net.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 0.5


class Hooked(TwoStages):
    """A hook, which may do anything."""

    name = "hooked"

    def prepare(self, net):
        net.head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))


@pytest.mark.parametrize("method", [Frozen(), Momentum(), Hooked()], ids=lambda method: method.name)
def test_what_was_done_to_the_network_is_part_of_the_key(fitted, method):
    assert reused(fitted()) == [False, False]
    assert reused(fitted(method)) == [False, False]
    assert reused(fitted()) == [True, False]


def test_hooks_are_a_reason(fitted):
    fitted(Hooked())
    task = fitted(Hooked())
    assert reused(task) == [False, False]
    assert reasons(task) == ["the network net has hooks, which may do anything"]


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

    def method(self, nets, batch, state):
        return mean_cross_entropy(nets, batch, state)


def takes_anything(nets, batch, state, *, what):
    return mean_cross_entropy(nets, batch, state)


def default_is_odd(nets, batch, state, what=(1, 2)):
    return mean_cross_entropy(nets, batch, state)


def with_a_value_in_front(factor, nets, batch, state):
    return factor * mean_cross_entropy(nets, batch, state)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (scaled_by(1.0), "is not a function of a module"),
        (Callable(), "is bound to an object"),
        (Callable().method, "is bound to an object"),
        (partial(takes_anything, what=torch.zeros(1)), "the values what of its loss"),
        (partial(takes_anything, what=[1, 2]), "the values what of its loss"),
        (partial(with_a_value_in_front, 1.0), "give them by keyword"),
        (default_is_odd, "the values what of its loss"),
        (functools.partial(scaled_by(1.0)), "is not a function of a module"),
        (from_nowhere(), "cannot be read"),
    ],
)
def test_what_may_hold_anything_is_trained_and_the_record_says_why(fitted, loss, reason):
    class Given(TwoStages):
        """A loss from outside."""

        name = "given"

        @property
        def first_loss(self):
            return loss

    for _ in range(2):
        task = fitted(Given())
        assert reused(task) == [False, False]
        assert len(reasons(task)) == 1
        assert reason in reasons(task)[0]


@pytest.mark.parametrize("loss", [mean_cross_entropy, partial(mean_gce, alpha=0.7, form="paper"), scaled])
def test_functions_of_modules_are_reused(fitted, loss):
    class Given(TwoStages):
        """A loss from outside."""

        name = "given"

        @property
        def first_loss(self):
            return loss

    fitted(Given())
    assert reused(fitted(Given())) == [True, False]


class InParts(TwoStages):
    """The first stage is run in parts, the second wants to be reused."""

    name = "in-parts"

    def fit(self, task):
        net = task.new_net()
        stage = task.stage(net, self.first_loss, reuse=True)
        stage.run(epochs=1)
        stage.run()
        task.train(net, mean_cross_entropy, predict=net, reuse=True)
        return net


def test_parts_and_predictors_are_reasons(fitted):
    for _ in range(2):
        task = fitted(InParts())
        assert reused(task) == [False] * 3
        assert [reason.partition(",")[0] for reason in reasons(task)] == [
            "it is run in parts", "it is run in parts", "it has a predictor",
        ]  # fmt: skip


def test_without_a_folder_nothing_is_said(fitted):
    assert reasons(fitted(Hooked(), folder=None)) == []


def test_keeping_an_end_leaves_no_trace(fitted):
    """With a folder or without, what is trained is the same."""
    alone, kept = fitted(folder=None), fitted()
    assert all(torch.equal(value, weights(alone)[name]) for name, value in weights(kept).items())
    assert alone.journal.epochs == kept.journal.epochs


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_tied_weights_are_kept_as_well(fitted):
    class Tied(TwoStages):
        """Two layers with one weight."""

        name = "tied"

        def fit(self, task):
            net, one, two = task.new_net(), task.new_head(64, 64), task.new_head(64, 64)
            two.weight = one.weight
            task.train({"net": net, "one": one, "two": two}, tied_loss, reuse=True)
            task.train(net, mean_cross_entropy, predict=net)
            return net

    first, second = fitted(Tied()), fitted(Tied())
    assert reused(first) == [False, False]
    assert reused(second) == [True, False]
    for one, other in zip(first.all_nets(), second.all_nets(), strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (lambda: torch.nn.Linear(3, 2), torch),
        (lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), torch),
        (lambda: torchvision.models.squeezenet1_1(num_classes=2), torchvision),
    ],
    ids=["a layer", "several", "torchvision"],
)
def test_a_network_of_a_library_is_told_by_its_version(monkeypatch, make, package):
    """Not by all the source files of the library, which take a minute to read."""
    monkeypatch.setattr(code, "_local_parts", lambda *_, **__: pytest.fail("sources were read"))
    net = make()
    before = facts_of_nets({"net": net})
    assert before == facts_of_nets({"net": net})
    monkeypatch.setattr(package, "__version__", "another")
    assert before != facts_of_nets({"net": net})


def test_a_package_that_does_not_say_its_version_is_told_by_its_source(monkeypatch):
    monkeypatch.setattr(reuse, "is_local", lambda _: False)
    monkeypatch.setattr(reuse, "digest_of_plugin", lambda net: f"digest of {net.__name__}")
    monkeypatch.delattr(torchvision, "__version__")
    (facts,) = facts_of_nets({"net": torchvision.models.squeezenet1_1(num_classes=2)}).values()
    assert facts[1] == "digest of SqueezeNet"


def tied_loss(nets, batch, state):
    return (nets.two(nets.one(nets.net.features(batch.x))) ** 2).mean()


@pytest.mark.parametrize(
    ("rerun", "again", "expected"), [("missing", True, True), ("missing", False, False), ("all", True, False)]
)
def test_rerunning_all_trains_all(tmp_path, monkeypatch, rerun, again, expected):
    """What was kept would make a check of reproducibility void."""
    seen = []
    monkeypatch.setattr("debiasbench.running.run.run_cells", lambda _, __, settings, ___: seen.append(settings))
    debiasbench.run(["pgd"], [QUICK], seeds=1, results_dir=tmp_path, rerun=rerun, reuse=again)
    assert [settings.reuse for settings in seen] == [expected]


def test_a_damaged_file_is_trained_anew(fitted, tmp_path):
    whole = fitted()
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    for damaged in (b"", content[:100], content[: len(content) // 2], flipped, b"\xff" * 64):
        path.write_bytes(damaged)
        task = fitted()
        assert reused(task) == [False, False]
        assert all(torch.equal(value, weights(task)[name]) for name, value in weights(whole).items())
        assert StageEnd.from_bytes(path.read_bytes(), torch.device("cpu"))[0].epoch == 2  # kept again


def test_a_full_disk_costs_the_reuse_alone(fitted, tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reuse, "write_atomically", full)
    assert reused(fitted()) == reused(fitted()) == [False, False]
    below_a_file = tmp_path / "file"
    below_a_file.write_text("", encoding="utf-8")
    assert reused(fitted(folder=below_a_file / "reuse")) == [False, False]


def test_who_comes_second_waits(fitted, tmp_path):
    """While one holds the key the other does not train; then it finds the end there."""
    holding, go = threading.Event(), threading.Event()
    kept = fitted().reuse
    (path,) = tmp_path.glob("*.safetensors")
    content, order = path.read_bytes(), []
    path.unlink()

    def hold() -> None:
        with kept.entry(path.stem):
            holding.set()
            assert go.wait(60)
            order.append("first")
            path.write_bytes(content)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(60)
    result = []
    other = threading.Thread(target=lambda: result.append(fitted()))
    other.start()
    other.join(timeout=1.5)
    assert other.is_alive()
    go.set()
    thread.join(60)
    other.join(60)
    assert order == ["first"]
    assert reused(result[0]) == [True, False]


# ---- digests of code -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A module with helpers of its own, and a function that writes one of them and returns the digest then."""
    files = {
        "own_method": "import json\nimport torch\nfrom own_helper import K\n\ndef later():\n    import own_late\n",
        "own_helper": '"""Words."""\nK = {"k": 1}  # a comment\n',
        "own_late": "L = 1\n",
        "own_stranger": "S = 1\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in files:
        monkeypatch.delitem(sys.modules, name, raising=False)  # of the test before
    importlib.import_module("own_method")

    def digest(**changes):
        for name, text in (files | changes).items():
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        code.digest_of_module.cache_clear()
        code._digest_of.cache_clear()
        return code.digest_of_module("own_method")

    yield digest
    code.digest_of_module.cache_clear()
    code._digest_of.cache_clear()


def test_a_digest_follows_local_imports_also_deferred_ones(own_files):
    first = own_files()
    assert own_files(own_helper="K = {'k': 2}\n") != first
    assert own_files(own_late="L = 2\n") != first
    assert own_files(own_stranger="S = 2\n") == first
    assert own_files() == first


@pytest.mark.parametrize(
    "same",
    [
        'K = {"k": 1}\n',
        '"""Other words."""\n\n\nK = {  # another comment\n    "k": 1,\n}\n',
        "K = {'k': 0x1}\n",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(own_files, same):
    assert own_files(own_helper=same) == own_files()


@pytest.mark.parametrize("name", ["display", "alias_display", "alias_citation"])
def test_what_papers_call_a_class_does_not_count(own_files, name):
    """Records made before a method had its display title stand in one row with those made after."""
    plain = own_files(own_helper="class K:\n    k = 1\n")
    assert own_files(own_helper=f"class K:\n    {name} = 'K'\n    k = 1\n") == plain
    assert own_files(own_helper=f"class K:\n    {name} = k = 1\n") != plain  # which sets something else as well
    assert own_files(own_helper=f"class K:\n    {name}: str = 'K'\n    k = 1\n") != plain  # a parameter
    assert own_files(own_helper=f"{name} = 'K'\nclass K:\n    k = 1\n") != plain


@pytest.mark.parametrize("other", ['K = {"k": 1.0}\n', 'K = {"k": True}\n', 'K = {"k": "1"}\n', 'J = {"k": 1}\n'])
def test_every_value_and_name_counts(own_files, other):
    assert own_files(own_helper=other) != own_files()


def test_a_file_that_does_not_parse_has_no_digest(own_files):
    assert own_files(own_helper="K = {\n") is None


def test_the_digest_of_source_is_the_same_on_every_version():
    """Fixed, so that another Python that walks the tree otherwise is noticed."""
    text = textwrap.dedent(
        """
        import math as m
        from os import path

        class A(B, metaclass=C):
            x: int = 3
            def f(self, a, /, b=1, *c, d: float = 2.5, **e) -> str:
                return f"{a!r:>{b}} {'x'}" if not a else lambda y: [z async for z in y]
        """
    )
    import ast
    import hashlib

    digest = hashlib.sha256(" ".join(code._words(ast.parse(text))).encode()).hexdigest()
    assert digest.startswith("ebbebef89cde3a6f")


def test_plugins_have_digests_and_subclasses_hold_their_parents():
    from debiasbench.methods import registry

    pgd = registry.get("pgd")[0]
    known = {name: code.digest_of_plugin(cls) for name, cls in registry.classes().items()}
    assert all(known.values())
    files = {frozenset(one.__module__ for one in cls.__mro__) for cls in registry.classes().values()}  # some share one
    assert len(set(known.values())) == len(files)
    mine = type("Mine", (pgd,), {"name": "mine", "__module__": __name__, "__qualname__": "Mine"})
    assert code.digest_of_plugin(mine) not in (None, code.digest_of_plugin(TwoStages), known["pgd"])


def test_the_suite_is_digested_whole():
    root = Path(debiasbench.__file__).parent
    files = {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    assert {"training/stage.py", "data/augment.py", "losses.py", "nets/small.py"} <= files
    assert len(code.digest_of_suite()) == 64
