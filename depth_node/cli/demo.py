"""`depth-node demo`: the whole thing at work, without a camera.

Three processes over real DDS: a player that stands for the camera, the node, and a recorder that
stands for whoever uses the depth. What the recorder received is then looked at and written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import math
import os
from pathlib import Path
import shutil
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from depth_node.cli import CommandError
from depth_node.cli._common import positive_float, progress, terminated_as_exit

if TYPE_CHECKING:
    from depth_node.cli._demo.children import Child, Children
    from depth_node.cli._demo.clip import Clip
    from depth_node.cli._demo.figures import Check, Target
    from depth_node.cli._demo.recording import Recording
    from depth_node.model_card import ModelCard

HELP = 'play a clip through the real node over real DDS, and show what a subscriber gets'

_EPILOG = """\
Needs no camera: three processes (player, node, recorder) talk over DDS in a domain of their own.
Written to the folder, and replaced by the next run:
  frame_N.png         image, received depth and true depth beside each other
  side_by_side.mp4    image and depth
  cloud.ply           a received point cloud, metres, x right, y down, z forward
  bag/                MCAP bag for RViz, Foxglove, PlotJuggler, rerun: ros2 bag play bag
  summary.txt, .json  rates, counters, times per stage, memory, error, checks
  log/                what the three processes said

Exit status: 0 all checks pass, 1 a check fails or the demo could not run, 130 interrupted.

examples:
  depth-node demo
  depth-node demo --seconds 60 --out /tmp/demo
  depth-node demo --model my_model.yaml --backend onnxruntime --precision fp32
  depth-node demo --no-cloud --json > demo.json
  depth-node demo --domain-id 0 --seconds 600    to watch it in RViz meanwhile
"""

IMAGE_TOPIC, CAMERA_INFO_TOPIC = '/camera/image_raw', '/camera/camera_info'
NODE, FRAME_ID = '/mono_depth', 'camera_optical_frame'
READY_WITHIN_S, FIRST_DEPTH_WITHIN_S = 30.0, 60.0
# Messages of at most so many frames and clouds are kept (2.2 MB and 4.9 MB each at 640x480).
KEEP_FRAMES, KEEP_CLOUDS = 150, 6
_SAMPLE_PERIOD_S = 0.5
_TAIL_S = 0.7  # after the last image, for the frames under way
_WORK = '.recording-'  # folder of the messages while the demo runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('--seconds', type=positive_float, default=10.0, metavar='S',
                        help='how long, from the first depth image on (10)')
    parser.add_argument('--rate', type=positive_float, default=30.0, metavar='HZ',
                        help='images per second (30)')
    parser.add_argument('-o', '--out', type=Path, default=Path('demo_output'), metavar='FOLDER',
                        help='where the results go (demo_output)')
    parser.add_argument('--clip', type=Path, metavar='FOLDER',
                        help='another clip: NNN.jpg, NNN.depth.png (uint16 mm) and camera.yaml')
    parser.add_argument('--no-cloud', action='store_true',
                        help='nobody subscribes to the cloud, so the node makes none')
    parser.add_argument('--domain-id', type=_domain_id, metavar='N',
                        help='DDS domain, 0 to 101 (a free one from 40 on: no robot is disturbed)')
    parser.add_argument('--json', action='store_true', help='print JSON instead of the table')
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='small', metavar='NAME|FILE',
                       help='card name, card file or ONNX file with a card (small)')
    group.add_argument('--backend', default='auto', metavar='NAME', help='backend (auto)')
    group.add_argument('--precision', default='auto', metavar='NAME',
                       help='auto, fp32, fp16, bf16 or int8 (auto)')
    group.add_argument('--param', action='append', default=[], metavar='NAME:=VALUE',
                       help='a parameter of the node, for example cloud.stride:=2; repeatable')


def run(args: argparse.Namespace) -> int:
    """Play, record, look, write, report."""
    if importlib.util.find_spec('rclpy') is None:
        raise CommandError(
            'this Python has no rclpy, and the demo runs the real node. In a clone of the '
            'repository `make demo` installs everything below it; where ROS 2 is installed, '
            'source /opt/ros/<distro>/setup.bash (or the workspace) and try again')
    from depth_node.cli._demo.children import ChildError, Children, claimed_domain
    from depth_node.cli._demo.clip import bundled_clip, load_clip
    from depth_node.cli._demo.outputs import remove_old_bag
    from depth_node.model_card import ModelCard
    import rosbags  # noqa: F401  missing now, not after half a minute

    clip = load_clip(args.clip.resolve() if args.clip else bundled_clip())
    card = ModelCard.load(args.model)
    out = args.out.resolve()
    logs = out / 'log'
    logs.mkdir(parents=True, exist_ok=True)
    remove_old_bag(out / 'bag')
    _remove_leftovers(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminated_as_exit())
        domain = stack.enter_context(claimed_domain(args.domain_id))
        work = Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=out, prefix=f'{_WORK}{os.getpid()}-')))
        _say(f'DDS domain {domain}; to watch: ROS_DOMAIN_ID={domain} rviz2')
        children = stack.enter_context(Children(logs, _environment(domain, work)))
        try:
            session = _play(args, clip, card, work, children)
        except ChildError as error:
            raise CommandError(f'{error}\n{_last_words(children)}') from error
        result, checks, targets = _look(args, session, clip, card, out)
    return _report(args, result, checks, targets, out)


# --- playing


class _Session:
    """What is left of a run when the processes have ended."""

    def __init__(self, recording: Recording, sent: dict[int, int], first_depth_s: float,
                 figures: Any, exit_codes: dict[str, int]) -> None:
        self.recording = recording
        self.sent = sent  # stamp -> frame of the clip
        self.first_depth_s = first_depth_s
        self.figures = figures
        self.exit_codes = exit_codes


def _play(args: argparse.Namespace, clip: Clip, card: ModelCard, work: Path,
          children: Children) -> _Session:
    from depth_node.cli._demo.children import ChildError, ProcessFigures
    from depth_node.cli._demo.recording import Recording

    keep_every = max(1, math.ceil(args.seconds * args.rate / KEEP_FRAMES))
    kept = max(1, int(args.seconds * args.rate / keep_every))
    recorder = children.start('recorder', 'depth_node.ros.recorder', [
        '--out', str(work), '--image', IMAGE_TOPIC, '--camera-info', CAMERA_INFO_TOPIC,
        '--node', NODE, '--keep-every', str(keep_every),
        '--cloud-every', str(max(1, math.ceil(kept / KEEP_CLOUDS))),
        *(['--no-cloud'] if args.no_cloud else [])])
    _wait_for(recorder, 'ready', READY_WITHIN_S, children)
    sent_log = work / 'sent.txt'
    player = children.start('player', 'depth_node.ros.clip_player', [
        str(clip.folder), '--rate', repr(args.rate), '--frame-id', FRAME_ID,
        '--log', str(sent_log)])
    _say('starting the node')
    parameters = [f'model.name:={card.path}', f'backend.name:={args.backend}',
                  f'backend.precision:={args.precision}', *args.param]
    node = children.start('node', 'depth_node.ros.node', [
        '--ros-args', '-r', f'image:={IMAGE_TOPIC}', '-r', f'camera_info:={CAMERA_INFO_TOPIC}',
        *(part for parameter in parameters for part in ('-p', parameter))])
    figures = ProcessFigures(node.pid)
    first = _wait_for(recorder, 'first_depth', FIRST_DEPTH_WITHIN_S, children)
    first_depth_s = (first['monotonic_ns'] - node.started_ns) * 1e-9

    for _ in progress(_frames(recorder, args.seconds, children, figures), unit='frame',
                      total=round(args.seconds * args.rate), name='playing'):
        pass
    figures.look_for_torch()
    exit_codes = {'player': player.end()}
    time.sleep(_TAIL_S)
    exit_codes['node'] = node.end()
    exit_codes['recorder'] = recorder.end()
    index_of = {path.name: index for index, path in enumerate(clip.pictures)}
    sent = {}
    for line in sent_log.read_text(encoding='utf-8').splitlines():
        stamp, _, name = line.partition(' ')
        sent[int(stamp)] = index_of[name]
    if not sent:
        raise ChildError('the player sent nothing')
    return _Session(Recording(work), sent, first_depth_s, figures, exit_codes)


def _wait_for(child: Child, event: str, within_s: float, children: Children) -> dict[str, Any]:
    """Wait until a process tells of an event.

    Raises:
        ChildError: a process ended, the node cannot be configured, or the time is over.
    """
    from depth_node.cli._demo.children import ChildError

    end = time.monotonic() + within_s
    while time.monotonic() < end:
        children.check_alive()
        for other in children.all:
            if other.name == 'node' and 'not configured' in other.tail():
                raise ChildError('the node cannot be configured')
        told = child.next_event(0.2)
        if told is not None and told['event'] == event:
            return told
    raise ChildError(f'the {child.name} did not tell of {event} within {within_s:g} s')


def _frames(recorder: Child, seconds: float, children: Children, figures: Any) -> Iterator[int]:
    """Give one item per depth image that arrives, until the time is over."""
    end = time.monotonic() + seconds
    count, next_sample = 0, 0.0
    while (now := time.monotonic()) < end:
        children.check_alive()
        if now >= next_sample:
            figures.sample()
            next_sample = now + _SAMPLE_PERIOD_S
        told = recorder.next_event(min(0.2, end - now))
        if told is not None and told['event'] == 'progress':
            yield from range(count, told['depth'])
            count = told['depth']


def _environment(domain: int, work: Path) -> dict[str, str]:
    """Return what the processes inherit: DDS on this machine only, with room for large messages.

    What the user has set for the middleware stays.
    """
    from depth_node.cli._demo.clip import shared_file

    environment = dict(os.environ)
    environment.update(
        ROS_DOMAIN_ID=str(domain), RCUTILS_COLORIZED_OUTPUT='0', PYTHONUNBUFFERED='1',
        # `-m` must find the package that runs this, not what lies in the current folder
        PYTHONSAFEPATH='1', PYTHONPATH=os.pathsep.join(filter(None, (
            str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH')))))
    environment.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if environment.get('ROS_DISTRO') == 'humble':
        environment.setdefault('ROS_LOCALHOST_ONLY', '1')
    environment.setdefault('ROS_LOG_DIR', str(work / 'ros_log'))
    profile = str(shared_file('config/fastdds_large_messages.xml', 'install the package again'))
    # Fast DDS 2 knows the second name only, Fast DDS 3 warns of it
    is_old = environment.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    environment.setdefault(
        'FASTRTPS_DEFAULT_PROFILES_FILE' if is_old else 'FASTDDS_DEFAULT_PROFILES_FILE', profile)
    return environment


def _last_words(children: Children) -> str:
    """Return the end of the log of whoever has failed, else of the node."""
    told = [child for child in children.all if child.exit_code() not in (None, 0)]
    told = told or [child for child in children.all if child.name == 'node'] or children.all[-1:]
    return '\n'.join(f'--- the end of {child.log}:\n{child.tail()}' for child in told)


def _remove_leftovers(out: Path) -> None:
    """Remove the messages of demos that were killed and could not do so."""
    for folder in out.glob(f'{_WORK}*'):
        pid = folder.name[len(_WORK):].partition('-')[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):  # not ours
            continue


# --- looking


def _look(args: argparse.Namespace, session: _Session, clip: Clip, card: ModelCard, out: Path
          ) -> tuple[dict[str, Any], list[Check], list[Target]]:
    """Measure the recording, and write pictures, video, cloud and bag."""
    from depth_node.cli._demo import figures, outputs

    recording, frame_of = session.recording, session.sent
    with_cloud = not args.no_cloud
    used = _used(recording)
    stated = figures.stated_error(card, used.get('precision', 'fp32'))
    measured = figures.times(recording)
    counted = figures.counters(recording, list(frame_of))
    error = figures.depth_error(recording, clip, frame_of, stated[0] if stated else None)
    clouds = figures.cloud_figures(recording) if with_cloud else {}
    process = session.figures
    rss_mb = max(process.rss_mb, default=math.nan)
    checks = figures.checks(
        recording, frame_of=frame_of, frame_id=FRAME_ID, with_cloud=with_cloud, counted=counted,
        clouds=clouds, error=error, stated=stated, torch_loaded=process.torch_loaded,
        exit_codes=session.exit_codes,
        whole_cloud=not any(parameter.startswith('cloud.') for parameter in args.param))
    targets = figures.targets(measured, counted, rss_mb, session.first_depth_s)

    range_m = clip.range_m() if clip.true_depths else (0.3, 8.0)
    frames = outputs.Frames(recording)
    files: list[Path | None] = [*outputs.write_pictures(frames, out, clip, frame_of, range_m)]
    fps = figures.rate_hz([row['stamp_ns'] for row in frames.depths])
    depths = progress(frames.depths, unit='frame', total=len(frames.depths), name='video')
    files.append(outputs.write_video(frames, depths, out / 'side_by_side.mp4', fps, range_m))
    cloud = outputs.write_cloud(recording, out / 'cloud.ply') if with_cloud else None
    files.append(cloud[0] if cloud else None)
    if recording.kept('depth'):
        _say('writing the bag')
        files.append(outputs.write_bag(recording, out, clip, frame_of, FRAME_ID))
    files += [out / 'summary.txt', out / 'summary.json']

    height, width = clip.camera.size_hw
    result: dict[str, Any] = {
        'run': {
            'model': used.get('model', card.name), 'backend': used.get('backend', args.backend),
            'precision': used.get('precision', args.precision),
            'device': used.get('device', 'an unknown device'), 'clip': str(clip.folder),
            'rendered': 'scene' in clip.notes, 'seconds': args.seconds, 'rate_hz': args.rate,
            'width': width, 'height': height, 'cloud': with_cloud, 'cores': os.cpu_count(),
            'load_1min': os.getloadavg()[0]},
        'times': measured, 'counters': counted,
        'process': {
            'first_depth_s': session.first_depth_s, 'rss_mb': rss_mb,
            'peak_rss_mb': process.peak_rss_mb, 'cpu_share': process.cpu_share,
            'torch_loaded': process.torch_loaded, 'exit_codes': session.exit_codes},
        'error': error, 'clouds': clouds,
        'stated': {'abs_rel': stated[0], 'where': stated[1]} if stated else None,
        'warnings': _warnings(recording),
        'files': [str(path) for path in files if path is not None],
    }
    return result, checks, targets


def _used(recording: Recording) -> dict[str, Any]:
    """Return model, backend, precision and device in use: of ~/status, else of /diagnostics."""
    if recording.rows['status']:
        return recording.rows['status'][-1]
    rows = recording.diagnostics.get(f'{NODE[1:]}: model', [])
    values = dict(rows[-1]['values']) if rows else {}
    return {**values, 'model': values['name']} if 'name' in values else {}


def _warnings(recording: Recording) -> list[str]:
    """Return what /diagnostics complained about, each sentence once."""
    return list(dict.fromkeys(
        f'{name}: {row["message"]}' for name, rows in recording.diagnostics.items()
        for row in rows if row['level'] > 0))


def _report(args: argparse.Namespace, result: dict[str, Any], checks: Sequence[Check],
            targets: Sequence[Target], out: Path) -> int:
    from depth_node.cli._demo import report
    from depth_node.cli._writers import write_text

    text = report.table(result, checks, targets)
    document = json.dumps(report.to_json(result, checks, targets), indent=1, allow_nan=False)
    write_text(out / 'summary.txt', text + '\n')
    write_text(out / 'summary.json', document + '\n')
    print(document if args.json else text)
    failed = [check.name for check in checks if check.ok is False]
    if failed:
        print(f'depth-node demo: {len(failed)} of {len(checks)} checks failed: '
              f'{"; ".join(failed)}', file=sys.stderr)
    return 0 if report.passed(checks) else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _domain_id(text: str) -> int:
    """Parse a DDS domain, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 101:
        raise argparse.ArgumentTypeError(f'{text!r}: a whole number from 0 to 101 is expected')
    return value
