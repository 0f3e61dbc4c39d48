import json

import numpy as np
import pytest
import yaml

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.discovery import discover
from atomdiffuser.io.readers import read_series
from atomdiffuser.stages.demo_session import write_demo_session
from atomdiffuser.stages.simulate import simulate

OPTIONS = dict(n_frames=3, shape=(40, 56), pixel_size_nm=0.03, fluence_per_frame=800.0, seed=2)


@pytest.fixture(autouse=True)
def _needs_writer(request):
    if "emd" not in request.node.name:
        pytest.importorskip("nionswift_plugin.DM_IO")


@pytest.mark.parametrize("format", ["dm4", "emd", "folder"])
def test_what_is_written_is_what_is_read(tmp_path, format):
    output = tmp_path / {"dm4": "a.dm4", "emd": "a.emd", "folder": "a"}[format]
    written = simulate(output, format=format, truth=tmp_path / "truth" / "a.npz", **OPTIONS)
    read = read_series(output)
    assert np.array_equal(np.asarray(read.frames), written.series.frames)
    assert read.acquisition.fluence_per_frame_e_per_A2 == pytest.approx(800.0, rel=1e-6)
    assert read.times_s.tolist() == [0.0, 1.0, 2.0]
    with np.load(tmp_path / "truth" / "a.npz", allow_pickle=False) as truth:
        assert np.array_equal(truth["frame_from_reference"], written.frame_from_reference)
        assert np.array_equal(truth["contrast"], written.contrast)
        assert truth["lattice_vectors_px"].shape == (2, 2)
    about = json.loads((tmp_path / "truth" / "a.json").read_text())
    assert about["options"]["seed"] == 2 and about["fluence_per_frame_e_per_A2"] == pytest.approx(800.0)


def test_an_unknown_current_stays_unknown(tmp_path):
    simulate(tmp_path / "a.emd", format="emd", known_current=False, **OPTIONS)
    assert read_series(tmp_path / "a.emd").acquisition.probe_current_pA is None


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="format 'png' is not known; known are dm4, emd, folder"):
        simulate(tmp_path / "a.png", format="png")


def test_the_demo_session_is_four_series_and_one_that_is_none(tmp_path):
    folder = tmp_path / "session"
    write_demo_session(folder, seed=1)
    entries = {e.series_id: e for e in discover(folder, results=folder / "results")}
    assert {i for i, e in entries.items() if e.state == "series"} == {
        "STO_contrast_loss", "LLZO_mass_loss", "Si_gentle", "Au_particle_no_current"
    }  # fmt: skip
    assert entries["overview"].state == "skipped" and "single image" in entries["overview"].reason
    assert len(entries) == 5
    current = yaml.safe_load((folder / "session.yaml").read_text())["series"]["STO_contrast_loss.dm4"][
        "probe_current_pA"
    ]
    strontium = read_series(folder / "STO_contrast_loss.dm4", probe_current_pA=current)
    assert strontium.acquisition.fluence_per_frame_e_per_A2 == pytest.approx(2000.0, rel=1e-4)
    assert read_series(folder / "Au_particle_no_current.emd").acquisition.fluence_per_frame_e_per_A2 is None
    assert read_series(folder / "LLZO_mass_loss.emd").frame_shape == (224, 288)
    for name in ("STO_contrast_loss", "LLZO_mass_loss", "Si_gentle", "Au_particle_no_current"):
        truth = np.load(folder / ".truth" / f"{name}.npz")
        assert np.all(truth["contrast"][0] == 1)


@pytest.mark.parametrize("format", ["dm4", "emd"])
def test_the_same_seed_writes_the_same_bytes(tmp_path, format):
    for name in ("one", "two"):
        simulate(tmp_path / name / f"a.{format}", format=format, truth=tmp_path / name / "a.npz", **OPTIONS)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
