"""The names and signatures that users of the package rely on."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import atomdiffuser

NAMES = {
    "__version__", "Acquisition", "FrameSeries", "PairEstimates", "SeriesEstimate",
    "estimate_pairs", "estimate_series", "export", "open_results", "read_series", "simulate_series",
}  # fmt: skip
PAIR_FIELDS = (
    "moving_from_reference", "affine_covariance", "displacement_sigma_px", "intensity", "contrast", "intensity_sigma",
    "contrast_sigma", "valid", "reason",
)  # fmt: skip
SERIES_FIELDS = ("frame_from_reference", "displacement_sigma_px", "intensity", "contrast", "valid", "reason", "pairs")


def defaults(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def positional(function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_public_names() -> None:
    assert NAMES <= set(atomdiffuser.__all__) <= NAMES | {"load_model", "AtomDiffuser"}
    assert len(set(atomdiffuser.__all__)) == len(atomdiffuser.__all__)
    assert all(getattr(atomdiffuser, name) is not None for name in NAMES) and NAMES <= set(dir(atomdiffuser))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'atomdiffuser' has no attribute 'estimate_pears'"):
        atomdiffuser.estimate_pears  # noqa: B018


def test_importing_the_package_is_light() -> None:
    """Names load when first used: the command line answers at once."""
    code = "import sys, atomdiffuser; print([m for m in ('torch', 'scipy', 'pandas', 'hyperspy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_signature_of_estimate_pairs() -> None:
    assert positional(atomdiffuser.estimate_pairs) == ["reference", "moving"]
    given = defaults(atomdiffuser.estimate_pairs)
    assert {k: given.get(k) for k in ("dark_level", "gain_e", "device", "maps")} == {
        "dark_level": 0.0, "gain_e": 1.0, "device": "auto", "maps": True,
    }  # fmt: skip


def test_estimate_pairs_takes_times() -> None:
    assert defaults(atomdiffuser.estimate_pairs).get("time", "missing") is None


def test_signature_of_estimate_series() -> None:
    assert positional(atomdiffuser.estimate_series) == ["frames"]
    given = defaults(atomdiffuser.estimate_series)
    assert {k: given.get(k, "missing") for k in ("times", "dark_level", "gain_e", "device")} == {
        "times": None, "dark_level": 0.0, "gain_e": 1.0, "device": "auto",
    }  # fmt: skip


def test_fields_of_results() -> None:
    for result, fields in ((atomdiffuser.PairEstimates, PAIR_FIELDS), (atomdiffuser.SeriesEstimate, SERIES_FIELDS)):
        assert set(fields) <= {f.name for f in dataclasses.fields(result)}
    assert callable(atomdiffuser.PairEstimates.at)


def test_signature_of_read_and_simulate() -> None:
    assert positional(atomdiffuser.read_series)[:1] == ["path"]
    assert positional(atomdiffuser.simulate_series) == ["specimen"]
