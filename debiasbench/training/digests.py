"""Digests of values and of functions."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

from torch import Tensor


def source_of(function: Any) -> str:
    """The source text of a function, as far as it can be had."""
    if function is None:
        return ""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__name__)


def digest_of(value: Any) -> str:
    """A short digest of plain values or of a tensor's bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        text = f"{data.dtype} {tuple(data.shape)} ".encode() + data.numpy().tobytes()
    else:
        text = repr(value).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()
