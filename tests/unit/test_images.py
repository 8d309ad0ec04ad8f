"""Encodings against an independent writer and against rosbags-image; every refusal by its name."""

from __future__ import annotations

import array
import struct
from types import SimpleNamespace
import zlib

import cv2
from depth_node import images
from depth_node.images import ImageError, to_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

H, W = 46, 64  # H != W, both even, neither a multiple of the other


def smooth_rgb(height: int = H, width: int = W) -> np.ndarray:
    """A colour ramp: different in every channel and direction, smooth enough for Bayer and YUV."""
    v, u = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [40 + 170 * u / width, 200 - 150 * v / height, 60 + 90 * (u + v) / (height + width)]
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


def yuv_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601, video range (ITU-R BT.601-7, section 2.5.1), in plain numpy."""
    r, g, b = (rgb[..., i] / 255.0 for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = (b - y) / 1.772, (r - y) / 1.402
    return 16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr


def rounded(plane: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8)


def pair_mean(plane: np.ndarray) -> np.ndarray:
    return (plane[:, 0::2] + plane[:, 1::2]) / 2


def quad_mean(plane: np.ndarray) -> np.ndarray:
    return (pair_mean(plane)[0::2] + pair_mean(plane)[1::2]) / 2


def items_of(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """Write a picture in an encoding, (rows, items) in native byte order; independent of cv2."""
    height, width = rgb.shape[:2]
    if encoding in ('nv12', 'nv21', 'nv24'):
        y, cb, cr = yuv_of(rgb)
        first, second = (cr, cb) if encoding == 'nv21' else (cb, cr)
        if encoding == 'nv24':
            chroma = np.stack([first, second], -1).reshape(2 * height, width)
        else:
            chroma = np.stack([quad_mean(first), quad_mean(second)], -1).reshape(-1, width)
        return np.concatenate([rounded(y), rounded(chroma)])
    if encoding in ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'):
        y, cb, cr = yuv_of(rgb)
        packed = np.empty((height, width // 2, 4))
        luma, chroma = ((1, 3), (0, 2)) if encoding in ('yuv422', 'uyvy') else ((0, 2), (1, 3))
        packed[..., luma[0]], packed[..., luma[1]] = y[:, 0::2], y[:, 1::2]
        packed[..., chroma[0]], packed[..., chroma[1]] = pair_mean(cb), pair_mean(cr)
        return rounded(packed).reshape(height, -1)
    wide = encoding.endswith('16') or encoding.startswith('16')
    values = rgb.astype(np.uint16) * 257 if wide else rgb
    if encoding.startswith('bayer_'):
        pattern = encoding[6:10]
        mosaic = np.empty((height, width), values.dtype)
        for place, letter in enumerate(pattern):
            row, column = divmod(place, 2)
            mosaic[row::2, column::2] = values[row::2, column::2, 'rgb'.index(letter)]
        return mosaic
    if encoding in ('mono8', 'mono16', '8UC1'):
        return values[..., 0]
    order = {'rgb8': 'rgb', 'rgb16': 'rgb', 'bgr8': 'bgr', 'bgr16': 'bgr', '8UC3': 'bgr',
             '16UC3': 'bgr', 'rgba8': 'rgba', 'rgba16': 'rgba', 'bgra8': 'bgra',
             'bgra16': 'bgra', '8UC4': 'bgra', '16UC4': 'bgra'}[encoding]
    alpha = np.full(values.shape[:2], 77, values.dtype)
    planes = [alpha if letter == 'a' else values[..., 'rgb'.index(letter)] for letter in order]
    return np.stack(planes, -1).reshape(height, -1)


def written(
    rgb: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False
) -> tuple[bytes, int]:
    """Return data and step; the padding is filled with garbage."""
    items = items_of(rgb, encoding)
    if items.dtype.itemsize == 2:
        items = items.astype('>u2' if bigendian else '<u2')
    rows = np.ascontiguousarray(items).view(np.uint8).reshape(items.shape[0], -1)
    if encoding == 'nv24':  # its chroma rows are twice as long: pad every half of them alike
        assert padding == 0
    garbage = np.full((rows.shape[0], padding), 0xA5, np.uint8)
    return np.concatenate([rows, garbage], 1).tobytes(), rows.shape[1] + padding


def expected_rgb(rgb: np.ndarray, encoding: str) -> np.ndarray:
    if encoding in ('mono8', 'mono16', '8UC1'):
        return np.repeat(rgb[..., :1], 3, axis=2)
    return rgb


def tolerance(encoding: str) -> int:
    """Largest difference allowed: chroma and mosaics are interpolated, the rest is exact."""
    if encoding.startswith(('yu', 'uy', 'nv')):
        return 5
    return 4 if encoding.startswith('bayer') else 0


@pytest.mark.parametrize('bigendian', [False, True], ids=['little', 'big'])
@pytest.mark.parametrize(('encoding', 'padding'), [
    (encoding, padding) for encoding in images.ENCODINGS for padding in (0, 5, 64)
    if encoding != 'nv24' or not padding])  # padded NV24 has a test of its own
def test_every_encoding_round_trips(encoding, padding, bigendian):
    rgb = smooth_rgb()
    data, step = written(rgb, encoding, padding, bigendian)
    got = to_rgb(data, height=H, width=W, encoding=encoding, step=step, is_bigendian=bigendian)
    assert got.shape == (H, W, 3)
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - expected_rgb(rgb, encoding))
    inner = difference[2:-2, 2:-2] if encoding.startswith('bayer') else difference
    assert inner.max() <= tolerance(encoding)


def test_padded_nv24_has_chroma_rows_of_two_steps():
    rgb = smooth_rgb()
    data, _ = written(rgb, 'nv24')
    rows = np.frombuffer(data, np.uint8)
    luma, chroma = rows[:H * W].reshape(H, W), rows[H * W:].reshape(H, 2 * W)
    padded = (np.pad(luma, ((0, 0), (0, 6)), constant_values=9).tobytes()
              + np.pad(chroma, ((0, 0), (0, 12)), constant_values=9).tobytes())
    got = to_rgb(padded, height=H, width=W, encoding='nv24', step=W + 6)
    assert np.abs(got.astype(int) - rgb).max() <= 5


@pytest.mark.parametrize('encoding', [
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'rgb16', 'bgr16', 'rgba16', 'bgra16',
    'bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8', 'bayer_rggb16', 'bayer_bggr16',
    'bayer_gbrg16', 'bayer_grbg16', 'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12',
    'nv21'])
def test_same_as_rosbags_image_on_noise(encoding):
    oracle = pytest.importorskip('rosbags.image')
    generator = np.random.default_rng(7)
    noise = generator.integers(0, 256, (H, W, 3), np.uint8)
    data, step = written(noise, encoding)
    message = SimpleNamespace(
        __msgtype__='sensor_msgs/msg/Image', height=H, width=W, encoding=encoding, step=step,
        is_bigendian=0, data=np.frombuffer(data, np.uint8))
    if encoding in ('nv12', 'nv21'):  # rosbags-image counts the rows of all planes
        message.height = H * 3 // 2
    expected = oracle.image_to_cvimage(message, 'rgb8')
    got = to_rgb(data, height=H, width=W, encoding=encoding, step=step)
    assert expected.shape == got.shape
    # rosbags-image cuts 16-bit values off where to_rgb rounds them
    limit = 1 if encoding.endswith('16') else 0
    assert np.abs(got.astype(int) - expected).max() <= limit


@pytest.mark.parametrize('kind', ['bytes', 'bytearray', 'memoryview', 'array', 'ndarray'])
def test_every_kind_of_buffer(kind):
    rgb = smooth_rgb()
    data, step = written(rgb, 'bgr8', 3)
    buffer = {'bytes': data, 'bytearray': bytearray(data), 'memoryview': memoryview(data),
              'array': array.array('B', data), 'ndarray': np.frombuffer(data, np.uint8)}[kind]
    got = to_rgb(buffer, height=H, width=W, encoding='bgr8', step=step)
    np.testing.assert_array_equal(got, rgb)


def test_rgb8_is_a_view_of_the_message_even_with_padding():
    data, step = written(smooth_rgb(), 'rgb8', 10)
    message = bytearray(data)
    rgb = to_rgb(message, height=H, width=W, encoding='rgb8', step=step)
    message[3 * step + 3 * 7 + 1] = 255 - rgb[3, 7, 1]
    assert rgb[3, 7, 1] == message[3 * step + 3 * 7 + 1]


def test_last_row_may_lack_its_padding():
    rgb = smooth_rgb()
    data, step = written(rgb, 'bgr8', 20)
    np.testing.assert_array_equal(
        to_rgb(data[:-20], height=H, width=W, encoding='bgr8', step=step), rgb)


def test_16_bit_uses_its_full_range():
    values = np.array([[0, 128, 129, 32768, 65406, 65407, 65535]], '<u2')
    got = to_rgb(values, height=1, width=7, encoding='mono16', step=14)
    # value / 257 rounded: 128/257 < 0.5 <= 129/257, 65406/257 = 254.498, 65407/257 = 254.502
    assert got[0, :, 1].tolist() == [0, 0, 1, 128, 254, 255, 255]


@pytest.mark.parametrize(('change', 'reason'), [
    ({'encoding': 'jpeg2000'}, 'unknown_encoding'),
    ({'encoding': ''}, 'unknown_encoding'),
    ({'encoding': 'RGB8'}, 'unknown_encoding'),
    ({'encoding': '32FC1', 'step': 4 * W}, 'depth_image'),
    ({'encoding': '64FC1', 'step': 8 * W}, 'depth_image'),
    ({'encoding': '16UC1', 'step': 2 * W}, 'depth_image'),
    ({'height': 0}, 'empty'),
    ({'width': 0}, 'empty'),
    ({'height': 0, 'width': 0, 'step': 0}, 'empty'),
    ({'step': 0}, 'bad_step'),
    ({'step': 3 * W - 1}, 'bad_step'),
    ({'step': -1}, 'bad_step'),
    ({'step': 2 ** 32 - 1}, 'bad_step'),
    ({'height': H + 1}, 'short_data'),
    ({'step': 3 * W + 1}, 'short_data'),
    ({'data': b''}, 'short_data'),
    ({'height': 2 ** 32 - 1}, 'bad_size'),
    ({'width': 2 ** 32 - 1}, 'bad_size'),
    ({'height': 20000, 'width': 20000}, 'bad_size'),
    ({'encoding': 'yuyv', 'width': 63}, 'bad_size'),
    ({'encoding': 'nv12', 'width': 63}, 'bad_size'),
    ({'encoding': 'nv21', 'height': 45}, 'bad_size'),
    ({'encoding': 'nv12', 'height': 2 * H + 4}, 'short_data'),
    ({'encoding': 'nv24', 'height': H + 2}, 'short_data'),
    ({'encoding': 'bayer_rggb8', 'height': 3}, 'bad_size'),
])
def test_bad_images_are_refused_with_their_reason(change, reason):
    fields = {'data': bytes(3 * H * W), 'height': H, 'width': W, 'encoding': 'rgb8',
              'step': 3 * W, **change}
    with pytest.raises(ImageError) as caught:
        to_rgb(fields.pop('data'), **fields)
    assert caught.value.reason == reason
    assert len(str(caught.value)) > 20


def test_unknown_encoding_names_the_right_spelling():
    with pytest.raises(ImageError, match="the name is 'bgr8'"):
        to_rgb(b'', height=1, width=1, encoding='BGR8', step=3)


def test_depth_image_as_camera_says_what_it_is():
    with pytest.raises(ImageError, match='this is a depth image'):
        to_rgb(bytes(16), height=2, width=2, encoding='32FC1', step=8)


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=600), height=st.integers(-2, 40), width=st.integers(-2, 40),
    encoding=st.sampled_from([*images.ENCODINGS, '32FC1', '16UC1', 'nonsense']),
    step=st.integers(-3, 200), is_bigendian=st.booleans())
def test_any_header_gives_a_picture_or_a_named_refusal(
        data, height, width, encoding, step, is_bigendian):
    try:
        rgb = to_rgb(data, height=height, width=width, encoding=encoding, step=step,
                     is_bigendian=is_bigendian)
    except ImageError:
        return  # any other exception fails the test
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize(('encoding', 'kind'), [('16UC1', 'u2'), ('32FC1', 'f4'),
                                                ('64FC1', 'f8'), ('mono16', 'u2')])
def test_view_reads_depth_with_padding_and_byte_order(encoding, kind, bigendian):
    values = np.arange(5 * 7).reshape(5, 7) * 257 + 1
    rows = values.astype(('>' if bigendian else '<') + kind).view(np.uint8).reshape(5, -1)
    padded = np.pad(rows, ((0, 0), (0, 3)), constant_values=1)
    got = images.view(padded.tobytes(), height=5, width=7, encoding=encoding,
                      step=padded.shape[1], is_bigendian=bigendian)
    np.testing.assert_array_equal(got, values)


# --- compressed


def encoded(rgb: np.ndarray, kind: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if kind == '.jpg' else []
    return cv2.imencode(kind, rgb[..., ::-1], options)[1].tobytes()


@pytest.mark.parametrize(('kind', 'name'), [
    ('.jpg', 'jpeg'), ('.jpg', 'jpg'), ('.jpg', 'rgb8; jpeg compressed bgr8'), ('.jpg', ''),
    ('.jpg', 'bgr8; jpeg compressed bgr8'), ('.png', 'png'), ('.png', 'png; quality 3'),
    ('.png', 'bgr8; png compressed bgr8'), ('.png', 'jpeg'), ('.jpg', 'png')])
def test_compressed_formats(kind, name):
    rgb = smooth_rgb()
    got = images.decode_compressed(encoded(rgb, kind), name)
    assert np.abs(got.astype(int) - rgb).max() <= (0 if kind == '.png' else 6)


def test_compressed_rgb8_means_swapped_before_compressing():
    rgb = smooth_rgb()
    got = images.decode_compressed(encoded(rgb[..., ::-1], '.png'), 'rgb8; png compressed rgb8')
    np.testing.assert_array_equal(got, rgb)


def test_grey_and_16_bit_png_become_rgb():
    grey = smooth_rgb()[..., 0]
    for values in (grey, grey.astype(np.uint16) * 257):
        got = images.decode_compressed(cv2.imencode('.png', values)[1].tobytes(), 'png')
        np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, 2))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack(
        '>I', zlib.crc32(kind + body))


def exif_turned(jpeg: bytes) -> bytes:
    """Insert an EXIF header that says: turn by 90 degrees (orientation 6)."""
    tiff = b'MM\x00\x2a' + struct.pack('>IHHHIHHI', 8, 1, 0x0112, 3, 1, 6, 0, 0)
    body = b'Exif\x00\x00' + tiff
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + jpeg[2:]


def test_orientation_is_for_photographs_only():
    jpeg = exif_turned(encoded(smooth_rgb(), '.jpg'))
    assert images.decode_compressed(jpeg, 'jpeg').shape == (H, W, 3)
    assert images.decode_compressed(jpeg, 'jpeg', apply_orientation=True).shape == (W, H, 3)


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5, 0.9, 0.995])
@pytest.mark.parametrize(('kind', 'reason'), [('.jpg', 'corrupt_jpeg'), ('.png', 'corrupt_png')])
def test_cut_off_files_are_refused(kind, reason, share):
    blob = encoded(np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8), kind)
    with pytest.raises(ImageError, match='cut off') as caught:
        images.decode_compressed(blob[:int(len(blob) * share)], kind[1:])
    assert caught.value.reason == reason


def test_cut_off_jpeg_with_a_whole_thumbnail_is_refused():
    """The end marker of an embedded thumbnail is not the end of the picture."""
    thumbnail = encoded(smooth_rgb(16, 16), '.jpg')
    body = b'Exif\x00\x00' + thumbnail
    blob = encoded(smooth_rgb(), '.jpg')
    blob = blob[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + blob[2:]
    assert images.decode_compressed(blob, 'jpeg').shape == (H, W, 3)
    with pytest.raises(ImageError, match='end marker'):
        images.decode_compressed(blob[:-40], 'jpeg')


def test_jpeg_with_bytes_after_its_end_is_fine():
    blob = encoded(smooth_rgb(), '.jpg') + bytes(32)  # as webcams pad their MJPEG
    assert images.decode_compressed(blob, 'jpeg').shape == (H, W, 3)


def test_one_flipped_bit_in_a_png_is_noticed():
    blob = bytearray(encoded(smooth_rgb(), '.png'))
    blob[len(blob) // 2] ^= 4
    with pytest.raises(ImageError, match='checksum') as caught:
        images.decode_compressed(blob, 'png')
    assert caught.value.reason == 'corrupt_png'


def test_a_picture_bomb_is_refused_before_decoding():
    header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0))
    bomb = b'\x89PNG\r\n\x1a\n' + header + png_chunk(b'IDAT', b'') + png_chunk(b'IEND', b'')
    with pytest.raises(ImageError) as caught:
        images.decode_compressed(bomb, 'png')
    assert caught.value.reason == 'bad_size'


@pytest.mark.parametrize(('data', 'name', 'reason'), [
    (b'', 'jpeg', 'empty'),
    (b'not a picture', 'jpeg', 'corrupt_jpeg'),
    (b'not a picture', 'png', 'corrupt_png'),
    (b'\xff\xd8\xff', 'jpeg', 'corrupt_jpeg'),
    (b'\xff\xd8\xff\xd9', 'jpeg', 'corrupt_jpeg'),
    (b'\xff\xd8\xff' + bytes(500), 'jpeg', 'corrupt_jpeg'),
    (b'\xff\xd8' + b'\xff' * 500, 'jpeg', 'corrupt_jpeg'),
    (b'\x89PNG\r\n\x1a\n', 'png', 'corrupt_png'),
    (b'\x00\x00\x00\x01\x67', 'h264', 'unknown_format'),
    (b'RIFF....WEBP', 'webp', 'unknown_format'),
    (b'anything', '16UC1; compressedDepth', 'depth_image'),
    (b'anything', '32FC1; compressedDepth png', 'depth_image'),
    (b'anything', '16UC1; png compressed ', 'depth_image'),
])
def test_bad_compressed_images_are_refused_with_their_reason(data, name, reason):
    with pytest.raises(ImageError) as caught:
        images.decode_compressed(data, name)
    assert caught.value.reason == reason


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000),
       kind=st.sampled_from(['.jpg', '.png']))
def test_damaged_files_never_raise_anything_else(position, value, cut, kind):
    blob = bytearray(encoded(smooth_rgb(), kind))
    blob[position % len(blob)] = value
    try:
        rgb = images.decode_compressed(blob[:len(blob) - cut % len(blob)], kind[1:])
    except ImageError:
        return  # any other exception fails the test
    assert rgb.ndim == 3


# --- depth


def test_depth_to_16uc1_rounds_and_zeroes_what_it_cannot_say():
    depth = np.array([[1.2344, 1.2346, 0.0004, 0.0006, 65.535, 65.536, 1e9],
                      [np.nan, np.inf, -np.inf, -2.0, 0.0, 0.1, 10.0]], np.float32)
    assert images.depth_to_16uc1(depth).tolist() == [
        [1234, 1235, 0, 1, 65535, 0, 0], [0, 0, 0, 0, 0, 100, 10000]]


def test_16uc1_survives_the_way_there_and_back():
    millimetres = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    depth = images.depth_from_16uc1(millimetres)
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    assert np.isnan(depth).sum() == 1
    np.testing.assert_array_equal(images.depth_to_16uc1(depth), millimetres)
    np.testing.assert_array_equal(images.depth_from_16uc1(millimetres.astype('>u2')), depth)


@pytest.mark.parametrize('kind', [np.float32, np.int16, np.uint8, np.uint32])
def test_depth_of_another_type_has_an_unknown_unit(kind):
    with pytest.raises(ImageError) as caught:
        images.depth_from_16uc1(np.ones((2, 3), kind))
    assert caught.value.reason == 'wrong_depth_unit'


def test_colorize_has_fixed_ends_and_black_for_unknown():
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0]
    # the middle of the range in inverse depth: 1 / ((1/0.5 + 1/4) / 2) = 0.888...
    depth = np.array([[0.5, 0.1, 4.0, 90.0, np.inf, np.nan, 0.0, -1.0, -np.inf, 8 / 9]],
                     np.float32)
    got = images.colorize(depth, 0.5, 4.0)[0]
    black = [0, 0, 0]
    expected = [table[255], table[255], table[0], table[0], table[0], black, black, black, black]
    np.testing.assert_array_equal(got[:9], expected)
    assert np.abs(table.astype(int) - got[9]).sum(1).argmin() in (127, 128)
    assert table[0].any()  # far is not black, unknown is


@pytest.mark.parametrize(('near', 'far'), [(0, 1), (2, 1), (1, 1), (1, np.inf), (np.nan, 1)])
def test_colorize_refuses_a_range_that_is_none(near, far):
    with pytest.raises(ValueError, match='near'):
        images.colorize(np.ones((2, 3), np.float32), near, far)
