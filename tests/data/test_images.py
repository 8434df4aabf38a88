"""Decoding image files and the cache of what was decoded: damaged files, full disks, several processes."""

import errno
import json
import multiprocessing
import os
import sys

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from debiasbench.data import cache, images
from debiasbench.data.cache import cached
from debiasbench.data.images import decode, image_files, read_image
from debiasbench.errors import BenchmarkError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def picture(seed=0, size=(20, 12)):
    """A random RGB picture; size is (width, height)."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def folder_of(tmp_path, n=5, size=(20, 12)):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(n):
        picture(number, size).save(folder / f"{number}.png")
    return folder


def test_images_are_read_as_pillow_reads_them(tmp_path):
    """Pixels, in the order channel, row, column; resizing as Pillow's."""
    image = picture()
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(image).transpose(2, 0, 1))
    small = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", size=8), small)
    square = np.asarray(image)[:, 4:16].transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", square=True), square)


def test_grey_cmyk_palette_and_transparent_images_become_rgb(tmp_path):
    """Each mode that occurs in folders of photographs."""
    image = picture()
    for mode, name in (("L", "g.png"), ("CMYK", "c.jpg"), ("P", "p.png"), ("RGBA", "t.png"), ("LA", "la.png")):
        image.convert("L" if mode == "LA" else mode).convert(mode).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (3, 12, 20)
    grey = read_image(tmp_path / "g.png")
    assert np.array_equal(grey[0], grey[1])


def test_images_are_turned_as_their_exif_says(tmp_path):
    """Orientation 6: to be turned by 90 degrees clockwise."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(("contents", "what"), [(b"", "is no image"), (b"hello", "is no image"), (None, "cannot be")])
def test_damaged_images_are_named(tmp_path, contents, what):
    """Empty, no image, cut off."""
    path = tmp_path / "bad.jpg"
    picture(size=(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:2000] if contents is None else contents)
    with pytest.raises(BenchmarkError, match=rf"bad\.jpg {what}.*Fetch or unpack it again"):
        read_image(path)


def test_all_damaged_images_are_named_at_once_and_nothing_is_kept(tmp_path):
    """One message for all, the first ten by name; the cache holds nothing afterwards."""
    folder = folder_of(tmp_path, 20)
    for number in range(5, 17):
        (folder / f"{number}.png").write_bytes(b"no")
    with pytest.raises(BenchmarkError) as error:
        decode("some", image_files(folder))
    assert str(error.value).count("is no image") == 10
    assert "... and 2 more." in str(error.value)
    assert not list((tmp_path / "cache").glob("*.uint8"))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_images_of_several_sizes_need_a_size(tmp_path):
    """Without size= an array cannot hold them."""
    folder = folder_of(tmp_path)
    picture(size=(7, 9)).save(folder / "4.png")
    with pytest.raises(BenchmarkError, match=r"4\.png is 7 x 9 pixels, but 0\.png is 20 x 12"):
        decode("some", image_files(folder))
    assert decode("some", image_files(folder), size=6).x.shape == (5, 3, 6, 6)


def test_images_are_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    """The second call reads no image but the first one (for its size)."""
    paths = image_files(folder_of(tmp_path))
    first = decode("some", paths)
    assert torch.equal(first.x, torch.stack([torch.from_numpy(read_image(path).copy()) for path in paths]))
    read, calls = images.read_image, []
    monkeypatch.setattr(images, "read_image", lambda path, **options: calls.append(path) or read(path, **options))
    again = decode("some", paths)
    assert calls == [paths[0]]
    assert again.sha256 == first.sha256
    assert torch.equal(again.x, first.x)
    picture(99).save(paths[2])
    assert decode("some", paths).sha256 != first.sha256


def test_no_folder_and_an_empty_folder_are_told_apart(tmp_path):
    """Each by its own sentence."""
    with pytest.raises(BenchmarkError, match="There is no folder"):
        image_files(tmp_path / "none")
    with pytest.raises(BenchmarkError, match="There are no images in"):
        image_files(tmp_path)


def test_the_digest_is_that_of_the_bytes(tmp_path):
    """What a fingerprint rests on, for data too large to be read again."""
    import hashlib

    array = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    entry = cached("some", {"a": 1}, array.shape, lambda: [array[:2], array[2:]])
    assert entry.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
    assert np.array_equal(entry.x.numpy(), array)


def test_writing_into_what_was_cached_does_not_change_the_cache():
    """Copy on write: one process cannot spoil the data of another."""
    array = np.zeros((4, 2), dtype=np.uint8)
    entry = cached("some", {}, (4, 2), lambda: [array])
    entry.x.add_(1)
    assert int(cached("some", {}, (4, 2), lambda: pytest.fail("is there")).x.sum()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="how mappings count against memory is the system's")
def test_an_entry_may_be_larger_than_the_memory(tmp_path):
    """A mapping that could be written to as a whole would be refused: CelebA is 19 GB, a small machine has 8."""
    size = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with (tmp_path / "large").open("wb") as file:
        try:
            file.truncate(size)  # without contents, it takes no room
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
    x = cache.mapped(tmp_path / "large")
    assert x.shape == (size,)
    assert int(x[-1]) == 0
    x[0] = 1
    assert int(x[0]) == 1


def test_an_entry_is_read_where_nothing_can_be_written(monkeypatch):
    """No lock is taken for what is there."""
    array = np.ones((4, 2), dtype=np.uint8)
    cached("some", {}, (4, 2), lambda: [array])

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock, "FileLock", refuse)
    assert int(cached("some", {}, (4, 2), lambda: [array]).x.sum()) == 8
    with pytest.raises(BenchmarkError, match="cannot be written"):
        cached("other", {}, (4, 2), lambda: [array])


def test_half_an_entry_is_not_taken_for_whole(tmp_path):
    """No JSON, a cut file, a damaged JSON: made again."""
    array = np.arange(24, dtype=np.uint8).reshape(6, 4)
    made = []

    def chunks():
        made.append(1)
        return [array]

    def entry():
        return cached("some", {}, (6, 4), chunks)

    entry()
    (data,) = (tmp_path / "cache").glob("*.uint8")
    description = data.with_suffix(".json")
    description.unlink()
    entry()
    os.truncate(data, 10)
    entry()
    description.write_text(description.read_text(encoding="utf-8")[:20], encoding="utf-8")
    entry()
    assert len(made) == 4
    assert json.loads(description.read_text(encoding="utf-8"))["shape"] == [6, 4]
    assert np.array_equal(entry().x.numpy(), array)
    assert len(made) == 4


class FullDisk:
    """A file on a disk that fills."""

    def __init__(self, path, code):
        self.file, self.code = path.open("wb"), code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(bytes(data)[:3])
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, r"the disk is full \(8 B are needed\)"), (errno.EROFS, "cannot be written")]
)
def test_a_disk_that_fills_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, code, words):
    """Nothing half-written stays; with room, the same call works."""
    array = np.zeros((4, 2), dtype=np.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(cache, "open_for_writing", lambda path: FullDisk(path, code))
        with pytest.raises(BenchmarkError, match=rf"{words}.*--cache-dir"):
            cached("some", {}, (4, 2), lambda: [array])
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert cached("some", {}, (4, 2), lambda: [array]).x.shape == (4, 2)


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    """Below a file, as tests run as root."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BenchmarkError, match=r"folder .* cannot be written.*--cache-dir or \$DEBIASBENCH_CACHE"):
        cached("some", {}, (4, 2), lambda: [np.zeros((4, 2), dtype=np.uint8)])


def _worker(folder, queue):
    os.environ["DEBIASBENCH_CACHE"] = str(folder)
    made = []
    entry = cached("some", {}, (1000, 10), lambda: made.append(1) or [np.ones((1000, 10), dtype=np.uint8)])
    queue.put((len(made), int(entry.x.sum())))


def test_several_processes_make_an_entry_once(tmp_path):
    """The others wait and read."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(tmp_path / "shared", queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(made for made, _ in results) == [0, 0, 1]
    assert {total for _, total in results} == {10_000}
