"""Builds the made things of a plan on a Stage: boxes, bottles, books, screens, shelves, desks."""

from __future__ import annotations

import itertools
from typing import Any

from depth_node.synthesis import shapes
from depth_node.synthesis.blender import Stage
from depth_node.synthesis.layout import ROUND, Footprint, Solid
from depth_node.synthesis.shapes import Block
import numpy as np

_LABELS = {
    'shelf': 'shelf', 'counter': 'cabinet', 'cupboard': 'cabinet', 'desk': 'table',
    'board': 'furniture', 'monitor': 'object',
}


def add_solid(stage: Stage, rng: np.random.Generator, solid: Solid) -> None:
    """Add a made thing."""
    label = _LABELS.get(solid.shape, 'object')
    if solid.shape in ROUND:
        _round(stage, rng, solid)
    elif solid.shape == 'box':
        if solid.use == 'wall':
            stage.box(solid.footprint, solid.height, solid.z, [stage.surface(rng, 'wall')],
                      label='wall')
            return
        faces = int(rng.integers(1, 3))
        stage.box(solid.footprint, solid.height, solid.z,
                  [stage.surface(rng, 'box') for _ in range(faces)], unit_uv=True,
                  tilt=solid.tilt)
    elif solid.shape == 'paper':
        spot = solid.footprint
        stage.box(spot, solid.height, solid.z, [stage.surface(rng, 'poster') if rng.uniform() < 0.6
                                                else stage.material(rng, colour=(.9, .9, .88))],
                  unit_uv=True, tilt=solid.tilt)
    elif solid.shape == 'lump':
        mesh = shapes.lump(rng, float(rng.uniform(2, 7)), float(rng.uniform(0.0, 0.08)))
        spot = solid.footprint
        stage.shape(mesh.scaled((spot.width, spot.depth, solid.height)), spot, solid.z,
                    [stage.surface(rng, solid.use)], smooth=True, tilt=solid.tilt)
    elif solid.shape == 'cable':
        _cable(stage, rng, solid)
    elif solid.shape == 'board':
        stage.box(solid.footprint, solid.height, solid.z, [stage.surface(rng, solid.use)],
                  label=label)
    else:
        {'books': _books, 'monitor': _monitor, 'laptop': _laptop, 'keyboard': _keyboard,
         'shelf': _shelf, 'counter': _counter, 'cupboard': _cupboard, 'desk': _desk,
         }[solid.shape](stage, rng, solid, label)


def _round(stage: Stage, rng: np.random.Generator, solid: Solid) -> None:
    spot = solid.footprint
    material = stage.surface(rng, 'cylinder') if rng.uniform() < 0.6 else stage.material(rng)
    kind = 'can' if solid.shape == 'cylinder' else solid.shape
    mesh = shapes.lathe(shapes.profile(rng, kind))
    stage.shape(mesh.scaled((spot.width, spot.width, solid.height)), spot, solid.z, [material],
                smooth=True, tilt=solid.tilt)


def _books(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    """A pile of books or magazines."""
    z = solid.z
    for _ in range(12):
        thick = float(rng.uniform(0.006, 0.045))
        if z + thick > solid.z + solid.height + 0.01:
            break
        spot = solid.footprint
        factor = float(rng.uniform(0.75, 1.0))
        stage.box(Footprint(spot.x + float(rng.normal(0, 0.006)),
                            spot.y + float(rng.normal(0, 0.006)), spot.width * factor,
                            spot.depth * factor, spot.yaw + float(rng.normal(0, 0.12))), thick, z,
                  [stage.surface(rng, 'box')], unit_uv=True, label=label)
        z += thick


def _monitor(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    spot, tall = solid.footprint, solid.height
    wide, thick = spot.width, float(rng.uniform(0.015, 0.05))
    panel = min(tall * 0.85, wide * float(rng.uniform(0.55, 0.75)))
    shell = stage.material(rng, colour=tuple(rng.choice([0.05, 0.1, 0.6, 0.85]) * np.ones(3)))
    screen = stage.surface(rng, 'screen')
    stage.blocks([Block((-wide * 0.2, -0.09, 0.0), (wide * 0.4, 0.18, 0.012)),
                  Block((-0.025, 0.02, 0.0), (0.05, 0.02, tall * 0.8)),
                  Block((-wide / 2, -thick / 2, tall - panel), (wide, thick, panel))],
                 spot, solid.z, [shell], label=label)
    _face(stage, spot, solid.z, (-wide / 2 + 0.012, wide / 2 - 0.012),
          (tall - panel + 0.02, tall - 0.012), -thick / 2 - 0.001, 0.0, screen, label)


def _face(
    stage: Stage, spot: Footprint, z: float, x: tuple[float, float], heights: tuple[float, float],
    y: float, lean: float, material: Any, label: str,
) -> None:
    """A picture in the xz plane of a thing's frame; the top leans back by `lean` metres."""
    corners = np.array([[x[0], y, heights[0]], [x[1], y, heights[0]], [x[1], y + lean, heights[1]],
                        [x[0], y + lean, heights[1]]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    stage.shape(shapes.Mesh(corners, [(0, 1, 2, 3)], uv), spot, z, [material], label=label)


def _laptop(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    spot, tall = solid.footprint, solid.height
    shell = stage.material(rng, colour=tuple(rng.choice([0.08, 0.3, 0.7]) * np.ones(3)))
    wide, deep = spot.width, spot.depth
    lean = float(rng.uniform(0.02, 0.12))
    stage.box(spot, 0.016, solid.z, [shell], label=label)
    stage.blocks([Block((-wide / 2 + 0.02 + 0.018 * i, -deep * 0.1 + 0.018 * j, 0.016),
                        (0.014, 0.014, 0.002))
                  for i in range(int((wide - 0.04) / 0.018)) for j in range(5)],
                 spot, solid.z, [stage.material(rng, colour=(0.05, 0.05, 0.05))], label=label)
    back = deep / 2
    for y, material in ((back + 0.006, shell), (back, stage.surface(rng, 'screen'))):
        _face(stage, spot, solid.z, (-wide / 2, wide / 2), (0.016, tall), y, lean, material, label)


def _keyboard(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    spot = solid.footprint
    wide, deep = spot.width, spot.depth
    tone = float(rng.choice([0.06, 0.15, 0.8]))
    stage.box(spot, 0.015, solid.z, [stage.material(rng, colour=(tone,) * 3)], label=label)
    keys = [Block((-wide / 2 + 0.008 + 0.019 * i, -deep / 2 + 0.01 + 0.019 * j, 0.015),
                  (0.015, 0.015, 0.006))
            for i in range(int((wide - 0.02) / 0.019)) for j in range(int((deep - 0.02) / 0.019))]
    stage.blocks(keys, spot, solid.z, [stage.material(rng, colour=(abs(tone - 0.08),) * 3)],
                 label=label)


def _shelf(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    """A bookcase with books, boxes and gaps."""
    spot, tall = solid.footprint, solid.height
    wide, deep, board = spot.width, spot.depth, 0.02
    levels = max(2, round(tall / float(rng.uniform(0.26, 0.42))))
    step = (tall - board) / levels
    parts = [Block((-wide / 2, -deep / 2, 0.0), (board, deep, tall)),
             Block((wide / 2 - board, -deep / 2, 0.0), (board, deep, tall))]
    parts += [Block((-wide / 2 + board, -deep / 2, level * step), (wide - 2 * board, deep, board))
              for level in range(levels + 1)]
    if rng.uniform() < 0.7:
        parts.append(Block((-wide / 2 + board, deep / 2 - 0.01, 0.0), (wide - 2 * board, 0.01,
                                                                       tall)))
    stage.blocks(parts, spot, solid.z, [stage.surface(rng, 'table')], label=label)
    covers = [stage.surface(rng, 'box') if rng.uniform() < 0.4 else stage.material(rng)
              for _ in range(7)]
    groups: list[list[Block]] = [[] for _ in covers]
    fullness = rng.uniform(0.3, 1.0)
    for level in range(levels):
        x, low = -wide / 2 + board, level * step + board
        room = step - board
        style = rng.uniform()
        while x < wide / 2 - board - 0.02:
            if rng.uniform() > fullness:
                x += float(rng.uniform(0.05, 0.3))
                continue
            if style < 0.65:  # books in a row
                for _ in range(int(rng.integers(2, 14))):
                    thick = float(rng.uniform(0.012, 0.06))
                    if x + thick > wide / 2 - board:
                        x = wide
                        break
                    height = room * float(rng.uniform(0.55, 0.97))
                    reach = deep * float(rng.uniform(0.55, 0.95))
                    groups[int(rng.integers(len(groups)))].append(
                        Block((x, deep / 2 - 0.012 - reach, low), (thick, reach, height)))
                    x += thick + 0.001
            else:  # boxes and folders
                thick = float(min(rng.uniform(0.08, 0.4), wide / 2 - board - x))
                reach = deep * float(rng.uniform(0.5, 0.95))
                groups[int(rng.integers(len(groups)))].append(
                    Block((x, deep / 2 - 0.012 - reach, low),
                          (thick, reach, room * float(rng.uniform(0.25, 0.95)))))
                x += thick + float(rng.uniform(0.005, 0.1))
    for cover, group in zip(covers, groups, strict=True):
        if group:
            stage.blocks(group, spot, solid.z, [cover], unit_uv=True, label='object')


def _counter(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    """A row of lower cupboards under a worktop."""
    spot, tall = solid.footprint, solid.height
    wide, deep = spot.width, spot.depth
    thick = float(rng.uniform(0.02, 0.05))
    plain, top = stage.material(rng), stage.surface(rng, 'table')
    body = tall - thick - 0.08
    stage.blocks([Block((-wide / 2, -deep / 2 + 0.02, 0.08), (wide, deep - 0.02, body)),
                  Block((-wide / 2, -deep / 2 + 0.07, 0.0), (wide, deep - 0.07, 0.08))],
                 spot, solid.z, [plain], label=label)
    _fronts(stage, rng, spot, solid.z + 0.08, body, -deep / 2 + 0.018, label)
    stage.blocks([Block((-wide / 2, -deep / 2, tall - thick), (wide, deep, thick))], spot, solid.z,
                 [top], label=label)


def _fronts(
    stage: Stage, rng: np.random.Generator, spot: Footprint, z: float, tall: float, y: float,
    label: str,
) -> None:
    parts = max(1, round(spot.width / 0.6))
    front = stage.surface(rng, 'cabinet')
    edges = np.linspace(-spot.width / 2, spot.width / 2, parts + 1)
    for a, b in itertools.pairwise(edges):
        _face(stage, spot, z, (float(a), float(b)), (0.0, tall), y, 0.0, front, label)


def _cupboard(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    spot = solid.footprint
    stage.box(spot, solid.height, solid.z, [stage.material(rng)], label=label)
    _fronts(stage, rng, spot, solid.z, solid.height, -spot.depth / 2 - 0.002, label)


def _desk(stage: Stage, rng: np.random.Generator, solid: Solid, label: str) -> None:
    """A table top on legs or side panels, with a pedestal of drawers at times."""
    spot, tall = solid.footprint, solid.height
    wide, deep, thick = spot.width, spot.depth, float(rng.uniform(0.018, 0.04))
    stage.blocks([Block((-wide / 2, -deep / 2, tall - thick), (wide, deep, thick))], spot, solid.z,
                 [stage.surface(rng, solid.use)], label=label)
    side = float(rng.uniform(0.025, 0.06))
    if rng.uniform() < 0.4:
        legs = [Block((x, -deep / 2 + 0.02, 0.0), (0.025, deep - 0.04, tall - thick))
                for x in (-wide / 2 + 0.01, wide / 2 - 0.035)]
    else:
        legs = [Block((x, y, 0.0), (side, side, tall - thick))
                for x in (-wide / 2 + 0.02, wide / 2 - side - 0.02)
                for y in (-deep / 2 + 0.02, deep / 2 - side - 0.02)]
    stage.blocks(legs, spot, solid.z, [stage.material(rng)], label=label)
    if rng.uniform() < 0.4:
        block = shapes.blocks([Block((wide / 2 - 0.48, -deep / 2 + 0.05, 0.03),
                                     (0.42, deep - 0.1, tall - thick - 0.06))], unit_uv=True)
        stage.shape(block, spot, solid.z, [stage.surface(rng, 'cabinet')], label=label)


def _cable(stage: Stage, rng: np.random.Generator, solid: Solid) -> None:
    spot, radius = solid.footprint, solid.height / 2
    t = np.linspace(-0.5, 0.5, 40)
    bend = sum(rng.uniform(-0.5, 0.5) / n * np.sin(2 * np.pi * n * t + rng.uniform(0, 6))
               for n in (1, 2, 3))
    path = np.c_[t * spot.width, bend * spot.depth, np.full(40, radius)]
    stage.shape(shapes.tube(path, radius), spot, solid.z, [stage.material(rng)], smooth=True)
