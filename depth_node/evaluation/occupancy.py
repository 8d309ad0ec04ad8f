"""What a costmap makes of clouds: voxels marked by points and cleared by the rays to them.

The rules are those of Nav2's voxel layer (navigation2, nav2_costmap_2d: ObservationBuffer and
VoxelLayer) with a source that clears and one that marks, as config/nav2_voxel_layer.yaml has them:
each drops the points outside of its height band; the rays to the first one's points clear the
voxels that they pass, then every point of the second within the obstacle range marks its voxel; a
cell of the map is occupied where one of its voxels is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
from depth_node.evaluation.metrics import BoolImage
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]


@dataclass(frozen=True)
class GridSettings:
    """Size and rules of the map.

    Attributes:
        low_xy, high_xy: corners of the map, metres.
        cell_m: side of a cell.
        height_band_m: lowest and highest points that mark.
        clear_band_m: lowest and highest points whose rays clear.
        voxel_height_m: height of a voxel.
        obstacle_range_m: farther points mark nothing.
        raytrace_range_m: rays clear so far.
        min_points: a voxel is marked by so many points of one cloud (1: Nav2's voxel layer; more:
            the voxel filter of STVL).
        ray_stride: every n-th point's ray clears.
    """

    low_xy: tuple[float, float]
    high_xy: tuple[float, float]
    cell_m: float = 0.05
    height_band_m: tuple[float, float] = (0.1, 1.5)
    clear_band_m: tuple[float, float] = (-1.0, 10.0)
    voxel_height_m: float = 0.1
    obstacle_range_m: float = 3.0
    raytrace_range_m: float = 3.5
    min_points: int = 1
    ray_stride: int = 16


class OccupancyGrid:
    """Integrates clouds in a world with z up and the floor at 0."""

    def __init__(self, settings: GridSettings) -> None:
        self.settings = settings
        low, high = np.array(settings.low_xy), np.array(settings.high_xy)
        if not (high > low).all():
            raise ValueError(f'grid from {settings.low_xy} to {settings.high_xy}: expected the '
                             'second corner above the first')
        across = np.ceil((high - low) / settings.cell_m).astype(int)
        levels = int(np.ceil(settings.height_band_m[1] / settings.voxel_height_m))
        self._voxels = np.zeros((int(across[0]), int(across[1]), levels), bool)

    @property
    def occupied(self) -> BoolImage:
        """(columns in x, columns in y): cells that hold an obstacle."""
        return np.asarray(self._voxels.any(axis=2))

    def centres(self) -> NDArray[np.float64]:
        """Return (x cells, y cells, 2) centres of the cells, metres."""
        wanted = self.settings
        cells = np.stack(np.meshgrid(*(np.arange(side) for side in self._voxels.shape[:2]),
                                     indexing='ij'), axis=-1)
        return (cells + 0.5) * wanted.cell_m + np.array(wanted.low_xy)

    def add(self, points: Points, origin: Points) -> None:
        """Integrate a cloud.

        Args:
            points: (N, 3) in the world, metres; NaN is dropped by the height bands.
            origin: (3,) the camera's place.
        """
        wanted = self.settings
        seen = _between(points[::wanted.ray_stride], wanted.clear_band_m)
        self._clear(seen, np.asarray(origin, np.float64))
        kept = _between(points, wanted.height_band_m)
        near = kept[np.linalg.norm(kept - origin, axis=1) < wanted.obstacle_range_m]
        voxels = self._inside(near)
        marked, counts = np.unique(voxels, axis=0, return_counts=True)
        self._voxels[tuple(marked[counts >= wanted.min_points].T)] = True

    def _clear(self, ends: NDArray[np.float64], origin: NDArray[np.float64]) -> None:
        rays = ends - origin
        lengths = np.linalg.norm(rays, axis=1)
        rays, lengths = rays[lengths > 0], lengths[lengths > 0]
        rays = rays / lengths[:, None]
        step = 0.5 * self.settings.cell_m
        # a ray ends two cells before its point, as Nav2's does: it must not clear what it saw
        reach = np.minimum(lengths - 2 * self.settings.cell_m, self.settings.raytrace_range_m)
        for index in range(int(reach.max(initial=0.0) / step) + 1):
            passed = reach > index * step
            self._voxels[tuple(self._inside(origin + rays[passed] * (index * step)).T)] = False

    def _inside(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        wanted = self.settings
        size = np.array([wanted.cell_m, wanted.cell_m, wanted.voxel_height_m])
        voxels = np.floor((points - np.array([*wanted.low_xy, 0.0])) / size).astype(np.intp)
        inside = ((voxels >= 0) & (voxels < self._voxels.shape)).all(axis=1)
        return np.asarray(voxels[inside])


def _between(points: Points, band_m: tuple[float, float]) -> NDArray[np.float64]:
    with np.errstate(invalid='ignore'):
        inside = (points[:, 2] >= band_m[0]) & (points[:, 2] <= band_m[1])
    return np.asarray(points[inside], np.float64)


def found_share(wanted: BoolImage, found: BoolImage, tolerance_cells: int) -> float:
    """Return the share of `wanted` cells with a `found` one within a distance.

    Args:
        wanted: (a, b) cells.
        found: (a, b) cells.
        tolerance_cells: radius of the disc that is looked into.

    Returns:
        0 to 1; NaN where nothing is wanted.
    """
    total = int(np.count_nonzero(wanted))
    if not total:
        return float('nan')
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance_cells + 1,) * 2)
    wider = cv2.dilate(found.astype(np.uint8), disc).astype(bool)
    return float(np.count_nonzero(wanted & wider)) / total
