"""Depth networks of Hugging Face `transformers` as this package's networks, ready to export.

The classes are transformers' own; here stands what a card has to know and a generic loader cannot
guess: whether larger means nearer or farther, what the numbers are in, which focal length they
assume, and how the processor would have sized and normalised a picture. All of it is read from
config.json and preprocessor_config.json. Nothing is downloaded unless it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
import json
import math
from pathlib import Path
import types
from typing import TYPE_CHECKING, Any

from depth_node.export.onnx import ExportError
from depth_node.training.networks.base import OUTPUT_KINDS, DepthNetwork
import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    import transformers

CAMERA_HW = (480, 640)
SIZE_RULES = ('processor', 'lower-bound')
# The least depth that ground truth of the usual data sets counts (depth-systems, section 6).
NEAR_M = 0.001


@dataclass(frozen=True)
class Meaning:
    """What a network's `predicted_depth` says.

    Attributes:
        kind: of the card's output.
        range_m: depths it can return, metres; None for the relative kinds.
        inverse: `predicted_depth` is the reciprocal of `kind` and is inverted in the graph.
        canonical: metric only after multiplication with the camera's focal length.
        head: of several heads, the number of the one that is exported.
        note: what a user must know beyond that, for the card.
    """

    kind: str
    range_m: tuple[float, float] | None = None
    inverse: bool = False
    canonical: bool = False
    head: int | None = None
    note: str = ''


@dataclass(frozen=True)
class Rules:
    """How a processor turns pictures into the network's input.

    Attributes:
        size_hw: the target, or None where pictures keep their size, cut to `multiple_of`.
        keep_aspect: scale both sides alike.
        multiple_of: sides are rounded to this.
        mean: per channel, in 0..255.
        std: per channel, in 0..255.
    """

    size_hw: tuple[int, int] | None
    keep_aspect: bool
    multiple_of: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TransformersDepth(DepthNetwork):
    """A depth model of transformers behind this package's interface.

    Attributes:
        parity_tolerance_rel: an exported graph may differ by so much from torch. Attention and
            the norms of some dozen layers round further than convolutions do.
    """

    parity_tolerance_rel = 1e-3

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        meaning: Meaning,
        rules: Rules,
        *,
        size_hw: tuple[int, int],
        camera_hw: tuple[int, int] = CAMERA_HW,
    ) -> None:
        """Take a model over.

        Position embeddings are interpolated once, here: the size is fixed, and TensorRT before
        8.6 has no cubic Resize.

        Args:
            model: with `predicted_depth` among its outputs.
            meaning: of its output.
            rules: of its processor.
            size_hw: the input that is exported.
            camera_hw: the pictures that will be squeezed into it; counts for canonical kinds.

        Raises:
            ExportError: the model cannot run at this size, or gives something else than a map.
        """
        super().__init__()
        self.size_hw = size_hw
        self.mean, self.std = rules.mean, rules.std
        self.output_kind = meaning.kind
        if meaning.range_m is not None:
            self.depth_range_m = meaning.range_m
        self._inverse, self._head = meaning.inverse, meaning.head
        if meaning.canonical:
            self.canonical_focal_px = canonical_focal(size_hw, camera_hw)
        switch = getattr(model, 'set_attn_implementation', None)
        if switch is not None:
            switch('eager')  # fused attention does not always export
        self.model = model.float().eval()
        try:
            with torch.inference_mode(), _Positions(self.model):
                found = self(torch.zeros(1, 3, *size_hw))
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f'{type(model).__name__} does not run at {size_hw[1]}x{size_hw[0]}: '
                f'{str(error).splitlines()[0]}; choose another --size'
            ) from error
        self.output_hw = (int(found.shape[-2]), int(found.shape[-1]))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`; relative kinds may be 0, infinitely far."""
        with _Traceable(self._head):
            found = self.model(pixel_values=batch).predicted_depth
        found = found.reshape(found.shape[0], 1, found.shape[-2], found.shape[-1]).float()
        if self._inverse:  # Depth Pro's processor clamps so too
            found = 1.0 / found.clamp(1e-4, 1e4)
        return found


class _Traceable(TorchFunctionMode):
    """While it is entered, torch's exporter can follow what models of transformers do.

    It fails on a clamp between a float and an integer: the limits become floats. It cannot
    follow a number that is taken out of a tensor to choose by: ZoeDepth takes one, the number of
    the head that suits the picture, and gets the one that was asked for.
    """

    def __init__(self, chosen: int | None) -> None:
        super().__init__()
        self._chosen = chosen

    def __torch_function__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.clamp, torch.Tensor.clamp):
            args = tuple(float(a) if isinstance(a, int) else a for a in args)
            kwargs = {k: float(a) if isinstance(a, int) else a for k, a in (kwargs or {}).items()}
        if func is torch.Tensor.item and self._chosen is not None:
            return self._chosen
        return func(*args, **(kwargs or {}))


class _Positions:
    """While it is entered, what `interpolate_pos_encoding` returns becomes a buffer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._owners = [m for m in model.modules() if hasattr(m, 'interpolate_pos_encoding')]

    def __enter__(self) -> None:
        for owner in self._owners:
            original = owner.interpolate_pos_encoding

            def record(*args: Any, owner: Any = owner, original: Any = original) -> torch.Tensor:
                positions = original(*args)
                owner.register_buffer('depth_node_positions', positions.detach().clone())
                return positions

            owner.interpolate_pos_encoding = record

    def __exit__(self, kind: Any, *_: object) -> None:
        for owner in self._owners:
            del owner.interpolate_pos_encoding  # the instance's; the class's shows again
            if kind is None and 'depth_node_positions' in owner._buffers:
                # A bound method follows its object when the network is copied, for fp16.
                owner.interpolate_pos_encoding = types.MethodType(_frozen_positions, owner)


def _frozen_positions(owner: Any, *_: Any) -> torch.Tensor:
    positions: torch.Tensor = owner.depth_node_positions
    return positions


def load(
    source: str,
    *,
    size_hw: tuple[int, int] | None = None,
    camera_hw: tuple[int, int] = CAMERA_HW,
    rule: str = 'processor',
    kind: str | None = None,
    head: str | None = None,
    download: bool = False,
) -> tuple[TransformersDepth, dict[str, Any]]:
    """Open a depth model of transformers.

    Args:
        source: a folder with config.json, weights and preprocessor_config.json, or the id of a
            model on the Hugging Face hub.
        size_hw: input to export; None is what the processor makes of a camera's picture.
        camera_hw: the camera's pictures.
        rule: one of SIZE_RULES; `lower-bound` is how the original code of Depth Anything and
            MiDaS sizes pictures, which differs from the processor for small ones.
        kind: what the output means, where the configuration does not tell.
        head: name of the head to export, where a model has several.
        download: fetch from the hub what the local cache lacks.

    Returns:
        The network and its provenance, plain values.

    Raises:
        ExportError: transformers is not installed, the model is not here, not a depth model, its
            weights are incomplete, or its output's meaning is not known.
    """
    try:
        import transformers
    except ImportError as error:
        raise ExportError(
            f"transformers cannot be imported ({error}); pip install '.[hf]' in the clone"
        ) from error

    files = _Files(source, download)
    config = files.opened(transformers.AutoConfig)
    meaning = meaning_of(config.to_dict(), kind, head)
    rules = rules_of(files.json('preprocessor_config.json'))
    if size_hw is None:
        size_hw = fitted_size(rules, camera_hw, rule)
    backbone = getattr(config, 'backbone_config', None)
    if backbone is not None:
        backbone._attn_implementation = 'eager'  # transformers 4 chooses when it builds
    model, info = files.opened(
        transformers.AutoModelForDepthEstimation, config=config, output_loading_info=True,
        attn_implementation='eager',
    )  # fmt: skip
    missing = sorted(info['missing_keys'])
    if missing:
        raise ExportError(
            f'{source}: the weights lack {len(missing)} tensors ({missing[0]}, ...), which would '
            'be random; the files are incomplete or of another network'
        )
    if getattr(model, 'fov_model', None) is not None:
        # the camera's focal length is known to whoever asks for metres
        model.fov_model, model.use_fov_model = None, False
    network = TransformersDepth(model, meaning, rules, size_hw=size_hw, camera_hw=camera_hw)
    provenance = {
        'source': files.label,
        'class': type(model).__name__,
        'transformers': transformers.__version__,
        'camera_hw': list(camera_hw),
        'size_rule': rule,
    }
    if head is not None:
        provenance['head'] = head
    if meaning.note:
        provenance['meaning'] = meaning.note
    return network, provenance


class _Files:
    """A model's files: a folder, or an id in the local cache and, if asked for, on the hub."""

    def __init__(self, source: str, download: bool) -> None:
        self._source = source
        folder = Path(source).expanduser()
        self._folder = folder if folder.is_dir() else None
        self._download = download
        self.label = folder.absolute().name if self._folder else source
        if self._folder is None:
            if source.startswith(('.', '/', '~')) or source.count('/') > 1:
                raise ExportError(f'{source}: there is no such folder')
        elif not (folder / 'config.json').is_file():
            raise ExportError(f'{folder}: no config.json in this folder; give the one that '
                              'transformers saved')  # fmt: skip

    def opened(self, loader: Any, **options: Any) -> Any:
        place = str(self._folder) if self._folder else self._source
        try:
            return loader.from_pretrained(
                place, local_files_only=not self._download, trust_remote_code=False, **options
            )
        except OSError as error:
            raise ExportError(self._absent(str(error))) from error
        except (ValueError, KeyError, ImportError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f'{self._source}: transformers cannot open it: {first}') from error

    def json(self, name: str) -> dict[str, Any]:
        path: Path | None
        if self._folder:
            path = self._folder / name
        else:
            from transformers.utils import cached_file

            try:
                path = Path(cached_file(
                    self._source, name, local_files_only=not self._download))  # fmt: skip
            except OSError as error:
                raise ExportError(self._absent(str(error))) from error
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
        except OSError as error:
            raise ExportError(
                f'{path}: {error.strerror}; size, mean and std of pictures are read from it: save '
                'the processor there too'
            ) from error
        except ValueError as error:
            raise ExportError(f'{path}: not JSON: {error}') from error
        if not isinstance(found, dict):
            raise ExportError(f'{path}: {type(found).__name__}, expected a mapping')
        return found

    def _absent(self, reason: str) -> str:
        first = (reason.strip().splitlines() or ['not found'])[0]
        if self._folder:
            return f'{self._source}: {first}'
        if self._download:
            return f'{self._source}: could not be fetched: {first}'
        from huggingface_hub.constants import HF_HUB_CACHE

        return (
            f'{self._source}: not a folder, and not whole in the local cache {HF_HUB_CACHE}; '
            'nothing is downloaded unasked: add --download, or fetch it elsewhere and give the '
            f'folder ({first})'
        )


def meaning_of(
    config: dict[str, Any], kind: str | None = None, head: str | None = None
) -> Meaning:
    """Tell what `predicted_depth` of a model means; never from a picture.

    Larger is nearer for DPT (MiDaS) and relative Depth Anything, which return affine inverse
    depth; larger is farther for metric Depth Anything, GLPN and ZoeDepth, in metres. Depth Pro
    returns width / focal length times inverse depth (Bochkovskii et al. 2024, arXiv:2410.02073,
    section 3.1). Prompt Depth Anything stretches its output over the range of the coarse depth
    that it is given, so larger is farther; without one, as here, there is no unit (its class
    calls that a monocular relative depth).

    Args:
        config: config.json.
        kind: overrides what is known, where the configuration cannot tell.
        head: name of one of several heads.

    Raises:
        ExportError: not a depth model that is known here, or one that says too little.
    """
    model_type = config.get('model_type')
    if kind is not None and kind not in OUTPUT_KINDS:
        raise ExportError(f'kind {kind!r}, expected one of {", ".join(OUTPUT_KINDS)}')
    found = _known_meaning(config, head)
    if kind is None or (found is not None and kind == found.kind):
        if found is None:
            raise ExportError(
                f'{model_type} on a {_backbone(config)} backbone: the configuration does not say '
                'whether the output is depth in metres or relative inverse depth; read it in the '
                "model's description and give --kind depth or --kind rel_inv_depth"
            )
        return found
    if found is not None:
        raise ExportError(
            f'--kind {kind}: the configuration of this {model_type} says {found.kind}'
        )
    if kind not in ('depth', 'rel_inv_depth', 'rel_depth', 'inv_depth'):
        raise ExportError(f'--kind {kind}: not what {model_type} can return')
    return Meaning(kind, (NEAR_M, 100.0) if kind in ('depth', 'inv_depth') else None)


def _known_meaning(config: dict[str, Any], head: str | None) -> Meaning | None:
    model_type = config.get('model_type')
    if head is not None and model_type != 'zoedepth':
        raise ExportError(f'--head {head}: a {model_type} has one head')
    if model_type == 'depth_anything':
        if config.get('depth_estimation_type', 'relative') == 'metric':
            far = float(config.get('max_depth') or 1)
            return Meaning('depth', (NEAR_M, far))
        return Meaning('rel_inv_depth')
    if model_type == 'dpt':
        # MiDaS' are plain ViT, hybrid, BEiT and Swin; those on DINOv2 were trained on NYU or
        # KITTI depth, which their configuration keeps to itself.
        return None if _backbone(config).startswith('dino') else Meaning('rel_inv_depth')
    if model_type == 'glpn':
        return Meaning('depth', (NEAR_M, float(config.get('max_depth') or 10)))
    if model_type == 'zoedepth':
        return _zoedepth_meaning(config.get('bin_configurations') or [], head)
    if model_type == 'depth_pro':
        return Meaning('canonical_depth', (1e-4, 1e4), inverse=True, canonical=True)
    if model_type == 'prompt_depth_anything':
        return Meaning('rel_depth', note=(
            'exported without its prompt, a coarse depth picture: relative depth, larger is '
            'farther; scale.source makes metres of it'))  # fmt: skip
    raise ExportError(
        f'model type {model_type!r} is not a depth model that is known here; known are '
        'depth_anything, depth_pro, dpt, glpn, prompt_depth_anything and zoedepth. Any other '
        'network can be used as ONNX: depth-node models add'
    )


def _zoedepth_meaning(heads: list[dict[str, Any]], head: str | None) -> Meaning:
    """Return the meaning of one head; its classifier, which looks at the picture, is left out."""
    names = [str(one.get('name')) for one in heads]
    if head is None and len(heads) != 1:
        raise ExportError(
            f'ZoeDepth with the heads {", ".join(names) or "none"}: which one is taken depends on '
            'the picture, which a graph cannot express; choose one: '
            + ' or '.join(f'--head {name}' for name in names)
        )
    if head is not None and head not in names:
        raise ExportError(f'--head {head}: this ZoeDepth has {", ".join(names)}')
    index = 0 if head is None else names.index(head)
    range_m = max(NEAR_M, float(heads[index]['min_depth'])), float(heads[index]['max_depth'])
    return Meaning('depth', range_m, head=index if len(heads) > 1 else None)


def _backbone(config: dict[str, Any]) -> str:
    inner = config.get('backbone_config') or {}
    return str(inner.get('model_type') or config.get('backbone') or 'plain')


def rules_of(processor: dict[str, Any]) -> Rules:
    """Read a preprocessor_config.json.

    Raises:
        ExportError: a key that is needed is missing or has another form.
    """
    try:
        kind = str(
            processor.get('image_processor_type') or processor.get('feature_extractor_type') or ''
        )
        # GLPN's cuts sides to a multiple and normalises nothing, whatever else its file says.
        cuts = kind.startswith('GLPN')
        gain = float(processor.get('rescale_factor', 1 / 255))
        if not processor.get('do_rescale', True):
            gain = 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if processor.get('do_normalize', True) and not cuts:
            mean, std = list(processor['image_mean']), list(processor['image_std'])
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or gain <= 0:
            raise ValueError(f'image_mean {mean}, image_std {std}, rescale_factor {gain}')
        size = processor.get('size')
        size_hw = None
        if processor.get('do_resize', True) and not cuts:
            size_hw = (size, size) if isinstance(size, int) else (
                int(size['height']), int(size['width']))  # fmt: skip
        multiple = int(processor.get('size_divisor', 32) if cuts
                       else processor.get('ensure_multiple_of') or 1)  # fmt: skip
        if multiple < 1:
            raise ValueError(f'multiple of {multiple}')
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f'preprocessor_config.json: {type(error).__name__}: {error}; expected image_mean, '
            'image_std, size with height and width, as transformers writes them'
        ) from error
    return Rules(
        size_hw=size_hw,
        keep_aspect=bool(processor.get('keep_aspect_ratio', False)),
        multiple_of=multiple,
        mean=(mean[0] / gain, mean[1] / gain, mean[2] / gain),
        std=(std[0] / gain, std[1] / gain, std[2] / gain),
    )


def fitted_size(
    rules: Rules, picture_hw: tuple[int, int], rule: str = 'processor'
) -> tuple[int, int]:
    """Return the size at which a picture would enter the network.

    The processor scales as little as it can, so that one side has the target's size; the original
    code of MiDaS and Depth Anything scales until both sides reach it. They agree on pictures
    larger than the target on both sides.

    Args:
        rules: of `rules_of`.
        picture_hw: the picture.
        rule: one of SIZE_RULES.

    Raises:
        ExportError: an unknown rule, or the picture is smaller than one step.
    """
    if rule not in SIZE_RULES:
        raise ExportError(f'size rule {rule!r}, expected one of {", ".join(SIZE_RULES)}')
    step = rules.multiple_of
    if rules.size_hw is None:
        sides = [side // step * step for side in picture_hw]
    else:
        scales = [want / have for want, have in zip(rules.size_hw, picture_hw, strict=True)]
        if rules.keep_aspect:
            least = scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]
            scales = [max(scales) if rule == 'lower-bound' else least] * 2
        wanted = [side * scale for side, scale in zip(picture_hw, scales, strict=True)]
        sides = [round(side / step) * step for side in wanted]
        if rule == 'lower-bound' and rules.keep_aspect:
            sides = [
                side if side >= least_side else math.ceil(want / step) * step
                for side, want, least_side in zip(sides, wanted, rules.size_hw, strict=True)
            ]
    if min(sides) < 1:
        raise ExportError(f'a picture of {picture_hw[1]}x{picture_hw[0]} is too small: sides are '
                          f'multiples of {step}')  # fmt: skip
    return sides[0], sides[1]


def canonical_focal(size_hw: tuple[int, int], camera_hw: tuple[int, int]) -> float:
    """Return the card's canonical focal length for a network whose depth is x * fx / width.

    The card multiplies with sqrt(fx fy) of the picture as the network sees it. A camera of
    square pixels, squeezed into `size_hw`, has fx = f w / W and fy = f h / H there; that
    x sqrt(fx fy) / canonical equals x f / W gives canonical = W sqrt(w h / (W H)).

    Args:
        size_hw: (h, w), the network's input.
        camera_hw: (H, W), the camera's pictures: the result holds for this aspect only.
    """
    return camera_hw[1] * math.sqrt(size_hw[0] * size_hw[1] / (camera_hw[0] * camera_hw[1]))
