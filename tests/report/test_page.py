"""The HTML page: whole in itself, escaped, sortable, and no wider than a phone."""

import base64
import copy
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_records import changed, failed_record, made_record

from debiasbench.grid import expand
from debiasbench.records import EpochFacts, Seconds, SplitFacts
from debiasbench.report import page as page_module
from debiasbench.report.page import page
from debiasbench.report.phrases import Phrase
from debiasbench.report.results import Measure, shortened, to_frame
from debiasbench.report.sections import comparison_table, marked
from debiasbench.report.style import looks
from debiasbench.report.tables import Column, Entry, Table

EVIL = "<script>document.title='run'</script>"
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def metrics(fraction):
    """Metrics of one epoch; nothing at all where there is no fraction."""
    if fraction is None:
        return {"n": 1000.0}
    return {"loss": 1 - fraction, "n": 1000.0, "acc_avg": fraction, "acc_unbiased": fraction}


def new_cell(method="one", dataset="cmnist5k", seed=0, **changes):
    (cell,) = expand(["vanilla"], ["cmnist5k"], seeds=[seed]).cells
    return replace(
        cell, method="one", method_parameters={"alpha": 0.7, "norm": None}, method_title=method, dataset_title=dataset,
        recipe={"learning_rate": 0.01, "milestones": [0.4, 0.8], "augment": True}, **changes,
    )  # fmt: skip


def record(method="one", dataset="cmnist5k", seed=0, *, fractions=(0.5, 0.625, 0.75), valid=0.9, **changes):
    """A finished record with an epoch a fraction; `changes` are those of its result."""
    epochs = [
        EpochFacts(epoch, metrics(valid), metrics(fraction), learning_rate=0.1, train_loss=0.3)
        for epoch, fraction in enumerate(fractions, 1)
    ]
    provenance = {
        "finished": f"2026-11-{20 + seed % 10}T10:00:00+00:00",
        "seconds": Seconds(total=3670.75, data=1.5, evaluation=9.0, stages=(60.0, 3600.25)),
        "peak_memory_mib": 1000, "commit": "0123456789abcdef+changes",
        "versions": {"debiasbench": "0.1.0", "protocol": 1, "python": "3.11.7", "torch": "2.15.0"},
    }  # fmt: skip
    selection = {"last": len(epochs) - 1, "val_acc": 0, "group_val": None}
    result = {"identification": {"score": {"auroc": 0.98765}}, "logged": {"n_errors": 42.0}} | changes
    found = made_record(new_cell(method, dataset, seed), epochs, selection, provenance=provenance, **result)
    path = f"/home/someone/results/records/{dataset}/{method}/s{seed}-00000000.json"
    return replace(found, path=Path(path))


def failure(method="broken", seed=0, *, kind="DivergedError", message="The loss became nan.", traceback="line 1\nend"):
    return failed_record(new_cell(method, seed=seed), type=kind, message=message, traceback=traceback)


def table(headings, rows, notes=(), *, title="Numbers", text=(), best=()):
    """A table of (value, text), or of words; `text`: the columns of words, `best`: (row, column) of what is."""
    columns = [Column(f"c{x}", heading, numeric=x not in (0, *text)) for x, heading in enumerate(headings)]
    entries = []
    for y, row in enumerate(rows):
        pairs = [one if isinstance(one, tuple) else (one, one) for one in row]
        entries.append([Entry(value, shown, best=(y, x) in best) for x, (value, shown) in enumerate(pairs)])
    return Table("key", title, columns, entries, list(notes))


NUMBERS = table(
    ["method", "accuracy (%)", "p", "gap", "label", "n"],
    [
        ["b10", (0.9688, "96.88 ± 0.28"), (0.00002, "< .0001"), (-3.2, "-3.2 .. +21.4"), "x", (1200, "1,200")],
        ["b9", (None, "-"), (0.0001, ".0001"), (9.1, "+9.10"), (None, "-"), (30, "30")],
        ["a", (0.075, "7.50"), (1.0, "1"), (None, "-"), "y", (5, "5")],
        ["c", (1.0, "100.00"), (0.0231, ".0231"), (-34.29, "-34.29"), "w", (30, "30")],
    ],
    ["First note.", "Second note."],
    text=[4],
)


class Document(HTMLParser):
    """What a page holds: the text of each table's cells, all attributes, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.attributes, self.open, self.cell, self.bold = [], [], [], None, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "strong" and self.tables and "table" in self.open:
            self.bold.append(len(self.tables) - 1)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def test_contents():
    records = [record(seed=0), record(seed=1), record("two", seed=0), failure(seed=2)]
    records[-1] = replace(records[-1], provenance=replace(records[0].provenance, finished="2026-11-22T10:00:00+00:00"))
    text = page("My results", [NUMBERS], [], records, notes=["A file is damaged."])
    document = Document(text)
    assert not document.open  # every element is closed
    assert text.startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in text
    assert "<h1>My results</h1>" in text
    assert "4 cells: 3 methods on 1 dataset, training seeds 0 to 2." in text
    assert "<strong>1 of 4 cells failed</strong>: DivergedError." in text
    for fact in ("debiasbench 0.1.0", "protocol 1", "torch 2.15.0", "commit 0123456789ab+changes", "cpu (x86_64)"):
        assert f"<li>{fact}</li>" in text
    assert "finished 2026-11-20 to 2026-11-22 (UTC)" in text
    assert "4.1 h of computing" in text
    assert "A file is damaged." in text
    for part in ("First note.", "Second note.", "auroc</i> 0.9877", "n_errors</i> 42", "stage 2</i> 3,600.2"):
        assert part in text
    for part in ("alpha</i> 0.7", "norm</i> none", "milestones</i> 0.4/0.8", "val_acc</i> epoch 1, 50.00 %"):
        assert part in text
    assert "/home/someone" not in text  # where somebody keeps the results is nobody's business


def test_seeds_are_told_as_a_span_or_one_by_one():
    for seeds, text in (
        ((4,), "seed 4"),
        ((0, 1), "seeds 0, 1"),
        ((2, 0, 1), "seeds 0 to 2"),
        ((0, 2, 10**15 - 1), None),
    ):
        expected = text or f"seeds 0, 2, {10**15 - 1}"
        assert f"training {expected}." in page("t", [], [], [failure(seed=seed) for seed in seeds])


def test_failures_are_told_on_top_and_their_reasons_below_the_results():
    text = page("t", [NUMBERS], [], [record(), failure(message="nan in epoch 3", traceback="  File x\nend")])
    places = ("1 of 2 cells failed", "<h2>Results</h2>", '<h2 id="failed">', '<h2 id="curves">')
    assert list(map(text.index, places)) == sorted(map(text.index, places))
    told = text[text.index('<h2 id="failed">') : text.index('<h2 id="curves">')]
    assert re.findall(r"<details[^>]*open>\n<summary>(.*?)</summary>", told) == ["DivergedError"]
    assert '<p class="error">nan in epoch 3</p>' in told
    assert ">broken on Colored MNIST (5,000), 2 %: seed 0</li>" in told
    assert re.search(r"<pre [^>]*>  File x\nend</pre>", told)
    assert "cells failed" not in page("t", [NUMBERS], [], [record()])


def test_cells_that_failed_for_one_reason_stand_together():
    of_memory = {"kind": "OutOfMemoryError", "message": "CUDA out of memory."}
    records = [record(), failure(seed=0), failure("other", **of_memory), failure(seed=1), failure("third", **of_memory)]
    records.append(failure(seed=2, message="Another loss became nan."))
    text = page("t", [], [], records)
    assert "<strong>5 of 6 cells failed</strong>: DivergedError (3), OutOfMemoryError (2)." in text
    reasons = re.findall(r'<details class="failed.*?</ul>', text, re.DOTALL)
    assert [re.search("<summary>(.*?)</summary>", one)[1] for one in reasons] == [
        "DivergedError: 2 cells", "OutOfMemoryError: 2 cells", "DivergedError",
    ]  # fmt: skip
    cells = [re.findall(r"<li[^>]*>(\w+) on .*?: (seed \d)</li>", one) for one in reasons]
    assert cells == [
        [("broken", "seed 0"), ("broken", "seed 1")],
        [("other", "seed 0"), ("third", "seed 0")],
        [("broken", "seed 2")],
    ]


def test_a_lost_worker_left_no_seconds_and_no_traceback():
    lost = failure(kind="LostWorker", message="The process ended.", traceback="")
    lost = replace(lost, provenance=replace(lost.provenance, seconds=Seconds(total=0.0)))
    text = page("t", [], [], [lost])
    assert "The process ended." in text
    assert "<pre" not in text.split("</style>")[1]
    assert "Learning curves" not in text  # nothing is done: no curves and no cells


def test_tables_are_those_given():
    other = table(["method", "value"], [["one", (1.0, "1.0")], ["two", (0.5, "0.5")]], title="Best", best=[(0, 1)])
    document = Document(page("t", [NUMBERS, other], [], [record()]))
    for found, given in zip(document.tables, [NUMBERS, other], strict=False):
        headings = [column.heading for column in given.columns]
        assert found == [headings, *([entry.shown for entry in row] for row in given.rows)]
    assert document.bold == [1]  # one bold cell, in the second table


def test_columns_of_numbers_are_marked():
    text = page("t", [NUMBERS], [], [record()])
    head = re.search(r"<thead>.*?</thead>", text)[0]
    assert re.findall(r'<th scope="col"( class="number")?>', head) == [""] + [' class="number"'] * 3 + [
        "",
        ' class="number"',
    ]


def test_the_script_sorts_by_the_values_and_not_by_the_texts():
    inf = table(["method", "g"], [["a", (math.inf, "inf")], ["b", (-math.inf, "-inf")], ["c", (None, "-")]])
    text = page("t", [NUMBERS, inf], [], [record()])
    rows = [re.findall(r"<t[hd]([^>]*)>", row) for row in re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)[:2]]
    found = [[(re.findall(r'data-value="([^"]*)"', one) or [None])[0] for one in part] for part in rows]
    assert found[0][:6] == ["b10", "0.9688", "2e-05", "-3.2", "x", "1200"]
    assert found[0][6:12] == ["b9", None, "0.0001", "9.1", None, "30"]
    assert found[1] == ["a", "Infinity", "b", "-Infinity", "c", None]


def test_accuracy_by_class_and_what_older_records_do_not_tell():
    old = page("t", [], [], [record()])
    for name in ("Test accuracy by class", "kind of device", "precision"):
        assert name in old
    assert "<dt>Test accuracy by class</dt><dd><span><i></i> -</span>" in old
    assert "kind of device</i> -" in old
    assert "precision</i> -" in old
    one = record(fractions=(0.5,))
    splits = {"test": SplitFacts(n=30, n_by_class=(10, 20, 0))}
    epochs = (replace(one.result.epochs[0], correct_by_class={"test": (9, 5, 0)}),)
    one = changed(one, data=replace(one.result.data, splits=splits), epochs=epochs)
    new = replace(one, provenance=replace(one.provenance, device_kind="cuda", precision="bf16"))
    text = page("t", [], [], [new])
    assert "<i>0</i> 90.00 %</span> <span><i>1</i> 25.00 %</span> <span><i>2</i> -</span>" in text
    assert "kind of device</i> cuda" in text
    assert "precision</i> bf16" in text


@pytest.mark.parametrize("dataset", ["imagefolder", "nobodys"])
def test_classes_whose_names_follow_from_parameters_are_numbered(dataset):
    """A report is made from records alone: the user's folder is not read for names. Nor need the dataset be here."""
    one = record(fractions=(0.5,))
    epochs = (replace(one.result.epochs[0], correct_by_class={"test": (9, 5)}),)
    splits = {"test": SplitFacts(n=30, n_by_class=(10, 20))}
    one = changed(one, data=replace(one.result.data, splits=splits), epochs=epochs)
    one = replace(one, cell=replace(one.cell, dataset=dataset))
    assert "<i>0</i> 90.00 %</span> <span><i>1</i> 25.00 %</span>" in page("t", [], [], [one])


@pytest.mark.parametrize(
    ("dataset", "names"),
    [("imagefolder", ("Cow", "a camel")), ("features", ("0", "<b>")), ("nobodys", ("x", "y")), ("cmnist2", ("p", "q"))],
)
def test_classes_are_called_as_their_record_has_them(dataset, names):
    one = record(fractions=(0.5,))
    epochs = (replace(one.result.epochs[0], correct_by_class={"test": (9, 5)}),)
    splits = {"test": SplitFacts(n=30, n_by_class=(10, 20))}
    one = changed(one, data=replace(one.result.data, splits=splits, class_names=names), epochs=epochs)
    one = replace(one, cell=replace(one.cell, dataset=dataset))
    first, second = map(html.escape, names)
    assert f"<i>{first}</i> 90.00 %</span> <span><i>{second}</i> 25.00 %</span>" in page("t", [], [], [one])


def test_a_table_without_rows():
    text = page("t", [table(["method", "n"], [], title="Empty")], [], [record()])
    assert Document(text).tables[0] == [["method", "n"]]


def test_everything_is_escaped():
    label = f"one:{EVIL}"
    evil_table = table([EVIL, '"&"'], [[EVIL, "1"]], [EVIL], title=EVIL)
    one = record(label, f"cmnist5k:{EVIL}")
    cell = replace(one.cell, recipe_changes={"learning_rate": 1}, method_parameters={EVIL: EVIL})
    records = [
        replace(one, cell=cell, provenance=replace(one.provenance, device=EVIL)),
        failure(label, kind=EVIL, message=EVIL, traceback=f"x\n{EVIL}"),
    ]
    text = page(EVIL, [evil_table], [], records, notes=[EVIL])
    assert text.lower().count("<script") == 1  # our own
    assert text.count("document.title") > 10
    document = Document(text)
    assert not document.open
    assert document.tables[0] == [[EVIL, '"&"'], [EVIL, "1"]]
    assert not [name for _, name, _ in document.attributes if name.startswith("on")]


def test_dollars_and_braces_of_labels_mean_nothing():
    labels = ["$x_{$", r"$\frac{1}{$", "{{ 7 * 7 }}"]
    text = page("{{ 7 * 7 }} {% raw %}", [], [], list(map(record, labels)), notes=["${7*7}"])
    assert "49" not in text.split("</style>")[1].split("<main")[0]
    found = Document(text)
    assert not found.open
    panels = text[text.index('<h2 id="curves">') :].partition('<h2 id="cells">')[0]
    for label in labels:
        assert f"<p>{html.escape(label)}</p>" in panels
        assert sum(value.startswith(f"{label}: ") for value in found.values("aria-label")) == 1


def test_nothing_is_loaded(tmp_path):
    picture = tmp_path / "scores-cmnist5k+rho=0.1.png"
    picture.write_bytes(PIXEL)
    text = page("t", [NUMBERS], [picture], [record(), record(dataset="other"), failure()])
    assert text.count('class="panels"') == 2
    assert "http:" not in text
    assert "https:" not in text
    document = Document(text)
    assert {value.partition(",")[0] for value in document.values("src")} == {"data:image/png;base64"}
    links = set(document.values("href"))
    targets = {"#" + name for name in document.values("id")}
    assert links <= targets, links - targets
    assert len(document.values("id")) == len(set(document.values("id")))
    assert not [tag for tag, _, _ in document.attributes if tag in ("link", "iframe", "object", "embed", "base")]
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'; img-src data:" in text  # and the browser is told to load nothing


def test_figures_are_part_of_the_page(tmp_path):
    names = ["scores-cmnist5k+rho=0.1.png", "scores-cmnist5k+rho=0.1.pdf", "ranks.png", "else-x.svg"]
    for name in names:
        (tmp_path / name).write_bytes(PIXEL)
    document = Document(page("t", [], [tmp_path / name for name in names], [record()]))
    assert [base64.b64decode(value.partition(",")[2]) for value in document.values("src")] == [PIXEL] * 3
    first, second, third = document.values("alt")
    assert first.endswith("a panel for each method: cmnist5k:rho=0.1")
    assert second.startswith("Average ranks")
    assert third == "else: x"


@pytest.mark.parametrize("rule", ["val_acc", "worst_class", "group_val"])
def test_the_draws_of_a_tuning_are_of_their_rule_and_dataset(rule, tmp_path):
    figure = tmp_path / f"tuning-{rule}-cmnist5k.png"
    figure.write_bytes(PIXEL)
    text = page("t", [], [figure], [record(), record(dataset="other")])
    (alt,) = Document(text).values("alt")
    assert alt.endswith(f"what was chosen ({rule}): Colored MNIST (5,000), 2 %")
    assert '<figure data-dataset="0"><div class="paper">' in text  # hidden with its dataset


def test_signs_of_the_style_are_not_read_aloud():
    signs = re.findall(r'content: "(.+?)"( / "")?;', page("t", [NUMBERS], [], [record()]))
    assert {sign for sign, _ in signs} == {sign for sign, silent in signs if silent} == set("↕↑↓")


def chart_of(records):
    """The learning curves of the first dataset: (kind, colour, points as epochs and per cents) of all panels."""
    text = page("t", [], [], records)
    chart = re.search(r'<h3 id="curve-1">.*?</section>', text, re.DOTALL)[0]
    axes, *panels = re.split(r'<div class="panel"', chart)
    places = [float(y) for y in re.findall(r"M\d+ ([\d.]+)H", axes)]
    labels = re.findall(r'text-anchor="end">(.*?)</text>', axes)
    y_ticks = dict(zip(map(float, labels), places, strict=True))
    x_ticks = {float(epoch): float(x) for x, epoch in re.findall(r'<text x="(\d+)" y="124"[^>]*>(\d+)</text>', axes)}
    curves = []
    for panel in panels:
        colour = re.search("--own: (#[0-9A-F]{6})", panel)[1]
        for kind, drawn in re.findall(r'<path class="(\w+)" d="M(.*?)"/>', panel):
            for one in drawn.split("M"):
                points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", one)
                curves.append(
                    (kind, colour, [(read_off(x_ticks, float(x)), read_off(y_ticks, float(y))) for x, y in points])
                )
    return curves, x_ticks, y_ticks, chart


def read_off(places, position):
    """The value at a position of a linear axis, from its first and last tick."""
    (low, low_place), *_, (high, high_place) = sorted(places.items())
    return low + (position - low_place) / (high_place - low_place) * (high - low)


def test_curves_read_off_their_axes_are_the_metrics():
    records = [record(seed=0, fractions=(0.5, 0.6, 0.7)), record(seed=1, fractions=(0.3, 0.6, 0.8))]
    curves, x_ticks, _, chart = chart_of(records)
    assert list(x_ticks) == [1, 3]
    assert [kind for kind, _, _ in curves] == ["run", "run", "validation", "mean"]
    expected = [[50, 60, 70], [30, 60, 80], [90, 90, 90], [40, 60, 75]]
    for (_, _, found), shares in zip(curves, expected, strict=True):
        for (epoch, value), at, share in zip(found, (1, 2, 3), shares, strict=True):
            assert epoch == pytest.approx(at, abs=0.01)
            assert value == pytest.approx(share, abs=0.1)
    assert "Test acc_unbiased (%) by epoch" in chart
    assert re.findall(r'<text class="last"[^>]*>(.*?)</text>', chart) == ["75.0"]
    assert 'aria-label="one: 40.0 % at epoch 1, 75.0 % at epoch 3"' in chart


def test_each_method_has_a_panel_before_the_means_of_all():
    records = [record(method, seed=seed) for method in ("one", "two", "three") for seed in range(2)]
    curves, _, _, chart = chart_of(records)
    assert re.findall(r'<div class="panel" [^>]*><p>(.*?)</p>', chart) == ["one", "two", "three"]
    grey = re.search(r'<g id="curve-1-all".*?</g>', chart)[0]
    assert grey.count("<path") == 3
    assert chart.count('<use href="#curve-1-all"/>') == chart.count('<use href="#curve-1-axes"/>') == 3
    assert [kind for kind, _, _ in curves] == ["run", "run", "validation", "mean"] * 3
    assert "Grey: the other methods." in chart


def test_the_mean_is_over_epochs_that_all_runs_have():
    curves, *_ = chart_of([record(seed=0, fractions=(0.5, 0.6, 0.7)), record(seed=1, fractions=(0.3, 0.6))])
    assert [len(at) for kind, _, at in curves if kind == "mean"] == [2]
    assert [len(at) for kind, _, at in curves if kind == "run"] == [3, 2]


def test_validation_is_drawn_where_rules_may_use_it():
    one = record()
    one = changed(one, selection=one.result.selection | {"val_acc": None})
    curves, _, _, chart = chart_of([one])
    assert [kind for kind, _, _ in curves] == ["mean"]
    assert "validation" not in chart


def test_a_chart_has_a_name_and_a_description():
    text = page("t", [], [], [record(dataset="first", seed=seed) for seed in range(2)] + [record(dataset="second")])
    found = re.findall(r'<div class="panels" role="list" aria-labelledby="(.+?)" aria-describedby="(.+?)">', text)
    named = [tuple(re.search(rf'id="{name}">(.*?)</', text)[1] for name in names) for names in found]
    dashed = "Dashed: plain accuracy (acc_avg) on the biased validation split."
    told = "Test acc_unbiased (%) by epoch, with the value it ends with"
    runs = f"{told}: the mean of a method's runs, and thin each run."
    assert named == [("first", f"{runs} {dashed}"), ("second", f"{told}. {dashed}")]


@pytest.mark.parametrize("fractions", [(0.5,), (1.0, 1.0), (0.0, 0.0), (None, 0.4), (None,)])
def test_charts_of_little(fractions):
    one = record(fractions=fractions, valid=fractions[0])
    curves, x_ticks, y_ticks, chart = chart_of([one])
    assert len(curves) == sum([any(fraction is not None for fraction in fractions), fractions[0] is not None])
    for _, _, points in curves:
        assert points
        assert all(min(x_ticks) <= x <= max(x_ticks) and min(y_ticks) <= y <= max(y_ticks) for x, y in points)
    assert not re.search(r"\b(nan|inf)\b", chart)


def test_charts_have_the_marks_of_tables():
    """Behind methods that know the bias, and data that are not the published ones."""
    records = [replace(record(), cell=cell) for cell in expand(["vanilla", "groupdro"], ["cmnist5k"], seeds=1).cells]
    for official, mark in ((False, "†"), (True, "")):
        some = [changed(one, data=replace(one.result.data, official=official)) for one in records]
        table = comparison_table(to_frame(some), some, [Measure("cmnist5k", "acc_unbiased")])
        text = page("t", [marked(table, {"groupdro"})], [], some)
        rows = re.findall(r'<div role="listitem"[^>]*><span>(.*?)</span>', text)
        panels = re.findall(r'<div class="panel"[^>]*><p>(.*?)</p>', text)
        assert rows == panels == ["Vanilla", "GroupDRO‡"]
        of_data = re.findall(r'<p class="name" id="runs-1">(.*?)</p>|<h3 id="curve-1">(.*?)</h3>', text)
        assert [one or other for one, other in of_data] == [
            f"Colored MNIST (5,000), 2 %{mark}", f"Colored MNIST (5,000), 2 %{mark} (cmnist5k)",
        ]  # fmt: skip


def test_methods_look_as_in_the_figures():
    methods = ["zeta", "mid", "alpha"]
    records = [record(method) for method in methods[:2]] + [record(method, "other") for method in methods]
    curves, *_ = chart_of(records)  # the first dataset does not have them all
    means = [colour for kind, colour, _ in curves if kind == "mean"]
    assert means == [looks(methods)[method].colour for method in methods[:2]]


def comparison(datasets, methods):
    """A comparison as a report makes it, of made-up numbers."""
    columns = [Column("method", "method", numeric=False)]
    for dataset in datasets:
        group = Phrase("{dataset}{}", "", dataset=dataset)
        heading = Phrase("{} {} (%)", group, "acc_unbiased")
        columns.append(Column(f"{dataset} acc_unbiased", heading, spread=True, group=group, part="acc_unbiased (%)"))
        columns.append(Column(f"{dataset} n", "n", counts_runs=True, group=group, part="n"))
    rows = [[Entry(method, method), *[Entry(0.1 * place, f"{10 * place}.00"), Entry(2, "2")] * len(datasets)]
            for place, method in enumerate(methods)]  # fmt: skip
    return Table(
        "comparison", "Comparison", columns, rows, ["Means.", Phrase("{method}: tuned.", method=methods[0])], 1
    )


def test_the_comparison_has_its_picture_with_a_row_for_each_method():
    records = [record(seed=seed, fractions=(0.5, 0.3 + 0.1 * seed)) for seed in range(2)]
    records += [record("two", "other", fractions=(0.6,)), record("two", seed=5, fractions=(None,))]
    text = page("t", [comparison(["cmnist5k", "other"], ["one", "two"])], [], records)
    pictures = re.findall(r'<figure class="runs".*?</figure>', text, re.DOTALL)
    assert [re.findall(r'role="img" aria-label="(.*?)"', one) for one in pictures] == [
        ["one: mean 35.00 %, n = 2: 30.00, 40.00", "two: no run"], ["one: no run", "two: mean 60.00 %, n = 1"],
    ]  # fmt: skip
    assert [one.count('class="dots"') for one in pictures] == [1, 1]
    assert [one.count('class="average"') for one in pictures] == [1, 1]
    places = ("Comparison</h3>", '<figure class="runs"', "<p>Means.</p>")
    assert list(map(text.index, places)) == sorted(map(text.index, places))
    assert "A dot a run." in pictures[0]


def test_of_many_runs_the_picture_has_the_span_and_the_middle_half():
    records = [record(seed=seed, fractions=(0.01 * seed,)) for seed in range(41)]
    text = page("t", [comparison(["cmnist5k"], ["one"])], [], records)
    picture = re.search(r'<figure class="runs".*?</figure>', text, re.DOTALL)[0]
    paths = dict(re.findall(r'<path class="(\w+)" d="M(.*?)"', picture))
    assert paths["span"] == "0 10 100 10"
    assert paths["middle"] == "25 10 75 10"
    assert paths["average"] == "50.0 1v18"
    assert "from 0.00 to 40.00" in picture
    assert "Of many runs a line from the lowest to the highest" in picture


def test_what_a_reader_looks_for_comes_first():
    names = ["paper", "comparison", "selection-x", "ranks", "identification", "tests"]
    tables = [replace(NUMBERS, key=name, title=f"T {name}") for name in names]
    text = page("t", tables, [], [record(), failure()])
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", text.partition("<main")[2])
    assert headings == [
        "Results", "T paper", "T comparison", "T tests", "T ranks", "Failed cells", "Learning curves",
        "Colored MNIST (5,000), 2 % (cmnist5k)", "More tables", "T selection-x", "T identification", "Cells",
        "Colored MNIST (5,000), 2 % (cmnist5k)",
    ]  # fmt: skip
    assert [f"T {name}" for name in names] != [title for title in headings if title.startswith("T ")]
    alone = page("t", [replace(NUMBERS, key=name) for name in ("status", "else")], [], [record()])
    assert "More tables" not in alone  # without a comparison they stand as they were given


def test_verdicts_stand_above_the_tables_in_display_titles():
    records = [record(dataset=dataset) for dataset in ("cmnist5k", "other")]
    found = [Phrase("{dataset}: {method} is best.", dataset=name, method="one") for name in ("cmnist5k", "other")]
    text = page("t", [NUMBERS], [], records, verdicts=[*found, EVIL]).replace("<wbr>", "")
    listed = re.search(r'<ul class="verdicts">(.*?)</ul>', text)[1]
    assert re.findall("<li(.*?)>(.*?)</li>", listed) == [
        (' data-dataset="0"', "Colored MNIST (5,000), 2 %: one is best."),
        (' data-dataset="1"', "other: one is best."),  # hidden with its dataset, but not with what is best there
        ("", html.escape(EVIL).replace("&#x27;", "&#39;")),
    ]
    assert text.index("<h2>Results</h2>") < text.index('class="verdicts"') < text.index('id="table-1"')


def test_tables_say_display_titles_and_what_can_be_typed():
    cells = expand(["pgd:norm=l1", "vanilla"], ["cmnist5k:rho=0.05"], seeds=[0]).cells
    records = [replace(record(), cell=cell, hash=cell.hash) for cell in cells]
    titles = list(dict.fromkeys(one.cell.method_title for one in records))
    text = page("t", [comparison(["cmnist5k:rho=0.05"], titles)], [], records)
    (rows, *_) = Document(text).tables
    assert rows[0] == ["method", "Colored MNIST (5,000), 5 %acc_unbiased (%)"]  # n is 2 everywhere, as the note says
    assert sorted(row[0] for row in rows[1:]) == ["PGD, norm=l1", "Vanilla"]
    assert re.findall(r'data-value="(.*?)" title="(.*?)">', text) == [
        (display, title) for title, display in zip(titles, ["PGD, norm=l1", "Vanilla"], strict=True)
    ]
    assert "<wbr>" not in "".join(titles)
    assert "PGD, norm=l1: tuned." in text.replace("<wbr>", "")
    assert '<span class="name">PGD, norm=l1</span>' in text.replace("<wbr>", "")


def test_what_is_of_a_method_or_dataset_is_marked_by_their_numbers():
    records = [record(method, dataset) for method in ("one", "two") for dataset in ("first", "second")]
    tests = table(["dataset", "method", "p"], [["first", "two", (0.1, ".1")], ["gone", "one", (0.2, ".2")]], text=[1])
    keys = ("dataset", "method", "p")
    tests = replace(tests, columns=[replace(one, key=key) for one, key in zip(tests.columns, keys, strict=True)])
    of_dataset = replace(NUMBERS, key="selection", title=Phrase("Rules on {dataset}", dataset="second"))
    text = page("t", [comparison(["first", "second"], ["one", "two"]), tests, of_dataset], [], records)
    assert [re.findall("<tr.*?>", one) for one in re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)[:2]] == [
        ['<tr data-method="0">', '<tr data-method="1">'],
        ['<tr data-dataset="0" data-method="1">', '<tr data-method="0">'],  # no cell is of that dataset
    ]
    head = re.search("<thead>.*?</thead>", text)[0]
    assert re.findall(r'data-dataset="(\d)"', head) == ["0", "1"]
    assert re.search(r'<section data-dataset="1">\s*<h3 id="table-\d">Rules on second', text)
    assert '<p data-method="0">one: tuned.</p>' in text
    assert "<p>Means.</p>" in text  # what says what the table shows is always there


def contrast(one, other):
    """Of two colours, as WCAG has it, from 1 to 21."""

    def luminance(colour):
        colour = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(part * weight for part, weight in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    assert contrast("fff", "000000") == pytest.approx(21)
    styles = page("t", [], [], [record()])
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]+)", re.findall(r":root \{(.*?)\}", styles, re.DOTALL)[scheme]))
    for ground in ("ground", "raised", "bad-ground"):
        for ink in ("text", "muted", "link"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["bad"], colours["bad-ground"]) >= 4.5
    assert contrast(colours["others"], colours["ground"]) >= 1.5  # it is there to be looked past


def test_equal_inputs_give_equal_bytes():
    records = [record(method, seed=seed) for method in ("b", "a") for seed in range(3)]
    records += [record(dataset="other"), failure()]
    assert page("t", [NUMBERS], [], records) == page("t", [NUMBERS], [], copy.deepcopy(records))


def test_five_hundred_cells_stay_small():
    methods, datasets = [f"method{place}" for place in range(10)], [f"cmnist5k:rho=0.{place}" for place in range(1, 11)]
    fractions = [0.5 + 0.004 * epoch for epoch in range(100)]
    records = [
        record(method, dataset, seed, fractions=fractions)
        for dataset in datasets
        for method in methods
        for seed in range(5)
    ]
    text = page("t", [NUMBERS], [], records)
    assert "500 cells: 10 methods on 10 datasets" in text
    assert text.count('<summary><span class="line">') == 500
    assert len(text.encode()) < 4e6


def test_of_more_cells_each_is_a_line_and_their_methods_have_the_blocks(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_CELLS", 5)
    records = [record(seed=seed, fractions=(0.5, 0.1 * seed)) for seed in range(4)]
    records += [record("two", seed=7, fractions=(0.25,)), record("two", "other", fractions=(None,)), failure(seed=9)]
    text = page("t", [], [], records)
    document = Document(text)
    assert not document.open
    assert len(re.findall("<details data-method", text)) == 3
    assert text.count("<details><summary>Traceback") == 1  # of the one that failed
    assert "(5)</li>" in text  # of the first dataset
    one, two = re.findall(r'<span class="name">(.*?)</summary>', text)[:2]
    assert re.findall(r">([^<>]+)<", f">{one}") == ["one", "4 cells", "15.00 %", "4.1 h"]
    assert re.findall(r">([^<>]+)<", f">{two}") == ["two", "1 cell", "25.00 %", "61 min"]
    metrics_of, lines_of = document.tables[:2]
    assert metrics_of[0] == ["mean of the cells", "test", "validation"]
    assert ["acc_unbiased", "15.00 %", "90.00 %"] in metrics_of
    assert ["loss", "0.8500", "0.1000"] in metrics_of
    assert lines_of[0] == ["cell", "acc_unbiased", "time", "record"]
    assert lines_of[1:] == [
        [f"seed {seed}", f"{10 * seed}.00 %", "61 min", f"s{seed}-00000000.json"] for seed in range(4)
    ]
    assert text.count("alpha</i> 0.7") == 4  # settings: of each method once, and of the failure
    assert ["seed 0", "-", "61 min", "s0-00000000.json"] in document.tables[-1]


def test_of_too_many_methods_settings_are_in_the_records_alone(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_CELLS", 2)
    text = page("t", [], [], [record(f"method{number}") for number in range(3)])
    assert len(re.findall("<details data-method", text)) == 3
    assert "alpha</i>" not in text
    assert [len(one) for one in Document(text).tables] == [2, 2, 2]  # a line each


def test_of_many_failures_the_first_are_told_in_full(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_FAILURES", 2)
    records = [failure(seed=seed, message=f"message {seed} {EVIL}", traceback=f"line {seed}") for seed in range(5)]
    text = page("t", [], [], records)
    assert (
        "<strong>5 of 5 cells failed</strong>: DivergedError (5). For the reasons, see" in text
    )  # there are no others
    assert "Failed cells</a> (5)" in text
    assert [f"line {seed}" in text for seed in range(5)] == [True, True, False, False, False]
    assert "And 3 more reasons" in text
    assert len(re.findall(r"<li[^>]*>broken on Colored MNIST \(5,000\), 2 %: seed \d: Div", text)) == 3
    assert all(f"DivergedError: message {seed} &lt;script" in text for seed in (2, 3, 4))
    assert not Document(text).open


def test_of_many_runs_a_chart_shows_how_far_they_reach():
    fractions = [(0.5, 0.3 + 0.01 * seed, 0.7) for seed in range(21)]
    records = [record(seed=seed, fractions=one) for seed, one in enumerate(fractions)]
    records += [record("two", seed=seed) for seed in range(2)]
    curves, _, _, chart = chart_of(records)
    assert [kind for kind, _, _ in curves].count("run") == 2  # those of the other method
    (band,) = [points for kind, _, points in curves if kind == "band"]
    assert [round(height) for _, height in band] == [50, 30, 70, 70, 50, 50]
    assert (
        "the mean of a method's runs, and thin each run; of many runs a band from the lowest to the highest." in chart
    )
    assert "and a band from the lowest to the highest." in page("t", [], [], records[:21])


def test_records_in_brief_make_the_same_page():
    records = [record(seed=seed, fractions=(0.5, None, 0.6, 0.7)) for seed in range(2)]
    records = [changed(one, selection=one.result.selection | {"last": 2, "val_acc": 1}) for one in records]
    splits = {"valid": SplitFacts(n=20, n_by_class=(10, 10))}
    correct = [(9, 1), (9, 8), (10, 7), (5, 5)]  # the second and the last are chosen by classes
    epochs = [
        replace(one, correct_by_class={"valid": of}) for one, of in zip(records[0].result.epochs, correct, strict=True)
    ]
    of_classes = changed(records[0], epochs=tuple(epochs), data=replace(records[0].result.data, splits=splits))
    assert [of_classes.result.chosen(rule) for rule in ("worst_class", "class_gap")] == [1, 3]
    records += [of_classes, record("two"), failure()]
    assert page("t", [], [], list(map(shortened, records))) == page("t", [], [], records)
    pd.testing.assert_frame_equal(to_frame(map(shortened, records)), to_frame(records))


def test_rules_of_classes_choose_in_records_in_brief_as_in_whole_ones():
    """The epoch that one chooses is among those that are kept."""
    whole = record(fractions=(0.5, 0.9, 0.6, 0.7))
    correct = [(9, 1), (6, 5), (5, 5), (9, 2)]
    epochs = tuple(
        replace(epoch, correct_by_class={"valid": right})
        for epoch, right in zip(whole.result.epochs, correct, strict=True)
    )
    data = replace(whole.result.data, splits={"valid": SplitFacts(20, n_by_class=(10, 10))})
    whole = changed(whole, epochs=epochs, data=data, selection={"last": 3, "val_acc": 0})
    brief = shortened(whole)
    for rule, number in (("worst_class", 2), ("class_gap", 2), ("val_acc", 0), ("last", 3)):
        assert whole.result.selected(rule) == whole.result.epochs[number]
        assert brief.result.selected(rule) == whole.result.epochs[number]
    assert page("t", [], [], [brief]) == page("t", [], [], [whole])


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path):
    """Loads a page in a frame of 390 pixels and returns what a script's function `look(window, document)` returns.

    The frame is there because the browser's own window has a least width; and so the page under test stays as it is.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: chromium is not installed")

    def ask(text, script):
        wrapper = tmp_path / "wrapper.html"
        wrapper.write_text(
            f"""<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title><pre id="answer"></pre>
            <iframe id="frame" width="390" height="800" style="border: 0" srcdoc="{html.escape(text)}"></iframe>
            <script>
            const look = (window, document) => {{ {script} }};
            const frame = window.frames[0];
            document.getElementById("frame").onload = () => {{
              const answer = JSON.stringify(look(frame, frame.document));
              document.getElementById("answer").textContent = answer;
            }};
            </script>""",
            encoding="utf-8",
        )
        words = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, encoding="utf-8")
        found = re.search(r'<pre id="answer">(.+?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr
        return json.loads(html.unescape(found[1]))

    return ask


def test_tables_sort_by_a_click(browser):
    answer = browser(
        page("t", [NUMBERS], [], [record()]),
        """
        const table = document.querySelector("table.sortable"), found = {};
        const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
        const state = header => [header.getAttribute("aria-sort"), order().join(" ")];
        for (const header of table.tHead.rows[0].cells) {
          const name = header.textContent;
          found[name] = [];
          for (let click = 0; click < 3; click++) {
            header.querySelector("button").click();
            found[name].push(state(header));
          }
        }
        table.tHead.rows[0].cells[0].querySelector("button").click();
        table.tHead.rows[0].cells[1].querySelector("button").click();
        found.sorted = [...table.querySelectorAll("[aria-sort]")].map(header => header.textContent);
        return found;
        """,
    )
    original = [None, "b10 b9 a c"]
    assert answer == {
        "method": [["ascending", "a b9 b10 c"], ["descending", "c b10 b9 a"], original],
        "accuracy (%)": [["descending", "c b10 a b9"], ["ascending", "a b10 c b9"], original],
        "p": [["descending", "a c b9 b10"], ["ascending", "b10 b9 c a"], original],
        "gap": [["descending", "b9 b10 c a"], ["ascending", "c b10 b9 a"], original],
        "label": [["ascending", "c b10 a b9"], ["descending", "a b10 c b9"], original],
        "n": [["descending", "b10 b9 c a"], ["ascending", "a b9 c b10"], original],
        "sorted": ["accuracy (%)"],
    }


def test_no_page_is_wider_than_a_phone(browser):
    label = "method:first_optimizer=dataset,first_learning_rate=0.0001,first_batch_size=16," + "x" * 80
    wide = table([f"column {place} of the table" for place in range(20)], [["1.00"] * 20], [label], title="W" * 60)
    records = [record(label, f"cmnist5k:{label}"), failure(label, message="y" * 200, traceback="z" * 300)]
    answer = browser(
        page("t" * 80, [wide], [], records, notes=["u" * 200]),
        """
        for (const one of document.querySelectorAll("details")) one.open = true;
        const table = document.querySelector("table.sortable");
        return {
          window: window.innerWidth,
          fits: document.documentElement.scrollWidth <= 390,
          scrolls: table.parentElement.scrollWidth > table.parentElement.clientWidth,
        };
        """,
    )
    assert answer == {"window": 390, "fits": True, "scrolls": True}


def test_no_script_but_ours_runs(browser):
    text = page(f"t{EVIL}", [NUMBERS], [], [record(f"m{EVIL}"), failure(message=EVIL)])
    # even if something were not escaped: the policy lets no other script run
    text = text.replace("</body>", "<script>document.title = 'run'</script></body>")
    answer = browser(text, 'return [document.title, document.querySelectorAll("th button").length > 0];')
    assert answer == [f"t{EVIL}", True]


def test_charts_are_legible_on_a_phone(browser):
    records = [
        record(f"method-number-{place}", seed=seed, fractions=(0.5, 1.0)) for place in range(12) for seed in (0, 1)
    ]
    answer = browser(
        page("t", [], [], records),
        """
        const panels = [...document.querySelectorAll(".panel svg")], [svg] = panels;
        const inside = part => {
          const [one, box] = [part.getBoundingClientRect(), part.closest("svg").getBoundingClientRect()];
          return one.left >= box.left && one.right <= box.right && one.top >= box.top && one.bottom <= box.bottom;
        };
        const seen = (name, style) => window.getComputedStyle(document.querySelector(name))[style];
        const shown = [...svg.querySelectorAll("text")], style = window.getComputedStyle(shown[0]);
        return {
          size: parseFloat(style.fontSize) * svg.getScreenCTM().a,
          inside: panels.every(panel => [...panel.querySelectorAll("text, use, path")].every(inside)),
          font: style.fontFamily === window.getComputedStyle(document.body).fontFamily,
          labels: shown.map(one => one.textContent),
          beside: new Set(panels.map(one => one.getBoundingClientRect().left)).size,
          dashed: seen(".validation", "strokeDasharray") !== "none",
          empty: ["path.mean", ".others path"].map(name => seen(name, "fill")),
          coloured: seen("path.mean", "stroke") !== seen(".others path", "stroke"),
        };
        """,
    )
    assert answer.pop("size") >= 9  # pixels
    assert answer == {
        "inside": True, "font": True, "labels": ["100.0"], "beside": 2, "dashed": True, "empty": ["none", "none"],
        "coloured": True,
    }  # fmt: skip


def test_methods_and_datasets_are_hidden_and_shown_again(browser):
    records = [record(method, dataset) for method in ("one", "two", "three") for dataset in ("first", "second")]
    records += [failure("two", seed=5), failure("four", seed=6, message="Something else.")]
    tables = [comparison(["first", "second"], ["one", "two", "three"]), NUMBERS]
    answer = browser(
        page("t", tables, [], records),
        """
        const found = [], [methods, datasets] = document.querySelectorAll("#filter fieldset");
        const seen = name => [...document.querySelectorAll(name)].filter(one => one.offsetParent !== null
          || (one.getClientRects().length > 0)).map(one => one.textContent.trim());
        const look = () => found.push({
          told: document.getElementById("chosen").textContent,
          rows: seen("table.sortable:first-of-type tbody th"), heads: seen(".sortable thead th").length,
          pictures: seen(".runs .name"), runs: seen(".runs [role=listitem]"), panels: seen(".panel p"),
          failures: seen(".failed > summary"), cells: seen(".cells .name"), links: seen("nav a").length,
        });
        const box = (part, name) =>
          [...part.querySelectorAll("label")].find(one => one.textContent.trim() === name).querySelector("input");
        look();
        methods.querySelector("[value=none]").click();
        box(methods, "two").click();
        look();
        box(datasets, "first").click();
        look();
        methods.querySelector("[value=all]").click();
        datasets.querySelector("[value=all]").click();
        look();
        return found;
        """,
    )
    whole, two, second, again = answer
    assert whole == again
    assert whole["told"] == "all 4 methods, all 3 datasets"
    assert whole["panels"] == ["one", "two", "three"] * 2
    assert len(whole["failures"]) == 2
    assert two["told"] == "1 of 4 methods, all 3 datasets"
    assert two["rows"] == ["two", "b10", "b9", "a", "c"]  # which are of nothing that is chosen from
    assert (two["runs"], two["panels"], two["cells"]) == (["two"] * 2, ["two"] * 2, ["two"] * 2)
    assert (two["failures"], two["heads"]) == (["DivergedError"], whole["heads"])
    assert second["told"] == "1 of 4 methods, 2 of 3 datasets"
    assert (second["pictures"], second["panels"], second["cells"]) == (["second"], ["two"], ["two"])
    assert second["heads"] == whole["heads"] - 1
    assert second["links"] == whole["links"] - 1


@pytest.mark.parametrize("datasets", [["first"], ["first", "second"]])
def test_a_filter_is_there_with_a_script_where_there_is_something_to_choose(datasets, browser):
    text = page("t", [], [], [record(dataset=dataset) for dataset in datasets])
    assert ('<section class="filter" id="filter" aria-label="Filter" hidden>' in text) == (len(datasets) > 1)
    script = """
    const filter = document.getElementById("filter");
    return filter && [filter.hidden, [...filter.querySelectorAll("fieldset")].map(part => part.dataset.kind)];
    """
    assert browser(text, script) == ([False, ["dataset"]] if len(datasets) > 1 else None)
