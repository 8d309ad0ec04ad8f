"""Meshes of round, soft and boxy things (numpy only): bottles, bowls, balls, bags, cables.

A mesh is (vertices (N, 3), faces, texture coordinates (L, 2) of the faces' corners in order).
Round things have size (1, 1, 1), stand on z = 0 and are centred on the z axis.
"""

from __future__ import annotations

from dataclasses import dataclass
import itertools

import numpy as np
from numpy.typing import NDArray

Faces = list[tuple[int, ...]]


@dataclass(frozen=True)
class Mesh:
    """See the module."""

    vertices: NDArray[np.float64]
    faces: Faces
    uv: NDArray[np.float64]

    def scaled(self, size: tuple[float, float, float]) -> Mesh:
        """The mesh with its vertices multiplied by a size along x, y and z."""
        return Mesh(self.vertices * np.array(size), self.faces, self.uv)


@dataclass(frozen=True)
class Block:
    """A box of a compound: its lowest corner and its size in the compound's frame [m]."""

    low: tuple[float, float, float]
    size: tuple[float, float, float]


_CORNERS = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
_SIDES = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6), (0, 2, 3, 1)]
_SPANS = [(0, 2), (1, 2), (0, 2), (1, 2), (0, 1), (1, 0)]


def blocks(parts: list[Block], *, unit_uv: bool = False) -> Mesh:
    """Join boxes; six faces each, in the order front (-y), +x, back, -x, top, bottom.

    Args:
        parts: the boxes.
        unit_uv: one picture a face instead of texture coordinates in metres.
    """
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    vertices, faces, uv = [], [], []
    for number, part in enumerate(parts):
        size = np.array(part.size)
        vertices.append(_CORNERS * size + np.array(part.low))
        faces += [tuple(8 * number + i for i in side) for side in _SIDES]
        uv += [square if unit_uv else square * (size[a], size[b]) for a, b in _SPANS]
    return Mesh(np.concatenate(vertices), faces, np.concatenate(uv))


def grid(points: NDArray[np.float64], uv: NDArray[np.float64], *, closed: bool = False) -> Mesh:
    """Quadrilaterals between the points of a (rows, columns, 3) grid.

    Args:
        points: the grid.
        uv: (rows, columns + closed, 2) texture coordinates.
        closed: join the last column with the first.
    """
    rows, columns = points.shape[:2]
    faces: Faces = []
    corners = []
    for row in range(rows - 1):
        for column in range(columns if closed else columns - 1):
            right = (column + 1) % columns
            faces.append((row * columns + column, row * columns + right,
                          (row + 1) * columns + right, (row + 1) * columns + column))
            corners += [uv[row, column], uv[row, column + 1], uv[row + 1, column + 1],
                        uv[row + 1, column]]
    return Mesh(points.reshape(-1, 3), faces, np.array(corners))


def profile(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """Draw the outline of a turned thing: (N, 2) radius (0 to 0.5) and height (0 to 1).

    Args:
        rng: the scene's generator.
        kind: 'bottle', 'vase', 'cup', 'bowl', 'can', 'ball' or 'shade' (of a lamp).
    """
    t = np.linspace(0, 1, 18)
    if kind == 'bottle':
        neck, shoulder = rng.uniform(0.12, 0.22), rng.uniform(0.45, 0.75)
        step = 1 / (1 + np.exp(-(t - shoulder) * rng.uniform(12, 40)))
        radius = 0.5 * (1 - step) + neck * step
        outline = np.c_[radius, t]
    elif kind == 'vase':
        waves = sum(rng.uniform(0.03, 0.14) * np.sin(t * np.pi * n + rng.uniform(0, 6))
                    for n in (1, 2, 3))
        radius = 0.33 + waves
        outline = np.c_[0.5 * radius / radius.max(), t]
    elif kind in ('cup', 'bowl', 'shade'):
        foot = {'cup': rng.uniform(0.3, 0.5), 'bowl': rng.uniform(0.12, 0.25),
                'shade': rng.uniform(0.5, 0.5)}[kind]
        mouth = {'cup': 0.5, 'bowl': 0.5, 'shade': rng.uniform(0.15, 0.4)}[kind]
        bulge = t ** (rng.uniform(0.35, 0.6) if kind == 'bowl' else 1.0)
        outer = np.c_[foot + (mouth - foot) * bulge, t]
        thick = 0.03
        inner = outer[::-1] * (1, 1) - (thick, 0)
        inner = inner[inner[:, 1] > 0.08]
        outline = np.concatenate([outer, inner])
        if kind == 'shade':
            return outline  # open below
        return np.concatenate([[[0, 0]], outline, [[0, inner[-1, 1]]]])
    elif kind == 'can':
        rim = rng.uniform(0.0, 0.06)
        outline = np.array([[0.5 - rim, 0], [0.5, rim], [0.5, 1 - rim], [0.5 - rim, 1]])
    elif kind == 'ball':
        angle = np.pi * t
        return np.c_[0.5 * np.sin(angle), 0.5 - 0.5 * np.cos(angle)]
    else:
        raise ValueError(f'profile {kind!r}: expected bottle, vase, cup, bowl, can, ball or shade')
    return np.concatenate([[[0, 0]], outline, [[0, 1]]])


def lathe(outline: NDArray[np.float64], segments: int = 28) -> Mesh:
    """Turn an outline of (radius, height) about the z axis."""
    angle = np.arange(segments) / segments * 2 * np.pi
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.concatenate(
        [np.c_[radius * ring, np.full(segments, height)] for radius, height in outline]
    ).reshape(len(outline), segments, 3)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=1))]
    v = length / max(length[-1], 1e-9)
    u = np.linspace(0, 2, segments + 1)
    return grid(points, np.stack(np.broadcast_arrays(u[None, :], v[:, None]), -1), closed=True)


def lump(rng: np.random.Generator, squareness: float, roughness: float) -> Mesh:
    """A soft thing such as a bag or a cushion: a rounded block with dents.

    Args:
        rng: the scene's generator.
        squareness: exponent of the superellipsoid, 2 a ball, 6 almost a block.
        roughness: depth of the dents, as a share of the size.
    """
    rows, columns = 15, 24
    polar = np.linspace(0.02, np.pi - 0.02, rows)[:, None]
    turn = (np.arange(columns) / columns * 2 * np.pi)[None, :]
    unit = np.stack(np.broadcast_arrays(
        np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), -np.cos(polar)), -1)
    radius = (np.abs(unit) ** squareness).sum(-1) ** (-1 / squareness)
    dents = sum(rng.uniform(-1, 1) * np.sin(unit @ rng.normal(0, 3, 3) + rng.uniform(0, 6))
                for _ in range(5))
    points = unit * (radius * (1 + roughness * dents))[..., None]
    low, high = points.min((0, 1)), points.max((0, 1))
    points = (points - (low + high) / 2) / (high - low)
    points[..., 2] += 0.5
    u, v = np.linspace(0, 2, columns + 1), np.linspace(0, 1, rows)
    return grid(points, np.stack(np.broadcast_arrays(u[None, :], v[:, None]), -1), closed=True)


def tube(path: NDArray[np.float64], radius: float, sides: int = 8) -> Mesh:
    """A cable along a (N, 3) path [m]."""
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    aside = np.cross(along, (0.0, 0.0, 1.0))
    aside /= np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-9)
    above = np.cross(aside, along)
    angle = np.arange(sides) / sides * 2 * np.pi
    points = path[:, None] + radius * (
        np.cos(angle)[None, :, None] * aside[:, None]
        + np.sin(angle)[None, :, None] * above[:, None])
    u, v = np.linspace(0, 1, sides + 1), np.linspace(0, 1, len(path))
    return grid(points, np.stack(np.broadcast_arrays(u[None, :], v[:, None]), -1), closed=True)


def wall_cells(
    span: tuple[float, float], holes: list[tuple[float, float, float, float]]
) -> NDArray[np.float64]:
    """Cut holes into a wall.

    Args:
        span: length (along t, centred on 0) and height (along z, from 0) [m].
        holes: (t_low, t_high, z_low, z_high) each.

    Returns:
        (N, 4) rectangles (t_low, t_high, z_low, z_high) that cover the wall without the holes.
    """
    length, height = span
    t = sorted({-length / 2, length / 2,
                *(float(np.clip(v, -length / 2, length / 2)) for h in holes for v in h[:2])})
    z = sorted({0.0, height, *(float(np.clip(v, 0, height)) for h in holes for v in h[2:])})
    cells = []
    for a, b in itertools.pairwise(t):
        for low, high in itertools.pairwise(z):
            u, v = (a + b) / 2, (low + high) / 2
            if not any(h[0] < u < h[1] and h[2] < v < h[3] for h in holes):
                cells.append((a, b, low, high))
    return np.array(cells).reshape(-1, 4)
