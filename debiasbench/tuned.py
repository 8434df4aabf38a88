"""What fair tuning has chosen: as a cell knows it, and as a TOML file, which `debiasbench run --tuned` reads."""

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
    """Which draw of a tuning a cell is: the title of the method that was asked for, and the number; 0: its defaults."""

    method: str
    number: int


@dataclass(frozen=True)
class Tuned:
    """How the values of a cell were chosen.

    Attributes:
        rule: by which, on validation.
        draws: among how many.
        seeds: that each of them was trained with.
        draw: which of them it is; 0: the method's defaults.
    """

    rule: str
    draws: int
    seeds: tuple[int, ...]
    draw: int

    @property
    def words(self) -> str:
        """For a line below a table."""
        labels = "with" if uses_bias_labels(self.rule) else "without"
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        which = f"draw {self.draw} of {self.draws}" if self.draw else f"the defaults among {self.draws} draws"
        return f"{which}, chosen by {self.rule} on validation {labels} bias labels, {seeds}"


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a method on a dataset.

    Attributes:
        dataset: its title.
        method: its title.
        draw: its number; 0: the defaults.
        value: what the rule went by, of this draw: an accuracy, or a difference of two, as a fraction; or a loss.
        default: the same of the defaults; None where they failed.
        values: of what was searched, None as "none".
    """

    dataset: str
    method: str
    draw: int
    value: float
    default: float | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TunedValues:
    """The content of a file: how was chosen, and what.

    Attributes:
        version: of the suite that wrote it.
        rule: by which was chosen, one of `CHOOSING`.
        draws: of each method on each dataset.
        seeds: that each draw was trained with.
        chosen: what, for each method on each dataset.
        digest: SHA-256 of all else that is written, as the file has it; "" where it was not read from one.
        path: of the file, where it was read from one.
    """

    version: str
    rule: str
    draws: int
    seeds: tuple[int, ...]
    chosen: tuple[Chosen, ...] = ()
    digest: str = field(default="", compare=False)
    path: Path | None = field(default=None, compare=False, metadata={"written": False})

    def of(self, dataset: str, method: str) -> Chosen | None:
        """What was chosen for a method on a dataset; None where the file says nothing of them."""
        return next((one for one in self.chosen if (one.dataset, one.method) == (dataset, method)), None)

    @property
    def in_order(self) -> tuple[Chosen, ...]:
        """What was chosen, in the order of the file."""
        return tuple(sorted(self.chosen, key=lambda one: (one.dataset, one.method)))

    def content(self) -> str:
        """What `digest` must be."""
        plain = to_plain(replace(self, digest="", chosen=self.in_order))
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def __post_init__(self) -> None:
        if self.rule not in CHOOSING:
            raise ValueError(f"rule must be one of {', '.join(CHOOSING)}, and is {self.rule!r}")
        if self.draws < 1 or any(not 0 <= one.draw < self.draws for one in self.chosen):
            raise ValueError("draws must be at least 1, and above the number of each draw that was chosen")
        if len({(one.dataset, one.method) for one in self.chosen}) < len(self.chosen):
            raise ValueError("chosen must have each pair of a dataset and a method once")


def check_rule(rule: str) -> None:
    """Refuse what no draw may be chosen by.

    Raises:
        BenchmarkError: why, and which rules there are.
    """
    if rule in CHOOSING:
        return
    why = {
        "last": "'last' takes the last epoch whatever it is, so it cannot say which draw is best.",
        "test_oracle": "'test_oracle' reads the test split, and what is chosen there is no result.",
    }.get(rule, f"No selection rule '{rule}'.{suggestion(rule, SELECTION_RULES)}")
    raise BenchmarkError(f"{why} Draws are chosen on validation, by {', '.join(CHOOSING)} (which uses bias labels).")


def check_output(path: Path) -> None:
    """Refuse what is no file to write to, before hours of training.

    Raises:
        BenchmarkError: it does not end in .toml, or is a folder, or cannot be written.
    """
    if path.suffix != ".toml" or path.is_dir():
        raise BenchmarkError(f"--output must be a file that ends in .toml. Got {path}.")
    check_writable(path.parent, "--output")


def read_tuned(path: Path) -> TunedValues:
    """A file of `debiasbench tune`.

    Raises:
        BenchmarkError: it is not there, cannot be read, or is another file or a damaged one.
    """
    values = read_toml(path, "The file of tuned values")
    try:
        found: TunedValues = from_plain(TunedValues, values, "it")
    except ValueError as error:
        raise BenchmarkError(
            f"{path} is no file that `debiasbench tune` wrote, or was changed: {error}. Write it again: the same "
            "debiasbench tune trains nothing anew."
        ) from None
    # whether the rule uses bias labels follows from the rule, which the digest covers
    if found.digest != found.content() or values.get("uses_bias_labels") != uses_bias_labels(found.rule):
        raise BenchmarkError(
            f"{path} was changed after it was written: its digest is not that of its content. Values of your own are "
            "no tuned ones: give them inline, as in pgd:alpha=0.5. Or write it again: the same debiasbench tune trains "
            "nothing anew."
        )
    return replace(found, path=path)


def write_tuned(path: Path, tuned: TunedValues) -> None:
    """Write the file: equal choices give equal bytes."""
    better = "lower is better" if tuned.rule in SMALLEST else "higher is better"
    lines = [
        "# Hyper-parameters that `debiasbench tune` chose, by validation alone: debiasbench run --tuned FILE",
        f"# value: what the rule {tuned.rule} goes by, as the mean over seeds; {better}. default: that of draw 0, the",
        "# method's defaults. none stands for no value.",
        f"version = {_toml(tuned.version)}",
        f"rule = {_toml(tuned.rule)}  # {SELECTION_RULES[tuned.rule].partition(';')[0]}",
        f"uses_bias_labels = {_toml(uses_bias_labels(tuned.rule))}",
        f"draws = {tuned.draws}  # of each method on each dataset",
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
    """What this version of the suite has chosen, in the order of the file."""
    found = TunedValues(about.version(), rule, draws, tuple(seeds), tuple(chosen))
    return replace(found, chosen=found.in_order)


def _toml(value: Any) -> str:
    """A plain value as TOML, in which text, numbers and lists are written as in JSON; there is no null."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)
