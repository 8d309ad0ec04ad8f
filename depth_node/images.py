"""Pixel encodings to arrays and back: raw and compressed camera images, depth images, colours.

Knows the names of ROS image encodings but no ROS types: the callers pass plain values and buffers.
Plain encodings are read through strided views of the buffer (row padding and byte order cost
nothing); OpenCV converts the rest. Every refusal is an `ImageError` that carries a short reason,
so that a caller can count it and name it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Literal
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import array

    Buffer = bytes | bytearray | memoryview | array.array[int] | NDArray[Any]

__all__ = [
    'ENCODINGS',
    'MAX_SIDE_PX',
    'ImageError',
    'colorize',
    'decode_compressed',
    'depth_from_16uc1',
    'depth_to_16uc1',
    'to_rgb',
    'view',
]

Reason = Literal[
    'unknown_encoding',
    'depth_image',
    'empty',
    'bad_size',
    'bad_step',
    'short_data',
    'unknown_format',
    'corrupt_jpeg',
    'corrupt_png',
    'wrong_depth_unit',
]

MAX_SIDE_PX: Final = 32766
"""Largest accepted height or width: cv2.remap and cv2.resize stop at SHRT_MAX."""

_MAX_PIXELS: Final = 1 << 27  # 134 MPix: no camera sends more in one message, a broken header does

# name -> (item type, channels); every one of them is a plain strided array
_PLAIN: Final[dict[str, tuple[str, int]]] = {
    'rgb8': ('u1', 3), 'bgr8': ('u1', 3), 'rgba8': ('u1', 4), 'bgra8': ('u1', 4),
    'mono8': ('u1', 1), 'mono16': ('u2', 1),
    'rgb16': ('u2', 3), 'bgr16': ('u2', 3), 'rgba16': ('u2', 4), 'bgra16': ('u2', 4),
    '8UC1': ('u1', 1), '8UC3': ('u1', 3), '8UC4': ('u1', 4),
    '16UC3': ('u2', 3), '16UC4': ('u2', 4),
    '16UC1': ('u2', 1), '32FC1': ('f4', 1), '64FC1': ('f8', 1),
    'bayer_rggb8': ('u1', 1), 'bayer_bggr8': ('u1', 1),
    'bayer_gbrg8': ('u1', 1), 'bayer_grbg8': ('u1', 1),
    'bayer_rggb16': ('u2', 1), 'bayer_bggr16': ('u2', 1),
    'bayer_gbrg16': ('u2', 1), 'bayer_grbg16': ('u2', 1),
    'yuv422': ('u1', 2), 'uyvy': ('u1', 2), 'yuv422_yuy2': ('u1', 2), 'yuyv': ('u1', 2),
}
_DEPTH: Final = ('16UC1', '32FC1', '64FC1')
# The generic CV types say nothing about colour; ROS reads them as bgr (cv_bridge's convention).
_TO_RGB: Final[dict[str, int | None]] = {
    'rgb8': None, 'rgb16': None,
    'bgr8': cv2.COLOR_BGR2RGB, 'bgr16': cv2.COLOR_BGR2RGB,
    '8UC3': cv2.COLOR_BGR2RGB, '16UC3': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB, 'rgba16': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB, 'bgra16': cv2.COLOR_BGRA2RGB,
    '8UC4': cv2.COLOR_BGRA2RGB, '16UC4': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB, 'mono16': cv2.COLOR_GRAY2RGB, '8UC1': cv2.COLOR_GRAY2RGB,
    # OpenCV names a pattern by its second row and column, ROS by the first: RGGB is its "BG".
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB, 'bayer_rggb16': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB, 'bayer_bggr16': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB, 'bayer_gbrg16': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB, 'bayer_grbg16': cv2.COLOR_BayerGB2RGB,
    'yuv422': cv2.COLOR_YUV2RGB_UYVY, 'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2, 'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
_SEMI_PLANAR: Final = ('nv12', 'nv21', 'nv24')

ENCODINGS: Final = (*_TO_RGB, *_SEMI_PLANAR)
"""The encodings that `to_rgb` reads."""


class ImageError(ValueError):
    """An image that cannot be used; `reason` is a short slug for counters."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the slug beside the message."""
        super().__init__(message)
        self.reason: Final[str] = reason


def view(
    data: Buffer,
    *,
    height: int,
    width: int,
    encoding: str,
    step: int,
    is_bigendian: bool = False,
) -> NDArray[Any]:
    """Look at a plain (not semi-planar) image as it lies in the buffer, without a copy.

    Args:
        data: the message's bytes; more than needed is allowed, and so is a last row without
            its padding.
        height: rows [px].
        width: columns [px].
        encoding: one of sensor_msgs' names, colour or depth.
        step: bytes from one row to the next.
        is_bigendian: byte order of 16-bit and wider items.

    Returns:
        (H, W) or (H, W, C) with the encoding's item type, in the buffer's byte order; read-only
        where the buffer is.

    Raises:
        ImageError: the values contradict each other, or the encoding is not a plain one.
    """
    if encoding not in _PLAIN:
        raise _unknown(encoding)
    _check_size(height, width)
    kind, channels = _PLAIN[encoding]
    dtype = np.dtype(kind).newbyteorder('>' if is_bigendian else '<')
    row_bytes = width * channels * dtype.itemsize
    flat = _flat(data, encoding, height=height, width=width, row_bytes=row_bytes, step=step,
                 rows=height)
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, buffer=flat.data, strides=strides)


def to_rgb(
    data: Buffer,
    *,
    height: int,
    width: int,
    encoding: str,
    step: int,
    is_bigendian: bool = False,
) -> NDArray[np.uint8]:
    """Turn a raw camera image into RGB.

    16-bit images use their full range (65535 becomes 255). YUV is BT.601 with video range, Bayer
    is interpolated bilinearly, both as OpenCV does. Depth encodings are refused: 16UC1 is what
    depth cameras send; a 16-bit grey camera says mono16.

    Args:
        data: the message's bytes.
        height: rows [px].
        width: columns [px].
        encoding: one of `ENCODINGS`.
        step: bytes from one row to the next, padding included.
        is_bigendian: byte order of 16-bit items.

    Returns:
        (H, W, 3) rgb. For rgb8 a view of `data` (rows may be padded), otherwise a new array.

    Raises:
        ImageError: with the reason that makes the image unusable.
    """
    if encoding in _DEPTH:
        raise ImageError(
            'depth_image',
            f'encoding {encoding}: this is a depth image, a colour or grey camera image is '
            'expected; point the image topic at the camera (16-bit grey is called mono16)',
        )
    if encoding in _SEMI_PLANAR:
        return _semi_planar_to_rgb(data, height, width, encoding, step)
    if encoding not in _TO_RGB:
        raise _unknown(encoding)
    image = view(data, height=height, width=width, encoding=encoding, step=step,
                 is_bigendian=is_bigendian)
    code = _TO_RGB[encoding]
    if encoding.startswith('bayer_') and min(height, width) < 4:
        raise ImageError('bad_size', f'{encoding} of {width}x{height} px: a Bayer pattern needs '
                                     'at least 4x4 px to be interpolated')
    if code in (cv2.COLOR_YUV2RGB_UYVY, cv2.COLOR_YUV2RGB_YUY2) and width % 2:
        raise ImageError('bad_size', f'{encoding} of {width} px width: two pixels share one '
                                     'colour, the width must be even')
    if image.dtype.itemsize == 2:
        # OpenCV wants native byte order and aligned rows; 1/257 maps 0..65535 onto 0..255
        native = np.require(image, image.dtype.newbyteorder('='), 'A')
        image = _as_shape(cv2.convertScaleAbs(native, alpha=1 / 257), image.shape)
    if code is None:
        return image
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def decode_compressed(
    data: Buffer,
    format: str,
    *,
    apply_orientation: bool = False,
) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG camera image.

    The content decides which of the two it is: drivers are careless with `format`, of which only
    two things count: `compressedDepth` and 16UC1 or 32FC1 mean a depth image, which is refused,
    and `compressed rgb8` (compressed_image_transport) means that red and blue were swapped before
    compressing. A cut-off JPEG or PNG and a PNG whose checksums do not match are refused; damage
    inside a JPEG that keeps its frame cannot be told from a picture.

    Args:
        data: the file's bytes.
        format: e.g. 'jpeg', 'png', 'rgb8; jpeg compressed bgr8'; '' if unknown.
        apply_orientation: turn the picture as its EXIF header says. For photographs; a camera's
            calibration belongs to the unturned picture.

    Returns:
        (H, W, 3) rgb, a new array.

    Raises:
        ImageError: with the reason that makes the image unusable.
    """
    source, _, rest = format.partition(';')
    if 'compressedDepth' in format or source.strip() in _DEPTH:
        raise ImageError(
            'depth_image',
            f'format {format!r}: this is a depth image, a colour or grey camera image is '
            "expected; use the camera's .../compressed topic",
        )
    flat = _bytes_of(data)
    if flat.size == 0:
        raise ImageError('empty', f'compressed image ({format!r}) without data')
    blob = flat.data
    head = bytes(blob[:8])
    reason: Reason
    if head[:3] == b'\xff\xd8\xff':
        reason, name = 'corrupt_jpeg', 'JPEG'
        height, width = _check_jpeg(bytes(blob))
    elif head == b'\x89PNG\r\n\x1a\n':
        reason, name = 'corrupt_png', 'PNG'
        height, width = _check_png(blob)
    elif 'jpeg' in format.lower() or 'jpg' in format.lower():
        raise ImageError('corrupt_jpeg', f'format {format!r}, but the data begins with '
                                         f'{head[:4].hex(" ")}, not with a JPEG header')
    elif 'png' in format.lower():
        raise ImageError('corrupt_png', f'format {format!r}, but the data begins with '
                                        f'{head[:4].hex(" ")}, not with a PNG header')
    else:
        raise ImageError('unknown_format', f'compressed format {format!r} (data begins with '
                                           f'{head[:4].hex(" ")}): only JPEG and PNG are read')
    _check_size(height, width)
    flags = cv2.IMREAD_COLOR if apply_orientation else (
        cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        bgr = cv2.imdecode(flat, flags)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImageError(reason, f'{name} of {flat.size} bytes: the decoder gave up, the data is '
                                 'damaged')
    if 'compressed rgb' in rest:
        return np.asarray(bgr, np.uint8)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def depth_to_16uc1(depth_m: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Convert depth to whole millimetres, the 16UC1 of REP 118.

    Args:
        depth_m: (H, W) [m]; NaN unknown, Inf beyond range.

    Returns:
        (H, W) [mm], rounded; 0 where unknown, not positive, or beyond 65.535 m.
    """
    # the cap is the largest float32 that still rounds to 65535 mm
    _, kept = cv2.threshold(depth_m, 65.53549, 0.0, cv2.THRESH_TOZERO_INV)
    cv2.patchNaNs(kept, 0.0)
    factor: Any = 1000.0  # OpenCV's stubs know arrays only
    return np.asarray(cv2.multiply(kept, factor, dtype=cv2.CV_16U), np.uint16)  # rounds, saturates


def depth_from_16uc1(depth_mm: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert 16UC1 depth to metres.

    Args:
        depth_mm: (H, W) [mm], 0 = unknown; any byte order.

    Returns:
        (H, W) [m]; NaN where unknown.

    Raises:
        ImageError: the items are not 16-bit unsigned, so the unit is not known to be mm.
    """
    if depth_mm.dtype.kind != 'u' or depth_mm.dtype.itemsize != 2:
        raise ImageError('wrong_depth_unit', f'depth of type {depth_mm.dtype}: uint16 '
                                             'millimetres are expected')
    depth_m = depth_mm.astype(np.float32)
    depth_m /= 1000
    depth_m[depth_m == 0] = np.nan
    return depth_m


def colorize(depth_m: NDArray[np.float32], near_m: float, far_m: float) -> NDArray[np.uint8]:
    """Paint depth for people: turbo over inverse depth, on a range that does not move.

    Args:
        depth_m: (H, W) [m].
        near_m: painted dark red, and everything nearer with it.
        far_m: painted dark blue, and everything farther (Inf too) with it.

    Returns:
        (H, W, 3) bgr; black where depth is NaN or not positive.

    Raises:
        ValueError: not 0 < near_m < far_m < Inf.
    """
    if not 0 < near_m < far_m < np.inf:
        raise ValueError(f'near_m {near_m} and far_m {far_m}: 0 < near < far < Inf is expected')
    # level = 255 (1/Z - 1/far) / (1/near - 1/far), saturated; garbage at invalid pixels
    scale = 255 / (1 / near_m - 1 / far_m)
    scaled_inv_depth: Any = cv2.divide(scale, depth_m)
    offset: Any = scale / far_m
    level = cv2.subtract(scaled_inv_depth, offset, dtype=cv2.CV_8U)
    bgr = cv2.applyColorMap(level, cv2.COLORMAP_TURBO)
    zero: Any = 0.0
    valid = cv2.compare(depth_m, zero, cv2.CMP_GT)
    return np.asarray(cv2.copyTo(bgr, valid), np.uint8)


def _semi_planar_to_rgb(
    data: Buffer, height: int, width: int, encoding: str, step: int
) -> NDArray[np.uint8]:
    """Convert a full Y plane followed by a plane of interleaved chroma."""
    _check_size(height, width)
    if encoding == 'nv24':
        flat = _flat(data, encoding, height=height, width=width, row_bytes=width, step=step,
                     rows=3 * height)
        luma = np.ndarray((height, width), np.uint8, buffer=flat.data, strides=(step, 1))
        chroma = np.ndarray((height, width, 2), np.uint8, buffer=flat.data,
                            offset=step * height, strides=(2 * step, 2, 1))
        # OpenCV has no NV24: it is NV12 of a picture twice as large, read at every second pixel
        doubled = luma.repeat(2, axis=0).repeat(2, axis=1)
        large = cv2.cvtColorTwoPlane(doubled, np.ascontiguousarray(chroma),
                                     cv2.COLOR_YUV2RGB_NV12)
        return np.ascontiguousarray(large[::2, ::2])
    if height % 2 or width % 2:
        raise ImageError('bad_size', f'{encoding} of {width}x{height} px: four pixels share one '
                                     'colour, both sides must be even')
    rows = height * 3 // 2
    flat = _flat(data, encoding, height=height, width=width, row_bytes=width, step=step,
                 rows=rows)
    planes = np.ndarray((rows, width), np.uint8, buffer=flat.data, strides=(step, 1))
    code = cv2.COLOR_YUV2RGB_NV12 if encoding == 'nv12' else cv2.COLOR_YUV2RGB_NV21
    return np.asarray(cv2.cvtColor(planes, code), np.uint8)


def _flat(
    data: Buffer, encoding: str, *, height: int, width: int, row_bytes: int, step: int, rows: int
) -> NDArray[np.uint8]:
    """Check step and length; return the bytes."""
    if step < row_bytes:
        raise ImageError('bad_step', f'step {step} for {width} px of {encoding}: a row takes '
                                     f'{row_bytes} bytes, the step cannot be less')
    if step > 64 * row_bytes + 65536:
        raise ImageError('bad_step', f'step {step} for {width} px of {encoding}: a row takes '
                                     f'{row_bytes} bytes, this much padding is a broken header')
    flat = _bytes_of(data)
    needed = step * (rows - 1) + row_bytes
    if flat.size < needed:
        raise ImageError('short_data', f'{flat.size} bytes for {width}x{height} px of {encoding} '
                                       f'with step {step}: {needed} are needed')
    return flat


def _bytes_of(data: Buffer) -> NDArray[np.uint8]:
    """See a buffer as bytes, without a copy."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def _as_shape(image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo OpenCV's habit of changing the shape of narrow images."""
    return image if image.shape == shape else image.reshape(shape)


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise ImageError('empty', f'image of {width}x{height} px: it has no pixels')
    if max(height, width) > MAX_SIDE_PX or height * width > _MAX_PIXELS:
        raise ImageError('bad_size', f'image of {width}x{height} px: at most {MAX_SIDE_PX} px a '
                                     f'side and {_MAX_PIXELS} px in all are accepted; the header '
                                     'is probably broken')


def _unknown(encoding: str) -> ImageError:
    known = {name.lower(): name for name in ENCODINGS}
    hint = known.get(encoding.strip().lower())
    advice = f'the name is {hint!r}' if hint else f'known are {", ".join(ENCODINGS)}'
    return ImageError('unknown_encoding', f'encoding {encoding!r}: {advice}')


# Markers of a JPEG that carry no length
_BARE_MARKERS: Final = frozenset((0x01, *range(0xD0, 0xD9)))
# Start-of-frame markers: all of 0xC0..0xCF but DHT, JPG and DAC
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _check_jpeg(blob: bytes) -> tuple[int, int]:
    """Walk a JPEG's segments up to its first scan and look for its end; return its size.

    Source: ITU-T T.81, annex B.
    """
    def corrupt(what: str) -> ImageError:
        return ImageError('corrupt_jpeg', f'JPEG of {len(blob)} bytes: {what}')

    size_hw: tuple[int, int] | None = None
    position = 2
    while True:
        if position + 4 > len(blob):
            raise corrupt('cut off in its header')
        if blob[position] != 0xFF:
            raise corrupt(f'byte {position} should begin a segment, it is {blob[position]:#04x}')
        marker = blob[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if marker in _BARE_MARKERS:
            position += 2
            continue
        if marker == 0xD9:
            raise corrupt('it ends before any picture data')
        length = int.from_bytes(blob[position + 2:position + 4], 'big')
        if marker in _FRAME_MARKERS:
            if position + 9 > len(blob):
                raise corrupt('cut off in its header')
            size_hw = struct.unpack('>HH', blob[position + 5:position + 9])
        position += 2 + length
        if marker == 0xDA:
            break
    if size_hw is None:
        raise corrupt('a scan without a frame header')
    # Inside a scan 0xFF is always followed by 0x00 or a restart marker, so this is the real end.
    if blob.rfind(b'\xff\xd9', position) < 0:
        raise corrupt('cut off, the end marker is missing')
    return size_hw


def _check_png(blob: memoryview) -> tuple[int, int]:
    """Walk a PNG's chunks and compare their checksums; return its size.

    Source: W3C PNG specification, section 5.
    """
    def corrupt(what: str) -> ImageError:
        return ImageError('corrupt_png', f'PNG of {len(blob)} bytes: {what}')

    position, size_hw = 8, None
    while True:
        if position + 12 > len(blob):
            raise corrupt('cut off, the end chunk is missing')
        (length,) = struct.unpack('>I', blob[position:position + 4])
        kind = bytes(blob[position + 4:position + 8])
        end = position + 12 + length
        if end > len(blob):
            raise corrupt(f'cut off in its chunk {kind!r}')
        (stored,) = struct.unpack('>I', blob[end - 4:end])
        if zlib.crc32(blob[position + 4:end - 4]) != stored:
            raise corrupt(f'the checksum of its chunk {kind!r} at byte {position} is wrong')
        if kind == b'IHDR' and length >= 8:
            width, height = struct.unpack('>II', blob[position + 8:position + 16])
            size_hw = (height, width)
        if kind == b'IEND':
            break
        position = end
    if size_hw is None:
        raise corrupt('no header chunk')
    return size_hw
