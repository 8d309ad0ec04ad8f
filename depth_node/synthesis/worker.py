"""One rendering process: makes its share of the scenes, one JSON line of progress a scene.

Started by `generate` as `python -m depth_node.synthesis.worker <settings.json> <index>`; it needs
bpy, OpenEXR, numpy and opencv only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import sys
import time
from typing import Any

from depth_node.synthesis import scenes
from depth_node.synthesis.blender import Stage
from depth_node.synthesis.catalogue import Asset, find_archives, load_catalogue
from depth_node.synthesis.writer import SceneWriter, finished_scenes, frame_fault, tone_map
import numpy as np

VIEWS_A_SCENE = {'room': 6, 'table': 5}
TABLE_SHARE = 0.45  # of scenes; tables have fewer views, which makes about 40 % of frames


def scene_rng(seed: int, scene: int) -> np.random.Generator:
    """The generator of one scene, independent of the order of rendering."""
    return np.random.default_rng(np.random.SeedSequence([seed, scene]))


def make_stage(settings: dict[str, Any]) -> tuple[Stage, list[Asset]]:
    """Open Blender with the catalogue named in the settings."""
    catalogue = Path(settings['catalogue'])
    textures = settings.get('textures')
    stage = Stage(
        tuple(settings['size_hw']), settings['spp'], Path(settings['cache']),
        {path.stem: path for path in find_archives(catalogue)},
        scenes.list_pictures(Path(textures) if textures else None),
    )
    return stage, load_catalogue(catalogue)


def make_scene(
    stage: Stage, assets: list[Asset], root: Path, seed: int, scene: int, table_share: float
) -> dict[str, Any]:
    """Build, render and write one scene.

    Returns:
        scene, kind, frames written, faults by name and seconds.
    """
    start = time.monotonic()
    rng = scene_rng(seed, scene)
    stage.clear()
    stage.seed(int(rng.integers(2**31)))
    kind = 'table' if rng.uniform() < table_share else 'room'
    writer = SceneWriter(root, scene, kind)
    faults: dict[str, int] = {}
    try:
        if kind == 'room':
            plan = scenes.build_room(stage, rng, assets)
            stage.update()
            views = scenes.room_views(stage, rng, plan, VIEWS_A_SCENE[kind])
            style = plan.theme
        else:
            density = str(rng.choice(['bare', 'set', 'dense'], p=[0.3, 0.4, 0.3]))
            style = str(rng.choice(['close', 'workspace', 'kinect'], p=[0.3, 0.35, 0.35]))
            table, size = scenes.build_table(stage, rng, assets, density)
            stage.update()
            views = scenes.table_views(stage, rng, table, size, style, VIEWS_A_SCENE[kind])
            style = f'{density}/{style}'
        built = time.monotonic()
        for view in views:
            radiance, depth = stage.render(view)
            rgb = tone_map(radiance, percentile=float(rng.uniform(88, 97)),
                           level=float(0.72 * 2 ** np.clip(rng.normal(-0.15, 0.4), -1.3, 0.6)))
            fault = frame_fault(rgb, depth, kind)
            if fault:
                faults[fault] = faults.get(fault, 0) + 1
                continue
            writer.add(rgb, depth, view)
        seconds = time.monotonic() - start
        notes = {'scene': scene, 'kind': kind, 'style': style, 'frames': writer.frames,
                 'faults': faults, 'assets': sorted(stage.used),
                 'seconds': round(seconds, 2), 'build_seconds': round(built - start, 2)}
        writer.close(notes)
    except BaseException:
        writer.discard()
        raise
    return notes


def main(argv: list[str]) -> int:
    """Run one worker.

    Args:
        argv: path of the settings file and the worker's index.
    """
    settings = json.loads(Path(argv[0]).read_text())
    index, parent = int(argv[1]), settings.get('parent')
    root = Path(settings['out'])
    mine = range(index, settings['scenes'], settings['workers'])
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
        notes = make_scene(stage, assets, root, settings['seed'], scene, settings['table_share'])
        notes['worker'] = index
        print(json.dumps(notes), file=report, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
