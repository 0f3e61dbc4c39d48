"""Everything a run needs to go on as if it had never stopped, in safetensors and JSON, each file small enough to carry.

A checkpoint is a folder: `weights.safetensors` (averaged weights, what `load_model` reads), `parameters`,
`first_moments`, `second_moments` (.safetensors) and `state.json`. It is written beside the last one and then takes its
place.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atomdiffuser.errors import StoreError
from atomdiffuser.model.checkpoint import save_model
from atomdiffuser.model.network import AtomDiffuser

WEIGHTS_FILE = "weights.safetensors"
MOMENTS = {"first_moments": "exp_avg", "second_moments": "exp_avg_sq"}


@dataclass
class RunState:
    """Where a run stands.

    Attributes
    ----------
    step
        Steps done.
    total_steps
        Length of the schedule; 0 until the speed is known.
    elapsed_s
        Time spent over all its parts.
    """

    step: int = 0
    total_steps: int = 0
    elapsed_s: float = 0.0


class WeightAverage:
    """Exponential moving average of a network's weights; young averages forget faster."""

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After step number `step` (from 0)."""
        kept = min(self.share, (1 + step) / (10 + step))
        current = model.state_dict()
        torch._foreach_lerp_(list(self.values.values()), [current[k] for k in self.values], 1 - kept)


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, state: RunState,
    training: dict[str, Any],
) -> None:  # fmt: skip
    """Write a checkpoint in the place of the last one."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    described = {
        **training,
        "step": state.step,
        "total_steps": state.total_steps,
        "elapsed_s": round(state.elapsed_s, 1),
    }
    save_weights(fresh / WEIGHTS_FILE, model, average, described)
    on_cpu = lambda t: t.detach().cpu().contiguous()
    save_file({k: on_cpu(v) for k, v in model.state_dict().items()}, fresh / "parameters.safetensors")
    names = {p: k for k, p in model.named_parameters()}
    for file, key in MOMENTS.items():
        save_file({names[p]: on_cpu(s[key]) for p, s in optimizer.state.items()}, fresh / f"{file}.safetensors")
    updates = [int(s["step"]) for s in optimizer.state.values()]
    (fresh / "state.json").write_text(
        json.dumps({**asdict(state), "updates": max(updates, default=0), "training": training})
    )
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, device: torch.device
) -> RunState:
    """Put a run back where `save_checkpoint` left it."""
    described = read_state(folder)
    try:
        model.load_state_dict(load_file(folder / "parameters.safetensors", device=str(device)))
        averaged = load_file(folder / WEIGHTS_FILE, device=str(device))
        for name, value in average.values.items():
            value.copy_(averaged[name])
        moments = {key: load_file(folder / f"{file}.safetensors", device=str(device)) for file, key in MOMENTS.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise StoreError(f"checkpoint {folder} cannot be read: {error}; delete it to start afresh") from error
    for name, parameter in model.named_parameters():
        if name in moments["exp_avg"]:
            step = torch.tensor(float(described["updates"]), device=device if _fused(optimizer) else "cpu")
            in_its_format = {key: torch.empty_like(parameter.detach()).copy_(m[name]) for key, m in moments.items()}
            optimizer.state[parameter] = {"step": step, **in_its_format}
    return RunState(described["step"], described["total_steps"], described["elapsed_s"])


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"checkpoint {folder} cannot be read: {error}; delete it to start afresh") from error


def existing_checkpoint(folder: Path) -> Path | None:
    """The checkpoint, or the one before it when writing was cut short."""
    for place in (folder, folder.with_name(folder.name + ".old")):
        if (place / "state.json").is_file():
            return place
    return None


def save_weights(path: Path, model: nn.Module, average: WeightAverage, training: dict[str, Any]) -> None:
    """The averaged weights alone."""
    if isinstance(model, AtomDiffuser):
        save_model(model, path, training=training, state=average.values)
    else:
        metadata = {"baseline": json.dumps(training, sort_keys=True)}
        save_file({k: v.detach().cpu().contiguous() for k, v in average.values.items()}, path, metadata=metadata)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))
