"""Isolate cells that share a process: each finds data and global state as they were before the others."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

SMALL = 2**28  # bytes; computing the checksum of this much takes next to no time compared with a cell


# ---- data ------------------------------------------------------------------------------------------------------------


def handed(splits: Splits) -> Splits:
    """The splits with copies of labels, biases and groups, so that a cell can only write into its own copies."""
    copies: dict[int, Samples] = {}
    for samples in splits.named().values():
        if id(samples) not in copies:
            columns: dict[str, Any] = {
                item.name: value.clone()
                for item in dataclasses.fields(samples)
                if item.name != "x" and isinstance(value := getattr(samples, item.name), Tensor)
            }
            copies[id(samples)] = dataclasses.replace(samples, **columns)
    parts: dict[str, Any] = {name: copies[id(samples)] for name, samples in splits.named().items()}
    return dataclasses.replace(splits, **parts)


class Watch:
    """Check that a method has not changed the data that it was given."""

    def __init__(self, splits: Splits) -> None:
        self._tensors = {
            f"{item.name} of {name}": value
            for name, samples in splits.named().items()
            for item in dataclasses.fields(samples)
            if isinstance(value := getattr(samples, item.name), Tensor)
        }
        self._before = self._state()

    def check(self, method: str) -> None:
        """Refuse data that were written into.

        Raises:
            BenchmarkError: a method has changed its data; the message names both.
        """
        after = self._state()
        changed = [name for name, state in self._before.items() if after[name] != state]
        if changed:
            raise BenchmarkError(
                f"{method} changes what it was given ({', '.join(changed)}): its results would no longer "
                "belong to the data that the record names, and neither would those of later cells. Work on a copy "
                "(task.y.clone()), or give per-sample values to the stage as columns=."
            )

    def _state(self) -> dict[str, tuple[int, int]]:
        """The number of writes to each tensor, and a checksum, because writes through NumPy views are not counted."""
        return {name: (tensor._version, _checksum(tensor)) for name, tensor in self._tensors.items()}


def _checksum(tensor: Tensor) -> int:
    if tensor.device.type != "cpu" or tensor.nbytes > SMALL or not tensor.is_contiguous():
        return 0
    return zlib.crc32(tensor.numpy().data.cast("B")) if tensor.numel() else 0


# ---- global state ----------------------------------------------------------------------------------------------------


def _set_environment(kept: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(kept)


def _set_deterministic(kept: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])


def _autocast_nesting() -> int:
    """The number of open autocast contexts, which torch only returns when it changes."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _set_autocast(kept: tuple[bool, int]) -> None:
    torch.set_autocast_enabled("cpu", kept[0])
    while _autocast_nesting() > kept[1]:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()  # otherwise later contexts would use weights cast earlier


def _set_filters(kept: list[Any]) -> None:
    warnings.filters[:] = kept  # type: ignore[index] # it is a list


# hooks that are global by torch's design, and not all of which have a public name
_HOOKS: list[dict[Any, Any]] = [
    hooks
    for module in ("torch.nn.modules.module", "torch.optim.optimizer")
    for name, hooks in vars(sys.modules[module]).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]


def _set_hooks(kept: list[dict[Any, Any]]) -> None:
    for hooks, before in zip(_HOOKS, kept, strict=True):
        hooks.clear()
        hooks.update(before)


# name, for messages -> functions that read it and put it back
_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (lambda: str(torch.get_default_device()), torch.set_default_device),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "the mkldnn flag": (
        lambda: torch.backends.mkldnn.enabled,
        lambda kept: torch.backends.mkldnn.set_flags(_enabled=kept),
    ),
    "the cudnn flags": (
        lambda: (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        lambda kept: torch.backends.cudnn.set_flags(
            _enabled=kept[0], _benchmark=kept[1], _deterministic=kept[2], _allow_tf32=kept[3]
        ),
    ),
    "autocast": (lambda: (torch.is_autocast_enabled("cpu"), _autocast_nesting()), _set_autocast),
    "hooks of all modules or optimizers": (lambda: [dict(hooks) for hooks in _HOOKS], _set_hooks),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the current folder": (lambda: str(Path.cwd()), os.chdir),
    "the environment": (lambda: dict(os.environ), _set_environment),
    "the module path": (lambda: list(sys.path), lambda kept: sys.path.__setitem__(slice(None), kept)),
    "the filters of warnings": (lambda: list(warnings.filters), _set_filters),
}
# state that importing a library may add to (sklearn and torch's compiler do) -> whether the change is only an addition
_ADDED_TO: dict[str, Callable[[Any, Any], bool]] = {
    "the environment": lambda kept, now: kept.items() <= now.items(),
    "the filters of warnings": lambda kept, now: all(one in now for one in kept),
}
_GENERATORS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
]


class GlobalState:
    """The state that all cells of a process share, as it was when this object was made."""

    def __init__(self) -> None:
        self._kept = {name: read() for name, (read, _) in _STATE.items()}
        self._modules = set(sys.modules)
        self._generators = [read() for read, _ in _GENERATORS]
        self._threads = set(threading.enumerate())

    def put_back(self) -> list[str]:
        """Put everything back; returns the names of what had been changed.

        These do not include random generators, which any cell may advance, or state that was only added to while
        modules were imported. A thread that still runs cannot be ended, and is included.
        """
        changed = ["threads that still run"] if set(threading.enumerate()) - self._threads else []
        imported = set(sys.modules) > self._modules
        for name, (read, write) in _STATE.items():
            kept = self._kept[name]
            try:
                now = read()
                differs = now != kept
                by_import = imported and name in _ADDED_TO and _ADDED_TO[name](kept, now)
            except Exception:  # for example, the current folder was deleted
                differs, by_import = True, False
            if differs:
                write(kept)
                if not by_import:
                    changed.append(name)
        torch.set_flush_denormal(False)  # its state cannot be read
        for (_, write), kept in zip(_GENERATORS, self._generators, strict=True):
            write(kept)
        return changed
