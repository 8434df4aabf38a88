"""The training loop and what goes into a step: order, sampling, schedule, randomness, and what is refused."""

import copy

import pytest
import torch
from scipy.stats import chisquare, spearmanr
from torch import nn

from debiasbench.data.augment import to_input
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.grid import expand
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method
from debiasbench.methods import registry as methods
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits
from debiasbench.schedule import learning_rate_at, rate_at
from debiasbench.training import stage as stage_module
from debiasbench.training.batches import draws_of, n_batches, plan_epoch

QUICK = {"net": "mlp", "augment": False, "crop_scale": None, "rotation": 0.0, "saturation": 0.0, "hue": 0.0}


def ce(nets, batch, state):
    """Mean cross-entropy."""
    return cross_entropy(nets.net(batch.x), batch.y).mean()


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def numbered(n):
    """Samples of one colour each that says which sample it is (`number_of`)."""
    place = torch.arange(n)
    colour = torch.stack([place % 256, place // 256, torch.full_like(place, 7)], 1).to(torch.uint8)
    y = torch.randint(0, 10, (n,), generator=seeded(n))
    return Samples(colour[:, :, None, None].expand(n, 3, 28, 28).contiguous(), y, ((y + place) % 10)[:, None])


def number_of(x):
    """The numbers of `numbered` samples, read from their pixels."""
    return (255 * x[:, 0, 3, 5]).round().long() + 256 * (255 * x[:, 1, 3, 5]).round().long()


@pytest.fixture(scope="module")
def numbered_splits():
    """1,234 numbered training samples, 40 and 50 for validation and test."""
    return Splits(train=numbered(1234), valid=numbered(40), test=numbered(50))


def weights(task):
    """All parameters and buffers of a task's networks."""
    return [value.clone() for net in task.all_nets() for value in net.state_dict().values()]


def assert_equal(some, others):
    """Lists of tensors, equal bit by bit."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one, other)


# ---- passes over the data ----------------------------------------------------------------------------------


def test_once_leaves_the_number_of_threads_alone(make_task):
    """UMAP's numba sets torch's threads: what is trained after it would be slow, and sum in another order."""
    task, before = make_task(), torch.get_num_threads()

    def meddling(y, *, generator):
        torch.set_num_threads(before + 1)
        return y.sum()

    def failing(*, generator):
        torch.set_num_threads(before + 1)
        raise ValueError("no clusters")

    assert task.once(meddling, task.y) == task.y.sum()
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="no clusters"):
        task.once(failing)
    assert torch.get_num_threads() == before


def test_clean_scoring_passes_are_identical_and_augmented_ones_are_not(make_task, new_method):
    """Trap 3: no dropout and no batch statistics while scoring; augmentation changes the ranks."""
    task = make_task(new_method("pgd"))
    net = task.new_net()
    task.train(net, ce)
    net.train()
    before = copy.deepcopy(net.state_dict())
    clean = [task.each(lambda x, y: task.method.scores(net, x, y)) for _ in range(2)]
    assert torch.equal(*clean)
    assert net.training
    assert_equal(list(net.state_dict().values()), list(before.values()))
    drawn = [task.each(lambda x, y: task.method.scores(net, x, y), augment=True) for _ in range(2)]
    for first, second in ((clean[0], drawn[0]), (drawn[0], drawn[1])):
        assert 0 < spearmanr(first.numpy(), second.numpy()).statistic < 0.9999


def test_scores_are_in_dataset_order(make_task, new_method):
    """Trap 6: row i of a scoring pass is the score of sample i by itself, however the pass is batched."""
    task = make_task(new_method("pgd"), n=90)
    net = task.new_net()
    task.train(net, ce)
    together = task.each(lambda x, y: task.method.scores(net, x, y))
    task.evaluation.batch_size = 7
    apart = task.each(lambda x, y: task.method.scores(net, x, y))
    net.eval()
    with torch.no_grad():
        for place in range(90):
            x, y = task.x[place : place + 1].float() / 255, task.y[place : place + 1]
            expected = task.method.scores(net, x, y).item()
            assert together[place].item() == pytest.approx(expected, rel=1e-4)
            assert apart[place].item() == pytest.approx(expected, rel=1e-4)
    assert together.max() > 1.01 * together.min()


@pytest.mark.parametrize("augment", [False, True])
def test_a_pass_returns_every_sample_once_in_order(make_task, numbered_splits, augment):
    """Traps 6 and 7: row i is sample i, each exactly once, also after training with resampling."""
    task = make_task(splits=numbered_splits, **{**QUICK, "augment": True, "flip": True})
    net = task.new_net()
    h = torch.rand(1234, generator=seeded()).double() ** 4
    task.train(net, ce, sample=h / h.sum())
    assert torch.equal(task.each(lambda x, _: number_of(x), augment=augment), torch.arange(1234))
    assert torch.equal(task.each(lambda _, y: y, augment=augment), task.y)
    assert torch.equal(task.each(lambda x, _: number_of(x), split="valid", augment=augment), torch.arange(40))


def test_evaluation_sees_every_sample_once_while_resampling(make_task, numbered_splits):
    """Trap 7: validation and test are not resampled by a stage that is."""
    task = make_task(splits=numbered_splits, **QUICK)
    net = task.new_net()
    seen = []

    class Noting:
        def predict(self, nets, x):
            seen.append(number_of(x))
            return nets.net(x)

    h = torch.zeros(1234)
    h[:3] = 1
    task.train(net, ce, sample=h, predict=Noting().predict, epochs=1)
    assert torch.equal(torch.cat(seen), torch.cat([torch.arange(40), torch.arange(50)]))


def test_training_batches_hold_what_they_say(make_task, numbered_splits):
    """Traps 6 and 7: x, y and the columns of a batch are those of its index; perm is a permutation."""
    task = make_task(splits=numbered_splits, **QUICK)
    column = torch.rand(1234, 2, generator=seeded())
    seen = []

    def loss(nets, batch, state):
        assert nets.net.training
        assert torch.equal(number_of(batch.x), batch.index)
        assert torch.equal(batch.y, task.y[batch.index])
        assert torch.equal(batch.y_all, task.y)
        assert torch.equal(batch.weight, column[batch.index])
        assert torch.equal(batch.perm.sort().values, torch.arange(len(batch.index)))
        assert batch.n_steps == 2 * len(range(0, 1234, 32))
        seen.append((int(batch.epoch), int(batch.step), batch.index, batch.perm))
        return ce(nets, batch, state)

    task.train(task.new_net(), loss, columns={"weight": column}, predict=None)
    assert [step for _, step, _, _ in seen] == list(range(78))
    epochs = [torch.cat([index for at, _, index, _ in seen if at == epoch]) for epoch in range(2)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(1234))
    assert not torch.equal(*epochs)
    assert not torch.equal(epochs[0], torch.arange(1234))
    perms = [perm for _, _, _, perm in seen if len(perm) == 32]
    assert len({tuple(perm.tolist()) for perm in perms}) == len(perms)


def test_training_draws_reproduce_h(make_task, new_method, make_splits):
    """Trap 7: after sampling is turned on, N draws an epoch hold conflicting samples as often as h says."""
    task = make_task(new_method("pgd"), splits=make_splits(3000, ratio=0.05), **QUICK, epochs=4)
    conflicting = task.splits.train.conflicting[:, 0]
    score = torch.where(conflicting, 9.0, 1.0) * (0.5 + torch.rand(3000, generator=seeded()))
    h = (score / score.sum()).double()
    seen = []

    def loss(nets, batch, state):
        seen.append(batch.index)
        return ce(nets, batch, state)

    task.train(task.new_net(), loss, sample=h)
    drawn = torch.cat(seen)
    assert len(drawn) == 4 * 3000
    n_conflict = int(conflicting[drawn].sum())
    mass = float(h[conflicting].sum())
    assert 0.2 < mass < 0.5
    assert chisquare([n_conflict, 12_000 - n_conflict], [12_000 * mass, 12_000 * (1 - mass)]).pvalue > 1e-4


# ---- layouts of an epoch -----------------------------------------------------------------------------------


def laid_out(sample, n, batch_size=32, **options):
    """The batches of an epoch."""
    generator = options.pop("generator", None) or seeded()
    return plan_epoch(sample, n_samples=n, batch_size=batch_size, generator=generator, **options)


def test_every_item_keeps_its_probability():
    """Trap 7: over many draws each single sample comes as often as h says."""
    h = torch.rand(500, generator=seeded(1)).double() ** 3 + 1e-3
    drawn = torch.cat(laid_out(h, 500, draws=1_000_000))
    assert chisquare(torch.bincount(drawn, minlength=500).numpy(), (h / h.sum() * 1e6).numpy()).pvalue > 1e-4


def test_sampling_does_not_need_normalised_values():
    """Values in proportion to probabilities will do; those of 0 are never drawn."""
    h = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    counts = torch.bincount(torch.cat(laid_out(h, 5, draws=40_000)), minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert chisquare(counts[[1, 3]].numpy(), [30_000, 10_000]).pvalue > 1e-4


def test_a_point_on_an_edge_draws_what_begins_there(monkeypatch):
    """Points are in [0, 1): one on a running sum is the next item's, and never that of one with probability 0."""
    points = torch.tensor([0.0, 0.5, 0.25], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: points)
    assert torch.cat(laid_out(torch.tensor([0.0, 2.0, 0.0, 2.0]), 4, draws=3)).tolist() == [1, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_probabilities_are_not_lost(dtype):
    """Trap 8: a million items of probability 1e-9 behind one of 0.999 can all be drawn.

    With float32 edges or points only one in sixty of them could: the same ones would come again and again.
    """
    n = 1_000_001
    h = torch.full((n,), 1e-9, dtype=dtype)
    h[0] = 0.999
    drawn = torch.cat(laid_out(h, n, batch_size=4_000_000, draws=4_000_000))
    rare = drawn[drawn > 0]
    assert abs(len(rare) - 4000) < 6 * 4000**0.5
    expected = 1e6 * (1 - (1 - 1e-6) ** len(rare))  # distinct ones
    assert len(rare.unique()) == pytest.approx(expected, abs=15)
    halves = [int((rare <= 500_000).sum()), int((rare > 500_000).sum())]
    assert chisquare(halves).pvalue > 1e-4


def test_uniform_probabilities_stay_uniform_over_a_million_items():
    """Trap 8: blocks of low and of high indices are drawn equally often, and no item is left out."""
    n = 1_000_000
    drawn = torch.cat(laid_out(torch.full((n,), 1 / n), n, batch_size=n))
    assert chisquare((torch.bincount(drawn // 1000, minlength=1000)).numpy()).pvalue > 1e-4
    counts = torch.bincount(torch.bincount(drawn, minlength=n), minlength=4)[:4]
    poisson = torch.tensor([1, 1, 1 / 2, 1 / 6]) * torch.e**-1
    assert (counts / n - poisson).abs().max() < 0.003  # drawn 0, 1, 2, 3 times


def test_draws_are_with_replacement():
    """Trap 9: N draws an epoch, of which the distinct share under uniform h is 1 - 1/e."""
    n = 54_000
    batches = laid_out(torch.full((n,), 1 / n, dtype=torch.float64), n, batch_size=128)
    assert sum(len(batch) for batch in batches) == n
    assert [len(batch) for batch in batches] == [128] * 421 + [112]
    assert len(torch.cat(batches).unique()) / n == pytest.approx(0.632, abs=0.005)


def test_draws_are_independent_of_their_place():
    """Trap 9: no order among the draws: the first and the second half of an epoch are alike."""
    n = 54_000
    drawn = torch.cat(laid_out(torch.ones(n), n)).double()
    assert abs(spearmanr(range(n), drawn.numpy()).statistic) < 6 / n**0.5
    assert drawn[: n // 2].mean().item() == pytest.approx(n / 2, rel=0.02)


@pytest.mark.parametrize(("copies", "length"), [(200, 107_730), (201, 108_000)])
def test_copies_give_the_epoch_length_of_jtt(copies, length):
    """Trap 21: |E| = 270 of 54,000 and lambda = 200: 107,730 samples, or 108,000 with lambda + 1 copies."""
    n = 54_000
    wrong = torch.randperm(n, generator=seeded())[:270]
    times = torch.ones(n, dtype=torch.int64)
    times[wrong] = copies
    order = torch.cat(laid_out(times, n, batch_size=128))
    assert len(order) == length
    assert torch.equal(torch.bincount(order, minlength=n), times)
    spread = order.new_tensor(range(length))[torch.isin(order, wrong)].double()
    assert spread.mean().item() == pytest.approx(length / 2, rel=0.02)  # shuffled, not in blocks


def test_no_sampling_takes_each_once_shuffled():
    """sample=None: a permutation, another one for each generator, the same for the same."""
    orders = [torch.cat(laid_out(None, 1000, generator=seeded(seed))) for seed in (1, 1, 2)]
    assert torch.equal(orders[0].sort().values, torch.arange(1000))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], torch.arange(1000))


@pytest.mark.parametrize(
    ("n", "drop_last", "sizes"),
    [
        (64, False, [32, 32]),
        (66, False, [32, 32, 2]),
        (65, False, [32, 33]),
        (33, False, [33]),
        (1, False, [1]),
        (20, False, [20]),
        (64, True, [32, 32]),
        (66, True, [32, 32]),
        (65, True, [32, 32]),
        (20, True, [20]),
    ],
)
@pytest.mark.parametrize("kind", ["none", "copies", "probabilities"])
def test_last_batch_is_kept_joined_or_dropped(kind, n, drop_last, sizes):
    """A smaller last batch is kept, a tail of one joins the batch before it, drop_last leaves it out."""
    sample = {"none": None, "copies": torch.ones(n, dtype=torch.int64), "probabilities": torch.ones(n)}[kind]
    batches = laid_out(sample, n, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    if kind != "probabilities":
        assert len(torch.cat(batches).unique()) == sum(sizes)


def test_fractional_copies_by_probabilities_and_draws():
    """Weights of 10/3 as probabilities, and the epoch length of their sum."""
    weight = torch.ones(900, dtype=torch.float64)
    weight[:100] = 10 / 3
    draws = round(float(weight.sum()))
    assert draws == 1133
    total = torch.zeros(900)
    for epoch in range(300):
        order = torch.cat(laid_out(weight, 900, draws=draws, generator=seeded(epoch)))
        assert len(order) == draws
        total += torch.bincount(order, minlength=900)
    assert chisquare((total / total.sum()).numpy() * 339_900, (weight / weight.sum() * 339_900).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 34, 63, 64, 65, 96, 97, 100])
def test_the_length_of_an_epoch_is_arithmetic(n, drop_last):
    """As many batches as are laid out, of each sample once, of copies, and of draws."""
    assert n_batches(n, 32, drop_last=drop_last) == len(laid_out(None, n, drop_last=drop_last))
    copies = torch.arange(n) % 3 + 1
    n_copies = draws_of(copies, n, None)
    assert n_copies == int(copies.sum())
    assert n_batches(n_copies, 32, drop_last=drop_last) == len(laid_out(copies, n, drop_last=drop_last))
    for draws in (None, 1, 33, 70):
        n_draws = draws_of(torch.rand(n), n, draws)
        assert n_draws == (draws or n)
        planned = laid_out(torch.rand(n), n, drop_last=drop_last, draws=draws)
        assert n_batches(n_draws, 32, drop_last=drop_last) == len(planned)


def test_a_stage_lays_out_no_epoch_to_know_its_length(make_task, monkeypatch):
    """One plan an epoch; a function that lays out batches is asked for one more, unless it says how many."""
    plans = []
    original = stage_module.plan_epoch
    monkeypatch.setattr(
        stage_module, "plan_epoch", lambda *given, **options: plans.append(1) or original(*given, **options)
    )

    class Layout:
        """Two batches an epoch."""

        def __call__(self, generator):
            return list(torch.randperm(64, generator=generator).split(32))

        def __len__(self):
            return 2

    for sample, n_plans in (
        (None, 2),
        (torch.ones(200), 2),
        (torch.ones(200).long(), 2),
        (Layout(), 2),
        (Layout().__call__, 3),
    ):
        plans.clear()
        task = make_task()
        stage = task.stage(task.new_net(), ce, sample=sample)
        stage.run()
        assert len(plans) == n_plans, sample


def test_a_function_lays_out_batches_itself(make_task):
    """sample=function: its batches are trained on as they are, with a generator that differs by epoch."""
    task = make_task(**QUICK, epochs=3)
    given, seen = [], []

    def layout(generator):
        batches = list(torch.randint(0, 200, (3, 5), generator=generator))
        given.extend(batches)
        return batches

    def loss(nets, batch, state):
        seen.append(batch.index)
        return ce(nets, batch, state)

    task.train(task.new_net(), loss, sample=layout)
    assert len(seen) == 9
    assert len({tuple(index.tolist()) for index in seen}) == 9
    assert {tuple(index.tolist()) for index in seen} <= {tuple(index.tolist()) for index in given}


class LayoutOfLength:
    """Lays out one batch and says how many it is."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __call__(self, _):
        return [torch.arange(8)]


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (lambda _: [], "must lay out at least one batch"),
        (lambda _: [torch.arange(0)], "no batch may be empty"),
        (lambda _: [torch.arange(8), torch.arange(0)], "no batch may be empty"),
        (LayoutOfLength(0), r"its len\(\) is 0"),
    ],
)
def test_a_function_lays_out_some_samples(make_task, layout, said):
    task = make_task(**QUICK, epochs=1)
    with pytest.raises(ValueError, match=said):
        task.train(task.new_net(), ce, sample=layout)


# ---- what is refused ---------------------------------------------------------------------------------------


RESAMPLING = {
    "probabilities": torch.rand(200, generator=torch.Generator().manual_seed(0)),
    "copies": torch.arange(200) % 3,
}


@pytest.mark.parametrize("kind", RESAMPLING)
def test_state_tables_with_resampling_are_refused(make_task, kind):
    """Section 1 of the definitions: a table and duplicate indices in one batch would race for one row."""
    task = make_task(**QUICK)
    net, state = task.new_net(), {"table": task.column(0.0)}
    with pytest.raises(ValueError, match="table"):
        task.train(net, ce, sample=RESAMPLING[kind], state=state)
    task.train(net, ce, sample=RESAMPLING[kind], state={"scalar": torch.zeros(())}, epochs=1)
    task.train(net, ce, state=state, epochs=1)


@pytest.mark.parametrize("kind", RESAMPLING)
def test_state_tables_with_resampling_are_refused_by_a_stage_too(make_task, kind):
    """The same where a stage is given its sampling when it is run."""
    task = make_task(**QUICK)
    stage = task.stage(task.new_net(), ce, state={"table": task.column(0.0)})
    stage.run(epochs=1)
    with pytest.raises(ValueError, match="table"):
        stage.run(epochs=1, sample=RESAMPLING[kind])


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (torch.full((200,), float("nan")), DivergedError),
        (torch.full((200,), float("inf")), DivergedError),
        (torch.zeros(200), ValueError),
        (torch.cat([torch.ones(199), -torch.ones(1)]), ValueError),
        (torch.ones(199), TypeError),
        (torch.ones(200, dtype=torch.bool), TypeError),
        (torch.ones(200, dtype=torch.int32), TypeError),
        ([1.0] * 200, TypeError),
    ],
)
@pytest.mark.parametrize("through", ["train", "run"])
def test_wrong_sampling_is_refused(make_task, through, sample, error):
    """Probabilities that are not finite, negative, all 0, or not one a sample are refused before a step."""
    task = make_task(**QUICK)
    net = task.new_net()
    before = weights(task)
    with pytest.raises(error):  # noqa: PT012 - both ways must refuse
        if through == "train":
            task.train(net, ce, sample=sample)
        else:
            task.stage(net, ce).run(epochs=1, sample=sample)
    assert_equal(weights(task), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_raises(make_task, value):
    """A diverged training is an error that says where, not a record of nan."""
    task = make_task(**QUICK)

    def loss(nets, batch, state):
        return ce(nets, batch, state) * torch.where(batch.step == 3, value, 1.0)

    with pytest.raises(DivergedError, match="epoch 1"):
        task.train(task.new_net(), loss)


def test_a_pass_that_is_not_finite_raises(make_task):
    """Nan scores do not become a distribution."""
    task = make_task(**QUICK)
    with pytest.raises(DivergedError, match="not finite"):
        task.each(lambda _, y: torch.where(y == 3, float("nan"), 1.0))


def test_bias_labels_need_a_declaration(make_task):
    """Section 1 of the definitions: batch.bias and task.bias raise unless the method declares its need."""
    seen = []

    def loss(nets, batch, state):
        seen.append((batch.index, batch.bias))
        return ce(nets, batch, state)

    task = make_task(**QUICK)
    with pytest.raises(AttributeError, match="needs_bias_labels"):
        task.train(task.new_net(), loss)
    with pytest.raises(PermissionError, match="needs_bias_labels"):
        _ = task.bias

    class Oracle(Method):
        name = "oracle"
        needs_bias_labels = True

        def fit(self, task):
            raise NotImplementedError

    task = make_task(Oracle(), **QUICK)
    task.train(task.new_net(), loss)
    assert torch.equal(task.bias, task.splits.train.bias)
    for index, bias in seen:
        assert torch.equal(bias, task.splits.train.bias[index])


def test_a_batch_says_what_it_lacks(make_task):
    """A misspelt attribute names those that exist."""
    task = make_task(**QUICK)
    with pytest.raises(AttributeError, match="it has epoch, index"):
        task.train(task.new_net(), lambda _nets, batch, _state: batch.weights)


def test_foreign_networks_and_vectors_are_refused(make_task):
    """A network that does not follow the seed, and a loss that is not one number."""
    task = make_task(**QUICK)
    with pytest.raises(BenchmarkError, match="new_net"):
        task.train(nn.Linear(2, 2), ce)
    with pytest.raises(TypeError, match=r"shape \(\)"):
        task.train(task.new_net(), lambda nets, batch, _state: cross_entropy(nets.net(batch.x), batch.y))
    with pytest.raises(ValueError, match="Column 'weight'"):
        task.train(task.new_net(), ce, columns={"weight": torch.ones(7)})


# ---- optimiser and schedule --------------------------------------------------------------------------------


def test_step_schedule_is_torchs_step_lr():
    """The paper's x0.1 every 40 of 100 epochs, as StepLR gives it, epoch by epoch."""
    recipe = Recipe(epochs=100, learning_rate=0.02, milestones=(0.4, 0.8), gamma=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.1)
    for epoch in range(100):
        assert learning_rate_at(recipe, epoch / 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        schedule.step()


def test_cosine_schedule_is_torchs():
    """CosineAnnealingLR over the whole stage."""
    recipe = Recipe(epochs=100, learning_rate=0.03, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for epoch in range(100):
        assert learning_rate_at(recipe, epoch / 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("epochs", [3, 5, 7, 10, 20, 30, 160])
def test_milestones_fall_on_whole_epochs(epochs):
    """Milestones as fractions: 3 of 5 epochs is at 0.6, whatever the floats say."""
    for milestone in range(epochs + 1):
        recipe = Recipe(epochs=epochs, learning_rate=1.0, milestones=(milestone / epochs,), gamma=0.5)
        for epoch in range(epochs):
            assert learning_rate_at(recipe, epoch / epochs) == (0.5 if epoch >= milestone else 1.0)


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear", "constant"])
def test_the_learning_rate_rises_over_the_fraction_of_the_warm_up(schedule):
    plain = Recipe(schedule=schedule, learning_rate=0.8)
    recipe = Recipe(schedule=schedule, learning_rate=0.8, warm_up=0.1)
    for step in range(200):  # 20 epochs of 10 steps: the first two rise
        expected = rate_at(plain, step, 200, step // 10, 20)
        assert expected == learning_rate_at(plain, step / 200 if schedule == "linear" else step // 10 / 20)
        assert rate_at(recipe, step, 200, step // 10, 20) == pytest.approx(expected * min(1, (step + 1) / 20)), step
    assert rate_at(recipe, 0, 200, 0, 20) == pytest.approx(0.04)


def test_a_stage_warms_up(make_task):
    """Over half of its 2 x 4 steps."""
    task = make_task(**QUICK, epochs=2, batch_size=64, warm_up=0.5, schedule="constant", learning_rate=0.5)
    stage, rates = rates_of(task)
    stage.run()
    assert [rate for *_, rate in rates] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5])


def rates_of(task, **options):
    """The learning rate at each step of a stage, as the optimiser has it."""
    rates = []
    stage = None

    def loss(nets, batch, state):
        rates.append((int(batch.epoch), int(batch.step), stage.update.optimizer.param_groups[0]["lr"]))
        return ce(nets, batch, state)

    stage = task.stage(task.new_net(), loss, **options)
    return stage, rates


def test_the_optimiser_follows_the_schedule_by_epoch(make_task):
    """Section 1.5: the schedule steps once an epoch, in stages of any length; the last epoch is counted."""
    task = make_task(**QUICK, epochs=5, batch_size=64)
    stage, rates = rates_of(task)
    stage.run()
    expected = [0.02, 0.02, 0.002, 0.002, 0.0002]
    assert [(epoch, rate) for epoch, _, rate in rates] == [
        (epoch, pytest.approx(rate)) for epoch, rate in enumerate(expected) for _ in range(4)
    ]


def test_the_optimiser_follows_the_schedule_by_step(make_task):
    """Where a stage is counted in steps, decays fall on steps, and it ends at its last step."""
    task = make_task(**QUICK, steps=10, batch_size=64, gamma=0.5)  # 4 steps an epoch
    stage, rates = rates_of(task)
    stage.run()
    expected = [0.02] * 4 + [0.01] * 4 + [0.005] * 2
    assert [(step, rate) for _, step, rate in rates] == [
        (step, pytest.approx(rate)) for step, rate in enumerate(expected)
    ]
    assert [epoch for epoch, _, _ in rates] == [0] * 4 + [1] * 4 + [2] * 2


def test_a_stage_in_parts_is_the_stage_in_one(make_task):
    """A stage keeps its optimiser, its schedule and its epoch count between runs."""
    parts, rates = rates_of(make_task(**QUICK, epochs=5, batch_size=64))
    optimizer = parts.update.optimizer
    for _ in range(5):
        parts.run(epochs=1)
    assert parts.update.optimizer is optimizer
    assert [rate for _, _, rate in rates] == pytest.approx([0.02] * 8 + [0.002] * 8 + [0.0002] * 4)
    assert [epoch for epoch, _, _ in rates] == [epoch for epoch in range(5) for _ in range(4)]
    assert [step for _, step, _ in rates] == list(range(20))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_training_equals_a_plain_loop(make_task, optimizer, clip):
    """The engine's steps against a loop written out with torch's own optimisers."""
    task = make_task(
        **QUICK,
        epochs=5,
        optimizer=optimizer,
        learning_rate=0.01,
        weight_decay=0.02,
        clip_norm=clip,
        gamma=0.5,
    )
    net = task.new_net()
    copied = copy.deepcopy(net)
    indices, losses = [], []

    def loss(nets, batch, state):
        indices.append((int(batch.epoch), batch.index))
        return ce(nets, batch, state)

    task.train(net, loss)
    if optimizer == "sgd":
        plain = torch.optim.SGD(copied.parameters(), 0.01, momentum=0.9, weight_decay=0.02, fused=True)
    elif optimizer == "adam":
        plain = torch.optim.Adam(copied.parameters(), 0.01, weight_decay=0.02, fused=True)
    else:
        matrices = [value for value in copied.parameters() if value.ndim > 1]
        vectors = [value for value in copied.parameters() if value.ndim == 1]
        plain = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0}], 0.01, weight_decay=0.02, fused=True
        )
    for epoch, index in indices:
        for group in plain.param_groups:
            group["lr"] = 0.01 * 0.5 ** ((epoch >= 2) + (epoch >= 4))
        value = nn.functional.cross_entropy(copied(task.x[index].float() / 255), task.y[index])
        plain.zero_grad()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(copied.parameters(), clip)
        plain.step()
        losses.append((epoch, value.item() * len(index)))
    for ours, theirs in zip(net.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    means = [sum(value for at, value in losses if at == epoch) / 200 for epoch in range(5)]
    assert task.journal.stages[0].losses == pytest.approx(means, rel=1e-4)


def test_pgd_goes_on_from_the_biased_network_with_a_fresh_optimiser(make_task):
    """Trap 10: before the first step of stage 3 f_d is f_b, buffers included, and nothing else is kept."""
    pgd, _ = methods.get("pgd")
    ends, starts = [], []

    class Watched(pgd):
        def debiased_loss(self, nets, batch, state):
            if batch.step == 0:
                rate = stages[-1].update.optimizer.param_groups[0]["lr"]
                momentum = [value for value in stages[-1].update.optimizer.state.values() if value]
                starts.append((nets.net, copy.deepcopy(nets.net), rate, momentum))
            return super().debiased_loss(nets, batch, state)

    task = make_task(Watched(), epochs=3)
    stages, new_stage, each = [], task.stage, task.each

    def stage(*arguments, **options):
        stages.append(new_stage(*arguments, **options))
        return stages[-1]

    def scoring(function, **options):
        ends.append(copy.deepcopy(task.all_nets()[0]))
        return each(function, **options)

    task.stage, task.each = stage, scoring
    assert task.method.fit(task) is task.all_nets()[0]
    (f_b,) = ends
    ((net, f_d, rate, momentum),) = starts
    assert net is task.all_nets()[0]
    assert len(stages) == 2
    assert stages[0].update.optimizer.state
    assert stages[0].update.optimizer.param_groups[0]["lr"] == pytest.approx(0.002)  # where the first schedule ended
    assert rate == 0.02
    assert not momentum
    assert_equal(list(f_d.state_dict().values()), list(f_b.state_dict().values()))
    assert any("running_mean" in name for name in f_d.state_dict())
    x = task.x[:16].float() / 255
    assert torch.equal(f_d.eval()(x), f_b.eval()(x))
    with torch.no_grad():
        assert not torch.equal(net.eval()(x), f_b(x))  # the third stage did train


def test_pgd_without_inheriting_starts_anew(make_task, new_method):
    """Trap 10: inherit=False gives the third stage another network, not the biased one."""
    task = make_task(new_method("pgd", inherit=False), **QUICK)
    net = task.method.fit(task)
    first, second = task.all_nets()
    assert net is second
    assert not torch.equal(first.head.weight, second.head.weight)


def test_disen_official_schedule():
    """Trap 24: the learning rate of Disen's own Colored MNIST command."""
    (cell,) = expand(["disen:preset=official"], ["cmnist"], seeds=[0]).cells
    recipe = cell.build_recipe()
    assert (recipe.steps, recipe.batch_size, recipe.drop_last, recipe.optimizer) == (
        50_000,
        256,
        True,
        "adam",
    )
    assert recipe.weight_decay == 0
    steps = {
        0: 0.01,
        9_999: 0.01,
        19_999: 0.01,
        20_001: 0.005,
        30_001: 0.0025,
        40_001: 0.00125,
        49_999: 0.00125,
    }
    for step, rate in steps.items():
        assert learning_rate_at(recipe, step / 50_000) == pytest.approx(rate), step


def test_disen_swaps_after_step_10000(make_task):
    """Trap 24: the swapped part is 0 at step 10,000 and not at 10,001."""
    from debiasbench.training.batches import Batch

    disen, _ = methods.get("disen")
    task = make_task(disen())
    encoders = [task.new_net(head=False) for _ in range(2)]
    heads = [task.new_head(128, 10) for _ in range(2)]
    nets = torch.nn.ModuleDict(
        {"encoder_i": encoders[0], "encoder_b": encoders[1], "head_i": heads[0], "head_b": heads[1]}
    ).eval()
    values = {}
    for step in (0, 10_000, 10_001, 49_999):
        for factor in (0.0, 1.0):
            batch = Batch(
                x=task.x[:32].float() / 255, y=task.y[:32], index=torch.arange(32),
                perm=torch.randperm(32, generator=seeded()), step=torch.tensor(step),
                n_steps=torch.tensor(50_000), epoch=torch.tensor(0), y_all=task.y,
            )  # fmt: skip
            tables = {name: task.column(float("nan")) for name in ("biased_loss", "debiased_loss")}
            values[step, factor] = disen(swap_factor=factor).loss(nets, batch, tables)[0].item()
    assert values[0, 1.0] == values[0, 0.0]
    assert values[10_000, 1.0] == values[10_000, 0.0]
    assert values[10_001, 1.0] > values[10_001, 0.0] + 0.1
    assert values[49_999, 1.0] == values[10_001, 1.0]
    assert values[10_001, 0.0] == values[0, 0.0]


# ---- randomness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pgd", "lff"])
def test_unrelated_draws_change_nothing(make_task, new_method, name):
    """Section 1 of the definitions: weights follow the seed, whatever else draws before and between."""

    def run(disturb):
        def progress(*_):
            if disturb:
                torch.rand(5)

        method = new_method(name)
        task = make_task(method, n=80, progress=progress)
        if disturb:
            torch.manual_seed(99)
            for tool in ("new_net", "train", "each"):
                original = getattr(task, tool)

                def disturbed(*arguments, original=original, **options):
                    torch.rand(3)
                    torch.randperm(7)
                    return original(*arguments, **options)

                setattr(task, tool, disturbed)
        method.fit(task)
        return task

    quiet, disturbed = run(False), run(True)
    assert_equal(weights(quiet), weights(disturbed))
    assert quiet.journal.epochs == disturbed.journal.epochs
    assert torch.equal(quiet.journal.columns["score"], disturbed.journal.columns["score"])


def test_the_global_generator_is_left_alone(make_task, new_method):
    """new_net, new_head, train, each and evaluation neither use nor move torch's global generator."""
    for name in ("pgd", "disen", "jtt"):
        method = new_method(name)
        task = make_task(method, n=80)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        net = task.new_net()
        assert torch.equal(torch.get_rng_state(), state)
        task.new_head(3, 4)
        assert torch.equal(torch.get_rng_state(), state)
        task.train(net, ce, predict=net)
        assert torch.equal(torch.get_rng_state(), state)
        method.fit(task)
        assert torch.equal(torch.get_rng_state(), state)


def test_seeds_differ_in_everything(make_task, new_method):
    """Another seed: another start, another order, other augmentation, other dropout."""
    starts, firsts = [], []
    for seed in (0, 1):
        task = make_task(seed=seed)
        net = task.new_net()
        starts.append(net.head.weight.detach().clone())

        def loss(nets, batch, state):
            if batch.step == 0:
                firsts.append((batch.index, batch.x, nets.net.body[2](torch.ones(4, 8, 5, 5))))
            return ce(nets, batch, state)

        task.train(net, loss, epochs=1)
    assert not torch.equal(*starts)
    for one, other in zip(*firsts, strict=True):
        assert not torch.equal(one, other)


def test_steps_and_epochs_have_their_own_randomness(make_task):
    """Augmentation and dropout are drawn anew at every step, and so is the start of every network."""
    task = make_task(splits=Splits(train=numbered(64), valid=numbered(40), test=numbered(40)), batch_size=64, epochs=3)
    images, masks = [], []

    def loss(nets, batch, state):
        images.append(batch.x)
        masks.append(nets.net.body[2](torch.ones(4, 8, 5, 5)))
        return ce(nets, batch, state)

    nets = [task.new_net(), task.new_net()]
    assert not torch.equal(nets[0].head.weight, nets[1].head.weight)
    for net in nets:  # always in one order, so that only the draws can differ
        task.train(net, loss, sample=lambda _: [torch.arange(64)] * 2)
    for values in (images, masks):
        assert len({value.numpy().tobytes() for value in values}) == 12


def test_evaluating_does_not_change_training(make_task):
    """Weights do not depend on how often, or whether, a stage is evaluated."""
    results = []
    for every, predicted in ((1, True), (3, True), (1, False)):
        task = make_task(n=80, epochs=3, eval_every=every)
        net = task.new_net()
        task.train(net, ce, predict=net if predicted else None)
        results.append(weights(task))
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


def mean_of_x(x, y):
    return x.mean((1, 2, 3))


def test_augmentation_that_is_off_is_off_for_scoring_too(make_task):
    """Table 4: `augment=false` holds for both stages and for the pass that scores."""
    task = make_task(augment=False)
    clean = task.each(mean_of_x)
    assert torch.equal(task.each(mean_of_x, augment=True), clean)


def test_each_never_reads_the_test_split(make_task):
    with pytest.raises(ValueError, match="never test"):
        make_task().each(mean_of_x, split="test")


def test_methods_log_columns_and_single_numbers(make_task):
    """Numbers go into the record beside the per-sample columns; other shapes are refused."""
    task = make_task(n=24)
    task.log(score=torch.arange(24.0), overlap=torch.tensor(0.25))
    assert list(task.journal.columns) == ["score"]
    assert task.journal.values == {"overlap": 0.25}
    with pytest.raises(ValueError, match=r"must have shape \(24,\) or \(\). Got \(3,\)"):
        task.log(score=torch.zeros(3))


def test_a_stage_knows_its_length_in_epochs(make_task):
    """By epochs, or by steps rounded up to whole epochs."""
    task = make_task(n=24)
    net = task.new_net()

    def length(**fields):
        recipe = task.recipe.replace(batch_size=10, **fields)
        return task.stage(net, lambda nets, *_: nets.net(nets.x).sum(), recipe=recipe).n_epochs

    assert length(epochs=7) == 7
    assert length(steps=7) == 3  # batches of 10, 10 and 4
    assert length(steps=7, drop_last=True) == 4


def test_bf16_is_autocast_of_the_forward_pass(make_task, new_method):
    """Logits are of low precision inside the loss, parameters stay float32, and results are close."""
    seen = []

    def loss(nets, batch, state):
        logits = nets.net(batch.x)
        seen.append((logits.dtype, nets.net.head.weight.dtype))
        return nn.functional.cross_entropy(logits.float(), batch.y)

    ends = {}
    for precision in ("fp32", "bf16"):
        task = make_task(n=64, epochs=1, precision=precision, augment=False)
        net = task.new_net()
        task.train(net, loss, predict=net)
        ends[precision] = task.journal.stages[0].losses[0]
    assert seen[0] == (torch.float32, torch.float32)
    assert seen[-1] == (torch.bfloat16, torch.float32)
    assert ends["bf16"] == pytest.approx(ends["fp32"], rel=0.02)
    assert ends["bf16"] != ends["fp32"]


def test_scores_are_of_full_precision_under_bf16(make_task):
    """With 8 bits, the scores of confident samples would be equal."""
    task = make_task(n=64, epochs=1, precision="bf16")
    net = task.new_net()
    logits = task.each(lambda *batch: net(batch[0]))
    assert logits.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(logits, net.eval()(to_input(task.x, task.recipe)))
