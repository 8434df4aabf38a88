"""What `debiasbench list` shows, on terminals of any width."""

import re

import pytest

from debiasbench import cli
from debiasbench.console import PlainConsole
from debiasbench.methods import registry as methods

OWN = '''
"""Knowing: told the bias, and its variant."""
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method

class Knowing(Method):
    """Told the bias."""
    name = "knowing"
    needs_bias_labels = True
    aliases = {"knowing-more": {"alpha": 2.0}}
    alpha: float = 1.0
    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy, predict=net)
        return net
'''
LEGEND = "‡ trains with bias labels: an oracle baseline, not a competitor"


@pytest.fixture
def listed(monkeypatch, capsys):
    """The lines of the list on a terminal that is so many columns wide."""

    def lines(width, *words):
        monkeypatch.setattr(cli, "_console", lambda: PlainConsole(width=width, highlight=False))
        assert cli.main(["list", *words]) == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return lines


def test_oracles_are_marked_as_in_tables(listed):
    lines = listed(100)
    told = dict(re.match(r"  ([\w-]+)(‡?): ", line).groups() for line in lines if re.match(r"  [\w-]+‡?: ", line))
    classes = methods.classes() | {alias: methods.get(alias)[0] for alias in methods.aliases()}
    knowing = {name for name, cls in classes.items() if cls.needs_bias_labels}
    assert {"groupdro", "rwg", "subg", "dfr", "resample-oracle"} <= knowing
    assert {name for name, mark in told.items() if mark} == knowing
    assert set(classes) <= set(told)
    assert lines.count(f"  {LEGEND}") == 1
    assert lines.index(f"  {LEGEND}") < lines.index("datasets")


def test_an_oracle_of_ones_own_is_marked_and_so_are_its_aliases(listed, tmp_path):
    (tmp_path / "knowing.py").write_text(OWN, encoding="utf-8")
    lines = listed(100, "--methods-dir", str(tmp_path))
    assert "  knowing‡: told the bias, and its variant." in lines
    assert "  knowing-more‡: knowing:alpha=2" in lines


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_lines_fit_the_terminal_and_go_on_under_what_they_belong_to(listed, width):
    lines = listed(width)
    assert max(map(len, lines)) <= width
    assert all(line.startswith("  ") for line in lines if line not in ("methods", "datasets", "nets"))
    values = re.split(r",\s+", " ".join(line.strip() for line in lines))
    assert {"gce_form=paper", "score=gradnorm", "norm=l2"} <= set(values)  # none is cut


def test_the_mark_is_shown_by_its_code_where_the_terminal_lacks_it(monkeypatch, capsys):
    monkeypatch.setattr(PlainConsole, "encoding", "ascii")
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "  groupdro\\u2021: " in shown
    assert shown.isascii()
