"""Digital Micrograph DM3 and DM4, through RosettaSciIO."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.io._dm_tags import check_dm
from atomdiffuser.io._raw_signal import Axis, RawSignal, clean_unit, dig, number, positive


def read_digital_micrograph(path: Path) -> list[RawSignal]:
    """Every image, stack and spectrum of the file, thumbnails left out."""
    from rsciio.digitalmicrograph import file_reader

    check_dm(path)
    return [_signal(d) for d in file_reader(str(path), lazy=True, chunks={0: 1})]


def _signal(found: dict[str, Any]) -> RawSignal:
    image = dig(found["original_metadata"], "ImageList", "TagGroup0") or {}
    tags = image.get("ImageTags") or {}
    planes = _plane_times(tags.get("plane info"), found["data"].shape)
    own = dig(tags, "source", "Tags at creation")  # the stack builder keeps the tags of its source there
    tags = own if isinstance(own, Mapping) else tags
    microscope, digiscan = tags.get("Microscope Info") or {}, tags.get("DigiScan") or {}
    clock = number(dig(tags, "DataBar", "Acquisition Time (OS)"), 1e-7)  # counts 100 ns
    title = str(dig(found["metadata"], "General", "title") or "image")
    tilt = number(dig(microscope, "Stage Position", "Stage Alpha"))
    if planes is None and len(found["data"].shape) == 2 and clock:
        planes = np.array([clock])
    return RawSignal(
        title=title,
        data=found["data"],
        axes=tuple(
            Axis(str(a.get("name") or ""), clean_unit(a.get("units")), float(a["scale"]), float(a["offset"]))
            for a in found["axes"]
        ),
        fields={
            "dwell_s": positive(digiscan.get("Sample Time"), 1e-6),
            "probe_current_pA": positive(microscope.get("Probe Current (nA)"), 1e3),
            "beam_energy_kV": positive(microscope.get("Voltage"), 1e-3),
            "scan_rotation_deg": number(digiscan.get("Rotation")),
            "detector": _text(dig(tags, "DataBar", "Signal Name")),
            "instrument": _text(dig(tags, "Session Info", "Microscope")) or _text(microscope.get("Name")),
            "acquired_at": _acquired_at(tags.get("DataBar") or {}, clock),
        },
        starts_s=planes,
        starts_resolution_s=1e-3,
        tilts_deg=() if tilt is None else (tilt,),
        original_metadata=found["original_metadata"],
    )


def _plane_times(planes: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """When the stack builder added each frame; its ticks are milliseconds."""
    if not isinstance(planes, Mapping) or len(shape) != 3 or len(planes) != shape[0]:
        return None
    ticks = [number(dig(planes, f"TagGroup{k}", "added @ tick"), 1e-3) for k in range(shape[0])]
    return None if None in ticks else np.array(ticks, dtype=float)


def _acquired_at(data_bar: Mapping[str, Any], clock_s: float | None) -> str | None:
    from dateutil import parser

    day, time = _text(data_bar.get("Acquisition Date")), _text(data_bar.get("Acquisition Time"))
    if day and time:
        try:
            return parser.parse(f"{day} {time}").isoformat()
        except (ValueError, OverflowError):
            pass
    if clock_s:
        return (datetime(1601, 1, 1, tzinfo=UTC) + timedelta(seconds=clock_s)).isoformat()
    return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
