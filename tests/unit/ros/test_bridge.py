"""cv_bridge at the border: only the real one, only for what images.py does not read."""

import sys
import types
from typing import ClassVar

import cv2
from depth_node import images
import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='no ROS 2: Image messages are not converted')

from depth_node.ros import bridge, messages
from sensor_msgs.msg import Image


class RealLooking:
    """Answers the probe as ROS 2's cv_bridge does, and knows one more encoding."""

    cvtype_to_name: ClassVar = {cv2.CV_8UC3: '8UC3'}
    asked = 0

    def encoding_to_cvtype2(self, encoding):
        return {'16UC1': cv2.CV_16UC1, 'bgr8': cv2.CV_8UC3}[encoding]

    def imgmsg_to_cv2(self, message, desired_encoding):
        RealLooking.asked += 1
        assert desired_encoding == 'rgb8'
        if message.encoding != 'hsv8':
            raise RuntimeError(f'[{message.encoding}] is not a recognized image encoding')
        return np.full((message.height, message.width, 3), 7, np.uint8)


class FromPyPI(RealLooking):
    """Types every 16UC1 image as 8 bit."""

    def encoding_to_cvtype2(self, encoding):
        return cv2.CV_8UC3


class ForOpenCV5(RealLooking):
    cvtype_to_name: ClassVar = {64: '8UC3'}


@pytest.fixture
def install(monkeypatch):
    def put(kind):
        module = types.ModuleType('cv_bridge')
        if kind is not None:
            module.CvBridge = kind
        monkeypatch.setitem(sys.modules, 'cv_bridge', module if kind is not None else None)
        bridge.load.cache_clear()
        RealLooking.asked = 0
    yield put
    bridge.load.cache_clear()


def message(encoding, height=4, width=6, channels=3):
    msg = Image(height=height, width=width, encoding=encoding, step=width * channels)
    msg.data.frombytes(np.arange(height * width * channels, dtype=np.uint8).tobytes())
    return msg


def test_an_encoding_that_only_cv_bridge_knows_goes_to_it(install):
    install(RealLooking)
    assert (messages.to_rgb(message('hsv8')) == 7).all()
    assert RealLooking.asked == 1


def test_known_encodings_never_reach_cv_bridge(install):
    install(RealLooking)
    rgb = messages.to_rgb(message('bgr8'))
    assert rgb[0, 0].tolist() == [2, 1, 0]
    assert RealLooking.asked == 0


@pytest.mark.parametrize(('kind', 'why'), [
    (None, 'not installed'), (FromPyPI, 'mistakes types'), (ForOpenCV5, 'does not work')])
def test_a_missing_or_wrong_cv_bridge_is_named_and_not_used(install, kind, why):
    install(kind)
    with pytest.raises(images.ImageError, match=why) as caught:
        messages.to_rgb(message('hsv8'))
    assert caught.value.reason == 'unknown_encoding'
    assert RealLooking.asked == 0


def test_what_cv_bridge_refuses_too_is_skipped_with_both_reasons(install):
    install(RealLooking)
    with pytest.raises(images.ImageError, match=r'nonsense.*not a recognized'):
        messages.to_rgb(message('nonsense'))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'bayer_rggb8',
                                      'bayer_gbrg8', 'yuv422', 'yuv422_yuy2'])
def test_both_readers_agree_where_the_real_cv_bridge_is_installed(encoding):
    bridge.load.cache_clear()
    real, why_not = bridge.load()
    if real is None:
        pytest.skip(f'comparison with cv_bridge: {why_not}')
    channels = {'rgba8': 4, 'bgra8': 4, 'rgb8': 3, 'bgr8': 3, 'yuv422': 2, 'yuv422_yuy2': 2}
    width, each = 16, channels.get(encoding, 1)
    msg = Image(height=12, width=width, encoding=encoding, step=width * each)
    noise = np.random.default_rng(4).integers(16, 236, 12 * width * each, np.uint8)
    msg.data.frombytes(noise.tobytes())
    theirs = real.imgmsg_to_cv2(msg, desired_encoding='rgb8').astype(int)
    assert np.abs(messages.to_rgb(msg).astype(int) - theirs).max() <= 1
