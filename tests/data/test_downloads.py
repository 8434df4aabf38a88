"""Downloads and archives: whole or not at all, verified; and `debiasbench prepare`, which uses them."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import logging
import multiprocessing
import os
import socket
import stat
import sys
import tarfile
import textwrap
import threading
import types
import zipfile
from pathlib import Path

import pooch
import pytest
import requests

import debiasbench
from debiasbench.cli import main
from debiasbench.data import downloads
from debiasbench.data import unpack as unpack_module
from debiasbench.data.downloads import fetch, fetch_from_drive
from debiasbench.data.unpack import unpack
from debiasbench.datasets import registry
from debiasbench.errors import BenchmarkError
from debiasbench.files import readable_size

DATA = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` from memory, and can be told to misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/data.bin": DATA}
        self.requests = []  # paths
        self.drop_after = None  # bytes of a body, after which the connection ends
        self.status = None  # answers all requests with this
        self.well_after = None  # so many requests, all is well
        self.type = "application/octet-stream"
        self.silent = threading.Event()  # answers wait for it, once `stall` is set
        self.stall = False
        self.untold = False  # no Content-Length

    def url(self, path="/data.bin"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if len(server.requests) == server.well_after:
            server.status = server.drop_after = None
        if server.stall:
            server.silent.wait(10)
        if self.path.startswith("/to/"):
            return self.answer(302, b"", {"Location": self.path.removeprefix("/to/")})
        if server.status or self.path not in server.files:
            return self.answer(server.status or 404, b"no")
        body, headers = server.files[self.path], {"Content-Type": server.type}
        if "gzip" in self.headers.get("Accept-Encoding", ""):  # lengths would no longer be those of the file
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        return self.answer(200, body, headers)

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if not self.server.untold:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = body if self.server.drop_after is None else body[: self.server.drop_after]
        with contextlib.suppress(ConnectionError):
            self.wfile.write(cut)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.silent.set()
        running.shutdown()
        thread.join()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---- fetch ----------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server, tmp_path, capsys):
    path = tmp_path / "deep" / "data.bin"
    assert fetch(server.url(), path, sha256=SHA256.upper(), size=len(DATA)) == path
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["deep", "deep/data.bin"]  # nothing of the work, no lock
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"fetching data.bin from {server.url()} (256 kB)"]
    fetch(server.url(), path, sha256=SHA256)
    fetch("https://nowhere.invalid/data.bin", path, sha256=None)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [{"drop_after": len(DATA) // 2}, {"status": 503}], ids=str)
def test_what_may_succeed_later_is_tried_again(fault, server, tmp_path, capsys):
    vars(server).update(fault, well_after=3)
    fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert names(tmp_path) == ["data.bin"]
    assert len(server.requests) == 3
    assert capsys.readouterr().err.count("fetching") == 3


FAULTS = {  # what the server does -> what is told of it, and how often it was asked
    "unavailable": ({"status": 503}, "HTTP 503 (Service Unavailable)", 3),
    "broken off": ({"drop_after": 1000}, "the download stopped", 3),
    "broken off, of unknown length": (
        {"untold": True, "drop_after": 1000},
        "the download stopped after 1000 of 256000",
        3,
    ),
    "too many requests": ({"status": 429}, "HTTP 429 (Too Many Requests)", 3),
    "absent": ({"status": 404}, "HTTP 404 (Not Found)", 1),
    "forbidden": ({"status": 403}, "HTTP 403 (Forbidden)", 1),
    "a page": ({"type": "text/html; charset=utf-8"}, "it gave a web page instead of data.bin", 1),
    "longer": ({"files": {"/data.bin": DATA + b"!"}}, "it has 256001 bytes instead of 256000", 1),
    "changed": ({"files": {"/data.bin": DATA[::-1]}}, "SHA256 hash of downloaded file (data.bin) does not match", 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_told_and_leaves_nothing(fault, server, tmp_path):
    settings, reason, n_requests = FAULTS[fault]
    path = tmp_path / "data.bin"
    healthy = {name: getattr(server, name) for name in settings}
    vars(server).update(settings)
    with pytest.raises(BenchmarkError) as caught:
        fetch(server.url(), path, sha256=SHA256, size=len(DATA))
    message = str(caught.value)
    assert message.startswith(f"data.bin could not be fetched:\n  {server.url()}: {reason}")
    assert message.endswith(f"\nTry again later. By hand: fetch it with a browser and save it as {path}.")
    assert len(server.requests) == n_requests
    assert names(tmp_path) == [".data.bin.lock"]
    vars(server).update(healthy)
    fetch(server.url(), path, sha256=SHA256, size=len(DATA))
    assert path.read_bytes() == DATA


def test_pooch_itself_says_nothing(server, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(pooch.get_logger(), "handlers", [types.SimpleNamespace(level=0, handle=said.append)])
    pooch.get_logger().setLevel(logging.NOTSET)
    vars(server).update(status=503, well_after=2)
    fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    assert said == []


def test_mirrors_are_tried_in_their_order(server, tmp_path):
    path = tmp_path / "data.bin"
    server.files["/wrong.bin"] = DATA[::-1]
    mirrors = [server.url(name) for name in ("/none.bin", "/wrong.bin", "/data.bin", "/never-asked.bin")]
    fetch(mirrors, path, sha256=SHA256)
    assert path.read_bytes() == DATA
    assert server.requests == ["/none.bin", *3 * ["/wrong.bin"], "/data.bin"]
    path.unlink()
    with pytest.raises(BenchmarkError, match=r"\n  http.*/none\.bin: HTTP 404 .*\n  http.*/wrong\.bin: SHA256"):
        fetch(mirrors[:2], path, sha256=SHA256)


def test_a_file_that_was_damaged_is_fetched_again_where_a_checksum_tells(server, tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"damaged")
    fetch(server.url(), path, sha256=SHA256)
    assert path.read_bytes() == DATA


def test_a_length_that_the_server_tells_is_held_against_the_file_without_a_checksum(server, tmp_path, monkeypatch):
    def receive(self, url, file, pooch):
        self.progressbar.total = len(DATA)
        with open(file, "wb") as part:  # noqa: PTH123 - a short file, without an error, as from urllib3 before 2
            part.write(DATA[:1000])

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", receive)
    with pytest.raises(BenchmarkError, match="the download stopped after 1000 of 256000 bytes"):
        fetch("https://127.0.0.1/data.bin", tmp_path / "data.bin", sha256=None)


def test_a_refused_connection_a_wrong_name_and_a_silent_server_are_told(server, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(BenchmarkError, match=r"/x: \[Errno \d+\] Connection refused\n"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/x", tmp_path / "x", sha256=SHA256)
    server.stall = True
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    with pytest.raises(BenchmarkError, match=r"bin: the server does not answer\n"):
        fetch(server.url(), tmp_path / "x", sha256=SHA256)

    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(BenchmarkError, match=r"x: \[Errno -2\] Name or service not known\n"):
        fetch("https://nowhere.invalid/x", tmp_path / "x", sha256=None)


def test_redirects_are_followed_to_http_only(server, tmp_path):
    fetch(server.url("/to//data.bin"), tmp_path / "data.bin", sha256=SHA256)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
        with pytest.raises(BenchmarkError, match=rf"/to/{target}: .*'{target}'"):
            fetch(server.url(f"/to/{target}"), tmp_path / "x", sha256=SHA256)


@pytest.mark.parametrize("target", ["http://example.org/x", "HTTP://example.org/x", "ftp://example.org/x"])
def test_https_is_not_left_for_another_scheme(target, tmp_path, monkeypatch):
    addresses = {"https://example.org/a/x": "../b/x", "https://example.org/b/x": target}
    asked = []

    def send(self, request, **options):  # a server with a certificate cannot be had here
        asked.append(request.url)
        answer = requests.Response()
        answer.status_code, answer.url, answer.request, answer.raw = 302, request.url, request, io.BytesIO()
        answer.headers["Location"] = addresses[request.url]
        return answer

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
    with pytest.raises(BenchmarkError, match=f"its redirection from https to {target} is not followed"):
        fetch("https://example.org/a/x", tmp_path / "x", sha256=SHA256)
    assert asked == list(addresses)


def test_http_without_a_checksum_and_other_schemes_are_declined(server, tmp_path):
    https, http, file = "https://nowhere.invalid/x", server.url(), "file:///etc/hostname"
    for urls, sha256 in ((http, None), ([https, http], None), (file, SHA256), ([https, file], SHA256)):
        with pytest.raises(BenchmarkError, match="Only https addresses are fetched, and http with a checksum"):
            fetch(urls, tmp_path / "x", sha256=sha256)
    assert not server.requests


# ---- the Hugging Face hub -------------------------------------------------------------------------------------------

HUB = {  # what a dataset writes -> where the hub has it
    "hf://datasets/owner/data/a.zip": "/datasets/owner/data/resolve/main/a.zip",
    "hf://datasets/owner/data/deep/er/a b.zip": "/datasets/owner/data/resolve/main/deep/er/a%20b.zip",
    "hf://datasets/some.owner/my-data_2@v1.0/a.zip": "/datasets/some.owner/my-data_2/resolve/v1.0/a.zip",
    "hf://datasets/owner/data@0123abc/x@2.zip": "/datasets/owner/data/resolve/0123abc/x%402.zip",
}


@pytest.fixture
def hub(server, monkeypatch):
    """The server in place of the hub, as where $HF_ENDPOINT names a mirror."""
    template = f"{server.url('')}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


@pytest.mark.parametrize("address", HUB)
def test_files_of_the_hub_are_fetched_and_verified(address, hub, tmp_path):
    hub.files = {HUB[address]: DATA}
    fetch(address, tmp_path / "data.bin", sha256=SHA256, size=len(DATA))
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert hub.requests == [HUB[address]]
    hub.files[HUB[address]] = DATA[::-1]
    (tmp_path / "data.bin").unlink()
    with pytest.raises(BenchmarkError, match=r"SHA256 hash of downloaded file .* does not match"):
        fetch(address, tmp_path / "data.bin", sha256=SHA256, size=len(DATA))


def test_the_hub_is_where_the_library_says(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(downloads, "_obtain", lambda sources, *_: asked.extend(sources))
    fetch("hf://datasets/owner/data@abc/deep/a.zip", tmp_path / "a.zip", sha256=SHA256)
    assert asked == ["https://huggingface.co/datasets/owner/data/resolve/abc/deep/a.zip"]


def test_the_hub_is_one_of_several_mirrors_in_any_place(hub, tmp_path):
    of_hub = "hf://datasets/owner/data/a.zip"
    hub.files = {"/last.bin": DATA}
    fetch([hub.url("/first.bin"), of_hub, hub.url("/last.bin")], tmp_path / "a", sha256=SHA256)
    assert hub.requests == ["/first.bin", HUB[of_hub], "/last.bin"]
    hub.requests.clear()
    hub.files = {HUB[of_hub]: DATA}
    fetch([hub.url("/first.bin"), of_hub, hub.url("/last.bin")], tmp_path / "b", sha256=SHA256)
    assert hub.requests == ["/first.bin", HUB[of_hub]]
    with pytest.raises(BenchmarkError, match=r"\n  http://127.*/datasets/owner/x/resolve/main/a\.zip: HTTP 404"):
        fetch("hf://datasets/owner/x/a.zip", tmp_path / "c", sha256=SHA256)


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/owner/data",
        "hf://datasets/data/",
        "hf://owner/data/a.zip",
        "hf://spaces/owner/data/a.zip",
        "hf:x",
    ],
)
def test_addresses_that_the_hub_does_not_have_are_declined(address, hub, tmp_path):
    with pytest.raises(BenchmarkError, match=r"hf://datasets/OWNER/NAME@REVISION/FILE\)\. Got "):
        fetch([hub.url(), address], tmp_path / "x", sha256=SHA256)
    assert not hub.requests


def test_the_hub_is_trusted_by_a_checksum_alone(hub, tmp_path):
    with pytest.raises(BenchmarkError, match="http with a checksum, as files of the hub"):
        fetch("hf://datasets/owner/data/a.zip", tmp_path / "x", sha256=None)
    assert not hub.requests


def test_a_web_page_that_is_the_file_is_fetched(server, tmp_path):
    server.type = "text/html"
    fetch(server.url(), tmp_path / "page.html", sha256=SHA256)


class FullFile(io.FileIO):
    """Takes a part of what is written, as a full disk does."""

    def write(self, data):
        super().write(bytes(data)[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")


def fill_the_disk(monkeypatch):
    monkeypatch.setattr(unpack_module, "open_for_writing", lambda path: FullFile(path, "wb"))
    monkeypatch.setattr("pooch.downloaders.open", FullFile, raising=False)


def leave_1_kb_free(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))


def test_a_full_disk_is_told_and_leaves_nothing_of_the_file(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(BenchmarkError, match=r"data\.bin cannot be written: the disk is full.*--data-dir"):
            fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    assert len(server.requests) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    assert names(tmp_path) == ["data.bin"]


def test_too_little_room_is_told_before(server, tmp_path, monkeypatch):
    leave_1_kb_free(monkeypatch)
    with pytest.raises(BenchmarkError, match="256 kB are needed, 1 kB are free"):
        fetch(server.url(), tmp_path / "data.bin", sha256=SHA256, size=len(DATA))
    assert not server.requests


def test_a_folder_that_cannot_be_written_is_told_before(server, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"data\.bin cannot be written .*--data-dir"):
        fetch(server.url(), tmp_path / "file" / "deep" / "data.bin", sha256=SHA256)
    assert not server.requests


def test_what_a_killed_download_left_is_cleared_away(server, tmp_path):
    (tmp_path / ".data.bin.fetching").mkdir()
    (tmp_path / ".data.bin.fetching" / "tmp1234").write_bytes(DATA[:100])
    fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert names(tmp_path) == ["data.bin"]


def test_two_at_once_fetch_once(server, tmp_path):
    server.stall = True
    context = multiprocessing.get_context("spawn")
    options = {"sha256": SHA256}
    workers = [
        kind(target=fetch, args=(server.url(), tmp_path / "data.bin"), kwargs=options)
        for kind in (threading.Thread, threading.Thread, context.Process)
    ]
    for worker in workers:
        worker.start()
    server.silent.set()
    for worker in workers:
        worker.join()
    assert workers[-1].exitcode == 0
    assert len(server.requests) == 1
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize(("untold", "last"), [(False, "256.0/256.0 kB"), (True, "262.1/? kB")])  # whole chunks
def test_a_terminal_gets_a_bar(untold, last, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal then
    monkeypatch.setenv("COLUMNS", "150")
    server.untold = untold
    fetch(server.url(), tmp_path / "data.bin", sha256=SHA256)
    shown = capsys.readouterr().err
    assert "━" in shown
    assert last in shown


def test_sizes_are_readable():
    assert [readable_size(n) for n in (0, 999, 1000, 9_912_422, 999_900, 123_456_789_012)] == [
        "0 B", "999 B", "1 kB", "9.91 MB", "1 MB", "123 GB",
    ]  # fmt: skip


# ---- Google Drive ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gdown(monkeypatch):
    """A stand-in with the interface of gdown 6.5; `answers` is what comes, or what is raised."""
    module = types.ModuleType("gdown")
    module.calls, module.answers = [], []

    class DownloadError(Exception):
        pass

    def download(url=None, output=None, *, quiet=False, id=None, resume=False, progress=None, timeout=None):
        module.calls.append({"id": id, "output": output, "resume": resume, "timeout": timeout})
        if os.path.isfile(output):  # noqa: PTH113 - as gdown does with resume
            return output
        answer = module.answers.pop(0)
        if isinstance(answer, Exception):
            with open(f"{output}abcd1234.part", "wb") as file:  # noqa: PTH123 - gdown goes on with it
                file.write(DATA[:1000])
            raise answer
        progress(len(answer), len(answer))
        with open(output, "wb") as file:  # noqa: PTH123
            file.write(answer)
        os.chmod(output, 0o600)  # noqa: PTH101
        return output

    module.DownloadError, module.download = DownloadError, download
    monkeypatch.setitem(sys.modules, "gdown", module)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    return module


def test_drive_files_are_verified_before_they_get_their_name(gdown, tmp_path):
    path = tmp_path / "deep" / "data.bin"
    gdown.answers = [DATA[:-1]] * 3 + [DATA]
    with pytest.raises(BenchmarkError, match=r"\n  https://drive\.google\.com/file/d/abc/view: SHA256 .*Deleted"):
        fetch_from_drive("abc", path, sha256=SHA256)
    assert names(tmp_path) == ["deep", "deep/.data.bin.lock"]
    assert fetch_from_drive("abc", path, sha256=SHA256) == path
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["deep", "deep/data.bin"]
    whole = tmp_path / "deep" / ".data.bin.fetching" / "whole"
    assert gdown.calls == [{"id": "abc", "output": str(whole), "resume": True, "timeout": 30.0}] * 4
    fetch_from_drive("abc", path, sha256=SHA256)
    assert len(gdown.calls) == 4


def test_what_gdown_began_is_there_when_it_is_asked_again(gdown, tmp_path):
    part = tmp_path / ".data.bin.fetching" / "wholeabcd1234.part"
    gdown.answers = [gdown.DownloadError("It broke off."), requests.ConnectionError("It broke off."), DATA]
    with pytest.raises(BenchmarkError):
        fetch_from_drive("abc", tmp_path / "data.bin", sha256=SHA256)
    assert part.read_bytes() == DATA[:1000]
    fetch_from_drive("abc", tmp_path / "data.bin", sha256=SHA256)
    assert len(gdown.calls) == 3
    assert names(tmp_path) == ["data.bin"]


def test_drive_errors_say_what_to_do(gdown, tmp_path):
    path = tmp_path / "data.bin"
    for error in (gdown.DownloadError("Too many users\n have viewed this."), ConnectionError("no route")):
        gdown.answers = [error]
        with pytest.raises(BenchmarkError, match=r"view: (Too many users have viewed this \(.* a day\)|no route)\n"):
            fetch_from_drive("abc", path, sha256=SHA256)
    gdown.answers = [error]
    with pytest.raises(BenchmarkError, match=r"By hand: fetch it with a browser and save it as .*data\.bin\.$"):
        fetch_from_drive("abc", path, sha256=SHA256)
    gdown.answers = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(BenchmarkError, match="the disk is full"):
        fetch_from_drive("abc", path, sha256=SHA256)


def test_without_gdown_or_with_an_old_one_the_extra_is_named(monkeypatch, tmp_path):
    old = types.ModuleType("gdown")
    old.download = lambda url, output: None  # noqa: ARG005 - without the options that are needed
    for module in (None, old):
        monkeypatch.setitem(sys.modules, "gdown", module)
        with pytest.raises(BenchmarkError, match=r'pip install "debiasbench\[drive\]".*By hand.*/file/d/abc/view'):
            fetch_from_drive("abc", tmp_path / "data.bin", sha256=SHA256)
    (tmp_path / "data.bin").write_bytes(DATA)
    fetch_from_drive("abc", tmp_path / "data.bin", sha256=SHA256)  # put there by hand: gdown is not needed


def test_mirrors_of_a_drive_file_come_first(gdown, server, tmp_path):
    path = tmp_path / "data.bin"
    mirrors = [server.url("/none.bin"), server.url()]
    fetch_from_drive("abc", path, sha256=SHA256, mirrors=mirrors)
    assert path.read_bytes() == DATA
    assert server.requests == ["/none.bin", "/data.bin"]
    assert not gdown.calls
    path.unlink()
    gdown.answers = [DATA]
    server.files = {"/data.bin": DATA[::-1]}
    fetch_from_drive("abc", path, sha256=SHA256, mirrors=mirrors)
    assert path.read_bytes() == DATA
    assert len(gdown.calls) == 1


def test_mirrors_do_without_gdown_and_name_the_extra_if_they_fail(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    fetch_from_drive("abc", tmp_path / "data.bin", sha256=SHA256, mirrors=[server.url()])
    assert (tmp_path / "data.bin").read_bytes() == DATA
    told = r"/none\.bin: HTTP 404 .*\n  https://drive.*/abc/view: gdown .* is not installed: pip install .*\n.*By hand"
    with pytest.raises(BenchmarkError, match=told):
        fetch_from_drive("abc", tmp_path / "x", sha256=SHA256, mirrors=[server.url("/none.bin")])


# ---- archives -------------------------------------------------------------------------------------------------------

TREE = {"top/a.txt": b"first", "top/deep/b.bin": DATA, "top/deep/empty": b""}
KINDS = ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"]


def make_archive(path, tree, *, edit=None):
    """An archive of {name: bytes}, or None for a folder; `edit` may change a member before it is added."""
    kind = path.name.partition(".")[2]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in tree.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                if edit:
                    edit(info)
                archive.writestr(info, data or b"")
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            for name, data in tree.items():
                info = tarfile.TarInfo(name)
                info.size = len(data or b"")
                info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
                if edit:
                    edit(info)
                archive.addfile(info, io.BytesIO(data or b""))
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_unpacked_and_only_once(kind, tmp_path, monkeypatch, capsys):
    archive = make_archive(tmp_path / f"x.{kind}", {**TREE, "__MACOSX/top/._a.txt": b"of a Mac", "top/none/": None})
    folder = tmp_path / "new" / "folder"
    unpack(archive, folder)
    assert contents(folder) == TREE
    assert (folder / "top" / "none").is_dir()
    assert names(tmp_path / "new")[0] == "folder"  # no temporary folder, no lock
    assert capsys.readouterr().err == f"unpacking x.{kind} (256 kB)\n"
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        unpack(archive, folder)  # nothing is written
    (folder / "top" / "a.txt").unlink()
    unpack(archive, folder)
    assert contents(folder) == TREE


def test_a_leading_folder_is_stripped_into_a_folder_that_is_there(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "own.txt").write_text("stays", encoding="utf-8")
    (folder / "a.txt").write_text("is replaced", encoding="utf-8")
    archive = make_archive(folder / "x.zip", {"top/": None, **TREE})
    unpack(archive, folder, strip=1)
    archive.unlink()
    assert contents(folder) == {"a.txt": b"first", "deep/b.bin": DATA, "deep/empty": b"", "deep/own.txt": b"stays"}
    with pytest.raises(BenchmarkError, match=r"'alone' is outside of the 1 leading"):
        unpack(make_archive(tmp_path / "y.zip", {**TREE, "alone": b""}), tmp_path / "y", strip=1)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    "name", ["../evil", "top/../../evil", "/evil", "top\\..\\evil", "C:/evil", "c:evil", "..", "top/../deep/x"]
)
def test_names_that_leave_the_folder_are_refused_before_anything_is_written(name, kind, tmp_path):
    archive = make_archive(tmp_path / f"x.{kind}", {**TREE, name: b"evil"})
    with pytest.raises(BenchmarkError, match=r"is not unpacked: its entry .*Nothing was written") as caught:
        unpack(archive, tmp_path / "folder")
    assert repr(name) in str(caught.value)
    assert names(tmp_path) == [archive.name]


def as_member(kind):
    def edit(info):
        if info.name == "top/link":
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return edit


def as_mode(mode):
    def edit(info):
        if info.filename == "top/link":
            info.external_attr = mode << 16

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("x.zip", as_mode(stat.S_IFLNK | 0o777), "is a link"),
        ("x.zip", as_mode(stat.S_IFCHR | 0o666), "is not a regular file or folder"),
        ("x.tar", as_member(tarfile.SYMTYPE), "is a link"),
        ("x.tar.gz", as_member(tarfile.LNKTYPE), "is a link"),
        ("x.tar", as_member(tarfile.CHRTYPE), "is not a regular file or folder"),
        ("x.tar", as_member(tarfile.FIFOTYPE), "is not a regular file or folder"),
    ],
)
def test_links_and_devices_are_refused(file, edit, words, tmp_path):
    archive = make_archive(tmp_path / file, {**TREE, "top/link": b"/etc/passwd"}, edit=edit)
    with pytest.raises(BenchmarkError, match=f"'top/link' {words}"):
        unpack(archive, tmp_path / "folder")
    assert names(tmp_path) == [file]


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = make_archive(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag in the directory
    archive.write_bytes(data)
    with pytest.raises(BenchmarkError, match="'a' is encrypted"):
        unpack(archive, tmp_path / "folder")


def test_a_zip_that_is_cut_by_a_zero_byte_is_refused(tmp_path):
    archive = make_archive(tmp_path / "x.zip", {"a-b": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"a-b", b"a\0b"))
    with pytest.raises(BenchmarkError, match="other systems read as another place"):
        unpack(archive, tmp_path / "folder")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, "end"])
def test_truncated_archives_leave_nothing(share, kind, tmp_path):
    archive = make_archive(tmp_path / f"x.{kind}", {**TREE, "random": os.urandom(50_000), "after": b"x" * 2000})
    data = archive.read_bytes()
    end = 1024 * 10 + 512 if kind == "tar" else 3  # a tar's padding may be missing, its end may not
    archive.write_bytes(data[: len(data) - end] if share == "end" else data[: int(len(data) * share)])
    with pytest.raises(BenchmarkError, match=r"damaged, or not a zip or tar file .*Delete it and fetch it again"):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert not list(tmp_path.glob(".*unpacking"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_damage_in_the_middle_is_found(kind, tmp_path):
    archive = make_archive(tmp_path / f"x.{kind}", {"random": os.urandom(100_000)})
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0x10
    archive.write_bytes(data)
    with pytest.raises(BenchmarkError, match="damaged"):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = make_archive(tmp_path / "inner.zip", {"a": b"x"}).read_bytes()
    unpack(make_archive(tmp_path / "x.tar", {"inner.zip": inner}), tmp_path / "folder")
    assert contents(tmp_path / "folder") == {"inner.zip": inner}


def test_no_archive_an_empty_one_and_none_at_all_are_told(tmp_path):
    (tmp_path / "page.zip").write_text("<html>Please log in</html>", encoding="utf-8")
    for archive in (tmp_path / "page.zip", make_archive(tmp_path / "x.zip", {}), make_archive(tmp_path / "x.tar", {})):
        with pytest.raises(BenchmarkError, match="damaged, or not a zip or tar file"):
            unpack(archive, tmp_path / "folder")
    with pytest.raises(BenchmarkError, match=r"gone\.zip cannot be read"):
        unpack(tmp_path / "gone.zip", tmp_path / "folder")


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_while_unpacking_leaves_nothing(there, tmp_path, monkeypatch):
    archive = make_archive(tmp_path / "x.tar.gz", TREE)
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
        (folder / "own.txt").write_text("stays", encoding="utf-8")
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(BenchmarkError, match="the disk is full"):
            unpack(archive, folder)
    assert [name for name in names(tmp_path) if "lock" not in name] == (
        ["folder", "folder/own.txt", "x.tar.gz"] if there else ["x.tar.gz"]
    )
    leave_1_kb_free(monkeypatch)
    with pytest.raises(BenchmarkError, match=r"contents of x\.tar\.gz: 256 kB are needed, 1 kB are free"):
        unpack(archive, folder)


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    archive = make_archive(tmp_path / "x.zip", TREE)
    (tmp_path / ".folder.unpacking" / "top").mkdir(parents=True)
    (tmp_path / ".folder.unpacking" / "top" / "half").write_text("", encoding="utf-8")
    unpack(archive, tmp_path / "folder")
    assert contents(tmp_path / "folder") == TREE
    assert names(tmp_path)[0] == "folder"


# ---- debiasbench prepare --------------------------------------------------------------------------------------------

PLUGIN = '''
"""Datasets that are fetched, or not."""
import os
from debiasbench.datasets import NeededFile
from debiasbench.data.downloads import fetch
from debiasbench.data.unpack import unpack
from debiasbench.testing import Tiny

class Fetched(Tiny):
    """One archive with an address."""
    name = "fetched"
    recipe = Tiny.recipe.replace(epochs=1)
    def needed_files(self, data_dir):
        train = self.folder(data_dir) / "train"
        return [] if train.is_dir() else [NeededFile(train, "256 kB", os.environ["TEST_URL"], downloads=True)]
    def prepare(self, data_dir):
        folder = self.folder(data_dir)
        archive = fetch(os.environ["TEST_URL"], folder / "x.zip", sha256=os.environ["TEST_SHA256"])
        unpack(archive, folder, strip=1)
        archive.unlink()

class Whole(Tiny):
    """Needs no files."""
    name = "whole"
    recipe = Tiny.recipe.replace(epochs=1)

class ByHand(Tiny):
    """Two files without an address."""
    name = "byhand"
    def needed_files(self, data_dir):
        paths = [self.folder(data_dir) / "images", self.folder(data_dir) / "labels.csv"]
        return [NeededFile(path, "3 MB", "the authors, on request") for path in paths if not path.exists()]

class Raising(Tiny):
    """Fails when it is asked."""
    name = "raising-data"
    def needed_files(self, data_dir):
        raise KeyError("no such thing")

class RaisingPrepare(ByHand):
    """Fails when it prepares."""
    name = "raising-prepare"
    def prepare(self, data_dir):
        raise KeyError("no such thing")
'''


@pytest.fixture(scope="module")
def folder_of_plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("download-plugins")
    (folder / "downloaded_data.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "unimportable_data.py").write_text("import no_such_module", encoding="utf-8")
    before = os.environ.get("DEBIASBENCH_DATASETS_PATH")
    yield ["--datasets-dir", str(folder)]
    path = sys.modules[registry.package].__path__
    path[:] = [part for part in path if part != str(folder)]
    os.environ.pop("DEBIASBENCH_DATASETS_PATH", None)
    if before is not None:
        os.environ["DEBIASBENCH_DATASETS_PATH"] = before


@pytest.fixture
def prepare(folder_of_plugins, server, tmp_path, monkeypatch):
    """A function that runs `debiasbench prepare` on the folder `data`."""
    archive = make_archive(tmp_path / "x.zip", {"github-main/train/0.bin": DATA, "github-main/README": b"x"})
    server.files["/x.zip"] = archive.read_bytes()
    monkeypatch.setenv("TEST_URL", server.url("/x.zip"))
    monkeypatch.setenv("TEST_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    return lambda *words, data="data": main(["prepare", *words, *folder_of_plugins, "--data-dir", str(tmp_path / data)])


def test_prepare_fetches_verifies_and_unpacks_once(prepare, server, tmp_path, capsys):
    assert prepare("fetched") == 0
    assert contents(tmp_path / "data" / "fetched") == {"train/0.bin": DATA, "README": b"x"}
    assert capsys.readouterr().out == "fetched: complete\n"
    assert prepare("fetched") == 0
    assert len(server.requests) == 1


def test_prepare_says_what_to_fetch_by_hand(prepare, tmp_path, capsys):
    assert prepare("byhand", "fetched") == 1
    place = tmp_path / "data" / "byhand"
    assert capsys.readouterr().out == textwrap.dedent(f"""\
        byhand: not complete. Needed:
          {place / "images"} (3 MB) from: the authors, on request
          {place / "labels.csv"} (3 MB) from: the authors, on request
        fetched: complete
        """)


def test_prepare_goes_on_after_a_dataset_that_fails(prepare, server, tmp_path, capsys):
    server.status = 500
    assert prepare("raising-data", "raising-prepare", "fetched", "cmnist5k") == 1
    shown = capsys.readouterr()
    assert "error: raising-data: needed_files of raising-data failed: KeyError: 'no such thing'" in shown.err
    assert "error: raising-prepare: KeyError: 'no such thing'" in shown.err
    assert "error: fetched: x.zip could not be fetched:\n  http://127.0.0.1" in shown.err
    assert "HTTP 500" in shown.err
    assert f"fetched: not complete. Needed:\n  {tmp_path / 'data' / 'fetched' / 'train'} (256 kB)" in shown.out
    assert "cmnist5k: complete" in shown.out
    assert "Traceback" not in shown.out + shown.err
    server.status = None
    assert prepare("fetched") == 0


def test_prepare_tells_all_mistakes_before_it_downloads(prepare, server, capsys):
    assert prepare("fetched", "fetchd", "byhand:rho=2") == 2
    shown = capsys.readouterr().err
    assert "Did you mean 'fetched'?" in shown
    assert "Got 2" in shown
    assert prepare("--check", "fetchd") == 2
    assert prepare() == 2
    assert not server.requests


def test_prepare_refuses_a_folder_that_cannot_be_written(prepare, server, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert prepare("fetched", data="file/data") == 1
    shown = capsys.readouterr().err
    assert shown.count("cannot be written") == 1
    assert "--data-dir" in shown
    assert not server.requests


def check(prepare, capsys, *names):
    """The rows of the table by dataset; and the lines below it: of each its state, and where to get what is missing."""
    assert prepare("--check", *names) == 0
    shown = capsys.readouterr().out
    rows, cells = {}, []
    for line in shown.splitlines():
        if line.startswith("│"):
            texts = [text.strip() for text in line.strip("│").split("│")]
            cells = [f"{old}\n{new}".strip() for old, new in zip(cells, texts, strict=True)] if cells else texts
        elif cells:
            rows[cells[0]], cells = cells[1:], []
    lines = {}
    for line in shown[shown.rindex("┘") + 1 :].split("\n"):
        key, _, text = line.partition(": ")
        if key == "  from":
            lines[list(lines)[-1]].append(text)
        elif line:
            lines[key] = [text]
    return rows, lines


def test_check_shows_every_dataset_and_survives_those_that_fail(prepare, tmp_path, capsys):
    rows, lines = check(prepare, capsys)
    assert rows["fetched"][:2] == ["absent", "fetched/train (256 kB)"]
    assert rows["fetched"][2] == "downloads them"
    assert lines["fetched"][1].startswith("http://127.0.0.1")
    assert rows["byhand"] == ["absent", "byhand/images (3 MB)\nbyhand/labels.csv (3 MB)", "nothing: by hand"]
    assert lines["byhand"] == ["not complete (absent)", "the authors, on request"]
    assert rows["raising-data"][0] == "error"
    assert "needed_files of raising-data failed: KeyError: 'no such thing'" in " ".join(rows["raising-data"][1].split())
    assert rows["unimportable_data"][0] == "error"
    assert "No module named 'no_such_module'" in rows["unimportable_data"][1].replace("\n", " ")
    assert rows["cmnist5k"] == ["complete", "", ""]
    assert lines["cmnist5k"] == ["complete"]
    assert lines["raising-data"] == ["not complete (error)"]
    assert not (tmp_path / "data").exists()


def test_check_tells_a_part_from_nothing(prepare, server, tmp_path, capsys):
    (tmp_path / "data" / "byhand" / "images").mkdir(parents=True)
    server.drop_after = 100
    assert prepare("fetched") == 1
    capsys.readouterr()
    rows, lines = check(prepare, capsys, "byhand", "fetched", "cmnist5k")
    assert rows["byhand"][:2] == ["incomplete", "byhand/labels.csv (3 MB)"]
    assert rows["fetched"][0] == "absent"  # a download that broke off leaves nothing
    assert {name: found[0] for name, found in lines.items()} == {
        "byhand": "not complete (incomplete)", "fetched": "not complete (absent)", "cmnist5k": "complete",
    }  # fmt: skip


# ---- debiasbench run --download, --skip-missing ---------------------------------------------------------------------


@pytest.fixture
def run(prepare, folder_of_plugins, tmp_path, monkeypatch):
    """A function that runs vanilla on datasets -> the exit code; their data are below `data`."""
    monkeypatch.chdir(tmp_path)

    def run(*datasets, options=()):
        return main([
            "run", "--methods", "vanilla", "--datasets", *datasets, "--seeds", "1", "--workers", "0",
            *options, *folder_of_plugins, "--data-dir", "data", "--results-dir", "results",
        ])  # fmt: skip

    return run


def records(folder):
    return sorted(path.parts[-3] for path in folder.glob("results/records/*/*/*.json"))


def test_a_run_that_lacks_data_says_which_options_help(run, server, tmp_path, capsys):
    """Per dataset what is missing, and then what can be done about all of it."""
    complete, can_download, by_hand = "whole", "fetched", "byhand"
    download = "To download what can be, and go on: --download."
    skip = "To run the rest (whole) without: --skip-missing."
    for datasets, helps in {
        (can_download,): [download],
        (by_hand,): [],
        (complete, by_hand): [skip],
        (complete, can_download): [download, skip],
        (can_download, by_hand, complete): [download, skip],
    }.items():
        assert run(*datasets) == 2
        shown = capsys.readouterr().err
        assert [line for line in (download, skip) if line in shown] == helps
        for name in set(datasets) - {complete}:
            assert f"The data of {name} are not complete. Needed:" in shown
    assert not server.requests
    assert not (tmp_path / "results").exists()


def test_download_fetches_and_goes_on(run, server, tmp_path, capsys):
    assert run("fetched", "whole", options=["--download"]) == 0
    assert (tmp_path / "data" / "fetched" / "train").is_dir()
    assert records(tmp_path) == ["fetched", "whole"]
    assert "left out" not in capsys.readouterr().out
    assert run("fetched", "whole", options=["--download"]) == 0
    assert len(server.requests) == 1


def test_variants_of_a_dataset_are_fetched_once(run, server, tmp_path, capsys):
    server.status = 404
    assert run("fetched:data_seed=0|1|2", options=["--download"]) == 2
    assert len(server.requests) == 1
    assert capsys.readouterr().err.count("x.zip could not be fetched") == 1
    server.status = None
    run("fetched:data_seed=0|1", options=["--download"])  # which are equal: nothing is drawn in them
    assert len(server.requests) == 2
    assert "give equal data" in capsys.readouterr().err


@pytest.mark.parametrize("datasets", [("byhand",), ("byhand", "fetched"), ("raising-prepare",)], ids=str)
def test_what_cannot_be_downloaded_stops_the_run_before_anything_trains(datasets, run, tmp_path, capsys):
    assert run(*datasets, options=["--download"]) == 2
    shown = capsys.readouterr().err
    assert f"{datasets[0]}" in shown
    assert "--download" not in shown  # that was tried
    assert "Traceback" not in shown
    assert records(tmp_path) == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 404}, {"drop_after": 100}], ids=str)
def test_a_download_that_fails_is_told_with_its_reason(fault, run, server, tmp_path, capsys):
    vars(server).update(fault)
    assert run("fetched", "whole", options=["--download"]) == 2
    shown = capsys.readouterr().err
    assert "x.zip could not be fetched" in shown
    assert "To run the rest (whole) without: --skip-missing." in shown
    assert "--download." not in shown
    assert records(tmp_path) == []
    assert run("fetched", "whole", options=["--download", "--skip-missing"]) == 0
    assert "x.zip could not be fetched" in capsys.readouterr().out
    assert records(tmp_path) == ["whole"]


def test_skip_missing_runs_the_rest_and_says_what_was_left_out(run, server, tmp_path, capsys):
    assert run("byhand", "whole", "fetched:data_seed=0|1", options=["--skip-missing"]) == 0
    shown = capsys.readouterr().out
    assert "left out: byhand (1 cell). The data of byhand are not complete. Needed:" in shown
    assert f"  {Path('data', 'byhand', 'labels.csv')} (3 MB) from: the authors, on request" in shown
    last = "left out, because data are missing: byhand (1 cell), fetched (1 cell), fetched:data_seed=1 (1 cell).\n"
    assert shown.endswith(last)  # below the tables
    assert records(tmp_path) == ["whole"]
    assert not server.requests


def test_download_and_skip_missing_together(run, server, tmp_path, capsys):
    assert run("byhand", "fetched", options=["--skip-missing", "--download"]) == 0
    assert records(tmp_path) == ["fetched"]
    assert capsys.readouterr().out.endswith("left out, because data are missing: byhand (1 cell).\n")


def test_skip_missing_that_leaves_nothing_is_told(run, tmp_path, capsys):
    assert run("byhand", "fetched", options=["--skip-missing"]) == 2
    shown = capsys.readouterr().err
    assert "--skip-missing would leave nothing to run." in shown
    assert "To download what can be, and go on: --download." in shown
    assert not (tmp_path / "results").exists()


def test_a_dry_run_downloads_nothing(run, server, tmp_path, capsys):
    assert run("fetched", "whole", options=["--dry-run", "--download"]) == 2
    assert "--download without --dry-run." in capsys.readouterr().err
    assert run("fetched", "whole", options=["--dry-run", "--skip-missing"]) == 0
    assert "left out: fetched (1 cell)" in capsys.readouterr().out
    assert not server.requests
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "mistake", [["--reference", "vanila"], ["--device", "cuda:99"], ["--results-dir", "x.zip/y"]], ids=str
)
def test_mistakes_are_told_before_anything_is_fetched(mistake, run, server, tmp_path, capsys):
    given = ["--methods", "vanilla", "--datasets", "fetched", "--download", "--data-dir", "data", *mistake]
    assert main(["run", *given]) == 2
    assert not server.requests
    assert "fetched" not in capsys.readouterr().err


def test_both_from_python(prepare, run, server, tmp_path):
    arguments = {"seeds": 1, "workers": 0, "data_dir": "data", "results_dir": "results"}
    with pytest.raises(BenchmarkError, match=r"--download\.\n.*--skip-missing"):
        debiasbench.run(["vanilla"], ["fetched", "whole"], **arguments)
    with pytest.warns(UserWarning, match=r"Left out: fetched \(1 cell\)\. The data of fetched"):
        table = debiasbench.run(["vanilla"], ["fetched", "whole"], skip_missing=True, **arguments)
    assert set(table["dataset"]) == {"whole"}
    table = debiasbench.run(["vanilla"], ["fetched", "whole"], download=True, **arguments)
    assert set(table["dataset"]) == {"fetched", "whole"}
