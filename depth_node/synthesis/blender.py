"""Everything that touches Blender: models, materials, lights, ray probes and rendering.

bpy is imported when a `Stage` is made, never at import time. bpy keeps one global scene per
process, so a process has one Stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Any

from depth_node.synthesis import shapes, textures
from depth_node.synthesis.catalogue import Asset, unpack
from depth_node.synthesis.layout import Footprint
from depth_node.synthesis.recipe import CLASSES, ROLE_CLASS
from depth_node.synthesis.viewpoints import View, focal_px, ray_directions
import numpy as np
from numpy.typing import NDArray

FAR_M = 50.0  # what lies further away, or is background, has unknown depth
_MAX_TEXTURE_PX = 512
_OPTICAL_TO_BLENDER = np.diag([1.0, -1.0, -1.0, 1.0])  # Blender's cameras look along -z, y up


class RenderError(RuntimeError):
    """Blender is missing or did not deliver a frame."""


def import_bpy() -> Any:
    """Import bpy, or say how to get it."""
    try:
        import bpy
    except ImportError as error:
        raise RenderError(
            f'bpy, Blender as a Python module, cannot be imported ({error}); install it into a '
            "Python 3.11 environment of its own: pip install 'bpy==5.0.1' OpenEXR "
            "opencv-python-headless tqdm PyYAML (and, on Debian, libsm6 libxi6 libxkbcommon0 "
            'libxrender1 libxfixes3 libgl1), then name it with --python'
        ) from error
    return bpy


def sky_files() -> list[Path]:
    """The CC0 environment pictures that come with Blender."""
    bpy = import_bpy()
    folder = Path(bpy.utils.system_resource('DATAFILES')) / 'studiolights' / 'world'
    return sorted(folder.glob('*.exr'))


class Stage:
    """One Blender scene that is filled, rendered and cleared again and again.

    Args:
        size_hw: height and width of the frames.
        spp: path samples a pixel.
        cache_dir: where the furniture archives are unpacked.
        archives: archive stem -> .sh3f file.
        pictures: photographs of surfaces used beside the procedural textures.
        channels: of `recipe.CHANNELS`, rendered beside colour and depth.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        spp: int,
        cache_dir: Path,
        archives: dict[str, Path],
        pictures: list[Path] | None = None,
        channels: tuple[str, ...] = (),
    ) -> None:
        self._bpy = import_bpy()
        self.size_hw = size_hw
        self.used: set[str] = set()
        self.pictures = pictures or []
        self._cache_dir = cache_dir
        self._archives = archives
        self.channels = channels
        self._panoramas: list[textures.Picture] = []
        self._meshes: dict[str, Any] = {}
        self._temporary: list[Any] = []
        self._exr = Path(tempfile.mkdtemp(prefix='depth_node_')) / 'frame.exr'
        self._bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = self.scene = self._bpy.context.scene
        scene.render.engine = 'CYCLES'
        scene.render.resolution_y, scene.render.resolution_x = size_hw
        scene.render.resolution_percentage = 100
        scene.render.threads_mode, scene.render.threads = 'FIXED', 1
        scene.render.use_persistent_data = True  # several views of one scene share the BVH
        scene.render.image_settings.media_type = 'MULTI_LAYER_IMAGE'
        scene.render.image_settings.file_format = 'OPEN_EXR_MULTILAYER'
        scene.render.image_settings.color_depth = '32'
        scene.render.filepath = str(self._exr)
        cycles = scene.cycles
        cycles.samples, cycles.use_adaptive_sampling = spp, False
        # Z is that of the pixel's first sample: a box filter keeps it inside its own pixel
        cycles.pixel_filter_type = 'BOX'
        cycles.use_denoising, cycles.denoiser = True, 'OPENIMAGEDENOISE'
        cycles.denoising_quality, cycles.denoising_prefilter = 'BALANCED', 'FAST'
        cycles.max_bounces = cycles.diffuse_bounces = 4
        cycles.glossy_bounces, cycles.transmission_bounces = 2, 0
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.sample_clamp_direct = cycles.sample_clamp_indirect = 4.0
        layer = self._bpy.context.view_layer
        layer.use_pass_z = True
        layer.use_pass_normal = 'normals' in channels
        layer.use_pass_object_index = 'labels' in channels
        self.camera = self._bpy.data.objects.new('camera', self._bpy.data.cameras.new('camera'))
        self.camera.data.sensor_fit = 'HORIZONTAL'
        self.camera.data.clip_start, self.camera.data.clip_end = 0.01, 1000.0
        scene.collection.objects.link(self.camera)
        scene.camera = self.camera
        scene.world = self._bpy.data.worlds.new('world')
        if scene.world.node_tree is None:  # before Blender 5
            scene.world.use_nodes = True

    # -- the scene's life ---------------------------------------------------------------------

    def clear(self) -> None:
        """Remove everything of the last scene; imported models stay in memory."""
        data = self._bpy.data
        # at once: one by one each walks through all that could refer to it
        data.batch_remove([thing for thing in data.objects if thing != self.camera]
                          + self._temporary)
        self._temporary.clear()
        self.used.clear()
        # Cycles keeps what it has by address: pictures of the next scene that land on a freed
        # address would show the old content. Switching the option off drops what it holds.
        self.scene.render.use_persistent_data = False
        self.scene.render.use_persistent_data = True

    def seed(self, value: int) -> None:
        """Seed the path tracer's sample pattern."""
        self.scene.cycles.seed = value

    # -- surfaces -----------------------------------------------------------------------------

    def material(
        self,
        rng: np.random.Generator,
        *,
        picture: textures.Picture | Path | None = None,
        colour: tuple[float, float, float] | None = None,
        scale: float = 1.0,
        roughness: float | None = None,
        emission: float = 0.0,
    ) -> Any:
        """Make a material of the scene: a picture (UV divided by `scale`) or a plain colour."""
        material = self._bpy.data.materials.new('m')
        self._temporary.append(material)
        if material.node_tree is None:  # before Blender 5
            material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        shader = nodes['Principled BSDF']
        shader.inputs['Roughness'].default_value = (
            float(np.clip(rng.normal(0.55, 0.22), 0.12, 1)) if roughness is None else roughness
        )
        shader.inputs['Specular IOR Level'].default_value = float(rng.uniform(0.1, 0.6))
        targets = [shader.inputs['Base Color']]
        if emission:
            targets.append(shader.inputs['Emission Color'])
            shader.inputs['Emission Strength'].default_value = emission
            material.cycles.emission_sampling = 'NONE'  # lamps light the scene, this only shows
        if picture is None:
            linear = np.array(colour if colour is not None else textures.colour(rng)) ** 2.2
            for target in targets:
                target.default_value = (*linear, 1.0)
            return material
        node = nodes.new('ShaderNodeTexImage')
        node.image = self._image(picture)
        mapping = nodes.new('ShaderNodeMapping')
        mapping.inputs['Scale'].default_value = (1 / scale, 1 / scale, 1)
        mapping.inputs['Location'].default_value = (*rng.uniform(0, 1, 2), 0) if scale != 1 else (
            0, 0, 0)
        links.new(nodes.new('ShaderNodeTexCoord').outputs['UV'], mapping.inputs['Vector'])
        links.new(mapping.outputs['Vector'], node.inputs['Vector'])
        for target in targets:
            links.new(node.outputs['Color'], target)
        return material

    def surface(self, rng: np.random.Generator, use: str) -> Any:
        """Make the material for a use of `textures.USES`, procedural or from a photograph."""
        unit = use in textures.UNIT_USES
        low, high = (0.25, 1.4) if use in ('table', 'cloth') else (0.4, 2.5)
        scale = 1.0 if unit else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if use == 'ceiling':
            scale = 0.6
        # tables and floors are often glossy: reflections and glare
        shine = use in ('table', 'floor', 'cabinet', 'screen') and rng.uniform() < 0.3
        roughness = float(rng.uniform(0.08, 0.3)) if shine else None
        if use == 'ceiling':
            roughness = 0.9
        # drawn without photographs too: most scenes then look the same with and without them
        photograph = use in ('wall', 'floor', 'table') and rng.uniform() < 0.2
        if photograph and self.pictures:
            path = self.pictures[int(rng.integers(len(self.pictures)))]
            self.used.add(f'texture/{path.name}')
            return self.material(rng, picture=path, scale=scale, roughness=roughness)
        if use in ('box', 'cloth', 'cylinder') and rng.uniform() < 0.15:
            return self.material(rng)
        if (use == 'poster' and rng.uniform() < 0.5) or (use == 'box' and rng.uniform() < 0.12):
            return self.material(rng, picture=self.photograph(rng), roughness=roughness)
        kind = textures.draw_kind(rng, use)
        glow = float(rng.uniform(0.1, 1.2)) if use == 'screen' and rng.uniform() < 0.8 else 0.0
        return self.material(rng, picture=textures.make(rng, kind), scale=scale,
                             roughness=roughness, emission=glow)

    def photograph(self, rng: np.random.Generator) -> textures.Picture:
        """A crop of one of Blender's environment pictures: real photographs for posters."""
        if not self._panoramas:
            for path in sky_files():
                channels = read_channels(path)
                colour = np.stack([channels[c] for c in 'RGB'], -1).astype(np.float32)
                colour = np.clip(colour / max(float(np.percentile(colour, 90)), 1e-6), 0, 1)
                self._panoramas.append((colour ** (1 / 2.2) * 255).astype(np.uint8))
        whole = self._panoramas[int(rng.integers(len(self._panoramas)))]
        side = int(rng.integers(90, min(whole.shape[:2]) // 2))
        y = int(rng.integers(0, whole.shape[0] - side))
        x = int(rng.integers(0, whole.shape[1] - side))
        return np.ascontiguousarray(whole[y:y + side, x:x + side])

    def _image(self, picture: textures.Picture | Path) -> Any:
        if isinstance(picture, Path):
            image = self._bpy.data.images.load(str(picture), check_existing=True)
            _shrink(image)
            return image
        height, width = picture.shape[:2]
        image = self._bpy.data.images.new('t', width, height)
        self._temporary.append(image)
        rgba = np.ones((height, width, 4), np.float32)
        rgba[..., :3] = picture[::-1] / np.float32(255)
        image.pixels.foreach_set(rgba.ravel())
        image.pack()
        return image

    # -- things -------------------------------------------------------------------------------

    def _add(
        self, mesh: Any, footprint: Footprint, z: float, label: str,
        tilt: tuple[float, float] = (0.0, 0.0),
    ) -> Any:
        thing = self._bpy.data.objects.new('o', mesh)
        thing.location = (footprint.x, footprint.y, z)
        thing.rotation_euler = (*tilt, footprint.yaw)
        thing.pass_index = CLASSES.index(label) + 1
        self.scene.collection.objects.link(thing)
        return thing

    def shape(
        self, mesh: shapes.Mesh, footprint: Footprint, z: float, materials: list[Any], *,
        label: str = 'object', smooth: bool = False, tilt: tuple[float, float] = (0.0, 0.0),
    ) -> Any:
        """Add a made mesh at the footprint's place; faces take turns with the materials."""
        made = self._bpy.data.meshes.new('g')
        self._temporary.append(made)
        made.from_pydata(mesh.vertices.tolist(), [], mesh.faces)
        for material in materials:
            made.materials.append(material)
        if len(materials) > 1:
            made.polygons.foreach_set('material_index',
                                      np.arange(len(mesh.faces)) % len(materials))
        made.uv_layers.new().data.foreach_set('uv', np.asarray(mesh.uv, np.float32).ravel())
        if smooth:
            made.polygons.foreach_set('use_smooth', np.ones(len(mesh.faces), bool))
            made.set_sharp_from_angle(angle=0.8)
        return self._add(made, footprint, z, label, tilt)

    def box(
        self, footprint: Footprint, height: float, z: float, materials: list[Any], *,
        unit_uv: bool = False, label: str = 'object', tilt: tuple[float, float] = (0.0, 0.0),
    ) -> Any:
        """Add a box standing on height z; faces take turns with the materials."""
        width, depth = footprint.width, footprint.depth
        block = shapes.Block((-width / 2, -depth / 2, 0.0), (width, depth, height))
        return self.shape(shapes.blocks([block], unit_uv=unit_uv), footprint, z, materials,
                          label=label, tilt=tilt)

    def blocks(
        self, parts: list[shapes.Block], footprint: Footprint, z: float, materials: list[Any], *,
        unit_uv: bool = False, label: str = 'object',
    ) -> Any:
        """Add a compound of boxes given in the footprint's frame."""
        return self.shape(shapes.blocks(parts, unit_uv=unit_uv), footprint, z, materials,
                          label=label)

    def cylinder(
        self, footprint: Footprint, height: float, z: float, materials: list[Any],
        segments: int = 28, *, label: str = 'object',
    ) -> Any:
        """Add an upright cylinder whose diameter is the footprint's width."""
        angle = np.arange(segments) / segments * 2 * np.pi
        ring = np.stack([np.cos(angle), np.sin(angle)], 1) * footprint.width / 2
        corners = np.concatenate([np.c_[ring, np.zeros(segments)],
                                  np.c_[ring, np.full(segments, height)]])
        sides = [(i, (i + 1) % segments, (i + 1) % segments + segments, i + segments)
                 for i in range(segments)]
        top = tuple(range(segments, 2 * segments))
        step = 2 / segments
        uv = [[(i * step, 0), ((i + 1) * step, 0), ((i + 1) * step, 1), (i * step, 1)]
              for i in range(segments)]
        layer = np.concatenate([np.array(uv).reshape(-1, 2), ring / footprint.width + 0.5])
        thing = self.shape(shapes.Mesh(corners, [*sides, top], layer), footprint, z, materials[:1],
                           label=label)
        for polygon in thing.data.polygons[:segments]:
            polygon.use_smooth = True
        return thing

    def sheet(self, corners: NDArray[np.float64], uv: NDArray[np.float64], material: Any, *,
              label: str = 'wall') -> Any:
        """Add flat quadrilaterals: (4, 3) or (N, 4, 3) corners, (4, 2) or (N, 4, 2) texture."""
        points = np.asarray(corners, float).reshape(-1, 3)
        faces = [tuple(range(i, i + 4)) for i in range(0, len(points), 4)]
        mesh = shapes.Mesh(points, faces, np.asarray(uv, float).reshape(-1, 2))
        return self.shape(mesh, Footprint(0, 0, 1, 1, 0), 0.0, [material], label=label)

    def model(
        self, rng: np.random.Generator, asset: Asset, footprint: Footprint, z: float, *,
        recolour: float = 0.5, tilt: tuple[float, float] = (0.0, 0.0),
    ) -> Any | None:
        """Add a catalogue model at its true size; None when the file cannot be used.

        Args:
            rng: the scene's generator.
            asset: the model.
            footprint: where it stands; its size is the asset's, not the footprint's.
            z: height of its lowest point [m].
            recolour: share of the models whose plain materials get a drawn colour.
            tilt: turn about its own x and y [rad].
        """
        mesh = self._model_mesh(asset)
        if mesh is None:
            return None
        thing = self._add(mesh, footprint, z, ROLE_CLASS[asset.role], tilt)
        self.used.add(asset.key)
        if asset.role != 'person' and rng.uniform() < recolour:
            for slot in thing.material_slots:
                source = slot.material
                if source is None or source.get('textured') or rng.uniform() < 0.4:
                    continue
                copy = source.copy()
                self._temporary.append(copy)
                shader = _principled(copy)
                if shader is not None:
                    linear = np.array(textures.colour(rng)) ** 2.2
                    shader.inputs['Base Color'].default_value = (*linear, 1.0)
                    shader.inputs['Roughness'].default_value = float(rng.uniform(0.15, 1))
                slot.link = 'OBJECT'
                slot.material = copy
        return thing

    def _model_mesh(self, asset: Asset) -> Any | None:
        if asset.key in self._meshes:
            return self._meshes[asset.key]
        folder = unpack(self._archives[asset.archive], self._cache_dir)
        before = set(self._bpy.data.objects)
        self._meshes[asset.key] = None
        try:
            self._bpy.ops.wm.obj_import(filepath=str(folder / asset.obj), use_split_objects=False)
        except RuntimeError:
            return None
        new = [thing for thing in self._bpy.data.objects if thing not in before]
        meshes = [thing for thing in new if thing.type == 'MESH' and len(thing.data.polygons)]
        mesh = meshes[0].data if meshes else None
        if mesh is not None:
            matrix = meshes[0].matrix_world.copy()
            mesh.transform(matrix)
        for thing in new:
            self._bpy.data.objects.remove(thing)
        if mesh is None:
            return None
        count = len(mesh.vertices)
        points = np.empty(count * 3, np.float32)
        mesh.vertices.foreach_get('co', points)
        upright = _true_size(points.reshape(-1, 3).astype(float), asset)
        if upright is None:
            return None
        mesh.vertices.foreach_set('co', upright.astype(np.float32).ravel())
        mesh.update()
        for material in mesh.materials:
            if material is not None:
                _make_opaque(material, glazed=asset.role == 'door')
        self._meshes[asset.key] = mesh
        return mesh

    # -- light --------------------------------------------------------------------------------

    def sky(
        self, path: Path | None, strength: float, turn: float = 0.0, *, lights: bool = True
    ) -> None:
        """Light the scene by an environment picture, or by a grey world when path is None.

        With `lights` False it is only seen (through windows), where lamps stand for its light:
        few of its rays would find their way in, which is noise.
        """
        seen = self.scene.world.cycles_visibility
        seen.diffuse = seen.glossy = seen.transmission = lights
        # the map by which its light is sampled takes seconds to build: only where it shines
        self.scene.world.cycles.sampling_method = 'AUTOMATIC' if lights else 'NONE'
        tree = self.scene.world.node_tree
        tree.nodes.clear()
        background = tree.nodes.new('ShaderNodeBackground')
        background.inputs['Strength'].default_value = strength
        output = tree.nodes.new('ShaderNodeOutputWorld')
        tree.links.new(background.outputs[0], output.inputs[0])
        if path is None:
            background.inputs['Color'].default_value = (1, 1, 1, 1)
            return
        image = tree.nodes.new('ShaderNodeTexEnvironment')
        image.image = self._bpy.data.images.load(str(path), check_existing=True)
        mapping = tree.nodes.new('ShaderNodeMapping')
        mapping.inputs['Rotation'].default_value = (0, 0, turn)
        where = tree.nodes.new('ShaderNodeTexCoord')
        tree.links.new(where.outputs['Generated'], mapping.inputs['Vector'])
        tree.links.new(mapping.outputs['Vector'], image.inputs['Vector'])
        tree.links.new(image.outputs['Color'], background.inputs['Color'])

    def light(
        self, kind: str, position: tuple[float, float, float], power: float,
        colour: tuple[float, float, float], size: float = 0.2,
        direction: tuple[float, float, float] = (0, 0, -1), size_y: float | None = None,
    ) -> None:
        """Add an 'AREA', 'POINT' or 'SUN' light that the camera itself does not see."""
        from mathutils import Vector

        data = self._bpy.data.lights.new('l', kind)
        self._temporary.append(data)
        data.energy, data.color = power, colour
        if kind == 'AREA':
            data.size = size
            if size_y is not None:
                data.shape, data.size_y = 'RECTANGLE', size_y
        elif kind == 'POINT':
            data.shadow_soft_size = size
        else:
            data.angle = size
        thing = self._bpy.data.objects.new('l', data)
        thing.location = position
        thing.rotation_euler = Vector(direction).to_track_quat('-Z', 'Y').to_euler()
        thing.visible_camera = False
        self.scene.collection.objects.link(thing)

    # -- looking ------------------------------------------------------------------------------

    def update(self) -> None:
        """Bring the dependency graph up to date, needed before rays are cast."""
        self._bpy.context.view_layer.update()

    def ray(
        self, origin: tuple[float, float, float], direction: tuple[float, float, float]
    ) -> float:
        """Length of a ray until it hits something [m], +Inf when it does not."""
        graph = self._bpy.context.evaluated_depsgraph_get()
        hit, where, *_ = self.scene.ray_cast(graph, origin, direction)
        return float(np.linalg.norm(np.subtract(where, origin))) if hit else np.inf

    def probe(self, view: View) -> NDArray[np.float64]:
        """Depth along a grid of rays of a view, (35,) [m]."""
        directions, factors = ray_directions(view, self.size_hw)
        lengths = [self.ray(view.position, tuple(ray)) for ray in directions]
        return np.array(lengths) * factors

    def aim(self, view: View) -> None:
        """Point the camera."""
        from mathutils import Matrix

        data = self.camera.data
        width = self.size_hw[1]
        data.lens = focal_px(width, view.hfov_deg) / width * data.sensor_width
        self.camera.matrix_world = Matrix(view.camera_to_world @ _OPTICAL_TO_BLENDER)

    def new_look(self) -> None:
        """Let the next views have other colours and lamps, where the renderer does that."""

    def render(self, view: View) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Render a view.

        Returns:
            (H, W, 3) linear radiance and (H, W) depth [m], NaN where unknown or beyond FAR_M.
        """
        shot = self.shoot(view)
        return shot.radiance, shot.depth

    def shoot(self, view: View) -> Shot:
        """Render a view with the stage's channels."""
        self.aim(view)
        self._exr.unlink(missing_ok=True)
        self._bpy.ops.render.render(write_still=True)
        if not self._exr.is_file():
            raise RenderError(f'{self._exr}: Blender finished a render without writing it; '
                              'check the free space of the temporary folder')
        channels = read_channels(self._exr)
        depth = _channel(channels, 'Depth.Z').astype(np.float32)
        known = depth < FAR_M
        normals = labels = None
        if 'normals' in self.channels:
            world = np.stack([_channel(channels, f'Normal.{c}') for c in 'XYZ'], -1)
            normals = camera_normals(world, view.camera_to_world[:3, :3])
            normals[~known] = 0
        if 'labels' in self.channels:
            index = _channel(channels, 'Object Index.X')
            labels = np.where(known, np.rint(index), 0).astype(np.uint8)
        colour = [_channel(channels, f'Combined.{c}') for c in 'RGB']
        return Shot(np.stack(colour, -1).astype(np.float32),
                    np.where(known, depth, np.float32(np.nan)), normals, labels)


@dataclass(frozen=True)
class Shot:
    """A rendered view.

    Attributes:
        radiance: (H, W, 3) linear.
        depth: (H, W) planar depth [m], NaN where unknown or beyond FAR_M.
        normals: (H, W, 3) unit vectors in the optical frame towards the camera, 0 = unknown.
        labels: (H, W) uint8, index in `recipe.CLASSES` + 1, 0 = unknown.
    """

    radiance: NDArray[np.float32]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32] | None = None
    labels: NDArray[np.uint8] | None = None


def camera_normals(
    world: NDArray[np.floating], rotation: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Turn averaged world normals into unit vectors in the optical frame; 0 where there is none.

    Args:
        world: (H, W, 3), shorter than 1 where a pixel shows several surfaces.
        rotation: (3, 3), optical frame to world.
    """
    turned = world @ rotation
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    unit = np.where(length > 0.5, turned / np.maximum(length, 1e-6), 0)
    return unit.astype(np.float32)


def read_channels(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read all channels of an EXR (Blender's has several parts) by name."""
    import OpenEXR

    channels: dict[str, NDArray[np.float32]] = {}
    with OpenEXR.File(str(path), separate_channels=True) as file:
        for part in file.parts:
            for name, channel in part.channels.items():
                channels[name] = channel.pixels
    return channels


def _channel(channels: dict[str, NDArray[np.float32]], suffix: str) -> NDArray[np.float32]:
    for name, pixels in channels.items():
        if name.endswith(suffix) or (name == suffix[-1] and len(channels) <= 5):
            return pixels
    raise RenderError(f'the EXR has no channel {suffix}: found {", ".join(sorted(channels))}')


def _true_size(points: NDArray[np.float64], asset: Asset) -> NDArray[np.float64] | None:
    """Rotate by the catalogue's matrix, scale to the true size, stand it on the origin."""
    if asset.rotation is not None and len(asset.rotation) == 9:
        y_up = points[:, [0, 2, 1]] * (1, 1, -1)  # the catalogue turns in OBJ axes
        turned = y_up @ np.array(asset.rotation).reshape(3, 3).T
        points = turned[:, [0, 2, 1]] * (1, -1, 1)
    low, high = points.min(0), points.max(0)
    extent = high - low
    if not np.all(np.isfinite(extent)) or np.any(extent <= 1e-9):
        return None
    centre = (low + high) / 2
    centre[2] = low[2]
    return np.asarray((points - centre) * (np.array(asset.size_m) / extent), np.float64)


def _principled(material: Any) -> Any | None:
    if material.node_tree is None:
        return None
    for node in material.node_tree.nodes:
        if node.type == 'BSDF_PRINCIPLED':
            return node
    return None


def _make_opaque(material: Any, *, glazed: bool) -> None:
    """Opaque materials only (glass has noisy depth); missing pictures become plain colours.

    Args:
        material: changed in place.
        glazed: a door or window, whose black parts are panes.
    """
    shader = _principled(material)
    if shader is None:
        return
    tree = material.node_tree
    alpha = shader.inputs['Alpha']
    see_through = not alpha.is_linked and alpha.default_value < 0.7
    for name in ('Alpha', 'Normal'):
        for link in list(shader.inputs[name].links):
            tree.links.remove(link)
    alpha.default_value = 1.0
    shader.inputs['Transmission Weight'].default_value = 0.0
    shader.inputs['Metallic'].default_value = min(shader.inputs['Metallic'].default_value, 0.3)
    base = shader.inputs['Base Color']
    for link in list(base.links):
        image = getattr(link.from_node, 'image', None)
        if image is not None and image.size[0] > 0:
            _shrink(image)
            material['textured'] = True
        else:
            tree.links.remove(link)
            base.default_value = (0.4, 0.38, 0.35, 1)
    darkest = max(base.default_value[:3])
    if not base.is_linked and ((see_through and darkest < 0.15) or (glazed and darkest < 0.03)):
        base.default_value = (0.45, 0.5, 0.52, 1)  # a pane: black would be a hole


def _shrink(image: Any) -> None:
    width, height = image.size
    factor = _MAX_TEXTURE_PX / max(width, height, 1)
    if factor < 1:
        image.scale(max(1, int(width * factor)), max(1, int(height * factor)))
