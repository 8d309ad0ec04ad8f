"""`depth-node calibrate`: metric scale from a tape measure, a chessboard or a tag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import (
    add_model_arguments,
    describe,
    open_model,
    positive_float,
    positive_int,
    print_json,
    progress,
    table,
)
from depth_node.cli._pictures import PICTURES, CameraChoice, add_camera_arguments, read_picture

if TYPE_CHECKING:
    from depth_node.calibration import Reference, Result, Sample, Settings
    from depth_node.camera import Camera
    import numpy as np
    from numpy.typing import NDArray

HELP = 'metric scale from a tape measure, a chessboard or a tag'
INTERMIXED = True

_EPILOG = """\
A network is rarely right to the centimetre on a camera that it has not seen. Show it something
whose distance or size is known; the result is a factor (and a shift, where the distances differ
enough to tell one) for the parameters scale.source, scale.scale and scale.shift of the node.

  --distance   a tape measure from the lens to what is seen in the middle (or at --at) of the
               picture: a flat wall, say. One distance for all pictures, or one for each.
  --chessboard inner corners and --square, its squares' side in metres; needs the intrinsics
  --tag        an AprilTag or ArUco family and --tag-size, the side of its black square

Use several pictures at the distances that the robot works at; a board or a tag should fill an
eighth of the picture at least, a board must be all inside of it. Networks that are only relative
are refused: no fixed factor holds for them.

What is written:
  calibration.yaml   parameters: ros2 launch depth_node mono_depth.launch.py \\
                       params_file:=calibration.yaml ...
  calibration.jpg    what was compared with what, to look at

--live asks a running node, which looks at what its camera sees now, for as many images as its
parameter calibration.frames says, puts the result in force, and writes the parameters file itself:
on the machine that it runs on. --shift, --frames and what chooses model and camera are not used.

examples:
  depth-node calibrate wall.jpg --distance 1.85 --hfov 69
  depth-node calibrate near.jpg far.jpg --distance 0.8 2.4 --camera-yaml camera.yaml
  depth-node calibrate photos/ --chessboard 9x6 --square 0.025 --camera-yaml camera.yaml
  depth-node calibrate lab.mcap --tag tag36h11 --tag-size 0.16
  depth-node calibrate --live /mono_depth --distance 1.85
"""

_SHOWN: Final = 6  # samples in the picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('inputs', nargs='*', type=Path, metavar='INPUT',
                        help='picture, folder of pictures, or bag (.mcap, .db3, its folder)')
    parser.add_argument('--live', metavar='NODE',
                        help='ask this running node instead, /mono_depth say (needs ROS 2)')
    method = parser.add_mutually_exclusive_group(required=True)
    method.add_argument('--distance', type=positive_float, nargs='+', metavar='M',
                        help='metres from the lens: one for all pictures, or one for each')
    method.add_argument('--chessboard', type=_corners, metavar='WxH',
                        help='inner corners of a chessboard, 9x6 say')
    method.add_argument('--tag', metavar='FAMILY',
                        help='tag36h11, tag25h9, tag16h5, aruco4x4 or aruco6x6')
    parser.add_argument('--at', type=float, nargs=2, metavar=('U', 'V'),
                        help='with --distance: the pixel it was measured to (the middle), in the '
                        'picture as it was taken')
    parser.add_argument('--square', type=positive_float, metavar='M',
                        help='with --chessboard: side of a square, metres')
    parser.add_argument('--tag-size', type=positive_float, metavar='M',
                        help='with --tag: side of the black square, metres')
    parser.add_argument('--shift', choices=('auto', 'yes', 'no'), default='auto',
                        help='fit a shift beside the factor (auto: where the data can tell)')
    parser.add_argument('--frames', type=positive_int, default=60, metavar='N',
                        help='use at most N pictures of a bag or folder, spread evenly (60)')
    parser.add_argument('--image-topic', metavar='TOPIC', help="a bag's, if it has several")
    parser.add_argument('--camera-info-topic', metavar='TOPIC', help="a bag's, if it has several")
    parser.add_argument('-o', '--out', type=Path, default=Path('calibration.yaml'),
                        metavar='FILE', help='parameters file (calibration.yaml); one that is '
                        'there keeps its other parameters')
    parser.add_argument('--camera', default='', metavar='NAME',
                        help='of a node that serves several cameras')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    add_camera_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from depth_node.calibration import CalibrationError
    from depth_node.ros.calibration_file import CalibrationFileError

    _check(args)
    try:
        settings = _settings(args)
        if args.live:
            return _live(args)
        return _offline(args, settings)
    except (CalibrationError, CalibrationFileError) as error:
        raise CommandError(str(error)) from error


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse cannot."""
    if args.out.suffix.lower() not in ('.yaml', '.yml'):
        raise UsageError(f'--out {args.out}: expected a name that ends in .yaml')
    for option, value, method in (
            ('--at', args.at, 'distance'), ('--square', args.square, 'chessboard'),
            ('--tag-size', args.tag_size, 'tag')):
        if value is not None and not getattr(args, method):
            raise UsageError(f'{option} goes with --{method}')
    if args.at and min(args.at) < 0:
        raise UsageError(f'--at {args.at[0]:g} {args.at[1]:g}: expected pixels, not below 0')


def _corners(text: str) -> tuple[int, int]:
    parts = text.lower().split('x')
    try:
        columns, rows = (int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected columns x rows of inner corners, such as 9x6') from None
    return columns, rows


def _settings(args: argparse.Namespace) -> Settings:
    from depth_node.calibration import TAG_FAMILIES
    from depth_node.calibration import Settings as CalibrationSettings

    if args.chessboard:
        if args.square is None:
            raise UsageError('--chessboard: the side of its squares is missing (--square, metres)')
        return CalibrationSettings('chessboard', corners_wh=args.chessboard, square_m=args.square)
    if args.tag:
        if args.tag_size is None:
            raise UsageError('--tag: the side of its black square is missing (--tag-size, metres)')
        if args.tag not in TAG_FAMILIES:
            raise UsageError(f'--tag {args.tag}: expected one of {", ".join(TAG_FAMILIES)}')
        return CalibrationSettings('tag', family=args.tag, tag_m=args.tag_size)
    return CalibrationSettings('distance', distance_m=args.distance[0],
                               at=tuple(args.at) if args.at else None)


@dataclass
class _Compared:
    """A picture that showed the reference."""

    name: str
    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    reference: Reference
    sample: Sample


def _offline(args: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import replace

    import cv2
    from depth_node.calibration import FILTERS, check_model, fit
    from depth_node.cli import _writers
    from depth_node.pipeline import DepthPipeline
    from depth_node.ros import calibration_file

    if not args.inputs:
        raise UsageError('no INPUT: name pictures, a folder or a bag, or a running node by --live')
    source = _Pictures(args)
    distances = args.distance or []
    if len(distances) > 1 and len(distances) != len(source):
        raise UsageError(f'--distance has {len(distances)} values for {len(source)} pictures: '
                         'expected one for all, or one for each')
    card, backend = open_model(args)
    found: list[_Compared] = []
    missed: list[dict[str, str]] = []
    with backend:
        check_model(card)
        pipeline = DepthPipeline(backend, filters=FILTERS)
        for number, (name, load) in enumerate(
                progress(source, unit='picture', total=len(source))):
            if len(distances) > 1:
                settings = replace(settings, distance_m=distances[number])
            try:
                rgb, camera = load()
                frame = pipeline.run(rgb, camera)
                assert frame.camera is not None
                reference, sample = settings.look(frame.rgb, frame.depth, frame.camera, camera)
            except (CommandError, OSError, ValueError, cv2.error) as error:
                # one bad picture must not end the others
                missed.append({'picture': name, 'reason': str(error)})
                continue
            found.append(_Compared(name, frame.rgb.copy(), frame.depth.copy(), reference, sample))
    if not found:
        reasons = '\n  '.join(f'{item["picture"]}: {item["reason"]}' for item in missed[:5])
        raise CommandError(f'none of the {len(source)} pictures could be used:\n  {reasons}')
    result = fit([item.sample for item in found],
                 shift={'auto': None, 'yes': True, 'no': False}[args.shift])
    picture = args.out.with_suffix('.jpg')
    _writers.write_image(picture, _sheet(found, result))
    kept = calibration_file.save(args.out, result, model=card.name, camera=args.camera)
    if args.json:
        print_json({**describe(backend), **_as_json(result, found), 'not_used': missed,
                    'parameters': calibration_file.parameters(result), 'file': str(args.out),
                    'picture': str(picture)})
        return 0
    rows = [('picture', 'network m', 'true m', 'after %')]
    rows += [(item.name, f'{item.sample.predicted_m:.3f}', f'{item.sample.true_m:.3f}',
              f'{100 * error:+.1f}')
             for item, error in zip(found, result.residuals, strict=True)]
    print(table(rows))
    for item in missed:
        print(f'not used: {item["picture"]}: {item["reason"]}')
    print(f'\n{calibration_file.words(result)}')
    for note in result.notes:
        print(f'note: {note}')
    print(f'parameters: {args.out}' + (f' (as it was: {kept})' if kept else ''))
    print(f'picture:    {picture}')
    return 0


def _as_json(result: Result, found: list[_Compared]) -> dict[str, Any]:
    return {'scale': result.scale, 'shift_m': result.shift, 'spread': result.spread,
            'reach_m': result.reach_m, 'error_before': result.before,
            'notes': list(result.notes),
            'samples': [{'picture': item.name, 'reference': item.reference.words,
                         'predicted_m': item.sample.predicted_m, 'true_m': item.sample.true_m,
                         'spread': item.sample.spread, 'pixels': item.sample.pixels,
                         'after': error}
                        for item, error in zip(found, result.residuals, strict=True)]}


class _Pictures:
    """Names, pictures and cameras of all inputs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._camera = CameraChoice(args)
        self._files: list[Path] = []
        self._bags: list[tuple[Any, str, str | None, list[int]]] = []
        for path in args.inputs:
            if not path.exists():
                raise CommandError(f'{path}: there is no such file or folder')
            if path.suffix in ('.mcap', '.db3') or (path / 'metadata.yaml').is_file():
                self._bags.append(self._open_bag(path))
            elif path.is_dir():
                files = [file for file in sorted(path.iterdir())
                         if file.suffix.lower() in PICTURES and not file.name.startswith('.')]
                if not files:
                    raise CommandError(f'{path}: no picture in this folder')
                self._files += [files[i] for i in _spread(len(files), args.frames)]
            else:
                self._files.append(path)

    def _open_bag(self, path: Path) -> tuple[Any, str, str | None, list[int]]:
        from depth_node.training.datasets.bag import OpenBag

        bag = OpenBag(path)
        image = bag.choose(self._args.image_topic, '--image-topic', depth=False)
        info = None
        if not (self._args.hfov or self._args.camera_yaml):
            info = bag.choose_info(self._args.camera_info_topic, image)
        return bag, image, info, _spread(len(bag.topics[image].times), self._args.frames)

    def __len__(self) -> int:
        return len(self._files) + sum(len(item[3]) for item in self._bags)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], tuple[NDArray[np.uint8], Camera]]]]:
        for path in self._files:
            yield path.name, partial(self._read, path)
        for bag, image, info, positions in self._bags:
            stamps = bag.topics[image].stamps()
            for position in positions:
                stamp = int(stamps[position])
                yield (f'{bag.path.name} {stamp / 1e9:.3f}',
                       partial(self._take, bag, image, info, position, stamp))

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], Camera]:
        rgb = read_picture(path)
        return rgb, self._known(self._camera.of((rgb.shape[0], rgb.shape[1])))

    def _take(self, bag: Any, image: str, info: str | None, position: int, stamp: int
              ) -> tuple[NDArray[np.uint8], Camera]:
        from depth_node.training.datasets.bag import decode_rgb

        rgb = decode_rgb(bag.message(image, position))
        size_hw = rgb.shape[0], rgb.shape[1]
        camera = self._known(self._camera.of(size_hw) if info is None
                             else bag.camera(info, stamp, size_hw))
        rectified = image.removesuffix('/compressed').rpartition('/')[2].startswith('image_rect')
        return rgb, camera.rectified() if rectified else camera

    @staticmethod
    def _known(camera: Camera | None) -> Camera:
        if camera is None:
            raise CommandError('the camera is not known, and with it neither rays nor sizes: give '
                               '--camera-yaml (from camera_calibration) or --hfov')
        return camera


def _spread(count: int, wanted: int) -> list[int]:
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def _sheet(found: list[_Compared], result: Result) -> NDArray[np.uint8]:
    """Draw pictures beside their corrected depth, with the outline of what was compared."""
    import cv2
    from depth_node.images import colorize
    import numpy as np

    rows = []
    chosen = [found[i] for i in _spread(len(found), _SHOWN)]
    far = 1.5 * max(item.sample.true_m for item in found)
    for item in chosen:
        corrected = result.scale * item.depth + np.float32(result.shift)
        pair = []
        for bgr in (cv2.cvtColor(item.rgb, cv2.COLOR_RGB2BGR),
                    colorize(corrected, 0.05 * far, far)):
            canvas = np.ascontiguousarray(bgr)
            cv2.polylines(canvas, [np.round(item.reference.outline).astype(np.int32)], True,
                          (0, 255, 0), max(1, canvas.shape[1] // 320), cv2.LINE_AA)
            pair.append(cv2.resize(canvas, (480, round(480 * canvas.shape[0] / canvas.shape[1])),
                                   interpolation=cv2.INTER_AREA))
        head = np.full((26, 960, 3), 255, np.uint8)
        cv2.putText(head, f'{item.name}: network {item.sample.predicted_m:.3f} m, true '
                    f'{item.sample.true_m:.3f} m', (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5,
                    (0, 0, 0), 1, cv2.LINE_AA)
        rows.append(np.concatenate([head, np.concatenate(pair, axis=1)], axis=0))
    sheet: NDArray[np.uint8] = np.concatenate(rows, axis=0)
    return sheet


def _live(args: argparse.Namespace) -> int:
    from depth_node.ros.calibration_client import CalibrationClientError, ask

    if args.inputs:
        raise UsageError('--live takes no INPUT: the node uses what its camera sees')
    if args.distance and len(args.distance) > 1:
        raise UsageError('--live: one --distance at a time')
    wanted: dict[str, Any] = {'calibration.file': str(args.out.resolve())}
    if args.distance:
        wanted |= {'calibration.method': 'distance', 'calibration.distance_m': args.distance[0],
                   'calibration.at': [round(part) for part in args.at] if args.at else [-1, -1]}
    elif args.chessboard:
        wanted |= {'calibration.method': 'chessboard', 'calibration.board': list(args.chessboard),
                   'calibration.square_m': args.square}
    else:
        wanted |= {'calibration.method': 'tag', 'calibration.tag_family': args.tag,
                   'calibration.tag_m': args.tag_size}
    try:
        text = ask(args.live, args.camera, wanted)
    except CalibrationClientError as error:
        raise CommandError(str(error)) from error
    if args.json:
        print_json({'node': args.live, 'result': text, 'file': str(args.out.resolve())})
    else:
        print(text, file=sys.stdout)
    return 0
