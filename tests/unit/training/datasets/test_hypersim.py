"""Hypersim: distance is not depth, the publishers' table, splits by scene, broken files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import shutil

from depth_node.camera import Camera
from depth_node.training.datasets import DatasetError, open_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

h5py = pytest.importorskip('h5py')
from depth_node.training.datasets.hypersim import depth_from_distance, recognise  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    'write_hypersim', Path(__file__).with_name('write_hypersim.py')
)
writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(writer)

SIZE_HW = (48, 64)
SCENE = writer.SCENES['train']
CSV = 'metadata_images_split_scene_v1.csv'


@pytest.fixture(scope='module')
def hypersim(tmp_path_factory):
    root = tmp_path_factory.mktemp('hypersim')
    return root, writer.write(root, frames=3, size_hw=SIZE_HW, seed=7)


def geometry(root: Path, frame: int = 0) -> Path:
    return (
        root / SCENE / 'images/scene_cam_00_geometry_hdf5' / f'frame.{frame:04d}.depth_meters.hdf5'
    )


def store(path: Path, array: np.ndarray, key: str = 'dataset') -> None:
    with h5py.File(path, 'w') as file:
        file[key] = array


def test_trap_08_distance_becomes_planar_depth(hypersim):
    root, truth = hypersim
    data = open_dataset('hypersim', root, 'train')
    assert len(data) == 3
    frame = data.read(1)
    expected = truth['depth'][SCENE, 1]
    known = np.isfinite(expected)
    np.testing.assert_allclose(frame.depth[known], expected[known], rtol=1e-3)  # stored as float16
    assert (frame.depth[~known] == 0).all()
    assert 0 < (~known).sum() < 20
    focal = truth['focal_px']
    assert (frame.camera.fx, frame.camera.fy) == pytest.approx((focal, focal))
    assert (frame.camera.cx, frame.camera.cy) == (31.5, 23.5)
    # what reading the distance as depth would give in a corner
    corner = np.hypot(31.5, 23.5) / focal
    with h5py.File(geometry(root, 1)) as file:
        distance = file['dataset'][-1, 0]
    assert distance / frame.depth[-1, 0] == pytest.approx(np.sqrt(1 + corner**2), rel=1e-5)
    assert distance / frame.depth[-1, 0] > 1.05


def test_trap_08_a_sphere_around_the_camera_is_flat_only_in_distance():
    camera = Camera((30, 45), 40.0, 33.0, 20.0, 16.0)
    depth = depth_from_distance(np.full((30, 45), 2.0), camera)
    v, u = np.mgrid[:30, :45].astype(float)
    rays = np.linalg.solve(camera.K, np.stack((u.ravel(), v.ravel(), np.ones(u.size))))
    np.testing.assert_allclose(np.linalg.norm(rays * depth.ravel(), axis=0), 2.0, rtol=1e-5)
    assert depth[16, 20] == 2.0


def test_full_size_has_the_published_intrinsics(tmp_path):
    writer.write(tmp_path, frames=1, size_hw=(768, 1024))
    camera = open_dataset('hypersim', tmp_path, 'val').read(0).camera
    assert camera == Camera((768, 1024), 886.81, 886.81, 511.5, 383.5)


def test_table_decides_and_leaves_out_what_is_not_public(hypersim):
    root, _ = hypersim
    for split, scene in writer.SCENES.items():
        data = open_dataset('hypersim', root, split)
        assert [data.name(i) for i in range(len(data))] == [
            f'{scene} cam_00 {n:04d}' for n in range(3)
        ]
        assert all(path.is_file() for path in data.files(2))


def test_scenes_that_are_not_downloaded_are_counted(hypersim, tmp_path):
    root, _ = hypersim
    path = tmp_path / 'split.csv'
    path.write_text((root / CSV).read_text() + 'ai_055_001,cam_01,3,True,,train\n' * 5)
    data = open_dataset('hypersim', root, 'train', split_csv=str(path))
    assert len(data) == 3
    assert '5 listed frames are of scenes that are not on disk' in data.note
    path.write_text(','.join(writer.COLUMNS) + '\nai_055_001,cam_01,3,True,,train\n')
    with pytest.raises(DatasetError, match=r'split\.csv: no frame of split train .*\(1 frames'):
        open_dataset('hypersim', root, 'train', split_csv=str(path))


def test_splits_by_scene(hypersim):
    root, _ = hypersim
    options = {'val_scenes': ['ai_00[23]_*'], 'test_scenes': ['ai_037_002']}
    for split, scene in writer.SCENES.items():
        data = open_dataset('hypersim', root, split, **options)
        assert len(data) == 3
        assert data.name(0) == f'{scene} cam_00 0000'
    with pytest.raises(DatasetError, match='in split test; there are 3 scenes'):
        open_dataset('hypersim', root, 'test', val_scenes=['*'])
    with pytest.raises(DatasetError, match='give one of the two'):
        open_dataset('hypersim', root, 'test', val_scenes=['*'], split_csv='a.csv')
    with pytest.raises(DatasetError, match='expected one of train, val, test'):
        open_dataset('hypersim', root, 'validation')


def test_far_values_are_unknown(hypersim):
    root, truth = hypersim
    limit = float(np.nanmedian(truth['depth'][SCENE, 0]))
    depth = open_dataset('hypersim', root, 'train', max_depth_m=limit).read(0).depth
    assert 0 < depth.max() <= limit
    assert 0.3 < (depth > 0).mean() < 0.7


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('scene_name,frame_id\na,1\n', 'no column camera_name'),
        ('', 'no column scene_name'),
        (
            ','.join(writer.COLUMNS) + f'\n{SCENE},cam_00,one,True,,train\n',
            "line 2: frame_id 'one'",
        ),
        (None, r'no such file; download it'),
    ],
)
def test_wrong_tables_are_named(tmp_path, text, message):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW)
    path = tmp_path / CSV
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=rf'{CSV}.*{message}'):
        open_dataset('hypersim', tmp_path, 'train')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda p: p.unlink(), 'no such file'),
        (lambda p: p.write_bytes(p.read_bytes()[:900]), 'not a readable HDF5 file'),
        (lambda p: p.write_bytes(b''), 'not a readable HDF5 file'),
        (lambda p: store(p, np.ones(SIZE_HW, np.float32), 'depth'), 'named `dataset`'),
        (lambda p: store(p, np.ones(SIZE_HW, np.int32)), 'named `dataset`'),
        (lambda p: store(p, np.ones(9, np.float32)), 'named `dataset`'),
        (lambda p: store(p, np.ones((24, 64), np.float32)), r'depth has size \(24, 64\)'),
        (lambda p: store(p, np.full(SIZE_HW, np.nan, np.float32)), 'no pixel of known depth'),
        (lambda p: store(p, np.full(SIZE_HW, 3e3, np.float32)), 'another unit'),
    ],
)
def test_broken_geometry_is_named(tmp_path, change, message):
    writer.write(tmp_path, frames=1, size_hw=SIZE_HW)
    data = open_dataset('hypersim', tmp_path, 'train')
    change(geometry(tmp_path))
    with pytest.raises(DatasetError, match=rf'frame\.0000\.depth_meters\.hdf5: .*{message}'):
        data.read(0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), which=st.integers(0, 2), keep=st.integers(0, 4000))
def test_hostile_bytes_give_only_dataset_errors(hypersim, data, which, keep):
    root, _ = hypersim
    picture = root / SCENE / 'images/scene_cam_00_final_preview/frame.0000.tonemap.jpg'
    path = (root / CSV, picture, geometry(root))[which]
    old = path.read_bytes()
    path.write_bytes(old[:keep] + data + old[keep + len(data) :][: keep % 7 * 500])
    try:
        frame = open_dataset('hypersim', root, 'train').read(0)
        assert np.isfinite(frame.depth).all()
    except DatasetError as error:
        complaint = str(error)
    else:
        complaint = path.name
    finally:
        path.write_bytes(old)
    # A list may name another file, which is not there.
    unfound = ('no such file', 'cannot be read')
    assert path.name in complaint or (which == 0 and any(word in complaint for word in unfound))


def test_a_zero_byte_in_the_list_is_a_dataset_error(hypersim, tmp_path):
    shutil.copytree(hypersim[0], tmp_path / 'data')
    rows = (tmp_path / 'data' / CSV).read_bytes()
    (tmp_path / 'data' / CSV).write_bytes(rows.replace(b'cam_00', b'c\x00m_00'))
    with pytest.raises(DatasetError, match='cannot be read'):
        open_dataset('hypersim', tmp_path / 'data', 'train').read(0)


def test_recognise(hypersim, tmp_path):
    assert recognise(hypersim[0]).startswith('Hypersim: ai_')
    assert recognise(tmp_path) is None
