"""Filters that are set while the node runs: what they do to ~/depth/image, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ros_rig import NETWORK_HW, Peer, depth_of, red_to_depth, values_of
from sensor_msgs.msg import Image

HEIGHT, WIDTH = NETWORK_HW


def picture_of(red: Any) -> Any:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0] = red
    return rgb


def depth_where(peer: Peer, send: Any, depths: list[Any], rgb: Any, wanted: Any) -> Any:
    """Send pictures until a depth image is as wanted."""
    def found() -> Any:
        images = [depth_of(message) for message in depths]
        return next((image for image in reversed(images) if wanted(image)), None)

    depths.clear()
    result: Any = None

    def done() -> bool:
        nonlocal result
        result = found()
        return result is not None

    peer.send_until(send, lambda: peer.image(rgb), done)
    return result


def test_masks_take_their_pixels_and_say_so(peer: Peer, tmp_path: Path) -> None:
    send = peer.camera()
    depths = peer.collect('/mono_depth/depth/image', Image)
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :6] = 0
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    cv2.imwrite(str(tmp_path / 'small.png'), mask[::2, ::2])
    assert peer.set(filter__ignore='[[20, 30], [40, 30], [40, 39], [20, 39]]',
                    filter__mask_file=str(tmp_path / 'mask.png'),
                    filter__roi=[0, 4, 0, 40]) == ''
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    gone = ((v < 4) | (v >= 44) | (u < 6)
            | ((u >= 20) & (u <= 40) & (v >= 30) & (v <= 39)))
    image = depth_where(peer, send, depths, picture_of(50),
                        lambda image: np.isnan(image).any())
    np.testing.assert_array_equal(np.isnan(image), gone)
    np.testing.assert_allclose(image[~gone], red_to_depth(50), rtol=1e-5)
    values = values_of(peer.diagnostics(
        'output', lambda status: 'removed mask' in values_of(status)))
    assert int(values['removed outside_roi']) == 8 * WIDTH
    assert int(values['removed ignore_polygon']) == 21 * 10
    assert int(values['removed mask']) == 40 * 6

    assert peer.set(filter__mask_file=str(tmp_path / 'small.png')) == ''
    image = depth_where(peer, send, depths, picture_of(50),
                        lambda image: np.isfinite(image[20, 2]))
    assert np.isnan(image[32, 22])
    noted = values_of(peer.diagnostics('output', lambda status: any(
        'mask is not applied' in value for value in values_of(status).values())))
    assert any('32x24, the image 64x48' in value for value in noted.values())


def test_what_cannot_be_used_is_refused_and_the_old_value_stays(peer: Peer) -> None:
    for changes, words in (
            ({'filter__ignore': '[[1, 2], [3, 4]]'}, ('filter.ignore', '2 corners')),
            ({'filter__mask_file': '/nowhere/mask.png'}, ('filter.mask_file', 'No such file')),
            ({'filter__median': 4}, ('median 4', '0, 3, 5')),
            ({'filter__temporal': 'often'}, ('off, ema, median',))):
        reason = peer.set(**changes)
        for word in words:
            assert word in reason, (changes, reason)
    assert peer.get('filter.ignore') == ''
    assert peer.get('filter.mask_file') == ''
    assert peer.get('filter.median') == 0


def test_a_static_picture_is_steadied_and_a_moving_one_is_not(peer: Peer) -> None:
    """Red noise of 3 levels is 3 cm of depth, and less than a change of the picture."""
    send = peer.camera()
    depths = peer.collect('/mono_depth/depth/image', Image)
    rng = np.random.default_rng(0)

    def noisy() -> Any:
        return peer.image(picture_of(rng.normal(100, 3, (HEIGHT, WIDTH)).clip(0, 255)))

    spreads = {}
    for mode in ('off', 'ema'):
        assert peer.set(filter__temporal=mode, filter__temporal_gate=0.2) == ''
        peer.spin(0.2)
        depths.clear()
        peer.send_until(send, noisy, lambda: len(depths) >= 25, 30.0)
        spreads[mode] = float(np.std([depth_of(item) for item in depths[12:25]], 0).mean())
    assert spreads['off'] > 0.02
    assert spreads['ema'] < spreads['off'] / 2.5
    bright = depth_where(peer, send, depths, picture_of(180),
                         lambda image: image[5, 5] > red_to_depth(150))
    np.testing.assert_allclose(bright, red_to_depth(180), rtol=1e-5)
