"""Augmentation that keeps camera geometry true, and photometry like a cheap camera's.

Depth is Z along the optical axis. Cropping, scaling, mirroring and turning the camera about its
own axis change K, never Z; nothing else is done to the geometry. Everything random comes from the
generator that the caller passes in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
import math
from typing import Any

import cv2
from depth_node.camera import Camera
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A picture with its depth and camera, all of one size.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 = unknown.
        camera: undistorted intrinsics.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: Camera


@dataclass(frozen=True)
class AugmentSettings:
    """How strongly to augment; probabilities are 0 to 1, a pair is a range.

    Attributes:
        zoom: side of the crop is 1 / zoom of the picture's.
        aspect: log-uniform ratio by which a crop's width differs from its height's share.
        roll_deg: largest turn about the optical axis.
        mirror: probability of mirroring.
        exposure: gain range, log-uniform.
        gamma: exponent range, log-uniform.
        white_balance: per-channel gain up to this factor, log-uniform.
        saturation: range of the mix between grey and full colour.
        grey: probability of a grey picture.
        blur: probability of blur, at most `blur_px` standard deviation.
        blur_px: see `blur`.
        noise: probability of noise, at most `noise_level` standard deviation of 255.
        noise_level: see `noise`.
        jpeg: probability of compression at a quality in `jpeg_quality`.
        jpeg_quality: see `jpeg`.
    """

    zoom: tuple[float, float] = (1.0, 1.5)
    aspect: tuple[float, float] = (0.85, 1.18)
    roll_deg: float = 5.0
    mirror: float = 0.5
    exposure: tuple[float, float] = (0.55, 1.3)
    gamma: tuple[float, float] = (0.75, 1.35)
    white_balance: float = 1.2
    saturation: tuple[float, float] = (0.5, 1.3)
    grey: float = 0.05
    blur: float = 0.3
    blur_px: float = 1.2
    noise: float = 0.4
    noise_level: float = 10.0
    jpeg: float = 0.4
    jpeg_quality: tuple[int, int] = (35, 95)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> AugmentSettings:
        """Read a configuration section.

        Raises:
            ValueError: a key is not known, or a range is not ascending.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise ValueError(f'augment.{unknown[0]}: not known; expected one of {sorted(known)}')
        settings = replace(
            cls(), **{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        )
        for name in ('zoom', 'aspect', 'exposure', 'gamma', 'saturation', 'jpeg_quality'):
            low, high = getattr(settings, name)
            if not 0 <= low <= high:
                raise ValueError(f'augment.{name}: [{low}, {high}] is not an ascending range')
        if settings.zoom[0] < 1:
            raise ValueError(f'augment.zoom: {settings.zoom[0]} would leave the picture; use >= 1')
        return settings


def warp(
    frame: Frame,
    size_hw: tuple[int, int],
    *,
    crop: tuple[float, float, float, float] | None = None,
    mirror: bool = False,
    roll_rad: float = 0.0,
) -> Frame:
    """Turn, crop, mirror and resize a frame in one resampling, with its camera.

    Turning the camera about its optical axis moves pixel p to K R K^-1 p and leaves Z unchanged
    (Hartley & Zisserman 2004, section 8.4: a rotation's image is a homography, here affine).

    Args:
        frame: the source.
        size_hw: size of the result.
        crop: (left, top, width, height) in source pixels, measured at pixel edges; None = all.
        mirror: swap left and right.
        roll_rad: the turn, positive clockwise in the picture.

    Returns:
        A new frame; depth is 0 where the source has none. Depth is not interpolated.
    """
    height, width = frame.depth.shape
    left, top, crop_width, crop_height = crop or (0.0, 0.0, float(width), float(height))
    sx, sy = size_hw[1] / crop_width, size_hw[0] / crop_height
    resize = np.array(
        [[sx, 0, (0.5 - left) * sx - 0.5], [0, sy, (0.5 - top) * sy - 0.5], [0, 0, 1.0]]
    )
    camera_matrix = resize @ frame.camera.K
    cosine, sine = math.cos(roll_rad), math.sin(roll_rad)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    matrix = camera_matrix @ turn @ np.linalg.inv(frame.camera.K)
    fx, fy, cx, cy = camera_matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    if mirror:
        flip = np.array([[-1.0, 0, size_hw[1] - 1], [0, 1, 0], [0, 0, 1]])
        matrix = flip @ matrix
        cx = size_hw[1] - 1 - cx
    size_wh = (size_hw[1], size_hw[0])
    # Bilinear sampling of a picture that shrinks much further than this would alias.
    rgb_source = frame.rgb
    shrink = 1 / min(sx, sy)
    if shrink > 1.6:
        rgb_source = cv2.GaussianBlur(rgb_source, (0, 0), 0.4 * shrink)
    rgb = cv2.warpAffine(
        rgb_source, matrix[:2], size_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    depth = cv2.warpAffine(
        frame.depth,
        matrix[:2],
        size_wh,
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return Frame(rgb, depth, Camera(size_hw, float(fx), float(fy), float(cx), float(cy)))


def fit(frame: Frame, size_hw: tuple[int, int]) -> Frame:
    """Stretch a whole frame to the network's size, as the pipeline does."""
    return warp(frame, size_hw)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


class Augmenter:
    """Random geometry, then random photometry. Holds settings only; safe to share."""

    def __init__(self, settings: AugmentSettings) -> None:
        """Keep the settings."""
        self.settings = settings

    def __call__(self, frame: Frame, size_hw: tuple[int, int], rng: np.random.Generator) -> Frame:
        """Draw one augmented frame at network size."""
        s = self.settings
        height, width = frame.depth.shape
        zoom = _log_uniform(rng, *s.zoom)
        stretch = math.sqrt(_log_uniform(rng, *s.aspect))
        crop_width = min(width, width / zoom * stretch)
        crop_height = min(height, height / zoom / stretch)
        left = rng.uniform(0, width - crop_width)
        top = rng.uniform(0, height - crop_height)
        roll = math.radians(rng.uniform(-s.roll_deg, s.roll_deg))
        warped = warp(
            frame,
            size_hw,
            crop=(left, top, crop_width, crop_height),
            mirror=bool(rng.random() < s.mirror),
            roll_rad=roll,
        )
        return replace(warped, rgb=photometric(warped.rgb, s, rng))


def photometric(
    rgb: NDArray[np.uint8], settings: AugmentSettings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change a picture as exposure, sensor, lens and codec would, in that order of the light."""
    s = settings
    if rng.random() < s.blur:
        rgb = _blur(rgb, s.blur_px, rng)
    # Tone and colour as one table per channel: no float picture is needed.
    tone = np.linspace(0, 1, 256) ** _log_uniform(rng, *s.gamma)
    gain = _log_uniform(rng, *s.exposure)
    balance = np.exp(rng.uniform(-1, 1, 3) * math.log(s.white_balance))
    tables = np.clip(tone[:, None] * gain * balance[None] * 255, 0, 255)
    rgb = cv2.LUT(rgb, tables.round().astype(np.uint8)[None])
    colour = 0.0 if rng.random() < s.grey else rng.uniform(*s.saturation)
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    rgb = cv2.addWeighted(rgb, colour, grey, 1 - colour, 0)
    if rng.random() < s.noise:
        # Half the noise amplitude at half resolution: sensors' noise is not white after demosaic.
        height, width = rgb.shape[:2]
        level = rng.uniform(0, s.noise_level)
        fine = rng.standard_normal((height, width, 3), np.float32)
        coarse = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
        noise = fine + cv2.resize(coarse, (width, height))
        rgb = np.clip(rgb + noise * np.float32(level / 1.25), 0, 255).astype(np.uint8)
    if rng.random() < s.jpeg:
        low, high = s.jpeg_quality
        quality = int(rng.integers(low, high + 1))
        _, data = cv2.imencode('.jpg', rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
        rgb = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.asarray(rgb, np.uint8)


def _blur(
    rgb: NDArray[np.uint8], largest_px: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Blur by defocus, by a shaken camera, or by a picture that was enlarged."""
    kind = rng.integers(3)
    amount = rng.uniform(0.3, 1.0) * largest_px
    if kind == 0:
        return np.asarray(cv2.GaussianBlur(rgb, (0, 0), amount), np.uint8)
    if kind == 1:
        length = max(2, round(amount * 4))
        kernel = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, math.pi)
        half = (length - 1) / 2
        reach = np.array([math.cos(angle), math.sin(angle)]) * half
        start, end = half - reach, half + reach
        cv2.line(kernel, tuple(map(round, start)), tuple(map(round, end)), 1.0)
        return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum()), np.uint8)
    height, width = rgb.shape[:2]
    share = 1 / (1 + 0.7 * amount)
    small = cv2.resize(
        rgb, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)
