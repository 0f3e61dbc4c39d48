"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("mutation", max_examples=10, deadline=None, derandomize=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250810)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real microscope files; they are not part of the project."""
    folder = os.environ.get("ATOMDIFFUSER_REAL_DATA")
    if not folder:
        pytest.skip("set ATOMDIFFUSER_REAL_DATA to a folder of real microscope files to run this test")
    return Path(folder)
