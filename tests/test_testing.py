"""The contract suite finds what it is for: a method that breaks one rule fails the check of that rule."""

import dataclasses
import itertools
import sys
import types
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch

from debiasbench.errors import BenchmarkError
from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Method
from debiasbench.search import around, uniform
from debiasbench.testing import (
    METHOD_CHECKS,
    check_bias_labels_are_not_read,
    check_data_are_not_changed,
    check_declaration,
    check_decline_is_a_reason,
    check_easy_data,
    check_evaluation_leaves_no_trace,
    check_fit_returns_logits,
    check_global_randomness_is_left_alone,
    check_goes_on_after_an_interruption,
    check_losses_are_pure,
    check_other_seed_other_result,
    check_proxies_are_declared,
    check_recipe_is_trained_or_declined,
    check_same_seed_same_result,
    check_search,
    check_valid_and_test_do_not_train,
    check_what_is_returned_was_evaluated,
)

COUNTER = itertools.count(1)
TABLE = torch.ones(1000)
SEEN = []
VIOLATIONS = []


class Honest(Method):
    """One step of weighted cross-entropy; the subclasses break a rule each."""

    name = "honest"

    def fit(self, task):
        net = task.new_net()
        columns = {"weight": task.column(1.0) + self.more_weight(task)}
        state = {"seen": task.column(0.0)}
        recipe = task.recipe.replace(batch_size=task.n_samples, epochs=1)
        task.train(net, self.chosen_loss(task), columns=columns, state=state, recipe=recipe, predict=net)
        return net

    def more_weight(self, task):
        """What is added to the weight of each sample, (N,) or ()."""
        return 0.0

    def chosen_loss(self, task):
        return self.loss

    def loss(self, nets, batch, state):
        return (batch.weight * cross_entropy(nets.net(batch.x), batch.y)).mean()


def breaks(check, message, kind=AssertionError):
    """A class that must fail this check, with these words."""

    def keep(cls):
        VIOLATIONS.append(pytest.param(check, cls, message, kind, id=f"{check.__name__}-{cls.__name__}"))
        return cls

    return keep


# ---- declaration -----------------------------------------------------------------------------------------------------


@breaks(check_declaration, "a name in lower case")
class UpperCase(Honest):
    name = "Honest"


@breaks(check_declaration, "needs documentation")
class Undocumented(Honest):
    name = "undocumented"
    __module__ = "undocumented"


@breaks(check_declaration, "gamma", TypeError)
class UnknownParameterInAPreset(Honest):
    presets: ClassVar = {"official": {"gamma": 2.0}}


@breaks(check_declaration, "speed", TypeError)
class UnknownFieldInARecipe(Honest):
    presets: ClassVar = {"official": {"recipes": {"cmnist": {"speed": 1}}}}


@breaks(check_declaration, "gamma", TypeError)
class UnknownParameterInAnAlias(Honest):
    aliases: ClassVar = {"honest-2": {"gamma": 2.0}}


@breaks(check_declaration, "gamma", TypeError)
class UnknownParameterByDataset(Honest):
    by_dataset: ClassVar = {"cmnist": {"gamma": 2.0}}


# ---- what fit returns ------------------------------------------------------------------------------------------------


@breaks(check_fit_returns_logits, "no task.train was given predict=")
class WithoutPredictor(Honest):
    def fit(self, task):
        net = task.new_net()
        task.train(net, Honest.loss.__get__(self), columns={"weight": task.column(1.0)}, epochs=1)
        return net


@breaks(check_fit_returns_logits, "fit must return the predictor")
class ReturnsAnother(Honest):
    def fit(self, task):
        super().fit(task)
        return task.new_net()


@breaks(check_fit_returns_logits, "no epoch was evaluated")
class NeverRuns(Honest):
    def fit(self, task):
        net = task.new_net()
        task.stage(net, self.loss, predict=net)
        return net


@breaks(check_fit_returns_logits, r"one column per class: here \(64, 4\)\. Got \(64, 5\)", BenchmarkError)
class OneClassTooMany(Honest):
    def fit(self, task):
        net = task.new_net()
        columns = {"weight": task.column(1.0)}
        task.train(net, self.loss, columns=columns, epochs=1, predict=self.predict)
        return self.predict

    def predict(self, nets, x):
        return torch.nn.functional.pad(nets.net(x), (0, 1))


@breaks(check_fit_returns_logits, "logged score is not finite")
class LogsNotANumber(Honest):
    def fit(self, task):
        task.log(score=task.column(float("nan")))
        return super().fit(task)


@breaks(check_what_is_returned_was_evaluated, "it was changed after that")
class TurnsRoundAfterItsEvaluation(Honest):
    def fit(self, task):
        net = super().fit(task)
        with torch.no_grad():
            net.head.weight.neg_()
            net.head.bias.neg_()
        return net


@breaks(check_evaluation_leaves_no_trace, "two evaluations of one predictor differ")
class PredictsOtherwiseEachTime(Honest):
    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, columns={"weight": task.column(1.0)}, epochs=1, predict=self.predict)
        return self.predict

    def predict(self, nets, x):
        return nets.net(x) + next(COUNTER)


@breaks(check_evaluation_leaves_no_trace, "evaluating changes head.bias")
class LearnsWhilePredicting(PredictsOtherwiseEachTime):
    def predict(self, nets, x):
        nets.net.head.bias.data += 1
        return nets.net.features(x) @ nets.net.head.weight.T


# ---- interruptions ---------------------------------------------------------------------------------------------------


@breaks(check_goes_on_after_an_interruption, "reads what a network was between two calls that train it: keep it")
class ReadsBetweenStages(Honest):
    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy, epochs=1)
        norm = float(net.head.weight.detach().norm())
        task.train(net, mean_cross_entropy, epochs=1)
        task.train(net, partial(scaled, factor=1 + norm), epochs=1, predict=net)
        return net


@breaks(check_goes_on_after_an_interruption, "comes to another result if it is interrupted")
class CountsBesideItsCalls(Honest):
    def fit(self, task):
        SEEN.clear()
        net = task.new_net()
        task.train(net, mean_cross_entropy, epochs=1)
        task.each(self.counted)  # not called again where the call is finished
        task.train(net, partial(scaled, factor=1.0 + len(SEEN)), epochs=1, predict=net)
        return net

    def counted(self, x, y):
        SEEN.append(len(x))
        return y


def scaled(nets, batch, state, *, factor):
    """Mean cross-entropy, times a factor."""
    return factor * mean_cross_entropy(nets, batch, state)


# ---- seeds -----------------------------------------------------------------------------------------------------------


@breaks(check_same_seed_same_result, "equal seeds give different results")
class CountsItsFits(Honest):
    def more_weight(self, task):
        return next(COUNTER)


@breaks(check_same_seed_same_result, "equal seeds give different results")
@breaks(check_global_randomness_is_left_alone, "the global generator of torch")
class DrawsFromTorch(Honest):
    def more_weight(self, task):
        return torch.rand(task.n_samples)


@breaks(check_same_seed_same_result, "equal seeds give different results")
@breaks(check_global_randomness_is_left_alone, "the global generator of numpy")
class DrawsFromNumpy(Honest):
    def more_weight(self, task):
        return torch.from_numpy(np.random.rand(task.n_samples)).float()  # noqa: NPY002 - the violation


@breaks(check_global_randomness_is_left_alone, "the global generator of torch and numpy")
class SeedsGlobally(Honest):
    def more_weight(self, task):
        torch.manual_seed(task.seed)
        np.random.seed(task.seed)  # noqa: NPY002 - the violation
        return torch.rand(task.n_samples)


@breaks(check_global_randomness_is_left_alone, "the global generator of numpy")
class DrawsOneNumber(Honest):
    def more_weight(self, task):
        return 1 + 0 * np.random.rand()  # noqa: NPY002 - the violation


@breaks(check_same_seed_same_result, "different calls of the task")
class CallsMoreEachTime(Honest):
    def fit(self, task):
        net = super().fit(task)
        for _ in range(next(COUNTER)):
            task.log(score=task.column(0.0))
        return net


@breaks(check_other_seed_other_result, "does not follow the seed")
class IgnoresTheSeed(Honest):
    def fit(self, task):
        task.seed, task.source = 0, dataclasses.replace(task.source, seed=0)
        return super().fit(task)


# ---- what may be seen ------------------------------------------------------------------------------------------------


@breaks(check_bias_labels_are_not_read, "reads bias labels")
class ReadsBias(Honest):
    def more_weight(self, task):
        return (task.splits.train.bias[:, 0] != task.y).float()


@breaks(check_bias_labels_are_not_read, "reads bias labels")
class ReadsBiasOfValidation(Honest):
    def more_weight(self, task):
        return task.splits.valid.bias.float().mean()


class MayReadBias(ReadsBias):
    needs_bias_labels = True


@breaks(check_valid_and_test_do_not_train, "labels of the validation or the test split")
class TrainsOnValidation(Honest):
    def more_weight(self, task):
        return (task.splits.valid.y.float() * torch.linspace(0, 1, 64)).mean()


class MayTrainOnValidation(TrainsOnValidation):
    trains_on_validation = True


class MaySelectOnValidation(TrainsOnValidation):
    selects_on_validation = True


class MaySelectByItsValues(TrainsOnValidation):
    chooses: bool = True

    @property
    def selects_on_validation(self):
        return self.chooses


@breaks(check_valid_and_test_do_not_train, "labels of the validation or the test split")
class SaysOfOtherValuesThatItSelects(MaySelectByItsValues):
    chooses: bool = False


@breaks(check_valid_and_test_do_not_train, "labels of the validation or the test split")
class TrainsOnTest(Honest):
    def more_weight(self, task):
        return (task.splits.test.y.float() * torch.linspace(0, 1, 100)).mean()


@breaks(check_valid_and_test_do_not_train, "labels of the validation or the test split")
class MayTrainOnValidationNotOnTest(TrainsOnTest):
    trains_on_validation = True


@breaks(check_data_are_not_changed, r"changes the data \(train\)")
class CorrectsLabels(Honest):
    def more_weight(self, task):
        task.y[:3] = task.y[3:6]
        return 0.0


@breaks(check_data_are_not_changed, r"changes the data \(test\)")
class PaintsTestImages(Honest):
    def more_weight(self, task):
        task.splits.test.x[0] //= 2
        return 0.0


# ---- data that are learnt at once, and data without a ratio ----------------------------------------------------------


@breaks(check_easy_data, "say what is wrong and what to do")
class FailsWithoutWords(Honest):
    def more_weight(self, task):
        if task.dataset.clean:
            raise RuntimeError("empty")
        return 0.0


@breaks(check_easy_data, "division by zero", ZeroDivisionError)
class FailsByAccident(Honest):
    def more_weight(self, task):
        return 1 / (0 if task.dataset.clean else 1)


@breaks(check_decline_is_a_reason, "None or a reason")
class DeclinesWithoutReason(Honest):
    def decline(self, dataset):
        return None if dataset.conflict_ratio else ""


@breaks(check_decline_is_a_reason, "not supported between", TypeError)
class NeedsARatioToDecline(Honest):
    def decline(self, dataset):
        return "too many conflicts" if dataset.conflict_ratio > 0.5 else None


@breaks(check_proxies_are_declared, r"gives_proxies is False, and task.train is given a proxy=\. Write .* = True")
class GivesProxies(Honest):
    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, columns={"weight": task.column(1.0)}, predict=net, proxy=net)
        return net


@breaks(check_proxies_are_declared, "given no proxy=. Write gives_proxies = False")
class PromisesProxies(Honest):
    gives_proxies = True


@breaks(check_proxies_are_declared, "given no proxy=")
class PromisesProxiesAsAProperty(Honest):
    @property
    def gives_proxies(self):
        return True


@breaks(
    check_recipe_is_trained_or_declined,
    "with accumulate=2, label_smoothing=0.1, and says so in training alone: It has",
)
class TakesNoParts(Honest):
    def fit(self, task):
        if task.recipe.accumulate > 1:
            raise BenchmarkError("It has its own optimiser.")
        return super().fit(task)


@breaks(check_recipe_is_trained_or_declined, "does not use debiasbench.losses.cross_entropy")
class SmoothsNoLabels(Honest):
    def loss(self, nets, batch, state):
        return torch.nn.functional.cross_entropy(nets.net(batch.x), batch.y)


@breaks(check_recipe_is_trained_or_declined, "a training loop of its own")
class HasALoop(Honest):
    def fit(self, task):
        task.batches(epochs=1)
        return super().fit(task)

    def decline_recipe(self, recipe):
        return "it steps itself" if recipe.accumulate > 1 else None


@breaks(check_recipe_is_trained_or_declined, "decline_recipe gives None or a reason. Got True")
class DeclinesARecipeWithoutReason(Honest):
    def decline_recipe(self, recipe):
        return recipe.accumulate > 1 or None


@breaks(check_search, "search names 'gama', which is neither a parameter of it nor a field of the recipe")
class SearchesWhatItLacks(Honest):
    search: ClassVar = {"gama": uniform(0, 1, source="a test")}


@breaks(check_search, "search draws a 'weight_decay' that is not allowed: .* at least 0")
class SearchesBeyondTheLimits(Honest):
    search: ClassVar = {"weight_decay": uniform(-2, -1, source="a test")}


@breaks(check_search, r"needs a default above 0\. Got 0")
class SearchesAroundNothing(Honest):
    search: ClassVar = {"factor": around(0.1, 10, source="a test")}

    factor: float = 0.0


@breaks(check_search, "must be a dictionary of ranges", BenchmarkError)
class SearchesWithoutRanges(Honest):
    search: ClassVar = {"learning_rate": (0.1, 1.0)}


# ---- losses ----------------------------------------------------------------------------------------------------------


@breaks(check_losses_are_pure, "not a pure function of tensors")
class ReadsANumber(Honest):
    def loss(self, nets, batch, state):
        losses = cross_entropy(nets.net(batch.x), batch.y)
        return losses.mean() * (1.0 + 0.0 * losses.max().item())


@breaks(check_losses_are_pure, "not a pure function of tensors")
class PicksByMask(Honest):
    def loss(self, nets, batch, state):
        losses = cross_entropy(nets.net(batch.x), batch.y)
        return losses[losses >= losses.mean()].mean()


@breaks(check_losses_are_pure, "not a pure function of tensors")
class BranchesOnATensor(Honest):
    def loss(self, nets, batch, state):
        value = cross_entropy(nets.net(batch.x), batch.y).mean()
        return 2 * value if value > 1 else value


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return 2 * x

    @staticmethod
    def backward(_, gradient):
        return 2 * gradient


class DoubledWithoutRule(Doubled):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(*_):
        pass


class DoubledByRule(DoubledWithoutRule):
    generate_vmap_rule = True


@breaks(check_losses_are_pure, "cannot run under torch.vmap.*write forward without ctx.*generate_vmap_rule = True")
class HasAFunctionOfItsOwn(Honest):
    function = Doubled.apply

    def loss(self, nets, batch, state):
        return type(self).function(cross_entropy(nets.net(batch.x), batch.y)).mean()


@breaks(check_losses_are_pure, "cannot run under torch.vmap.*set generate_vmap_rule = True")
class HasAFunctionWithoutRule(HasAFunctionOfItsOwn):
    function = DoubledWithoutRule.apply


@breaks(check_losses_are_pure, "cannot run under torch.vmap.*index_add for index_add_")
class AddsInPlace(Honest):
    def loss(self, nets, batch, state):
        losses = cross_entropy(nets.net(batch.x), batch.y)
        return torch.zeros(4).index_add_(0, batch.y, losses).mean()


@breaks(check_losses_are_pure, "cannot run under torch.vmap.*for an assignment to a part")
class AssignsToAPart(Honest):
    def loss(self, nets, batch, state):
        losses = cross_entropy(nets.net(batch.x), batch.y)
        doubled = torch.zeros(len(losses))
        doubled[:3] = 2 * losses[:3]
        return doubled.mean()


@breaks(check_losses_are_pure, "cannot run under torch.vmap.*new tensor")
class AccumulatesInPlace(Honest):
    def loss(self, nets, batch, state):
        losses = cross_entropy(nets.net(batch.x), batch.y)
        return torch.zeros(len(losses)).add_(losses).mean()


@breaks(check_losses_are_pure, "two calls with equal arguments differ")
class DrawsInItsLoss(Honest):
    def loss(self, nets, batch, state):
        return (torch.rand(len(batch.y)) * cross_entropy(nets.net(batch.x), batch.y)).mean()


@breaks(check_losses_are_pure, r"changes state\['seen'\] in place")
class WritesIntoItsState(Honest):
    def loss(self, nets, batch, state):
        state["seen"][batch.index] = 1.0
        return super().loss(nets, batch, state)


@breaks(check_losses_are_pure, "holds the tensors or networks table")
class ClosesOverATensor(Honest):
    def chosen_loss(self, task):
        table = task.column(1.0)
        return lambda nets, batch, _: (table[batch.index] * cross_entropy(nets.net(batch.x), batch.y)).mean()


@breaks(check_losses_are_pure, "holds the tensors or networks other")
class ClosesOverANetwork(Honest):
    def chosen_loss(self, task):
        other = task.new_net()
        return lambda nets, batch, _: cross_entropy(nets.net(batch.x) + other(batch.x), batch.y).mean()


def weighted_by_table(nets, batch, state, *, table):
    return (table[batch.index] * cross_entropy(nets.net(batch.x), batch.y)).mean()


@breaks(check_losses_are_pure, "holds the tensors or networks table")
class HandsATensorToAPartial(Honest):
    def chosen_loss(self, task):
        return partial(weighted_by_table, table=TABLE)


@breaks(check_losses_are_pure, "holds the tensors or networks table")
class KeepsATensorInItself(Honest):
    def chosen_loss(self, task):
        object.__setattr__(self, "table", task.column(1.0))
        return self.loss


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def module_without_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "undocumented", types.ModuleType("undocumented"))


@pytest.mark.parametrize(("check", "cls", "message", "kind"), VIOLATIONS)
def test_a_violation_is_found(check, cls, message, kind):
    with pytest.raises(kind, match=message):
        check(cls)


def test_the_ways_out_that_are_named_pass():
    class WithRule(HasAFunctionOfItsOwn):
        function = DoubledByRule.apply

    class OutOfPlace(Honest):
        def loss(self, nets, batch, state):
            losses = cross_entropy(nets.net(batch.x), batch.y)
            return torch.zeros(4).index_add(0, batch.y, torch.where(batch.index < 3, 2 * losses, losses)).mean()

    for cls in (WithRule, OutOfPlace):
        check_losses_are_pure(cls)


def test_every_check_has_a_violation():
    assert {violation.values[0] for violation in VIOLATIONS} == set(METHOD_CHECKS)


@pytest.mark.parametrize(
    "cls", [Honest, MayReadBias, MayTrainOnValidation, MaySelectOnValidation, MaySelectByItsValues]
)
def test_what_is_allowed_passes_every_check(cls):
    for check in METHOD_CHECKS:
        check(cls)


def test_the_fit_with_class_defaults_is_made_once():
    """One for all checks that look at it, and one for each that compares another with it, or has other data."""
    seeds = []

    class Counted(Honest):
        """Notes its fits."""

        def fit(self, task):
            seeds.append(task.seed)
            return super().fit(task)

    for check in METHOD_CHECKS:
        if check is not check_goes_on_after_an_interruption:  # has as many as there are checkpoints, and each is short
            check(Counted)
    assert sorted(seeds) == [
        0,
        0,
        0,
        0,
        0,
        0,
        1,
    ]  # default, again, blind, other labels, easy data, recipe; another seed


def test_a_class_that_was_patched_is_fitted_anew(monkeypatch):
    check_data_are_not_changed(Honest)
    with monkeypatch.context() as patched:
        patched.setattr(Honest, "more_weight", CorrectsLabels.more_weight)
        with pytest.raises(AssertionError, match="changes the data"):
            check_data_are_not_changed(Honest)
    check_data_are_not_changed(Honest)


def test_what_declines_is_skipped_each_time():
    class Declines(Honest):
        """Runs on nothing."""

        def decline(self, dataset):
            return "never"

    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="never"):
            check_fit_returns_logits(Declines)
