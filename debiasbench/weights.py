"""Trained networks beside their record, saved with `--save-weights` and loaded with `debiasbench.load_predictor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from debiasbench.archives import bytes_of, is_there
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.nets.base import Learnable, Net, bound
from debiasbench.nets.build import build_net
from debiasbench.records import BESIDE, Record, read_record
from debiasbench.training.task import Task


def weights_path(record: Path) -> Path:
    """The file of weights for a record."""
    return record.with_suffix(BESIDE[1])


def has_weights(record: Record) -> bool:
    """Whether the networks of exactly this record exist, not those of an earlier run of its cell."""
    saved = record.result is not None and record.result.weights is not None
    return saved and record.path is not None and is_there(weights_path(record.path))


def save(task: Task, path: Path) -> dict[str, Any]:
    """Save the networks of the predictor to `path`; returns what the record needs to build them again."""
    from safetensors.torch import save as to_bytes

    nets = task.predicting_nets()
    tensors = {
        f"{name}.{key}": value.contiguous() for name, net in nets.items() for key, value in net.state_dict().items()
    }
    write_atomically(path, to_bytes(tensors))
    predict = task.predictor
    if isinstance(predict, nn.Module):
        name = next(name for name, net in nets.items() if net is predict)
        return {"nets": {name: _form(nets[name])}, "net": name}
    return {"nets": {name: _form(net) for name, net in nets.items()}, "function": predict.__name__}


def _form(net: nn.Module) -> dict[str, Any]:
    if isinstance(net, nn.Linear):
        return {"linear": [net.in_features, net.out_features]}
    if isinstance(net, Learnable):
        return {"learnable": list(net.value.shape)}
    assert isinstance(net, Net)
    return {"head": not isinstance(net.head, nn.Identity), "shape": list(net.input_shape), "classes": net.n_classes}


def load(record: Path) -> Callable[[Tensor], Tensor]:
    """Load a predictor: x float (B, C, H, W), normalised as by `augment.to_input` -> logits (B, C).

    It runs on the CPU, in eval mode.

    Raises:
        BenchmarkError: the record has no weights, or their file is missing or damaged.
    """
    from safetensors.torch import load as from_bytes

    content = read_record(record)
    if content.result is None or content.result.weights is None or not has_weights(content):
        raise BenchmarkError(f"{record} has no weights: run its cell with --save-weights.")
    form, cell = content.result.weights, content.cell
    try:
        tensors = from_bytes(bytes_of(weights_path(record)))
        nets = {}
        for name, parts in form["nets"].items():
            net = _build(parts, cell)
            prefix = f"{name}."
            net.load_state_dict({key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)})
            nets[name] = net.eval()
        if "net" in form:
            return nets[form["net"]]
        function = getattr(cell.build_method(), form["function"])
    except Exception as error:  # damaged or foreign weights can raise almost anything
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BenchmarkError(f"{weights_path(record)}: it cannot be read as weights of its record ({why}).") from None
    return bound(function, nets)


def _build(form: dict[str, Any], cell: Cell) -> nn.Module:
    if "linear" in form:
        return nn.Linear(*form["linear"])
    if "learnable" in form:
        return Learnable(tuple(form["learnable"]), 0.0)
    pretrained = cell.recipe["pretrained"] if cell.recipe["net"] == "transformer" else "none"  # its structure is there
    net = build_net(cell.recipe["net"], tuple(form["shape"]), form["classes"], pretrained=pretrained)
    if not form["head"]:
        net.head = nn.Identity()
    return net
