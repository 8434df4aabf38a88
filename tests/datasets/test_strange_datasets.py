"""Datasets of strangers: whatever is wrong with one is told in one sentence before anything trains."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from debiasbench.cli import main
from debiasbench.data.augment import augmented
from debiasbench.data.checks import check_splits, files_needed
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.methods import Method
from debiasbench.recipe import Recipe
from debiasbench.report.inspection import inspect
from debiasbench.running.plan import build_all, check_data
from debiasbench.samples import Samples, Splits
from debiasbench.testing import Tiny


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("x", lambda x: x.float() / 255, r"x of train must be uint8, pixels in 0..255.* Got float32"),
        ("y", lambda y: y.int(), "y of train must be int64. Got int32"),
        ("y", lambda y: y.float(), "y of train must be int64. Got float32"),
        ("bias", lambda bias: bias.short(), "bias of train must be int64. Got int16"),
        ("conflict", lambda _: torch.zeros(256, 1), "conflict of train must be bool. Got float32"),
        ("groups", lambda _: torch.zeros(256, 0), "groups of train must be bool. Got float32"),
        ("y", lambda y: y[:, None], r"y of train must be of shape \(256,\)\. Got \(256, 1\)"),
        ("bias", lambda bias: bias[:, [0, 0]], r"bias of train must be of shape \(256, 1\), .* Got \(256, 2\)"),
        ("bias", lambda bias: bias - 2, "the bias of train must be at least 0, or -1 if unknown. Got -2"),
        ("conflict", lambda _: torch.zeros(256, dtype=torch.bool), r"conflict of train .* \(256, 1\)\. Got \(256,\)"),
        ("groups", lambda _: torch.zeros(256, 2, dtype=torch.bool), r"groups of train .* \(256, 0\), .* Got \(256, 2"),
        ("x", lambda x: x[:, 0], r"x of train must be \(N, C, H, W\)\. Got \(256, 28, 28\)"),
        ("x", lambda x: x[:, :, :0], r"x of train must be \(N, C, H, W\)\. Got \(256, 3, 0, 28\)"),
        ("x", lambda x: x[..., 1:], r"x of valid must have the shape of train, \(3, 28, 27\) .* Got \(3, 28, 28\)"),
    ],
)
def test_columns_of_another_type_shape_or_range_are_refused_before_anything_trains(tmp_path, column, change, said):
    splits = Tiny().build(tmp_path)
    bad = replace(splits, train=replace(splits.train, **{column: change(getattr(splits.train, column))}))
    with pytest.raises(BenchmarkError, match=f"tiny: {said}"):
        check_splits(Tiny(), bad)


DECLARED = {  # what a class declares, here in properties -> what is told of it
    "no classes": ({"class_names": ()}, "class_names is missing"),
    "a class as text": ({"class_names": "0123"}, r"class_names must be a tuple of texts, .* Got '0123'"),
    "classes as numbers": ({"class_names": (0, 1, 2, 3)}, r"class_names must be a tuple of texts, .* Got \(0, 1"),
    "classes as a set": ({"class_names": {"0", "1"}}, "class_names must be a tuple of texts"),
    "an empty class": ({"class_names": ("0", "1", "2", " ")}, "class_names has an empty name"),
    "an array of classes": ({"class_names": np.array(["0", "1", "2", "3"])}, "class_names must be a tuple of texts"),
    "equal classes": (
        {"class_names": ("0", "1", "2", "1")},
        r"class_names must differ .* '1' is there twice",
    ),
    "nearly equal classes": (
        {"class_names": ("0", "1", "2", "1 ")},
        r"class_names must differ .* '1' is there",
    ),
    "another number of classes": ({"n_classes": 5}, "n_classes must be the number of class_names, 4. Got 5"),
    "no bias": ({"bias_names": ()}, "bias_names is empty"),
    "a bias as text": ({"bias_names": "colour"}, r"bias_names must be a tuple of texts, .* Got 'colour'"),
    "equal biases": (
        {"bias_names": ("colour", "colour")},
        r"bias_names must differ .* 'colour' is there twice",
    ),
    "equal groups": (
        {"group_names": ("all", "a", "all")},
        r"group_names must differ .* 'all' is there twice",
    ),
    "groups without a column": ({"group_names": ("all", "a")}, "groups of train is missing, a column for each of"),
    "values as text": ({"bias_values": ("red",)}, r"bias_values of colour must be a tuple of texts, .* Got 'red'"),
    "values as a dict": ({"bias_values": {"colour": ("red",)}}, r"bias_values must be \(\), or have one tuple"),
    "equal values": (
        {"bias_values": (("red", "red"),)},
        r"bias_values of colour must differ .* 'red' is there",
    ),
    "values of more biases": ({"bias_values": (("red",), ("red",))}, r"bias_values must .* bias_names \(1\)\. Got"),
    "more values": (
        {"bias_values": (tuple("abcdefghijk"),)},
        "bias_values names 11 values of colour, but n_bias_values is 10",
    ),
    "values as a decimal": ({"n_bias_values": 10.0}, r"n_bias_values must be a whole number of at least 0. Got 10\.0"),
    "fewer than none": ({"n_bias_values": -1}, "n_bias_values must be a whole number of at least 0. Got -1"),
    "a truth as a number": ({"n_bias_values": True}, "n_bias_values must be a whole number of at least 0. Got True"),
    "a ratio in per cent": ({"conflict_ratio": 5.0}, r"conflict_ratio must be in \[0, 1\], or None .* Got 5\.0"),
    "a ratio as text": ({"conflict_ratio": "5%"}, r"conflict_ratio must be in \[0, 1\], or None .* Got '5%'"),
    "a yes": ({"has_bias_labels": "yes"}, "has_bias_labels must be True or False. Got 'yes'"),
    "no conflicts": ({"defines_conflicts": None}, "defines_conflicts must be True or False. Got None"),
    "a title as a number": ({"display": 3}, "display must be text on one line, .* Got 3"),
    "a title of two lines": ({"display": "a\nb"}, "display must be text on one line"),
    "words as a list": ({"in_words": lambda: ["a"]}, r"in_words must return texts by parameter, .* Got \['a'\]"),
    "counts of nothing": ({"official_counts": {"training": 4}}, r"official_counts must .* Got \{'training': 4\}"),
    "no counts": ({"official_counts": None}, "official_counts must be a dictionary .* Got None"),
    "a parameter as text": ({"ratio_parameters": "rho"}, "ratio_parameters must be a tuple of texts, .* Got 'rho'"),
    "a blank title": ({"display": " Odd"}, "display must be text on one line, without blanks"),
    "no headline": ({"headline": ()}, "headline is empty"),
    "a headline as text": ({"headline": "acc_avg"}, "headline must be a tuple of texts, .* Got 'acc_avg'"),
    "a ratio of nothing": ({"ratio_parameters": ("ratio",)}, "ratio_parameters names ratio. Its parameters are data"),
    "another input": ({"input": "image"}, "input must be one of images, text, features. Got 'image'"),
    "several inputs": ({"input": ["images"]}, r"input must be one of images, text, features. Got \['images'\]"),
}


@pytest.mark.parametrize(("declared", "said"), DECLARED.values(), ids=DECLARED)
def test_what_a_dataset_cannot_be_is_told_before_anything_trains(tmp_path, declared, said):
    properties = {name: property(lambda _, value=value: value) for name, value in declared.items()}
    odd = type("Odd", (Tiny,), {"name": "odd", **properties})()
    with pytest.raises(BenchmarkError, match=f"odd: {said}"):
        check_splits(odd, Tiny().build(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("recipe", {"net": "mlp"}, r"must be a Recipe\. Got {'net': 'mlp'}"),
        ("recipe", Recipe, "must be a Recipe"),
        ("headline", "acc_worst", r"must be a tuple of texts, such as \('a', 'b'\)\. Got 'acc_worst'"),
        ("group_names", (1, 2), "must be a tuple of texts"),
        ("unbiased_test", "no", "must be True or False. Got 'no'"),
        ("unbiased_test", 1, "must be True or False. Got 1"),
        ("version", 1.5, r"must be a whole number\. Got 1\.5"),
        ("version", None, "must be a whole number. Got None"),
        ("input", ["images"], "must be text. Got"),
        ("citation", ("a",), "must be text. Got"),
        ("presets", ["a"], r"must be a dictionary of dictionaries, .* Got \['a'\]"),
        ("aliases", {"h2": "rho"}, r"must be a dictionary of dictionaries, .* Got \{'h2': 'rho'\}"),
        ("headline", lambda _: ("acc_avg",), "must be a tuple of texts, .* Write @property above it"),
    ],
)
def test_declarations_have_the_types_of_the_base_class(name, value, said):
    with pytest.raises(BenchmarkError, match=f"'{name}' of Odd {said}"):
        type("Odd", (Tiny,), {"name": "odd", name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cost", "2", "a number. Got '2'"),
        ("inputs", "images", r"a tuple of texts, such as \('a', 'b'\)\. Got 'images'"),
        ("needs_bias_labels", 0, "True or False. Got 0"),
        ("by_dataset", {"celeba": 3}, r"a dictionary of dictionaries, .* Got \{'celeba': 3\}"),
    ],
)
def test_so_have_those_of_methods(name, value, said):
    with pytest.raises(BenchmarkError, match=f"'{name}' of Odd must be {said}"):
        type("Odd", (Method,), {"name": "odd", name: value})


class Computed:
    """A descriptor."""

    def __get__(self, instance, owner=None):
        return ("acc_avg",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("headline", ["acc_avg"]), ("headline", Computed()), ("unbiased_test", property(lambda _: True)),
        ("class_names", ["0", "1", "2", "3"]), ("bias_names", ["colour"]), ("n_bias_values", np.int64(10)),
        ("conflict_ratio", property(lambda _: np.float32(0.5))), ("official_counts", {}),
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_as_good(tmp_path, name, value):
    fine = type("Fine", (Tiny,), {"name": "fine", name: value})()
    assert build_all({"fine": fine}, tmp_path)["fine"].shape == (3, 28, 28)


@pytest.mark.parametrize("cost", [2, np.float32(2.0), np.int64(2)])
def test_numbers_of_numpy_and_whole_ones_are_as_good(cost):
    assert type("Fine", (Method,), {"name": "fine", "cost": cost}).cost == 2


class Between(Method):
    """A base class of somebody, with declarations of its own, of which one names what is defined later."""

    maybe: ClassVar["float | None"] = None
    pair: ClassVar["tuple[str, int]"] = ("a", 1)
    some: ClassVar["dict"] = {}
    word: ClassVar["Literal['x', 'y']"] = "x"
    later: ClassVar["Later | None"] = None


class Later:
    """Defined after its name is used."""


@pytest.mark.parametrize(
    ("name", "value"),
    [("maybe", 0.5), ("pair", ("b", 2)), ("some", {"a": 1}), ("word", "y"), ("later", 3)],
)
def test_declarations_of_other_base_classes_are_their_own_affair(name, value):
    assert getattr(type("Own", (Between,), {"name": "own", name: value}), name) == value
    with pytest.raises(BenchmarkError, match="'inputs' of Own must be a tuple"):
        type("Own", (Between,), {"name": "own", "inputs": "images"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": None}, "length of test is missing"),
        ({"length": torch.tensor([0, 3])}, r"length of test must be in 1\.\.3\. Got 0\.\.3"),
        ({"length": torch.tensor([1, 4])}, r"length of test must be in 1\.\.3\. Got 1\.\.4"),
        ({"length": torch.tensor([1.0, 3.0])}, "length of test must be int64. Got float32"),
        (
            {"x": torch.zeros(2, 3, 1, dtype=torch.int32)},
            r"x of test must be \(N, L\), token .* Got \(2, 3, 1\)",
        ),
        ({"x": torch.zeros(2, 4, dtype=torch.int32)}, r"x of test must have the shape of train, \(3,\) .* Got \(4,\)"),
    ],
)
def test_texts_that_cannot_be_read_are_refused_before_anything_trains(change, said):
    texts = type("Texts", (Tiny,), {"name": "texts", "input": "text", "class_names": ("0", "1")})()
    x, y = torch.tensor([[5, -1, -1], [5, 6, 7]], dtype=torch.int32), torch.tensor([0, 1])
    part = Samples(x, y, y[:, None], length=torch.tensor([1, 3]))
    assert check_splits(texts, Splits(part, part, replace(part, x=x.clone())))
    with pytest.raises(BenchmarkError, match=f"texts: {said}"):
        check_splits(texts, Splits(part, part, replace(part, **{"x": x.clone(), **change})))


@pytest.mark.parametrize("column", ["x", "y", "bias", "conflict", "length", "groups"])
@pytest.mark.parametrize("given", [np.zeros((2, 1)), [[0], [1]], "text"])
def test_a_column_that_is_no_tensor_is_refused(column, given):
    columns = {"x": torch.zeros(2, 1), "y": torch.zeros(2), "bias": torch.zeros(2, 1), column: given}
    with pytest.raises(
        BenchmarkError, match=rf"Samples: {column} must be a torch\.Tensor\. Got {type(given).__name__}"
    ):
        Samples(**columns)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x.sum(), "a single number"),
        (lambda x: x.to_sparse(), "sparse or nested"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged), "sparse or nested"),
        (lambda x: x.clone().requires_grad_(), "requires gradients"),
        (lambda x: x.to("meta"), "no values"),
    ],
)
def test_a_tensor_that_cannot_be_a_column_is_refused(make, said):
    x = torch.ones(2, 3)
    with pytest.raises(BenchmarkError, match=f"Samples: x must be a plain tensor with one row per sample.*{said}"):
        Samples(make(x), torch.zeros(2).long(), torch.zeros(2, 1).long())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train": {}}, "train must be Samples. Got dict"),
        ({"valid": None}, "valid must be Samples. Got NoneType"),
        ({"tune": ()}, "tune must be Samples. Got tuple"),
        ({"official": "no"}, "official must be True or False. Got 'no'"),
        ({"official": None}, "official must be True or False. Got None"),
        ({"note": ["a"]}, r"note must be text. Got \['a'\]"),
    ],
)
def test_splits_of_something_else_are_refused(tmp_path, given, said):
    with pytest.raises(BenchmarkError, match=f"Splits: {said}"):
        replace(Tiny().build(tmp_path), **given)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("column", "group_names", "said"),
    [("conflict", (), "is missing: give it in every split, or in none"), ("groups", ("all",), "is missing, a column")],
)
def test_a_column_of_one_split_alone_is_refused(tmp_path, column, group_names, said, split):
    """Its metrics would mean something else there than in the other splits."""
    splits = Tiny().build(tmp_path)
    part = getattr(splits, split)
    alone = replace(splits, **{split: replace(part, **{column: torch.ones(len(part), 1, dtype=torch.bool)})})
    odd = type("Odd", (Tiny,), {"name": "odd", "group_names": group_names})()
    with pytest.raises(BenchmarkError, match=f"odd: {column} of .* {said}"):
        check_splits(odd, alone)


def test_a_conflict_with_an_unknown_bias_does_not_count(tmp_path):
    """Neither in the facts of the data nor in metrics."""
    splits = Tiny().build(tmp_path)
    parts = {name: replace(part, conflict=part.conflicting) for name, part in splits.named().items()}
    conflicting = parts["test"].conflict
    bias = parts["test"].bias.clone()
    bias[conflicting.any(1).nonzero()[0]] = -1
    unknown = Splits.of({**parts, "test": replace(parts["test"], bias=bias)})
    assert check_splits(Tiny(), unknown)
    assert unknown.test.conflicting.sum() == conflicting.sum() - 1 > 0


def test_bias_labels_that_are_all_unknown_are_told(tmp_path):
    """Methods that need them would fail after the start. Some may be unknown."""
    splits = Tiny().build(tmp_path)
    none = replace(splits, train=replace(splits.train, bias=-torch.ones_like(splits.train.bias)))
    with pytest.raises(BenchmarkError, match=r"the bias of all training samples is unknown .* has_bias_labels = False"):
        check_splits(Tiny(), none)
    bias = splits.train.bias.clone()
    bias[1:] = -1
    assert check_splits(Tiny(), replace(splits, train=replace(splits.train, bias=bias)))
    without = type("Without", (Tiny,), {"name": "without", "has_bias_labels": False})
    assert check_splits(without(), none)


def test_a_test_on_the_training_samples_is_refused(tmp_path):
    splits = Tiny().build(tmp_path)
    for test in (splits.train, replace(splits.train)):
        with pytest.raises(BenchmarkError, match=r"tiny: train and test are the same samples\. Hold out"):
            check_splits(Tiny(), replace(splits, test=test))


INSPECTED = {  # what is wrong -> how build makes it of good splits, and what `inspect` says
    "no splits": (lambda splits: splits.train, "build must return Splits. Got Samples"),
    "channels last": (lambda splits: _in_all(splits, x=lambda x: x.permute(0, 2, 3, 1)), "looks like the channels"),
    "no pixels": (lambda splits: _in_all(splits, x=lambda x: x[:, :, :0]), r"x of train must be \(N, C, H, W\)"),
    "labels from 1": (lambda splits: _in_all(splits, y=lambda y: y + 1), r"labels of train must be in 0\.\.3\. Got 1"),
    "a negative bias": (lambda splits: _in_all(splits, bias=lambda bias: bias - 2), "at least 0, or -1 if unknown"),
    "test is train": (lambda splits: replace(splits, test=splits.train), "train and test are the same samples"),
    "labels alone": (
        lambda splits: _in_all(splits, x=lambda x: x[:, 0, 0, :0], y=lambda y: y - 1),
        r"labels of train must be in 0\.\.3\. Got -1",
    ),
}


def _in_all(splits, **changes):
    """The splits with columns changed in each part."""
    parts = {
        name: replace(part, **{column: change(getattr(part, column)) for column, change in changes.items()})
        for name, part in splits.named().items()
    }
    return Splits.of(parts)


@pytest.mark.parametrize(("made", "said"), INSPECTED.values(), ids=INSPECTED)
def test_inspect_tells_what_a_run_would(tmp_path, made, said):
    """It is what one tries first with a new dataset."""
    wrong = type("Wrong", (Tiny,), {"name": "wrong", "build": lambda _, data_dir: made(Tiny().build(data_dir))})
    with pytest.raises(BenchmarkError, match=f"wrong: .*{said}"):
        inspect(wrong(), "wrong", data_dir=tmp_path, results_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_inspect_needs_no_x(tmp_path):
    labels = type("Labels", (Tiny,), {"name": "labels", "build_labels": lambda _, data_dir: _labels(data_dir)})
    (sizes, *_), pictures = inspect(labels(), "labels", data_dir=tmp_path, results_dir=tmp_path)
    assert [row[1].value for row in sizes.rows] == [len(part) for part in Tiny().build(tmp_path).named().values()]
    assert not pictures


def _labels(data_dir):
    return _in_all(Tiny().build(data_dir), x=lambda x: x[:, 0, 0, :0])


@pytest.mark.parametrize("n_values", [1, 3])
def test_classes_that_no_value_of_the_bias_belongs_to_are_told(tmp_path, n_values):
    """All their samples would count as conflicting."""
    splits = Tiny().build(tmp_path)
    parts = {name: replace(part, bias=part.bias.clamp(max=n_values - 1)) for name, part in splits.named().items()}
    few = type("Few", (Tiny,), {"name": "few", "n_bias_values": n_values})
    with pytest.raises(BenchmarkError, match=f"there are {n_values} values of the bias .* and 4 classes"):
        check_splits(few(), Splits.of(parts))
    undefined = type("Undefined", (few,), {"name": "undefined", "defines_conflicts": False})
    assert check_splits(undefined(), Splits.of(parts))
    given = {name: replace(part, conflict=part.bias >= 0) for name, part in parts.items()}
    assert check_splits(few(), Splits.of(given))
    unknown = {name: replace(part, bias=-torch.ones_like(part.bias)) for name, part in parts.items()}
    without = type("Without", (few,), {"name": "without", "has_bias_labels": False})
    assert check_splits(without(), Splits.of(unknown))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_their_channels_last_are_told(tmp_path, channels):
    splits = Tiny().build(tmp_path)
    parts = {n: replace(part, x=part.x[:, :1].repeat(1, channels, 1, 1)) for n, part in splits.named().items()}
    assert check_splits(Tiny(), Splits.of(parts))
    last = {name: replace(part, x=part.x.permute(0, 2, 3, 1)) for name, part in parts.items()}
    with pytest.raises(BenchmarkError, match=r"x of train must be \(N, C, H, W\).* x\.permute\(0, 3, 1, 2\)"):
        check_splits(Tiny(), Splits.of(last))


# ---- with the plan of a run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"headline": ("acc_wrost",)}, "headline names acc_wrost, .* Did you mean 'acc_worst'"),
        ({"headline": ("acc_unbiased",), "unbiased_test": False}, "headline names acc_unbiased, which the test split"),
        ({"headline": ("acc_adjusted", "acc")}, "headline names acc, which the test split does not have"),
    ],
)
def test_a_headline_that_is_no_metric_is_told_before_anything_trains(tmp_path, declared, said):
    odd = type("Odd", (Tiny,), {"name": "odd", **declared})()
    with pytest.raises(BenchmarkError, match=f"odd: {said}"):
        build_all({"odd": odd}, tmp_path)


@pytest.mark.parametrize("error", [SystemExit(3), KeyError("colour"), RuntimeError("no")])
def test_whatever_build_raises_names_the_dataset(tmp_path, error):
    class Raising(Tiny):
        name = "raising"

        def build(self, data_dir):
            raise error

    with pytest.raises(BenchmarkError, match=f"The data of raising cannot be built: {type(error).__name__}"):
        build_all({"raising": Raising()}, tmp_path)


@pytest.mark.parametrize("returned", [None, ["x"], "x", [Path("x")]])
def test_needed_files_are_a_list_of_them(tmp_path, returned):
    odd = type("Odd", (Tiny,), {"name": "odd", "needed_files": lambda *_: returned})()
    with pytest.raises(BenchmarkError, match="odd: needed_files must return a list of NeededFile"):
        check_data([odd], tmp_path)


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_collection_of_needed_files_will_do(tmp_path, kind):
    file = NeededFile(tmp_path / "x", "3 MB", "the authors")
    fine = type("Fine", (Tiny,), {"name": "fine", "needed_files": lambda *_: kind([file])})()
    assert files_needed(fine, tmp_path) == [file]


@pytest.mark.parametrize("error", [OSError("no"), KeyError("no")])
def test_needed_files_that_raise_name_the_dataset(tmp_path, error):
    def raising(*_):
        raise error

    odd = type("Odd", (Tiny,), {"name": "odd", "needed_files": raising})()
    with pytest.raises(BenchmarkError, match=f"needed_files of odd failed: {type(error).__name__}: "):
        check_data([odd], tmp_path)


GREY, RGB = (0.5,), (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("recipe", "n_channels", "said"),
    [
        ({"saturation": 0.5}, 1, "'saturation' needs images with 3 channels. These have 1: set saturation=0"),
        ({"hue": 0.1}, 4, "'hue' needs images with 3 channels. These have 4: set hue=0"),
        ({"rand_augment": 14}, 2, "'rand_augment' needs images with 1 or 3 channels. These have 2: set rand_augment=0"),
        ({"mean": RGB, "std": RGB}, 2, "'mean' has 3 numbers, but the images have 2 channels: give 1 number, or 2"),
        ({"mean": GREY, "std": RGB}, 2, "'std' has 3 numbers, but the images have 2 channels"),
    ],
)
def test_images_with_channels_that_the_recipe_does_not_take_are_told(recipe, n_channels, said):
    with pytest.raises(BenchmarkError, match=said):
        Recipe(**recipe).check_channels(n_channels)
    x = torch.zeros(2, n_channels, 16, 16, dtype=torch.uint8)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        augmented(x, Recipe(**recipe), torch.Generator())


@pytest.mark.parametrize(
    ("recipe", "n_channels"),
    [
        ({"saturation": 0.5, "hue": 0.1, "rand_augment": 2, "mean": RGB, "std": RGB}, 3),
        ({"saturation": 0.5, "hue": 0.1, "rand_augment": 2, "augment": False}, 2),
        ({"rand_augment": 14}, 1),
        ({"mean": GREY, "std": GREY}, 2),
        ({"mean": RGB, "std": GREY}, 3),
    ],
)
def test_images_with_channels_that_the_recipe_takes_pass(recipe, n_channels):
    Recipe(**recipe).check_channels(n_channels)
    x = torch.zeros(2, n_channels, 16, 16, dtype=torch.uint8)
    assert augmented(x, Recipe(**recipe), torch.Generator()).shape == x.shape


def test_a_run_tells_of_channels_before_anything_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "two.py").write_text(
        '''"""Two channels."""
from dataclasses import replace
from debiasbench.recipe import Recipe
from debiasbench.samples import Splits
from debiasbench.testing import Tiny

class Two(Tiny):
    name = "two"
    recipe = Recipe(epochs=1, saturation=0.5)

    def build(self, data_dir):
        return Splits.of({n: replace(part, x=part.x[:, :2]) for n, part in super().build(data_dir).named().items()})
''',
        encoding="utf-8",
    )
    package = sys.modules["debiasbench.datasets"]
    monkeypatch.setattr(package, "__path__", [*package.__path__])
    monkeypatch.setenv("DEBIASBENCH_DATASETS_PATH", "")
    monkeypatch.chdir(tmp_path)
    arguments = ["--methods", "vanilla", "--datasets", "two", "--seeds", "1", "--workers", "0", "--device", "cpu"]
    try:
        assert main(["run", *arguments, "--datasets-dir", str(tmp_path)]) == 2
    finally:
        sys.modules.pop("debiasbench.datasets.two", None)
    told = " ".join(capsys.readouterr().err.split())
    assert "two: The recipe's 'saturation' needs images with 3 channels. These have 2: set saturation=0." in told
    assert not list(tmp_path.rglob("*.json"))
