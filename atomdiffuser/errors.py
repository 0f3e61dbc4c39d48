"""Exceptions that a user may see: each message says what is wrong with which file and what to do."""

from __future__ import annotations


class AtomDiffuserError(Exception):
    """Base of every error this package raises on purpose."""


class ReadError(AtomDiffuserError):
    """A raw file cannot be read as microscope data."""


class NotATimeSeries(AtomDiffuserError):
    """The file is readable, but holds no time series; the workflow skips it and shows the reason."""


class MetadataError(AtomDiffuserError):
    """Calibrations or acquisition metadata contradict each other or are out of range."""


class SettingsError(AtomDiffuserError):
    """A configuration value is unknown or not allowed; the message names key, value and what is allowed."""


class ShapeError(AtomDiffuserError, ValueError):
    """Array shapes do not fit together; the message gives both."""


class StoreError(AtomDiffuserError):
    """A result store is missing, incomplete or of another kind; the message names the stage to run first."""


class ClusterError(AtomDiffuserError):
    """Workers on other machines cannot be had, or cannot do the work; the message says which and what to do."""
