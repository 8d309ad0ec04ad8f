"""From an RGB image to a network's input, and from its output back to the image's grid."""

from __future__ import annotations

from typing import Any, Final

import cv2
from depth_node.camera import Camera
from depth_node.model_card import InputSpec
import numpy as np
from numpy.typing import NDArray

_LARGEST_REST: Final = 1.7  # times that means of blocks may be more than the picture's pixels


class ResizePlan:
    """How images of one size enter a network and how its map comes back.

    Made once per image size; a call works in buffers that the next call reuses.

    Attributes:
        size_hw: the image.
        network_hw: the network's input.
        window: (v0, u0, height, width) of the picture inside the network's input; smaller than
            `network_hw` only with the `pad` policy.
        blocks: (rows, columns) of the image that are averaged to one pixel before the rest of the
            way is interpolated; None: the image is resized at once.
        picture: (h, w, 3) uint8 that the network saw last, without padding, in its colour order; a
            buffer.
    """

    def __init__(self, spec: InputSpec, size_hw: tuple[int, int]) -> None:
        self.spec = spec
        self.size_hw = size_hw
        self.network_hw = network_size(spec, size_hw)
        net_h, net_w = self.network_hw
        if spec.resize == 'pad':
            share = min(net_h / size_hw[0], net_w / size_hw[1])
            height = max(1, round(size_hw[0] * share))
            width = max(1, round(size_hw[1] * share))
            self.window = ((net_h - height) // 2, (net_w - width) // 2, height, width)
        else:
            self.window = (0, 0, net_h, net_w)
        _v0, _u0, height, width = self.window
        shrinks = height * width < size_hw[0] * size_hw[1]
        self.blocks = _blocks(size_hw, (height, width))
        # INTER_AREA averages what a smaller grid cannot hold; INTER_LINEAR alone would alias
        self._interpolation = (
            cv2.INTER_AREA if shrinks and self.blocks is None else cv2.INTER_LINEAR)
        if self.blocks is not None:
            reduced = size_hw[0] // self.blocks[0], size_hw[1] // self.blocks[1]
            self._reduced: NDArray[np.uint8] = np.empty((*reduced, 3), np.uint8)
        fill = spec.mean if spec.layout == 'float32_nchw' else (127.0, 127.0, 127.0)
        self._canvas: NDArray[np.uint8] = np.empty((net_h, net_w, 3), np.uint8)
        self._canvas[:] = np.rint(fill).astype(np.uint8)
        self.picture: NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)
        if spec.layout == 'float32_nchw':
            self._mean = np.asarray(spec.mean, np.float32).reshape(3, 1, 1)
            self._gain = 1 / np.asarray(spec.std, np.float32).reshape(3, 1, 1)
            self._batch: NDArray[np.float32] = np.empty((1, 3, net_h, net_w), np.float32)

    def to_input(self, rgb: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the network's input batch for an (H, W, 3) uint8 RGB image.

        Returns:
            (1, h, w, 3) uint8 or (1, 3, h, w) float32, as the card's layout says; a buffer that
            the next call overwrites.

        Raises:
            ValueError: the image has another size than the plan.
        """
        if rgb.shape != (*self.size_hw, 3):
            raise ValueError(f'preprocess: image {rgb.shape}, expected {(*self.size_hw, 3)}')
        v0, u0, height, width = self.window
        if self.blocks is not None:
            cv2.resize(rgb, self._reduced.shape[1::-1], dst=self._reduced,
                       interpolation=cv2.INTER_AREA)
            rgb = self._reduced
        picture = self.picture
        if rgb.shape == picture.shape:
            np.copyto(picture, rgb)
        else:
            cv2.resize(rgb, (width, height), dst=picture, interpolation=self._interpolation)
        if self.spec.colour == 'bgr':
            cv2.cvtColor(picture, cv2.COLOR_RGB2BGR, dst=picture)
        if (height, width) != self.network_hw:
            self._canvas[v0:v0 + height, u0:u0 + width] = picture
            picture = self._canvas
        if self.spec.layout == 'uint8_nhwc':
            return picture[None]
        np.copyto(self._batch[0], picture.transpose(2, 0, 1))
        self._batch[0] -= self._mean
        self._batch[0] *= self._gain
        return self._batch

    def network_camera(self, camera: Camera) -> Camera:
        """Return the rectified camera of the picture as the network sees it (without padding)."""
        return camera.scaled(self.window[2:])

    def inside(self, network_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the part of a map of the network that belongs to the picture, not to padding.

        The map may have any size: it covers the whole network input, edge to edge, so its cells
        need not be squares of input pixels (FCRN makes 128x160 of 228x304).

        Returns:
            The map itself without padding; else a copy of the size of `picture`.

        Raises:
            ValueError: the map is empty or has other than two dimensions.
        """
        if network_map.ndim != 2 or 0 in network_map.shape:
            raise ValueError(f'postprocess: map of shape {network_map.shape}, expected (h, w)')
        if self.window[2:] == self.network_hw:
            return network_map
        net_h, net_w = self.network_hw
        if network_map.shape != self.network_hw:
            full: NDArray[np.float32] = np.empty((net_h, net_w), np.float32)
            cv2.resize(network_map, (net_w, net_h), dst=full, interpolation=cv2.INTER_LINEAR)
            network_map = full
        v0, u0, height, width = self.window
        return network_map[v0:v0 + height, u0:u0 + width].copy()

    def to_image(self, picture_map: NDArray[np.float32],
                 out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return what `inside` gave, resampled to the image's grid.

        Bilinear; a NaN spreads to the pixels that touch it, never further.
        """
        if out is None:
            out = np.empty(self.size_hw, np.float32)
        if picture_map.shape == self.size_hw:
            np.copyto(out, picture_map)
        else:
            cv2.resize(picture_map, self.size_hw[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
        return out

    def back(self, network_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an (h, w) map of the network, without padding, on the image's grid."""
        return self.to_image(self.inside(network_map))


def _blocks(size_hw: tuple[int, int], picture_hw: tuple[int, int]) -> tuple[int, int] | None:
    """Return the whole blocks of an image whose means are little more than the picture needs.

    cv2 is fast in averaging whole blocks and six times slower in areas that cut pixels (640x480 to
    256x192). What is left to do after blocks must be little, so that INTER_LINEAR does not alias.
    """
    found = []
    for side, wanted in zip(size_hw, picture_hw, strict=True):
        block = next((n for n in range(side // wanted, 1, -1) if side % n == 0), 1)
        if block == 1 or side > _LARGEST_REST * block * wanted:
            return None
        found.append(block)
    return found[0], found[1]


def network_size(spec: InputSpec, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the network's input size for an image of `size_hw`.

    A fixed network has one size.  A dynamic one takes its largest (`stretch`, `pad`) or the
    image's own (`keep_aspect`), in steps of `multiple_of`: both sides are shrunk alike until they
    are within the largest size, or enlarged alike until they reach the smallest.  Only an image
    too wide or too high for both limits at once does not keep its aspect (to half a step).
    """
    if spec.size_hw is not None:
        return spec.size_hw
    step, low, high = spec.multiple_of, spec.min_hw, spec.max_hw
    if step is None or low is None or high is None:
        raise ValueError('a dynamic input needs multiple_of, min_hw and max_hw')
    if spec.resize == 'keep_aspect':
        share = max(1.0, low[0] / size_hw[0], low[1] / size_hw[1])
        share = min(share, high[0] / size_hw[0], high[1] / size_hw[1])
        wanted = size_hw[0] * share, size_hw[1] * share
    else:
        wanted = float(high[0]), float(high[1])
    height, width = (
        min(max(round(wanted[axis] / step) * step, low[axis]), high[axis]) for axis in (0, 1))
    return height, width
