"""From what was asked to cells: precedence, identity, labels, what is declined, and all mistakes at once."""

import json
import re
import sys

import pytest

import debiasbench.methods
from debiasbench.cell import Cell
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import dataset_from_spec, expand
from debiasbench.recipe import Recipe
from debiasbench.schedule import learning_rate_at

TOY = '''
from debiasbench.methods import Method, above, between


class Toy(Method):
    """Its four numbers come from four places."""

    name = "toy"
    aliases = {"toy-nine": {"d": 9}}
    by_dataset = {"cmnist5k": {"b": 2, "c": 2, "d": 2}}
    presets = {
        "bold": {"c": 3, "d": 3, "recipes": {"cmnist5k": {"batch_size": 64}}},
        "plain": {"c": 3},
    }
    recipes = {"cmnist5k": {"batch_size": 32, "learning_rate": 0.5, "epochs": 50, "steps": 700}}

    a: int = 1
    b: int = 1
    c: int = 1
    d: int = 1
    factors: tuple[float, ...] = (1.0, 2.0)
    aux_loss: str | None = None

    def fit(self, task):
        raise NotImplementedError
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The plug-in above, in a folder of its own, for one test."""
    (tmp_path / "toy_of_test_grid.py").write_text(TOY, encoding="utf-8")
    package = debiasbench.methods
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield package.registry.get("toy")[0]
    sys.modules.pop("debiasbench.methods.toy_of_test_grid")
    monkeypatch.undo()
    assert "toy" not in package.registry.classes()


def one_cell(method, dataset="cmnist5k", *, seed=0, **options):
    """The only cell of a grid with one seed."""
    cells = expand([method], [dataset], seeds=[seed], **options).cells
    assert len(cells) == 1
    return cells[0]


def problems_of(methods, datasets, **options):
    """The lines of the message that a grid is refused with."""
    with pytest.raises(BenchmarkError) as error:
        expand(methods, datasets, **{"seeds": [0], **options})
    return str(error.value).splitlines()


# --- identity


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pgd-loss", "pgd:score=loss"),
        ("pgd:alpha=0.9,norm=l1", "pgd:norm=l1,alpha=0.90"),
        ("pgd", "pgd:alpha=0.7"),
        (
            "pgd:preset=official",
            "pgd:gce_form=official,norm=lp,order=0.7,score_bias=false,score_augment=true",
        ),
        ("jtt:T=5", "jtt"),
        ("disen:bias_factor=10", "disen"),
    ],
)
def test_cells_with_equal_values_are_one_however_they_are_written(one, other):
    grid = expand([one, other], ["cmnist5k"], seeds=[0])
    assert len(grid.cells) == 1
    assert one_cell(one).hash == one_cell(other).hash == grid.cells[0].hash
    assert one_cell(one).method_title == one_cell(other).method_title
    assert len(grid.notices) == 1
    assert grid.notices[0].startswith(grid.cells[0].title)
    assert "run once" in grid.notices[0]


def test_a_preset_with_another_recipe_is_another_cell_than_its_parameters_written_out():
    # disen's preset has the default parameters and its own recipe
    assert one_cell("disen:preset=official").hash != one_cell("disen").hash
    assert one_cell("disen:preset=official").method_title != one_cell("disen").method_title


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("pgd", "cmnist5k"), ("pgd:alpha=0.8", "cmnist5k")),
        (("pgd", "cmnist5k"), ("vanilla", "cmnist5k")),
        (("pgd", "cmnist5k"), ("pgd", "cmnist5k:rho=0.05")),
        (("pgd", "cmnist5k"), ("pgd", "cmnist5k:data_seed=1")),
        (("pgd", "cmnist5k"), ("pgd", "cmnist5k:epochs=3")),
        (("pgd", "cmnist"), ("pgd", "cmnist:preset=lff")),
        (("vanilla", "cmnist:preset=lff"), ("vanilla", "cmnist:preset=lff,net=simconv1")),
        (("disen", "cmnist5k"), ("disen", "cmnist5k:optimizer=sgd")),
    ],
)
def test_cells_with_other_values_have_another_hash_and_another_label(one, other):
    first, second = one_cell(*one), one_cell(*other)
    assert first.hash != second.hash
    assert (first.method_title, first.dataset_title) != (second.method_title, second.dataset_title)


def test_the_hash_covers_the_values_and_versions_and_nothing_else():
    cell = one_cell("pgd", "cmnist5k:root=/some/where", seed=4)
    assert set(cell.identity()) == {
        "protocol", "method", "method_version", "method_parameters", "dataset", "dataset_version",
        "dataset_parameters", "recipe", "seed",
    }  # fmt: skip
    text = json.dumps(cell.identity())
    for word in ("/some/where", "root", "device", "workers", "title"):
        assert word not in text
    assert cell.hash == one_cell("pgd", "cmnist5k", seed=4).hash
    assert len({one_cell("pgd", seed=seed).hash for seed in range(5)}) == 5


def test_a_new_version_of_a_method_or_dataset_is_another_cell(monkeypatch):
    before = one_cell("vanilla").hash
    method, dataset = (
        registry.get(name)[0] for registry, name in ((debiasbench.methods.registry, "vanilla"), (datasets, "cmnist5k"))
    )
    hashes = {before}
    for cls in (method, dataset):
        with monkeypatch.context() as patch:
            patch.setattr(cls, "version", cls.version + 1)
            hashes.add(one_cell("vanilla").hash)
    assert len(hashes) == 3
    assert one_cell("vanilla").hash == before


def test_the_place_of_the_files_reaches_the_dataset():
    cell = one_cell("vanilla", "cmnist:root=some/where")
    assert cell.build_dataset().root == "some/where"
    assert cell.dataset_title == "cmnist"


@pytest.mark.parametrize(
    ("method", "dataset"),
    [
        ("pgd:preset=official", "cmnist5k"),
        ("disen", "cmnist:preset=lff,milestones=0.3/0.6"),
        ("jtt", "cmnist:root=x"),
    ],
)
def test_a_cell_survives_json(method, dataset):
    cell = one_cell(method, dataset, seed=3, epochs=7)
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again == cell
    assert again.to_json() == cell.to_json()
    assert (again.hash, again.title, again.root) == (cell.hash, cell.title, cell.root)
    assert again.build_method() == cell.build_method()
    assert again.build_dataset() == cell.build_dataset()
    assert again.build_recipe() == cell.build_recipe()


def test_a_cell_of_a_method_with_a_list_parameter_survives_json(toy):
    cell = one_cell("toy:factors=3/4")
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again.hash == cell.hash
    assert again == cell
    assert again.build_method() == cell.build_method() == toy(b=2, c=2, d=2, factors=(3.0, 4.0))


# --- precedence


@pytest.mark.parametrize(
    ("spec", "dataset", "expected"),
    [
        ("toy", "cmnist", (1, 1, 1, 1)),
        ("toy", "cmnist5k", (1, 2, 2, 2)),
        ("toy:preset=plain", "cmnist", (1, 1, 3, 1)),
        ("toy:preset=bold", "cmnist5k", (1, 2, 3, 3)),
        ("toy:preset=bold,d=4", "cmnist5k", (1, 2, 3, 4)),
        ("toy:d=4,preset=bold", "cmnist5k", (1, 2, 3, 4)),
        ("toy:b=1", "cmnist5k", (1, 1, 2, 2)),  # inline, even where it is the class default
        ("toy-nine", "cmnist5k", (1, 2, 2, 9)),
        ("toy-nine:preset=bold", "cmnist5k", (1, 2, 3, 9)),
        ("toy-nine:d=4", "cmnist5k", (1, 2, 2, 4)),
    ],
)
def test_a_parameter_comes_from_class_then_dataset_then_preset_then_inline(toy, spec, dataset, expected):
    cell = one_cell(spec, dataset)
    assert tuple(cell.method_parameters[key] for key in "abcd") == expected
    assert one_cell(cell.method_title, dataset).method_parameters == cell.method_parameters


@pytest.mark.parametrize(
    ("spec", "dataset", "options", "expected"),
    [
        ("vanilla", "cmnist5k", {}, (128, 0.02, 20, None)),
        ("toy", "cmnist", {}, (128, 0.02, 100, None)),
        ("toy", "cmnist5k", {}, (32, 0.5, 50, 700)),
        ("toy:preset=bold", "cmnist5k", {}, (64, 0.5, 50, 700)),
        ("toy:preset=bold", "cmnist5k:batch_size=16", {}, (16, 0.5, 50, 700)),
        ("toy:preset=bold", "cmnist5k:batch_size=128", {}, (128, 0.5, 50, 700)),
        ("toy", "cmnist5k:steps=none,epochs=2", {}, (32, 0.5, 2, None)),
        ("toy", "cmnist5k:epochs=2", {"epochs": 7}, (32, 0.5, 7, None)),
        ("toy", "cmnist5k", {"shared_recipes": True}, (128, 0.02, 20, None)),
        ("toy:preset=bold", "cmnist5k:learning_rate=0.1", {"shared_recipes": True}, (128, 0.1, 20, None)),
        ("vanilla", "cmnist:preset=lff", {}, (256, 0.001, 100, None)),
        ("vanilla", "cmnist:preset=lff,batch_size=128", {}, (128, 0.001, 100, None)),
    ],
)
def test_a_recipe_field_comes_from_dataset_then_its_preset_then_method_then_inline_then_epochs(
    toy, spec, dataset, options, expected
):
    recipe = one_cell(spec, dataset, **options).build_recipe()
    assert (recipe.batch_size, recipe.learning_rate, recipe.epochs, recipe.steps) == expected


def test_the_rest_of_the_recipe_is_the_datasets():
    dataset = datasets.get("cmnist5k")[0]()
    assert one_cell("vanilla").build_recipe() == dataset.recipe
    changed = {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.0}
    assert one_cell("disen").build_recipe() == dataset.recipe.replace(**changed)


def test_epochs_scale_the_schedule_and_replace_the_steps():
    long, short = (one_cell("vanilla", "cmnist", epochs=epochs).build_recipe() for epochs in (100, 10))
    assert short == long.replace(epochs=10)
    rates = {r.epochs: [learning_rate_at(r, epoch / r.epochs) for epoch in range(r.epochs)] for r in (long, short)}
    assert rates[10] == rates[100][::10]
    assert rates[10] == pytest.approx([0.02] * 4 + [0.002] * 4 + [0.0002] * 2)
    official = one_cell("disen:preset=official").build_recipe()
    assert (official.epochs, official.steps) == (20, 50_000)
    scaled = one_cell("disen:preset=official", epochs=3).build_recipe()
    assert scaled == official.replace(epochs=3, steps=None)


def test_a_methods_own_lengths_do_not_follow_epochs():
    assert one_cell("jtt:T=4", epochs=2).method_parameters["T"] == 4


def test_epochs_in_place_of_steps_are_another_cell_with_another_label():
    # 20 is the dataset's own number of epochs, and the preset counts steps
    steps, epochs = one_cell("disen:preset=official"), one_cell("disen:preset=official", epochs=20)
    assert steps.hash != epochs.hash
    assert (steps.method_title, steps.dataset_title) != (epochs.method_title, epochs.dataset_title)


# --- what is recorded


def test_the_fields_that_a_method_trains_with_instead_of_the_datasets_are_recorded():
    assert one_cell("vanilla").recipe_changes == {}
    assert one_cell("disen").recipe_changes == {
        "optimizer": "adam",
        "learning_rate": 0.01,
        "weight_decay": 0.0,
    }
    assert one_cell("disen", "bffhq").recipe_changes == {}
    # "schedule" is "step" in both
    assert one_cell("disen:preset=official").recipe_changes == {
        "optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.0, "batch_size": 256, "steps": 50_000,
        "drop_last": True, "milestones": [0.4, 0.6, 0.8], "gamma": 0.5, "net": "mlp16", "augment": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "dataset", "options"),
    [
        ("disen", "cmnist5k:optimizer=sgd", {}),
        ("disen", "cmnist5k:learning_rate=0.5,weight_decay=0", {}),
        ("disen:preset=official", "cmnist5k", {"epochs": 3}),
        ("disen:preset=official", "cmnist5k:batch_size=64", {"epochs": 20}),
        ("lff", "cmnist:preset=lff", {}),
        ("disen", "cmnist5k", {"shared_recipes": True}),
    ],
)
def test_recorded_changes_are_values_that_the_cell_does_train_with(spec, dataset, options):
    cell, plain = one_cell(spec, dataset, **options), one_cell("vanilla", dataset, **options)
    differing = {key: value for key, value in cell.recipe.items() if plain.recipe[key] != value}
    assert cell.recipe_changes == differing


def test_shared_recipes_leave_the_method_alone():
    own, shared = one_cell("disen"), one_cell("disen", shared_recipes=True)
    assert shared.recipe == one_cell("vanilla").recipe
    assert shared.recipe_changes == {}
    assert shared.method_parameters == own.method_parameters
    assert shared.hash != own.hash


# --- the grid


def test_cells_are_every_combination_ordered_by_dataset_then_seed_then_method():
    grid = expand(["vanilla", "pgd:alpha=0.1|0.2"], ["cmnist5k", "cmnist:rho=0.01|0.05"], seeds=[4, 7])
    assert [(cell.dataset_title, cell.seed, cell.method_title) for cell in grid.cells] == [
        (dataset, seed, method)
        for dataset in ("cmnist5k", "cmnist:rho=0.01", "cmnist:rho=0.05")
        for seed in (4, 7)
        for method in ("vanilla", "pgd:alpha=0.1", "pgd:alpha=0.2")
    ]
    assert len({cell.hash for cell in grid.cells}) == 18
    assert (grid.skips, grid.notices) == ([], [])
    assert set(grid.relative_costs) == {cell.hash for cell in grid.cells}


def test_two_sweeps_expand_to_their_product():
    grid = expand(["pgd:alpha=0.1|0.2|0.3,norm=l1|l2"], ["cmnist5k"], seeds=[0])
    assert [(c.method_parameters["alpha"], c.method_parameters["norm"]) for c in grid.cells] == [
        (alpha, norm) for alpha in (0.1, 0.2, 0.3) for norm in ("l1", "l2")
    ]


def test_presets_can_be_swept():
    labels = [cell.method_title for cell in expand(["pgd:preset=official|official-l2"], ["cmnist5k"], seeds=[0]).cells]
    assert labels == ["pgd:preset=official", "pgd:preset=official-l2"]


def test_data_seeds_draw_the_data_anew():
    cells = expand(["vanilla"], ["cmnist5k:rho=0.05"], seeds=[0, 1], data_seeds=3).cells
    assert [(c.dataset_parameters["data_seed"], c.seed) for c in cells] == [
        (data_seed, seed) for data_seed in range(3) for seed in (0, 1)
    ]
    assert len({cell.hash for cell in cells}) == 6
    assert cells[0].hash == one_cell("vanilla", "cmnist5k:rho=0.05").hash
    assert problems_of(["vanilla"], ["cmnist5k:data_seed=1"], data_seeds=2) == [
        "Give either --data-seeds or data_seed= of cmnist5k, not both."
    ]


def test_costs_are_in_units_of_a_vanilla_run_of_the_dataset():
    grid = expand(["vanilla", "pgd"], ["cmnist5k"], seeds=[0])
    assert [grid.relative_costs[cell.hash] for cell in grid.cells] == [1.0, 2.0]
    half = expand(["vanilla", "pgd"], ["cmnist5k"], seeds=[0], epochs=10)
    assert [half.relative_costs[cell.hash] for cell in half.cells] == [0.5, 1.0]


def test_a_method_that_declines_a_dataset_is_left_out_with_its_reason():
    grid = expand(["vanilla", "jtt"], ["cmnist5k:rho=0"], seeds=[0, 1, 2])
    assert [cell.method for cell in grid.cells] == ["vanilla"] * 3
    assert len(grid.skips) == 1
    skip = grid.skips[0]
    assert (skip.method_title, skip.dataset_title) == ("jtt", "cmnist5k:rho=0")
    assert "jtt:lambda_up=" in skip.reason
    accepted = expand(["jtt:lambda_up=50"], ["cmnist5k:rho=0"], seeds=[0])
    assert [cell.method_parameters["lambda_up"] for cell in accepted.cells] == [50.0]
    assert accepted.skips == []


@pytest.mark.parametrize(
    ("method", "recipe", "words"),
    [
        ("cnc", "accumulate=2", "accumulate=2 would take its sets of samples apart"),
        ("randaugment", "augment=false", "the recipe has augment=false"),
        ("jtt:first_batch_size=2", "accumulate=8", "of its first training: .* at most 1 with batch_size=2. Got 8"),
        ("pgd:restart_lr=false", "schedule=linear", "restart_lr=false has nothing to go on with"),
        ("self", "epochs=1", "of 1 epochs 1 would be early"),
        ("self:early=0.9", "epochs=4", "of 4 epochs 4 would be early"),
    ],
)
def test_a_method_that_declines_a_recipe_is_left_out_with_its_reason(method, recipe, words):
    key = recipe.partition("=")[0]
    grid = expand(["vanilla", method], [f"cmnist5k:{recipe}"], seeds=[0, 1])
    assert [cell.method for cell in grid.cells] == ["vanilla"] * 2
    assert re.search(words, grid.skips[0].reason)
    plain = expand([method], ["cmnist5k"], seeds=[0])
    assert plain.skips == []
    assert plain.cells[0].recipe[key] != grid.cells[0].recipe[key]


def test_a_recipe_that_epochs_shorten_is_declined_as_one_that_was_given():
    assert "of 1 epochs" in expand(["self", "vanilla"], ["cmnist5k"], seeds=1, epochs=1).skips[0].reason


def test_one_dataset_can_be_asked_for_alone():
    dataset, label = dataset_from_spec("cmnist:preset=lff,rho=0.05,root=x")
    assert dataset == datasets.get("cmnist")[0](generator="lff", rho=0.05, root="x")
    assert label == "cmnist:preset=lff,rho=0.05"
    with pytest.raises(BenchmarkError, match="gives 2"):
        dataset_from_spec("cmnist5k:rho=0.1|0.2")


# --- mistakes


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([], "The number of seeds must be at least 1. Got 0."),
        ([0, -1], "Seeds must be different whole numbers of at least 0. Got [0, -1]."),
        ([3, 3], "Seeds must be different whole numbers of at least 0. Got [3, 3]."),
    ],
)
def test_no_seeds_negative_seeds_and_equal_seeds_are_refused(seeds, words):
    assert problems_of(["vanilla"], ["cmnist5k"], seeds=seeds) == [words]


def test_nothing_to_run_is_refused():
    assert problems_of([], []) == ["Give at least one method.", "Give at least one dataset."]


def test_lengths_below_one_are_refused():
    assert problems_of(["vanilla"], ["cmnist5k"], epochs=0, data_seeds=0) == [
        "--epochs must be at least 1. Got 0.",
        "--data-seeds must be at least 1. Got 0.",
    ]


def test_all_mistakes_are_in_one_message_each_once():
    lines = problems_of(
        ["vanila", "pgd:alpha=7", "pgd:preset=offical", "jtt:lambda=3,T=x", "vanilla"],
        ["cmnist5", "cmnist5k", "cmnist:rho=2", "cmnist5k:epochs=0"],
        seeds=[1, 1],
    )
    for start in (
        "Seeds must be different",
        "Unknown method 'vanila'. Did you mean 'vanilla'?",
        "Unknown preset 'offical' of pgd. Did you mean 'official'? Known: official, official-l2.",
        "Unknown parameter 'lambda' of jtt. Did you mean 'lambda_up'?",
        "The 'T' parameter of jtt must be a whole number. Got 'x'.",
        "Unknown dataset 'cmnist5'. Did you mean 'cmnist5k'?",
        "The 'rho' parameter of cmnist must be a number in [0, 1]. Got 2.0.",
        "The 'alpha' parameter of pgd must be a number in [0, 1]. Got 7.0.",
        "The 'epochs' parameter of recipe must be a number of at least 1. Got 0.",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 9


def test_a_method_is_checked_also_where_no_dataset_can_be_used():
    lines = problems_of(["pgd:alpha=7"], ["cmnist5"])
    assert {line.split(".")[0] for line in lines} == {
        "The 'alpha' parameter of pgd must be a number in [0, 1]",
        "Unknown dataset 'cmnist5'",
    }


def test_a_dataset_is_checked_also_where_no_method_can_be_used():
    lines = problems_of(["pdg"], ["cmnist5k:epochs=0"])
    assert any(line.startswith("Unknown method 'pdg'") for line in lines)
    assert any("'epochs'" in line for line in lines)


def test_methods_know_no_recipe_fields():
    (line,) = problems_of(["vanilla:epochs=3"], ["cmnist5k"])
    assert line.startswith("Unknown parameter 'epochs' of vanilla.")


def test_every_field_of_a_stored_recipe_is_a_field_of_the_class():
    assert list(one_cell("vanilla").recipe) == list(Recipe().values())


def test_a_preset_is_refused_where_it_has_no_settings(toy):
    with pytest.raises(BenchmarkError, match="'bold' of toy has no settings for cmnist, only for cmnist5k"):
        one_cell("toy:preset=bold", "cmnist")


def test_shared_recipes_show_in_the_label_where_they_change_something(toy):
    cell = one_cell("toy", "cmnist5k", shared_recipes=True)
    assert cell.method_title == "toy:recipes=shared"
    assert one_cell(cell.method_title, "cmnist5k").hash == cell.hash
    assert one_cell("toy", "cmnist", shared_recipes=True).method_title == "toy"


def test_all_is_every_method_that_is_not_named():
    """In the place where it stands; what is named keeps its parameters and its place."""
    from debiasbench.methods import registry

    grid = expand(["vanilla", "all", "pgd:norm=l1"], ["cmnist5k"], seeds=1)
    labels = [cell.method_title for cell in grid.cells]
    assert labels[0] == "vanilla"
    assert labels[-1] == "pgd:norm=l1"
    assert len(labels) == len(set(labels)) == len(registry.classes()) - len(grid.skips)  # some need a further package
    assert "pgd" not in labels
