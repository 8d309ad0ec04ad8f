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
    """What a range finder says of one picture: three readings, a third of a second."""
    for level in ('sensor', 'network'):
        rng, errors, stated, offered = np.random.default_rng(seed), [], [], 0
        for view in found:
            depth = network_of(view, level, rng)
            for column in (-0.25, 0.0, 0.25):
                direction = np.array([column, rng.normal(0, 0.1), 1.0])
                distance = sensors.nearest_in_cone(view.truth, view.camera, direction, CONE_RAD)
                estimator = PointsEstimator(PointsSettings())
                scale = Scale('points', state='waiting')
                for step in range(3):
                    estimator.add_ranges(distance * (1 + rng.normal(0, 0.01)), direction,
                                         CONE_RAD, 0.1 * step)
                    scale = estimator.estimate(depth, view.camera, 0.1 * step)
                offered += 1
                if scale.state == 'coarse':
                    errors.append(math.log(scale.scale) - true_factor(view.truth, depth))
                    stated.append(scale.uncertainty)
        yield {'table': 'points', 'level': level, 'sensor': 'range, 15 degrees', 'wrong': '',
               **summary(errors, stated, offered)}


def halves(view: View) -> Iterator[tuple[slice, Camera, np.ndarray]]:
    """What a narrower camera sees that turns: columns, camera, direction of the middle."""
    height, width = view.truth.shape
    camera, part = view.camera, round(0.6 * width)
    for left in (0, width - part):
        yield (slice(left, left + part),
               Camera((height, part), camera.fx, camera.fy, camera.cx - left, camera.cy),
               np.array([(left + (part - 1) / 2 - camera.cx) / camera.fx, 0.0, 1.0]))


def range_sequence_rows(found: list[View], seed: int) -> Iterator[dict]:
    """A range finder as the node runs it with its defaults, over the views of a scene.

    Each picture is looked at in two halves for half a second each; the sensor looks where the
    camera looks, measures at 10 Hz, and 30 % of its readings are anything. `first`: when the
    state becomes `ok`.
    """
    scenes = list(dict.fromkeys(view.scene for view in found))
    by_scene = {name: [view for view in found if view.scene == name] for name in scenes}
    usable = [name for name in scenes if len(by_scene[name]) >= 5]
    for level in ('sensor', 'network'):
        for how in ('', 'another scene', 'extrinsic off by 20 degrees', 'random distances',
                    'one distance'):
            rng = np.random.default_rng(seed)
            rows: dict[str, tuple[list[float], list[float]]] = {
                moment: ([], []) for moment in ('coarse', 'first', 'end')}
            times_s = []
            for scene in usable:
                factor = math.exp(rng.uniform(-FACTOR, FACTOR))
                estimator = PointsEstimator(PointsSettings())
                axis, scale, stamp = rng.normal(size=3), Scale('points', state='waiting'), 0.0
                seen: dict[str, Scale] = {}
                factors = []
                others = [view for view in found if view.scene != scene]
                for view in by_scene[scene]:
                    depth = view.depth if level == 'network' else sensors.like_network(
                        view.truth, rng, factor=factor)
                    factors.append(true_factor(view.truth, depth))
                    other = others[int(rng.integers(len(others)))] if (
                        how == 'another scene') else view
                    for columns, camera, direction in halves(view):
                        towards = direction if not how.startswith('extrinsic') else (
                            sensors.turned(direction[None], axis, 20.0)[0])
                        distance = sensors.nearest_in_cone(other.truth, other.camera, towards,
                                                           CONE_RAD)
                        picture = np.ascontiguousarray(depth[:, columns])
                        for _ in range(5):
                            measured = distance * (1 + rng.normal(0, 0.01))
                            if how == 'one distance':
                                measured = 3.0 * (1 + rng.normal(0, 0.01))
                            if how == 'random distances' or rng.random() < 0.3:
                                measured = rng.uniform(0.3, 8.0)
                            estimator.add_ranges(measured, direction, CONE_RAD, stamp)
                            scale = estimator.estimate(picture, camera, stamp)
                            stamp += 0.1
                            if scale.state == 'coarse':
                                seen.setdefault('coarse', scale)
                            elif scale.state == 'ok' and 'first' not in seen:
                                seen['first'] = scale
                                times_s.append(stamp)
                if scale.state == 'ok':
                    seen['end'] = scale
                for moment, one in seen.items():
                    # a network's own factor differs from view to view: their middle is meant
                    rows[moment][0].append(math.log(one.scale) - float(np.median(factors)))
                    rows[moment][1].append(one.uncertainty)
            for moment, (errors, stated) in rows.items():
                row = {'table': 'ranges', 'level': level, 'sensor': 'range, 15 degrees',
                       'wrong': how, 'moment': moment, **summary(errors, stated, len(usable))}
                if moment == 'first' and times_s:
                    row['first_estimate_s'] = float(np.median(times_s))
                yield row


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


def floor_of(view: View) -> np.ndarray:
    """Which pixels show the floor."""
    v, u = np.mgrid[0:view.truth.shape[0], 0:view.truth.shape[1]]
    camera = view.camera
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy,
                     np.ones(u.shape)], -1)
    return np.abs(view.mount.heights((rays * view.truth[..., None]).astype(np.float32))) < 0.02


def ground_rows(found: list[View], seed: int) -> Iterator[dict]:
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
                    estimator = GroundEstimator(
                        GroundSettings(estimate_tilt=from_floor, views=1))
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


def is_table(view: View) -> bool:
    """True for scenes whose camera looks down at a table."""
    return view.scene.removeprefix('hostile ').startswith(('table', 'close'))


def ground_sequence_rows(found: list[View], seed: int) -> Iterator[dict]:
    """The floor as the node looks for it with its defaults, over the views of a scene.

    Half a second per view. A lock is wrong when the state is `ok` and the factor is more than
    25 % above the floor's own: a plane that is nearer than the floor was taken for it. Without a
    floor in sight the scene's factor stands for it.
    """
    scenes = list(dict.fromkeys(view.scene for view in found))
    floors = {id(view): floor_of(view) for view in found}
    share = {key: float(floor.mean()) for key, floor in floors.items()}
    by_scene = [[view for view in found if view.scene == name] for name in scenes]
    kinds: dict[str, list[list[View]]] = {
        'rooms, floor in three views': [
            views for views in by_scene if sum(share[id(view)] > 0.05 for view in views) >= 3
            and not is_table(views[0])],
        'tables, floor in three views': [
            views for views in by_scene if sum(share[id(view)] > 0.05 for view in views) >= 3
            and is_table(views[0])],
        'views without a floor': [
            2 * bare for views in by_scene
            if (bare := [view for view in views if share[id(view)] <= 0.01])],
        'one picture without a floor': [[view] for view in found if share[id(view)] <= 0.01],
    }
    for level in ('sensor', 'network'):
        for kind, sequences in kinds.items():
            rng, errors, stated = np.random.default_rng(seed), [], []
            wrong = ever = 0
            for views in sequences:
                factor = math.exp(rng.uniform(-FACTOR, FACTOR))
                estimator = GroundEstimator()
                scale, stamp, bad, locked = Scale('ground', state='waiting'), 0.0, False, False
                depths = {id(view): view.depth if level == 'network' else sensors.like_network(
                    view.truth, rng, factor=factor) for view in views}
                true = float(np.median([true_factor(view.truth, depths[id(view)])
                                        for view in views]))
                shown = [view for view in views if share[id(view)] > 0.05]
                floor = float(np.median([
                    true_factor(view.truth[floors[id(view)]], depths[id(view)][floors[id(view)]])
                    for view in shown])) if shown else true
                for view in views:
                    estimator.set_mount(view.mount)
                    for _ in range(3 if len(views) > 1 else 9):
                        scale = estimator.estimate(depths[id(view)], view.camera, stamp)
                        stamp += 1 / 6
                    locked |= scale.state == 'ok'
                    bad |= scale.state == 'ok' and math.log(scale.scale) - floor > 0.25
                wrong, ever = wrong + bad, ever + locked
                if scale.state == 'ok':
                    errors.append(math.log(scale.scale) - true)
                    stated.append(scale.uncertainty)
            yield {'table': 'ground sequences', 'level': level, 'sensor': kind, 'wrong': '',
                   'ever_locked': ever, 'wrong_locks': wrong,
                   **summary(errors, stated, len(sequences))}


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


def clip_rows(_: list[View], seed: int) -> Iterator[dict]:
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


TABLES: dict[str, tuple[Callable[[list[View], int], Iterator[dict]], ...]] = {
    'points': (points_rows,), 'ranges': (range_rows, range_sequence_rows),
    'sequences': (sequence_rows,), 'ground': (ground_rows,),
    'ground sequences': (ground_sequence_rows,), 'relative network': (affine_rows,),
    'clip': (clip_rows,)}


def table_of(row: dict) -> str:
    """Return which of TABLES a row is from."""
    if row['sensor'].startswith('range'):
        return 'ranges'
    return 'points' if row['table'] == 'useless' else row['table']


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder of rendered frames')
    parser.add_argument('--splits', default='val,test', help='(val,test)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder (docs/results)')
    parser.add_argument('--hostile', type=Path, help='more rendered frames, all of their splits, '
                        'for the sequences of the source ground')
    parser.add_argument('--tables', default='', help='measure only these again, comma separated, '
                        'and keep the rest: ' + ', '.join(TABLES))
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
    wanted = args.tables.split(',') if args.tables else list(TABLES)
    if unknown := set(wanted) - set(TABLES):
        parser.error(f'--tables {", ".join(sorted(unknown))}: expected {", ".join(TABLES)}')
    document = json.loads(path.read_text(encoding='utf-8')) if args.tables else {}
    before = document.get('rows', [])
    hostile = [] if args.hostile is None or 'ground sequences' not in wanted else list(
        views(args.hostile, ['train', 'val', 'test']))
    for view in hostile:
        view.scene = f'hostile {view.scene}'  # both folders number their scenes from 0
    kept: dict[str, list[dict]] = {name: [] for name in TABLES}
    for row in before:
        kept[table_of(row)].append(row)
    print(f'{"":66}{"estimates":>11}{"error":>6}{"p90":>8}{"stated":>8}{"in 2 s":>8}{">10 %":>7}')
    for name in wanted:
        kept[name] = []
        pictures = found + hostile if name == 'ground sequences' else found
        for row in (row for make in TABLES[name] for row in make(pictures, args.seed)):
            kept[name].append(row)
            title = f'{row["table"]}, {row["level"]}: {row["sensor"]}'
            title += f', {row["wrong"]}' if row['wrong'] else ''
            title += f', {row["moment"]}' if 'moment' in row else ''
            numbers = ''.join(f'{100 * row[key]:7.1f}%' for key in (
                'median_error', 'p90_error', 'median_uncertainty', 'within_2_sigma')
            ) + f'{row["errors_above_10_percent"]:7d}' if row['estimates'] else ''
            extra = row.get('median_error_of_floor')
            first = row.get('first_estimate_s')
            title += f', from {first:.1f} s on' if first is not None else ''
            if 'wrong_locks' in row:
                numbers += f'  {row["ever_locked"]} locked, {row["wrong_locks"]} wrong'
            print(f'{title:<66}{row["estimates"]:6d}/{row["pictures"]:<4d}{numbers}'
                  + (f'  floor {100 * extra:.1f}%' if extra is not None else ''), flush=True)
    rows = [row for name in TABLES for row in kept[name]]
    if args.tables:
        document['rows'] = rows
        if hostile:
            document['hostile_frames'] = len(hostile)
    else:
        document = {'frames': len(found), 'splits': args.splits, 'seed': args.seed,
                    'machine': platform.machine(), 'numpy': np.__version__,
                    'times': times(found), 'network': of_network(found),
                    'hostile_frames': len(hostile), 'rows': rows}
    print(document['times'], document['network'])
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
