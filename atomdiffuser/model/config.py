"""Settings of the network; they travel inside every checkpoint, so that weights always find their own shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from atomdiffuser.errors import SettingsError

STEM_STRIDE = 2
MAP_STRIDE = 4
CELL_STRIDE = 8
MULTIPLE = 32
"""Windows are padded to whole multiples of this: the decoder halves the map grid three times."""


@dataclass(frozen=True)
class ModelConfig:
    """Widths and reaches of `AtomDiffuser`.

    Attributes
    ----------
    decoder_widths, decoder_blocks
        Channels of the decay decoder at strides 4, 8, 16 and 32, and blocks at each on the way down and up.
    condition
        Length of the vector that fluence and time become.
    shift_width
        Channels of the network that reads the correlation surfaces of the whole frame.
    shift_reach_px, turns_deg
        Longest shift along each axis, and turns, that are searched.
    step_width, step_blocks
        Channels and blocks of the networks that read the correlation in cells.
    step_reach
        Reach of each correlation in cells [features, 2 px each]; there are as many refinements as numbers. The first
        has weights of its own, the others share theirs, so the others must be equal.
    """

    decoder_widths: tuple[int, int, int, int] = (40, 64, 96, 128)
    decoder_blocks: int = 2
    condition: int = 64
    shift_width: int = 16
    shift_reach_px: int = 56
    turns_deg: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    step_width: int = 32
    step_blocks: int = 3
    step_reach: tuple[int, ...] = (2, 1, 1)

    def __post_init__(self) -> None:
        if len(self.decoder_widths) != 4:
            raise SettingsError(f"decoder_widths has {len(self.decoder_widths)} numbers, expected 4")
        if not self.step_reach or len(set(self.step_reach[1:])) > 1:
            raise SettingsError(f"step_reach is {self.step_reach}, expected one number, then equal ones")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The opposite of `to_dict`; unknown keys raise SettingsError."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SettingsError(f"model setting {unknown[0]!r} is not known; known are {', '.join(sorted(known))}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
