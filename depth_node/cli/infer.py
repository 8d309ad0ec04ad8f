"""`depth-node infer`: depth of pictures, folders of pictures and videos."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli import CommandError, UsageError
from depth_node.cli._common import (
    add_model_arguments,
    describe,
    one_of_each,
    open_model,
    positive_float,
    positive_int,
    print_json,
    progress,
)
from depth_node.cli._pictures import PICTURES, CameraChoice, add_camera_arguments, read_picture

if TYPE_CHECKING:
    from depth_node.cli._writers import VideoFile
    from depth_node.geometry import CloudPacker
    from depth_node.pipeline import DepthFrame, DepthPipeline
    import numpy as np
    from numpy.typing import NDArray

HELP = 'depth, colours and point clouds of pictures, folders and videos'
INTERMIXED = True  # inputs stand before, between and behind the options

_EPILOG = """\
What is written, for picture.jpg:
  png    picture_depth.png   16-bit PNG, millimetres, 0 = no depth
  npy    picture_depth.npy   float32 metres, NaN = unknown, +Inf = beyond range, -Inf = too near
  color  picture_color.png   for people: red is near, blue is far
  ply    picture_cloud.ply   coloured points, metres, x right, y down, z forward
  video  one MP4 per video or folder, every frame beside its depth
Without --write: png, npy, color and ply of pictures; the video of videos.

Metric depth needs to know the camera: --hfov (a phone's main camera has about 65 to 70 degrees,
held upright 52 to 56; a webcam 55 to 75) or --camera-yaml (from ROS's camera_calibration; corrects
the distortion too).

examples:
  depth-node infer desk.jpg --hfov 69 -o out
  depth-node infer photos/ --recursive --resume -o out --json > out/report.json
  depth-node infer drive.mp4 --camera-yaml camera.yaml -o out
  depth-node infer photos/ --write png,video --fps 3 -o out
"""

WRITABLE: Final = ('png', 'npy', 'color', 'ply', 'video')
_FOR_PICTURES: Final = ('png', 'npy', 'color', 'ply')
_FOR_VIDEOS: Final = ('video',)
_SUFFIX: Final = {'png': '_depth.png', 'npy': '_depth.npy', 'color': '_color.png',
                  'ply': '_cloud.ply'}
_VIDEOS: Final = frozenset(('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg', '.mpeg',
                            '.ts', '.ogv'))
_DEFAULT_HFOV_DEG: Final = 60.0  # the pipeline's own assumption, for clouds of unknown cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('inputs', nargs='+', type=Path, metavar='INPUT',
                        help='picture, video or folder of them')
    parser.add_argument('-o', '--out', type=Path, default=Path('depth_out'), metavar='FOLDER',
                        help='where the results go (depth_out)')
    parser.add_argument('--write', type=one_of_each(WRITABLE), metavar='LIST',
                        help=f'comma-separated list of {",".join(WRITABLE)}')
    add_camera_arguments(parser)
    parser.add_argument('--scale', type=positive_float, default=1.0, metavar='S',
                        help='multiply depth, after a tape measure (1)')
    parser.add_argument('--range', type=positive_float, nargs=2, default=(0.3, 8.0),
                        dest='range_m', metavar=('NEAR', 'FAR'),
                        help='metres, of the first and last colour (0.3 8)')
    parser.add_argument('--every', type=positive_int, default=1, metavar='N',
                        help='take every N-th frame of a video')
    parser.add_argument('--fps', type=positive_float, metavar='HZ',
                        help="of the written videos (a video's own; 2 for pictures)")
    parser.add_argument('--max-points', type=positive_int, default=1_000_000, metavar='N',
                        help='thin clouds out to at most so many points (1000000)')
    parser.add_argument('--recursive', action='store_true', help='go into sub-folders')
    parser.add_argument('--resume', action='store_true',
                        help='skip inputs whose results are there already')
    parser.add_argument('--json', action='store_true', help='print a report as JSON')
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from depth_node.pipeline import DepthPipeline
    from depth_node.scale import Scale

    near_m, far_m = args.range_m
    if near_m >= far_m:
        raise UsageError(f'--range {near_m:g} {far_m:g}: the first must be the smaller')
    camera = CameraChoice(args)
    jobs, failures = _collect(args.inputs, args.out, args.recursive)
    if not jobs and not failures:
        raise CommandError(
            f'no picture or video in {", ".join(map(str, args.inputs))}'
            + ('' if args.recursive else '; --recursive goes into sub-folders'))
    reports = [{'input': str(path), 'error': reason} for path, reason in failures]
    running: dict[str, Any] = {}
    if jobs:
        card, backend = open_model(args)
        running = describe(backend)
        with backend:
            scale = Scale('fixed', args.scale) if args.scale != 1.0 else Scale()
            pipeline = DepthPipeline(backend, scale=scale)
            work = _Work(args, pipeline, camera)
            reports += work.pictures([job for job in jobs if not job.is_video])
            for job in jobs:
                if job.is_video:
                    reports.append(work.video(job))
        if not card.output.metric and not args.json:
            print(f'model {card.name} has no metric scale: depth is in its own unit, not metres',
                  file=sys.stderr)
    failed = sum('error' in report for report in reports)
    if args.json:
        print_json({**running, 'out': str(args.out), 'failed': failed, 'files': reports})
    else:
        _print_summary(reports, running, args.out)
    return 1 if failed else 0


@dataclass(frozen=True)
class _Job:
    """An input file: `base` is its results' path without the ending, `group` its video's."""

    path: Path
    base: Path
    group: Path
    is_video: bool


@dataclass
class _Work:
    """The pipeline and what is decided for all files."""

    args: argparse.Namespace
    pipeline: DepthPipeline
    camera: CameraChoice
    _packer: CloudPacker | None = field(default=None, init=False)

    def pictures(self, jobs: list[_Job]) -> list[dict[str, Any]]:
        """Go through pictures; those of a folder share a video, if one is asked for."""
        wanted = self.args.write or _FOR_PICTURES
        reports: list[dict[str, Any]] = []
        with ExitStack() as stack:
            videos = _Videos(stack, self.args.fps or 2.0) if 'video' in wanted else None
            for job in progress(jobs, unit='picture'):
                results = _results(job, wanted)
                if videos is not None:
                    results['video'] = _video_path(job.group)
                report: dict[str, Any] = {'input': str(job.path)}
                reports.append(report)
                if self.args.resume and results and all(_there(p) for p in results.values()):
                    report['skipped'] = 'done before'
                    continue
                try:
                    frame, bgr = self._depth_of(read_picture(job.path))
                    if videos is not None:
                        videos.of(results.pop('video')).add(bgr)
                    self._write(results, frame, bgr)
                except Exception as error:  # one bad file must not end the others
                    report['error'] = _reason(error)
                    continue
                report.update(_facts(frame), outputs=[str(p) for p in results.values()])
                if videos is not None:
                    report['outputs'].append(str(videos.of(_video_path(job.group)).path))
        return reports

    def video(self, job: _Job) -> dict[str, Any]:
        """Go through a video."""
        wanted = self.args.write or _FOR_VIDEOS
        report: dict[str, Any] = {'input': str(job.path)}
        target = _video_path(job.base)
        # per-frame files have no end that could be looked for; the video appears when all is done
        if self.args.resume and 'video' in wanted and _there(target):
            return {**report, 'skipped': 'done before'}
        try:
            report.update(self._play(job, wanted, target))
        except Exception as error:  # one bad file must not end the others
            report['error'] = _reason(error)
        return report

    def _play(self, job: _Job, wanted: tuple[str, ...], target: Path) -> dict[str, Any]:
        from depth_node.cli._writers import VideoFile
        import numpy as np

        reader = _Video(job.path)
        every = self.args.every
        shares: list[float] = []
        medians: list[float] = []
        notes: tuple[str, ...] = ()
        written = 0
        with VideoFile(target, self.args.fps or reader.fps / every) as video:
            frames = progress(reader, unit='frame', total=reader.count, name=job.path.name)
            for number, rgb in enumerate(frames):
                if number % every:
                    continue
                frame, bgr = self._depth_of(rgb)
                if 'video' in wanted:
                    video.add(bgr)
                single = _Job(job.path, job.base / f'frame_{number:06d}', job.group, False)
                self._write(_results(single, wanted), frame, bgr)
                written += 1
                shares.append(frame.valid_share)
                medians.append(_median(frame.depth))
                notes = frame.notes
        if not written:
            raise CommandError('the video has no frame that can be read')
        outputs = [str(video.path)] if 'video' in wanted else []
        if set(wanted) - {'video'}:
            outputs.append(str(job.base))
        facts: dict[str, Any] = {
            'frames': written, 'valid_share': float(np.mean(shares)),
            'median_m': float(np.nanmedian(medians)) if np.isfinite(medians).any() else None,
            'notes': list(notes), 'outputs': outputs}
        if reader.count and reader.seen < 0.95 * reader.count:
            facts['error'] = (f'the video breaks off after {reader.seen} of {reader.count} frames '
                              '(what could be read is written)')
        return facts

    def _depth_of(self, rgb: NDArray[np.uint8]) -> tuple[DepthFrame, NDArray[np.uint8]]:
        """Return the frame and its picture beside its colours."""
        from depth_node.cli._writers import side_by_side
        from depth_node.images import colorize

        frame = self.pipeline.run(rgb, self.camera.of((rgb.shape[0], rgb.shape[1])))
        return frame, side_by_side(frame.rgb, colorize(frame.depth, *self.args.range_m))

    def _write(self, results: dict[str, Path], frame: DepthFrame, bgr: NDArray[np.uint8]) -> None:
        from depth_node.cli import _writers

        if 'png' in results:
            _writers.write_depth_png(results['png'], frame.depth)
        if 'npy' in results:
            _writers.write_npy(results['npy'], frame.depth)
        if 'color' in results:
            _writers.write_image(results['color'], bgr[:, frame.depth.shape[1]:])
        if 'ply' in results:
            self._write_cloud(results['ply'], frame)

    def _write_cloud(self, path: Path, frame: DepthFrame) -> None:
        from depth_node.camera import Camera
        from depth_node.cli._writers import write_ply
        from depth_node.geometry import CloudLayout, CloudPacker

        hfov = self.pipeline.card.output.assumed_hfov_deg or _DEFAULT_HFOV_DEG
        height, width = frame.depth.shape
        camera = frame.camera or Camera.from_fov((height, width), hfov)
        if self._packer is None or self._packer.camera != camera:
            stride = math.ceil(math.sqrt(height * width / self.args.max_points))
            self._packer = CloudPacker(camera, CloudLayout(stride=stride))
        stride = self._packer.layout.stride
        write_ply(path, self._packer.points(frame.depth), frame.rgb[::stride, ::stride])


class _Videos:
    """The videos of folders of pictures: begun when the first picture comes."""

    def __init__(self, stack: ExitStack, fps: float) -> None:
        self._stack = stack
        self._fps = fps
        self._open: dict[Path, VideoFile] = {}

    def of(self, path: Path) -> VideoFile:
        from depth_node.cli._writers import VideoFile

        if path not in self._open:
            self._open[path] = self._stack.enter_context(VideoFile(path, self._fps))
        return self._open[path]


class _Video:
    """Frames of a video, rgb."""

    def __init__(self, path: Path) -> None:
        import cv2

        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise CommandError('OpenCV cannot open this video: it is damaged, or of a codec that '
                               'this OpenCV lacks')
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.count = int(count) if 0 < count < 1e9 else None  # streams say 0 or less than nothing
        self.seen = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        import cv2

        while True:
            done, bgr = self._capture.read()
            if not done:
                self._capture.release()
                return
            self.seen += 1
            yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[misc]


def _collect(
    inputs: list[Path], out: Path, recursive: bool
) -> tuple[list[_Job], list[tuple[Path, str]]]:
    """Find the files; returns jobs, and (path, reason) for what is none."""
    found: list[tuple[Path, Path, Path]] = []  # file, base, group
    failures: list[tuple[Path, str]] = []
    for path in inputs:
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise UsageError(f'--out {out} is an input too: results would become inputs of '
                                 'the next run; choose another folder')
            name = path.resolve().name
            for file in sorted(path.rglob('*') if recursive else path.iterdir()):
                hidden = any(part.startswith('.') for part in file.relative_to(path).parts)
                wanted = file.suffix.lower() in PICTURES | _VIDEOS
                if wanted and not hidden and file.is_file() and not _is_inside(file, out):
                    found.append((file, out / file.relative_to(path).with_suffix(''), out / name))
        elif path.is_file():
            found.append((path, out / path.stem, out / 'pictures'))
        else:
            failures.append((path, 'there is no such file or folder'))
    jobs, taken = [], set()
    for file, base, group in found:
        if base in taken:  # a.jpg and a.png: the second becomes a_png
            base = base.with_name(f'{base.name}_{file.suffix[1:]}')
        number = 2
        while base in taken:
            base, number = base.with_name(f'{base.name}_{number}'), number + 1
        taken.add(base)
        jobs.append(_Job(file, base, group, file.suffix.lower() in _VIDEOS))
    return jobs, failures


def _is_inside(file: Path, folder: Path) -> bool:
    return folder.resolve() in file.resolve().parents


def _results(job: _Job, wanted: tuple[str, ...]) -> dict[str, Path]:
    return {kind: job.base.with_name(job.base.name + _SUFFIX[kind])
            for kind in wanted if kind in _SUFFIX}


def _video_path(base: Path) -> Path:
    return base.with_name(f'{base.name}_side.mp4')


def _there(path: Path) -> bool:
    """Tell whether a result is there; a video may have become an AVI."""
    return path.exists() or (path.suffix == '.mp4' and path.with_suffix('.avi').exists())


def _facts(frame: DepthFrame) -> dict[str, Any]:
    import numpy as np

    finite = frame.depth[np.isfinite(frame.depth)]
    low, middle, high = (np.percentile(finite, (5, 50, 95)).tolist() if finite.size
                         else (None, None, None))
    return {'size_hw': list(frame.depth.shape), 'valid_share': frame.valid_share,
            'p5_m': low, 'median_m': middle, 'p95_m': high,
            'timings_ms': dict(frame.timings_ms), 'removed': dict(frame.removed),
            'notes': list(frame.notes)}


def _median(depth: NDArray[np.float32]) -> float:
    import numpy as np

    finite = depth[np.isfinite(depth)]
    return float(np.median(finite)) if finite.size else math.nan


def _reason(error: Exception) -> str:
    """Say what happened to a file; the class only where the text alone would be a riddle."""
    text = ' '.join(str(error).split())
    ours = type(error).__module__.startswith('depth_node.') or isinstance(error, OSError)
    return text if ours and text else f'{type(error).__name__}: {text}'


def _print_summary(reports: list[dict[str, Any]], running: dict[str, Any], out: Path) -> None:
    done = [report for report in reports if 'error' not in report]
    skipped = sum('skipped' in report for report in done)
    for report in reports:
        if 'error' in report:
            print(f'{report["input"]}: {report["error"]}', file=sys.stderr)
    for report in done[:20]:
        if 'valid_share' in report:
            print(f'{report["input"]}: {_in_words(report)}')
    if len(done) > 20:
        print(f'... and {len(done) - 20} more; --json tells them all')
    for note in dict.fromkeys(note for report in done for note in report.get('notes', ())):
        print(f'note: {note}; --hfov or --camera-yaml tell the real one')
    if running:
        text = f'{len(done) - skipped} done'
        text += f', {skipped} skipped (done before)' if skipped else ''
        failed = len(reports) - len(done)
        text += f', {failed} failed' if failed else ''
        print(f'{text}; {running["model"]} on {running["backend"]} ({running["precision"]}); '
              f'results in {out}')


def _in_words(report: dict[str, Any]) -> str:
    median = report['median_m']
    text = f'median {median:.2f} m, ' if median is not None else ''
    text += f'{100 * report["valid_share"]:.0f} % of the pixels have depth'
    removed = report.get('removed') or {}
    if report['valid_share'] < 0.5 and removed:
        reason = max(removed, key=removed.__getitem__)
        text += f' (most of the others: {reason})'
    return text
