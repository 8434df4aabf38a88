"""What the parity tests have in common: the tolerance, and two ways to train."""

import pytest
import torch
from reference import ADAM, SGD, apart

TOLERANCE = 1e-5


@pytest.fixture
def agree(record_property):
    """Compare with the reference, and keep the largest difference of each quantity as a property of the test."""
    largest = {}

    def compare(quantity, found, expected, tolerance=TOLERANCE):
        difference = apart(found, expected)
        largest[quantity] = max(largest.get(quantity, 0.0), difference)
        assert difference <= tolerance, f"{quantity}: {difference:.1e} apart, more than {tolerance:g}"

    yield compare
    for quantity, difference in largest.items():
        record_property(quantity, f"{difference:.1e}")


@pytest.fixture
def in_float64(monkeypatch):
    """All numbers in float64, also where the suite asks for float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["sgd in float32", "adam in float64"])
def way(request):
    """SGD in float32, as the suite computes, and Adam in float64: it divides by gradients that may be nearly 0."""
    if request.param == "sgd in float32":
        return SGD
    request.getfixturevalue("in_float64")
    return ADAM
