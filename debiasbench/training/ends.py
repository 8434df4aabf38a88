"""Ends of stages, and tensors as files: for stages that are reused and for cells that resume.

Files are safetensors: tensors, and plain values as JSON in the metadata, with a checksum of both. They contain no code.
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
    """The end of a stage, or its current state.

    Attributes:
        nets: network -> its state dict.
        state: the state of the loss.
        losses: mean training loss per sample, by epoch.
        epoch, step: how many epochs and steps are done.
        seconds: seconds of training.
        optimizers: state of the optimisers, if the stage can go on.
    """

    nets: dict[str, Weights]
    state: dict[str, Tensor]
    losses: list[float]
    epoch: int
    step: int
    seconds: float
    optimizers: Optimizers = field(default_factory=dict)

    def to_bytes(self, **more: Any) -> bytes:
        """The content of a file, which also keeps `more` plain values."""
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
        """The inverse of `to_bytes`: the end of the stage, on the device, and the other values.

        Raises:
            ValueError: the data are damaged or something else.
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
    """The state of an optimiser, by "<parameter>.<what>", without learning rates, which the schedule sets."""
    return {
        f"{index}.{what}": value
        for index, values in optimizer.state_dict()["state"].items()
        for what, value in values.items()
        if isinstance(value, Tensor)  # None before the first momentum
    }


def put_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state of another one like it, which is already on the right device.

    `load_state_dict` would leave the buffers contiguous while parameters are channels-last. The fused kernels read both
    in memory order, so the numbers would be wrong without an error.
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
    """The journal on disk does not match this run of `fit`: the cell starts over. Methods must not catch this."""


class Guard(TorchDispatchMode):
    """While active, refuses to compute values from tensors that have none.

    Writes into such tensors are ignored, because they get their later values anyway. torch itself allows much of this:
    a layer without values returns arbitrary memory, and adding nothing is no error.
    """

    paused = False  # True while networks lose or get their values

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check one operation."""
        absent = [one.is_meta for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if Guard.paused or not any(absent):
            return func(*args, **(kwargs or {}))
        into = tree_leaves(args[:1])
        if func._schema.name.endswith("_") and into and all(isinstance(one, Tensor) and one.is_meta for one in into):
            return args[0]
        if not all(absent):
            raise StaleJournalError(f"what has no values yet is read, by {func._schema.name}")
        try:
            made = func(*args, **(kwargs or {}))  # the result has no values either, if the operation works at all
        except (RuntimeError, NotImplementedError) as error:
            raise StaleJournalError(f"what has no values yet is read: {error}") from None
        self._made += [weakref.ref(one) for one in tree_leaves(made) if isinstance(one, Tensor)]
        return made

    def check_nothing_is_held(self) -> None:
        """Refuse to go on if `fit` still holds a tensor without values that was computed from networks without values.

        Raises:
            StaleJournalError: it holds such a tensor.
        """
        if self._holds():
            gc.collect()  # frees reference cycles; only if needed, as it takes a third of a second
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
    """Remove the values of a network, until `fill`; every read of them fails."""
    kept = {id(value) for value in net.state_dict(keep_vars=True).values()}
    with _unguarded():
        for tensor in _tensors(net):
            if id(tensor) in kept and not tensor.is_meta:
                _swap(tensor, tensor.to("meta"))


def fill(net: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a network its values, whether they were removed before or not."""
    with _unguarded():
        for tensor in _tensors(net):
            if tensor.is_meta:
                _swap(tensor, torch.empty_like(tensor, device=device, memory_format=torch.preserve_format))
        net.load_state_dict(weights)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _swap(tensor: Tensor, other: Tensor) -> None:
    """Exchange the contents of a tensor; references to it, such as an optimiser's, stay valid."""
    if isinstance(tensor, nn.Parameter):
        other = nn.Parameter(other.detach(), requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, other)


# ---- files -----------------------------------------------------------------------------------------------------------


def to_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as the content of a safetensors file, with a checksum.

    Raises:
        RuntimeError, KeyError: the format does not support the kind of a tensor.
    """
    from safetensors.torch import save

    flat: dict[str, Tensor] = {}
    places = set()
    for name, value in tensors.items():
        one = value.detach().cpu().contiguous()
        if one.untyped_storage().data_ptr() in places:  # such as tied weights, which the format does not support
            one = one.clone()
        places.add(one.untyped_storage().data_ptr())
        flat[name] = one
    lying = {
        name: value.stride()
        for name, value in tensors.items()
        if not value.is_contiguous() and 0 not in value.stride()  # expanded views come back as copies
    }
    text = json.dumps({"about": about, "strides": lying})
    return save(flat, metadata={"content": text, "checksum": _checksum(flat, text)})


def from_bytes(data: bytes, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `to_bytes`; tensors have their earlier memory layout and are on the device.

    Raises:
        ValueError: the data are damaged or something else.
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
    except Exception as error:  # for other data the library can raise almost anything
        raise ValueError(f"it cannot be read: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """BLAKE2b of contiguous tensors and a text, in hexadecimal."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
