"""What to run: a grid of methods x datasets x seeds, and its cells with all values resolved.

A value comes from the class, the class for this dataset, a preset, inline parameters, or `--epochs`; each overrides
those before. Of the recipe, a method can be given only the fields that fair tuning searches, such as the learning rate.
They override those given to the dataset. All other fields belong to the dataset, so that methods share them. All names,
parameters and combinations are checked here, before anything trains.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, replace
from typing import Any

from debiasbench.cell import Cell
from debiasbench.data.checks import check_input
from debiasbench.datasets import Dataset
from debiasbench.datasets import registry as dataset_registry
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.methods import Method
from debiasbench.methods import registry as method_registry
from debiasbench.parameters import MOST_DIGITS, MOST_SETTINGS, check_values, expand_sweeps, split_spec, suggestion
from debiasbench.plain import shown
from debiasbench.plugins import defaults, read_parameters, title_of, version_of
from debiasbench.recipe import Recipe

MOST_CELLS = 1_000_000  # in a grid; at seconds per cell, these take weeks
MOST_COST = 1_000_000  # per cell, in vanilla runs


@dataclass(frozen=True)
class Skip:
    """A method that declines a dataset, and the reason."""

    method_title: str
    dataset_title: str
    reason: str


@dataclass(frozen=True)
class Grid:
    """Cells to run, skipped combinations, and notices for the user."""

    cells: list[Cell]
    skips: list[Skip]
    notices: list[str]
    relative_costs: dict[str, float]  # cell hash -> cost in units of one vanilla run of its dataset


def expand(
    methods: list[str],
    datasets: list[str],
    *,
    seeds: int | Sequence[int],
    data_seeds: int | None = None,
    epochs: int | None = None,
    shared_recipes: bool = False,
) -> Grid:
    """Resolve names and parameters into cells, ordered by dataset, then seed, then method.

    `seeds` are the training seeds, or their number (0, 1, ...). The name "all" stands for all names not listed beside
    it.

    Raises:
        BenchmarkError: names, parameters or seeds are wrong; one message lists all problems.
    """
    methods, datasets = named_all(methods, method_registry), named_all(datasets, dataset_registry)
    problems: list[str] = []
    chosen_seeds = _collect(problems, _seeds, seeds)
    if epochs is not None and epochs < 1:
        problems.append(f"--epochs must be at least 1. Got {epochs}.")
        epochs = None
    if data_seeds is not None and not 1 <= data_seeds <= MOST_SETTINGS:
        limit = "at least 1" if data_seeds < 1 else f"at most {MOST_SETTINGS}"
        problems.append(f"--data-seeds must be {limit}. Got {data_seeds}.")
        data_seeds = None
    for what, given in (("method", methods), ("dataset", datasets)):
        if not given:
            problems.append(f"Give at least one {what}.")
    method_choices = [
        choice for spec in methods for choice in _collect(problems, _method_choices, spec, shared_recipes)
    ]
    dataset_choices = [choice for spec in datasets for choice in _collect(problems, _dataset_choices, spec, data_seeds)]
    n_cells = len(method_choices) * len(dataset_choices) * len(chosen_seeds)
    if n_cells > MOST_CELLS:
        problems.append(f"{n_cells:,} cells (methods x datasets x seeds) are too many: at most {MOST_CELLS:,}.")
    if n_cells == 0 or n_cells > MOST_CELLS:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))
    cells: list[Cell] = []
    skips: list[Skip] = []
    costs: dict[str, float] = {}
    for dataset_choice in dataset_choices:
        resolved: list[tuple[Cell, float]] = []
        for method_choice in method_choices:
            try:
                with raised_by(f"{method_choice.cls.name} on {dataset_choice.cls.name} cannot be planned"):
                    cell, reason, cost = _resolve(method_choice, dataset_choice, chosen_seeds[0], epochs)
            except BenchmarkError as error:
                problems.append(str(error))
                continue
            if reason:
                skips.append(Skip(cell.method_title, cell.dataset_title, reason))
            elif cost > MOST_COST:
                problems.append(
                    f"{cell.method_title} on {cell.dataset_title} would take as long as {cost:.3g} vanilla runs; at "
                    f"most {MOST_COST:,} are allowed: check its epochs and steps."
                )
            else:
                resolved.append((cell, cost))
        for seed, (cell, cost) in itertools.product(chosen_seeds, resolved):
            cells.append(replace(cell, seed=seed))
            costs[cells[-1].hash] = cost
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))
    unique: dict[str, Cell] = {}
    notices = []
    for cell in cells:
        if cell.hash in unique:
            notices.append(f"{cell.title}: duplicate settings, run once.")
        unique.setdefault(cell.hash, cell)
    return Grid(list(unique.values()), list(dict.fromkeys(skips)), list(dict.fromkeys(notices)), costs)


def _seeds(given: int | Sequence[int]) -> list[int]:
    """The training seeds for a number or a list of them.

    Raises:
        BenchmarkError: there are none or too many, or they are not distinct whole numbers of at least 0.
    """
    n = given if isinstance(given, int) else len(given)
    if not 1 <= n <= MOST_CELLS:
        limit = "at least 1" if n < 1 else f"at most {MOST_CELLS}"
        raise BenchmarkError(f"The number of seeds must be {limit}. Got {n}.")
    seeds = list(range(given) if isinstance(given, int) else given)
    whole = all(type(seed) is int and 0 <= seed < 10**MOST_DIGITS for seed in seeds)
    if not whole or len(set(seeds)) != n:
        raise BenchmarkError(f"Seeds must be different whole numbers of at least 0. Got {shown(seeds)}.")
    return seeds


def named_all(specs: list[str], registry: Any) -> list[str]:
    """The specs, with "all" replaced by the names that are not listed."""
    if "all" not in specs:
        return specs
    given = {split_spec(spec)[0] for spec in specs if spec != "all"}
    rest = [name for name in registry.classes() if name not in given]
    index = specs.index("all")
    return [*specs[:index], *rest, *(spec for spec in specs[index:] if spec != "all")]


def dataset_from_spec(spec: str) -> tuple[Dataset, str]:
    """The dataset for a name with inline parameters, and its title.

    Raises:
        BenchmarkError: a name or parameter is unknown, or the spec is a sweep instead of one dataset.
    """
    choices = _dataset_choices(spec, None)
    if len(choices) != 1:
        raise BenchmarkError(f"One dataset is needed here, but '{spec}' gives {len(choices)}.")
    choice = choices[0]
    preset = {key: value for key, value in choice.cls.presets.get(choice.preset, {}).items() if key != "recipe"}
    dataset = choice.cls(**{**preset, **choice.given})
    bases = {"": defaults(choice.cls)} | ({choice.preset: {**defaults(choice.cls), **preset}} if choice.preset else {})
    return dataset, title_of(dataset.name, dataset.key(), bases)


def _collect(problems: list[str], function: Any, *arguments: Any) -> list[Any]:
    """The list that the function returns; if it fails, an empty list, and its error is added to `problems`."""
    try:
        return function(*arguments)
    except BenchmarkError as error:
        problems.append(str(error))
        return []


@dataclass(frozen=True)
class _Choice:
    """One method or dataset with the values given for it, not yet resolved."""

    cls: type[Any]
    preset: str
    given: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)  # the given fields
    shared_recipes: bool = False  # for a method: train with the dataset's recipe, without the method's changes


def _preset_of(cls: type[Any], options: dict[str, str]) -> str:
    preset = options.pop("preset", "")
    if preset and preset not in cls.presets:
        known = ", ".join(cls.presets) or "none"
        raise BenchmarkError(
            f"Unknown preset '{preset}' of {cls.name}.{suggestion(preset, cls.presets)} Known: {known}."
        )
    return preset


def _method_choices(spec: str, shared_recipes: bool) -> list[_Choice]:
    name, options = split_spec(spec)
    cls, implied = method_registry.get(name)
    choices = []
    for single in expand_sweeps(options):
        if "tuned" in single:
            raise BenchmarkError(
                f"'tuned' of {name} cannot be given inline: in tables it marks values that `debiasbench tune` chose. "
                "To use these, give their file: --tuned FILE."
            )
        preset = _preset_of(cls, single)
        recipes = single.pop("recipes", "shared" if shared_recipes else "own")
        if recipes not in ("own", "shared"):
            raise BenchmarkError(f"The 'recipes' of {cls.name} must be own or shared. Got {recipes!r}.")
        given, recipe = read_parameters(cls, single, Recipe, among=cls.search_space())
        check_values(cls, {**implied, **given})
        check_values(Recipe, recipe)
        choices.append(_Choice(cls, preset, {**implied, **given}, recipe, shared_recipes=recipes == "shared"))
    return choices


def _dataset_choices(spec: str, data_seeds: int | None) -> list[_Choice]:
    name, options = split_spec(spec)
    cls, implied = dataset_registry.get(name)
    if data_seeds is not None:
        if "data_seed" in options:
            raise BenchmarkError(f"Give either --data-seeds or data_seed= of {name}, not both.")
        options["data_seed"] = [str(number) for number in range(data_seeds)]
    choices = []
    for single in expand_sweeps(options):
        preset = _preset_of(cls, single)
        given, recipe = read_parameters(cls, single, Recipe)
        values = {**cls.presets.get(preset, {}), **implied, **given}
        values.pop("recipe", None)
        data = cls(**values)  # to report errors now and only once, not for every method
        check_input(data)
        _refuse_following(data, recipe)
        Recipe(**{**cls.recipe.values(), **recipe})
        choices.append(_Choice(cls, preset, {**implied, **given}, recipe))
    return choices


def _refuse_following(data: Dataset, recipe: dict[str, Any]) -> None:
    """Refuse fields of a recipe that are determined by the parameters of a dataset."""
    following = [key for key in recipe if getattr(data.own_recipe, key) != getattr(type(data).recipe, key)]
    if following:
        raise BenchmarkError(
            f"The recipe's {', '.join(following)} of {data.name} cannot be given: the dataset's parameters "
            f"({', '.join(defaults(type(data)))}) determine it."
        )


def _resolve(method: _Choice, dataset: _Choice, seed: int, epochs: int | None) -> tuple[Cell, str | None, float]:
    """One cell with all values, the reason why it is declined (or None), and its relative cost."""
    data_preset = dict(dataset.cls.presets.get(dataset.preset, {}))
    recipe_preset = data_preset.pop("recipe", {})
    data = dataset.cls(**{**data_preset, **dataset.given})

    preset = dict(method.cls.presets.get(method.preset, {}))
    preset_recipes = preset.pop("recipes", {})
    base = {**defaults(method.cls), **method.cls.by_dataset.get(data.name, {})}
    built = method.cls(**{**base, **preset, **method.given})

    if preset_recipes and data.name not in preset_recipes:
        raise BenchmarkError(
            f"The preset '{method.preset}' of {method.cls.name} has no settings for {data.name}, "
            f"only for {', '.join(preset_recipes)}."
        )
    own_changes = {**method.cls.recipes.get(data.name, {}), **preset_recipes.get(data.name, {})}
    _refuse_following(data, method.recipe)
    changes = {} if method.shared_recipes else own_changes
    recipe = data.own_recipe.replace(**{**recipe_preset, **changes, **dataset.recipe, **method.recipe})
    if epochs is not None:
        recipe = recipe.replace(epochs=epochs, steps=None)
    common = data.own_recipe.replace(**{**recipe_preset, **dataset.recipe})
    if epochs is not None:
        common = common.replace(epochs=epochs, steps=None)
    changed = dict.fromkeys((*changes, *method.recipe))
    changes = {key: getattr(recipe, key) for key in changed if getattr(common, key) != getattr(recipe, key)}

    bases = {"": base}
    for name, values in method.cls.presets.items():
        if preset_recipes == values.get("recipes", {}):  # a preset includes its recipes
            bases[name] = {**base, **{key: value for key, value in values.items() if key != "recipes"}}
    if preset_recipes:
        bases.pop("")
    shared = {"recipes": "shared"} if method.shared_recipes and own_changes else {}
    bases = {name: _always_shown(values, method.recipe) for name, values in bases.items()}
    method_title = title_of(built.name, {**built.values(), **shared, **method.recipe}, bases)

    data_bases = {"": defaults(dataset.cls)}
    if dataset.preset:
        data_bases = {dataset.preset: {**data_bases[""], **data_preset}}
    of_recipe = dataset.recipe | ({"epochs": epochs} if epochs is not None else {})
    data_bases = {name: _always_shown(values, of_recipe) for name, values in data_bases.items()}
    dataset_title = title_of(data.name, {**data.key(), **of_recipe}, data_bases)
    cell = Cell(
        method=built.name,
        method_version=version_of(method.cls, built, data),
        method_parameters=json.loads(json.dumps(built.values())),
        dataset=data.name,
        dataset_version=version_of(dataset.cls),
        dataset_parameters=json.loads(json.dumps(data.key())),
        recipe=json.loads(json.dumps(recipe.values())),
        seed=seed,
        method_title=method_title,
        dataset_title=dataset_title,
        recipe_changes=json.loads(json.dumps(changes)),
        root=data.root,
    )
    return cell, _declined(built, data, recipe), relative_cost(built, data, recipe)


def relative_cost(method: Method, data: Dataset, recipe: Recipe) -> float:
    """The cost of a run, in runs of plain training with the dataset's own recipe."""
    return method.relative_cost(data) * _length(recipe, data) / _length(data.own_recipe, data)


def _always_shown(base: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """A base with which titles always show the given recipe fields.

    Whether a field changes anything depends on the other side (method or dataset).
    """
    return {**base, **dict.fromkeys(recipe, MISSING)}


def _declined(method: Method, data: Dataset, recipe: Recipe) -> str | None:
    """Why a method cannot run on a dataset with a recipe, or None."""
    if data.input not in method.inputs:
        return f"{method.name} is made for {', '.join(method.inputs)} only, and {data.name} is {data.input}"
    return method.decline(data) or method.decline_recipe(recipe)


def _length(recipe: Recipe, data: Dataset) -> float:
    """Epochs of a recipe; steps are converted to epochs if the size of the training data is published."""
    n_train = data.official_counts.get("train")
    if recipe.steps is None or n_train is None:
        return recipe.epochs
    return recipe.steps * recipe.batch_size / n_train
