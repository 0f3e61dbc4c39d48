"""What weights get after training, on pairs of their own: a trained second look, then σ calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from atomdiffuser.model.checkpoint import load_model, model_card, save_model
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.training.calibration import sigma_offsets
from atomdiffuser.training.second_look import train_second_look
from atomdiffuser.training.settings import TrainSettings, changed, settings_from


def finish_network(
    model: AtomDiffuser, settings: TrainSettings, device: torch.device, report: Callable[[str], None]
) -> dict[str, Any]:
    """Finish a network in place; what to write on its card. One whose maps were not trained is left as it is."""
    if "maps" not in settings.parts:
        return {}
    model.decoder.log_sigma_offset.zero_()
    card: dict[str, Any] = {}
    if settings.look_pairs and settings.look_steps:
        report(f"second look at intensity: {settings.look_pairs} pairs")
        gained = train_second_look(model, settings, device)
        card["second_look"] = {"pairs": settings.look_pairs, "steps": settings.look_steps, "gain": round(gained, 4)}
    report(f"calibration of σ: {settings.calibrate_pairs} pairs of each fluence")
    offset = sigma_offsets(model, settings, device)
    model.decoder.log_sigma_offset.copy_(offset)
    return {**card, "log_sigma_offset": offset.cpu().double().round(decimals=4).tolist()}


def finish_file(
    path: Path, to: Path, changes: dict[str, Any], device: torch.device, report: Callable[[str], None]
) -> str:
    """Finish weights afresh with the settings that their maps were trained with, but for `changes`, and write them;
    returns the new file's hash.
    """
    model, training = load_model(path, device=device), dict(model_card(path)["training"])
    maps = training.get("maps", training)  # of a network whose parts were trained apart
    settings = settings_from(changed(maps.get("settings", {}), changes))
    found = finish_network(model, settings, device, report)
    if found and maps is not training:
        training["maps"] = {name: value for name, value in maps.items() if name not in found}
    return save_model(model, to, training={**training, **found})
