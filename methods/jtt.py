"""JTT: just train twice (Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang, Finn; ICML 2021).

1. Train a network for T epochs of the ordinary schedule.
2. Collect the error set E: the training samples that it gets wrong.
3. Train a new network on the data, with the samples of E repeated lambda_up times.

lambda_up is 1 / (conflict ratio), as in the PGD paper. With a perfect error set, half of the samples seen are then
conflicting. No validation samples with bias labels are used. An empty error set is an error.

Where ours departs from the authors' code:
- Errors are found in one clean pass in eval mode after epoch T. As released, `error_pass=online` collects them in train
  mode during epoch index T, before each update. It also logs how far they agree with the clean errors of the same
  network at the end of that epoch.
- An error sample appears lambda_up times in an epoch. `copies=lambda+1` is as released: the data plus lambda_up copies.
- If lambda_up is fractional, each sample of E appears as often as the whole part says. A part of E, as large as the
  fraction and drawn once, appears one more time. (Version 1 drew with replacement in this case, so some errors never
  appeared and others several times as often as intended. Whole numbers work as before and keep their version.)

The authors' README gives T for CelebA (1, with lambda_up 50) and CivilComments (2, with lambda_up 6). These values
belong to the settings of their first training: on CelebA SGD at 1e-5 with decay 0.1 and batches of 64, on CivilComments
SGD at 2e-5 without decay and batches of 24 (and 220 tokens; ours are those of the dataset). With another rate or decay,
the network may get nothing wrong, and E is empty. The second training uses the dataset's recipe, like other methods;
on CelebA, the authors' second training has the optimiser settings of the first. On cmnist5k T is chosen on a split with
known bias (docs/reproduction.md shows the sensitivity); on other data it is 1, untuned.

Expected on Colored MNIST at 0.5 / 1 / 5 %: 85.84 +- 1.32 / 95.07 +- 3.42 / 96.56 +- 1.23 (PGD paper, Table 1).
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Net, Nets, Predict, State, Task, above, at_least, one_of
from debiasbench.recipe import Recipe
from debiasbench.search import choice, whole


class JTT(Method):
    """Just train twice."""

    name = "jtt"
    display = "JTT"
    gives_proxies = True
    citation = """@inproceedings{liu2021jtt,
  title={Just Train Twice: Improving Group Robustness without Training Group Information},
  author={Liu, Evan Z and Haghgoo, Behzad and Chen, Annie S and Raghunathan, Aditi and Koh, Pang Wei and
    Sagawa, Shiori and Liang, Percy and Finn, Chelsea},
  booktitle={International Conference on Machine Learning}, year={2021}}"""
    presets = {"official": {"copies": "lambda+1", "error_pass": "online"}}
    by_dataset = {
        "cmnist5k": {"T": 5},
        "celeba": {  # the authors' README
            "T": 1,
            "lambda_up": 50.0,
            "first_optimizer": "sgd",
            "first_learning_rate": 1e-5,
            "first_weight_decay": 0.1,
            "first_batch_size": 64,
        },
        "civilcomments": {  # the authors' README
            "T": 2,
            "lambda_up": 6.0,
            "first_optimizer": "sgd",
            "first_learning_rate": 2e-5,
            "first_batch_size": 24,
        },
    }
    tuned = {"cmnist5k": {"T": 5}}

    search = {
        "T": whole(1, 20, log=True, source="BalancingGroups' grid (1 to 10) and the beginning of DENEB's (10 to 100)"),
        "lambda_up": choice(
            None, 4.0, 5.0, 6.0, 20.0, 50.0, 100.0, source="BalancingGroups' grid; none: as in the PGD paper"
        ),
    }

    T: int = at_least(1, default=1)  # epochs of the first training
    lambda_up: float | None = above(0, default=None)  # none: 1 / (conflict ratio of the dataset)
    copies: str = one_of("lambda", "lambda+1", default="lambda")
    error_pass: str = one_of("clean", "online", default="clean")
    first_optimizer: str = one_of("dataset", "sgd", default="dataset")  # of step 1; sgd: with momentum 0.9, at a
    # constant rate, without clipping
    first_learning_rate: float | None = above(0, default=None)  # none: the dataset's
    first_weight_decay: float = at_least(0, default=0.0)  # of first_optimizer=sgd
    first_batch_size: int | None = at_least(2, default=None)

    def decline(self, dataset: Dataset) -> str | None:
        """Unless lambda_up is given, the conflict ratio must be known and not 0."""
        if self.lambda_up is None and not dataset.conflict_ratio:
            ratio = dataset.conflict_ratio
            reason = "unknown" if ratio is None else f"{ratio:g}"
            return (
                f"lambda_up is 1 / (conflict ratio), and the ratio of {dataset.name} is {reason}: give jtt:lambda_up=, "
                "or the ratio to a dataset that takes it (imagefolder:rho=)"
            )
        return None

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """The recipe must also be valid with the settings of step 1, such as smaller batches."""
        try:
            self.recipe_of_first(recipe)
        except BenchmarkError as error:
            return f"of its first training: {error}"
        return None

    def version_for(self, dataset: Dataset) -> int:
        """One higher for a fractional lambda_up: the module docstring says why."""
        ratio = dataset.conflict_ratio
        lambda_up = self.lambda_up or (1 / ratio if ratio else 1.0)
        return JTT.version + (lambda_up != round(lambda_up))

    def relative_cost(self, dataset: Dataset) -> float:
        """T epochs, and the second training with the copies of E, assuming that E has exactly the conflicting samples.

        If the conflict ratio is unknown, E is assumed to be 4 % of the samples (as on CelebA after one epoch).
        """
        ratio, recipe = dataset.conflict_ratio, dataset.recipe
        errors = 0.04 if ratio is None else ratio
        return self.T / recipe.epochs + 1 + (self.lambda_up or (1 / errors if errors else 0.0)) * errors

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        net = task.new_net()
        wrong = self.errors_during(task, net) if self.error_pass == "online" else self.errors_after(task, net)
        if not wrong.any():
            raise RuntimeError(f"The error set of JTT is empty after {self.T} epochs: lower T or the learning rate.")
        lambda_up = self.lambda_up or 1 / task.conflict_ratio  # known, or else the dataset was declined
        times = lambda_up + 1 if self.copies == "lambda+1" else lambda_up
        task.log(selected=wrong, sampling=torch.where(wrong, times, 1.0).double())
        second = task.new_net()
        if times == round(times):
            n_copies = torch.where(wrong, round(times), 1)
        else:
            n_copies = task.once(partial(self.copies_of, times=times), wrong)
        task.train(second, self.loss, sample=n_copies, predict=second, proxy=net)
        if self.error_pass == "online":
            clean = task.each(lambda x, y: net(x).argmax(1) != y)
            task.log(jaccard_with_clean=(wrong & clean).sum() / (wrong | clean).sum())
        return second

    def copies_of(self, wrong: Tensor, *, times: float, generator: torch.Generator) -> Tensor:
        """Step 3 with a fractional lambda_up: how often each sample appears in an epoch, int64 (N,)."""
        whole, n_errors = math.floor(times), int(wrong.sum())
        order = torch.randperm(n_errors, generator=generator, device=wrong.device)
        once_more = (order < round((times - whole) * n_errors)).long()
        n_copies = torch.ones_like(wrong, dtype=torch.int64)
        n_copies[wrong] = whole + once_more
        return n_copies

    def errors_after(self, task: Task, net: Net) -> Tensor:
        """E from one clean pass after T epochs, bool (N,)."""
        task.stage(net, self.loss, recipe=self.recipe_of_first(task.recipe)).run(epochs=self.T)
        return task.each(lambda x, y: net(x).argmax(1) != y)

    def errors_during(self, task: Task, net: Net) -> Tensor:
        """E as collected during epoch index T, in train mode, bool (N,)."""
        stage = task.stage(
            net, self.noting_loss, state={"wrong": task.column(0)}, recipe=self.recipe_of_first(task.recipe)
        )
        return stage.run(epochs=self.T + 1)["wrong"] > 0

    def recipe_of_first(self, recipe: Recipe) -> Recipe:
        """The recipe of step 1."""
        changes: dict[str, Any] = {"learning_rate": self.first_learning_rate, "batch_size": self.first_batch_size}
        changes = {key: value for key, value in changes.items() if value is not None}
        if self.first_optimizer == "sgd":
            changes |= {
                "optimizer": "sgd", "momentum": 0.9, "weight_decay": self.first_weight_decay, "schedule": "constant",
                "clip_norm": None,
            }  # fmt: skip
        return recipe.replace(**changes)

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(nets.net(batch.x), batch.y).mean()

    def noting_loss(self, nets: Nets, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Mean cross-entropy; also notes which samples are wrong before the update."""
        logits = nets.net(batch.x)
        wrong = (logits.argmax(1) != batch.y).to(state["wrong"].dtype)
        return cross_entropy(logits, batch.y).mean(), {"wrong": state["wrong"].index_put((batch.index,), wrong)}
