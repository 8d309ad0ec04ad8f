"""One training example as the data sets give it: pictures with what is known about them.

numpy only, so that the evaluator and `depth-node data` read every data set without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """Another picture of the frame's scene: the next image of a video, or the second eye.

    Attributes:
        rgb: (H, W, 3) uint8, the frame's size.
        camera: undistorted intrinsics of this picture.
        view_from_frame: (4, 4) float64, moves points from the frame's optical frame into this
            picture's [m]; None where it is not known.
        depth: (H, W) float32 metres, 0 = unknown; None where there is none.
        kind: 'previous', 'next' or 'right'.
    """

    rgb: NDArray[np.uint8]
    camera: Camera
    view_from_frame: NDArray[np.float64] | None = None
    depth: NDArray[np.float32] | None = None
    kind: str = 'next'


@dataclass(frozen=True)
class Pairs:
    """Which of two pixels is farther, for many pairs.

    Attributes:
        uv: (P, 4) float32, (u_a, v_a, u_b, v_b) in pixels of the picture, whole at centres.
        relation: (P,) int8, about depth: +1 = a is farther, -1 = a is nearer, 0 = equal.
    """

    uv: NDArray[np.float32]
    relation: NDArray[np.int8]


@dataclass(frozen=True)
class Frame:
    """A picture with what is known about it, all of one size.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32, 0 = unknown; metres, or in an unknown unit where the data set's
            `metric` is False. All 0 where the data set has none.
        camera: undistorted intrinsics; None where they are not known.
        rel_inv_depth: (H, W) float32, inverse depth up to scale and shift, NaN = unknown.
        normals: (H, W, 3) float32 unit vectors in the optical frame, towards the camera (z < 0
            for a wall ahead), 0 = unknown.
        labels: (H, W) int32 class indices, -1 = unknown.
        ordinal: (H, W) int8, 1 = foreground, 2 = background, 0 = neither (MegaDepth).
        sky: (H, W) bool.
        pairs: relations between pixels.
        views: other pictures of the scene, same size.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: Camera | None = None
    rel_inv_depth: NDArray[np.float32] | None = None
    normals: NDArray[np.float32] | None = None
    labels: NDArray[np.int32] | None = None
    ordinal: NDArray[np.int8] | None = None
    sky: NDArray[np.bool_] | None = None
    pairs: Pairs | None = None
    views: tuple[View, ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of all its images."""
        return self.rgb.shape[0], self.rgb.shape[1]
