"""Stateless randomness: every generator depends only on a purpose and numbers, never on earlier draws.

The numbers are (seed, call number, epoch, step), as far as they apply. So a skipped or resumed stage draws the same
values as in an uninterrupted run, and a new draw in one place changes no other.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal["data", "init", "order", "augment", "dropout", "permutation", "noise", "once", "statistics"]


def derived_seed(purpose: Purpose, *numbers: int) -> int:
    """A 63-bit seed from a purpose and numbers."""
    text = purpose + "".join(f" {number}" for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_dropout(device: torch.device, *numbers: int) -> None:
    """Seed the global generators, from which dropout layers draw; call it inside `torch.random.fork_rng`."""
    # torch.manual_seed does the same, but walks the stack at each call until CUDA is in use
    torch.default_generator.manual_seed(derived_seed("dropout", *numbers))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed("dropout", *numbers))


def derived_generator(purpose: Purpose, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator, seeded from a purpose and numbers."""
    return torch.Generator(device).manual_seed(derived_seed(purpose, *numbers))
