"""From a network's raw output to metric depth."""

from __future__ import annotations

import math

from depth_node.camera import Camera
from depth_node.model_card import OutputSpec
import numpy as np
from numpy.typing import NDArray


def as_map(raw: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the (h, w) float32 map inside a network's (1, 1, h, w), (1, h, w) or (h, w) output.

    Raises:
        ValueError: any other shape.
    """
    if raw.ndim < 2 or any(side != 1 for side in raw.shape[:-2]):
        raise ValueError(f'network output has shape {raw.shape}, expected (1, 1, h, w)')
    return np.asarray(raw.reshape(raw.shape[-2:]), np.float32)


def to_depth(raw: NDArray[np.float32], spec: OutputSpec,
             network_camera: Camera | None = None, *,
             keep_signed: bool = False) -> NDArray[np.float32]:
    """Turn a network's raw map into depth.

    Kinds, with x the raw value: `depth` x; `log_depth` exp(x); `inv_depth` 1 / x;
    `canonical_depth` x f / canonical_focal_px with f = sqrt(fx fy) of the image as the network
    sees it (Yin et al., Metric3D, ICCV 2023, section 3.1; the geometric mean extends it to
    stretched images); `rel_depth` x; `rel_inv_depth` 1 / x.  The last two are true up to an
    affine fit only and are metres only after `scale` made them so.

    Args:
        raw: (h, w) network output.
        spec: the card's description of it.
        network_camera: rectified camera scaled to the network's input; needed by
            `canonical_depth` (the caller passes an assumed one where the real is unknown).
        keep_signed: of the relative kinds, keep values that are not positive: they are depths
            once the shift is added (`scale.Scale.apply` removes those that are not).  A
            `rel_inv_depth` of 0 becomes an infinite depth, a negative one a negative depth.

    Returns:
        (h, w) float32, metres along the optical axis (REP 118); NaN where the network gave no
        usable value (not finite, or not positive).

    Raises:
        ValueError: `canonical_depth` without a camera.
    """
    with np.errstate(all='ignore'):
        if spec.kind == 'log_depth':
            depth = np.exp(raw, dtype=np.float32)
        elif spec.kind in ('inv_depth', 'rel_inv_depth'):
            depth = np.reciprocal(raw, dtype=np.float32)
        elif spec.kind == 'canonical_depth':
            if network_camera is None or spec.canonical_focal_px is None:
                raise ValueError('canonical_depth needs the camera at network resolution')
            focal = math.sqrt(network_camera.fx * network_camera.fy)
            depth = np.multiply(raw, np.float32(focal / spec.canonical_focal_px),
                                dtype=np.float32)
        else:
            depth = np.array(raw, np.float32)
        if keep_signed and not spec.metric:
            unusable = ~np.isfinite(raw)
        else:
            unusable = ~np.isfinite(depth) | (depth <= 0)
    if unusable.any():
        depth[unusable] = np.nan
    return depth
