"""Pretrained weights of torchvision's networks and of encoders: read, checked, told apart."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path


@functools.lru_cache(maxsize=2)
def pretrained_weights(name: str, pretrained: str) -> dict[str, Tensor]:
    """The state dict of a torchvision network: "imagenet" (its IMAGENET1K_V1 weights) or the path of a file.

    Raises:
        BenchmarkError: the file cannot be read or is of another network; the download failed. Never a random start
            instead.
    """
    import torchvision

    expected = torchvision.models.get_model(name, weights=None).state_dict()
    if pretrained == "imagenet":
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
            _check_name(weights.url)  # what was there already is not checked by torchvision
            _check_shapes(state, expected)
        except Exception as error:  # no network, a wrong checksum, or a damaged file, which raises almost anything
            file = _hub_file(weights.url)
            raise BenchmarkError(
                f"The ImageNet weights of {name} could not be downloaded or read ({error}). Fetch {weights.url} "
                f"elsewhere and put it at {file}, or give pretrained=FILE, or pretrained=none for a random start."
            ) from None
        return state
    try:
        state = torch.load(to_path(pretrained), map_location="cpu", weights_only=True)
    except Exception as error:  # what is no state dict makes torch raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchmarkError(
            f"pretrained={pretrained} cannot be read as a state dict ({reason}). Give a file made by torch.save of "
            "a torchvision network's state_dict(), or imagenet, or none."
        ) from None
    try:
        _check_shapes(state, expected)
    except ValueError as error:
        raise BenchmarkError(f"pretrained={pretrained} does not hold torchvision's {name}: {error}.") from None
    return state


def _hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _check_name(url: str) -> None:
    """The file that torchvision keeps of this address must have the checksum that its name begins to tell."""
    path = _hub_file(url)
    told = path.stem.rsplit("-", 1)[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(told):
        raise ValueError(f"{path} has the checksum {found[:8]}, not {told}: it is not the published file")


def _check_shapes(state: Any, expected: dict[str, Tensor]) -> None:
    state = state if isinstance(state, dict) else {}
    wrong = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    wrong += sorted(set(state) - set(expected))
    if wrong:
        raise ValueError(f"{len(wrong)} entries are missing, of another shape or not its own, such as {wrong[0]}")


@functools.lru_cache(maxsize=8)
def weights_sha256(name: str, pretrained: str) -> str:
    """What the pretrained weights are, whatever their file is called; "" for a random start."""
    if pretrained == "none":
        return ""
    digest = hashlib.sha256()
    if name == "transformer":
        from debiasbench.nets.transformer import encoder_weights

        weights = encoder_weights(pretrained)  # not kept: each network reads its own
    else:
        weights = pretrained_weights(name, pretrained)
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
