"""What a table claims agrees with its own intervals."""

import math
from types import SimpleNamespace

import pytest

from atomdiffuser.damage.verdicts import may_be_nothing


@pytest.mark.parametrize(
    ("lo95", "hi95", "expected"), [(-0.7, 1.0, True), (0.2, 1.0, False), (-1.0, -0.2, False), (math.nan, 1.0, False)]
)
def test_an_interval_that_holds_zero_is_no_change(lo95, hi95, expected) -> None:
    assert may_be_nothing(SimpleNamespace(loss=SimpleNamespace(lo95=lo95, hi95=hi95))) is expected
