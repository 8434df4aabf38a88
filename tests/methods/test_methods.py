"""The methods: where their gradients go, what they hand to the engine, and what they refuse; loops: tests/parity."""

import ast
import copy
import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from debiasbench import losses
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.losses import cross_entropy
from debiasbench.methods import registry as methods
from debiasbench.plugins import is_shipped
from debiasbench.training.batches import Batch

# three steps on 24 samples, each sample visited once or twice
STEPS = [list(range(12)), list(range(6, 18)), [0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23]]
N = 24


@pytest.fixture
def small(make_task):
    """A task whose first 24 samples are used; 4 classes that are mixed over the steps."""
    task = make_task(n=N)
    task.y = torch.tensor([0, 1, 2, 3, 1, 0] * 4)
    return task


def make_batch(task, index, *, step=0, n_steps=10, perm=None):
    """A batch of a task's samples, as the engine makes them."""
    index = torch.tensor(index)
    return Batch(
        x=task.x[index].float() / 255, y=task.y[index], index=index,
        perm=torch.arange(len(index)) if perm is None else perm, step=torch.tensor(step),
        n_steps=torch.tensor(n_steps), epoch=torch.tensor(0), y_all=task.y,
    )  # fmt: skip


def permutation(n, seed):
    """A permutation."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def gradients(loss, module):
    """The gradient of each parameter; zeros where there is none."""
    values = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(parameter) if value is None else value
        for value, parameter in zip(values, module.parameters(), strict=True)
    ]


def assert_close(some, others, **tolerance):
    """Lists of tensors, equal up to rounding."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 2e-4, "atol": 1e-6}))


# ---- LfF ---------------------------------------------------------------------------------------------------


def lff_nets(task):
    """LfF's two networks, in eval mode: without dropout the loss is a function of the weights."""
    return nn.ModuleDict({"biased": task.new_net(), "debiased": task.new_net()}).eval()


def empty_tables(task, *names):
    """Tables before the first visit."""
    return {name: torch.full((N,), math.nan) for name in names}


def test_lff_weight_has_no_gradient(small, new_method, monkeypatch):
    """Trap 20: gradients of f_b are unchanged when W is replaced by a constant, and W itself has none."""
    method = new_method("lff")
    nets = lff_nets(small)
    batch = make_batch(small, STEPS[0])
    original, seen = losses.relative_difficulty, []

    def watched(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    results = {}
    for name, function in {
        "W": watched,
        "its values": lambda *_: seen[0].clone(),
        "ones": lambda *_: torch.ones(12),
        "zeros": lambda *_: torch.zeros(12),
    }.items():
        monkeypatch.setattr(losses, "relative_difficulty", function)
        loss, tables = method.loss(nets, batch, empty_tables(small, "biased_loss", "debiased_loss"))
        results[name] = gradients(loss, nets["biased"]), gradients(loss, nets["debiased"])
        assert not any(table.requires_grad for table in tables.values())
    assert not seen[0].requires_grad
    for name in ("its values", "ones", "zeros"):
        for one, other in zip(results["W"][0], results[name][0], strict=True):
            assert torch.equal(one, other)
    assert_close(results["W"][1], results["its values"][1], rtol=0, atol=0)
    assert all((slope == 0).all() for slope in results["zeros"][1])  # f_d learns from the weighted part alone
    assert any((slope != 0).any() for slope in results["W"][0])


# ---- Disen -------------------------------------------------------------------------------------------------


def disen_nets(task):
    """Disen's two encoders and two heads, in eval mode."""
    parts = {"encoder_i": task.new_net(head=False), "encoder_b": task.new_net(head=False)}
    parts |= {"head_i": task.new_head(128, 10), "head_b": task.new_head(128, 10)}
    return nn.ModuleDict(parts).eval()


@pytest.mark.parametrize("step", [0, 9], ids=["before swapping", "swapping"])
def test_disen_gradients_do_not_cross(small, new_method, monkeypatch, step):
    """Trap 23: the CE terms do not reach E_b or its head, the GCE terms not E_i or its head."""
    batch = make_batch(small, STEPS[0], step=step, perm=permutation(12, 0))
    nets = disen_nets(small)

    method = new_method("disen", bias_factor=0.0, swap_bias_factor=0.0)  # CE alone
    loss, _ = method.loss(nets, batch, empty_tables(small, "biased_loss", "debiased_loss"))
    for part in ("encoder_b", "head_b"):
        assert all((slope == 0).all() for slope in gradients(loss, nets[part])), part
    for part in ("encoder_i", "head_i"):
        assert any((slope != 0).any() for slope in gradients(loss, nets[part])), part

    monkeypatch.setattr(losses, "relative_difficulty", lambda *_: torch.zeros(12))  # GCE alone
    loss, _ = new_method("disen").loss(nets, batch, empty_tables(small, "biased_loss", "debiased_loss"))
    for part in ("encoder_i", "head_i"):
        assert all((slope == 0).all() for slope in gradients(loss, nets[part])), part
    for part in ("encoder_b", "head_b"):
        assert any((slope != 0).any() for slope in gradients(loss, nets[part])), part


def test_disen_swap_with_the_identity_repeats_the_first_part(small, new_method):
    """Trap 23: at the identity permutation L_swap equals L_dis where the two factors are equal."""
    nets = disen_nets(small)
    values = {}
    for swap_factor, step in ((0.0, 9), (1.0, 9), (0.25, 9), (1.0, 1)):
        method = new_method("disen", bias_factor=3.0, swap_bias_factor=3.0, swap_factor=swap_factor)
        batch = make_batch(small, STEPS[0], step=step)
        tables = empty_tables(small, "biased_loss", "debiased_loss")
        values[swap_factor, step] = method.loss(nets, batch, tables)[0].item()
    first = values[0.0, 9]
    assert values[1.0, 1] == first
    assert values[1.0, 9] == pytest.approx(2 * first, rel=1e-6)
    assert values[0.25, 9] == pytest.approx(1.25 * first, rel=1e-6)


def test_disen_predicts_with_the_intrinsic_head(small, new_method):
    """Section 4.5: logits are C_i on both features of the same image."""
    nets, method = disen_nets(small), new_method("disen")
    x = small.x[:5].float() / 255
    pair = torch.cat([nets["encoder_i"].features(x), nets["encoder_b"].features(x)], 1)
    assert torch.equal(method.predict(nets, x), nets["head_i"](pair))


@pytest.mark.parametrize("name", ["lff", "disen"])
def test_joint_methods_train_and_log_their_weights(make_task, new_method, name):
    """Sections 4.3 and 4.5: the whole fit runs; W of all samples is logged, in [0, 1]."""
    task = make_task(new_method(name), n=80, epochs=3)
    predictor = task.method.fit(task)
    assert predictor is task.predictor or predictor == task.predictor
    score = task.journal.columns["score"]
    assert score.shape == (80,)
    assert ((score > 0) & (score <= 1)).all()
    assert [row.epoch for row in task.journal.epochs] == [1, 2, 3]


# ---- JTT ---------------------------------------------------------------------------------------------------


def spied(task):
    """Note what a task's `train` is given, and the network as it is then."""
    calls, train = [], task.train

    def noting(net, loss, **options):
        calls.append({"net": net, "start": copy.deepcopy(net.state_dict()), **options})
        return train(net, loss, **options)

    task.train = noting
    return calls


def test_jtt_clean_errors_are_those_of_one_pass_after_t_epochs(make_task, new_method):
    """Trap 22: after T epochs, in eval mode, without augmentation."""
    method = new_method("jtt", T=2)
    task = make_task(method, epochs=5)
    net = task.new_net()
    wrong = method.errors_after(task, net)
    assert task.journal.stages[0].epochs == 2
    net.eval()
    with torch.no_grad():
        expected = net(task.x.float() / 255).argmax(1) != task.y
    assert torch.equal(wrong, expected)
    assert 0 < wrong.sum() < 200


def test_jtt_online_errors_are_those_of_epoch_index_t(make_task, new_method):
    """Trap 22: collected in train mode while epoch index T is trained, each batch before its own update."""
    method = new_method("jtt", T=1, error_pass="online")
    task = make_task(method, epochs=5)
    wrong = method.errors_during(task, task.new_net())
    assert task.journal.stages[0].epochs == 2

    # the same training once more, with notes
    task = make_task(method, epochs=5)
    notes = {}

    def loss(nets, batch, state):
        logits = nets.net(batch.x)
        for sample, right in zip(batch.index.tolist(), logits.argmax(1) == batch.y, strict=True):
            notes.setdefault(int(batch.epoch), {})[sample] = not bool(right)
        return cross_entropy(logits, batch.y).mean()

    task.stage(task.new_net(), loss).run(epochs=2)
    assert wrong.dtype == torch.bool
    assert wrong.tolist() == [notes[1][sample] for sample in range(200)]
    assert wrong.tolist() != [notes[0][sample] for sample in range(200)]


def test_jtt_clean_and_online_errors_differ(make_task, new_method):
    """Trap 22: the two error sets are not the same; both are logged with the record."""
    sets = {}
    for error_pass in ("clean", "online"):
        method = new_method("jtt", T=1, error_pass=error_pass, lambda_up=3.0)
        task = make_task(method)
        method.fit(task)
        sets[error_pass] = task.journal.columns["selected"]
        assert sets[error_pass].dtype == torch.bool
        first = task.all_nets()[0].eval()
        with torch.no_grad():
            clean = (first(task.x.float() / 255).argmax(1) != task.y).cpu()
        overlap = (sets[error_pass] & clean).sum() / (sets[error_pass] | clean).sum()
        expected = {"jaccard_with_clean": pytest.approx(float(overlap))} if error_pass == "online" else {}
        assert task.journal.values == expected
    jaccard = (sets["clean"] & sets["online"]).sum() / (sets["clean"] | sets["online"]).sum()
    assert 0 < jaccard < 1


def with_errors(wrong):
    """JTT with a given error set."""
    cls, _ = methods.get("jtt")

    class Given(cls):
        def errors_after(self, task, net):
            return wrong

    return Given


@pytest.mark.parametrize(("copies", "times"), [("lambda", 10), ("lambda+1", 11)])
def test_jtt_repeats_its_errors(make_task, copies, times):
    """Trap 21: an error sample comes lambda (or lambda + 1) times an epoch; the network is a new one."""
    wrong = torch.arange(200) % 20 == 3
    task = make_task(with_errors(wrong)(copies=copies), rho=0.1)  # lambda = 1 / rho = 10
    calls = spied(task)
    net = task.method.fit(task)
    (call,) = calls
    assert call["sample"].dtype == torch.int64
    assert call["sample"].tolist() == [times if error else 1 for error in wrong]
    assert call.get("draws") is None
    first, second = task.all_nets()
    assert call["net"] is second is net
    assert call["predict"] is net
    assert not torch.equal(call["start"]["head.weight"], first.head.weight)
    assert call["start"]["body.1.num_batches_tracked"] == 0
    assert torch.equal(task.journal.columns["selected"], wrong)


@pytest.mark.parametrize(("copies", "whole"), [("lambda", 3), ("lambda+1", 4)])
def test_jtt_honours_a_fractional_lambda(make_task, copies, whole):
    """Section 4.4: with 1 / 0.3 each error comes three times, and a third of them, drawn by the seed, once more."""
    wrong = torch.arange(200) % 20 == 3
    drawn = []
    for seed in (0, 0, 1):
        task = make_task(with_errors(wrong)(copies=copies), rho=0.3, seed=seed)
        calls = spied(task)
        task.method.fit(task)
        (call,) = calls
        sample = call["sample"]
        assert sample.dtype == torch.int64
        assert sample[~wrong].tolist() == [1] * 190
        assert sorted(sample[wrong].tolist()) == [whole] * 7 + [whole + 1] * 3
        assert call.get("draws") is None
        torch.testing.assert_close(task.journal.columns["sampling"][wrong].mean().item(), whole + 1 / 3)
        drawn.append(sample.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("method", "dataset", "version"),
    [
        ("jtt", "cmnist5k", 1), ("jtt", "cmnist5k:rho=0.3", 2), ("jtt:lambda_up=3", "cmnist5k:rho=0.3", 1),
        ("jtt:lambda_up=2.5", "cmnist5k", 2), ("jtt", "celeba", 1), ("eiil", "cmnist5k", 1),
        ("eiil:backend=irm", "cmnist5k", 2),
    ],
)  # fmt: skip
def test_a_version_follows_from_the_values_that_it_is_about(method, dataset, version):
    (cell,) = expand([method], [dataset], seeds=1).cells
    assert cell.method_version == version


def test_jtt_takes_lambda_as_given(make_task):
    """Section 4.4: lambda_up replaces 1 / rho."""
    wrong = torch.arange(200) < 4
    task = make_task(with_errors(wrong)(lambda_up=7.0), rho=0.3)
    calls = spied(task)
    task.method.fit(task)
    assert calls[0]["sample"].tolist() == [7] * 4 + [1] * 196


@pytest.mark.parametrize("error_pass", ["clean", "online"])
def test_jtt_with_an_empty_error_set_fails_loudly(make_task, error_pass):
    """Trap 22: no errors, no second training."""
    cls, _ = methods.get("jtt")

    class Perfect(cls):
        def errors_after(self, task, net):
            return torch.zeros(200, dtype=torch.bool)

        errors_during = errors_after

    task = make_task(Perfect(error_pass=error_pass))
    with pytest.raises(RuntimeError, match="empty"):
        task.method.fit(task)
    assert not task.journal.epochs


def test_jtt_declines_where_lambda_is_undefined(new_method, make_task):
    """Section 4.4: lambda_up = 1 / rho needs a ratio above 0, or to be given."""
    dataset, _ = datasets.get("cmnist5k")
    assert "0" in new_method("jtt").decline(dataset(rho=0.0))
    assert new_method("jtt").decline(dataset(rho=0.02)) is None
    assert new_method("jtt", lambda_up=20.0).decline(dataset(rho=0.0)) is None

    class Unknown(dataset):
        name = "unknown"
        conflict_ratio = None

    assert "unknown" in new_method("jtt").decline(Unknown())
    task = make_task(new_method("jtt"))
    assert task.conflict_ratio == 0.1
    task.dataset = Unknown()
    with pytest.raises(BenchmarkError, match="jtt needs the conflict ratio, and that of unknown is not known"):
        _ = task.conflict_ratio
    with pytest.raises(BenchmarkError, match="lambda_up"):
        new_method("jtt", lambda_up=0.0)


# ---- PGD ---------------------------------------------------------------------------------------------------


def test_pgd_order_belongs_to_lp(new_method):
    """Section 4.2: norm=lp needs an order, and only it takes one."""
    with pytest.raises(BenchmarkError, match=r"order=0\.7"):
        new_method("pgd", norm="lp")
    with pytest.raises(BenchmarkError, match=r"norm=l2, order=0\.7"):
        new_method("pgd", order=0.7)
    with pytest.raises(BenchmarkError, match="above 0"):
        new_method("pgd", norm="lp", order=0.0)
    assert new_method("pgd", norm="lp", order=0.7).order == 0.7


def test_the_temperature_of_pgd_belongs_to_dpr(new_method):
    """Given with another score it would do nothing."""
    for score in ("gradnorm", "loss", "el2n"):
        with pytest.raises(BenchmarkError, match=rf"score=disagreement,tau=2\).*Got score={score}, tau=2"):
            new_method("pgd", score=score, tau=2.0)
    assert new_method("pgd", score="disagreement", tau=2.0).tau == 2.0


def test_pgd_draws_in_proportion_to_the_logged_score(make_task, new_method):
    """Equation 1: the sampling distribution of step 3 is the score over its sum."""
    task = make_task(new_method("pgd"), n=80)
    calls = spied(task)
    net = task.method.fit(task)
    first, second = calls
    score = task.journal.columns["score"]
    assert "sample" not in first
    assert second["sample"].sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(second["sample"].double(), (score / score.sum()).double())
    assert first["net"] is second["net"] is net
    assert second["start"]["body.1.num_batches_tracked"] > 0  # it goes on
    assert [stage.evaluated for stage in task.journal.stages] == [False, True]
    assert "acc_unbiased" in task.journal.stages[0].end["net"].test  # the biased network's accuracy is known


def test_pgd_reweighting_gives_each_sample_n_h(make_task, new_method):
    """Table 9: uniform batches; weights N h with mean 1."""
    task = make_task(new_method("pgd", use="reweight"), n=80)
    calls = spied(task)
    task.method.fit(task)
    weight, score = calls[1]["columns"]["weight"], task.journal.columns["score"]
    assert calls[1].get("sample") is None
    assert weight.mean().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(weight.double(), (80 * score / score.sum()).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", ["gradnorm", "loss", "error", "el2n", "eiil", "random"])
def test_pgd_upsampling_repeats_by_n_h(make_task, new_method, score):
    """Any score can be turned into copies: about N h of each sample, and at least one."""
    task = make_task(new_method("pgd", use="upsample", score=score), n=80)
    calls = spied(task)
    task.method.fit(task)
    copies, score = calls[1]["sample"], task.journal.columns["score"]
    assert copies.dtype == torch.int64
    for number, value in zip(copies.tolist(), score.tolist(), strict=True):
        assert number == max(1, round(80 * value / float(score.sum())))
    assert task.journal.stages[1].evaluated


def test_pgd_can_score_with_the_epoch_of_lowest_biased_validation_loss(make_task, new_method):
    """Flag bias_ckpt: step 2 and 3 go on from the best epoch, not the last."""
    task = make_task(new_method("pgd", bias_ckpt="best"), n=80, epochs=4)
    losses, states, each = [], [], task.each

    def noting(function, **options):
        values = each(function, **options)
        if options.get("split") == "valid":
            losses.append(float(values.mean()))
            states.append(copy.deepcopy(task.all_nets()[0].state_dict()))
            if len(losses) == 4:  # make the second the best, whatever was measured
                values = values * 0 + 1e9
            elif len(losses) == 2:
                values = values * 0
        return values

    task.each = noting
    calls = spied(task)
    task.method.fit(task)
    assert len(losses) == 4
    (call,) = calls
    for name, tensor in call["start"].items():
        assert torch.equal(tensor, states[1][name])
    assert any(not torch.equal(states[1][name], states[3][name]) for name in states[1])


def test_pgd_validation_loss_of_the_biased_network_is_the_evaluated_one(make_task, new_method):
    """What bias_ckpt=best compares is the mean cross-entropy on validation, as evaluated with bias_ckpt=last."""
    task = make_task(new_method("pgd", bias_ckpt="best"), n=80, epochs=3)
    losses, each = [], task.each

    def noting(function, **options):
        values = each(function, **options)
        losses.append(float(values.mean())) if options.get("split") == "valid" else None
        return values

    task.each = noting
    task.method.fit(task)
    ends = [stage.end["net"].valid["loss"] for stage in task.journal.stages[:3]]
    assert losses == pytest.approx(ends, rel=1e-5)


def test_pgd_takes_the_later_of_equal_epochs(make_task, new_method):
    """As everywhere else where epochs are chosen."""
    task = make_task(new_method("pgd", bias_ckpt="best"), n=80, epochs=3)
    each, seen = task.each, []

    def noting(function, **options):
        values = each(function, **options)
        if options.get("split") == "valid":
            seen.append(copy.deepcopy(task.all_nets()[0].state_dict()))
            values = values * 0
        return values

    task.each = noting
    calls = spied(task)
    task.method.fit(task)
    assert all(torch.equal(value, seen[2][name]) for name, value in calls[0]["start"].items())


@pytest.mark.parametrize("option", [{"bias_ckpt": "best"}, {"restart_lr": False}, {"inherit": False}])
def test_pgd_refuses_what_a_single_stage_has_no_place_for(new_method, option):
    with pytest.raises(BenchmarkError, match=r"trains both networks at once.*Got bias_ckpt="):
        new_method("pgd", use="single-stage", **option)


def test_pgd_keeps_the_last_rate_of_a_cosine_too(make_task, new_method):
    """The cosine ends at 0, after the last epoch."""
    task = make_task(new_method("pgd", restart_lr=False), n=80, epochs=4, schedule="cosine")
    task.method.fit(task)
    expected = 0.02 * (1 + math.cos(math.pi * 3 / 4)) / 2
    assert [row.learning_rate for row in task.journal.epochs] == pytest.approx([expected] * 4)


@pytest.mark.parametrize("warm_up", [0.0, 0.5])
def test_pgd_keeps_the_rate_of_the_last_step_where_steps_are_counted(make_task, new_method, warm_up):
    """Also where the recipe names a number of epochs, which the steps replace; and nothing warms up again."""
    given = {"n": 80, "epochs": 2, "steps": 10, "warm_up": warm_up, "schedule": "cosine"}
    task = make_task(new_method("pgd", restart_lr=False), **given)
    rates, train = [], task.train
    task.train = lambda *nets, **options: rates.append(options.get("recipe")) or train(*nets, **options)
    task.method.fit(task)
    expected = 0.02 * (1 + math.cos(math.pi * 9 / 10)) / 2
    assert (rates[1].learning_rate, rates[1].schedule, rates[1].warm_up) == (pytest.approx(expected), "constant", 0.0)
    assert [row.learning_rate for row in task.journal.epochs] == pytest.approx([expected] * len(task.journal.epochs))


def test_pgd_declines_a_rate_that_falls_to_zero_where_it_goes_on_with_it(make_task, new_method):
    recipe = make_task().recipe.replace(gamma=0.0)
    assert "falls to zero in step 1 (step)" in new_method("pgd", restart_lr=False).decline_recipe(recipe)
    assert new_method("pgd").decline_recipe(recipe) is None


def test_only_what_goes_on_with_a_rate_has_another_version():
    cells = expand(["pgd", "pgd:restart_lr=false", "dpr"], ["cmnist5k"], seeds=1).cells
    assert [cell.method_version for cell in cells] == [1, 2, 1]


# ---- who reads validation --------------------------------------------------------------------------------------------


def code_of(cls):
    """The code of a method's file, without its comments and docstrings."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.unparse(tree)


def variants(cls):
    """Each value of each parameter that has few, one at a time, beside the defaults."""
    yield {}
    for field in dataclasses.fields(cls):
        allowed = field.metadata.get("allowed")
        for value in (True, False) if field.type in (bool, "bool") else allowed.words if allowed else ():
            yield {field.name: value}


READING = [
    (name, values)
    for name, cls in sorted(methods.classes().items())
    if is_shipped(cls) and "valid" in code_of(cls) and not cls.trains_on_validation
    for values in variants(cls)
]


def test_methods_that_may_read_validation_are_looked_at():
    names = {name for name, _ in READING}
    assert names == {"george", "pgd"}
    others = [cls for name, cls in methods.classes().items() if is_shipped(cls) and name not in names]
    assert not any(cls().selects_on_validation for cls in others)


@pytest.mark.parametrize(("name", "values"), READING, ids=str)
def test_who_reads_labels_of_validation_says_so(make_task, new_method, name, values):
    """By the values that it has: `selects_on_validation`."""
    extra = {"order": 0.7} if values.get("norm") == "lp" else {}
    method = new_method(name, **values, **extra)
    task = make_task(method, n=20, epochs=1, net="mlp")
    each, read = task.each, []

    def noting(function, **options):
        read.append(options.get("split", "train"))
        return each(function, **options)

    task.each = noting
    if name == "george":  # one cluster: to find them takes seconds, and reads nothing
        task.once = lambda *_: torch.zeros_like(task.y)
    method.fit(task)
    assert ("valid" in read) == method.selects_on_validation
    assert set(read) <= {"train", "valid"}


def test_pgd_can_keep_the_learning_rate_of_its_first_stage(make_task, new_method):
    """Flag restart_lr: true starts the schedule anew, false goes on with the rate that step 1 ended with."""
    for restart, expected in ((True, [0.02, 0.02, 0.002, 0.002, 0.0002]), (False, [0.0002] * 5)):
        task = make_task(new_method("pgd", restart_lr=restart), n=80, epochs=5)
        task.method.fit(task)
        assert [row.learning_rate for row in task.journal.epochs] == pytest.approx(expected)


def test_pgd_single_stage_scores_anew_in_every_epoch(make_task, new_method):
    """Table 8: the two networks take turns, each with its whole schedule; h is new in every epoch."""
    task = make_task(new_method("pgd", use="single-stage"), n=80, epochs=3)
    stages, new_stage = [], task.stage

    def stage(*arguments, **options):
        made = new_stage(*arguments, **options)
        run, samples = made.run, []

        def noting(**run_options):
            samples.append(run_options.get("sample"))
            return run(**run_options)

        made.run = noting
        stages.append((made, samples))
        return made

    task.stage = stage
    debiased = task.method.fit(task)
    (_, of_biased), (second, of_debiased) = stages
    assert of_biased == [None, None, None]
    assert [sample.sum().item() for sample in of_debiased] == pytest.approx([1, 1, 1])
    assert not torch.equal(of_debiased[0], of_debiased[1])
    assert second.epoch == 3
    assert debiased is task.all_nets()[1]
    assert [row.epoch for row in task.journal.epochs] == [1, 2, 3]
