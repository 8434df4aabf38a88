"""The Python interface refuses arguments of other types than it declares, each in a sentence, before anything runs."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import debiasbench
from debiasbench import arguments, figures
from debiasbench.errors import BenchmarkError

DOORS = [debiasbench.run, debiasbench.tune, debiasbench.compare, debiasbench.load_results, debiasbench.load_predictor,
         *(getattr(figures, name) for name in figures.__all__)]  # fmt: skip
ITS_OWN = ("table",)  # what a function looks at itself
WRONG = {  # values of no argument of such a kind
    "str": [3, b"cpu", ["cpu"]], "Path": [3, 1.5, ["results"]], "bool": ["no", 1, 0.0],
    "int": [3.0, "3", True, None, [1]], "float": ["2h", True, float("nan"), float("inf"), [1.0]],
    "Sequence[int]": ["0, 1", [0, 1.5], [True], {0: 1}], "Sequence[str]": [3, [1], {"pgd": 1}, None, [b"pgd"]],
    "tuple[int, int]": [(1,), (1, 2, 3), "1/2", (1.0, 2)],
}  # fmt: skip


def parameters(door):
    return [one for name, one in inspect.signature(door).parameters.items() if name not in ITS_OWN]


def minimal(door):
    """Arguments with which it could be called, so that another can be wrong."""
    values = {"methods": ["vanilla"], "datasets": ["cmnist5k"], "table": None, "path": "x", "record": "x"}
    needed = [name for name, one in inspect.signature(door).parameters.items() if one.default is one.empty]
    return {name: values[name] for name in needed}


def is_fine(kinds, value):
    """Whether another of the kinds takes it."""
    try:
        arguments._read(kinds, value)
    except (TypeError, ValueError):
        return False
    return True


CASES = [
    pytest.param(door, one.name, value, id=f"{door.__name__}-{one.name}-{value!r}")
    for door in DOORS
    for one in parameters(door)
    for value in {repr(v): v for kind in one.annotation.split(" | ") for v in WRONG.get(kind, ())}.values()
    if not is_fine(one.annotation, value)
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_every_argument_has_a_kind_that_is_checked(door):
    for one in parameters(door):
        assert set(one.annotation.split(" | ")) <= {*arguments._READ, "None"}, one.name


@pytest.mark.parametrize(("door", "name", "value"), CASES)
def test_an_argument_of_a_wrong_type_is_one_sentence(door, name, value):
    with pytest.raises(BenchmarkError) as error:
        door(**minimal(door) | {name: value})
    said = str(error.value)
    assert said.startswith(f"{door.__name__}: {name} must be ")
    assert type(value).__name__ in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 3.0}, "run: seeds must be a whole number or a list of whole numbers. Got 3.0 (float)."),
        ({"workers": -1}, "run: workers must be at least 0. Got -1 (int)."),
        ({"per_device": 0}, "run: per_device must be at least 1. Got 0 (int)."),
        ({"cell_timeout": -5}, "run: cell_timeout must be a time above 0, in seconds. Got -5 (int)."),
        ({"cell_timeout": 10**400},
         f"run: cell_timeout must be a finite number (or None). Got 1{'0' * 17}...{'0' * 19} (int)."),
        ({"cell_timeout": b"1"}, "run: cell_timeout must be a finite number (or None). Got b'1' (bytes)."),
        ({"checkpoint_every": 0}, "run: checkpoint_every must be a time above 0, in seconds. Got 0 (int)."),
        ({"device": 3, "epochs": "2"},
         "run: device must be text. Got 3 (int). epochs must be a whole number (or None). Got '2' (str)."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_once(options, said, tmp_path):
    with pytest.raises(BenchmarkError) as error:
        debiasbench.run("vanilla", "cmnist5k", results_dir=tmp_path, **options)
    assert str(error.value) == said


def test_values_are_read_as_what_they_are():
    def door(words, numbers=3, where=None, time=1.0):
        return words, numbers, where, time

    kinds = ("Sequence[str]", "int | Sequence[int]", "str | Path | None", "float")
    door.__annotations__ = dict(zip(("words", "numbers", "where", "time"), kinds, strict=True))
    door = arguments.checked()(door)
    assert door("pgd") == (["pgd"], 3, None, 1.0)
    assert door(("a", "b"), np.int64(2), Path("x"), 5) == (["a", "b"], 2, Path("x"), 5.0)
    given = door((name for name in "ab"), np.arange(3), "y", np.float64(0.5))
    assert given == (["a", "b"], [0, 1, 2], "y", 0.5)
    assert type(given[1][0]) is int
    assert door(["a"], range(10**12))[1][:2] == [0, 1]


def test_what_no_function_takes_is_python_s_own_error():
    with pytest.raises(TypeError, match="seed"):
        debiasbench.run(["vanilla"], ["cmnist5k"], seed=3)
