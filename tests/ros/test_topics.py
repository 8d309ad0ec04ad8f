"""What comes out of the node's topics, and when."""

from __future__ import annotations

import os
import time
from typing import Any

import cv2
import numpy as np
import pytest
from ros_rig import (
    CX,
    CY,
    FRAME,
    FX,
    FY,
    IMAGE_TOPIC,
    INFO_TOPIC,
    NETWORK_HW,
    Peer,
    depth_of,
    points_of,
    red_to_depth,
    stamp_of,
    values_of,
)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

HEIGHT, WIDTH = NETWORK_HW
LEVEL = {b'\x00': 'ok', b'\x01': 'warn', b'\x02': 'error'}


def ramp_picture(height: int = HEIGHT, width: int = WIDTH) -> Any:
    """Return a picture whose red grows to the right, green downwards."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.arange(width) * 2
    rgb[..., 1] = (np.arange(height) * 3)[:, None]
    rgb[..., 2] = 7
    return rgb


def flat_picture(red: int, height: int = HEIGHT, width: int = WIDTH) -> Any:
    """Return a picture of one colour."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:] = red, 20, 30
    return rgb


@pytest.mark.parametrize('reliable', [True, False], ids=['reliable', 'best_effort'])
def test_depth_camera_info_and_points_of_one_image(peer: Peer, reliable: bool) -> None:
    depths = peer.collect('~/depth/image', Image)
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    clouds = peer.collect('~/points', PointCloud2)
    picture = ramp_picture()
    send = peer.camera(peer.info(), reliable=reliable)
    peer.send_until(send, lambda: peer.image(picture), lambda: depths and infos and clouds)
    common = set.intersection(*({stamp_of(item) for item in kind}
                                for kind in (depths, infos, clouds)))
    assert common, 'depth, CameraInfo and points of one image carry its stamp'
    depth, info, cloud = (next(item for item in kind if stamp_of(item) == max(common))
                          for kind in (depths, infos, clouds))

    expected = np.broadcast_to(red_to_depth(picture[..., 0]), (HEIGHT, WIDTH))
    assert (depth.encoding, depth.height, depth.width) == ('32FC1', HEIGHT, WIDTH)
    assert (depth.header.frame_id, depth.step, depth.is_bigendian) == (FRAME, 4 * WIDTH, 0)
    assert depth_of(depth) == pytest.approx(expected, abs=1e-5)

    assert (info.height, info.width, info.header.frame_id) == (HEIGHT, WIDTH, FRAME)
    assert list(info.k) == [FX, 0, CX, 0, FY, CY, 0, 0, 1]
    assert list(info.p) == [FX, 0, CX, 0, 0, FY, CY, 0, 0, 0, 1, 0]
    assert not any(info.d)
    assert list(info.r) == [1, 0, 0, 0, 1, 0, 0, 0, 1]

    assert (cloud.height, cloud.width, cloud.point_step) == (HEIGHT, WIDTH, 16)
    assert (cloud.row_step, cloud.is_dense, cloud.is_bigendian) == (16 * WIDTH, True, False)
    assert [field.name for field in cloud.fields] == ['x', 'y', 'z', 'rgb']
    points = points_of(cloud)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    assert points['z'] == pytest.approx(expected, abs=1e-5)
    assert points['x'] == pytest.approx((u - CX) / FX * expected, abs=1e-5)
    assert points['y'] == pytest.approx((v - CY) / FY * expected, abs=1e-5)
    packed = np.ascontiguousarray(points['rgb']).view(np.uint32)
    assert (packed == (picture.astype(np.uint32) << [16, 8, 0]).sum(-1)).all()


def test_depth_beyond_the_range_is_infinite_and_never_in_the_cloud(peer: Peer) -> None:
    assert peer.set(filter__near_m=1.4) == ''
    depths = peer.collect('~/depth/image', Image)
    clouds = peer.collect('~/points', PointCloud2)
    picture = flat_picture(100)
    picture[:, :20, 0] = 10  # 1.1 m: nearer than near_m
    picture[:, 40:, 0] = 250  # 3.5 m: beyond the card's 3 m
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(picture), lambda: depths and clouds)
    depth = depth_of(depths[-1])
    assert np.isneginf(depth[:, :18]).all()
    assert depth[:, 22:38] == pytest.approx(2.0)
    assert np.isposinf(depth[:, 42:]).all()
    points = points_of(clouds[-1])
    assert not clouds[-1].is_dense
    assert np.isnan(points['z'][:, :18]).all()
    assert np.isnan(points['x'][:, 42:]).all()
    for axis in 'xyz':
        assert not np.isinf(points[axis]).any()
    assert not ((points['x'] == 0) & (points['y'] == 0) & (points['z'] == 0)).any()

    assert peer.set(depth__encoding='16UC1') == ''
    depths.clear()
    peer.send_until(send, lambda: peer.image(picture),
                    lambda: [item for item in depths if item.encoding == '16UC1'])
    millimetres = depth_of(depths[-1])
    assert (millimetres[:, :18] == 0).all()
    assert (millimetres[:, 22:38] == 2000).all()
    assert (millimetres[:, 42:] == 0).all()


def test_cloud_parameters_act_on_the_next_frame(peer: Peer) -> None:
    clouds = peer.collect('~/points', PointCloud2)
    picture = ramp_picture()
    picture[:8, :, 0] = 255  # beyond the range
    send = peer.camera(peer.info())

    def newest(shape: tuple[int, int], names: str) -> Any:
        return next((item for item in reversed(clouds) if (item.height, item.width) == shape
                     and ''.join(field.name for field in item.fields) == names), None)

    assert peer.set(cloud__stride=3, cloud__roi=[4, 6, 30, 0], cloud__rgb=False) == ''
    cloud = peer.send_until(send, lambda: peer.image(picture), lambda: newest((14, 10), 'xyz'))
    points = points_of(cloud)
    # row 2 of the cloud is row 12, column 5 is column 19
    z = red_to_depth(2 * 19)
    assert points[2, 5].tolist() == pytest.approx(
        ((19 - CX) / FX * z, (12 - CY) / FY * z, z), abs=1e-5)

    assert peer.set(cloud__stride=1, cloud__roi=[0, 0, 0, 0], cloud__organised=False) == ''
    cloud = peer.send_until(
        send, lambda: peer.image(picture),
        lambda: next((item for item in reversed(clouds) if item.height == 1), None))
    assert cloud.is_dense
    assert cloud.width == (HEIGHT - 8) * WIDTH
    assert np.isfinite(points_of(cloud)['z']).all()


def test_confidence_color_and_status(peer: Peer) -> None:
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(model__name='confident', scale__source='fixed', scale__scale=1.5,
                    scale__shift=0.25) == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    confidences = peer.collect('~/confidence', Image)
    colors = peer.collect('~/depth/color', Image)
    states = peer.collect('~/status', status_type)
    depths = peer.collect('~/depth/image', Image)
    picture = flat_picture(50)
    picture[..., 1] = 51
    send = peer.camera(peer.info())
    # two topics: an image may overtake the first CameraInfo
    peer.send_until(send, lambda: peer.image(picture),
                    lambda: confidences and colors and depths
                    and states and states[-1].camera_source == 'topic')
    assert depth_of(depths[-1]) == pytest.approx(1.5 * 1.5 + 0.25)  # scale * depth + shift
    assert depth_of(confidences[-1]) == pytest.approx(0.2)
    assert (colors[-1].encoding, colors[-1].step) == ('bgr8', 3 * WIDTH)
    pixels = np.frombuffer(colors[-1].data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert (pixels == pixels[0, 0]).all()
    assert pixels.any()
    state = states[-1]
    assert (state.model, state.backend, state.precision) == ('confident', 'onnxruntime', 'fp32')
    assert (state.scale_source, state.scale, state.shift) == ('fixed', 1.5, 0.25)
    assert (state.height, state.width) == (HEIGHT, WIDTH)
    assert state.valid_share == 1.0
    assert not state.rectified
    stages = dict(zip(state.stage_names, state.stage_ms, strict=True))
    assert {'decode', 'preprocess', 'network', 'postprocess', 'filter', 'publish'} <= set(stages)
    assert 0 < sum(stages.values()) <= state.latency_ms
    waiting = state.received - state.processed - state.dropped_newer - sum(state.skipped_counts)
    assert 0 <= waiting <= 1
    assert state.published == state.processed >= 1


def test_nobody_listens_no_inference(peer: Peer) -> None:
    send = peer.camera(peer.info())
    for _ in range(10):
        send(peer.image(flat_picture(0)))
        peer.spin(0.03)
    peer.diagnostics(
        'input', lambda status: int(values_of(status).get('skipped no_subscriber', '0')) >= 5)
    output = peer.diagnostics('output')
    assert values_of(output)['processed'] == '0'
    assert output.message.startswith('idle')
    # a subscriber on an output that is switched off counts for nothing either
    assert peer.set(cloud__publish=False) == ''
    clouds = peer.collect('~/points', PointCloud2)
    for _ in range(5):
        send(peer.image(flat_picture(0)))
        peer.spin(0.03)
    assert values_of(peer.diagnostics('output'))['processed'] == '0'
    assert peer.set(cloud__publish=True) == ''
    peer.send_until(send, lambda: peer.image(flat_picture(0)), lambda: clouds)


NO_POINTS = {
    'missing': (None, 'camera_info_missing'),
    'zero': (dict(k=[0.0] * 9, p=[0.0] * 12), 'camera_info_uncalibrated'),
    'nan': (dict(k=[float('nan'), 0, 5, 0, 70, 5, 0, 0, 1]), 'camera_info_invalid'),
    'other_size': (dict(size_hw=(2 * HEIGHT, 2 * WIDTH + 2)), 'camera_info_size'),
    'unknown_lens': (dict(model='thin_prism', d=[0.1, 0.2]), 'camera_info_distortion'),
}


@pytest.mark.parametrize('case', NO_POINTS)
def test_without_usable_camera_info_there_is_depth_but_no_points(peer: Peer, case: str) -> None:
    changes, problem = NO_POINTS[case]
    depths = peer.collect('~/depth/image', Image)
    clouds = peer.collect('~/points', PointCloud2)
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    send = peer.camera(None if changes is None else peer.info(**changes))
    stamps = peer.send_until(
        send, lambda: peer.image(flat_picture(30)), lambda: len(depths) >= 3 and depths)
    assert depth_of(stamps[-1]) == pytest.approx(1.3)
    assert not clouds
    assert not infos
    found = peer.diagnostics('camera_info', lambda status: problem in status.message)
    assert LEVEL[found.level] == 'error'
    assert values_of(found)['problem'] == problem

    # the named fallback brings points, and stays a warning
    assert peer.set(input__fov_deg=90) == ''
    peer.send_until(send, lambda: peer.image(flat_picture(30)), lambda: clouds and infos)
    assert infos[-1].k[0] == pytest.approx(WIDTH / 2)  # 90 degrees: f is half the width
    found = peer.diagnostics(
        'camera_info', lambda status: values_of(status)['source'] == 'fov')
    assert LEVEL[found.level] == 'warn'
    assert problem in found.message


def test_camera_info_that_becomes_right_is_used(peer: Peer) -> None:
    clouds = peer.collect('~/points', PointCloud2)
    info = peer.info(k=[0.0] * 9)
    send = peer.camera(info)
    for _ in range(5):
        send(peer.image(flat_picture(30)))
        peer.spin(0.03)
    assert not clouds
    info.k = peer.info().k
    peer.send_until(send, lambda: peer.image(flat_picture(30)), lambda: clouds)


def test_frames_wait_for_the_first_camera_info(peer: Peer) -> None:
    assert peer.set(input__camera_info_wait_s=30.0) == ''
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera()
    for _ in range(8):
        send(peer.image(flat_picture(30)))
        peer.spin(0.03)
    assert not depths
    peer.diagnostics('input', lambda status: int(
        values_of(status).get('skipped waiting_for_camera_info', '0')) >= 4)
    peer.send_until(peer.camera(peer.info()), lambda: peer.image(flat_picture(30)),
                    lambda: depths)


def test_calibration_file_as_fallback(peer: Peer, tmp_path: Any) -> None:
    path = tmp_path / 'cam.yaml'
    path.write_text(
        f'image_width: {WIDTH}\nimage_height: {HEIGHT}\ndistortion_model: plumb_bob\n'
        f'camera_matrix: {{rows: 3, cols: 3, data: [50, 0, 20, 0, 55, 21, 0, 0, 1]}}\n'
        'distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n')
    late = peer.set(input__camera_info_url=f'file://{path}')
    assert 'cleanup' in late
    assert 'input.camera_info_url' in late
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(input__camera_info_url=f'file://{path}') == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    peer.send_until(peer.camera(), lambda: peer.image(flat_picture(30)), lambda: infos)
    assert [infos[-1].k[index] for index in (0, 4, 2, 5)] == [50, 55, 20, 21]


def test_distorted_image_is_rectified_and_depth_has_its_projection(peer: Peer) -> None:
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    projection = [55.0, 0, 25.0, 0, 0, 66.0, 23.0, 0, 0, 0, 1, 0]
    distortion = [-0.25, 0.05, 0.001, -0.002, 0.0]
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    depths = peer.collect('~/depth/image', Image)
    states = peer.collect('~/status', status_type)
    picture = ramp_picture()
    send = peer.camera(peer.info(d=distortion, p=projection))
    # two topics: an image may overtake the first CameraInfo, and is not rectified then
    peer.send_until(send, lambda: peer.image(picture),
                    lambda: infos and depths and states and states[-1].rectified
                    and stamp_of(infos[-1]) == stamp_of(depths[-1]))
    assert list(infos[-1].k) == [55, 0, 25, 0, 66, 23, 0, 0, 1]
    assert not any(infos[-1].d)
    k = np.array(peer.info().k).reshape(3, 3)
    new_k = np.array([[55, 0, 25], [0, 66, 23], [0, 0, 1.0]])
    expected = cv2.undistort(picture, k, np.array(distortion), None, new_k)
    inside = np.s_[12:-12, 12:-12]
    assert depth_of(depths[-1])[inside] == pytest.approx(
        red_to_depth(expected[..., 0])[inside], abs=0.021)  # one or two grey levels of rounding
    assert np.abs(expected[..., 0][inside].astype(int) - picture[..., 0][inside]).max() > 5


def test_size_change_in_the_stream(peer: Peer) -> None:
    depths = peer.collect('~/depth/image', Image)
    clouds = peer.collect('~/points', PointCloud2)
    infos = peer.collect('~/depth/camera_info', CameraInfo)
    for height, width in ((HEIGHT, WIDTH), (96, 120), (30, 50)):
        send = peer.camera(peer.info((height, width)))
        shape = height, width
        peer.send_until(
            send, lambda shape=shape: peer.image(flat_picture(60, *shape)),
            lambda shape=shape: all(
                items and (items[-1].height, items[-1].width) == shape
                for items in (depths, clouds, infos)))
        assert depth_of(depths[-1]) == pytest.approx(1.6)
    # every CameraInfo has the size of the depth image of its stamp
    sizes = {stamp_of(item): (item.height, item.width) for item in depths}
    assert all(sizes.get(stamp_of(item), (item.height, item.width)) == (item.height, item.width)
               for item in infos)


def test_bag_that_starts_again_is_counted_and_goes_on(peer: Peer) -> None:
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(flat_picture(60)), lambda: len(depths) >= 2)
    peer.spin(0.2)
    peer._clock = 500.0
    depths.clear()
    peer.send_until(send, lambda: peer.image(flat_picture(70)), lambda: len(depths) >= 2)
    assert stamp_of(depths[-1]) < 600
    found = peer.diagnostics('input', lambda status: values_of(status)['clock_jumps'] != '0')
    assert values_of(found)['clock_jumps'] == '1'
    peer._clock -= 0.5  # jitter of less than a second is none
    peer.send_until(send, lambda: peer.image(flat_picture(70)), lambda: len(depths) >= 4)
    peer.spin(0.3)
    assert values_of(peer.diagnostics('input'))['clock_jumps'] == '1'


def bad_images(peer: Peer) -> dict[str, Any]:
    def broken(**changes: Any) -> Any:
        message = peer.image(flat_picture(60))
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    short = peer.image(flat_picture(60))
    del short.data[-100:]
    return {
        'bad_step': broken(step=10), 'short_data': short,
        'unknown_encoding': broken(encoding='rgb7'), 'depth_image': broken(encoding='16UC1'),
        'empty': broken(height=0, width=0, step=0),
    }


def test_bad_images_are_named_and_the_node_goes_on(peer: Peer, shared_process: Any) -> None:
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(flat_picture(60)), lambda: depths)
    for reason, message in bad_images(peer).items():
        before = len(depths)
        send(message)
        found = peer.diagnostics(
            'input', lambda status, reason=reason: f'skipped {reason}' in values_of(status))
        assert values_of(found)[f'skipped {reason}'] == '1'
        assert values_of(found)['last_skip'].startswith(f'{reason}:')
        assert len(depths) == before
        peer.send_until(send, lambda: peer.image(flat_picture(60)),
                        lambda before=before: len(depths) > before)
    for reason in bad_images(peer):
        assert f'image skipped, {reason}:' in shared_process.log
    before = shared_process.log.count('image skipped, empty')
    for _ in range(10):
        send(bad_images(peer)['empty'])
        peer.spin(0.03)
    assert shared_process.log.count('image skipped, empty') <= before + 1, 'throttled'


def test_a_network_that_fails_on_a_frame_is_named_and_the_node_goes_on(
        peer: Peer, shared_process: Any) -> None:
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(model__name='fragile') == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    depths = peer.collect('~/depth/image', Image)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(flat_picture(60)), lambda: depths)
    send(peer.image(flat_picture(250)))
    found = peer.diagnostics('input', lambda status: 'skipped backend_failed' in values_of(status))
    assert values_of(found)['skipped backend_failed'] == '1'
    assert 'image skipped, backend_failed: onnxruntime:' in shared_process.log
    depths.clear()
    peer.send_until(send, lambda: peer.image(flat_picture(70)), lambda: depths)
    assert depth_of(depths[-1]) == pytest.approx(1.7)


def test_compressed_images(peer: Peer) -> None:
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(input__transport='compressed') == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    depths = peer.collect('~/depth/image', Image)
    images = peer.publisher(f'{IMAGE_TOPIC}/compressed', CompressedImage, reliable=False)
    infos = peer.publisher(INFO_TOPIC, CameraInfo)

    def send(message: Any) -> None:
        info = peer.info()
        info.header = message.header
        infos.publish(info)
        images.publish(message)

    def encoded(kind: str, cut: int | None = None) -> Any:
        blob = cv2.imencode(f'.{kind}', flat_picture(80)[..., ::-1])[1].tobytes()[:cut]
        message = CompressedImage(format=kind)
        message.data.frombytes(blob)
        return peer.stamped(message)

    peer.send_until(send, lambda: encoded('png'), lambda: depths)
    assert depth_of(depths[-1]) == pytest.approx(1.8)
    depths.clear()
    peer.send_until(send, lambda: encoded('jpeg'), lambda: depths)
    assert depth_of(depths[-1]) == pytest.approx(1.8, abs=0.05)
    send(encoded('jpeg', 200))
    peer.diagnostics('input', lambda status: 'skipped corrupt_jpeg' in values_of(status))
    depths.clear()
    peer.send_until(send, lambda: encoded('jpeg'), lambda: depths)


def test_only_the_newest_frame_is_processed_and_the_counters_add_up(peer: Peer) -> None:
    """A camera faster than the network: old frames are dropped, none without a count."""
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    assert peer.transition('deactivate')
    assert peer.transition('cleanup')
    assert peer.set(model__name='slow') == ''
    assert peer.transition('configure')
    assert peer.transition('activate')
    depths = peer.collect('~/depth/image', Image, depth=500)
    states = peer.collect('~/status', status_type, depth=500)
    send = peer.camera(peer.info())
    peer.send_until(send, lambda: peer.image(flat_picture(60)), lambda: depths and states)
    for _ in range(100):
        send(peer.image(flat_picture(60)))
        peer.spin(0.008)
    newest = peer._clock
    peer.wait(lambda: stamp_of(depths[-1]) == newest, what='the newest frame')
    stamps = [stamp_of(item) for item in depths]
    assert stamps == sorted(stamps)
    for state in states:
        known = state.processed + state.dropped_newer + sum(state.skipped_counts)
        assert 0 <= state.received - known <= 2
    last = states[-1]
    assert last.dropped_newer > 0
    assert last.processed == last.published


def run_camera(peer: Peer, seconds: float, rate_hz: float = 30.0) -> Any:
    """Stream for a while; return how many were sent, and the last status."""
    status_type = pytest.importorskip('depth_node.msg').DepthStatus
    states = peer.collect('~/status', status_type, depth=500)
    depths = peer.collect('~/depth/image', Image, depth=500)
    send = peer.camera(peer.info())
    start = peer.diagnostics('input')
    assert values_of(start)['received'] == '0'
    sent, begin = 0, time.monotonic()
    while sent < seconds * rate_hz:
        send(peer.image(flat_picture(60)))
        sent += 1
        while time.monotonic() < begin + sent / rate_hz:
            peer.executor.spin_once(timeout_sec=max(0, begin + sent / rate_hz - time.monotonic()))
    peer.spin(0.5)
    return sent, states, depths


SOAK = [pytest.mark.slow, pytest.mark.skipif(
    not os.environ.get('DEPTH_NODE_SOAK'), reason='takes 60 s; set DEPTH_NODE_SOAK=1 to run it')]


@pytest.mark.parametrize('seconds', [6, pytest.param(60, marks=SOAK)])
def test_thirty_hertz_without_an_uncounted_frame(peer: Peer, seconds: int) -> None:
    sent, states, depths = run_camera(peer, seconds)
    last = states[-1]
    skipped = dict(zip(last.skipped_reasons, last.skipped_counts, strict=True))
    print(f'{seconds} s at 30 Hz: sent {sent}, received {last.received}, lost in transport '
          f'{last.lost_in_transport}, processed {last.processed}, published {last.published}, '
          f'dropped for a newer one {last.dropped_newer}, skipped {skipped}')
    assert last.received == (last.processed + last.dropped_newer + sum(last.skipped_counts))
    assert sent == last.received + last.lost_in_transport
    assert len(depths) == last.published
