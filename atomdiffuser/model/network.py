"""AtomDiffuser: from two frames to their drift and the two decay maps between them.

    frames ─ shared encoder ─┬─ shift search ─ local steps (weighted affine fits) ─► drift
                             └─ aligned pair: statistics + features ─ decay decoder, conditioned on τ ─► maps and σ

Every part is convolutional and none takes statistics over an image, so that a large frame may be cut into windows; what
the two frames have in common (`LatticeTemplate`) is found on the whole frame first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from atomdiffuser.errors import SettingsError, ShapeError
from atomdiffuser.freed_memory import give_freed_memory_back
from atomdiffuser.model.affine_fit import fit_affine
from atomdiffuser.model.config import CELL_STRIDE, MAP_STRIDE, STEM_STRIDE, ModelConfig
from atomdiffuser.model.decay_decoder import DecayDecoder
from atomdiffuser.model.encoder import Encoder
from atomdiffuser.model.frames import PairFrames, Window, cut_template, pair_frames
from atomdiffuser.model.lattice_template import LatticeTemplate
from atomdiffuser.model.local_steps import LocalStep, cell_centres
from atomdiffuser.model.pair_statistics import Evidence
from atomdiffuser.model.prediction import PairPrediction
from atomdiffuser.model.shift_search import ShiftSearch, motion_from_log_odds
from atomdiffuser.model.tiling import OVERLAP_PX, WINDOW_PX, Tile, blending_weight, plan_tiles
from atomdiffuser.model.time_embedding import Conditioning

logger = logging.getLogger(__name__)

LARGEST_DOUBT = (0.5, 0.7)
"""Intensity and contrast are given where one window of 16 px alone would know them better than this."""
SEARCHED_SHARE = 0.45  # of a frame's side, at most
BATCH_PX = {"cpu": 2**21, "cuda": 2**25}


@dataclass(frozen=True)
class DriftEstimate:
    """Drift of n pairs, and what training needs to judge each stage of it.

    Attributes
    ----------
    log_odds
        (n, turns, y, x) of every turn and every shift on the 2 px grid, zero shift in the middle.
    found, shift_probability
        moving_from_reference (n, 3, 3) where the search ended, before any correction, and (n,) the probability there.
    stages
        moving_from_reference (n, 3, 3) after the search and after each local step; gradients do not pass between them.
    normal_matrices
        (n, 6, 6) of each step.
    """

    log_odds: Tensor
    found: Tensor
    shift_probability: Tensor
    stages: list[Tensor]
    normal_matrices: list[Tensor]

    @property
    def moving_from_reference(self) -> Tensor:
        """(n, 3, 3) affine after the last step."""
        return self.stages[-1]


class AtomDiffuser(nn.Module):
    """The network; `predict` takes arrays as they come from a detector, `forward` tensors on its device."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.encoder = Encoder()
        self.drift_conditioning = Conditioning(self.config.condition, with_time=False)
        self.shift_search = ShiftSearch(self.config)
        reach = self.config.step_reach
        self.steps = nn.ModuleList(LocalStep(self.config, r) for r in (reach[0], *reach[1:2]))
        self.decoder = DecayDecoder(self.config)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def count_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self, reference: Tensor, moving: Tensor, *, dark_level: Tensor | float = 0.0, gain_e: Tensor | float = 1.0,
        tau: Tensor | float = 1.0, drift: Tensor | None = None, tiles: list[Tile] | None = None,
    ) -> PairPrediction:  # fmt: skip
        """Pairs (n, y, x) on this device → drift and maps.

        Parameters
        ----------
        dark_level, gain_e
            Counts without beam, electrons per count; numbers or (n,).
        tau
            Time that the decoder is asked for, a number or (n,). At 1, what the two frames show. Below 1, what the
            network learned about the way there: `rates` then hold the logarithms of the maps at that time.
        drift
            (n, 3, 3) moving_from_reference, where it is known already.
        """
        frames = pair_frames(reference, moving, dark_level, gain_e)
        tiles = tiles or plan_tiles(frames.shape, 2**30)
        tau = torch.as_tensor(tau, dtype=torch.float32, device=frames.device).expand(len(frames))
        if drift is None:
            estimate = self.estimate_drift(frames, tiles=tiles)
            drift, normal, probability = (
                estimate.moving_from_reference,
                estimate.normal_matrices[-1],
                estimate.shift_probability,
            )
        else:
            drift = drift.to(frames.device, torch.float64)
            normal = torch.full((len(frames), 6, 6), torch.nan, dtype=torch.float64, device=frames.device)
            probability = torch.ones(len(frames), device=frames.device)
        fields = self.estimate_decay(frames, drift, tau, tiles=tiles)
        t = tau[:, None, None, None]
        rates, log_sigma = t * fields[:, :2], fields[:, 2:4] + t.clamp_min(1e-6).log()
        limits = torch.tensor(LARGEST_DOUBT, device=frames.device).log()
        known = fields[:, 4:] < limits[:, None, None]
        return PairPrediction(drift, normal, probability, rates, log_sigma, known, frames.overlap(drift), frames.shape)

    @torch.no_grad()
    def predict(
        self, reference: np.ndarray | Tensor, moving: np.ndarray | Tensor, *, dark_level: float = 0.0,
        gain_e: float = 1.0,
        drift: np.ndarray | Tensor | None = None, precision: str = "float32", window_px: int = WINDOW_PX,
        overlap_px: int = OVERLAP_PX, batch_px: int | None = None,
    ) -> PairPrediction:  # fmt: skip
        """Pairs of any size and dtype, (Y, X) or (n, Y, X), in windows and batches that fit the memory.

        What the device's memory does not hold is tried again with half of the pairs, then in half as large windows.

        Parameters
        ----------
        drift
            (n, 3, 3) moving_from_reference, where it is known already.
        precision
            "float32", or "bfloat16" on a GPU.
        window_px, overlap_px
            Frames longer than this are cut into windows that overlap; the drift search still sees whole frames.
        batch_px
            Pixels of pairs computed at once.
        """
        if precision not in ("float32", "bfloat16"):
            raise SettingsError(f"precision is {precision!r}, expected 'float32' or 'bfloat16'")
        first, second = (_as_stack(a) for a in (reference, moving))
        if first.shape != second.shape:
            raise ShapeError(
                f"reference has shape {tuple(first.shape)} and moving {tuple(second.shape)}, expected equal ones"
            )
        known = None if drift is None else torch.as_tensor(drift).reshape(-1, 3, 3)
        tiles = plan_tiles(tuple(first.shape[1:]), window_px, overlap_px)
        budget = batch_px or BATCH_PX[self.device.type]
        batch = max(1, budget // (tiles[0].window.height * tiles[0].window.width))
        was_training = self.training
        self.eval()
        parts: list[PairPrediction] = []
        at = 0
        while at < len(first):
            take = slice(at, at + batch)
            try:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    parts.append(self(
                        first[take].to(self.device), second[take].to(self.device), dark_level=dark_level, gain_e=gain_e,
                        drift=None if known is None else known[take], tiles=tiles,
                    ))  # fmt: skip
            except torch.OutOfMemoryError:
                side = max(tiles[0].window.shape)
                if batch == 1 and side <= 2 * overlap_px:
                    raise
            else:
                at += batch
                continue
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if batch > 1:
                batch = (min(batch, len(first) - at) + 1) // 2
            else:
                tiles = plan_tiles(tuple(first.shape[1:]), max(side // 2, 2 * overlap_px), overlap_px)
            told = f"{batch} pairs" if batch > 1 else f"one pair, in windows of {tiles[0].window.height} px"
            logger.warning("the GPU's memory is short: %s at a time from here on", told)
        self.train(was_training)
        names = ("moving_from_reference", "normal_matrix", "shift_probability", "rates", "log_sigma", "known", "seen")
        return PairPrediction(*(torch.cat([getattr(p, name) for p in parts]) for name in names), parts[0].shape)

    def estimate_drift(
        self, frames: PairFrames, *, tiles: list[Tile] | None = None, correct: Callable[[Tensor], Tensor] | None = None
    ) -> DriftEstimate:
        """Search turn and shift, then refine the affine; `correct` may replace the motions (n, 3, 3) found."""
        tiles = tiles or plan_tiles(frames.shape, 2**30)
        condition = self.drift_conditioning(frames.level)
        kept = [self._fine(frames, *frames.reference_window(tiles[0].window))] if len(tiles) == 1 else None
        log_odds = self._search(frames, tiles, condition, kept)
        found, probability = motion_from_log_odds(log_odds, self.config.turns_deg, frames.shape)
        found = found.detach()
        stages, normals = [found if correct is None else correct(found)], []
        for k in range(len(self.config.step_reach)):
            affine = stages[-1].detach()
            correction, normal = self._refine(self.steps[min(k, 1)], frames, tiles, affine, condition, kept)
            stages.append(affine @ correction)
            normals.append(normal)
        return DriftEstimate(log_odds, found, probability, stages, normals)

    def estimate_decay(
        self,
        frames: PairFrames,
        drift: Tensor,
        tau: Tensor,
        *,
        tiles: list[Tile] | None = None,
        second_look: bool = True,
    ) -> Tensor:
        """What `DecayDecoder` gives, (n, 6, y, x) at stride 4, for pairs whose drift is known, asked at `tau` (n,)."""
        tiles = tiles or plan_tiles(frames.shape, 2**30)
        condition = self.decoder.conditioning(frames.level, tau)
        total = weights = None
        size = [-(-s // MAP_STRIDE) for s in frames.shape]
        template = None if len(tiles) == 1 else frames.lattice_template(drift)
        for tile in tiles:
            w = tile.window
            evidence = self._evidence(frames, drift, w, template and cut_template(template, w))
            give_freed_memory_back(w.height * w.width)
            fields = self.decoder(evidence, condition, frames.level, second_look=second_look)
            if len(tiles) == 1:
                return fields[:, :, : size[0], : size[1]]
            if total is None:
                total = fields.new_zeros(len(frames), 6, *size)
                weights = fields.new_zeros(size)
            weight = blending_weight(tile, MAP_STRIDE, frames.device)
            y, x = w.y // MAP_STRIDE, w.x // MAP_STRIDE
            rows, columns = min(weight.shape[0], size[0] - y), min(weight.shape[1], size[1] - x)
            total[:, :, y : y + rows, x : x + columns] += (fields * weight)[:, :, :rows, :columns]
            weights[y : y + rows, x : x + columns] += weight[:rows, :columns]
        return total / weights

    def evidence(self, frames: PairFrames, drift: Tensor) -> Evidence:
        """What pairs show in one piece, before anything that is learned, at motions `drift` (n, 3, 3)."""
        (tile,) = plan_tiles(frames.shape, 2**30)
        return self._evidence(frames, drift, tile.window, None)

    def _evidence(
        self, frames: PairFrames, drift: Tensor, window: Window, template: LatticeTemplate | None
    ) -> Evidence:
        reference, reference_mask = frames.reference_window(window)
        moving, moving_mask = frames.aligned_window(window, drift)
        mask = reference_mask * moving_mask
        return self.decoder.statistics(reference, moving, mask, frames.level, frames.readout, template)

    def _fine(self, frames: PairFrames, values: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(values, mask, frames.level)

    def _search(self, frames: PairFrames, tiles: list[Tile], condition: Tensor, kept: list[Tensor] | None) -> Tensor:
        whole = [max(t.core[k] for t in tiles) // STEM_STRIDE for k in (1, 3)]
        reach = tuple(
            min(self.config.shift_reach_px // STEM_STRIDE, int(SEARCHED_SHARE * s / STEM_STRIDE)) for s in frames.shape
        )
        canvases = []
        for which, window_of in enumerate((frames.reference_window, frames.moving_window)):
            parts = []
            for tile in tiles:
                values, mask = window_of(tile.window)
                parts.append((tile, kept[0] if kept and which == 0 else self._fine(frames, values, mask)))
            canvases.append(parts[0][1] if len(tiles) == 1 else _paste(parts, whole, STEM_STRIDE))
        return self.shift_search(*canvases, reach, condition)

    def _refine(
        self, step: LocalStep, frames: PairFrames, tiles: list[Tile], affine: Tensor, condition: Tensor,
        kept: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        points, displacements, informations = [], [], []
        for tile in tiles:
            w = tile.window
            reference, reference_mask = frames.reference_window(w)
            moving, moving_mask = frames.aligned_window(w, affine)
            fine = kept[0] if kept else self._fine(frames, reference, reference_mask)
            other = self._fine(frames, moving, moving_mask)
            displacement, information = step(fine, other, reference_mask * moving_mask, condition)
            y0, y1, x0, x1 = (c // CELL_STRIDE for c in tile.core)
            rows, columns = (
                slice(a - o // CELL_STRIDE, b - o // CELL_STRIDE) for a, b, o in ((y0, y1, w.y), (x0, x1, w.x))
            )
            displacements.append(displacement[..., rows, columns].flatten(2))
            informations.append(information[..., rows, columns].flatten(3))
            index = lambda a, b: torch.arange(a, b, device=frames.device, dtype=torch.float64)
            points.append(cell_centres(index(y0, y1), index(x0, x1)))
        displacement = torch.cat(displacements, -1).mT  # (n, c, 2)
        information = torch.cat(informations, -1).permute(0, 3, 1, 2)  # (n, c, 2, 2)
        return fit_affine(torch.cat(points), displacement, information, frames.shape)


def _paste(parts: list[tuple[Tile, Tensor]], whole: list[int], stride: int) -> Tensor:
    """Features of a whole frame from the cores of its windows."""
    first = parts[0][1]
    canvas = first.new_zeros(*first.shape[:2], *whole)
    for tile, features in parts:
        y0, y1, x0, x1 = (c // stride for c in tile.core)
        y, x = tile.window.y // stride, tile.window.x // stride
        canvas[:, :, y0:y1, x0:x1] = features[:, :, y0 - y : y1 - y, x0 - x : x1 - x]
    return canvas


def _as_stack(frames: np.ndarray | Tensor) -> Tensor:
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(
            np.ascontiguousarray(frames if frames.dtype.isnative else frames.astype(frames.dtype.newbyteorder("=")))
        )
    if frames.is_complex():
        raise ShapeError("frames are complex, expected a real dtype")
    return frames[None] if frames.ndim == 2 else frames
