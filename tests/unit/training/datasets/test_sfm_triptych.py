"""Triptychs are read as SfMLearner's script writes them; what is broken is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    'write_sfm_triptych', Path(__file__).with_name('write_sfm_triptych.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / 'triptychs'
    return root, writer.write(root, frames=2, size_hw=(48, 80), seed=5)


def first_files(root: Path) -> tuple[Path, Path]:
    return open_dataset('sfm_triptych', root, 'train').files(0)


def test_the_middle_is_the_frame_and_its_neighbours_are_views(data):
    root, truth = data
    for split, count in (('train', 2), ('val', 1)):
        dataset = open_dataset('sfm_triptych', root, split)
        assert len(dataset) == count
        for index, expected in enumerate(truth[split]):
            frame = dataset.read(index)
            assert dataset.name(index) == expected['name']
            assert frame.size_hw == (48, 80)
            strip = np.concatenate([frame.views[0].rgb, frame.rgb, frame.views[1].rgb], 1)
            difference = np.abs(strip.astype(int) - expected['strip'])
            assert difference.mean() < 1.5  # what JPEG loses
            np.testing.assert_allclose(frame.camera.K, expected['K'], atol=1e-5)
            assert [view.kind for view in frame.views] == ['previous', 'next']
            assert all(view.view_from_frame is None for view in frame.views)
            assert not frame.depth.any()
    assert not dataset.metric
    assert dataset.has_camera
    assert dataset.fingerprint()['frames'] == 1


def test_the_written_motion_is_true(data):
    """Each pixel of the frame, moved by depth and pose, lands on a view's depth there."""
    _, truth = data
    for expected in truth['train']:
        depth, K = expected['depth'].astype(float), expected['K']
        v, u = np.mgrid[:48, :80]
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
        points = rays * depth[..., None]
        for pose, view_depth in zip(
            expected['view_from_frame'], expected['view_depths'], strict=True
        ):
            moved = points @ pose[:3, :3].T + pose[:3, 3]
            seen = moved @ K.T
            at = np.rint(seen[..., :2] / seen[..., 2:]).astype(int)
            inside = (at >= 0).all(-1) & (at < [80, 48]).all(-1)
            there = view_depth[at[inside][:, 1], at[inside][:, 0]]
            ratio = there / moved[inside][:, 2]
            assert np.median(np.abs(ratio - 1)) < 0.01
            assert np.mean(np.abs(ratio - 1) < 0.05) > 0.9  # the rest is hidden, or at borders


def test_five_pictures_have_four_views(tmp_path):
    (tmp_path / 'a').mkdir()
    strip = np.repeat(np.arange(5, dtype=np.uint8) * 50, 8)[None, :, None].repeat(6, 0)
    cv2.imwrite(str(tmp_path / 'a' / '0.jpg'), strip.repeat(3, 2))
    (tmp_path / 'a' / '0_cam.txt').write_text('10 0 4\n0 12 3\n0 0 1\n')
    (tmp_path / 'val.txt').write_text('\na 0\n')
    frame = open_dataset('sfm_triptych', tmp_path, 'val', length=5).read(0)
    assert [view.kind for view in frame.views] == ['previous', 'previous', 'next', 'next']
    means = [view.rgb.mean() for view in frame.views]
    assert frame.rgb.mean() == pytest.approx(100, abs=3)
    assert means == pytest.approx([0, 50, 150, 200], abs=3)
    assert (frame.camera.fx, frame.camera.fy, frame.camera.cx) == (10, 12, 4)
    with pytest.raises(DatasetError, match=r'0\.jpg: 40 pixels wide, expected 3 pictures'):
        open_dataset('sfm_triptych', tmp_path, 'val').read(0)


def test_splits_that_are_not_there_are_no_fault(data):
    root, _ = data
    with pytest.raises(AbsentSplitError, match="'test': expected one of train, val"):
        open_dataset('sfm_triptych', root, 'test')
    (root / 'val.txt').unlink()
    with pytest.raises(AbsentSplitError, match=r'val\.txt: no such list'):
        open_dataset('sfm_triptych', root, 'val')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\n \n', r'train\.txt: empty'),
        (b'a 0\nb 1 2\n', r"train\.txt, line 2: 'b 1 2', expected '<folder> <frame>'"),
        (b'a 0\0\n', 'line 1'),
        (b'\xff\xfe\x00', r'train\.txt: not a text file'),
    ],
)
def test_broken_lists_are_named_with_the_line(data, content, message):
    root, _ = data
    (root / 'train.txt').write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset('sfm_triptych', root, 'train')


def test_missing_and_truncated_files_are_named(data):
    root, _ = data
    dataset = open_dataset('sfm_triptych', root, 'train')
    strip, camera = dataset.files(0)
    kept = camera.read_text()
    camera.unlink()
    with pytest.raises(DatasetError, match=r'_cam\.txt: no such file'):
        dataset.read(0)
    camera.write_text(kept)
    strip.write_bytes(strip.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r'\.jpg: not a readable picture'):
        dataset.read(0)
    strip.unlink()
    with pytest.raises(DatasetError, match=r'\.jpg: no such file'):
        dataset.read(0)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('50,0,40,0,50,24,0,0', '8 numbers, expected the nine'),
        ('50,0,40,0,fifty,24,0,0,1', 'expected the nine numbers'),
        ('50,0.1,40,0,50,24,0,0,1', 'expected fx 0 cx, 0 fy cy, 0 0 1'),
        ('50,0,0,0,50,0,40,24,1', 'expected fx 0 cx'),  # column by column
        ('0,0,40,0,50,24,0,0,1', 'uncalibrated|focal'),
        ('nan,0,40,0,50,24,0,0,1', 'NaN'),
        ('50,0,120,0,50,24,0,0,1', 'must belong to one picture'),  # of the whole strip
        ('718,0,607,0,718,185,0,0,1', 'must belong to one picture'),  # of the original size
        ('', '0 numbers'),
    ],
)
def test_wrong_intrinsics_are_named(data, content, message):
    root, _ = data
    _, camera = first_files(root)
    camera.write_text(content)
    with pytest.raises(DatasetError, match=rf'_cam\.txt: .*({message})'):
        open_dataset('sfm_triptych', root, 'train').read(0)


@pytest.mark.parametrize('length', [1, 2, 4])
def test_impossible_lengths_are_refused(data, length):
    with pytest.raises(ValueError, match=f'length {length}'):
        open_dataset('sfm_triptych', data[0], 'train', length=length)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.sampled_from(['list', 'jpg', 'cam']), content=st.binary(max_size=200),
       cut=st.integers(0, 4000))  # fmt: skip
def test_hostile_files_never_give_anything_but_a_dataset_error(data, which, content, cut):
    root, _ = data
    writer.write(root, frames=1, size_hw=(48, 80), seed=1)
    strip, camera = first_files(root)
    path = {'list': root / 'train.txt', 'jpg': strip, 'cam': camera}[which]
    path.write_bytes(path.read_bytes()[:cut] + content)
    try:
        dataset = open_dataset('sfm_triptych', root, 'train')
        for index in range(len(dataset)):
            frame = dataset.read(index)
            assert frame.rgb.shape[:2] == frame.views[0].rgb.shape[:2]
    except DatasetError as error:
        text = str(error)
    else:
        return
    assert str(root) in text
