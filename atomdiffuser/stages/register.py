"""frames.ome.zarr → pairs.parquet and trajectory.parquet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atomdiffuser.cluster import Workers, require_seen, workers_at
from atomdiffuser.config import RegisterSettings
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.estimation.device_faults import with_processor_in_reserve
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.drift_tables import pairs_table, trajectory_table
from atomdiffuser.estimation.frame_source import FrameSource, SeriesFacts, choose_device
from atomdiffuser.estimation.pair_work import Advance, PairRunner, Pairs, PairWork
from atomdiffuser.io.tables import read_table, write_table
from atomdiffuser.quality.columns import with_quality_columns, with_scan_columns
from atomdiffuser.quality.line_jitter import measure_jitter
from atomdiffuser.quality.measure import FrameQuality, measure_quality
from atomdiffuser.quality.shared_drift import shared_trajectory, with_other_reference
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages._sources import describe_estimation, open_source

LEAST_FRAMES = 2


def register(
    frames: Path,
    pairs: Path,
    trajectory: Path,
    settings: RegisterSettings,
    *,
    drift_of: Path | None = None,
    dask_scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Judge the frames of a stored series and measure their drift.

    Parameters
    ----------
    drift_of
        trajectory.parquet of another channel of the same acquisition, with its pairs.parquet beside it: its drift is
        taken, and only the frames' quality is measured.
    dask_scheduler
        Address of a dask.distributed scheduler whose workers register the pairs, on the device that the settings ask
        for; this process does the rest, on a GPU only where it has one.

    Raises
    ------
    AtomDiffuserError
        When fewer than two frames can be used, or the other channel's frames are others than these.
    """
    here = "auto" if dask_scheduler and settings.device == "cuda" else settings.device
    with_processor_in_reserve(
        choose_device(here),
        lambda device: _register(frames, pairs, trajectory, settings, drift_of, dask_scheduler, progress, device),
    )


def _register(
    frames: Path,
    pairs: Path,
    trajectory: Path,
    settings: RegisterSettings,
    drift_of: Path | None,
    dask_scheduler: str | None,
    progress: Callable[[int, int], None] | None,
    device: torch.device,
) -> None:
    series, source = open_source(frames, device, "register")
    quality = measure_quality(source, settings)
    if drift_of is not None:
        _take_over(drift_of, pairs, trajectory, series, quality, settings, source)
        return
    source.leave_out(quality.excluded(settings))
    _require_frames(source, series)
    estimation = describe_estimation(source)
    if dask_scheduler:
        opener = PairsOnWorker(frames.absolute(), source.facts(), settings.device)
        with workers_at(dask_scheduler, opener) as workers:
            drift = estimate_drift(source, settings, progress, _by_workers(workers, estimation))
    else:
        drift = estimate_drift(source, settings, progress)
    origin = drift.reference_frame
    table = trajectory_table(drift, series)
    valid = np.flatnonzero(table["valid"]).tolist()
    jitter = measure_jitter(source, drift.trajectory.frame_from_reference.numpy(), valid)
    table = with_scan_columns(table, series, origin, jitter)
    table = with_quality_columns(table, quality, settings, series.frame_shape)
    metadata = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "frame_shape": list(series.frame_shape),
        "estimation": estimation,
        "drift_from": "",
        "lattice_vectors_px": None if source.lattice_vectors_px is None else source.lattice_vectors_px.tolist(),
    }
    write_table(pairs_table(drift, series), pairs, "pairs", **metadata)
    write_table(table, trajectory, "trajectory", **metadata)


@dataclass(frozen=True)
class PairsOnWorker:
    """Opens a series on a worker; what it returns does work with a part of its pairs."""

    frames: Path
    facts: SeriesFacts
    device: str

    def __call__(self) -> Callable[[tuple[PairWork, Pairs]], tuple[Any, str]]:
        require_seen(self.frames)
        opened = lambda device: open_source(self.frames, device, "register", self.facts)[1]
        source = with_processor_in_reserve(choose_device(self.device), opened)

        def do(part: tuple[PairWork, Pairs]) -> tuple[Any, str]:
            work, pairs = part

            def on(device: torch.device) -> tuple[Any, str]:
                nonlocal source
                if device != source.device:
                    source = source.on_processor()
                return work(source, pairs, lambda n: None), source.device.type

            return with_processor_in_reserve(source.device, on)

        return do


def _by_workers(workers: Workers, estimation: dict[str, Any]) -> PairRunner:
    """The work of pairs by the workers of a cluster; `estimation` is told what they compute on."""
    devices = {estimation["device"]}

    def run(work: PairWork, pairs: Pairs, advance: Advance) -> Any:
        parts, results = workers.parts(len(pairs)), []
        for part, (found, device) in zip(parts, workers.each((work.of(p), pairs[p]) for p in parts), strict=True):
            devices.add(device)
            estimation["device"] = " and ".join(sorted(devices))
            results.append(found)
            advance(part.stop - part.start)
        return work.join(results)

    return run


def _take_over(
    drift_of: Path,
    pairs: Path,
    trajectory: Path,
    series: FrameSeries,
    quality: FrameQuality,
    settings: RegisterSettings,
    source: FrameSource,
) -> None:
    """Write another channel's drift as this one's, with this one's own quality."""
    taken, taken_pairs = read_table(drift_of), read_table(drift_of.with_name("pairs.parquet"))
    channel, origin = drift_of.absolute().parent.name, int(taken.attrs["reference_frame"])
    attributes = {**taken.attrs, "drift_from": channel, "settings": dataclasses.asdict(settings)}
    table = shared_trajectory(taken, series, channel)
    for k, reason in source.unusable.items():
        table.loc[k, ["valid", "reason"]] = False, reason
    table = with_quality_columns(table, quality, settings, series.frame_shape)
    if int(table["valid"].sum()) < LEAST_FRAMES:
        raise AtomDiffuserError(_too_few(series, int(table["valid"].sum()), set(table["reason"])))
    if not table.loc[origin, "valid"]:
        origin = int(np.flatnonzero(table["valid"])[0])
        table = with_other_reference(table, origin, series.frame_shape, series.acquisition.pixel_size_nm)
    kept = {"estimation", "frame_shape", "settings", "drift_from", "lattice_vectors_px"}
    metadata = {name: value for name, value in attributes.items() if name in kept} | {"reference_frame": origin}
    write_table(taken_pairs, pairs, "pairs", **metadata)
    write_table(table, trajectory, "trajectory", **metadata)


def _require_frames(source: FrameSource, series: FrameSeries) -> None:
    if len(source.usable) < LEAST_FRAMES:
        reasons = set(source.unusable.values()) or {"the series has one frame"}
        raise AtomDiffuserError(_too_few(series, len(source.usable), reasons))


def _too_few(series: FrameSeries, found: int, reasons: set[str]) -> str:
    told = "; ".join(sorted(filter(None, reasons))[:3])
    return f"{series.name}: drift needs two frames with an image, found {found} ({told})"
