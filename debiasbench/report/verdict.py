"""Who is best on each dataset, and whether that is certain, in a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from debiasbench.evaluation.selection import uses_bias_labels
from debiasbench.report.phrases import Phrase, joined
from debiasbench.report.results import Measure, bias_knowing, summaries
from debiasbench.report.sections import parts_of_head
from debiasbench.report.statistics import LEVEL
from debiasbench.report.tables import p_value


def verdicts(table: pd.DataFrame, measures: Sequence[Measure], tests: pd.DataFrame | None) -> list[str]:
    """A text for each measure of a comparison: its best method, and what the tests say of that.

    Args:
        table: one row a cell, split and selection rule, as `to_frame` makes it.
        measures: the columns of the comparison. By rules that read bias labels or the test split nobody is best.
        tests: of the methods against the reference, as `compare_by` makes them; None for one method alone.
    """
    if tests is None:
        return []
    knowing = bias_knowing(table)
    texts: list[str] = []
    for measure, found in summaries(table, measures).items():
        competing = [method for method in found.index if method not in knowing] or list(found.index)
        if len(competing) > 1 and not uses_bias_labels(measure.select):
            head = parts_of_head(table, measure)
            best = _best(head, found, _of_measure(tests, measure), among=len(competing) < len(found))
            texts.append(Phrase("{}{}", best, _others(found, set(tests.reference))))
    return texts


def _of_measure(tests: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    return tests[(tests[list(Measure._fields)] == list(measure)).all(axis=1)]


def _best(head: tuple[str, str], found: pd.DataFrame, tests: pd.DataFrame, *, among: bool) -> str:
    """`cmnist5k: pgd is best with 84.1 % (acc_unbiased), 44.9 points above vanilla: ...`.

    head: what tables say of the dataset and of the metric. found, tests: of this measure. among: others take no part.
    """
    best = found.index[found.best][0]
    what = Phrase(
        "{}: {method} is best{} with {} % ({})",
        head[0], " of those that are not told the bias" if among else "", f"{100 * found['mean'][best]:.1f}", head[1],
        method=best,
    )  # fmt: skip
    if best in set(tests.reference):  # one that is told the bias may well be better
        return Phrase(
            "{}; {} is shown to be better than it, the reference.", what, "none of them" if among else "no method here"
        )
    rows = tests[tests.method == best].to_dict("records")
    if not rows or math.isnan(rows[0]["gap"]):  # the reference has no run there
        return Phrase("{}.", what)
    gap, p = 100 * rows[0]["gap"], rows[0]["welch_holm"]
    gap_text = f"{abs(gap):.1f} points {'below' if gap < 0 else 'above'}"
    certainty = "" if gap < 0 else f": {_certainty(p)}"
    return Phrase("{}, {} {method}{}.", what, gap_text, certainty, method=rows[0]["reference"])


def _certainty(p: float) -> str:
    if math.isnan(p):
        return "whether by chance, no test can tell here"
    told = p_value(p) if p_value(p).startswith("<") else f"= {p_value(p)}"
    return f"{'significant' if p < LEVEL else 'perhaps by chance'} (p {told} after correction)"


def _others(found: pd.DataFrame, references: set[str]) -> str:
    """Which methods no test tells from the best, and which it was not tested against.

    Of the reference it was said: by its own test, which is corrected for other comparisons than these.
    """
    told = {" Not told from it by a test: {}.": found.tied, " No test of it against {}.": found.untested}
    named = {text: [title for title in found.index[which] if title not in references] for text, which in told.items()}
    parts = [
        Phrase(text, joined(", ", [Phrase("{method}", method=title) for title in titles]))
        for text, titles in named.items()
        if titles
    ]
    return joined("", parts)
