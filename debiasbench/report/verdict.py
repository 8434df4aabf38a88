"""Who is best on each dataset, and whether that is certain, in a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from debiasbench.evaluation.selection import uses_bias_labels
from debiasbench.report.phrases import Phrase, joined
from debiasbench.report.results import Measure, bias_knowing, summaries
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
        if len(found) > 1 and not uses_bias_labels(measure.select):
            left_out = bool(knowing & set(found.index)) and not set(found.index) <= knowing
            texts.append(Phrase("{}{}", _best(measure, found, tests, among=left_out), _ties(found)))
    return texts


def _best(measure: Measure, found: pd.DataFrame, tests: pd.DataFrame, *, among: bool) -> str:
    """`cmnist5k: pgd is best with 84.1 % (acc_unbiased), 44.9 points above vanilla: ...`."""
    best = found.index[found.best][0]
    told = " of those that are not told the bias" if among else ""
    rule = "" if measure.select == "last" else f", {measure.select}"
    what = Phrase(
        "{dataset}: {method} is best{} with {} % ({})",
        told, f"{100 * found['mean'][best]:.1f}", measure.metric + rule, dataset=measure.dataset, method=best,
    )  # fmt: skip
    of_measure = (tests[list(Measure._fields)] == list(measure)).all(axis=1)
    if best in set(tests.reference[of_measure]):
        return Phrase("{}; no method here is shown to be better than it, the reference.", what)
    rows = tests[of_measure & (tests.method == best)].to_dict("records")
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


def _ties(found: pd.DataFrame) -> str:
    """Which methods no test tells from the best."""
    tied = list(found.index[found.tied])
    if not tied:
        return ""
    names = joined(", ", [Phrase("{method}", method=title) for title in tied])
    return Phrase(" Not told from it by a test: {}.", names)
