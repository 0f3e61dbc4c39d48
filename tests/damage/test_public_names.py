"""What a notebook may import from atomdiffuser.damage, and that comparing samples needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from atomdiffuser import damage


def test_every_public_name_is_there() -> None:
    assert all(callable(getattr(damage, name)) for name in damage.__all__) and set(damage.__all__) == set(dir(damage))
    assert {"measure_regions", "fit_regions", "grid_regions", "compare_samples"} <= set(damage.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        damage.nothing  # noqa: B018


def test_comparing_samples_needs_no_torch() -> None:
    code = "import sys; import atomdiffuser.stages.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
