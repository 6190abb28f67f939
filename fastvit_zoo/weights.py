"""Weights from a file or a hub into a model: all of them, or a ZooError and an untouched model."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastvit_zoo.errors import ZooError
from fastvit_zoo.names import deployed, from_timm

try:
    import safetensors
    import safetensors.torch
except ImportError:
    safetensors = None
try:
    import huggingface_hub
except ImportError:
    huggingface_hub = None

HUB = "hf-hub:"
PICKLED = (".pth", ".pt", ".pth.tar")
NESTS = ("state_dict", "model", "state_dict_ema")  # where training scripts put the weights, beside the optimizer's


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Copy the weights of `checkpoint` into `model`; every name and shape must agree.

    checkpoint: a .safetensors, .pth, .pt or .pth.tar file, or "hf-hub:org/repo[/file]", under the published code's
    names or timm's.
    Raises ZooError, and leaves the model as it was, if there is no such file or it does not fit.
    """
    state = from_timm(read_state(checkpoint))
    _check_names(model.state_dict(), state, checkpoint)
    _check_shapes(model.state_dict(), state, checkpoint)
    model.load_state_dict(state, strict=True)


def read_state(checkpoint: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU. Raises ZooError if it cannot be found or read."""
    text = str(checkpoint)
    path = _download(text) if text.startswith(HUB) else Path(checkpoint)
    if not path.is_file():
        raise ZooError(f"checkpoint '{checkpoint}': there is no such file; give a path, or '{HUB}org/repo[/file]'.")
    if path.name.endswith(".safetensors"):
        return _read_safetensors(path)
    if path.name.endswith(PICKLED):
        return _read_pickled(path)
    raise ZooError(f"checkpoint '{checkpoint}': the name must end in .safetensors, {', '.join(PICKLED)}.")


def _download(text: str) -> Path:
    """hf-hub:org/repo[/file], file model.safetensors unless given, in the hub's local cache."""
    if huggingface_hub is None:
        raise ZooError(f"checkpoint '{text}' needs huggingface_hub: pip install repcompile[zoo]")
    organisation, _, rest = text.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not organisation or not name:
        raise ZooError(f"checkpoint '{text}': the form is '{HUB}org/repo' or '{HUB}org/repo/file'.")
    repo, file = f"{organisation}/{name}", file or "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file))  # pyright: ignore[reportUnknownMemberType]
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        raise ZooError(f"checkpoint '{text}': the hub did not give the file; it says: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if safetensors is None:
        raise ZooError(f"checkpoint '{path}' needs safetensors: pip install repcompile[zoo]")
    try:
        return safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]
    except safetensors.SafetensorError as error:
        raise ZooError(f"checkpoint '{path}': not a readable safetensors file; the reader says: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors only: weights_only=True runs no code from the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ZooError(
            f"checkpoint '{path}': torch.load(weights_only=True) cannot read it; it must hold tensors and plain "
            f"containers only. Save the model's state_dict(). torch says: {_first_line(error)}"
        ) from error
    return _state_in(content, path)


def _state_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a training script saved: the content itself, or the first of NESTS in it."""
    if isinstance(content, Mapping):
        found = cast(Mapping[Any, Any], content)
        state = next((found[nest] for nest in NESTS if nest in found), found)
        if isinstance(state, Mapping):
            tensors = cast(Mapping[Any, Any], state)
            if tensors and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
                return dict(tensors)
    raise ZooError(
        f"checkpoint '{path}': no state dict in it; needed is a dict from names to tensors, by itself or under "
        f"{', '.join(repr(nest) for nest in NESTS)}."
    )


def _check_names(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if not missing and not unexpected:
        return
    if marks := [name for name in given if deployed(name)]:
        raise ZooError(
            f"checkpoint '{checkpoint}' is the deployed form, its branches already merged ({_some(marks)}); the "
            "training form is needed. Give the checkpoint from before the conversion."
        )
    raise ZooError(
        f"checkpoint '{checkpoint}' has other names than the model: missing {_some(missing)}; unexpected "
        f"{_some(unexpected)}. Is it of another variant?"
    )


def _check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    wrong = [name for name in wanted if wanted[name].shape != given[name].shape]
    if not wrong:
        return
    classes, width = given["head.bias"].numel(), wanted["head.weight"].shape[1]
    only_classes = wrong == ["head.weight", "head.bias"] and given["head.weight"].shape == (classes, width)
    advice = f"Pass num_classes={classes}." if only_classes else "Is it of another variant?"
    shapes = [f"{name} is {tuple(given[name].shape)}, needed {tuple(wanted[name].shape)}" for name in wrong]
    raise ZooError(f"checkpoint '{checkpoint}' has other shapes than the model: {_some(shapes)}. {advice}")


def _some(names: list[str], most: int = 3) -> str:
    """The first few, and how many more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + rest


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
