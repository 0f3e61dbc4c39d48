"""Ways to estimate drift and decay, each a function from simulated pairs to an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from atomdiffuser import geometry
from atomdiffuser.errors import StoreError
from atomdiffuser.estimation.api import MAPS, estimate_pairs
from atomdiffuser.estimation.local_regression import BANDWIDTHS_PX, DecayMaps, estimate_decay_maps, full_resolution
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import prepare_frames
from atomdiffuser.estimation.spectrum import ImageScales, measure_scales
from atomdiffuser.evaluation.metrics import Answer, judged_masks, map_errors
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.model.published import BlockNetwork, PublishedNetwork
from atomdiffuser.simulation.pairs import PairBatch

Method = Callable[[PairBatch], Answer]
BATCH = 8
REGRESSION_STRIDE = 4


def network_method(model: AtomDiffuser, *, given_drift: bool = False) -> Method:
    """The network alone; with `given_drift` it is told the true one."""
    return lambda pairs: _network_answer(model, pairs, pairs.moving_from_reference if given_drift else None)


def refined_method(model: AtomDiffuser, weights: str) -> Method:
    """`estimate_pairs`: the network's drift refined by the statistical fit, and the maps at what that found.

    Where the fit says that it failed, the network alone stands. `weights` are those of `model`.
    """

    def estimate(pairs: PairBatch) -> Answer:
        alone = network_method(model)(pairs)
        columns = [alone.moving_from_reference.clone(), *(getattr(alone, name).clone() for name in MAPS)]
        for k in range(len(pairs)):
            found = estimate_pairs(
                pairs.reference[k].cpu().numpy(), pairs.moving[k].cpu().numpy(), weights=weights,
                dark_level=float(pairs.dark_level[k]), gain_e=float(pairs.gain_e[k]),
                device=columns[0].device.type,
            )  # fmt: skip
            if found.valid[0]:
                for column, name in zip(columns, ("moving_from_reference", *MAPS), strict=True):
                    column[k] = torch.as_tensor(getattr(found, name)[0]).to(column)
        return Answer(*columns)

    return estimate


def single_map_method(model: PublishedNetwork | BlockNetwork) -> Method:
    """A network that knows one map: it stands for both."""

    def estimate(pairs: PairBatch) -> Answer:
        with torch.no_grad():
            p = model(pairs.reference, pairs.moving, dark_level=pairs.dark_level, gain_e=pairs.gain_e)
        return Answer(p.moving_from_reference, p.intensity, p.intensity)

    return estimate


def nothing_happened(pairs: PairBatch) -> Answer:
    """No drift, no decay: what doing nothing costs."""
    one = torch.ones_like(pairs.intensity)
    return Answer(geometry.identity(len(pairs), device=one.device), one, one)


def local_regression(pairs: PairBatch) -> Answer:
    """Local regression at the true drift, bandwidth chosen from the data, with its own σ."""
    maps = [_regress(pairs, k, None) for k in range(len(pairs))]
    stack = lambda name: torch.cat([_full(pairs, getattr(m, name)) for m in maps])
    return Answer(None, *(stack(n) for n in ("intensity", "contrast", "intensity_sigma", "contrast_sigma")))


def oracle_regression(pairs: PairBatch) -> Answer:
    """Local regression at the true drift, with the bandwidth that the truth says is best for each pair and map."""
    masks = judged_masks(pairs)
    chosen: dict[str, list[Tensor]] = {"intensity": [], "contrast": []}
    for k in range(len(pairs)):
        one = slice(k, k + 1)
        tried = [_regress(pairs, k, width) for width in BANDWIDTHS_PX if width <= min(pairs.reference.shape[-2:]) / 2]
        for name, best in chosen.items():
            maps = [_full(pairs, getattr(t, name)) for t in tried]
            errors = torch.cat([map_errors(m, getattr(pairs, name)[one], masks[name][one])["rmse"] for m in maps])
            best.append(maps[int(torch.nan_to_num(errors, nan=torch.inf).argmin())])
    return Answer(None, torch.cat(chosen["intensity"]), torch.cat(chosen["contrast"]))


def load_baseline(path: Path) -> PublishedNetwork | BlockNetwork:
    """A baseline that training wrote, in evaluation mode."""
    with safe_open(path, framework="pt") as file:
        described = (file.metadata() or {}).get("baseline")
    if described is None:
        raise StoreError(f"{path} holds no baseline network; train one with the presets published or block")
    tensors = load_file(path)
    model: nn.Module = PublishedNetwork() if any(k.startswith("pose") for k in tensors) else BlockNetwork()
    model.load_state_dict(tensors)
    return model.eval()


def _network_answer(model: AtomDiffuser, pairs: PairBatch, drift: Tensor | None) -> Answer:
    parts = []
    for at in range(0, len(pairs), BATCH):
        take = slice(at, at + BATCH)
        with torch.no_grad():
            p = model(
                pairs.reference[take], pairs.moving[take], dark_level=pairs.dark_level[take],
                gain_e=pairs.gain_e[take], drift=None if drift is None else drift[take],
            )  # fmt: skip
        parts.append((p.moving_from_reference, p.intensity, p.contrast, p.intensity_sigma, p.contrast_sigma))
    return Answer(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _counted(pairs: PairBatch, k: int) -> tuple[Tensor, NoiseModel, ImageScales]:
    """Both frames of a pair in electrons (2, Y, X), their noise and their scales."""
    gain, dark = float(pairs.gain_e[k]), float(pairs.dark_level[k])
    frames = torch.stack([pairs.reference[k], pairs.moving[k]]) * gain - dark * gain
    return frames, NoiseModel(float(pairs.readout_e[k]) ** 2, 1.0), measure_scales(frames)


def _regress(pairs: PairBatch, k: int, bandwidth_px: float | None) -> DecayMaps:
    frames, noise, scales = _counted(pairs, k)
    prepared = prepare_frames(frames, scales)
    return estimate_decay_maps(
        prepared.select([0]), prepared.select([1]), pairs.moving_from_reference[k : k + 1], noise=noise, scales=scales,
        stride=REGRESSION_STRIDE, bandwidth_px=bandwidth_px,
    )  # fmt: skip


def _full(pairs: PairBatch, maps: Tensor) -> Tensor:
    return full_resolution(maps, REGRESSION_STRIDE, pairs.reference.shape[-2:])
