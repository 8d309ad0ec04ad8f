"""Plans of rooms and tables: which things stand where. Pure geometry, no renderer."""

from __future__ import annotations

from dataclasses import dataclass, field

from depth_node.synthesis.catalogue import Asset
import numpy as np
from numpy.typing import NDArray

SIDES = {  # a wall's normal into the room, and the direction of its coordinate t
    0: ((0.0, -1.0), (1.0, 0.0)), 1: ((-1.0, 0.0), (0.0, 1.0)),
    2: ((0.0, 1.0), (1.0, 0.0)), 3: ((1.0, 0.0), (0.0, 1.0)),
}  # north (+y), east (+x), south, west
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


SHAPES = (  # what `Solid.shape` can be
    'box', 'cylinder', 'bottle', 'vase', 'cup', 'bowl', 'can', 'ball', 'lump', 'paper', 'books',
    'monitor', 'laptop', 'keyboard', 'shelf', 'counter', 'cupboard', 'desk', 'board', 'cable',
)
ROUND = ('cylinder', 'bottle', 'vase', 'cup', 'bowl', 'can', 'ball')


@dataclass(frozen=True)
class Solid:
    """A thing that is made rather than taken from the catalogue (see SHAPES).

    Attributes:
        shape: what it is; its front is -y.
        footprint: where it stands.
        height: its height [m].
        z: height of its lowest point [m].
        use: the surface, of `textures.USES`.
        tilt: turn about its own x and y [rad], for things that lie in a heap.
    """

    shape: str
    footprint: Footprint
    height: float
    z: float
    use: str
    tilt: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Opening:
    """A hole in a wall or a pane on it; `middle` is along the wall's t (see SIDES) [m].

    `what` is 'window' (a hole with a frame), 'pane' (a bright picture) or 'doorway'.
    """

    side: int
    middle: float
    width: float
    low: float
    height: float
    what: str


@dataclass
class RoomPlan:
    """A rectangular room centred on the origin."""

    size_xy: tuple[float, float]
    height: float
    theme: str
    items: list[Placed] = field(default_factory=list)
    solids: list[Solid] = field(default_factory=list)
    tables: list[Placed] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    hosts: list[Solid] = field(default_factory=list)
    kind: str = 'room'

    def wall_length(self, side: int) -> float:
        """Length of a wall [m]."""
        return self.size_xy[0] if side in (0, 2) else self.size_xy[1]

    def on_wall(self, side: int, t: float, inset: float = 0.0) -> tuple[float, float]:
        """The point at coordinate t of a wall, `inset` into the room."""
        (nx, ny), (ax, ay) = SIDES[side]
        half = (self.size_xy[1] if side in (0, 2) else self.size_xy[0]) / 2 - inset
        return ax * t - nx * half, ay * t - ny * half

    def wall_free(self, side: int, middle: float, width: float, low: float, high: float) -> bool:
        """Whether no opening of a wall lies in a rectangle of it."""
        return not any(
            o.side == side and abs(o.middle - middle) < (o.width + width) / 2 + 0.03
            and o.low < high and o.low + o.height > low
            for o in self.openings)


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


class Floor:
    """A room in the making: keeps the furniture apart and inside.

    Attributes:
        plan: what has been placed.
        taken: footprints on the floor, those of doorways too.
    """

    def __init__(self, plan: RoomPlan) -> None:
        """Start with an empty room."""
        self.plan = plan
        self.taken: list[Footprint] = []

    def free(self, footprint: Footprint, gap: float = 0.02) -> bool:
        """Whether a footprint lies in the room and apart from all others."""
        return _inside(footprint, self.plan.size_xy, 0.02) and not any(
            footprint.overlaps(other, gap) for other in self.taken)

    def add(self, asset: Asset, footprint: Footprint | None, z: float = 0.0, gap: float = 0.02
            ) -> bool:
        """Place a model; what hangs (z > 0) may be above other things."""
        if footprint is None or not _inside(footprint, self.plan.size_xy, 0.02):
            return False
        if z == 0.0:
            if not self.free(footprint, gap):
                return False
            self.taken.append(footprint)
        self.plan.items.append(Placed(asset, footprint, z))
        return True

    def put(self, shape: str, footprint: Footprint | None, height: float, use: str, *,
            z: float = 0.0, gap: float = 0.02, host: bool = False) -> bool:
        """Place a made thing; `host` says that small things may stand on it."""
        if footprint is None:
            return False
        if z == 0.0:
            if not self.free(footprint, gap):
                return False
            self.taken.append(footprint)
        solid = Solid(shape, footprint, height, z, use)
        self.plan.solids.append(solid)
        if host:
            self.plan.hosts.append(solid)
        return True

    def open(self, rng: np.random.Generator, what: str, side: int, middle: float | None = None
             ) -> bool:
        """Cut a doorway, a window or a pane into a wall where it fits."""
        plan = self.plan
        length = plan.wall_length(side)
        if what == 'doorway':
            width, low = float(rng.uniform(0.75, 1.3)), 0.0
            height = float(min(rng.uniform(1.95, 2.3), plan.height - 0.1))
        else:
            width = float(min(rng.uniform(0.5, 2.6), length * 0.8))
            low = float(rng.choice([0.08, rng.uniform(0.6, 1.1), rng.uniform(0.7, 1.0)]))
            height = float(min(rng.uniform(0.7, 1.8), plan.height - low - 0.12))
        reach = (length - width) / 2 - 0.12
        if reach <= 0 or height < 0.4:
            return False
        where = float(rng.uniform(-reach, reach)) if middle is None else middle
        if abs(where) > reach or not plan.wall_free(side, where, width + 0.2, 0.0, plan.height):
            return False
        if what == 'doorway':
            x, y = plan.on_wall(side, where, 0.3)
            yaw = 0.0 if side in (0, 2) else float(np.pi / 2)
            keep = Footprint(x, y, width, 0.58, yaw)
            if any(keep.overlaps(other) for other in self.taken):
                return False
            self.taken.append(keep)
        plan.openings.append(Opening(side, where, width, low, height, what))
        return True


def random_footprint(
    rng: np.random.Generator, size_xy: tuple[float, float], width: float, depth: float
) -> Footprint:
    """A footprint anywhere in a room, turned by any angle."""
    x, y = rng.uniform(-0.5, 0.5, 2) * size_xy
    return Footprint(float(x), float(y), float(width), float(depth),
                     float(rng.uniform(0, 2 * np.pi)))


def open_walls(rng: np.random.Generator, floor: Floor, windows: float, doorways: float) -> None:
    """Draw windows (holes and bright panes) and doorways; the arguments are mean counts."""
    for what, mean in (('doorway', doorways), ('window', windows)):
        for _ in range(int(rng.poisson(mean))):
            kind = 'pane' if what == 'window' and rng.uniform() < 0.4 else what
            floor.open(rng, kind, int(rng.integers(4)))


def add_doors(rng: np.random.Generator, floor: Floor, assets: list[Asset], count: int) -> None:
    """Hang door and window models on the walls; kept free of furniture where they stand."""
    plan = floor.plan
    for asset in _sample(rng, _by_role(assets, 'door'), 'mixed', count):
        z = max(asset.elevation_m, 0.0)
        side = int(rng.integers(4))
        spot = against_wall(rng, asset.size_m, plan.size_xy, side)
        if spot is None or asset.size_m[2] + z >= plan.height:
            continue
        middle = spot.x if side in (0, 2) else spot.y
        if plan.wall_free(side, middle, asset.size_m[0], z, z + asset.size_m[2]):
            floor.add(asset, spot, z)


def line_walls(
    rng: np.random.Generator, floor: Floor, assets: list[Asset], theme: str, count: int
) -> None:
    """Set furniture with its back to the walls."""
    plan = floor.plan
    for asset in _sample(rng, _by_role(assets, 'wall'), theme, count):
        if asset.size_m[2] < plan.height:
            floor.add(asset, against_wall(rng, asset.size_m, plan.size_xy, int(rng.integers(4)),
                                          float(rng.uniform(0.005, 0.06))))


def seat_around(
    rng: np.random.Generator, floor: Floor, table: Footprint, seat: Asset, count: int
) -> None:
    """Set chairs at the sides of a table, facing it roughly."""
    for side in rng.permutation(4)[:count]:
        reach = (table.depth if side in (0, 2) else table.width) / 2
        distance = reach + seat.size_m[1] / 2 + rng.uniform(0.02, 0.25)
        angle = table.yaw + side * np.pi / 2 + np.pi / 2
        floor.add(seat, Footprint(
            float(table.x + distance * np.cos(angle)), float(table.y + distance * np.sin(angle)),
            *seat.size_m[:2], float(angle - np.pi / 2 + rng.normal(0, 0.3))))


def plan_room(rng: np.random.Generator, assets: list[Asset], *, sparse: bool = False) -> RoomPlan:
    """Furnish a room: furniture along the walls, tables with chairs, people, clutter."""
    hall = rng.uniform() < 0.1
    if hall:
        size = (float(rng.uniform(7, 15)), float(rng.uniform(6, 12)))
    else:
        size = (float(rng.uniform(2.5, 8)), float(rng.uniform(2.5, 6.5)))
    plan = RoomPlan(size, float(rng.uniform(2.8, 4.5) if hall else rng.uniform(2.2, 3.2)),
                    str(rng.choice(THEMES)))
    floor = Floor(plan)
    area = min(size[0] * size[1], 60.0)
    fullness = rng.uniform(0.15, 0.45) if sparse else rng.uniform(0.35, 1.1)
    open_walls(rng, floor, 1.3, 0.6)
    add_doors(rng, floor, assets, int(rng.integers(0, 3)))
    line_walls(rng, floor, assets, plan.theme, int(min(2 * sum(size), 30) * fullness))
    tables = int(rng.integers(0, 2 + int(area / 14))) if not sparse else int(rng.integers(0, 2))
    chairs = _by_role(assets, 'chair')
    for asset in _sample(rng, _by_role(assets, 'table'), plan.theme, tables):
        spot = rng.uniform(-0.35, 0.35, 2) * size
        yaw = float(rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1))
        table = Footprint(float(spot[0]), float(spot[1]), *asset.size_m[:2], yaw)
        if floor.add(asset, table):
            plan.tables.append(plan.items[-1])
            if chairs:
                seat_around(rng, floor, table, _pick(rng, chairs, plan.theme),
                            int(rng.integers(0, 5)))
    if rng.uniform() < 0.35:
        width, height = float(rng.uniform(0.6, 1.6)), float(rng.uniform(0.8, 2.1))
        floor.put('shelf', against_wall(rng, (width, float(rng.uniform(0.22, 0.45)), height), size,
                                        int(rng.integers(4))), height, 'cabinet', host=True)
    scatter(rng, floor, assets, area)
    if rng.uniform() < 0.2 and min(size) > 3:  # a pillar or a partition that juts into the room
        thick, length = rng.uniform(0.12, 0.4), rng.uniform(0.3, 0.45 * min(size))
        x = float(rng.uniform(-0.3, 0.3) * size[0])
        block = Footprint(x, size[1] / 2 - float(length) / 2, float(thick), float(length), 0.0)
        if plan.wall_free(0, x, float(thick), 0, plan.height):
            floor.put('box', block, plan.height, 'wall', gap=0.0)
    return plan


def scatter(
    rng: np.random.Generator, floor: Floor, assets: list[Asset], area: float, amount: float = 1.0
) -> None:
    """Stand chairs, plants, people, boxes and round things on the floor and hang some on walls."""
    plan = floor.plan
    free = (
        _sample(rng, _by_role(assets, 'chair'), plan.theme, int(rng.poisson(area * 0.05 * amount)))
        + _sample(rng, _by_role(assets, 'floor'), plan.theme,
                  int(rng.poisson(area * 0.12 * amount)))
        + _sample(rng, _by_role(assets, 'person'), 'mixed',
                  int(rng.poisson(0.8)) if rng.uniform() < 0.35 else 0)
    )
    for asset in free:
        floor.add(asset, random_footprint(rng, plan.size_xy, *asset.size_m[:2]))
    for asset in _sample(rng, _by_role(assets, 'mounted'), plan.theme, int(rng.poisson(1.5))):
        z = asset.elevation_m
        side = int(rng.integers(4))
        spot = against_wall(rng, asset.size_m, plan.size_xy, side)
        if spot is None or z + asset.size_m[2] >= plan.height:
            continue
        middle = spot.x if side in (0, 2) else spot.y
        if plan.wall_free(side, middle, asset.size_m[0], z, z + asset.size_m[2]):
            floor.add(asset, spot, z)
    for _ in range(int(rng.poisson(area * 0.06 * amount))):
        width, depth, height = rng.uniform(0.12, 0.7, 3)
        shape = str(rng.choice(['box', 'cylinder', 'lump', 'vase', 'ball'],
                               p=[0.6, 0.1, 0.15, 0.05, 0.1]))
        if shape in ROUND:
            depth = width = width * 0.6
        if shape == 'ball':
            height = width
        use = {'box': 'box', 'lump': 'cloth'}.get(shape, 'cylinder')
        floor.put(shape, random_footprint(rng, plan.size_xy, width, depth), float(height), use)


def _sample(rng: np.random.Generator, assets: list[Asset], theme: str, count: int) -> list[Asset]:
    return [_pick(rng, assets, theme) for _ in range(count)] if assets else []


def small_thing(
    rng: np.random.Generator, smallest: float
) -> tuple[str, tuple[float, float, float], str]:
    """Draw a made thing of table size: its shape, size [m] and surface."""
    shape = str(rng.choice(
        ['box', 'cylinder', 'can', 'bottle', 'cup', 'bowl', 'vase', 'ball', 'lump', 'paper',
         'books', 'laptop', 'keyboard'],
        p=[0.33, 0.07, 0.08, 0.09, 0.07, 0.06, 0.04, 0.06, 0.06, 0.05, 0.05, 0.02, 0.02]))
    width = float(np.exp(rng.uniform(np.log(smallest), np.log(0.28))))
    depth = float(np.clip(width * rng.uniform(0.2, 1.6), 0.02, 0.3))
    height = float(np.exp(rng.uniform(np.log(smallest / 2), np.log(0.33))))
    sizes = {
        'cylinder': (0.14, 0.5, 3.0), 'can': (0.1, 0.6, 2.6), 'bottle': (0.11, 2.2, 4.2),
        'cup': (0.11, 0.7, 1.6), 'bowl': (0.26, 0.25, 0.6), 'vase': (0.16, 1.0, 2.6),
        'ball': (0.22, 1.0, 1.0),
    }
    if shape in sizes:
        widest, low, high = sizes[shape]
        width = depth = float(np.clip(width, 0.03, widest))
        height = width * float(rng.uniform(low, high))
    elif shape == 'lump':
        height = float(min(width, depth) * rng.uniform(0.3, 0.8))
    elif shape == 'paper':
        width, depth, height = 0.21, 0.297, float(rng.choice([0.001, 0.004, 0.02]))
    elif shape == 'books':
        width, depth = float(rng.uniform(0.12, 0.24)), float(rng.uniform(0.16, 0.3))
        height = float(rng.uniform(0.02, 0.16))
    elif shape == 'laptop':
        width, depth, height = float(rng.uniform(0.28, 0.4)), 0.24, float(rng.uniform(0.15, 0.24))
    elif shape == 'keyboard':
        width, depth, height = float(rng.uniform(0.28, 0.46)), 0.14, 0.022
    use = {'lump': 'cloth', 'paper': 'poster', 'box': 'box', 'books': 'box'}.get(shape, 'cylinder')
    return shape, (width, depth, height), use


def package(rng: np.random.Generator) -> tuple[str, tuple[float, float, float], str]:
    """Draw a package as it stands on a table or in a shop: shape, size [m] and surface.

    Cartons stand upright or on edge, or lie flat; one package in five is a tin.
    """
    if rng.uniform() < 0.2:
        width = float(rng.uniform(0.06, 0.13))
        return 'can', (width, width, float(rng.uniform(0.08, 0.28))), 'cylinder'
    longest = float(rng.uniform(0.1, 0.36))
    middle = longest * float(rng.uniform(0.45, 0.95))
    least = middle * float(rng.uniform(0.2, 0.9))
    sides = {'upright': (middle, least, longest), 'on edge': (longest, least, middle),
             'flat': (longest, middle, least)}
    way = str(rng.choice(list(sides), p=[0.45, 0.25, 0.3]))
    return 'box', sides[way], 'box'


def plan_table(
    rng: np.random.Generator, assets: list[Asset], density: str, *,
    half_xy: tuple[float, float] | None = None, top: float | None = None,
) -> TablePlan:
    """Set a table: catalogue models, made things and stacks that do not overlap.

    Args:
        rng: the scene's generator.
        assets: the catalogue.
        density: 'bare' (1 to 5 things), 'packed' (3 to 11, mostly packages, side by side and on
            each other), 'set' (5 to 14), 'dense' (15 to 40) or 'heap' (20 to 45 that lie on each
            other; `scenes` finds their heights).
        half_xy: half extents of the top; drawn when None.
        top: height of the top; drawn when None.
    """
    if half_xy is None:
        longest = 1.5 if rng.uniform() < 0.4 else 0.85
        half_xy = (float(rng.uniform(0.35, longest)), float(rng.uniform(0.3, 0.7)))
    top = float(rng.uniform(0.4, 1.0)) if top is None else top
    is_round = bool(rng.uniform() < 0.12)
    if is_round:
        half_xy = (half_xy[0], half_xy[0])
    plan = TablePlan(half_xy, top, is_round)
    if rng.uniform() < 0.35:
        plan.wall_y = half_xy[1] + float(rng.uniform(0.0, 0.12))
    heap, packed = density == 'heap', density == 'packed'
    count = int(rng.integers(*{'bare': (1, 6), 'packed': (3, 12), 'set': (5, 15),
                               'dense': (15, 41), 'heap': (20, 46)}[density]))
    models = [a for a in assets if a.role == 'small' or (a.desktop and rng.uniform() < 0.5)]
    focus = rng.uniform(-0.4, 0.4, 2) * half_xy
    spread = (rng.uniform(0.08, 0.16, 2) if heap else rng.uniform(0.1, 0.35, 2) if packed
              else rng.uniform(0.3, 0.8) * np.array(half_xy))
    # of catalogue models among the things
    share = rng.uniform(0.0, 0.3) if packed else rng.uniform(0.2, 0.7)
    taken: list[Footprint] = []
    for _ in range(count * 3):
        if len(taken) >= count:
            break
        x, y = np.clip(rng.normal(focus, spread), -0.95 * np.array(half_xy),
                       0.95 * np.array(half_xy))
        yaw = float(rng.uniform(0, 2 * np.pi))
        asset = (models[int(rng.integers(len(models)))]
                 if models and rng.uniform() < share else None)
        if asset is not None:
            spot = Footprint(float(x), float(y), *asset.size_m[:2], yaw)
        else:
            shape, size, use = (package(rng) if packed
                                else small_thing(rng, 0.06 if density == 'bare' else 0.03))
            spot = Footprint(float(x), float(y), *size[:2], yaw)
        radius = np.hypot(spot.x, spot.y)
        edge = radius < 0.95 * half_xy[0] if is_round else _inside(
            spot, (2 * half_xy[0], 2 * half_xy[1]), 0.03)
        if not edge or (not heap and any(spot.overlaps(other, 0.003) for other in taken)):
            continue
        taken.append(spot)
        if asset is not None:
            plan.items.append(Placed(asset, spot, top))
            continue
        tilt = (float(rng.normal(0, 0.15)), float(rng.normal(0, 0.15))) if heap else (0.0, 0.0)
        height, z, turn = size[2], top, float(rng.choice([0.05, 0.3, 1.5]))
        low, likely, most = (0.2, 0.45, 4) if packed else (0.14, 0.25, 6)
        stack = (not heap and shape in ('box', 'can') and rng.uniform() < likely
                 and height < low)
        for _level in range(int(rng.integers(2, most)) if stack else 1):
            plan.solids.append(Solid(shape, spot, height, z, use, tilt))
            z += height
            spot = Footprint(spot.x + float(rng.normal(0, 0.006)),
                             spot.y + float(rng.normal(0, 0.006)),
                             spot.width * float(rng.uniform(0.8, 1.0)),
                             spot.depth * float(rng.uniform(0.8, 1.0)),
                             spot.yaw + float(rng.normal(0, turn)))
    return plan
