"""A stranger's method file: what it cannot do to other cells, and what is noticed of it.

Everything here was seen to go wrong without a word before.
"""

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from debiasbench.cli import main
from debiasbench.data.checks import check_splits
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.grid import expand
from debiasbench.methods import registry
from debiasbench.records import find_record, read_record
from debiasbench.running.run import RunOptions, plan_grid, run_grid
from debiasbench.testing import Tiny

HEAD = '''
"""A stranger's methods."""
import os
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook as register
from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Method

class Plain(Method):
    """Plain training."""
    name = "plain"
    factor: float = 1.0
    def fit(self, task):
        self.before(task)
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net
    def before(self, task):
        """Nothing."""
    def loss(self, nets, batch, state):
        return self.factor * cross_entropy(nets.net(batch.x), batch.y).mean()
'''
QUICK = "cmnist5k:steps=5,batch_size=64,net=mlp"


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A function that writes a method file into a folder of its own and makes it known; undone afterwards."""
    package = sys.modules["debiasbench.methods"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "mine")])
    (tmp_path / "mine").mkdir()
    names = []

    def write(text, name="strange", head=HEAD):
        forget()
        (tmp_path / "mine" / f"{name}.py").write_text(textwrap.dedent(head) + textwrap.dedent(text), encoding="utf-8")
        names.append(f"debiasbench.methods.{name}")

    def forget():
        from debiasbench import code

        registry._scanned, registry._alone = None, {}
        code.digest_of_module.cache_clear()
        code._digest_of.cache_clear()
        for name in names:
            sys.modules.pop(name, None)
        for cached in (tmp_path / "mine").rglob("*.pyc"):
            cached.unlink()

    yield write
    forget()


def run(tmp_path, *methods, seeds=1, handle=lambda _: None, **options):
    """Run methods in this process -> their records, in order."""
    asked = Experiment("", list(methods), [QUICK], seeds=seeds)
    ready = plan_grid(asked, RunOptions(tmp_path, tmp_path / "results", device="cpu", workers=0, **options))
    run_grid(ready, handle)
    return [read_record(find_record(tmp_path / "results", cell)) for cell in ready.plan.grid.cells]


# ---- isolation -------------------------------------------------------------------------------------------------------

MISDEEDS = {
    "labels": "task.y[:1000] = 3",
    "images": "task.x[:1000] = 0",
    "the splits": "task.splits.test.y.fill_(1)",
    "images through numpy": "task.x.numpy()[:1000] = 7",
}


@pytest.mark.parametrize("line", MISDEEDS.values(), ids=MISDEEDS.keys())
def test_writing_into_data_fails_by_name_and_the_next_cell_has_its_own(strange, tmp_path, line):
    strange(f"""
    class Bad(Plain):
        name = "bad"
        def before(self, task):
            {line}
    """)
    bad, plain = run(tmp_path / "after", "bad", "plain")
    assert "bad changes what it was given" in bad.failure.message
    (alone,) = run(tmp_path / "alone", "plain")
    assert plain.result == alone.result


GLOBALS = [
    "torch.set_default_dtype(torch.float64)",
    "torch.set_grad_enabled(False)",
    "torch.set_num_threads(2)",
    "torch.backends.mkldnn.set_flags(_enabled=False)",
    "os.environ['OMP_NUM_THREADS'] = '7'",
    "torch.manual_seed(5), torch.set_flush_denormal(True)",
    "torch.autocast('cpu').__enter__()",
    "torch.nn.modules.module.register_module_forward_hook(lambda module, x, y: 2 * y)",
    "register(lambda optimizer, *_: optimizer.param_groups[0].clear())",
]


@pytest.mark.parametrize("line", GLOBALS)
def test_global_state_ends_with_the_cell(strange, tmp_path, line):
    strange(f"""
    class Bad(Plain):
        name = "bad"
        def fit(self, task):
            net = super().fit(task)
            {line}
            raise RuntimeError("done")
    """)
    bad, plain = run(tmp_path / "after", "bad", "plain")
    assert bad.failure.message == "done"
    (alone,) = run(tmp_path / "alone", "plain")
    assert plain.result == alone.result
    assert torch.get_default_dtype() == torch.float32


ENDS = {
    "sys.exit": ("raise SystemExit('no data')", "no data"),
    "an exception of its own kind": ("raise BaseException('odd')", "odd"),
    "a message that cannot be made": (
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
        "(its message cannot be shown: ZeroDivisionError)",
    ),
    "a message that ends": (
        "raise type('Odd', (Exception,), {'__str__': lambda self: (_ for _ in ()).throw(KeyboardInterrupt())})()",
        "(its message cannot be shown: KeyboardInterrupt)",
    ),
    "a message with all of the data": (
        "raise ValueError('x' * 10**6)",
        f"{'x' * 10_000}... (980,000 characters) ...{'x' * 10_000}",
    ),
}


@pytest.mark.parametrize(("line", "message"), ENDS.values(), ids=ENDS.keys())
def test_whatever_a_method_raises_the_grid_goes_on(strange, tmp_path, line, message):
    strange(f"""
    class Bad(Plain):
        name = "bad"
        def before(self, task):
            {line}
    """)
    bad, plain = run(tmp_path, "bad", "plain")
    assert bad.failure.message == message
    assert plain.done


@pytest.mark.parametrize("change", ["torch.cat([y, y[:, :1]], 1)", "y[:, :-1]", "y[:-1]"])
def test_logits_of_another_shape_are_refused(strange, tmp_path, change):
    """A column too many scored 0 without a word."""
    strange(f"""
    class Bad(Plain):
        name = "bad"
        def fit(self, task):
            task.train(task.new_net(), self.loss, predict=self.predict)
            return self.predict
        def predict(self, nets, x):
            y = nets.net(x)
            return {change}
    """)
    (bad,) = run(tmp_path, "bad")
    assert "The predictor must return logits (N, C)" in bad.failure.message
    assert "Got (" in bad.failure.message


PLANNED = {
    "decline": "def decline(self, dataset): return dataset.nothing",
    "relative_cost": "def relative_cost(self, dataset): return 1 / 0",
    "check": "def check(self): self.factor.nothing",
    "a recipe's field": "recipes = {'cmnist5k': {'learning_rat': 1.0}}",
    "a cost that is text": "cost = 'two'",
}


@pytest.mark.parametrize("line", PLANNED.values(), ids=PLANNED.keys())
def test_what_a_method_raises_while_cells_are_planned_is_one_error_with_its_name(strange, tmp_path, line):
    strange(f"""
    class Bad(Plain):
        name = "bad"
        {line}
    """)
    with pytest.raises(BenchmarkError, match="bad"):
        run(tmp_path, "bad")
    assert not (tmp_path / "results" / "records").exists()


def test_another_folder_ends_neither_the_grid_nor_leads_records_astray(strange, tmp_path, monkeypatch):
    """It ended the grid with exit 2, and a record was outside of the results folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    strange(f"""
    class Bad(Plain):
        name = "bad"
        def before(self, task):
            os.chdir({str(tmp_path / "elsewhere")!r})
    """)
    asked = Experiment("", ["bad", "plain"], [QUICK], seeds=1)
    ready = plan_grid(asked, RunOptions(Path(), Path("results"), device="cpu", workers=0))
    run_grid(ready, lambda _: None)
    assert Path.cwd() == tmp_path
    records = [read_record(find_record(Path("results"), cell)) for cell in ready.plan.grid.cells]
    assert [record.done for record in records] == [True, True]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_worker_that_was_changed_is_replaced_and_no_other(strange, tmp_path, monkeypatch):
    """The next cell of a real worker gets a process of its own, however the cell ended that had changed it."""
    monkeypatch.setenv("DEBIASBENCH_METHODS_PATH", str(tmp_path / "mine"))
    strange(f"""
    class Telling(Plain):
        name = "telling"
        end: str = "first"
        def before(self, task):
            with open({str(tmp_path / "told")!r}, "a") as file:
                print(self.end, os.getpid(), file=file)
            if self.end not in ("first", "last"):
                os.chdir("/")
            if self.end == "interrupt":
                raise KeyboardInterrupt
            if self.end == "disk":
                from debiasbench.running import runner
                def full(*_):
                    raise OSError(28, "No space left on device")
                runner.write_record = full
    """)
    ends = ["first", "record", "interrupt", "disk", "last"]
    asked = Experiment("", [f"telling:end={'|'.join(ends)}"], [QUICK], seeds=1)
    ready = plan_grid(asked, RunOptions(tmp_path, tmp_path / "results", device="cpu", workers=1))
    events = []
    run_grid(ready, events.append)
    told = [line.split() for line in (tmp_path / "told").read_text(encoding="utf-8").splitlines()]
    assert [end for end, _ in told] == ends  # the order in which they ran
    first, *others = [process for _, process in told]
    assert others[0] == first  # what a cell imports is no reason
    assert len({first, *others[1:]}) == 4  # each after one that was changed
    lost = [event.message.partition(":")[0] for event in events if event.kind == "lost"]
    assert lost == ["The cell raised KeyboardInterrupt.", "The record cannot be written"]


# ---- edited files ----------------------------------------------------------------------------------------------------


def test_an_edited_method_stops_the_run_and_both_ways_out_work(strange, tmp_path):
    """It said "0 cells to run, 4 finished before", and showed the old number."""
    (old,) = run(tmp_path, strange("") or "plain")
    strange("", head=HEAD.replace("self.factor *", "2 * self.factor *"))
    with pytest.raises(
        BenchmarkError, match=r"(?s)The code of plain has changed since 1 finished cell.*--rerun changed"
    ):
        run(tmp_path, "plain")
    (kept,) = run(tmp_path, "plain", keep_changed=True)
    assert kept == old
    (new,) = run(tmp_path, "plain", rerun="changed")
    assert new.result != old.result
    (again,) = run(tmp_path, "plain")
    assert again == new


def test_comments_and_layout_are_no_edit(strange, tmp_path):
    (old,) = run(tmp_path, strange("") or "plain")
    strange("\n\n# a comment\n", head=HEAD.replace('"""Plain training."""', '"""Other words."""'))
    (same,) = run(tmp_path, "plain")
    assert same == old


def test_an_edited_helper_counts(strange, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strangers_helper", raising=False)
    (tmp_path / "strangers_helper.py").write_text("FACTOR = 1.0\n", encoding="utf-8")
    text = """
    import strangers_helper
    class Helped(Plain):
        name = "helped"
        def loss(self, nets, batch, state):
            return strangers_helper.FACTOR * super().loss(nets, batch, state)
    """
    strange(text)
    run(tmp_path, "helped")
    (tmp_path / "strangers_helper.py").write_text("FACTOR = 2.0\n", encoding="utf-8")
    strange(text)
    with pytest.raises(BenchmarkError, match="The code of helped has changed"):
        run(tmp_path, "helped")
    monkeypatch.delitem(sys.modules, "strangers_helper")


def test_an_edited_shipped_file_is_a_notice(tmp_path, monkeypatch):
    """There the version decides."""
    (old,) = run(tmp_path, "vanilla")
    monkeypatch.setattr("debiasbench.cell.digest_of_plugin", lambda _: "another")
    asked = Experiment("", ["vanilla"], [QUICK], seeds=1)
    ready = plan_grid(asked, RunOptions(tmp_path, tmp_path / "results", device="cpu", workers=0))
    assert ready.plan.to_run == []
    assert any("vanilla: its file has changed since 1 finished cell" in notice for notice in ready.plan.grid.notices)
    assert old.provenance.code["method"] != "another"


def test_a_subclass_carries_the_version_of_its_parent(strange, monkeypatch):
    strange("""
    from debiasbench.methods.pgd import PGD
    class Mine(PGD):
        name = "mine"
        beta: float = 0.5
    """)
    (cell,) = expand(["mine"], ["cmnist5k"], seeds=[0]).cells
    parent = registry.get("pgd")[0]
    assert cell.method_version == f"{registry.get('mine')[0].version}, pgd {parent.version}"
    monkeypatch.setattr(parent, "version", 7)
    (other,) = expand(["mine"], ["cmnist5k"], seeds=[0]).cells
    assert other.hash != cell.hash


def test_a_version_that_follows_from_values_is_carried_as_well(strange):
    """That of the parent by its own rule, that of the child by its own version."""
    strange("""
    from debiasbench.methods.jtt import JTT
    class Mine(JTT):
        name = "mine"
        version = 4
        by_dataset = {}
    """)
    cells = expand(["mine"], ["cmnist5k", "cmnist5k:rho=0.3"], seeds=[0]).cells
    assert [cell.method_version for cell in cells] == ["4, jtt 1", "4, jtt 2"]


# ---- habits ----------------------------------------------------------------------------------------------------------


def test_subclassing_a_shipped_method_works(strange):
    """Every command said: the method name 'pgd-loss' is used twice."""
    strange("""
    from debiasbench.methods.pgd import PGD
    class Mine(PGD):
        name = "mine"
        alpha: float = 0.3
    """)
    assert registry.get("mine")[0]().alpha == 0.3
    assert registry.get("pgd-loss")[1] == {"score": "loss"}
    assert registry.broken == {}


@pytest.mark.parametrize("decorator", ["@dataclass(frozen=True)", "@dataclass(frozen=True, kw_only=True)"])
def test_a_decorated_method_is_accepted(strange, decorator):
    """It ended in: TypeError: Cannot overwrite attribute __setattr__."""
    strange(f"""
    from dataclasses import dataclass
    {decorator}
    class Decorated(Plain):
        name = "decorated"
        beta: float = 0.5
    """)
    cls = registry.get("decorated")[0]
    assert cls(beta=1).values() == {"factor": 1.0, "beta": 1.0}
    assert cls(beta=1) == cls(beta=1.0)
    with pytest.raises(AttributeError, match="cannot assign to field 'beta'"):
        cls().beta = 2.0


def test_a_plain_decorator_is_told_to_go(strange):
    strange("""
    from dataclasses import dataclass
    @dataclass
    class Decorated(Plain):
        name = "decorated"
    """)
    with pytest.raises(BenchmarkError, match="remove the line @dataclass"):
        registry.get("strange")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("beta = 0.3", r"write beta: float = 0\.3"),
        ("n_heads = 4", "write n_heads: int = 4"),
        ("mode = 'fast'", "write mode: str = 'fast'"),
        ("order = None", r"write order: float \| None = None"),
        ("factor = 2.0", r"write factor: float = 2\.0"),  # of a parent: it would change nothing
        ("beta = between(0, 1, default=0.5)", r"write beta: float = \.\.\."),
    ],
)
def test_a_class_attribute_without_annotation_is_an_error_with_the_line_to_write(strange, line, advice):
    strange(f"""
    from debiasbench.methods import between
    class Silent(Plain):
        name = "silent"
        {line}
    """)
    with pytest.raises(BenchmarkError, match=advice):
        registry.get("strange")


def test_constants_and_what_the_contract_declares_need_no_annotation(strange):
    strange("""
    class Fine(Plain):
        name = "fine"
        version = 3
        cost = 2.0
        MOST = 10
        _table = {"a": 1}
        helper = staticmethod(len)
    """)
    assert registry.get("fine")[0]().values() == {"factor": 1.0}


def test_what_the_contract_has_as_a_property_may_be_a_class_attribute():
    class Known(Tiny):
        class_names = ("a", "b")
        conflict_ratio = None

    dataset = Known()
    assert (dataset.n_classes, dataset.conflict_ratio) == (2, None)
    assert dataset.values().keys() == Tiny().values().keys()


def test_a_subclass_without_a_name_of_its_own_is_told(strange):
    strange("""
    class Nameless(PGD):
        beta: float = 0.5
    """, head="from debiasbench.methods.pgd import PGD\n")  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"Nameless has the name of its parent: give it one of its own"):
        registry.get("strange")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [("", "fit"), ("def fitt(self, task): ...", "fit"), ("cost = 2.0", "fit")],
)
def test_a_class_without_what_every_one_defines_is_told_what_it_lacks(strange, capsys, text, lacking):
    """It was told as an unknown method."""
    strange(f"""
    class Unfinished(Method):
        name = "unfinished"
        {text}
    """)
    with pytest.raises(BenchmarkError, match=rf"'unfinished' cannot be used: Unfinished \(.*strange\) lacks {lacking}"):
        registry.get("unfinished")
    assert "plain" in registry.classes()
    assert main(["list"]) == 0
    assert f"lacks {lacking}" in capsys.readouterr().out


def test_a_class_without_any_name_is_told(strange):
    strange("""
    class Nameless(Method):
        def fit(self, task): ...
    """, head="from debiasbench.methods import Method\n")  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"Nameless has no name: give it one of its own, name = "):
        registry.get("strange")


@pytest.mark.parametrize(
    "name", ["../n7", "/etc/n7", "n 7", "n7,x", "n7:x", "n7|x", ".n7", "-n7", "all", "n" * 61, "n\n7", 7]
)
def test_a_name_that_is_no_safe_file_name_is_refused(strange, tmp_path, name):
    strange(f"""
    class Odd(Plain):
        name = {name!r}
    """)
    assert name not in registry.classes()
    with pytest.raises(BenchmarkError, match="a name is at most 60 letters"):
        registry.get(str(name))
    strange(f"""
    class Odd(Plain):
        name = "odd"
        aliases = {{{name!r}: {{"factor": 2.0}}}}
    """)
    with pytest.raises(BenchmarkError, match="a name is at most 60 letters"):
        registry.get("odd")


@pytest.mark.parametrize("hint", ["float", "int", "str", "float | None", "tuple[float, ...]"])
def test_a_parameter_without_default_is_told(strange, hint):
    """It was told as: Got <dataclasses._MISSING_TYPE object>."""
    strange(f"""
    class Bare(Plain):
        name = "bare"
        beta: {hint}
    """)
    with pytest.raises(BenchmarkError, match=r"'beta' of Bare has no default: write beta: \.\.\. = VALUE"):
        registry.get("strange")


def test_a_dataset_without_class_names_is_told_so():
    """It was told as: labels must be in 0..-1."""

    class Anonymous(Tiny):
        name = "anonymous"
        class_names = ()

    with pytest.raises(BenchmarkError, match="anonymous: class_names is missing"):
        check_splits(Anonymous(), Tiny().build(Path()))


@pytest.mark.parametrize("n", [0, 3, 9])
def test_a_bias_beyond_its_values_is_told(n):
    class Narrow(Tiny):
        name = "narrow"
        n_bias_values = n

    with pytest.raises(BenchmarkError, match=rf"narrow: the bias of t\w+ must be below n_bias_values, which is {n}"):
        check_splits(Narrow(), Tiny().build(Path()))


@pytest.mark.parametrize(
    "text", ["import no_such_module_at_all", "import sys\nsys.exit(3)", "raise KeyboardInterrupt", "def f(:", "1 / 0"]
)
def test_a_file_that_cannot_be_imported_is_named_and_ends_nothing(strange, text):
    strange("", name="works")
    strange(text, name="broken", head="")
    assert "plain" in registry.classes()
    with pytest.raises(BenchmarkError, match=r"Unknown method 'wanted'.*could not be imported: broken \("):
        registry.get("wanted")
    with pytest.raises(BenchmarkError, match="The file of method 'broken' could not be imported"):
        registry.get("broken")


# ---- in this process -------------------------------------------------------------------------------------------------


def test_cells_run_in_this_process_print_and_tell_tracebacks(strange, tmp_path, capsys):
    strange("""
    class Printing(Plain):
        name = "printing"
        def before(self, task):
            print("seen by a person", os.getpid())
            raise KeyError("no such thing")
    """)
    events = []
    (record,) = run(tmp_path, "printing", handle=events.append)
    assert f"seen by a person {os.getpid()}" in capsys.readouterr().out
    assert record.failure.type == "KeyError"
    notes = [event.message for event in events if event.kind == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("Traceback")
    assert "strange.py" in notes[0]
    assert [event.kind for event in events][-1] == "finished"


def test_this_process_and_a_worker_give_equal_results(strange, tmp_path):
    (here,) = run(tmp_path / "here", "vanilla")
    asked = Experiment("", ["vanilla"], [QUICK], seeds=1)
    ready = plan_grid(asked, RunOptions(tmp_path, tmp_path / "there", device="cpu", workers=1))
    run_grid(ready, lambda _: None)
    there = read_record(find_record(tmp_path / "there", ready.plan.grid.cells[0]))
    assert here.result == there.result


def test_status_says_what_is_stale_and_why(strange, tmp_path, monkeypatch):
    from debiasbench.report.make import status

    run(tmp_path, strange("") or "plain", "vanilla")
    assert not [note for note in status(tmp_path / "results").notes if note.startswith("Stale")]
    strange("", head=HEAD.replace("self.factor *", "2 * self.factor *"))
    monkeypatch.setattr(registry.get("vanilla")[0], "version", 9)
    notes = [note for note in status(tmp_path / "results").notes if note.startswith("Stale")]
    assert len(notes) == 2
    assert any("1 of plain (its code has changed: --rerun changed or --keep-changed)" in note for note in notes)
    assert any("1 of vanilla (version 1 of the method, now 9)" in note for note in notes)
    assert all("to run again." in note for note in notes)


def test_status_knows_versions_that_follow_from_values():
    from dataclasses import replace

    from debiasbench.records import read_records
    from debiasbench.report.make import _cause_of_staleness

    records, _ = read_records(Path(__file__).parents[2] / "docs" / "reproduction" / "records")
    record = next(one for one in records if one.cell.title == "jtt on cmnist5k, seed 0")
    assert _cause_of_staleness(record) == ""
    fractional = replace(record.cell, method_parameters={**record.cell.method_parameters, "lambda_up": 2.5})
    assert _cause_of_staleness(replace(record, cell=fractional)) == "version 1 of the method, now 2"
    gone = replace(record.cell, method_parameters={**record.cell.method_parameters, "no_longer": 1})
    assert _cause_of_staleness(replace(record, cell=gone)) == ""
