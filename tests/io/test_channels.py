"""Which channel of an acquisition gives its drift to the others."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.channels import drift_information
from atomdiffuser.io.discovery import SeriesEntry, discover
from atomdiffuser.io.raw_writers import write_velox_emd


def picture(electrons: float, rng: np.random.Generator, contrast: float = 0.8) -> np.ndarray:
    y, x = np.mgrid[:48, :56]
    pattern = np.sin(2 * np.pi * (x + 0.3 * y) / 9) * np.sin(2 * np.pi * (y - 0.3 * x) / 9)
    return rng.poisson(electrons * (1 + contrast * pattern)).astype(np.uint16)


def write(path, rng, **stacks) -> None:
    write_velox_emd(
        path, {name: np.stack(frames) for name, frames in stacks.items()}, frame_time_s=1.0, pixel_size_nm=0.02,
        beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=1e-6,
    )  # fmt: skip


@pytest.fixture()
def session(tmp_path, rng):
    """Two detectors with the same scan, BF much brighter but nearly flat, and a file with one detector."""
    haadf = [picture(20, rng) for _ in range(3)]
    bright = [picture(200, rng, 0.02) for _ in range(3)]
    write(tmp_path / "both.emd", rng, BF=bright, HAADF=haadf)
    write(tmp_path / "alone.emd", rng, HAADF=haadf)
    return tmp_path


def found(session) -> dict[str, SeriesEntry]:
    return {e.series_id: e for e in discover(session, results=session / "results", cache=session / "cache.json")}


def test_information_is_squared_slope_over_noise(rng) -> None:
    """A wave of amplitude a and period p has the squared slope (a·2π/p)²/2; without structure there is none."""
    x = np.arange(400)[None, :] + np.zeros((300, 1))
    noisy = 50 * np.sin(2 * np.pi * x / 40) + rng.normal(0, 4, x.shape)
    assert drift_information(noisy) == pytest.approx((50 * 2 * np.pi / 40) ** 2 / 2 / 16, rel=0.05)
    assert drift_information(rng.poisson(20, (300, 400))) < 0.02
    assert drift_information(np.full((30, 30), 7)) == 0 and drift_information(np.ones((2, 50))) == 0


def test_the_channel_of_best_signal_gives_its_drift(session) -> None:
    entries = found(session)
    assert {k: e.drift_from for k, e in entries.items()} == {"both-BF": "both-HAADF", "both-HAADF": "", "alone": ""}
    assert found(session) == entries  # from the cache
    assert SeriesEntry.from_json(entries["both-BF"].to_json()) == entries["both-BF"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: {drift_channel: bf}", {"both-BF": "", "both-HAADF": "both-BF", "alone": ""}),
        ("series: {both.emd: {drift_channel: own}}", {"both-BF": "", "both-HAADF": "", "alone": ""}),
        ("series: {both-HAADF: {skip: true}}", {"both-BF": "", "both-HAADF": "", "alone": ""}),
        ("series: {both-HAADF: {drift_channel: BF}}", {"both-BF": "", "both-HAADF": "both-BF", "alone": ""}),
    ],
)
def test_session_yaml_decides_otherwise(session, text, expected) -> None:
    (session / "session.yaml").write_text(text)
    entries = found(session)
    assert {k: e.drift_from for k, e in entries.items()} == expected
    assert not any("drift_channel" in e.overrides for e in entries.values())


def test_a_channel_that_does_not_exist_is_named(session) -> None:
    (session / "session.yaml").write_text("series: {both.emd: {drift_channel: ABF}}")
    message = r"drift_channel of both.emd: 'ABF' is no channel of it; there are BF, HAADF"
    with pytest.raises(SettingsError, match=message):
        found(session)


def test_two_answers_are_one_too_many(session) -> None:
    (session / "session.yaml").write_text(
        "series: {both-BF: {drift_channel: BF}, both-HAADF: {drift_channel: HAADF}}"
    )  # fmt: skip
    with pytest.raises(SettingsError, match="BF and HAADF; one of them can give its drift"):
        found(session)


def test_channels_of_different_shape_keep_their_own_drift(tmp_path, rng) -> None:
    frames = [picture(20, rng) for _ in range(3)]
    write(tmp_path / "two.emd", rng, HAADF=frames, BF=[f[:40] for f in frames])
    assert all(e.drift_from == "" for e in found(tmp_path).values())
