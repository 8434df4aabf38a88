"""What a release consists of agrees: changelog, citation, versions of Python, hosted CI, hooks."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from debiasbench import about

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
RELEASE = re.compile(r"## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def numbers(version):
    return [int(part) for part in version.split(".")]


def wrong_in(changelog):
    """What is not as Keep a Changelog has it, line by line."""
    wrong, place, releases, kinds = [], 0, [], []
    lines = changelog.splitlines()
    if lines[0] != "# Changelog":
        wrong.append(lines[0])
    headings = [line for line in lines if line.startswith("## ")]
    if headings[:1] != ["## [Unreleased]"]:
        wrong.append("no [Unreleased] on top")
    for line in lines[1:]:
        found = RELEASE.fullmatch(line)
        if line.startswith("## "):
            place, kinds = 2, []
            if found:
                releases.append(found.groups())
            elif line != "## [Unreleased]" or line != headings[0] or headings.count(line) > 1:
                wrong.append(line)
        elif line.startswith("### "):
            if not place or line[4:] not in KINDS or line in kinds:
                wrong.append(line)
            place, kinds = 3, [*kinds, line]
        elif line.startswith("#") or (line.startswith("- ") and place != 3):
            wrong.append(line)
    if releases != sorted(releases, key=lambda one: (numbers(one[0]), one[1]), reverse=True):
        wrong.append("releases are not newest first")
    return wrong


def test_the_changelog_has_the_kept_format():
    assert wrong_in(read("CHANGELOG.md")) == []


GOOD = """# Changelog

## [Unreleased]

### Added

- One.

## [0.10.0] - 2027-02-01

### Changed

- Two.

### Fixed

- Three.

## [0.9.0] - 2027-01-01

### Added

- Four.
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# Changelog", "# History"),
        ("## [Unreleased]\n", ""),
        ("## [Unreleased]", "## Unreleased"),
        ("## [0.9.0] - 2027-01-01", "## 0.9.0 (2027-01-01)"),
        ("## [0.9.0] - 2027-01-01", "## [0.9.0]"),
        ("## [0.9.0] - 2027-01-01", "## [Unreleased]"),
        ("[0.9.0]", "[0.11.0]"),
        ("### Fixed", "### Mended"),
        ("### Fixed", "### Changed"),
        ("### Changed\n", ""),
        ("- Two.", "#### Parts"),
    ],
)
def test_a_changelog_of_another_format_is_found_out(before, after):
    assert wrong_in(GOOD) == []
    assert wrong_in(GOOD.replace(before, after, 1)) != []


def test_the_citation_is_of_the_newest_release():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= set(citation)
    newest = RELEASE.search(read("CHANGELOG.md"))
    assert (str(citation.get("version")), str(citation.get("date-released"))) == (
        newest.groups() if newest else ("None",) * 2
    )


def test_a_tagged_commit_has_an_entry_in_the_changelog():
    if not re.fullmatch(r"[\d.]+", about.version()):
        pytest.skip("what is checked out is no release")
    assert about.version() == RELEASE.search(read("CHANGELOG.md"))[1]


def test_versions_of_python_agree():
    """Those that are allowed, those that are told of, and those that CI runs on."""
    told = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if ":: 3." in one]
    least, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert told == [f"3.{minor}" for minor in range(int(least), int(below))]
    matrix = WORKFLOW["jobs"]["run"]["strategy"]["matrix"]
    assert matrix["python"] == told
    assert {"python": told[0], "versions": "lowest"} in matrix["include"]
    assert f"Python {told[0]} to {told[-1]}" in read("README.md")


def test_hosted_ci_runs_what_ci_runs():
    (step,) = [one for one in WORKFLOW["jobs"]["run"]["steps"] if "run" in one]
    assert step["run"] == "bash .ci/run"
    assert step["env"] == {"VERSIONS": "${{ matrix.versions }}"}


def test_only_a_tag_publishes_and_without_a_secret():
    jobs = WORKFLOW["jobs"]
    assert "refs/tags/v" in jobs["build"]["if"]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("run", "build")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert "secrets." not in read(".github/workflows/ci.yml")
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_hooks_run_the_tools_of_ci():
    (source,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    asked = [shlex.split(hook["entry"]) for hook in source["hooks"]]
    script = read(".ci/run")
    for words in asked:
        assert re.search(rf"^ *{' '.join(word for word in words if not word.startswith('-'))}\b", script, re.MULTILINE)
