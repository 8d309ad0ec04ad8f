"""Drive through the demo's room on the bundled model's depth, with the scale of a laser.

    python benchmarks/occupancy.py [--out docs/results/occupancy.json]

Every second frame of the clip goes through the pipeline; a simulated laser line, 0.3 m above the
floor, with 1 cm of noise and a share of outliers, gives the scale.  The clouds are integrated as
Nav2's voxel layer does, and compared with what the true depth marks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
from depth_node.backends import open_backend
from depth_node.cli._demo.clip import Clip, bundled_clip, load_clip
from depth_node.evaluation.occupancy import GridSettings, OccupancyGrid, found_share
from depth_node.evaluation.sensors import disturb
from depth_node.geometry import depth_to_points
from depth_node.model_card import ModelCard
from depth_node.pipeline import DepthPipeline
from depth_node.scale_points import PointsEstimator, PointsSettings
import numpy as np
from numpy.typing import NDArray

LASER_HEIGHT_M = 0.3
LASER_POINTS = 200
NEAR_CELLS = 3  # 15 cm
PATH_WIDTH_M = 0.5


def world(points: NDArray[np.float32], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points that are known, (N, 3), in the world."""
    flat = points.reshape(-1, 3)
    flat = flat[np.isfinite(flat[:, 2])].astype(np.float64)
    return np.asarray(flat @ pose[:3, :3].T + pose[:3, 3])


def laser(points: NDArray[np.float32], pose: NDArray[np.float64], rng: np.random.Generator,
          outliers: float) -> NDArray[np.float64]:
    """Return what a level laser scanner measures of a scene, in the optical frame."""
    flat = points.reshape(-1, 3)
    heights = flat.astype(np.float64) @ pose[2, :3] + pose[2, 3]
    line = np.flatnonzero(np.abs(heights - LASER_HEIGHT_M) < 0.03)
    chosen = flat[rng.permutation(line)[:LASER_POINTS]].astype(np.float64)
    return disturb(chosen, rng, noise_m=0.01, outliers=outliers)


def drive(clip: Clip, *, step: int = 2, outliers: float = 0.3, factor: float = 1.0,
          backend: str = 'auto', seed: int = 0, model: str = 'small') -> dict[str, Any]:
    """Integrate the clip's clouds; return grids and figures.

    Args:
        clip: with true depth and poses.
        step: every n-th frame is used.
        outliers: share of the laser's points that are wrong.
        factor: applied to the clouds, to see what a wrong scale does.
        backend: runs the model.
        seed: of the laser's chance.
        model: name of the card.
    """
    rng = np.random.default_rng(seed)
    camera, poses = clip.camera, clip.poses()
    assert poses is not None
    estimator = PointsEstimator(PointsSettings())
    frames, errors, states = [], [], []
    with open_backend(ModelCard.load(model), backend, threads=1) as network:
        pipeline = DepthPipeline(network, scale=estimator)
        for index in range(0, len(clip.pictures), step):
            rgb = cv2.cvtColor(cv2.imread(str(clip.pictures[index])), cv2.COLOR_BGR2RGB)
            true = np.full(camera.size_hw, np.nan, np.float32)
            known = clip.true_depth(index)
            skip = camera.size_hw[0] // known.shape[0]
            true[::skip, ::skip] = known
            true_points = depth_to_points(true, camera)
            stamp = index / 30
            estimator.add(laser(true_points, poses[index], rng, outliers), stamp)
            frame = pipeline.run(rgb, camera, stamp)
            depth = factor * frame.depth
            both = np.isfinite(true) & np.isfinite(depth)
            errors.append(float(np.abs(depth[both] / true[both] - 1).mean()))
            states.append(frame.scale.state)
            frames.append((world(true_points, poses[index]),
                           world(depth_to_points(depth, camera)[::2, ::2], poses[index]),
                           poses[index][:3, 3], frame.scale.usable))
    everything = np.concatenate([item[0] for item in frames])[:, :2]
    settings = GridSettings(tuple(everything.min(axis=0) - 1), tuple(everything.max(axis=0) + 1))
    truth = OccupancyGrid(GridSettings(settings.low_xy, settings.high_xy, min_points=3))
    marked = OccupancyGrid(GridSettings(settings.low_xy, settings.high_xy, min_points=3))
    for true_cloud, cloud, origin, _ in frames:
        truth.add(true_cloud, origin)
        marked.add(cloud, origin)
    start, end = frames[0][2][:2], frames[-1][2][:2]
    heading = (end - start) / np.linalg.norm(end - start)
    offset = truth.centres() - start
    along, aside = offset @ heading, np.abs(offset @ np.array([-heading[1], heading[0]]))
    lane = (along > 0) & (aside < PATH_WIDTH_M / 2)
    free_m = float(along[lane & truth.occupied].min())
    path = lane & (along < free_m - 0.05)
    floor = np.zeros(truth.occupied.shape, bool)
    cells = np.floor((everything - np.array(settings.low_xy)) / settings.cell_m).astype(int)
    floor[tuple(cells.T)] = True
    floor &= ~cv2.dilate(truth.occupied.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    return {
        'frames': len(frames), 'scale_ok': states.count('ok'),
        'abs_rel': float(np.mean(errors)),
        'furniture_cells': int(np.count_nonzero(truth.occupied)),
        'furniture_marked': found_share(truth.occupied, marked.occupied, NEAR_CELLS),
        'path_m': free_m, 'path_cells': int(np.count_nonzero(path)),
        'path_marked': int(np.count_nonzero(path & marked.occupied)),
        'free_floor_cells': int(np.count_nonzero(floor)),
        'free_floor_marked': float(np.count_nonzero(floor & marked.occupied)
                                   / max(1, np.count_nonzero(floor))),
    }


def main() -> int:
    """Print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clip', type=Path, help="a clip's folder (the bundled one)")
    parser.add_argument('--out', type=Path, metavar='FILE', help='write JSON there too')
    parser.add_argument('--seed', type=int, default=0, help="of the laser's noise (0)")
    parser.add_argument('--model', default='small', help='name or file of a card (small)')
    args = parser.parse_args()
    result = drive(load_clip(args.clip or bundled_clip()), model=args.model,
                   seed=args.seed)
    for name, value in result.items():
        print(f'{name:20s} {value:.3f}' if isinstance(value, float) else f'{name:20s} {value}')
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
