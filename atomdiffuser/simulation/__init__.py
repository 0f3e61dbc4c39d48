"""Time series and pairs of frames with exact truth."""

from atomdiffuser.simulation.pairs import PairBatch, PairRanges, simulate_pairs
from atomdiffuser.simulation.series import (
    SimulatedFrame,
    SimulatedSeries,
    SimulationOptions,
    simulate_frames,
    simulate_series,
)

__all__ = [
    "PairBatch",
    "PairRanges",
    "SimulatedFrame",
    "SimulatedSeries",
    "SimulationOptions",
    "simulate_frames",
    "simulate_pairs",
    "simulate_series",
]
