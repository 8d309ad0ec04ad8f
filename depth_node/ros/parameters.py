"""Every parameter of `mono_depth`: one frozen dataclass per group, and what follows from it.

The declaration with its ranges, `config/mono_depth.yaml` and `docs/parameters.md` are all made
from the fields below, so they cannot disagree.  This file needs no ROS; `parameter_server.py`
connects it with a node.  After a change here write both files again with

    python -m depth_node.ros.parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from dataclasses import dataclass, field
import difflib
import math
from pathlib import Path
import sys
from typing import Any

NODE_NAME = 'mono_depth'

# When a parameter may change.
LIVE = 'live'  # at any time; used from the next frame on
CONFIGURE = 'configure'  # in the unconfigured state; used by the next configure transition
START = 'start'  # only before the node starts; read-only afterwards
_WHEN_TEXT = {LIVE: 'any time', CONFIGURE: 'while unconfigured', START: 'at start'}

Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


class ParameterError(ValueError):
    """A parameter value cannot be used; the text says what was found and what is expected.

    Attributes:
        names: parameters that contradict each other; empty where one value alone is wrong.
    """

    def __init__(self, text: str, names: tuple[str, ...] = ()) -> None:
        """Keep the names beside the text."""
        super().__init__(text)
        self.names = names


@dataclass(frozen=True)
class Spec:
    """What is known about one parameter."""

    name: str
    default: Value
    text: str
    when: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Return `bool`, `int`, `float`, `str`, `ints`, `floats` or `strs`."""
        if isinstance(self.default, tuple):
            return type(self.default[0]).__name__ + 's'
        return type(self.default).__name__

    @property
    def constraint(self) -> str:
        """Return the allowed values in words, empty where anything of the type goes."""
        if self.choices:
            return 'one of: ' + ', '.join(self.choices)
        if self.low is not None and self.high is not None:
            unit = f' {self.unit}' if self.unit else ''
            return f'{_number(self.low)} to {_number(self.high)}{unit}'
        return ''

    def coerce(self, value: Any) -> Value:
        """Return `value` in this parameter's type.

        A whole number is taken for a real one, because YAML authors write `far_m: 10`, and a
        YAML `off` or `on`, which every YAML 1.1 reader turns into a boolean, for the choice.

        Raises:
            ParameterError: wrong type, out of range, or not one of the choices.
        """
        kind = self.kind
        if kind == 'bool' and isinstance(value, bool):
            return value
        if kind == 'int' and isinstance(value, int) and not isinstance(value, bool):
            return int(self._in_range(value))
        if kind == 'float' and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(self._in_range(value))
        if kind == 'str':
            if isinstance(value, bool) and self.choices:
                value = _switch_word(value, self.choices)
            if isinstance(value, str):
                if self.choices and value not in self.choices:
                    raise ParameterError(
                        f'{self.name}: found {value!r}, expected {self.constraint}')
                return value
        if kind == 'strs' and value is None:  # what rcl makes of []
            value = ()
        if kind in ('ints', 'floats', 'strs') and not isinstance(value, (str, bytes, bool)):
            return self._list(value)
        raise ParameterError(f'{self.name}: found {_describe(value)}, expected '
                             f'{_KIND_TEXT[kind].format(len_or(self.default))}')

    def _in_range(self, value: float) -> float:
        if not math.isfinite(value) or (self.low is not None and value < self.low) or (
                self.high is not None and value > self.high):
            raise ParameterError(f'{self.name}: found {_number(value)}, '
                                 f'expected {self.constraint or "a finite number"}')
        return value

    def _list(self, value: Any) -> Value:
        """Return a list's items; numbers have the default's count, texts any count."""
        assert isinstance(self.default, tuple)
        try:
            items = list(value)
        except TypeError:
            items = [value]
        kind, count = self.kind, len(self.default)
        wanted = {'ints': int, 'floats': (int, float), 'strs': str}[kind]
        if (kind != 'strs' and len(items) != count) or not all(
                isinstance(item, wanted) and not isinstance(item, bool)  # type: ignore[arg-type]
                for item in items):
            raise ParameterError(f'{self.name}: found {_describe(value)}, expected '
                                 f'{_KIND_TEXT[kind].format(count)}')
        if kind == 'strs':
            return tuple(str(item) for item in items) or ('',)
        checked = [self._in_range(item) for item in items]
        if kind == 'floats':
            return tuple(float(item) for item in checked)
        return tuple(int(item) for item in checked)


_KIND_TEXT = {'bool': 'true or false', 'int': 'a whole number', 'float': 'a number',
              'str': 'a text', 'ints': '{} whole numbers', 'floats': '{} numbers',
              'strs': 'a list of texts'}


def len_or(value: Any) -> int:
    """Return the length of a tuple, 1 for anything else."""
    return len(value) if isinstance(value, tuple) else 1


def _switch_word(value: bool, choices: tuple[str, ...]) -> Any:
    words = ('on', 'yes', 'true', 'auto') if value else ('off', 'no', 'false')
    return next((word for word in words if word in choices), value)


def _describe(value: Any) -> str:
    if value is None:
        return 'nothing'
    if isinstance(value, (bool, int, float, str)):
        return f'{value!r} ({type(value).__name__})'
    try:
        return f'{list(value)!r}'
    except TypeError:
        return f'{type(value).__name__}'


def _number(value: float) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def _parameter(default: Value, text: str, *, when: str, unit: str = '',
               low: float | None = None, high: float | None = None,
               choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={'text': text, 'when': when, 'unit': unit, 'low': low,
                                            'high': high, 'choices': choices})


@dataclass(frozen=True)
class ModelParameters:
    """Which network."""

    name: str = _parameter(
        'small', 'Name of a model card (list them with: depth-node models), or the path of a card '
        'or of an ONNX file with a card beside it.', when=CONFIGURE)


@dataclass(frozen=True)
class BackendParameters:
    """What runs the network."""

    name: str = _parameter(
        'auto', "Runtime: auto takes the first that opens and passes the model's self-check. "
        'Names: depth-node doctor.', when=CONFIGURE)
    precision: str = _parameter(
        'auto', 'Numeric precision of the network; auto takes the fastest that the backend and '
        'the model card support.', when=CONFIGURE,
        choices=('auto', 'fp32', 'bf16', 'fp16', 'mixed', 'int8'))
    threads: int = _parameter(
        0, 'CPU threads of the network; 0 lets the backend decide.', when=CONFIGURE,
        low=0, high=256)
    cache_dir: str = _parameter(
        '', "Folder of compiled models; empty is the user's cache folder.", when=CONFIGURE)


@dataclass(frozen=True)
class InputParameters:
    """Images and intrinsics."""

    transport: str = _parameter(
        'raw', 'raw subscribes to sensor_msgs/Image on `image`, compressed to '
        'sensor_msgs/CompressedImage on `image`/compressed. A topic whose name ends in '
        '/compressed is always taken as compressed.', when=CONFIGURE,
        choices=('raw', 'compressed'))
    rectify: str = _parameter(
        'auto', 'auto removes the lens distortion that CameraInfo describes, unless the topic is '
        'an image_rect* one; off leaves the image as it is and takes it as rectified, with '
        'the intrinsics of P.', when=LIVE, choices=('auto', 'off'))
    camera_info_url: str = _parameter(
        '', 'Calibration file (camera_calibration YAML; a path or file:// URL) used while no '
        'usable CameraInfo arrives.', when=CONFIGURE)
    fov_deg: float = _parameter(
        0.0, 'Horizontal field of view of an undistorted camera, used while there is neither a '
        'usable CameraInfo nor a calibration file; 0 is unknown. Depth and points are then only '
        'as right as this number.', when=LIVE, unit='deg', low=0.0, high=170.0)
    camera_info_wait_s: float = _parameter(
        1.0, 'After activation, frames wait this long for the first CameraInfo before depth is '
        'published without one. Without waiting, a metric scale could jump when it arrives.',
        when=LIVE, unit='s', low=0.0, high=60.0)
    timeout_s: float = _parameter(
        5.0, 'After this time without an image the node says so, with the image topics that '
        'exist.', when=LIVE, unit='s', low=0.5, high=3600.0)


@dataclass(frozen=True)
class DepthParameters:
    """The depth images."""

    publish: bool = _parameter(True, 'Publish ~/depth/image and ~/depth/camera_info.', when=LIVE)
    encoding: str = _parameter(
        '32FC1', '32FC1: metres, NaN unknown, -Inf too close, +Inf out of range. 16UC1: '
        'millimetres, 0 for all three.', when=LIVE, choices=('32FC1', '16UC1'))
    color_near_m: float = _parameter(
        0.3, 'Depth of the first colour of ~/depth/color.', when=LIVE, unit='m',
        low=0.01, high=1000.0)
    color_far_m: float = _parameter(
        8.0, 'Depth of the last colour of ~/depth/color.', when=LIVE, unit='m',
        low=0.01, high=1000.0)


@dataclass(frozen=True)
class CloudParameters:
    """The point cloud."""

    publish: bool = _parameter(
        True, 'Publish ~/points. With false, depth_image_proc can make the cloud from '
        '~/depth/image in C++.', when=LIVE)
    rgb: bool = _parameter(
        True, "Field rgb: the image's colour, packed as RViz reads it. Without any field the "
        'points are x, y, z and 4 bytes of padding.', when=LIVE)
    intensity: bool = _parameter(
        False, "Field intensity: the image's brightness, 0 to 255; 4 bytes more per point beside "
        'rgb.', when=LIVE)
    confidence: bool = _parameter(
        False, 'Field confidence, 0 to 1; only with a network that has this output.', when=LIVE)
    stride: int = _parameter(
        1, 'Take every n-th pixel of every n-th row.', when=LIVE, unit='px', low=1, high=64)
    organised: bool = _parameter(
        True, 'true: one point for every pixel taken, NaN where depth is unknown. false: a list '
        'of the valid points only.', when=LIVE)
    roi: tuple[int, ...] = _parameter(
        (0, 0, 0, 0), 'Part of the image that becomes points: x, y, width, height; width or '
        'height 0 means up to the border.', when=LIVE, unit='px', low=0, high=65535)
    far_m: float = _parameter(
        0.0, 'Depths above are left out of the cloud (and stay in ~/depth/image); 0 is no limit '
        'beyond filter.far_m.', when=LIVE, unit='m', low=0.0, high=1000.0)
    far_points: bool = _parameter(
        False, 'Pixels farther than cloud.far_m, or out of range, become points at the depth '
        'cloud.far_m instead of none: a costmap can then clear what lies before them. Its '
        'obstacle_max_range must be smaller than cloud.far_m, or it marks them. Unknown pixels '
        'never become points.', when=LIVE)
    voxel_m: float = _parameter(
        0.0, 'Keep one point, the mean, per cube of this edge; 0 keeps all. Needs cloud.organised '
        'false.', when=LIVE, unit='m', low=0.0, high=10.0)
    min_height_m: float = _parameter(
        0.0, 'Points lower above the floor are left out; needs the mount group. 0 for this and '
        'for cloud.max_height_m is no limit.', when=LIVE, unit='m', low=-100.0, high=100.0)
    max_height_m: float = _parameter(
        0.0, 'Points higher above the floor are left out.', when=LIVE, unit='m',
        low=-100.0, high=100.0)
    remove_ground: bool = _parameter(
        False, 'Leave out the floor and what is below it; needs the mount group. A costmap then '
        'gets no points that clear along the floor.', when=LIVE)
    ground_margin_m: float = _parameter(
        0.05, 'Up to this height above the floor, at the camera, a point counts as floor.',
        when=LIVE, unit='m', low=0.0, high=10.0)
    ground_margin_per_m: float = _parameter(
        0.02, 'Added to cloud.ground_margin_m per metre of horizontal distance; 0.02 forgives a '
        'tilt that is wrong by one degree.', when=LIVE, low=0.0, high=1.0)


@dataclass(frozen=True)
class ScanParameters:
    """The laser scan, and what the status calls an obstacle."""

    publish: bool = _parameter(
        True, 'Publish ~/scan; needs the mount group.', when=LIVE)
    frame: str = _parameter(
        '', 'Frame of ~/scan: level, at the camera, x along the horizontal part of its viewing '
        "direction, z up. For a level camera that is the body's frame (camera_link). Empty: the "
        "image's frame without _optical_frame, with _level.", when=LIVE)
    publish_tf: bool = _parameter(
        True, 'Publish that frame on /tf with every scan, as a child of the frame of the image; '
        'needs tf2_ros. Not done for a frame named by scan.frame, which your TF has to know.',
        when=LIVE)
    min_height_m: float = _parameter(
        0.1, 'Lower end, at the camera, of the heights above the floor in which a thing is an '
        'obstacle, for ~/scan and for the nearest obstacle in ~/status.', when=LIVE, unit='m',
        low=-100.0, high=100.0)
    max_height_m: float = _parameter(
        1.0, 'Upper end of them: what the robot fits below is no obstacle.', when=LIVE, unit='m',
        low=-100.0, high=100.0)
    margin_per_m: float = _parameter(
        0.02, 'Added to scan.min_height_m per metre of horizontal distance; 0.02 forgives a tilt '
        'that is wrong by one degree.', when=LIVE, low=0.0, high=1.0)
    range_min_m: float = _parameter(
        0.2, 'Obstacles nearer than this become -Inf (too close, REP 117).', when=LIVE, unit='m',
        low=0.0, high=1000.0)
    range_max_m: float = _parameter(
        8.0, 'Farther obstacles do not count; a bearing that is seen to be free up to here is '
        '+Inf.', when=LIVE, unit='m', low=0.1, high=1000.0)
    angle_increment_deg: float = _parameter(
        0.25, 'Width of a bin; 0 makes one per image column, as depthimage_to_laserscan does.',
        when=LIVE, unit='deg', low=0.0, high=45.0)
    min_rows: int = _parameter(
        2, 'An obstacle fills at least this many pixels one above the other.', when=LIVE,
        unit='px', low=1, high=100)


@dataclass(frozen=True)
class FilterParameters:
    """Which depths count as known."""

    near_m: float = _parameter(
        0.0, 'Depths below become -Inf (too close, REP 117; NaN in the cloud); 0 takes the lower '
        "end of the model card's range.", when=LIVE, unit='m', low=0.0, high=1000.0)
    far_m: float = _parameter(
        0.0, 'Depths above become +Inf (out of range, REP 117; NaN in the cloud); 0 takes the '
        "upper end of the model card's range.", when=LIVE, unit='m', low=0.0, high=1000.0)
    flying_pixel_jump: float = _parameter(
        0.08, 'Pixels beside a step of depth larger than this share become unknown (NaN), unless '
        'the step is the slope of a plane: what hangs between two objects goes, a floor stays. '
        '0 switches this test off.', when=LIVE, low=0.0, high=1.0)
    flying_pixel_angle_deg: float = _parameter(
        0.0, 'Pixels on a surface seen at a smaller angle than this become unknown as well: ramps '
        'too wide for the test before, and the floor beyond camera height / tan(angle). 0 is off.',
        when=LIVE, unit='deg', low=0.0, high=44.0)
    speckle_px: int = _parameter(
        0, 'Connected patches of fewer image pixels than this become unknown; 0 is off.',
        when=LIVE, unit='px', low=0, high=1000000)
    speckle_jump: float = _parameter(
        0.1, 'Neighbours whose depths differ by more than this share are not connected.',
        when=LIVE, low=0.001, high=1.0)
    median: int = _parameter(
        0, "Width of a median window, 3 or 5 pixels of the network's map; unknown pixels count "
        'for nothing and stay unknown. 0 is off.', when=LIVE, unit='px', low=0, high=5)
    temporal: str = _parameter(
        'ema', 'Steadies depth where neither the picture nor the depth moves: ema is a running '
        'mean, median stands firmer against single bad frames and costs more. Where something '
        'moves, and everywhere while the camera does, the newest depth alone counts.',
        when=LIVE, choices=('off', 'ema', 'median'))
    temporal_frames: int = _parameter(
        8, 'How many frames are averaged where nothing moves.', when=LIVE, low=2, high=15)
    temporal_gate: float = _parameter(
        0.05, 'A change of depth by more than this share is followed at once.', when=LIVE,
        low=0.001, high=1.0)
    min_confidence: float = _parameter(
        0.0, 'Pixels of smaller confidence become unknown; only with a network that has this '
        'output. 0 is off.', when=LIVE, low=0.0, high=1.0)
    roi: tuple[int, ...] = _parameter(
        (0, 0, 0, 0), 'Part of the rectified image that keeps its depth: x, y, width, height; '
        'width or height 0 means up to the border.', when=LIVE, unit='px', low=0, high=65535)
    ignore: str = _parameter(
        '', "Polygon whose inside becomes unknown (the robot's own gripper or bumper), as Nav2 "
        "writes them: '[[u, v], [u, v], [u, v]]' in pixels of the rectified image, or a list of "
        'such polygons.', when=LIVE)
    mask_file: str = _parameter(
        '', 'Picture of the size of the image; where it is black, depth becomes unknown. '
        'Empty: none.', when=LIVE)


@dataclass(frozen=True)
class ScaleParameters:
    """From the network's depth to metres."""

    source: str = _parameter(
        'model', "model takes the network's metres as they are; fixed applies scale and shift; "
        'points fits to a lidar, laser scanner or range finder (scale.points_topic); ground fits '
        'to the floor, whose distance the mount group gives.',
        when=LIVE, choices=('model', 'fixed', 'points', 'ground'))
    scale: float = _parameter(
        1.0, 'With source fixed: depth = scale * depth + shift.', when=LIVE,
        low=0.001, high=1000.0)
    shift: float = _parameter(
        0.0, 'With source fixed: metres added after scale.', when=LIVE, unit='m',
        low=-100.0, high=100.0)
    points_topic: str = _parameter(
        'scan', 'With source points: topic of the measurements.', when=CONFIGURE)
    points_type: str = _parameter(
        'auto', 'Type of that topic; auto waits until the topic exists and asks.',
        when=CONFIGURE, choices=('auto', 'PointCloud2', 'LaserScan', 'Range'))
    extrinsic_from: str = _parameter(
        'auto', "Where the sensor's place comes from: tf, the parameter scale.extrinsic, or auto: "
        'TF where tf2_ros is installed and knows the frames, else the parameter.', when=LIVE,
        choices=('auto', 'tf', 'parameter'))
    extrinsic: tuple[float, ...] = _parameter(
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), "The sensor's pose in the camera's optical frame: x, y, "
        'z in metres, roll, pitch, yaw in radians (fixed axes, as static_transform_publisher '
        'takes them). All zero: not given.', when=LIVE, low=-1000.0, high=1000.0)
    fit: str = _parameter(
        'auto', 'scale fits a factor; scale_shift a factor and a shift of the inverse depth; auto '
        'takes scale_shift for networks whose depth is only relative.', when=LIVE,
        choices=('auto', 'scale', 'scale_shift'))
    min_points: int = _parameter(
        20, 'Fewer agreeing measurements than this are no estimate (a Range message: its one '
        'measurement counts).', when=LIVE, low=1, high=100000)
    max_uncertainty: float = _parameter(
        0.25, 'An estimate with a larger relative uncertainty is refused.', when=LIVE,
        low=0.001, high=1.0)
    low: float = _parameter(
        0.4, 'Estimated factors below this are refused; does not apply to networks whose depth is '
        'only relative. The narrower, the less a table top is taken for the floor; with high not '
        'above twice low, the source ground needs one picture and not three that differ.',
        when=LIVE,
        low=0.001, high=1000.0)
    high: float = _parameter(
        2.5, 'Estimated factors above this are refused.', when=LIVE, low=0.001, high=1000.0)
    local_error: float = _parameter(
        0.2, "Relative error of the network's depth at one place once the scale is right: the "
        'uncertainty that one range has, and part of that of a floor. 0.2 is the bundled '
        "network's.", when=LIVE, low=0.001, high=1.0)
    estimate_tilt: bool = _parameter(
        False, 'With source ground: take the tilt from the floor that the network sees, not from '
        'the mount, where only its height is known. A network bends its floors: several times '
        'less exact.', when=LIVE)
    smoothing_s: float = _parameter(
        1.0, 'Time constant of the smoothing of estimates; 0 is none.', when=LIVE, unit='s',
        low=0.0, high=60.0)
    sync_tolerance_s: float = _parameter(
        0.1, 'Measurements farther than this from the time of the image are not used for it.',
        when=LIVE, unit='s', low=0.001, high=10.0)
    max_age_s: float = _parameter(
        3.0, 'An estimate older than this is stale; see scale.when_stale.', when=LIVE, unit='s',
        low=0.1, high=3600.0)
    when_stale: str = _parameter(
        'hold', 'Without a fresh estimate: hold the last one (before the first one as model), '
        "take the model's own metres, or blank the depth. The status says so in each case.",
        when=LIVE, choices=('hold', 'model', 'blank'))


@dataclass(frozen=True)
class MountParameters:
    """How the camera hangs above the floor; for scale.source ground, heights and ~/scan."""

    frame: str = _parameter(
        '', 'TF frame on the floor whose z axis points up (base_footprint, say); where TF knows '
        'it, its pose replaces the three numbers below. Empty: not used.', when=LIVE)
    height_m: float = _parameter(
        0.0, 'Height of the camera above the floor; 0 is unknown.', when=LIVE, unit='m',
        low=0.0, high=100.0)
    pitch_deg: float = _parameter(
        0.0, 'Positive looks down.', when=LIVE, unit='deg', low=-90.0, high=90.0)
    roll_deg: float = _parameter(
        0.0, 'Positive is turned clockwise, seen from behind the camera.', when=LIVE,
        unit='deg', low=-180.0, high=180.0)
    imu_topic: str = _parameter(
        '', 'sensor_msgs/Imu whose gravity replaces pitch and roll; empty: not used.',
        when=CONFIGURE)


@dataclass(frozen=True)
class CalibrationParameters:
    """What the service ~/calibrate_scale looks for; see docs/scale.md."""

    method: str = _parameter(
        'distance', 'distance: a tape measure to the middle of the picture; chessboard, tag: of '
        'known size; sensor: keep what scale.source points or ground finds.', when=LIVE,
        choices=('distance', 'chessboard', 'tag', 'sensor'))
    distance_m: float = _parameter(
        0.0, 'From the lens to what is seen at calibration.at.', when=LIVE, unit='m',
        low=0.0, high=1000.0)
    at: tuple[int, ...] = _parameter(
        (-1, -1), 'Pixel u, v that the distance was measured to; negative: the middle.',
        when=LIVE, unit='px', low=-1, high=65535)
    board: tuple[int, ...] = _parameter(
        (9, 6), 'Inner corners of the chessboard along a row and along a column.', when=LIVE,
        low=3, high=100)
    square_m: float = _parameter(
        0.025, "Side of the chessboard's squares.", when=LIVE, unit='m', low=0.001, high=10.0)
    tag_family: str = _parameter(
        'tag36h11', 'AprilTag or ArUco family.', when=LIVE,
        choices=('tag36h11', 'tag25h9', 'tag16h5', 'aruco4x4', 'aruco6x6'))
    tag_m: float = _parameter(
        0.16, "Side of the tag's black square.", when=LIVE, unit='m', low=0.001, high=10.0)
    frames: int = _parameter(
        20, 'How many images are used.', when=LIVE, low=1, high=1000)
    timeout_s: float = _parameter(
        10.0, 'The longest time that a calibration takes.', when=LIVE, unit='s',
        low=0.5, high=120.0)
    file: str = _parameter(
        '', 'Parameters file that takes the result, for params_file:= of the next launch; empty: '
        'the result lasts until the node ends.', when=LIVE)


@dataclass(frozen=True)
class DiagnosticsParameters:
    """What the node says about itself."""

    period_s: float = _parameter(
        1.0, 'Time between two messages on /diagnostics.', when=START, unit='s',
        low=0.1, high=60.0)


@dataclass(frozen=True)
class Parameters:
    """All parameters of the node at one moment."""

    autostart: bool = _parameter(
        True, 'Configure and activate when the process starts; false leaves both to a lifecycle '
        'manager.', when=START)
    cameras: tuple[str, ...] = _parameter(
        ('',), 'Names of the cameras that this node serves in turn with one network, such as '
        '[front, left]: front has the inputs `front/image` and `front/camera_info`, its outputs '
        'below ~/front/, and front.filter.far_m is filter.far_m for it alone. Empty: one camera '
        'without a name.', when=START)
    model: ModelParameters = ModelParameters()
    backend: BackendParameters = BackendParameters()
    input: InputParameters = InputParameters()
    depth: DepthParameters = DepthParameters()
    cloud: CloudParameters = CloudParameters()
    scan: ScanParameters = ScanParameters()
    filter: FilterParameters = FilterParameters()
    scale: ScaleParameters = ScaleParameters()
    mount: MountParameters = MountParameters()
    calibration: CalibrationParameters = CalibrationParameters()
    diagnostics: DiagnosticsParameters = DiagnosticsParameters()

    def changed(self, changes: Mapping[str, Any]) -> Parameters:
        """Return a copy with parameters replaced by their full names.

        Raises:
            ParameterError: unknown name, unusable value, or values that contradict each other.
        """
        known = specs()
        tree: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise ParameterError(unknown_name(name, known))
            usable = known[name].coerce(value)
            group, _, leaf = name.rpartition('.')
            if group:
                tree[group] = dataclasses.replace(tree.get(group, getattr(self, group)),
                                                  **{leaf: usable})
            else:
                tree[leaf] = usable
        result = dataclasses.replace(self, **tree)
        result._check_together()
        return result

    def value(self, name: str) -> Value:
        """Return one parameter by its full name, such as `cloud.stride`."""
        group, _, leaf = name.rpartition('.')
        found: Value = getattr(getattr(self, group) if group else self, leaf)
        return found

    def _check_together(self) -> None:
        for low, high, unit in (('filter.near_m', 'filter.far_m', ' m'),
                                ('scale.low', 'scale.high', ''),
                                ('depth.color_near_m', 'depth.color_far_m', ' m'),
                                ('cloud.min_height_m', 'cloud.max_height_m', ' m'),
                                ('scan.min_height_m', 'scan.max_height_m', ' m'),
                                ('scan.range_min_m', 'scan.range_max_m', ' m')):
            below, above = (float(self.value(name)) for name in (low, high))  # type: ignore[arg-type]
            off = ((low == 'filter.near_m' and 0 in (below, above))  # the card's limit counts
                   or (low == 'cloud.min_height_m' and below == above == 0))
            if below >= above and not off:
                raise ParameterError(f'{low} {below:g}{unit} is not below {high} {above:g}{unit}; '
                                     'set both in one call', (low, high))
        cloud = self.cloud
        if cloud.voxel_m > 0 and cloud.organised:
            raise ParameterError(
                f'cloud.voxel_m {cloud.voxel_m:g} m needs cloud.organised false: what remains of '
                'an organised cloud is no grid of pixels; set both in one call',
                ('cloud.voxel_m', 'cloud.organised'))
        if cloud.far_points and not 0 < cloud.far_m <= (self.filter.far_m or math.inf):
            raise ParameterError(
                f'cloud.far_points needs cloud.far_m, the depth to put them at, found '
                f'{cloud.far_m:g} m: expected more than 0 and at most filter.far_m '
                f"({self.filter.far_m:g} m; 0 is the end of the model's range), up to which such "
                'pixels are known to be free; set both in one call',
                ('cloud.far_points', 'cloud.far_m', 'filter.far_m'))


def specs() -> dict[str, Spec]:
    """Return every parameter by its full name, in the order of declaration."""
    return dict(_SPECS)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return what to say about a parameter that does not exist."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'there is no parameter {name!r}' + (f'; did you mean {near[0]!r}?' if near else '')


def _collect() -> dict[str, Spec]:
    found: dict[str, Spec] = {}

    def walk(owner: Any, prefix: str) -> None:
        for item in dataclasses.fields(owner):
            value = getattr(owner, item.name)
            if dataclasses.is_dataclass(value):
                walk(value, f'{prefix}{item.name}.')
            else:
                name = f'{prefix}{item.name}'
                found[name] = Spec(name=name, default=value, **item.metadata)

    walk(Parameters(), '')
    return found


_SPECS = _collect()
# A camera can have these for itself; the others are about the one network, or about the node.
CAMERA_GROUPS = tuple(dict.fromkeys(
    group for group in (name.rpartition('.')[0] for name in _SPECS)
    if group not in ('', 'model', 'backend', 'diagnostics')))


# --- the files made from the table


def _yaml_value(value: Value) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, tuple):
        return '[' + ', '.join(_yaml_value(item) for item in value) + ']'
    if isinstance(value, str):
        # quoted, because a bare off, on, yes or no is a boolean in YAML 1.1
        return f"'{value}'"
    return repr(value)


def _wrapped(text: str, indent: str, width: int = 99) -> list[str]:
    lines, line = [], indent + '#'
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = indent + '#'
        line += ' ' + word
    return [*lines, line]


def config_yaml() -> str:
    """Return `config/mono_depth.yaml`: every parameter, commented, at its default."""
    lines = [
        f'# Every parameter of {NODE_NAME} at its default value.',
        '# Made from depth_node/ros/parameters.py by: python -m depth_node.ros.parameters',
        '# Use a copy: ros2 launch depth_node mono_depth.launch.py params_file:=my.yaml',
        '/**:',
        '  ros__parameters:',
    ]
    group = ''
    for spec in _SPECS.values():
        head, _, leaf = spec.name.rpartition('.')
        if head != group:
            lines += ['', f'    {head}:']
            group = head
        indent = '      ' if head else '    '
        facts = '; '.join(part for part in (
            spec.constraint, f'changes {_WHEN_TEXT[spec.when]}') if part)
        lines += _wrapped(f'{spec.text} [{facts}]', indent)
        lines.append(f'{indent}{leaf}: {_yaml_value(spec.default)}')
    return '\n'.join(lines) + '\n'


def docs_markdown() -> str:
    """Return `docs/parameters.md`."""
    lines = [
        f'# Parameters of `{NODE_NAME}`',
        '',
        'Made from `depth_node/ros/parameters.py` by `python -m depth_node.ros.parameters`.',
        '',
        '"Changes": *any time* is used from the next frame on; *while unconfigured* is refused in '
        'the states inactive and active (`ros2 lifecycle set /mono_depth cleanup` first) and used '
        'by the next configure; *at start* is read-only. A value that does not fit is refused '
        'with the reason. Whole numbers are accepted where a real number is expected.',
        '',
        'The QoS of every topic can be overridden at start by '
        '`qos_overrides.<topic>.<subscription|publisher>.<history|depth|reliability|durability>`, '
        'where `<topic>` is the full name after remapping.',
        '',
        'With `cameras: [front, left]` every parameter of the groups '
        f'{", ".join(f"`{name}`" for name in CAMERA_GROUPS)} exists for each camera, too: '
        '`front.filter.far_m` is `filter.far_m` for the camera `front`. While it is not set, '
        '`filter.far_m` counts. `config/several_cameras.yaml` is an example.',
        '',
    ]
    group = None
    for spec in _SPECS.values():
        head = spec.name.rpartition('.')[0]
        if head != group:
            if group is not None:
                lines.append('')
            lines += [f'## {head or "top level"}', '',
                      '| Parameter | Type | Default | Allowed | Changes | Meaning |',
                      '|---|---|---|---|---|---|']
            group = head
        kind = {'float': 'double', 'str': 'string', 'ints': 'integer array',
                'int': 'integer', 'floats': 'double array',
                'strs': 'string array'}.get(spec.kind, spec.kind)
        lines.append(f'| `{spec.name}` | {kind} | `{_yaml_value(spec.default)}` | '
                     f'{spec.constraint or "-"} | {_WHEN_TEXT[spec.when]} | '
                     f'{spec.text.replace("|", "/")} |')
    return '\n'.join(lines) + '\n'


def generated_files(root: Path) -> dict[Path, str]:
    """Return the files made from the table, by path below the repository root."""
    return {root / 'config' / f'{NODE_NAME}.yaml': config_yaml(),
            root / 'docs' / 'parameters.md': docs_markdown()}


def write_generated(files: Callable[[Path], dict[Path, str]]) -> int:
    """Write generated files into the checkout that this file belongs to.

    Args:
        files: gives path and text of each for the checkout's folder.

    Returns:
        0, or 1 in an installation, which is no checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / 'package.xml').is_file():
        print(f'{root}: no package.xml here; run this in a checkout, not in an installation',
              file=sys.stderr)
        return 1
    for path, text in files(root).items():
        path.write_text(text, encoding='utf-8')
        print(path.relative_to(root))
    return 0


if __name__ == '__main__':
    sys.exit(write_generated(generated_files))
