"""Reading frames: what is read is right, what is wrong is named with its file."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
cv2 = pytest.importorskip('cv2')

from depth_node.training.datasets import DatasetError, open_dataset  # noqa: E402
from depth_node.training.datasets.rendered import recognise  # noqa: E402


def test_a_frame_has_the_depth_and_camera_of_its_files(frames_root):
    data = open_dataset('rendered', frames_root, 'train')
    rgb, depth, info = data.files(2)
    stored = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
    frame = data.read(2)
    assert len(data) == 8
    assert data.name(2) == f'{info.parent.name}/{info.stem}'
    assert frame.rgb.shape == (60, 80, 3)
    np.testing.assert_array_equal(frame.rgb[..., ::-1], cv2.imread(str(rgb)))
    np.testing.assert_allclose(frame.depth * 1000, stored, rtol=1e-6)
    assert frame.camera.fx == json.loads(info.read_text())['fx']


def test_the_folder_is_recognised(frames_root, tmp_path):
    assert '.json' in recognise(frames_root)
    assert recognise(tmp_path / 'elsewhere') is None


def test_fingerprint_counts_and_changes_with_the_data(frames_root):
    before = open_dataset('rendered', frames_root, 'train').fingerprint()
    assert before['frames'] == 8
    (frames_root / 'train/room-000001/000.jpg').write_bytes(b'x')
    after = open_dataset('rendered', frames_root, 'train').fingerprint()
    assert after['sha256_of_names_and_sizes'] != before['sha256_of_names_and_sizes']


def test_missing_folder_and_empty_folder_say_how_to_render(tmp_path):
    with pytest.raises(DatasetError, match='depth-node synthesize'):
        open_dataset('rendered', tmp_path, 'train')
    (tmp_path / 'train').mkdir()
    with pytest.raises(DatasetError, match='no frames'):
        open_dataset('rendered', tmp_path, 'train')
    with pytest.raises(DatasetError, match="split 'trian'"):
        open_dataset('rendered', tmp_path, 'trian')


def test_a_missing_file_is_named_at_once(frames_root):
    (frames_root / 'train/room-000001/002.depth.png').unlink()
    with pytest.raises(DatasetError, match=r'002\.depth\.png: missing'):
        open_dataset('rendered', frames_root, 'train')


@pytest.mark.parametrize(
    ('name', 'spoil', 'reason'),
    [
        ('000.jpg', lambda p: p.write_bytes(b'no picture'), 'not a readable picture'),
        ('000.depth.png', lambda p: p.write_bytes(b'no picture'), 'not a readable picture'),
        ('000.depth.png', lambda p: cv2.imwrite(str(p), np.zeros((60, 80), np.uint8)), 'uint8'),
        ('000.depth.png', lambda p: cv2.imwrite(str(p), np.ones((30, 80), np.uint16)),
         'both must have one size'),
        ('000.json', lambda p: p.write_text('{'), 'not usable intrinsics'),
        ('000.json', lambda p: p.write_text('{"width": 80, "height": 60}'), 'fx'),
        ('000.json', lambda p: p.write_text(p.read_text().replace('"width": 80', '"width": 81')),
         r'says \(60, 81\)'),
    ],
)  # fmt: skip
def test_a_spoilt_file_is_named_with_the_reason(frames_root, name, spoil, reason):
    path = frames_root / 'train/room-000001' / name
    spoil(path)
    data = open_dataset('rendered', frames_root, 'train')
    with pytest.raises(DatasetError, match=reason) as caught:
        data.read(0)
    assert str(path) in str(caught.value)
