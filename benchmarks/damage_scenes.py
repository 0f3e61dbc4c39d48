"""Scenes that damage is judged by: simulated series whose decay is known everywhere, and what is true of a region.

24 frames of 256² at 20 electrons per pixel, drifting 1.5 px a frame, 4 × 4 regions of 4,096 px. Crystals, kinds of
damage, kinetics and lengths are crossed so that each comes with several of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from atomdiffuser.damage import grid_regions
from atomdiffuser.simulation.damage import kinetics
from atomdiffuser.simulation.series import SimulatedSeries, simulate_series

SHAPE, N_FRAMES, ELECTRONS, PER_FRAME = (256, 256), 24, 20.0, 2000.0
TOTAL = N_FRAMES * PER_FRAME
GRID = (4, 4)
SPECIMENS = ("SrTiO3", "Si", "LLZO[100]")
LATENCY = 0.3
POWERS = {"stretched": 0.7, "avrami": 1.6}
SPANS = (1.0, 1.5, 2.0, 3.0)
UNEVEN_SPANS = (1.5, 2.0, 2.5)
SHORT_SPANS = (0.28, 0.2, 0.15, 0.08)
KINDS = (
    ("uniform", "exponential"), ("perlin", "exponential"), ("uniform", "latency"), ("holes", "exponential"),
    ("uniform", "linear"), ("random", "exponential"), ("uniform", "stretched"), ("edge", "exponential"),
    ("uniform", "exponential"), ("perlin", "latency"), ("uniform", "avrami"), ("uniform", "exponential"),
)  # fmt: skip
"""Damage and kinetics that are crossed with everything else."""
SHORT_KINDS = tuple(KINDS[k] for k in (0, 1, 4, 3, 6, 2, 0, 7, 10))


@dataclass(frozen=True)
class Scene:
    """One series.

    `span` counts the critical fluences that it spans, 0 for no damage. `trajectory` says whether drift is the simulated
    or estimated from the frames; `beam` whether the current is steady or fluctuates by ±5 %.
    """

    seed: int
    purpose: str
    span: float
    specimen: str
    damage: str = "uniform"
    kinetics: str = "exponential"
    witness: str = "contrast"
    trajectory: str = "simulated"
    beam: str = "steady"

    @property
    def power(self) -> float:
        """Exponent b of stretched and Avrami decay, 1 for the rest."""
        return POWERS.get(self.kinetics, 1.0)

    @property
    def fluence(self) -> np.ndarray:
        """(t,) cumulative fluence of each frame: exp(−(F/F_c)^b) is an exponential of F^b, hence uneven steps."""
        return TOTAL * (np.arange(1, N_FRAMES + 1) / N_FRAMES) ** (1 / self.power)

    def simulate(self) -> SimulatedSeries:
        kind = self.kinetics if self.kinetics not in POWERS else "exponential"
        s = simulate_series(
            self.specimen, n_frames=N_FRAMES, shape=SHAPE, electrons_per_px=ELECTRONS, fluence_per_frame=PER_FRAME,
            drift_px_per_frame=1.5, random_walk_px=0.3, damage=self.damage, witness=self.witness, kinetics=kind,
            latency=LATENCY, critical_fluence=TOTAL / (self.span or 1.0) ** self.power, vacancies=0.03,
            seed=1000 + self.seed,
        )  # fmt: skip
        if self.beam == "steady":
            return s
        return replace(s, series=replace(s.series, frames=with_gain(s, self.seed)))


def scenes(rounds: int) -> list[Scene]:
    """All scenes, more of every kind with more `rounds`; 1 gives the numbers of regions that the limits are meant for.

    The steady twin of every shaken scene is among them.
    """
    listed = []
    for k in range(len(KINDS) * rounds):
        damage, kind = KINDS[k % len(KINDS)]
        trajectory = "estimated" if k % 5 == 3 else "simulated"
        listed.append(Scene(k, "critical", _span(k, damage), _crystal(k), damage, kind, trajectory=trajectory))
    for k in range(4 * rounds):
        damage, kind = KINDS[(0, 1, 8, 2, 11, 3, 4, 7)[k % 8]]
        listed.append(Scene(100 + k, "critical", _span(k, damage), _crystal(k), damage, kind, witness="both"))
    for k in range(6 * rounds):
        damage, kind = SHORT_KINDS[k % len(SHORT_KINDS)]
        listed.append(Scene(200 + k, "short", SHORT_SPANS[(k + k // 4) % 4], _crystal(k), damage, kind))
    for k in range(14 * rounds):
        listed.append(Scene(300 + k, "calm", 0.0, _crystal(k), "none"))
    for k in range(rounds):
        listed.append(Scene(400 + k, "critical", 2.0, _crystal(k), witness="intensity"))
        listed.append(Scene(450 + k, "critical", 1.5, "nanoparticle", witness=("contrast", "both")[k % 2]))
    simple = [s for s in listed if s.trajectory == "simulated" and s.specimen in SPECIMENS]
    for purpose, witness, count in (("critical", "contrast", 3), ("critical", "both", 1), ("calm", "contrast", 2)):
        same = [s for s in simple if (s.purpose, s.witness) == (purpose, witness)]
        listed += [replace(s, beam="fluctuating") for s in same[: count * rounds]]
    return listed


def _span(k: int, damage: str) -> float:
    spans = SPANS if damage == "uniform" else UNEVEN_SPANS
    return spans[(k + k // len(KINDS)) % len(spans)]


def _crystal(k: int) -> str:
    return SPECIMENS[(k + k // 3) % len(SPECIMENS)]


def with_gain(s: SimulatedSeries, seed: int, relative: float = 0.05) -> np.ndarray:
    """The same frames had the beam fluctuated: electrons are taken away or added, so that the rest stays the same."""
    random = np.random.default_rng(seed)
    factor = 1 + relative * random.standard_normal(len(s.series.frames)).clip(-3, 3)
    frames = []
    for counts, expected, g in zip(s.series.frames, s.expected, factor, strict=True):
        fewer = random.binomial(counts, min(g, 1.0))
        frames.append((fewer + random.poisson(expected * max(g - 1.0, 0.0))).astype(np.uint16))
    return np.stack(frames)


@dataclass(frozen=True)
class RegionTruth:
    """What the mean of a property over each region does, (regions,) each; the whole field comes first.

    The mean is over the area for contrast, over the mass for intensity.

    `critical_fluence` is where that mean stands at 1/e (inf: never), `curves` (regions, t) what it is in each frame. A
    mean over places that decay at different paces is no exponential even where each of them is.
    """

    critical_fluence: np.ndarray
    curves: np.ndarray

    @property
    def loss_percent(self) -> np.ndarray:
        """From the first frame to the last."""
        return 100 * (1 - self.curves[:, -1] / self.curves[:, 0])


def truth(scene: Scene, s: SimulatedSeries, witness: str) -> RegionTruth:
    """Of one witness: "contrast", "intensity" or "crystallinity"."""
    regions = grid_regions(SHAPE, GRID)
    hit = {
        "contrast": scene.witness in ("contrast", "both"), "intensity": scene.witness in ("intensity", "both"),
        "crystallinity": scene.witness == "contrast",
    }  # fmt: skip
    critical, curves = [], []
    fine = np.linspace(0, 4 * TOTAL / max(min(scene.span, 1.0), 0.05), 1600)
    for r in range(len(regions.regions)):
        if scene.span == 0 or not hit[witness]:
            critical.append(np.inf)
            curves.append(np.ones(N_FRAMES))
            continue
        local, weight = _binned(scene, s, regions.mask(r), witness)
        mean = lambda x, local=local, weight=weight: _left(scene, x, local) @ weight
        critical.append(float(np.interp(-np.exp(-1), -mean(fine), fine, right=np.inf)))
        curves.append(mean(scene.fluence))
    return RegionTruth(np.array(critical), np.array(curves))


def _left(scene: Scene, fluence: np.ndarray, local: np.ndarray) -> np.ndarray:
    """(n, m) what is left after fluences (n,) at places whose critical fluence, in the simulation's own exposure, is
    `local` (m,)."""
    kind = scene.kinetics if scene.kinetics not in POWERS else "exponential"
    exposure = TOTAL * (fluence / TOTAL) ** scene.power
    return kinetics(torch.as_tensor(exposure[:, None] / local), kind, LATENCY).numpy()


def _binned(scene: Scene, s: SimulatedSeries, mask: np.ndarray, witness: str) -> tuple[np.ndarray, np.ndarray]:
    """64 local critical fluences of a region and their weights: area, or for the intensity mass."""
    local = s.critical_fluence_map[mask]
    weight = np.ones(len(local))
    if witness == "intensity":  # what the first frame shows, its own loss undone
        weight = s.expected[0][mask] / np.maximum(_left(scene, scene.fluence[:1], local)[0], 1e-3)
    bins = np.array_split(np.argsort(local), 64)
    with np.errstate(divide="ignore"):
        middle = 1 / np.array([np.average(1 / local[b], weights=weight[b]) for b in bins])
    return middle, np.array([weight[b].sum() for b in bins]) / weight.sum()
