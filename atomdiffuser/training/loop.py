"""The training loop: one command that may stop at any time and goes on exactly where it stopped."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atomdiffuser._version import __version__
from atomdiffuser.errors import SettingsError
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.training.batches import BatchSource
from atomdiffuser.training.finishing import finish_network
from atomdiffuser.training.log import TrainingLog
from atomdiffuser.training.objectives import build_network, objective_of
from atomdiffuser.training.settings import TrainSettings
from atomdiffuser.training.state import (
    RunState,
    WeightAverage,
    existing_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
    save_weights,
)
from atomdiffuser.training.stepping import clip_gradients, decaying, learning_rate
from atomdiffuser.training.validation import Validation

SPEED_FROM, SPEED_UNTIL = 30, 100  # steps that fix the length of a schedule given in minutes
LOG_EVERY = 20
REPORT_EVERY_S = 5.0
MAY_CHANGE = ("checkpoint_minutes", "compile")


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    total_steps: int
    finished: bool
    weights: Path


def train(
    settings: TrainSettings, folder: Path, *, device: torch.device | str = "cpu", max_minutes: float | None = None,
    max_steps: int | None = None, report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> TrainResult:  # fmt: skip
    """Train, or go on training what lies in `folder`.

    Parameters
    ----------
    folder
        Receives `settings.json`, `log.csv`, `validation.csv`, `curves.png`, `checkpoint/` and, when the schedule is
        done, `weights.safetensors`. A checkpoint found there is resumed.
    max_minutes, max_steps
        Limits of this call, after which a checkpoint is written; the schedule does not change.
    report
        Takes a line about the progress every few seconds.
    progress
        Called after each step with (steps done, steps in all); 0 in all while that is not fixed yet.

    Raises
    ------
    SettingsError
        When the folder holds a run with other settings.
    """
    began = time.monotonic()
    device = torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_network(settings).to(device, memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    optimizer = _optimizer(model, settings, device)
    average = WeightAverage(model, settings.ema)
    described = {
        "settings": settings.to_dict(),
        "version": __version__,
        "device": _device_name(device),
        "torch": torch.__version__,
    }
    place = folder / "checkpoint"
    state = RunState(total_steps=settings.steps)
    if found := existing_checkpoint(place):
        _check_same(read_state(found)["training"]["settings"], described["settings"], folder)
        state = load_checkpoint(found, model, optimizer, average, device)
        report(f"resumed at step {state.step}")
    (folder / "settings.json").write_text(json.dumps(described, indent=1))
    if settings.compile:
        _compile(model)
    log = TrainingLog(folder, state.step)
    run = _Run(settings, model, optimizer, average, device)
    validation = Validation(settings, device)
    spent_before, saved, told, first = state.elapsed_s, time.monotonic(), 0.0, state.step
    marks: dict[int, float] = {}
    totals: dict[str, Tensor] = {}
    counted = 0
    model.train()
    stop = False
    while not stop and not (state.total_steps and state.step >= state.total_steps):
        rate = learning_rate(state.step, state.total_steps, settings)
        parts = run.step(state.step, rate)
        state.step += 1
        if progress is not None:
            progress(state.step, state.total_steps or 0)
        for name, value in parts.items():
            totals[name] = totals.get(name, 0) + value
        counted += 1
        now = time.monotonic()
        state.elapsed_s = spent_before + now - began
        if state.step in (SPEED_FROM, SPEED_UNTIL):
            _wait(device)
            marks[state.step] = time.monotonic()
        if not state.total_steps and state.step >= SPEED_UNTIL:
            state.total_steps = _total_steps(settings, state, marks)
        if state.step % LOG_EVERY == 0 or state.step == state.total_steps:
            means = {k: float(v) / counted for k, v in totals.items()}
            totals, counted = {}, 0
            log.write("log", state.step, state.elapsed_s, {**means, "rate": rate})
            if now - told > REPORT_EVERY_S:
                told = now
                report(_line(state, means, (state.step - first) / max(now - began, 1e-9)))
        if state.step % settings.validate_every == 0 or state.step == state.total_steps:
            numbers = validation(_averaged(model, average))
            log.write("validation", state.step, state.elapsed_s, numbers)
            report(
                f"step {state.step}: "
                + "  ".join(f"{k} {v:.4f}" for k, v in numbers.items() if not k.endswith("missing"))
            )
        late = max_minutes is not None and (time.monotonic() - began) / 60 >= max_minutes
        stop = late or (max_steps is not None and state.step - first >= max_steps)
        if stop or (time.monotonic() - saved) / 60 >= settings.checkpoint_minutes:
            save_checkpoint(place, model, optimizer, average, state, described)
            saved = time.monotonic()
    finished = bool(state.total_steps) and state.step >= state.total_steps
    weights = place / "weights.safetensors"
    if finished:
        weights = folder / "weights.safetensors"
        if state.step > first or not weights.is_file():
            save_checkpoint(place, model, optimizer, average, state, described)
            ended = {"step": state.step, "elapsed_s": round(state.elapsed_s, 1)}
            run.finish(weights, {**described, **ended}, validation, report)
    log.plot()
    return TrainResult(state.step, state.total_steps, finished, weights)


class _Run:
    """One step after the other."""

    def __init__(
        self, settings: TrainSettings, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.settings, self.model, self.optimizer = settings, model, optimizer
        self.average, self.device = average, device
        self.source = BatchSource(settings, device)
        self.objective = objective_of(settings)
        self.short = uses_bfloat16(settings, device)

    def step(self, number: int, rate: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.source.at(number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.short):
            loss, parts = self.objective(self.model, batch, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for part in _parts(self.model):
            clip_gradients(part, self.settings.clip)
        self.optimizer.step()
        self.average.update(self.model, number)
        return {"loss": loss.detach(), **parts}

    def finish(
        self, path: Path, described: dict[str, Any], validation: Validation, report: Callable[[str], None]
    ) -> None:
        """Write the averaged weights, with a second look and the σ of the maps calibrated."""
        if isinstance(self.model, AtomDiffuser):
            twin = _averaged(self.model, self.average)
            described = {**described, **finish_network(twin, self.settings, self.device, report)}
            self.average.values.update(twin.state_dict())
        numbers = validation(_averaged(self.model, self.average))
        save_weights(path, self.model, self.average, {**described, "validation": numbers})


def uses_bfloat16(settings: TrainSettings, device: torch.device) -> bool:
    """Whether layers run in bfloat16; "auto" says so where the processor multiplies in it."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    built_for_it = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" or built_for_it


def _parts(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters that are trained side by side and must not shorten one another's steps."""
    maps = {id(p) for p in model.decoder.parameters()} if isinstance(model, AtomDiffuser) else set()
    parts = ([p for p in model.parameters() if (id(p) in maps) == inside] for inside in (False, True))
    return [part for part in parts if part]


def _optimizer(model: nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; only matrices decay."""
    groups = decaying(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")


def _compile(model: nn.Module) -> None:
    for name in ("encoder", "decoder"):
        if (part := getattr(model, name, None)) is not None:
            part.compile(dynamic=False)


def _averaged(model: nn.Module, average: WeightAverage) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.load_state_dict(average.values)
    return twin.eval()


def _total_steps(settings: TrainSettings, state: RunState, marks: dict[int, float]) -> int:
    per_step = (
        (marks[SPEED_UNTIL] - marks[SPEED_FROM]) / (SPEED_UNTIL - SPEED_FROM)
        if SPEED_FROM in marks
        else (state.elapsed_s / state.step)
    )
    left = settings.minutes * 60 - state.elapsed_s
    return max(SPEED_UNTIL + 1, state.step + int(0.95 * left / per_step))


def _check_same(before: dict, now: dict, folder: Path) -> None:
    same = json.loads(json.dumps(now))
    different = [k for k in same if k not in MAY_CHANGE and before.get(k) != same[k]]
    if different:
        raise SettingsError(
            f"{folder} holds a run with another {', '.join(different)}; "
            "give another folder, or delete it to start afresh"
        )


def _line(state: RunState, means: dict[str, float], speed: float) -> str:
    left = f", {(state.total_steps - state.step) / speed / 60:.0f} min left" if state.total_steps and speed else ""
    numbers = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
    return f"step {state.step}/{state.total_steps or '?'}  {numbers}  ({speed:.2f} steps/s{left})"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
