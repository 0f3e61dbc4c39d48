"""Complete results folders of made-up but plausible series, for testing reports without running the pipeline.

Numbers obey the physics of the project: exponential loss of contrast with a hot spot, a slower change of intensity,
steady drift with shear, Poisson noise, confidence intervals of about the right width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, special, stats

from atomdiffuser.config import DamageSettings, RegisterSettings
from atomdiffuser.io.map_store import create_maps
from atomdiffuser.io.status import Status, write_status
from atomdiffuser.io.store import create_frames
from atomdiffuser.io.tables import write_table
from atomdiffuser.series import Acquisition
from benchmarks import made_up_tables as further

HOSTILE_NAME = """<script>alert(1)</script> "å" & 'b'"""
AFFINE = ("a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x")
LAGS = (1, 2, 4, 8)
WEIGHTS = "0123456789abcdef" * 4  # as long as the hash of real ones


@dataclass(frozen=True)
class Recipe:
    """What a made-up series is like; rates are per whole series."""

    name: str = "LLZO grain 3"
    n_frames: int = 40
    shape: tuple[int, int] = (192, 224)
    stride: int = 4
    contrast_loss: float = 0.12  # share lost at the last frame
    intensity_gain: float = 0.03
    ci_half_width: float = 0.02
    drift_px: tuple[float, float] = (6.0, -9.0)  # at the last frame
    closure_px: float = 0.12
    hops: int = 0
    invalid: tuple[int, ...] = ()
    probe_current_pA: float | None = 30.0
    frame_time_s: float | None = 2.0
    pixel_size_nm: tuple[float, float] | None = (0.02, 0.02)
    grid: tuple[int, int] = (3, 3)
    counts: float = 60.0
    aligned: bool = True  # whether to write the aligned store
    modern: bool = True  # whether to write what results of an older version do not have
    seed: int = 7


GOOD = Recipe()
BAD = Recipe(
    name="MOF edge, second try",
    n_frames=24,
    contrast_loss=0.83,
    intensity_gain=-0.31,
    drift_px=(38.0, 29.0),
    closure_px=0.9,
    hops=5,
    invalid=(7, 8, 15, 16, 17, 18, 19),
)
NO_CURRENT = Recipe(name="no beam current", n_frames=20, probe_current_pA=None, contrast_loss=0.25)
NOTHING_KNOWN = Recipe(
    name="bare TIFF", n_frames=12, probe_current_pA=None, frame_time_s=None, pixel_size_nm=None, contrast_loss=0.2
)
TWO = Recipe(name="two frames", n_frames=2, contrast_loss=0.05, ci_half_width=0.06)
MANY = Recipe(name="five hundred frames", n_frames=500, shape=(56, 60), contrast_loss=0.5, aligned=False)
NO_VALID = Recipe(name="nothing usable", n_frames=5, invalid=(0, 1, 2, 3, 4))
OLD = Recipe(name="results of an older version", n_frames=16, contrast_loss=0.3, hops=2, modern=False)
QUIET = Recipe(name="garnet, low dose rate", contrast_loss=0.004, intensity_gain=0.0, ci_half_width=0.015)


def fabricate(folder: Path, recipe: Recipe = GOOD, *, series_id: str | None = None) -> Path:
    """Write every file of one series into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(recipe.seed)
    acquisition = Acquisition(
        pixel_size_nm=recipe.pixel_size_nm,
        frame_time_s=recipe.frame_time_s,
        dwell_s=8e-6,
        probe_current_pA=recipe.probe_current_pA,
        beam_energy_kV=200.0,
        detector="HAADF",
        acquired_at="2025-03-14T10:22:05",
        dark_level=4.0,
        sources={
            "pixel_size_nm": "file", "frame_time_s": "file", "dwell_s": "file", "beam_energy_kV": "file",
            "detector": "file", "acquired_at": "file", "probe_current_pA": "session.yaml", "dark_level": "assumed",
        },
    )  # fmt: skip
    n = recipe.n_frames
    times = None if recipe.frame_time_s is None else np.arange(n) * recipe.frame_time_s
    per_frame = acquisition.fluence_per_frame_e_per_A2
    fluence = np.full(n, np.nan) if per_frame is None else per_frame * np.arange(1, n + 1)
    time_s = np.full(n, np.nan) if times is None else times
    progress = np.arange(n) / max(1, n - 1)
    valid = ~np.isin(np.arange(n), recipe.invalid)
    contrast, intensity = _decay_fields(recipe)
    affines = [_affine(recipe, p) for p in progress]

    _write_frames(folder, recipe, acquisition, times, progress, contrast, intensity, affines, rng)
    trajectory = _write_trajectory(folder, recipe, affines, time_s, fluence, valid, rng)
    _write_pairs(folder, recipe, trajectory, rng)
    _write_maps(folder, recipe, times, progress, contrast, intensity, affines, valid)
    damage = _write_damage(folder, recipe, time_s, fluence, progress, contrast, intensity, valid, rng)
    critical = _write_critical(folder, recipe, damage)
    if recipe.modern:
        further.write_further(folder, recipe, damage, critical, trajectory)
    write_status(
        folder / "status.json",
        Status(
            series_id or folder.name, recipe.name, f"{recipe.name}.dm4", "ok", stage="align",
            config_hash="c0ffee12", fingerprint="sha256:5ca1ab1e", updated="2025-03-15T08:00:00",
        ),
    )  # fmt: skip
    return folder


def _decay_fields(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Rates per whole series, (y, x): exp(−rate · progress) is the map."""
    y, x = np.mgrid[: recipe.shape[0], : recipe.shape[1]]
    y, x = y / recipe.shape[0], x / recipe.shape[1]
    spot = np.exp(-(((y - 0.35) ** 2 + (x - 0.65) ** 2) / 0.05))
    cool = np.exp(-(((y - 0.8) ** 2 + (x - 0.2) ** 2) / 0.04))
    weight = 0.6 + 1.8 * spot - 0.5 * cool
    weight /= weight.mean()
    contrast = -np.log(1 - recipe.contrast_loss) * weight
    intensity = -np.log(1 + recipe.intensity_gain) * (2 - weight if recipe.intensity_gain > 0 else weight)
    return contrast, intensity


def _affine(recipe: Recipe, progress: float) -> np.ndarray:
    wiggle = 0.6 * np.sin(9 * progress) * (progress > 0)
    shear = 0.004 * progress
    matrix = np.eye(3)
    matrix[0, 1], matrix[1, 0] = shear, -0.5 * shear
    matrix[:2, 2] = np.array(recipe.drift_px) * progress + wiggle
    return matrix


def _write_frames(folder, recipe, acquisition, times, progress, contrast, intensity, affines, rng) -> None:
    shape = recipe.shape
    margin = int(np.ceil(max(np.abs(recipe.drift_px)))) + 8
    y, x = np.mgrid[-margin : shape[0] + margin, -margin : shape[1] + margin].astype(np.float32)
    thickness = 1 + 0.25 * np.sin(y / 47) * np.cos(x / 61)
    edge = special.expit((x - 0.12 * shape[1] + 9 * np.sin(y / 20)) / 2.5)
    base = recipe.counts * thickness * edge
    lattice = 0.55 * base * (np.cos(2 * np.pi * (y + 0.3 * x) / 11) + np.cos(2 * np.pi * (x - 0.15 * y) / 9.5)) / 2
    pad = lambda field: np.pad(field, margin, mode="edge")
    contrast, intensity = pad(contrast), pad(intensity)
    attributes = {
        "source": f"raw/{recipe.name}.dm4", "source_size": 12_345_678, "fingerprint": "sha256:5ca1ab1e",
        "settings": {"pyramid_levels": 2},
    }  # fmt: skip
    common = dict(n_frames=recipe.n_frames, frame_shape=shape, times_s=times, acquisition=acquisition, name=recipe.name)
    # a few noise fields, rolled, stand in for fresh noise: much faster for large frames
    noise = rng.standard_normal((3, *shape)).astype(np.float32)
    mean, count = np.zeros(shape), np.zeros(shape, np.int32)
    store = lambda file, **more: create_frames(folder / file, attributes=attributes, **more, **common)
    with store("frames.ome.zarr", dtype=np.uint16) as raw:
        frames = []
        for k, p in enumerate(progress):
            specimen = base * np.exp(-intensity * p) + lattice * np.exp(-contrast * p)
            q_from_p = np.linalg.inv(affines[k])[:2]
            offset = q_from_p[:, 2] + margin
            seen = ndimage.affine_transform(specimen, q_from_p[:, :2], offset, shape, order=1, mode="nearest")
            noisy = seen + np.sqrt(np.maximum(seen, 0)) * np.roll(noise[k % 3], 17 * k, axis=(0, 1))
            frames.append(np.clip(np.rint(noisy + 4), 0, 65535).astype(np.uint16))
            raw.write(k, frames[-1])
    if not recipe.aligned:
        return
    with store("aligned.ome.zarr", dtype=np.float32) as aligned:
        for k, frame in enumerate(frames):
            matrix, shift = affines[k][:2, :2], affines[k][:2, 2]
            moved = ndimage.affine_transform(frame.astype(np.float32), matrix, shift, shape, order=1, cval=np.nan)
            aligned.write(k, moved)
            mean += np.nan_to_num(moved)
            count += np.isfinite(moved)
        with np.errstate(invalid="ignore", divide="ignore"):
            aligned.write_array("mean", (mean / count).astype(np.float32))
        aligned.write_array("count", count)


def _write_trajectory(folder, recipe, affines, time_s, fluence, valid, rng) -> pd.DataFrame:
    rows = []
    centre = np.array([(recipe.shape[0] - 1) / 2, (recipe.shape[1] - 1) / 2, 1.0])
    pixel = recipe.pixel_size_nm or (np.nan, np.nan)
    for k, affine in enumerate(affines):
        dy, dx = (affine @ centre - centre)[:2]
        ok = bool(valid[k])
        rows.append(
            {
                "frame": k, "time_s": time_s[k], "fluence_e_per_A2": fluence[k],
                **dict(zip(AFFINE, affine[:2].ravel(), strict=True)),
                "drift_y_nm": dy * pixel[0], "drift_x_nm": dx * pixel[1], "drift_y_px": dy, "drift_x_px": dx,
                "rotation_deg": np.degrees(np.arctan2(affine[1, 0], affine[0, 0])), "scale": 1.0, "shear": affine[0, 1],
                "displacement_sigma_px": 0.02 + 0.01 * rng.random(),
                "closure_px": recipe.closure_px * (0.4 + 0.6 * rng.random()) if ok else np.nan,
                "valid": ok, "reason": "" if ok else ("blank frame" if k % 2 else "no pair of this frame converged"),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[
        ~table["valid"], [*AFFINE, "drift_y_nm", "drift_x_nm", "drift_y_px", "drift_x_px", "displacement_sigma_px"]
    ] = np.nan
    if recipe.modern:
        table = further.add_quality(table, recipe, rng)
    write_table(
        table, folder / "trajectory.parquet", "trajectory", columns={c: ("made up", "") for c in table},
        reference_frame=int(np.argmax(valid)), settings=asdict(RegisterSettings()), weights=None,
    )  # fmt: skip
    return table


def _write_pairs(folder, recipe, trajectory, rng) -> None:
    rows = []
    valid = trajectory["valid"].to_numpy()
    numbers = trajectory[list(AFFINE)].to_numpy(float).reshape(-1, 2, 3)
    affines = np.concatenate([numbers, np.tile([[[0.0, 0.0, 1.0]]], (len(numbers), 1, 1))], axis=1)
    time_s, fluence = (trajectory[c].to_numpy(float) for c in ("time_s", "fluence_e_per_A2"))
    hops = set(
        rng.choice(max(1, recipe.n_frames - 8), size=min(recipe.hops, max(1, recipe.n_frames - 8)), replace=False)
    )
    for lag in LAGS:
        for i in range(recipe.n_frames - lag):
            j = i + lag
            ok = bool(valid[i] and valid[j])
            hop = ok and lag == LAGS[-1] and i in hops
            moving = affines[j] @ np.linalg.inv(affines[i]) if ok else np.full((3, 3), np.nan)
            moving[:2, 2] += 0.03 * rng.standard_normal(2) + (9.5 * hop, 0.0)
            rows.append(
                {
                    "reference": i, "moving": j, "lag": lag,
                    "dt_s": time_s[j] - time_s[i], "fluence_e_per_A2": fluence[j] - fluence[i],
                    **dict(zip(AFFINE, moving[:2].ravel(), strict=True)),
                    "displacement_sigma_px": 0.03 if ok else np.nan,
                    "score": (0.9 - 0.02 * lag - 0.3 * hop) if ok else np.nan,
                    "hop_probability": (0.62 if hop else float(rng.beta(1, 400))) if ok else np.nan,
                    "valid": ok,
                    "reason": "" if ok else "frame excluded",
                    "residual_px": (9.6 if hop else recipe.closure_px * (0.3 + 0.7 * rng.random())) if ok else np.nan,
                }
            )  # fmt: skip
    write_table(
        pd.DataFrame(rows), folder / "pairs.parquet", "pairs", settings=asdict(RegisterSettings()), weights=None
    )


def _write_maps(folder, recipe, times, progress, contrast, intensity, affines, valid) -> None:
    s = recipe.stride
    coarse = lambda f: f[: f.shape[0] // s * s, : f.shape[1] // s * s].reshape(f.shape[0] // s, s, -1, s).mean((1, 3))
    contrast, intensity = coarse(contrast), coarse(intensity)
    q = np.stack(np.meshgrid(*(np.arange(n) * s + (s - 1) / 2 for n in contrast.shape), indexing="ij"), axis=-1)
    with create_maps(
        folder / "decay.zarr",
        n_frames=recipe.n_frames, map_shape=contrast.shape, stride=s, times_s=times, pixel_size_nm=recipe.pixel_size_nm,
        attributes={"reference_frame": int(np.argmax(valid)), "bandwidth_px": 6.0, "weights": WEIGHTS},
    ) as maps:  # fmt: skip
        for k, p in enumerate(progress):
            p_at = q @ affines[k][:2, :2].T + affines[k][:2, 2]
            inside = ((p_at >= 0) & (p_at <= np.array(recipe.shape) - 1)).all(-1) & valid[k]
            hide = lambda m, inside=inside: np.where(inside, m, np.nan)
            maps.write(
                k,
                intensity=hide(np.exp(-intensity * p)), contrast=hide(np.exp(-contrast * p)),
                intensity_sigma=hide(np.full(contrast.shape, 0.01)), contrast_sigma=hide(np.full(contrast.shape, 0.03)),
                coverage=inside.astype(np.float32),
            )  # fmt: skip


def _regions(recipe: Recipe) -> list[dict]:
    h, w = recipe.shape
    rows, columns = recipe.grid
    regions = [{"region": "whole", "region_id": 0, "bounds_px": [0, 0, h, w], "kind": "whole"}]
    for r in range(rows):
        for c in range(columns):
            bounds = [h * r // rows, w * c // columns, h * (r + 1) // rows, w * (c + 1) // columns]
            name = f"grid_{r}_{c}"
            regions.append({"region": name, "region_id": len(regions), "bounds_px": bounds, "kind": "grid"})
    if recipe.modern:
        box = [h // 5, w // 2, h // 2, 9 * w // 10]
        diamond = [[box[0], 7 * w // 10], [h // 3, box[3]], [box[2], 7 * w // 10], [h // 3, box[1]]]
        regions.append(
            {"region": "hot spot", "region_id": 80, "bounds_px": box, "kind": "session", "outline_px": diamond}
        )
        regions.append({"region": "crystal", "region_id": 91, "bounds_px": [0, w // 2, h, w], "kind": "automatic"})
    return regions


def _write_damage(folder, recipe, time_s, fluence, progress, contrast, intensity, valid, rng) -> pd.DataFrame:
    rows = []
    for region in _regions(recipe):
        y0, x0, y1, x1 = region["bounds_px"]
        rates = {"contrast": contrast[y0:y1, x0:x1].mean(), "intensity": intensity[y0:y1, x0:x1].mean()}
        for k, p in enumerate(progress):
            row = {"region": region["region"], "region_id": region["region_id"], "frame": k, "time_s": time_s[k]}
            row["fluence_e_per_A2"] = fluence[k]
            for witness, rate in rates.items():
                half = recipe.ci_half_width * (0.5 if witness == "intensity" else 1) * (k > 0)
                value = float(np.exp(-rate * p) + rng.normal() * half / 4) if k else 1.0
                value = value if valid[k] else np.nan
                row |= {witness: value, f"{witness}_lo95": value - half, f"{witness}_hi95": value + half}
                row[f"{witness}_sigma"] = half / 1.96 if valid[k] else np.nan
            if recipe.modern:
                for end in ("", "_lo95", "_hi95", "_sigma"):
                    row[f"crystallinity{end}"] = row[f"contrast{end}"] / (1 if end == "_sigma" else row["intensity"])
            row |= {"n_px": (y1 - y0) * (x1 - x0), "coverage": 1.0 - 0.1 * p, "valid": bool(valid[k])}
            rows.append(row)
    table = pd.DataFrame(rows)
    metadata = dict(regions=_regions(recipe), settings=asdict(DamageSettings()))
    metadata["columns"] = {c: ("made up", "") for c in table}
    write_table(table, folder / "damage.parquet", "damage", **metadata)
    write_table(table, folder / "damage.csv", "damage", **metadata)
    return table


def _write_critical(folder, recipe, damage) -> pd.DataFrame:
    rows = []
    for (region, region_id), group in damage.groupby(["region", "region_id"], sort=False):
        used = group[group["valid"]]
        for witness in ("intensity", "contrast"):
            rows.append({"region": region, "region_id": region_id, "witness": witness, **_fit(recipe, used, witness)})
    table = pd.DataFrame(rows)
    if recipe.modern:
        table = further.extend_critical(table, damage)
    columns = {c: ("made up", "") for c in table}
    path = folder / "critical_fluence.csv"
    write_table(table, path, "critical_fluence", columns=columns, settings=asdict(DamageSettings()))
    return table


def _fit(recipe: Recipe, used: pd.DataFrame, witness: str) -> dict:
    unit, column = (
        ("e_per_A2", "fluence_e_per_A2") if recipe.probe_current_pA and recipe.pixel_size_nm else ("s", "time_s")
    )
    if unit == "s" and recipe.frame_time_s is None:
        unit, column = "frame", "frame"
    unknown = dict.fromkeys(
        ("critical_fluence", "critical_fluence_lo95", "critical_fluence_hi95", "aicc", "aicc_constant", "p_value",
         "loss_percent", "loss_lo95", "loss_hi95", "span"), np.nan,
    )  # fmt: skip
    row = {"model": "none", "unit": unit, **unknown, "lower_bound": False, "onset_frame": -1, "n_frames": len(used)}
    if len(used) < 2:
        return row
    x = used[column].to_numpy(float)
    span = x[-1] - x[0]
    value, half = float(used[witness].iloc[-1]), float(used[f"{witness}_hi95"].iloc[-1] - used[witness].iloc[-1])
    sigma = half / 1.96
    row |= dict(model="exponential", span=span, p_value=float(2 * stats.norm.sf(abs(1 - value) / sigma)))
    row |= dict(loss_percent=100 * (1 - value), loss_lo95=100 * (1 - value - half), loss_hi95=100 * (1 - value + half))
    row |= dict(
        aicc=-3.0 * len(used), aicc_constant=-2.0 * len(used), onset_frame=int(used["frame"].iloc[len(used) // 3])
    )
    fastest, slowest = -np.log(max(1e-6, value - half)), -np.log(value + half)
    if value - half >= 1:
        row["onset_frame"] = -1
        return row
    if slowest <= 0 or span / -np.log(value) > span / 0.3 or len(used) < 3:
        return row | dict(
            lower_bound=True,
            critical_fluence=span / fastest,
            critical_fluence_lo95=span / fastest,
            critical_fluence_hi95=np.inf,
        )
    return row | dict(
        critical_fluence=span / -np.log(value),
        critical_fluence_lo95=span / fastest,
        critical_fluence_hi95=span / slowest,
    )
