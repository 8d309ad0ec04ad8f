"""Measure how exact the metric scale is, and whether useless data are refused.

    python benchmarks/scale.py --data data/frames

Needs frames with true depth (depth-node synthesize). Level `sensor`: the network's depth is the
true one with the errors of a good network and an unknown factor. Level `network`: the bundled
network's own depth; the true factor is then the median ratio over all pixels, and what one sensor
sees of a picture has another. Writes docs/results/scale.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
import functools
import json
import math
from pathlib import Path
import platform
import sys
import time

import cv2
from depth_node.backends import open_backend
from depth_node.camera import Camera
from depth_node.cli._demo.clip import bundled_clip, load_clip
from depth_node.evaluation import sensors
from depth_node.filters import FilterSettings
from depth_node.ground import GroundEstimator, GroundSettings, Mount
from depth_node.model_card import ModelCard
from depth_node.pipeline import DepthPipeline
from depth_node.scale import Scale
from depth_node.scale_points import PointsEstimator, PointsSettings
from depth_node.training.datasets.rendered import Rendered
import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / 'docs' / 'results'
SENSORS = {
    'lidar, 32 rings': sensors.beams(np.linspace(-25, 15, 32), 0.8),
    'lidar, 16 rings': sensors.beams(np.linspace(-15, 15, 16), 0.8),
    'laser scanner': sensors.beams([0.0], 0.5),
}
FACTOR = 0.7  # the unknown factor is exp(+-FACTOR)
SPIN_DEG_S, SPEED_M_S, DELAY_S = 30.0, 0.5, 0.03
CONE_RAD = 0.13


@dataclass
class View:
    """A frame: truth, what the bundled network says, and how the camera stood."""

    scene: str
    truth: np.ndarray
    depth: np.ndarray
    camera: Camera
    mount: Mount


class Keep:
    """Stands where an estimator stands, and keeps the network's depth."""

    def estimate(self, depth, camera, stamp):
        """Keep a copy and correct nothing."""
        self.depth, self.camera = depth.copy(), camera
        return Scale()

    def reset(self):
        """Nothing to forget."""


def views(root: Path, splits: list[str]) -> Iterator[View]:
    keep = Keep()
    pipeline = DepthPipeline(open_backend(ModelCard.load('small')), scale=keep,
                             filters=FilterSettings(temporal='off'))
    for split in splits:
        data = Rendered(root, split)
        for index in range(len(data)):
            frame = data.read(index)
            pipeline.run(frame.rgb, frame.camera)
            info = json.loads(data.files(index)[2].read_text(encoding='utf-8'))
            pose = np.asarray(info['camera_to_world'], np.float64)
            truth = np.asarray(frame.depth, np.float32)
            if keep.depth.shape != truth.shape:
                raise SystemExit(f'{data.name(index)}: frames of {truth.shape}, the network gives '
                                 f'{keep.depth.shape}; render frames of its size')
            yield View(data.name(index).split('/')[0], truth, keep.depth, keep.camera,
                       Mount(tuple(pose[:3, :3].T @ [0.0, 0.0, 1.0]), float(pose[2, 3])))


def network_of(view: View, level: str, rng: np.random.Generator) -> np.ndarray:
    if level == 'network':
        return view.depth
    return sensors.like_network(view.truth, rng, factor=math.exp(rng.uniform(-FACTOR, FACTOR)))


def true_factor(truth: np.ndarray, depth: np.ndarray) -> float:
    with np.errstate(invalid='ignore', divide='ignore'):
        return float(np.nanmedian(np.log(truth / depth)))


def disturbed(points: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    if how == 'extrinsic off by 1 degree':
        return sensors.turned(points, rng.normal(size=3), 1.0)
    if how == 'late by 30 ms':
        return sensors.turned(points, np.array([0, 1, 0]), SPIN_DEG_S * DELAY_S,
                              (0.0, 0.0, SPEED_M_S * DELAY_S))
    if how == 'extrinsic off by 20 degrees':
        return sensors.turned(points, rng.normal(size=3), 20.0)
    if how == 'upside down':
        return points * [-1, -1, 1]
    if how == 'random distances':
        return points / length * np.exp(rng.uniform(math.log(0.3), math.log(8), length.shape))
    if how == 'one distance':
        return points / length * 3.0 * np.exp(rng.normal(0, 0.01, length.shape))
    return points


def elsewhere(index: int, found: list[View], rng: np.random.Generator) -> View:
    while True:
        other = found[int(rng.integers(len(found)))]
        if other.scene != found[index].scene:
            return other


def summary(errors: list[float], stated: list[float], offered: int) -> dict[str, float | int]:
    error, sigma = np.abs(np.array(errors)), np.array(stated)
    row: dict[str, float | int] = {'pictures': offered, 'estimates': len(error)}
    if len(error):
        row |= {'median_error': float(np.median(error)),
                'p90_error': float(np.quantile(error, 0.9)),
                'median_uncertainty': float(np.median(sigma)),
                'within_2_sigma': float(np.mean(error < 2 * sigma)),
                'errors_above_10_percent': int(np.sum(error > 0.1))}
    return row


def points_rows(found: list[View], seed: int) -> Iterator[dict]:
    harmless = ('', 'extrinsic off by 1 degree', 'late by 30 ms')
    useless = ('another scene', 'extrinsic off by 20 degrees', 'upside down', 'random distances',
               'one distance')
    for level in ('sensor', 'network'):
        for name, beams in SENSORS.items():
            for how in (*harmless, *useless):
                rng, errors, stated = np.random.default_rng(seed), [], []
                for index, view in enumerate(found):
                    depth = network_of(view, level, rng)
                    seen = elsewhere(index, found, rng) if how == 'another scene' else view
                    points = sensors.disturb(sensors.measure(seen.truth, seen.camera, beams), rng)
                    estimator = PointsEstimator(PointsSettings(confirmations=1))
                    estimator.add(disturbed(points, how, rng), 0.0)
                    scale = estimator.estimate(depth, view.camera, 0.0)
                    if scale.state == 'ok':
                        errors.append(math.log(scale.scale) - true_factor(view.truth, depth))
                        stated.append(scale.uncertainty)
                yield {'table': 'useless' if how in useless else 'points', 'level': level,
                       'sensor': name, 'wrong': how, **summary(errors, stated, len(found))}


def range_rows(found: list[View], seed: int) -> Iterator[dict]:
    for level in ('sensor', 'network'):
        rng, errors, stated, offered = np.random.default_rng(seed), [], [], 0
        for view in found:
            depth = network_of(view, level, rng)
            for column in (-0.25, 0.0, 0.25):
                direction = np.array([column, rng.normal(0, 0.1), 1.0])
                distance = sensors.nearest_in_cone(view.truth, view.camera, direction, CONE_RAD)
                estimator = PointsEstimator(PointsSettings())
                estimator.add_ranges(distance * (1 + rng.normal(0, 0.01)), direction, CONE_RAD,
                                     0.0)
                scale = estimator.estimate(depth, view.camera, 0.0)
                offered += 1
                if scale.state == 'ok':
                    errors.append(math.log(scale.scale) - true_factor(view.truth, depth))
                    stated.append(scale.uncertainty)
        yield {'table': 'points', 'level': level, 'sensor': 'range, 15 degrees', 'wrong': '',
               **summary(errors, stated, offered)}


def range_sequence_rows(found: list[View], seed: int) -> Iterator[dict]:
    """A range finder as the node runs it, over the views of a scene, half a second apart.

    One measurement knows the scale of one place; only several views know that of the picture.
    """
    scenes = list(dict.fromkeys(view.scene for view in found))
    by_scene = {name: [view for view in found if view.scene == name] for name in scenes}
    usable = [name for name in scenes if len(by_scene[name]) >= 5]
    for level in ('sensor', 'network'):
        for smoothing_s in (1.0, 10.0):
            rng, errors, stated = np.random.default_rng(seed), [], []
            for scene in usable:
                factor = math.exp(rng.uniform(-FACTOR, FACTOR))
                estimator = PointsEstimator(PointsSettings(smoothing_s=smoothing_s))
                factors = []
                scale = Scale('points', state='waiting')
                for step, view in enumerate(by_scene[scene]):
                    depth = view.depth if level == 'network' else sensors.like_network(
                        view.truth, rng, factor=factor)
                    direction = np.array([0.0, 0.0, 1.0])
                    distance = sensors.nearest_in_cone(view.truth, view.camera, direction,
                                                       CONE_RAD)
                    estimator.add_ranges(distance * (1 + rng.normal(0, 0.01)), direction,
                                         CONE_RAD, 0.5 * step)
                    scale = estimator.estimate(depth, view.camera, 0.5 * step)
                    factors.append(true_factor(view.truth, depth))
                if scale.state == 'ok':
                    # a network's own factor differs from view to view: their middle is meant
                    errors.append(math.log(scale.scale) - float(np.median(factors)))
                    stated.append(scale.uncertainty)
            yield {'table': 'sequences', 'level': level, 'sensor': 'range, 15 degrees',
                   'wrong': '', 'smoothing_s': smoothing_s, **summary(errors, stated, len(usable))}


def sequence_rows(found: list[View], seed: int) -> Iterator[dict]:
    """The estimator as the node runs it, over the views of a scene, half a second apart."""
    scenes = list(dict.fromkeys(view.scene for view in found))
    by_scene = {name: [view for view in found if view.scene == name] for name in scenes}
    usable = [name for name in scenes if len(by_scene[name]) >= 5]
    for level in ('sensor', 'network'):
        for name, beams in SENSORS.items():
            for how in ('', 'another scene', 'extrinsic off by 20 degrees'):
                rng, errors, stated = np.random.default_rng(seed), [], []
                for number, scene in enumerate(usable):
                    other = by_scene[usable[(number + 1 + int(rng.integers(len(usable) - 1)))
                                            % len(usable)]]
                    axis = rng.normal(size=3)
                    factor = math.exp(rng.uniform(-FACTOR, FACTOR))
                    estimator = PointsEstimator(PointsSettings())
                    scale = Scale('points', state='waiting')
                    truth = depth = np.empty(0)
                    for step, view in enumerate(by_scene[scene]):
                        truth = view.truth
                        depth = view.depth if level == 'network' else sensors.like_network(
                            truth, rng, factor=factor)
                        seen = other[step % len(other)] if how == 'another scene' else view
                        points = sensors.disturb(
                            sensors.measure(seen.truth, seen.camera, beams), rng)
                        if how.startswith('extrinsic'):
                            points = sensors.turned(points, axis, 20.0)
                        estimator.add(points, 0.5 * step)
                        scale = estimator.estimate(depth, view.camera, 0.5 * step)
                    if scale.state == 'ok':
                        errors.append(math.log(scale.scale) - true_factor(truth, depth))
                        stated.append(scale.uncertainty)
                yield {'table': 'sequences', 'level': level, 'sensor': name, 'wrong': how,
                       **summary(errors, stated, len(usable))}


def ground_rows(found: list[View], seed: int) -> Iterator[dict]:
    def floor_of(view: View) -> np.ndarray:
        v, u = np.mgrid[0:view.truth.shape[0], 0:view.truth.shape[1]]
        camera = view.camera
        rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy,
                         np.ones(u.shape)], -1)
        return np.abs(view.mount.heights((rays * view.truth[..., None]).astype(np.float32))) < 0.02

    floors = [floor_of(view) for view in found]
    kinds: dict[str, Callable[[int], bool]] = {
        'rooms with a floor': lambda i: (found[i].scene.startswith('room')
                                         and floors[i].mean() > 0.05),
        'tables with a floor': lambda i: (found[i].scene.startswith('table')
                                          and floors[i].mean() > 0.05),
        'no floor in sight': lambda i: floors[i].mean() <= 0.01,
    }
    for level in ('sensor', 'network'):
        for kind, belongs in kinds.items():
            for tilt, from_floor in ((0.0, False), (1.0, False), (0.0, True)):
                rng, errors, stated, of_floor = np.random.default_rng(seed), [], [], []
                offered = 0
                for index, view in enumerate(found):
                    if not belongs(index):
                        continue
                    offered += 1
                    depth = network_of(view, level, rng)
                    up = sensors.turned(np.array([view.mount.up]), rng.normal(size=3), tilt)[0]
                    estimator = GroundEstimator(GroundSettings(estimate_tilt=from_floor))
                    estimator.set_mount(Mount(tuple(up), view.mount.height_m))
                    scale = estimator.estimate(depth, view.camera, 0.0)
                    if scale.state == 'ok':
                        errors.append(math.log(scale.scale) - true_factor(view.truth, depth))
                        stated.append(scale.uncertainty)
                        if floors[index].any():
                            of_floor.append(abs(math.log(scale.scale) - true_factor(
                                view.truth[floors[index]], depth[floors[index]])))
                wrong = 'tilt from the floor' if from_floor else (
                    'tilt off by 1 degree' if tilt else '')
                row = {'table': 'ground', 'level': level, 'sensor': kind, 'wrong': wrong,
                       **summary(errors, stated, offered)}
                if of_floor:
                    row['median_error_of_floor'] = float(np.median(of_floor))
                yield row


def affine_rows(found: list[View], seed: int) -> Iterator[dict]:
    """A relative network: inverse depth up to a scale and a shift that leave the far below 0."""
    for name, beams in SENSORS.items():
        rng, errors, stated = np.random.default_rng(seed), [], []
        for view in found:
            near = sensors.like_network(view.truth, rng, factor=1.0, local_error=0.03)
            value = 1 / near.astype(np.float64)
            raw = ((value - 0.8 * np.nanmedian(value)) / 0.003).astype(np.float32)
            with np.errstate(divide='ignore'):
                depth = 1 / raw
            estimator = PointsEstimator(PointsSettings(kind='rel_inv_depth', confirmations=1))
            estimator.add(sensors.disturb(
                sensors.measure(view.truth, view.camera, beams), rng), 0.0)
            scale = estimator.estimate(depth, view.camera, 0.0)
            if scale.state == 'ok':
                scale.apply(depth)
                off = np.log(depth / view.truth)
                errors.append(float(np.nanmedian(off)))
                stated.append(scale.uncertainty)
        yield {'table': 'relative network', 'level': 'sensor', 'sensor': name, 'wrong': '',
               **summary(errors, stated, len(found))}


def clip_rows(seed: int) -> Iterator[dict]:
    """The bundled network on the demo's clip, two seconds of motion, as the node runs it."""
    clip = load_clip(bundled_clip())
    keep = Keep()
    pipeline = DepthPipeline(open_backend(ModelCard.load('small')), scale=keep,
                             filters=FilterSettings(temporal='off'))
    frames = []
    for index, path in enumerate(clip.pictures):
        pipeline.run(cv2.imread(str(path))[..., ::-1].copy(), clip.camera)
        truth = clip.true_depth(index)
        step = clip.camera.size_hw[0] // truth.shape[0]  # its pixel (v, u) is (step v, step u)
        flat = clip.camera.rectified()
        camera = Camera(truth.shape, flat.fx / step, flat.fy / step, flat.cx / step,
                        flat.cy / step)
        frames.append((keep.depth, keep.camera, truth, camera))
    rate = float(clip.notes['rate_hz'])
    for name, beams in SENSORS.items():
        rng, errors, stated, first = np.random.default_rng(seed), [], [], math.nan
        estimator = PointsEstimator(PointsSettings())
        for number, (depth, camera, truth, true_camera) in enumerate(frames):
            stamp = number / rate
            if number % 3 == 0:  # a lidar at 10 Hz
                estimator.add(sensors.disturb(
                    sensors.measure(truth, true_camera, beams), rng), stamp)
            scale = estimator.estimate(depth, camera, stamp)
            if scale.state == 'ok':
                first = stamp if math.isnan(first) else first
                small = cv2.resize(truth, depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
                errors.append(math.log(scale.scale) - true_factor(small, depth))
                stated.append(scale.uncertainty)
        yield {'table': 'clip', 'level': 'network', 'sensor': name, 'wrong': '',
               'first_estimate_s': None if math.isnan(first) else first,
               **summary(errors, stated, len(frames))}


def of_network(found: list[View]) -> dict[str, float]:
    """How far the bundled network is off, and how far after the best factor of each picture."""
    factors, rest = [], []
    for view in found:
        with np.errstate(invalid='ignore', divide='ignore'):
            ratio = np.log(view.truth / view.depth)
        factors.append(float(np.nanmedian(ratio)))
        rest.append(np.abs(ratio - factors[-1])[np.isfinite(ratio)])
    return {'factor_p10': math.exp(np.quantile(factors, 0.1)),
            'factor_p90': math.exp(np.quantile(factors, 0.9)),
            'median_after_best_factor': float(np.median(np.concatenate(rest))),
            'p68_after_best_factor': float(np.quantile(np.concatenate(rest), 0.68))}


def times(found: list[View]) -> dict[str, float]:
    """Milliseconds of this thread per image; the fastest tenth, because machines are shared."""
    rng = np.random.default_rng(0)
    view = max(found, key=lambda view: float(np.isfinite(view.truth).mean()))
    dense = sensors.beams(np.linspace(-24, 24, 48), 0.8)
    points = sensors.disturb(sensors.measure(view.truth, view.camera, dense), rng)
    points = points[np.linspace(0, len(points) - 1, 2000).astype(int)].astype(np.float32)
    depth = sensors.like_network(view.truth, rng, factor=1.3)
    result = {}
    for name, settings in (('points_2000_scale_ms', PointsSettings()),
                           ('points_2000_scale_shift_ms', PointsSettings(fit='scale_shift'))):
        points_estimator = PointsEstimator(settings)
        spent = []
        for step in range(300):
            points_estimator.add(points, 0.1 * step)
            begin = time.thread_time()
            points_estimator.estimate(depth, view.camera, 0.1 * step)
            spent.append(time.thread_time() - begin)
        result[name] = 1e3 * float(np.quantile(spent, 0.1))
    floor = next(view for view in found if view.scene.startswith('room'))
    ground = GroundEstimator()
    ground.set_mount(floor.mount)
    spent = []
    for step in range(200):
        begin = time.thread_time()
        ground.estimate(floor.truth, floor.camera, 0.1 * step)
        spent.append(time.thread_time() - begin)
    result['ground_ms'] = 1e3 * float(np.quantile(spent, 0.1))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder of rendered frames')
    parser.add_argument('--splits', default='val,test', help='(val,test)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder (docs/results)')
    parser.add_argument('--times', action='store_true',
                        help='measure the times again, on an idle machine, and keep the rest')
    args = parser.parse_args()
    path = args.out / 'scale.json'
    found = list(views(args.data, args.splits.split(',')))
    if args.times:
        document = json.loads(path.read_text(encoding='utf-8'))
        document['times'] = times(found)
        path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
        print(document['times'])
        return 0
    rows = []
    print(f'{"":66}{"estimates":>11}{"error":>6}{"p90":>8}{"stated":>8}{"in 2 s":>8}{">10 %":>7}')
    tables = (points_rows, range_rows, sequence_rows, range_sequence_rows, ground_rows,
              affine_rows)
    for rows_of in (*(functools.partial(make, found) for make in tables), clip_rows):
        for row in rows_of(args.seed):
            rows.append(row)
            title = f'{row["table"]}, {row["level"]}: {row["sensor"]}'
            title += f', {row["wrong"]}' if row['wrong'] else ''
            if 'smoothing_s' in row:
                title += f', smoothed over {row["smoothing_s"]:g} s'
            numbers = ''.join(f'{100 * row[key]:7.1f}%' for key in (
                'median_error', 'p90_error', 'median_uncertainty', 'within_2_sigma')
            ) + f'{row["errors_above_10_percent"]:7d}' if row['estimates'] else ''
            extra = row.get('median_error_of_floor')
            first = row.get('first_estimate_s')
            title += f', from {first:.1f} s on' if first is not None else ''
            print(f'{title:<66}{row["estimates"]:6d}/{row["pictures"]:<4d}{numbers}'
                  + (f'  floor {100 * extra:.1f}%' if extra is not None else ''), flush=True)
    document = {'frames': len(found), 'splits': args.splits, 'seed': args.seed,
                'machine': platform.machine(), 'numpy': np.__version__, 'times': times(found),
                'network': of_network(found), 'rows': rows}
    print(document['times'], document['network'])
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
