"""JTT: the error set of a first training, and the second training on more copies of it."""

import pytest
from reference import SGD, images, logits_of, plain_loss, replay, task_for


def test_jtt_equals_a_plain_loop(new_method, way, agree):
    """Section 4.4: errors of one clean pass after T epochs; in the second training each comes lambda_up times."""
    method = new_method("jtt", T=2, lambda_up=3.0)
    task = task_for(method, way)
    method.fit(task)
    first, second = task.runs
    net = replay(first, plain_loss, way(), agree)["net"]
    assert {int(step.batch.epoch) for step in first.steps} == {0, 1}
    wrong = [int(logits_of(net, x).argmax()) != y for x, y in images(task)]
    assert task.journal.columns["selected"].tolist() == wrong
    assert 3 < sum(wrong) < 29
    assert counts(second) == [[3 if error else 1 for error in wrong]] * 3
    replay(second, plain_loss, way(), agree)


def test_jtt_as_released_equals_a_plain_loop(new_method, way, agree):
    """Errors are noted in the epoch of index T, each batch before its update, and lambda_up copies are added."""
    method = new_method("jtt", T=1, lambda_up=3.0, error_pass="online", copies="lambda+1")
    task = task_for(method, way)
    method.fit(task)
    first, second = task.runs
    wrong = {}

    def noting(nets, batch):
        for sample, x, y in zip(batch.index.tolist(), batch.x, batch.y.tolist(), strict=True):
            wrong[int(batch.epoch), sample] = int(logits_of(nets["net"], x).argmax()) != y
        return plain_loss(nets, batch)

    replay(first, noting, way(), agree)
    assert {epoch for epoch, _ in wrong} == {0, 1}
    expected = [wrong[1, sample] for sample in range(32)]
    assert task.journal.columns["selected"].tolist() == expected
    assert expected != [wrong[0, sample] for sample in range(32)]
    assert counts(second) == [[4 if error else 1 for error in expected]] * 3
    replay(second, plain_loss, way(), agree)


def test_the_first_training_of_jtt_steps_as_it_is_told(new_method, way, agree):
    """SGD with momentum .9 and its own rate, decay and batches, whatever the dataset's recipe has."""
    options = {"first_optimizer": "sgd", "first_learning_rate": 0.02, "first_weight_decay": 0.1, "first_batch_size": 4}
    method = new_method("jtt", T=1, lambda_up=3.0, **options)
    task = task_for(method, way, schedule="cosine", clip_norm=1e-3)
    method.fit(task)
    first, _ = task.runs
    assert [len(step.batch.y) for step in first.steps] == [4] * 8
    replay(first, plain_loss, SGD(0.02, 0.1), agree)


@pytest.mark.parametrize(("copies", "fewest"), [("lambda", 2), ("lambda+1", 3)])
def test_a_fractional_lambda_repeats_by_whole_copies(new_method, copies, fewest):
    """Of 2.25 copies each error comes twice, and a quarter of the errors, the same in all epochs, once more."""
    method = new_method("jtt", T=1, lambda_up=2.25, copies=copies)
    task = task_for(method, SGD)
    method.fit(task)
    wrong = task.journal.columns["selected"].tolist()
    epochs = counts(task.runs[1])
    assert epochs == [epochs[0]] * 3
    times = sorted(number for number, error in zip(epochs[0], wrong, strict=True) if error)
    n_more = round(0.25 * sum(wrong))
    assert 0 < n_more < sum(wrong)
    assert times == [fewest] * (sum(wrong) - n_more) + [fewest + 1] * n_more
    assert {number for number, error in zip(epochs[0], wrong, strict=True) if not error} == {1}


def counts(run):
    """How often each sample comes in each epoch."""
    seen = {}
    for step in run.steps:
        seen.setdefault(int(step.batch.epoch), []).extend(step.batch.index.tolist())
    return [[seen[epoch].count(sample) for sample in range(32)] for epoch in sorted(seen)]
