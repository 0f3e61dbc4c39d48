"""Time series and pairs of frames with exact truth."""

from atomdiffuser.simulation.series import (
    SimulatedFrame,
    SimulatedSeries,
    SimulationOptions,
    simulate_frames,
    simulate_series,
)

__all__ = ["SimulatedFrame", "SimulatedSeries", "SimulationOptions", "simulate_frames", "simulate_series"]
