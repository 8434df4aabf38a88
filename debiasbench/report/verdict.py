"""The best method on each dataset, and whether that is certain, in a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from debiasbench.evaluation.selection import uses_bias_labels
from debiasbench.report.phrases import Phrase, joined
from debiasbench.report.results import Measure, bias_knowing, summaries
from debiasbench.report.sections import parts_of_head
from debiasbench.report.statistics import LEVEL, SAME
from debiasbench.report.tables import p_value


def verdicts(table: pd.DataFrame, measures: Sequence[Measure], tests: pd.DataFrame | None) -> list[str]:
    """A text for each measure of a comparison: its best method, and what the tests say about it.

    Args:
        table: one row for each cell, split and selection rule, from `to_frame`.
        measures: the columns of the comparison; those with rules that use bias labels or the test split get no text.
        tests: tests against the reference, from `compare_by`; None if there is only one method.
    """
    if tests is None:
        return []
    knowing = bias_knowing(table)
    texts: list[str] = []
    for measure, found in summaries(table, measures).items():
        competing = [method for method in found.index if method not in knowing] or list(found.index)
        if len(competing) > 1 and not uses_bias_labels(measure.select):
            own = tests[(tests[list(Measure._fields)] == list(measure)).all(axis=1)]
            among = len(competing) < len(found)
            texts.append(_verdict(measure, parts_of_head(table, measure), found.loc[competing], own, among=among))
    return texts


def _verdict(measure: Measure, head: tuple[str, str], found: pd.DataFrame, tests: pd.DataFrame, *, among: bool) -> str:
    """`cmnist5k: pgd is best with 84.1 % (acc_unbiased), 44.9 points above vanilla: ...`.

    Args:
        measure: the measure of the comparison.
        head: how tables name the dataset, and the metric and rule.
        found: from `summaries`, for the methods that compete.
        tests: the tests in this measure.
        among: whether some methods do not compete.
    """
    reached = found["mean"][found.best].item()
    best = list(found.index[measure.direction * (reached - found["mean"]) <= SAME])
    what = Phrase(
        "{}: {} {} best{} with {} % ({})",
        head[0], _named(best, " and "), "is" if len(best) == 1 else "are",
        " among the methods without bias labels" if among else "", f"{100 * reached:.1f}", head[1],
    )  # fmt: skip
    references = set(tests.reference)
    told = _beside_reference(measure, best, references, tests, among=among)
    others = found.drop(index=[*best, *(references & set(found.index) - set(best))])
    it = "it" if len(best) == 1 else "them"
    more = {
        f" Statistically indistinguishable from {it}: {{}}.": others.tied,
        f" No test of {it} against {{}}.": others.untested,
    }
    parts = [Phrase(text, _named(list(others.index[which]))) for text, which in more.items() if which.any()]
    return joined("", [what, told, *parts])


def _beside_reference(
    measure: Measure, best: list[str], references: set[str], tests: pd.DataFrame, *, among: bool
) -> str:
    """The best methods against the reference. These tests have their own table, so ties leave the reference out."""
    if references & set(best):  # an oracle baseline may well be better
        than = "it, the reference" if len(best) == 1 else "the reference"
        return f"; {'none of them' if among else 'no method here'} is shown to be better than {than}."
    rows = tests[tests.method.isin(best)]
    if not len(rows) or rows.gap.isna().any():  # the reference has no run here
        return "."
    gap = 100 * rows.gap.iloc[0]
    certainty = "" if measure.direction * gap < 0 else f": {_certainty(rows.welch_holm.max(skipna=False))}"
    side = "below" if gap < 0 else "above"
    return Phrase(f", {abs(gap):.1f} points {side} {{method}}{{}}.", certainty, method=rows.reference.iloc[0])


def _named(methods: list[str], separator: str = ", ") -> Phrase:
    return joined(separator, [Phrase("{method}", method=method) for method in methods])


def _certainty(p: float) -> str:
    if math.isnan(p):
        return "these runs allow no test"
    told = p_value(p) if p_value(p).startswith("<") else f"= {p_value(p)}"
    return f"{'significant' if p < LEVEL else 'not significant'} (p {told} after correction)"
