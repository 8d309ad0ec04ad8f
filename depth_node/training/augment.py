"""Augmentation that keeps camera geometry true, and photometry like a cheap camera's.

Depth is Z along the optical axis. Cropping, scaling, mirroring and turning the camera about its
own axis change K, never Z. The older papers enlarge a picture and keep K instead: then the same
picture shows a scene that is nearer (`scale_depth`). Everything random comes from the generator
that the caller passes in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
import math
from typing import Any

import cv2
from depth_node.camera import Camera
from depth_node.training.frame import Frame, Pairs, View
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AugmentSettings:
    """How strongly to augment; probabilities are 0 to 1, a pair is a range.

    Frames with views (video, stereo) are not blurred, compressed or made noisy, and keep the
    order of their colours, whatever is set: the views must go on explaining each other.

    Attributes:
        zoom: side of the crop is 1 / zoom of the picture's.
        aspect: log-uniform ratio by which a crop's width differs from its height's share.
        roll_deg: largest turn about the optical axis.
        scale_depth: keep the focal length when zooming by s and divide depth by s (Eigen 2014,
            arXiv:1406.2283, section 3.4), for networks that are not told K.
        mirror: probability of mirroring.
        exposure: gain range, log-uniform.
        gamma: exponent range, log-uniform.
        white_balance: per-channel gain up to this factor, log-uniform.
        saturation: range of the mix between grey and full colour.
        grey: probability of a grey picture.
        channel_swap: probability of another order of the colour channels (DenseDepth).
        blur: probability of blur, at most `blur_px` standard deviation.
        blur_px: see `blur`.
        noise: probability of noise, at most `noise_level` standard deviation of 255.
        noise_level: see `noise`.
        uneven: probability of uneven light: dark corners (vignetting), one side brighter, and
            the stripes that a flickering lamp leaves under a rolling shutter; each up to
            `uneven_level`.
        uneven_level: largest share by which uneven light darkens or brightens a pixel.
        jpeg: probability of compression at a quality in `jpeg_quality`.
        jpeg_quality: see `jpeg`.
    """

    zoom: tuple[float, float] = (1.0, 1.5)
    aspect: tuple[float, float] = (0.85, 1.18)
    roll_deg: float = 5.0
    scale_depth: bool = False
    mirror: float = 0.5
    exposure: tuple[float, float] = (0.55, 1.3)
    gamma: tuple[float, float] = (0.75, 1.35)
    white_balance: float = 1.2
    saturation: tuple[float, float] = (0.5, 1.3)
    grey: float = 0.05
    channel_swap: float = 0.0
    blur: float = 0.3
    blur_px: float = 1.2
    noise: float = 0.4
    noise_level: float = 10.0
    uneven: float = 0.0
    uneven_level: float = 0.4
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
            if low == 0 and name in ('aspect', 'exposure', 'gamma'):
                raise ValueError(f'augment.{name}: [{low}, {high}] begins at 0; use more')
        for name in ('mirror', 'grey', 'channel_swap', 'blur', 'noise', 'jpeg', 'uneven'):
            if not 0 <= getattr(settings, name) <= 1:
                raise ValueError(
                    f'augment.{name}: {getattr(settings, name)}, expected a probability, 0 to 1'
                )
        if not 0 <= settings.uneven_level < 1:
            raise ValueError(
                f'augment.uneven_level: {settings.uneven_level}, expected 0 to less than 1'
            )
        for name in ('roll_deg', 'blur_px', 'noise_level'):
            if not getattr(settings, name) >= 0:
                raise ValueError(f'augment.{name}: {getattr(settings, name)}, expected >= 0')
        if not settings.white_balance >= 1:
            raise ValueError(
                f'augment.white_balance: {settings.white_balance}, expected a factor >= 1'
            )
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
    The frame's views are treated alike, so what is known about their poses stays true: with the
    turn R and the mirror F, view_from_frame becomes F R view_from_frame R^-1 F.

    Args:
        frame: the source. Without a camera one with its centre in the middle is assumed, and
            the result has none.
        size_hw: size of the result.
        crop: (left, top, width, height) in source pixels, measured at pixel edges; None = all.
        mirror: swap left and right.
        roll_rad: the turn, positive clockwise in the picture.

    Returns:
        A new frame; depth is 0 where the source has none. Nothing but colour is interpolated.
    """
    window = crop or (0.0, 0.0, float(frame.size_hw[1]), float(frame.size_hw[0]))
    camera = frame.camera or _assumed_camera(frame.size_hw)
    matrix, new_camera = _mapping(camera, size_hw, window, mirror, roll_rad)
    turn = _turn(roll_rad)
    flip = np.diag([-1.0 if mirror else 1.0, 1.0, 1.0])
    motion = np.eye(4)
    motion[:3, :3] = flip @ turn
    nearest = _Nearest(matrix, size_hw)
    normals = None
    if frame.normals is not None:
        rotated = nearest(frame.normals, 0.0) @ motion[:3, :3].T.astype(np.float32)
        normals = np.asarray(rotated, np.float32)
    labels = frame.labels
    if labels is not None:  # remap takes no int32; class numbers are exact in float32
        labels = nearest(labels.astype(np.float32), -1.0).astype(np.int32)
    views = []
    for view in frame.views:
        view_matrix, view_camera = _mapping(view.camera, size_hw, window, mirror, roll_rad)
        pose = view.view_from_frame
        views.append(
            View(
                _colour(view.rgb, view_matrix, size_hw),
                view_camera,
                None if pose is None else motion @ pose @ np.linalg.inv(motion),
                None if view.depth is None else _Nearest(view_matrix, size_hw)(view.depth, 0.0),
                view.kind,
            )
        )
    return Frame(
        rgb=_colour(frame.rgb, matrix, size_hw),
        depth=nearest(frame.depth, 0.0),
        camera=None if frame.camera is None else new_camera,
        rel_inv_depth=_optional(nearest, frame.rel_inv_depth, np.nan),
        normals=normals,
        labels=labels,
        ordinal=_optional(nearest, frame.ordinal, 0),
        sky=_optional(nearest, frame.sky, 0),
        pairs=None if frame.pairs is None else _moved(frame.pairs, matrix, size_hw),
        views=tuple(views),
    )


def _assumed_camera(size_hw: tuple[int, int]) -> Camera:
    height, width = size_hw
    focal_px = float(max(size_hw))
    return Camera(size_hw, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)


def _turn(roll_rad: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(roll_rad), math.sin(roll_rad)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def _mapping(
    camera: Camera,
    size_hw: tuple[int, int],
    crop: tuple[float, float, float, float],
    mirror: bool,
    roll_rad: float,
) -> tuple[NDArray[np.float64], Camera]:
    """Return the 3x3 map from source to target pixels, and the camera of the target."""
    left, top, crop_width, crop_height = crop
    sx, sy = size_hw[1] / crop_width, size_hw[0] / crop_height
    resize = np.array(
        [[sx, 0, (0.5 - left) * sx - 0.5], [0, sy, (0.5 - top) * sy - 0.5], [0, 0, 1.0]]
    )
    camera_matrix = resize @ camera.K
    matrix = camera_matrix @ _turn(roll_rad) @ np.linalg.inv(camera.K)
    fx, fy, cx, cy = camera_matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    if mirror:
        flip = np.array([[-1.0, 0, size_hw[1] - 1], [0, 1, 0], [0, 0, 1]])
        matrix = flip @ matrix
        cx = size_hw[1] - 1 - cx
    return matrix, Camera(size_hw, float(fx), float(fy), float(cx), float(cy))


def _colour(
    rgb: NDArray[np.uint8], matrix: NDArray[np.float64], size_hw: tuple[int, int]
) -> NDArray[np.uint8]:
    # Bilinear sampling of a picture that shrinks much further than this would alias.
    shrink = 1 / min(np.linalg.norm(matrix[:2, 0]), np.linalg.norm(matrix[:2, 1]))
    if shrink > 1.6:
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 0.4 * shrink), np.uint8)
    warped = cv2.warpAffine(
        rgb,
        matrix[:2],
        (size_hw[1], size_hw[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(warped, np.uint8)


class _Nearest:
    """Resamples maps whose values must not mix."""

    def __init__(self, matrix: NDArray[np.float64], size_hw: tuple[int, int]) -> None:
        self._matrix, self._size_wh = matrix[:2], (size_hw[1], size_hw[0])

    def __call__(self, source: NDArray[Any], outside: float) -> NDArray[Any]:
        warped = cv2.warpAffine(
            source,
            self._matrix,
            self._size_wh,
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=[outside] * 4,
        )
        return np.asarray(warped, source.dtype)


def _optional(nearest: _Nearest, source: NDArray[Any] | None, outside: float) -> Any:
    if source is None:
        return None
    if source.dtype in (np.bool_, np.int8):  # types that OpenCV does not warp
        return nearest(source.view(np.uint8), outside).view(source.dtype)
    return nearest(source, outside)


def _moved(pairs: Pairs, matrix: NDArray[np.float64], size_hw: tuple[int, int]) -> Pairs:
    """Move pairs with their picture; those that leave it are dropped."""
    points = pairs.uv.reshape(-1, 2).astype(np.float64)
    moved = (points @ matrix[:2, :2].T + matrix[:2, 2]).reshape(-1, 4)
    limit = np.array([size_hw[1], size_hw[0]] * 2) - 0.5
    inside = ((moved >= -0.5) & (moved <= limit)).all(1)
    moved = np.clip(moved, 0, limit - 0.5)
    return Pairs(moved[inside].astype(np.float32), pairs.relation[inside])


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
        height, width = frame.size_hw
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
        if s.scale_depth:
            warped = nearer(warped, math.sqrt(width / crop_width * height / crop_height))
        if frame.views:
            # What the views share is the light, so they share its change; noise would be theirs.
            tables, saturation = _tone(s, rng)
            views = tuple(
                replace(view, rgb=_toned(view.rgb, tables, saturation)) for view in warped.views
            )
            return replace(warped, rgb=_toned(warped.rgb, tables, saturation), views=views)
        return replace(warped, rgb=photometric(warped.rgb, s, rng))


def nearer(frame: Frame, share: float) -> Frame:
    """Read an enlarged picture as one of a scene `share` times nearer, by the first camera.

    The same pixels: depth is divided by `share`, and so is the focal length that the enlargement
    had multiplied. Points keep their distance from the optical axis, so this is no motion of the
    camera, and other views of the scene cannot follow; surfaces are squeezed towards the camera,
    so the z of their normals grows by `share` before they are brought back to length 1.

    Raises:
        ValueError: the frame has views.
    """
    if frame.views:
        raise ValueError(
            'augment.scale_depth is for single pictures: no camera motion explains it, so the '
            'other views would contradict it; set it to false'
        )
    camera = frame.camera
    if camera is not None:
        camera = replace(camera, fx=camera.fx / share, fy=camera.fy / share)
    normals = frame.normals
    if normals is not None:
        squeezed = normals * np.array([1, 1, share], np.float32)
        length = np.linalg.norm(squeezed, axis=-1, keepdims=True)
        normals = np.asarray(squeezed / np.where(length > 0, length, 1), np.float32)
    return replace(frame, depth=frame.depth / np.float32(share), camera=camera, normals=normals)


def _tone(
    s: AugmentSettings, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """Draw one change of tone and colour: a table per channel, and the saturation."""
    tone = np.linspace(0, 1, 256) ** _log_uniform(rng, *s.gamma)
    gain = _log_uniform(rng, *s.exposure)
    balance = np.exp(rng.uniform(-1, 1, 3) * math.log(s.white_balance))
    tables = np.clip(tone[:, None] * gain * balance[None] * 255, 0, 255)
    colour = 0.0 if rng.random() < s.grey else rng.uniform(*s.saturation)
    return tables.round().astype(np.uint8)[None], colour


def _toned(
    rgb: NDArray[np.uint8], tables: NDArray[np.uint8], saturation: float
) -> NDArray[np.uint8]:
    # Tone and colour as one table per channel: no float picture is needed.
    rgb = np.asarray(cv2.LUT(rgb, tables), np.uint8)
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(rgb, saturation, grey, 1 - saturation, 0), np.uint8)


def photometric(
    rgb: NDArray[np.uint8], settings: AugmentSettings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change a picture as exposure, sensor, lens and codec would, in that order of the light."""
    s = settings
    if rng.random() < s.blur:
        rgb = _blur(rgb, s.blur_px, rng)
    if s.uneven and rng.random() < s.uneven:
        gain = uneven_light((rgb.shape[0], rgb.shape[1]), s.uneven_level, rng)
        rgb = np.clip(rgb * gain[..., None] + np.float32(0.5), 0, 255).astype(np.uint8)
    rgb = _toned(rgb, *_tone(s, rng))
    if rng.random() < s.channel_swap:
        rgb = np.ascontiguousarray(rgb[..., rng.permutation(3)])
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


def uneven_light(
    size_hw: tuple[int, int], level: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a gain per pixel: vignetting, light from one side and stripes of a flickering lamp.

    Vignetting falls with the square of the distance from the middle, to 1 - level in the corners
    at most; the gradient reaches 1 -+ level / 2 at most, the stripes (1 to 8 over the height)
    1 -+ level / 4. Two of the three act, on average.

    Args:
        size_hw: the picture's size.
        level: see above.
        rng: the caller's generator.

    Returns:
        (H, W) float32.
    """
    height, width = size_hw
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    gain = np.ones(size_hw, np.float32)
    acts = rng.random(3) < 2 / 3
    if acts[0]:
        aspect = height / width
        radius = (u * u + (v * aspect) ** 2) / np.float32(1 + aspect * aspect)
        gain *= 1 - np.float32(level * rng.random()) * radius
    if acts[1]:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (u * np.float32(math.cos(angle)) + v * np.float32(math.sin(angle))) / math.sqrt(2)
        gain *= 1 + np.float32(0.5 * level * rng.random()) * ramp
    if acts[2]:
        turns, phase = rng.uniform(1, 8), rng.uniform(0, 2 * math.pi)
        stripes = np.sin(np.float32(math.pi * turns) * v + np.float32(phase))
        gain *= 1 + np.float32(0.25 * level * rng.random()) * stripes
    return gain


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
