"""Frames in volume: the same scenes as Cycles renders, by ray casting and a simple model of light.

Several times as many frames a minute as path tracing (docs/synthesis.md), each of which looks
less real: direct light with soft shadows, one ambient term with occlusion, highlights and one
mirror reflection.
Every view also gets other colours, pictures and lamps (domain randomisation, Tobin et al. 2017,
arXiv:1703.06907), so that many views of one scene are not one picture many times.

Needs embreex (Embree for Python) beside bpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from depth_node.synthesis import textures
from depth_node.synthesis.blender import FAR_M, RenderError, Shot, Stage, camera_normals
from depth_node.synthesis.textures import Picture
from depth_node.synthesis.viewpoints import View, focal_px
import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_LIGHT_PICKS = 4  # shadow rays a pixel
_AMBIENT_RAYS = 3  # a pixel
_POOL = 64  # pictures that any view may put on other surfaces, the same ones in every run
_BORROWED = 16  # of them, at hand in one scene
_MIRROR_ROUGHNESS = 0.35  # what is smoother reflects
_SUN_M = 1e3
_LUT = np.where(np.arange(256) / 255 <= 0.04045, np.arange(256) / 255 / 12.92,
                ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4).astype(np.float32)


def import_embree() -> tuple[Any, Any]:
    """Import embreex, or say how to get it."""
    try:
        from embreex import mesh_construction, rtcore_scene
    except ImportError as error:
        raise RenderError(
            f'embreex cannot be imported ({error}); --renderer raycast needs it beside bpy: '
            "bpy-env/bin/pip install 'embreex>=4.4'") from error
    return rtcore_scene, mesh_construction


class Tracer:
    """Triangles that rays are cast at.

    Args:
        triangles: (N, 3, 3) corners [m].
    """

    def __init__(self, triangles: _F32) -> None:
        rtcore_scene, mesh_construction = import_embree()
        self._scene = rtcore_scene.EmbreeScene()
        self._mesh = mesh_construction.TriangleMesh(
            self._scene, np.ascontiguousarray(triangles, np.float32))

    def hit(self, origin: _F32, direction: _F32) -> tuple[NDArray[np.int32], _F32, _F32]:
        """Nearest triangle of each ray.

        Args:
            origin: (N, 3).
            direction: (N, 3) unit vectors.

        Returns:
            Index of the triangle (-1: none), (N,); distance [m], (N,); weights of its second and
            third corner, (N, 2).
        """
        found = self._scene.run(np.ascontiguousarray(origin, np.float32),
                                np.ascontiguousarray(direction, np.float32), output=1)
        return found['primID'], found['tfar'], np.stack([found['u'], found['v']], 1)

    def free(self, origin: _F32, direction: _F32, reach: _F32) -> _F32:
        """1 where nothing lies within `reach` (N,) [m] along a ray, else 0."""
        blocked = self._scene.run(
            np.ascontiguousarray(origin, np.float32), np.ascontiguousarray(direction, np.float32),
            np.ascontiguousarray(reach, np.float32), query='OCCLUDED')
        return np.asarray(blocked == -1, np.float32)


class Atlas:
    """Pictures with their mipmaps in one array, looked up for many points at once.

    Args:
        pictures: uint8 (H, W, 3) sRGB, first row at v = 0.
    """

    def __init__(self, pictures: list[Picture]) -> None:
        parts, self.first, self.levels = [], [], []
        start, heights, widths = [], [], []
        offset = 0
        for picture in pictures:
            self.first.append(len(start))
            while True:
                height, width = picture.shape[:2]
                start.append(offset)
                heights.append(height)
                widths.append(width)
                parts.append(picture.reshape(-1, 3))
                offset += height * width
                if max(height, width) <= 2:
                    break
                picture = cv2.resize(picture, (max(1, width // 2), max(1, height // 2)),
                                     interpolation=cv2.INTER_AREA)
            self.levels.append(len(start) - self.first[-1])
        self._texels = np.concatenate(parts) if parts else np.zeros((1, 3), np.uint8)
        self._start = np.array(start, np.int64)
        self._height, self._width = np.array(heights, np.int64), np.array(widths, np.int64)
        self.size = np.array([(heights[f], widths[f]) for f in self.first] or [(1, 1)], np.float32)
        self._first, self._levels = np.array(self.first), np.array(self.levels)

    def look_up(self, picture: NDArray[np.int64], uv: _F32, level: _F32) -> _F32:
        """Bilinear, repeated, linear RGB.

        Args:
            picture: (N,) index.
            uv: (N, 2), a picture is 1 wide and high.
            level: (N,) mipmap, not rounded up.

        Returns:
            (N, 3).
        """
        which = self._first[picture] + np.clip(level.astype(np.int64), 0,
                                               self._levels[picture] - 1)
        start, height, width = self._start[which], self._height[which], self._width[which]
        x = (uv[:, 0] - np.floor(uv[:, 0])) * width - 0.5
        y = (uv[:, 1] - np.floor(uv[:, 1])) * height - 0.5
        left, low = np.floor(x), np.floor(y)
        fx, fy = (x - left).astype(np.float32), (y - low).astype(np.float32)
        left, low = left.astype(np.int64), low.astype(np.int64)
        result = np.zeros((len(uv), 3), np.float32)
        for dy, wy in ((0, 1 - fy), (1, fy)):
            row = start + (low + dy) % height * width
            for dx, wx in ((0, 1 - fx), (1, fx)):
                texel = self._texels[row + (left + dx) % width]
                result += _LUT[texel] * (wx * wy)[:, None]
        return result


@dataclass
class _Surfaces:
    """Materials of a scene, one row each."""

    colour: _F32  # (M, 3) linear
    tint: _F32  # (M, 3) of the picture
    picture: NDArray[np.int64]  # (M,) index in the atlas, -1: plain
    scale: _F32  # (M, 2) of texture coordinates
    shift: _F32  # (M, 2)
    roughness: _F32  # (M,)
    specular: _F32  # (M,) reflectance at right angles
    emission: _F32  # (M,)


@dataclass
class _Lights:
    """Lamps of a scene, one row each."""

    centre: _F32  # (L, 3)
    across: _F32  # (L, 3) half a side of an area lamp
    along: _F32  # (L, 3)
    facing: _F32  # (L, 3) direction of an area lamp or of the sun
    radius: _F32  # (L,) of a bulb; spread of the sun at _SUN_M
    power: _F32  # (L, 3): irradiance at 1 m, or anywhere from the sun
    kind: NDArray[np.int64]  # (L,) 0 area, 1 point, 2 sun


@dataclass
class _World:
    """A scene ready to be seen."""

    tracer: Tracer
    shadows: Tracer
    corners: _F32  # (T, 3, 3)
    normals: _F32  # (T, 3, 3)
    uv: _F32  # (T, 3, 2)
    density: _F32  # (T,) texture units a metre
    surface: NDArray[np.int64]  # (T,)
    label: NDArray[np.uint8]  # (T,)
    surfaces: _Surfaces
    lights: _Lights
    atlas: Atlas
    sky: _F32  # (h, w, 3) radiance, equirectangular
    sky_turn: float
    sky_lights: bool


@dataclass
class _Look:
    """What changes between views of one world."""

    surfaces: _Surfaces
    power: _F32  # (L, 3) of the lamps
    returned: float  # light from everywhere, over what the surfaces send back
    reach: float  # of its occlusion, over the median distance


@dataclass
class _Hits:
    """What rays met."""

    known: NDArray[np.bool_]  # (N,)
    triangle: NDArray[np.int64]
    distance: _F32
    point: _F32  # (N, 3)
    normal: _F32  # (N, 3) towards the ray's origin
    albedo: _F32  # (N, 3)
    surface: NDArray[np.int64]


class RayStage(Stage):
    """A stage whose views are cast, not path-traced; see `Stage` for the arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:
        import_embree()
        super().__init__(*args, **options)
        self._rng = np.random.default_rng(0)
        self._world: _World | None = None
        self._look: _Look | None = None
        self._shapes: dict[str, dict[str, Any]] = {}  # of catalogue models, which stay
        self._kept: dict[str, Picture] = {}  # pictures of catalogue models and files
        self._drawn: dict[str, Picture] = {}  # pictures made for this scene
        self._pool: list[Picture] = []
        self._skies: dict[str, _F32] = {}

    def clear(self) -> None:
        """See `Stage.clear`."""
        super().clear()
        self._drawn.clear()
        self._world = self._look = None

    def seed(self, value: int) -> None:
        """Seed the rays and what changes between views."""
        self._rng = np.random.default_rng(value)

    def update(self) -> None:
        """See `Stage.update`."""
        super().update()
        self._world = self._look = None

    def shoot(self, view: View) -> Shot:
        """See `Stage.shoot`."""
        if self._world is None:
            super().update()  # things have no place before
            self._world = self._collect()
        if self._look is None:
            self._look = _draw_look(self._world, self._rng)
        return _Picture(self._world, self._look, self._rng, view, self.size_hw,
                        self.channels).take()

    def new_look(self) -> None:
        """See `Stage.new_look`."""
        self._look = None

    def _image(self, picture: Picture | Path) -> Any:
        if isinstance(picture, Path):
            return super()._image(picture)
        image = self._bpy.data.images.new('t', 1, 1)  # a place to keep its name
        self._temporary.append(image)
        self._drawn[image.name] = np.ascontiguousarray(picture[::-1])
        return image

    # -- from Blender's scene to arrays --------------------------------------------------------

    def _collect(self) -> _World:
        catalogue = {mesh.name for mesh in self._meshes.values() if mesh is not None}
        parts: list[dict[str, Any]] = []
        materials: dict[str, int] = {}
        rows: list[Any] = []
        lamps = []
        for thing in self.scene.objects:
            if thing.type == 'LIGHT':
                lamps.append(thing)
            if thing.type != 'MESH':
                continue
            mesh = thing.data
            if mesh.name in catalogue:
                if mesh.name not in self._shapes:
                    self._shapes[mesh.name] = _triangles(mesh)
                local = self._shapes[mesh.name]
            else:
                local = _triangles(mesh)
            if not len(local['corners']):
                continue
            slots = []
            for slot in thing.material_slots:
                key = slot.material.name if slot.material is not None else ''
                if key not in materials:
                    materials[key] = len(rows)
                    rows.append(slot.material)
                slots.append(materials[key])
            if not slots:
                slots = [materials.setdefault('', len(rows))]
                if slots[0] == len(rows):
                    rows.append(None)
            matrix = np.array(thing.matrix_world, np.float32)
            turn = matrix[:3, :3]
            parts.append({
                'corners': local['corners'] @ turn.T + matrix[:3, 3],
                'normals': local['normals'] @ turn.T,
                'uv': local['uv'],
                'surface': np.array(slots)[np.minimum(local['slot'], len(slots) - 1)],
                'label': np.full(len(local['uv']), thing.pass_index, np.uint8),
                'dark': np.full(len(local['uv']), thing.visible_shadow),
            })
        if not parts:
            raise RenderError('the scene has no surfaces to cast rays at')
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        corners = joined['corners'].astype(np.float32)
        tracer = Tracer(corners)
        shadows = tracer if joined['dark'].all() else Tracer(corners[joined['dark']])
        surfaces, atlas = self._surfaces(rows)
        sky, turned, shines = self._sky()
        return _World(
            tracer, shadows, corners, joined['normals'].astype(np.float32),
            joined['uv'].astype(np.float32), _density(corners, joined['uv']),
            joined['surface'].astype(np.int64), joined['label'], surfaces, _lights(lamps), atlas,
            sky, turned, shines)

    def _surfaces(self, rows: list[Any]) -> tuple[_Surfaces, Atlas]:
        count = len(rows)
        table = _Surfaces(
            np.full((count, 3), 0.4, np.float32), np.ones((count, 3), np.float32),
            np.full(count, -1, np.int64),
            np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32),
            np.full(count, 0.6, np.float32), np.full(count, 0.04, np.float32),
            np.zeros(count, np.float32))
        pictures: list[Picture] = []
        place: dict[str, int] = {}
        for row, material in enumerate(rows):
            shader = None if material is None or material.node_tree is None else next(
                (n for n in material.node_tree.nodes if n.type == 'BSDF_PRINCIPLED'), None)
            if shader is None:
                continue
            base = shader.inputs['Base Color']
            table.colour[row] = base.default_value[:3]
            table.roughness[row] = shader.inputs['Roughness'].default_value
            table.specular[row] = 0.08 * shader.inputs['Specular IOR Level'].default_value
            glow = shader.inputs['Emission Color']
            if glow.is_linked or max(glow.default_value[:3]) > 0:
                table.emission[row] = shader.inputs['Emission Strength'].default_value
            image = getattr(base.links[0].from_node, 'image', None) if base.is_linked else None
            if image is None:
                continue
            if image.name not in place:
                place[image.name] = len(pictures)
                pictures.append(self._picture(image))
            table.picture[row] = place[image.name]
            vector = base.links[0].from_node.inputs['Vector']
            if vector.is_linked and vector.links[0].from_node.type == 'MAPPING':
                mapping = vector.links[0].from_node
                table.scale[row] = mapping.inputs['Scale'].default_value[:2]
                table.shift[row] = mapping.inputs['Location'].default_value[:2]
        if not self._pool:  # not those of earlier scenes: a scene is the same in any order
            self._pool = _borrowable()
        pictures += [self._pool[int(i)] for i in self._rng.permutation(_POOL)[:_BORROWED]]
        return table, Atlas(pictures)

    def _picture(self, image: Any) -> Picture:
        if image.name in self._drawn:
            return self._drawn[image.name]
        if image.name not in self._kept:
            width, height = image.size
            values = np.empty(width * height * image.channels, np.float32)
            image.pixels.foreach_get(values)
            values = values.reshape(height, width, image.channels)
            colour = values[..., :3] if image.channels >= 3 else np.repeat(values[..., :1], 3, -1)
            self._kept[image.name] = (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)
        return self._kept[image.name]

    def _sky(self) -> tuple[_F32, float, bool]:
        world = self.scene.world
        shines = bool(world.cycles_visibility.diffuse)
        nodes = {node.type: node for node in world.node_tree.nodes}
        background = nodes.get('BACKGROUND')
        if background is None:
            return np.zeros((1, 1, 3), np.float32), 0.0, False
        strength = background.inputs['Strength'].default_value
        if 'TEX_ENVIRONMENT' not in nodes:
            colour = np.array(background.inputs['Color'].default_value[:3], np.float32)
            return (colour * strength).reshape(1, 1, 3), 0.0, shines
        image = nodes['TEX_ENVIRONMENT'].image
        if image.name not in self._skies:
            width, height = image.size
            values = np.empty(width * height * 4, np.float32)
            image.pixels.foreach_get(values)
            whole = values.reshape(height, width, 4)[..., :3]
            self._skies[image.name] = cv2.resize(whole, (512, 256), interpolation=cv2.INTER_AREA)
        turn = float(nodes['MAPPING'].inputs['Rotation'].default_value[2])
        return self._skies[image.name] * np.float32(strength), turn, shines


def _borrowable() -> list[Picture]:
    """Pictures of all uses, the same in every process."""
    rng = np.random.default_rng(0)
    uses = sorted(textures.USES)
    return [textures.make(rng, textures.draw_kind(rng, uses[i % len(uses)]))
            for i in range(_POOL)]


def _triangles(mesh: Any) -> dict[str, Any]:
    """Corners, normals and texture coordinates of a mesh's triangles, in its own frame."""
    mesh.calc_loop_triangles()
    count = len(mesh.loop_triangles)
    vertices = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get('co', vertices)
    corner = np.empty(count * 3, np.int32)
    mesh.loop_triangles.foreach_get('vertices', corner)
    loops = np.empty(count * 3, np.int32)
    mesh.loop_triangles.foreach_get('loops', loops)
    slot = np.empty(count, np.int32)
    mesh.loop_triangles.foreach_get('material_index', slot)
    normals = np.empty(len(mesh.loops) * 3, np.float32)
    mesh.corner_normals.foreach_get('vector', normals)
    uv = np.zeros((len(mesh.loops), 2), np.float32)
    if mesh.uv_layers.active is not None:
        flat = np.empty(len(mesh.loops) * 2, np.float32)
        mesh.uv_layers.active.data.foreach_get('uv', flat)
        uv = flat.reshape(-1, 2)
    return {'corners': vertices.reshape(-1, 3)[corner].reshape(-1, 3, 3),
            'normals': normals.reshape(-1, 3)[loops].reshape(-1, 3, 3),
            'uv': uv[loops].reshape(-1, 3, 2), 'slot': slot}


def _density(corners: _F32, uv: _F32) -> _F32:
    """Texture units a metre of each triangle, by the ratio of the areas."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(a, b), axis=1)
    p, q = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    covered = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])
    return np.sqrt(covered / np.maximum(area, 1e-12)).astype(np.float32)


def _lights(lamps: list[Any]) -> _Lights:
    """Blender's lamps, with their power as irradiance at a metre's distance.

    A lamp of P watts: a flat one sends P/pi along its axis, a bulb P/(4 pi) to all sides.
    """
    rows: dict[str, list[Any]] = {name: [] for name in _Lights.__annotations__}
    for thing in lamps:
        data = thing.data
        matrix = np.array(thing.matrix_world, np.float32)
        colour = np.array(data.color, np.float32) * data.energy
        side_x = side_y = radius = 0.0
        if data.type == 'AREA':
            side_x = data.size
            side_y = data.size_y if data.shape == 'RECTANGLE' else data.size
            kind, power = 0, colour / np.pi
        elif data.type == 'POINT':
            kind, power, radius = 1, colour / (4 * np.pi), data.shadow_soft_size
        else:
            kind, power, radius = 2, colour, _SUN_M * np.tan(data.angle / 2)
        rows['centre'].append(matrix[:3, 3])
        rows['across'].append(matrix[:3, 0] * side_x / 2)
        rows['along'].append(matrix[:3, 1] * side_y / 2)
        rows['facing'].append(-matrix[:3, 2])
        rows['radius'].append(radius)
        rows['power'].append(power)
        rows['kind'].append(kind)
    count = len(lamps)
    return _Lights(
        *(np.array(rows[name], np.float32).reshape(count, 3)
          for name in ('centre', 'across', 'along', 'facing')),
        np.array(rows['radius'], np.float32),
        np.array(rows['power'], np.float32).reshape(count, 3),
        np.array(rows['kind'], np.int64))


def _dot(a: _F32, b: _F32) -> _F32:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _unit(vectors: _F32) -> _F32:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), 1e-12)[..., None]


class _Picture:
    """One view of a world."""

    def __init__(self, world: _World, look: _Look, rng: np.random.Generator, view: View,
                 size_hw: tuple[int, int], channels: tuple[str, ...]) -> None:
        self._world, self._look, self._rng, self._view = world, look, rng, view
        self._size_hw, self._channels = size_hw, channels
        self._focal = focal_px(size_hw[1], view.hfov_deg)

    def take(self) -> Shot:
        """Cast all rays and shade what they meet."""
        height, width = self._size_hw
        turn = self._view.camera_to_world[:3, :3].astype(np.float32)
        centres = self._rays()
        direction = centres @ turn.T
        hits = self._meet(direction, self._pixel_angle(centres))
        light, shine = self._lit(hits, direction)
        light += self._openness(hits)[:, None] * self._ambient_level(
            (hits.albedo * light)[hits.known])
        albedo, own_light = self._surface_of(hits, direction)
        mirrored = self._mirrored(hits, direction, light)
        # light changes slowly within a pixel, borders and pictures do not: only they are sampled
        # again, at another place, and not where one of the two rays meets nothing
        others = self._rays(jitter=True)
        away = others @ turn.T
        again = self._meet(away, self._pixel_angle(others))
        alike = (again.known == hits.known)[:, None]
        for mean, second in zip((albedo, own_light), self._surface_of(again, away), strict=True):
            mean += np.where(alike, second - mean, 0) / 2
        distance = np.where(hits.known, hits.distance, np.inf)
        depth = (distance * centres[:, 2]).reshape(height, width)
        normal = hits.normal.reshape(height, width, 3)
        lit, gloss = np.split(_smoothed(
            np.hstack([light, shine]).reshape(height, width, 6), depth, normal), 2, -1)
        radiance = (albedo.reshape(lit.shape) * lit / np.pi + gloss
                    + (own_light + mirrored).reshape(lit.shape))
        inside = depth < FAR_M
        normals = labels = None
        if 'normals' in self._channels:
            normals = camera_normals(normal, self._view.camera_to_world[:3, :3])
            normals[~inside] = 0
        if 'labels' in self._channels:
            label = self._world.label[hits.triangle].reshape(height, width)
            labels = np.where(inside, label, 0).astype(np.uint8)
        return Shot(radiance.astype(np.float32),
                    np.where(inside, depth, np.nan).astype(np.float32), normals, labels)

    def _rays(self, *, jitter: bool = False) -> _F32:
        """(H W, 3) unit directions in the optical frame: pixel centres, or random places."""
        height, width = self._size_hw
        v, u = np.mgrid[:height, :width].astype(np.float32)
        if jitter:
            u += self._rng.random(u.shape, np.float32) - 0.5
            v += self._rng.random(v.shape, np.float32) - 0.5
        return _unit(np.stack([(u - (width - 1) / 2) / self._focal,
                               (v - (height - 1) / 2) / self._focal,
                               np.ones_like(u)], -1).reshape(-1, 3))

    def _surface_of(self, hits: _Hits, direction: _F32) -> tuple[_F32, _F32]:
        """Albedo and what the surface itself shines; a ray that met nothing shows the sky."""
        known = hits.known[:, None]
        shining = hits.albedo * self._look.surfaces.emission[hits.surface][:, None]
        return (np.where(known, hits.albedo, 0),
                np.where(known, shining, self._sky_at(direction)))

    def _pixel_angle(self, own: _F32) -> _F32:
        return own[:, 2] / self._focal

    def _meet(self, direction: _F32, angle: _F32, origin: _F32 | None = None) -> _Hits:
        """Cast rays, from the camera unless told otherwise.

        Args:
            direction: (N, 3) unit vectors.
            angle: (N,) width of a ray [rad], for the mipmaps.
            origin: (N, 3).
        """
        world, table = self._world, self._look.surfaces
        if origin is None:
            origin = np.broadcast_to(np.array(self._view.position, np.float32), direction.shape)
        index, distance, weights = world.tracer.hit(origin, direction)
        known = index >= 0
        triangle = np.where(known, index, 0).astype(np.int64)
        second, third = weights[:, :1], weights[:, 1:]
        first = 1 - second - third
        at = np.where(known, distance, 0).astype(np.float32)
        normals = world.normals[triangle]
        normal = _unit(normals[:, 0] * first + normals[:, 1] * second + normals[:, 2] * third)
        normal *= np.where(_dot(normal, direction) > 0, -1, 1)[:, None]
        surface = world.surface[triangle]
        albedo = table.colour[surface]
        picture = table.picture[surface]
        textured = np.flatnonzero(known & (picture >= 0))
        if len(textured):
            own = surface[textured]
            corners = world.uv[triangle[textured]]
            uv = (corners[:, 0] * first[textured] + corners[:, 1] * second[textured]
                  + corners[:, 2] * third[textured]) * table.scale[own] + table.shift[own]
            size = world.atlas.size[picture[textured]]
            texels = world.density[triangle[textured]] * np.sqrt(
                np.abs(table.scale[own].prod(1)) * size.prod(1))
            slant = np.maximum(np.abs(_dot(normal[textured], direction[textured])), 0.1)
            spread = at[textured] * angle[textured] * texels / np.sqrt(slant)
            level = np.log2(np.maximum(spread, 1)) + self._rng.random(len(own), np.float32) * 0.7
            albedo[textured] = world.atlas.look_up(picture[textured], uv, level) * table.tint[own]
        return _Hits(known, triangle, at, origin + direction * at[:, None], normal,
                     np.minimum(albedo, 0.9), surface)

    def _lit(self, hits: _Hits, direction: _F32) -> tuple[_F32, _F32]:
        """Irradiance from the lamps (N, 3), and the radiance of their highlights (N, 3)."""
        lights, table = self._world.lights, self._look.surfaces
        count = len(hits.known)
        light, shine = np.zeros((2, count, 3), np.float32)
        if not len(lights.kind) or not hits.known.any():
            return light, shine
        start = hits.point + hits.normal * (2e-4 + 1e-4 * hits.distance)[:, None]
        chance = self._light_chances(hits, start)
        order = np.cumsum(chance)
        rough = np.maximum(table.roughness[hits.surface], 0.1)
        sharp = np.minimum(2 / rough**4 - 2, 300).astype(np.float32)
        specular = table.specular[hits.surface]
        for pick in range(_LIGHT_PICKS):
            draw = (pick + self._rng.random(count, np.float32)) / _LIGHT_PICKS * order[-1]
            which = np.minimum(np.searchsorted(order, draw), len(order) - 1)
            towards, distance, power = self._towards(which, start)
            cosine = np.maximum(_dot(hits.normal, towards), 0)
            strength = np.where(hits.known, cosine * power, 0)
            needed = np.flatnonzero(strength > 0)
            seen = np.zeros(count, np.float32)
            seen[needed] = self._world.shadows.free(
                start[needed], towards[needed], distance[needed] * 0.999)
            share = seen / (chance[which] * _LIGHT_PICKS)
            arriving = self._look.power[which] * (strength * share)[:, None]
            light += arriving
            half = _unit(towards - direction)
            lobe = np.maximum(_dot(half, hits.normal), 0) ** sharp * (sharp + 8) / (8 * np.pi)
            shine += arriving * np.minimum(specular * lobe, 3)[:, None]
        return light, shine

    def _light_chances(self, hits: _Hits, start: _F32) -> _F32:
        """How often each lamp is asked, by what it gives without shadows."""
        known = np.flatnonzero(hits.known)
        some = known[self._rng.integers(0, len(known), 200)]
        count = len(self._world.lights.kind)
        given = np.empty(count, np.float32)
        for lamp in range(count):
            towards, _, power = self._towards(np.full(len(some), lamp), start[some])
            cosine = np.maximum(_dot(hits.normal[some], towards), 0)
            given[lamp] = (cosine * power).mean() * self._look.power[lamp].mean()
        given += max(float(given.sum()), 1e-9) * 0.1 / count
        return given / given.sum()

    def _towards(self, which: NDArray[np.int64], start: _F32) -> tuple[_F32, _F32, _F32]:
        """Direction to a random point of a lamp, distance to it, and what arrives of its power."""
        lights = self._world.lights
        count = len(which)
        a, b = self._rng.random((2, count, 1), np.float32) * 2 - 1
        kind = lights.kind[which]
        sphere = self._rng.standard_normal((count, 3), np.float32)
        centre = np.where((kind == 2)[:, None], start - lights.facing[which] * _SUN_M,
                          lights.centre[which])
        spot = (centre + lights.across[which] * a + lights.along[which] * b
                + _unit(sphere) * lights.radius[which][:, None])
        towards = spot - start
        squared = np.maximum(_dot(towards, towards), 1e-4)
        distance = np.sqrt(squared)
        towards = towards / distance[:, None]
        facing = np.maximum(-_dot(lights.facing[which], towards), 0)
        power = np.select([kind == 0, kind == 1], [facing / squared, 1 / squared], 1.0)
        # a bulb is not inside what it lights: its own size bounds how near it is
        return towards, distance - (kind == 1) * lights.radius[which], power.astype(np.float32)

    def _ambient_level(self, surface: _F32) -> _F32:
        """Irradiance (3,) that comes from everywhere, after the light that surfaces send back."""
        level = np.zeros(3, np.float32)
        if len(surface):
            level = surface.mean(0) * np.float32(self._look.returned)
        if self._world.sky_lights:
            level = level + self._world.sky.mean((0, 1)) * np.float32(np.pi)
        return np.maximum(level, 1e-6).astype(np.float32)

    def _openness(self, hits: _Hits) -> _F32:
        """Share of the rays around the normal (by cosine) that meet nothing nearby, (N,)."""
        count = len(hits.known)
        reach = np.float32(np.median(hits.distance[hits.known]) * self._look.reach
                           if hits.known.any() else 1.0)
        start = hits.point + hits.normal * (2e-4 + 1e-4 * hits.distance)[:, None]
        open_ = np.zeros(count, np.float32)
        needed = np.flatnonzero(hits.known)
        for _ in range(_AMBIENT_RAYS):
            out = _unit(self._rng.standard_normal((len(needed), 3), np.float32))
            out = _unit(out + hits.normal[needed] * np.float32(1.001))
            far = reach * self._rng.random(len(needed), np.float32) ** np.float32(0.5)
            open_[needed] += self._world.tracer.free(start[needed], out, far)
        return open_ / _AMBIENT_RAYS

    def _mirrored(self, hits: _Hits, direction: _F32, light: _F32) -> _F32:
        """Radiance (N, 3) that smooth surfaces reflect (Schlick 1994's approximation)."""
        table = self._look.surfaces
        result = np.zeros_like(direction)
        rough = table.roughness[hits.surface]
        smooth = np.flatnonzero(hits.known & (rough < _MIRROR_ROUGHNESS))
        if not len(smooth):
            return result
        normal, along = hits.normal[smooth], direction[smooth]
        blur = self._rng.standard_normal(normal.shape, np.float32) * (
            rough[smooth] ** 2 * 0.6)[:, None]
        facing = _unit(normal + blur)
        cosine = -_dot(along, facing)
        out = _unit(along + 2 * cosine[:, None] * facing)
        start = hits.point[smooth] + normal * (2e-4 + 1e-4 * hits.distance[smooth])[:, None]
        met = self._meet(out, np.full(len(smooth), 2 / self._focal, np.float32), start)
        typical = light[hits.known].mean(0)
        seen = met.albedo * (typical / np.pi + table.emission[met.surface][:, None])
        seen = np.where(met.known[:, None], seen, self._sky_at(out))
        base = table.specular[hits.surface[smooth]]
        reflected = base + (1 - base) * np.clip(1 - np.abs(cosine), 0, 1) ** 5
        result[smooth] = seen * (reflected * (1 - rough[smooth]))[:, None]
        return result

    def _sky_at(self, direction: _F32) -> _F32:
        """Radiance of the sky picture (equirectangular, Blender's orientation), (N, 3)."""
        sky = self._world.sky
        height, width = sky.shape[:2]
        turn = self._world.sky_turn
        c, s = np.cos(turn), np.sin(turn)
        x = direction[:, 0] * c - direction[:, 1] * s
        y = direction[:, 0] * s + direction[:, 1] * c
        column = (0.5 - np.arctan2(y, -x) / (2 * np.pi)) * width
        row = (np.arcsin(np.clip(direction[:, 2], -1, 1)) / np.pi + 0.5) * height
        return sky[np.clip(row.astype(int), 0, height - 1), column.astype(int) % width]


def _draw_look(world: _World, rng: np.random.Generator) -> _Look:
    return _Look(_restyled(world.surfaces, world.atlas, rng), _relit(world.lights, rng),
                 float(rng.uniform(0.5, 1.6)), float(rng.uniform(0.15, 0.9)))


def _restyled(table: _Surfaces, atlas: Atlas, rng: np.random.Generator) -> _Surfaces:
    """The surfaces with other colours and pictures, different in every view."""
    count = len(table.roughness)
    colour, tint, picture = table.colour.copy(), table.tint.copy(), table.picture.copy()
    amount = rng.choice([0.0, 0.25, 0.6], p=[0.4, 0.4, 0.2])
    plain = (picture < 0) & (table.emission == 0) & (rng.random(count) < amount)
    drawn = np.exp(rng.normal(-1.3, 0.9, (count, 1)) + rng.normal(0, 0.22, (count, 3)))
    colour[plain] = np.clip(drawn[plain], 0.005, 0.9)
    toned = rng.random(count) < amount
    tint[toned] = np.exp(rng.normal(-0.1, 0.35, (int(toned.sum()), 1))
                         + rng.normal(0, 0.12, (int(toned.sum()), 3)))
    borrowed = np.flatnonzero((picture >= 0) & (table.emission == 0)
                              & (rng.random(count) < amount * 0.4))
    if len(atlas.first):
        picture[borrowed] = rng.integers(0, len(atlas.first), len(borrowed))
    rough = np.clip(table.roughness * np.exp(rng.normal(0, 0.3 * amount, count)), 0.05, 1)
    return _Surfaces(colour, tint, picture, table.scale, table.shift, rough.astype(np.float32),
                     table.specular, table.emission)


def _relit(lights: _Lights, rng: np.random.Generator) -> _F32:
    """The lamps' power with other brightness and colour in every view; some are off."""
    count = len(lights.kind)
    level = np.exp(rng.normal(0, 0.7, (count, 1)) + rng.normal(0, 0.08, (count, 3)))
    off = rng.random(count) < 0.15
    if count and not off.all():
        level[off] = 0.02
    return (lights.power * level).astype(np.float32)


def _smoothed(light: _F32, depth: _F32, normal: _F32) -> _F32:
    """Light (H, W, C) freed of the noise of few rays, within a surface.

    Three passes of an a-trous filter guided by depth and normals (Dammertz et al. 2010,
    doi:10.2312/EGGH/HPG10/067-075).
    """
    height, width = depth.shape
    inverse = 1 / np.maximum(np.where(np.isfinite(depth), depth, FAR_M), 1e-3)
    for step in (1, 2, 3):
        total = light.copy()
        weight = np.ones((height, width, 1), np.float32)
        pads = ((step, step), (step, step))
        far_inverse = np.pad(inverse, pads, mode='edge')
        far_normal = np.pad(normal, (*pads, (0, 0)), mode='edge')
        far_light = np.pad(light, (*pads, (0, 0)), mode='edge')
        for dy in (-step, 0, step):
            for dx in (-step, 0, step):
                if dy == dx == 0:
                    continue
                rows = slice(step + dy, step + dy + height)
                columns = slice(step + dx, step + dx + width)
                near = np.abs(far_inverse[rows, columns] / inverse - 1) < 0.04
                alike = _dot(far_normal[rows, columns], normal) > 0.9
                share = (near & alike)[..., None].astype(np.float32)
                total += far_light[rows, columns] * share
                weight += share
        light = total / weight
    return light
