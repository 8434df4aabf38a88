"""Classification models of torchvision and timm by name, such as `torchvision:convnext_tiny`."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import nn

from debiasbench.errors import BenchmarkError
from debiasbench.parameters import suggestion
from debiasbench.plugins import LIBRARIES

ENDING = "A network of your own can be built from it: see docs/adding-a-network.md."


def parts_of(name: str) -> tuple[str, str] | None:
    """The library and the model in a network's name; None if it names no library."""
    library, colon, model = name.partition(":")
    return (library, model) if colon and library in LIBRARIES else None


def check_model(library: str, model: str) -> None:
    """Refuse a model that is not available.

    Raises:
        BenchmarkError: the library is not installed or has no such model.
    """
    if library == "timm" and importlib.util.find_spec("timm") is None:
        raise BenchmarkError(
            f"net=timm:{model} needs the package timm, which is not installed: pip install 'debiasbench[timm]'."
        )
    known = _models_of(library, tagged="." in model)
    if model not in known:
        raise BenchmarkError(
            f"{library} has no classification model '{model}'.{suggestion(model, known)} {len(known)} are known, such "
            f"as {', '.join(known[:3])}."
        )


def _models_of(library: str, *, tagged: bool) -> list[str]:
    """Names of models; `tagged`: those of timm with the tag of their weights, "vit_tiny_patch16_224.augreg_in21k"."""
    if library == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)  # other modules have segmentation, video, ...
    import timm

    return timm.list_pretrained() if tagged else timm.list_models()


def new_model(library: str, model: str, n_channels: int = 3) -> nn.Module:
    """A model as the library makes it, with random start weights; its last layer has the library's width.

    Raises:
        BenchmarkError: it cannot be split into a body and a last linear layer.
    """
    name = f"{library}:{model}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception warn about their initialisation
        made: Any
        if library == "torchvision":
            import torchvision

            made = torchvision.models.get_model(model, weights=None)
        else:
            import timm

            made = timm.create_model(model, pretrained=False, in_chans=n_channels)
    place = last_linear(made)
    classifier = made.get_classifier() if library == "timm" else None
    if place is None or (library == "timm" and made.get_submodule(place) is not classifier):
        raise BenchmarkError(f"The net {name} does not end in one linear layer, which would be its head. {ENDING}")
    if getattr(made, "aux_logits", False):
        raise BenchmarkError(f"The net {name} has further heads, which are trained by losses of their own. {ENDING}")
    return made


def last_linear(model: nn.Module) -> str | None:
    """The path of the last linear layer of a model, such as "classifier.1"; None if it has none."""
    places = [place for place, part in model.named_modules() if isinstance(part, nn.Linear)]
    return places[-1] if places else None


def bare_model(name: str) -> nn.Module:
    """`new_model` for a full name ("resnet18" is torchvision's), without changing torch's global generator."""
    library, model = parts_of(name) or ("torchvision", name)
    with torch.random.fork_rng(devices=[]):
        return new_model(library, model)
