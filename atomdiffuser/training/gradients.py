"""Gradients kept in bounds."""

from __future__ import annotations

import torch
from torch import nn


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
