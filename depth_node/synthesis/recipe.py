"""What is made: the version of the recipe, kinds of scenes, classes of surfaces.

A data folder holds the scenes of one recipe: `generate.prepare` refuses to continue another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECIPE = 3  # raise it when the same seed would give other frames
RENDERERS = ('cycles', 'raycast')  # path-traced, and about four times as fast
CHANNELS = ('normals', 'labels')  # what can be written beside colour and depth
SPLITS = ('train', 'val', 'test')

# Classes of the label channel; the picture stores index + 1, 0 is unknown (background).
CLASSES = (
    'floor', 'ceiling', 'wall', 'window', 'door', 'cabinet', 'table', 'chair', 'shelf', 'person',
    'picture', 'lamp', 'rug', 'object', 'furniture',
)
ROLE_CLASS = {
    'small': 'object', 'table': 'table', 'chair': 'chair', 'wall': 'furniture',
    'floor': 'furniture', 'person': 'person', 'mounted': 'furniture', 'door': 'door',
}


@dataclass(frozen=True)
class Kind:
    """A kind of scene.

    Attributes:
        table: it shows a table top (or a part of one) rather than a room.
        share: weight among the kinds of its family.
        views: frames of one scene.
    """

    table: bool
    share: float
    views: int


KINDS = {
    'room': Kind(False, 0.36, 7),
    'corridor': Kind(False, 0.14, 5),
    'office': Kind(False, 0.18, 7),
    'kitchen': Kind(False, 0.16, 7),
    'clutter': Kind(False, 0.16, 7),
    'table': Kind(True, 0.72, 6),
    'close': Kind(True, 0.28, 6),
}


@dataclass(frozen=True)
class Limits:
    """What a view must keep to [m]: nearest point, median depth, and farthest over nearest."""

    nearest: float
    middle: float
    spread: float


# By the style of the view: 'near' looks at one thing of a room, 'close' at things on a table.
LIMITS = {
    'room': Limits(0.22, 0.7, 1.15),
    'near': Limits(0.16, 0.32, 1.15),
    'table': Limits(0.11, 0.25, 1.15),
    'close': Limits(0.08, 0.14, 1.12),
}


def draw_kind(rng: np.random.Generator, table_share: float) -> str:
    """Draw the kind of a scene; `table_share` of them are tables and close-ups."""
    table = bool(rng.uniform() < table_share)
    names = [name for name, kind in KINDS.items() if kind.table == table]
    shares = np.array([KINDS[name].share for name in names])
    return str(rng.choice(names, p=shares / shares.sum()))
