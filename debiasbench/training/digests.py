"""Digests of values, and what distinguishes functions, for the signatures of numbered calls."""

from __future__ import annotations

import functools
import hashlib
import inspect
from typing import Any

from torch import Tensor


def source_of(function: Any) -> str:
    """The source text of a function, if available; for a `partial`, with its values."""
    if function is None:
        return ""
    if isinstance(function, functools.partial):
        return f"{source_of(function.func)} {function.args!r} {sorted(function.keywords.items())!r}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return name_of(function)


def name_of(function: Any) -> str:
    """The name of a function, for messages."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def digest_of(value: Any) -> str:
    """A short digest of plain values or of a tensor's bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        text = f"{data.dtype} {tuple(data.shape)} ".encode() + data.numpy().tobytes()
    else:
        text = repr(value).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()
