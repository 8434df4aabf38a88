"""Names of plug-ins that are read from their files before anything is imported."""

import os
import re
import sys
import types

import pytest

from debiasbench import plugins
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.methods import registry as methods


def written(folder, **files):
    """The names in files of these texts."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return plugins._written_names(plugins._files_in([str(folder)]), "debiasbench.nothing")


@pytest.mark.parametrize("registry", [methods, datasets])
def test_the_names_in_the_shipped_files_are_those_of_the_classes(registry):
    shipped = plugins.folders(str(plugins.PACKAGE / f"{registry.kind}s.py"), "NOT_SET")
    own = {name for name, cls in registry.classes().items() if plugins.is_shipped(cls)}
    own |= {alias for alias, (name, _) in registry.aliases().items() if name in own}
    found = plugins._written_names(plugins._files_in(shipped), registry.package)
    assert found.keys() == own
    for name, module in found.items():
        assert registry.get(name)[0].__module__ == f"{registry.package}.{module}"


def test_names_and_aliases_are_found_wherever_a_class_is(tmp_path):
    found = written(
        tmp_path,
        one="class A(B):\n    name = 'a'\n    aliases = {'a-b': {'x': f(1)}, 'a-c': {}}\n",
        two="if True:\n    class A(B):\n        name: ClassVar = 'b'\n        def f(self):\n            name = g()\n",
        three="def f():\n    class A(B):\n        by = {name: 1 for name in 'xy'}\n        name = 'c'\n    return A\n",
        four="@dataclass\nclass Helper:\n    x: int = 0\n",
    )
    assert found == {"a": "one", "a-b": "one", "a-c": "one", "b": "two", "c": "three"}


@pytest.mark.parametrize(
    "text",
    [
        "class A(B):\n    name = prefix + 'a'", "class A(B):\n    name = f'a-{norm}'", "class A(B):\n    name = NAME",
        "class A(B):\n    name, version = 'a', 2", "class A(B):\n    if new:\n        name = 'a'",
        "class A(B):\n    for name in 'ab':\n        pass", "class A(B):\n    name = 3",
        "class A(B):\n    aliases = {**other}", "class A(B):\n    aliases = {key: {}}", "class A(B):\n    aliases = B",
        "@named('a')\nclass A(B):\n    pass", "class A(B, name='a'):\n    pass", "class A(B, metaclass=C):\n    pass",
        "A = type('A', (B,), {'name': 'a'})", "setattr(A, 'name', 'a')", "A.name = 'a'", "A.aliases = {'a': {}}",
        "globals()['A'] = B", "exec(text)", "A = types.new_class('A', (B,))", "A = dataclasses.make_dataclass('A', [])",
        "class A(:", "x = '\x00'",
    ],
)  # fmt: skip
def test_where_names_are_not_written_nothing_is_told(tmp_path, text):
    assert written(tmp_path, clear="class Z(B):\n    name = 'z'\n", unclear=text) is None


def test_a_name_that_two_files_give_is_told_by_their_import(tmp_path):
    assert written(tmp_path, one="class A(B):\n    name = 'a'\n", two="class C(B):\n    aliases = {'a': {}}\n") is None


def test_a_module_that_two_folders_have_is_told_by_their_import(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"class A(B):\n    name = '{folder}'\n", encoding="utf-8")
    assert plugins._written_names(plugins._files_in([tmp_path / "here", tmp_path / "there"]), "no") is None


CONTRACT = "class Dish:\n    name = ''\n"


@pytest.fixture
def dishes(tmp_path, monkeypatch):
    """Makes the registry of a package of these files."""

    def make(**files):
        package = types.ModuleType("debiasbench_dishes")
        package.__path__ = [str(tmp_path)]
        exec(CONTRACT, vars(package))
        package.Dish.__module__ = package.__name__
        monkeypatch.setitem(sys.modules, package.__name__, package)
        for name in [one for one in sys.modules if one.startswith(f"{package.__name__}.")]:  # of a test before
            monkeypatch.delitem(sys.modules, name)
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(f"from debiasbench_dishes import Dish\n{text}", encoding="utf-8")
        return plugins.Registry(package.__name__, "Dish", "NOT_SET")

    return make


SOUP = "class Soup(Dish):\n    name = 'soup'\n    aliases = {'broth': {'thick': False}}\n"


def imported():
    return {name.partition(".")[2] for name in sys.modules if name.startswith("debiasbench_dishes.")}


@pytest.mark.parametrize("name", ["soup", "broth"])
def test_of_a_name_its_own_module_is_imported_and_no_other(dishes, name):
    registry = dishes(soup=SOUP, cake="class Cake(Dish):\n    name = 'cake'\n", broken="1 / 0\n")
    cls, values = registry.get(name)
    assert (cls.__name__, values) == ("Soup", {"thick": False} if name == "broth" else {})
    assert imported() == {"soup"}
    assert registry.classes().keys() == {"soup", "cake"}
    assert registry.get(name)[0] is cls
    assert registry.broken.keys() == {"broken"}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"soup": SOUP, "rest": "class Rest(Dish):\n    name = 'so' + 'up'\n"}, "'soup' is used twice"),
        ({"soup": SOUP, "rest": "class Rest(Dish):\n    name = 'soup'\n"}, "'soup' is used twice"),
        ({"soup": SOUP + SOUP.replace("Soup", "Again")}, "'soup' is used twice"),
        ({"soup": SOUP + "1 / 0\n"}, "The file of dish 'soup' could not be imported: ZeroDivisionError"),
        (
            {"stew": SOUP + "1 / 0\n"},
            "Unknown dish 'soup'. Known: none. It may be in a file that could not be imported",
        ),
        ({"stew": "class Soup:\n    name = 'soup'\n"}, "Unknown dish 'soup'"),
        ({"rest": "class Rest(Dish):\n    name = 'rest'\n"}, "Unknown dish 'soup'"),
    ],
)
def test_a_name_that_its_module_does_not_bring_is_told_as_after_the_import_of_all(dishes, files, says):
    registry = dishes(**files)
    for _ in range(2):  # as in a notebook
        with pytest.raises(BenchmarkError, match=re.escape(says)):
            registry.get("soup")


def in_another_folder(registry, folder, **files):
    """Gives a registry a further folder of these files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(f"from debiasbench_dishes import Dish\n{text}", encoding="utf-8")
    sys.modules[registry.package].__path__.append(str(folder))


@pytest.mark.parametrize("all_at_first", [True, False])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pot": SOUP}, "'soup' is used twice"),
        ({"pot": "class Pot(Dish):\n    name = 'broth'\n"}, "'broth' is used twice"),
        ({"pot": "class Pot(Dish):\n    name = 'so' + 'up'\n"}, "'soup' is used twice"),
        ({"soup": "class Pot(Dish):\n    name = 'pot'\n"}, "Two files define the dish module 'soup'"),
    ],
)
def test_a_folder_that_is_added_later_is_checked_against_the_first(dishes, tmp_path, files, says, all_at_first):
    registry = dishes(soup=SOUP)
    assert registry.get("soup")[0].__name__ == "Soup"
    if all_at_first:
        registry.classes()
    in_another_folder(registry, tmp_path / "more", **files)
    for _ in range(2):
        for name in ("soup", "broth"):
            with pytest.raises(BenchmarkError, match=says):
                registry.get(name)


def test_files_are_read_again_when_they_were_changed(dishes, tmp_path):
    registry = dishes(soup=SOUP)
    registry.get("soup")
    assert written(tmp_path, cake="class Cake(Dish):\n    name = 'cake'\n").keys() == {"soup", "broth", "cake"}
    (tmp_path / "cake.py").write_text("class Cake(Dish):\n    name = 'tart'\n", encoding="utf-8")
    os.utime(tmp_path / "cake.py", ns=(0, 0))
    assert written(tmp_path).keys() == {"soup", "broth", "tart"}
    (tmp_path / "cake.py").unlink()
    assert written(tmp_path).keys() == {"soup", "broth"}


def test_plugins_of_installed_packages_are_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [group])
    assert written(tmp_path, clear="class Z(B):\n    name = 'z'\n") is None


def test_unknown_names_are_refused_together_and_files_are_left_to_their_import(monkeypatch, tmp_path):
    written(tmp_path, mine="class Z(B):\n    name = 'zed'\n", nameless="class Y(B):\n    pass\n")
    monkeypatch.setenv("DEBIASBENCH_METHODS_PATH", str(tmp_path))
    monkeypatch.delitem(plugins.sys.modules, "debiasbench.methods")
    plugins.check_names("method", ["zed", "vanilla", "lff-grad", "nameless"])
    with pytest.raises(BenchmarkError) as refused:
        plugins.check_names("method", ["zet", "vanilla", "lfff", "zet"])
    first, second = str(refused.value).splitlines()
    assert first.startswith("Unknown method 'zet'. Did you mean 'zed'? Known: afr, bam, bpa, ")
    assert second.startswith("Unknown method 'lfff'. Did you mean 'lff'?")


def test_a_folder_that_the_environment_names_may_be_given_as_well(tmp_path, monkeypatch):
    """Before the package is imported, and after."""
    monkeypatch.setenv("DEBIASBENCH_METHODS_PATH", str(tmp_path))
    for is_imported in (False, True):
        with monkeypatch.context() as patched:
            if not is_imported:
                patched.delitem(sys.modules, "debiasbench.methods")
            else:
                package = sys.modules["debiasbench.methods"]
                patched.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
            plugins.add_folder("method", tmp_path)
            plugins.add_folder("method", f"{tmp_path}{os.sep}.")
            assert os.environ["DEBIASBENCH_METHODS_PATH"] == str(tmp_path)


# ---- what papers call them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "display"),
    [
        ("pgd", "PGD"), ("pgd:norm=l1", "PGD, norm=l1"), ("dpr", "DPR"), ("dpr:tau=2", "DPR, tau=2"),
        ("pgd-loss", "PGD, score=loss"), ("suby", "SUBY"), ("subg", "SUBG"), ("lff-be", "LfF + BiasEnsemble"),
        ("pgd:preset=official,learning_rate=0.1", "PGD, preset=official, learning_rate=0.1"), ("george", "GEORGE"),
    ],
)  # fmt: skip
def test_what_papers_call_a_method(spec, display):
    cls, _ = methods.get(spec.partition(":")[0])
    if cls.name == "george":  # of an extra
        assert plugins.display_of(cls, "george") == display
        return
    (cell,) = expand([spec], ["cmnist5k"], seeds=1).cells
    assert plugins.display_of(cls, cell.method_title) == display


@pytest.mark.parametrize(
    ("spec", "display"),
    [
        ("cmnist", "Colored MNIST, 0.5 %"), ("cmnist:rho=0.07", "Colored MNIST, 7 %"),
        ("cmnist5k:rho=0,epochs=3", "Colored MNIST (5,000), 0 %, epochs=3"), ("mbmnist", "Multi-bias MNIST, 10 %"),
        ("ccifar:level=4,rho=0.01", "Corrupted CIFAR-10, 1 %, level=4"), ("bffhq:part=2pct", "BFFHQ, 2 %"),
        ("celeba:target=Smiling", "CelebA, target=Smiling"), ("waterbirds", "Waterbirds"),
        ('imagefolder:root=x,title="great, tits",rho=0.1', "great, tits, 10 %"), ("imagefolder", "imagefolder"),
        ("features:root=x,title=birds by DINO,rho=0.05", "birds by DINO, 5 %"), ("features", "features"),
    ],
)  # fmt: skip
def test_what_papers_call_a_dataset(spec, display):
    (cell,) = expand(["vanilla"], [spec], seeds=1, data_seeds=1).cells
    assert plugins.display_of(cell.build_dataset(), cell.data_title) == display


@pytest.mark.parametrize("registry", [methods, datasets])
def test_everything_that_is_shipped_has_a_display_title_of_its_own(registry):
    shipped = [cls for name, cls in registry.classes().items() if plugins.is_shipped(cls)]
    shipped = [cls for cls in shipped if cls.name not in ("imagefolder", "features")]  # called what their title says
    displays = [cls.display for cls in shipped] + [one for cls in shipped for one in cls.alias_display.values()]
    assert all("display" in vars(cls) and cls.display for cls in shipped)
    assert len(set(displays)) == len(displays)


def test_a_plugin_without_a_display_title_is_called_by_its_name():
    """Also one whose parent has one: it is another method."""
    pgd, _ = methods.get("pgd")
    for space in ({}, {"display": ""}):
        mine = type("Mine", (pgd,), {"name": "mine", "__module__": __name__, **space})
        assert plugins.display_of(mine, "mine:score=disagreement") == "mine, score=disagreement"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("display = 3", "has 3"), ("display = 'A\\nB'", "on one line"), ("display = ' A'", "has ' A'"),
        ("alias_display = {'aa': 'AA'}", "(none)"), ("alias_display = 'AA'", "Got 'AA'"),
        ("aliases = {'aa': {}}\n    alias_display = {'aa': None}", "has None"),
        ("alias_citation = {'aa': '@book{}'}", "(none)"), ("alias_citation = '@book{}'", "Got '@book{}'"),
        ("aliases = {'aa': {}}\n    alias_citation = {'aa': None}", "the BibTeX of its aliases (aa)"),
    ],
)  # fmt: skip
def test_a_display_title_that_cannot_be_shown_is_told(tmp_path, line, told):
    text = f"from debiasbench.methods import Method\n\nclass A(Method):\n    name = 'a-own'\n    {line}\n"
    (tmp_path / "own_display.py").write_text(f"{text}    def fit(self, task): ...\n", encoding="utf-8")
    package = sys.modules["debiasbench.methods"]
    before = list(package.__path__)
    package.__path__.append(str(tmp_path))
    try:
        with pytest.raises(BenchmarkError, match="'a-own' cannot be used") as refused:
            methods.get("a-own")
        assert told in str(refused.value)
    finally:
        package.__path__[:] = before
        sys.modules.pop("debiasbench.methods.own_display", None)


@pytest.mark.parametrize("target", ["gone.py", "/no/such/folder/mine.py", "mine.py"])
def test_a_file_that_is_a_link_that_leads_nowhere_names_itself(tmp_path, target):
    """The last leads to itself."""
    (tmp_path / "mine.py").symlink_to(target)
    registry = plugins.Registry("debiasbench.methods", "Method", "SOME_PATH")
    package = type("Package", (), {"__path__": [str(tmp_path)], "Method": methods.get("vanilla")[0].__mro__[1]})
    registry._scan(package)
    assert registry.broken == {"mine": f"{tmp_path / 'mine.py'} is a link to {target}, which is not there."}
