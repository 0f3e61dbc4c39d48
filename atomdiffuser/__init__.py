"""AtomDiffuser: separates beam damage from drift in STEM time series."""

from atomdiffuser._version import __version__

__all__ = ["__version__"]
