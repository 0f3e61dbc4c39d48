"""What the tables of one series say in a handful of numbers: the common ground of both pages and of summary.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.config import RegisterSettings
from atomdiffuser.report.formatting import known

WHOLE = "whole"
SIGNIFICANCE = 0.05
"""Two-sided level below which a change counts as one."""


@dataclass(frozen=True)
class Witness:
    """One region's fitted signal: a row of critical_fluence.csv."""

    witness: str
    model: str = ""
    unit: str = "frame"
    critical: float = np.nan
    critical_lo95: float = np.nan
    critical_hi95: float = np.nan
    lower_bound: bool = False
    p_value: float = np.nan
    loss_percent: float = np.nan
    loss_lo95: float = np.nan
    loss_hi95: float = np.nan
    onset_frame: int = -1
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return known(self.loss_percent)

    def number(self, column: str) -> float:
        """A further number of the row; NaN when these results do not have it."""
        value = self.row.get(column)
        return float(value) if known(value) else np.nan

    def text(self, column: str) -> str:
        """A further text of the row; empty when these results do not have it."""
        value = self.row.get(column)
        return value if isinstance(value, str) else ""

    @property
    def usable_last_frame(self) -> int | None:
        """Last frame within the tolerated loss; −1 when there is none, None when these results do not say."""
        value = self.number("usable_last_frame")
        return int(value) if known(value) else None

    @property
    def changed(self) -> bool:
        """Whether the change is significant.

        Where the table says so itself, its word counts (it corrects for the number of witnesses); otherwise the p-value
        and an interval that leaves out zero must agree.
        """
        if not self.measured:
            return False
        if isinstance(self.row.get("changed"), bool | np.bool_):
            return bool(self.row["changed"])
        beyond_zero = not (known(self.loss_lo95) and known(self.loss_hi95)) or self.loss_lo95 * self.loss_hi95 > 0
        small_p = not known(self.p_value) or self.p_value < SIGNIFICANCE
        return beyond_zero and small_p

    @property
    def detection_limit_percent(self) -> float:
        """Largest change, in either direction, that the interval still allows [%]."""
        if known(self.number("detection_limit_percent")):
            return self.number("detection_limit_percent")
        ends = [abs(e) for e in (self.loss_lo95, self.loss_hi95) if known(e)]
        return max(ends) if ends else np.nan


@dataclass(frozen=True)
class SeriesFacts:
    """Numbers of one series that the reports state; NaN where unknown.

    Attributes
    ----------
    axis, axis_unit
        Column of the tables that figures use as abscissa, and its unit: fluence, else time, else frame number.
    drift_rate, drift_rate_unit
        Net displacement between the first and the last valid frame over the time between them.
    closure_px
        Largest closure error of a valid frame.
    hops
        Pairs in use that may be off by a lattice vector.
    ambiguous
        (t,) frames whose drift is right only modulo a lattice vector, all pairs taken together; None in results of an
        older version, which do not say.
    flagged
        Frames by word: what their quality was flagged for, whether or not they were used.
    shared_drift_from
        Series that the drift was measured on, when it is another channel of the same acquisition.
    last
        The last frame whose change was measured over the whole field; later ones may be valid and yet show too little
        of it. `fluence_e_per_A2` and `duration_s` count up to this frame.
    """

    n_frames: int
    valid: np.ndarray
    reference_frame: int
    axis: str
    axis_unit: str
    fluence_e_per_A2: float
    duration_s: float
    drift_rate: float
    drift_rate_unit: str
    farthest: tuple[float, str]
    closure_px: float
    sigma_px: float
    hops: int
    n_pairs: int
    n_invalid_pairs: int
    fluence_known: bool
    last: int
    contrast: Witness
    intensity: Witness
    crystallinity: Witness = field(default_factory=lambda: Witness("crystallinity"))
    ambiguous: np.ndarray | None = None
    flagged: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shared_drift_from: str = ""

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Those that were measured."""
        return tuple(w for w in (self.contrast, self.intensity, self.crystallinity) if w.measured)

    @property
    def n_ambiguous(self) -> int:
        """Used frames that may be off by a lattice vector; 0 when these results do not say."""
        return 0 if self.ambiguous is None else int((self.ambiguous & self.valid).sum())

    @property
    def n_flagged_used(self) -> int:
        """Frames that were used although their quality was flagged."""
        return len({k for frames in self.flagged.values() for k in frames if self.valid[k]})

    @property
    def mechanism(self) -> str:
        """What kind of change the two witnesses make together, in one word of critical_fluence.csv; may be empty."""
        return self.contrast.text("mechanism")

    @property
    def n_valid(self) -> int:
        return int(self.valid.sum())

    @property
    def n_excluded(self) -> int:
        return self.n_frames - self.n_valid

    @property
    def first(self) -> int:
        """The reference frame if it is valid, otherwise the first valid frame."""
        frames = np.flatnonzero(self.valid)
        if len(frames) == 0 or (0 <= self.reference_frame < self.n_frames and self.valid[self.reference_frame]):
            return self.reference_frame
        return int(frames[0])

    @property
    def last_valid(self) -> int:
        frames = np.flatnonzero(self.valid)
        return int(frames[-1]) if len(frames) else self.first

    @property
    def out_of_view(self) -> list[int]:
        """Valid frames after the last measured one: the reference field has drifted out of them."""
        return [int(k) for k in np.flatnonzero(self.valid) if k > self.last]


def gather_facts(
    pairs: pd.DataFrame, trajectory: pd.DataFrame, damage: pd.DataFrame, critical: pd.DataFrame
) -> SeriesFacts:
    """Read the numbers that reports state off the four tables."""
    valid = trajectory["valid"].to_numpy(bool)
    axis, unit = _abscissa(trajectory)
    used = trajectory[valid]
    rate, rate_unit = _drift_rate(used)
    last = _last_measured(damage, valid)
    until = used[used["frame"] <= last]
    return SeriesFacts(
        n_frames=len(trajectory),
        valid=valid,
        reference_frame=int(trajectory.attrs.get("reference_frame", 0)),
        axis=axis,
        axis_unit=unit,
        fluence_e_per_A2=_largest(until["fluence_e_per_A2"]),
        duration_s=_largest(until["time_s"]) - _smallest(until["time_s"]),
        drift_rate=rate,
        drift_rate_unit=rate_unit,
        farthest=_farthest(used),
        closure_px=_largest(used["closure_px"]),
        sigma_px=float(used["displacement_sigma_px"].median()) if len(used) else np.nan,
        hops=int(suspected_hops(pairs).sum()),
        n_pairs=len(pairs),
        n_invalid_pairs=int((~pairs["valid"].to_numpy(bool)).sum()),
        fluence_known=unit == "e_per_A2",
        last=last,
        contrast=witness_of(critical, WHOLE, "contrast"),
        intensity=witness_of(critical, WHOLE, "intensity"),
        crystallinity=witness_of(critical, WHOLE, "crystallinity"),
        ambiguous=trajectory["ambiguous"].to_numpy(bool) if "ambiguous" in trajectory else None,
        flagged=flagged_frames(trajectory),
        shared_drift_from=str(trajectory.attrs.get("drift_from") or ""),
    )


def flagged_frames(trajectory: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Frames by the word that their quality was flagged with, most frequent first."""
    frames: dict[str, list[int]] = {}
    if "flags" in trajectory:
        for frame, flags in zip(trajectory["frame"], trajectory["flags"], strict=True):
            for flag in filter(None, (f.strip() for f in str(flags).split(","))):
                frames.setdefault(flag, []).append(int(frame))
    return {flag: tuple(found) for flag, found in sorted(frames.items(), key=lambda item: -len(item[1]))}


def suspected_hops(pairs: pd.DataFrame) -> np.ndarray:
    """(n,) pairs in use that may be off by a lattice vector with more than the probability that registration allows."""
    settings = pairs.attrs.get("settings")
    default = RegisterSettings().hop_probability_limit
    limit = settings.get("hop_probability_limit", default) if isinstance(settings, Mapping) else default
    return pairs["valid"].to_numpy(bool) & (pairs["hop_probability"].to_numpy(float) > float(limit))


def witness_of(critical: pd.DataFrame, region: str, witness: str) -> Witness:
    """The row of one region and witness; a Witness of unknowns when there is none."""
    rows = critical[(critical["region"] == region) & (critical["witness"] == witness)]
    if rows.empty:
        return Witness(witness)
    row = rows.iloc[0].to_dict()
    return Witness(
        witness=witness,
        model=str(row["model"]),
        unit=str(row["unit"]),
        critical=float(row["critical_fluence"]),
        critical_lo95=float(row["critical_fluence_lo95"]),
        critical_hi95=float(row["critical_fluence_hi95"]),
        lower_bound=bool(row["lower_bound"]),
        p_value=float(row["p_value"]),
        loss_percent=float(row["loss_percent"]),
        loss_lo95=float(row["loss_lo95"]),
        loss_hi95=float(row["loss_hi95"]),
        onset_frame=int(row["onset_frame"]) if known(row["onset_frame"]) else -1,
        row=row,
    )


def _last_measured(damage: pd.DataFrame, valid: np.ndarray) -> int:
    """Last valid frame with a whole-field value; the last valid frame when there is none."""
    frames = np.flatnonzero(valid)
    rows = damage[(damage["region"] == WHOLE) & damage["valid"]]
    rows = rows[rows[["contrast", "intensity"]].notna().any(axis=1)]
    measured = [int(k) for k in rows["frame"] if k < len(valid) and valid[int(k)]]
    return max(measured, default=int(frames[-1]) if len(frames) else 0)


def _abscissa(table: pd.DataFrame) -> tuple[str, str]:
    for column, unit in (("fluence_e_per_A2", "e_per_A2"), ("time_s", "s")):
        if len(table) and np.isfinite(table[column].to_numpy(float)).all():
            return column, unit
    return "frame", "frame"


def _drift_rate(used: pd.DataFrame) -> tuple[float, str]:
    """Net displacement of the frame's centre per minute, or per frame when times are unknown."""
    length_unit = "nm" if _complete(used[["drift_y_nm", "drift_x_nm"]]) else "px"
    by_time = _complete(used[["time_s"]])
    unit = f"{length_unit}/min" if by_time else f"{length_unit}/frame"
    if len(used) < 2:
        return np.nan, unit
    start, end = used.iloc[0], used.iloc[-1]
    net = np.hypot(*(float(end[f"drift_{a}_{length_unit}"] - start[f"drift_{a}_{length_unit}"]) for a in "yx"))
    span = float(end["time_s"] - start["time_s"]) / 60 if by_time else float(end["frame"] - start["frame"])
    return (net / span if span > 0 else np.nan), unit


def _farthest(used: pd.DataFrame) -> tuple[float, str]:
    """Largest displacement from the reference frame."""
    unit = "nm" if _complete(used[["drift_y_nm", "drift_x_nm"]]) else "px"
    return _largest(pd.Series(np.hypot(used[f"drift_y_{unit}"], used[f"drift_x_{unit}"]))), unit


def _complete(columns: pd.DataFrame) -> bool:
    return len(columns) > 0 and bool(np.isfinite(columns.to_numpy(float)).all())


def _largest(values: pd.Series) -> float:
    finite = values.to_numpy(float)[np.isfinite(values.to_numpy(float))]
    return float(finite.max()) if len(finite) else np.nan


def _smallest(values: pd.Series) -> float:
    finite = values.to_numpy(float)[np.isfinite(values.to_numpy(float))]
    return float(finite.min()) if len(finite) else np.nan
