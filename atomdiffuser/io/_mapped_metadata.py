"""HyperSpy's metadata tree from what RosettaSciIO returns, and the acquisition fields it holds.

`hs.load` applies each reader's mapping of original metadata; `file_reader` leaves it to the caller, and importing
HyperSpy for it takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from atomdiffuser.io._raw_signal import dig, number, positive


def mapped_metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    """The `metadata` of a RosettaSciIO result, completed by its `mapping` of `original_metadata`."""
    metadata = copy.deepcopy(dict(found.get("metadata", {})))
    for source, (target, function) in (found.get("mapping") or {}).items():
        value = dig(found.get("original_metadata", {}), *source.split("."))
        if value is None:
            continue
        try:
            value = value if function is None else function(value)
        except Exception:  # a foreign conversion of a foreign value: without it the field is unknown
            continue
        if value is not None:
            *parents, last = target.split(".")
            node = metadata
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
    return metadata


def acquisition_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`Acquisition`'s fields as HyperSpy's metadata tree holds them (kV, nA, s)."""
    instrument = metadata.get("Acquisition_instrument") or {}
    microscope = instrument.get("TEM") or instrument.get("SEM") or {}
    name = microscope.get("microscope")
    day, time = dig(metadata, "General", "date"), dig(metadata, "General", "time")
    return {
        "beam_energy_kV": positive(microscope.get("beam_energy")),
        "probe_current_pA": positive(microscope.get("beam_current"), 1e3),
        "dwell_s": positive(microscope.get("dwell_time")),
        "instrument": name if isinstance(name, str) and name else None,
        "acquired_at": f"{day}T{time}" if day and time else (str(day) if day else None),
    }


def stage_tilt_deg(metadata: Mapping[str, Any]) -> tuple[float, ...]:
    """Stage tilt as HyperSpy's metadata tree holds it, empty when unknown."""
    instrument = metadata.get("Acquisition_instrument") or {}
    microscope = instrument.get("TEM") or instrument.get("SEM") or {}
    tilt = number(dig(microscope, "Stage", "tilt_alpha"))
    return () if tilt is None else (tilt,)
