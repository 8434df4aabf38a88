"""The choices of fair tuning: how a cell records them, and the TOML file that `debiasbench run --tuned` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from debiasbench import about
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import CHOOSING, SELECTION_RULES, SMALLEST, uses_bias_labels
from debiasbench.files import check_writable, read_toml, write_atomically
from debiasbench.parameters import suggestion
from debiasbench.plain import from_plain, to_plain


@dataclass(frozen=True)
class Draw:
    """The draw of a tuning that a cell belongs to: the title of the requested method, and a number; 0: its defaults."""

    method: str
    number: int


@dataclass(frozen=True)
class Tuned:
    """How the values of a cell were chosen.

    Attributes:
        rule: the rule that chose them, on validation.
        draws: the number of draws that it chose from.
        seeds: the seeds that each draw was trained with.
        draw: the number of the chosen draw; 0: the method's defaults.
    """

    rule: str
    draws: int
    seeds: tuple[int, ...]
    draw: int

    @property
    def words(self) -> str:
        """The text for a line below a table."""
        labels = "with" if uses_bias_labels(self.rule) else "without"
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        which = f"draw {self.draw} of {self.draws}" if self.draw else f"the defaults among {self.draws} draws"
        return f"{which}, chosen by {self.rule} on validation {labels} bias labels, {seeds}"


@dataclass(frozen=True)
class Chosen:
    """The choice for a method on a dataset.

    Attributes:
        dataset: title of the dataset.
        method: title of the method.
        draw: number of the chosen draw; 0: the defaults.
        value: the measure of the rule for this draw: an accuracy or a difference of two, as a fraction; or a loss.
        default: the same for the defaults; None if they failed.
        values: the values of the searched hyper-parameters, None as "none".
    """

    dataset: str
    method: str
    draw: int
    value: float
    default: float | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TunedValues:
    """The content of a file of tuned values: how they were chosen, and the choices.

    Attributes:
        version: the version of the suite that wrote the file.
        rule: the rule that chose, one of `CHOOSING`.
        draws: number of draws for each method on each dataset.
        seeds: the seeds that each draw was trained with.
        chosen: the choice for each method on each dataset.
        digest: SHA-256 of everything else in the file, as the file states it; "" if this was not read from a file.
        path: the file, if this was read from one.
    """

    version: str
    rule: str
    draws: int
    seeds: tuple[int, ...]
    chosen: tuple[Chosen, ...] = ()
    digest: str = field(default="", compare=False)
    path: Path | None = field(default=None, compare=False, metadata={"written": False})

    def of(self, dataset: str, method: str) -> Chosen | None:
        """The choice for a method on a dataset; None if the file has none."""
        return next((one for one in self.chosen if (one.dataset, one.method) == (dataset, method)), None)

    @property
    def in_order(self) -> tuple[Chosen, ...]:
        """The choices, in the order of the file."""
        return tuple(sorted(self.chosen, key=lambda one: (one.dataset, one.method)))

    def content(self) -> str:
        """The digest of the content, which `digest` must equal. Comments of the file are not part of it."""
        plain = to_plain(replace(self, digest="", chosen=self.in_order))
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def __post_init__(self) -> None:
        if self.rule not in CHOOSING:
            raise ValueError(f"rule must be one of {', '.join(CHOOSING)}. Got {self.rule!r}")
        if self.draws < 1 or any(not 0 <= one.draw < self.draws for one in self.chosen):
            raise ValueError("draws must be at least 1, and larger than every chosen draw")
        if len({(one.dataset, one.method) for one in self.chosen}) < len(self.chosen):
            raise ValueError("chosen must not have two entries for one dataset and method")


def check_rule(rule: str) -> None:
    """Refuse a rule that cannot choose among draws.

    Raises:
        BenchmarkError: says why, and which rules can.
    """
    if rule in CHOOSING:
        return
    why = {
        "last": "'last' always takes the last epoch, so it cannot say which draw is best.",
        "test_oracle": "'test_oracle' reads the test split, which must not be used to choose.",
    }.get(rule, f"No selection rule '{rule}'.{suggestion(rule, SELECTION_RULES)}")
    raise BenchmarkError(f"{why} Choose on validation, with {', '.join(CHOOSING)} (the last one uses bias labels).")


def check_output(path: Path) -> None:
    """Refuse an output file that cannot be written, before hours of training.

    Raises:
        BenchmarkError: the path does not end in .toml, is a folder, or cannot be written.
    """
    if path.suffix != ".toml" or path.is_dir():
        raise BenchmarkError(f"--output must be a file that ends in .toml. Got {path}.")
    check_writable(path.parent, "--output")


def read_tuned(path: Path) -> TunedValues:
    """Read a file that `debiasbench tune` wrote.

    Raises:
        BenchmarkError: the file is missing, cannot be read, is a different kind of file, or was changed.
    """
    values = read_toml(path, "The file of tuned values")
    try:
        found: TunedValues = from_plain(TunedValues, values, "it")
    except ValueError as error:
        raise BenchmarkError(
            f"{path} was not written by `debiasbench tune`, or was changed: {error}. Run the same `debiasbench tune` "
            "again to write the file: it repeats no training."
        ) from None
    # the rule says whether it uses bias labels, and the digest covers the rule
    if found.digest != found.content() or values.get("uses_bias_labels") != uses_bias_labels(found.rule):
        raise BenchmarkError(
            f"{path} was changed after it was written: its digest does not match its content. Give values of your own "
            "inline, as in pgd:alpha=0.5, because they are not tuned. Or run the same `debiasbench tune` again to "
            "write the file: it repeats no training."
        )
    return replace(found, path=path)


def write_tuned(path: Path, tuned: TunedValues) -> None:
    """Write the file. Equal choices give equal bytes."""
    better = "lower is better" if tuned.rule in SMALLEST else "higher is better"
    lines = [
        "# Hyper-parameters that `debiasbench tune` chose on validation only. Use: debiasbench run --tuned FILE",
        f"# value: the measure of the rule {tuned.rule} for the chosen draw, averaged over seeds; {better}.",
        '# default: the same for draw 0, the defaults of the method. "none" stands for no value.',
        f"version = {_toml(tuned.version)}",
        f"rule = {_toml(tuned.rule)}  # {SELECTION_RULES[tuned.rule].partition(';')[0]}",
        f"uses_bias_labels = {_toml(uses_bias_labels(tuned.rule))}",
        f"draws = {tuned.draws}  # for each method on each dataset",
        f"seeds = {_toml(tuned.seeds)}",
        f"digest = {_toml(tuned.content())}",
    ]
    for one in tuned.in_order:
        lines += ["", "[[chosen]]", f"dataset = {_toml(one.dataset)}", f"method = {_toml(one.method)}"]
        lines += [f"draw = {one.draw}", f"value = {_toml(one.value)}"]
        lines += [f"default = {_toml(one.default)}"] if one.default is not None else []
        lines += ["[chosen.values]", *(f"{key} = {_toml(value)}" for key, value in one.values.items())]
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))


def tuned_values(rule: str, draws: int, seeds: Iterable[int], chosen: Iterable[Chosen]) -> TunedValues:
    """The choices of this version of the suite, in the order of the file."""
    found = TunedValues(about.version(), rule, draws, tuple(seeds), tuple(chosen))
    return replace(found, chosen=found.in_order)


def _toml(value: Any) -> str:
    """Write a plain value as TOML: text, numbers and lists are written as in JSON; TOML has no null."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)
