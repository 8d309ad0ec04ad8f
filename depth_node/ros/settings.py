"""From parameters to the core's settings."""

from __future__ import annotations

import functools
import math
from typing import Any

from depth_node.filters import FilterSettings, parse_polygons, read_mask
from depth_node.geometry import CloudLayout
from depth_node.ground import GroundSettings, Mount
from depth_node.model_card import ModelCard
from depth_node.obstacles import ScanSettings
from depth_node.ros.parameters import FilterParameters, Parameters
from depth_node.scale import Scale
from depth_node.scale_points import PointsSettings

_WHOLE = 1 << 20  # px; CloudPacker cuts a region off at the image's border


def scale(parameters: Parameters) -> Scale:
    """Return the correction that parameters alone define.

    Raises:
        ValueError: numbers that turn depth over or away.
    """
    source = parameters.scale.source
    if source == 'fixed':
        return Scale('fixed', parameters.scale.scale, parameters.scale.shift)
    if source == 'model':
        return Scale()
    return Scale(source, state='waiting', note='no image has been processed yet')


def points(parameters: Parameters, card: ModelCard) -> PointsSettings:
    """Return how measured points become a scale for this network.

    Raises:
        ValueError: settings that let nothing pass.
    """
    wanted = parameters.scale
    return PointsSettings(
        **_track(parameters, card), fit=wanted.fit, min_points=wanted.min_points,
        sync_tolerance_s=wanted.sync_tolerance_s)


def ground(parameters: Parameters, card: ModelCard) -> GroundSettings:
    """Return how the floor becomes a scale for this network.

    Raises:
        ValueError: settings that let nothing pass.
    """
    return GroundSettings(**_track(parameters, card),
                          estimate_tilt=parameters.scale.estimate_tilt)


def _track(parameters: Parameters, card: ModelCard) -> dict[str, Any]:
    """Return what all estimates have in common."""
    wanted = parameters.scale
    return {'low': wanted.low, 'high': wanted.high, 'max_uncertainty': wanted.max_uncertainty,
            'smoothing_s': wanted.smoothing_s, 'max_age_s': wanted.max_age_s,
            'when_stale': wanted.when_stale, 'kind': card.output.kind,
            'local_error': wanted.local_error}


def filters(parameters: Parameters) -> FilterSettings:
    """Return which depths count as known.

    Raises:
        ValueError: settings that keep nothing, a polygon or a mask file that cannot be read.
    """
    return _filters(parameters.filter)


@functools.lru_cache(maxsize=32)  # asked for every frame; a mask file is opened once
def _filters(wanted: FilterParameters) -> FilterSettings:
    try:
        ignore = parse_polygons(wanted.ignore)
    except ValueError as error:
        raise ValueError(f'filter.ignore: {error}') from error
    if wanted.mask_file:
        try:
            read_mask(wanted.mask_file)
        except ValueError as error:
            raise ValueError(f'filter.mask_file: {error}') from error
    u0, v0, width, height = wanted.roi
    return FilterSettings(
        near_m=wanted.near_m or None, far_m=wanted.far_m or None,
        flying_pixel_angle_deg=wanted.flying_pixel_angle_deg,
        flying_pixel_jump=wanted.flying_pixel_jump, speckle_px=wanted.speckle_px,
        speckle_jump=wanted.speckle_jump, median=wanted.median, temporal=wanted.temporal,
        temporal_frames=wanted.temporal_frames, temporal_gate=wanted.temporal_gate,
        min_confidence=wanted.min_confidence,
        roi=None if wanted.roi == (0, 0, 0, 0) else (u0, v0, width, height), ignore=ignore,
        mask_file=wanted.mask_file)


def mount(parameters: Parameters) -> Mount | None:
    """Return how the camera hangs as far as numbers alone say so; None where they say nothing.

    A height of 0 is unknown, and becomes NaN beside a given tilt.
    """
    given = parameters.mount
    if not (given.height_m or given.pitch_deg or given.roll_deg):
        return None
    return Mount.from_angles(given.height_m or math.nan, given.pitch_deg, given.roll_deg)


def cloud(parameters: Parameters, *, confidence: bool = True) -> CloudLayout:
    """Return the shape of the point cloud.

    Args:
        parameters: of the node.
        confidence: whether the network has this output; without it the field is left out.

    Raises:
        ValueError: settings that contradict each other.
    """
    wanted = parameters.cloud
    u0, v0, width, height = wanted.roi
    banded = wanted.min_height_m != 0 or wanted.max_height_m != 0
    asked = {'rgb': wanted.rgb, 'intensity': wanted.intensity,
             'confidence': wanted.confidence and confidence}
    return CloudLayout(
        stride=wanted.stride, organised=wanted.organised,
        roi=None if wanted.roi == (0, 0, 0, 0) else (u0, v0, width or _WHOLE, height or _WHOLE),
        fields=tuple(name for name, on in asked.items() if on),
        far_m=wanted.far_m or math.inf, far_points=wanted.far_points, voxel_m=wanted.voxel_m,
        min_height_m=wanted.min_height_m if banded else -math.inf,
        max_height_m=wanted.max_height_m if banded else math.inf,
        remove_ground=wanted.remove_ground, ground_margin_m=wanted.ground_margin_m,
        ground_margin_per_m=wanted.ground_margin_per_m)


def scan(parameters: Parameters) -> ScanSettings:
    """Return what is an obstacle, and the shape of the scan.

    Raises:
        ValueError: settings that contradict each other.
    """
    wanted = parameters.scan
    return ScanSettings(
        min_height_m=wanted.min_height_m, max_height_m=wanted.max_height_m,
        margin_per_m=wanted.margin_per_m, near_m=parameters.filter.near_m,
        range_min_m=wanted.range_min_m, range_max_m=wanted.range_max_m,
        angle_increment_deg=wanted.angle_increment_deg, min_rows=wanted.min_rows)
