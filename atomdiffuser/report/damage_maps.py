"""Maps of a whole series: how fast each place was damaged, its critical fluence, its onset, and the segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from atomdiffuser.io.store import read_attributes


@dataclass(frozen=True)
class DamageMaps:
    """damage_maps.zarr in memory: (y, x) maps by name, NaN where not identifiable, and the store's attributes."""

    maps: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    def get(self, name: str) -> np.ndarray | None:
        """A map; None when it is not there or shows nothing."""
        found = self.maps.get(name)
        return found if found is not None and np.isfinite(found).any() else None


def open_damage_maps(path: Path) -> DamageMaps | None:
    """Read damage_maps.zarr; None when these results do not have it."""
    if not path.is_dir():
        return None
    maps = {
        group.name: np.asarray(zarr.open_array(group / "0", mode="r"), dtype=np.float32)
        for group in sorted(path.iterdir())
        if (group / "0").is_dir()
    }
    return DamageMaps(maps, read_attributes(path))
