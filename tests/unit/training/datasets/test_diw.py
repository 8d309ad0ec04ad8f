"""Depth in the wild: the csv is read as it is meant, and what is wrong is named with its line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.diw import Diw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

spec = importlib.util.spec_from_file_location('write_diw', Path(__file__).parent / 'write_diw.py')
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)

PATH, PAIR = './DIW_test/a.thumb', '3,5,7,9,>,64,48'


def annotate(root: Path, *lines: str) -> Path:
    path = root / 'DIW_test.csv'
    path.write_text('\n'.join(lines))
    return path


def test_every_pair_is_the_one_that_was_written(tmp_path):
    truth = writer.write(tmp_path, frames=5, size_hw=(30, 44))
    for split, count in (('train', 5), ('val', 2), ('test', 2)):
        data = open_dataset('diw', tmp_path, split)
        assert len(data) == count
        assert not data.metric
        assert not data.has_camera
        for index, sample in enumerate(truth[split]):
            frame = data.read(index)
            assert frame.size_hw == (30, 44)
            assert frame.camera is None
            assert not frame.depth.any()
            np.testing.assert_array_equal(frame.pairs.uv, [[*sample['a'], *sample['b']]])
            assert frame.pairs.relation.tolist() == [sample['relation']]
            assert frame.pairs.uv.dtype == np.float32
            assert frame.pairs.relation.dtype == np.int8
            assert data.files(index) == (sample['image'],)
    assert len({data.name(i) for i in range(len(data))}) == len(data)


def test_trap_18_greater_in_the_file_means_that_a_is_farther(tmp_path):
    # The file says in words: row 2, column 1 > row 1, column 4 of a picture 6 wide and 4 high.
    truth = writer.write(tmp_path, frames=2, size_hw=(4, 6))['test'][0]
    annotate(tmp_path, f'./DIW_test/{truth["image"].name}', '2,1,1,4,>,6,4')
    pairs = Diw(tmp_path, 'test').read(0).pairs
    depth = np.full((4, 6), 5.0)
    depth[1, 0] = 9.0  # A, in pixels counted from 0, is farther than B
    (ua, va, ub, vb), sign = pairs.uv[0].astype(int), pairs.relation[0]
    assert (ua, va, ub, vb) == (0, 1, 3, 0)
    assert sign * (depth[va, ua] - depth[vb, ub]) > 0


def test_annotations_may_lie_in_their_own_folder_and_pictures_elsewhere(tmp_path):
    writer.write(tmp_path, frames=2)
    (tmp_path / 'DIW_Annotations').mkdir()
    (tmp_path / 'DIW_val.csv').rename(tmp_path / 'DIW_Annotations/DIW_val.csv')
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'DIW_train_val').rename(tmp_path / 'pictures/DIW_train_val')
    assert Diw(tmp_path, 'val', images='pictures').read(0).size_hw == (48, 64)
    with pytest.raises(DatasetError, match=r'val00000\.thumb: no such file'):
        Diw(tmp_path, 'val').read(0)


def test_another_file_can_be_named(tmp_path):
    truth = writer.write(tmp_path, frames=4)
    (tmp_path / 'DIW_train.csv').rename(tmp_path / 'mine.csv')
    assert len(Diw(tmp_path, 'train', csv='mine.csv')) == len(truth['train'])
    with pytest.raises(DatasetError, match=r'other\.csv: no such file'):
        Diw(tmp_path, 'train', csv='other.csv')
    with pytest.raises(AbsentSplitError, match=r'DIW_train\.csv'):
        Diw(tmp_path, 'train')


def test_an_unknown_split_is_refused(tmp_path):
    writer.write(tmp_path)
    with pytest.raises(DatasetError, match="split 'eval'"):
        Diw(tmp_path, 'eval')


@pytest.mark.parametrize(
    ('lines', 'reason'),
    [
        ([], 'empty'),
        ([PATH], '1 lines, expected two a sample'),
        ([PATH, PAIR, PATH], '3 lines, expected two a sample'),
        (['', PAIR], r'csv:1: found'),
        ([PATH, '3,5,7,9,=,64,48'], r'csv:2: found .* expected yA,xA,yB,xB,relation'),
        ([PATH, '3,5,7,9,>,64'], 'csv:2'),
        ([PATH, PAIR, PATH, '3,5,x,9,>,64,48'], 'csv:4: .*whole numbers'),
        ([PATH, '0,5,7,9,>,64,48'], r'\(5, 0\) and \(9, 7\), counted from 1'),
        ([PATH, '3,65,7,9,>,64,48'], 'not all in a picture of 64 x 48'),
        ([PATH, '49,5,7,9,>,64,48'], 'not all in a picture of 64 x 48'),
        ([PATH, '3,5,3,5,>,64,48'], r'both points are \(5, 3\)'),
        ([PATH, '3,5,7,9,>,0,48'], 'width 0'),
        ([PATH, '3,5,7,9,>,99999999999,48'], 'width 99999999999'),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, lines, reason):
    path = annotate(tmp_path, *lines)
    with pytest.raises(DatasetError, match=reason) as caught:
        Diw(tmp_path, 'test')
    assert str(path) in str(caught.value)


def test_edges_of_the_picture_are_in_it(tmp_path):
    annotate(tmp_path, PATH, '1,1,48,64,<,64,48')
    assert Diw(tmp_path, 'test')._uv.tolist() == [[0, 0, 63, 47]]


def test_a_picture_of_another_size_than_annotated_is_refused(tmp_path):
    truth = writer.write(tmp_path, frames=2, size_hw=(30, 44))['test'][0]
    annotate(tmp_path, f'./DIW_test/{truth["image"].name}', '2,1,1,4,>,30,44')
    with pytest.raises(DatasetError, match=r'\(30, 44\).*annotated at \(44, 30\)'):
        Diw(tmp_path, 'test').read(0)


def test_a_broken_picture_is_named(tmp_path):
    image = writer.write(tmp_path)['train'][1]['image']
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r'train00001\.thumb: not a readable picture'):
        Diw(tmp_path, 'train').read(1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.one_of(
    st.binary(max_size=200),
    st.lists(st.text('0123456789,<>="./ \n\x00', max_size=40), max_size=6).map(
        lambda lines: '\n'.join([PATH, PAIR, *lines]).encode()
    ),
))  # fmt: skip
def test_any_content_gives_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / 'DIW_test.csv'
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:  # at the latest for want of the picture
        Diw(tmp_path, 'test').read(0)
    assert str(tmp_path) in str(caught.value)
