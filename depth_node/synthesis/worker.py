"""One rendering process: makes its share of the scenes, one JSON line of progress a scene.

Started by `generate` as `python -m depth_node.synthesis.worker <settings.json> <index>`; it needs
bpy, OpenEXR, numpy and opencv only, and embreex where rays are cast instead.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from pathlib import Path
import sys
import time
from typing import Any

from depth_node.synthesis import recipe, scenes
from depth_node.synthesis.blender import Stage
from depth_node.synthesis.catalogue import Asset, find_archives, load_catalogue
from depth_node.synthesis.raycast import RayStage
from depth_node.synthesis.viewpoints import nearby_views
from depth_node.synthesis.writer import (
    SceneWriter,
    brightness,
    finished_scenes,
    frame_fault,
    scenes_of,
    tone_map,
)
import numpy as np

TABLE_SHARE = 0.42  # of scenes
SEQUENCE_STEP_M = (0.01, 0.09)  # between the frames of a sequence


def scene_rng(seed: int, scene: int) -> np.random.Generator:
    """The generator of one scene, independent of the order of rendering."""
    return np.random.default_rng(np.random.SeedSequence([seed, scene]))


def make_stage(settings: dict[str, Any]) -> tuple[Stage, list[Asset]]:
    """Open Blender with the catalogue named in the settings."""
    catalogue = Path(settings['catalogue'])
    textures = settings.get('textures')
    kind = RayStage if settings.get('renderer') == 'raycast' else Stage
    stage = kind(
        tuple(settings['size_hw']), settings['spp'], Path(settings['cache']),
        {path.stem: path for path in find_archives(catalogue)},
        scenes.list_pictures(Path(textures) if textures else None),
        tuple(settings.get('channels', ())),
    )
    return stage, load_catalogue(catalogue)


def make_scene(
    stage: Stage, assets: list[Asset], root: Path, seed: int, scene: int, table_share: float,
    sequence: int = 1,
) -> dict[str, Any]:
    """Build, render and write one scene.

    Args:
        stage: the scene is built here.
        assets: the catalogue.
        root: the data folder.
        seed: of the run.
        scene: number.
        table_share: share of the scenes that are tables.
        sequence: frames of a short camera motion that start at each view; 1 for single frames.

    Returns:
        scene, kind, frames written, faults by name and seconds.
    """
    start = time.monotonic()
    rng = scene_rng(seed, scene)
    stage.clear()
    stage.seed(int(rng.integers(2**31)))
    kind = recipe.draw_kind(rng, table_share)
    writer = SceneWriter(root, scene, kind)
    faults: dict[str, int] = {}
    try:
        views, style = _build(stage, rng, assets, kind)
        built = time.monotonic()
        for number, shown in enumerate(views):
            exposure = {
                'percentile': float(rng.uniform(86, 98)),
                'level': float(0.72 * 2 ** np.clip(rng.normal(-0.15, 0.5), -1.8, 1.0)),
            }
            step = float(np.exp(rng.uniform(*np.log(SEQUENCE_STEP_M))))
            reference = None
            stage.new_look()
            motion = nearby_views(rng, shown.view, sequence, step)
            for place, view in enumerate(motion):
                if place and scenes.cramped(stage, view.position, 0.05):
                    break
                shot = stage.shoot(view)
                if reference is None:  # one exposure for a sequence, as a video has about
                    reference = brightness(shot.radiance, exposure['percentile'])
                rgb = tone_map(shot.radiance, level=exposure['level'], reference=reference)
                fault = frame_fault(rgb, shot.depth, shown.style)
                if fault:
                    faults[fault] = faults.get(fault, 0) + 1
                    break
                writer.add(rgb, shot.depth, view, normals=shot.normals, labels=shot.labels,
                           sequence=(number, place) if sequence > 1 else None)
        seconds = time.monotonic() - start
        notes = {'scene': scene, 'kind': kind, 'style': style, 'frames': writer.frames,
                 'faults': faults, 'assets': sorted(stage.used),
                 'seconds': round(seconds, 2), 'build_seconds': round(built - start, 2)}
        writer.close(notes)
    except BaseException:
        writer.discard()
        raise
    return notes


def _build(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], kind: str
) -> tuple[Iterator[scenes.Shown], str]:
    """Build a scene; returns its views and a word about it."""
    count = recipe.KINDS[kind].views
    if not recipe.KINDS[kind].table:
        plan = scenes.build_room(stage, rng, assets, kind)
        stage.update()
        return scenes.room_views(stage, rng, plan, count), plan.theme
    if kind == 'close':
        density = str(rng.choice(['bare', 'packed', 'set', 'dense', 'heap'],
                                 p=[0.1, 0.1, 0.25, 0.3, 0.25]))
        style = 'close'
    else:
        density = str(rng.choice(['bare', 'packed', 'set', 'dense', 'heap'],
                                 p=[0.17, 0.34, 0.22, 0.17, 0.1]))
        style = str(rng.choice(['workspace', 'kinect', 'across'], p=[0.42, 0.4, 0.18]))
    table, size = scenes.build_table(stage, rng, assets, density)
    stage.update()
    views = scenes.table_views(stage, rng, table, size, style, count)
    return views, f'{density}/{style}'


def main(argv: list[str]) -> int:
    """Run one worker.

    Args:
        argv: path of the settings file and the worker's index.
    """
    settings = json.loads(Path(argv[0]).read_text())
    index, parent = int(argv[1]), settings.get('parent')
    root = Path(settings['out'])
    mine = scenes_of(settings['scenes'], settings['splits'])[index::settings['workers']]
    done = finished_scenes(root)
    # Blender prints a line for each file and frame: keep our pipe clean, quiet its standard output
    report = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    stage, assets = make_stage(settings)
    for scene in mine:
        if scene in done:
            continue
        if parent is not None and os.getppid() != parent:  # it was killed: nobody reads us
            break
        if time.time() > settings['stop_at']:
            break
        notes = make_scene(stage, assets, root, settings['seed'], scene, settings['table_share'],
                           settings.get('sequence', 1))
        notes['worker'] = index
        print(json.dumps(notes), file=report, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
