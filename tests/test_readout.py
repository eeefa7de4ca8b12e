"""Read-outs against plain NumPy: which numbers of which level, whatever the size of its map."""

import numpy as np
import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax.methods import supervised
from mlvicx_jax.models import readout

SIDES = {'stem': 24, 'stage1': 12, 'stage2': 12, 'stage3': 6, 'stage4': 3}


@pytest.fixture(scope='module')
def features():
    rng = np.random.default_rng(0)
    found = {
        level: rng.standard_normal((2, side, side, 3 + i)).astype(np.float32)
        for i, (level, side) in enumerate(SIDES.items())
    }
    return found | {'pooled': found['stage4'].mean((1, 2))}


def test_pooled_and_levels_are_global_averages(features):
    np.testing.assert_array_equal(readout.pooled(features), features['pooled'])
    expected = np.concatenate([features[level].mean((1, 2)) for level in SIDES], 1)
    np.testing.assert_allclose(readout.levels(features), expected, rtol=1e-5, atol=1e-6)
    assert expected.shape == (2, 3 + 4 + 5 + 6 + 7)


def test_grid_is_the_averages_of_cells_row_by_row(features):
    rows = []
    for film in range(2):
        row = []
        for level, cells in readout.GRID.items():
            step = SIDES[level] // cells
            for i in range(cells):
                for j in range(cells):
                    cell = features[level][film, i * step : (i + 1) * step, j * step : (j + 1) * step]
                    row.append(cell.mean((0, 1)))
        rows.append(np.concatenate(row))
    np.testing.assert_allclose(readout.grid(features), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size,side', [(5, 3), (10, 6), (7, 7), (2, 3)])
def test_cells_that_cut_pixels_are_area_averages(size, side):
    maps = np.random.default_rng(1).standard_normal((1, size, size + 1, 2)).astype(np.float32)
    # Each pixel becomes side x side equal ones, which no cell cuts.
    fine = maps.repeat(side, 1).repeat(side, 2)
    expected = fine.reshape(1, side, size, side, size + 1, 2).mean((2, 4))
    np.testing.assert_allclose(readout.cell_averages(maps, side), expected, rtol=1e-4, atol=1e-5)


def test_a_moved_spot_changes_the_grid_alone():
    maps = {level: np.zeros((2, side, side, 1), np.float32) for level, side in SIDES.items()}
    for level, side in SIDES.items():
        cell = side // 3
        maps[level][0, :cell, :cell] = 1
        maps[level][1, -cell:, -cell:] = 1
    maps['pooled'] = maps['stage4'].mean((1, 2))
    same = {name: np.allclose(*np.asarray(of(maps))) for name, of in readout.READOUTS.items()}
    assert same == {'pooled': True, 'levels': True, 'grid': False}


def test_an_unknown_readout_of_a_classifier_is_refused():
    with pytest.raises(UserError, match="readout='gird': give one of pooled, levels, grid"):
        supervised.Method(encoder=None, recipes={}, image_size=80, labels=9, readout='gird')
