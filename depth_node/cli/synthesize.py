"""`depth-node synthesize`: render training scenes with true depth."""

from __future__ import annotations

import argparse
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from depth_node.cli import INTERRUPTED
from depth_node.cli._common import TERMINATED, terminated_as_exit

if TYPE_CHECKING:
    from depth_node.synthesis.generate import Settings

HELP = 'render rooms and tables with true depth, to train on'

EPILOG = """examples:
  depth-node synthesize --out ~/frames --preset preview --python bpy-env/bin/python
      ten scenes in two minutes, a card and a contact sheet to look at
  depth-node synthesize --out ~/frames --scenes 1200 --workers 4 --seed 7
      about 6 views a scene; stop with Ctrl-C, run the same line to continue
  depth-node synthesize --out ~/heldout --scenes 1000 --seed 8 --splits test
      the 80 test scenes of them alone: frames to measure on
  depth-node synthesize --out ~/motion --channels normals,labels --sequence 3
      three frames of a camera motion from every view, with normals and classes of surfaces
  depth-node synthesize --out demo/clip --clip 5022 --seed 20261121
      the demo clip: 60 frames of a walk through one held-out room

Needs Blender as a Python module (pip install 'bpy==5.0.1', Python 3.11, own environment) and the
Debian package sweethome3d-furniture. Scenes are split by number: 84 % train, 8 % val, 8 % test.
"""

PRESETS = {  # scenes, (width, height), samples a pixel
    'preview': (10, (256, 192), 2),
    'training': (1000, (256, 192), 4),
    'fine': (1000, (320, 240), 8),
}


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f'{text!r}: expected WIDTHxHEIGHT, such as 256x192')
    return int(width), int(height)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number above 0')
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a share between 0 and 1')
    return value


def _names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(',')))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f'{name!r}: expected {" or ".join(known)}, '
                                             'joined by commas')
    return names


def _channels(text: str) -> tuple[str, ...]:
    from depth_node.synthesis.recipe import CHANNELS

    return _names(text, CHANNELS)


def _splits(text: str) -> tuple[str, ...]:
    from depth_node.synthesis.recipe import SPLITS

    return _names(text, SPLITS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument('--out', type=Path, required=True, help='data folder; made or continued')
    parser.add_argument('--preset', choices=PRESETS, default='training',
                        help='defaults for scenes, size and samples (default: training)')
    parser.add_argument('--seed', type=int, default=1, help='seed of all scenes (default: 1)')
    parser.add_argument('--scenes', type=_count, help='how many scenes, about 6 frames each')
    parser.add_argument('--size', type=_size, metavar='WxH', help='frame size, such as 256x192')
    parser.add_argument('--renderer', choices=('cycles', 'raycast'), default='cycles',
                        help='path tracing, or ray casting: some four times as fast, looks less '
                        'real, other colours and lamps in every view (default: cycles)')
    parser.add_argument('--spp', type=_count, help='path samples a pixel before denoising')
    parser.add_argument('--workers', type=_count, default=2,
                        help='rendering processes, one core and 0.6 to 2 GB each (default: 2)')
    parser.add_argument('--splits', type=_splits, default=('train', 'val', 'test'), metavar='LIST',
                        help='of the scene numbers below --scenes only those of these splits, '
                        'joined by commas: test to measure on, train to train on (default: '
                        'train,val,test)')
    parser.add_argument('--tables', type=_share, default=0.42, metavar='SHARE',
                        help='share of scenes that are table tops (default: 0.42)')
    parser.add_argument('--channels', type=_channels, default=(), metavar='LIST',
                        help='write beside colour and depth: normals,labels')
    parser.add_argument('--sequence', type=_count, default=1, metavar='N',
                        help='frames of a short camera motion from every view (default: 1)')
    parser.add_argument('--minutes', type=float, help='start no new scene after this time')
    parser.add_argument('--textures', type=Path,
                        help='folder of surface photographs, used beside procedural pictures')
    parser.add_argument('--catalogue', type=Path, help='folder of the .sh3f furniture archives')
    parser.add_argument('--cache', type=Path, help='where archives are unpacked '
                        '(default: ~/.cache/depth_node/assets)')
    parser.add_argument('--python', help='interpreter that can import bpy (default: '
                        '$DEPTH_NODE_BPY_PYTHON, else this one)')
    parser.add_argument('--clip', type=int, metavar='SCENE',
                        help='render the demo clip of one held-out scene instead')
    parser.add_argument('--attribution', type=Path, metavar='FILE',
                        help='render nothing: write the credits of the models in --out')
    parser.add_argument('--also', type=Path, action='append', default=[], metavar='DIR',
                        help='with --attribution: credit the models of this folder too')


def run(args: argparse.Namespace) -> int:
    """Run the verb.

    Returns:
        0 done, 1 failed, 130 interrupted, 143 terminated (the finished scenes are kept).
    """
    from depth_node.synthesis.blender import RenderError
    from depth_node.synthesis.catalogue import CatalogueError

    try:
        with terminated_as_exit():
            return _run(args)
    except (RenderError, CatalogueError, ValueError, OSError) as error:
        print(f'depth-node synthesize: {error}', file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as ending:
        print(f'stopped; the finished scenes stay in {args.out}, run the same command to continue',
              file=sys.stderr)
        return TERMINATED if isinstance(ending, SystemExit) else INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    import time

    from depth_node.synthesis import attribution, generate
    from depth_node.synthesis.catalogue import CATALOGUE_DIR, default_cache_dir, load_catalogue

    catalogue = args.catalogue or CATALOGUE_DIR
    assets = load_catalogue(catalogue)  # before anything slow: says what to install
    if args.attribution:
        used = attribution.used_assets([args.out, *args.also])
        if not used:
            raise ValueError(f'{args.out}: no scene.json or clip.json that names models')
        args.attribution.write_text(attribution.markdown(assets, used))
        print(f'{args.attribution}: {len(used)} models and pictures credited')
        return 0
    scenes, size_wh, spp = PRESETS[args.preset]
    if args.clip is not None:
        size_wh, spp = (640, 480), 4
    width, height = args.size or size_wh
    settings = generate.Settings(
        out=args.out.expanduser().resolve(), seed=args.seed, scenes=args.scenes or scenes,
        workers=args.workers, size_hw=(height, width), spp=args.spp or spp,
        table_share=args.tables, renderer=args.renderer, channels=args.channels,
        sequence=args.sequence, splits=args.splits, catalogue=catalogue,
        cache=args.cache or default_cache_dir(),
        textures=args.textures.resolve() if args.textures else None,
        stop_at=time.time() + args.minutes * 60 if args.minutes else float('inf'),
    )
    python = generate.find_python(args.python, args.renderer)
    if args.clip is not None:
        return _clip(settings, python, args.clip)
    return _frames(settings, python)


def _frames(settings: Settings, python: str) -> int:
    from depth_node.synthesis import generate
    from depth_node.synthesis.writer import finished_scenes, scenes_of
    from tqdm import tqdm

    done = generate.prepare(settings)
    frames = 0
    faults = 0
    try:
        wanted = scenes_of(settings.scenes, settings.splits)
        with tqdm(total=len(wanted), initial=len(done.intersection(wanted)), unit='scene') as bar:
            def on_scene(notes: dict[str, Any]) -> None:
                nonlocal frames, faults
                frames += notes['frames']
                faults += sum(notes['faults'].values())
                bar.set_postfix_str(f'{frames} frames, {faults} thrown away')
                bar.update()

            generate.run_workers(settings, python, on_scene)
    finally:
        if finished_scenes(settings.out):
            meta = generate.finish(settings)
            for split, count in meta['counts'].items():
                kinds = ', '.join(f'{number} {kind}' for kind, number in count.items()
                                  if kind not in ('scenes', 'frames'))
                print(f'{split:5} {count["scenes"]:5} scenes {count["frames"]:6} frames ({kinds})')
            print(f'look at {settings.out / "contact_sheet.jpg"} and card.md beside it')
    return 0


def _clip(settings: Settings, python: str, scene: int) -> int:
    import json
    import os
    import subprocess

    from depth_node.synthesis import clip_process
    from tqdm import tqdm

    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH')]))}
    command = [python, '-m', clip_process.__name__, json.dumps(settings.to_json()), str(scene)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            with tqdm(total=clip_process.FRAMES, unit='frame') as bar:
                for line in process.stdout or ():
                    if line.startswith('frame '):
                        bar.update()
        except BaseException:
            process.terminate()  # else it is waited for
            raise
    if process.returncode:
        print('depth-node synthesize: the clip failed, see the messages above', file=sys.stderr)
        return 1
    print(f'{settings.out}: {clip_process.FRAMES} frames, depth and camera.yaml')
    return 0
