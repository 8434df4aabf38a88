"""Text of others is shown as it is, in every format; a title as a file name leads nowhere."""

import codecs
import csv
import io
import re
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.cells import cell_len

from debiasbench import escaping
from debiasbench.console import console
from debiasbench.files import file_name, file_names
from debiasbench.report import tables
from debiasbench.running import progress
from debiasbench.running.progress import Display

# What people have in labels, folder names, titles and messages, and what else can be in a record of somebody else's
NASTY = [
    "[/foo]", "[bold red]x[/]", ":warning: x", r"$\frac{1}{$", "a\n\nb | c\r\nd", "=cmd|' /C calc'!A0", "+1+1", "-1+1",
    "@SUM(A1)", "<script>alert(1)</script>", "&lt;b&gt;", "![x](http://x.y/z.png)", "# x", "1. x", "> x",
    "a,b;c\t\"d\"", "\x1b[31mred\x1b]0;title\x07", "\u202edlrow", "漢字 中文", "größe ±‡§", "a" * 300,
    r"\input{/etc/passwd}", "%~^_&#", "--a ,,b'' ``c ?`",
]  # fmt: skip
NAMES = [ascii(text[:20]) for text in NASTY]


def plain(text):
    """As a reader of one line should see it."""
    return escaping.one_line(text)


def table_of(text):
    """A table with the text wherever one can be."""
    columns = [tables.Column("method", text, numeric=False), tables.Column(text, "n")]
    row = [tables.Entry(text, text, mark="‡"), tables.Entry(0.5, text, best=True)]
    return tables.Table("key", text, columns, [row, row], [text, "A note."])


# ---- Markdown, LaTeX, CSV --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY, ids=NAMES)
def test_markdown_shows_it_as_it_is(text):
    markdown_it = pytest.importorskip("markdown_it")
    html = (
        markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(tables.markdown(table_of(text)))
    )
    assert set(re.findall(r"<([a-z0-9]+)", html)) == {"h3", "table", "thead", "tbody", "tr", "th", "td", "strong", "p"}
    found = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("h3", "th", "td", "p")}
    shown = {tag: [unescape(re.sub("</?strong>", "", one)).strip() for one in some] for tag, some in found.items()}
    word = plain(text).strip()
    assert shown["h3"] == [word]
    assert shown["th"] == [word, "n"]
    assert shown["td"] == [f"{plain(text)}‡".strip(), word] * 2
    assert shown["p"] == [word, "A note."]


@pytest.mark.parametrize("text", NASTY, ids=NAMES)
def test_latex_has_balanced_groups_one_line_a_row_and_no_command_of_theirs(text):
    made = tables.latex(table_of(text))
    rows = [line for line in made.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    bare = re.sub(r"\\[{}$]", "", made)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    commands = set(re.findall(r"\\([a-z]+)", escaping.latex(text)))
    assert commands <= {"textbackslash", "sim", "pm", "dagger", "ddagger", "ldots"}
    assert "\n\n" not in made


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a--b", "a-{}-b"), ("---", "-{}-{}-"), ("''", "'{}'"), ("?`", "?{}`"), (",,", ",{},"), ("-1", "-1"),
     ("a-b", "a-b")],
)  # fmt: skip
def test_signs_that_latex_would_join_stay_apart(text, expected):
    assert escaping.latex(text) == expected


@pytest.mark.parametrize(
    ("text", "strange", "letters"),
    [("größe ± ‡ “x” – €", "", ""), ("漢字", "字漢", ""), ("Ω中", "Ω中", ""), ("ąđ", "", "ąđ"), ("ħą☃", "ħ☃", "ą")],
)
def test_a_latex_file_says_which_engine_its_characters_need(text, strange, letters):
    made, document = tables.latex_file([table_of(text)]), tables.latex_document([table_of(text)], "x")
    told = [line for line in made.splitlines() if line.startswith("% has")]
    assert [strange in line and "lualatex or xelatex" in line for line in told[: bool(strange)]] == [True] * bool(
        strange
    )
    assert [letters in line and "[T1]{fontenc}" in line for line in told[bool(strange) :]] == [True] * bool(letters)
    assert escaping.latex(text) in made  # no ? in their place
    assert ("lualatex document.tex" in document) == bool(strange)
    assert (r"\usepackage[T1]{fontenc}" in document) == bool(strange or letters)
    assert document.count("DeclareUnicodeCharacter") == len(strange)


@pytest.mark.parametrize("text", NASTY, ids=NAMES)
def test_a_csv_has_one_line_a_row_and_nothing_that_a_spreadsheet_computes(text):
    frame = pd.DataFrame({"method": [text, text], text: [-0.5, 0.5], "pair": [(1, 2), None]})
    for made in (tables.csv(table_of(text)), "".join(tables.frame_csv(frame))):
        assert len(made.splitlines()) == 3
        rows = list(csv.reader(io.StringIO(made)))
        (found,) = {rows[0][1], rows[1][0], rows[2][0]}
        assert found in (plain(text), f"'{plain(text)}")
        assert not found.lstrip().startswith(("=", "+", "-", "@"))
        assert {row[1] for row in rows[1:]} <= {"0.5", "-0.5"}  # numbers stay numbers


@pytest.mark.parametrize("text", ["-0.5", "+1", "-inf", "1e-3", "-", "pgd:alpha=-1", "a=b"])
def test_a_csv_leaves_numbers_in_words_and_harmless_text_alone(text):
    assert escaping.csv_field(text) == (text if text != "-" else "'-")


@pytest.mark.parametrize("text", ["\uff1dcmd", "\uff0b1+1", "\uff0d1+1", "\uff20SUM(A1)", " \uff1dcmd"])
def test_signs_of_full_width_begin_no_formula_either(text):
    assert escaping.csv_field(text) == f"'{text}"


# ---- terminals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """A function that puts a stream of an encoding in place of both standard streams, and reads what was written."""

    def make(encoding, *, live=False, kind=io.TextIOWrapper):
        file = io.BytesIO()
        stream = kind(file, encoding, "strict") if kind is io.TextIOWrapper else codecs.getwriter(encoding)(file)
        stream.isatty = lambda: live
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "400")

        def read():
            if kind is io.TextIOWrapper:
                stream.flush()
            return file.getvalue().decode(encoding)

        return read

    return make


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "shift_jis"])
@pytest.mark.parametrize("text", NASTY, ids=NAMES)
def test_a_terminal_shows_it_as_it_is_or_by_its_codes(terminal, text, encoding):
    from debiasbench.cli import _show_table, _tell

    read = terminal(encoding)
    shown = console()
    expected = escaping.printable(text).encode(encoding, "backslashreplace").decode(encoding)
    shown.print(text, style="red", soft_wrap=True)
    assert read() == expected + "\n"
    console(stderr=True).print(text, soft_wrap=True)
    escaping.never_failing(sys.stderr)
    _tell(text)
    assert read() == f"{expected}\n" * 3
    _show_table(shown, table_of(text))
    *_, made = read().partition(f"{expected}\n" * 3)
    assert "\x1b" not in made
    lines = [line for line in made.splitlines() if line[:1] in tuple("│┃|┏┡└+") and line[-1:] in tuple("│┃|┓┩┘+")]
    assert len(lines) >= 6
    assert len(set(map(cell_len, lines))) == 1  # codes, too, leave the columns straight
    for part in expected.split()[:3]:
        assert part[:100] in made


def test_old_ways_to_wrap_a_stream_do_not_fail(terminal):
    read = terminal("latin-1", kind=codecs.StreamWriter)
    escaping.never_failing(sys.stdout)
    print("±‡")  # noqa: T201
    assert read() == "±\\u2021\n"
    for other in (io.StringIO(), SimpleNamespace(write=print), None):
        escaping.never_failing(other)


@pytest.mark.parametrize("live", [True, False], ids=["live", "lines"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("text", ["[/foo]", "漢字 ±‡", "\x1b[2J[red]", "a\nb", r"$\frac{1}{$", "{task.x}"], ids=ascii)
def test_progress_shows_titles_stages_and_errors_as_they_are(terminal, text, encoding, live, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)  # every line that there can be
    read = terminal(encoding, live=live)
    cells = [SimpleNamespace(hash=name, title=text, recipe={}) for name in "ab"]
    grid = SimpleNamespace(relative_costs={})

    def event(kind, cell, **more):
        usual = {"worker": 0, "stage": text, "epoch": 1, "epochs": 2, "path": None, "message": "", "by_other": False}
        return SimpleNamespace(kind=kind, cell=cell, **(usual | more))

    with Display(SimpleNamespace(grid=grid, to_run=cells)) as display:
        for cell, message in zip(cells, ("", text), strict=True):
            for kind in ("started", "epoch"):
                display.handle(event(kind, cell))
            if live:
                display.live.refresh()
            display.handle(event("finished", cell, message=message))
        display.handle(event("note", cells[0], message=text))
    made = read()
    expected = escaping.printable(text).encode(encoding, "backslashreplace").decode(encoding).splitlines()
    for part in expected:
        assert part in made
    assert "\x1b[2J" not in made


# ---- file names ------------------------------------------------------------------------------------------------------

LEADING_OUT = [
    "..", ".", "", "../../etc", "/etc/passwd", "C:\\Windows", "C:", "a/../../b", "\\\\host\\share", "a\x00b", "...",
    "CON", "nul.txt", "com1", "a.", "~", "~root", "$HOME", "a" * 300, "漢" * 200, "-", "*?\"<>|",
]  # fmt: skip


@pytest.mark.parametrize("title", [*LEADING_OUT, *NASTY], ids=ascii)
def test_a_title_is_one_harmless_file_name_on_every_system(title, tmp_path):
    name = file_name(title)
    assert re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,121}", name)
    assert name.strip(".")
    assert not name.endswith(".")
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name, re.IGNORECASE)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    (tmp_path / f".scores-{name}.weights.safetensors.12345678").touch()  # with what is put round it


@pytest.mark.parametrize("title", ["pgd", "pgd:alpha=0.7,score=loss", "cmnist5k:rho=0.05", ".hidden", "a.b", "console"])
def test_usual_titles_have_the_names_that_they_always_had(title):
    assert file_name(title) == title.replace(":", "+")


@pytest.mark.parametrize(
    "titles",
    [["größe", "gr-~e"], ["猫", "犬", "-"], ["Data", "data"], ["a" * 200 + "b", "a" * 200 + "c"], ["a/b", "a b", "c"]],
    ids=ascii,
)
def test_titles_that_would_have_one_name_have_names_of_their_own(titles):
    names = file_names(titles)
    assert list(names) == titles
    assert len({name.lower() for name in names.values()}) == len(titles)
    assert all(Path(name).name == name for name in names.values())
    assert file_names(reversed(titles)) == names  # whatever their order
    assert file_names(["pgd", *titles])["pgd"] == "pgd"
