"""Lights a room: ceiling lamps with bodies, bulbs, sun and sky through windows, dim and hard."""

from __future__ import annotations

from depth_node.synthesis import shapes
from depth_node.synthesis.blender import Stage, sky_files
from depth_node.synthesis.layout import SIDES, Footprint, RoomPlan
import numpy as np

STYLES = {'panel': 0.3, 'bulbs': 0.14, 'lamp': 0.12, 'mixed': 0.14, 'day': 0.22, 'dim': 0.08}


def white(rng: np.random.Generator) -> tuple[float, float, float]:
    """A light's colour between candle and blue sky."""
    warm, neutral, cold = np.array([(1, 0.72, 0.42), (1, 1, 1), (0.75, 0.87, 1)])
    t = float(np.clip(rng.normal(0.0, 0.5), -1, 1))
    mixed = neutral + abs(t) * ((warm if t < 0 else cold) - neutral)
    return float(mixed[0]), float(mixed[1]), float(mixed[2])


def light_room(stage: Stage, rng: np.random.Generator, plan: RoomPlan) -> str:
    """Add the lights of a room.

    Returns:
        The style, one of STYLES.
    """
    shares = np.array(list(STYLES.values()))
    style = str(rng.choice(list(STYLES), p=shares / shares.sum()))
    half, height = np.array(plan.size_xy) / 2, plan.height
    skies = sky_files()
    stage.sky(skies[int(rng.integers(len(skies)))], float(np.exp(rng.uniform(-1.0, 1.2))),
              float(rng.uniform(0, 6.3)), lights=False)
    daylight = day_through_windows(stage, rng, plan, style)
    if style == 'day' and not daylight:
        style = 'panel'
    area = 4 * float(half.prod())
    power = float(np.exp(rng.uniform(np.log(3), np.log(18))))  # W a square metre
    if style in ('panel', 'mixed'):
        _panels(stage, rng, plan, power * area)
    if style in ('bulbs', 'mixed'):
        count = int(rng.integers(1, 4))
        for _ in range(count):
            x, y = rng.uniform(-0.7, 0.7, 2) * half
            _pendant(stage, rng, float(x), float(y), height, power * area / count)
    if style in ('lamp', 'mixed', 'dim'):
        count = 1 if style == 'dim' else int(rng.integers(1, 3))
        for _ in range(count):
            x, y = rng.uniform(-0.85, 0.85, 2) * half
            stage.light('POINT', (float(x), float(y), float(rng.uniform(0.9, 1.8))),
                        float(rng.uniform(15, 80)), white(rng), float(rng.uniform(0.02, 0.25)))
    # a soft fill so that no corner is black; by day and when dim there is little of it
    fill = float(rng.uniform(1, 8)) * (0.25 if style in ('dim', 'day') else 1.0)
    stage.light('AREA', (0.0, 0.0, height - 0.02), fill * area, white(rng),
                float(plan.size_xy[0] * 0.9), size_y=float(plan.size_xy[1] * 0.9))
    return style


def day_through_windows(
    stage: Stage, rng: np.random.Generator, plan: RoomPlan, style: str
) -> bool:
    """Sky light in front of the windows, and often a sun that shines through one of them.

    Returns:
        Whether there is a window that gives light.
    """
    windows = [o for o in plan.openings if o.what in ('window', 'pane')]
    if not windows or (style == 'dim' and rng.uniform() < 0.7):
        return False
    colour = white(rng)
    strength = float(np.exp(rng.uniform(np.log(15), np.log(90))))
    for window in windows:
        inward = SIDES[window.side][0]
        x, y = plan.on_wall(window.side, window.middle, 0.12)
        stage.light('AREA', (x, y, window.low + window.height / 2),
                    strength * window.width * window.height, colour, window.width,
                    (*inward, float(rng.uniform(-0.5, 0.0))), window.height)
    holes = [o for o in windows if o.what == 'window']
    if holes and rng.uniform() < (0.75 if style == 'day' else 0.25):
        window = holes[int(rng.integers(len(holes)))]
        (nx, ny), (ax, ay) = SIDES[window.side]
        skew, fall = float(rng.normal(0, 0.5)), float(rng.uniform(0.3, 1.3))
        stage.light('SUN', (0.0, 0.0, 5.0), float(np.exp(rng.uniform(np.log(3), np.log(30)))),
                    (1.0, float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.5, 0.95))),
                    float(np.radians(rng.uniform(0.5, 3))),
                    (nx + ax * skew, ny + ay * skew, -fall))
    return True


def _panels(stage: Stage, rng: np.random.Generator, plan: RoomPlan, power: float) -> None:
    """Flat lamps in a row or a grid under the ceiling; the body is seen, an area light shines."""
    width, depth = (float(v) for v in (rng.choice([0.15, 0.3, 0.6]), rng.choice([0.6, 1.2])))
    counts = [max(1, min(4, round(side / rng.uniform(1.8, 3.5)))) for side in plan.size_xy]
    if rng.uniform() < 0.4:
        counts = [1, 1]
    glow = float(np.exp(rng.uniform(np.log(1.5), np.log(8))))
    colour = white(rng)
    body = stage.material(rng, colour=colour, emission=glow)
    frame = stage.material(rng, colour=(0.8, 0.8, 0.8))
    turned = rng.uniform() < 0.5
    hang = float(rng.choice([0.0, 0.0, rng.uniform(0.05, 0.5)]))
    z = plan.height - 0.03 - hang
    off = rng.uniform() < 0.15
    for i in range(counts[0]):
        for j in range(counts[1]):
            x = ((i + 0.5) / counts[0] - 0.5) * plan.size_xy[0]
            y = ((j + 0.5) / counts[1] - 0.5) * plan.size_xy[1]
            spot = Footprint(x, y, width, depth, float(np.pi / 2 if turned else 0))
            block = shapes.Block((-width / 2, -depth / 2, 0), (width, depth, 0.025))
            stage.blocks([block], spot, z, [frame if off else body], label='lamp')
            stage.light('AREA', (x, y, z - 0.01), power / (counts[0] * counts[1]), colour,
                        depth if turned else width, size_y=width if turned else depth)


def _pendant(
    stage: Stage, rng: np.random.Generator, x: float, y: float, height: float, power: float
) -> None:
    """A bulb on a cable, in a shade at times."""
    hang = float(rng.uniform(0.15, min(0.9, height - 1.6)))
    colour = white(rng)
    z = height - hang
    stage.light('POINT', (x, y, z), power, colour, float(rng.uniform(0.02, 0.1)))
    glow = stage.material(rng, colour=colour, emission=float(rng.uniform(1, 6)))
    if rng.uniform() < 0.6:
        wide, tall = float(rng.uniform(0.2, 0.5)), float(rng.uniform(0.12, 0.3))
        mesh = shapes.lathe(shapes.profile(rng, 'shade')).scaled((wide, wide, tall))
        stage.shape(mesh, Footprint(x, y, wide, wide, 0), z - tall / 2, [
            glow if rng.uniform() < 0.5 else stage.material(rng)], smooth=True, label='lamp')
    else:
        mesh = shapes.lathe(shapes.profile(rng, 'ball')).scaled((0.1, 0.1, 0.1))
        thing = stage.shape(mesh, Footprint(x, y, 0.1, 0.1, 0), z - 0.05, [glow], smooth=True,
                            label='lamp')
        thing.visible_shadow = False
    stage.box(Footprint(x, y, 0.012, 0.012, 0), hang, z, [stage.material(
        rng, colour=(0.1, 0.1, 0.1))], label='lamp')
