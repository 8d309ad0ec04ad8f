"""Several cameras on one node and one network, over real DDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
import time
from typing import Any

import numpy as np
import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, ListParameters
import ros_rig
from ros_rig import DEFAULTS, Peer, depth_of, points_of, red_to_depth, stamp_of, values_of
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_srvs.srv import Trigger

TOPICS = {name: (f'/{name}/image_raw', f'/{name}/camera_info') for name in ('front', 'left')}
SIZES = {'front': (48, 64), 'left': (30, 50)}
FRAMES = {'front': 'front_optical_frame', 'left': 'left_optical_frame'}
# fx, fy, cx, cy of each: all different
LENSES = {'front': (60.0, 70.0, 30.5, 26.0), 'left': (41.0, 44.0, 27.0, 13.5)}
OWN = {'front.scale.source': 'fixed', 'front.scale.scale': 0.75, 'front.scale.shift': 0.25,
       'left.filter.far_m': 2.0, 'left.cloud.stride': 3, 'left.depth.encoding': '16UC1'}


def command(name: str, parameters: dict[str, Any], *extra: str) -> list[str]:
    """Return the command that starts a node for front and left."""
    remaps = [part for camera, (image, info) in TOPICS.items() for part in (
        '-r', f'{camera}/image:={image}', '-r', f'{camera}/camera_info:={info}')]
    values = {**DEFAULTS, 'cameras': ['front', 'left'], **parameters}
    return ros_rig.node_command(values, '-r', f'__node:={name}', *remaps, *extra)


@pytest.fixture(scope='module')
def two_process(node_env: dict[str, str],
                tmp_path_factory: pytest.TempPathFactory) -> Iterator[ros_rig.Process]:
    """Give one running node with two cameras for the whole module."""
    log = tmp_path_factory.mktemp('two') / 'node.log'
    process = ros_rig.Process(command('two', {**OWN, 'autostart': False}), log, node_env)
    yield process
    assert process.stop() == 0, process.log
    assert 'Traceback' not in process.log


@pytest.fixture
def two(two_process: ros_rig.Process, _session_peer: Peer) -> Iterator[Peer]:
    """Give the other end of that node, freshly configured and active."""
    assert two_process.popen.poll() is None, two_process.log
    before, _session_peer.under_test = _session_peer.under_test, '/two'
    restart(_session_peer, model__name='tiny')
    yield _session_peer
    _session_peer.forget()
    _session_peer.under_test = before


@pytest.fixture
def start_two(node_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Give a function that starts a node of the test's own, named own."""
    started: list[ros_rig.Process] = []

    def run(*extra: str, **parameters: Any) -> ros_rig.Process:
        values = {key.replace('__', '.'): value for key, value in parameters.items()}
        started.append(ros_rig.Process(command('own', values, *extra),
                                       tmp_path / f'own{len(started)}.log', node_env))
        return started[-1]

    yield run
    for process in started:
        process.stop()


def restart(peer: Peer, **parameters: Any) -> None:
    """Configure and activate with these parameters, whatever state the node is in."""
    state = peer.state()
    if state == 'active':
        assert peer.transition('deactivate')
    if state in ('active', 'inactive'):
        assert peer.transition('cleanup')
    assert peer.set(**parameters) == ''
    assert peer.transition('configure')
    assert peer.transition('activate')


def picture(camera: str, red: int = 60) -> Any:
    """Return a picture of the camera's size whose red grows to the right from `red`."""
    height, width = SIZES[camera]
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = red + np.arange(width)
    return rgb


def image(peer: Peer, camera: str, red: int = 60, **changes: Any) -> Any:
    """Return a new image of one camera, in its frame."""
    return peer.image(picture(camera, red), frame=FRAMES[camera], **changes)


def sender(peer: Peer, camera: str, *, with_info: bool = True) -> Callable[[Any], None]:
    """Return a function that publishes a camera's images."""
    fx, fy, cx, cy = LENSES[camera]
    info = peer.info(SIZES[camera], k=[fx, 0, cx, 0, fy, cy, 0, 0, 1],
                     p=[fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0])
    topics = TOPICS[camera]
    return peer.camera(info if with_info else None, image_topic=topics[0], info_topic=topics[1])


def received(values: dict[str, str]) -> int:
    return int(values['received'])


def balance(peer: Peer, camera: str) -> dict[str, int]:
    """Return a camera's counters from the `input` and `output` checks, added up."""
    found: dict[str, int] = {}
    for check in ('input', 'output'):
        values = values_of(peer.diagnostics(f'{camera}: {check}'))
        found.update({name: int(value) for name, value in values.items()
                      if name in ('received', 'processed', 'dropped_newer', 'in_hand',
                                  'lost_in_transport', 'published')
                      or name.startswith('skipped ')})
    return found


def test_each_camera_gets_its_own_depth(two: Peer) -> None:
    kinds = {'depth/image': Image, 'depth/camera_info': CameraInfo, 'points': PointCloud2}
    got = {(camera, topic): two.collect(f'~/{camera}/{topic}', kind)
           for camera in SIZES for topic, kind in kinds.items()}
    send = {camera: sender(two, camera) for camera in SIZES}
    sent: dict[str, set[float]] = {'front': set(), 'left': set()}
    end = time.monotonic() + 15
    while any(len(items) < 3 for items in got.values()):
        assert time.monotonic() < end, {key: len(items) for key, items in got.items()}
        for camera, count in (('front', 3), ('left', 1)):
            for _ in range(count):
                message = image(two, camera)
                sent[camera].add(stamp_of(message))
                send[camera](message)
                two.spin(0.02)

    for (camera, topic), items in got.items():
        assert {stamp_of(item) for item in items} <= sent[camera], (camera, topic)
        assert {item.header.frame_id for item in items} == {FRAMES[camera]}
        if topic != 'points':
            assert {(item.height, item.width) for item in items} == {SIZES[camera]}

    for camera, (fx, fy, cx, cy) in LENSES.items():
        info = got[camera, 'depth/camera_info'][-1]
        assert list(info.k) == [fx, 0, cx, 0, fy, cy, 0, 0, 1]
    raw = {camera: red_to_depth(picture(camera)[..., 0]) for camera in SIZES}
    # the network's grid is front's size, so front is exact; its scale is its own
    assert got['front', 'depth/image'][-1].encoding == '32FC1'
    assert depth_of(got['front', 'depth/image'][-1]) == pytest.approx(
        0.75 * raw['front'] + 0.25, abs=1e-4)
    # left is not scaled, in millimetres, and cut off at its own far limit
    assert got['left', 'depth/image'][-1].encoding == '16UC1'
    metres = depth_of(got['left', 'depth/image'][-1]) / 1000
    near = raw['left'] < 1.97
    assert metres[near] == pytest.approx(raw['left'][near], abs=0.02)
    assert (metres[raw['left'] > 2.03] == 0).all()
    assert near.any()
    assert not near.all()
    # its cloud has its own stride and its own lens
    points = points_of(got['left', 'points'][-1])
    assert points.shape == (10, 17)
    _, fy, _, cy = LENSES['left']
    assert points['y'][5, 3] == pytest.approx((15 - cy) / fy * points['z'][5, 3], abs=1e-4)
    assert points_of(got['front', 'points'][-1]).shape == SIZES['front']


def test_status_names_the_camera_and_adds_up_for_each(two: Peer) -> None:
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    states = {camera: two.collect(f'~/{camera}/status', status_type) for camera in SIZES}
    send = {camera: sender(two, camera) for camera in SIZES}
    for _ in range(12):
        send['front'](image(two, 'front'))
        two.spin(0.02)
    two.send_until(lambda message: [send[camera](image(two, camera)) for camera in SIZES],
                   lambda: None, lambda: all(items and items[-1].camera_source == 'topic'
                                             for items in states.values()))
    two.spin(0.3)
    for camera, items in states.items():
        for state in items:
            assert state.camera == camera
            known = state.processed + state.dropped_newer + sum(state.skipped_counts)
            assert 0 <= state.received - known <= 2
        assert (items[-1].height, items[-1].width) == SIZES[camera]
    assert (states['front'][-1].scale_source, states['front'][-1].scale) == ('fixed', 0.75)
    assert (states['left'][-1].scale_source, states['left'][-1].scale) == ('model', 1.0)
    assert states['front'][-1].received >= states['left'][-1].received + 6


def test_parameters_of_one_camera_are_listed_described_and_set_live(two: Peer) -> None:
    listed = two.call(ListParameters, 'list_parameters', ListParameters.Request(depth=0))
    assert {'front.filter.far_m', 'left.filter.far_m', 'front.mount.height_m', 'filter.far_m',
            'left.input.fov_deg', 'cameras'} <= set(listed.result.names)
    assert 'front.model.name' not in listed.result.names
    assert two.get('cameras') == ['front', 'left']
    assert two.get('left.filter.far_m') == 2.0
    assert two.get('front.cloud.stride') is None, 'not set: cloud.stride counts'
    request = DescribeParameters.Request(names=['left.cloud.stride'])
    stride, = two.call(DescribeParameters, 'describe_parameters', request).descriptors
    assert stride.type == ParameterType.PARAMETER_INTEGER
    assert stride.integer_range[0].to_value == 64
    assert 'for the camera left alone' in stride.description

    clouds = {camera: two.collect(f'~/{camera}/points', PointCloud2) for camera in SIZES}
    send = {camera: sender(two, camera) for camera in SIZES}

    def shapes(**wanted: tuple[int, int]) -> None:
        two.send_until(
            lambda _: [send[camera](image(two, camera)) for camera in SIZES], lambda: None,
            lambda: all(clouds[camera] and (clouds[camera][-1].height, clouds[camera][-1].width)
                        == shape for camera, shape in wanted.items()), what=str(wanted))

    shapes(front=(48, 64), left=(10, 17))
    assert two.set(cloud__stride=2) == ''  # the shared one: left has its own
    shapes(front=(24, 32), left=(10, 17))
    assert two.set(left__cloud__stride=5) == ''
    shapes(front=(24, 32), left=(6, 10))
    assert two.set(cloud__stride=1, left__cloud__stride=3) == ''


@pytest.mark.parametrize(('changes', 'reason'), [
    (dict(left__cloud__stride=0), 'out of range'),
    (dict(left__cloud__stride=2.5), 'left.cloud.stride: found 2.5 (float)'),
    (dict(front__depth__encoding='mono8'), 'front.depth.encoding: found'),
    (dict(left__filter__near_m=2.5), 'camera left: filter.near_m 2.5 m is not below'),
    (dict(front__filter__near_m=5.0), 'camera front: filter.near_m and filter.far_m leave'),
    (dict(left__input__transport='compressed'), 'left.input.transport: used by configure only'),
    (dict(cameras=['front']), 'read-only')])
def test_bad_parameters_of_a_camera_are_refused_with_a_reason(
        two: Peer, changes: dict[str, Any], reason: str) -> None:
    before = {name: two.get(name.replace('__', '.')) for name in changes}
    assert reason in two.set(**changes)
    assert {name: two.get(name.replace('__', '.')) for name in changes} == before


def test_one_camera_falls_silent_and_the_other_goes_on(
        two: Peer, two_process: ros_rig.Process) -> None:
    assert two.set(left__input__timeout_s=1.0) == ''
    depths = {camera: two.collect(f'~/{camera}/depth/image', Image) for camera in SIZES}
    send = {camera: sender(two, camera) for camera in SIZES}
    two.send_until(lambda _: [send[camera](image(two, camera)) for camera in SIZES],
                   lambda: None, lambda: all(depths.values()))
    for topic in TOPICS['left']:  # its driver dies
        two.withdraw(two._image_publishers[topic, True])
    depths['front'].clear()
    alive = two.collect('/diagnostics', _diagnostic_array())

    def left_is_silent() -> bool:
        return any(status.name == 'two: left: input' and status.level == b'\x02'
                   for message in alive for status in message.status)

    two.send_until(send['front'], lambda: image(two, 'front'),
                   lambda: left_is_silent() and len(depths['front']) >= 20)
    found = two.diagnostics('left: input')
    assert found.message.startswith('no image on /left/image_raw for ')
    assert two.diagnostics('front: input').level != b'\x02'
    said = two_process.log.partition('no image on /left/image_raw')[2]
    assert '/two/front/depth/image' not in said, 'the node proposes its own output'
    assert 'there is /front/image_raw' not in said, 'the node proposes what front uses'

    send['left'] = sender(two, 'left')
    depths['left'].clear()
    two.send_until(send['left'], lambda: image(two, 'left'), lambda: depths['left'])
    two_process.wait_for_log('images arrive on /left/image_raw again')


def test_a_broken_camera_is_counted_alone(two: Peer, two_process: ros_rig.Process) -> None:
    depths = {camera: two.collect(f'~/{camera}/depth/image', Image) for camera in SIZES}
    send = {camera: sender(two, camera) for camera in SIZES}
    two.send_until(lambda _: [send[camera](image(two, camera)) for camera in SIZES],
                   lambda: None, lambda: all(depths.values()))
    depths['front'].clear()
    for _ in range(10):
        broken = image(two, 'left')
        del broken.data[-100:]
        send['left'](broken)
        send['front'](image(two, 'front'))
        two.spin(0.03)
    two.wait(lambda: len(depths['front']) >= 8, what='depth of the camera that works')
    two.diagnostics('left: input',
                    lambda status: int(values_of(status).get('skipped short_data', '0')) >= 8)
    assert 'skipped short_data' not in values_of(two.diagnostics('front: input'))
    assert 'left: image skipped, short_data' in two_process.log
    for camera in SIZES:
        now = balance(two, camera)
        assert now['received'] == (now['processed'] + now['dropped_newer'] + sum(
            count for name, count in now.items() if name.startswith('skipped ')))


def test_only_the_camera_that_somebody_listens_to_is_processed(two: Peer) -> None:
    depths = two.collect('~/left/depth/image', Image)
    send = {camera: sender(two, camera) for camera in SIZES}
    two.send_until(lambda _: [send[camera](image(two, camera)) for camera in SIZES],
                   lambda: None, lambda: len(depths) >= 3)
    two.diagnostics('front: input',
                    lambda status: int(values_of(status).get('skipped no_subscriber', '0')) >= 3)
    assert balance(two, 'front')['processed'] == 0
    assert balance(two, 'left')['processed'] >= 3


def test_a_fast_camera_does_not_starve_a_slow_one(two: Peer) -> None:
    """100 and 5 images per second for a network that manages some 20."""
    restart(two, model__name='busy')
    depths = {camera: two.collect(f'~/{camera}/depth/image', Image, depth=500)
              for camera in SIZES}
    send = {camera: sender(two, camera) for camera in SIZES}
    two.send_until(lambda _: [send[camera](image(two, camera)) for camera in SIZES],
                   lambda: None, lambda: all(depths.values()))
    two.spin(0.5)
    network_s = float(values_of(two.diagnostics('left: output'))['stage network ms']) / 1000
    # a frame waits for two others at the most; a busy machine gets a camera that is slower still
    period_s = {'front': 0.01, 'left': max(0.2, 5 * network_s)}
    before = {camera: balance(two, camera) for camera in SIZES}
    for items in depths.values():
        items.clear()
    sent, next_at = dict.fromkeys(SIZES, 0), dict.fromkeys(SIZES, 0.0)
    while sent['left'] < 12:
        for camera in SIZES:
            if time.monotonic() >= next_at[camera]:
                send[camera](image(two, camera))
                sent[camera] += 1
                # from now, not from when it was due: no two in a row after a pause of this process
                next_at[camera] = time.monotonic() + period_s[camera]
        two.executor.spin_once(timeout_sec=0.004)
    two.spin(0.4 + 3 * network_s)
    gained = {camera: {name: count - before[camera].get(name, 0)
                       for name, count in balance(two, camera).items()} for camera in SIZES}
    print(f'network {1e3 * network_s:.0f} ms, sent {sent}, left {len(depths["left"])}, '
          f'counted {gained}')
    for camera, count in gained.items():
        assert count['received'] == (count['processed'] + count['dropped_newer'] + sum(
            value for name, value in count.items() if name.startswith('skipped '))), camera
        assert sent[camera] == count['received'] + count['lost_in_transport']
        assert len(depths[camera]) == count['published'] == count['processed']
    assert gained['front']['dropped_newer'] > 0, 'the network was not at its limit'
    assert gained['left']['dropped_newer'] <= 2, 'in front of an unfair worker it loses most'


def test_stopping_counts_the_images_of_each_camera(two: Peer) -> None:
    send = {camera: sender(two, camera) for camera in SIZES}
    assert two.transition('deactivate')
    for _ in range(6):
        for camera in SIZES:
            send[camera](image(two, camera))
        two.spin(0.03)
    for camera in SIZES:
        found = two.diagnostics(f'{camera}: input', lambda status: int(
            values_of(status).get('skipped inactive', '0')) >= 4)
        assert found.message == 'the node is inactive'
    assert two.call(Trigger, 'reset', Trigger.Request()).success
    assert two.transition('cleanup')
    two.wait(lambda: not any(two.node.count_publishers(f'/two/{camera}/depth/image')
                             for camera in SIZES), what='the outputs to go')


def test_raw_and_compressed_cameras_and_qos_of_one_topic(
        start_two: Callable[..., ros_rig.Process], own: Peer) -> None:
    import cv2

    process = start_two('-p', 'left.input.transport:=compressed', '-p',
                        'qos_overrides./own/left/points.publisher.depth:=7', '-p',
                        'fornt.filter.far_m:=2.0', '-p', 'front.filter.far_m:=null')
    process.wait_for_log('active: waiting for images on /front/image_raw, '
                         '/left/image_raw/compressed')
    assert ("parameter ignored: there is no parameter 'fornt.filter.far_m', because `cameras` has "
            "front, left only; did you mean 'front.filter.far_m'?") in process.log
    assert own.get('front.filter.far_m') is None, 'null, as `ros2 param dump` writes it'
    assert own.get('qos_overrides./own/left/points.publisher.depth') == 7
    assert own.get('qos_overrides./own/front/points.publisher.depth') == 1
    depths = {camera: own.collect(f'~/{camera}/depth/image', Image) for camera in SIZES}
    front = sender(own, 'front', with_info=False)
    left = own.publisher('/left/image_raw/compressed', CompressedImage)

    def send(_: Any) -> None:
        message = CompressedImage(format='png')
        message.data.frombytes(cv2.imencode('.png', picture('left')[..., ::-1])[1].tobytes())
        left.publish(own.stamped(message, frame=FRAMES['left']))
        front(image(own, 'front'))

    own.send_until(send, lambda: None, lambda: all(depths.values()))
    for camera, items in depths.items():
        assert (items[-1].height, items[-1].width) == SIZES[camera]
        assert items[-1].header.frame_id == FRAMES[camera]


def test_configure_names_the_camera_that_stops_it(
        start_two: Callable[..., ros_rig.Process], own: Peer, tmp_path: Path) -> None:
    missing = tmp_path / 'none.yaml'
    process = start_two(left__input__camera_info_url=str(missing), left__filter__near_m=9.0,
                        front__cloud__stride=99)
    process.wait_for_log('not configured')
    assert 'front.cloud.stride: found 99, expected 1 to 64 px' in process.log
    assert own.get('front.cloud.stride') is None
    assert own.set(front__cloud__stride=2) == ''
    assert not own.transition('configure')
    process.wait_for_log('not configured: camera left: ')
    assert str(missing) in process.log
    assert own.set(left__input__camera_info_url='') == ''
    assert not own.transition('configure')
    process.wait_for_log('camera left: filter.near_m and filter.far_m leave 9 to 3 m')
    found = own.diagnostics('model', lambda status: status.level == b'\x02')
    assert found.message.startswith('camera left: ')
    assert own.set(left__filter__near_m=1.0) == ''
    assert own.transition('configure')
    assert own.transition('activate')


def test_names_that_cannot_be_are_refused(
        start_two: Callable[..., ros_rig.Process], own: Peer) -> None:
    process = start_two(cameras=['front', 'depth'])
    process.wait_for_log('not configured')
    assert "cameras: found 'depth', expected another name" in process.log
    assert own.state() == 'unconfigured'
    assert own.diagnostics('parameters', lambda status: status.level == b'\x02')


def _diagnostic_array() -> Any:
    from diagnostic_msgs.msg import DiagnosticArray

    return DiagnosticArray
