"""Plans of corridors, offices, kitchens and cluttered floors. Pure geometry, no renderer."""

from __future__ import annotations

from collections.abc import Callable

from depth_node.synthesis.catalogue import Asset
from depth_node.synthesis.layout import (
    Floor,
    Footprint,
    RoomPlan,
    Solid,
    _by_role,
    _pick,
    _sample,
    add_doors,
    against_wall,
    line_walls,
    open_walls,
    plan_room,
    random_footprint,
    scatter,
    seat_around,
    small_thing,
)
import numpy as np


def plan_corridor(rng: np.random.Generator, assets: list[Asset]) -> RoomPlan:
    """A long passage along x with doors and doorways, and a few things at its walls."""
    size = (float(rng.uniform(5, 18)), float(rng.uniform(1.1, 2.7)))
    plan = RoomPlan(size, float(rng.uniform(2.2, 3.2)), 'mixed', kind='corridor')
    floor = Floor(plan)
    doors = [a for a in _by_role(assets, 'door') if a.elevation_m < 0.1 and a.size_m[0] < 1.3]
    model = doors[int(rng.integers(len(doors)))] if doors else None
    pitch = float(rng.uniform(1.6, 4.0))
    open_share = rng.uniform(0.1, 0.6)
    for side in (0, 2):
        if rng.uniform() < 0.2:
            continue
        for t in np.arange(-size[0] / 2 + rng.uniform(0.7, pitch), size[0] / 2 - 0.7, pitch):
            if rng.uniform() < open_share:
                floor.open(rng, 'doorway', side, float(t))
            elif model is not None and rng.uniform() < 0.8 and model.size_m[2] < plan.height:
                spot = against_wall(rng, model.size_m, size, side)
                if spot is not None:
                    floor.add(model, Footprint(float(t), spot.y, spot.width, spot.depth, spot.yaw))
    for side in (1, 3):
        what = str(rng.choice(['doorway', 'window', 'pane', 'none']))
        if what != 'none':
            floor.open(rng, what, side)
    for asset in _sample(rng, _by_role(assets, 'wall', 'chair', 'floor'), 'Office',
                         int(rng.poisson(size[0] * 0.3))):
        if asset.size_m[1] < size[1] * 0.45 and asset.size_m[2] < plan.height:
            floor.add(asset, against_wall(rng, asset.size_m, size, int(rng.choice([0, 2]))))
    scatter(rng, floor, assets, size[0] * size[1], 0.5)
    return plan


def plan_office(rng: np.random.Generator, assets: list[Asset]) -> RoomPlan:
    """Desks with screens and chairs, in rows or at the walls, shelves and partitions."""
    size = (float(rng.uniform(3, 10)), float(rng.uniform(3, 8)))
    plan = RoomPlan(size, float(rng.uniform(2.4, 3.3)), 'Office', kind='office')
    floor = Floor(plan)
    open_walls(rng, floor, 2.0, 0.5)
    add_doors(rng, floor, assets, 1)
    models = [a for a in _by_role(assets, 'table')
              if a.category == 'Office' and a.size_m[2] > 0.6]
    chairs = [a for a in _by_role(assets, 'chair') if a.category == 'Office']
    chairs = chairs or _by_role(assets, 'chair')
    seat = _pick(rng, chairs, 'Office') if chairs else None
    model = models[int(rng.integers(len(models)))] if models and rng.uniform() < 0.5 else None
    width, depth, height = (model.size_m if model else (
        float(rng.uniform(1.0, 1.8)), float(rng.uniform(0.6, 0.85)),
        float(rng.uniform(0.68, 0.78))))

    def desk(spot: Footprint | None) -> None:
        if spot is None:
            return
        done = (floor.add(model, spot) if model
                else floor.put('desk', spot, height, 'table', host=True))
        if not done:
            return
        if model:
            plan.tables.append(plan.items[-1])
        front = np.array([np.sin(spot.yaw), -np.cos(spot.yaw)])
        if seat is not None and rng.uniform() < 0.85:
            x, y = np.array([spot.x, spot.y]) + front * (
                depth / 2 + seat.size_m[1] / 2 + rng.uniform(-0.1, 0.3))
            floor.add(seat, Footprint(float(x), float(y), *seat.size_m[:2],
                                      spot.yaw + np.pi + float(rng.normal(0, 0.4))), gap=-0.1)
        back = np.array([spot.x, spot.y]) - front * depth * 0.22
        if rng.uniform() < 0.75:
            for shift in rng.choice([-0.3, 0.0, 0.3], int(rng.integers(1, 3)), replace=False):
                along = np.array([np.cos(spot.yaw), np.sin(spot.yaw)]) * shift * width * 0.8
                wide = float(rng.uniform(0.4, 0.65))
                tall = float(rng.uniform(0.38, 0.52))
                floor.put('monitor', Footprint(
                    *(float(v) for v in back + along), wide, 0.2,
                    spot.yaw + float(rng.normal(0, 0.15))), tall, 'screen', z=height)
    if rng.uniform() < 0.5:  # rows, back to back
        turn = float(rng.choice([0.0, np.pi / 2]))
        along = np.array([np.cos(turn), np.sin(turn)])
        aside = np.array([-along[1], along[0]])
        rows = int(rng.integers(1, 4))
        for row in range(rows):
            for column in range(int(rng.integers(1, 5))):
                for face in (0, 1):
                    if rng.uniform() < 0.85:
                        middle = (along * (column - 1.5) * (width + 0.03)
                                  + aside * ((row - (rows - 1) / 2) * 2.7
                                             + (face - 0.5) * (depth + 0.05)))
                        desk(Footprint(float(middle[0]), float(middle[1]), width, depth,
                                       turn + (np.pi if face else 0.0)))
    for _ in range(int(rng.integers(1, 6))):
        spot = against_wall(rng, (width, depth, height), size, int(rng.integers(4)), 0.03)
        # at a wall people sit with the wall in front of them: the front is on the room's side
        desk(spot)
    for _ in range(int(rng.integers(0, 4))):
        wide, tall = float(rng.uniform(0.6, 1.4)), float(rng.uniform(0.8, 2.1))
        floor.put('shelf', against_wall(rng, (wide, float(rng.uniform(0.25, 0.45)), tall), size,
                                        int(rng.integers(4))), tall, 'cabinet', host=True)
    for _ in range(int(rng.poisson(0.8))):
        long, tall = float(rng.uniform(0.8, 2.0)), float(rng.uniform(1.1, 1.8))
        x, y = rng.uniform(-0.4, 0.4, 2) * size
        floor.put('board', Footprint(float(x), float(y), long, 0.05,
                                     float(rng.choice([0, np.pi / 2]))), tall, 'cloth')
    line_walls(rng, floor, assets, 'Office', int(rng.integers(0, 5)))
    scatter(rng, floor, assets, size[0] * size[1], 0.6)
    return plan


def plan_kitchen(rng: np.random.Generator, assets: list[Asset]) -> RoomPlan:
    """Worktops along one to three walls with cupboards above, an island or a table."""
    size = (float(rng.uniform(2.2, 6)), float(rng.uniform(2.2, 5)))
    plan = RoomPlan(size, float(rng.uniform(2.3, 3.0)), 'Kitchen', kind='kitchen')
    floor = Floor(plan)
    open_walls(rng, floor, 0.7, 0.5)
    height, depth = float(rng.uniform(0.84, 0.95)), float(rng.uniform(0.55, 0.68))
    tall_models = [a for a in _by_role(assets, 'wall')
                   if a.category == 'Kitchen' and a.size_m[2] < plan.height]
    for side in rng.permutation(4)[: int(rng.integers(1, 4))]:
        side = int(side)
        length = plan.wall_length(side)
        t = -length / 2 + (float(rng.uniform(0, 0.3)) if rng.uniform() < 0.5 else depth + 0.02)
        while t < length / 2 - 0.4:
            if tall_models and rng.uniform() < 0.3:  # a fridge, an oven, a cabinet
                asset = tall_models[int(rng.integers(len(tall_models)))]
                width, size_m = asset.size_m[0], asset.size_m
            else:
                asset = None
                width = float(min(rng.uniform(0.4, 2.2), length / 2 - t))
                size_m = (width, depth, height)
            x, y = plan.on_wall(side, t + width / 2, size_m[1] / 2 + 0.01)
            yaw = {0: 0.0, 1: -np.pi / 2, 2: np.pi, 3: np.pi / 2}[side]
            spot = Footprint(x, y, width, size_m[1], float(yaw))
            if asset is not None:
                floor.add(asset, spot, gap=0.0)
            elif floor.put('counter', spot, height, 'cabinet', gap=0.0, host=True):
                low = float(rng.uniform(1.35, 1.5))
                tall = float(min(rng.uniform(0.5, 0.9), plan.height - low - 0.02))
                if rng.uniform() < 0.6 and plan.wall_free(side, t + width / 2, width, low,
                                                          low + tall):
                    x, y = plan.on_wall(side, t + width / 2, 0.18)
                    floor.put('cupboard', Footprint(x, y, width, 0.34, float(yaw)), tall,
                              'cabinet', z=low)
            t += width + 0.005
            if rng.uniform() < 0.15:
                break
    if rng.uniform() < 0.35 and min(size) > 3.2:
        spot = Footprint(*(float(v) for v in rng.uniform(-0.12, 0.12, 2) * size),
                         float(rng.uniform(1.0, 2.0)), float(rng.uniform(0.6, 0.95)),
                         float(rng.choice([0, np.pi / 2])))
        floor.put('counter', spot, height, 'cabinet', host=True)
    tables, chairs = _by_role(assets, 'table'), _by_role(assets, 'chair')
    if tables and chairs and rng.uniform() < 0.6:
        asset = _pick(rng, tables, 'Kitchen')
        table = random_footprint(rng, (size[0] * 0.6, size[1] * 0.6), *asset.size_m[:2])
        if floor.add(asset, table):
            plan.tables.append(plan.items[-1])
            seat_around(rng, floor, table, _pick(rng, chairs, 'Kitchen'), int(rng.integers(1, 5)))
    add_doors(rng, floor, assets, 1)
    scatter(rng, floor, assets, size[0] * size[1], 0.7)
    return plan


def plan_clutter(rng: np.random.Generator, assets: list[Asset]) -> RoomPlan:
    """A small room or a part of one whose floor is covered with things."""
    size = (float(rng.uniform(2.2, 5.5)), float(rng.uniform(2.2, 5)))
    plan = RoomPlan(size, float(rng.uniform(2.2, 3.0)), str(rng.choice(['Bedroom', 'mixed'])),
                    kind='clutter')
    floor = Floor(plan)
    open_walls(rng, floor, 0.8, 0.5)
    add_doors(rng, floor, assets, int(rng.integers(0, 2)))
    line_walls(rng, floor, assets, plan.theme, int(rng.integers(1, 7)))
    if rng.uniform() < 0.4:
        tall = float(rng.uniform(0.8, 2.0))
        floor.put('shelf', against_wall(rng, (1.0, 0.35, tall), size, int(rng.integers(4))), tall,
                  'cabinet', host=True)
    scatter(rng, floor, assets, size[0] * size[1], 1.5)
    small = [a for a in assets if a.role == 'small' or a.desktop]
    amount = size[0] * size[1] * rng.uniform(2.0, 9.0)
    focus, spread = rng.uniform(-0.25, 0.25, 2) * size, rng.uniform(0.15, 0.4) * np.array(size)
    for _ in range(int(min(amount, 110))):
        x, y = rng.normal(focus, spread)
        yaw = float(rng.uniform(0, 2 * np.pi))
        if small and rng.uniform() < 0.45:
            asset = small[int(rng.integers(len(small)))]
            floor.add(asset, Footprint(float(x), float(y), *asset.size_m[:2], yaw), gap=0.0)
            continue
        shape, thing, use = small_thing(rng, 0.05)
        factor = 1.0 if shape in ('paper', 'books', 'laptop') else float(rng.uniform(0.8, 1.8))
        spot = Footprint(float(x), float(y), thing[0] * factor, thing[1] * factor, yaw)
        floor.put(shape, spot, thing[2] * factor, use, gap=0.0)
    for _ in range(int(rng.poisson(1.0))):
        x, y = rng.uniform(-0.4, 0.4, 2) * size
        plan.solids.append(_cable(rng, float(x), float(y)))
    return plan


def _cable(rng: np.random.Generator, x: float, y: float) -> Solid:
    long = float(rng.uniform(0.6, 2.0))
    return Solid('cable', Footprint(x, y, long, long / 2, float(rng.uniform(0, 6.3))), 0.012, 0.0,
                 'cylinder')


SPACES: dict[str, Callable[[np.random.Generator, list[Asset]], RoomPlan]] = {
    'room': plan_room, 'corridor': plan_corridor, 'office': plan_office, 'kitchen': plan_kitchen,
    'clutter': plan_clutter,
}
