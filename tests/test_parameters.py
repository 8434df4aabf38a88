"""The inline grammar, typed reading, limits, and labels that read back as the values they stand for."""

import math

import pytest

from debiasbench.datasets import Dataset
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.methods import registry as methods
from debiasbench.parameters import (
    Parameters,
    above,
    at_least,
    between,
    expand_sweeps,
    one_of,
    read_value,
    split_spec,
    suggestion,
    write_value,
)
from debiasbench.plugins import read_parameters, title_of
from debiasbench.recipe import Recipe


class Knobs(Parameters):
    """One parameter of each kind."""

    name = "knobs"

    share: float = between(0, 1, default=0.5)
    count: int = at_least(1, default=3)
    scale: float = above(0, default=1.0)
    kind: str = one_of("red", "green", default="red")
    on: bool = False
    limit: float | None = above(0, default=None)
    word: str | None = None
    steps: tuple[float, ...] = (0.4, 0.8)


DEFAULTS = {
    "share": 0.5, "count": 3, "scale": 1.0, "kind": "red", "on": False, "limit": None, "word": None,
    "steps": (0.4, 0.8),
}  # fmt: skip


def one_cell(method, dataset, **options):
    """The only cell of a grid with one seed."""
    cells = expand([method], [dataset], seeds=[0], **options).cells
    assert len(cells) == 1
    return cells[0]


# --- grammar


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pgd", ("pgd", {})),
        ("pgd:", ("pgd", {})),
        ("pgd:alpha=0.9", ("pgd", {"alpha": ["0.9"]})),
        ("pgd:norm=l1,alpha=0.9", ("pgd", {"norm": ["l1"], "alpha": ["0.9"]})),
        ("cmnist:root=C:/data:2", ("cmnist", {"root": ["C:/data:2"]})),  # only the first colon splits
        ("a:key=x=y=z", ("a", {"key": ["x=y=z"]})),  # only the first equals sign splits
        ('a:key="x,y",other=1', ("a", {"key": ["x,y"], "other": ["1"]})),
        ("a:key='x,y',other=1", ("a", {"key": ["x,y"], "other": ["1"]})),
        ('a:key="x|y"', ("a", {"key": ["x|y"]})),
        ("a:key='x|y'|z", ("a", {"key": ["x|y", "z"]})),
        ('a:key="it\'s",other=1', ("a", {"key": ["it's"], "other": ["1"]})),
        ("a:key=1|2|3", ("a", {"key": ["1", "2", "3"]})),
        (" a : key = 1 | 2 , other = x ", ("a", {"key": ["1", "2"], "other": ["x"]})),
    ],
)
def test_a_spec_is_split_at_the_first_colon_at_commas_and_at_the_first_equals_sign(spec, expected):
    assert split_spec(spec) == expected


@pytest.mark.parametrize("spec", ["a:key", "a:key=", "a:=1", "a:,", "a:key=1,", "a:key=1,,b=2", "a:key=1|", "a:key=|1"])
def test_what_is_no_key_and_value_is_refused_and_quoted(spec):
    with pytest.raises(BenchmarkError) as error:
        split_spec(spec)
    assert f"'{spec}'" in str(error.value)
    assert "key=value" in str(error.value)


@pytest.mark.parametrize("value", ["''", "' '", '"\t"', "1|'  '"])
def test_an_empty_quoted_value_is_refused(value):
    """So is one of blanks alone, which names nothing either."""
    with pytest.raises(BenchmarkError, match="'key' has an empty value"):
        split_spec(f"a:key={value}")


def test_a_key_given_twice_is_refused_and_the_sweep_is_shown():
    with pytest.raises(BenchmarkError, match=r"'key' is given twice in 'a:key=1,key=2'; write a sweep as key=a\|b"):
        split_spec("a:key=1,key=2")


def test_sweeps_expand_to_every_combination_in_order():
    assert expand_sweeps({"a": ["1", "2"], "b": ["x"], "c": ["u", "v"]}) == [
        {"a": "1", "b": "x", "c": "u"},
        {"a": "1", "b": "x", "c": "v"},
        {"a": "2", "b": "x", "c": "u"},
        {"a": "2", "b": "x", "c": "v"},
    ]
    assert expand_sweeps({}) == [{}]


# --- reading


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("3", float, 3.0),
        ("1e-3", float, 0.001),
        ("3", int | None, 3),
        ("none", int | None, None),
        ("None", float | None, None),
        ("true", bool, True),
        ("False", bool, False),
        ("none", str, "none"),  # a word, as no value is not allowed here
        ("none", str | None, None),
        ("3", str, "3"),
        ("0.5", float | str, 0.5),
        ("auto", float | str, "auto"),
        ("0.4/0.8", tuple[float, ...], (0.4, 0.8)),
        ("0.4", tuple[float, ...], (0.4,)),
        ("none", tuple[float, ...] | None, None),
    ],
)
def test_a_text_is_read_as_the_type_of_its_field(text, hint, value):
    found = read_value(text, hint, "parameter")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "words"),
    [
        ("x", int, "a whole number"),
        ("1.5", int, "a whole number"),
        ("true", int, "a whole number"),
        ("x", float, "a number"),
        ("none", float, "a number"),
        ("1", bool, "true or false"),
        ("yes", bool, "true or false"),
        ("x", float | None, "a number or none"),
        ("0.1/x", tuple[float, ...], ""),
    ],
)
def test_a_text_that_does_not_read_is_refused_with_what_was_expected(text, hint, words):
    with pytest.raises(BenchmarkError) as error:
        read_value(text, hint, "'key' parameter of knobs")
    assert str(error.value).startswith(f"The 'key' parameter of knobs must be {words}")
    assert str(error.value).endswith(f"Got {text!r}.")


def test_a_message_about_a_list_says_how_lists_are_written():
    with pytest.raises(BenchmarkError, match="/"):
        read_value("x", tuple[float, ...], "'milestones' parameter of cmnist5k")


def test_all_inline_problems_are_reported_together_with_the_nearest_names():
    options = {"shar": "0.1", "count": "x", "on": "maybe", "lerning_rate": "1"}
    with pytest.raises(BenchmarkError) as error:
        read_parameters(Knobs, options, Recipe)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("Unknown parameter 'shar' of knobs. Did you mean 'share'? Known: share, count,")
    assert lines[1] == "The 'count' parameter of knobs must be a whole number. Got 'x'."
    assert lines[2] == "The 'on' parameter of knobs must be true or false. Got 'maybe'."
    assert lines[3].startswith("Unknown parameter 'lerning_rate' of knobs. Did you mean 'learning_rate'?")


def test_keys_that_a_dataset_lacks_are_read_as_fields_of_its_recipe():
    own, recipe = read_parameters(Knobs, {"share": "0.1", "epochs": "7", "milestones": "0.5"}, Recipe)
    assert own == {"share": 0.1}
    assert recipe == {"epochs": 7, "milestones": (0.5,)}


def test_the_nearest_name_is_suggested_only_where_one_is_near():
    assert suggestion("vanila", ["pgd", "vanilla"]) == " Did you mean 'vanilla'?"
    assert suggestion("xyz", ["pgd", "vanilla"]) == ""


# --- types and limits of values


def test_defaults_are_the_declared_ones():
    assert Knobs().values() == DEFAULTS


def test_values_are_frozen_and_replace_makes_a_checked_copy():
    knobs = Knobs()
    with pytest.raises(AttributeError):
        knobs.share = 0.1
    assert knobs.replace(share=0.1).values() == {**DEFAULTS, "share": 0.1}
    assert knobs.values() == DEFAULTS
    with pytest.raises(BenchmarkError, match="share"):
        knobs.replace(share=2.0)


def test_a_whole_number_is_taken_as_a_float_where_a_float_is_declared():
    knobs = Knobs(share=1, limit=2)
    assert [type(knobs.share), type(knobs.limit)] == [float, float]
    assert knobs == Knobs(share=1.0, limit=2.0)


@pytest.mark.parametrize(
    "values",
    [
        {"share": 0.0}, {"share": 1.0}, {"count": 1}, {"scale": 1e-300}, {"limit": None}, {"kind": "green"},
        {"steps": ()}, {"word": "x"},
    ],
)  # fmt: skip
def test_values_within_the_limits_are_taken(values):
    assert Knobs(**values).values() == {**DEFAULTS, **values}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": -1e-9}, "a number in [0, 1]"),
        ({"share": 1.0000001}, "a number in [0, 1]"),
        ({"share": math.nan}, "a number, and not nan"),
        ({"share": True}, "a number"),
        ({"share": "0.5"}, "a number"),
        ({"share": None}, "a number"),
        ({"count": 0}, "a number of at least 1"),
        ({"count": True}, "a whole number"),
        ({"count": 1.0}, "a whole number"),
        ({"scale": 0.0}, "a number above 0"),
        ({"scale": math.inf}, "a number above 0"),
        ({"scale": math.nan}, "a number, and not nan"),
        ({"kind": "blue"}, "one of red, green"),
        ({"on": 1}, "true or false"),
        ({"limit": 0.0}, "a number above 0"),
        ({"limit": math.nan}, "a number, and not nan"),
        ({"word": 3}, "a word or none"),
    ],
)
def test_values_outside_the_limits_are_refused_with_what_is_allowed(values, words):
    ((key, value),) = values.items()
    with pytest.raises(BenchmarkError) as error:
        Knobs(**values)
    assert str(error.value) == f"The '{key}' parameter of knobs must be {words}. Got {value!r}."


def test_nan_within_a_list_is_refused():
    with pytest.raises(BenchmarkError, match="steps"):
        Knobs(steps=(0.4, math.nan))
    with pytest.raises(BenchmarkError, match="mean"):
        expand(["vanilla"], ["cmnist5k:mean=nan/0.5/0.5,std=1/1/1"], seeds=[0])


def test_a_list_of_something_else_than_numbers_is_refused():
    with pytest.raises(BenchmarkError, match="steps"):
        Knobs(steps=("a", "b"))


def test_all_values_that_are_wrong_are_reported_together():
    with pytest.raises(BenchmarkError) as error:
        Knobs(share=2.0, count=0, kind="blue")
    assert str(error.value).splitlines() == [
        "The 'share' parameter of knobs must be a number in [0, 1]. Got 2.0.",
        "The 'count' parameter of knobs must be a number of at least 1. Got 0.",
        "The 'kind' parameter of knobs must be one of red, green. Got 'blue'.",
    ]


class Sizes(Parameters):
    """Parameters of which some whole numbers, and some words, are allowed."""

    name = "sizes"

    pixels: int = one_of(14, 28, default=28)
    shape: str = one_of("square", "circle", "triangle", default="square")


def test_some_whole_numbers_are_read_written_and_checked():
    assert read_parameters(Sizes, {"pixels": "14"}) == ({"pixels": 14}, {})
    assert title_of("sizes", Sizes(pixels=14).values(), {"": Sizes().values()}) == "sizes:pixels=14"
    for value in (0, 15, -14, 140):
        with pytest.raises(BenchmarkError) as error:
            Sizes(pixels=value)
        assert str(error.value) == f"The 'pixels' parameter of sizes must be one of 14, 28. Got {value}."
    for value in (14.0, "14", True, None):
        with pytest.raises(BenchmarkError, match=rf"must be a whole number\. Got {value!r}\."):
            Sizes(pixels=value)


@pytest.mark.parametrize(
    ("cls", "key", "word", "meant"),
    [
        (Sizes, "shape", "circel", "circle"), (Sizes, "shape", "Triangle", "triangle"),
        (Recipe, "optimizer", "adamW", "adamw"), (methods.get("pgd")[0], "norm", "l_2", "l2"),
        (datasets.get("cmnist")[0], "target", "color", "colour"), (datasets.get("bffhq")[0], "part", "0.5", "0.5pct"),
    ],
)  # fmt: skip
def test_a_misspelt_word_is_answered_with_the_nearest(cls, key, word, meant):
    with pytest.raises(BenchmarkError) as error:
        cls(**{key: word})
    (line,) = str(error.value).splitlines()
    assert line.endswith(f"Got {word!r}. Did you mean '{meant}'?")


@pytest.mark.parametrize(
    "values",
    [{"mean": (0.5,)}, {"crop_scale": (0.9,)}, {"crop_scale": (0.9, 0.1)}, {"crop_ratio": (0.0, 1.0)},
     {"milestones": (1.5,)}],
)  # fmt: skip
def test_a_recipe_refuses_values_that_do_not_belong_together(values):
    with pytest.raises(BenchmarkError, match=next(iter(values))):
        Recipe(**values)


def test_the_order_of_a_quasi_norm_needs_norm_lp():
    pgd = methods.get("pgd")[0]
    assert pgd(norm="lp", order=0.7).order == 0.7
    for values in ({"norm": "lp"}, {"order": 0.7}):
        with pytest.raises(BenchmarkError, match=r"norm=lp,order=0\.7"):
            pgd(**values)


# --- writing and labels


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "true"), (False, "false"), (3, "3"), (0.5, "0.5"), (1.0, "1"), (1e-8, "1e-08"),
        (0.1 + 0.2, "0.30000000000000004"), (1 / 3, "0.3333333333333333"), ((0.4, 0.8), "0.4/0.8"),
        ("word", "word"), ("a,b", '"a,b"'), ("a|b", '"a|b"'),
    ],
)  # fmt: skip
def test_a_value_is_written_as_short_as_it_reads_back(value, text):
    assert write_value(value) == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", 1 / 3), ("share", 0.005), ("scale", 1e-8), ("scale", 123456789.0), ("count", 1_000_000),
        ("on", True), ("limit", None), ("steps", (1 / 3, 2 / 3)), ("word", "a,b|c:d"), ("word", "it's"),
        ("word", "x=y"), ("word", 'say "a,b"'), ("word", '"quoted"'),
    ],
)  # fmt: skip
def test_every_written_value_reads_back_through_the_whole_grammar(key, value):
    # another option follows, so that an open quote would swallow it
    _, options = split_spec(f"knobs:{key}={write_value(value)},kind=green")
    (single,) = expand_sweeps(options)
    assert read_parameters(Knobs, single) == ({key: value, "kind": "green"}, {})


def test_a_label_names_only_what_differs_and_takes_the_shorter_of_preset_and_values():
    bases = {"": DEFAULTS, "bold": {**DEFAULTS, "share": 1.0, "count": 9}}
    assert title_of("knobs", DEFAULTS, bases) == "knobs"
    assert title_of("knobs", {**DEFAULTS, "count": 9}, bases) == "knobs:count=9"
    assert title_of("knobs", {**DEFAULTS, "share": 1.0, "count": 9}, bases) == "knobs:preset=bold"
    assert title_of("knobs", {**DEFAULTS, "share": 1.0, "count": 9, "on": True}, bases) == "knobs:preset=bold,on=true"


LABELS = [
    ("pgd", "cmnist5k", "pgd", "cmnist5k"),
    ("pgd:alpha=0.7", "cmnist5k:rho=0.02", "pgd", "cmnist5k"),
    ("pgd-loss", "cmnist", "pgd:score=loss", "cmnist"),
    ("pgd-loss:score=gradnorm", "cmnist", "pgd", "cmnist"),
    ("pgd-loss:alpha=0.90", "cmnist", "pgd:alpha=0.9,score=loss", "cmnist"),
    ("pgd:preset=official", "cmnist", "pgd:preset=official", "cmnist"),
    ("pgd:preset=official,alpha=0.1", "cmnist", "pgd:preset=official,alpha=0.1", "cmnist"),
    ("pgd:preset=official,gce_form=paper", "cmnist", "pgd:preset=official,gce_form=paper", "cmnist"),
    ("pgd:norm=lp,order=0.7", "cmnist", "pgd:norm=lp,order=0.7", "cmnist"),
    ("pgd:score_bias=False", "cmnist", "pgd:score_bias=false", "cmnist"),
    ("jtt:lambda_up=50", "cmnist5k:rho=0", "jtt:lambda_up=50", "cmnist5k:rho=0"),
    ("jtt:T=5,lambda_up=none", "cmnist5k", "jtt", "cmnist5k"),
    ("disen", "cmnist5k", "disen", "cmnist5k"),  # its values for this dataset need not be shown
    ("disen:bias_factor=1", "cmnist5k", "disen:bias_factor=1", "cmnist5k"),
    ("disen:preset=official", "cmnist5k", "disen:preset=official", "cmnist5k"),
    ("lff:preset=official,alpha=0.5", "cmnist", "lff:preset=official,alpha=0.5", "cmnist"),
    ("vanilla", "cmnist:preset=lff", "vanilla", "cmnist:preset=lff"),
    ("vanilla", "cmnist:preset=lff,rho=0.01", "vanilla", "cmnist:preset=lff,rho=0.01"),
    ("vanilla", "cmnist5k:epochs=3", "vanilla", "cmnist5k:epochs=3"),
    ("vanilla", "cmnist5k:data_seed=3", "vanilla", "cmnist5k:data_seed=3"),
    ("vanilla", "cmnist5k:milestones=0.3/0.6,epochs=3", None, None),
    ("vanilla", "cmnist5k:crop_scale=none,augment=false", None, None),
    (
        "vanilla",
        "cmnist:preset=lff,net=simconv1",
        None,
        None,
    ),  # back to what the dataset has without the preset
    (
        "disen",
        "cmnist5k:optimizer=sgd",
        None,
        None,
    ),  # back to what the dataset has without the method's recipe
    ("vanilla", 'cmnist5k:pretrained="weights,a|b",epochs=3', None, None),
    ("vanilla", 'cmnist5k:pretrained="it\'s",epochs=3', None, None),
    ("vanilla", "cmnist5k:milestones=/", None, None),  # no milestones
]


@pytest.mark.parametrize(("method", "dataset", "method_title", "dataset_title"), LABELS)
def test_a_label_is_the_shortest_text_and_reads_back_as_the_same_cell(method, dataset, method_title, dataset_title):
    cell = one_cell(method, dataset)
    if method_title is not None:
        assert (cell.method_title, cell.dataset_title) == (method_title, dataset_title)
    again = one_cell(cell.method_title, cell.dataset_title)
    assert again.identity() == cell.identity()
    assert again.hash == cell.hash
    assert (again.method_title, again.dataset_title) == (cell.method_title, cell.dataset_title)


def test_every_preset_and_alias_of_every_method_and_dataset_reads_back_from_its_label():
    specs = [(alias, "cmnist5k") for alias in methods.aliases()]
    for name, cls in methods.classes().items():
        for preset, values in cls.presets.items():
            specs += [(f"{name}:preset={preset}", dataset) for dataset in values.get("recipes", {"cmnist5k": {}})]
    for spec, dataset in specs:
        cell = one_cell(spec, dataset)
        assert one_cell(cell.method_title, dataset).hash == cell.hash, (spec, dataset)
    for name, cls in datasets.classes().items():
        for preset in cls.presets:
            cell = one_cell("vanilla", f"{name}:preset={preset}")
            assert one_cell("vanilla", cell.dataset_title).hash == cell.hash


def test_epochs_of_the_command_line_are_in_the_label_and_read_back():
    cell = one_cell("pgd", "cmnist5k", epochs=7)
    assert cell.dataset_title == "cmnist5k:epochs=7"
    assert one_cell("pgd", cell.dataset_title).hash == cell.hash


# --- names


def test_an_alias_resolves_to_its_method_and_parameters():
    pgd = methods.get("pgd")[0]
    assert methods.get("pgd-loss") == (pgd, {"score": "loss"})
    assert methods.get("pgd-reweight") == (pgd, {"use": "reweight"})
    assert one_cell("pgd-reweight", "cmnist5k").method_parameters == pgd(use="reweight").values()


@pytest.mark.parametrize(
    ("registry", "word", "meant"),
    [(methods, "vanila", "vanilla"), (methods, "pgd-los", "pgd-loss"), (datasets, "cmnist5", "cmnist5k")],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_names(registry, word, meant):
    with pytest.raises(BenchmarkError) as error:
        registry.get(word)
    message = str(error.value)
    assert message.startswith(f"Unknown {registry.kind} '{word}'. Did you mean '{meant}'? Known: ")
    for name in [*registry.classes(), *registry.aliases()]:
        assert name in message


def test_where_the_files_are_is_no_part_of_the_data():
    cls: type[Dataset] = datasets.get("cmnist5k")[0]
    assert cls(root="somewhere").key() == cls().key() == {"data_seed": 0, "rho": 0.02}
