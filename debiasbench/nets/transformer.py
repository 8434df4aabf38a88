"""Encoders of the library transformers as networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from debiasbench.data.encoders import PADDING, first_line, whole_folder
from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net

# ---- networks -------------------------------------------------------------------------------------------------------


class Transformer(Net):
    """A transformers model for sequence classification: its features are what its last linear layer reads.

    So for BERT they come after the pooler and dropout, as PGD's scores need them. The last layer is the head, in the
    library's own initialisation.
    """

    def __init__(self, n_classes: int, encoder: str) -> None:
        super().__init__()
        body, new = load_encoder(encoder, n_classes)
        place, head = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.Linear)][-1]
        assert head.out_features == n_classes, (place, head)
        if f"{place}.weight" not in new:  # the folder is a classifier's: here it starts afresh
            nn.init.normal_(head.weight, std=getattr(body.config, "initializer_range", 0.02))
            nn.init.zeros_(head.bias)
        body.set_submodule(place, nn.Identity())
        self.body, self.head = body, head
        self.n_features = head.in_features
        self.padding_token = int(body.config.pad_token_id or 0)

    def features(self, x: Tensor) -> Tensor:
        """Token numbers (B, L), -1 where padded -> (B, D)."""
        there = x != PADDING
        tokens = torch.where(there, x, self.padding_token).long()
        return self.body(input_ids=tokens, attention_mask=there.long()).logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes), in float32 whatever the precision: in 8 bits many would be equal."""
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features.float())


def load_encoder(encoder: str, n_classes: int) -> tuple[Any, set[str]]:
    """The model, and the names of its weights that are not the encoder's but new."""
    from transformers import AutoModelForSequenceClassification

    folder = whole_folder(encoder)
    try:
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=n_classes, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # transformers raises of almost anything
        raise BenchmarkError(
            f"The encoder {encoder} cannot be loaded ({first_line(error)}). Name the folder of a transformers "
            "encoder: encoder=FOLDER."
        ) from None
    new = set(report["missing_keys"])
    inside = [name for name in new if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    if inside or report["mismatched_keys"]:
        wrong = [*inside, *map(str, report["mismatched_keys"])]
        raise BenchmarkError(
            f"The weights of {encoder} are not whole: {len(wrong)} are missing or of another shape, such as "
            f"{wrong[0]}. They would start at random."
        )
    return model, new


def encoder_weights(encoder: str) -> dict[str, Tensor]:
    """The weights that an encoder brings, without what is new in a classifier.

    Raises:
        BenchmarkError: it cannot be loaded whole.
    """
    with torch.random.fork_rng(devices=[]):
        model, new = load_encoder(encoder, 2)
    return {name: value for name, value in model.state_dict().items() if name not in new}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and reports: that the classifier is new is what is meant."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
