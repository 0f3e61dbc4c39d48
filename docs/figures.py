"""Draws the figures of docs/concepts from the project's own simulations: `make figures`.

Small WebP files, committed, so that the site builds without simulating anything.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from atomdiffuser import geometry, simulate_series
from atomdiffuser.damage import fit_exponential
from atomdiffuser.simulation.drift_bound import pair_bound_px
from atomdiffuser.simulation.series import SimulatedSeries

IMAGES = Path(__file__).resolve().parent / "images"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # Okabe and Ito: told apart by the colour-blind


def main() -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    for name, draw in (
        ("degradation", degradation), ("witnesses", witnesses), ("bounds", bounds), ("hops", hops),
        ("uncertainty", uncertainty),
    ):  # fmt: skip
        figure = draw()
        figure.savefig(IMAGES / f"{name}.webp", dpi=130, pil_kwargs={"quality": 82, "method": 6})
        plt.close(figure)
        print(f"{name}.webp: {(IMAGES / f'{name}.webp').stat().st_size / 1024:.0f} KiB")


def degradation() -> plt.Figure:
    """Noise-free states of one pair at five values of τ."""
    pair = simulated(n_frames=2, drift_px_per_frame=(9.0, 14.0), rotation_deg_per_frame=6.0, damage="perlin",
                     witness="contrast", fluence_per_frame=4000.0, critical_fluence=3500.0)  # fmt: skip
    affine = torch.as_tensor(pair.frame_from_reference[1])
    base, contrast = pair.expected[0], pair.contrast[1]
    mean = smooth(base, 9.0)
    figure, axes = plt.subplots(1, 5, figsize=(9, 2.1), layout="constrained")
    for axis, tau in zip(axes, np.linspace(0, 1, 5), strict=True):
        faded = mean + (base - mean) * contrast**tau
        motion = geometry.geodesic(affine[None], torch.tensor([tau]))[0].numpy()
        axis.imshow(moved(faded, motion), cmap="gray", vmin=base.min(), vmax=base.max())
        axis.set_title(f"τ = {tau:g}")
        axis.axis("off")
    return figure


def witnesses() -> plt.Figure:
    """Amorphisation and loss of mass: last frames, and both witnesses against fluence."""
    common = dict(n_frames=9, drift_px_per_frame=0.0, random_walk_px=0.0, fluence_per_frame=2000.0,
                  critical_fluence=9000.0, damage="uniform")  # fmt: skip
    order, mass = simulated(witness="contrast", **common), simulated(witness="both", **common)
    limits = dict(cmap="gray", vmin=0, vmax=0.8 * order.expected[0].max())
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 5), layout="constrained")
    pictures = (("before", order.expected[0]), ("order lost", order.expected[-1]), ("mass lost", mass.expected[-1]))
    for axis, (title, image) in zip(axes[0], pictures, strict=True):
        axis.imshow(image[:96, :96], **limits)
        axis.set_title(title)
        axis.axis("off")
    axes[1, 0].axis("off")
    fluence = order.series.cumulative_fluence_e_per_A2() / 1000
    for axis, series in zip(axes[1, 1:], (order, mass), strict=True):
        for name, values, colour in (
            ("intensity", series.intensity, BLUE),
            ("contrast", series.contrast, ORANGE),
        ):
            axis.plot(fluence, np.nanmedian(values, axis=(1, 2)), ".-", color=colour, label=name)
        axis.set(xlabel="fluence [10³ e⁻/Å²]", ylim=(0, 1.1))
    axes[1, 1].set_ylabel("ratio to the first frame")
    axes[1, 1].legend(frameon=False)
    return figure


def bounds() -> plt.Figure:
    """The Cramér–Rao bound of the drift against counts, for two sizes of the field."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    electrons = np.array([2, 5, 10, 20, 50, 100, 200, 500])
    for side, colour in ((128, ORANGE), (256, BLUE)):
        values = []
        for count in electrons:
            frames = simulated(n_frames=2, shape=(side, side), electrons_per_px=float(count), drift_px_per_frame=0.0)
            values.append(pair_bound_px(*frames.expected, frames.frame_from_reference[1]))
        axis.loglog(electrons, values, ".-", color=colour, label=f"{side} × {side} px")
    axis.set(xlabel="electrons per pixel (brightest point)", ylabel="bound of the drift's error [px]")
    axis.legend(frameon=False)
    return figure


def hops() -> plt.Figure:
    """Correlation of two frames of a lattice against shift."""
    pair = simulated(n_frames=2, shape=(160, 160), electrons_per_px=30.0, drift_px_per_frame=(4.0, -7.0),
                     random_walk_px=0.0, vacancies=0.05)  # fmt: skip
    first, second = (f - smooth(f, 12.0) for f in pair.series.frames.astype(float))
    spectrum = np.conj(np.fft.fft2(first)) * np.fft.fft2(second)
    correlation = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    correlation /= np.sqrt((first**2).sum() * (second**2).sum())
    middle, reach = 80, 45
    view = correlation[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    y, x = pair.frame_from_reference[1][:2, 2]
    figure, axis = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    image = axis.imshow(view, extent=(-reach, reach, reach, -reach), cmap="viridis")
    axis.plot(x, y, "o", ms=14, mfc="none", mec=ORANGE, mew=2, label="true drift")
    axis.set(xlabel="shift x [px]", ylabel="shift y [px]")
    axis.legend(loc="lower right")
    figure.colorbar(image, ax=axis, label="correlation")
    return figure


def uncertainty() -> plt.Figure:
    """A series that is long enough for a number, and one that gives a bound."""
    rng = np.random.default_rng(3)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for axis, last, title in ((axes[0], 20.0, "a number"), (axes[1], 2.5, "a bound")):
        fluence = np.linspace(0, last, 12)
        signal = np.exp(-fluence / 12) + rng.normal(0, 0.03, 12)
        fit = fit_exponential(fluence, signal, np.full(12, 0.03))
        axis.errorbar(fluence, signal, 0.03, fmt=".", color=GREY)
        dense = np.linspace(0, 25, 100)
        axis.plot(dense, np.exp(-dense / 12), color=BLUE, lw=1)
        axis.axhline(np.exp(-1), color=GREY, lw=0.7, ls=":")
        if fit.lower_bound:
            axis.annotate("", (25, 0.42), (fit.critical_fluence, 0.42), arrowprops=dict(arrowstyle="->", color=ORANGE))
            axis.axvline(fit.critical_fluence, color=ORANGE)
            axis.set_title(f"{title}: F_c above {fit.critical_fluence:.1f}")
        else:
            axis.axvspan(fit.critical_fluence_lo95, fit.critical_fluence_hi95, color=ORANGE, alpha=0.3)
            axis.set_title(f"{title}: F_c = {fit.critical_fluence:.1f}")
        axis.set(xlabel="fluence [10³ e⁻/Å²]", xlim=(0, 25), ylim=(0, 1.15))
    axes[0].set_ylabel("contrast")
    return figure


def simulated(**options: object) -> SimulatedSeries:
    defaults: dict = dict(shape=(128, 128), electrons_per_px=100.0, pixel_size_nm=0.025, vacancies=0.04, seed=4)
    return simulate_series("SrTiO3", **{**defaults, **options})


def smooth(image: np.ndarray, sigma_px: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.asarray(image, float), sigma_px)


def moved(image: np.ndarray, frame_from_reference: np.ndarray) -> np.ndarray:
    """The image as a frame that drifted shows it."""
    from scipy.ndimage import affine_transform

    back = np.linalg.inv(frame_from_reference)
    return affine_transform(image, back[:2, :2], back[:2, 2], order=3, mode="reflect")


if __name__ == "__main__":
    main()
