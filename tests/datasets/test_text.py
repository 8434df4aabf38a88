"""CivilComments-WILDS and transformers encoders: groups, tokens, networks, and what damaged files say."""

import csv
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from debiasbench import ensembles
from debiasbench.cli import main
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.metrics import overlapping
from debiasbench.evaluation.selection import select
from debiasbench.losses import gradient_norm
from debiasbench.methods import registry as methods
from debiasbench.nets.build import build_net
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples
from debiasbench.schedule import learning_rate_at
from debiasbench.testing import DATASET_CHECKS
from debiasbench.testing import make_task as tiny_task
from debiasbench.training.task import Task
from debiasbench.training.updates import new_optimizer

IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
HEADER = ["", "id", "comment_text", "split", "toxicity", *IDENTITIES, "identity_any", "insult"]
WORDS = [
    "you",
    "are",
    "a",
    "fool",
    "nice",
    "day",
    "the",
    "woman",
    "man",
    "black",
    "white",
    "gay",
    "muslim",
    "christian",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"bcdefghijklmnopqrstuvwxyz.!?"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DEBIASBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def save_encoder(folder, kind="bert", vocabulary=VOCABULARY):
    """A tiny encoder with a random start and a small vocabulary, in the library's own files."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.backend_tokenizer.enable_padding(length=48)  # as MiniLM's file has it: must not matter
    tokenizer.backend_tokenizer.enable_truncation(64)
    tokenizer.save_pretrained(folder)
    common = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 80, "pad_token_id": 0}
    if kind == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **common)
        cls = transformers.DistilBertModel
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config_class, cls = {
            "bert": (transformers.BertConfig, transformers.BertModel),
            "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
        }[kind]
        config = config_class(**sizes, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cls(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


def comment(number, text="you are nice", split="train", toxicity="0.0", **identities):
    """A row of the CSV, as WILDS' file has it."""
    mentioned = [identities.get(name, "0.0") for name in IDENTITIES]
    return [number, 1000 + number, text, split, toxicity, *mentioned, "1.0" if identities else "0.0", "0.0"]


def save_comments(folder, rows, header=HEADER):
    path = folder / "civilcomments_v1.0" / "all_data_with_identities.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def many_comments(n=120):
    """Comments with every group in every split; toxic ones hold the word fool."""
    rows = []
    for number in range(n):
        split = ("train", "train", "val", "test")[number // 2 % 4]
        toxic = number % 2
        text = " ".join(
            ["the", WORDS[number % len(WORDS)], "you are a fool" if toxic else "nice day"] * (1 + number % 9)
        )
        mentioned = {} if number % 16 >= 12 else {IDENTITIES[number // 8 % 8]: "1.0"}
        rows.append(comment(number, text, split, str(toxic), **mentioned))
    return rows


@pytest.fixture(scope="module")
def comments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comments")
    save_comments(folder, many_comments())
    return folder


def civilcomments(encoder, **options):
    return datasets.get("civilcomments")[0](**{"encoder": encoder, "max_length": 40, **options})


def built(folder, encoder, **options):
    return civilcomments(encoder, **options).build(folder)


# ---- labels and groups ----------------------------------------------------------------------------------------------


def test_labels_identities_and_splits_follow_the_file(tmp_path, encoder):
    """Toxic from 0.5 on; an identity is mentioned from 0.5 on, and an empty cell is no mention."""
    rows = [
        comment(0, toxicity="0.5", male="0.5", black="0.49"),
        comment(1, toxicity="0.49", black="1.0"),
        comment(2, "the day", "val", "1.0", white=""),
        comment(3, "the man", "test", "0.0", muslim="0.7"),
    ]
    save_comments(tmp_path, rows)
    splits = built(tmp_path, encoder)
    assert splits.train.y.tolist() == [1, 0]
    assert splits.train.bias.tolist() == [[0], [1]]
    names = civilcomments(encoder).group_names
    members = [[name for name, there in zip(names, row, strict=True) if there] for row in splits.train.groups.tolist()]
    assert members == [["male, toxic"], ["black, non-toxic"]]
    assert not splits.valid.groups.any()
    assert splits.test.groups.sum() == 1
    assert built(tmp_path, encoder, groups="identity_any").train.bias.tolist() == [[1], [1]]
    assert civilcomments(encoder, groups="identity_any").bias_names == ("identity_any",)
    assert not splits.official


def test_sixteen_overlapping_groups(shared_data, encoder):
    """Trap 35: threshold 0.5, identity present only, 16 groups that overlap and do not cover the split.

    Without the comments that mention nobody, the worst group is the same and the average is not.
    """
    dataset = civilcomments(encoder, root=str(shared_data / "civilcomments_standin"))
    splits = dataset.build(Path())
    assert len(dataset.group_names) == splits.test.groups.shape[1] == 16
    sizes = splits.test.groups.sum(0)
    assert int(sizes.sum()) != len(splits.test)
    assert (splits.test.groups.sum(1) > 1).any()
    table = pd.read_csv(dataset.file(Path()))
    expected = [
        int(((table[name] >= 0.5) & ((table.toxicity >= 0.5) == bool(y)) & (table.split == "test")).sum())
        for name in IDENTITIES
        for y in (0, 1)
    ]
    assert sizes.tolist() == expected
    correct = np.random.default_rng(0).random(len(splits.test)) < 0.7
    groups = splits.test.groups.numpy()
    mentioning = groups.any(1)
    correct[~mentioning] = True
    whole, part = overlapping(correct, groups), overlapping(correct[mentioning], groups[mentioning])
    assert whole == part
    assert correct.mean() != correct[mentioning].mean()


def test_overlapping_accuracies_by_hand():
    """Three samples, three groups, one of them empty: it has no accuracy, and is not the worst."""
    correct = np.array([True, False, True])
    groups = np.array([[True, True, False], [False, True, False], [False, True, False]])
    assert overlapping(correct, groups) == pytest.approx(
        {
            "acc_worst": 2 / 3,
            "n_worst": 3,
            "acc_groupmean": (1 + 2 / 3) / 2,
            "acc_overlapavg": 3 / 4,
            "n_groups": 2,
            "n_smallest": 1,
        }
    )
    assert np.isnan(overlapping(correct, np.zeros((3, 2), dtype=bool))["acc_worst"])


def _scatter_mean(src, index, dim_size, reduce):
    """The one function that WILDS' metrics take from torch_scatter, by torch's own operation."""
    assert reduce == "mean"
    return torch.zeros(dim_size).scatter_reduce(0, index, src.float(), "mean", include_self=False)


@pytest.fixture(scope="module")
def wilds(shared_data):
    """WILDS' own dataset on the real rows; its reader needs the old strings of pandas."""
    scatter = SimpleNamespace(scatter=_scatter_mean)  # of torch_scatter, which has no ready-made package here
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        patched.setenv("OUTDATED_IGNORE", "1")
        patched.setitem(sys.modules, "torch_scatter", scatter)
        warnings.simplefilter("ignore")
        from wilds.datasets.civilcomments_dataset import CivilCommentsDataset

        with pd.option_context("future.infer_string", False):
            yield CivilCommentsDataset(root_dir=str(shared_data / "civilcomments_standin"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_are_those_of_wilds(wilds, shared_data, encoder, seed):
    """Worst group, average and all 16 groups, on real rows where none is empty."""
    dataset = civilcomments(encoder, root=str(shared_data / "civilcomments_standin"))
    splits = dataset.build(Path())
    evaluation = Evaluation(dataset, splits)
    generator = torch.Generator().manual_seed(seed)
    for split, theirs in (("valid", "val"), ("test", "test")):
        samples, subset = splits.named()[split], wilds.get_subset(theirs)
        assert torch.equal(samples.y, subset.y_array)
        logits = torch.nn.functional.one_hot(samples.y, 2) + torch.randn(len(samples), 2, generator=generator)
        expected, _ = wilds.eval(logits.argmax(1), subset.y_array, subset.metadata_array)
        found = evaluation.metrics(split, logits)
        float32 = lambda value: float(np.float32(value))  # noqa: E731 - WILDS computes in it
        assert float32(found["acc_worst"]) == expected["acc_wg"]
        assert float32(found["acc_avg"]) == expected["acc_avg"]
        assert found["n_groups"] == 16
        rows = evaluation.groups(split, logits)
        names = [f"{identity}:1_y:{y}" for identity in IDENTITIES for y in (0, 1)]
        keys = {
            name: next(key for key in expected if key.startswith("acc_") and _is_group(key, name)) for name in names
        }
        assert [float32(row["acc"]) for row in rows] == [expected[keys[name]] for name in names]


def _is_group(key, name):
    """WILDS writes the fields of a group in one order or the other."""
    identity, label = name.split("_y:")
    return key.removeprefix("acc_") in (name, f"y:{label}_{identity}")


def test_group_numbers_are_those_of_wilds(wilds, shared_data, encoder):
    """Trap 36: whatever order the fields are given in, WILDS numbers black + 2 y; (label, bias) here says the same."""
    from wilds.common.grouper import CombinatorialGrouper

    train = built(Path(), encoder, root=str(shared_data / "civilcomments_standin")).train
    ours = train.bias[:, 0] + 2 * train.y
    metadata = wilds.get_subset("train").metadata_array
    for order in (["y", "black"], ["black", "y"]):
        assert torch.equal(CombinatorialGrouper(wilds, order).metadata_to_group(metadata), ours)


def test_no_comment_is_conflicting(comments, encoder):
    """Nothing is told of aligned and conflicting comments, and validation groups select all the same."""
    dataset = civilcomments(encoder)
    splits = dataset.build(comments)
    metrics = Evaluation(dataset, splits).metrics("valid", torch.randn(len(splits.valid), 2))
    assert not [name for name in metrics if "conflict" in name or "aligned" in name]
    assert metrics["n_smallest"] == splits.valid.groups.sum(0)[splits.valid.groups.any(0)].min()

    def chosen(n_smallest):
        common = {"acc_avg": 0.5, "loss": 1.0, "n_smallest": n_smallest}
        rows = [SimpleNamespace(valid={**common, "acc_worst": worst}, test={}) for worst in (0.1, 0.3, 0.2)]
        return select(rows, dataset.headline)["group_val"]

    assert chosen(10) == 1
    assert chosen(9) is None  # too few to choose by


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizer(tmp_path, encoder):
    """Cut at max_length, padded with -1; emoji, 100,000 characters and texts such as "null" are texts."""
    from transformers import AutoTokenizer

    texts = ["you are nice", "NA", "null", "\U0001f600 man", "fool " * 20_000, " ", 'a "day",\nthe man']
    splits = [*["train"] * 5, "val", "test"]
    save_comments(tmp_path, [comment(k, text, splits[k], str(k % 2)) for k, text in enumerate(texts)])
    parts = built(tmp_path, encoder, max_length=12)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    found = [
        row[:length].tolist()
        for part in (parts.train, parts.valid, parts.test)
        for row, length in zip(part.x, part.length, strict=True)
    ]
    assert found == [tokenizer(text, truncation=True, max_length=12)["input_ids"] for text in texts]
    assert parts.train.x.shape == (5, 12)
    assert parts.train.x.dtype == torch.int32
    assert (parts.train.x[0, parts.train.length[0] :] == -1).all()


def test_texts_are_tokenised_once(comments, encoder, monkeypatch):
    """Equal text, tokenizer and length are one entry of the cache; each of them changes it."""
    from debiasbench.data import encoders

    made = []
    blocks = encoders._blocks
    monkeypatch.setattr(encoders, "_blocks", lambda name, *rest: made.append(name) or blocks(name, *rest))
    first = built(comments, encoder, max_length=21)
    assert len(made) == 3
    again = built(comments, encoder, max_length=21)
    assert len(made) == 3
    assert first.fingerprint() == again.fingerprint()
    built(comments, encoder, max_length=22)
    assert len(made) == 6
    other = save_encoder(Path(encoder).parent / "other-vocabulary", vocabulary=VOCABULARY[:5] + VOCABULARY[:4:-1])
    built(comments, other, max_length=22)
    assert len(made) == 9


def test_batches_are_as_long_as_they_need_to_be():
    """The longest text, rounded up to a multiple of 32; never longer than all."""
    x = torch.full((4, 70), -1, dtype=torch.int32)
    lengths = torch.tensor([3, 32, 33, 70])
    x[torch.arange(70) < lengths[:, None]] = 1
    samples = Samples(x, torch.zeros(4).long(), torch.zeros(4, 1).long(), length=lengths)
    plan = [torch.tensor([0]), torch.tensor([1, 0]), torch.tensor([2]), torch.tensor([0, 3])]
    assert samples.widths(plan) == [32, 32, 64, 70]
    assert samples.widths([slice(0, 2), slice(2, 4)]) == [32, 70]
    assert [tuple(part.shape) for part in samples.read(plan)] == [(1, 32), (2, 32), (1, 64), (2, 70)]


def test_a_pass_over_texts_gives_their_order(comments, encoder):
    """Texts of like length go together, and results come back in the order of the split."""
    train = built(comments, encoder).train
    widths = []
    found = train.map(lambda _, __, x: widths.append(x.shape[1]) or (x >= 0).sum(1), 7)
    assert torch.equal(found, train.length)
    assert widths == sorted(widths, reverse=True)
    assert torch.equal(train.map(lambda _, rows, __: train.y[rows], 7), train.y)


def test_contract_of_datasets(comments, encoder):
    dataset = civilcomments(encoder)
    splits = dataset.build(comments)
    for check in DATASET_CHECKS:
        check(dataset, splits)


# ---- networks -------------------------------------------------------------------------------------------------------


def batch_of(splits, n=6):
    index = torch.arange(n)
    return next(splits.train.read([index]))


def test_features_are_what_the_last_layer_reads(comments, encoder):
    """For BERT the pooler's output; padding changes nothing."""
    from transformers import BertModel

    splits = built(comments, encoder)
    net = build_net("transformer", (40,), 2, pretrained=encoder).eval()
    body = BertModel.from_pretrained(encoder).eval()
    x = batch_of(splits)
    mask = (x >= 0).long()
    with torch.no_grad():
        expected = body(input_ids=x.clamp_min(0).long(), attention_mask=mask).pooler_output
        assert torch.equal(net.features(x), expected)
        assert torch.allclose(net(splits.train.x[:6]), net(x), atol=1e-6)
        one = x[:1, : int(splits.train.length[0])]
        assert torch.allclose(net(one), net(x)[:1], atol=1e-6)
    assert net.n_features == 16
    assert net.head.out_features == 2


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_other_encoders_have_their_last_layer_as_head(tmp_path, comments, kind):
    """The head is what gives the logits, whatever the library calls it; what it reads comes from the whole model."""
    folder = save_encoder(tmp_path / kind, kind)
    x = batch_of(built(comments, folder))
    net = build_net("transformer", (40,), 3, pretrained=folder).eval()
    assert net(x).shape == (6, 3)
    assert torch.equal(net.head(net.features(x)), net(x))
    assert not torch.equal(net.features(x)[0], net.features(x)[1])


def test_gradient_norms_are_those_of_the_last_layer(comments, encoder):
    """PGD's scores in closed form against one backward pass a sample, through BERT."""
    splits = built(comments, encoder)
    net = build_net("transformer", (40,), 2, pretrained=encoder).eval()
    x, y = batch_of(splits), splits.train.y[:6]
    expected = []
    for row in range(6):
        loss = torch.nn.functional.cross_entropy(net(x[row : row + 1]), y[row : row + 1])
        gradients = torch.autograd.grad(loss, list(net.head.parameters()))
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    features = net.features(x)
    found = gradient_norm(features, net.head(features), y, order=2.0, bias=True)
    torch.testing.assert_close(found.float(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_logits_are_of_full_precision(comments, encoder):
    """Under bf16 the head is not: rounded logits would be equal, and the worst group is small."""
    net = build_net("transformer", (40,), 2, pretrained=encoder).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(batch_of(built(comments, encoder)))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).any()


def test_only_the_head_starts_by_the_seed(comments, encoder, make_task):
    """The encoder starts as its weights say, the last layer by the seed."""
    dataset = civilcomments(encoder)
    splits = dataset.build(comments)
    vanilla = methods.get("vanilla")[0]()
    nets = [
        Task(splits, dataset=dataset, access=vanilla.access, recipe=dataset.own_recipe, seed=seed).new_net()
        for seed in (0, 0, 1)
    ]
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert [key for key in states[0] if not torch.equal(states[0][key], states[2][key])] == ["head.weight"]


@pytest.mark.parametrize(("kind", "equal"), [("bert", True), ("distilbert", False)])
def test_weight_decay_belongs_to_matrices(tmp_path, kind, equal):
    """Trap 37: most tensors decay, biases and layer norms do not. WILDS goes by names: DistilBERT's norms decay."""
    net = build_net("transformer", (40,), 2, pretrained=save_encoder(tmp_path / kind, kind))
    named = dict(net.named_parameters())
    decayed = {}
    for rule in ("matrices", "wilds"):
        recipe = Recipe(optimizer="adamw", weight_decay=0.01, decayed=rule)
        groups = new_optimizer({"biased": net}, recipe).param_groups  # LfF's name for it is not its parameters'
        assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
        places = {id(parameter) for parameter in groups[0]["params"]}
        decayed[rule] = {name for name, parameter in named.items() if id(parameter) in places}
    assert decayed["matrices"] == {name for name, parameter in named.items() if parameter.ndim == 2}
    numbers = sum(named[name].numel() for name in decayed["matrices"])
    assert numbers > 0.9 * sum(parameter.numel() for parameter in named.values())
    no_decay = ("bias", "LayerNorm.weight")
    assert decayed["wilds"] == {name for name in named if not any(part in name for part in no_decay)}
    assert (decayed["wilds"] == decayed["matrices"]) is equal
    assert all("orm" in name for name in decayed["wilds"] - decayed["matrices"])


def test_linear_decay_is_by_steps():
    """The rates of transformers' own schedule without warm-up."""
    from transformers import get_linear_schedule_with_warmup

    recipe = Recipe(schedule="linear", learning_rate=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 7)
    for step in range(7):
        assert learning_rate_at(recipe, step / 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_the_rate_falls_within_an_epoch(make_task, monkeypatch):
    """With schedule=linear each step has its own rate; the last epoch ends just above zero."""
    rates = []
    task = make_task(n=64, epochs=2, batch_size=32, schedule="linear", learning_rate=0.4)
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    methods.get("vanilla")[0]().fit(task)
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


# ---- through the command line ---------------------------------------------------------------------------------------


EVERY = (
    "vanilla", "lff", "jtt", "pgd", "pgd-loss", "pgd-reweight", "cnc:first_epochs=1,n_each=4",
    "eiil:ei_steps=100", "bpa:clusters=2", "george:reduction=pca", "groupdro", "dfr",
    "rwy", "suby", "rwg", "subg", "cvar-dro", "dpr", "bam:mu=3", "lc",
    "llr", "afr:gamma=1",
)  # fmt: skip
NOT_HERE = {"disen", "randaugment", "resample-oracle"}  # images alone; conflicts alone
NOT_HERE |= {"selecmix", "selecmix-lff"}  # images alone
NOT_HERE |= {"self", "xrm"}  # want more epochs: below


def run(
    tmp_path,
    comments,
    encoder,
    *arguments,
    spec="",
    chosen=EVERY,
):
    dataset = f"civilcomments:encoder={encoder},max_length=40,epochs=1,learning_rate=0.001,root={comments}{spec}"
    return main(
        ["run", "--methods", *chosen, "--datasets", dataset, "--seeds", "1", "--workers", "0",
         "--results-dir", str(tmp_path / "results"), *arguments]
    )  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory, comments, encoder):
    """What every method leaves behind on comments."""
    import debiasbench

    folder = tmp_path_factory.mktemp("text-run")
    assert run(folder, comments, encoder, "--save-weights") == 0
    return folder / "results", debiasbench.load_results(folder / "results")


def test_every_method_runs_on_comments_unchanged(records):
    _, table = records
    names = {
        "pgd-loss": "pgd:score=loss", "pgd-reweight": "pgd:use=reweight", "dpr": "pgd:score=disagreement",
        "suby": "rwy:use=subset", "subg": "rwg:use=subset",
    }  # fmt: skip
    assert set(table["method"]) == {names.get(name, name) for name in EVERY}
    assert {name.split(":")[0] for name in EVERY} >= set(methods.classes()) - NOT_HERE
    assert (table["status"] == "done").all()
    last = table[(table["select"] == "last") & (table["split"] == "test")]
    assert last["acc_worst"].notna().all()
    assert last["acc_avg"].between(0, 1).all()
    assert last["acc_overlapavg"].notna().all()


def test_self_and_an_ensemble_run_on_comments(tmp_path, comments, encoder, monkeypatch):
    """SELF needs two epochs; the ensemble's few steps make it sure of little."""
    import debiasbench

    monkeypatch.setattr(ensembles, "SURE", 0.2)
    chosen = ("self:points=20,early=0.5", "lff:ensemble=2,ensemble_steps=3")
    assert run(tmp_path, comments, encoder, "--epochs", "2", chosen=chosen) == 0
    assert set(debiasbench.load_results(tmp_path / "results")["status"]) == {"done"}


def test_xrm_runs_on_comments_once_its_twins_have_learnt_something(tmp_path, encoder):
    """One label in five is wrong, so that mistakes stay."""
    rows = many_comments()
    for number, row in enumerate(rows):
        if number // 2 % 5 == 0:
            row[4] = "1" if row[4] == "0" else "0"  # its toxicity
    save_comments(tmp_path, rows)
    dataset, method = civilcomments(encoder), methods.get("xrm")[0]()
    recipe = dataset.own_recipe.replace(epochs=12, learning_rate=0.003)
    task = tiny_task(method, dataset=dataset, splits=built(tmp_path, encoder), recipe=recipe)
    method.fit(task)
    assert 0 < float(task.journal.columns["selected"].double().mean()) < 1
    assert len(task.journal.epochs) == 12


def test_records_and_tables_say_that_these_are_not_the_published_data(records):
    folder, _ = records
    text = (folder / "tables" / "comparison.md").read_text(encoding="utf-8")
    assert "†" in text
    assert "not the published data" in text
    from debiasbench.records import read_record

    record = read_record(next(folder.glob("records/*/pgd/*.json")))
    assert [row.group for row in record.result.groups["test"]][:2] == ["male, non-toxic", "male, toxic"]
    assert record.result.identification == {}
    assert len(record.result.pretrained_sha256) == 64
    assert record.cell.method_parameters["alpha"] == 0.7


def test_jtt_trains_first_as_its_authors(comments, encoder):
    """T = 2, six copies, and SGD in the first training alone."""
    from debiasbench.grid import expand

    (cell,) = expand(["jtt"], [f"civilcomments:encoder={encoder},root={comments}"], seeds=1).cells
    parameters = cell.method_parameters
    assert (parameters["T"], parameters["lambda_up"], parameters["first_optimizer"]) == (2, 6.0, "sgd")
    method = cell.build_method()
    first = method.recipe_of_first(cell.build_recipe())
    assert (first.optimizer, first.learning_rate, first.weight_decay, first.batch_size) == ("sgd", 2e-5, 0.0, 24)
    assert (first.schedule, first.clip_norm, first.momentum) == ("constant", None, 0.9)
    assert (cell.build_recipe().optimizer, cell.build_recipe().batch_size) == ("adamw", 16)


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("", {"optimizer": "adamw", "schedule": "linear", "clip_norm": 1.0, "epochs": 5, "decayed": "matrices"}),
        ("wilds", {"pretrained": "distilbert-base-uncased", "decayed": "wilds", "learning_rate": 1e-5, "epochs": 5}),
        ("jtt", {"pretrained": "bert-base-uncased", "epochs": 3, "weight_decay": 0.01, "batch_size": 16}),
        ("paper", {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "clip_norm": None, "epochs": 5}),
    ],
)
def test_presets(preset, fields):
    """WILDS' default, JTT's second training, and the paper's Table 6."""
    from debiasbench.grid import expand

    spec = f"civilcomments:preset={preset}" if preset else "civilcomments"
    (cell,) = expand(["vanilla"], [spec], seeds=1).cells
    assert {key: cell.recipe[key] for key in fields} == fields
    assert cell.dataset_parameters["max_length"] == 300
    assert cell.dataset_parameters["groups"] == ("identity_any" if preset == "jtt" else "black")


def test_each_network_is_clipped_by_itself(make_task):
    """A large gradient of one network leaves the other's alone: LfF's two are trained side by side."""
    task = make_task(n=32, batch_size=32, epochs=1, clip_norm=0.1)
    nets = {"large": task.new_net(), "small": task.new_net()}
    norms = {}

    def loss(nets, batch, state):
        del state
        return 1e3 * nets.large(batch.x).square().mean() + 1e-6 * nets.small(batch.x).square().mean()

    step = torch.optim.SGD.step

    def noted(self):
        norms.update(
            {name: torch.cat([p.grad.flatten() for p in net.parameters()]).norm() for name, net in nets.items()}
        )
        return step(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", noted)
        task.train(nets, loss)
    assert norms["large"] == pytest.approx(0.1, rel=1e-3)
    assert 0 < norms["small"] < 0.01
    ratio = norms["small"] / norms["large"]
    assert ratio > 1e-9


def test_steps_bound_a_stage_that_is_run_by_epochs(make_task):
    """JTT's T epochs end with the recipe's steps: what came after would train at a rate of zero."""
    task = make_task(n=64, batch_size=16, steps=6, schedule="linear")
    net = task.new_net()
    stage = task.stage(net, lambda nets, batch, _: torch.nn.functional.cross_entropy(nets.net(batch.x), batch.y))
    stage.run(epochs=4)
    assert (stage.step, stage.epoch) == (6, 2)
    stage.run(epochs=1)
    assert (stage.step, stage.epoch) == (6, 2)


def test_a_trained_encoder_can_be_loaded(records, comments, encoder):
    """With the test predictions that its record keeps."""
    from safetensors.torch import load_file

    import debiasbench
    from debiasbench.records import arrays_path

    path = next(records[0].glob("records/*/vanilla/*.json"))
    predict = debiasbench.load_predictor(path)
    test = built(comments, encoder).test
    with torch.no_grad():
        logits = test.map(lambda _, __, x: predict(x), 100)
    assert torch.equal(logits.argmax(1), load_file(arrays_path(path))["test_prediction"].long())


def test_equal_seeds_give_equal_results(records, tmp_path, comments, encoder):
    """Bit for bit, on the CPU."""
    from debiasbench.records import read_record

    assert run(tmp_path, comments, encoder, chosen=["pgd"]) == 0
    again = read_record(next((tmp_path / "results").glob("records/*/pgd/*.json"))).result
    first = read_record(next(records[0].glob("records/*/pgd/*.json"))).result
    assert first.weights is not None
    assert again == replace(first, weights=None)


def test_inspect_tells_the_groups(comments, encoder, tmp_path, capsys):
    spec = f"civilcomments:encoder={encoder},max_length=40,root={comments}"
    assert main(["inspect", spec, "--results-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "male, non-toxic" in shown
    assert "not defined" in shown
    assert "Tokens a text" in shown


@pytest.mark.parametrize("which", ["none", "a name on the hub", "without a vocabulary", "of fewer tokens"])
def test_inspect_counts_without_an_encoder(which, comments, encoder, tmp_path, monkeypatch, capsys):
    """Labels, biases and groups are those of the table; tokens are not made, and it is said why."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    broken = shutil.copytree(encoder, tmp_path / "broken")
    (broken / "vocab.txt").unlink()
    (broken / "tokenizer.json").unlink()
    options, reason = {
        "none": (f"encoder={tmp_path / 'absent'}", "is neither a whole folder nor in the hub's cache"),
        "a name on the hub": ("encoder=bert-base-uncased", "is neither a whole folder nor in the hub's cache"),
        "without a vocabulary": (f"encoder={broken}", "has no vocabulary"),
        "of fewer tokens": (f"encoder={encoder},max_length=300", "takes at most 80 tokens"),
    }[which]
    assert main(["inspect", f"civilcomments:root={comments},{options}", "--results-dir", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Texts were not made tokens: " in shown
    assert reason in shown
    for word in ("Data fingerprint", "Tokens a text", "pictures"):
        assert word not in shown

    bare = civilcomments(encoder, root=str(comments), max_length=300).build_labels(Path())
    whole = built(Path(), encoder, root=str(comments))
    for part, other in zip(bare.named().values(), whole.named().values(), strict=True):
        assert part.x.shape == (len(other), 0)
        for column in ("y", "bias", "groups", "conflict"):
            assert torch.equal(getattr(part, column), getattr(other, column))


def test_inspect_needs_the_table(tmp_path, capsys):
    """And names it alone: an encoder would not help."""
    assert main(["inspect", f"civilcomments:root={tmp_path},encoder={tmp_path / 'absent'}"]) == 2
    shown = capsys.readouterr().err
    assert "all_data_with_identities.csv (0.2 GB" in shown
    assert "encoder" not in shown


def test_what_does_not_go_with_text_is_refused(tmp_path, comments, encoder, capsys):
    """Disen declines; a network for images, another network's tokens, and text networks for images are errors."""
    assert run(tmp_path, comments, encoder, "--dry-run", chosen=["disen", "vanilla"]) == 0
    assert "disen is made for images only, and civilcomments is text" in " ".join(capsys.readouterr().out.split())
    assert run(tmp_path, comments, encoder, spec=",net=simconv1") == 2
    assert "The net simconv1 does not take text. Allowed: transformer." in capsys.readouterr().err
    assert run(tmp_path, comments, encoder, spec=",pretrained=imagenet") == 2
    assert "The recipe's pretrained of civilcomments cannot be given" in " ".join(capsys.readouterr().err.split())
    spec = f"cmnist5k:net=transformer,pretrained={encoder}"
    assert main(["run", "--methods", "vanilla", "--datasets", spec, "--results-dir", str(tmp_path)]) == 2
    assert "The net transformer does not take images" in capsys.readouterr().err


# ---- bad input ------------------------------------------------------------------------------------------------------


def without(rows, column):
    place = HEADER.index(column)
    return [row[:place] + row[place + 1 :] for row in rows], HEADER[:place] + HEADER[place + 1 :]


@pytest.mark.parametrize("column", ["comment_text", "split", "toxicity", "muslim", "identity_any"])
def test_a_missing_column(tmp_path, encoder, column):
    path = save_comments(tmp_path, *without(many_comments(), column))
    with pytest.raises(BenchmarkError, match=f"has no column {column}. It needs comment_text, split") as told:
        built(tmp_path, encoder)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, r"split must be test, train, val. Got \['validation'\] in 1 comments \(row 5\)"),
        ({"split": "0"}, r"Got \['0'\] in 1 comments \(row 5\)"),
        ({"split": ""}, r"split must be test, train, val"),
        ({"text": ""}, r"no text in 1 comments \(row 5\)"),
        ({"toxicity": ""}, r"toxicity must be a fraction in \[0, 1\]. It is not in 1 comments \(row 5\)"),
        ({"toxicity": "1.5"}, r"toxicity must be a fraction in \[0, 1\]"),
        ({"toxicity": "high"}, r"toxicity must be numbers. Got others in 1 comments \(row 5\)"),
        ({"black": "yes"}, r"black must be numbers. Got others in 1 comments \(row 5\)"),
    ],
)
def test_a_bad_row_is_named(tmp_path, encoder, changes, message):
    rows = many_comments()
    rows[4] = comment(4, **changes)
    path = save_comments(tmp_path, rows)
    with pytest.raises(BenchmarkError, match=message) as told:
        built(tmp_path, encoder)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("text", ["", "<html>not found</html>", None])
def test_a_file_that_is_no_csv(tmp_path, encoder, text):
    path = save_comments(tmp_path, many_comments())
    path.write_bytes(b"\xff\xfe\x00\x00\x81" * 50 if text is None else text.encode())
    with pytest.raises(BenchmarkError, match=r"is cut off or no CSV|has no column"):
        built(tmp_path, encoder)


def test_a_file_cut_in_the_middle_of_a_quoted_field(tmp_path, encoder):
    rows = many_comments()
    rows[-1] = comment(119, 'she said "you are a fool", and more', "test", "1.0")
    path = save_comments(tmp_path, rows)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex("you are a fool") + 5], encoding="utf-8")
    with pytest.raises(BenchmarkError, match="is cut off or no CSV") as told:
        built(tmp_path, encoder)
    assert str(path) in str(told.value)


def test_a_split_without_comments(tmp_path, encoder):
    save_comments(tmp_path, [row for row in many_comments() if row[3] != "val"])
    with pytest.raises(BenchmarkError, match="has no comment whose split is 'val'"):
        built(tmp_path, encoder)


def test_a_tokenizer_without_its_vocabulary(tmp_path, comments, encoder):
    """The library makes an empty one, for which all words are unknown: that must not train."""
    broken = tmp_path / "no-vocabulary"
    shutil.copytree(encoder, broken)
    (broken / "vocab.txt").unlink()
    (broken / "tokenizer.json").unlink()
    with pytest.raises(BenchmarkError, match="has no vocabulary"):
        built(comments, str(broken))


def test_encoders_that_are_not_whole(tmp_path, comments, encoder):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layer.1.attention" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, broken / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BenchmarkError, match=r"weights of .* are not complete: 1 are missing"):
        build_net("transformer", (40,), 2, pretrained=str(broken))
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BenchmarkError, match="cannot be loaded"):
        build_net("transformer", (40,), 2, pretrained=str(broken))
    (broken / "model.safetensors").unlink()
    (needed,) = civilcomments(str(broken)).needed_files(comments.parent / comments.name)
    assert "it has none of model.safetensors" in needed.source


def test_a_place_that_is_no_encoder_is_not_sought_on_the_hub(tmp_path, comments):
    (tmp_path / "empty").mkdir()
    for place, message in (("empty", "it has none of model.safetensors"), ("absent", "there is no such folder")):
        dataset = civilcomments(str(tmp_path / place), root=str(comments))
        (needed,) = dataset.needed_files(Path())
        assert message in needed.source
        assert not needed.downloads


def test_a_classifier_starts_afresh(tmp_path, comments, encoder, make_task):
    """What somebody trained on top of an encoder is not taken over."""
    from transformers import BertForSequenceClassification

    folder = tmp_path / "classifier"
    shutil.copytree(encoder, folder)
    model = BertForSequenceClassification.from_pretrained(encoder, num_labels=2)
    torch.nn.init.constant_(model.classifier.weight, 7.0)
    model.save_pretrained(folder)
    net = build_net("transformer", (40,), 2, pretrained=str(folder))
    assert net.head.weight.abs().max() < 0.2
    assert (net.head.bias == 0).all()


def test_a_tokenizer_of_another_network(tmp_path, comments, encoder):
    broken = tmp_path / "other"
    shutil.copytree(encoder, broken)
    text = (broken / "config.json").read_text(encoding="utf-8")
    (broken / "config.json").write_text(
        text.replace(f'"vocab_size": {len(VOCABULARY)}', '"vocab_size": 7'), encoding="utf-8"
    )
    with pytest.raises(BenchmarkError, match="do not belong together"):
        built(comments, str(broken))


def test_more_tokens_than_the_network_takes(comments, encoder):
    with pytest.raises(BenchmarkError, match=r"takes at most 80 tokens\. Got max_length=100"):
        built(comments, encoder, max_length=100)


# ---- prepare --------------------------------------------------------------------------------------------------------


def test_positions_of_roberta_start_behind_the_padding(tmp_path, comments):
    """80 positions hold 79 tokens if the padding token is number 0."""
    folder = save_encoder(tmp_path / "roberta", "roberta")
    with pytest.raises(BenchmarkError, match=r"takes at most 79 tokens\. Got max_length=80"):
        built(comments, folder, max_length=80)
    splits = built(comments, folder, max_length=79)
    longest = torch.zeros(1, 79, dtype=torch.int32)
    longest[:] = splits.train.x[0, 0]
    assert build_net("transformer", (79,), 2, pretrained=folder).eval()(longest + 1).shape == (1, 2)


def test_what_is_missing_is_told_before_anything_trains(tmp_path, monkeypatch, capsys):
    """The comments and the encoder, each with its source; a run never asks the network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    arguments = ["--methods", "pgd", "--datasets", "civilcomments", "--data-dir", str(tmp_path)]
    assert main(["run", *arguments, "--results-dir", str(tmp_path / "results")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "all_data_with_identities.csv (0.2 GB, 448,000 comments)" in shown
    assert "https://huggingface.co/bert-base-uncased" in shown
    assert "debiasbench prepare civilcomments" in shown


def test_prepare_lets_wilds_download_and_the_hub(tmp_path, monkeypatch, encoder, capsys):
    """WILDS' own downloading code, down to where it fetches the archive; its reader works under pandas 3."""
    monkeypatch.setenv("OUTDATED_IGNORE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from wilds.datasets import download_utils

    def fake(url, download_root, **_):
        assert url.startswith("https://")
        save_comments(Path(download_root).parent, many_comments())

    monkeypatch.setattr(download_utils, "download_and_extract_archive", fake)
    fetched = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: fetched.append(name) or _absent(how))
    spec = "civilcomments:encoder=some/encoder"
    assert main(["prepare", spec, "--data-dir", str(tmp_path)]) == 1  # the pretended hub gave nothing
    shown = capsys.readouterr()
    assert (tmp_path / "civilcomments_v1.0" / "all_data_with_identities.csv").is_file()
    assert "some/encoder" in fetched
    assert "The encoder some/encoder could not be downloaded (no network)" in " ".join(shown.err.split())
    assert main(["prepare", f"civilcomments:encoder={encoder}", "--data-dir", str(tmp_path)]) == 0


def _absent(how):
    raise OSError("not in the cache" if how.get("local_files_only") else "no network")


def test_prepare_says_when_wilds_cannot_download(tmp_path, monkeypatch, encoder, capsys):
    monkeypatch.setenv("OUTDATED_IGNORE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from wilds.datasets import download_utils

    def broken(**_):
        raise OSError("host not found")

    monkeypatch.setattr(download_utils, "download_and_extract_archive", broken)
    assert main(["prepare", f"civilcomments:encoder={encoder}", "--data-dir", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "The package wilds could not download CivilComments" in shown
    assert "put the file at" in shown
