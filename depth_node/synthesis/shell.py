"""Builds the shell of a room on a Stage: floor, ceiling, walls with openings, pictures, rugs."""

from __future__ import annotations

from depth_node.synthesis import shapes, textures
from depth_node.synthesis.blender import Stage
from depth_node.synthesis.layout import SIDES, Footprint, Opening, RoomPlan
from depth_node.synthesis.lighting import white
import numpy as np
from numpy.typing import NDArray

_Vector = NDArray[np.float64]


class Wall:
    """One wall: turns (t along it, inset into the room, height) into world points."""

    def __init__(self, plan: RoomPlan, side: int) -> None:
        """See `layout.SIDES` for the sides."""
        self.plan, self.side = plan, side
        self.length = plan.wall_length(side)
        self.inward = np.array(SIDES[side][0])
        self.along = np.array(SIDES[side][1])
        self.yaw = float(np.arctan2(self.along[1], self.along[0]))

    def point(self, t: float, z: float, inset: float = 0.0) -> _Vector:
        """A world point; a negative inset lies outside."""
        return np.array([*self.plan.on_wall(self.side, t, inset), z])

    def rectangle(self, cell: tuple[float, float, float, float], inset: float = 0.0) -> _Vector:
        """(4, 3) corners of (t_low, t_high, z_low, z_high)."""
        a, b, low, high = cell
        return np.array([self.point(a, low, inset), self.point(b, low, inset),
                         self.point(b, high, inset), self.point(a, high, inset)])

    def footprint(self, t: float, width: float, depth: float, inset: float) -> Footprint:
        """A footprint along the wall, its middle `inset` into the room."""
        x, y, _ = self.point(t, 0.0, inset)
        return Footprint(float(x), float(y), width, depth, self.yaw)


def _square(cell: _Vector) -> _Vector:
    a, b, low, high = cell
    return np.array([[a, low], [b, low], [b, high], [a, high]])


_UNIT = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)


def build_shell(stage: Stage, rng: np.random.Generator, plan: RoomPlan) -> None:
    """Floor, ceiling, walls with their openings, skirting, pictures and rugs."""
    half_x, half_y = np.array(plan.size_xy) / 2
    corners = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y],
                        [-half_x, half_y]])
    height = plan.height
    stage.sheet(np.c_[corners, np.zeros(4)], corners, stage.surface(rng, 'floor'), label='floor')
    ceiling = stage.surface(rng, 'ceiling') if rng.uniform() < 0.6 else stage.material(
        rng, colour=textures.colour(rng, 'light'), roughness=0.9)
    stage.sheet(np.c_[corners, np.full(4, height)], corners, ceiling, label='ceiling')
    common = stage.surface(rng, 'wall')
    board = stage.material(rng) if rng.uniform() < 0.5 else None
    sockel = float(rng.uniform(0.05, 0.14))
    dado = stage.surface(rng, 'wall') if rng.uniform() < 0.12 else None
    dado_height = float(rng.uniform(0.8, 1.4))
    for side in range(4):
        wall = Wall(plan, side)
        openings = [o for o in plan.openings if o.side == side]
        material = common if rng.uniform() < 0.75 else stage.surface(rng, 'wall')
        holes = [(o.middle - o.width / 2, o.middle + o.width / 2, o.low, o.low + o.height)
                 for o in openings if o.what != 'pane']
        cells = shapes.wall_cells((wall.length, height), holes)
        stage.sheet(np.array([wall.rectangle(tuple(cell)) for cell in cells]),
                    np.array([_square(cell) for cell in cells]), material)
        doors = [h for h in holes if h[2] == 0.0]
        if dado is not None:
            low = [(h[0], h[1], 0.0, min(h[3], dado_height)) for h in holes if h[2] < dado_height]
            cells = shapes.wall_cells((wall.length, dado_height), low)
            stage.sheet(np.array([wall.rectangle(tuple(cell), 0.004) for cell in cells]),
                        np.array([_square(cell) for cell in cells]), dado)
        if board is not None:
            for a, b, _low, high in shapes.wall_cells((wall.length, sockel), [
                    (d[0], d[1], 0.0, sockel) for d in doors]):
                stage.box(wall.footprint((a + b) / 2, b - a, 0.016, 0.008), high, 0.0, [board],
                          label='wall')
        for opening in openings:
            if opening.what == 'doorway':
                _doorway(stage, rng, wall, opening, [o for o in openings if o is not opening])
            else:
                _window(stage, rng, wall, opening)
        for _ in range(int(rng.poisson(0.8))):
            _picture(stage, rng, wall)
    if rng.uniform() < 0.4:
        width, depth = rng.uniform(0.25, 0.8, 2) * plan.size_xy
        x, y = rng.uniform(-0.2, 0.2, 2) * plan.size_xy
        spot = Footprint(float(x), float(y), float(width), float(depth),
                         float(rng.choice([0.0, rng.uniform(0, 3)])))
        if np.all(np.abs(spot.corners()) < np.array(plan.size_xy) / 2):
            stage.box(spot, 0.012, 0.001, [stage.surface(rng, 'rug')], label='rug')


def _window(stage: Stage, rng: np.random.Generator, wall: Wall, opening: Opening) -> None:
    """A frame in a hole, or around a bright picture; blinds, curtains and a sill at some."""
    width, tall, low = opening.width, opening.height, opening.low
    frame = stage.material(rng, colour=textures.colour(
        rng, str(rng.choice(['light', 'light', 'wood', 'dark']))))
    bar = float(rng.uniform(0.03, 0.09))
    bars = [(-width / 2, bar), (width / 2 - bar, bar)]
    bars += [(float(t) - bar / 2, bar)
             for t in np.linspace(-width / 2, width / 2, int(rng.integers(2, 5)))[1:-1]]
    parts = [shapes.Block((t, -0.03, 0.0), (wide, 0.06, tall)) for t, wide in bars]
    parts += [shapes.Block((-width / 2, -0.03, z), (width, 0.06, bar))
              for z in (0.0, tall - bar)]
    if rng.uniform() < 0.3:
        parts.append(shapes.Block((-width / 2, -0.02, tall * 0.6), (width, 0.04, bar * 0.7)))
    spot = wall.footprint(opening.middle, width, 0.06, 0.01)
    stage.blocks(parts, spot, low, [frame], label='window')
    cell = (opening.middle - width / 2, opening.middle + width / 2, low, low + tall)
    if opening.what == 'pane':
        day = rng.uniform() < 0.8
        sky = np.linspace(1, 0.2, textures.SIZE)[:, None, None] * np.array(white(rng)) * 255
        view = textures.make(rng, 'picture').astype(float)
        picture = (np.clip(0.35 * view + 0.75 * sky, 0, 255).astype(np.uint8)
                   if rng.uniform() < 0.4 else stage.photograph(rng))
        glow = float(np.exp(rng.uniform(np.log(1), np.log(12)))) if day else 0.02
        stage.sheet(wall.rectangle(cell, 0.005), _UNIT, stage.material(
            rng, picture=picture, roughness=0.1, emission=glow), label='window')
    elif rng.uniform() < 0.9:  # the wall is thick: reveals, and a sill
        _reveal(stage, wall, cell, float(rng.uniform(0.08, 0.3)), frame)
    if rng.uniform() < 0.5:
        stage.box(wall.footprint(opening.middle, width + 0.1, 0.2, 0.1), 0.03, low - 0.03,
                  [frame], label='window')
    if rng.uniform() < 0.22:  # blinds, half drawn
        drawn = tall * rng.uniform(0.2, 1.0)
        slat = float(rng.uniform(0.03, 0.07))
        cells = []
        for z in np.arange(tall - slat, tall - drawn, -slat):
            corners = wall.rectangle((*cell[:2], low + z, low + z + slat * 0.8), 0.06)
            corners[2:, :2] += wall.inward * slat * 0.4
            cells.append(corners)
        if cells:
            stage.sheet(np.array(cells), np.array([_UNIT] * len(cells)), stage.material(
                rng, colour=textures.colour(rng, 'light')), label='window')
    if rng.uniform() < 0.25 and low + tall + 0.1 < wall.plan.height:
        cloth = stage.surface(rng, 'cloth')
        for end in (-1, 1):
            wide = width * rng.uniform(0.15, 0.5)
            _curtain(stage, rng, wall, opening.middle + end * (width / 2 - wide / 2 + 0.05),
                     float(wide), float(max(0.03, low - rng.uniform(0.05, 0.9))),
                     low + tall + 0.08, cloth)


def _curtain(
    stage: Stage, rng: np.random.Generator, wall: Wall, middle: float, width: float, low: float,
    high: float, material: object,
) -> None:
    columns = 40
    t = np.linspace(-0.5, 0.5, columns) * width
    fold = 0.1 + 0.035 * np.sin(np.linspace(0, 2 * np.pi * width / rng.uniform(0.08, 0.16),
                                            columns) + rng.uniform(0, 6))
    edge = wall.length / 2 - 0.01
    points = np.array([[wall.point(float(np.clip(middle + a, -edge, edge)), z, float(b))
                        for a, b in zip(t, fold, strict=True)] for z in (low, high)])
    uv = np.stack(np.broadcast_arrays(t[None, :] * 1.5, np.array([[low], [high]])), -1)
    stage.shape(shapes.grid(points, uv), Footprint(0, 0, 1, 1, 0), 0.0, [material], smooth=True,
                label='window')


def _reveal(
    stage: Stage, wall: Wall, cell: tuple[float, float, float, float], deep: float,
    material: object,
) -> None:
    """The inner faces of a hole in a thick wall."""
    inner, outer = wall.rectangle(cell), wall.rectangle(cell, -deep)
    faces = [np.array([inner[i], inner[(i + 1) % 4], outer[(i + 1) % 4], outer[i]])
             for i in range(4)]
    stage.sheet(np.array(faces), np.array([_UNIT] * 4), material)


def _doorway(
    stage: Stage, rng: np.random.Generator, wall: Wall, opening: Opening, others: list[Opening]
) -> None:
    """A passage into a plain next room, with a frame and sometimes an open door."""
    left, right = opening.middle - opening.width / 2, opening.middle + opening.width / 2
    deep = float(rng.uniform(0.08, 0.3))
    frame = stage.material(rng)
    _reveal(stage, wall, (left, right, 0.0, opening.height), deep, frame)
    if rng.uniform() < 0.7:
        wide = float(rng.uniform(0.05, 0.1))
        parts = [shapes.Block((-opening.width / 2 - wide, -0.012, 0.0),
                              (wide, 0.024, opening.height + wide)),
                 shapes.Block((opening.width / 2, -0.012, 0.0),
                              (wide, 0.024, opening.height + wide)),
                 shapes.Block((-opening.width / 2, -0.012, opening.height),
                              (opening.width, 0.024, wide))]
        stage.blocks(parts, wall.footprint(opening.middle, 1, 1, 0.0), 0.0, [frame], label='door')
    # the next room lies between the neighbours' next rooms
    reach = [wall.length / 2, wall.length / 2]
    for other in others:
        if other.what == 'doorway':
            border = (other.middle + opening.middle) / 2
            if other.middle > opening.middle:
                reach[1] = min(reach[1], border - 0.01)
            else:
                reach[0] = min(reach[0], 0.01 - border)
    low_t = max(-reach[0], left - float(rng.uniform(0.1, 2.5)))
    high_t = min(reach[1], right + float(rng.uniform(0.1, 2.5)))
    far = deep + float(rng.uniform(0.8, 5.0))
    height = float(max(opening.height + 0.05, min(wall.plan.height, 2.6)))
    if rng.uniform() < 0.5:
        floor = stage.surface(rng, 'floor')
    else:
        floor = stage.material(rng)
    material = stage.surface(rng, 'wall')

    def quad(points: list[tuple[float, float, float]]) -> _Vector:
        return np.array([wall.point(t, z, -n) for t, n, z in points])

    span, long = high_t - low_t, far - deep
    stage.sheet(quad([(low_t, 0.0, -0.001), (high_t, 0.0, -0.001), (high_t, far, -0.001),
                      (low_t, far, -0.001)]), _UNIT * (span, far), floor, label='floor')
    stage.sheet(quad([(low_t, deep, height), (high_t, deep, height), (high_t, far, height),
                      (low_t, far, height)]), _UNIT, stage.material(
        rng, colour=textures.colour(rng, 'light')), label='ceiling')
    sides = [[(low_t, far, 0), (high_t, far, 0), (high_t, far, height), (low_t, far, height)],
             [(low_t, deep, 0), (low_t, far, 0), (low_t, far, height), (low_t, deep, height)],
             [(high_t, far, 0), (high_t, deep, 0), (high_t, deep, height), (high_t, far, height)],
             [(low_t, deep, 0), (left, deep, 0), (left, deep, height), (low_t, deep, height)],
             [(right, deep, 0), (high_t, deep, 0), (high_t, deep, height), (right, deep, height)],
             [(left, deep, opening.height), (right, deep, opening.height), (right, deep, height),
              (left, deep, height)]]
    widths = [span, long, long, left - low_t, high_t - right, opening.width]
    stage.sheet(np.array([quad(side) for side in sides]),
                np.array([_UNIT * (wide, height) for wide in widths]), material)
    if rng.uniform() < 0.8:
        where = wall.point((low_t + high_t) / 2, height - 0.05, -(deep + far) / 2)
        stage.light('AREA', tuple(where.tolist()), float(rng.uniform(8, 60)) * span * long / 4,
                    white(rng), float(span * 0.7), size_y=float(long * 0.7))
    if rng.uniform() < 0.6 and span > 0.7 and long > 0.7:
        tall = float(rng.uniform(0.4, min(2.0, height - 0.1)))
        spot = wall.footprint(float(rng.uniform(low_t + 0.3, high_t - 0.3)),
                              float(rng.uniform(0.3, 0.55)), 0.4, -(far - 0.21))
        stage.box(spot, tall, 0.0, [stage.surface(rng, 'cabinet')], unit_uv=True,
                  label='furniture')
    if rng.uniform() < 0.5:  # the door stands open into the next room
        angle = float(np.radians(rng.uniform(25, 120)))
        hinge = -1.0 if rng.uniform() < 0.5 else 1.0
        width = opening.width - 0.02
        n, t = -wall.inward, wall.along * -hinge
        direction = t * np.cos(angle) + n * np.sin(angle)
        corner = wall.point(opening.middle + hinge * opening.width / 2, 0.0, -deep)[:2]
        middle = corner + direction * width / 2
        leaf = Footprint(float(middle[0]), float(middle[1]), width, 0.04,
                         float(np.arctan2(direction[1], direction[0])))
        stage.box(leaf, opening.height - 0.02, 0.01, [
            stage.surface(rng, 'table') if rng.uniform() < 0.4 else stage.material(rng)],
            label='door')


def _picture(stage: Stage, rng: np.random.Generator, wall: Wall) -> None:
    width, tall = (float(v) for v in np.exp(rng.uniform(np.log(0.15), np.log(1.3), 2)))
    if width > wall.length * 0.8:
        return
    t = float(rng.uniform(-(wall.length - width) / 2, (wall.length - width) / 2))
    height = wall.plan.height
    low = float(np.clip(rng.normal(1.5, 0.25) - tall / 2, 0.3, max(0.31, height - tall - 0.05)))
    if low + tall > height or not wall.plan.wall_free(wall.side, t, width, low, low + tall):
        return
    deep = float(rng.choice([0.004, 0.03]))
    if rng.uniform() < 0.6:
        border = float(rng.uniform(0.015, 0.06))
        body = wall.footprint(t, width + 2 * border, 0.03, 0.016)
        stage.box(body, tall + 2 * border, low - border, [stage.material(rng)], label='picture')
        deep = 0.03
    stage.sheet(wall.rectangle((t - width / 2, t + width / 2, low, low + tall), deep + 0.005),
                _UNIT if wall.side in (0, 3) else _UNIT * (-1, 1),
                stage.surface(rng, 'poster'), label='picture')
