"""Samples compared: effects of known size, spread between samples that is no effect, and corrected p-values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from atomdiffuser.damage.comparison import CONDITION, Sample, compare_samples, meta_regression, samples_table
from atomdiffuser.damage.verdicts import holm


def critical(rate: float, sigma: float, spread: float = 0.0, unit: str = "e_per_A2", seed: int = 0) -> pd.DataFrame:
    """critical_fluence.csv of one series, as far as the comparison reads it."""
    random = np.random.default_rng(seed)
    rows = []
    for region in ("whole", *(f"grid_{r}_{c}" for r in range(3) for c in range(3))):
        own = rate if region == "whole" else rate + random.normal(0, np.hypot(spread, 3 * sigma))
        error = sigma if region == "whole" else 3 * sigma
        rows.append(
            {
                "region": region, "witness": "contrast", "unit": unit,
                "critical_fluence": 1e5 / rate if rate > 0 else 9e5,
                "critical_fluence_lo95": 1.0, "critical_fluence_hi95": np.inf, "lower_bound": rate <= 0,
                "rate_percent_per_1000": own, "rate_lo95": own - 1.96 * error, "rate_hi95": own + 1.96 * error,
                "loss_percent": 20.0, "mechanism": "amorphisation",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def session(rates, sigma=0.1, conditions=(), flux=(), **options) -> pd.DataFrame:
    samples = [
        Sample(
            f"s{i}", f"S {i}", critical(rate, sigma, seed=i, **options),
            conditions[i] if conditions else {}, flux[i] if len(flux) else 10.0, 200.0,
        )
        for i, rate in enumerate(rates)
    ]  # fmt: skip
    return samples_table(samples)


def test_a_row_per_series_with_its_conditions() -> None:
    table = session([2.0, 3.0], conditions=[{"coating": "none", "temperature_K": 300}, {"coating": "carbon"}])
    assert table["series"].tolist() == ["s0", "s1"] and (table["n_regions"] == 9).all()
    assert table[f"{CONDITION}coating"].tolist() == ["none", "carbon"]
    assert table[f"{CONDITION}temperature_K"].iloc[0] == 300 and np.isnan(table[f"{CONDITION}temperature_K"].iloc[1])
    assert table["rate_sigma"].iloc[0] == pytest.approx(0.1, rel=0.6)


def test_series_without_a_condition_are_no_level_of_it() -> None:
    table = session([2.0, 3.0, 2.5], conditions=[{"coating": "none"}, {}, {}])
    assert table[f"{CONDITION}coating"].tolist() == ["none", "", ""]
    assert (compare_samples(table)["question"] == "pair").all()


def test_uneven_regions_make_the_mean_less_sure() -> None:
    even, uneven = session([2.0], spread=0.0), session([2.0], spread=1.5)
    assert uneven["rate_sigma"].iloc[0] > 2 * even["rate_sigma"].iloc[0]
    assert uneven["region_spread_percent"].iloc[0] > 30


def test_a_clear_difference_of_a_pair() -> None:
    rows = compare_samples(session([2.0, 4.0]))
    row = rows[rows["question"] == "pair"].iloc[0]
    assert row["difference"] == pytest.approx(2.0) and row["ratio"] == pytest.approx(0.5) and row["p_corrected"] < 1e-6
    assert row["ratio_lo95"] < 0.5 < row["ratio_hi95"] and row["text"].startswith(
        "s1 is damaged 2 times faster than s0"
    )


def test_condition_with_a_real_effect() -> None:
    coatings = [{"coating": "none"}] * 4 + [{"coating": "carbon"}] * 4
    rows = compare_samples(session([4.0, 4.3, 3.8, 4.1, 2.0, 2.2, 1.9, 2.1], conditions=coatings))
    row = rows[rows["question"] == "condition"].iloc[0]
    assert (row["a"], row["b"], row["n_a"], row["n_b"]) == ("carbon", "none", 4, 4)
    assert row["difference"] == pytest.approx(2.0, abs=0.2) and row["p_corrected"] < 0.01 and row["effect_size"] > 3


def test_spread_between_samples_is_no_effect_of_the_condition() -> None:
    """Rates that differ far beyond their noise, alike under both coatings: noise alone would call it sure."""
    coatings = [{"coating": "none"}] * 3 + [{"coating": "carbon"}] * 3
    rows = compare_samples(session([1.0, 4.0, 2.0, 2.5, 4.5, 1.2], sigma=0.05, conditions=coatings))
    row = rows[rows["question"] == "condition"].iloc[0]
    assert row["p_value"] > 0.3 and row["between_sample_sigma"] > 1
    assert (rows[rows["question"] == "pair"]["p_corrected"] < 0.01).any()  # single series do differ


def test_numbers_and_flux_are_regressed() -> None:
    temperatures = [{"temperature_K": t} for t in (100, 150, 200, 250, 300)]
    flux = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    rows = compare_samples(session([1.0, 1.52, 2.0, 2.49, 3.0], conditions=temperatures, flux=flux))
    slope = rows[rows["question"] == "condition"].iloc[0]
    assert slope["difference"] == pytest.approx(0.01, rel=0.1) and slope["difference_lo95"] > 0
    of_flux = rows[rows["question"] == "flux"].iloc[0]
    assert of_flux["difference"] == pytest.approx(1.0, rel=0.1) and "rises with log10 flux" in of_flux["text"]
    same = compare_samples(session([1.0, 2.0, 3.0], flux=[10.0, 10.1, 10.2]))
    assert (same["question"] != "flux").all()


def test_units_are_not_mixed() -> None:
    a, b = session([2.0]), session([3.0], unit="s").assign(series="s1")
    assert compare_samples(pd.concat([a, b], ignore_index=True)).empty


def test_false_effects_stay_at_their_level() -> None:
    random, seen = np.random.default_rng(4), 0
    for _ in range(200):
        y = 2 + random.normal(0, 0.5, 8) + random.normal(0, 0.2, 8)
        design = np.stack([np.ones(8), np.repeat([0, 1], 4)], 1).astype(float)
        fit = meta_regression(y, np.full(8, 0.2), design)
        seen += abs(fit.coefficients[1]) > 2.447 * np.sqrt(fit.covariance[1, 1])
    assert seen / 200 <= 0.09


def test_holm_by_hand() -> None:
    assert holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm([]).size == 0


def test_an_empty_session_compares_nothing() -> None:
    assert compare_samples(samples_table([])).empty
