"""Samples of a session compared: which is damaged faster, by which condition, and whether flux matters.

Rates are compared rather than critical fluences: a series that ends too early for the latter still has a rate, and its
noise is nearly normal. Between samples of one kind rates differ beyond their noise; that spread τ is estimated with the
effects (random-effects meta-regression: REML, and t intervals after Knapp & Hartung, Stat. Med. 22, 2693, 2003). Within
a series the regions of the grid differ too; that spread joins the noise of its mean. The calibration of the current is
common to a session and cancels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from atomdiffuser.damage.verdicts import SIGNIFICANCE, UNIT_TEXT, holm

WHOLE = "whole"
Z95 = float(special.ndtri(0.975))
DIFFERENT_FLUX = 1.05  # ratio from which fluxes count as different
MOST_PAIRS = 200
LEAST_P = 0.001  # smaller ones are not told apart in words: no model of the noise is that good
COLUMNS = (
    "witness", "question", "condition", "a", "b", "n_a", "n_b", "rate_a", "rate_b", "difference", "difference_lo95",
    "difference_hi95", "ratio", "ratio_lo95", "ratio_hi95", "effect_size", "p_value", "p_corrected",
    "between_sample_sigma", "method", "text",
)  # fmt: skip
SAMPLE_COLUMNS = (
    "series", "name", "witness", "unit", "critical_fluence", "critical_fluence_lo95", "critical_fluence_hi95",
    "lower_bound", "rate_percent_per_1000", "rate_sigma", "loss_percent", "flux_e_per_A2_s", "beam_energy_kV",
    "n_regions", "region_spread_percent", "mechanism",
)  # fmt: skip
CONDITION = "condition_"


@dataclass(frozen=True)
class Sample:
    """One series of a session: its critical_fluence.csv, and what was known of it."""

    series: str
    name: str
    critical_fluence: pd.DataFrame
    conditions: Mapping[str, Any] = field(default_factory=dict)
    flux_e_per_A2_s: float = math.nan
    beam_energy_kV: float = math.nan


def samples_table(samples: Sequence[Sample]) -> pd.DataFrame:
    """samples.csv: a row per series and witness, of the whole field."""
    names = sorted({str(c) for s in samples for c in s.conditions})
    rows = []
    for sample in samples:
        table = sample.critical_fluence
        for _, whole in table[(table["region"] == WHOLE) & np.isfinite(table["rate_percent_per_1000"])].iterrows():
            grid = table[(table["witness"] == whole["witness"]) & table["region"].str.startswith("grid_")]
            rate, noise = grid["rate_percent_per_1000"].to_numpy(float), _sigma(grid).to_numpy(float)
            good = np.isfinite(rate) & (noise > 0)
            spread = _between(rate[good], noise[good], np.ones((int(good.sum()), 1))) if good.sum() > 2 else 0.0
            own = float(_sigma(whole))
            mean = abs(float(whole["rate_percent_per_1000"]))
            rows.append(
                {
                    "series": sample.series,
                    "name": sample.name,
                    **{c: whole[c] for c in ("witness", "unit", *SAMPLE_COLUMNS[4:8], "rate_percent_per_1000")},
                    "rate_sigma": math.hypot(own, spread / math.sqrt(max(int(good.sum()), 1))),
                    "loss_percent": whole["loss_percent"],
                    "flux_e_per_A2_s": sample.flux_e_per_A2_s,
                    "beam_energy_kV": sample.beam_energy_kV,
                    "n_regions": int(good.sum()),
                    "region_spread_percent": 100 * spread / mean if mean > 0 else math.nan,
                    "mechanism": whole["mechanism"],
                    **{f"{CONDITION}{c}": sample.conditions.get(c) for c in names},
                }
            )
    table = pd.DataFrame(rows, columns=[*SAMPLE_COLUMNS, *(f"{CONDITION}{c}" for c in names)])
    for c in names:  # numbers stay numbers only where all are
        column = table[f"{CONDITION}{c}"]
        numeric = column.map(lambda v: _is_missing(v) or _is_number(v)).all()
        table[f"{CONDITION}{c}"] = (
            column.astype(float) if numeric else column.map(lambda v: "" if _is_missing(v) else str(v))
        )
    return table


def compare_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """comparison.csv from samples.csv: pairs of series, levels of each condition, flux; within one unit of fluence."""
    rows: list[dict[str, Any]] = []
    for witness, of_witness in samples.groupby("witness", sort=False):
        found: list[dict[str, Any]] = []
        for unit, table in of_witness.groupby("unit", sort=False):
            usable = table[np.isfinite(table["rate_sigma"]) & (table["rate_sigma"] > 0)]
            found += _pairs(usable, unit)
            for column in (c for c in samples.columns if c.startswith(CONDITION)):
                found += _condition(usable, column, unit)
            found += _flux(usable, unit)
        for row, p in zip(found, holm([r["p_value"] for r in found]), strict=True):
            rows.append({"witness": witness} | row | {"p_corrected": p, "text": _text(row, p)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class Regression:
    """Coefficients of a random-effects meta-regression with covariance, spread τ, and degrees of freedom."""

    coefficients: np.ndarray
    covariance: np.ndarray
    between: float
    freedom: int


def meta_regression(y: np.ndarray, sigma: np.ndarray, design: np.ndarray) -> Regression:
    """y (n,) with 1 σ (n,) on a design (n, p): random effects by REML, covariance after Knapp & Hartung."""
    n, p = design.shape
    between = _between(y, sigma, design)
    w = 1 / (sigma**2 + between**2)
    covariance = np.linalg.inv(design.T @ (w[:, None] * design))
    beta = covariance @ design.T @ (w * y)
    freedom = n - p
    if freedom > 0:
        scatter = float((w * (y - design @ beta) ** 2).sum()) / freedom
        covariance = covariance * max(scatter, 1.0)  # never narrower than the noise allows
    return Regression(beta, covariance, between, freedom)


def _between(y: np.ndarray, sigma: np.ndarray, design: np.ndarray) -> float:
    """REML estimate of the spread beyond noise."""
    n, p = design.shape
    if n <= p:
        return 0.0

    def cost(tau: float) -> float:
        w = 1 / (sigma**2 + tau**2)
        information = design.T @ (w[:, None] * design)
        beta = np.linalg.solve(information, design.T @ (w * y))
        return float(-np.log(w).sum() + np.linalg.slogdet(information)[1] + (w * (y - design @ beta) ** 2).sum())

    largest = 3 * float(np.ptp(y)) + 1e-300
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(cost, bounds=(0.0, largest), method="bounded")
    return float(best.x) if cost(best.x) < cost(0.0) else 0.0


def _pairs(table: pd.DataFrame, unit: str) -> list[dict[str, Any]]:
    pairs = list(itertools.combinations(range(len(table)), 2))
    if len(pairs) > MOST_PAIRS:
        return []
    rate, sigma, name = (table[c].to_numpy() for c in ("rate_percent_per_1000", "rate_sigma", "series"))
    rows = []
    for i, j in pairs:
        spread = math.hypot(sigma[i], sigma[j])
        head = _head("pair", "", name[i], name[j], 1, 1, unit, "two series, noise of each alone (normal)")
        rows.append(
            head | _difference(rate[i], sigma[i], rate[j], sigma[j], spread, math.inf, spread / math.sqrt(2), 0.0)
        )
    return rows


def _condition(table: pd.DataFrame, column: str, unit: str) -> list[dict[str, Any]]:
    name, values = column.removeprefix(CONDITION), table[column]
    known = values.notna() & (values.astype(str) != "")
    table, values = table[known], values[known]
    levels = sorted(values.unique(), key=lambda v: (isinstance(v, str), v))
    if len(levels) < 2 or len(table) < 3:
        return []
    y, sigma = (table[c].to_numpy(float) for c in ("rate_percent_per_1000", "rate_sigma"))
    if values.map(_is_number).all() and len(levels) > 2:
        return _slope(values.to_numpy(float), y, sigma, "condition", name, unit)
    design = np.array([[v == level for level in levels] for v in values], float)
    fit = meta_regression(y, sigma, design)
    if fit.freedom < 1:
        return []
    rows = []
    for i, j in itertools.combinations(range(len(levels)), 2):
        variance = fit.covariance[i, i] + fit.covariance[j, j] - 2 * fit.covariance[i, j]
        counts = (int(design[:, k].sum()) for k in (i, j))
        head = _head("condition", name, _level(levels[i]), _level(levels[j]), *counts, unit, "random effects, REML (t)")
        own = [math.sqrt(fit.covariance[k, k]) for k in (i, j)]
        typical = math.hypot(fit.between, float(np.sqrt(np.mean(sigma**2))))
        rows.append(
            head
            | _difference(
                fit.coefficients[i], own[0], fit.coefficients[j], own[1], math.sqrt(variance), fit.freedom, typical,
                fit.between,
            )
        )  # fmt: skip
    return rows


def _flux(table: pd.DataFrame, unit: str) -> list[dict[str, Any]]:
    flux = table["flux_e_per_A2_s"].to_numpy(float)
    good = np.isfinite(flux) & (flux > 0)
    if good.sum() < 3 or flux[good].max() < DIFFERENT_FLUX * flux[good].min():
        return []
    y, sigma = (table[c].to_numpy(float)[good] for c in ("rate_percent_per_1000", "rate_sigma"))
    return _slope(np.log10(flux[good]), y, sigma, "flux", "log10 flux", unit)


def _slope(x, y, sigma, question: str, name: str, unit: str) -> list[dict[str, Any]]:
    fit = meta_regression(y, sigma, np.stack([np.ones(len(x)), x], 1))
    if fit.freedom < 1:
        return []
    slope, error = float(fit.coefficients[1]), float(np.sqrt(fit.covariance[1, 1]))
    ends = [float(fit.coefficients @ [1.0, v]) for v in (x.min(), x.max())]
    typical = math.hypot(fit.between, float(np.sqrt(np.mean(sigma**2))))
    quantile = float(special.stdtrit(fit.freedom, 0.975))
    head = _head(
        question, name, f"{x.min():g}", f"{x.max():g}", len(x), len(x), unit, "random effects, REML (t), slope"
    )
    return [
        head | {
            "rate_a": ends[0], "rate_b": ends[1], "difference": slope, "difference_lo95": slope - quantile * error,
            "difference_hi95": slope + quantile * error, "ratio": ends[0] / ends[1] if min(ends) > 0 else math.nan,
            "ratio_lo95": math.nan, "ratio_hi95": math.nan, "effect_size": slope * float(np.ptp(x)) / typical,
            "p_value": float(2 * special.stdtr(fit.freedom, -abs(slope) / error)),
            "between_sample_sigma": fit.between,
        }
    ]  # fmt: skip


def _head(question: str, condition: str, a: str, b: str, n_a: int, n_b: int, unit: str, method: str) -> dict[str, Any]:
    return {
        "question": question, "condition": condition, "a": a, "b": b, "n_a": n_a, "n_b": n_b,
        "method": f"{method}; rates in % per 1,000 {UNIT_TEXT.get(unit, unit)}",
    }  # fmt: skip


def _difference(rate_a, sigma_a, rate_b, sigma_b, spread, freedom, typical, between) -> dict[str, Any]:
    difference = float(rate_b - rate_a)
    quantile = float(special.stdtrit(freedom, 0.975))  # the normal one for infinite freedom
    ratio = lo = hi = math.nan
    if rate_a > Z95 * sigma_a and rate_b > Z95 * sigma_b:
        ratio = float(rate_a / rate_b)
        error = quantile * math.hypot(sigma_a / rate_a, sigma_b / rate_b)
        lo, hi = ratio * math.exp(-error), ratio * math.exp(error)
    return {
        "rate_a": float(rate_a), "rate_b": float(rate_b), "difference": difference,
        "difference_lo95": difference - quantile * spread, "difference_hi95": difference + quantile * spread,
        "ratio": ratio, "ratio_lo95": lo, "ratio_hi95": hi, "effect_size": difference / typical,
        "p_value": float(2 * special.stdtr(freedom, -abs(difference) / spread)), "between_sample_sigma": float(between),
    }  # fmt: skip


def _text(row: Mapping[str, Any], p_corrected: float) -> str:
    p = f"corrected p = {p_corrected:.2g}" if p_corrected >= LEAST_P else f"corrected p < {LEAST_P:g}"
    if row["question"] != "pair" and row["method"].count("slope"):
        return f"rate {'rises' if row['difference'] > 0 else 'falls'} with {row['condition']}" + (
            f" ({p})" if p_corrected < SIGNIFICANCE else f" by less than chance allows ({p})"
        )
    if not p_corrected < SIGNIFICANCE:
        return f"{row['a']} and {row['b']}: no difference beyond chance ({p})"
    faster, slower = (row["b"], row["a"]) if row["difference"] > 0 else (row["a"], row["b"])
    times = ""
    if math.isfinite(row["ratio"]):
        factor = row["ratio"] if row["ratio"] > 1 else 1 / row["ratio"]
        times = f" {factor:.2g} times"
    alone = "; one series each: how far samples of a kind differ is not in it" if row["question"] == "pair" else ""
    return f"{faster} is damaged{times} faster than {slower} ({p}{alone})"


def _sigma(row: Any) -> Any:
    return (row["rate_hi95"] - row["rate_lo95"]) / (2 * Z95)


def _level(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value)


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
