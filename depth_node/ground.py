"""Where the floor is: how a camera hangs above it."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mount:
    """Direction against gravity, and the camera's height, seen from the camera.

    A point X of the optical frame (x right, y down, z forward; REP 103) is `up` . X + height_m
    above the floor.

    Attributes:
        up: unit vector against gravity in the optical frame.
        height_m: of the optical centre above the floor, metres; NaN where it is not known.
    """

    up: tuple[float, float, float]
    height_m: float = math.nan

    def __post_init__(self) -> None:
        """Refuse what is no direction."""
        length = math.sqrt(sum(part * part for part in self.up))
        if not 0.999 < length < 1.001:
            raise ValueError(f'mount: up {self.up} has length {length:g}, expected 1')
        if math.isfinite(self.height_m) and self.height_m <= 0:
            raise ValueError(f'mount: height {self.height_m} m, expected more than 0')

    @classmethod
    def from_angles(cls, height_m: float, pitch_deg: float, roll_deg: float = 0.0) -> Mount:
        """Return the mount of a camera that looks forward, turned as REP 103 counts.

        Args:
            height_m: of the optical centre above the floor, metres.
            pitch_deg: positive looks down.
            roll_deg: positive lowers the right side of the picture's scene, that is the camera
                turns clockwise about its own viewing direction.
        """
        pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
        return cls((-math.sin(roll) * math.cos(pitch), -math.cos(roll) * math.cos(pitch),
                    -math.sin(pitch)), height_m)

    def heights(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the height above the floor of (..., 3) points in the optical frame, metres."""
        result: NDArray[np.float32] = points @ np.asarray(self.up, np.float32)
        result += np.float32(self.height_m)
        return result
