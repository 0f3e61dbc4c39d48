"""Frames → raw microscope files, for the demonstration session, `simulate` and tests.

The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.errors import MetadataError, ShapeError
from atomdiffuser.io.replacing import replacing_file

DEFAULT_START = "2026-01-01T12:00:00+00:00"
_VELOX_METADATA_BYTES = 60000
_DM_DTYPES = ("uint16", "int16", "uint32", "int32", "float32", "float64")


def write_dm4(
    path: str | Path,
    frames: np.ndarray,
    *,
    frame_time_s: float | None,
    pixel_size_nm: float | tuple[float, float] | None,
    beam_energy_kV: float | None,
    probe_current_pA: float | None,
    dwell_s: float | None,
    acquired_at: str | None = None,
) -> None:
    """Write a calibrated Digital Micrograph file.

    Parameters
    ----------
    frames
        (t, y, x) series, or one (y, x) image; held in memory several times while writing.
    frame_time_s, pixel_size_nm, beam_energy_kV, probe_current_pA, dwell_s
        Calibration; None leaves it out, as unknown.
    acquired_at
        ISO 8601.

    Raises
    ------
    MetadataError
        For a dtype that the format's writer does not know, such as uint8: convert to uint16 first.
    """
    try:
        from nion.data import Calibration, DataAndMetadata
        from nionswift_plugin.DM_IO import dm3_image_utils
    except ImportError as error:
        how = 'pip install "atomdiffuser[demo]", or write EMD'
        raise MetadataError(f"{path}: writing DM4 needs nionswift-io: {how}") from error
    frames = _frames(path, frames)
    if frames.dtype.name not in _DM_DTYPES:
        raise MetadataError(f"{path}: DM4 takes {', '.join(_DM_DTYPES)}, not {frames.dtype}; convert to uint16 first")
    calibration = Calibration.Calibration
    pixel = _pixel_pair(pixel_size_nm)
    space = [calibration(0, p, "nm") for p in pixel] if pixel else [calibration(0, 1, "")] * 2
    time = calibration(0, frame_time_s, "s") if frame_time_s else calibration(0, 1, "")
    microscope: dict[str, Any] = {"Operation Mode": "SCANNING", "Illumination Mode": "STEM"}
    if beam_energy_kV is not None:
        microscope["Voltage"] = beam_energy_kV * 1e3
    if probe_current_pA is not None:
        microscope["Probe Current (nA)"] = probe_current_pA / 1e3
    start = _moment(acquired_at)
    tags = {
        "Microscope Info": microscope,
        "DigiScan": {} if dwell_s is None else {"Sample Time": dwell_s * 1e6},  # µs
        "DataBar": {
            "Acquisition Date": start.strftime("%m/%d/%Y"),
            "Acquisition Time": start.strftime("%H:%M:%S"),
            "Acquisition Time (OS)": float((start - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds() * 1e7),
        },
        "Meta Data": {"Format": "Image", "Signal": "Image"},
    }
    series = frames.ndim == 3
    image = DataAndMetadata.new_data_and_metadata(
        np.ascontiguousarray(frames),
        intensity_calibration=calibration(0, 1, "counts"),
        dimensional_calibrations=[time, *space] if series else space,
        metadata=tags,
        timestamp=start.replace(tzinfo=None),
        data_descriptor=DataAndMetadata.DataDescriptor(series, 0, 2),
    )
    with replacing_file(path) as temporary, open(temporary, "wb") as file:
        dm3_image_utils.save_image(image, file, 4)


def write_velox_emd(
    path: str | Path,
    frames: np.ndarray | Mapping[str, np.ndarray],
    *,
    frame_time_s: float,
    pixel_size_nm: float | tuple[float, float],
    beam_energy_kV: float | None,
    probe_current_pA: float | None,
    dwell_s: float | None,
    acquired_at: str | None = None,
    detector: str = "HAADF",
    starts_s: Sequence[float] | None = None,
) -> None:
    """Write a file with the layout of Velox: one image group per detector, JSON metadata per frame.

    Parameters
    ----------
    frames
        (t, y, x) series, one (y, x) image, or one such array for each of several detectors, by name.
    starts_s
        Start of each frame after the first [s], kept to whole seconds as Velox does; frames follow each other
        without a pause when it is not given.
    """
    import h5py

    stacks = dict(frames) if isinstance(frames, Mapping) else {detector: frames}
    stacks = {n: _frames(path, s) for n, s in stacks.items()}
    pixel, start = _pixel_pair(pixel_size_nm), _moment(acquired_at)
    with replacing_file(path) as temporary, h5py.File(temporary, "w") as file:
        version = json.dumps({"format": "Velox", "version": "1.10"}).encode()
        file.create_dataset("Version", data=np.array([version], dtype="S"))
        for index, (name, given) in enumerate(stacks.items()):
            stack = given if given.ndim == 3 else given[None]
            t, y, x = stack.shape
            group = file.create_group(f"Data/Image/{hashlib.md5(f'{index} {name}'.encode()).hexdigest()}")
            pixels = group.create_dataset("Data", shape=(y, x, t), dtype=stack.dtype, chunks=(y, x, 1))
            metadata = np.zeros((_VELOX_METADATA_BYTES, t), np.uint8)
            for k in range(t):
                pixels[:, :, k] = stack[k]
                after = frame_time_s * k if starts_s is None else starts_s[k]
                tree = _velox_frame(
                    name, index, (y, x), start.timestamp() + after, frame_time_s, pixel, dwell_s,
                    beam_energy_kV, probe_current_pA,
                )  # fmt: skip
                text = json.dumps(tree).encode()
                metadata[: len(text), k] = np.frombuffer(text, np.uint8)
            group.create_dataset("Metadata", data=metadata, chunks=(_VELOX_METADATA_BYTES, 1), compression="gzip")


def _velox_frame(
    detector: str,
    index: int,
    shape: tuple[int, int],
    start_s: float,
    frame_time_s: float,
    pixel_size_nm: tuple[float, float] | None,
    dwell_s: float | None,
    beam_energy_kV: float | None,
    probe_current_pA: float | None,
) -> dict[str, Any]:
    optics: dict[str, Any] = {"OperatingMode": "2"}
    if beam_energy_kV is not None:
        optics["AccelerationVoltage"] = repr(beam_energy_kV * 1e3)
    if probe_current_pA is not None:
        optics["LastMeasuredScreenCurrent"] = repr(probe_current_pA * 1e-12)
    scan = {"width": str(shape[1]), "height": str(shape[0])}
    size = pixel_size_nm or (0.0, 0.0)
    return {
        "Core": {"MetadataDefinitionVersion": "7.9", "MetadataSchemaVersion": "v1/2013/07", "guid": "0" * 32},
        "Instrument": {"InstrumentModel": "Simulated", "Manufacturer": "FEI"},
        "Acquisition": {
            "AcquisitionStartDatetime": {"DateTime": str(int(start_s))},
            "BeamType": "",
            "SourceType": "XFEG",
        },
        "Optics": optics,
        "Stage": {"Position": {"x": "0", "y": "0", "z": "0"}, "AlphaTilt": "0", "BetaTilt": "0"},
        "Scan": {
            "ScanSize": scan,
            "FrameTime": repr(float(frame_time_s)),
            "ScanRotation": "0",
            **({} if dwell_s is None else {"DwellTime": repr(float(dwell_s))}),
        },
        "Detectors": {
            f"Detector-{index}": {
                "DetectorName": detector,
                "DetectorType": "ScanningDetector",
                "Inserted": "true",
                "Enabled": "true",
            }
        },
        "BinaryResult": {
            "AcquisitionUnit": "",
            "CompositionType": "",
            "DetectorIndex": str(index),
            "Detector": detector,
            "PixelSize": {"width": repr(size[1] * 1e-9), "height": repr(size[0] * 1e-9)},
            "Offset": {"x": "0", "y": "0"},
            "PixelUnitX": "m",
            "PixelUnitY": "m",
            "Encoding": "",
        },
        "Sample": {},
        "CustomProperties": {},
    }


def _frames(path: str | Path, frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim not in (2, 3) or 0 in frames.shape:
        raise ShapeError(f"{path}: frames have shape {frames.shape}, expected (t, y, x) or (y, x)")
    return frames


def _pixel_pair(pixel_size_nm: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if pixel_size_nm is None:
        return None
    return tuple(pixel_size_nm) if isinstance(pixel_size_nm, Sequence) else (pixel_size_nm, pixel_size_nm)


def _moment(acquired_at: str | None) -> datetime:
    moment = datetime.fromisoformat(acquired_at or DEFAULT_START)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
