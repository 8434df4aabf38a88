"""Encoders of the library transformers as networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from debiasbench.data.encoders import PADDING, first_line, padding_token, whole_folder
from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net, refuse_not_finite
from debiasbench.nets.library import last_linear

MEND = "Name the folder of a transformers encoder: encoder=FOLDER."
PADDING_TOLERANCE = 0.01  # how much padding may change the output; exact networks differ only by rounding
ROUNDING = 1e-5  # relative, of float32

# ---- networks -------------------------------------------------------------------------------------------------------


class Transformer(Net):
    """A transformers model for sequence classification; its features are the input of its last linear layer.

    For BERT, the features therefore come after the pooler and dropout, as PGD's scores need. The last layer is the
    head, with the library's initialisation.
    """

    def __init__(self, n_classes: int, encoder: str) -> None:
        super().__init__()
        body, new = load_encoder(encoder, n_classes)
        place, head = _last_layer(body, n_classes)
        if head.bias is None:  # networks that generate text have none; here every head has one, which PGD's scores use
            head.bias = nn.Parameter(torch.zeros(n_classes))
        if f"{place}.weight" not in new:  # the folder holds a trained classifier: start anew
            nn.init.normal_(head.weight, std=getattr(body.config, "initializer_range", 0.02))
            nn.init.zeros_(head.bias)
        body.set_submodule(place, nn.Identity())
        self.body, self.head = body, head
        self.n_features = head.in_features
        self.takes_ready_mask = _takes_ready_mask(body)

    def features(self, x: Tensor) -> Tensor:
        """Token numbers (B, L), -1 where padded -> (B, D)."""
        # the library reads the values of a raw mask, for which the host would wait for the GPU
        return _output(self.body, x, ready_mask=x.is_cuda and self.takes_ready_mask)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes), always in float32: with 8 bits many would be equal."""
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features.float())


def load_encoder(encoder: str, n_classes: int) -> tuple[Any, set[str]]:
    """Load the model; also returns the names of the weights that are new, not the encoder's."""
    from transformers import AutoModelForSequenceClassification

    folder = whole_folder(encoder)
    try:
        with quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=n_classes, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # transformers can raise almost anything
        raise BenchmarkError(f"The encoder {encoder} cannot be loaded ({first_line(error)}). {MEND}") from None
    model.config.pad_token_id = padding_token(model.config)  # networks that generate text find the end of a text by it
    new = set(report["missing_keys"])
    inside = [name for name in new if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    if inside or report["mismatched_keys"]:
        wrong = [*inside, *map(str, report["mismatched_keys"])]
        raise BenchmarkError(
            f"The weights of {encoder} are not complete: {len(wrong)} are missing or have another shape, such as "
            f"{wrong[0]}. They would start at random."
        )
    return model, new


def encoder_weights(encoder: str) -> dict[str, Tensor]:
    """The weights of an encoder, without those that are new in a classifier.

    Raises:
        BenchmarkError: the encoder is incomplete, has values that are not finite, or cannot train on padded texts.
    """
    with torch.random.fork_rng(devices=[]):
        model, new = load_encoder(encoder, 2)
    weights = {name: value for name, value in model.state_dict().items() if name not in new}
    try:
        refuse_not_finite(weights)
        _last_layer(model, 2)
        _check_padding(model.eval())
    except ValueError as error:
        raise BenchmarkError(f"The encoder {encoder} cannot be used: {error}. {MEND}") from None
    return weights


def _last_layer(model: Any, n_classes: int) -> tuple[str, nn.Linear]:
    """The name of the layer that computes the logits, and the layer.

    Raises:
        ValueError: it is not the last linear layer.
    """
    place = last_linear(model)
    if place is None or model.get_submodule(place).out_features != n_classes:
        raise ValueError("its last linear layer is not the one that gives a number for each class")
    return place, model.get_submodule(place)


def _output(model: Any, x: Tensor, *, ready_mask: bool = False) -> Tensor:
    """The output of a model for token numbers (B, L), -1 where padded.

    `ready_mask`: pass the mask (B, 1, 1, L) that the attention uses, instead of a raw mask (B, L).
    """
    there = x != PADDING
    tokens = torch.where(there, x, model.config.pad_token_id or 0).long()
    return model(input_ids=tokens, attention_mask=there[:, None, None] if ready_mask else there.long()).logits


@torch.no_grad()
def _takes_ready_mask(model: Any) -> bool:
    """Whether a model (in eval mode) gives the same output with a ready mask; not true of left-to-right models, say."""
    try:
        _, batch = _two_texts(model)
        made, ready = _output(model, batch), _output(model, batch, ready_mask=True)
    except Exception:  # transformers can raise almost anything
        return False
    return bool((made - ready).norm() <= ROUNDING * made.norm())


def _two_texts(model: Any) -> tuple[Tensor, Tensor]:
    """A short text (L,) of tokens, and a batch (2, M) of a longer text and the padded short one."""
    ending = getattr(model.config, "eos_token_id", None)
    endings = ending if isinstance(ending, list) else [] if ending is None else [ending]
    special = {model.config.pad_token_id, *endings}
    words = [token for token in range(model.config.vocab_size) if token not in special]
    long = torch.tensor([*words[-5:], *endings[:1]])  # some models read the end of a text
    short = long[3:]
    return short, torch.stack([long, torch.cat([short, torch.full((3,), PADDING)])])


@torch.no_grad()
def _check_padding(model: Any) -> None:
    """Refuse a model that reads padding as text: its output would depend on the rest of the batch.

    Raises:
        ValueError: it does, or it does not run on two texts of different lengths.
    """
    short, batch = _two_texts(model)
    try:
        alone, padded = _output(model, short[None])[0], _output(model, batch)[1]
    except Exception as error:  # transformers can raise almost anything
        raise ValueError(f"its network does not run on texts of different lengths ({first_line(error)})") from None
    if (alone - padded).norm() > PADDING_TOLERANCE * alone.norm():
        raise ValueError(
            "its network reads padding as text: its output changes when a text is padded at its end, as short "
            "ones in a batch are here"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's bars and reports, such as that the classifier is new, which is intended."""
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
