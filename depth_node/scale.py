"""Metric scale: the last affine step between a network's depth and metres."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Protocol

from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray

SOURCES = ('model', 'fixed', 'points', 'ground')
SPACES = ('depth', 'inv_depth')
# ok: in force and recent; waiting: no estimate yet; held: the last good one while its source is
# silent; refused: what the source said could not be used.
STATES = ('ok', 'waiting', 'held', 'refused')


@dataclass(frozen=True)
class Scale:
    """Correction of the network's depth, in one of two spaces.

    `depth`: depth = scale * depth + shift [m].  `inv_depth`: 1 / depth = scale / depth + shift
    [1/m], the space in which affine-invariant networks are right up to scale and shift (Ranftl et
    al., MiDaS, TPAMI 2022, section 5).

    Attributes:
        source: `model` (the network's own metres, scale 1, shift 0), `fixed` (given numbers, say
            from a tape measure), `points` (measured points) or `ground` (camera height).
        scale: factor, > 0.
        shift: metres, or 1/m in the space `inv_depth`.
        space: one of `SPACES`.
        state: one of `STATES`.
        usable: False where depth must not be published, because no scale is known.
        uncertainty: relative standard uncertainty of the corrected depth (0.02 = 2 %), NaN where
            nothing is known.
        support: how many measurements agreed with it.
        age_s: seconds between the newest measurement in it and the image, NaN where there is none.
        note: what a reader of the status should know about it.
    """

    source: str = 'model'
    scale: float = 1.0
    shift: float = 0.0
    space: str = 'depth'
    state: str = 'ok'
    usable: bool = True
    uncertainty: float = math.nan
    support: int = 0
    age_s: float = math.nan
    note: str = ''

    def __post_init__(self) -> None:
        """Refuse a correction that would turn depth over or away."""
        for name, value, known in (('source', self.source, SOURCES),
                                   ('space', self.space, SPACES), ('state', self.state, STATES)):
            if value not in known:
                raise ValueError(f'scale {name} {value!r}, expected one of {", ".join(known)}')
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.shift)):
            raise ValueError(f'scale {self.scale}, shift {self.shift}: expected a positive, '
                             'finite scale and a finite shift')
        if self.source == 'model' and (self.scale, self.shift) != (1.0, 0.0):
            raise ValueError('scale source model takes the network at its word (scale 1, shift '
                             '0); for other numbers choose source fixed')

    def apply(self, depth: NDArray[np.float32]) -> None:
        """Correct (h, w) depth in metres in place; what falls to zero or below becomes NaN."""
        if not self.usable:
            depth.fill(np.nan)
            return
        inverse = self.space == 'inv_depth' and self.shift != 0.0
        if inverse:
            with np.errstate(divide='ignore'):
                np.reciprocal(depth, out=depth)
        if self.scale != 1.0:
            # without a shift a factor on 1 / depth is a divisor of depth
            factor = self.scale if inverse or self.space == 'depth' else 1 / self.scale
            depth *= np.float32(factor)
        if self.shift != 0.0:
            depth += np.float32(self.shift)
            if self.shift < 0.0:
                depth[depth <= 0] = np.nan
        if inverse:
            np.reciprocal(depth, out=depth)


class ScaleEstimator(Protocol):
    """Finds the scale of each image from something measured."""

    def estimate(self, depth: NDArray[np.float32], camera: Camera, stamp: float) -> Scale:
        """Return the correction for one image.

        Args:
            depth: (h, w) the network's depth before any correction, NaN where unknown; not to be
                changed or kept.
            camera: rectified camera of that grid.
            stamp: acquisition time of the image, seconds.
        """

    def reset(self) -> None:
        """Forget what came from earlier images."""
