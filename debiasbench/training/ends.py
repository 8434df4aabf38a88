"""What a stage ended with, and tensors as files: for stages that are reused and for cells that go on.

A file is safetensors: tensors, and plain values as JSON in its metadata, with a checksum of both. Nothing in it can
run.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Weights = dict[str, Tensor]
Optimizers = dict[str, dict[str, Tensor]]  # name -> "<parameter>.<what>" -> value


@dataclass(frozen=True)
class StageEnd:
    """What a stage ended with, or where it stands.

    Attributes:
        nets: network -> its state dict. state: the loss's state. losses: mean training loss a sample, by epoch.
        epoch, step: how many it did. seconds: of the training.
        optimizers: their state, where the stage may go on.
    """

    nets: dict[str, Weights]
    state: dict[str, Tensor]
    losses: list[float]
    epoch: int
    step: int
    seconds: float
    optimizers: Optimizers = field(default_factory=dict)

    def to_bytes(self, **more: Any) -> bytes:
        """As the content of a file; `more` plain values are kept with it."""
        groups = {"net": self.nets, "optimizer": self.optimizers, "state": {"": self.state}}
        tensors = {
            json.dumps([kind, name, key]): value
            for kind, parts in groups.items()
            for name, part in parts.items()
            for key, value in part.items()
        }
        about = {"losses": self.losses, "epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        about |= {"nets": list(self.nets), "optimizers": list(self.optimizers), "more": more}
        return to_bytes(tensors, about)

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device) -> tuple[StageEnd, dict[str, Any]]:
        """The inverse of `to_bytes`: what it ended with, on the device, and the values that were kept with it.

        Raises:
            ValueError: damaged, or something else.
        """
        tensors, about = from_bytes(data, device)
        try:
            groups: dict[str, dict[str, Weights]] = {
                "net": {name: {} for name in about["nets"]},
                "optimizer": {name: {} for name in about["optimizers"]},
                "state": {"": {}},
            }
            for place, value in tensors.items():
                kind, name, key = json.loads(place)
                groups[kind][name][key] = value
            end = cls(
                groups["net"], groups["state"][""], about["losses"], about["epoch"], about["step"], about["seconds"],
                groups["optimizer"],
            )  # fmt: skip
            return end, about["more"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no end of a stage: {error}") from None


# ---- optimisers ------------------------------------------------------------------------------------------------------


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers, by "<parameter>.<what>"; learning rates are the schedule's."""
    return {
        f"{index}.{what}": value
        for index, values in optimizer.state_dict()["state"].items()
        for what, value in values.items()
        if isinstance(value, Tensor)  # no momentum yet is None
    }


def put_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimiser what another one like it remembered, on the device where it is to be.

    `load_state_dict` would leave the buffers contiguous beside parameters that are channels-last, and the fused kernels
    walk through both as they lie in memory: wrong numbers, and no error.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for place, value in state.items():
        index, _, what = place.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            like = torch.empty_strided(parameter.shape, parameter.stride(), dtype=value.dtype, device=value.device)
            optimizer.state[parameter][what] = like.copy_(value)
        else:
            optimizer.state[parameter][what] = value


# ---- networks without values -----------------------------------------------------------------------------------------


class StaleJournalError(BaseException):
    """What is on disk is not of this way of `fit`: the cell starts anew. Not for a method to catch."""


class Guard(TorchDispatchMode):
    """While it lasts, no value is made of what has none; what is written into it is lost, as it gets later values.

    torch lets much of it pass: a layer without values gives what lies in memory, and to add nothing is no error.
    """

    paused = False  # while networks lose or get their values

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Each operation."""
        absent = [one.is_meta for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if Guard.paused or not any(absent):
            return func(*args, **(kwargs or {}))
        into = tree_leaves(args[:1])
        if func._schema.name.endswith("_") and into and all(isinstance(one, Tensor) and one.is_meta for one in into):
            return args[0]
        if not all(absent):
            raise StaleJournalError(f"what has no values yet is read, by {func._schema.name}")
        try:
            made = func(*args, **(kwargs or {}))  # without values as well, if it can be made at all
        except (RuntimeError, NotImplementedError) as error:
            raise StaleJournalError(f"what has no values yet is read: {error}") from None
        self._made += [weakref.ref(one) for one in tree_leaves(made) if isinstance(one, Tensor)]
        return made

    def check_nothing_is_held(self) -> None:
        """Refuse to go on where something without values is held that was made of networks, when these have theirs.

        Raises:
            StaleJournalError: a tensor is.
        """
        if self._holds():
            gc.collect()  # only what is in circles: it takes a third of a second
        if self._holds():
            raise StaleJournalError("what has no values yet is read: something that was made of it is held")

    def _holds(self) -> bool:
        return any((one := made()) is not None and one.is_meta for made in self._made)


@contextlib.contextmanager
def _unguarded() -> Iterator[None]:
    before, Guard.paused = Guard.paused, True
    try:
        yield
    finally:
        Guard.paused = before


def without_values(net: nn.Module) -> None:
    """Take the values out of a network, until `fill`: whatever reads one of them fails."""
    kept = {id(value) for value in net.state_dict(keep_vars=True).values()}
    with _unguarded():
        for tensor in _tensors(net):
            if id(tensor) in kept and not tensor.is_meta:
                _swap(tensor, tensor.to("meta"))


def fill(net: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a network its values, where it has some as where they were taken out."""
    with _unguarded():
        for tensor in _tensors(net):
            if tensor.is_meta:
                _swap(tensor, torch.empty_like(tensor, device=device, memory_format=torch.preserve_format))
        net.load_state_dict(weights)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _swap(tensor: Tensor, other: Tensor) -> None:
    """Put other values behind a tensor: whoever holds it, such as an optimiser, holds it still."""
    if isinstance(tensor, nn.Parameter):
        other = nn.Parameter(other.detach(), requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, other)


# ---- files -----------------------------------------------------------------------------------------------------------


def to_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as the content of a safetensors file, with a checksum.

    Raises:
        RuntimeError, KeyError: of a kind that the format does not know.
    """
    from safetensors.torch import save

    flat: dict[str, Tensor] = {}
    places = set()
    for name, value in tensors.items():
        one = value.detach().cpu().contiguous()
        if one.untyped_storage().data_ptr() in places:  # tied weights, say: the format has no place for them
            one = one.clone()
        places.add(one.untyped_storage().data_ptr())
        flat[name] = one
    lying = {
        name: value.stride()
        for name, value in tensors.items()
        if not value.is_contiguous() and 0 not in value.stride()  # views of one value many times come back as copies
    }
    text = json.dumps({"about": about, "strides": lying})
    return save(flat, metadata={"content": text, "checksum": _checksum(flat, text)})


def from_bytes(data: bytes, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `to_bytes`; tensors lie in memory as they did, on the device.

    Raises:
        ValueError: damaged, or something else.
    """
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if _checksum(tensors, header["content"]) != header["checksum"]:
            raise ValueError("its checksum does not fit")
        content = json.loads(header["content"])
        placed = {}
        for name, value in tensors.items():
            stride = content["strides"].get(name)
            if stride is not None:
                value = torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
            placed[name] = value.to(device)
        return placed, content["about"]
    except Exception as error:  # garbage makes the library raise almost anything
        raise ValueError(f"it cannot be read: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """BLAKE2b of contiguous tensors and of a text, in hexadecimal."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
