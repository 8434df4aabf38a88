"""What a dataset must be, checked before anything trains: its declarations, and the columns of all splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch

from debiasbench.datasets import Dataset, NeededFile
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.escaping import one_line
from debiasbench.samples import INPUTS, Samples, Splits

SHAPES = {  # kind of input -> dimensions of x, and their names
    "images": (4, "(N, C, H, W)"),
    "text": (2, "(N, L), token numbers"),
    "features": (2, "(N, D), one row per sample"),
}


def files_needed(dataset: Dataset, data_dir: Path) -> list[NeededFile]:
    """`Dataset.needed_files`, checked.

    Raises:
        BenchmarkError: it raises an error, or returns something else than a list of `NeededFile`.
    """
    with raised_by(f"needed_files of {dataset.name} failed"):
        returned = dataset.needed_files(data_dir)
        needed = list(returned) if isinstance(returned, Iterable) else [returned]
    if not all(isinstance(file, NeededFile) for file in needed):
        raise BenchmarkError(
            f"{dataset.name}: needed_files must return a list of NeededFile, empty if nothing is missing. "
            f"Got {returned!r}."
        )
    return needed


def check_input(dataset: Dataset) -> None:
    """Refuse a kind of input that there is not."""
    if not isinstance(dataset.input, str) or dataset.input not in INPUTS:
        raise BenchmarkError(f"{dataset.name}: input must be one of {', '.join(INPUTS)}. Got {dataset.input!r}.")


def check_splits(dataset: Dataset, splits: Splits, *, with_x: bool = True) -> Splits:
    """Refuse data that cannot be trained on, and columns that are not as `Samples` and the dataset describe them.

    Args:
        dataset: the one that built the splits.
        splits: what `build` returned.
        with_x: False: x is not looked at, for what `build_labels` returns.

    Raises:
        BenchmarkError: names the dataset, the split and the column, with what is allowed and what was given.
    """
    if not isinstance(splits, Splits):
        raise BenchmarkError(f"{dataset.name}: build must return Splits. Got {type(splits).__name__}.")
    check_input(dataset)
    _check_declarations(dataset)
    for name, samples in splits.named().items():
        if len(samples) == 0:
            raise BenchmarkError(f"{dataset.name}: the {name} split is empty.")
        _check_columns(dataset, name, samples)
        if with_x:
            _check_x(dataset, name, samples, splits.train.x)
    _check_conflicts(dataset, splits)
    train, test = splits.train, splits.test
    same_x = with_x and test.x.data_ptr() == train.x.data_ptr() and test.x.shape == train.x.shape
    if same_x and torch.equal(test.y, train.y):
        raise BenchmarkError(f"{dataset.name}: train and test are the same samples. Hold out some of them for test.")
    present = splits.train.y.unique()
    if len(present) < 2:
        raise BenchmarkError(
            f"{dataset.name}: the training data hold one class only ({dataset.class_names[int(present[0])]}); "
            "there is nothing to tell apart. At least two classes are needed."
        )
    for name, samples in splits.named().items():
        new = sorted({*samples.y.unique().tolist()} - {*present.tolist()})
        if new:
            raise BenchmarkError(
                f"{dataset.name}: {', '.join(dataset.class_names[label] for label in new)} occurs in {name}, but not "
                "in train, so it cannot be learnt: add training samples, or remove it."
            )
    return splits


def _check_declarations(dataset: Dataset) -> None:
    """Refuse what the class declares if it is of a wrong type or contradicts itself.

    Which metrics there are is known after an evaluation: see `rehearsal.check_headline`.
    """
    for what in ("class_names", "bias_names", "group_names", "headline", "ratio_parameters"):
        _check_texts(dataset, what, getattr(dataset, what))
    if not dataset.class_names:
        raise BenchmarkError(
            f"{dataset.name}: class_names is missing, the names of its labels: class_names = ('cat', 'dog')."
        )
    if dataset.n_classes != len(dataset.class_names):
        raise BenchmarkError(
            f"{dataset.name}: n_classes must be the number of class_names, {len(dataset.class_names)}. "
            f"Got {dataset.n_classes!r}. Leave n_classes out: it follows from the names."
        )
    if not dataset.headline:
        raise BenchmarkError(f"{dataset.name}: headline is empty. It names the metrics of tables, such as acc_avg.")
    _check_bias(dataset)
    for what in ("defines_conflicts", "has_bias_labels", "unbiased_test"):
        if not isinstance(getattr(dataset, what), bool):
            raise BenchmarkError(f"{dataset.name}: {what} must be True or False. Got {getattr(dataset, what)!r}.")
    if not isinstance(dataset.display, str) or dataset.display != one_line(dataset.display).strip():
        raise BenchmarkError(
            f"{dataset.name}: display must be text on one line, without blanks at its ends. Got {dataset.display!r}."
        )
    words = dataset.in_words()
    if not isinstance(words, dict) or not all(isinstance(one, str) for one in (*words, *words.values())):
        raise BenchmarkError(
            f'{dataset.name}: in_words must return texts by parameter, {{"rho": "5 %"}}. Got {words!r}.'
        )
    counts = dataset.official_counts
    strange = [one for one in counts if one not in ("train", "valid", "test", "tune")] if counts else []
    if not isinstance(counts, dict) or strange:
        raise BenchmarkError(
            f"{dataset.name}: official_counts must be a dictionary with the keys train, valid, test, tune. "
            f"Got {counts!r}."
        )
    unknown = [name for name in dataset.ratio_parameters if name not in dataset.values()]
    if unknown:
        raise BenchmarkError(
            f"{dataset.name}: ratio_parameters names {', '.join(unknown)}. "
            f"Its parameters are {', '.join(dataset.values())}."
        )


def _check_bias(dataset: Dataset) -> None:
    """The part of `_check_declarations` on biases."""
    n_values, names, ratio = dataset.n_bias_values, dataset.bias_values, dataset.conflict_ratio
    if not dataset.bias_names:
        raise BenchmarkError(
            f"{dataset.name}: bias_names is empty. Without a known bias, leave it out, give bias a column of -1, and "
            "set has_bias_labels = False."
        )
    if not isinstance(n_values, Integral) or isinstance(n_values, bool) or n_values < 0:
        raise BenchmarkError(f"{dataset.name}: n_bias_values must be a whole number of at least 0. Got {n_values!r}.")
    if not isinstance(names, tuple | list) or len(names) not in (0, len(dataset.bias_names)):
        raise BenchmarkError(
            f"{dataset.name}: bias_values must be (), or have one tuple of names for each of bias_names "
            f"({len(dataset.bias_names)}). Got {names!r}."
        )
    for name, values in zip(dataset.bias_names, names, strict=False):
        _check_texts(dataset, f"bias_values of {name}", values)
        if len(values) > n_values:
            raise BenchmarkError(
                f"{dataset.name}: bias_values names {len(values)} values of {name}, but n_bias_values is {n_values}. "
                f"Set n_bias_values = {len(values)}."
            )
    if ratio is not None and not (isinstance(ratio, Real) and not isinstance(ratio, bool) and 0 <= ratio <= 1):
        raise BenchmarkError(f"{dataset.name}: conflict_ratio must be in [0, 1], or None if unknown. Got {ratio!r}.")


def _check_texts(dataset: Dataset, what: str, names: Sequence[str]) -> None:
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise BenchmarkError(f"{dataset.name}: {what} must be a tuple of texts, such as ('a', 'b'). Got {names!r}.")
    shown = [one_line(name).strip() for name in names]  # as in tables
    if "" in shown:
        raise BenchmarkError(f"{dataset.name}: {what} has an empty name. Got {names!r}.")
    twice = [name for name, n in Counter(shown).items() if n > 1]
    if twice:
        raise BenchmarkError(f"{dataset.name}: {what} must differ from each other. '{twice[0]}' is there twice.")


def _check_conflicts(dataset: Dataset, splits: Splits) -> None:
    """Refuse conflicts that only some splits define, or nothing; and known biases that are all unknown."""
    missing = [name for name, samples in splits.named().items() if samples.conflict is None]
    if missing and len(missing) < len(splits.named()):
        raise BenchmarkError(
            f"{dataset.name}: conflict of {' and '.join(missing)} is missing: give it in every split, or in none."
        )
    if dataset.has_bias_labels and not bool((splits.train.bias >= 0).any()):
        raise BenchmarkError(
            f"{dataset.name}: has_bias_labels is True, but the bias of all training samples is unknown (-1). "
            "Set has_bias_labels = False."
        )
    known = any(bool((samples.bias >= 0).any()) for samples in splits.named().values())
    if (
        splits.train.conflict is None
        and known
        and dataset.defines_conflicts
        and dataset.n_bias_values < dataset.n_classes
    ):
        raise BenchmarkError(
            f"{dataset.name}: without the column conflict, a sample conflicts if its bias is not its label, but there "
            f"are {dataset.n_bias_values} values of the bias (n_bias_values) and {dataset.n_classes} classes. Set "
            "n_bias_values, give conflict, or set defines_conflicts = False."
        )


def _check_columns(dataset: Dataset, name: str, samples: Samples) -> None:
    """Refuse columns whose types, shapes or ranges are not those of `Samples`: converting them could hide a mistake."""
    n, n_biases, n_groups = len(samples), len(dataset.bias_names), len(dataset.group_names)
    for column, wanted, shape in (
        ("y", torch.int64, (n,)),
        ("bias", torch.int64, (n, n_biases)),
        ("conflict", torch.bool, (n, n_biases)),
        ("groups", torch.bool, (n, n_groups)),
        ("length", torch.int64, (n,)),
    ):
        values = getattr(samples, column)
        if values is None and column == "groups" and n_groups:
            raise BenchmarkError(f"{dataset.name}: groups of {name} is missing, a column for each of group_names.")
        if values is None:
            continue
        _check_type(dataset, name, column, values, wanted)
        if values.shape != shape:
            of = {"bias": "a column for each of bias_names", "groups": "a column for each of group_names"}.get(column)
            raise BenchmarkError(
                f"{dataset.name}: {column} of {name} must be of shape {shape}{f', {of}' * bool(of)}. "
                f"Got {tuple(values.shape)}."
            )
    if int(samples.y.min()) < 0 or int(samples.y.max()) >= dataset.n_classes:
        raise BenchmarkError(
            f"{dataset.name}: labels of {name} must be in 0..{dataset.n_classes - 1}. "
            f"Got {int(samples.y.min())}..{int(samples.y.max())}."
        )
    if int(samples.bias.max()) >= dataset.n_bias_values:
        raise BenchmarkError(
            f"{dataset.name}: the bias of {name} must be below n_bias_values, which is {dataset.n_bias_values}. "
            f"Got {int(samples.bias.max())}: correct it, or set n_bias_values."
        )
    if int(samples.bias.min()) < -1:
        raise BenchmarkError(
            f"{dataset.name}: the bias of {name} must be at least 0, or -1 if unknown. Got {int(samples.bias.min())}."
        )


def _check_x(dataset: Dataset, name: str, samples: Samples, of_train: torch.Tensor) -> None:
    """Refuse x that no network can take, and x of another shape than in training. Images and texts are not read."""
    x = samples.x
    _check_type(dataset, name, "x", x, INPUTS[dataset.input])
    n_dims, shape = SHAPES[dataset.input]
    if x.ndim != n_dims or 0 in x.shape:
        raise BenchmarkError(f"{dataset.name}: x of {name} must be {shape}. Got {tuple(x.shape)}.")
    if dataset.input == "images" and x.shape[1] > 4 >= x.shape[3] and x.shape[2] > 4:
        raise BenchmarkError(
            f"{dataset.name}: x of {name} must be {shape}. Got {tuple(x.shape)}, whose last dimension looks like the "
            "channels. If so: x.permute(0, 3, 1, 2)."
        )
    if dataset.input == "features" and x.shape[1:] != of_train.shape[1:]:
        raise BenchmarkError(
            f"{dataset.name}: {name} has {x.shape[1]:,} features per sample, and train has {of_train.shape[-1]:,}."
        )
    if x.shape[1:] != of_train.shape[1:]:
        raise BenchmarkError(
            f"{dataset.name}: x of {name} must have the shape of train, {tuple(of_train.shape[1:])} per sample. "
            f"Got {tuple(x.shape[1:])}. {'Pad texts to one length with -1.' * (dataset.input == 'text')}".rstrip()
        )
    if dataset.input == "features" and not all(bool(torch.isfinite(end)) for end in torch.aminmax(x)):  # keeps nan
        raise BenchmarkError(f"{dataset.name}: x of {name} holds NaN or infinite values. Remove those samples.")
    if dataset.input != "text":
        if samples.length is not None:
            raise BenchmarkError(f"{dataset.name}: length of {name} is for texts, but input is {dataset.input}.")
    else:
        if samples.length is None:
            raise BenchmarkError(f"{dataset.name}: length of {name} is missing, the number of tokens of each text.")
        shortest, longest = int(samples.length.min()), int(samples.length.max())
        if shortest < 1 or longest > x.shape[1]:
            raise BenchmarkError(
                f"{dataset.name}: length of {name} must be in 1..{x.shape[1]}. Got {shortest}..{longest}."
            )


def _check_type(dataset: Dataset, name: str, column: str, values: torch.Tensor, wanted: torch.dtype) -> None:
    if values.dtype != wanted:
        said = ", pixels in 0..255; the recipe scales and normalises them" if wanted == torch.uint8 else ""
        raise BenchmarkError(
            f"{dataset.name}: {column} of {name} must be {str(wanted).removeprefix('torch.')}{said}. "
            f"Got {str(values.dtype).removeprefix('torch.')}."
        )
