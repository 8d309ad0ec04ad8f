"""The distribution's cv_bridge, for encodings that `depth_node.images` does not read itself.

`images` comes first: it honours row padding and byte order, where cv_bridge gives wrong pixels,
and it needs no copy.  cv_bridge is imported at the first image in an encoding that only it may
know, and used only if a probe shows that it is ROS 2's own and fits the OpenCV in use: PyPI's
package of that name mistakes the types, and OpenCV 5 numbers them anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
from depth_node.images import ImageError
import numpy as np
from numpy.typing import NDArray


@cache
def load() -> tuple[Any, str]:
    """Return (CvBridge or None, why not)."""
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
        fits = (bridge.encoding_to_cvtype2('16UC1') == cv2.CV_16UC1
                and bridge.cvtype_to_name[bridge.encoding_to_cvtype2('bgr8')] == '8UC3')
    except ImportError:
        return None, 'cv_bridge is not installed'
    except Exception as error:  # PyPI's fails in its own ways, all of them mean: not usable
        return None, f'this cv_bridge does not work ({type(error).__name__}: {error})'
    if not fits:
        return None, ("this cv_bridge mistakes types: it is not ROS 2's, or it was built for "
                      'another OpenCV')
    return bridge, ''


def to_rgb(message: Any, unknown: ImageError) -> NDArray[np.uint8]:
    """Return the picture of an Image whose encoding `images` does not know.

    Args:
        message: sensor_msgs/Image.
        unknown: the refusal by `images`, raised again with cv_bridge's reason if it refuses too.

    Returns:
        (H, W, 3) uint8 rgb.

    Raises:
        ImageError: cv_bridge is missing or refuses; reason `unknown_encoding`.
    """
    bridge, why_not = load()
    if bridge is not None:
        try:
            picture = bridge.imgmsg_to_cv2(message, desired_encoding='rgb8')
        except Exception as error:  # CvBridgeError, and numpy's own for messages that lie
            why_not = f'cv_bridge refuses it: {error}'
        else:
            return np.ascontiguousarray(picture)
    raise ImageError(unknown.reason, f'{unknown}; {why_not}')
