"""Texts as tokens, and encoders of the library transformers as networks.

Nothing here downloads while a grid runs: an encoder is a folder of the user's, or in the cache of the Hugging Face
hub, where `debiasbench prepare` puts it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debiasbench.cache import Cached, cached, shown
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.nets import Net

VERSION = 1  # of how texts become tokens
BLOCK = 2_000  # texts that are tokenised before they are written
PADDING = -1  # in place of a token; the network makes the attention mask from it
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
KINDS = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is downloaded of an encoder
OLDER_KINDS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # if it has no safetensors
# whose positions start behind the number of the padding token
SHIFTED = (
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "longformer",
)


# ---- where encoders are ---------------------------------------------------------------------------------------------


def encoder_folder(encoder: str) -> Path | None:
    """The folder of an encoder: `encoder` itself, or where the hub's cache has it. None if it is not there whole."""
    folder = Path(encoder)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(encoder, local_files_only=True))
        except Exception:  # no such folder, no name of the hub, nothing in its cache: not there
            return None
        if not any((folder / name).is_file() for name in TOKENIZERS):
            return None  # fetched by somebody who needed the network alone
    return folder if any((folder / name).is_file() for name in WEIGHTS) else None  # without: begun, and broken off


def _is_a_place(encoder: str) -> bool:
    """Whether it is meant as a folder; names on the hub are `name` or `owner/name`."""
    return Path(encoder).is_dir() or encoder.startswith((".", "~", "/")) or encoder.count("/") > 1 or "\\" in encoder


def missing_encoder(encoder: str) -> list[NeededFile]:
    """What a dataset needs of its encoder that is not there."""
    if encoder_folder(encoder) is not None:
        return []
    path = Path(encoder)
    if _is_a_place(encoder):
        what = f"it has none of {', '.join(WEIGHTS)}" if path.is_dir() else "there is no such folder"
        source = f"you ({what}): the folder of a transformers encoder, or a name on the Hugging Face hub: encoder=NAME"
        return [NeededFile(path, "config.json, weights, tokenizer", source)]
    source = (
        f"https://huggingface.co/{encoder}: debiasbench prepare downloads it into the cache of the hub; or name a "
        "folder: encoder=FOLDER"
    )
    return [NeededFile(path, "an encoder, 0.3 to 0.5 GB", source, downloads=True)]


def download_encoder(encoder: str) -> None:
    """Fetch an encoder from the Hugging Face hub into its cache.

    Raises:
        BenchmarkError: it could not be fetched.
    """
    if encoder_folder(encoder) is not None or _is_a_place(encoder):
        return
    from huggingface_hub import snapshot_download

    reason = "it holds no weights or no tokenizer that transformers reads"
    try:
        folder = Path(snapshot_download(encoder, allow_patterns=list(KINDS)))
        if not any((folder / name).is_file() for name in WEIGHTS):
            snapshot_download(encoder, allow_patterns=[*KINDS, *OLDER_KINDS])
    except Exception as error:  # the hub raises of almost anything
        reason = _first_line(error)
    if encoder_folder(encoder) is None:
        raise BenchmarkError(
            f"The encoder {encoder} could not be downloaded ({reason}). Fetch https://huggingface.co/{encoder} "
            "elsewhere and name its folder: encoder=FOLDER."
        )


def _whole_folder(encoder: str) -> Path:
    folder = encoder_folder(encoder)
    if folder is None:
        raise BenchmarkError(
            f"The encoder {encoder} is neither a whole folder nor in the hub's cache. Run debiasbench prepare."
        )
    return folder


# ---- tokens ---------------------------------------------------------------------------------------------------------


def tokenizer_of(encoder: str, max_length: int) -> Any:
    """The fast tokenizer of an encoder.

    Raises:
        BenchmarkError: it has no vocabulary, does not belong to the network beside it, or `max_length` is more than
            the network takes.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = _whole_folder(encoder)
    mend = "Name the folder of a whole encoder (its config.json, weights and tokenizer): encoder=FOLDER."
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # transformers raises of almost anything
        raise BenchmarkError(f"The tokenizer of {encoder} cannot be read ({_first_line(error)}). {mend}") from None
    names = [name for name in tokenizer.vocab_files_names.values() if name]
    if not any((folder / name).is_file() for name in names):  # transformers makes an empty one instead
        raise BenchmarkError(f"The tokenizer of {encoder} has no vocabulary ({' or '.join(names)} in {folder}). {mend}")
    if not tokenizer.is_fast:
        raise BenchmarkError(f"{encoder} has no fast tokenizer (tokenizer.json), which is needed here. {mend}")
    n_tokens = getattr(config, "vocab_size", len(tokenizer))
    if len(tokenizer) > n_tokens:
        raise BenchmarkError(
            f"The tokenizer of {encoder} has {len(tokenizer):,} tokens and its network {n_tokens:,}: they do not "
            f"belong together. {mend}"
        )
    longest = getattr(config, "max_position_embeddings", max_length)
    if config.model_type in SHIFTED:
        longest -= (config.pad_token_id or 0) + 1
    if max_length > longest:
        raise BenchmarkError(f"{encoder} takes at most {longest} tokens. Got max_length={max_length}.")
    return tokenizer


def tokenised(name: str, text_sha256: str, texts: Any, n: int, tokenizer: Any, max_length: int) -> Cached:
    """Token numbers int32 (n, max_length), padded with -1: from the cache, if they were made before.

    Args:
        name: what the entry is called on disk, for people.
        text_sha256: of the texts, or of what they follow from.
        texts: a function that gives the n texts; called only if they are not in the cache.
    """
    tokenizer.backend_tokenizer.no_truncation()  # both are set by its file or by its last use, and are in its text
    tokenizer.backend_tokenizer.no_padding()
    identity = {
        "texts": text_sha256, "max_length": max_length, "version": VERSION,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }  # fmt: skip
    shape = (n, 4 * max_length)
    entry = cached(name, identity, shape, lambda: _blocks(name, texts(), tokenizer, max_length))
    return Cached(entry.x.view(torch.int32), entry.sha256)


def _blocks(name: str, texts: Sequence[str], tokenizer: Any, max_length: int) -> Iterator[np.ndarray]:
    for start in shown(range(0, len(texts), BLOCK), f"Tokenising {len(texts):,} texts of {name}"):
        some = list(texts[start : start + BLOCK])
        rows = tokenizer(
            some, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        block = np.full((len(some), max_length), PADDING, dtype="<i4")
        for place, row in enumerate(rows):
            block[place, : len(row)] = row
        yield block.view(np.uint8)


# ---- networks -------------------------------------------------------------------------------------------------------


class Transformer(Net):
    """A transformers model for sequence classification: its features are what its last linear layer reads.

    So for BERT they come after the pooler and dropout, as PGD's scores need them. The last layer is the head, in the
    library's own initialisation.
    """

    def __init__(self, n_classes: int, encoder: str) -> None:
        super().__init__()
        body, new = _load(encoder, n_classes)
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


def _load(encoder: str, n_classes: int) -> tuple[Any, set[str]]:
    """The model, and the names of its weights that are not the encoder's but new."""
    from transformers import AutoModelForSequenceClassification

    folder = _whole_folder(encoder)
    try:
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=n_classes, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # transformers raises of almost anything
        raise BenchmarkError(
            f"The encoder {encoder} cannot be loaded ({_first_line(error)}). Name the folder of a transformers "
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
        model, new = _load(encoder, 2)
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
