"""MegaDepth: clean-up, ordinal maps, lists, and files that are not what they should be."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
import pickle

from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

h5py = pytest.importorskip('h5py')

from depth_node.training.datasets.megadepth import (  # noqa: E402
    MegaDepth,
    is_ordinal,
    without_extremes,
)

spec = importlib.util.spec_from_file_location(
    'write_megadepth', Path(__file__).parent / 'write_megadepth.py'
)
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)


def store(path: Path, stored: np.ndarray, key: str = 'depth') -> None:
    with h5py.File(path, 'w') as file:
        file.create_dataset(key, data=stored)


def test_depth_and_ordinal_maps_are_those_of_the_files(tmp_path):
    truth = writer.write(tmp_path, frames=3, size_hw=(40, 56))
    seen = set()
    for split in ('train', 'val'):
        data = open_dataset('megadepth', tmp_path, split)
        assert not data.metric
        for index in range(len(data)):
            frame, expected = data.read(index), truth[data.name(index)]
            seen.add(data.name(index))
            assert frame.size_hw == (40, 56)
            assert frame.camera is None
            if 'ordinal' in expected:
                np.testing.assert_array_equal(frame.ordinal, expected['ordinal'])
                assert frame.ordinal.dtype == np.int8
                assert not frame.depth.any()
            else:
                stored = expected['depth']
                known = np.sort(stored[stored > 0])
                assert not frame.ordinal.any()
                kept = frame.depth > 0
                np.testing.assert_array_equal(frame.depth[kept], stored[kept])
                ranks = np.searchsorted(known, [frame.depth[kept].min(), frame.depth.max()])
                np.testing.assert_allclose(ranks / len(known), [0.01, 0.98], atol=2e-3)
                assert kept.sum() == np.diff(ranks) + 1
                assert frame.depth.max() < 1e3 * np.median(known)  # the wild values are gone
    assert seen == set(truth)


def test_whole_scenes_are_held_out(tmp_path):
    writer.write(tmp_path, frames=2)
    scenes = {}
    for split in ('train', 'val'):
        data = MegaDepth(tmp_path, split)
        scenes[split] = {data.name(i)[:4] for i in range(len(data))}
        assert scenes[split]
    assert not scenes['train'] & scenes['val']
    options = {'test_scenes': ['0015']}
    test = MegaDepth(tmp_path, 'test', **options)
    assert {test.name(i)[:4] for i in range(len(test))} == {'0015'}
    train = MegaDepth(tmp_path, 'train', **options)
    assert '0015' not in {train.name(i)[:4] for i in range(len(train))}
    with pytest.raises(AbsentSplitError, match="split 'test'"):
        MegaDepth(tmp_path, 'test')
    with pytest.raises(DatasetError, match='9999: a test scene without pictures'):
        MegaDepth(tmp_path, 'test', test_scenes=['9999'])
    with pytest.raises(DatasetError, match="split 'eval'"):
        MegaDepth(tmp_path, 'eval')


def test_ordinal_maps_can_be_left_out(tmp_path):
    truth = writer.write(tmp_path, frames=3)
    data = MegaDepth(tmp_path, 'train', ordinal=False)
    assert len(data) == 4  # two scenes, two of three pictures
    assert all('depth' in truth[data.name(i)] for i in range(len(data)))


def test_clean_up_by_percentiles():
    depth = np.zeros((10, 20), np.float32)
    depth.flat[:101] = np.random.default_rng(0).permutation(np.arange(100, 201))
    cleaned = without_extremes(depth)
    # of 100..200 the 1st percentile is 101 and the 98th 198, and both stay
    assert sorted(cleaned[cleaned > 0]) == list(range(101, 199))
    np.testing.assert_array_equal(cleaned[cleaned > 0], depth[cleaned > 0])
    assert not without_extremes(np.zeros((3, 4), np.float32)).any()


@pytest.mark.parametrize(
    ('stored', 'expected'),
    [
        ([[0, 1, 2]], True),
        ([[-1, 0, 3]], True),
        ([[0, 0, 0]], False),
        ([[0, 1, 2.5]], False),
        ([[1, 2, 7]], False),
        ([[np.nan, 1, 2]], False),
    ],
)
def test_an_ordinal_map_is_small_whole_numbers_only(stored, expected):
    assert is_ordinal(np.array(stored, np.float32)) is expected


@pytest.mark.parametrize(
    ('codes', 'expected'),
    [
        ([0, 1, 2, 3], [0, 1, 2, 0]),  # without a negative value: 1 and 2 as they are
        ([0, 1, 2, -1], [0, 1, 1, 2]),  # negative = background
    ],
)
def test_both_known_codes_are_understood(tmp_path, codes, expected):
    writer.write(tmp_path, frames=1, size_hw=(20, 32))
    data = MegaDepth(tmp_path, 'train')
    store(data.files(0)[1], np.tile(np.array(codes, np.float32), (20, 8)))
    np.testing.assert_array_equal(data.read(0).ordinal, np.tile(expected, (20, 8)))


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda p: store(p, np.zeros((48, 64), np.float32)), 'no pixel of known depth'),
        (lambda p: store(p, np.full((48, 64), np.nan, np.float32)), 'no pixel of known depth'),
        (lambda p: store(p, np.ones((64, 48), np.float32)), 'both must have one size'),
        (lambda p: store(p, np.ones((48, 64), np.float32)), 'without both'),
        (lambda p: store(p, np.ones((48, 64), np.float32), 'z'), r'no data set /depth.*z'),
        (lambda p: store(p, np.full((48, 64), b'x')), 'expected numbers'),
        (lambda p: p.write_bytes(p.read_bytes()[:600]), 'not a readable HDF5 file'),
        (lambda p: p.write_bytes(b''), 'not a readable HDF5 file'),
        (lambda p: p.unlink(), 'no such file'),
    ],
)
def test_a_spoilt_depth_file_is_named(tmp_path, spoil, reason):
    writer.write(tmp_path, frames=1)
    data = MegaDepth(tmp_path, 'train')
    path = data.files(0)[1]
    spoil(path)
    with pytest.raises(DatasetError, match=reason) as caught:
        data.read(0)
    assert str(path) in str(caught.value)


def test_a_file_that_claims_to_be_huge_takes_no_memory(tmp_path):
    writer.write(tmp_path, frames=1)
    path = MegaDepth(tmp_path, 'train').files(0)[1]
    with h5py.File(path, 'w') as file:
        file.create_dataset('depth', shape=(2**20, 2**20), dtype='f4', chunks=(64, 64))
    with pytest.raises(DatasetError, match='which is no photograph'):
        MegaDepth(tmp_path, 'train', ordinal=False)


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(DatasetError, match='no pictures; expected'):
        MegaDepth(tmp_path, 'train')
    writer.write(tmp_path, frames=1)
    image = MegaDepth(tmp_path, 'train').files(0)[0]
    image.unlink()
    with pytest.raises(DatasetError, match='missing') as caught:
        MegaDepth(tmp_path, 'train')
    assert image.stem in str(caught.value)


# --- lists


def listed(root: Path, names: list[str], write) -> None:
    folder = root / 'lists/landscape'
    folder.mkdir(parents=True, exist_ok=True)
    targets = [n.replace('/imgs/', '/depths/').replace('.jpg', '.h5') for n in names]
    write(folder / 'imgs_MD', names)
    write(folder / 'targets_MD', targets)


def as_text(path: Path, names: list[str]) -> None:
    path.with_suffix('.txt').write_text('\n'.join(names) + '\n')


@pytest.mark.parametrize('protocol', [None, 0, 2, 4])
@pytest.mark.parametrize('prefix', ['', 'MegaDepth_v1/', '/MegaDepth_v1/'])
def test_lists_choose_pictures_in_their_order(tmp_path, protocol, prefix):
    names = [n for n in writer.write(tmp_path / 'MegaDepth_v1', frames=2) if n[:4] != '0063']
    chosen = names[::-1][:3]

    def as_pickle(path: Path, lines: list[str]) -> None:
        path.with_suffix('.p').write_bytes(pickle.dumps(lines, protocol))

    writing = as_text if protocol is None else as_pickle
    listed(tmp_path, [prefix + n for n in chosen], writing)
    data = MegaDepth(
        tmp_path, 'test', lists=['lists/landscape'], test_scenes=['0008', '0015']
    )
    assert [data.name(i) for i in range(len(data))] == chosen
    data.read(0)


def test_a_pickle_of_bytes_as_python_2_wrote_it(tmp_path):
    names = list(writer.write(tmp_path, frames=1))

    def as_old(path: Path, lines: list[str]) -> None:
        # protocol 0: a list of Python 2 strings
        body = ''.join(f"S'{line}'\n" + 'a' for line in lines)
        path.with_suffix('.p').write_bytes(b'(l' + body.encode() + b'.')

    listed(tmp_path, names, as_old)
    data = MegaDepth(tmp_path, 'train', lists=['lists/landscape'])
    assert data.name(0) in names


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused_and_does_not(tmp_path):
    names = list(writer.write(tmp_path, frames=1))
    listed(tmp_path, names, as_text)
    folder = tmp_path / 'lists/landscape'
    (folder / 'targets_MD.txt').unlink()
    (folder / 'targets_MD.p').write_bytes(pickle.dumps([_Touch(tmp_path / 'ran')]))
    with pytest.raises(DatasetError, match=r'targets_MD\.p: not a pickled list of paths'):
        MegaDepth(tmp_path, 'train', lists=['lists/landscape'])
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'content', [[], ['a', 3], {'a': 'b'}, 'a', [''], ['a\0b'], [['a']], None, [b'\xff', 'x', 1]]
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    names = list(writer.write(tmp_path, frames=1))
    listed(tmp_path, names, as_text)
    folder = tmp_path / 'lists/landscape'
    (folder / 'imgs_MD.txt').unlink()
    (folder / 'imgs_MD.p').write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError, match=r'imgs_MD\.p: expected a list of paths'):
        MegaDepth(tmp_path, 'train', lists=['lists/landscape'])


def test_lists_that_do_not_fit_are_refused(tmp_path):
    names = list(writer.write(tmp_path, frames=1))
    with pytest.raises(DatasetError, match=r'imgs_MD\.p: no such file'):
        MegaDepth(tmp_path, 'train', lists=['lists/landscape'])
    listed(tmp_path, names, as_text)
    as_text(tmp_path / 'lists/landscape/imgs_MD', names[:-1])
    with pytest.raises(DatasetError, match='2 pictures and 3 targets'):
        MegaDepth(tmp_path, 'train', lists=['lists/landscape'])
    listed(tmp_path, ['../../etc/hosts'], as_text)
    with pytest.raises(DatasetError, match='below the root'):
        MegaDepth(tmp_path, 'train', lists=['lists/landscape'])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_a_frame_or_an_error_that_names_the_file(tmp_path, data):
    if not (tmp_path / '0008').exists():
        writer.write(tmp_path, frames=1, size_hw=(16, 24))
        good = io.BytesIO()
        with h5py.File(good, 'w') as file:
            file.create_dataset('depth', data=np.linspace(1, 9, 384).reshape(16, 24))
        (tmp_path / 'good').write_bytes(good.getvalue())
    content = bytearray((tmp_path / 'good').read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    opened = MegaDepth(tmp_path, 'train')
    path = opened.files(0)[1]
    path.write_bytes(bytes(content))
    try:
        frame, message = opened.read(0), ''
    except DatasetError as error:
        frame, message = None, str(error)
    assert (str(path) in message) if frame is None else np.isfinite(frame.depth).all()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=60))
def test_any_pickle_gives_a_list_or_an_error_that_names_it(tmp_path, content):
    folder = tmp_path / 'lists'
    folder.mkdir(exist_ok=True)
    as_text(folder / 'targets_MD', ['0008/dense0/depths/a.h5'])
    (folder / 'imgs_MD.p').write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        MegaDepth(tmp_path, 'train', lists=['lists'])
    assert str(tmp_path) in str(caught.value)
