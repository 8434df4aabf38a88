"""The information of the final layer against autograd, Theorem 2 against a numeric search, and a finished run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar

import debiasbench
from debiasbench.data.augment import to_input
from debiasbench.errors import BenchmarkError
from debiasbench.records import arrays_path, read_record
from debiasbench.report.figures import fisher_figure, theorem_figure
from debiasbench.report.fisher import (
    fisher_information,
    gradients_of_sets,
    inverse_trace,
    inverse_traces,
    objective_of_sets,
    of_record,
    optimal_sampling,
)
from debiasbench.report.style import save
from debiasbench.weights import weights_path


def layer(n=300, width=6, n_classes=4, seed=0):
    """Features, logits, labels and weights of a random layer: (N, D), (N, C), (N,), (N,)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64)
    head = torch.randn(n_classes, width, generator=generator, dtype=torch.float64)
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    y = torch.randint(n_classes, (n,), generator=generator)
    return features, features @ head.T, y, weight / weight.sum()


def slow_information(features, logits, y, weight):
    """Over all C (D + 1) parameters, from the gradient of each sample by autograd -> (C (D + 1), C (D + 1))."""
    n_classes, width = logits.shape[1], features.shape[1]
    total = torch.zeros(n_classes * (width + 1), n_classes * (width + 1), dtype=torch.float64)
    for z, row, label, h in zip(features.double(), logits.double(), y, weight, strict=True):
        matrix = torch.zeros(n_classes, width, dtype=torch.float64, requires_grad=True)
        bias = row.clone().requires_grad_()  # logits as they are, where the matrix is zero
        log_likelihood = F.log_softmax(matrix @ z + bias, 0)[label]
        parts = torch.autograd.grad(log_likelihood, [matrix, bias])
        gradient = torch.cat([parts[0].flatten(), parts[1]])
        total += h * gradient[:, None] * gradient
    return total


def slow_trace(total, dimension, damping):
    """Of the inverse on the subspace: over the largest eigenvalues, with the damping relative to their mean."""
    values = torch.linalg.eigvalsh(total).flip(0)
    assert values[dimension:].abs().max() < 1e-12 * values[0]  # what is left out is nothing
    values = values[:dimension]
    return float((1 / (values + damping * values.mean())).sum())


@pytest.mark.parametrize(("width", "n_classes"), [(6, 4), (3, 2), (1, 5)])
@pytest.mark.parametrize("damping", [0.0, 1e-4, 1e-2])
def test_trace_equals_that_of_autograd_over_the_whole_layer(width, n_classes, damping):
    columns = layer(width=width, n_classes=n_classes)
    information = fisher_information(*columns)
    dimension = (n_classes - 1) * (width + 1)
    assert information.shape == (dimension, dimension)
    assert information.dtype == torch.float64
    expected = slow_trace(slow_information(*columns), dimension, damping)
    assert inverse_trace(information, damping) == pytest.approx(expected, rel=1e-8)


def test_trace_without_damping_is_that_of_the_pseudo_inverse():
    columns = layer()
    inverse = torch.linalg.pinv(slow_information(*columns), hermitian=True, rtol=1e-10)
    assert inverse_trace(fisher_information(*columns), 0.0) == pytest.approx(float(inverse.trace()), rel=1e-8)


def test_all_eigenvalues_of_the_layer_are_there():
    columns = layer()
    values = torch.linalg.eigvalsh(fisher_information(*columns))
    whole = torch.linalg.eigvalsh(slow_information(*columns))
    assert int(torch.linalg.matrix_rank(fisher_information(*columns), hermitian=True)) == len(values) == 3 * 7
    torch.testing.assert_close(values, whole[-len(values) :], rtol=1e-9, atol=0)


def test_its_trace_is_the_mean_squared_gradient_norm():
    """Equation 5 and equation 1 speak of the same gradients."""
    from debiasbench.losses import gradient_norm

    features, logits, y, weight = layer()
    expected = (weight * gradient_norm(features, logits, y, order=2.0) ** 2).sum()
    torch.testing.assert_close(fisher_information(features, logits, y, weight).trace(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 7, 299, 1000])
def test_chunks_do_not_change_it(chunk):
    columns = layer()
    torch.testing.assert_close(
        fisher_information(*columns, chunk=chunk), fisher_information(*columns), rtol=1e-12, atol=1e-15
    )


def test_large_layers_are_taken_in_chunks(monkeypatch):
    import debiasbench.report.fisher

    columns = layer()
    whole = fisher_information(*columns)
    monkeypatch.setattr(debiasbench.report.fisher, "CHUNK_VALUES", 50)
    torch.testing.assert_close(fisher_information(*columns), whole, rtol=1e-12, atol=1e-15)


def test_weights_count():
    features, logits, y, weight = layer(n=60)
    uniform = torch.full_like(weight, 1 / 60)
    differs = fisher_information(features, logits, y, weight) - fisher_information(features, logits, y, uniform)
    assert differs.abs().max() > 1e-3
    # a sample drawn twice as often is a sample that is there twice
    doubled = torch.cat([torch.arange(60), torch.arange(20)])
    h = torch.full((60,), 1 / 80, dtype=torch.float64)
    h[:20] *= 2
    torch.testing.assert_close(
        fisher_information(features, logits, y, h),
        fisher_information(features[doubled], logits[doubled], y[doubled], torch.full_like(h[:1], 1 / 80).expand(80)),
        rtol=1e-12, atol=1e-15,
    )  # fmt: skip


def test_a_shift_of_all_logits_changes_nothing():
    features, logits, y, weight = layer()
    shift = torch.linspace(-50, 50, len(y), dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        fisher_information(features, logits + shift, y, weight), fisher_information(features, logits, y, weight),
        rtol=1e-10, atol=1e-13,
    )  # fmt: skip


def test_confident_samples_keep_their_digits():
    """With a margin of 40, p_y is 1 in float64; the gradient is exp(-40) all the same."""
    logits = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    information = fisher_information(torch.zeros(1, 1), logits, torch.tensor([0]), one)
    assert float(information[1, 1]) == pytest.approx(2 * np.exp(-80.0), rel=1e-12)


def test_float32_is_taken_as_it_is():
    features, logits, y, weight = layer()
    features, logits, weight = features.float(), logits.float(), weight.float()
    total = slow_information(features, logits, y, weight.double())
    information = fisher_information(features, logits, y, weight)
    assert inverse_trace(information, 1e-3) == pytest.approx(slow_trace(total, 21, 1e-3), rel=1e-8)


@pytest.mark.parametrize("wrong", ["sum", "sign", "nan", "length"])
def test_weights_that_are_no_distribution_are_refused(wrong):
    features, logits, y, weight = layer()
    if wrong == "sum":
        weight = 2 * weight
    elif wrong == "sign":
        weight[:2] += torch.tensor([1.0, -1.0], dtype=torch.float64)
    elif wrong == "nan":
        weight[0] = torch.nan
    else:
        weight = weight[:-1]
    with pytest.raises(ValueError, match="Lengths differ" if wrong == "length" else "sum to 1"):
        fisher_information(features, logits, y, weight)


def test_damping():
    """Relative to the mean eigenvalue: a scale of the information is one of the trace, whatever the damping."""
    information = fisher_information(*layer())
    traces = inverse_traces(information, [0.0, 1e-4, 1e-3, 1e-2])
    assert traces == sorted(traces, reverse=True)
    assert traces == [inverse_trace(information, damping) for damping in (0.0, 1e-4, 1e-3, 1e-2)]
    torch.testing.assert_close(
        torch.tensor(inverse_traces(1e-9 * information, [0.0, 1e-4, 1e-3, 1e-2])), 1e9 * torch.tensor(traces)
    )
    assert inverse_trace(torch.diag(torch.tensor([1.0, 3.0])), 0.5) == pytest.approx(1 / 2 + 1 / 4)
    with pytest.raises(ValueError, match="at least 0"):
        inverse_trace(information, -1e-3)


def test_directions_without_information():
    """A feature that is always zero: without damping there is no bound."""
    features, logits, y, weight = layer()
    features[:, 0] = 0
    information = fisher_information(features, logits, y, weight)
    assert inverse_trace(information, 0.0) == np.inf
    mean = float(information.trace()) / len(information)
    assert inverse_trace(information, 1e-3) > 3 / (1e-3 * mean)  # three directions of logits are empty
    assert inverse_trace(torch.zeros(2, 2), 1e-3) == np.inf


# ---- Theorem 2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [1.0, 0.3, -2.0])
@pytest.mark.parametrize(("n_major", "n_minor"), [(90, 10), (995, 5), (1, 1), (3, 8)])
def test_the_objective_is_smallest_in_proportion_to_the_gradients(a, n_major, n_minor):
    def objective(h_major):
        """Tr[I_h^-1], from training by hand: the parameter where the weighted loss is smallest, then I_h."""
        h_minor = (1 - n_major * h_major) / n_minor

        def loss(theta):
            return n_major * h_major * (theta + a) ** 2 / 2 + n_minor * h_minor * (theta - a) ** 2 / 2

        theta = minimize_scalar(loss, bracket=(-1, 1), tol=1e-12).x
        return 1 / (n_major * h_major * (theta + a) ** 2 + n_minor * h_minor * (theta - a) ** 2)

    found = minimize_scalar(objective, bounds=(1e-9, 1 / n_major - 1e-9), method="bounded", options={"xatol": 1e-10})
    h_major, h_minor = optimal_sampling(a, n_major, n_minor)
    assert h_major == pytest.approx(found.x, rel=1e-4)
    assert n_major * h_major + n_minor * h_minor == pytest.approx(1)
    assert (h_major, h_minor) == pytest.approx((1 / (2 * n_major), 1 / (2 * n_minor)))
    g_major, g_minor = gradients_of_sets(n_major / (n_major + n_minor), a)
    assert h_major / h_minor == pytest.approx(abs(g_major / g_minor))
    assert objective_of_sets(n_major * h_major, a) == pytest.approx(found.fun)
    share = np.array([0.02, 0.3, 0.9])
    np.testing.assert_allclose(objective_of_sets(share, a), [objective(one / n_major) for one in share])


def test_a_set_that_is_never_drawn_tells_nothing():
    np.testing.assert_array_equal(objective_of_sets([0.0, 1.0], 1.0), [np.inf, np.inf])


@pytest.mark.parametrize("wrong", [(0.0, 5, 5), (1.0, 0, 5), (1.0, 5, 0)])
def test_an_example_without_two_sets_is_refused(wrong):
    with pytest.raises(ValueError, match="no set may be empty"):
        optimal_sampling(*wrong)


# ---- a finished run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Method -> the record of a real run of one epoch a stage, with its weights."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("results")
    options = {"seeds": 1, "epochs": 1, "device": "cpu", "workers": 0, "save_weights": True}
    debiasbench.run(["vanilla", "pgd"], ["cmnist5k"], results_dir=folder, data_dir=folder, **options)
    return {path.parent.name: path for path in folder.glob("records/*/*/s0-*.json")}


@pytest.fixture
def copied(records, tmp_path):
    """A function: method, changed result -> a copy of its record, weights and arrays, with these changes."""

    def copy(method, **changes):
        path = tmp_path / "s0-copy.json"
        content = json.loads(records[method].read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | {"result": content["result"] | changes}), encoding="utf-8")
        for file in (weights_path, arrays_path):
            shutil.copy(file(records[method]), file(path))
        return path

    return copy


@pytest.mark.parametrize("method", ["vanilla", "pgd"])
def test_numbers_of_a_run_are_those_computed_by_hand(records, method):
    found = of_record(records[method], Path(), damping=1e-3)
    cell = read_record(records[method]).cell
    train = cell.build_dataset().build(Path()).train
    net = debiasbench.load_predictor(records[method])
    with torch.no_grad():
        z = net.features(to_input(train.x, cell.build_recipe()))
        p = net.head(z).double().softmax(1).numpy()
    z = np.concatenate([z.double().numpy(), np.ones((len(z), 1))], 1)
    gradients = ((np.eye(10)[train.y.numpy()] - p)[:, :, None] * z[:, None]).reshape(len(z), 650)
    h = {"uniform": np.full(len(z), 1 / len(z))}
    h["objective"] = h["uniform"]
    if method == "pgd":
        score = load_file(arrays_path(records[method]))["score"].double().numpy()
        h["objective"] = score / score.sum()
    for name, weight in h.items():
        total = torch.from_numpy(gradients.T @ (weight[:, None] * gradients))
        for place, damping in enumerate([1e-4, 1e-3, 1e-2]):
            expected = slow_trace(total, 9 * 65, damping)
            assert found["sensitivity"][name][place] == pytest.approx(expected, rel=1e-5)  # features are float32
            assert found["sensitivity"]["damping"][place] == pytest.approx(damping)
        assert found[name] == found["sensitivity"][name][1]
        values = torch.linalg.eigvalsh(total)
        values = values[values > 1e-13 * values[-1]]
        in_rank = float((1 / (values + 1e-3 * values.mean())).sum())
        assert found[f"{name}_in_rank"] == pytest.approx(in_rank, rel=0.01)  # what is zero is a matter of rounding
    assert found["dimension"] == 585
    assert found["mean_eigenvalue"] == pytest.approx(float(total.trace()) / 585, rel=1e-5)  # at h, the last of both
    assert found["rank"] == pytest.approx(len(values), abs=3)
    n_damped = 585 - int((values > 1e-3 * total.trace() / 585).sum())
    assert found["damped_share"] == pytest.approx(n_damped / 585, abs=0.002)
    assert (found["method"], found["net"], found["damping"]) == (method, "simconv1", 1e-3)
    assert found["sampled_by"] == ("score" if method == "pgd" else "uniform")
    assert (found["objective"] == found["uniform"]) == (method == "vanilla")
    json.dumps(found)  # plain values


def test_other_data_are_refused(copied):
    path = copied("vanilla", data={"fingerprint": "0" * 64, "official": True})
    with pytest.raises(BenchmarkError, match=r"not those that .* was trained on .*not 000000000000"):
        of_record(path, Path())


def test_a_record_without_weights_is_refused(copied):
    path = copied("vanilla")
    weights_path(path).unlink()
    with pytest.raises(BenchmarkError, match="has no weights"):
        of_record(path, Path())


def test_a_predictor_of_several_parts_is_refused(copied, records):
    nets = read_record(records["vanilla"]).result.weights["nets"]
    path = copied("vanilla", weights={"nets": nets, "function": "loss"})
    with pytest.raises(BenchmarkError, match="not a single network that ends in a linear layer"):
        of_record(path, Path())


def test_arrays_that_are_gone_are_told(copied):
    """Never uniform instead."""
    path = copied("pgd")
    arrays_path(path).unlink()
    with pytest.raises(BenchmarkError, match="is missing"):
        of_record(path, Path())


def test_scores_that_are_no_distribution_are_refused(copied):
    path = copied("pgd")
    arrays = load_file(arrays_path(path))
    save_file(arrays | {"score": arrays["score"] - arrays["score"].mean()}, arrays_path(path))
    with pytest.raises(BenchmarkError, match="not a sampling distribution"):
        of_record(path, Path())


def test_a_column_of_sampling_comes_before_a_score(copied):
    path = copied("pgd", arrays={"score": "", "sampling": ""})
    arrays = load_file(arrays_path(path))
    ones = torch.ones(len(arrays["score"]))
    save_file(arrays | {"sampling": ones}, arrays_path(path))
    found = of_record(path, Path())
    assert found["sampled_by"] == "sampling"
    assert found["objective"] == pytest.approx(found["uniform"])


# ---- figures ---------------------------------------------------------------------------------------------------------


def invented(method, objective, uniform, **changes):
    """Numbers as of a record."""
    one = {"method": method, "dataset": "cmnist", "net": "simconv1", "damping": 1e-3, "dimension": 585}
    return one | {"objective": objective, "uniform": uniform} | changes


def check_figure(paths):
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    assert paths[0].read_bytes()[:4] == b"%PDF"
    with Image.open(paths[1]) as image:
        image.load()
        assert image.width == 670  # one column
        assert len(image.convert("L").getcolors()) > 50  # not an empty page


def test_figure_3_is_drawn(tmp_path):
    numbers = [
        *(invented("vanilla", value, value) for value in (9e5, 1.2e6)),
        *(invented("pgd", value, 20 * value) for value in (3e4, 5e4, 6e4)),
        invented("pgd", 1e3, 2e3, dataset="mbmnist", net="simconv2", dimension=1161),
    ]
    check_figure(save(fisher_figure(numbers), tmp_path / "new" / "fisher"))
    numbers = [one | {"objective_in_rank": 1e3, "uniform_in_rank": 2e3} for one in numbers]
    check_figure(save(fisher_figure(numbers, in_rank=True), tmp_path / "in-rank"))


def test_theorem_2_is_drawn(tmp_path):
    check_figure(save(theorem_figure(), tmp_path / "theorem"))
    check_figure(save(theorem_figure(a=0.5, sizes=((3, 8),), title="Two sets"), tmp_path / "other"))
