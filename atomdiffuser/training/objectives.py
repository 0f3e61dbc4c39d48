"""The loss of each network on a training batch, with its parts for the log."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atomdiffuser import geometry
from atomdiffuser.model.affine_fit import displacement_rms
from atomdiffuser.model.checkpoint import load_model
from atomdiffuser.model.frames import PairFrames, pair_frames
from atomdiffuser.model.losses import drift_likelihood, drift_loss, map_loss, search_loss
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.model.published import BlockNetwork, PublishedNetwork
from atomdiffuser.training.batches import TrainingBatch
from atomdiffuser.training.settings import TrainSettings

Objective = Callable[[nn.Module, TrainingBatch, TrainSettings], tuple[Tensor, dict[str, Tensor]]]
SHIPPED = "default"
SEARCH_FAILED_PX = 4.0
STAGE_DISCOUNT = 0.8


def build_network(settings: TrainSettings) -> nn.Module:
    """A network with weights from the settings' seed, or with those that it shall start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.network == "published":
            return PublishedNetwork()
        if settings.network == "block":
            return BlockNetwork()
        model = AtomDiffuser(settings.model)
    if settings.start_from:
        model.load_state_dict(load_model(None if settings.start_from == SHIPPED else settings.start_from).state_dict())
        model.decoder.log_sigma_offset.zero_()  # what calibration found for the weights as they were
    return model


def objective_of(settings: TrainSettings) -> Objective:
    """The loss that belongs to a network."""
    return atomdiffuser_loss if settings.network == "atomdiffuser" else single_map_loss


def atomdiffuser_loss(
    model: AtomDiffuser, batch: TrainingBatch, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Search, refinement and maps together; each stage is fed a usable start whatever the stage before it did."""
    frames = pair_frames(batch.reference, batch.moving)
    loss, parts, found = torch.zeros((), device=frames.device), {}, None
    if "drift" in settings.parts:
        loss, parts, found = _drift_objective(model, frames, batch, settings)
    if "maps" in settings.parts:
        map_part, maps = _map_objective(model, frames, batch, settings, found)
        loss, parts = loss + settings.map_weight * map_part, parts | maps
    return loss, {k: v.detach() for k, v in parts.items()}


def _drift_objective(
    model: AtomDiffuser, frames: PairFrames, batch: TrainingBatch, s: TrainSettings
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, its parts, and the drift found (n, 3, 3)."""
    truth = batch.moving_from_reference

    def usable(found: Tensor) -> Tensor:
        failed = geometry.displacement_rms_px(found, truth, frames.shape) > SEARCH_FAILED_PX
        return torch.where(failed[:, None, None], truth @ batch.coarse_motion, found)

    drift = model.estimate_drift(frames, correct=usable)
    last = drift.moving_from_reference.detach()
    search = search_loss(drift.log_odds, truth, model.config.turns_deg, frames.shape).mean()
    refined = drift.stages[1:]
    discounts = [STAGE_DISCOUNT ** (len(refined) - 1 - k) for k in range(len(refined))]
    motion = sum(
        d * drift_loss(a, truth, frames.shape, scale_px=s.drift_scale_px).mean()
        for d, a in zip(discounts, refined, strict=True)
    ) / sum(discounts)
    likelihood = drift_likelihood(drift.moving_from_reference, truth, drift.normal_matrices[-1], frames.shape).mean()
    loss = s.shift_weight * search + motion.float() + s.likelihood_weight * likelihood.float()
    error_px = geometry.displacement_rms_px(last, truth, frames.shape)
    return loss, {"search": search, "drift": motion, "drift_px": error_px.median()}, last


def _map_objective(
    model: AtomDiffuser, frames: PairFrames, batch: TrainingBatch, s: TrainSettings, drift: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts; `drift` (n, 3, 3) is what the network found, if it looked."""
    given = batch.moving_from_reference @ batch.small_motion
    if drift is not None:
        error_px = geometry.displacement_rms_px(drift, batch.moving_from_reference, frames.shape)
        given = torch.where((error_px < s.aligned_within_px)[:, None, None], drift, given)
    fields = model.estimate_decay(frames, given, batch.tau, second_look=False)  # which is trained by itself afterwards
    tau = batch.tau[:, None, None, None]
    values, log_sigma = (tau * fields[:, :2]).exp(), fields[:, 2:4] + tau.log()
    maps = [
        map_loss(values[:, k], log_sigma[:, k], batch.maps[:, k], batch.weight[:, k], beta=s.beta[k]) for k in (0, 1)
    ]
    return sum(maps), {"intensity": maps[0], "contrast": maps[1]}


def single_map_loss(
    model: PublishedNetwork | BlockNetwork, batch: TrainingBatch, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean absolute error of the one map, and displacement of the pose in `drift_scale_px`·100."""
    answer = model(batch.reference, batch.moving, tau=batch.tau)
    value = torch.nn.functional.avg_pool2d(answer.intensity[:, None], 4)[:, 0]
    weight = batch.weight[:, 0]
    maps = ((value - batch.maps[:, 0]).abs() * weight).sum() / weight.sum().clamp_min(1e-6)
    error_px = displacement_rms(answer.moving_from_reference, batch.moving_from_reference, batch.reference.shape[-2:])
    motion = (error_px / (100 * settings.drift_scale_px)).mean().float()
    return 5 * maps + motion, {"intensity": maps.detach(), "drift_px": error_px.median().detach()}
