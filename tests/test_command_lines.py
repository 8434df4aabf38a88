"""Command lines that cannot be meant get one short answer, before data are built or anything trains."""

from pathlib import Path

import pytest

from debiasbench import api, cli
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import read_experiment
from debiasbench.files import default_data_dir
from debiasbench.grid import expand
from debiasbench.parameters import read_value
from debiasbench.records import check_writable
from debiasbench.running import plan, run
from debiasbench.running.preparation import with_data

GRID = ["run", "--methods", "vanilla", "--datasets", "cmnist5k", "--device", "cpu"]
LONG, LONGER = "9" * 400, "9" * 5000  # Python itself reads no number of 5,000 digits


def grid(*, methods="vanilla", datasets="cmnist5k"):
    return ["run", "--methods", methods, "--datasets", datasets, "--device", "cpu"]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """In an empty folder; to build data or to train is an error."""

    def refuse(*given, **options):
        raise AssertionError("this would have begun")

    for module, name in ((plan, "build_all"), (run, "run_cells"), (run, "run_cells_here")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.chdir(tmp_path)


def answer_to(words, capsys):
    """What is said to a command line that is refused."""
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "Traceback" not in told.err
    assert told.err.count("\n") <= 3
    assert len(told.err) < 700
    assert told.out == ""
    return told.err


# ---- numbers --------------------------------------------------------------------------------------------------------

NUMBERS = [
    ([*GRID, "--seeds", "1000000000"], "The number of seeds must be at most 1000000. Got 1000000000."),
    ([*GRID, "--seeds", "-3"], "The number of seeds must be at least 1. Got -3."),
    ([*GRID, "--data-seeds", "1000000000"], "--data-seeds must be at most 10000. Got 1000000000."),
    ([*GRID, "--seeds", "200000", "--data-seeds", "9000"], "1,800,000,000 cells (methods x datasets x seeds)"),
    ([*GRID, "--epochs", "1000000000"], "would take as long as 5e+07 vanilla runs"),
    ([*GRID, "--epochs", "0"], "error: --epochs must be at least 1. Got 0.\n"),
    ([*GRID, "--workers", "1000000000"], "--workers must be at most"),
    ([*GRID, "--workers", "99999"], "--workers must be at most"),
    ([*GRID, "--seed-list", "1", "2", "1"], "Seeds must be different whole numbers of at least 0. Got [1, 2, 1]."),
    *(
        ([*GRID, option, number], f"argument {option}: must be a whole number")
        for option in ("--seeds", "--data-seeds", "--epochs", "--workers", "--seed-list")
        for number in (LONG, LONGER, "1e400", "nan", "inf", "1.5", "10^21", "0x10")
    ),
    (grid(methods="jtt:T=10^21"), "The 'T' parameter of jtt must be a whole number. Got '10^21'."),
    *(
        (grid(methods=f"jtt:T={number}"), "The 'T' parameter of jtt must be a whole number of at most 15 digits")
        for number in ("1" + 21 * "0", LONG, LONGER, f"-{LONG}")
    ),
    (grid(methods="jtt:T=999999999999999"), "would take as long as 5e+13 vanilla runs"),
    (grid(methods="pgd:alpha=" + "|".join(f"0.{number}" for number in range(11000))), "at most 10,000"),
    *((grid(methods=f"jtt:lambda_up={number}"), "'lambda_up' parameter") for number in ("nan", "inf", "1e400", LONG)),
    *((grid(datasets=f"cmnist5k:epochs={number}"), "'epochs' parameter") for number in (LONG, LONGER, "1e9", "0")),
    (grid(datasets="cmnist5k:steps=999999999999999"), "vanilla runs"),
    *((grid(datasets=f"cmnist5k:{key}={LONG}"), f"'{key}' parameter") for key in ("batch_size", "size", "eval_every")),
    *((grid(datasets=f"cmnist5k:{key}=10000000"), f"'{key}' parameter") for key in ("batch_size", "size", "pad_crop")),
    *(
        (grid(datasets=f"cmnist5k:{key}={numbers}"), "must be finite numbers, written a/b/c")
        for key in ("crop_scale", "crop_ratio", "milestones")
        for numbers in ("0.5/inf", "nan/1", f"0.1/{LONG}")
    ),
    (grid(datasets="cmnist5k:mean=1/1/1,std=0/1/1"), "The 'std' of a recipe must be numbers above 0"),
    (
        grid(datasets=f"cmnist5k:data_seed={LONG}"),
        "'data_seed' parameter of cmnist5k must be a whole number of at most",
    ),
]


@pytest.mark.parametrize(("words", "answer"), NUMBERS)
def test_numbers_out_of_proportion_are_refused(words, answer, capsys):
    assert answer in answer_to(words, capsys)


@pytest.mark.parametrize("seeds", [[True], [1, "2"], [1.0], [float("nan")], [10**15], [-1], [2, 2]])
def test_seeds_of_a_script_are_checked_alike(seeds):
    with pytest.raises(BenchmarkError, match="Seeds must be different whole numbers of at least 0"):
        expand(["vanilla"], ["cmnist5k"], seeds=seeds)


@pytest.mark.parametrize("function", [api.run, api.tune])
@pytest.mark.parametrize(
    ("methods", "datasets", "answer"),
    [
        ("nobody", ["cmnist5k"], "Unknown method 'nobody'"),
        (["vanilla"], "nothing", "Unknown dataset 'nothing'"),
        ("vanilla:x=1", "cmnist5k", "Unknown parameter 'x' of vanilla"),
    ],
)
def test_a_script_may_give_a_single_name(function, methods, datasets, answer):
    """It is not taken apart into its letters."""
    with pytest.raises(BenchmarkError, match=answer):
        function(methods, datasets)


@pytest.mark.parametrize("seeds", [range(10**9), range(1, 10**12), iter(range(10**12))])
def test_seeds_of_a_script_are_not_listed_before_they_are_counted(seeds):
    with pytest.raises(BenchmarkError, match="The number of seeds must be at most 1000000"):
        api.run(["vanilla"], ["cmnist5k"], seeds=seeds)


def test_a_large_grid_resolves_its_settings_once(monkeypatch):
    from debiasbench import grid as module

    calls = []
    monkeypatch.setattr(module, "_resolve", lambda *given, resolve=module._resolve: calls.append(1) or resolve(*given))
    cells = expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2000).cells
    assert len(calls) == 2
    assert len({cell.hash for cell in cells}) == len(cells) == 4000
    assert [(cell.seed, cell.method) for cell in cells[:3]] == [(0, "vanilla"), (0, "pgd"), (1, "vanilla")]


def test_a_large_grid_says_that_it_takes_a_while(monkeypatch, capsys):
    monkeypatch.setattr(run, "plan", lambda grid, **_: plan.Plan(grid, grid.cells, {}, {}))
    monkeypatch.setattr(run, "MANY_CELLS", 5)
    assert cli.main([*GRID, "--seeds", "6", "--dry-run"]) == 0
    assert capsys.readouterr().err == "6 cells on 1 set of data: checking them takes a while.\n"
    assert cli.main([*GRID, "--seeds", "5", "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", [LONG, f" -{LONG} ", LONGER, f"+{LONGER}"])
def test_a_parameter_that_may_be_none_has_the_same_limit(text):
    with pytest.raises(BenchmarkError, match="of at most 15 digits"):
        read_value(text, int | None, "'steps' parameter")
    assert read_value("9" * 15, int | None, "'steps' parameter") == 10**15 - 1


# ---- empty, twice ---------------------------------------------------------------------------------------------------

OF_RUN = [
    "--methods", "--datasets", "--experiment", "--seeds", "--seed-list", "--data-seeds", "--epochs", "--recipes",
    "--reference", "--device", "--workers", "--rerun", "--log", "--data-dir", "--cache-dir", "--results-dir",
    "--methods-dir", "--datasets-dir",
]  # fmt: skip


@pytest.mark.parametrize("option", OF_RUN)
@pytest.mark.parametrize("value", [[""], [" "], ["\t\n"], []])
def test_an_empty_value_is_refused(option, value, capsys):
    told = answer_to(["run", option, *value], capsys)
    assert told.startswith(f"error: argument {option}: {'the value is empty' if value else 'expected '}")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["run", "--experiment="], "--experiment"),
        (["run", "--methods", "vanilla", "", "--datasets", "cmnist5k"], "--methods"),
        (["report", ""], "folder"),
        (["report", "--reference", ""], "--reference"),
        (["report", "--select", "last", ""], "--select"),
        (["status", " "], "folder"),
        (["inspect", ""], "dataset"),
        (["embed", "", "--encoder", "file:x.py"], "dataset"),
        (["embed", "cmnist5k", "--encoder", ""], "--encoder"),
        (["embed", "cmnist5k", "--encoder", "file:x.py", "--output", ""], "--output"),
        (["prepare", "cmnist", ""], "DATASET"),
        (["test", ""], "name"),
        (["archive", ""], "folder"),
        (["archive", "x", "--output", ""], "--output"),
        (["list", "--methods-dir", ""], "--methods-dir"),
        (["doctor", "--data-dir", ""], "--data-dir"),
        (["doctor", "--results-dir="], "--results-dir"),
        (["clean", ""], "folder"),
        (["clean", "--what", "reuse", ""], "--what"),
        (["clean", "--cache-dir", ""], "--cache-dir"),
    ],
)
def test_so_it_is_in_every_command(words, what, capsys):
    assert answer_to(words, capsys).startswith(f"error: argument {what}: the value is empty")


@pytest.mark.parametrize(
    "words",
    [
        [*GRID, "--methods", "pgd"],
        [*GRID, "--datasets", "cmnist5k"],
        [*GRID, "--device", "cuda"],
        [*GRID, "--seeds", "2", "--seeds", "3"],
        [*GRID, "--seeds=2", "--seeds=3"],
        [*GRID, "--seeds=2", "--seeds", "3"],
        [*GRID, "--results-dir", "a", "--results-dir", "b"],
        [*GRID, "--dry-run", "--dry-run"],
        ["run", "--experiment", "demo", "--experiment", "table1"],
        ["report", "--methods", "pgd", "--methods", "vanilla"],
        ["archive", ".", "--output", "a.zip", "--output", "b.zip"],
        ["list", "--methods-dir", ".", "--methods-dir", "."],
        ["doctor", "--json", "--json"],
        ["clean", "--yes", "--yes"],
        ["clean", "--what", "reuse", "--what", "cache"],
    ],
)
def test_an_option_given_twice_is_refused(words, capsys):
    options = [word.partition("=")[0] for word in words]
    twice = next(word for word in options if word.startswith("--") and options.count(word) > 1)
    assert answer_to(words, capsys).startswith(f"error: {twice} is given 2 times: give it once, with all of its values")


# ---- devices --------------------------------------------------------------------------------------------------------

DEVICES = [
    "mps", "xpu", "meta", "gpu", "hip", "vulkan", "xla", "hpu", "mtia", "fpga", "mps:0", "cpu:0", "CPU", "cuda:-1",
    "cuda:x", "cuda:1:2", "0", "cuda:1000", f"cuda:{LONGER}",
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_supported_is_refused(device, capsys):
    told = answer_to([*GRID[:-1], device], capsys)
    assert told.startswith("error: Unsupported device '")
    assert told.endswith("'. Allowed: auto, cpu, cuda, cuda:0, ...\n")


def test_a_gpu_that_is_not_there_is_refused(capsys):
    assert "GPUs are visible to torch here. Use --device cpu." in answer_to([*GRID[:-1], "cuda:99"], capsys)


# ---- experiment files -----------------------------------------------------------------------------------------------

LEAST = "methods = ['vanilla']\ndatasets = ['cmnist5k']\n"
FILES = [
    (b"", "lacks methods, datasets"),
    ((LEAST + "title = 'caf\xe9'").encode("latin-1"), "is not UTF-8 text (byte"),
    (LEAST.encode("utf-16"), "is not UTF-8 text (byte 0): save it as UTF-8."),
    (b"\0\0", "is not valid TOML"),
    (b"methods = [", "is not valid TOML"),
    (LEAST + "methods = []", "is not valid TOML"),
    ("methods = " + "[" * 5000 + "]" * 5000, "is not valid TOML: it is nested too deeply"),
    (LEAST + f"seeds = {LONGER}", "is not valid TOML: it has a number with thousands of digits."),
    (LEAST + f"seeds = {LONG}", "'seeds' must be a whole number or a list of them. Got 9999"),
    (LEAST + "paper = 'tabel1'", "there are no numbers of the paper called 'tabel1'. Did you mean 'table1'?"),
    (LEAST + "paper = '../table1'", "there are no numbers of the paper called '../table1'"),
    (LEAST + "paper = 1", "'paper' must be text. Got 1."),
    (LEAST + "papper = 'table1'", "unknown key 'papper'. Did you mean 'paper'?"),
    (LEAST + "title = 3", "'title' must be text"),
    (LEAST + "show = []", "'show' must be text"),
    (LEAST + "show = 'nothing'", "'show' must be one of accuracy"),
    (LEAST + "epochs = true", "'epochs' must be a whole number. Got true."),
    (LEAST + "epochs = 0", "--epochs must be at least 1. Got 0."),
    (LEAST + "seeds = 1000000000", "The number of seeds must be at most"),
    *(
        (LEAST + f"seeds = {value}", "'seeds' must be a whole number or a list of them. Got")
        for value in ("'3'", "true", "3.0", "[1, 'a']", "[1, 2.5]", "[nan]", "[[1]]", "{a = 1}", "2020-01-01")
    ),
    (LEAST + "seeds = []", "The number of seeds must be at least 1. Got 0."),
    (LEAST + "reference = 3", "'reference' must be text. Got 3."),
    (LEAST + "reference = 'pgd'", "'pgd' is not among the methods"),
    *(
        (f"methods = {value}\ndatasets = ['cmnist5k']", "'methods' must be a list of names. Got")
        for value in ("'vanilla'", "[1]", "[['vanilla']]", "{a = 1}", "3")
    ),
    ("methods = []\ndatasets = []", "Give at least one method."),
    (LEAST + "smoke = 1", "'smoke' must be a table, [smoke]. Got 1."),
    (LEAST + "[smoke]\nday = 2020-01-01", "'smoke' must be a table, [smoke]. Got"),
]
SMOKE = [
    ("[smoke]\nmethods = 'x'", "'smoke.methods' must be a list of names. Got 'x'."),
    ("[smoke]\nmethods = [3]", "'smoke.methods' must be a list of names. Got [3]."),
    ("[smoke]\nepochs = true", "'smoke.epochs' must be a whole number. Got true."),
    ("[smoke]\nseeds = ['a']", "'smoke.seeds' must be a whole number or a list of them. Got ['a']."),
    ("[smoke.instead]\ncmnist5k = 1", "'smoke.instead' must be a table of dataset = stand-in. Got"),
    ("[smoke]\ninstead = 3", "'smoke.instead' must be a table of dataset = stand-in. Got 3."),
]


@pytest.mark.parametrize(("content", "answer"), FILES)
def test_an_experiment_file_that_is_wrong_is_refused(content, answer, capsys):
    Path("mine.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert answer in answer_to(["run", "--experiment", "mine.toml", "--device", "cpu"], capsys)


@pytest.mark.parametrize(("content", "answer"), SMOKE)
def test_so_it_is_in_the_smoke_variant(content, answer, capsys):
    Path("mine.toml").write_text(LEAST + content, encoding="utf-8")
    assert answer in answer_to(["run", "--experiment", "mine.toml", "--smoke", "--device", "cpu"], capsys)


def test_lists_of_an_experiment_file_are_lists():
    Path("mine.toml").write_text(LEAST + "seeds = [4, 7]\npaper = ''", encoding="utf-8")
    asked = read_experiment("mine.toml")
    assert (asked.methods, asked.datasets, asked.seeds, asked.paper) == (["vanilla"], ["cmnist5k"], [4, 7], "")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("folder.toml", "folder.toml cannot be read: Is a directory."),
        ("none.toml", "Unknown experiment 'none.toml'."),
        ("demo.toml", "Did you mean 'demo'?"),
        ("x" * 5000 + ".toml", "(5005 characters)"),
        ("x" * 5000, "Unknown experiment 'xxx"),
        ("../demo", "Did you mean 'demo'?"),
        ("./", "Unknown experiment './'."),
    ],
)
def test_an_experiment_that_is_no_file_is_refused(name, answer, capsys):
    Path("folder.toml").mkdir()
    assert answer in answer_to(["run", "--experiment", name], capsys)


# ---- reports and other commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["empty", "none", "file", "empty.zip"])
@pytest.mark.parametrize("words", [[], ["--bibtex"], ["--reference", "pgd"]])
def test_a_report_of_nothing_is_refused(where, words, capsys):
    Path("empty").mkdir()
    Path("file").touch()
    told = answer_to(["report", where, *words], capsys)
    assert told.startswith(("error: There are no records in", "error: There is no results folder"))


@pytest.mark.parametrize(
    "words", [["--methods", "pgd"], ["--datasets", "cmnist"], ["--reference", "pgd", "--methods", "pgd", "vanilla"]]
)
def test_references_are_of_all_records(words, capsys):
    assert "leave out --methods, --datasets, --reference" in answer_to(["report", ".", "--bibtex", *words], capsys)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["test", "vanilla:x=1"], "A method is tested with its defaults: debiasbench test vanilla."),
        (["test", "pgd:norm=l1"], "A method is tested with its defaults: debiasbench test pgd."),
        (["test", "cmnist5k:rho=nan"], "and not nan"),
        (["inspect", "cmnist5k", "--results-dir", "file"], "file/inspect cannot be written"),
        (["inspect", "cmnist5k:rho=0.1|0.2"], "One dataset is needed here"),
        (["tune", *GRID[1:], "--results-dir", "file"], "The results folder file cannot be written"),
        (["tune", *GRID[1:], "--results-dir", "file/x"], "another folder with --results-dir"),
        (["tune", *GRID[1:], "--output", "file/x.toml"], "another folder with --output"),
        (["tune", *GRID[1:], "--seeds", "1000000000"], "16,000,000,000 cells"),
        (["archive", ".", "--output", "file/x.zip"], "cannot be written"),
        (["archive", ".", "--output", "x.tar"], "--output must end in .zip"),
        (["list", "--methods-dir", "file"], "is not a folder"),
        (["prepare"], "Name a dataset"),
        (["list", ""], "unrecognized arguments: an empty one"),
        (["list", "x"], "unrecognized arguments: x"),
        (["status", "--results-dir", "x"], "--results-dir (an option of run, tune,"),
        (["report", "--seeds=3"], "--seeds=3 (an option of run, tune)."),
        (["list", "--follow"], "--follow (an option of status)."),
        ([], "COMMAND"),
    ],
)
def test_the_other_commands_answer_alike(words, answer, capsys):
    Path("file").touch()
    told = answer_to(words, capsys)
    assert answer in told


# ---- where results go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["file", "file/below", "file/far/below", "with/records", "with/logs", "with/reuse", "with/tables"]
)
def test_a_results_folder_that_cannot_be_written_is_told_before_data_are_built(where, capsys):
    Path("file").touch()
    Path("with").mkdir()
    if where.startswith("with/"):
        Path(where).touch()
        where = "with"
    told = answer_to([*GRID, "--results-dir", where], capsys)
    assert told.startswith(f"error: The results folder {where} cannot be written (")
    assert "give another folder with --results-dir" in told


@pytest.mark.parametrize("where", ["with/tables", "with/figures", "with"])
def test_a_report_that_cannot_be_written_is_told_before_records_are_read(where, capsys, monkeypatch):
    """The last is beside an archive, whose report goes into a folder of its name."""
    monkeypatch.setattr("debiasbench.report.make.read_records", None)
    Path(where).parent.mkdir(exist_ok=True)
    Path(where).touch()
    Path("with.zip").touch()
    told = answer_to(["report", "with.zip" if where == "with" else "with"], capsys)
    assert told.startswith("error: The results folder with cannot be written (")


LINKED = [
    [*GRID, "--results-dir", "link"], [*GRID, "--results-dir", "link/below"], [*GRID, "--data-dir", "link"],
    grid(datasets="imagefolder:root=link,title=x"),
    grid(datasets="cmnist5k:net=resnet18,pretrained=link/w.pth"), ["run", "--experiment", "link/x.toml"],
    ["run", "--methods-dir", "link", *GRID[1:]], ["run", "--tuned", "link", *GRID[1:]], ["status", "link"],
    ["report", "link/records"], ["archive", "link"],
]  # fmt: skip


@pytest.mark.parametrize("words", LINKED, ids=" ".join)
def test_a_path_through_a_link_that_leads_nowhere_names_the_link(words, capsys):
    """As where a disk is not mounted: without, the data would only be missing, and the way there be right."""
    Path("link").symlink_to("nowhere/at/all")
    assert "link is a link to nowhere/at/all, which is not there. Repair" in answer_to(words, capsys)


@pytest.mark.parametrize("words", [GRID, ["status"], ["report"], ["inspect", "cmnist5k"]], ids=" ".join)
def test_so_may_the_folder_that_nobody_gave(words, capsys):
    Path("results").symlink_to("nowhere/at/all")
    assert "results is a link to nowhere/at/all, which is not there" in answer_to(words, capsys)


@pytest.mark.parametrize(
    ("given", "dataset", "named"),
    [
        ("", "bar", "data"),
        ("link/data", "bar", "link"),
        ("linked", "bar", "linked/BAR"),
        ("x", "bar:root=link", "link"),
    ],
)
def test_data_behind_a_link_that_leads_nowhere_are_missing_and_it_is_named(given, dataset, named, capsys, monkeypatch):
    """Of the usual folder, of that of the environment, of a dataset in it, of a root; what needs no data runs."""
    Path("linked").mkdir()
    for link in ("link", "data", "linked/BAR"):
        Path(link).symlink_to("nowhere/at/all")
    monkeypatch.setenv("DEBIASBENCH_DATA", given)
    assert cli.main(grid(datasets=dataset)) == 2
    told = f"from: {named} is a link to nowhere/at/all, which is not there. Repair the link; or the repository"
    assert capsys.readouterr().err.count(told) == 2
    rest, left_out = with_data(
        expand(["vanilla"], ["cmnist5k", dataset], seeds=1), default_data_dir(), skip_missing=True
    )
    assert [cell.dataset for cell in rest.cells] == ["cmnist5k"]
    assert f"{named} is a link to nowhere/at/all" in "".join(left_out.values())


@pytest.mark.parametrize("words", [["status"], ["report"], ["run", "--tuned"], [*GRID, "--data-dir"]], ids=" ".join)
def test_what_is_wrong_with_a_path_is_said_in_our_words(words, capsys):
    """Argparse has some of its own for whatever a type refuses."""
    assert "The path ~no-such-user/x begins with ~no-such-user, and no such home" in answer_to(
        [*words, "~no-such-user/x"], capsys
    )


def test_a_folder_below_one_that_is_read_only_is_refused(tmp_path, monkeypatch):
    def refused(**options):
        raise PermissionError(13, "Permission denied", "a temporary file")

    monkeypatch.setattr("debiasbench.files.tempfile.TemporaryFile", refused)  # the user of the tests may be root
    (tmp_path / "parent").mkdir()
    with pytest.raises(BenchmarkError, match=r"Permission denied: '.*parent'"):
        check_writable(tmp_path / "parent" / "results")
