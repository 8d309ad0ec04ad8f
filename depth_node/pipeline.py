"""The one path from an RGB image to metric depth, shared by node, CLI and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
import itertools
import time
from typing import TYPE_CHECKING

from depth_node.camera import Camera, Rectifier
from depth_node.filters import FilterChain, FilterSettings
from depth_node.postprocess import as_map, to_depth
from depth_node.preprocess import ResizePlan
from depth_node.scale import Scale, ScaleEstimator
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.backends import Backend

STAGES = ('rectify', 'preprocess', 'network', 'postprocess', 'filter')
RECTIFY_MODES = ('auto', 'off')
RESIZE_SPACES = ('depth', 'inv_depth')
# Field of view taken for a canonical-depth network when neither camera nor card names one.
DEFAULT_HFOV_DEG = 60.0


@dataclass
class DepthFrame:
    """What the pipeline makes of one image.  Arrays are valid until the pipeline's next run.

    Attributes:
        depth: (H, W) float32, metres along the optical axis (REP 118); NaN unknown, -Inf too
            close, +Inf out of range (REP 117).
        rgb: (H, W, 3) uint8, the rectified picture that depth belongs to.
        camera: rectified camera of both; None where the caller gave none.
        confidence: (H, W) float32 0..1, None if the network gives none.
        scale: the correction that was applied.
        stamp: the caller's time of the picture, seconds.
        timings_ms: milliseconds per stage, keys `STAGES`.
        removed: pixels without depth by reason.
        notes: what a user of this depth should know (an assumed field of view, say).
        valid_share: share of finite pixels, 0..1.
    """

    depth: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    camera: Camera | None
    confidence: NDArray[np.float32] | None
    scale: Scale
    stamp: float
    timings_ms: dict[str, float] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    valid_share: float = 0.0


class DepthPipeline:
    """Rectify, resize, infer, interpret, scale and filter.

    Lookup maps and buffers are made at the first image of each size or camera and reused.  Not
    thread-safe: one thread calls `run` and `update`.
    """

    def __init__(self, backend: Backend, *,
                 scale: Scale | ScaleEstimator | None = None,
                 filters: FilterSettings | None = None, rectify: str = 'auto',
                 resize_in: str = 'depth') -> None:
        """Prepare a backend's network for images.

        Args:
            backend: an open network.
            scale: correction to metres, or what finds it for each image; none when None.
            filters: the defaults when None.
            rectify: one of `RECTIFY_MODES`.
            resize_in: what is interpolated on the way from the network's map to the image,
                `depth` or `inv_depth` (as self-supervised networks are measured).

        Raises:
            ValueError: an unknown mode or space.
        """
        if resize_in not in RESIZE_SPACES:
            raise ValueError(f'resize_in {resize_in!r}, expected one of '
                             f'{", ".join(RESIZE_SPACES)}')
        self.resize_in = resize_in
        self.backend = backend
        self.card = backend.card
        self.scale: Scale | ScaleEstimator = scale or Scale()
        self._filters = FilterChain(filters)
        self.rectify = 'auto'
        self.update(rectify=rectify)
        self._plan: ResizePlan | None = None
        self._rectifier: Rectifier | None = None
        self._depth: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def update(self, *, scale: Scale | ScaleEstimator | None = None,
               filters: FilterSettings | None = None, rectify: str | None = None) -> None:
        """Change settings between frames; None leaves a setting as it is."""
        if rectify is not None:
            if rectify not in RECTIFY_MODES:
                raise ValueError(f'rectify {rectify!r}, expected one of '
                                 f'{", ".join(RECTIFY_MODES)}')
            self.rectify = rectify
        if scale is not None:
            self.scale = scale
        if filters is not None:
            self._filters.update(filters)

    @property
    def filters(self) -> FilterSettings:
        """Settings of the filters in force."""
        return self._filters.settings

    def reset(self) -> None:
        """Forget all that came from earlier frames: lookup maps, buffers and estimates."""
        self._plan = None
        self._rectifier = None
        self._filters.reset()
        if not isinstance(self.scale, Scale):
            self.scale.reset()

    def run(self, rgb: NDArray[np.uint8], camera: Camera | None = None,
            stamp: float = 0.0) -> DepthFrame:
        """Return the metric depth of one image.

        Args:
            rgb: (H, W, 3) uint8.
            camera: its camera, or None; without it a network with a canonical focal length
                works with an assumed field of view and says so in `notes`.
            stamp: acquisition time, seconds; frames without one (all of the same) are not
                steadied over time.

        Returns:
            A frame whose arrays are overwritten by the next call.

        Raises:
            ValueError: the image is not (H, W, 3) uint8, or the camera is of another size.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ValueError(f'pipeline: image {rgb.shape} {rgb.dtype}, expected (H, W, 3) uint8')
        size_hw = rgb.shape[0], rgb.shape[1]
        if camera is not None and camera.size_hw != size_hw:
            raise ValueError(f'pipeline: camera for {camera.size_hw}, image {size_hw} '
                             '(height, width)')
        clock = [time.perf_counter()]
        rectifier = self._rectifier_for(camera)
        if rectifier is not None:
            rgb, camera = rectifier(rgb), rectifier.camera
        elif camera is not None:
            camera = camera.rectified()
        clock.append(time.perf_counter())

        if self._plan is None or self._plan.size_hw != size_hw:
            self._plan = ResizePlan(self.card.input, size_hw)
            self._depth = np.empty(size_hw, np.float32)
        plan, spec = self._plan, self.card.output
        batch = plan.to_input(rgb)
        clock.append(time.perf_counter())

        outputs = self.backend.run(batch)
        clock.append(time.perf_counter())

        raw = as_map(outputs[spec.name])
        lens, notes = camera, tuple[str, ...]()
        if lens is None:
            hfov = spec.assumed_hfov_deg or DEFAULT_HFOV_DEG
            lens = Camera.from_fov(size_hw, hfov)
            if spec.kind == 'canonical_depth':
                notes = (f'no camera intrinsics: metric scale assumes a horizontal field of '
                         f'view of {hfov:g} degrees',)
        network_camera = plan.network_camera(lens)
        # without padding: what the network makes of grey bars is no scene to measure or to filter
        coarse = plan.inside(to_depth(raw, spec, network_camera, keep_signed=True))
        grid_camera = network_camera.scaled((coarse.shape[0], coarse.shape[1]))
        scale = self.scale if isinstance(self.scale, Scale) else self.scale.estimate(
            coarse, grid_camera, stamp)
        scale.apply(coarse)
        if scale.identity and scale.usable and not spec.metric:
            notes += ('depth is not in metres: the network knows it only up to scale and shift; '
                      'choose a scale.source that measures',)
        causes = {'network': self._count_blank(coarse)}
        clock.append(time.perf_counter())

        # On the network's own grid: finer ones only interpolate between its pixels.  The bilinear
        # way back then widens each hole until no pixel mixes two surfaces.
        causes |= self._filters.on_grid(
            coarse, grid_camera, stamp=stamp, picture=plan.picture,
            context=(scale.source, scale.space, scale.usable,
                     (scale.scale, scale.shift) if scale.source == 'fixed' else None),
            image_size_hw=size_hw)
        clock.append(time.perf_counter())

        if self.resize_in == 'inv_depth':
            np.reciprocal(coarse, out=coarse)
        depth = plan.to_image(coarse, self._depth)
        if self.resize_in == 'inv_depth':
            np.reciprocal(depth, out=depth)
        # the way back widens the holes of every cause alike
        removed = _shared_out(self._count_blank(depth), causes)
        confidence = None
        if spec.confidence is not None:
            confidence = plan.back(as_map(outputs[spec.confidence]))
        clock.append(time.perf_counter())

        sky = None
        if spec.sky is not None:
            sky = plan.back(as_map(outputs[spec.sky])) > 0.5
        removed |= self._filters.on_image(
            depth, range_m=spec.range_m, sky=sky, confidence=confidence,
            inside=None if rectifier is None else rectifier.valid)
        valid_share = float(np.count_nonzero(np.isfinite(depth))) / depth.size
        clock.append(time.perf_counter())

        ms = [1e3 * (after - before) for before, after in itertools.pairwise(clock)]
        return DepthFrame(
            depth, rgb, camera, confidence, scale, stamp,
            {'rectify': ms[0], 'preprocess': ms[1], 'network': ms[2],
             'postprocess': ms[3] + ms[5], 'filter': ms[4] + ms[6]},
            removed, notes + self._filters.notes, valid_share)

    def _rectifier_for(self, camera: Camera | None) -> Rectifier | None:
        if camera is None or self.rectify == 'off' or not camera.is_distorted:
            return None
        if self._rectifier is None or self._rectifier.source != camera:
            self._rectifier = Rectifier(camera)
        return self._rectifier

    @staticmethod
    def _count_blank(depth: NDArray[np.float32]) -> int:
        return depth.size - int(np.count_nonzero(np.isfinite(depth)))


def _shared_out(total: int, causes: dict[str, int]) -> dict[str, int]:
    """Split a total by the shares of its causes into whole numbers that add up, without zeros."""
    found: dict[str, int] = {}
    seen = given = 0
    for cause, count in causes.items():
        seen += count
        upto = round(total * seen / max(1, sum(causes.values())))
        if upto > given:
            found[cause] = upto - given
        given = upto
    return found
