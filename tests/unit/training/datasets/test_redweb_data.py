"""ReDWeb: inverse depth as stored, and what is wrong is named with its file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
from depth_node.training.datasets import DatasetError, open_dataset
from depth_node.training.datasets.base import AbsentSplitError
from depth_node.training.datasets.redweb import ReDWeb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

spec = importlib.util.spec_from_file_location(
    'write_redweb', Path(__file__).parent / 'write_redweb.py'
)
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)


def test_values_are_those_of_the_file(tmp_path):
    truth = writer.write(tmp_path, frames=6, size_hw=(30, 44))
    seen = set()
    for split in ('train', 'val'):
        data = open_dataset('redweb', tmp_path, split)
        assert not data.metric
        assert not data.has_camera
        for index in range(len(data)):
            frame = data.read(index)
            stored = truth[data.name(index)]
            np.testing.assert_allclose(frame.rel_inv_depth * 255, stored, atol=1e-4)
            assert frame.rel_inv_depth.dtype == np.float32
            assert frame.size_hw == (30, 44)
            assert not frame.depth.any()
            # larger = nearer, and the writer paints what is near dark
            bright = frame.rgb.mean(2)
            assert np.corrcoef(bright.ravel(), frame.rel_inv_depth.ravel())[0, 1] < -0.9
            assert data.name(index) not in seen
            seen.add(data.name(index))
    assert seen == set(truth)


def test_sixteen_bits_and_the_published_folder_name(tmp_path):
    truth = writer.write(tmp_path / 'ReDWeb_V1', frames=2)
    for name, stored in truth.items():
        path = tmp_path / f'ReDWeb_V1/RDs/{name}.png'
        cv2.imwrite(str(path), stored.astype(np.uint16) * 257)
    data = ReDWeb(tmp_path, 'train', bits=16)
    np.testing.assert_allclose(
        data.read(0).rel_inv_depth * 255, truth[data.name(0)], atol=1e-4
    )
    with pytest.raises(DatasetError, match='uint16'):
        ReDWeb(tmp_path, 'train').read(0)
    with pytest.raises(ValueError, match='bits 12'):
        ReDWeb(tmp_path, 'train', bits=12)


def test_there_is_no_test_split(tmp_path):
    writer.write(tmp_path)
    with pytest.raises(AbsentSplitError, match="split 'test'"):
        ReDWeb(tmp_path, 'test')
    with pytest.raises(DatasetError, match="split 'eval'"):
        ReDWeb(tmp_path, 'eval')


def test_missing_things_are_named(tmp_path):
    with pytest.raises(DatasetError, match='Imgs: no such folder'):
        ReDWeb(tmp_path, 'train')
    (tmp_path / 'Imgs').mkdir()
    with pytest.raises(DatasetError, match=r'no \*\.jpg'):
        ReDWeb(tmp_path, 'train')
    writer.write(tmp_path)
    (tmp_path / 'RDs/web_0002.png').unlink()
    with pytest.raises(DatasetError, match=r'web_0002\.png: missing'):
        ReDWeb(tmp_path, 'train')


@pytest.mark.parametrize(
    ('stored', 'reason'),
    [
        (np.full((48, 64), 7, np.uint8), '7 everywhere'),
        (np.zeros((64, 48), np.uint8), 'both must have one size'),
        (np.zeros((48, 64, 3), np.uint8), 'expected a grey picture of uint8'),
    ],
)
def test_a_spoilt_truth_is_named(tmp_path, stored, reason):
    writer.write(tmp_path)
    data = ReDWeb(tmp_path, 'train')
    path = data.files(0)[1]
    cv2.imwrite(str(path), stored)
    with pytest.raises(DatasetError, match=reason) as caught:
        data.read(0)
    assert str(path) in str(caught.value)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 400), junk=st.binary(max_size=40), which=st.integers(0, 1))
def test_damage_gives_a_picture_or_an_error_that_names_the_file(tmp_path, cut, junk, which):
    writer.write(tmp_path, frames=2, size_hw=(16, 24))
    data = ReDWeb(tmp_path, 'train')
    path = data.files(0)[which]
    path.write_bytes(path.read_bytes()[:cut] + junk)
    try:
        frame, message = data.read(0), ''
    except DatasetError as error:
        frame, message = None, str(error)
    assert (str(path) in message) if frame is None else np.isfinite(frame.rel_inv_depth).all()
