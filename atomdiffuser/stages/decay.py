"""frames.ome.zarr and trajectory.parquet → decay.zarr."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from atomdiffuser.config import DecaySettings
from atomdiffuser.estimation.decay import decay_estimator
from atomdiffuser.estimation.device_faults import with_processor_in_reserve
from atomdiffuser.estimation.frame_source import choose_device
from atomdiffuser.io.map_store import MAP_NAMES, create_maps
from atomdiffuser.model.checkpoint import weights_hash
from atomdiffuser.stages._sources import describe_estimation, open_source, open_trajectory


def decay(
    frames: Path,
    trajectory: Path,
    output: Path,
    settings: DecaySettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the decay maps of a stored series against its reference frame, one frame after the other."""
    series, source = with_processor_in_reserve(
        choose_device(settings.device), lambda device: open_source(frames, device, "decay")
    )
    _, affines, valid, origin = open_trajectory(trajectory)
    stride = settings.map_stride
    map_shape = tuple(-(-n // stride) for n in series.frame_shape)
    nothing = dict.fromkeys(MAP_NAMES, np.full(map_shape, np.nan, np.float32)) | {
        "coverage": np.zeros(map_shape, np.float32)
    }
    bandwidths = np.full((series.n_frames, 2), np.nan)
    attributes = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "frame_shape": list(series.frame_shape),
        "estimation": describe_estimation(source),
        "bandwidth_px": bandwidths,
    }
    estimate = decay_estimator(source, settings)
    if settings.method == "network":
        attributes["weights"] = weights_hash(settings.weights)
    with create_maps(
        output,
        n_frames=series.n_frames,
        map_shape=map_shape,
        stride=stride,
        times_s=series.times_s,
        pixel_size_nm=series.acquisition.pixel_size_nm,
        attributes=attributes,
    ) as writer:
        # A processor is no faster with several pairs at a time, and they take more memory.
        size = source.batch if source.device.type == "cuda" else 1
        groups = [range(at, min(at + size, series.n_frames)) for at in range(0, series.n_frames, size)]
        used = [[k for k in group if valid[k]] for group in groups]
        for group, needed in zip(groups, source.each_of([origin, *some] if some else [] for some in used), strict=True):
            known = needed[1:]
            found = estimate([(origin, k) for k in known], torch.as_tensor(affines[known])) if known else None
            for k in group:
                maps = nothing
                if found is not None and valid[k]:
                    m = known.index(k)
                    maps = {name: getattr(found, name)[m].cpu().numpy() for name in MAP_NAMES}
                    bandwidths[k] = float(found.intensity_bandwidth_px[m]), float(found.contrast_bandwidth_px[m])
                    if k == origin:
                        maps |= _undamaged(maps["coverage"])
                writer.write(k, **maps)
                if progress:
                    progress(k + 1, series.n_frames)


def _undamaged(coverage: np.ndarray) -> dict[str, np.ndarray]:
    """Maps of the reference frame against itself: exactly 1, without error."""
    one, zero = (np.where(coverage > 0, np.float32(v), np.nan) for v in (1, 0))
    return {"intensity": one, "contrast": one, "intensity_sigma": zero, "contrast_sigma": zero}
