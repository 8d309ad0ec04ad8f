"""Builds planned rooms and tables on a Stage: shell, furniture, clutter, light."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from depth_node.synthesis import textures
from depth_node.synthesis.blender import Stage, sky_files
from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import (
    Footprint,
    Placed,
    RoomPlan,
    Solid,
    TablePlan,
    plan_room,
    plan_table,
)
from depth_node.synthesis.viewpoints import (
    View,
    ray_directions,
    rejection,
    sample_room_view,
    sample_table_view,
)
import numpy as np
from numpy.typing import NDArray

_MAX_TRIES = 60
_Vector = NDArray[np.float64]


def _footprint(centre: _Vector, width: float, depth: float, yaw: float) -> Footprint:
    return Footprint(float(centre[0]), float(centre[1]), width, depth, yaw)


def white(rng: np.random.Generator) -> tuple[float, float, float]:
    """A light's colour between candle and blue sky."""
    warm, neutral, cold = np.array([(1, 0.72, 0.42), (1, 1, 1), (0.75, 0.87, 1)])
    t = float(np.clip(rng.normal(0.0, 0.5), -1, 1))
    mixed = neutral + abs(t) * ((warm if t < 0 else cold) - neutral)
    return float(mixed[0]), float(mixed[1]), float(mixed[2])


def build_room_shell(
    stage: Stage, rng: np.random.Generator, size_xy: tuple[float, float], height: float
) -> None:
    """Floor, ceiling, four walls, skirting and sometimes rugs, posters and windows."""
    half_x, half_y = np.array(size_xy) / 2
    corners = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y],
                        [-half_x, half_y]])

    def flat(z: float) -> _Vector:
        return np.column_stack([corners, np.full(4, z)])

    stage.sheet(flat(0.0), corners, stage.surface(rng, 'floor'))
    stage.sheet(flat(height), corners, stage.material(
        rng, colour=textures.colour(rng, 'light'), roughness=0.9))
    common = stage.surface(rng, 'wall')
    board = stage.material(rng) if rng.uniform() < 0.5 else None
    sockel = float(rng.uniform(0.05, 0.14))
    for side in range(4):
        a, b = corners[(side + 2) % 4], corners[(side + 3) % 4]  # 0 north, then west, ...
        length = float(np.linalg.norm(b - a))
        wall = common if rng.uniform() < 0.75 else stage.surface(rng, 'wall')
        stage.sheet(
            np.array([[*a, 0], [*b, 0], [*b, height], [*a, height]]),
            np.array([[0, 0], [length, 0], [length, height], [0, height]]), wall,
        )
        along, middle = (b - a) / length, (a + b) / 2
        inward = -middle / np.linalg.norm(middle)
        yaw = float(np.arctan2(along[1], along[0]))
        if board is not None:
            spot = middle + inward * 0.008
            stage.box(_footprint(spot, length, 0.016, yaw), sockel, 0.0, [board])
        if rng.uniform() < 0.35:
            _window(stage, rng, a, along, inward, length, height)
        for _ in range(int(rng.poisson(0.7))):
            _poster(stage, rng, a, along, inward, length, height)
    if rng.uniform() < 0.35:
        width, depth = rng.uniform(0.3, 0.8, 2) * size_xy
        spot = _footprint(rng.uniform(-0.15, 0.15, 2) * size_xy, float(width), float(depth),
                          float(rng.choice([0.0, rng.uniform(0, 3)])))
        stage.box(spot, 0.012, 0.001, [stage.surface(rng, 'rug')])


def _window(
    stage: Stage, rng: np.random.Generator, a: _Vector, along: _Vector, inward: _Vector,
    length: float, height: float,
) -> None:
    """A bright pane with a frame; the light comes from a lamp in front of it."""
    width = float(min(rng.uniform(0.6, 2.2), length * 0.7))
    low = float(rng.choice([0.1, rng.uniform(0.6, 1.1)]))
    tall = float(min(rng.uniform(0.8, 1.8), height - low - 0.15))
    if tall < 0.4:
        return
    centre = a + along * rng.uniform(width / 2 + 0.1, max(length - width / 2 - 0.1,
                                                         width / 2 + 0.11))
    yaw = float(np.arctan2(along[1], along[0]))
    frame = stage.material(rng, colour=textures.colour(
        rng, str(rng.choice(['light', 'light', 'wood', 'dark']))))
    bar = float(rng.uniform(0.04, 0.09))
    spot = centre + inward * 0.02
    for shift in (-width / 2, 0, width / 2):
        where = spot + along * shift
        stage.box(_footprint(where, bar, 0.05, yaw), tall, low, [frame])
    for z in (low, low + tall - bar):
        stage.box(_footprint(spot, width, 0.05, yaw), bar, z, [frame])
    day = rng.uniform() < 0.8
    view = textures.make(rng, 'picture').astype(float)
    sky = np.linspace(1, 0.2, textures.SIZE)[:, None, None] * np.array(white(rng)) * 255
    pane = stage.material(
        rng, picture=np.clip(0.35 * view + 0.75 * sky, 0, 255).astype(np.uint8), roughness=0.1,
        emission=float(np.exp(rng.uniform(np.log(1), np.log(12)))) if day else 0.02,
    )
    p, q = centre - along * width / 2 + inward * 0.01, centre + along * width / 2 + inward * 0.01
    stage.sheet(np.array([[*p, low], [*q, low], [*q, low + tall], [*p, low + tall]]),
                np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), pane)
    if day:
        where = centre + inward * 0.08
        stage.light('AREA', (*where.tolist(), low + tall / 2), float(rng.uniform(20, 250)),
                    white(rng), width, (*inward.tolist(), float(rng.uniform(-0.5, 0.0))), tall)


def _poster(
    stage: Stage, rng: np.random.Generator, a: _Vector, along: _Vector, inward: _Vector,
    length: float, height: float,
) -> None:
    width, tall = rng.uniform(0.2, 1.1, 2)
    if width > length * 0.8:
        return
    centre = a + along * rng.uniform(width / 2, length - width / 2) + inward * 0.015
    yaw = float(np.arctan2(along[1], along[0]))
    low = float(np.clip(rng.normal(1.5, 0.25) - tall / 2, 0.3, height - tall - 0.05))
    body = _footprint(centre, float(width), 0.03, yaw)
    stage.box(body, float(tall), low, [stage.surface(rng, 'poster')], unit_uv=True)


def light_room(
    stage: Stage, rng: np.random.Generator, size_xy: tuple[float, float], height: float
) -> None:
    """Ceiling panels, bulbs or floor lamps; windows bring their own light."""
    half = np.array(size_xy) / 2
    stage.sky(None, float(rng.uniform(0.0, 0.3)))
    style = rng.choice(['panel', 'panel', 'bulbs', 'lamp', 'mixed'])
    if style in ('panel', 'mixed'):
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(-0.7, 0.7, 2) * half
            stage.light('AREA', (float(x), float(y), height - 0.03),
                        float(rng.uniform(15, 120)), white(rng), float(rng.uniform(0.2, 1.5)),
                        size_y=float(rng.uniform(0.15, 1.2)))
    if style in ('bulbs', 'mixed'):
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(-0.7, 0.7, 2) * half
            stage.light('POINT', (float(x), float(y), height - float(rng.uniform(0.15, 0.7))),
                        float(rng.uniform(15, 100)), white(rng), float(rng.uniform(0.03, 0.2)))
    if style in ('lamp', 'mixed'):
        for _ in range(int(rng.integers(1, 3))):
            x, y = rng.uniform(-0.85, 0.85, 2) * half
            stage.light('POINT', (float(x), float(y), float(rng.uniform(0.9, 1.8))),
                        float(rng.uniform(15, 80)), white(rng), float(rng.uniform(0.05, 0.25)))
    # a soft fill so that no corner is black
    stage.light('AREA', (0.0, 0.0, height - 0.02), float(rng.uniform(4, 30)) * float(half.prod()),
                white(rng), float(size_xy[0] * 0.9), size_y=float(size_xy[1] * 0.9))


def add_solid(stage: Stage, rng: np.random.Generator, solid: Solid) -> None:
    """Add a box or cylinder of a plan; a box has up to three different faces."""
    if solid.use == 'wall':
        stage.box(solid.footprint, solid.height, solid.z, [stage.surface(rng, 'wall')])
    elif solid.shape == 'cylinder':
        stage.cylinder(solid.footprint, solid.height, solid.z,
                       [stage.surface(rng, 'cylinder')])
    else:
        faces = int(rng.integers(1, 3))
        stage.box(solid.footprint, solid.height, solid.z,
                  [stage.surface(rng, 'box') for _ in range(faces)], unit_uv=True)


def add_items(stage: Stage, rng: np.random.Generator, items: list[Placed]) -> None:
    """Add the catalogue models of a plan."""
    for item in items:
        stage.model(rng, item.asset, item.footprint, item.z)


def build_room(stage: Stage, rng: np.random.Generator, assets: list[Asset]) -> RoomPlan:
    """Plan and build a furnished room; things are set onto its tables."""
    plan = plan_room(rng, assets)
    build_room_shell(stage, rng, plan.size_xy, plan.height)
    add_items(stage, rng, plan.items)
    for solid in plan.solids:
        add_solid(stage, rng, solid)
    stage.update()
    hosts = plan.tables + [item for item in plan.items
                           if item.asset.role == 'wall' and item.asset.size_m[2] < 1.3]
    for host in hosts:
        if rng.uniform() < 0.6:
            _set_on(stage, rng, assets, host)
    light_room(stage, rng, plan.size_xy, plan.height)
    return plan


def _set_on(stage: Stage, rng: np.random.Generator, assets: list[Asset], host: Placed) -> None:
    """Drop a few small things onto a piece of furniture, where a ray finds its top."""
    spot = host.footprint
    half = (spot.width / 2 * 0.9, spot.depth / 2 * 0.9)
    if min(half) < 0.1:
        return
    things = plan_table(rng, assets, str(rng.choice(['bare', 'set'])), half_xy=half, top=0.0)
    c, s = np.cos(spot.yaw), np.sin(spot.yaw)

    def place(own: Footprint) -> tuple[Footprint, float] | None:
        x, y = spot.x + c * own.x - s * own.y, spot.y + s * own.x + c * own.y
        ceiling = host.asset.size_m[2] + 0.05
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
        found = place(solid.footprint)
        if found is not None and solid.z == 0.0:
            add_solid(stage, rng, Solid(solid.shape, found[0], solid.height, found[1], solid.use))


def build_table(
    stage: Stage, rng: np.random.Generator, assets: list[Asset], density: str
) -> tuple[TablePlan, tuple[float, float] | None]:
    """Build a set table in front of a room, or on an open floor under a sky picture.

    Returns:
        The plan and the room's extent, None in the open.
    """
    plan = plan_table(rng, assets, density)
    open_air = rng.uniform() < 0.12
    size: tuple[float, float] | None = None
    if open_air:
        corners = np.array([[-8, -8], [8, -8], [8, 8], [-8, 8]], float)
        stage.sheet(np.c_[corners, np.zeros(4)], corners, stage.surface(rng, 'floor'))
        skies = sky_files()
        stage.sky(skies[int(rng.integers(len(skies)))], float(rng.uniform(0.4, 1.5)),
                  float(rng.uniform(0, 6.3)))
    else:
        size = (float(rng.uniform(2.8, 6)), float(rng.uniform(2.8, 6)))
        height = float(rng.uniform(2.2, 3.2))
        build_room_shell(stage, rng, size, height)
        light_room(stage, rng, size, height)
        room = plan_room(rng, assets, sparse=True)
        keep_out = Footprint(0, 0, 2 * plan.half_xy[0] + 0.5, 2 * plan.half_xy[1] + 0.5, 0)
        factor = np.array(size) / room.size_xy
        for item in room.items:
            spot = item.footprint
            moved = Footprint(spot.x * float(factor[0]), spot.y * float(factor[1]), spot.width,
                              spot.depth, spot.yaw)
            inside = np.all(np.abs(moved.corners()) <= np.array(size) / 2 + 0.02)
            if inside and item.z == 0 and not moved.overlaps(keep_out) and len(stage.used) < 14:
                stage.model(rng, item.asset, moved, item.z)
    if plan.wall_y is not None:
        stage.box(Footprint(0.0, plan.wall_y + 0.05, size[0] if size else 6.0, 0.1, 0.0),
                  float(rng.uniform(1.2, 2.2)), 0.0, [stage.surface(rng, 'wall')])
    _table_body(stage, rng, plan)
    add_items(stage, rng, plan.items)
    for solid in plan.solids:
        add_solid(stage, rng, solid)
    if rng.uniform() < 0.5:  # a lamp near the table throws harder shadows
        x, y = rng.uniform(-1.0, 1.0, 2)
        stage.light('AREA' if rng.uniform() < 0.5 else 'POINT',
                    (float(x), float(y), plan.top + float(rng.uniform(0.7, 1.4))),
                    float(rng.uniform(3, 40)), white(rng), float(rng.uniform(0.03, 0.4)),
                    (float(-x), float(-y), -1.0))
    return plan, size


def _table_body(stage: Stage, rng: np.random.Generator, plan: TablePlan) -> None:
    width, depth = 2 * plan.half_xy[0], 2 * plan.half_xy[1]
    thick = float(rng.uniform(0.015, 0.06))
    top, leg = stage.surface(rng, 'table'), stage.material(rng)
    spot = Footprint(0.0, 0.0, width, depth, 0.0)
    if plan.round:
        stage.cylinder(spot, thick, plan.top - thick, [top], 64)
        stage.cylinder(Footprint(0, 0, 0.1, 0.1, 0), plan.top - thick, 0.0, [leg])
        return
    stage.box(spot, thick, plan.top - thick, [top])
    if rng.uniform() < 0.2:  # a chest rather than legs
        stage.box(Footprint(0, 0, width * 0.95, depth * 0.95, 0), plan.top - thick, 0.0, [leg])
        return
    side = float(rng.uniform(0.03, 0.09))
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (width / 2 - side), sy * (depth / 2 - side)
            stage.box(Footprint(x, y, side, side, 0), plan.top - thick, 0.0, [leg])


def inside_furniture(
    plan: RoomPlan, position: tuple[float, float, float], margin: float
) -> bool:
    """Whether a point lies in the space that a thing of the room takes, grown by a margin."""
    x, y, z = position
    bodies = [(item.footprint, item.asset.size_m[2] + item.z) for item in plan.items]
    bodies += [(solid.footprint, solid.height) for solid in plan.solids]
    return any(body.contains(x, y, margin) and z < top + margin for body, top in bodies)


def room_views(
    stage: Stage, rng: np.random.Generator, plan: RoomPlan, count: int
) -> Iterator[View]:
    """Views of a room that are outside the furniture and show something."""
    found = 0
    for _ in range(_MAX_TRIES):
        if found >= count:
            return
        view = sample_room_view(rng, plan.size_xy, plan.height)
        if inside_furniture(plan, view.position, 0.1):
            continue
        depths = stage.probe(view)
        if rejection(depths, 'room'):
            continue
        if bare_share(depths, view, plan) > 0.85 and rng.uniform() < 0.8:
            continue
        found += 1
        yield view


def bare_share(depths: _Vector, view: View, plan: RoomPlan) -> float:
    """Share of the probe rays that end on the bare shell of the room."""
    directions, factors = ray_directions(view, (3, 4))
    ends = np.array(view.position) + directions * (depths / factors)[:, None]
    half = np.array([*plan.size_xy, 0]) / 2
    on_wall = np.any(np.abs(np.abs(ends[:, :2]) - half[:2]) < 0.05, axis=1)
    on_flat = (ends[:, 2] < 0.03) | (ends[:, 2] > plan.height - 0.03)
    return float((on_wall | on_flat).mean())


def table_views(
    stage: Stage, rng: np.random.Generator, plan: TablePlan, size: tuple[float, float] | None,
    style: str, count: int,
) -> Iterator[View]:
    """Views onto a table top from inside the room."""
    found = 0
    spots = [item.footprint for item in plan.items] + [s.footprint for s in plan.solids]
    things = [(spot.x, spot.y) for spot in spots]
    for _ in range(_MAX_TRIES):
        if found >= count:
            return
        view = sample_table_view(rng, plan.top, plan.half_xy, style, things)
        x, y, _z = view.position
        if size is not None and (abs(x) > size[0] / 2 - 0.1 or abs(y) > size[1] / 2 - 0.1):
            continue
        if plan.wall_y is not None and y > plan.wall_y - 0.08:
            continue
        if view.position[2] > 2.1 or rejection(stage.probe(view), 'table'):
            continue
        found += 1
        yield view


def list_pictures(folder: Path | None) -> list[Path]:
    """Photographs of surfaces in a folder (PNG, JPEG), in a fixed order."""
    if folder is None:
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
