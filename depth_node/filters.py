"""Filters on the depth grid.  Each works in place and returns how many pixels it took."""

from __future__ import annotations

from dataclasses import dataclass
import math

from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FilterSettings:
    """What is removed from the depth image.

    Attributes:
        near_m: nearer depths become -Inf (REP 117: too close); None takes the card's range.
        far_m: farther depths become +Inf (REP 117: out of range); None takes the card's range.
        flying_pixel_angle_deg: surfaces seen at a smaller angle to the viewing ray become NaN;
            0 switches the filter off.
    """

    near_m: float | None = None
    far_m: float | None = None
    flying_pixel_angle_deg: float = 4.0

    def __post_init__(self) -> None:
        """Refuse ranges and angles that keep nothing."""
        near, far = self.near_m or 0.0, self.far_m if self.far_m is not None else math.inf
        if not 0 <= near < far:
            raise ValueError(f'filter: near {self.near_m} m, far {self.far_m} m; expected '
                             '0 <= near < far')
        if not 0 <= self.flying_pixel_angle_deg < 45:
            raise ValueError(f'filter: flying pixel angle {self.flying_pixel_angle_deg} degrees, '
                             'expected 0 (off) to 45')

    def range_m(self, card_range_m: tuple[float, float] | None) -> tuple[float, float]:
        """Return the (near, far) in force, metres, given the card's own range."""
        near, far = card_range_m if card_range_m is not None else (0.0, math.inf)
        return (self.near_m if self.near_m is not None else near,
                self.far_m if self.far_m is not None else far)


def range_clip(depth: NDArray[np.float32], near_m: float, far_m: float) -> tuple[int, int]:
    """Mark depths outside of [near, far] as REP 117 asks: -Inf too close, +Inf out of range.

    Args:
        depth: (H, W) metres, NaN unknown; changed in place.
        near_m: smallest depth kept, metres.
        far_m: largest depth kept, metres.

    Returns:
        How many pixels were too near and too far.
    """
    too_near, too_far = depth < near_m, depth > far_m
    counts = int(np.count_nonzero(too_near)), int(np.count_nonzero(too_far))
    if counts[0]:
        depth[too_near] = -np.inf
    if counts[1]:
        depth[too_far] = np.inf
    return counts


def flying_pixels(depth: NDArray[np.float32], camera: Camera, min_angle_deg: float) -> int:
    """Remove pixels on slopes too steep to be seen: the ramps that a network draws at edges.

    Two neighbouring pixels are points Z / f apart sideways and dZ apart in depth.  Where the line
    through them meets the viewing ray at less than `min_angle_deg`, that is where
    |dZ| f / min(Z) > cot(angle), both are removed (the shadow-point test of laser scan filters,
    written for a pinhole camera near its axis).  The test depends on the angle only, not on the
    resolution or the distance: a floor seen from height h is kept up to h / tan(angle).

    Args:
        depth: (H, W) metres, not finite where unknown; removed pixels become NaN in place.
        camera: rectified camera of this grid.
        min_angle_deg: smallest angle kept, degrees; 0 keeps all.

    Returns:
        How many pixels were removed.

    Raises:
        ValueError: the camera belongs to another size.
    """
    if min_angle_deg <= 0:
        return 0
    if camera.size_hw != depth.shape:
        raise ValueError(f'filter: depth {depth.shape}, camera {camera.size_hw}')
    limit = 1 / math.tan(math.radians(min_angle_deg))
    steep = np.zeros(depth.shape, np.bool_)
    with np.errstate(invalid='ignore'):
        for first, second, focal in (
                (np.s_[:, :-1], np.s_[:, 1:], camera.fx), (np.s_[:-1], np.s_[1:], camera.fy)):
            rise = np.abs(depth[second] - depth[first])
            rise *= np.float32(focal / limit)
            edge = rise > np.minimum(depth[first], depth[second])
            steep[first] |= edge
            steep[second] |= edge
        steep &= np.isfinite(depth)
    depth[steep] = np.nan
    return int(np.count_nonzero(steep))
