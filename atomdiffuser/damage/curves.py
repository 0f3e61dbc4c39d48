"""Decay curves of known shape, fitted to many signals at once.

A signal is S·[(1 − c)·g(F/F_c) + c], with F_c where g stands at 1/e:

    exponential  g = exp(−z)
    linear       g = 1 − (1 − 1/e)·z, never below 0
    latency      g = exp(−max(z − λ, 0)/(1 − λ))        nothing happens before λ·F_c
    stretched    g = exp(−z^b), b < 1                   a range of sensitivities
    avrami       g = exp(−z^b), b > 1                   nucleation and growth

and c = 0, or free (`+offset`; above 1 the signal grows and levels off). Exponential and linear may also grow without
end (F_c negative). S and c follow in closed form for every shape on a grid of (F_c, b, λ), which is searched as a
whole: no start values, no local minima; between grid points χ² is a parabola.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ONE_OVER_E = float(np.exp(-1))
LOSS_AT_CRITICAL = 1 - ONE_OVER_E
# Grids are even in v = asinh(rate/FINE), rate = largest fluence over F_c: linear about no change, logarithmic beyond.
FINE = 0.05
STEP = 0.08
FASTEST, FASTEST_GROWTH, SLOWEST = 50.0, 8.0, 1 / 60
LARGEST_OFFSET = 5.0
SECOND: dict[str, tuple[tuple[float, float], ...]] = {
    "exponential": ((1.0, 0.0),),
    "linear": ((1.0, 0.0),),
    "latency": tuple((1.0, share) for share in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75)),
    "stretched": tuple((b, 0.0) for b in (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93)),
    "avrami": tuple((b, 0.0) for b in (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)),
}
"""Exponent b and latency λ that are tried."""
MODELS = ("constant", *(f"{shape}{offset}" for shape in SECOND for offset in ("", "+offset")))
PRIOR = np.array([1.0, *(p for shape in SECOND for p in ((2.0, 0.5) if shape == "exponential" else (1.0, 0.3)))])
"""Weight before any data: a single hit is the rule, and a residue that never goes the exception.

Without it a curve that is exponential would share its weight with every more flexible one, most of which lean to one
side.
"""
N_PARAMETERS = np.array(
    [1, *(2 + (shape in ("latency", "stretched", "avrami")) + o for shape in SECOND for o in (0, 1))]
)


@dataclass(frozen=True)
class CurveFits:
    """The best curve of each kind for each of C signals; arrays are (models, C), in the order of `MODELS`.

    `critical_of_shape` is F_c of the shape alone; `critical` and `half` are where the whole curve stands at 1/e and 1/2
    of its start (inf: never). `chi2` is inf where a kind of curve cannot describe the signal.
    """

    chi2: np.ndarray
    amplitude: np.ndarray
    critical_of_shape: np.ndarray
    exponent: np.ndarray
    latency: np.ndarray
    offset: np.ndarray
    critical: np.ndarray
    half: np.ndarray

    def rate(self) -> np.ndarray:
        """(models, C) 1/F_c of the whole curve; negative for growth, 0 where 1/e is never reached."""
        with np.errstate(divide="ignore", invalid="ignore"):
            falling = np.where(np.isfinite(self.critical), 1 / self.critical, 0.0)
            start = (1 - self.offset) / self.critical_of_shape
        return np.nan_to_num(np.where((self.critical_of_shape < 0) | (self.offset > 1), start, falling))

    def at(self, x: np.ndarray) -> np.ndarray:
        """(models, C, n) curves at fluences x (n,); NaN where a kind of curve cannot describe the signal."""
        values = np.full((*self.chi2.shape, len(x)), np.nan)
        values[0] = self.amplitude[0][:, None]
        for m, name in enumerate(MODELS[1:], start=1):
            possible = np.isfinite(self.chi2[m])
            take = lambda values, possible=possible: values[possible][:, None]
            z = x[None, :] / take(self.critical_of_shape[m])
            g = shape_of(name.split("+")[0], z, take(self.exponent[m]), take(self.latency[m]))
            c = take(self.offset[m])
            values[m, possible] = take(self.amplitude[m]) * ((1 - c) * g + c)
        return values


def shape_of(kind: str, z: np.ndarray, exponent: np.ndarray | float = 1.0, latency: np.ndarray | float = 0.0):
    """g(z), 1 at z = 0 and 1/e at z = 1."""
    if kind == "linear":
        return np.maximum(1 - LOSS_AT_CRITICAL * z, 0.0)
    if kind == "latency":
        return np.exp(-np.maximum(z - latency, 0) / (1 - latency))
    if kind in ("stretched", "avrami"):
        return np.exp(-(np.maximum(z, 0) ** exponent))
    return np.exp(-np.clip(z, -60, 700))


def fit_curves(x: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> CurveFits:
    """Fit every kind of curve to C signals by maximum likelihood (Gaussian, known σ).

    Parameters
    ----------
    x
        (n,) fluence, not negative, not all zero.
    y
        (C, n) signals.
    sigma
        (n,) 1 σ, the same for all of them.
    """
    largest = float(np.max(x))
    u, w = np.asarray(x, float) / largest, 1 / np.asarray(sigma, float) ** 2
    y = np.atleast_2d(np.asarray(y, float))
    total, count = w.sum(), y.shape[0]
    power = (w * y**2).sum(1)
    blank = lambda fill: np.full((len(MODELS), count), fill)
    found = CurveFits(
        blank(np.inf), blank(np.nan), blank(np.nan), blank(1.0), blank(0.0), blank(0.0), blank(np.inf), blank(np.inf)
    )
    mean = (w * y).sum(1) / total
    found.amplitude[0], found.chi2[0] = mean, (w * (y - mean[:, None]) ** 2).sum(1)
    for kind in SECOND:
        signed = kind in ("exponential", "linear")
        grid, second = _grid(signed), np.array(SECOND[kind])
        rate = FINE * np.sinh(grid)
        g = shape_of(kind, u * rate[None, :, None], second[:, None, :1], second[:, None, 1:])  # (S, L, n)
        gg, g1 = g**2 @ w, g @ w
        gy, sum_y = np.einsum("sln,cn->slc", g * w, y, optimize=True), (w * y).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = power - np.where(gy > 0, gy**2 / gg[..., None], 0.0)
            determinant = gg * total - g1**2
            a = (gy * total - g1[..., None] * sum_y) / determinant[..., None]
            b = (gg[..., None] * sum_y - g1[..., None] * gy) / determinant[..., None]
            free = power - a * gy - b * sum_y
            start = a + b
            allowed = (
                (start > 0) & (b >= 0) & (b <= LARGEST_OFFSET * start) & (determinant > 1e-9 * gg * total)[..., None]
            )
        free = np.where(allowed & (rate > SLOWEST)[None, :, None], free, np.inf)
        for surface, offset in ((plain, False), (free, True)):
            m = MODELS.index(kind + ("+offset" if offset else ""))
            _take_best(found, m, kind, offset, surface, grid, second, u, w, y, largest)
    return found


def akaike_weights(chi2: np.ndarray, n: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AICc and Akaike weights (models, C) from χ² with known σ (Burnham & Anderson 2002, eqs. 2.4 and 2.9).

    With three points the correction is infinite for every curve; plain AIC then compares constant and exponential.
    """
    k = N_PARAMETERS[:, None].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        correction = np.where(n > k + 1, 2 * k * (k + 1) / (n - k - 1), np.inf)
    if n <= 3:
        correction = np.where(k <= 2, 0.0, np.inf)
    aicc = chi2 + 2 * k + correction
    usable = aicc if allowed is None else np.where(allowed[:, None], aicc, np.inf)
    best = usable.min(0)
    weight = PRIOR[:, None] * np.exp(-0.5 * np.maximum(usable - np.where(np.isfinite(best), best, 0), 0))
    return aicc, weight / weight.sum(0).clip(1e-300)


def crossing(kind: str, target: np.ndarray, exponent: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """z where g falls to `target`; inf for targets that g never reaches."""
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -np.log(target)
        if kind == "linear":
            z = (1 - target) / LOSS_AT_CRITICAL
        elif kind == "latency":
            z = latency + (1 - latency) * depth
        elif kind in ("stretched", "avrami"):
            z = depth ** (1 / exponent)
        else:
            z = depth
    return np.where(target > 0, z, np.inf)


def _take_best(found: CurveFits, m: int, kind: str, offset: bool, surface, grid, second, u, w, y, largest) -> None:
    """Minimum of χ² (S, L, C) for each signal, refined between the grid points."""
    count = surface.shape[-1]
    signal = np.arange(count)
    s, at = np.divmod(surface.reshape(-1, count).argmin(0), len(grid))
    left, right = np.maximum(at - 1, 0), np.minimum(at + 1, len(grid) - 1)
    move = _lowest(*(surface[s, i, signal] for i in (left, at, right)), 0.6)
    move = np.where((at > 0) & (at < len(grid) - 1), move, 0.0)
    exponent, latency = second[s, 0], second[s, 1]
    middle, fine = grid[at] + move * STEP, 0.25 * STEP  # curves with a kink are no parabola on the coarse grid
    rate_at = lambda v: FINE * np.sinh(v)
    trial = lambda v: _closed_form(kind, offset, u, w, y, rate_at(v), exponent, latency)[0]
    rate = rate_at(middle + fine * _lowest(*(trial(middle + k * fine) for k in (-1, 0, 1)), 2.0))
    chi2, a, b = _closed_form(kind, offset, u, w, y, rate, exponent, latency)
    amplitude = a + b
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.where(amplitude > 0, b / amplitude, 0.0)
    possible = np.isfinite(surface[s, at, signal]) & np.isfinite(chi2)
    found.chi2[m] = np.where(possible, chi2, np.inf)
    found.amplitude[m], found.offset[m] = amplitude, np.clip(c, 0.0, LARGEST_OFFSET)
    with np.errstate(divide="ignore"):
        critical = 1 / rate
    found.critical_of_shape[m], found.exponent[m], found.latency[m] = critical * largest, exponent, latency
    for target, store in ((ONE_OVER_E, found.critical), (0.5, found.half)):
        with np.errstate(divide="ignore", invalid="ignore"):
            of_shape = (target - found.offset[m]) / (1 - found.offset[m])
        reach = (found.offset[m] < target) & (rate > 0)
        z = crossing(kind, np.where(reach, of_shape, 0.5), exponent, latency)
        with np.errstate(over="ignore", invalid="ignore"):
            store[m] = np.where(reach, z * critical * largest, np.inf)


def _closed_form(kind: str, offset: bool, u, w, y, rate, exponent, latency) -> tuple[np.ndarray, ...]:
    """χ² and the two amplitudes, each (C,), for shapes that are given signal by signal."""
    g = shape_of(kind, u[None, :] * rate[:, None], exponent[:, None], latency[:, None])
    gg, gy = (g * g) @ w, (g * y) @ w
    with np.errstate(divide="ignore", invalid="ignore"):
        if offset:
            g1, sum_y, total = g @ w, y @ w, w.sum()
            determinant = gg * total - g1**2
            a, b = (gy * total - g1 * sum_y) / determinant, (gg * sum_y - g1 * gy) / determinant
        else:
            a, b = np.maximum(gy, 0) / gg, np.zeros(len(gy))
        return (w * (y - a[:, None] * g - b[:, None]) ** 2).sum(1), a, b


def _lowest(f0, f1, f2, reach: float) -> np.ndarray:
    """Where the parabola through three evenly spaced values is lowest, in steps from the middle one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        curvature = f0 - 2 * f1 + f2
        move = np.clip(0.5 * (f0 - f2) / curvature, -reach, reach)
    return np.where(np.isfinite(curvature) & (curvature > 0) & np.isfinite(move), move, 0.0)


@lru_cache
def _grid(signed: bool) -> np.ndarray:
    """Values of v, in steps of STEP; 0 is on the grid where growth is allowed."""
    place = lambda rate: int(np.ceil(np.arcsinh(rate / FINE) / STEP))
    return STEP * np.arange(-place(FASTEST_GROWTH) if signed else place(SLOWEST), place(FASTEST) + 1)
