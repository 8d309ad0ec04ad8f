"""Metric scale: the last affine step between a network's depth and metres."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

SOURCES = ('model', 'fixed')


@dataclass(frozen=True)
class Scale:
    """Depth correction: depth = scale * depth + shift, metres.

    Attributes:
        source: `model` (the network's own metres, scale 1, shift 0) or `fixed` (given numbers,
            say from a tape measure).
        scale: factor, > 0.
        shift: metres.
        note: what a reader of the status should know about it.
    """

    source: str = 'model'
    scale: float = 1.0
    shift: float = 0.0
    note: str = ''

    def __post_init__(self) -> None:
        """Refuse a correction that would turn depth over or away."""
        if self.source not in SOURCES:
            raise ValueError(f'scale source {self.source!r}, expected one of '
                             f'{", ".join(SOURCES)}')
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.shift)):
            raise ValueError(f'scale {self.scale}, shift {self.shift}: expected a positive, '
                             'finite scale and a finite shift in metres')
        if self.source == 'model' and (self.scale, self.shift) != (1.0, 0.0):
            raise ValueError('scale source model takes the network at its word (scale 1, shift '
                             '0); for other numbers choose source fixed')

    def apply(self, depth: NDArray[np.float32]) -> None:
        """Correct (h, w) depth in metres in place; what falls to zero or below becomes NaN."""
        if self.scale != 1.0:
            depth *= np.float32(self.scale)
        if self.shift != 0.0:
            depth += np.float32(self.shift)
            if self.shift < 0.0:
                depth[depth <= 0] = np.nan
