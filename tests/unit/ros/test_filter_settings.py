"""From filter parameters to the core's settings, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import cv2
from depth_node.filters import FilterSettings
from depth_node.ros import settings
from depth_node.ros.parameters import ParameterError, Parameters
import numpy as np
import pytest


def test_the_node_filters_by_default_as_the_core_does() -> None:
    assert settings.filters(Parameters()) == FilterSettings()


def test_every_parameter_reaches_its_setting(tmp_path: Path) -> None:
    mask = tmp_path / 'gripper.png'
    cv2.imwrite(str(mask), np.zeros((4, 6), np.uint8))
    wanted = Parameters().changed({
        'filter.near_m': 0.4, 'filter.far_m': 6, 'filter.flying_pixel_angle_deg': 5.0,
        'filter.flying_pixel_jump': 0.2, 'filter.speckle_px': 90, 'filter.speckle_jump': 0.3,
        'filter.median': 5, 'filter.temporal': 'median', 'filter.temporal_frames': 6,
        'filter.temporal_gate': 0.07, 'filter.min_confidence': 0.25,
        'filter.roi': [3, 0, 0, 40], 'filter.ignore': '[[1, 2], [3, 4], [5, 0]]',
        'filter.mask_file': str(mask)})
    assert settings.filters(wanted) == FilterSettings(
        near_m=0.4, far_m=6.0, flying_pixel_angle_deg=5.0, flying_pixel_jump=0.2, speckle_px=90,
        speckle_jump=0.3, median=5, temporal='median', temporal_frames=6, temporal_gate=0.07,
        min_confidence=0.25, roi=(3, 0, 0, 40), ignore=(((1.0, 2.0), (3.0, 4.0), (5.0, 0.0)),),
        mask_file=str(mask))


def test_an_off_that_yaml_took_for_a_boolean_is_off() -> None:
    assert settings.filters(Parameters().changed({'filter.temporal': False})).temporal == 'off'


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('filter.ignore', '[[1, 2], [3, 4]]', r'filter\.ignore: .*2 corners'),
    ('filter.ignore', 'gripper', r'filter\.ignore: .*expected'),
    ('filter.mask_file', '/nowhere/mask.png', r'filter\.mask_file: .*No such file'),
    ('filter.median', 4, 'median 4, expected one of 0, 3, 5')])
def test_what_the_core_refuses_is_named(name: str, value: object, reason: str) -> None:
    wanted = Parameters().changed({name: value})
    with pytest.raises(ValueError, match=reason):
        settings.filters(wanted)


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('filter.temporal', 'kalman', 'off, ema, median'), ('filter.median', 7, '0 to 5'),
    ('filter.temporal_frames', 1, '2 to 15'), ('filter.min_confidence', -0.1, '0 to 1'),
    ('filter.roi', [1, 2, 3], '4 whole numbers'), ('filter.flying_pixel_jump', 2.0, '0 to 1')])
def test_what_the_table_refuses_is_named(name: str, value: object, reason: str) -> None:
    with pytest.raises(ParameterError, match=f'{name}.*{reason}'):
        Parameters().changed({name: value})
