"""The costmap's rules in closed form, and a drive through the demo's room."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from depth_node.evaluation.occupancy import GridSettings, OccupancyGrid, found_share
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = GridSettings((-1.0, -0.5), (3.0, 1.5))


def cell(x: float, y: float) -> tuple[int, int]:
    return int((x + 1.0) / 0.05), int((y + 0.5) / 0.05)


def test_points_in_the_band_and_range_mark_their_cell():
    grid = OccupancyGrid(SETTINGS)
    grid.add(np.array([[1.02, 0.32, 0.5], [1.02, 0.82, 0.05], [0.52, 0.82, 1.6],
                       [np.nan, np.nan, np.nan], [2.97, 1.47, 0.4]]),
             np.array([-0.9, 0.1, 0.3]))
    assert grid.occupied.shape == (80, 40)
    # the floor, what is above the band, NaN, and what is beyond 3 m mark nothing
    assert [tuple(index) for index in np.argwhere(grid.occupied)] == [cell(1.02, 0.32)]
    np.testing.assert_allclose(grid.centres()[cell(1.02, 0.32)], [1.025, 0.325])


def test_rays_clear_what_they_pass_but_not_their_end():
    grid = OccupancyGrid(GridSettings((-1.0, -0.5), (3.0, 1.5), ray_stride=1))
    origin = np.array([0.0, 0.02, 0.55])
    grid.add(np.array([[0.52, 0.02, 0.55], [0.52, 1.02, 0.55]]), origin)
    assert grid.occupied[cell(0.52, 0.02)]
    grid.add(np.array([[1.52, 0.02, 0.55]]), origin)
    assert not grid.occupied[cell(0.52, 0.02)], 'something is seen behind it now'
    assert grid.occupied[cell(1.52, 0.02)]
    assert grid.occupied[cell(0.52, 1.02)], 'no ray passed here'


def test_a_ray_above_clears_no_obstacle_below():
    grid = OccupancyGrid(GridSettings((-1.0, -0.5), (3.0, 1.5), ray_stride=1))
    grid.add(np.array([[0.52, 0.02, 0.25]]), np.array([0.0, 0.02, 0.25]))
    grid.add(np.array([[1.52, 0.02, 1.05]]), np.array([0.0, 0.02, 1.05]))
    assert grid.occupied[cell(0.52, 0.02)]


def test_min_points_wants_company():
    grid = OccupancyGrid(GridSettings((-1.0, -0.5), (3.0, 1.5), min_points=3))
    lonely, group = [[1.02, 0.32, 0.5]], [[0.52, 0.52, 0.5]] * 3
    grid.add(np.array(lonely + group), np.array([0.0, 0.0, 0.5]))
    assert [tuple(index) for index in np.argwhere(grid.occupied)] == [cell(0.52, 0.52)]


def test_found_share():
    wanted, found = np.zeros((9, 12), bool), np.zeros((9, 12), bool)
    wanted[2, 3] = wanted[7, 9] = True
    found[2, 5] = True
    assert found_share(wanted, found, 1) == 0.0
    assert found_share(wanted, found, 2) == 0.5
    assert np.isnan(found_share(found & False, found, 2))
    with pytest.raises(ValueError, match='corner'):
        OccupancyGrid(GridSettings((0.0, 0.0), (0.0, 1.0)))


@pytest.fixture(scope='module')
def benchmark_file() -> ModuleType:
    path = ROOT / 'benchmarks' / 'occupancy.py'
    spec = importlib.util.spec_from_file_location('benchmark_occupancy', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bundled_model_marks_the_furniture_and_leaves_the_way_free(benchmark_file: ModuleType):
    pytest.importorskip('onnxruntime')
    clip = benchmark_file.load_clip(ROOT / 'demo' / 'clip')
    drives = [benchmark_file.drive(clip, backend='onnxruntime', seed=seed) for seed in range(3)]
    # three draws of the laser's outliers: one alone gives a scale in 5 to 26 of the 30 frames
    assert sum(found['scale_ok'] for found in drives) >= 40
    for found in drives:
        assert found['furniture_cells'] > 300
        assert found['furniture_marked'] > 0.9
        assert found['path_m'] > 0.8
        assert found['path_cells'] > 100
        assert found['path_marked'] == 0
        assert found['free_floor_marked'] < 0.2
    # the figures would tell: clouds that are a third too near stand in the way
    near = benchmark_file.drive(clip, step=12, backend='onnxruntime', factor=0.67)
    assert near['path_marked'] >= 10
