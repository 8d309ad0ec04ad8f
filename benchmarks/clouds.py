"""Measure what clouds, scans and the nearest obstacle cost: docs/results/clouds.json.

One core, 640x480, a room of a floor, walls and boxes seen by a tilted camera, with the smooth
errors of a network.  Times are those of the thread (CPU time), so that other programs of the
machine do not count; `wall` is the clock beside it.

    python benchmarks/clouds.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
import math
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np
from numpy.typing import NDArray

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

from depth_node.camera import Camera  # noqa: E402
from depth_node.geometry import FIELDS, CloudLayout, CloudPacker  # noqa: E402
from depth_node.ground import Mount  # noqa: E402
from depth_node.obstacles import (  # noqa: E402
    BandSettings,
    NearestObstacle,
    ScanMaker,
    ScanSettings,
    level_axes,
)

CAMERA = Camera((480, 640), 525.0, 525.0, 319.5, 239.5)
HEIGHT_M, PITCH_DEG = 0.9, 12.0
# (x0, y0, z0), (x1, y1, z1) in metres: forward, left and up from the camera
BOXES = [((-9, -2.5, -9), (9, -2.4, 9)), ((-9, 3.0, -9), (9, 3.1, 9)), ((6, -9, -9), (6.1, 9, 9)),
         ((1.5, -0.8, -0.9), (2.1, -0.2, -0.2)), ((2.6, 0.4, -0.9), (3.2, 1.6, 0.1)),
         ((4.0, -1.6, -0.9), (4.4, -1.2, 1.0)), ((-9, -9, 1.6), (9, 9, 1.7))]


def scene() -> NDArray[np.float32]:
    """Return the depth of the room with 2 % of smooth error and 3 % of unknown pixels."""
    axes = level_axes(Mount.from_angles(HEIGHT_M, PITCH_DEG))
    v, u = np.mgrid[0:480, 0:640].astype(np.float64)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy,
                     np.ones_like(u)], -1) @ axes.T
    with np.errstate(divide='ignore'):
        floor = -HEIGHT_M / rays[..., 2]
        depth = np.where(floor > 0, floor, np.inf)
        for low, high in BOXES:
            ends = np.stack([np.array(low) / rays, np.array(high) / rays])
            enter, leave = ends.min(0).max(-1), ends.max(0).min(-1)
            depth = np.where((enter > 0) & (enter < leave), np.minimum(depth, enter), depth)
    generator = np.random.default_rng(0)
    error = cv2.resize(generator.normal(0, 0.02, (48, 64)), (640, 480),
                       interpolation=cv2.INTER_CUBIC)
    depth *= 1 + error
    depth[cv2.resize(generator.random((30, 40)), (640, 480)) > 0.86] = np.nan
    return depth.astype(np.float32)


def sorted_voxels(points: NDArray[np.float32], voxel_m: float) -> int:
    """Thin a cloud the usual way, by numpy.unique; for comparison."""
    cells = np.floor(points[:, :3] / voxel_m).astype(np.int64) + (1 << 20)
    keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
    _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
    means = [np.bincount(group, points[:, axis]) / count for axis in range(3)]
    return len(means[0])


def measure(work: Callable[[int], Any], rounds: int) -> dict[str, float]:
    """Return milliseconds of `rounds` calls after five that do not count."""
    cpu, wall = [], []
    for turn in range(-5, rounds):
        begin, begin_wall = time.thread_time(), time.perf_counter()
        work(turn)
        if turn >= 0:
            cpu.append(1e3 * (time.thread_time() - begin))
            wall.append(1e3 * (time.perf_counter() - begin_wall))
    return {'cpu_p50_ms': round(float(np.median(cpu)), 3),
            'cpu_p95_ms': round(float(np.quantile(cpu, 0.95)), 3),
            'wall_p50_ms': round(float(np.median(wall)), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=100, help='calls of each case (100)')
    parser.add_argument('--out', type=Path, default=CLONE / 'docs' / 'results' / 'clouds.json')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    depth = scene()
    generator = np.random.default_rng(1)
    rgb = generator.integers(0, 256, (480, 640, 3), np.uint8)
    confidence = generator.random((480, 640), np.float32)
    mount = Mount.from_angles(HEIGHT_M, PITCH_DEG)
    # far enough from each other for new tables, as on a rough road
    moving = [Mount.from_angles(HEIGHT_M, PITCH_DEG + 0.3 * (turn % 7)) for turn in range(7)]

    results: dict[str, Any] = {}

    def cloud(name: str, layout: CloudLayout, *, moves: bool = False, coloured: bool = True,
              sure: bool = False) -> None:
        packer = CloudPacker(CAMERA, layout)
        packed = packer.pack(depth, rgb, mount=mount)
        results[name] = {
            **measure(lambda turn: packer.pack(
                depth, rgb if coloured else None, confidence=confidence if sure else None,
                mount=moving[turn % 7] if moves else mount), args.rounds),
            'points': packed.height * packed.width, 'removed': packed.removed}

    cloud('organised xyzrgb', CloudLayout())
    cloud('organised xyz', CloudLayout(fields=()), coloured=False)
    cloud('organised xyz, all fields', CloudLayout(fields=FIELDS), sure=True)
    cloud('dense xyzrgb', CloudLayout(organised=False))
    cloud('dense, stride 2', CloudLayout(organised=False, stride=2))
    cloud('far points at 4 m', CloudLayout(far_m=4.0, far_points=True))
    cloud('height band', CloudLayout(min_height_m=0.1, max_height_m=1.5))
    cloud('ground removed', CloudLayout(remove_ground=True))
    cloud('ground removed, mount moves', CloudLayout(remove_ground=True), moves=True)
    for voxel_m in (0.02, 0.05, 0.1):
        cloud(f'voxels of {voxel_m:g} m', CloudLayout(organised=False, voxel_m=voxel_m))
    cloud('stride 2, ground removed, voxels of 0.05 m', CloudLayout(
        organised=False, stride=2, remove_ground=True, voxel_m=0.05))
    whole = CloudPacker(CAMERA, CloudLayout(organised=False)).pack(depth, rgb)
    points = whole.data.view(np.float32).reshape(-1, 4).copy()
    results['for comparison: voxels of 0.05 m by numpy.unique'] = {
        **measure(lambda _: sorted_voxels(points, 0.05), max(5, args.rounds // 10)),
        'voxels': sorted_voxels(points, 0.05)}

    for name, settings in (
            ('scan, 0.25 degrees', ScanSettings()),
            ('scan, one bin per column', ScanSettings(angle_increment_deg=0.0))):
        maker = ScanMaker(CAMERA, settings)
        scan = maker.scan(depth, mount)
        results[name] = {
            **measure(lambda _, maker=maker: maker.scan(depth, mount), args.rounds),
            'ranges': len(scan.ranges), 'finite': int(np.isfinite(scan.ranges).sum()),
            'free': int(np.isposinf(scan.ranges).sum())}
    maker = ScanMaker(CAMERA)
    results['scan, mount moves'] = measure(
        lambda turn: maker.scan(depth, moving[turn % 7]), args.rounds)
    finder = NearestObstacle(CAMERA, BandSettings())
    found = finder.find(depth, mount)
    results['nearest obstacle'] = {
        **measure(lambda _: finder.find(depth, mount), args.rounds),
        'distance_m': round(found.distance_m, 3),
        'bearing_deg': round(math.degrees(found.bearing_rad), 2)}
    results['nearest obstacle, mount unknown'] = measure(
        lambda _: finder.find(depth, None), args.rounds)

    document = {
        'command': 'python benchmarks/clouds.py', 'image': '640x480', 'threads': 1,
        'rounds': args.rounds, 'processor': _processor(),
        'load_average': round(os.getloadavg()[0], 1), 'python': platform.python_version(),
        'numpy': np.__version__, 'opencv': cv2.__version__,
        'valid_share': round(float(np.isfinite(depth).mean()), 3), 'results': results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    for name, row in results.items():
        print(f'{name:<50}{row["cpu_p50_ms"]:8.2f} ms CPU (p95 {row["cpu_p95_ms"]:.2f}), '
              f'{row["wall_p50_ms"]:.2f} wall')
    print(args.out)
    return 0


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == '__main__':
    sys.exit(main())
