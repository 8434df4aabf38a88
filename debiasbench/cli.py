"""The command line: parse arguments, run commands, and print their results. torch is imported only when needed."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from debiasbench import about
from debiasbench.errors import BenchmarkError
from debiasbench.escaping import never_failing, printable
from debiasbench.files import absent, default_data_dir, disk_is_full, to_path
from debiasbench.parameters import TOO_LONG, has_too_many_digits, split_spec, suggestion

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from debiasbench.console import PlainConsole
    from debiasbench.experiments import Experiment
    from debiasbench.plugins import Registry
    from debiasbench.report.make import Report
    from debiasbench.report.tables import Table
    from debiasbench.running.cleaning import Removable
    from debiasbench.running.run import GridRun, RunOptions

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
RESULTS, TUNING = Path("results"), Path("results/tuning")
KINDS_TO_CLEAN = ("reuse", "checkpoints", "cache", "temporary")


class _Parser(argparse.ArgumentParser):
    """argparse that suggests the intended option, and refuses empty values and options given twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [word.partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        for word, n in Counter(word for word in words if word.startswith("--")).items():
            if n > 1 and word in self._every_option():  # argparse would use the last one
                self.error(f"{word} is given {n} times: give it once, with all of its values")
        return super().parse_args(args, namespace)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string.strip() and not isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(action, "the value is empty")  # an empty path would mean the current folder
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments:")
        if unknown and not words.strip():
            message += "an empty one"
        for word in words.split():
            option = word.partition("=")[0]
            if having := self._commands_with(option):
                message += f" (an option of {', '.join(having)})."
            elif word.startswith("-"):
                message += suggestion(option, self._every_option())
        raise BenchmarkError(f"{message}\nSee {self.prog} --help.")

    def _commands(self) -> dict[str, argparse.ArgumentParser]:
        choices = [one.choices for one in self._actions if isinstance(one, argparse._SubParsersAction)]
        return {name: parser for some in choices for name, parser in some.items()}

    def _commands_with(self, option: str) -> list[str]:
        return [name for name, parser in self._commands().items() if option in parser._option_string_actions]

    def _every_option(self) -> list[str]:
        options = list(self._option_string_actions)
        for parser in self._commands().values():
            options += parser._option_string_actions
        return options


class _Version(argparse.Action):
    """`--version`: git is only called if the option is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"debiasbench {about.version()}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = _Parser(prog="debiasbench", description="A benchmark suite for mitigating dataset bias.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version of the suite, and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    run = commands.add_parser(
        "run",
        prog="run_benchmark.py" if Path(sys.argv[0]).name == "run_benchmark.py" else "debiasbench run",
        help="run methods x datasets x seeds, and make the report",
        description="Run a grid of methods x datasets x seeds, and make its report. Without methods and datasets, run "
        "the demo (five methods on 5,000 coloured digits).",
    )
    run.add_argument(
        "--methods",
        type=_text,
        nargs="+",
        metavar="M",
        help="names, with parameters inline: pgd:norm=l1,alpha=0.9; or all",
    )
    run.add_argument(
        "--datasets", type=_text, nargs="+", metavar="D", help="names, with parameters inline: cmnist:rho=0.01|0.05"
    )
    run.add_argument(
        "--experiment", metavar="E", help="a table or figure of the paper (table1, figure10), or a TOML file"
    )
    run.add_argument("--smoke", action="store_true", help="the experiment's short variant, on the built-in data")
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=_number, metavar="N", help="train with seeds 0 .. N-1 (default 3)")
    seeds.add_argument("--seed-list", type=_number, nargs="+", metavar="S", help="train with these seeds")
    run.add_argument("--data-seeds", type=_number, metavar="K", help="draw the data K times (default: once)")
    run.add_argument(
        "--reference", type=_text, metavar="M", help="test the others against this method (default: the first)"
    )
    run.add_argument(
        "--tuned", type=_path, metavar="FILE", help="use the values that `debiasbench tune` chose and wrote to FILE"
    )
    run.add_argument("--save-weights", action="store_true", help="keep the trained networks beside the records")
    run.add_argument("--shard", type=_part, metavar="I/N", help="only the I-th of N parts of the grid, such as 2/8")
    run.add_argument(
        "--log",
        nargs="+",
        metavar="L",
        default=[],
        help="log curves while cells train: tensorboard, wandb (extra packages)",
    )
    _training(run)
    run.add_argument("--list", action="store_true", help="list methods and datasets, and exit")
    _places(run, data=True, results=RESULTS)

    tune = commands.add_parser(
        "tune",
        help="tune every method with the same number of random draws, chosen on validation",
        description="Train the same number of hyper-parameter draws of each method on each dataset, with seeds 1000 "
        "and up, and choose the best draw of each by a rule on validation; the test split is never read. Draw 0 is the "
        "method's defaults. Values given inline stay fixed. Records are kept: the same command resumes, and a larger "
        "--draws extends a smaller one.",
    )
    tune.add_argument("--methods", type=_text, nargs="+", metavar="M", required=True, help="names, as for run")
    tune.add_argument("--datasets", type=_text, nargs="+", metavar="D", required=True, help="names, as for run")
    tune.add_argument(
        "--draws", type=_number, metavar="N", default=16, help="draws of each method on each dataset (default 16)"
    )
    tune.add_argument(
        "--rule", default="worst_class", metavar="R",
        help="the rule that selects epochs and draws: worst_class (default), class_gap, val_loss, val_acc, "
        "worst_proxy, or group_val, which uses bias labels",
    )  # fmt: skip
    tune.add_argument(
        "--seeds",
        type=_number,
        metavar="N",
        default=1,
        help="number of seeds for each draw: 1000, 1001, ... (default 1)",
    )
    tune.add_argument(
        "--output",
        type=_path,
        metavar="FILE",
        help="where to write the chosen values, for `run --tuned` (default: tuned.toml in the results folder)",
    )
    _training(tune)
    _places(tune, data=True, results=TUNING)

    report = commands.add_parser("report", help="tables and figures from records alone")
    report.add_argument("folder", nargs="?", type=_path, help="a results folder, or records (default: results)")
    report.add_argument(
        "--reference", type=_text, metavar="M", help="test the others against this method (default: the first)"
    )
    report.add_argument("--methods", type=_text, nargs="+", metavar="M", help="only these methods, by name or title")
    report.add_argument("--datasets", type=_text, nargs="+", metavar="D", help="only these datasets, by name or title")
    report.add_argument("--metrics", nargs="+", metavar="K", help="columns of the comparison (default: headlines)")
    report.add_argument(
        "--select", nargs="+", metavar="R", default=["last"], help="selection rules of the comparison (default: last)"
    )
    report.add_argument(
        "--order", choices=("given", "score", "name"),
        help="order of the methods: given (as in --methods or the run; the default), score (best first, by the first "
        "column) or name",
    )  # fmt: skip
    report.add_argument(
        "--by",
        choices=("dataset", "metric"),
        help="group the columns of the comparison by dataset (the default) or by metric",
    )
    report.add_argument(
        "--export", type=_path, metavar="FILE", help="also write the long table of results, as .parquet, .csv or .json"
    )
    report.add_argument(
        "--beside",
        type=_path,
        metavar="CSV",
        help="add published numbers to the comparison, marked as not measured here (columns: method, dataset, "
        "generator, metric, mean, std, n, source)",
    )
    report.add_argument(
        "--profile",
        action="store_true",
        help="show how hard the benchmark is: a table and a figure over all conflict ratios with records",
    )
    report.add_argument(
        "--strict",
        action="store_true",
        help="refuse tables that are not fit for publication, naming the cells and the commands that fix them; seal "
        "tables that are",
    )
    report.add_argument(
        "--verify",
        type=_path,
        metavar="FILE",
        help="check records against a sealed table (tables/strict.json), and exit",
    )
    report.add_argument(
        "--bibtex", action="store_true", help="print the references of the methods and datasets used, and exit"
    )
    _places(report, data=True)

    listing = commands.add_parser("list", help="methods and datasets, with their parameters")
    listing.add_argument("--tracebacks", action="store_true", help="show why files could not be imported")
    _places(listing)

    inspect = commands.add_parser("inspect", help="show how biased a dataset is: counts, ratios, a contact sheet")
    inspect.add_argument("dataset", type=_text, help="a name, with parameters inline")
    _places(inspect, data=True, results=RESULTS)

    embed = commands.add_parser(
        "embed",
        help="compute features of a dataset with a frozen network, for the dataset `features`",
        description="Send train, valid and test of a dataset through a frozen network and write its features, with "
        "labels and biases, into a folder. To train on them: debiasbench run --datasets "
        "features:root=FOLDER,title=NAME. Nothing is downloaded.",
    )
    embed.add_argument("dataset", type=_text, help="a name, with parameters inline")
    embed.add_argument(
        "--encoder",
        required=True,
        metavar="E",
        type=_text,
        help="torchvision:NAME, transformers:FOLDER (or a name in the Hugging Face cache), file:NET.py (a function "
        "encoder(), which is executed), record:RECORD.json (of a cell run with --save-weights)",
    )
    embed.add_argument(
        "--weights",
        type=_path,
        metavar="FILE",
        help="weights of a torchvision network (default: those in torch's hub folder)",
    )
    embed.add_argument(
        "--output",
        type=_path,
        metavar="FOLDER",
        help="default: features/DATASET-ENCODER below the current folder",
    )
    embed.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    embed.add_argument(
        "--batch-size", type=_number, metavar="B", default=64, help="default 64; does not change results"
    )
    _places(embed, data=True)

    prepare = commands.add_parser(
        "prepare",
        help="download datasets, or say how to get them",
        description="Download what has a stable address, verify and unpack it. For the rest, say what to fetch, how "
        "big it is, and where to put it. Files that are there are not fetched again; broken downloads are retried.",
    )
    prepare.add_argument("datasets", type=_text, nargs="*", metavar="DATASET", help="names, with parameters inline")
    prepare.add_argument(
        "--check", action="store_true", help="only report which files are there, of all or these datasets"
    )
    _places(prepare, data=True)

    test = commands.add_parser(
        "test",
        help="check a method, dataset or network of your own",
        description="Run the contract suite on a method, dataset or network of your own, and show which mistake each "
        "check catches and what it found.",
    )
    test.add_argument("name", type=_text, help="name of a method or network, or of a dataset with parameters inline")
    _places(test, data=True)

    archive = commands.add_parser(
        "archive",
        help="put the records of a folder into one .zip, which is read like the folder",
        description="Put the records below a folder, with their arrays and weights, into one .zip next to it. "
        "`report`, `status` and `run` read it like the folder. The folder is kept; you may delete it.",
    )
    archive.add_argument("folder", type=_path, help="a folder of records: results/records, or one below it")
    archive.add_argument("--output", type=_path, metavar="FILE", help="default: FOLDER.zip")

    status = commands.add_parser("status", help="show the progress of a grid, running or stopped")
    status.add_argument("folder", nargs="?", type=_path, default=Path("results"))
    status.add_argument("--follow", action="store_true", help="keep showing it until the latest run has ended")

    doctor = commands.add_parser(
        "doctor",
        help="show what this machine has and lacks, and how to fix it",
        description="Show versions, processor, memory, GPUs, plug-ins, data, folders, and which executors can run "
        "cells here. Nothing is changed or fetched. The exit code is 0 if the demo can run, else 1.",
    )
    doctor.add_argument(
        "--json", action="store_true", help="as JSON for a bug report, with ~ for your home and $USER for your name"
    )
    _places(doctor, data=True, results=RESULTS)

    clean = commands.add_parser(
        "clean",
        help="show what may be deleted in a results folder and the cache, and how big it is",
        description="Show what may be deleted, how big it is and what deleting it costs. With --yes, or if you confirm "
        "on a terminal, delete it. Records, weights, logs, tables, figures, data and files in use are never deleted.",
    )
    clean.add_argument("folder", nargs="?", type=_path, default=Path("results"), help="a results folder")
    clean.add_argument("--what", nargs="+", choices=KINDS_TO_CLEAN, default=[], help="only these (default: all)")
    clean.add_argument("--yes", action="store_true", help="delete without asking")
    clean.add_argument(
        "--cache-dir", type=_path, metavar="DIR", help="for decoded images; default: $DEBIASBENCH_CACHE, or ~/.cache"
    )
    return parser


def _training(parser: argparse.ArgumentParser) -> None:
    """Options that `run` and `tune` share: where and how cells are trained, and which of them."""
    parser.add_argument("--epochs", type=_number, metavar="E", help="replace the number of epochs in all recipes")
    parser.add_argument(
        "--recipes",
        choices=("own", "shared"),
        default="own",
        help="shared: use the dataset's recipe for every method",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    parser.add_argument(
        "--workers",
        type=_number,
        metavar="W",
        help="local: number of processes (default: one per core, or one per GPU; 0: in this process, for breakpoint() "
        "and print); ray: cells at a time; slurm: number of jobs (default 4)",
    )
    parser.add_argument(
        "--per-device", type=_number, metavar="K", default=1, help="number of cells that share a GPU (default 1)"
    )
    parser.add_argument(
        "--executor",
        default="local",
        metavar="X",
        help="what trains the cells: local (this machine, default), ray or ray:HOST:PORT, slurm",
    )
    parser.add_argument(
        "--detach", action="store_true", help="run in the background; `debiasbench status --follow` shows progress"
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="what each SLURM job requests: partition=gpu time=8h memory=16G gpus=1 cpus=4 account=..., or a .toml "
        "file",
    )
    parser.add_argument(
        "--rerun", choices=("missing", "failed", "changed", "all"), default="missing",
        help="which cells to run; changed: also those whose method (net, metric, rule) was edited since",
    )  # fmt: skip
    parser.add_argument(
        "--keep-changed", action="store_true", help="count cells as finished although their code has changed"
    )
    parser.add_argument(
        "--no-reuse", action="store_true", help="train identical first stages in every cell, instead of once"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=_seconds,
        metavar="T",
        default=60.0,
        help="write a checkpoint every T within a stage (default 60s)",
    )
    parser.add_argument(
        "--cell-timeout", type=_seconds, metavar="T", help="stop a cell after this time: 90s, 30min, 2h"
    )
    parser.add_argument(
        "--silence-timeout",
        type=_seconds,
        metavar="T",
        help="stop a cell that reports no progress for this time; the start of its process (importing torch) counts",
    )
    parser.add_argument(
        "--download", action="store_true", help="first download missing data, as `debiasbench prepare` does"
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out datasets whose data are missing, and say which"
    )
    parser.add_argument("--dry-run", action="store_true", help="show cells, skips and cost, and exit")


def _places(parser: argparse.ArgumentParser, *, data: bool = False, results: Path | None = None) -> None:
    if data:
        parser.add_argument("--data-dir", type=_path, metavar="DIR", help="default: $DEBIASBENCH_DATA, or ./data")
        parser.add_argument(
            "--cache-dir",
            type=_path,
            metavar="DIR",
            help="for decoded images; default: $DEBIASBENCH_CACHE, or ~/.cache",
        )
    if results:
        parser.add_argument("--results-dir", type=_path, metavar="DIR", default=results, help=f"default: ./{results}")
    parser.add_argument(
        "--methods-dir",
        type=_path,
        metavar="DIR",
        help="look for methods in this folder as well; every file there is executed",
    )
    parser.add_argument(
        "--datasets-dir",
        type=_path,
        metavar="DIR",
        help="look for datasets in this folder as well; every file there is executed",
    )
    parser.add_argument(
        "--nets-dir",
        type=_path,
        metavar="DIR",
        help="look for networks, metrics and selection rules in this folder as well; every file there is executed",
    )


def _number(text: str) -> int:
    if has_too_many_digits(text):
        raise argparse.ArgumentTypeError(f"must be {TOO_LONG}. Got {text!r}")
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number. Got {text!r}") from None


def _path(text: str) -> Path:
    """A path; argparse would replace the message of a BenchmarkError by its own."""
    try:
        return to_path(text)
    except BenchmarkError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _part(text: str) -> tuple[int, int]:
    """I/N, such as 2/8."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise argparse.ArgumentTypeError(f"must be I/N, such as 2/8. Got {text!r}")
    index, count = map(int, parts)
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/8. Got {text!r}")
    return index, count


def _seconds(text: str) -> float:
    """A time with its unit: 90s, 30min, 2h, 1d."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(s|min|h|d)", text.strip())
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a time above 0 with its unit: 90s, 30min, 2h or 1d. Got {text!r}")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[found[2]]


def _text(argument: str) -> str:
    """An argument; bytes that the locale cannot decode are read as UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeDecodeError):  # not text at all, perhaps a file name
            return os.fsencode(argument).decode("utf-8")
    return argument


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 if cells failed, 2 for a user's mistake, 130 if stopped."""
    commands = {
        "run": run_command, "tune": tune_command, "report": report_command, "list": list_command,
        "inspect": inspect_command, "embed": embed_command, "prepare": prepare_command, "status": status_command,
        "test": test_command,
        "archive": archive_command, "doctor": doctor_command, "clean": clean_command,
    }  # fmt: skip
    for stream in (sys.stdout, sys.stderr):
        never_failing(stream)
    try:
        options = build_parser().parse_args(arguments)
        options.given = sys.argv[1:] if arguments is None else arguments
        _add_folders(options)
        _end_as_ctrl_c()
        return commands[options.command](options)
    except BenchmarkError as error:
        _tell(_shortened(f"error: {error}"))
        atexit.register(gc.freeze)  # otherwise garbage collection at exit spends a third of a second on torch
        return USAGE
    except KeyboardInterrupt:
        if arguments is None:  # this process ends now, so a second Ctrl-C has nothing to stop
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\nStopped. Finished cells are kept; the same command goes on with the rest.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has ended (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED if options.command in ("run", "tune") else OK
    except OSError as error:
        _tell(_shortened(f"error: {_refused(error)}"))
        return USAGE


def _refused(error: OSError) -> str:
    """What the system refused, and for which file, if it says so."""
    if disk_is_full(error):
        return (
            f"{error.filename or 'A file'} cannot be written: the disk is full. Make room, and run the same command "
            "again: what is finished is kept."
        )
    return ": ".join(str(one) for one in (error.strerror or error, error.filename) if one)


def _shortened(message: str) -> str:
    """A message with very long words shortened, such as numbers with thousands of digits; paths stay whole."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:40]}...({len(word[0])} characters)...{word[0][-10:]}", message)


def _check_names(**specs: Sequence[str]) -> None:
    """Refuse unknown names before torch is imported; `specs`: kind of plug-in -> names with parameters."""
    from debiasbench.plugins import check_names

    problems = []
    names = {
        kind: [name for spec in given if (name := spec.partition(":")[0].strip()) != "all"]
        for kind, given in specs.items()
    }
    names["net"] = [net for spec in specs.get("dataset", ()) for net in _nets_of(spec)]
    for kind, given in names.items():
        try:
            check_names(kind, given)
        except BenchmarkError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkError("\n".join(problems))


def _nets_of(spec: str) -> list[str]:
    """The networks in a dataset's inline parameters; none if these cannot be parsed, which is reported later."""
    try:
        return split_spec(spec)[1].get("net", [])
    except BenchmarkError:
        return []


def _check_there(folder: Path) -> None:
    """Refuse a results folder that does not exist, before torch is imported."""
    if not folder.exists():
        raise BenchmarkError(absent(folder, "results folder"))


def _add_folders(options: argparse.Namespace) -> None:
    from debiasbench.plugins import add_folder

    for kind in ("method", "dataset", "net"):
        if getattr(options, f"{kind}s_dir", None):
            add_folder(kind, getattr(options, f"{kind}s_dir"))
    if getattr(options, "cache_dir", None):
        os.environ["DEBIASBENCH_CACHE"] = str(options.cache_dir.absolute())  # workers inherit it


def _tell(message: str) -> None:
    print(printable(message), file=sys.stderr)


def _console() -> PlainConsole:
    from debiasbench.console import console

    return console()


def _data_dir(options: argparse.Namespace) -> Path:
    return options.data_dir or default_data_dir()


# ---- run ------------------------------------------------------------------------------------------------------------


def run_command(options: argparse.Namespace) -> int:
    """Plan and run a grid, and make its report."""
    if options.list:
        return list_command(options)
    asked = _asked(options)
    _check_names(method=asked.methods, dataset=asked.datasets)
    tuned = None
    if options.tuned:
        from debiasbench.tuned import read_tuned

        tuned = read_tuned(options.tuned)
    from debiasbench.running.run import plan_grid, run_grid

    ready = plan_grid(
        asked,
        _run_options(
            options, tuned=tuned, save_weights=options.save_weights, shard=options.shard, log=tuple(options.log)
        ),
        told=lambda text: print(text, file=sys.stderr),
    )
    console = _console()
    if asked.about and ready.plan.to_run:
        console.print(f"{asked.about.strip()}\n")
    _show_plan(console, ready, every_cell=options.dry_run)
    if options.dry_run:
        return OK
    if not ready.plan.grid.cells:
        shard = options.shard
        console.print(
            f"Part {shard[0]} of {shard[1]} has no cells." if shard else "Nothing to run: every method declined."
        )
        return OK
    if options.detach and ready.plan.to_run:
        return _detach(console, ready, options.given)
    from debiasbench.running.progress import Display

    with Display(ready.plan) as display:
        run_grid(ready, display.handle)
    return _report_grid(console, ready, n_failed=display.n_failed)


def tune_command(options: argparse.Namespace) -> int:
    """Run the draws of methods, and choose one for each."""
    from debiasbench.tuned import check_output, check_rule

    check_rule(options.rule)
    _check_names(method=options.methods, dataset=options.datasets)
    from debiasbench.experiments import Experiment
    from debiasbench.running.run import plan_tuning, run_grid

    asked = Experiment(
        "", options.methods, options.datasets, seeds=options.seeds, epochs=options.epochs,
        shared_recipes=options.recipes == "shared",
    )  # fmt: skip
    output = options.output or options.results_dir / "tuned.toml"
    if options.output and not options.dry_run:  # the default is in the results folder, which every run checks
        check_output(output)
    tuning = plan_tuning(
        asked,
        _run_options(options),
        draws=options.draws,
        rule=options.rule,
        told=lambda text: print(text, file=sys.stderr),
    )
    ready = tuning.ready
    console = _console()
    _show_plan(console, ready, every_cell=options.dry_run)
    if options.dry_run:
        return OK
    if options.detach and ready.plan.to_run:
        return _detach(console, ready, options.given, then="the same command without --detach, which chooses")
    from debiasbench.report.tuning import conclude
    from debiasbench.running.progress import Display

    with Display(ready.plan) as display:
        run_grid(ready, display.handle)
    found = conclude(
        tuning.trials, options.results_dir, rule=options.rule, draws=options.draws, seeds=tuning.seeds, output=output
    )
    _show_table(console, found.table)
    for text in found.lacking:
        console.print(f"nothing chosen: {text}: no draw has a value.", style="red", soft_wrap=True)
    _show_paths(console, found.complaints, found.paths)
    if found.values.chosen:
        methods = shlex.join(dict.fromkeys(one.method for one in found.values.chosen))
        datasets = shlex.join(options.datasets)
        command = f"debiasbench run --tuned {output} --methods {methods} --datasets {datasets}"
        console.print(f"To run what was chosen: {command}", soft_wrap=True)
    return FAILED if found.lacking or any(one.value is None for one in found.found) else OK


def _end_as_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP act like Ctrl-C: workers write a checkpoint, and no file is left half written."""
    for ending in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, ending, None)  # Windows has no SIGHUP
        if number is None or threading.current_thread() is not threading.main_thread():
            continue
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored, as under nohup
            signal.signal(number, signal.default_int_handler)


def _run_options(options: argparse.Namespace, **more: Any) -> RunOptions:
    """The options of `_training` and `_places`, and others."""
    from debiasbench.running.run import RunOptions

    return RunOptions(
        data_dir=_data_dir(options), results_dir=options.results_dir, device=options.device,
        workers=options.workers, per_device=options.per_device, executor=options.executor,
        slurm=tuple(options.slurm), rerun=options.rerun, keep_changed=options.keep_changed,
        reuse=not options.no_reuse, cell_timeout=options.cell_timeout, silence_timeout=options.silence_timeout,
        checkpoint_every=options.checkpoint_every, dry_run=options.dry_run, download=options.download,
        skip_missing=options.skip_missing, **more,
    )  # fmt: skip


def _detach(console: PlainConsole, ready: GridRun, arguments: list[str], *, then: str = "") -> int:
    """Run the grid without this process: as jobs (`then`: what to do when they have ended), or in a new process."""
    from debiasbench.about import with_package
    from debiasbench.running.run import leave_grid

    results_dir = ready.options.results_dir
    stop = leave_grid(ready)
    if stop:
        then = then or f"debiasbench report {results_dir}"
        console.print(f"The jobs go on without this command. When they have ended: {then}", soft_wrap=True)
    else:
        log = results_dir / "logs" / f"run-{time.strftime('%Y-%m-%d-%H%M%S')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "debiasbench", *(word for word in arguments if word != "--detach")]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "PYTHONPATH": with_package(os.environ.get("PYTHONPATH", ""))},
            )  # fmt: skip
        stop = f"kill {process.pid}"
        console.print(f"The run goes on without this terminal. Its output: {log}", soft_wrap=True)
    console.print(f"To follow it: debiasbench status --follow {results_dir}\nTo stop it: {stop}", soft_wrap=True)
    return OK


def _asked(options: argparse.Namespace) -> Experiment:
    """The grid, from the options, or from an experiment file with values that the options replace."""
    from debiasbench.experiments import Experiment, read_experiment

    if options.experiment or not (options.methods or options.datasets):
        asked = read_experiment(options.experiment or "demo", smoke=options.smoke)
    elif not (options.methods and options.datasets):
        missing = "--datasets" if options.methods else "--methods"
        raise BenchmarkError(f"{missing} is missing (for example --methods vanilla pgd --datasets cmnist5k).")
    elif options.smoke:
        raise BenchmarkError("--smoke belongs to --experiment: it runs the experiment's short variant.")
    else:
        asked = Experiment("", options.methods, options.datasets)
    given = {
        "methods": options.methods, "datasets": options.datasets, "seeds": options.seed_list or options.seeds,
        "epochs": options.epochs, "reference": options.reference, "data_seeds": options.data_seeds,
        "shared_recipes": options.recipes == "shared",
    }  # fmt: skip
    replaced = {key: value for key, value in given.items() if value is not None and value is not False}
    if options.methods or options.datasets:  # the texts of the file describe another grid
        asked = replace(asked, about="", then="")
    return replace(asked, **replaced)


def _show_plan(console: PlainConsole, ready: GridRun, *, every_cell: bool) -> None:
    from debiasbench.running.plan import begun

    planned, grid = ready.plan, ready.plan.grid
    for data, reason in ready.left_out.items():
        console.print(f"left out: {data}. {reason}", soft_wrap=True)
    for notice in grid.notices:
        console.print(f"note: {notice}")
    if ready.asked.epochs is not None and not ready.asked.smoke:
        console.print(
            "note: --epochs does not change stages whose length is a parameter of the method. Results of a short trial "
            "do not show which method is better.", soft_wrap=True,
        )  # fmt: skip
    for skip in grid.skips:
        console.print(f"skip: {skip.method_title} on {skip.dataset_title}: {skip.reason}")
    if every_cell:
        for cell in grid.cells:
            state = (
                "finished"
                if cell.hash in planned.finished
                else "failed before"
                if cell.hash in planned.failed_before
                else "to run"
            )
            console.print(f"cell: {cell.title} ({grid.relative_costs[cell.hash]:.3g} vanilla runs): {state}")
    if planned.failed_before:
        console.print(
            f"{len(planned.failed_before)} cells failed before and are not run again: --rerun failed retries them."
        )
    parts = [f"{len(planned.to_run)} cells to run", f"{len(planned.finished)} finished before"]
    n_begun = len(begun(planned.to_run, ready.options.results_dir)) if ready.settings.resume else 0
    parts += [f"{n_begun} with a checkpoint"] if n_begun else []
    console.print(f"{', '.join(parts)}; {_cost(ready)}.{_order(ready)}")
    if every_cell and (script := ready.executor.script(ready.settings)):
        console.print(f"\nThe job script for SLURM:\n{script}", soft_wrap=True)


def _cost(ready: GridRun) -> str:
    """The cost of the cells to run: in vanilla runs, and in hours if records show how long one takes here."""
    from debiasbench.estimates import seconds_for
    from debiasbench.records import read_records, sources
    from debiasbench.running.executor import kind_of
    from debiasbench.wording import duration

    planned, n_workers = ready.plan, len(ready.settings.devices)
    costs, to_run = planned.grid.relative_costs, planned.to_run
    if not to_run:
        return "nothing to run"
    cost = sum(costs[cell.hash] for cell in to_run)
    runs = f"{cost:.3g} vanilla run{'' if cost == 1 else 's'} (each the plain training of one network on that dataset)"
    told = f"estimated cost: {runs} on {n_workers} worker{'' if n_workers == 1 else 's'}"
    here = socket.gethostname() if kind_of(ready.options.executor)[0] == "local" else None
    seconds = seconds_for(
        to_run, costs, read_records(*sources(ready.options.results_dir))[0], n_workers=n_workers,
        device_kind=ready.settings.device_kind, host=here,
    )  # fmt: skip
    return told if seconds is None else f"{told}, about {duration(seconds)} judging by finished runs"


def _order(ready: GridRun) -> str:
    """Which cells start first, if costs differ."""
    costs, to_run = ready.plan.grid.relative_costs, ready.plan.to_run
    if len({costs[cell.hash] for cell in to_run}) < 2:
        return ""
    several = len({cell.dataset_title for cell in to_run}) > 1
    return f" The costliest cells{' of each dataset' if several else ''} start first."


def _report_grid(console: PlainConsole, ready: GridRun, *, n_failed: int) -> int:
    from debiasbench.records import find_record
    from debiasbench.report.make import make

    cells, asked, results_dir = ready.plan.grid.cells, ready.asked, ready.options.results_dir
    wanted = {path for cell in cells if (path := find_record(results_dir, cell))}
    there = {cell.method_title for cell in cells}
    report = make(
        results_dir, reference=asked.reference if asked.reference in there else None,
        keep=lambda record: record.path in wanted, order=ready.methods,
        experiment=asked if asked.paper or asked.show != "accuracy" else None, data_dir=ready.options.data_dir,
    )  # fmt: skip
    _show_report(console, report)
    if ready.left_out:  # repeated below the tables, which lack these datasets
        console.print(f"left out, because data are missing: {', '.join(ready.left_out)}.", soft_wrap=True)
    if ready.options.shard is not None:
        index, count = ready.options.shard
        console.print(
            f"This is part {index} of {count}. For all parts: put their records below one FOLDER, then "
            "debiasbench report FOLDER.",
            soft_wrap=True,
        )
    if asked.then:
        console.print(asked.then.strip(), soft_wrap=True)
    lost = len(cells) - len(wanted)
    return FAILED if report.failed or lost or n_failed else OK


def _show_report(console: PlainConsole, report: Report) -> None:
    for table in report.tables:
        _show_table(console, table)
    for complaint in report.complaints:
        console.print(f"left out: {complaint}")
    for record in report.failed:
        assert record.failure is not None
        text = f"failed: {record.cell.title}: {record.failure.type}: {record.failure.message}"
        text += f"\n  (traceback in {record.path})"
        console.print(text, style="red", soft_wrap=True)
    *others, (kind, pages) = report.paths.items()
    _show_paths(console, [], dict(others))
    console.print()
    if report.passed:
        console.print(report.passed, style="bold green", soft_wrap=True)
    for verdict in report.verdicts:
        console.print(verdict, style="bold", soft_wrap=not console.is_terminal)
    _show_paths(console, [], {kind: pages})


def _show_paths(console: PlainConsole, complaints: Sequence[str], paths: dict[str, list[Path]]) -> None:
    for complaint in complaints:
        console.print(f"left out: {complaint}")
    for kind, some in paths.items():
        if len(some) == 1:
            console.print(f"{kind}: {some[0]}", soft_wrap=True)
            continue
        for folder in dict.fromkeys(path.parent for path in some):
            names = ", ".join(path.name for path in some if path.parent == folder)
            console.print(f"{kind} in {folder}: {names}", soft_wrap=True)


def _show_table(console: PlainConsole, table: Table) -> None:
    from debiasbench.report.terminal import shown_in

    console.print()
    for part in shown_in(table, console):
        console.print(part)
    for note in table.notes:
        console.print(note, style="dim")


# ---- the other commands ---------------------------------------------------------------------------------------------


def report_command(options: argparse.Namespace) -> int:
    """Make tables and figures again, from records."""
    if options.verify:
        return _verify(options)
    folder = options.folder or Path("results")
    _check_there(folder)
    from debiasbench.report.make import Shown, bibtex, make

    if options.bibtex:
        if options.methods or options.datasets or options.reference:
            raise BenchmarkError(
                "--bibtex covers all records of the folder: leave out --methods, --datasets, --reference."
            )
        print(bibtex(folder))
        return OK
    methods, datasets, metrics = (tuple(getattr(options, name) or ()) for name in ("methods", "datasets", "metrics"))
    shown = Shown(methods, datasets, metrics, tuple(options.select), options.beside, options.profile)
    shown = replace(shown, **{name: getattr(options, name) for name in ("order", "by") if getattr(options, name)})
    report = make(
        folder, reference=options.reference, shown=shown, data_dir=_data_dir(options), strict=options.strict,
        export=options.export,
    )  # fmt: skip
    _show_report(_console(), report)
    return FAILED if report.failed else OK


def _verify(options: argparse.Namespace) -> int:
    """Check that records are still those that a sealed table was made from."""
    named = ("methods", "datasets", "metrics", "reference", "order", "by", "export")
    flags = ("beside", "profile", "strict", "bibtex")
    beside = [f"--{name}" for name in (*named, *flags) if getattr(options, name)]
    if beside:
        raise BenchmarkError(f"--verify checks exactly what its file lists: leave out {', '.join(beside)}.")
    if options.folder:
        _check_there(options.folder)
    from debiasbench.report.make import verify

    equal, lines = verify(options.verify, options.folder)
    print(printable("\n".join(lines)))
    return OK if equal else FAILED


def list_command(options: argparse.Namespace) -> int:
    """List methods and datasets with their parameters, networks, and metrics and rules outside the suite."""
    from debiasbench.datasets import registry as datasets
    from debiasbench.evaluation.own import own_functions
    from debiasbench.methods import registry as methods
    from debiasbench.nets.build import NETS
    from debiasbench.nets.own import registry as nets
    from debiasbench.parameters import write_value
    from debiasbench.plugins import MODELS, defaults
    from debiasbench.report.tables import KNOWS, SIGNS

    console = _console()
    for registry in (methods, datasets):
        console.print(f"{registry.kind}s", style="bold")
        marks = {
            name: KNOWS if getattr(cls, "needs_bias_labels", False) else "" for name, cls in registry.classes().items()
        }
        for name, cls in registry.classes().items():
            _show_hanging(console, f"{name}{marks[name]}: {_summary(cls)}", 2)
            values = {key: value for key, value in defaults(cls).items() if key != "root"}
            if values:
                _show_hanging(console, ", ".join(f"{k}={write_value(v)}" for k, v in values.items()), 4)
            if cls.presets:
                _show_hanging(console, "presets: " + ", ".join(cls.presets), 4)
        for alias, (name, values) in registry.aliases().items():
            spec = f"{name}:" + ",".join(f"{k}={write_value(v)}" for k, v in values.items())
            _show_hanging(console, f"{alias}{marks[name]}: {spec}", 2)
        if any(marks.values()):
            _show_hanging(console, f"{KNOWS} {SIGNS[KNOWS]}", 2)
        _show_problems(console, registry, tracebacks=getattr(options, "tracebacks", False))
    console.print("nets", style="bold")
    _show_hanging(console, ", ".join([*NETS, *MODELS]), 2)
    for name, cls in nets.classes().items():
        _show_hanging(console, f"{name}: {_summary(cls)}", 2)
    _show_problems(console, nets, tracebacks=getattr(options, "tracebacks", False))
    for kind in ("metric", "rule"):
        functions = own_functions(kind)
        if functions:
            console.print(f"{kind}s", style="bold")
        for name, function in functions.items():
            _show_hanging(console, f"{name}: {(function.__doc__ or '').strip().partition(chr(10))[0]}", 2)
    return OK


def _show_hanging(console: PlainConsole, text: str, indent: int) -> None:
    """Print text indented by `indent` spaces, and its continuation lines by two more."""
    from rich.padding import Padding
    from rich.text import Text

    *lines, last = Text(console.shown(text)).wrap(console, console.width - indent - 2)
    for line in lines:
        line.rstrip()
    for number, line in enumerate([*lines, last]):
        console.print(Padding(line, (0, 0, 0, indent + 2 * (number > 0)), expand=False))


def _summary(cls: type[Any]) -> str:
    """The first line of the docstring of a plug-in's file, or else of its class, without the plug-in's name."""
    summary = (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().partition("\n")[0]
    return summary.partition(": ")[2] or summary


def _show_problems(console: PlainConsole, registry: Registry, *, tracebacks: bool) -> None:
    for name, problem in registry.unusable.items():
        console.print(f"  {name}: {problem}", style="red")
    for name, text in registry.broken.items():
        cause = text.strip().splitlines()[-1]
        console.print(f"  {name}: could not be imported ({cause})", style="red")
        if tracebacks:
            console.print(text)


def inspect_command(options: argparse.Namespace) -> int:
    """Show counts, ratios and a picture of one dataset."""
    _check_names(dataset=[options.dataset])
    from debiasbench.files import check_writable
    from debiasbench.grid import dataset_from_spec
    from debiasbench.report.inspection import inspect
    from debiasbench.running.plan import check_data

    dataset, label = dataset_from_spec(options.dataset)
    check_writable(options.results_dir / "inspect", "--results-dir")
    check_data([dataset], _data_dir(options), with_x=False)
    tables, paths = inspect(dataset, label, data_dir=_data_dir(options), results_dir=options.results_dir)
    console = _console()
    for table in tables:
        _show_table(console, table)
    if paths:
        console.print("pictures: " + ", ".join(map(str, paths)), soft_wrap=True)
    return OK


def embed_command(options: argparse.Namespace) -> int:
    """Write the features of a dataset."""
    _check_names(dataset=[options.dataset])
    from debiasbench.embedding import embed
    from debiasbench.parameters import write_value

    made = embed(
        options.dataset, options.encoder, data_dir=_data_dir(options), output=options.output, weights=options.weights,
        device=options.device, batch_size=options.batch_size,
    )  # fmt: skip
    state = "exists already, with the same contents" if made.there else "written"
    print(printable(f"{made.folder}: {state}. {made.embedding.told()}"))
    spec = shlex.quote(f"features:root={write_value(str(made.folder))},title=NAME")
    print(printable(f"To train on it: debiasbench run --methods vanilla pgd --datasets {spec}"))
    return OK


def prepare_command(options: argparse.Namespace) -> int:
    """Download data where possible; say what is present and what is missing."""
    _check_names(dataset=options.datasets)
    from debiasbench.running import preparation

    data_dir = _data_dir(options)
    if options.check:
        table, lines = preparation.state(options.datasets, data_dir)
        console = _console()
        console.print(table)
        for line in lines:  # lines that scripts can search for
            console.print(line, soft_wrap=True)
        return OK
    if not options.datasets:
        raise BenchmarkError("Name a dataset, or use --check to see what is there.")
    incomplete = 0
    for dataset, label in preparation.named_datasets(options.datasets):
        try:
            needed, problem = preparation.prepare(dataset, data_dir)
        except Exception as error:  # go on with the other datasets
            incomplete += 1
            _tell(f"error: {label}: {preparation.in_words(error)}")
            continue
        if problem:
            _tell(f"error: {label}: {problem}")
        incomplete += bool(needed)
        shortfalls = [] if needed else dataset.shortfalls(data_dir)
        state = "not complete. Needed:" if needed else "usable, but a part:" if shortfalls else "complete"
        lines = [f"{file.path} ({file.size}) from: {file.source}" for file in needed]
        print(printable("\n  ".join([f"{label}: {state}", *shortfalls, *lines])))
    return FAILED if incomplete else OK


def test_command(options: argparse.Namespace) -> int:
    """Run every check of the contract suite on one plug-in."""
    from debiasbench import testing
    from debiasbench.datasets import registry as datasets
    from debiasbench.grid import dataset_from_spec
    from debiasbench.methods import registry as methods
    from debiasbench.nets.own import registry as nets
    from debiasbench.running.plan import check_data

    name, _, parameters = options.name.partition(":")
    is_method, is_dataset = (name in {**kind.classes(), **kind.aliases()} for kind in (methods, datasets))
    if not (is_method or is_dataset) and name in {*nets.classes(), *nets.broken, *nets.unusable}:
        cls, _ = nets.get(name)
        if parameters:
            raise BenchmarkError(f"A net has no parameters: debiasbench test {name}. Got '{options.name}'.")
        findings = testing.examine_net(cls)
    elif is_method or not is_dataset:
        cls, _ = methods.get(name)
        if parameters:
            raise BenchmarkError(
                f"A method is tested with its defaults: debiasbench test {name}. Got '{options.name}'."
            )
        findings = testing.examine_method(cls)
    else:
        dataset, _ = dataset_from_spec(options.name)
        check_data([dataset], _data_dir(options))
        findings = testing.examine_dataset(dataset, _data_dir(options))
    console = _console()
    outcomes = []
    for finding in findings:
        outcomes.append(finding.outcome)
        style = {"passed": "green", "failed": "bold red", "skipped": "yellow"}[finding.outcome]
        console.print(f"{finding.outcome:8}{finding.check}", style=style)
        for text in (finding.protects, finding.message):
            if text:
                console.print(f"        {text}", style="dim" if text is finding.protects else style)
    n_failed = outcomes.count("failed")
    console.print(
        f"{len(outcomes)} checks: {', '.join(f'{outcomes.count(one)} {one}' for one in dict.fromkeys(outcomes))}."
    )
    return FAILED if n_failed else OK


def archive_command(options: argparse.Namespace) -> int:
    """Pack the records below a folder into one .zip."""
    from debiasbench.files import check_writable
    from debiasbench.records import pack

    folder = options.folder.resolve()  # so that `.` and `..` have a name
    output = options.output or folder.with_name(f"{folder.name}.zip")
    if output.suffix != ".zip":
        raise BenchmarkError(f"--output must end in .zip, so that it is read as an archive. Got {output}.")
    if output.exists():
        raise BenchmarkError(
            f"{output} exists already. To keep what it holds, unpack it into {options.folder} and delete it; or "
            "give another file with --output."
        )
    check_writable(output.parent, "--output")
    n_files = pack(options.folder, output)
    print(printable(f"{output}: {n_files} files."))
    return OK


def status_command(options: argparse.Namespace) -> int:
    """Count what a results folder holds, and list its running cells."""
    _check_there(options.folder)
    from debiasbench.report.make import status
    from debiasbench.running.claims import running_cells

    console = _console()
    if options.follow:
        return _follow(console, options.folder)
    _show_table(console, status(options.folder))
    for path, holder in running_cells(options.folder):
        where = path.relative_to(options.folder / "running").with_suffix("").as_posix()
        far = f"{holder.stage}, epoch {holder.epoch} of {holder.epochs}" if holder.stage else "started"
        console.print(f"running: {where}: {far} ({holder.host})", markup=False, soft_wrap=True)
    return OK


def _follow(console: PlainConsole, folder: Path) -> int:
    """Show the progress of the run started last, until it has ended; Ctrl-C does not affect the run."""
    from debiasbench.running.watch import summary, watch

    try:
        following = watch(console, folder)
    except KeyboardInterrupt:
        console.print("Stopped following; the run goes on.")
        return OK
    for title, reason in following.failed.items():
        console.print(f"failed  {title}: {reason}", style="red", soft_wrap=True)
    console.print(f"{summary(following, 0)}. The tables: debiasbench report {folder}", soft_wrap=True)
    return FAILED if following.failed else OK


def doctor_command(options: argparse.Namespace) -> int:
    """Show what this machine has and lacks. Printed without rich, which may be missing."""
    from debiasbench.running.doctor import anonymous, can_run, examine

    findings, output = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # output of plug-ins at import
        for finding in examine(_data_dir(options), options.results_dir):
            findings.append(finding)
            if not options.json:
                line = f"{finding.state:8} {finding.what:22} {finding.text}"
                print(printable(f"{line}. {finding.advice}" if finding.advice else line), file=output, flush=True)
    can = can_run(findings)
    if options.json:
        print(json.dumps({"demo_can_run": can, "findings": [anonymous(one) for one in findings]}, indent=1))
    else:
        print("The demo can run: debiasbench run" if can else "The demo cannot run: see the problems above.")
    return OK if can else FAILED


def clean_command(options: argparse.Namespace) -> int:
    """Show what may be deleted, and delete it if the user agrees."""
    from debiasbench.data.cache import cache_dir
    from debiasbench.files import readable_size
    from debiasbench.running.cleaning import Folders, find, remove

    folders = Folders(options.folder, cache_dir())
    found = find(folders, options.what)
    console = _console()
    removable = [one for one in found if not one.stays]
    if removable:
        console.print(_table_of(removable))
    for one in found:
        if one.stays:
            console.print(f"stays: {one.place} ({one.kind}): {one.stays}", soft_wrap=True)
    if not removable:
        console.print("There is nothing to delete.")
        return OK
    size = readable_size(sum(one.size for one in removable))
    if not options.yes and not _agrees(f"Delete all of it, {size}? [y/N] "):
        console.print(f"{size} in total. Nothing was deleted: --yes deletes it, --what chooses.")
        return OK
    freed, left = remove(removable, folders)
    console.print(f"Deleted: {readable_size(freed)}.")
    for line in left:
        _tell(line)
    return FAILED if left else OK


def _table_of(removable: list[Removable]) -> RichTable:
    """A table with one row for all items with the same place and reason."""
    from rich.table import Table as RichTable

    from debiasbench.files import readable_size

    table = RichTable(title="What may be deleted", title_justify="left", title_style="bold")
    for heading in ("what", "where", "size", "why it may go"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    rows: dict[tuple[str, Path, str], list[int]] = {}
    for one in removable:
        rows.setdefault((one.kind, one.place, one.why), []).append(one.size)
    for (kind, place, why), sizes in rows.items():
        where = f"{place} ({len(sizes)})" if len(sizes) > 1 else str(place)
        table.add_row(kind, where, readable_size(sum(sizes)), why)
    return table


def _agrees(question: str) -> bool:
    """Ask a question; whether somebody at a terminal says yes. Without a terminal nobody is asked."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
