"""The arrangement of folders: one-file packages, no clash with Hugging Face's datasets, wheels, worker processes."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code, *, cwd, path="", **variables):
    """Run code in a fresh interpreter and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DEBIASBENCH"))}
    environment |= {"PYTHONPATH": str(path), **variables}
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", ["methods", "datasets"])
def test_plugin_folders_have_no_init(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_our_folder_does_not_pass_for_hugging_face_datasets():
    code = """
        import debiasbench, importlib.util
        try:
            found = importlib.util.find_spec("datasets")
        except ValueError:
            found = None
        print(None if found is None else found.origin)
        try:
            import datasets
        except ModuleNotFoundError as error:
            print("absent")
    """
    if python("import importlib.util as u; print(u.find_spec('datasets'))", cwd="/") != "None":
        pytest.skip("Hugging Face datasets is installed: the present case is tested below")
    assert python(code, cwd=ROOT, path=ROOT) == "None\nabsent"


def test_hugging_face_datasets_wins_where_it_is_installed(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("real = True", encoding="utf-8")
    code = "import debiasbench, datasets; print(datasets.real)"
    assert python(code, cwd=ROOT, path=f"{ROOT}{os.pathsep}{tmp_path}") == "True"


def test_plugin_objects_travel_to_spawned_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing
        from debiasbench.datasets import registry as datasets
        from debiasbench.methods import registry as methods

        def names(plugins):
            return [type(plugin).__module__ for plugin in plugins]

        if __name__ == "__main__":
            plugins = [methods.get("pgd")[0](alpha=0.3), datasets.get("cmnist")[0](rho=0.1)]
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(names, [plugins]))
        """),
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "['debiasbench.methods.pgd', 'debiasbench.datasets.cmnist']", done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Where a folder and an installed package bring methods along: name -> module, and the files that are broken."""
    example = (ROOT / "examples" / "methods" / "focal.py").read_text(encoding="utf-8")
    folder, site = tmp_path_factory.mktemp("methods"), tmp_path_factory.mktemp("site")
    (folder / "mine.py").write_text(example.replace('"focal"', '"mine"'), encoding="utf-8")
    (folder / "broken.py").write_text("import nothing_like_it", encoding="utf-8")
    info = site / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[debiasbench.methods]\nfocal = mypackage:Focal\n", encoding="utf-8")
    (site / "mypackage.py").write_text(example, encoding="utf-8")
    code = """
        import json
        from debiasbench.methods import registry
        modules = {name: cls.__module__ for name, cls in registry.classes().items()}
        print(json.dumps([modules, list(registry.broken)]))
    """
    path = f"{ROOT}{os.pathsep}{site}"
    return json.loads(python(code, cwd=site, path=path, DEBIASBENCH_METHODS_PATH=str(folder)))


def test_a_new_file_in_a_folder_is_a_method(found):
    modules, broken = found
    assert modules["mine"] == "debiasbench.methods.mine"
    assert "pgd" in modules
    assert broken == ["broken"]


def test_an_entry_point_is_a_method(found):
    modules, _ = found
    assert modules["focal"] == "mypackage"


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "pgd.py").write_text("", encoding="utf-8")
    code = """
        from debiasbench.methods import registry
        try:
            registry.classes()
        except ValueError as error:
            print(error)
    """
    answer = python(code, cwd=tmp_path, path=ROOT, DEBIASBENCH_METHODS_PATH=str(tmp_path))
    assert "Two files define the method module 'pgd'" in answer


@pytest.mark.slow
def test_a_wheel_runs_from_another_directory(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "debiasbench",
        "methods",
        "datasets",
        "experiments",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        (source / name).symlink_to(ROOT / name)
    tools = [sys.executable, "-c", "import setuptools, setuptools_scm"]
    if subprocess.run(tools, capture_output=True, check=False).returncode:
        build.remove("--no-build-isolation")
    environment = os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_DEBIASBENCH": "9.8.7"}
    words = [*build, "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(words, check=True, capture_output=True, timeout=300, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    assert not (site / "datasets").exists()  # it would mix with Hugging Face's
    assert not (site / "methods").exists()
    code = """
        from pathlib import Path
        import debiasbench
        from debiasbench.methods import registry
        from debiasbench.cli import main
        from debiasbench.experiments import read_experiment
        from debiasbench.report.published import numbers
        from debiasbench.records import read_records
        assert str(debiasbench.__file__).startswith({site!r}), debiasbench.__file__
        assert {{"pgd", "vanilla"}} <= set(registry.classes()), registry.broken
        assert read_experiment("demo").datasets == ["cmnist5k"]
        assert len(numbers("table1"))
        code = main(["run", "--methods", "vanilla", "--datasets", "cmnist5k:eval_every=1", "--seeds", "1", "--epochs",
                     "1", "--results-dir", "results", "--device", "cpu", "--workers", "1"])
        assert "Comparison" in debiasbench.load_results("results")._repr_html_()
        (record,), _ = read_records(Path("results"))
        print("exit", code, "version", debiasbench.__version__, record.provenance.versions["debiasbench"])
    """
    assert python(code.format(site=str(site)), cwd=tmp_path, path=site).endswith("exit 0 version 9.8.7 9.8.7")


def test_without_the_results_folder_nothing_of_the_suite_is_gone(tmp_path):
    """People clear it to start anew: the paper's numbers are still read, and its folder is made again."""
    for name in ("debiasbench", "methods", "datasets", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = """
        from debiasbench.experiments import names, read_experiment
        from debiasbench.report.published import numbers
        asked = [read_experiment(name) for name in names()]
        print(sum(len(numbers(one.paper)) > 0 for one in asked if one.paper))
    """
    assert python(code, cwd=tmp_path, path=tmp_path) == "14"
    kept = subprocess.run(
        ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    ).stdout
    assert set(kept.split()) <= {"results/README.md"}


def test_no_engine_file_names_a_method():
    """Methods are found, never named: `debiasbench/` must not know them."""
    names = {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert "pgd" in names
    for path in (ROOT / "debiasbench").rglob("*.py"):
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
        assert not names & strings, f"{path.name} names {names & strings}"
