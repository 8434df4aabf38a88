"""Texts as tokens, and the folders of encoders.

Nothing here downloads while a grid runs. An encoder is a folder of the user or in the cache of the Hugging Face hub,
where `debiasbench prepare` puts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debiasbench.data.cache import Cached, cached, with_progress
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path

VERSION = 1  # of the tokenisation
BLOCK = 2_000  # texts tokenised between two writes
PADDING = -1  # in place of a token; the network derives the attention mask from it
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
KINDS = ("*.json", "*.txt", "*.model", "*.safetensors")  # files of an encoder that are downloaded
OLDER_KINDS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # if it has no safetensors
# their positions start after the number of the padding token
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


def model_folder(given: str) -> Path | None:
    """The folder of a transformers model: `given` itself or its folder in the hub's cache. None without weights."""
    folder = to_path(given)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(given, local_files_only=True))
        except Exception:  # no such folder, no such name, or not in the cache
            return None
    return folder if any((folder / name).is_file() for name in WEIGHTS) else None  # otherwise an interrupted download


def encoder_folder(encoder: str) -> Path | None:
    """The folder of an encoder, as in `model_folder`; None if it is missing or incomplete."""
    folder = model_folder(encoder)
    if folder is None or to_path(encoder).is_dir() or any((folder / name).is_file() for name in TOKENIZERS):
        return folder
    return None  # downloaded for the network only


def _is_a_place(encoder: str) -> bool:
    """Whether the user means a folder; names on the hub are `name` or `owner/name`."""
    return to_path(encoder).is_dir() or encoder.startswith((".", "~", "/")) or encoder.count("/") > 1 or "\\" in encoder


def missing_encoder(encoder: str) -> list[NeededFile]:
    """The files of its encoder that a dataset needs and that are missing."""
    if encoder_folder(encoder) is not None:
        return []
    path = to_path(encoder)
    if _is_a_place(encoder):
        what = f"it has none of {', '.join(WEIGHTS)}" if path.is_dir() else "there is no such folder"
        source = f"you ({what}): the folder of a transformers encoder, or a name on the Hugging Face hub: encoder=NAME"
        return [NeededFile(path, "config.json, weights, tokenizer", source, for_x_alone=True)]
    source = (
        f"https://huggingface.co/{encoder}: debiasbench prepare downloads it into the cache of the hub; or name a "
        "folder: encoder=FOLDER"
    )
    return [NeededFile(path, "an encoder, 0.3 to 0.5 GB", source, downloads=True, for_x_alone=True)]


def download_encoder(encoder: str) -> None:
    """Download an encoder from the Hugging Face hub into its cache.

    Raises:
        BenchmarkError: the download failed.
    """
    if encoder_folder(encoder) is not None or _is_a_place(encoder):
        return
    from huggingface_hub import snapshot_download

    reason = "it holds no weights or no tokenizer that transformers reads"
    try:
        folder = Path(snapshot_download(encoder, allow_patterns=list(KINDS)))
        if not any((folder / name).is_file() for name in WEIGHTS):
            snapshot_download(encoder, allow_patterns=[*KINDS, *OLDER_KINDS])
    except Exception as error:  # the hub can raise almost anything
        reason = first_line(error)
    if encoder_folder(encoder) is None:
        raise BenchmarkError(
            f"The encoder {encoder} could not be downloaded ({reason}). Fetch https://huggingface.co/{encoder} "
            "elsewhere and name its folder: encoder=FOLDER."
        )


def whole_folder(encoder: str) -> Path:
    """The folder of a complete encoder.

    Raises:
        BenchmarkError: it is missing or incomplete.
    """
    folder = encoder_folder(encoder)
    if folder is None:
        raise BenchmarkError(
            f"The encoder {encoder} is neither a whole folder nor in the hub's cache. Run debiasbench prepare."
        )
    return folder


# ---- tokens ---------------------------------------------------------------------------------------------------------


def tokenizer_of(encoder: str, max_length: int) -> Any:
    """The fast tokenizer of an encoder. It needs no token for padding or masks, because this module pads texts.

    Raises:
        BenchmarkError: it has no vocabulary or does not belong to the network beside it; or that network has no token
            usable as padding, or takes fewer tokens than `max_length`.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = whole_folder(encoder)
    mend = "Name the folder of a whole encoder (its config.json, weights and tokenizer): encoder=FOLDER."
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # transformers can raise almost anything
        raise BenchmarkError(f"The tokenizer of {encoder} cannot be read ({first_line(error)}). {mend}") from None
    names = [name for name in tokenizer.vocab_files_names.values() if name]
    if not any((folder / name).is_file() for name in names):  # transformers would make an empty tokenizer
        raise BenchmarkError(f"The tokenizer of {encoder} has no vocabulary ({' or '.join(names)} in {folder}). {mend}")
    if not tokenizer.is_fast:
        raise BenchmarkError(f"{encoder} has no fast tokenizer (tokenizer.json), which is needed here. {mend}")
    n_tokens = getattr(config, "vocab_size", len(tokenizer))
    if len(tokenizer) > n_tokens:
        raise BenchmarkError(
            f"The tokenizer of {encoder} has {len(tokenizer):,} tokens and its network {n_tokens:,}: they do not "
            f"belong together. {mend}"
        )
    if padding_token(config) is None:
        raise BenchmarkError(
            f"{encoder} has neither a padding token nor one that ends a text (pad_token_id and eos_token_id in its "
            "config.json), so that texts of different lengths cannot be in one batch. Add one of them there, or name "
            "another encoder: encoder=FOLDER."
        )
    n_positions = getattr(config, "max_position_embeddings", None)
    if n_positions is not None and n_positions > 0:  # XLNet has -1 and T5 none: their positions are relative
        longest = n_positions - ((config.pad_token_id or 0) + 1 if config.model_type in SHIFTED else 0)
        if max_length > longest:
            raise BenchmarkError(f"{encoder} takes at most {longest} tokens. Got max_length={max_length}.")
    return tokenizer


def padding_token(config: Any) -> int | None:
    """The token used as padding: the encoder's padding token, else its end-of-text token, else None.

    Networks that generate text have only the latter; it does not occur in the middle of a text.
    """
    ending = getattr(config, "eos_token_id", None)
    candidates = [getattr(config, "pad_token_id", None), *(ending if isinstance(ending, list) else [ending])]
    n_tokens = getattr(config, "vocab_size", None)
    usable = (token for token in candidates if token is not None and 0 <= token < (n_tokens or token + 1))  # -1: none
    return next(usable, None)


def tokenised(name: str, text_sha256: str, texts: Any, n: int, tokenizer: Any, max_length: int) -> Cached:
    """Token numbers int32 (n, max_length), padded with -1; from the cache, if they were made before.

    Args:
        name: readable name of the entry on disk.
        text_sha256: SHA-256 of the texts, or of what determines them.
        texts: a function that returns the n texts; called only if the tokens are not in the cache.

    Raises:
        BenchmarkError: a text has no token.
    """
    tokenizer.backend_tokenizer.no_truncation()  # its file or last use may set these, and they are in its text
    tokenizer.backend_tokenizer.no_padding()
    identity = {
        "texts": text_sha256, "max_length": max_length, "version": VERSION,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }  # fmt: skip
    shape = (n, 4 * max_length)
    entry = cached(name, identity, shape, lambda: _blocks(name, texts(), tokenizer, max_length))
    return Cached(entry.x.view(torch.int32), entry.sha256)


def _blocks(name: str, texts: Sequence[str], tokenizer: Any, max_length: int) -> Iterator[np.ndarray]:
    for start in with_progress(range(0, len(texts), BLOCK), f"Tokenising {len(texts):,} texts of {name}"):
        some = list(texts[start : start + BLOCK])
        rows = tokenizer(
            some, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        block = np.full((len(some), max_length), PADDING, dtype="<i4")
        for place, row in enumerate(rows):
            if not row:  # the tokenizer adds no token for the beginning or end
                raise BenchmarkError(
                    f"The tokenizer gives no token for text {start + place + 1:,} of {name} ({some[place][:40]!r}). "
                    "Remove it, or name another encoder: encoder=FOLDER."
                )
            block[place, : len(row)] = row
        yield block.view(np.uint8)


def first_line(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
