"""Builds planned rooms and tables on a Stage, and finds views of them worth rendering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from depth_node.synthesis.blender import Stage, sky_files
from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import Footprint, Placed, RoomPlan, Solid, TablePlan, plan_table
from depth_node.synthesis.lighting import light_room, white
from depth_node.synthesis.shapes import Block
from depth_node.synthesis.shell import build_shell
from depth_node.synthesis.spaces import SPACES
from depth_node.synthesis.things import add_solid
from depth_node.synthesis.viewpoints import (
    ROOM_STYLES,
    View,
    ray_directions,
    rejection,
    sample_near_view,
    sample_room_view,
    sample_table_view,
)
import numpy as np
from numpy.typing import NDArray

_MAX_TRIES = 90
_Vector = NDArray[np.float64]
# Under and between these a small robot drives: their bounding boxes are not solid.
_HOLLOW = ('table', 'chair')


@dataclass(frozen=True)
class Shown:
    """A view with the style that it was drawn in (of `recipe.LIMITS`)."""

    view: View
    style: str


def add_items(stage: Stage, rng: np.random.Generator, items: list[Placed]) -> None:
    """Add the catalogue models of a plan."""
    for item in items:
        stage.model(rng, item.asset, item.footprint, item.z)


def build_room(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], kind: str = 'room'
) -> RoomPlan:
    """Plan and build a furnished room; things are set onto its tables, desks and shelves."""
    plan = SPACES[kind](rng, assets)
    build_shell(stage, rng, plan)
    add_items(stage, rng, plan.items)
    for solid in plan.solids:
        add_solid(stage, rng, solid)
    stage.update()
    for item in plan.items:
        low = item.asset.role == 'wall' and item.asset.size_m[2] < 1.3
        if (item.asset.role == 'table' or low) and rng.uniform() < 0.6:
            _set_on(stage, rng, assets, item.footprint, item.asset.size_m[2], kind)
    for host in plan.hosts:
        if rng.uniform() < 0.75:
            _set_on(stage, rng, assets, host.footprint, host.height, kind)
    light_room(stage, rng, plan)
    return plan


def _set_on(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], spot: Footprint, height: float,
    kind: str,
) -> None:
    """Drop things onto a piece of furniture, where a ray finds its top."""
    half = (spot.width / 2 * 0.9, spot.depth / 2 * 0.9)
    if min(half) < 0.1:
        return
    full = 0.25 if kind in ('office', 'kitchen') else 0.08
    density = str(rng.choice(['bare', 'set', 'dense'], p=[0.45, 0.55 - full, full]))
    things = plan_table(rng, assets, density, half_xy=half, top=0.0)
    c, s = np.cos(spot.yaw), np.sin(spot.yaw)

    def place(own: Footprint) -> tuple[Footprint, float] | None:
        x, y = spot.x + c * own.x - s * own.y, spot.y + s * own.x + c * own.y
        ceiling = height + 0.05
        top = ceiling - stage.ray((float(x), float(y), ceiling), (0, 0, -1))
        if not 0.3 < top < ceiling:
            return None
        moved = Footprint(float(x), float(y), own.width, own.depth, own.yaw + spot.yaw)
        return moved, float(top)

    for item in things.items:
        found = place(item.footprint)
        if found is not None:
            stage.model(rng, item.asset, *found)
    for solid in things.solids:
        if solid.z == 0.0:
            found = place(solid.footprint)
            if found is not None:
                add_solid(stage, rng, replace(solid, footprint=found[0], z=found[1]))


def build_table(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], density: str
) -> tuple[TablePlan, tuple[float, float] | None]:
    """Build a set table in front of a room, or on an open floor under a sky picture.

    Returns:
        The plan and the room's extent, None in the open.
    """
    plan = plan_table(rng, assets, density)
    size: tuple[float, float] | None = None
    if rng.uniform() < 0.12:
        corners = np.array([[-8, -8], [8, -8], [8, 8], [-8, 8]], float)
        stage.sheet(np.c_[corners, np.zeros(4)], corners, stage.surface(rng, 'floor'),
                    label='floor')
        skies = sky_files()
        stage.sky(skies[int(rng.integers(len(skies)))], float(rng.uniform(0.4, 1.5)),
                  float(rng.uniform(0, 6.3)))
        if rng.uniform() < 0.4:
            stage.light('SUN', (0, 0, 5), float(rng.uniform(1, 8)), (1, 0.93, 0.85), 0.02,
                        (*(float(v) for v in rng.normal(0, 0.7, 2)), -1.0))
    else:
        size = _surroundings(stage, rng, assets, plan)
    if plan.wall_y is not None:
        stage.box(Footprint(0.0, plan.wall_y + 0.05, size[0] if size else 6.0, 0.1, 0.0),
                  float(rng.uniform(1.2, 2.2)), 0.0, [stage.surface(rng, 'wall')], label='wall')
    _table_body(stage, rng, plan)
    if density == 'heap':
        _drop(stage, rng, plan)
    else:
        add_items(stage, rng, plan.items)
        for solid in plan.solids:
            add_solid(stage, rng, solid)
    if rng.uniform() < 0.5:  # a lamp near the table throws harder shadows
        x, y = rng.uniform(-1.0, 1.0, 2)
        stage.light('AREA' if rng.uniform() < 0.5 else 'POINT',
                    (float(x), float(y), plan.top + float(rng.uniform(0.7, 1.4))),
                    float(rng.uniform(3, 40)), white(rng), float(rng.uniform(0.01, 0.4)),
                    (float(-x), float(-y), -1.0))
    return plan, size


def _surroundings(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], plan: TablePlan
) -> tuple[float, float]:
    """A room around the table with a few things that stand clear of it; returns its extent."""
    kind = str(rng.choice(['room', 'office', 'kitchen'], p=[0.5, 0.35, 0.15]))
    room = SPACES[kind](rng, assets)
    build_shell(stage, rng, room)
    light_room(stage, rng, room)
    keep_out = Footprint(0, 0, 2 * plan.half_xy[0] + 0.5, 2 * plan.half_xy[1] + 0.5, 0)
    share = rng.uniform(0.2, 1.0)
    for item in room.items:
        if rng.uniform() < share and not item.footprint.overlaps(keep_out):
            stage.model(rng, item.asset, item.footprint, item.z)
    for solid in room.solids:
        bodied = solid.z == 0.0 or solid.shape == 'cupboard'
        if bodied and rng.uniform() < share and not solid.footprint.overlaps(keep_out):
            add_solid(stage, rng, solid)
    return room.size_xy


def _drop(stage: Stage, rng: np.random.Generator, plan: TablePlan) -> None:
    """Lay the things of a heap down one after the other, each on what lies below it."""
    for thing in rng.permutation(len(plan.items) + len(plan.solids)):
        made = thing >= len(plan.items)
        source: Placed | Solid = (plan.solids[thing - len(plan.items)] if made
                                  else plan.items[thing])
        spot = source.footprint
        stage.update()
        c, s = np.cos(spot.yaw) * spot.width * 0.3, np.sin(spot.yaw) * spot.depth * 0.3
        tops = []
        for dx, dy in ((0, 0), (c, s), (-c, -s), (-s, c), (s, -c)):
            top = 2.5 - stage.ray((spot.x + float(dx), spot.y + float(dy), 2.5), (0, 0, -1))
            if top > plan.top + 0.45:
                break  # a lamp or a wall, or the heap is too high
            if top > plan.top - 0.02:
                tops.append(top)
        if len(tops) < 3:
            continue
        z = float(np.median(tops)) - 0.002  # sinks in a little where it would float
        if isinstance(source, Solid):
            add_solid(stage, rng, replace(source, z=z))
        else:
            tilt = rng.normal(0, 0.12, 2) if z > plan.top + 0.01 else np.zeros(2)
            stage.model(rng, source.asset, spot, z, tilt=(float(tilt[0]), float(tilt[1])))


def _table_body(stage: Stage, rng: np.random.Generator, plan: TablePlan) -> None:
    width, depth = 2 * plan.half_xy[0], 2 * plan.half_xy[1]
    thick = float(rng.uniform(0.015, 0.06))
    top, leg = stage.surface(rng, 'table'), stage.material(rng)
    spot = Footprint(0.0, 0.0, width, depth, 0.0)
    if plan.round:
        stage.cylinder(spot, thick, plan.top - thick, [top], 64, label='table')
        stage.cylinder(Footprint(0, 0, 0.1, 0.1, 0), plan.top - thick, 0.0, [leg], label='table')
        return
    stage.box(spot, thick, plan.top - thick, [top], label='table')
    if rng.uniform() < 0.2:  # a chest rather than legs
        stage.box(Footprint(0, 0, width * 0.95, depth * 0.95, 0), plan.top - thick, 0.0, [leg],
                  label='table')
        return
    side = float(rng.uniform(0.03, 0.09))
    legs = [Block((sx * (width / 2 - side) - side / 2, sy * (depth / 2 - side) - side / 2, 0.0),
                  (side, side, plan.top - thick)) for sx in (-1, 1) for sy in (-1, 1)]
    stage.blocks(legs, spot, 0.0, [leg], label='table')


def inside_furniture(
    plan: RoomPlan, position: tuple[float, float, float], margin: float
) -> bool:
    """Whether a point lies in the space that a thing of the room takes, grown by a margin.

    Tables, desks and chairs are hollow below: there only the ray probes decide.
    """
    x, y, z = position
    for item in plan.items:
        top = item.asset.size_m[2] + item.z
        hollow = item.asset.role in _HOLLOW and z < 0.55 * top
        if not hollow and item.z - margin < z < top + margin and item.footprint.contains(
                x, y, margin):
            return True
    for solid in plan.solids:
        top = solid.height + solid.z
        hollow = solid.shape == 'desk' and z < 0.8 * top
        if not hollow and solid.z - margin < z < top + margin and solid.footprint.contains(
                x, y, margin):
            return True
    return False


_AROUND = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)
                    if (x, y, z) != (0, 0, 0)], float)
_AROUND /= np.linalg.norm(_AROUND, axis=1, keepdims=True)


def cramped(stage: Stage, position: tuple[float, float, float], reach: float) -> bool:
    """Whether a camera would stick in something: a surface within `reach` in any direction."""
    return any(stage.ray(position, (float(x), float(y), float(z))) < reach
               for x, y, z in _AROUND)


def room_views(
    stage: Stage, rng: np.random.Generator, plan: RoomPlan, count: int
) -> Iterator[Shown]:
    """Views of a room that are outside the furniture and show something."""
    found = 0
    things = _things(plan)
    styles, shares = list(ROOM_STYLES), np.array(list(ROOM_STYLES.values()))
    if plan.kind == 'clutter':
        shares = shares * (1.6, 1, 0.7, 1, 2.5)
    for _ in range(_MAX_TRIES):
        if found >= count:
            return
        style = str(rng.choice(styles, p=shares / shares.sum()))
        limits = 'near' if style == 'near' and things else 'room'
        if limits == 'near':
            view = sample_near_view(rng, things[int(rng.integers(len(things)))])
            x, y, _ = view.position
            if abs(x) > plan.size_xy[0] / 2 - 0.1 or abs(y) > plan.size_xy[1] / 2 - 0.1:
                continue
        else:
            style = 'hand' if style == 'near' else style
            view = sample_room_view(rng, plan.size_xy, plan.height, style,
                                    along=plan.kind == 'corridor')
        if inside_furniture(plan, view.position, 0.06) or cramped(stage, view.position, 0.08):
            continue
        depths = stage.probe(view)
        if rejection(depths, limits):
            continue
        if bare_share(depths, view, plan) > 0.8 and rng.uniform() < 0.85:
            continue
        found += 1
        yield Shown(view, limits)


def _things(plan: RoomPlan) -> list[tuple[float, float, float, float]]:
    """Everything that stands in a room: x, y, radius and the height of its middle."""
    bodies = [(item.footprint, item.z, item.asset.size_m[2]) for item in plan.items]
    bodies += [(solid.footprint, solid.z, solid.height) for solid in plan.solids
               if solid.use != 'wall']
    return [(spot.x, spot.y, float(np.hypot(spot.width, spot.depth)) / 2, z + height / 2)
            for spot, z, height in bodies]


def bare_share(depths: _Vector, view: View, plan: RoomPlan) -> float:
    """Share of the probe rays that end on the bare shell of the room."""
    directions, factors = ray_directions(view, (3, 4))
    reach = np.where(np.isfinite(depths), depths, 1e3)
    ends = np.array(view.position) + directions * (reach / factors)[:, None]
    half = np.array([*plan.size_xy, 0]) / 2
    on_wall = np.any(np.abs(np.abs(ends[:, :2]) - half[:2]) < 0.05, axis=1)
    on_flat = (ends[:, 2] < 0.03) | (ends[:, 2] > plan.height - 0.03)
    return float((on_wall | on_flat).mean())


def table_views(
    stage: Stage, rng: np.random.Generator, plan: TablePlan, size: tuple[float, float] | None,
    style: str, count: int,
) -> Iterator[Shown]:
    """Views onto a table top from inside the room."""
    found = 0
    limits = 'close' if style == 'close' else 'table'
    spots = [item.footprint for item in plan.items] + [s.footprint for s in plan.solids]
    things = [(spot.x, spot.y) for spot in spots]
    for _ in range(_MAX_TRIES):
        if found >= count:
            return
        view = sample_table_view(rng, plan.top, plan.half_xy, style, things)
        x, y, z = view.position
        if size is not None and (abs(x) > size[0] / 2 - 0.1 or abs(y) > size[1] / 2 - 0.1):
            continue
        if plan.wall_y is not None and y > plan.wall_y - 0.08:
            continue
        if z > 2.15 or z < plan.top + 0.02 or cramped(stage, view.position, 0.05):
            continue
        if rejection(stage.probe(view), limits):
            continue
        found += 1
        yield Shown(view, limits)


def list_pictures(folder: Path | None) -> list[Path]:
    """Photographs of surfaces in a folder (PNG, JPEG), in a fixed order."""
    if folder is None:
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
