"""Weights as safetensors with the network's settings inside: no pickle, and a hash that names them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from atomdiffuser.errors import StoreError
from atomdiffuser.io.replacing import replacing_file
from atomdiffuser.model.config import ModelConfig
from atomdiffuser.model.network import AtomDiffuser

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DEFAULT_NAME = "default"
METADATA_KEY = "atomdiffuser"
FORMAT = 3


def save_model(
    model: AtomDiffuser, path: Path, *, training: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32,
    state: dict[str, torch.Tensor] | None = None,
) -> str:  # fmt: skip
    """Write weights; returns their hash.

    `training` is any JSON that says how they came about; `state` replaces the model's own weights (an average of them).
    """
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in (state or model.state_dict()).items()}
    described = {"format": FORMAT, "config": model.config.to_dict(), "training": training or {}}
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(described, sort_keys=True)})
    return weights_hash(path)


def join_models(maps: Path, drift: Path, path: Path) -> str:
    """Write one network from two that were trained apart: the maps of the first, the drift of the second.

    Raises
    ------
    StoreError
        When the two have other settings.
    """
    cards = {"maps": model_card(maps), "drift": model_card(drift)}
    if cards["maps"]["config"] != cards["drift"]["config"]:
        raise StoreError(f"{maps} and {drift} hold networks of different settings; train both with the same model")
    first, second = (load_model(p) for p in (maps, drift))
    second.decoder.load_state_dict(first.decoder.state_dict())
    return save_model(second, path, training={name: card["training"] for name, card in cards.items()})


def load_model(name_or_path: str | Path | None = None, *, device: torch.device | str = "cpu") -> AtomDiffuser:
    """A trained network, in evaluation mode.

    Parameters
    ----------
    name_or_path
        A name of shipped weights, or a file that `save_model` or training wrote; None takes the default weights.

    Raises
    ------
    StoreError
        When there are no such weights, or the file is none of ours.
    """
    path = weights_path(name_or_path)
    described = model_card(path)
    model = AtomDiffuser(ModelConfig.from_dict(described["config"]))
    with safe_open(path, framework="pt") as file:
        tensors = {k: file.get_tensor(k).float() for k in file.keys()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise StoreError(f"{path} does not fit its own settings: {error}") from error
    return model.to(device).eval()


def model_card(path: str | Path | None = None) -> dict[str, Any]:
    """What the weights file says about itself: `config`, `training`."""
    path = weights_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{path} is no safetensors file: {error}; expected weights written by atomdiffuser train"
        ) from error
    described = json.loads(text) if text else {}
    if described.get("format") != FORMAT:
        raise StoreError(f"{path} holds no AtomDiffuser weights of format {FORMAT}; train them with atomdiffuser train")
    return described


def weights_path(name_or_path: str | Path | None = None) -> Path:
    """Where weights lie; raises StoreError when they do not."""
    name = str(name_or_path or DEFAULT_NAME)
    shipped = WEIGHTS_FOLDER / f"{name}.safetensors"
    for path in (Path(name), shipped):
        if path.is_file():
            return path
    available = sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors"))
    listed = f"shipped are {', '.join(available)}" if available else "this version ships none"
    raise StoreError(
        f"no weights called {name!r}: {listed}; train them with atomdiffuser train, or give the path of a file"
    )


def weights_hash(path: str | Path | None = None) -> str:
    """SHA-256 of the weights file, hexadecimal."""
    return hashlib.sha256(weights_path(path).read_bytes()).hexdigest()
