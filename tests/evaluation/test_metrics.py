from dataclasses import replace

import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.evaluation.metrics import Answer, judged_masks, map_errors, pair_errors, summary


def test_errors_of_a_known_map():
    truth, mask = torch.ones(1, 40, 40), torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[:, :, 10:] = True
    value = truth.clone()
    value[:, :, 10:25] += 0.1
    value[:, :, 25:] -= 0.1
    value[:, :, :10] = 99.0  # not judged
    errors = map_errors(value, truth, mask, torch.full_like(truth, 0.06))
    assert float(errors["rmse"]) == pytest.approx(0.1) and float(errors["mae"]) == pytest.approx(0.1)
    assert float(errors["bias"]) == pytest.approx(0.0, abs=1e-7)
    assert float(errors["coverage95"]) == 1.0
    assert float(map_errors(value, truth, mask, torch.full_like(truth, 0.05))["coverage95"]) == 0.0


def test_missing_values_are_counted_not_hidden():
    truth = torch.ones(1, 40, 40)
    value = truth.clone()
    value[:, :10] = torch.nan
    errors = map_errors(value, truth, torch.ones_like(truth, dtype=torch.bool))
    assert float(errors["missing"]) == pytest.approx(0.25) and float(errors["rmse"]) == 0.0


def test_intervals_of_gaussian_errors_cover_95_percent():
    truth = torch.zeros(1, 300, 300)
    value = 0.2 * torch.randn(1, 300, 300, generator=torch.Generator().manual_seed(1))
    errors = map_errors(value, truth, torch.ones_like(truth, dtype=torch.bool), torch.full_like(truth, 0.2))
    assert float(errors["coverage95"]) == pytest.approx(0.95, abs=0.005)


def test_contrast_is_judged_where_there_is_lattice(pairs):
    dark = pairs.lattice_amplitude.clone()
    dark[:, :, 64:] = 0
    masks = judged_masks(replace(pairs, lattice_amplitude=dark))
    assert not masks["contrast"][:, :, 64:].any() and masks["contrast"][:, 20:70, 20:50].float().mean() > 0.5
    assert masks["intensity"][:, 20:70, 80:100].float().mean() > 0.5


def test_truth_has_no_error_and_doing_nothing_has(pairs):
    right = pair_errors(Answer(pairs.moving_from_reference, pairs.intensity, pairs.contrast), pairs)
    one = torch.ones_like(pairs.intensity)
    still = pair_errors(Answer(geometry.identity(3), one, one), pairs)
    assert float(right["drift_px"].max()) == 0 and float(right["intensity_rmse"].max()) == 0
    assert float(still["drift_px"].min()) > 0.05 and float(still["contrast_rmse"].max()) > 0.05


def test_summary_names_what_it_holds():
    numbers = summary({"drift_px": torch.tensor([0.1, 0.2, 9.0]), "contrast_rmse": torch.tensor([0.3, 0.4, torch.nan])})
    assert numbers["drift_px_median"] == pytest.approx(0.2)
    assert numbers["contrast_rmse"] == pytest.approx((0.125) ** 0.5)
