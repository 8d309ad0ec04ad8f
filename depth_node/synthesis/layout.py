"""Plans of rooms and tables: which things stand where. Pure geometry, no renderer."""

from __future__ import annotations

from dataclasses import dataclass, field

from depth_node.synthesis.catalogue import Asset
import numpy as np
from numpy.typing import NDArray

THEMES = ('Living room', 'Bedroom', 'Kitchen', 'Office', 'Bathroom', 'mixed')


@dataclass(frozen=True)
class Footprint:
    """A rotated rectangle on the floor or a table: centre, size [m] and yaw [rad]."""

    x: float
    y: float
    width: float
    depth: float
    yaw: float

    def corners(self) -> NDArray[np.float64]:
        """(4, 2) corners in order."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (self.width / 2, self.depth / 2)
        return np.asarray(half @ np.array([[c, s], [-s, c]]) + (self.x, self.y), np.float64)

    def overlaps(self, other: Footprint, gap: float = 0.0) -> bool:
        """Whether two rectangles overlap or come nearer than `gap` (separating axes)."""
        mine, theirs = self.corners(), other.corners()
        for yaw in (self.yaw, other.yaw):
            for axis in ((np.cos(yaw), np.sin(yaw)), (-np.sin(yaw), np.cos(yaw))):
                a, b = mine @ np.array(axis), theirs @ np.array(axis)
                if a.max() + gap <= b.min() or b.max() + gap <= a.min():
                    return False
        return True

    def contains(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether a point lies in the rectangle grown by `margin`."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        dx, dy = x - self.x, y - self.y
        return bool(
            abs(c * dx + s * dy) < self.width / 2 + margin
            and abs(-s * dx + c * dy) < self.depth / 2 + margin
        )


@dataclass(frozen=True)
class Placed:
    """A catalogue model at a place; z is the height of its lowest point."""

    asset: Asset
    footprint: Footprint
    z: float = 0.0


@dataclass(frozen=True)
class Solid:
    """A box or an upright cylinder with a texture; size (width, depth, height) [m]."""

    shape: str
    footprint: Footprint
    height: float
    z: float
    use: str


@dataclass
class RoomPlan:
    """A rectangular room centred on the origin."""

    size_xy: tuple[float, float]
    height: float
    theme: str
    items: list[Placed] = field(default_factory=list)
    solids: list[Solid] = field(default_factory=list)
    tables: list[Placed] = field(default_factory=list)


@dataclass
class TablePlan:
    """A table top centred on the origin, with things on it; a wall may stand at y = wall_y."""

    half_xy: tuple[float, float]
    top: float
    round: bool
    wall_y: float | None = None
    items: list[Placed] = field(default_factory=list)
    solids: list[Solid] = field(default_factory=list)


def _by_role(assets: list[Asset], *roles: str) -> list[Asset]:
    return [asset for asset in assets if asset.role in roles]


def _pick(rng: np.random.Generator, assets: list[Asset], theme: str) -> Asset:
    themed = [asset for asset in assets if asset.category == theme]
    pool = themed if themed and rng.uniform() < 0.7 else assets
    return pool[int(rng.integers(len(pool)))]


def _inside(footprint: Footprint, size_xy: tuple[float, float], slack: float = 0.0) -> bool:
    return bool(np.all(np.abs(footprint.corners()) <= np.array(size_xy) / 2 + slack))


def against_wall(
    rng: np.random.Generator,
    size_m: tuple[float, float, float],
    size_xy: tuple[float, float],
    side: int,
    gap: float = 0.01,
) -> Footprint | None:
    """Put a model with its back to a wall, front (-y) to the room; None when it is too long.

    Args:
        rng: the scene's generator.
        size_m: the model's width, depth, height.
        size_xy: the room's extent.
        side: 0 north (+y), 1 east (+x), 2 south, 3 west.
        gap: space between back and wall [m].
    """
    width, depth, _ = size_m
    along = size_xy[0] if side in (0, 2) else size_xy[1]
    across = size_xy[1] if side in (0, 2) else size_xy[0]
    if width > along - 0.05 or depth > across * 0.6:
        return None
    t = rng.uniform(-(along - width) / 2, (along - width) / 2)
    n = across / 2 - depth / 2 - gap
    x, y, yaw = [(t, n, 0.0), (n, t, -np.pi / 2), (t, -n, np.pi), (-n, t, np.pi / 2)][side]
    return Footprint(float(x), float(y), width, depth, float(yaw))


def plan_room(rng: np.random.Generator, assets: list[Asset], *, sparse: bool = False) -> RoomPlan:
    """Furnish a room: furniture along the walls, tables with chairs, people, clutter."""
    if rng.uniform() < 0.15:
        size = (float(rng.uniform(1.2, 2.3)), float(rng.uniform(4.5, 12)))
        size = size if rng.uniform() < 0.5 else size[::-1]
    else:
        size = (float(rng.uniform(2.5, 9)), float(rng.uniform(2.5, 7)))
    plan = RoomPlan(size, float(rng.uniform(2.2, 3.3)), str(rng.choice(THEMES)))
    taken: list[Footprint] = []

    def add(asset: Asset, footprint: Footprint | None, z: float = 0.0, gap: float = 0.02) -> bool:
        if footprint is None or not _inside(footprint, size, 0.02):
            return False
        if z == 0.0 and any(footprint.overlaps(other, gap) for other in taken):
            return False
        if z == 0.0:
            taken.append(footprint)
        plan.items.append(Placed(asset, footprint, z))
        return True

    area = size[0] * size[1]
    perimeter = 2 * sum(size)
    fullness = rng.uniform(0.15, 0.45) if sparse else rng.uniform(0.35, 1.1)
    for asset in _sample(rng, _by_role(assets, 'door'), 'mixed', int(rng.integers(1, 4))):
        # doors and windows hang on the wall; kept free of furniture when they reach the floor
        z = max(asset.elevation_m, 0.0)
        if asset.size_m[2] + z < plan.height:
            add(asset, against_wall(rng, asset.size_m, size, int(rng.integers(4))), z)
    for asset in _sample(rng, _by_role(assets, 'wall'), plan.theme, int(perimeter * fullness)):
        if asset.size_m[2] < plan.height:
            add(asset, against_wall(rng, asset.size_m, size, int(rng.integers(4)),
                                    float(rng.uniform(0.005, 0.06))))
    tables = int(rng.integers(0, 2 + int(area / 14))) if not sparse else int(rng.integers(0, 2))
    chairs = _by_role(assets, 'chair')
    for asset in _sample(rng, _by_role(assets, 'table'), plan.theme, tables):
        spot = rng.uniform(-0.35, 0.35, 2) * size
        yaw = float(rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1))
        table = Footprint(float(spot[0]), float(spot[1]), *asset.size_m[:2], yaw)
        if not add(asset, table):
            continue
        plan.tables.append(plan.items[-1])
        seat = _pick(rng, chairs, plan.theme)
        for side in rng.permutation(4)[: int(rng.integers(0, 5))]:
            reach = (asset.size_m[1] if side in (0, 2) else asset.size_m[0]) / 2
            distance = reach + seat.size_m[1] / 2 + rng.uniform(0.02, 0.25)
            angle = yaw + side * np.pi / 2 + np.pi / 2
            add(seat, Footprint(
                float(spot[0] + distance * np.cos(angle)),
                float(spot[1] + distance * np.sin(angle)),
                *seat.size_m[:2],
                float(angle - np.pi / 2 + rng.normal(0, 0.3)),
            ))
    free = (
        _sample(rng, chairs, plan.theme, int(rng.poisson(area * 0.05)))
        + _sample(rng, _by_role(assets, 'floor'), plan.theme, int(rng.poisson(area * 0.12)))
        + _sample(rng, _by_role(assets, 'person'), 'mixed',
                  int(rng.poisson(0.8)) if rng.uniform() < 0.35 else 0)
    )
    for asset in free:
        x, y = rng.uniform(-0.5, 0.5, 2) * size
        add(asset, Footprint(float(x), float(y), *asset.size_m[:2],
                             float(rng.uniform(0, 2 * np.pi))))
    for asset in _sample(rng, _by_role(assets, 'mounted'), plan.theme, int(rng.poisson(1.5))):
        z = asset.elevation_m
        if z + asset.size_m[2] < plan.height:
            add(asset, against_wall(rng, asset.size_m, size, int(rng.integers(4))), z)
    for _ in range(int(rng.poisson(area * 0.06))):
        width, depth, height = rng.uniform(0.12, 0.7, 3)
        x, y = rng.uniform(-0.5, 0.5, 2) * size
        spot_ = Footprint(float(x), float(y), float(width), float(depth),
                          float(rng.uniform(0, 2 * np.pi)))
        if _inside(spot_, size) and not any(spot_.overlaps(other, 0.02) for other in taken):
            taken.append(spot_)
            shape = 'box' if rng.uniform() < 0.8 else 'cylinder'
            plan.solids.append(Solid(shape, spot_, float(height), 0.0, shape))
    if rng.uniform() < 0.2 and min(size) > 3:  # a pillar or a partition that juts into the room
        thick, length = rng.uniform(0.12, 0.4), rng.uniform(0.3, 0.45 * min(size))
        x = rng.uniform(-0.3, 0.3) * size[0]
        y = size[1] / 2 - length / 2
        block = Footprint(float(x), float(y), float(thick), float(length), 0.0)
        if not any(block.overlaps(other) for other in taken):
            plan.solids.append(Solid('box', block, plan.height, 0.0, 'wall'))
    return plan


def _sample(rng: np.random.Generator, assets: list[Asset], theme: str, count: int) -> list[Asset]:
    return [_pick(rng, assets, theme) for _ in range(count)] if assets else []


def plan_table(
    rng: np.random.Generator, assets: list[Asset], density: str, *,
    half_xy: tuple[float, float] | None = None, top: float | None = None,
) -> TablePlan:
    """Set a table: small catalogue models, boxes, cylinders and stacks that do not overlap.

    Args:
        rng: the scene's generator.
        assets: the catalogue.
        density: 'bare' (1 to 5 things), 'set' (5 to 14) or 'dense' (15 to 40).
        half_xy: half extents of the top; drawn when None.
        top: height of the top; drawn when None.
    """
    if half_xy is None:
        longest = 1.25 if rng.uniform() < 0.4 else 0.85
        half_xy = (float(rng.uniform(0.35, longest)), float(rng.uniform(0.3, 0.6)))
    top = float(rng.uniform(0.4, 1.0)) if top is None else top
    is_round = bool(rng.uniform() < 0.15)
    if is_round:
        half_xy = (half_xy[0], half_xy[0])
    plan = TablePlan(half_xy, top, is_round)
    if rng.uniform() < 0.35:
        plan.wall_y = half_xy[1] + float(rng.uniform(0.0, 0.12))
    count = int(rng.integers(*{'bare': (1, 6), 'set': (5, 15), 'dense': (15, 41)}[density]))
    small = _by_role(assets, 'small')
    focus = rng.uniform(-0.4, 0.4, 2) * half_xy
    spread = rng.uniform(0.3, 0.8) * np.array(half_xy)
    share = rng.uniform(0.2, 0.8)  # of catalogue models among the things
    taken: list[Footprint] = []
    for _ in range(count * 3):
        if len(taken) >= count:
            break
        x, y = np.clip(rng.normal(focus, spread), -0.95 * np.array(half_xy),
                       0.95 * np.array(half_xy))
        yaw = float(rng.uniform(0, 2 * np.pi))
        if small and rng.uniform() < share:
            asset = small[int(rng.integers(len(small)))]
            spot = Footprint(float(x), float(y), *asset.size_m[:2], yaw)
            height = None
        else:
            round_one = rng.uniform() < 0.25
            smallest = 0.06 if density == 'bare' else 0.03
            width = float(np.exp(rng.uniform(np.log(smallest), np.log(0.28))))
            depth = width if round_one else float(np.clip(width * rng.uniform(0.2, 1.6), .02, .3))
            height = float(np.exp(rng.uniform(np.log(smallest / 2), np.log(0.33))))
            if round_one:
                width = depth = min(width, 0.14)
            spot = Footprint(float(x), float(y), width, depth, yaw)
        radius = np.hypot(spot.x, spot.y)
        edge = radius < 0.95 * half_xy[0] if is_round else _inside(
            spot, (2 * half_xy[0], 2 * half_xy[1]), 0.03)
        if not edge or any(spot.overlaps(other, 0.003) for other in taken):
            continue
        taken.append(spot)
        if height is None:
            plan.items.append(Placed(asset, spot, top))
            continue
        shape = 'cylinder' if round_one else 'box'
        z, turn = top, float(rng.choice([0.05, 0.3, 1.5]))
        levels = int(rng.integers(2, 6)) if rng.uniform() < 0.2 and height < 0.14 else 1
        for _level in range(levels):
            plan.solids.append(Solid(shape, spot, height, z, shape))
            z += height
            spot = Footprint(spot.x + float(rng.normal(0, 0.006)),
                             spot.y + float(rng.normal(0, 0.006)),
                             spot.width * float(rng.uniform(0.8, 1.0)),
                             spot.depth * float(rng.uniform(0.8, 1.0)),
                             spot.yaw + float(rng.normal(0, turn)))
    return plan
