"""Reading frames: what is read is right, what is wrong is named with its file."""

from __future__ import annotations

import json
import shutil

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


def with_motion(frames_root):
    """Write poses, steps, normals and labels into the first scene; returns its folder."""
    folder = frames_root / 'train/room-000001'
    for index in range(5):
        path = folder / f'{index:03d}.json'
        pose = np.eye(4)
        pose[:3, 3] = (0.1 * index, 0.0, 0.02 * index)
        motion = {'sequence': index // 3, 'step': index % 3, 'camera_to_world': pose.tolist()}
        path.write_text(json.dumps({**json.loads(path.read_text()), **motion}))
        normals = np.zeros((60, 80, 3), np.uint8)
        normals[20:] = (128 + round(0.6 * 127), 128, 128 - round(0.8 * 127))
        cv2.imwrite(str(folder / f'{index:03d}.normal.png'), normals[..., ::-1])
        labels = np.zeros((60, 80), np.uint8)
        labels[:, 40:] = 7
        cv2.imwrite(str(folder / f'{index:03d}.label.png'), labels)
    for path in (frames_root / 'train/table-000002').iterdir():
        path.unlink()
    return folder


def test_channels_are_read_where_they_are_asked_for(frames_root):
    with_motion(frames_root)
    assert open_dataset('rendered', frames_root, 'train').read(0).normals is None
    data = open_dataset('rendered', frames_root, 'train', channels=['normals', 'labels'])
    frame = data.read(1)
    assert not frame.normals[:20].any()
    np.testing.assert_allclose(frame.normals[20:], np.broadcast_to((0.6, 0, -0.8), (40, 80, 3)),
                               atol=0.005)
    np.testing.assert_allclose(np.linalg.norm(frame.normals[20:], axis=-1), 1, rtol=1e-6)
    assert frame.labels[0, [0, 39, 40, 79]].tolist() == [-1, -1, 6, 6]
    assert [path.name for path in data.files(1)][3:] == ['001.normal.png', '001.label.png']


def test_views_come_with_the_motion_between_them(frames_root):
    folder = with_motion(frames_root)
    data = open_dataset('rendered', frames_root, 'train', views=['previous', 'next'])
    assert [data.name(i) for i in range(len(data))] == ['room-000001/001']  # the middle of three
    frame = data.read(0)
    assert [view.kind for view in frame.views] == ['previous', 'next']
    # the camera moves by (0.1, 0, 0.02): points move the other way in the next camera's frame
    np.testing.assert_allclose(frame.views[1].view_from_frame[:3, 3], (-0.1, 0, -0.02), atol=1e-9)
    np.testing.assert_allclose(frame.views[0].view_from_frame[:3, 3], (0.1, 0, 0.02), atol=1e-9)
    np.testing.assert_array_equal(frame.views[1].rgb[..., ::-1],
                                  cv2.imread(str(folder / '002.jpg')))
    assert frame.views[1].camera.fx == json.loads((folder / '002.json').read_text())['fx']
    assert len(open_dataset('rendered', frames_root, 'train', views=['next'])) == 3


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'channels': ['flow']}, "channels 'flow': expected one of normals, labels"),
        ({'views': ['right']}, "views 'right': expected one of previous, next"),
        ({'channels': ['labels']}, r'label\.png: missing; render the frames with --channels'),
        ({'views': ['next']}, 'render with --sequence 2 or more'),
    ],
)
def test_what_was_not_rendered_is_named(frames_root, options, reason):
    with pytest.raises(DatasetError, match=reason):
        open_dataset('rendered', frames_root, 'train', **options)


@pytest.mark.parametrize('channel', ['normal', 'label'])
def test_a_channel_of_another_size_is_refused(frames_root, channel):
    folder = with_motion(frames_root)
    cv2.imwrite(str(folder / f'000.{channel}.png'), np.ones((30, 80), np.uint8))
    data = open_dataset('rendered', frames_root, 'train', channels=['normals', 'labels'])
    with pytest.raises(DatasetError, match=rf'000\.{channel}\.png: has size \(30, 80\)'):
        data.read(0)


def test_a_view_without_a_pose_is_refused(frames_root):
    folder = with_motion(frames_root)
    raw = json.loads((folder / '001.json').read_text())
    del raw['camera_to_world']
    (folder / '001.json').write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match=r'001\.json: no usable camera_to_world'):
        open_dataset('rendered', frames_root, 'train', views=['next']).read(0)


def test_further_folders_follow_and_their_names_differ(frames_root, tmp_path):
    other = tmp_path / 'more'
    shutil.copytree(frames_root / 'train', other / 'train')
    both = open_dataset('rendered', frames_root, 'train', also=[str(other)])
    assert len(both) == 16
    assert both.name(0) == 'frames/room-000001/000'
    assert both.name(8) == 'more/room-000001/000'
    assert len({both.name(i) for i in range(16)}) == 16
    alone = open_dataset('rendered', other, 'train')
    assert np.array_equal(both.read(8).depth, alone.read(0).depth)
    without = open_dataset('rendered', frames_root, 'val', also=[str(other)])
    assert len(without) == 2, 'the other folder has no such split'
    with pytest.raises(DatasetError, match='nowhere'):
        open_dataset('rendered', frames_root, 'train', also=[str(tmp_path / 'nowhere')])
