"""frames.ome.zarr and trajectory.parquet → decay.zarr."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from atomdiffuser.cluster import require_seen, workers_at
from atomdiffuser.config import DecaySettings
from atomdiffuser.estimation.decay import DecayEstimator, decay_estimator
from atomdiffuser.estimation.device_faults import with_processor_in_reserve
from atomdiffuser.estimation.frame_source import FrameSource, SeriesFacts, choose_device
from atomdiffuser.io.map_store import MAP_NAMES, create_maps
from atomdiffuser.model.checkpoint import weights_hash
from atomdiffuser.stages._sources import describe_estimation, open_source, open_trajectory

BYTES_ON_THEIR_WAY = 64e6
"""Of the maps in one part of the work of a worker, which keeps two of them until they are asked for."""


def decay(
    frames: Path,
    trajectory: Path,
    output: Path,
    settings: DecaySettings,
    *,
    dask_scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the decay maps of a stored series against its reference frame, one frame after the other.

    Parameters
    ----------
    dask_scheduler
        Address of a dask.distributed scheduler whose workers compute the maps; the device is then theirs.
    """
    series, source = with_processor_in_reserve(
        torch.device("cpu") if dask_scheduler else choose_device(settings.device),
        lambda device: open_source(frames, device, "decay"),
    )
    _, affines, valid, origin = open_trajectory(trajectory)
    stride = settings.map_stride
    map_shape = tuple(-(-n // stride) for n in series.frame_shape)
    nothing = dict.fromkeys(MAP_NAMES, np.full(map_shape, np.nan, np.float32)) | {
        "coverage": np.zeros(map_shape, np.float32)
    }
    bandwidths = np.full((series.n_frames, 2), np.nan)
    estimation = describe_estimation(source)
    attributes = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "frame_shape": list(series.frame_shape),
        "estimation": estimation,
        "bandwidth_px": bandwidths,
    }
    if settings.method == "network":
        attributes["weights"] = weights_hash(settings.weights)
    known = np.flatnonzero(valid).tolist()
    if dask_scheduler:
        opener = MapsOnWorker(frames.absolute(), source.facts(), settings)
        largest = int(BYTES_ON_THEIR_WAY / (len(MAP_NAMES) * 4 * map_shape[0] * map_shape[1]))
        found = _maps_by_workers(dask_scheduler, opener, origin, known, affines, largest, estimation)
    else:
        found = _maps(source, decay_estimator(source, settings), origin, known, affines[known])
    with (
        create_maps(
            output,
            n_frames=series.n_frames,
            map_shape=map_shape,
            stride=stride,
            times_s=series.times_s,
            pixel_size_nm=series.acquisition.pixel_size_nm,
            attributes=attributes,
        ) as writer,
        contextlib.closing(found),
    ):
        for k in range(series.n_frames):
            maps = nothing
            if valid[k]:
                maps, bandwidths[k] = next(found)
                if k == origin:
                    maps |= _undamaged(maps["coverage"])
            writer.write(k, **maps)
            if progress:
                progress(k + 1, series.n_frames)


class FrameMaps(NamedTuple):
    """Maps of a frame by their names, and the widths of the windows that intensity and contrast were found in [px]."""

    maps: dict[str, np.ndarray]
    bandwidths_px: tuple[float, float]


@dataclass(frozen=True)
class MapsOnWorker:
    """Opens a series on a worker; what it returns maps a part of its frames."""

    frames: Path
    facts: SeriesFacts
    settings: DecaySettings

    def __call__(self) -> Callable[[Any], tuple[list[FrameMaps], str]]:
        require_seen(self.frames)
        _, source = with_processor_in_reserve(
            choose_device(self.settings.device), lambda device: open_source(self.frames, device, "decay", self.facts)
        )
        estimate = decay_estimator(source, self.settings)
        return lambda part: (list(_maps(source, estimate, *part)), source.device.type)


def _maps_by_workers(
    address: str, opener: MapsOnWorker, origin: int, frames: Sequence[int], affines: np.ndarray, largest: int,
    estimation: dict[str, Any],
) -> Iterator[FrameMaps]:  # fmt: skip
    """`_maps` by the workers of a cluster; `estimation` is told what they compute on."""
    devices = set()
    with workers_at(address, opener) as workers:
        parts = workers.parts(len(frames), largest)
        for maps, device in workers.each((origin, frames[part], affines[frames[part]]) for part in parts):
            devices.add(device)
            estimation["device"] = " and ".join(sorted(devices))
            yield from maps


def _maps(
    source: FrameSource, estimate: DecayEstimator, origin: int, frames: Sequence[int], affines: np.ndarray
) -> Iterator[FrameMaps]:
    """Maps of frames against the reference frame, one after the other; `affines` (n, 3, 3) are theirs."""
    # A processor is no faster with several pairs at a time, and they take more memory.
    size = source.batch if source.device.type == "cuda" else 1
    groups = [range(at, min(at + size, len(frames))) for at in range(0, len(frames), size)]
    for group, _ in zip(groups, source.each_of([origin, *(frames[m] for m in group)] for group in groups), strict=True):
        pairs = [(origin, frames[m]) for m in group]
        found = estimate(pairs, torch.as_tensor(affines[group.start : group.stop]))
        for m in range(len(group)):
            maps = {name: getattr(found, name)[m].cpu().numpy() for name in MAP_NAMES}
            yield FrameMaps(maps, (float(found.intensity_bandwidth_px[m]), float(found.contrast_bandwidth_px[m])))


def _undamaged(coverage: np.ndarray) -> dict[str, np.ndarray]:
    """Maps of the reference frame against itself: exactly 1, without error."""
    one, zero = (np.where(coverage > 0, np.float32(v), np.nan) for v in (1, 0))
    return {"intensity": one, "contrast": one, "intensity_sigma": zero, "contrast_sigma": zero}
