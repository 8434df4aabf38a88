"""The network, the metric and the rule of examples/nets: as the document shows them, and run."""

import sys
from pathlib import Path

import pytest
import torch

from debiasbench.evaluation.own import own_functions, own_metrics, own_selection
from debiasbench.experiments import Experiment
from debiasbench.nets.build import build_net, check_fits, check_net
from debiasbench.records import find_record, read_record
from debiasbench.running.run import RunOptions, plan_grid, run_grid

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "nets"


@pytest.fixture(scope="module", autouse=True)
def known():
    """The folder is one of those of --nets-dir."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules["debiasbench.nets.own"], "__path__", [str(FOLDER)])
        yield
    for file in FOLDER.glob("*.py"):
        sys.modules.pop(f"debiasbench.nets.own.{file.stem}", None)


@pytest.mark.parametrize("file", ["tiny", "brier", "smooth"])
def test_the_document_shows_it_as_it_is(file):
    document = (ROOT / "docs" / "adding-a-network.md").read_text(encoding="utf-8")
    text = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
    assert f"```python\n{text}```" in document
    assert len(text.splitlines()) <= 25


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 28), (3, 64, 64)])
def test_the_network_takes_images_of_any_size(shape):
    check_net("tiny", inputs="images")
    check_fits("tiny", shape, 10)
    assert build_net("tiny", shape, 4)(torch.rand(3, *shape)).shape == (3, 4)


def test_the_metric_is_its_formula():
    logits, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
    bias, conflicting = y[:, None].numpy(), (y[:, None] < 0).numpy()
    found = own_metrics("test", logits, y.numpy(), bias, conflicting)
    slow = 0.0
    for row, label in zip(logits.double().softmax(1), y, strict=True):
        slow += sum((p - (k == label).item()) ** 2 for k, p in enumerate(row.tolist())) / 2
    assert found == {"brier": pytest.approx(1 - slow / 30)}
    sure = 100.0 * torch.nn.functional.one_hot(y)
    assert own_metrics("test", sure, y.numpy(), bias, conflicting)["brier"] == pytest.approx(1)
    assert own_metrics("test", sure.roll(1, 1), y.numpy(), bias, conflicting)["brier"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [([0.5], 0), ([0.2, 0.9, 0.2, 0.6, 0.7, 0.6, 0.1], 4), ([0.5, 0.5, 0.5], 2), ([0.9, 0.8, 0.1], 0)],
)
def test_the_rule_averages_over_three_epochs(accuracies, chosen):
    assert own_selection([{"acc_avg": one, "loss": 1.0} for one in accuracies]) == {"smooth": chosen}


def test_they_run_together(cmnist5k, tmp_path):
    assert [*own_functions("metric"), *own_functions("rule")] == ["brier", "smooth"]
    asked = Experiment("", ["vanilla"], ["cmnist5k:net=tiny,steps=20,batch_size=32"], seeds=1)
    ready = plan_grid(asked, RunOptions(tmp_path, tmp_path / "results", device="cpu", workers=0))
    run_grid(ready, lambda _: None)
    for cell in ready.plan.grid.cells:
        record = read_record(find_record(tmp_path / "results", cell))
        assert record.done, record.failure
        assert {"net", "metric brier", "rule smooth"} <= record.provenance.code.keys()
        assert 0 < record.result.epochs[-1].test["brier"] < 1
        assert record.result.selection["smooth"] == 0
