"""Decoding image files and the cache of what was decoded: damaged files, full disks, several processes."""

import errno
import io
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

import debiasbench
from debiasbench.data import cache, images
from debiasbench.data.cache import cached
from debiasbench.data.images import contents, decode, has_images, image_files, other_files, read_image, remarks
from debiasbench.errors import BenchmarkError
from debiasbench.testing import Tiny


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


# ---- what 8 bits of red, green and blue cannot hold ----------------------------------------------------------------

RAMP = np.array([[0, 10, 128, 255]] * 3, dtype=np.uint8)  # grey levels


def twelve_bits(path):
    """A TIFF of two pixels, 0 and 4095, as cameras for microscopes write it; Pillow writes none."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + bytes([0, 0x0F, 0xFF, 0]) + directory)


DEEP = {
    "g.png": lambda deep, path: deep.save(path),
    "g.tif": lambda deep, path: deep.save(path),
    "g.tiff": lambda deep, path: deep.save(path, compression="tiff_lzw"),
    "g.pgm": lambda deep, path: deep.save(path),
    "g.jp2": lambda deep, path: deep.save(path),
}


@pytest.mark.parametrize("name", DEEP)
def test_images_of_16_bits_are_scaled_and_not_cut(tmp_path, name):
    """Pillow's own conversion makes white of all that is above 255; a value and its 257th part are one grey."""
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    DEEP[name](deep, tmp_path / name)
    done = []
    assert (read_image(tmp_path / name, done=done) == RAMP).all()
    assert done == ["deep"]


def test_whiteness_is_that_of_the_file(tmp_path):
    """12 bits in a TIFF; a TIFF in which 0 is white; a value that is transparent."""
    twelve_bits(tmp_path / "t.tif")
    assert read_image(tmp_path / "t.tif").tolist() == [[[0, 255]]] * 3
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    deep.save(tmp_path / "w.tif", tiffinfo={262: 0})
    assert (read_image(tmp_path / "w.tif") == 255 - RAMP).all()
    deep.save(tmp_path / "t.png", transparency=10 * 257)
    done = []
    assert read_image(tmp_path / "t.png", done=done)[0, 0].tolist() == [0, 255, 128, 255]
    assert done == ["deep", "transparent"]


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [("f.tif", np.float32, "floating-point"), ("f.pfm", np.float32, "floating-point"), ("i.tif", np.int32, "32 bits")],
)
def test_values_without_a_known_white_are_refused_by_name(tmp_path, name, kind, what):
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / name)
    with pytest.raises(BenchmarkError, match=rf"{name} holds .*{what}.* \(0 to 255\).* Save it with 8 or 16 bits"):
        read_image(tmp_path / name)


def fits(path, offset):
    """A picture in FITS, of 16 bits: the values are written without `offset`, which a card of the header tells."""
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 3", f"BZERO   = {offset}", "END"]
    head = "".join(card.ljust(80) for card in cards).encode().ljust(2880)
    path.write_bytes(head + (RAMP.astype(int) * 128 - offset).astype(">i2").tobytes().ljust(2880, b"\0"))


MISREAD = {
    "signed.tif": lambda path: Image.fromarray(RAMP).save(path, tiffinfo={339: 2}),
    "signed.tiff": lambda path: Image.fromarray(RAMP).save(path, tiffinfo={339: 2}, compression="tiff_lzw"),
    "plain.fits": lambda path: fits(path, 0),
    "offset.fit": lambda path: fits(path, 32768),
}


@pytest.mark.parametrize("name", MISREAD)
def test_values_that_pillow_takes_for_others_are_refused_by_name(tmp_path, name):
    """It drops the sign of 8 bits, and takes the two bytes of a value in FITS in the wrong order."""
    MISREAD[name](tmp_path / name)
    with pytest.raises(BenchmarkError, match=rf"{name} holds .* with a sign, .* Save it with 8 or 16 bits"):
        read_image(tmp_path / name)


def faded(mode):
    """Red in RGB, white in grey; from left to right transparent, half, opaque, opaque."""
    image = Image.new(mode[:-1], (4, 2), (255, 0, 0) if mode == "RGBA" else 100)
    image.putalpha(Image.fromarray(np.array([[0, 128, 255, 255]] * 2, dtype=np.uint8)))
    return image


FADED = {
    "a.png": ("RGBA", [[255, 255, 255], [255, 127, 127], [255, 0, 0]]),
    "a.webp": ("RGBA", [[255, 255, 255], [255, 127, 127], [255, 0, 0]]),
    "a.tif": ("RGBA", [[255, 255, 255], [255, 127, 127], [255, 0, 0]]),
    "a.tga": ("RGBA", [[255, 255, 255], [255, 127, 127], [255, 0, 0]]),
    "la.png": ("LA", [[255] * 3, [177] * 3, [100] * 3]),
}


@pytest.mark.parametrize("name", FADED)
def test_transparent_images_are_put_on_white(tmp_path, name):
    """What is hidden under alpha is not shown."""
    mode, expected = FADED[name]
    faded(mode).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    done = []
    found = read_image(tmp_path / name, done=done)[:, 0, :3].T
    assert np.abs(found - np.array(expected, dtype=int)).max() <= 1
    assert done == ["transparent"]


@pytest.mark.parametrize(("name", "mode"), [("l.png", "L"), ("rgb.png", "RGB"), ("p.png", "P"), ("p.gif", "P")])
def test_a_colour_that_means_transparent_is_white(tmp_path, name, mode):
    grey = Image.fromarray(RAMP)
    clear = (10, 10, 10) if mode == "RGB" else 10
    image = grey.convert(mode)
    if mode == "P":
        image.putpalette([value for level in range(256) for value in (level, level, level)])
        image.putdata(RAMP.ravel().tolist())
    image.save(tmp_path / name, transparency=clear)
    done = []
    assert read_image(tmp_path / name, done=done)[0, 0].tolist() == [0, 255, 128, 255]
    assert done == ["transparent"]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_that_hides_nothing_changes_nothing(tmp_path, name):
    image = picture()
    image.convert("RGBA").save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    done = []
    assert np.array_equal(read_image(tmp_path / name, done=done), np.asarray(image).transpose(2, 0, 1))
    assert done == []


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_of_several_pictures_the_first_is_read(tmp_path, name):
    red, blue = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    red.save(tmp_path / name, save_all=True, append_images=[blue])
    done = []
    assert read_image(tmp_path / name, done=done)[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert done == ["several"]


def test_the_previews_of_a_photograph_are_not_told(tmp_path):
    """Telephones write MPO, named .jpg: the photograph and what was made of it."""
    picture().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture(1)])
    done = []
    read_image(tmp_path / "a.jpg", done=done)
    assert done == []


def test_what_was_done_is_kept_with_the_decoded_images(tmp_path):
    """Counted where it is done, and told again by whoever reads the cache."""
    folder = folder_of(tmp_path, 3)
    deep = np.full((12, 20), 5140, dtype=np.uint16)
    for number in (3, 4):
        Image.fromarray(deep).save(folder / f"{number}.png")
    picture().convert("RGBA").rotate(45).save(folder / "5.png")  # transparent corners
    picture().save(folder / "6.png", save_all=True, append_images=[picture(1)])
    told = (
        "Images converted: 2 more than 8 bits, scaled to 8 (the highest value is white); 1 transparent in places, put "
        "on white; 1 several pictures in one file, of which the first is read."
    )
    for _ in range(2):
        entry = decode("some", image_files(folder))
        assert entry.counts == {"deep": 2, "transparent": 1, "several": 1}
        assert remarks([entry]) == [told]
    assert remarks([decode("plain", image_files(folder)[:3])]) == []


def test_what_an_older_version_decoded_is_not_served(tmp_path, monkeypatch):
    """It had other pixels for some files."""
    paths = image_files(folder_of(tmp_path))
    monkeypatch.setattr(images, "VERSION", images.VERSION - 1)
    decode("some", paths)
    monkeypatch.undo()
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))
    decode("some", paths)
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 2


# ---- damaged files -------------------------------------------------------------------------------------------------


def damaged(data, rng):
    """A file with something wrong: cut off, bits flipped, bytes replaced, put in or emptied."""
    data = bytearray(data)
    place = rng.randrange(len(data))
    kind = rng.choice(["cut", "flip", "replace", "insert", "empty"])
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "replace":
        for _ in range(1 + len(data) // 50):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "insert":
        data[place:place] = rng.randbytes(3)
    else:
        data[place : place + 8] = bytes(8)
    return bytes(data)


def exif_block():
    """What cameras write: numbers, texts, fractions, and blocks in it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: 0.01})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_that_cannot_be_read_is_ignored(tmp_path, kind):
    """Turned by what is left of it, or as it lies; the pixels are whole, so no image is refused."""
    rng, block, image = random.Random(0), exif_block(), Image.new("RGB", (8, 6), (200, 100, 50))
    path = tmp_path / "a.png"
    shapes = []
    for _ in range(120):
        image.save(path, kind, exif=b"Exif\0\0" + damaged(block, rng), **({"lossless": True} if kind == "WEBP" else {}))
        found = read_image(path)
        assert np.abs(found.mean((1, 2)) - (200, 100, 50)).max() < 3
        shapes.append(found.shape[1:])
    assert set(shapes) == {(6, 8), (8, 6)}


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "TGA", "PPM"])
def test_a_damaged_file_is_read_or_named(tmp_path, kind):
    """Whatever its decoder does."""
    rng, buffer = random.Random(kind), io.BytesIO()
    exif = {"exif": b"Exif\0\0" + exif_block()} if kind in ("PNG", "JPEG", "WEBP") else {}
    picture().save(buffer, kind, **exif)
    path, said = tmp_path / "some.png", []
    for _ in range(40):
        path.write_bytes(damaged(buffer.getvalue(), rng))
        said.append(complaint(path))
    assert any(said)
    assert all(text.startswith(f"{path} ") for text in said if text)


def complaint(path):
    """What is said of a file that cannot be read."""
    try:
        found = read_image(path)
    except BenchmarkError as error:
        return str(error)
    return "" if found.dtype == np.uint8 and found.shape[0] == 3 else "no pixels, and nothing was said"


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer"), SyntaxError("broken PNG"), OverflowError("too large"), KeyError(7),
        RuntimeError("decoder"), MemoryError(), RecursionError("deep"), ZeroDivisionError(), EOFError(),
        Image.DecompressionBombError("too many pixels"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    paths = image_files(folder_of(tmp_path, 2))
    original = Image.open

    def open_image(path, **options):
        if path == paths[1]:
            raise error
        return original(path, **options)

    monkeypatch.setattr(Image, "open", open_image)
    with pytest.raises(BenchmarkError, match=r"1\.png cannot be read \(.+\)\. Fetch or unpack it again"):
        decode("some", paths)


def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    (path, *_) = image_files(folder_of(tmp_path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BenchmarkError, match=r"0\.png cannot be read \(Image size \(240 pixels\) exceeds limit"):
        read_image(path)


def test_postscript_is_never_run(tmp_path):
    """It is a program, which Pillow would hand to another program, whatever the file is called."""
    picture().save(tmp_path / "a.png", "EPS")
    with pytest.raises(BenchmarkError, match=r"a\.png is not an image"):
        read_image(tmp_path / "a.png")
    picture().save(tmp_path / "b.eps")
    assert other_files(tmp_path) == [tmp_path / "b.eps"]


@pytest.mark.parametrize(
    ("contents", "what"), [(b"", "is not an image"), (b"hello", "is not an image"), (None, "cannot be")]
)
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
    assert str(error.value).count("is not an image") == 10
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


READ = ["a.PNG", "b.Jpg", "c.JPEG", "d.webp", "e.BMP", "f.tif", "g.TIFF", "h.gif", "i.jp2", "j.ppm", "k.jfif"]
LEFT_OUT = ["l.heic", "m.HEIC", "n.svg", "o.txt", "p.pdf", "q.npy", "r"]


def test_images_of_every_kind_are_found_and_the_rest_is_told(tmp_path):
    """By the ending, in any case."""
    for name in [*READ, *LEFT_OUT, ".hidden.txt", "Thumbs.db"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in image_files(tmp_path)] == READ
    (told,) = remarks([], other_files(tmp_path))
    assert told == (
        "Files left out, because they cannot be read as images: 2 .heic, 1 .npy, 1 .pdf, 1 .svg, 1 .txt, "
        "1 without an ending."
    )


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(BenchmarkError, match=r"There are no images in .*\. Files left out.*: 1 \.heic\."):
        image_files(tmp_path)


@pytest.mark.parametrize(
    "name", ["__MACOSX", "lost+found", "@eaDir", ".Trash", "$RECYCLE.BIN", "__pycache__", "#recycle", "@tmp"]
)
def test_folders_of_the_system_are_left_alone(tmp_path, name):
    folder = folder_of(tmp_path)
    (folder / name).mkdir()
    (folder / name / "9.png").write_bytes(b"no")
    (folder / name / "9.txt").write_bytes(b"no")
    assert contents(folder).folders == []
    assert len(image_files(folder, below=True)) == 5
    assert other_files(folder, below=True) == []
    assert images.shortfalls({folder: 5}) == []
    assert not any(path.name == name for path in Tiny(root=str(folder)).present_files(tmp_path))
    for path in folder.glob("*.png"):
        path.unlink()
    assert not has_images(folder)


@pytest.fixture
def link():
    """A function that makes a link; skips where there are none."""

    def make(path, target):
        try:
            path.symlink_to(target)
        except OSError:
            pytest.skip("no links can be made here")

    return make


@pytest.mark.parametrize(
    ("name", "target"),
    [("9.png", "gone.png"), ("class", "/no/such/folder"), ("9.txt", "../gone.txt"), ("in.tif", "x/y")],
)
def test_a_link_that_leads_nowhere_names_itself(tmp_path, link, name, target):
    """An image, a folder, another file: what it was cannot be told."""
    folder = folder_of(tmp_path)
    link(folder / name, target)
    with pytest.raises(BenchmarkError, match=rf"{name} is a link to {target}, which is not there\. Repair the link"):
        image_files(folder)
    link(folder / "z.png", "none")
    with pytest.raises(BenchmarkError, match=r"The same holds for 1 more"):
        image_files(folder)


def test_a_link_to_itself_and_one_among_given_files_are_named(tmp_path, link):
    folder = folder_of(tmp_path)
    link(folder / "9.png", "gone.png")
    paths = [*(path for path in sorted(folder.iterdir()) if not path.is_symlink()), folder / "9.png"]
    with pytest.raises(BenchmarkError, match=r"9\.png is a link to gone\.png, which is not there"):
        decode("some", paths)
    (folder / "9.png").unlink()
    link(folder / "9.png", "9.png")
    with pytest.raises(BenchmarkError, match=r"9\.png"):
        image_files(folder)
    (folder / "9.png").unlink()
    link(folder / "9.png", "0.png")
    assert decode("some", image_files(folder)).x.shape[0] == 6


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "more.png").mkdir()
    assert len(image_files(folder)) == 5


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


MAKES_AN_ENTRY = """
import numpy as np
from debiasbench.data.cache import cached

made = []
print("ready", flush=True)
input()
entry = cached("some", {}, (1000, 10), lambda: made.append(1) or [np.ones((1000, 10), dtype=np.uint8)])
print(len(made), int(entry.x.sum()))
"""


def test_several_processes_make_an_entry_once(tmp_path):
    """The others wait and read."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKES_AN_ENTRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": str(Path(debiasbench.__file__).parent.parent)},
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(made for made, _ in results) == ["0", "0", "1"]
    assert {total for _, total in results} == {"10000"}
