"""The same input gives the same numbers: bit for bit on one processor, to 1e-6 whatever the threads and batches.

The 1e-6 are of a pixel, of a ratio, or of the largest number of a column. Fitted fluences and their p-values get ten
times that: where a region has lost a few per cent, F_c divides the rounding of the loss by that loss. So does the mean
square displacement of atomic columns: their places answer a drift that differs by 5e-7 px with up to 3e-6 px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from atomdiffuser.config import ConvertSettings, DamageSettings, DecaySettings, RegisterSettings
from atomdiffuser.io.map_store import MAP_NAMES, read_maps
from atomdiffuser.io.store import read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.stages import convert as convert_stage
from atomdiffuser.stages.damage import damage
from atomdiffuser.stages.decay import decay
from atomdiffuser.stages.register import register
from atomdiffuser.stages.simulate import simulate

TABLES = ("pairs.parquet", "trajectory.parquet", "damage.parquet", "critical_fluence.csv", "exposure.csv")
RTOL = 1e-6
NUMBER = r"[0-9][0-9.,]*(e[+-]?[0-9]+)?"
FITTED, FITTED_RTOL = ("critical_fluence.csv", "damage.parquet column_msd_px2"), 1e-5


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "a.dm4"
    simulate(path, format="dm4", n_frames=4, shape=(72, 88), electrons_per_px=200, drift_px_per_frame=0.6,
             random_walk_px=0.1, pixel_size_nm=0.03, seed=1)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def frames(raw: Path) -> Path:
    path = raw.parent / "frames.ome.zarr"
    convert_stage.convert([raw], path, ConvertSettings(), series_id="a", name="a")
    return path


Results = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def analyse(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Results]]:
    """Every number of every table and map, worked out with so many threads."""
    before = torch.get_num_threads()

    def run(threads: int) -> Results:
        torch.set_num_threads(threads)
        folder = tmp_path_factory.mktemp("results")
        trajectory, maps = folder / "trajectory.parquet", folder / "decay.zarr"
        register(frames, folder / "pairs.parquet", trajectory, RegisterSettings())
        decay(frames, trajectory, maps, DecaySettings())
        damage(frames, trajectory, maps, folder / "damage.parquet", folder / "critical_fluence.csv", DamageSettings())
        stored = read_maps(maps)
        found = {f"decay.zarr {name}": np.asarray(getattr(stored, name)[...]) for name in MAP_NAMES}
        for name in TABLES:
            table = read_table(folder / name)
            found |= {f"{name} {column}": table[column].to_numpy() for column in table}
        return found

    yield run
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def once(analyse: Callable[[int], Results]) -> Results:
    return analyse(1)


def assert_same(found: Results, expected: Results, rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f" and rtol:
            # a millionth of a pixel or of a ratio; where the numbers are large, such as fluences, of the largest
            known = values[np.isfinite(values)]
            allowed = FITTED_RTOL if name.startswith(FITTED) else rtol
            atol = allowed * float(np.abs(known).max(initial=1.0))
            np.testing.assert_allclose(found[name], values, rtol=allowed, atol=atol, err_msg=name)
        else:
            pairs = (pd.Series(found[name].ravel()), pd.Series(values.ravel()))
            if rtol and values.dtype.kind == "O":  # sentences whose numbers are judged in their own columns
                pairs = tuple(p.astype(str).str.replace(NUMBER, "#", regex=True) for p in pairs)
            pd.testing.assert_series_equal(*pairs, check_exact=True, obj=name)


def test_again_with_the_same_threads_every_number_is_the_same_to_the_last_bit(analyse, once) -> None:
    assert len(once) > 80
    assert_same(analyse(1), once, 0)


def test_threads_change_no_number_beyond_a_millionth(analyse, once) -> None:
    assert_same(analyse(3), once, RTOL)


def test_batches_change_no_number_beyond_a_millionth(analyse, once, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomdiffuser.estimation.frame_source.batch_size", lambda shape, device: 1)
    assert_same(analyse(1), once, RTOL)


def test_another_number_would_be_seen(once) -> None:
    name = "trajectory.parquet drift_y_px"
    with pytest.raises(AssertionError, match="drift_y_px"):
        assert_same(once | {name: once[name] * (1 + 1e-5)}, once, RTOL)
    with pytest.raises(AssertionError, match="drift_y_px"):
        assert_same(once | {name: np.nextafter(once[name], 9)}, once, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_drift_and_maps_within_a_tenth_of_their_sigma(frames: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        register(frames, folder / "pairs.parquet", folder / "trajectory.parquet", RegisterSettings(device=device))
        decay(frames, folder / "trajectory.parquet", folder / "decay.zarr", DecaySettings(device=device))
        found[device] = read_table(folder / "trajectory.parquet"), read_maps(folder / "decay.zarr")
    (one, maps), (other, other_maps) = found["cpu"], found["cuda"]
    for axis in "yx":
        apart = (one[f"drift_{axis}_px"] - other[f"drift_{axis}_px"]).abs()
        assert (apart <= 0.1 * one["displacement_sigma_px"]).all()
    for name in ("intensity", "contrast"):
        values, others, sigma = (np.asarray(a[...]) for a in (
            getattr(maps, name), getattr(other_maps, name), getattr(maps, f"{name}_sigma")))  # fmt: skip
        assert (np.isfinite(values) == np.isfinite(others)).mean() > 0.999
        known = np.isfinite(values) & np.isfinite(others)
        assert (np.abs(values - others)[known] <= 0.1 * sigma[known]).mean() > 0.999


@pytest.mark.parametrize("size", [1, 3 * 72 * 88 * 4])
def test_chunks_that_are_read_together_change_no_pixel(raw: Path, frames: Path, tmp_path: Path, size: int,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(convert_stage, "BATCH_BYTES", size)
    other = tmp_path / "frames.ome.zarr"
    convert_stage.convert([raw], other, ConvertSettings(), series_id="a", name="a")
    found, expected = (read_frames(path, dask=False).frames[...] for path in (other, frames))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
