"""How training steps: its rate, which weights decay, and gradients kept in bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from atomdiffuser.training.settings import TrainSettings


def learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to a share of the highest rate."""
    if step < settings.warm_up or not total_steps:
        return settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
    done = min(1.0, (step - settings.warm_up) / max(1, total_steps - settings.warm_up))
    low = settings.lowest_rate_share
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def decaying(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters as an optimizer takes them: only matrices decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale gradients to a norm of at most `largest`; where it is not finite all become zero."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    finite = torch.isfinite(norm)
    factor = torch.where(finite, (largest / (norm + 1e-6)).clamp(max=1.0), 0.0)
    for gradient in gradients:
        torch.where(finite, gradient, torch.zeros((), device=gradient.device, dtype=gradient.dtype), out=gradient)
    torch._foreach_mul_(gradients, factor)
