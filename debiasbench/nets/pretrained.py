"""Pretrained weights of library models and encoders: reading, checks, and digests."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path
from debiasbench.nets.base import refuse_not_finite
from debiasbench.nets.library import bare_model, last_linear, parts_of

SHOWN = 3  # entries named in one message


@functools.lru_cache(maxsize=2)
def pretrained_weights(name: str, pretrained: str) -> dict[str, Tensor]:
    """The state dict for a library's model: "imagenet" (torchvision's IMAGENET1K_V1 weights) or from a file.

    A failure is always an error, never a random start.

    Args:
        name: "resnet18" (torchvision's), "torchvision:convnext_tiny", "timm:resnet26".
        pretrained: "imagenet", or the path of a file made by torch.save or safetensors.

    Raises:
        BenchmarkError: the file cannot be read, belongs to another network, or holds values that are not finite; or
            the download failed.
    """
    library, model = parts_of(name) or ("torchvision", name)
    weights = _imagenet(library, model) if pretrained == "imagenet" else None
    bare = bare_model(name)
    expected, head = bare.state_dict(), f"{last_linear(bare)}."
    if weights is not None:
        try:
            contents: Any = weights.get_state_dict(progress=False, check_hash=True)
            _check_name(weights.url)  # torchvision does not check a file that already exists
            state = _network_in(contents, expected, head)
            refuse_not_finite(state)
            return state
        except Exception as error:  # no connection, wrong checksum, or a damaged file, which can raise almost anything
            file = hub_file(weights.url)
            raise BenchmarkError(
                f"The ImageNet weights of {name} could not be downloaded or read ({error}). Fetch {weights.url} "
                f"elsewhere and put it at {file}, or give pretrained=FILE, or pretrained=none for a random start."
            ) from None
    try:
        contents = _read(to_path(pretrained))
    except BenchmarkError:
        raise
    except Exception as error:  # for other files, torch can raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises how to read it anyway
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = "it is another kind of file: a web page, perhaps, or Git LFS' pointer to the file"
            if found:
                reason = f"it holds {found[1]} beside tensors, and reading Python objects could run any code"
        raise BenchmarkError(
            f"pretrained={pretrained} cannot be read as a state dict ({reason}). Give a file made by torch.save of "
            f"a {library} network's state_dict(), or imagenet, or none."
        ) from None
    try:
        state = _network_in(contents, expected, head)
    except (ValueError, RecursionError) as error:
        reason = (
            "a dictionary in it contains itself, or is nested too deeply"
            if isinstance(error, RecursionError)
            else str(error)
        )
        raise BenchmarkError(f"pretrained={pretrained} does not hold {library}'s {model}: {reason}.") from None
    try:
        refuse_not_finite(state)
    except ValueError as error:
        raise BenchmarkError(f"pretrained={pretrained} cannot be used: {error}.") from None
    return state


def needed_weights(name: str, pretrained: str) -> NeededFile | None:
    """The file that has to be downloaded for this network; None if it exists or no download is needed.

    Raises:
        BenchmarkError: this network has no ImageNet weights.
    """
    if pretrained != "imagenet":
        return None
    weights = _imagenet(*(parts_of(name) or ("torchvision", name)))
    path, size = hub_file(weights.url), getattr(weights, "meta", {}).get("_file_size")
    if path.is_file():
        return None
    return NeededFile(path, f"{size:g} MB" if size else "of a size that is not known", weights.url, downloads=True)


def _imagenet(library: str, model: str) -> Any:
    """Torchvision's entry for the ImageNet weights of a model.

    Raises:
        BenchmarkError: the model has no ImageNet weights.
    """
    if library == "torchvision":
        import torchvision

        with contextlib.suppress(KeyError):
            return torchvision.models.get_model_weights(model)["IMAGENET1K_V1"]
    raise BenchmarkError(
        f"pretrained=imagenet means torchvision's IMAGENET1K_V1 weights, and {library}'s {model} has none: give "
        "pretrained=FILE, or pretrained=none for a random start."
    )


def _read(path: Path) -> Any:
    """The contents of a file of weights."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _network_in(contents: Any, expected: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The entries of a library's network in the contents of a file, with the names and types of `expected`.

    Training scripts wrap them: in a dictionary beside the optimiser's state ("state_dict", "model"), and in modules
    that add a prefix to every name ("module.", "backbone."). Whatever the wrapping is called, the only place with a
    complete network is used, and entries beside it are ignored. The last layer, `head`, may be missing, because it is
    new here.

    Raises:
        ValueError: no place holds a complete network, or several do.
    """
    first = next(iter(expected))
    places: dict[str, dict[str, Any]] = {}
    for name, state in _dictionaries(contents):
        prefixes = {key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")}
        for prefix in prefixes | {""}:
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            places[f"{name}{prefix}"] = inside
    problems = {place: _problems(inside, expected, head) for place, inside in places.items()}
    whole = [place for place, complaints in problems.items() if not complaints]
    if len(whole) > 1:
        shown = ", ".join(repr(place.rstrip(".")) for place in sorted(whole))
        raise ValueError(
            f"several networks are in it ({shown}), and it is unclear which one is meant: save that one alone"
        )
    if not whole:
        place = min(problems, key=lambda place: len(problems[place]))
        complaints = problems[place]
        where = f" (below {place.rstrip('.')!r})" if place else ""
        shown = "; ".join(complaints[:SHOWN]) + ("; ..." if len(complaints) > SHOWN else "")
        n = f"{len(complaints)} entr{'ies are' if len(complaints) > 1 else 'y is'}"
        raise ValueError(f"{n} missing, of another shape or not part of it{where}: {shown}")
    return {key: value.to(expected[key].dtype) for key, value in places[whole[0]].items()}


def _dictionaries(contents: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a dictionary of named entries and all nested ones, each with the path to it: "state_dict."."""
    if isinstance(contents, dict):
        yield name, {key: value for key, value in contents.items() if isinstance(key, str)}
        for key, value in contents.items():
            yield from _dictionaries(value, f"{name}{key}.")
    elif not name:
        yield name, {}


def _problems(state: dict[str, Any], expected: dict[str, Tensor], head: str) -> list[str]:
    """A list of the differences between entries and those of the network."""
    problems = []
    for key, wanted in expected.items():
        value = state.get(key)
        if value is None:
            if not key.startswith(head) and not key.endswith("num_batches_tracked"):  # older files lack the latter
                problems.append(f"{key} is missing")
        elif not isinstance(value, Tensor) or value.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{key} is not a tensor of {'decimals' if wanted.is_floating_point() else 'whole numbers'}")
        elif value.shape != wanted.shape and not key.startswith(head):
            problems.append(f"{key} has the shape {tuple(value.shape)} instead of {tuple(wanted.shape)}")
    return problems + [f"{key} is not part of it" for key in sorted(set(state) - set(expected))]


def hub_file(url: str) -> Path:
    """The path where torch's hub keeps the download from an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _check_name(url: str) -> None:
    """Check that the file which torchvision keeps for an address has the checksum whose beginning is in its name."""
    path = hub_file(url)
    told = path.stem.rsplit("-", 1)[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(told):
        raise ValueError(f"{path} has the checksum {found[:8]}, not {told}: it is not the published file")


@functools.lru_cache(maxsize=8)
def weights_sha256(name: str, pretrained: str) -> str:
    """SHA-256 of the pretrained weights, independent of their file's name; "" for a random start.

    Raises:
        BenchmarkError: the weights are not available or not usable.
    """
    if pretrained == "none":
        return ""
    digest = hashlib.sha256()
    if name == "transformer":
        from debiasbench.nets.transformer import encoder_weights

        weights = encoder_weights(pretrained)  # not kept: each network reads them itself
    else:
        weights = pretrained_weights(name, pretrained)
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
