"""Where nothing can be written: one rule and one wording for data, results and cache."""

import errno
import os

import pytest

from debiasbench.errors import BenchmarkError
from debiasbench.files import check_writable, explained_errors


def test_a_folder_that_need_not_be_there_yet_is_checked_and_not_made(tmp_path):
    check_writable(tmp_path / "not" / "yet", "--data-dir")
    check_writable(tmp_path, "--data-dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deep/deeper"])
def test_a_folder_that_cannot_be_written_is_told_with_the_place_and_the_option(below, tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(BenchmarkError) as caught:
        check_writable(file / below, "--data-dir")
    for words in (f"{file / below} cannot be written", f"'{file}'", "another folder with --data-dir"):
        assert words in str(caught.value)
    assert file.read_text(encoding="utf-8") == ""
    with pytest.raises(BenchmarkError, match=r"^The results folder x cannot be written .*--results-dir"):
        check_writable(file / below, "--results-dir", what="The results folder x")


def test_a_link_to_nowhere_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BenchmarkError, match="cannot be written"):
        check_writable(tmp_path / "link" / "data", "--data-dir")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_quota_are_told_alike(code):
    told = r"^x cannot be written: the disk is full\. Make room, or give another folder with --y; then run"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y"):
        raise OSError(code, os.strerror(code))
    told = r"the disk is full \(2 MB are needed\)"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y", needed=2_000_000):
        raise OSError(code, os.strerror(code))


def test_other_refusals_keep_the_systems_words_and_other_errors_pass():
    told = r"x cannot be written \(.*Read-only file system: 'f'\): .* with --y"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "f")
    with pytest.raises(KeyError), explained_errors("x", "--y"):
        raise KeyError("z")
