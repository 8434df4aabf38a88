"""What only Unix has is not needed to import the suite: a process without it imports every module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import debiasbench

MODULES = (
    "resource",
    "fcntl",
    "termios",
    "pwd",
    "grp",
    "pty",
    "tty",
    "syslog",
    "readline",
    "posix",
    "_posixsubprocess",
)
NAMES = (
    "signal.SIGHUP", "signal.SIGKILL", "signal.SIGALRM", "signal.SIGQUIT", "signal.SIGUSR1", "signal.SIGPIPE",
    "signal.setitimer", "signal.pthread_sigmask", "os.fork", "os.setsid", "os.getuid", "os.geteuid", "os.getpgid",
    "os.killpg", "os.sched_getaffinity", "os.uname", "os.getloadavg", "os.mkfifo", "os.chown", "os.nice", "os.statvfs",
    "os.O_NOFOLLOW", "os.WNOHANG", "time.tzset", "socket.AF_UNIX", "select.poll",
)  # fmt: skip
SCRIPT = """
import builtins, importlib, json, os, pkgutil, select, signal, socket, sys, time
import torch, torchvision, pandas, scipy.stats, sklearn, matplotlib.pyplot, rich.progress, jinja2, safetensors.torch
import filelock, pooch, requests, subprocess, tempfile, PIL.Image, transformers, huggingface_hub

# packages of others are imported as they are
modules, names = json.loads(sys.argv[1])
for name in names:
    owner, _, attribute = name.partition(".")
    if hasattr(sys.modules[owner], attribute):
        delattr(sys.modules[owner], attribute)
original, missed = builtins.__import__, set()

def of_windows(name, globals=None, locals=None, fromlist=(), level=0):
    if name in modules and str((globals or {}).get("__name__")).startswith("debiasbench"):
        missed.add(name)
        raise ModuleNotFoundError(f"No module named {name!r}")
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = of_windows
import debiasbench
import debiasbench.methods, debiasbench.datasets
packages = [debiasbench, debiasbench.methods, debiasbench.datasets]
found = [one.name for package in packages for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
failed = {}
for name in dict.fromkeys(found):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"imported": len(set(found)), "failed": failed, "missed": sorted(missed)}))
"""


@pytest.fixture(scope="module")
def without_unix():
    """What became of importing every module in a process that lacks what only Unix has."""
    environment = os.environ | {"PYTHONPATH": str(Path(debiasbench.__file__).parent.parent)}
    words = [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT, json.dumps([MODULES, NAMES])]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_can_be_imported(without_unix):
    assert without_unix["failed"] == {}
    assert without_unix["imported"] > 80


def test_nothing_of_unix_is_imported_at_the_top(without_unix):
    assert without_unix["missed"] == []


def test_the_command_line_needs_no_sighup(monkeypatch, tmp_path):
    import signal

    from debiasbench import cli
    from debiasbench.running import run

    set_to = {}
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_to.update({number: handler}))
    monkeypatch.setattr(run, "run_cells", lambda *_: None)
    monkeypatch.setattr(cli, "_report_grid", lambda *_, **__: 0)
    words = ["--methods", "vanilla", "--datasets", "cmnist5k", "--seeds", "1", "--device", "cpu"]
    assert cli.main(["run", *words, "--results-dir", str(tmp_path)]) == 0
    assert set_to == {signal.SIGTERM: signal.default_int_handler}


@pytest.mark.skipif(not hasattr(__import__("signal"), "SIGHUP"), reason="there is no SIGHUP here")
@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_hang_up_is_as_ctrl_c_unless_it_is_ignored(under_nohup, monkeypatch, tmp_path):
    import signal

    from debiasbench import cli

    set_to = {}
    ignored = {signal.SIGHUP: signal.SIG_IGN} if under_nohup else {}
    monkeypatch.setattr(signal, "getsignal", lambda number: ignored.get(number, signal.SIG_DFL))
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_to.update({number: handler}))
    words = ["--methods", "vanilla", "--datasets", "cmnist5k", "--seeds", "1", "--device", "cpu", "--dry-run"]
    assert cli.main(["run", *words, "--results-dir", str(tmp_path)]) == 0
    handler = signal.default_int_handler
    assert set_to == ({signal.SIGTERM: handler} | ({} if under_nohup else {signal.SIGHUP: handler}))
