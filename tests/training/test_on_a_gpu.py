"""What the engine asks of a GPU, by the pretended one: nothing mixed, no wait within a step, few kernels."""

import pytest
import torch
from pretended_device import CUDA, DeviceTensor, MixedDevicesError, PretendedDevice
from test_methods_go_on import EveryOption

from debiasbench.datasets import registry as datasets
from debiasbench.losses import cross_entropy
from debiasbench.methods import registry as methods
from debiasbench.nets import transformer
from debiasbench.nets.small import SimConv1
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits
from debiasbench.testing import Tiny, compare_with_interrupted, make_task
from debiasbench.training import batches
from debiasbench.training.batches import Contents, n_at_once
from debiasbench.training.reuse import Reuse

QUICK = Tiny.recipe.replace(
    net="mlp", epochs=1, flip=True, pad_crop=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)
)  # 8 steps
AT_ONCE_ON_MNIST = 33  # batches of 128 images
BY_TORCHVISION = "data/rand_augment.py"  # its operations copy plain values to the device, some for all batches at once
RECIPES = {"self": {"epochs": 3}, "xrm": {"net": "simconv1"}}  # what they cannot do without
FROM_THE_HOST = ("vanilla", "pgd", "lff", "disen", "cnc")  # whose images are batch by batch on the host by default too
QUICKER = {"george": {"reduction": "pca"}, "eiil": {"ei_steps": 9}, "cnc": {"first_epochs": 1}}
TINY = Tiny().build(None)  # made before anything is pretended, where each operation takes long


def method_of(name):
    cls = methods.get(name)[0]
    return cls(**cls.by_dataset.get("tiny", {}), **QUICKER.get(name, {}))


def fitted(method, *, device=CUDA, dataset=None, recipe=QUICK, splits=None, reuse=None):
    """A task whose method is fitted on a device, and the logits of the test split."""
    splits = splits or (TINY if dataset is None else dataset.build(None))
    dataset, splits = dataset or Tiny(), splits.to(torch.device(device))
    task = make_task(method, dataset=dataset, splits=splits, recipe=recipe)
    task.reuse = reuse
    assert method.fit(task) == task.predictor
    logits = task.evaluation.logits(task.final_predictor(), task.all_nets(), task.splits.test, task.predicting_recipe)
    return task, logits.cpu()


def assert_no_step_waits(gpu, task):
    """The host waits once an epoch for the plan, the weights of samples and the loss; for three constants, once."""
    n_epochs = sum(run.epochs for run in task.journal.stages)
    waits = {where: n for where, n in gpu.waits["_run_epoch"].items() if BY_TORCHVISION not in where[1]}
    assert waits, "not even the losses were read"
    assert max(waits.values()) <= max(n_epochs, 3), waits
    assert sum(waits.values()) <= 3 * n_epochs + 3, waits


# ---- every method ---------------------------------------------------------------------------------------------------


def large_and_small(name):
    """A method with memory for all images, and with none."""
    marks = () if name in FROM_THE_HOST else pytest.mark.slow
    yield pytest.param(name, 2**36, id=f"{name}-images on the device")
    yield pytest.param(name, 0, marks=marks, id=f"{name}-images on the host")


@pytest.mark.parametrize(("name", "free"), [one for name in methods.classes() for one in large_and_small(name)])
def test_no_method_mixes_devices_or_waits_within_a_step(name, free, monkeypatch):
    if not free:  # as large images are: batch by batch
        monkeypatch.setattr(batches, "AT_ONCE", 0)
    with PretendedDevice("map", free=free) as gpu:
        task, logits = fitted(method_of(name), recipe=QUICK.replace(**RECIPES.get(name, {})))
    assert gpu.operations["map"]
    assert not gpu.waits["map"]  # passes without training, to evaluate and to score
    assert isinstance(task.x, DeviceTensor) == bool(free)
    assert isinstance(task.y, DeviceTensor)
    assert torch.isfinite(logits).all()
    assert_no_step_waits(gpu, task)


@pytest.mark.parametrize("name", ["vanilla", "pgd", "lff", "disen", "groupdro"])
def test_numbers_are_those_of_a_cpu(name, monkeypatch):
    """Where a GPU augments batch by batch as a CPU does, and has no dropout of its own: what is pretended is right."""
    monkeypatch.setattr(batches, "AT_ONCE", 0)
    with PretendedDevice():
        task, logits = fitted(method_of(name))
    task_there, logits_there = fitted(method_of(name), device="cpu")
    assert torch.equal(logits, logits_there)
    assert [run.losses for run in task.journal.stages] == [run.losses for run in task_there.journal.stages]


@pytest.mark.parametrize(("name", "limit"), [("vanilla", 75), ("pgd", 75), ("lff", 190), ("disen", 260)])
def test_kernels_of_a_step(name, limit, monkeypatch):
    """Of Colored MNIST's recipe, in the deterministic mode of a worker."""
    cls = methods.get(name)[0]
    recipe = datasets.get("cmnist")[0].recipe.replace(epochs=1, **cls.recipes.get("cmnist", {}))
    n_steps = AT_ONCE_ON_MNIST  # of so many batches: of 4 samples, whose number is nothing to kernels
    monkeypatch.setattr(batches, "n_at_once", lambda *_: n_steps)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    parts = Tiny().build(None)
    train = Samples(*(column[: 4 * n_steps] for column in (parts.train.x, parts.train.y, parts.train.bias)))
    with PretendedDevice() as gpu:
        splits = Splits(train, parts.valid, parts.test)
        task, _ = fitted(method_of(name), recipe=recipe.replace(batch_size=4), splits=splits)
    kernels = gpu.kernels["_run_epoch"]
    assert sum(kernels.values()) / (n_steps * len(task.journal.stages)) <= limit, kernels.most_common()
    assert_no_step_waits(gpu, task)


# ---- what the engine does on a GPU alone ----------------------------------------------------------------------------


def test_small_images_are_augmented_many_batches_at_once():
    """By their size, never by what memory is left: numbers follow from it."""
    y = torch.zeros(1, dtype=torch.int64)
    x = {
        "mnist": torch.zeros(1, 3, 28, 28), "cifar": torch.zeros(1, 3, 32, 32), "text": torch.zeros(1, 300),
        "photograph": torch.zeros(1, 3, 224, 224),
    }  # fmt: skip

    def at_once(kind, contents=Contents(), **recipe):  # noqa: B008 - it is frozen
        return n_at_once(Samples(x[kind], y, y[:, None]), Recipe(**recipe), contents)

    assert at_once("mnist") == 1
    with PretendedDevice():
        y = y.to(CUDA)
        assert at_once("mnist", batch_size=128) == AT_ONCE_ON_MNIST
        assert at_once("cifar", batch_size=256) == 12
        assert at_once("cifar", batch_size=256, size=224) == 1
        assert at_once("photograph", batch_size=256) == 1
        assert at_once("text", batch_size=16) == 1
        assert at_once("mnist", Contents(inputs=torch.zeros(1, 64)), batch_size=128) == 1


@pytest.fixture(params=[3, 100])
def together(request, monkeypatch):
    """So many batches at once, of the eight of an epoch."""
    monkeypatch.setattr(batches, "n_at_once", lambda *_: request.param)
    return request.param


def batches_seen():
    """What the batches of thirteen steps hold besides images; those are compared with the samples they belong to."""
    task, seen = make_task(method_of("groupdro")), []  # which may see biases
    net, column = task.new_net(), torch.rand(task.n_samples, 2, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(net="mlp", epochs=2, steps=13, batch_size=32, flip=True)

    def loss(nets, batch, state):
        assert all(type(value) is torch.Tensor for value in vars(batch).values())
        assert torch.equal(batch.views[0], batch.x)
        image = task.x[batch.index] / 255
        for view in batch.views:
            same, flipped = ((view - one).abs().amax((1, 2, 3)) == 0 for one in (image, image.flip(3)))
            assert (same | flipped).all()
        seen.append([torch.as_tensor(getattr(batch, name)) for name in NAMES])
        return cross_entropy(nets.net(batch.x), batch.y).mean()

    task.train(
        net, loss, columns={"weight": column}, views=2, recipe=recipe, noise={"lam": torch.distributions.Normal(0, 1)}
    )
    return task, column, seen


NAMES = "index", "y", "bias", "weight", "lam", "perm", "step", "epoch", "n_steps", "y_all"


def test_what_is_gathered_together_is_that_of_each_batch(together, monkeypatch):
    """Columns, noise, views, bias; steps end where the recipe says; order, noise and permutations as one by one."""
    task, column, seen = batches_seen()
    monkeypatch.setattr(batches, "n_at_once", lambda *_: 1)
    alone = batches_seen()[2]
    assert len(seen) == len(alone) == 13
    for one, other in zip(seen, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for number, (index, y, bias, weight, lam, perm, step, epoch, n_steps, y_all) in enumerate(seen):
        assert torch.equal(y, task.y[index])
        assert torch.equal(bias, task.bias[index])
        assert torch.equal(weight, column[index])
        assert torch.equal(perm.sort().values, torch.arange(32))
        assert lam.shape == (32,)
        assert (int(step), int(epoch), int(n_steps)) == (number, number // 8, 13)
        assert torch.equal(y_all, task.y)
    assert torch.equal(torch.cat([row[0] for row in seen[:8]]).sort().values, torch.arange(256))
    assert len(torch.cat([row[4] for row in seen]).unique()) == 13 * 32  # noise is drawn for each


def test_an_interruption_within_what_is_augmented_together(monkeypatch):
    monkeypatch.setattr(batches, "n_at_once", lambda *_: 3)
    compare_with_interrupted(EveryOption())


def test_dropout_is_the_devices_own():
    """One kernel for the mask and its use, and one for the gradient."""
    with PretendedDevice() as gpu:
        net = SimConv1((3, 28, 28), 4).to(CUDA)
        net(torch.ones(2, 3, 28, 28, device=CUDA)).sum().backward()
        net.eval()(torch.ones(2, 3, 28, 28, device=CUDA))
    assert gpu.operations[""]["native_dropout"] == gpu.operations[""]["native_dropout_backward"] == 3
    assert not [name for name in gpu.operations[""] if "random" in name or "bernoulli" in name]


# ---- text -----------------------------------------------------------------------------------------------------------


class Comments(Tiny):
    """Texts of 4 to 40 tokens, whose second token says the label."""

    input = "text"
    recipe = Recipe(
        net="transformer", epochs=1, batch_size=32, optimizer="adamw", learning_rate=0.01, schedule="linear",
        clip_norm=1.0, augment=False,
    )  # fmt: skip

    def _part(self, number, n, ratio):
        generator = torch.Generator().manual_seed(number)
        length = torch.randint(4, 41, (n,), generator=generator)
        x = torch.randint(10, 30, (n, 40), generator=generator, dtype=torch.int32)
        y = torch.arange(n) % 4
        x[:, 1] = 5 + y.int()
        x[torch.arange(40) >= length[:, None]] = -1
        return Samples(x, y, y[:, None].roll(1), length=length)


KINDS = {"bert": "Bert", "distilbert": "DistilBert", "gpt2": "GPT2", "mpnet": "MPNet"}
MASKED_BY_THEMSELVES = "gpt2", "mpnet"  # what reads from left to right, and what adds its mask


@pytest.fixture(scope="module", params=KINDS)
def comments(request, tmp_path_factory):
    """Texts, and the recipe of a tiny encoder of some kind."""
    import transformers

    sizes = {
        "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
        "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
        "mpnet": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    }[request.param]
    config = getattr(transformers, f"{KINDS[request.param]}Config")(
        vocab_size=40, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{KINDS[request.param]}Model")(config).save_pretrained(folder)
    transformer.load_encoder(
        str(folder), 4
    )  # what the library imports for it must not be met with by a pretended device
    return request.param, Comments.recipe.replace(pretrained=str(folder))


@pytest.fixture
def loaded_as_ever(monkeypatch):
    """The library makes networks on torch's meta device, which the pretended one stands upon."""
    load = transformer.load_encoder

    def outside(*given):
        with PretendedDevice.outside():
            return load(*given)

    monkeypatch.setattr(transformer, "load_encoder", outside)


@pytest.mark.parametrize("name", ["pgd", "lff"])
def test_no_step_of_text_waits(comments, loaded_as_ever, name):
    """The library looks whether a text is padded, where it is not given the mask as attention uses it."""
    kind, recipe = comments
    with PretendedDevice() as gpu:
        task, logits = fitted(method_of(name), dataset=Comments(), recipe=recipe)
    assert torch.isfinite(logits).all()
    if kind not in MASKED_BY_THEMSELVES:
        assert_no_step_waits(gpu, task)


def test_a_ready_mask_is_for_those_that_do_the_same_by_it(comments):
    """Where it is taken, a text has the features that it has without padding."""
    kind, recipe = comments
    net = transformer.Transformer(4, recipe.pretrained).eval()
    assert net.takes_ready_mask == (kind not in MASKED_BY_THEMSELVES)
    x = Comments().build(None).test.x
    padded = x[(x >= 0).sum(1).argmin()][None]
    features = transformer._output(net.body, padded[padded >= 0][None])
    ready = transformer._output(net.body, padded, ready_mask=True)
    assert torch.allclose(features, ready, rtol=1e-4) == net.takes_ready_mask
    assert torch.equal(net.features(padded), transformer._output(net.body, padded))  # on a CPU as ever


# ---- precision, and stages used again -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "lff", "disen", "cnc"])
def test_low_precision_mixes_nothing_either(name):
    """Products are of bf16, parameters and their gradients of fp32, and no step waits."""
    seen = []

    class Net(SimConv1):
        def features(self, x):
            hidden = super().features(x)
            seen.append((hidden.dtype, x.dtype))
            return hidden

    with PretendedDevice() as gpu, pytest.MonkeyPatch.context() as patched:
        patched.setattr("debiasbench.nets.build.SimConv1", Net)
        task, logits = fitted(method_of(name), recipe=QUICK.replace(net="simconv1", precision="auto"))
    assert (torch.bfloat16, torch.float32) in seen
    assert {p.dtype for net in task.all_nets() for p in net.parameters()} == {torch.float32}
    assert torch.isfinite(logits).all()
    assert gpu.operations["_run_epoch"]["_to_copy"] > 8 * 3
    assert_no_step_waits(gpu, task)


def test_a_reused_stage_is_the_trained_one(tmp_path):
    """What one cell trained on the device another loads there, and comes to the same end."""
    ends = []
    for _ in range(2):
        with PretendedDevice():
            reuse = Reuse(tmp_path, data="these", device=CUDA)
            task, logits = fitted(method_of("pgd"), reuse=reuse)
            ends.append((logits, task.journal.calls[1].get("reused", False), task.journal.stages[0].losses))
    assert [reused for _, reused, _ in ends] == [False, True]
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][2] == ends[1][2]


# ---- the pretended device itself ------------------------------------------------------------------------------------


REFUSED = {
    "a sum": lambda here, there: here + there,
    "a product of matrices": lambda here, there: here @ there,
    "in place": lambda here, there: here.add_(there),
    "a row of a host's tensor": lambda here, there: here[there[0].long()],
    "values of the host put in": lambda here, there: there.index_put_((torch.zeros(2, device=CUDA).long(),), here),
    "joined": lambda here, there: torch.cat([here, there]),
    "numpy": lambda _, there: there.numpy(),
    "a generator of the CPU": lambda *_: torch.rand(2, device=CUDA, generator=torch.Generator().manual_seed(1)),
    "a generator of the CPU, in place": lambda _, there: there.uniform_(generator=torch.Generator().manual_seed(1)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses(what):
    with PretendedDevice():
        here = torch.ones(2, 2)
        with pytest.raises(MixedDevicesError):
            REFUSED[what](here, here.to(CUDA))


def on_device(values):
    """Noted as a wait before what is looked at."""
    return torch.tensor(values).to(CUDA)


WAITS = {
    "a number read": (lambda x: float(x.sum()), 1),
    "a branch": (lambda x: bool((x > 0).any()), 1),
    "a list": (lambda x: x.tolist(), 1),
    "to the host": (lambda x: x.cpu(), 1),
    "from the host": (lambda _: torch.ones(3).to(CUDA), 1),
    "from plain values": (lambda _: torch.tensor([1.0, 2.0], device=CUDA), 1),
    "from plain values, as a tensor is": (lambda x: x.new_tensor([1.0]), 1),
    "into": (lambda x: x.copy_(torch.ones(3)), 1),
    "a mask": (lambda x: x[x > 0], 1),
    "where it is": (lambda x: x.nonzero(), 1),
    "its different values": (lambda x: x.unique(), 1),
    "how long it will be": (lambda x: x.repeat_interleave(x.abs().long()), 1),
    "indices on the host": (lambda x: x[torch.tensor([0, 2])], 1),
    "synchronize": (lambda _: torch.cuda.synchronize(), 1),
    "filled": (lambda _: torch.full((), 7, device=CUDA), 0),
    "a number of the host": (lambda x: x + torch.tensor(2.0), 0),
    "from pinned memory": (lambda _: torch.ones(3).pin_memory().to(CUDA, non_blocking=True), 0),
    "indices beside it": (lambda x: x[torch.zeros(1, dtype=torch.int64, device=CUDA)], 0),
    "sorted": (lambda x: x.sort(), 0),
    "drawn": (lambda _: torch.rand(3, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0)), 0),
}  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_for_what_the_host_waits(what):
    run, n = WAITS[what]
    with PretendedDevice() as gpu:
        x = on_device([1.0, -2.0, 3.0])
        gpu.waits.clear()
        run(x)
    assert sum(gpu.waits[""].values()) == n, gpu.waits
    assert all(place.startswith("tests/training/test_on_a_gpu.py:") for _, place in gpu.waits[""])


KERNELS = {
    "unknown": (lambda x: torch.special.bessel_j0(x), 1),
    "of one kernel": (lambda x: x + x, 1),
    "views": (lambda x: x.view(2, 2).t()[0].detach().unsqueeze(0), 0),
    "for a list at once": (lambda x: torch._foreach_add([x, x], 1.0), 1),
    "filled": (lambda _: torch.zeros(2, device=CUDA), 1),
    "memory alone": (lambda x: torch.empty_like(x), 0),
    "a permutation": (lambda _: torch.randperm(4, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0)), 5),
    "put at places": (lambda x: x.index_put((torch.zeros(1, dtype=torch.int64, device=CUDA),), x[:1]), 3),
    "dropout": (lambda x: torch.nn.functional.dropout(x), 1),
}  # fmt: skip


@pytest.mark.parametrize("what", KERNELS)
def test_how_many_kernels(what):
    run, n = KERNELS[what]
    with PretendedDevice() as gpu:
        x = on_device([1.0, -2.0, 3.0, 4.0])
        gpu.kernels.clear()
        run(x)
    assert sum(gpu.kernels[""].values()) == n, gpu.kernels


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: x @ x, torch.bfloat16),
        (lambda x: torch.nn.functional.linear(x, x), torch.bfloat16),
        (lambda x: (x @ x).softmax(1), torch.float32),
        (lambda x: torch.nn.functional.layer_norm(x.bfloat16(), (2,)), torch.float32),
        (lambda x: x + x, torch.float32),
    ],
)
def test_autocast_casts(function, dtype):
    with PretendedDevice():
        x = on_device([[1.0, 2.0], [3.0, 4.0]])
        with torch.autocast("cuda", torch.bfloat16):
            assert function(x).dtype == dtype
            with torch.autocast("cuda", enabled=False):
                assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.float32


def test_nothing_is_pretended_afterwards():
    before = torch.Generator, torch.tensor, torch.Tensor.to, torch.cuda.is_available
    with PretendedDevice():
        assert torch.cuda.is_available()
        assert torch.ones(2, device="cuda").is_cuda
        assert PretendedDevice.current is not None
    assert (torch.Generator, torch.tensor, torch.Tensor.to, torch.cuda.is_available) == before
    assert PretendedDevice.current is None
