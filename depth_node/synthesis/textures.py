"""Procedural pictures for walls, floors, tables, boxes and posters (numpy and cv2 only)."""

from __future__ import annotations

from collections.abc import Callable
import colorsys
import itertools
import string

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (S, S, 3) sRGB
_Field = NDArray[np.float64]  # (S, S, 3), 0..1
_Colour = tuple[float, float, float] | _Field
SIZE = 256


def colour(rng: np.random.Generator, style: str = 'any') -> tuple[float, float, float]:
    """Draw an sRGB colour (0..1): 'wall' mostly light, 'wood' brownish, 'any' everything."""
    if style == 'wall':
        style = str(rng.choice(['light', 'light', 'light', 'pastel', 'pastel', 'strong', 'grey']))
    if style == 'any':
        style = str(rng.choice(['light', 'pastel', 'strong', 'strong', 'grey', 'dark', 'wood']))
    hue = rng.uniform()
    if style == 'light':
        hsv = (rng.normal(0.11, 0.05) % 1, rng.uniform(0, 0.18), rng.uniform(0.75, 0.97))
    elif style == 'pastel':
        hsv = (hue, rng.uniform(0.08, 0.4), rng.uniform(0.6, 0.95))
    elif style == 'strong':
        hsv = (hue, rng.uniform(0.45, 1.0), rng.uniform(0.25, 0.95))
    elif style == 'grey':
        hsv = (hue, rng.uniform(0, 0.06), rng.uniform(0.08, 0.85))
    elif style == 'dark':
        hsv = (hue, rng.uniform(0, 0.5), rng.uniform(0.03, 0.25))
    elif style == 'wood':
        hsv = (rng.uniform(0.05, 0.11), rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.85))
    else:
        raise ValueError(f'colour style {style!r}: expected any, wall, wood, light, pastel, '
                         'strong, grey or dark')
    red, green, blue = colorsys.hsv_to_rgb(*hsv)
    return red, green, blue


def noise(
    rng: np.random.Generator, exponent: float = 1.2, stretch: tuple[float, float] = (1, 1)
) -> NDArray[np.float64]:
    """Tileable 1/f^exponent noise, (S, S) in 0..1; `stretch` makes it grainy along (y, x)."""
    fy = np.fft.fftfreq(SIZE)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(SIZE)[None, :] * stretch[1]
    radius = np.hypot(fy, fx) * SIZE
    radius[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.uniform(size=radius.shape))
    field = np.fft.irfft2(phase * radius**-exponent, (SIZE, SIZE))
    low, high = np.percentile(field, [0.5, 99.5])
    return np.clip((field - low) / (high - low), 0, 1)


def _blend(weight: NDArray[np.float64], first: _Colour, second: _Colour) -> _Field:
    return weight[..., None] * np.array(first) + (1 - weight[..., None]) * np.array(second)


def _near(rng: np.random.Generator, base: _Colour, spread: float) -> _Field:
    near = np.array(base) * rng.normal(1, spread) + rng.normal(0, spread / 4, 3)
    return np.asarray(np.clip(near, 0, 1), np.float64)


def _wood(rng: np.random.Generator, base: _Colour | None = None) -> _Field:
    base = colour(rng, 'wood') if base is None else base
    grain = noise(rng, rng.uniform(0.8, 1.4), (1, rng.uniform(6, 30)))
    rings = 0.5 + 0.5 * np.sin(noise(rng, 1.8, (1, 8)) * rng.uniform(10, 60))
    weight = 0.6 * grain + 0.4 * rings
    return _blend(weight, base, np.array(base) * rng.uniform(0.45, 0.85))


def _planks(rng: np.random.Generator) -> _Field:
    base = colour(rng, 'wood' if rng.uniform() < 0.8 else 'grey')
    image = np.empty((SIZE, SIZE, 3))
    rows = int(rng.choice([3, 4, 5, 6, 8]))
    edges = np.linspace(0, SIZE, rows + 1).astype(int)
    contrast = rng.uniform(0.03, 0.2)
    sheet = _wood(rng, base).transpose(1, 0, 2)
    for top, bottom in itertools.pairwise(edges):
        joint = int(rng.integers(SIZE))
        rolled = np.roll(sheet, int(rng.integers(SIZE)), axis=(0, 1))
        tint = rng.normal(1, contrast)
        image[top:bottom, :joint] = rolled[top:bottom, :joint] * tint
        image[top:bottom, joint:] = rolled[top:bottom, joint:] * rng.normal(1, contrast)
        image[top] *= 0.5
        image[top:bottom, joint] *= 0.5
    return image


def _tiles(rng: np.random.Generator) -> _Field:
    count = int(rng.choice([2, 3, 4, 6, 8]))
    first, joint = colour(rng), colour(rng, 'grey')
    second = colour(rng) if rng.uniform() < 0.35 else first
    index = np.arange(SIZE) * count // SIZE
    board = (index[:, None] + index[None, :]) % 2
    image = np.where(board[..., None], first, second).astype(float)
    shades = rng.normal(1, rng.uniform(0, 0.12), (count, count))
    image *= shades[index[:, None], index[None, :], None]
    image *= (1 - rng.uniform(0, 0.3) * noise(rng, 1.1))[..., None]
    width = int(rng.integers(1, 4))
    lines = (np.arange(SIZE) * count % SIZE) < width * count
    image[lines] = joint
    image[:, lines] = joint
    return image


def _bricks(rng: np.random.Generator) -> _Field:
    base, mortar = colour(rng, str(rng.choice(['wood', 'light', 'grey']))), colour(rng, 'grey')
    rows, columns = int(rng.choice([6, 8, 10])), int(rng.choice([3, 4]))
    image = np.empty((SIZE, SIZE, 3))
    image[:] = mortar
    height, width = SIZE / rows, SIZE / columns
    for row in range(rows):
        for column in range(columns + 1):
            x0 = int((column - 0.5 * (row % 2)) * width) + 2
            y0 = int(row * height) + 2
            x1, y1 = int(x0 + width - 3), int(y0 + height - 3)
            image[y0:max(y1, 0), max(x0, 0):max(x1, 0)] = _near(rng, base, 0.15)
    return image * (0.75 + 0.35 * noise(rng, 0.8))[..., None]


def _speckle(rng: np.random.Generator) -> _Field:
    base = np.array(colour(rng))
    fine = noise(rng, rng.uniform(0.1, 0.7))
    return base * (1 + rng.uniform(0.1, 0.8) * (fine - 0.5))[..., None]


def _cloudy(rng: np.random.Generator) -> _Field:
    base = colour(rng, 'wall')
    return _blend(noise(rng, rng.uniform(1.0, 1.9)), base, _near(rng, base, 0.15))


def _marble(rng: np.random.Generator) -> _Field:
    veins = np.abs(np.sin(noise(rng, 1.7) * rng.uniform(8, 25))) ** rng.uniform(0.2, 0.6)
    return _blend(veins, colour(rng, 'light' if rng.uniform() < 0.6 else 'any'), colour(rng))


def _terrazzo(rng: np.random.Generator) -> _Field:
    cells = noise(rng, 0.9)
    levels = np.quantile(cells, np.sort(rng.uniform(0, 1, 5)))
    palette = np.array([colour(rng) for _ in range(6)])
    return palette[np.digitize(cells, levels)]


def _stripes(rng: np.random.Generator) -> _Field:
    count = int(rng.choice([2, 4, 6, 10, 16]))
    palette = np.array([colour(rng, 'wall') if rng.uniform() < 0.4 else colour(rng)
                        for _ in range(int(rng.integers(2, 4)))])
    index = np.arange(SIZE) * count // SIZE % len(palette)
    image = np.broadcast_to(palette[index][None], (SIZE, SIZE, 3)).copy()
    if rng.uniform() < 0.4:
        image = 0.5 * image + 0.5 * image.transpose(1, 0, 2)
    return image


def _dots(rng: np.random.Generator) -> _Field:
    image = np.empty((SIZE, SIZE, 3))
    image[:] = colour(rng, 'wall')
    dot = colour(rng)
    step = int(rng.choice([16, 32, 64]))
    radius = max(2, int(step * rng.uniform(0.1, 0.4)))
    for y in range(step // 2, SIZE, step):
        for x in range(step // 2, SIZE, step):
            cv2.circle(image, (x, y), radius, dot, -1, cv2.LINE_AA)
    return image


def _weave(rng: np.random.Generator) -> _Field:
    base = np.array(colour(rng))
    wave = np.sin(np.arange(SIZE) * 2 * np.pi * int(rng.choice([32, 48, 64])) / SIZE)
    cloth = 1 + 0.2 * wave[:, None] * wave[None, :]
    return base * (cloth * (0.8 + 0.4 * noise(rng, 0.7)))[..., None]


def _picture(rng: np.random.Generator) -> _Field:
    """A painting or photograph: coloured blobs and shapes with soft borders."""
    image = _blend(noise(rng, 1.8), colour(rng), colour(rng))
    for _ in range(int(rng.integers(0, 5))):
        mask = noise(rng, 2.0) > rng.uniform(0.5, 0.8)
        image[mask] = _blend(noise(rng, 1.2), colour(rng), colour(rng))[mask]
    return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2)), np.float64)


def _print(rng: np.random.Generator) -> _Field:
    """The face of a package or book: bands, blocks, a picture and text."""
    image = np.empty((SIZE, SIZE, 3))
    image[:] = colour(rng)
    if rng.uniform() < 0.4:
        image = _blend(np.broadcast_to(np.linspace(0, 1, SIZE)[:, None], (SIZE, SIZE)),
                       colour(rng), image[0, 0])
    for _ in range(int(rng.integers(0, 5))):
        x0, y0 = rng.integers(0, SIZE - 20, 2)
        width, height = rng.integers(20, SIZE, 2)
        if rng.uniform() < 0.6:
            cv2.rectangle(image, (int(x0), int(y0)), (int(x0 + width), int(y0 + height // 2)),
                          colour(rng), -1)
        else:
            cv2.ellipse(image, (int(x0), int(y0)), (int(width // 2), int(height // 3)),
                        rng.uniform(0, 180), 0, 360, colour(rng), -1, cv2.LINE_AA)
    if rng.uniform() < 0.5:
        side = int(rng.integers(60, 150))
        x0, y0 = rng.integers(0, SIZE - side, 2)
        image[y0:y0 + side, x0:x0 + side] = cv2.resize(_picture(rng), (side, side))
    for _ in range(int(rng.integers(0, 7))):
        letters = string.ascii_letters + string.digits + '  '
        text = ''.join(rng.choice(list(letters), int(rng.integers(3, 22))))
        cv2.putText(image, text, (int(rng.integers(0, 120)), int(rng.integers(15, SIZE))),
                    int(rng.choice([0, 1, 2, 3, 4, 5])), rng.uniform(0.3, 2.2), colour(rng),
                    int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def _plain(rng: np.random.Generator) -> _Field:
    base = np.array(colour(rng, 'wall'))
    return base * (1 + rng.uniform(0, 0.08) * (noise(rng, 0.9) - 0.5))[..., None]


def _checker(rng: np.random.Generator) -> _Field:
    count = int(rng.choice([2, 4, 8, 16]))
    index = np.arange(SIZE) * count // SIZE
    board = ((index[:, None] + index[None, :]) % 2).astype(float)
    image = _blend(board, colour(rng), colour(rng))
    return image * (1 - rng.uniform(0, 0.25) * noise(rng, 1.0))[..., None]


def _plaid(rng: np.random.Generator) -> _Field:
    image = np.empty((SIZE, SIZE, 3))
    image[:] = colour(rng)
    for _ in range(int(rng.integers(2, 6))):
        low, width = int(rng.integers(SIZE)), int(rng.integers(3, 60))
        band = np.arange(low, low + width) % SIZE
        tint = np.array(colour(rng))
        image[band] = 0.5 * image[band] + 0.5 * tint
        image[:, band] = 0.5 * image[:, band] + 0.5 * tint
    return image


def _carpet(rng: np.random.Generator) -> _Field:
    base = np.array(colour(rng, str(rng.choice(['grey', 'dark', 'pastel', 'strong', 'wood']))))
    pile = 1 + rng.uniform(0.3, 0.9) * (rng.uniform(0, 1, (SIZE, SIZE)) - 0.5)
    return base * (pile * (0.85 + 0.3 * noise(rng, 1.2)))[..., None]


def _worn(rng: np.random.Generator) -> _Field:
    """Paint or concrete with stains and scratches."""
    image = _cloudy(rng) if rng.uniform() < 0.5 else _speckle(rng)
    for _ in range(int(rng.integers(2, 7))):
        spot = noise(rng, 2.0) > rng.uniform(0.7, 0.95)
        image[spot] *= rng.uniform(0.6, 1.2)
    for _ in range(int(rng.integers(0, 14))):
        ends = [tuple(int(v) for v in rng.integers(0, SIZE, 2)) for _ in range(2)]
        cv2.line(image, *ends, colour(rng, 'grey'), 1, cv2.LINE_AA)
    return image


def _fronts(rng: np.random.Generator) -> _Field:
    """Doors and drawers of cupboards, with gaps and handles."""
    base = colour(rng, str(rng.choice(['light', 'light', 'wood', 'pastel', 'grey', 'strong'])))
    image = _wood(rng, base) if rng.uniform() < 0.4 else np.broadcast_to(
        np.array(base), (SIZE, SIZE, 3)).copy()
    handle, columns = colour(rng, 'grey'), int(rng.choice([1, 2, 2, 3]))
    long, width = int(rng.integers(12, 50)), SIZE // columns
    for column in range(columns):
        rows = int(rng.choice([1, 1, 2, 3, 4]))
        left = column * width
        for row in range(rows):
            top, tall = row * SIZE // rows, SIZE // rows
            cv2.rectangle(image, (left, top), (left + width - 1, top + tall - 1),
                          tuple(0.45 * v for v in base), 2)
            if rng.uniform() < 0.4:
                cv2.rectangle(image, (left + 12, top + 12),
                              (left + width - 13, top + tall - 13), tuple(0.8 * v for v in base),
                              2)
            if rows == 1:
                x, y = left + (width - 14 if column % 2 else 14), int(rng.integers(40, 200))
                cv2.line(image, (x, y), (x, y + long), handle, 4, cv2.LINE_AA)
            else:
                x, y = left + width // 2, top + tall // 4
                cv2.line(image, (x - long // 2, y), (x + long // 2, y), handle, 4, cv2.LINE_AA)
    return image


def _screen(rng: np.random.Generator) -> _Field:
    """What a monitor shows: windows and lines of text, or a dark panel."""
    image = np.empty((SIZE, SIZE, 3))
    if rng.uniform() < 0.35:
        image[:] = rng.uniform(0.01, 0.06)
        return image
    image[:] = colour(rng, str(rng.choice(['light', 'dark', 'strong'])))
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(v) for v in rng.integers(0, 120, 2))
        wide, tall = (int(v) for v in rng.integers(80, 200, 2))
        paper = float(rng.choice([0.95, 0.1]))
        cv2.rectangle(image, (x, y), (x + wide, y + tall), (paper,) * 3, -1)
        for line in range(y + 12, y + tall - 4, int(rng.integers(7, 12))):
            end = x + 6 + int((wide - 12) * rng.uniform(0.2, 1))
            cv2.line(image, (x + 6, line), (end, line),
                     tuple(abs(paper - 0.25) for _ in range(3)), 2)
    return image


def _grid(rng: np.random.Generator) -> _Field:
    """A suspended ceiling: light tiles with thin seams and small holes."""
    base = np.array(colour(rng, 'light')) ** 0.5
    image = base * (1 - 0.12 * (rng.uniform(0, 1, (SIZE, SIZE)) > rng.uniform(0.85, 1)))[..., None]
    image[:3] *= 0.6
    image[:, :3] *= 0.6
    return image


_KINDS: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    'wood': _wood, 'planks': _planks, 'tiles': _tiles, 'bricks': _bricks, 'speckle': _speckle,
    'cloudy': _cloudy, 'marble': _marble, 'terrazzo': _terrazzo, 'stripes': _stripes,
    'dots': _dots, 'weave': _weave, 'picture': _picture, 'print': _print, 'plain': _plain,
    'checker': _checker, 'plaid': _plaid, 'carpet': _carpet, 'worn': _worn, 'fronts': _fronts,
    'screen': _screen, 'grid': _grid,
}
KINDS = tuple(_KINDS)

# How often each kind covers each part of a scene.
USES: dict[str, dict[str, float]] = {
    'wall': {'plain': 10, 'cloudy': 4, 'worn': 2, 'speckle': 2, 'stripes': 1.5, 'bricks': 1,
             'tiles': 1, 'planks': 0.7, 'dots': 0.5, 'marble': 0.4, 'picture': 0.3, 'weave': 0.6,
             'checker': 0.3, 'plaid': 0.3},
    'floor': {'planks': 6, 'tiles': 4, 'carpet': 3, 'speckle': 2, 'cloudy': 1.5, 'terrazzo': 1,
              'marble': 1.5, 'weave': 1.2, 'wood': 1, 'plain': 1.5, 'stripes': 0.4, 'worn': 2,
              'checker': 0.8, 'plaid': 0.2},
    'ceiling': {'plain': 6, 'grid': 3, 'cloudy': 1, 'planks': 0.7, 'worn': 0.6},
    'table': {'wood': 7, 'plain': 4, 'planks': 2, 'marble': 1, 'speckle': 1, 'stripes': 0.6,
              'weave': 1, 'print': 0.4, 'picture': 0.5, 'tiles': 0.4, 'cloudy': 1.5, 'dots': 0.4,
              'worn': 1.2, 'plaid': 0.8, 'checker': 0.4},
    'box': {'print': 8, 'plain': 2, 'wood': 1, 'picture': 1, 'stripes': 0.7, 'speckle': 1,
            'dots': 0.4, 'worn': 0.6, 'checker': 0.3},
    'cylinder': {'print': 4, 'plain': 3, 'stripes': 1, 'speckle': 1, 'wood': 0.5, 'dots': 0.4},
    'cloth': {'plain': 3, 'weave': 3, 'plaid': 2, 'stripes': 1, 'dots': 1, 'carpet': 1,
              'print': 0.5},
    'rug': {'weave': 3, 'stripes': 2, 'speckle': 2, 'carpet': 3, 'picture': 1, 'tiles': 1,
            'dots': 1, 'plaid': 1},
    'poster': {'picture': 5, 'print': 3, 'stripes': 0.5},
    'cabinet': {'fronts': 8, 'wood': 1, 'plain': 1.5},
    'screen': {'screen': 1},
}
UNIT_USES = ('box', 'cylinder', 'poster', 'cabinet', 'screen')  # one picture a face, not metres


def make(rng: np.random.Generator, kind: str) -> Picture:
    """Make one picture of a kind (see KINDS)."""
    if kind not in _KINDS:
        raise ValueError(f'texture kind {kind!r}: expected one of {", ".join(KINDS)}')
    return (np.clip(_KINDS[kind](rng), 0, 1) * 255).round().astype(np.uint8)


def draw_kind(rng: np.random.Generator, use: str) -> str:
    """Draw a kind of picture for a use such as 'wall' (see USES)."""
    weights = USES[use]
    shares = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=shares / shares.sum()))
