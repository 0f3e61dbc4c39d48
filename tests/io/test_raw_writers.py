from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.errors import MetadataError, ShapeError
from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd
from atomdiffuser.io.readers import inspect

CALIBRATION = dict(frame_time_s=1.5, pixel_size_nm=0.02, beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6)
STACK = np.arange(2 * 12 * 16, dtype="u2").reshape(2, 12, 16)


@pytest.mark.parametrize(("write", "name"), [(write_dm4, "a.dm4"), (write_velox_emd, "a.emd")])
@pytest.mark.parametrize("frames", [STACK, STACK[0]], ids=["series", "image"])
def test_the_same_input_gives_the_same_bytes(tmp_path, write, name, frames):
    write(tmp_path / "1" / name, frames, **CALIBRATION)
    write(tmp_path / "2" / name, frames, **CALIBRATION)
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(("write", "name"), [(write_dm4, "a.dm4"), (write_velox_emd, "a.emd")])
def test_hyperspy_reads_them(tmp_path, write, name):
    import hyperspy.api as hs

    write(tmp_path / name, STACK, **CALIBRATION)
    signal = hs.load(tmp_path / name)
    np.testing.assert_array_equal(signal.data, STACK)
    factors = {"s": 1, "nm": 1, "pm": 1e-3}
    assert [a.scale * factors[a.units] for a in signal.axes_manager._axes] == pytest.approx([1.5, 0.02, 0.02])
    assert signal.metadata.Acquisition_instrument.TEM.beam_energy == 200


@pytest.mark.parametrize(("write", "name"), [(write_dm4, "a.dm4"), (write_velox_emd, "a.emd")])
def test_single_images_stay_single(tmp_path, write, name):
    write(tmp_path / name, STACK[0], acquired_at="2026-03-04T05:06:07", **CALIBRATION)
    (info,) = inspect(tmp_path / name)
    assert (info.kind, info.shape) == ("single image", (12, 16))
    assert info.acquired_at.startswith("2026-03-04T05:06:07")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(MetadataError, match="not uint8; convert to uint16 first"):
        write_dm4(tmp_path / "a.dm4", STACK.astype("u1"), **CALIBRATION)
    for write in (write_dm4, write_velox_emd):
        with pytest.raises(ShapeError, match=r"frames have shape \(16,\)"):
            write(tmp_path / "a", STACK[0, 0], **CALIBRATION)
