"""Velox EMD: images through RosettaSciIO, the start of every frame from the file's own metadata."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.io._declared_size import check_hdf5
from atomdiffuser.io._raw_signal import Axis, RawSignal, clean_unit, dig, number, positive


def read_velox(path: Path) -> list[RawSignal]:
    """Every image of the file; spectrum images are named but not decoded, which takes minutes and gigabytes."""
    import h5py
    from rsciio.emd import file_reader

    check_hdf5(path)
    # load_SI_image_stack: without it a file that also holds a spectrum image gives the first frame only
    images = file_reader(str(path), lazy=True, select_type="images", load_SI_image_stack=True)
    with h5py.File(path, "r") as file:
        groups = list(file["Data/Image"].values()) if "Image" in file["Data"] else []
        frames = [_frame_metadata(g) for g in groups] if len(groups) == len(images) else [[] for _ in images]
        signals = [_image(d, f) for d, f in zip(images, frames, strict=True)]
        if "SpectrumImage" in file["Data"] or "SpectrumStream" in file["Data"]:
            import dask.array as da

            axes = (Axis("y", "", 1.0), Axis("x", "", 1.0), Axis("X-ray energy", "keV", 1.0))
            signals.append(RawSignal("EDS", da.zeros((1, 1, 1), dtype=np.uint16), axes, is_decoded=False))
    return signals


def _image(found: dict[str, Any], frames: list[dict[str, Any]]) -> RawSignal:
    metadata = found["original_metadata"]
    scan, optics = metadata.get("Scan") or {}, metadata.get("Optics") or {}
    axes = tuple(Axis(a["name"], clean_unit(a.get("units")), float(a["scale"])) for a in found["axes"])
    title = str(dig(found["metadata"], "General", "title") or "image")
    starts, resolution = _starts(frames)
    first = number(dig(metadata, "Acquisition", "AcquisitionStartDatetime", "DateTime"))
    instrument = metadata.get("Instrument") or {}
    model = str(instrument.get("InstrumentModel") or instrument.get("InstrumentClass") or "")
    tilts = [number(dig(f, "Stage", "AlphaTilt")) for f in frames]
    return RawSignal(
        title=title,
        data=found["data"],
        axes=axes,
        fields={
            "dwell_s": positive(scan.get("DwellTime")),
            "probe_current_pA": positive(optics.get("LastMeasuredScreenCurrent"), 1e12),
            "beam_energy_kV": positive(optics.get("AccelerationVoltage"), 1e-3),
            "scan_rotation_deg": number(scan.get("ScanRotation"), 180 / np.pi),
            "detector": title,
            "instrument": model or None,
            "acquired_at": datetime.fromtimestamp(first, UTC).isoformat() if first else None,
        },
        starts_s=starts,
        starts_resolution_s=resolution,
        tilts_deg=tuple(float(np.degrees(t)) for t in tilts if t is not None),
        original_metadata=metadata,
    )


def _frame_metadata(group: Any) -> list[dict[str, Any]]:
    """The metadata of each frame that are needed here; frames without are empty."""
    if "Metadata" not in group:
        return []
    frames = []
    dataset = group["Metadata"]
    for k in range(dataset.shape[1]):
        text = dataset[:, k].tobytes().split(b"\0", 1)[0]
        try:
            tree = json.loads(text.decode("utf-8", "replace"))
        except ValueError:
            tree = {}
        frames.append({k: tree[k] for k in ("Acquisition", "CustomProperties", "Stage", "BinaryResult") if k in tree})
    return frames


def _starts(frames: list[dict[str, Any]]) -> tuple[np.ndarray | None, float]:
    """Start of each frame and how finely it is known: cameras keep microseconds, scans whole seconds."""
    stamps = []
    for frame in frames:
        detector = dig(frame, "BinaryResult", "Detector")
        stamps.append(number(dig(frame, "CustomProperties", f"Detectors[{detector}].TimeStamp", "value"), 1e-6))
    if len(stamps) > 1 and None not in stamps:
        return np.array(stamps, dtype=float), 1e-6
    seconds = [number(dig(f, "Acquisition", "AcquisitionStartDatetime", "DateTime")) for f in frames]
    if seconds and all(seconds):
        return np.array(seconds, dtype=float), 1.0
    return None, 1.0
