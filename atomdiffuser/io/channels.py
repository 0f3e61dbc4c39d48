"""Channels of one acquisition: detectors that recorded the same scan, so that what moved in one moved in all.

Which one should give its drift to the others is known before any frame is converted: the one whose frames hold most
information on a shift, unless session.yaml names another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from atomdiffuser.errors import SettingsError

if TYPE_CHECKING:
    from atomdiffuser.io.discovery import SeriesEntry

OWN = "own"
SECOND_DIFFERENCE_NOISE = 36.0  # (1 + 4 + 1)², noise variance that the second difference along both axes passes


def drift_information(frame: np.ndarray) -> float:
    """How much a frame (Y, X) says about a shift of it [1/px² a pixel]: mean squared slope over noise variance.

    The noise is measured from the second difference along both axes (Immerkær, Comput. Vis. Image Underst. 64, 1996)
    and its own slopes are taken out. 0 for a frame without structure.
    """
    image = np.nan_to_num(np.asarray(frame, dtype=np.float64))
    if min(image.shape) < 4:
        return 0.0
    second = np.diff(np.diff(image, n=2, axis=0), n=2, axis=1)
    noise = float(np.mean(second**2)) / SECOND_DIFFERENCE_NOISE
    if noise <= 0:
        return 0.0
    slopes = (image[2:] - image[:-2]) / 2, (image[:, 2:] - image[:, :-2]) / 2
    energy = sum(float(np.mean(s**2)) for s in slopes) - noise  # each slope has half of the noise's variance
    return max(energy, 0.0) / noise


def share_drift(entries: Sequence[SeriesEntry], chosen: Mapping[str, str]) -> list[SeriesEntry]:
    """Entries with `drift_from` set for those that take the drift of another channel of their acquisition.

    Parameters
    ----------
    chosen
        `drift_channel` of session.yaml by series ID, where it is given: the name of a channel, or "own".

    Raises
    ------
    SettingsError
        When no channel of an acquisition has the name that is given, or two different ones are.
    """
    groups: dict[tuple, list[SeriesEntry]] = {}
    for entry in entries:
        if entry.state == "series" and entry.signal is not None:
            groups.setdefault((entry.sources, entry.shape), []).append(entry)
    found: dict[str, str] = {}
    for group in groups.values():
        asked = {e.series_id: chosen[e.series_id] for e in group if e.series_id in chosen}
        together = [e for e in group if asked.get(e.series_id) != OWN]
        if together:
            reference = _reference(together, {name for name in asked.values() if name != OWN})
            found |= {e.series_id: reference.series_id for e in together if e is not reference}
    return [replace(e, drift_from=found.get(e.series_id, "")) for e in entries]


def _reference(group: Sequence[SeriesEntry], names: set[str]) -> SeriesEntry:
    if not names:
        return max(group, key=lambda e: (e.drift_information, -(e.signal or 0)))
    answers = {}
    for name in sorted(names):
        known = (e for e in group if name.casefold() in (e.channel.casefold(), str(e.signal), e.series_id.casefold()))
        answers[name] = next(known, None)
    unknown = [name for name, entry in answers.items() if entry is None]
    where = f"session.yaml: drift_channel of {group[0].sources[0]}"
    if unknown:
        there = ", ".join(e.channel for e in group)
        raise SettingsError(f"{where}: {unknown[0]!r} is no channel of it; there are {there} ({OWN!r}: each its own)")
    entries = list(answers.values())
    if any(e is not entries[0] for e in entries):
        raise SettingsError(f"{where}: {' and '.join(sorted(names))}; one of them can give its drift to the others")
    return entries[0]
