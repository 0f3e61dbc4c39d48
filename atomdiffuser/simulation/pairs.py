"""Pairs of frames with exact truth, many at once: for training and for judging pair estimates."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import apply_affine, geodesic, identity, invert, pixel_grid
from atomdiffuser.simulation.crystals import CrystalBatch, crystals_in_pixels, random_crystals
from atomdiffuser.simulation.damage import KINETICS, PATTERNS, Damage, exposure_for_loss, random_sensitivity
from atomdiffuser.simulation.detection import detect, quantise
from atomdiffuser.simulation.drift import centred_affine
from atomdiffuser.simulation.randomness import Draws, RandomStreams
from atomdiffuser.simulation.scenes import FAR_PX, Surroundings, assemble, border, particle_facets
from atomdiffuser.simulation.specimen import ScanGrid, Specimen


@dataclass(frozen=True)
class PairRanges:
    """What pairs are drawn from; two numbers are bounds, one number is a probability unless its name says otherwise.

    Attributes
    ----------
    electrons
        Detected electrons at the brightest point of the pristine specimen, log-uniform.
    period_px, relative_width, background
        Of random lattices: shortest period, column width over it, level between columns over the highest column.
    pixel_size_nm, blur_nm
        Of named crystals.
    particles, film_only, edges, amorphous_borders, grain_boundaries
        How often a sample is a particle on a film, has no crystal at all, is partly vacuum or amorphous, or two grains.
    drift_periods
        Length of the shift, in shortest lattice periods, for extended crystals.
    particle_drift_px, particle_rotation_deg
        Bounds of each shift component and of the rotation of particles and films, either sign.
    rotation_deg, strain
        Of extended crystals, either sign.
    loss
        Share lost at the end where the sensitivity is 1, in the property that goes fastest.
    undamaged, damaged_before
        How often nothing happens, and how often the reference has lost something already.
    patterns, kinetics
        Names, drawn evenly.
    witness_odds
        Odds of: one map for both, contrast alone, intensity alone, both at different rates, contrast lost while mass is
        gained, both gained.
    time
        When the moving frame is taken in its sequence, whose end (τ = 1) has `loss`.
    integer
        How often counts are rounded to 16 bits; eight_bit: to 8 bits; else they are real numbers.
    """

    electrons: tuple[float, float] = (2.0, 500.0)
    period_px: tuple[float, float] = (7.0, 40.0)
    relative_width: tuple[float, float] = (0.09, 0.19)
    background: tuple[float, float] = (0.05, 0.8)
    pixel_size_nm: tuple[float, float] = (0.012, 0.03)
    blur_nm: tuple[float, float] = (0.0, 0.04)
    particles: float = 0.12
    film_only: float = 0.04
    edges: float = 0.2
    amorphous_borders: float = 0.2
    grain_boundaries: float = 0.15
    wedge: tuple[float, float] = (0.0, 0.4)
    defects: tuple[float, float] = (0.0, 1.0)
    defect_candidates: int = 12
    drift_periods: tuple[float, float] = (0.0, 0.5)
    particle_drift_px: float = 38.0
    particle_rotation_deg: float = 5.0
    rotation_deg: float = 1.0
    strain: float = 0.005
    loss: tuple[float, float] = (0.0, 0.9)
    undamaged: float = 0.08
    damaged_before: float = 0.3
    patterns: tuple[str, ...] = PATTERNS
    kinetics: tuple[str, ...] = KINETICS
    witness_odds: tuple[float, ...] = (3.0, 3.0, 1.5, 2.0, 1.5, 0.5)
    time: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.3
    jitter_px: tuple[float, float] = (0.02, 0.25)
    dark_level: tuple[float, float] = (0.0, 200.0)
    gain_e: tuple[float, float] = (0.02, 1.0)
    readout_e: tuple[float, float] = (0.0, 1.0)
    eight_bit: float = 0.1
    integer: float = 0.6
    max_waves: int = 400

    def __post_init__(self) -> None:
        for key, known in (("patterns", PATTERNS), ("kinetics", KINETICS)):
            if unknown := sorted(set(getattr(self, key)) - set(known)):
                raise SettingsError(f"{key} holds {unknown[0]!r}; known are {', '.join(known)}")
        if len(self.witness_odds) != 6:
            raise SettingsError(f"witness_odds has {len(self.witness_odds)} numbers, expected 6")


@dataclass(frozen=True)
class PairBatch:
    """n pairs and what is true of them; maps on the reference grid, float32.

    Attributes
    ----------
    reference, moving
        (n, y, x) counts, float32 whatever the quantisation.
    moving_from_reference
        (n, 3, 3) float64.
    intensity, contrast
        (n, y, x) moving relative to reference.
    base, lattice_amplitude
        (n, y, x) of the reference frame in electrons: local mean above the dark level, and local standard deviation of
        the crystal's structure around it. Where they vanish, intensity and contrast cannot be seen.
    expected_reference, expected_moving
        (n, y, x) electrons without noise.
    electrons, dark_level, gain_e, readout_e
        (n,) peak electrons a pixel, and the detector; electrons = (counts − dark_level) · gain_e.
    time
        (n,) when the moving frame was taken, with the reference at 0 and the sequence's end at 1.
    period_px
        (n,) shortest lattice period; NaN without a crystal.
    pattern
        (n,) index into `damage.PATTERNS`.
    """

    reference: Tensor
    moving: Tensor
    moving_from_reference: Tensor
    intensity: Tensor
    contrast: Tensor
    base: Tensor
    lattice_amplitude: Tensor
    expected_reference: Tensor
    expected_moving: Tensor
    electrons: Tensor
    dark_level: Tensor
    gain_e: Tensor
    readout_e: Tensor
    time: Tensor
    period_px: Tensor
    pattern: Tensor
    specimen: Specimen = field(repr=False)
    damage: Damage = field(repr=False)
    exposure: tuple[Tensor, Tensor] = field(repr=False)  # (n,) at τ = 0 and at τ = 1

    def __len__(self) -> int:
        return self.reference.shape[0]

    def at(self, tau: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Truth at τ (n,) of the sequence: affine (n, 3, 3) from the reference, intensity and contrast (n, y, x).

        τ = 0 is the reference, τ = `time` the moving frame. The motion follows the geodesic, the maps their kinetics.
        """
        tau = torch.as_tensor(tau, dtype=torch.float64, device=self.time.device).expand(len(self))
        points = self._reference_points()
        field = self.damage.sensitivity.at(points)
        start, end = self.exposure
        before = self.damage.maps(points, start, sensitivity=field)
        after = self.damage.maps(points, start + tau * (end - start), sensitivity=field)
        return geodesic(self.moving_from_reference, tau / self.time), after[0] / before[0], after[1] / before[1]

    def overlap(self) -> Tensor:
        """(n, y, x) bool: which reference pixels the moving frame saw."""
        shape = self.reference.shape[-2:]
        place = apply_affine(self.moving_from_reference[:, None, None], pixel_grid(shape, device=self.time.device))
        last = torch.tensor([s - 1 for s in shape], device=place.device)
        return ((place >= 0) & (place <= last)).all(-1)

    def _reference_points(self) -> Tensor:
        return pixel_grid(self.reference.shape[-2:], dtype=torch.float32, device=self.time.device).expand(
            len(self), -1, -1, -1
        )


def simulate_pairs(
    n: int,
    shape: tuple[int, int],
    generator: int | torch.Generator | RandomStreams,
    device: torch.device | str = "cpu",
    *,
    crystals: tuple[str, ...] | None = None,
    ranges: PairRanges | None = None,
) -> PairBatch:
    """n random pairs.

    Parameters
    ----------
    generator
        A seed, or a generator that is advanced, so that the next call gives other pairs. The parameters of a pair
        depend on it alone, its noise on the device too.
    crystals
        Names of `crystals.CRYSTALS` or "nanoparticle", drawn evenly; None takes random lattices only.
    ranges
        What is drawn.
    """
    r = ranges or PairRanges()
    streams = generator if isinstance(generator, RandomStreams) else RandomStreams(generator)
    part = lambda name: Draws(n, streams.child(name))
    draws = part("pair")
    crystal, is_particle, is_film = _crystals(part("crystal"), crystals, r)
    period = crystal.cell.norm(dim=-1).amin(-1)
    free = is_particle | is_film
    specimen = _specimens(crystal, is_particle, is_film, shape, part("specimen"), r, device)
    moving_from_reference = _motions(part("motion"), period, free, shape, r).to(device)
    damage, exposure, pattern = _damage(part("damage"), shape, specimen, r, device)
    time = draws.uniform("time", *r.time)
    electrons = draws.log_uniform("electrons", *r.electrons)

    jitter_px = torch.where(draws.chance("jitter", r.jitter), draws.uniform("jitter size", *r.jitter_px), 0.0)
    axis = torch.tensor([1 / 3, 1.0], dtype=torch.float64)
    grids = []
    for name, affine in (("reference", identity(n, device=device)), ("moving", invert(moving_from_reference))):
        lines = None
        if r.jitter:
            lines = (draws.normal(f"{name} lines", 1.0, shape[0], 2) * axis * jitter_px[:, None, None]).to(device)
        grids.append(ScanGrid(affine, shape, lines))
    still = ScanGrid(identity(n, device=device), shape).points(torch.float32)
    exposure_moving = exposure[0] + time.to(device) * (exposure[1] - exposure[0])
    sensitivity = damage.sensitivity.at(still)
    before, after = (damage.maps(still, e, sensitivity=sensitivity) for e in (exposure[0], exposure_moving))
    peak = electrons.to(device).float()[:, None, None]
    first, second = (specimen.render(grid) for grid in grids)
    signals = []
    for seen, state in ((first, exposure[0]), (second, exposure_moving)):
        known = seen is first and not r.jitter
        intensity, contrast = before if known else damage.maps(seen.points, state)
        signals.append(seen.base * intensity + seen.lattice * contrast)
    expected = torch.stack(signals).clamp_min(0) * peak  # (2, n, y, x)

    dark, gain, readout, full_scale = (v.to(device) for v in _detectors(part("detector"), electrons, r))
    wide = lambda v: v.float()[:, None, None]
    counts = detect(
        expected, streams.child("detection"), gain_e=wide(gain), dark_level=wide(dark), readout_e=wide(readout)
    )
    counts = quantise(counts, wide(full_scale))
    return PairBatch(
        reference=counts[0], moving=counts[1], moving_from_reference=moving_from_reference,
        intensity=after[0] / before[0], contrast=after[1] / before[1],
        base=first.base * before[0] * peak, lattice_amplitude=first.amplitude * before[1] * peak,
        expected_reference=expected[0], expected_moving=expected[1],
        electrons=electrons.to(device), dark_level=dark, gain_e=gain, readout_e=readout, time=time.to(device),
        period_px=torch.where(is_film, torch.nan, period).to(device), pattern=pattern.to(device),
        specimen=specimen, damage=damage, exposure=exposure,
    )  # fmt: skip


def _crystals(draws: Draws, names: tuple[str, ...] | None, r: PairRanges) -> tuple[CrystalBatch, Tensor, Tensor]:
    """Crystals turned and placed at random, and which samples are particles or bare film."""
    n = draws.n
    if names is None:
        crystal = random_crystals(
            draws, period_px=r.period_px, relative_width=r.relative_width, background=r.background
        )
        kind = draws.uniform("specimen kind")
        is_particle, is_film = kind < r.particles, kind > 1 - r.film_only
    else:
        chosen = [names[i] for i in draws.integers("crystal", len(names)).tolist()]
        size = draws.log_uniform("pixel size", *r.pixel_size_nm, 1).expand(-1, 2)
        plain = ["Au[110]" if name == "nanoparticle" else name for name in chosen]
        crystal = crystals_in_pixels(plain, size, draws.uniform("blur", *r.blur_nm))
        is_particle = torch.tensor([name == "nanoparticle" for name in chosen])
        is_film = torch.zeros(n, dtype=torch.bool)
    turn = draws.uniform("orientation", -torch.pi, torch.pi)
    return crystal.turned(turn, draws.uniform("origin", 0.0, 100.0, 2)), is_particle, is_film


def _specimens(
    crystal: CrystalBatch, is_particle: Tensor, is_film: Tensor, shape: tuple[int, int], draws: Draws, r: PairRanges,
    device: torch.device | str,
) -> Specimen:  # fmt: skip
    short = min(shape)
    centre = torch.tensor([[(s - 1) / 2 for s in shape]], dtype=torch.float64)
    extended = ~(is_particle | is_film)

    def some_borders(name: str, probability: float, width: tuple[float, float]) -> Tensor:
        here = draws.chance(f"{name} here", probability) & extended
        distance = torch.where(here, draws.uniform(f"{name} at", 0.05, 0.4) * short, FAR_PX)
        return border(centre, draws.directions(f"{name} side"), distance, draws.uniform(f"{name} width", *width))

    facets = some_borders("amorphous", r.amorphous_borders, (2.0, 10.0))
    facets[is_film, :, :] = torch.tensor([1.0, 0.0, -FAR_PX, 1.0], dtype=torch.float64)
    if bool(is_particle.any()):
        place = centre + draws.uniform("particle place", -0.08, 0.08, 2) * short
        particle = particle_facets(
            place, draws.uniform("particle turn", 0, 7), draws.uniform("particle size", 0.15, 0.36) * short
        )
        far = torch.tensor([1.0, 0.0, FAR_PX, 1.0], dtype=torch.float64)
        facets = torch.cat([facets, torch.where(is_particle[:, None, None], particle, far)], 1)
    boundary = misorientation = None
    if r.grain_boundaries:
        boundary = some_borders("boundary", r.grain_boundaries, (1.0, 4.0))[:, 0]
        misorientation = draws.uniform("misorientation", 0.1, 1.4)
    film_mean = torch.where(is_particle, draws.uniform("support", 0.1, 0.4), draws.uniform("film", 0.2, 0.6))
    film = is_particle | is_film | draws.chance("amorphous film", 0.5)
    around = Surroundings(
        facets=facets, edges=some_borders("edge", r.edges, (2.0, 12.0)),
        boundary=boundary, misorientation=misorientation,
        wedge=draws.directions("thicker") * (draws.uniform("wedge", *r.wedge) / short)[:, None],
        film_mean=torch.where(is_film, 0.6, film_mean), film_speckle=draws.uniform("speckle", 0.04, 0.18) * film,
        film_grain_px=draws.log_uniform("film grain", 1.5, 8.0),
        film_under=is_particle.double(), defect_share=draws.uniform("defects", *r.defects),
        defect_candidates=r.defect_candidates,
    )  # fmt: skip
    return assemble(crystal, shape, draws, around, most_waves=r.max_waves, device=device)


def _motions(draws: Draws, period: Tensor, free: Tensor, shape: tuple[int, int], r: PairRanges) -> Tensor:
    length = draws.uniform("drift length", *r.drift_periods) * period
    bound = draws.directions("drift direction") * length[:, None]
    loose = draws.uniform("free drift", -r.particle_drift_px, r.particle_drift_px, 2)
    turn = torch.where(free, r.particle_rotation_deg, r.rotation_deg) * draws.uniform("rotation", -1, 1)
    strain, shear = draws.uniform("strain", -r.strain, r.strain, 2), draws.uniform("shear", -r.strain, r.strain)
    return centred_affine(shape, torch.where(free[:, None], loose, bound), turn, strain, shear)


def _damage(
    draws: Draws, shape: tuple[int, int], specimen: Specimen, r: PairRanges, device: torch.device | str
) -> tuple[Damage, tuple[Tensor, Tensor], Tensor]:
    """Damage, exposure at τ = 0 and 1, and pattern."""
    n = draws.n
    pattern = torch.tensor([PATTERNS.index(p) for p in r.patterns])[draws.integers("pattern", len(r.patterns))]
    kind = torch.tensor([KINETICS.index(k) for k in r.kinetics])[draws.integers("kinetics", len(r.kinetics))]
    latency = draws.uniform("latency", 0.1, 0.5)
    odds = torch.tensor(r.witness_odds, dtype=torch.float64).expand(n, -1)
    case = torch.multinomial(odds, 1, generator=draws.streams.generator("witness", "cpu"))[:, 0]
    slow, one, zero, never = (
        draws.uniform("slow", 0.1, 0.7),
        torch.ones(n).double(),
        torch.zeros(n).double(),
        torch.full((n,), torch.nan).double(),
    )
    # Rows: the six cases of `PairRanges.witness_odds`.
    pick = lambda options: torch.stack(options)[case, torch.arange(n)]
    mass_gain, structure_gain = draws.uniform("mass gain", 0.02, 0.3), draws.uniform("structure gain", 0.02, 0.3)
    damage = Damage(
        sensitivity=random_sensitivity(Draws(n, draws.streams.child("sensitivity")), shape, pattern),
        intensity_rate=pick([one, zero, one, slow, one, one]), contrast_rate=pick([one, one, zero, one, one, one]),
        intensity_growth=pick([never, never, never, never, mass_gain, mass_gain]),
        contrast_growth=pick([never, never, never, never, never, structure_gain]),
        kind=kind, latency=latency, headroom=specimen.headroom.cpu(),
    ).to(device)  # fmt: skip
    loss = draws.uniform("loss", *r.loss) * ~draws.chance("undamaged", r.undamaged)
    earlier = draws.uniform("earlier loss", 0.0, 0.5) * draws.chance("damaged before", r.damaged_before)
    start = exposure_for_loss(earlier, kind, latency)
    # With a latency, a reference that lost nothing may be anywhere before the onset; `start` is 0 there.
    gained = torch.where(loss > 0, exposure_for_loss(loss, kind, latency), 0.0)
    return damage, (start.to(device), (start + gained).to(device)), pattern


def _detectors(draws: Draws, electrons: Tensor, r: PairRanges) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dark level, electrons per count, readout noise and full scale, each (n,)."""
    dark, gain = draws.uniform("dark level", *r.dark_level), draws.log_uniform("gain", *r.gain_e)
    readout = draws.uniform("readout", *r.readout_e) * draws.chance("noisy readout", 0.5)
    kind = draws.uniform("quantisation")
    eight, real = kind < r.eight_bit, kind > r.eight_bit + r.integer
    # Eight bits are set so that the pristine peak fills most of the range.
    dark = torch.where(eight, dark.clamp(max=20.0), dark)
    gain = torch.where(eight, electrons / draws.uniform("filling", 110.0, 190.0), gain)
    full_scale = torch.where(real, torch.inf, torch.where(eight, 255.0, 65535.0))
    return dark, gain, readout, full_scale
