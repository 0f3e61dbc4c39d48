"""One decaying signal described: which curves fit, where it falls to 1/e and 1/2, how fast, from when, until when it is
usable, each with an interval; a lower bound where the series ends too early.

Numbers are averaged over the curves by Akaike weight, as rates (1/F), which are nearly normal where F is not. Intervals
are from replicates of the signal, each fitted and averaged alike, and what the curves disagree by is added (Buckland,
Burnham & Augustin, Biometrics 53, 603, 1997). Beyond the last frame that is most of it: there curves without a residue
are averaged. Below a stated share of the critical fluence a bound is given: from a straight line, which holds for every
decay that does not accelerate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats

from atomdiffuser.damage.curves import MODELS, N_PARAMETERS, CurveFits, akaike_weights, fit_curves
from atomdiffuser.damage.kinetics import MIN_FRAMES, onset_frame

Z95 = float(scipy.stats.norm.ppf(0.975))
SIGNIFICANT_MISFIT = 0.01
REACHED = 1.05  # F_c up to this many times the largest fluence is measured rather than extrapolated
EXPONENTIAL, LINEAR = MODELS.index("exponential"), MODELS.index("linear")
EXTRAPOLATING = np.array([not name.endswith("+offset") for name in MODELS])  # a residue is not seen before its time
LEAST_ALLOWANCE = 0.1  # of the noise's own share in a bound, however much the signal seems to grow
LIKELY = 0.1  # weight from which a curve has a say in a bound
TREND_SHARE = 0.9  # of the level that the test for a monotone change gets; the rest sees what wanders
PER_1000 = 1e5  # rate per unit of fluence → % per 1,000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    lo95: float
    hi95: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class SignalKinetics:
    """What a decay curve says.

    Attributes
    ----------
    fits, weight, aicc
        All curves of the one signal, and (models,) Akaike weights and AICc; None with too few points.
    model
        Of the least AICc; "none" with too few points.
    critical, half
        Fluence where the signal falls to 1/e and 1/2 of its start. With `lower_bound`, the critical fluence is the
        95 % bound.
    rate
        Initial exponential rate [% per 1,000 units of fluence]; negative for growth.
    loss
        Of the curve from the reference frame to the last [%].
    p_value
        Of no change: against an exponential, or against any smooth course.
    p_misfit
        Probability of the scatter about the best curve, were the noise as estimated.
    curve
        (n,) the averaged curve.
    onset_frame
        First frame that differs significantly from the reference frame; −1: none.
    usable
        First and last frame of those around the reference that have changed less than the tolerance.
    """

    fits: CurveFits | None
    weight: np.ndarray
    aicc: np.ndarray
    model: str
    critical: Estimate
    half: Estimate
    lower_bound: bool
    rate: Estimate
    loss: Estimate
    p_value: float
    p_misfit: float
    curve: np.ndarray
    onset_frame: int
    usable: tuple[int, int]
    span: float
    n_frames: int


def describe_signal(
    x: np.ndarray,
    y: np.ndarray,
    sigma: np.ndarray,
    frames: np.ndarray,
    reference_frame: int,
    replicate: Callable[[np.ndarray], np.ndarray],
    *,
    min_span_of_critical: float = 0.3,
    tolerance_percent: float = 5.0,
) -> SignalKinetics:
    """Describe one signal.

    Parameters
    ----------
    x, y, sigma
        (n,) fluence (0 = pristine), signal and its 1 σ, without gaps.
    frames
        (n,) frame numbers.
    replicate
        Gives replicates (B, n) of the signal about a curve (n,).
    min_span_of_critical
        Share of the critical fluence that x must span for a number rather than a bound.
    tolerance_percent
        Change up to which frames count as usable.
    """
    n, span = len(x), float(np.ptp(x)) if len(x) else 0.0
    if n < MIN_FRAMES or span == 0:
        return _undescribed(n, span)
    excess = _excess(y, sigma)
    sigma = sigma * excess
    fits = fit_curves(x, y[None], sigma)
    aicc, _ = akaike_weights(fits.chi2, n)
    best = int(np.argmin(aicc[:, 0]))
    freedom = n - int(N_PARAMETERS[best])
    p_misfit = float(scipy.stats.chi2.sf(fits.chi2[best, 0], freedom)) if freedom > 0 else math.nan
    misfit = p_misfit < SIGNIFICANT_MISFIT
    scatter = fits.chi2[best, 0] / freedom if misfit else 1.0  # Birge, Phys. Rev. 40, 207, 1932
    about_curve = sigma * math.sqrt(scatter)
    aicc, weight = akaike_weights(fits.chi2 / scatter, n)
    best = int(np.argmin(aicc[:, 0]))
    gained = max((fits.chi2[0, 0] - fits.chi2[EXPONENTIAL, 0]) / scatter, 0.0)
    p_trend = float(scipy.stats.f.sf(gained, 1, n - 2) if misfit else scipy.stats.chi2.sf(gained, 1))
    curve = _average(weight, fits.at(x))[0]
    drawn = curve + excess * math.sqrt(scatter) * (replicate(curve) - curve)
    again = fit_curves(x, drawn, about_curve)
    _, again_weight = akaike_weights(again.chi2, n)
    # An error that a region keeps through all frames looks like a change: only replicates know of it.
    rates, spread = fits.rate()[EXPONENTIAL, 0], float(again.rate()[EXPONENTIAL].std())
    if spread > 0:
        p_trend = max(p_trend, 2 * float(scipy.stats.t.sf(abs(rates) / spread, len(drawn) - 1)))
    p_value = min(p_trend / TREND_SHARE, _p_wandering(y) / (1 - TREND_SHARE), 1.0)
    changed = p_value < 0.05

    least = min_span_of_critical if changed else math.inf
    critical, half, bounded = _fluences(fits, weight, again, again_weight, n, x, span, least)
    rate = Estimate(*(PER_1000 * r for r in (rates, rates - Z95 * spread, rates + Z95 * spread)))
    at_reference = int(np.argmin(np.abs(frames - reference_frame)))
    # Averaged with "no change", a curve that hardly changes would claim to be known better than it is.
    only = np.ones(len(MODELS), bool) if changed else np.arange(len(MODELS)) == EXPONENTIAL
    described, repeated = _curves(fits, n, only, x), _curves(again, n, only, x)
    loss = _loss(described, repeated, at_reference, _disagreement(fits, n, only, x, at_reference))
    shape = described[0]
    if misfit and n > 4:  # no curve says where it went: the signal itself does
        loss, shape = _loss_of_signal(y, sigma, at_reference), _running_mean(y)
    return SignalKinetics(
        fits=fits, weight=weight[:, 0], aicc=aicc[:, 0], model=MODELS[best], critical=critical, half=half,
        lower_bound=bounded, rate=rate, loss=loss, p_value=p_value, p_misfit=p_misfit, curve=curve,
        onset_frame=_onset(y, sigma, frames, at_reference),
        usable=_usable(shape, frames, at_reference, tolerance_percent) if changed else _all(frames),
        span=span, n_frames=n,
    )  # fmt: skip


def _fluences(fits, weight, again, again_weight, n, x, span, least_share) -> tuple[Estimate, Estimate, bool]:
    """Critical and half fluence, and whether the first is a bound."""
    rate, rates = _mean_rate(fits, weight), _mean_rate(again, again_weight)
    if not rate[0] * REACHED * x.max() >= 1:
        _, weight = akaike_weights(fits.chi2, n, EXTRAPOLATING)
        _, again_weight = akaike_weights(again.chi2, n, EXTRAPOLATING)
        rate, rates = _mean_rate(fits, weight), _mean_rate(again, again_weight)
    between = weight[:, 0] * (np.where(weight[:, 0] > 0, fits.rate()[:, 0], 0.0) - rate[0]) ** 2
    critical = _inverse(float(rate[0]), math.hypot(float(rates.std()), math.sqrt(between.sum())))
    fixed = math.isfinite(critical.hi95) and span >= least_share * critical.value
    halves = lambda f, w: (w * np.nan_to_num(1 / f.half)).sum(0)
    half = _inverse(float(halves(fits, weight)[0]), float(halves(again, again_weight).std()))
    if fixed:
        return critical, half, False
    likely = np.arange(len(MODELS)) == LINEAR
    if math.isfinite(least_share):  # a change that is seen may be seen to accelerate
        likely |= EXTRAPOLATING & (weight[:, 0] > LIKELY)
    # Where growth just cancels the noise, 1/upper would be a number without end and without meaning.
    allowance = Z95 * again.rate().std(1)
    upper = np.maximum(fits.rate()[:, 0] + allowance, LEAST_ALLOWANCE * allowance)[likely].max()
    bound = 1 / upper if upper > 0 else math.inf
    return Estimate(bound, bound, math.inf), NOTHING, True


def _inverse(rate: float, sigma: float) -> Estimate:
    over = lambda r: 1 / r if r > 0 else math.inf
    return Estimate(over(rate), over(rate + Z95 * sigma), over(rate - Z95 * sigma))


def _mean_rate(fits: CurveFits, weight: np.ndarray) -> np.ndarray:
    return (weight * np.where(weight > 0, fits.rate(), 0.0)).sum(0)


def _average(weight: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """(C, n) from weights (models, C) and curves (models, C, n), of which those without weight may be NaN."""
    return np.einsum("mc,mcn->cn", weight, np.where(weight[..., None] > 0, curves, 0.0))


def _curves(fits: CurveFits, n: int, only: np.ndarray, x: np.ndarray) -> np.ndarray:
    _, weight = akaike_weights(fits.chi2, n, only)
    return _average(np.where(np.isfinite(fits.chi2), weight, 0.0), fits.at(x))


def _disagreement(fits: CurveFits, n: int, only: np.ndarray, x: np.ndarray, reference: int) -> float:
    """1 σ of the loss [%] over the curves, by weight."""
    weight = akaike_weights(fits.chi2, n, only)[1][:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = fits.at(x)[:, 0]
        loss = 100 * (1 - curves[:, -1] / curves[:, reference])
    used = (weight > 1e-6) & np.isfinite(loss)
    weight, loss = weight[used] / weight[used].sum(), loss[used]
    return float(np.sqrt((weight * (loss - (weight * loss).sum()) ** 2).sum()))


def _loss(curve: np.ndarray, repeated: np.ndarray, reference: int, disagreement: float) -> Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = lambda c: 100 * (1 - c[:, -1] / c[:, reference])
        value, spread = float(lost(curve)[0]), math.hypot(float(np.nanstd(lost(repeated))), disagreement)
    return Estimate(value, value - Z95 * spread, value + Z95 * spread)


def _excess(y: np.ndarray, sigma: np.ndarray) -> float:
    """How much larger the noise from frame to frame is than expected, where that is no chance; 1 or more.

    Second differences leave next to nothing of a course that is smooth, whatever its shape.
    """
    if len(y) < 6:
        return 1.0
    expected = sigma[:-2] ** 2 + 4 * sigma[1:-1] ** 2 + sigma[2:] ** 2
    ratio = float(np.mean(np.diff(y, 2) ** 2 / expected))
    return math.sqrt(ratio) if ratio > 1 + 6 / math.sqrt(len(y)) else 1.0


def _p_wandering(y: np.ndarray) -> float:
    """Probability that a signal as smooth is white noise, whatever its level (von Neumann, Ann. Math. Stat. 12, 1941).

    It sees what rises and falls again, which no monotone curve does.
    """
    n = len(y)
    square = float(((y - y.mean()) ** 2).sum())
    if n < 8 or square == 0:
        return 1.0
    ratio = float((np.diff(y) ** 2).sum()) / square
    return float(scipy.stats.norm.sf((2 - ratio) / math.sqrt(4 * (n - 2) / (n**2 - 1))))


def _loss_of_signal(y: np.ndarray, sigma: np.ndarray, reference: int) -> Estimate:
    """Loss from the first to the last three frames from the reference on [%]."""
    first, last = slice(reference, reference + 3), slice(-3, None)
    start, end = float(y[first].mean()), float(y[last].mean())
    if not start > 0:
        return NOTHING
    error = math.hypot(*(float(np.sqrt((sigma[s] ** 2).sum())) / len(y[s]) for s in (first, last))) / start
    value = 100 * (1 - end / start)
    return Estimate(value, value - 100 * Z95 * error, value + 100 * Z95 * error)


def _running_mean(y: np.ndarray) -> np.ndarray:
    padded = np.pad(y, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _onset(y: np.ndarray, sigma: np.ndarray, frames: np.ndarray, reference: int) -> int:
    if not y[reference] > 0:
        return -1
    ratio = y / y[reference]
    spread = np.hypot(sigma, ratio * sigma[reference]) / y[reference]
    spread[reference] = 0.0
    return onset_frame(ratio, spread, frames)


def _usable(curve: np.ndarray, frames: np.ndarray, reference: int, tolerance_percent: float) -> tuple[int, int]:
    with np.errstate(divide="ignore", invalid="ignore"):
        good = np.abs(curve / curve[reference] - 1) <= tolerance_percent / 100
    if not good[reference]:
        return -1, -1
    first = last = reference
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    while first > 0 and good[first - 1]:
        first -= 1
    return int(frames[first]), int(frames[last])


def _all(frames: np.ndarray) -> tuple[int, int]:
    return int(frames[0]), int(frames[-1])


def _undescribed(n: int, span: float) -> SignalKinetics:
    none = np.full(len(MODELS), math.nan)
    return SignalKinetics(
        fits=None, weight=none, aicc=none, model="none", critical=Estimate(0.0, 0.0, math.inf), half=NOTHING,
        lower_bound=True, rate=NOTHING, loss=NOTHING, p_value=math.nan, p_misfit=math.nan, curve=np.zeros(0),
        onset_frame=-1, usable=(-1, -1), span=span, n_frames=n,
    )  # fmt: skip
