"""Meshes: sizes, closedness and texture coordinates against closed forms."""

import itertools

from depth_node.synthesis import shapes
import numpy as np
import pytest


def volume(mesh):
    """Signed volume inside a closed mesh, by the divergence theorem."""
    total = 0.0
    for face in mesh.faces:
        corners = mesh.vertices[list(face)]
        for i in range(1, len(face) - 1):
            total += np.dot(corners[0], np.cross(corners[i], corners[i + 1])) / 6
    return total


def test_boxes_have_their_volume_and_outward_faces():
    parts = [shapes.Block((0, 0, 0), (0.3, 0.2, 0.5)), shapes.Block((1, -2, 3), (0.1, 0.4, 0.2))]
    mesh = shapes.blocks(parts)
    assert volume(mesh) == pytest.approx(0.03 + 0.008)
    assert mesh.vertices.min(0) == pytest.approx([0, -2, 0])
    assert mesh.vertices.max(0) == pytest.approx([1.1, 0.2, 3.2])
    assert len(mesh.uv) == sum(len(face) for face in mesh.faces)
    assert mesh.uv.max() == pytest.approx(0.5)  # metres
    assert shapes.blocks(parts, unit_uv=True).uv.max() == 1


@pytest.mark.parametrize('kind', ['bottle', 'vase', 'cup', 'bowl', 'can', 'ball'])
@pytest.mark.parametrize('seed', range(4))
def test_turned_things_fill_the_unit_box_and_hold_water(kind, seed):
    outline = shapes.profile(np.random.default_rng(seed), kind)
    mesh = shapes.lathe(outline, segments=64)
    assert np.abs(mesh.vertices[:, :2]).max() == pytest.approx(0.5, abs=0.01)
    assert (mesh.vertices[:, 2].min(), mesh.vertices[:, 2].max()) == pytest.approx((0, 1))
    assert len(mesh.uv) == 4 * len(mesh.faces)
    # Pappus: cut into rings, the volume is the sum of the frusta of the outline
    frusta = sum(np.pi / 3 * (b[1] - a[1]) * (a[0]**2 + a[0] * b[0] + b[0]**2)
                 for a, b in itertools.pairwise(outline))
    assert volume(mesh) == pytest.approx(frusta, rel=0.01)
    assert volume(mesh) > 0


def test_unknown_outline_is_refused():
    with pytest.raises(ValueError, match='expected bottle'):
        shapes.profile(np.random.default_rng(0), 'teapot')


def test_lumps_fill_the_unit_box():
    mesh = shapes.lump(np.random.default_rng(2), 4.0, 0.05).scaled((0.4, 0.2, 0.1))
    assert mesh.vertices.min(0) == pytest.approx([-0.2, -0.1, 0])
    assert mesh.vertices.max(0) == pytest.approx([0.2, 0.1, 0.1])


def test_a_tube_keeps_its_distance_from_the_path():
    t = np.linspace(0, 1, 200)
    path = np.c_[t, 0.2 * np.sin(6 * t), np.full(200, 0.05)]
    mesh = shapes.tube(path, 0.01)
    distance = np.linalg.norm(mesh.vertices[:, None] - path[None], axis=-1).min(1)
    assert distance == pytest.approx(np.full(len(distance), 0.01), rel=0.05)


def test_holes_are_left_out_of_a_wall_and_nothing_else():
    holes = [(-1.0, 0.2, 0.0, 2.0), (0.9, 1.5, 0.8, 1.9)]
    cells = shapes.wall_cells((4.0, 2.6), holes)
    areas = (cells[:, 1] - cells[:, 0]) * (cells[:, 3] - cells[:, 2])
    assert areas.sum() == pytest.approx(4.0 * 2.6 - 1.2 * 2.0 - 0.6 * 1.1)
    t, z = np.random.default_rng(0).uniform((-2, 0), (2, 2.6), (400, 2)).T
    covered = ((cells[:, :1] < t) & (t < cells[:, 1:2]) & (cells[:, 2:3] < z)
               & (z < cells[:, 3:])).sum(0)
    inside = sum((h[0] < t) & (t < h[1]) & (h[2] < z) & (z < h[3]) for h in holes)
    assert np.array_equal(covered, 1 - inside)


def test_a_hole_as_large_as_the_wall_leaves_nothing():
    assert shapes.wall_cells((2.0, 2.0), [(-1, 1, 0, 2)]).shape == (0, 4)
