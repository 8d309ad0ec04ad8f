"""Whether a picture shows something new."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Views:
    """Compares pictures with the last one that counted.

    Neighbouring pictures share their errors: ten of a camera that stands still say no more than
    one.  A picture is a new view when enough of it lies at another depth.
    """

    def __init__(self, change: float, share: float) -> None:
        """Begin without a picture.

        Args:
            change: of the log of depth that counts.
            share: of the picture that must change by it.
        """
        self._change, self._share = change, share
        self._seen: NDArray[np.float64] = np.empty((0, 0))

    def new(self, depth: NDArray[np.float32]) -> bool:
        """Return whether (h, w) depth shows something else than the last picture that counted."""
        now = _signature(depth)
        if now.shape != self._seen.shape:
            return True
        with np.errstate(invalid='ignore'):
            # where one of the two knows no depth, the comparison is False
            return bool(np.mean(np.abs(now - self._seen) > self._change) > self._share)

    def count(self, depth: NDArray[np.float32]) -> None:
        """Let a picture be the one that the next are compared with."""
        self._seen = _signature(depth)

    def reset(self) -> None:
        """Forget the picture: the next one is new."""
        self._seen = np.empty((0, 0))


def _signature(depth: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, columns = (max(1, side // 8) for side in depth.shape)
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray(np.log(np.abs(depth[rows // 2::rows, columns // 2::columns],
                                        dtype=np.float64)))
