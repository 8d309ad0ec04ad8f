"""From parameters to the core's settings."""

from __future__ import annotations

from depth_node.filters import FilterSettings
from depth_node.ros.parameters import Parameters
from depth_node.scale import Scale


def scale(parameters: Parameters) -> Scale:
    """Return the correction that parameters alone define.

    Raises:
        ValueError: numbers that turn depth over or away.
    """
    if parameters.scale.source == 'fixed':
        return Scale('fixed', parameters.scale.scale, parameters.scale.shift)
    return Scale()


def filters(parameters: Parameters) -> FilterSettings:
    """Return which depths count as known.

    Raises:
        ValueError: settings that keep nothing.
    """
    wanted = parameters.filter
    return FilterSettings(near_m=wanted.near_m or None, far_m=wanted.far_m or None,
                          flying_pixel_angle_deg=wanted.flying_pixel_angle_deg)
