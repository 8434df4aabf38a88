"""Compute features of a dataset with a frozen network, for the dataset `features` to read: `debiasbench embed`.

Nothing is downloaded: an encoder is in a file, a folder or a cache.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debiasbench import about
from debiasbench.data.augment import to_input
from debiasbench.data.cache import with_progress
from debiasbench.data.checks import check_splits
from debiasbench.data.encoders import PADDING, first_line, model_folder
from debiasbench.data.features import CONFLICT, EMBEDDING, Embedding, conflict_column, read_embedding
from debiasbench.data.labelled import tidied
from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.files import check_writable, explained_errors, file_name, open_for_writing, to_path
from debiasbench.grid import dataset_from_spec
from debiasbench.nets.base import Net, refuse_not_finite
from debiasbench.nets.library import check_model
from debiasbench.nets.pretrained import hub_file
from debiasbench.nets.split import Split
from debiasbench.nets.transformer import quiet
from debiasbench.plain import to_plain
from debiasbench.recipe import Recipe
from debiasbench.records import read_record
from debiasbench.running.local import worker_devices
from debiasbench.running.plan import check_data
from debiasbench.samples import Samples, Splits
from debiasbench.weights import load

KINDS = {  # kind of encoder -> how to name one
    "torchvision": "torchvision:NAME, with ImageNet weights from torch's hub folder, or --weights FILE",
    "transformers": "transformers:FOLDER, or the name of one in the Hugging Face cache",
    "file": "file:NET.py, a file with a function encoder()",
    "record": "record:RECORD.json, the network of a cell that was run with --save-weights",
}
PIXELS = 224  # image width and height for networks that do not state one


@dataclass(frozen=True)
class Encoder:
    """A frozen network.

    Attributes:
        name: for people and for `embedding.json`; it contains no path.
        network: the module whose weights identify the encoder.
        features: images (B, 3, H, W) as `preprocessing` makes them, or tokens (B, L) with -1 where padded -> (B, D).
        preprocessing: for images: size (width and height in pixels, or None), mean and std (or None); None for text.
        code_sha256: digest of the file that builds the network, if there is one.
        folder: for text, the folder whose tokens the network reads.
    """

    name: str
    network: nn.Module
    features: Callable[[Tensor], Tensor]
    preprocessing: dict[str, Any] | None
    code_sha256: str = ""
    folder: Path | None = None

    @property
    def input(self) -> str:
        """The kind of input: "images" or "text"."""
        return "text" if self.preprocessing is None else "images"

    def recipe(self) -> Recipe:
        """How images are preprocessed: the whole image is resized to a square, without augmentation."""
        return Recipe(augment=False, **(self.preprocessing or {}))

    def weights_sha256(self) -> str:
        """SHA-256 of all parameters and buffers: names, types, shapes and bytes.

        Raises:
            BenchmarkError: some are not finite.
        """
        digest = hashlib.sha256()
        state = self.network.state_dict()
        try:
            refuse_not_finite(state)
        except ValueError as error:
            raise BenchmarkError(f"The encoder {self.name} cannot be used: {error}.") from None
        for key, value in sorted(state.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


# ---- encoders -------------------------------------------------------------------------------------------------------


def encoder_from_spec(spec: str, weights: Path | None = None) -> Encoder:
    """The encoder that `KIND:WHAT` names; `weights`: a file of weights, for torchvision only.

    Raises:
        BenchmarkError: the encoder does not exist, cannot be loaded, or needs something that is not available here.
    """
    kind, colon, what = spec.partition(":")
    if kind not in KINDS or not colon or not what:
        ways = "\n".join(f"  {way}" for way in KINDS.values())
        raise BenchmarkError(f"--encoder must be one of\n{ways}\nGot '{spec}'.")
    if weights is not None and kind != "torchvision":
        raise BenchmarkError(f"--weights is for torchvision's networks; {kind}:... has its own. Leave it out.")
    if kind == "torchvision":
        return _of_torchvision(what, weights)
    return {"transformers": _of_transformers, "file": _of_file, "record": _of_record}[kind](what)


def _of_torchvision(name: str, weights: Path | None) -> Encoder:
    """A torchvision classification model without its last linear layer."""
    import torchvision

    check_model("torchvision", name)
    entries = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
    if weights is None and "IMAGENET1K_V1" not in entries:
        raise BenchmarkError(
            f"torchvision has no IMAGENET1K_V1 weights of {name}: name a file of weights, --weights FILE."
        )
    entry = entries.get("IMAGENET1K_V1") or next(iter(entries.values()))
    if weights is None and not hub_file(entry.url).is_file():
        raise BenchmarkError(
            f"The ImageNet weights of {name} are not there ({hub_file(entry.url)}), and nothing is downloaded here. "
            f"Fetch {entry.url} and put it there, or name a file of weights: --weights FILE."
        )
    preset = entry.transforms()
    size = preset.crop_size[0]
    with torch.random.fork_rng(devices=[]):
        pretrained = "imagenet" if weights is None else str(weights)
        network = Split("torchvision", name, (3, size, size), 1, pretrained).body
    preprocessing = {"size": size, "mean": tuple(preset.mean), "std": tuple(preset.std)}
    return Encoder(f"torchvision:{name}", network, network, preprocessing)


def _of_transformers(given: str) -> Encoder:
    """A model of the library transformers, for images or text, as its configuration says.

    Images: the projection of CLIP and similar models; else the pooler's output; else the first token; for networks
    without tokens, the average over the image. Text: the mean of the last hidden states over the tokens.
    """
    folder = _folder_of(given)
    if folder is None:
        raise BenchmarkError(
            f"The encoder {given} is neither a folder with config.json and weights, nor in the cache of the Hugging "
            f"Face hub, and nothing is downloaded here. Fetch https://huggingface.co/{given} elsewhere and name its "
            "folder: transformers:FOLDER."
        )
    from transformers import AutoModel

    try:
        with quiet():
            network, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # transformers raises almost any type of error
        raise BenchmarkError(f"The encoder {given} cannot be loaded ({first_line(error)}).") from None
    new = [name for name in report["missing_keys"] if "pooler." not in name]
    if new or report["mismatched_keys"]:
        wrong = [*new, *map(str, report["mismatched_keys"])]
        raise BenchmarkError(
            f"The weights of {given} are not complete: {len(wrong)} are missing or have another shape, such as "
            f"{wrong[0]}."
        )
    name = f"transformers:{to_path(given).name if to_path(given).is_dir() else given}"
    has_pooler = not report["missing_keys"]
    if (folder / "preprocessor_config.json").is_file():
        return Encoder(name, network, lambda x: _of_pixels(network, x, has_pooler), _preprocessing(folder, given))
    return Encoder(name, network, lambda x: _of_tokens(network, x), None, folder=folder)


def _folder_of(given: str) -> Path | None:
    """The folder of a transformers model with its settings; None if it does not exist or is incomplete."""
    folder = model_folder(given)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _preprocessing(folder: Path, given: str) -> dict[str, Any]:
    """Size, mean and std, as in the preprocessor settings of a vision model."""
    try:
        said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = said.get("crop_size") if said.get("do_center_crop", False) else said.get("size")
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        normalises = said.get("do_normalize", True)
        mean, std = (tuple(map(float, said[key])) if normalises else None for key in ("image_mean", "image_std"))
        return {"size": int(size or PIXELS), "mean": mean, "std": std}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"The preprocessor_config.json of {given} cannot be used ({type(error).__name__}: {first_line(error)}): "
            "its size, image_mean and image_std are needed."
        ) from None


def _of_pixels(network: Any, x: Tensor, has_pooler: bool) -> Tensor:
    if hasattr(network, "get_image_features"):
        found = network.get_image_features(pixel_values=x)
        return found if isinstance(found, Tensor) else found.pooler_output
    found = network(pixel_values=x)
    pooled = getattr(found, "pooler_output", None)
    if pooled is not None and has_pooler:
        return pooled.flatten(1)
    hidden = found.last_hidden_state
    return hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))


def _of_tokens(network: Any, x: Tensor) -> Tensor:
    there = x != PADDING
    found = network(input_ids=torch.where(there, x, 0).long(), attention_mask=there.long())
    hidden = found.last_hidden_state * there[:, :, None]
    return hidden.sum(1) / there.sum(1, keepdim=True)


def _of_file(given: str) -> Encoder:
    """The encoder that the function `encoder` of a Python file returns; SIZE, MEAN and STD set its preprocessing."""
    path = to_path(given)
    if not path.is_file():
        raise BenchmarkError(f"There is no file {path}: --encoder file:NET.py names one with a function encoder().")
    source = path.read_bytes()
    with _errors_of(path):
        spec = importlib.util.spec_from_file_location("encoder_file", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["encoder_file"] = module  # dataclasses look up their module
        spec.loader.exec_module(module)
        if not callable(getattr(module, "encoder", None)):
            raise BenchmarkError(f"{path} has no function encoder(), which returns the network.")
        with torch.random.fork_rng(devices=[]):
            network = module.encoder()
    if not isinstance(network, nn.Module):
        raise BenchmarkError(f"encoder() of {path} must return a torch.nn.Module. Got {type(network).__name__}.")
    preprocessing: dict[str, Any] = {name.lower(): getattr(module, name, None) for name in ("SIZE", "MEAN", "STD")}
    try:
        Recipe(**preprocessing)
    except BenchmarkError as error:
        raise BenchmarkError(f"SIZE, MEAN or STD of {path}: {error}") from None
    features = network.features if isinstance(network, Net) else network
    return Encoder(f"file:{path.name}", network, features, preprocessing, hashlib.sha256(source).hexdigest())


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn an error in a user's file into one message with the line."""
    try:
        yield
    except BenchmarkError:
        raise
    except Exception as error:  # a user's file may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f", line {lines[-1]}" if lines else ""
        what = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
        raise BenchmarkError(f"{path}{where}: {what}") from None


def _of_record(given: str) -> Encoder:
    """The network of a cell that was run with `--save-weights`, with the preprocessing of its recipe."""
    path = to_path(given)
    cell, network = read_record(path).cell, load(path)
    if not isinstance(network, Net) or cell.build_dataset().input != "images":
        raise BenchmarkError(
            f"The predictor of {cell.title} is not one network of images, so what its features are cannot be told. "
            "Take a record of a method that has one, such as vanilla."
        )
    recipe = cell.build_recipe()
    preprocessing = {"size": network.input_shape[-1], "mean": recipe.mean, "std": recipe.std}
    return Encoder(f"record:{cell.title}", network, network.features, preprocessing)


# ---- embedding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """The result of `embed`.

    Attributes:
        folder: the folder that the dataset `features` reads.
        embedding: how the features were made.
        there: whether the folder held these features already, so that nothing was computed.
    """

    folder: Path
    embedding: Embedding
    there: bool = False


def embed(
    spec: str,
    encoder_spec: str,
    *,
    data_dir: Path,
    output: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
) -> Embedded:
    """Write the features of train, valid and test of a dataset, a table of labels and biases, and how they were made.

    Args:
        spec: a dataset, with inline parameters.
        encoder_spec: one of `KINDS`.
        data_dir: where the files of datasets are.
        output: folder; by default features/DATASET-ENCODER. It appears only when it is complete.
        weights: file with the weights of a torchvision network.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        batch_size: number of samples per forward pass.

    Raises:
        BenchmarkError: something cannot be embedded or written. This is raised before anything is computed, except
            if features are not finite.
    """
    if batch_size < 1:
        raise BenchmarkError(f"--batch-size must be at least 1. Got {batch_size}.")
    place = torch.device(worker_devices(device, 1)[0])
    if place.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"Unsupported device '{device}'. Allowed: auto, cpu, cuda, cuda:0, ...")
    dataset, title = dataset_from_spec(spec)
    names = _columns(dataset)
    encoder = encoder_from_spec(encoder_spec, weights)
    _check_fits(dataset, encoder)
    folder = output or Path("features") / _plain(f"{title}-{encoder.name}")
    before = _what_is_there(folder)
    check_writable(folder.parent, "--output")
    check_data([dataset], data_dir)
    with raised_by(f"The data of {dataset.name} cannot be built"):
        splits = check_splits(dataset, dataset.build(data_dir))
    embedding = _described(dataset, title, splits, encoder, names, place)
    if before is not None:
        if not before.says_the_same(embedding):
            raise BenchmarkError(
                f"{folder} holds other features ({before.encoder} of {before.dataset}). Give another folder with "
                "--output, or delete it."
            )
        if _is_whole(folder, before):
            return Embedded(folder, before, there=True)
    with explained_errors(f"The folder {folder}", "--output"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        writing = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".writing", dir=folder.parent))
        try:
            files = _write(writing, splits, encoder, names, place, batch_size)
            embedding = replace(embedding, files=files)
            (writing / EMBEDDING).write_text(json.dumps(to_plain(embedding), indent=1) + "\n", encoding="utf-8")
            writing.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)  # it is empty, or a damaged copy of the same features
            writing.replace(folder)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    return Embedded(folder, embedding)


def _plain(text: str) -> str:
    """A file name without the characters that have a meaning in the parameters of a dataset."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file_name(text))


def _what_is_there(folder: Path) -> Embedding | None:
    """How the features in a folder were made; None if it is empty or does not exist.

    Raises:
        BenchmarkError: the folder holds something else.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return None
    if not folder.exists():
        return None
    found = read_embedding(folder) if folder.is_dir() else None
    if found is None:
        raise BenchmarkError(
            f"{folder} is there already, and was not written by embed. Give another folder with --output, or delete it."
        )
    return found


def _is_whole(folder: Path, embedding: Embedding) -> bool:
    paths = [folder / name for name in embedding.files]
    return all(path.is_file() and _sha256(path) == embedding.files[path.name] for path in paths)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_fits(dataset: Dataset, encoder: Encoder) -> None:
    """Refuse an encoder whose kind of input, or whose tokens, differ from those of the dataset."""
    if dataset.input == "features":
        raise BenchmarkError(f"{dataset.name} holds features already.")
    if dataset.input != encoder.input:
        raise BenchmarkError(
            f"{encoder.name} is an encoder of {encoder.input}, and {dataset.name} holds {dataset.input}: name one that "
            "takes that."
        )
    if encoder.folder is not None:
        of_tokens = dataset.own_recipe.pretrained
        if _folder_of(of_tokens) != encoder.folder:
            raise BenchmarkError(
                f"The tokens of {dataset.name} are those of {of_tokens}, and {encoder.name} reads its own. Name one "
                f"for both: debiasbench embed {dataset.name}:encoder=FOLDER --encoder transformers:FOLDER"
            )


def _columns(dataset: Dataset) -> tuple[str, ...]:
    """The names of the biases as columns of the table.

    Raises:
        BenchmarkError: a name equals that of another column or of another bias.
    """
    names = tuple(tidied(name).lower() for name in dataset.bias_names)
    if len(set(names)) < len(names) or any(name in ("y", "split", "") or name.startswith(CONFLICT) for name in names):
        raise BenchmarkError(
            f"The biases of {dataset.name} ({', '.join(dataset.bias_names)}) cannot be columns of a table beside y, "
            f"split and {CONFLICT}: they must be different, and called otherwise."
        )
    return names


def _described(
    dataset: Dataset, title: str, splits: Splits, encoder: Encoder, names: tuple[str, ...], device: torch.device
) -> Embedding:
    """The content of `embedding.json`, without the files, which are not written yet."""
    import torchvision
    import transformers

    versions = {
        "debiasbench": about.version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    note = splits.note
    if splits.train.groups is not None:
        note += f" Of {dataset.name} the groups that overlap are not kept."
    return Embedding(
        encoder=encoder.name, weights_sha256=encoder.weights_sha256(), code_sha256=encoder.code_sha256,
        preprocessing=json.loads(json.dumps(encoder.preprocessing or {})), dataset=title,
        fingerprint=splits.fingerprint(), official=splits.official, note=note.strip(), class_names=dataset.class_names,
        bias_names=names, files={}, conflict_ratio=dataset.conflict_ratio, versions=versions, device=device.type,
        bias_values=dataset.bias_values,
    )  # fmt: skip


def _write(
    folder: Path, splits: Splits, encoder: Encoder, names: Sequence[str], device: torch.device, batch_size: int
) -> dict[str, str]:
    """Write the table and the features into a folder -> SHA-256 of each file of features."""
    parts = {split: samples for split, samples in splits.named().items() if split != "tune"}
    (folder / "metadata.csv").write_bytes(_table(parts, names).encode())
    encoder.network.eval().requires_grad_(False).to(device)
    return {
        f"{split}.npy": _write_features(folder / f"{split}.npy", samples, encoder, device, batch_size)
        for split, samples in parts.items()
    }


def _table(parts: dict[str, Samples], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["y", "split", *names, *(conflict_column(name, names) for name in names)])
    for split, samples in parts.items():
        y, bias, conflicting = samples.y.tolist(), samples.bias.tolist(), samples.conflicting.int().tolist()
        writer.writerows([label, split, *values, *odd] for label, values, odd in zip(y, bias, conflicting, strict=True))
    return text.getvalue()


def _write_features(path: Path, samples: Samples, encoder: Encoder, device: torch.device, batch_size: int) -> str:
    """Write the features of a split batch by batch -> SHA-256 of the file.

    Raises:
        BenchmarkError: the encoder raises an error, or does not give finite features (B, D).
    """
    recipe, digest, width = encoder.recipe(), hashlib.sha256(), None
    plan = [slice(start, min(start + batch_size, len(samples))) for start in range(0, len(samples), batch_size)]
    note = f"Embedding {len(samples):,} samples of {path.stem}"
    batches = samples.to(device, with_x=False).read(plan)
    with open_for_writing(path) as file, torch.inference_mode():
        for rows, x in zip(with_progress(plan, note), batches, strict=True):
            block = _features_of(encoder, recipe, x, f"{path.stem}, from {rows.start + 1:,} on")
            if width is None:
                width = block.shape[1]
                head = io.BytesIO()
                shape = {"descr": "<f4", "fortran_order": False, "shape": (len(samples), width)}
                np.lib.format.write_array_header_1_0(head, shape)
                file.write(head.getvalue())
                digest.update(head.getvalue())
            data = np.ascontiguousarray(block.cpu().numpy(), dtype="<f4").data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def _features_of(encoder: Encoder, recipe: Recipe, x: Tensor, where: str) -> Tensor:
    """Finite float32 features (B, D) of stored samples; `where`: which samples, for messages."""
    try:
        found: Any = encoder.features(to_input(x, recipe))
    except BenchmarkError:
        raise
    except Exception as error:  # a user's network may raise anything
        said = f"{type(error).__name__}: {first_line(error)}"
        raise BenchmarkError(
            f"The encoder {encoder.name} does not take the samples, {tuple(x.shape[1:])} each ({said})."
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x) or not found.is_floating_point():
        got = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise BenchmarkError(
            f"The encoder {encoder.name} must give features, decimals (B, D), one row per sample: of {len(x)} samples "
            f"it gave {got}. Pool what it gives, such as x.mean((2, 3))."
        )
    n_bad = int((~torch.isfinite(found)).any(1).sum())
    if n_bad:
        raise BenchmarkError(
            f"The encoder {encoder.name} gives NaN or infinite values for {n_bad} of {len(x)} samples of {where}."
        )
    return found.float()
