"""Images that stay on the host, brought to a GPU ahead of their use; the GPU is a pretended one."""

import pytest
import torch
from pretended_device import CUDA, DeviceTensor, NotCopiedYetError, PretendedDevice

from debiasbench import reading
from debiasbench.reading import AHEAD, Lane, page_locked
from debiasbench.samples import Samples

N = 1000


@pytest.fixture
def gpu():
    with PretendedDevice("map") as pretended:
        yield pretended


def samples_on_the_host(x=None, length=None):
    """Images are numbers of their place."""
    x = torch.arange(N)[:, None] if x is None else x
    y = torch.arange(len(x))
    return Samples(x, y, y[:, None], length=length).to(CUDA, with_x=False)


def plans():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    return {
        "indices": list(order.split(10)),
        "slices": [slice(start, start + 10) for start in range(0, N, 10)],
        "a short end": [slice(0, 600), slice(600, 1600)],
        "one batch": [order],
        "none": [],
    }


@pytest.mark.parametrize("kind", plans())
def test_each_batch_has_its_own_rows_in_order(kind, gpu):
    x, plan = torch.arange(N)[:, None], plans()[kind]
    samples = samples_on_the_host(x)
    gpu.waits.clear()
    found = list(samples.read(plan))
    assert len(found) == len(plan)
    assert all(isinstance(part, DeviceTensor) for part in found)
    assert all(torch.equal(part.held, x[rows]) for part, rows in zip(found, plan, strict=True))
    assert not gpu.waits


def test_some_batches_are_read_ahead_not_all(gpu, monkeypatch):
    gathered = []
    monkeypatch.setattr(reading, "page_locked", lambda x, rows: gathered.append(rows) or page_locked(x, rows))
    coming = samples_on_the_host().read(plans()["indices"])
    next(coming)
    assert len(gathered) <= AHEAD + 1
    assert len(list(coming)) == 99
    assert len(gathered) == 100


def test_a_pass_reads_ahead_and_never_waits(gpu, monkeypatch):
    """Evaluation and `task.each` go by `map`."""
    ahead = []

    def noted(x, rows):
        ahead.append(rows)
        return page_locked(x, rows)

    monkeypatch.setattr(reading, "page_locked", noted)
    seen = []
    result = samples_on_the_host().map(lambda _, __, x: seen.append(len(ahead)) or x[:, 0] * 2, 10)
    assert torch.equal(result.held, torch.arange(N) * 2)
    assert seen[0] > 1  # others were under way when the first was worked on
    assert not gpu.waits["map"]


def test_texts_are_cut_to_what_their_batch_needs(gpu):
    x = torch.arange(4 * 70).view(4, 70)
    samples = samples_on_the_host(x, torch.tensor([3, 32, 33, 70]))
    shapes = [tuple(part.shape) for part in samples.read([torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3])])]
    assert shapes == [(2, 32), (1, 64), (1, 70)]
    assert torch.equal(samples.map(lambda _, __, part: part[:, 2], 2).held, x[:, 2])


def test_rows_that_cannot_be_read_are_told_where_they_are_asked_for(gpu):
    with pytest.raises(IndexError):
        list(samples_on_the_host().read([torch.tensor([1, 2]), torch.tensor([N])]))


@pytest.mark.parametrize("forgotten", ["wait_event", "record_stream"])
def test_the_pretended_device_tells_what_is_read_before_it_is_there(forgotten, gpu):
    lane = Lane(CUDA)
    rows, copied = lane.send(page_locked(torch.arange(10), slice(0, 4)))
    now = torch.cuda.current_stream(CUDA)
    if forgotten != "wait_event":
        now.wait_event(copied)
    if forgotten != "record_stream":
        rows.record_stream(now)
    with pytest.raises(NotCopiedYetError, match=f"{forgotten} is missing"):
        rows + 1
    assert torch.equal((lane.receive(rows, copied) + 1).held, torch.arange(4) + 1)
