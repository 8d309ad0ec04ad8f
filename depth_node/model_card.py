"""Model cards: what a depth network wants as input and what its output means.

A card is a YAML file beside the ONNX files it describes, and the exporter puts it into their
metadata too, so that a file that travels alone still says what it is.  Nothing else in the package
guesses about a network: sizes, colour order, the meaning and unit of the output, the hash of every
file and the statistics that a freshly opened backend must reproduce all come from the card.  A
card that lies is refused with a reason (`CardError`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import hashlib
import io
import json
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
import yaml

LAYOUTS = ('uint8_nhwc', 'float32_nchw')
RESIZE_POLICIES = ('stretch', 'keep_aspect', 'pad')
OUTPUT_KINDS = (
    'depth', 'log_depth', 'inv_depth', 'rel_depth', 'rel_inv_depth', 'canonical_depth')
METRIC_KINDS = ('depth', 'log_depth', 'inv_depth', 'canonical_depth')
# Files of a card. int8 is for CPUs (uint8 activations), int8_trt for TensorRT (symmetric, which
# OpenVINO runs wrongly); fp16 is typed inside, with float32 outputs.
PRECISIONS = ('fp32', 'fp16', 'int8', 'int8_trt')
CARD_VERSION = 1
METADATA_KEY = 'depth_node.card'  # of the card in an ONNX file's metadata_props
_MAX_METADATA_BYTES = 1 << 20  # a card is some kB: more is no card


class CardError(ValueError):
    """A model card, or a file that it names, cannot be used as it stands."""


@dataclass(frozen=True)
class InputSpec:
    """The network's input.

    Attributes:
        name: tensor name in the ONNX graph.
        layout: `uint8_nhwc` (normalisation inside the graph) or `float32_nchw`.
        colour: channel order the network was trained with, `rgb` or `bgr`.
        mean: per channel, in 0..255 units; used only with `float32_nchw`.
        std: per channel, in 0..255 units; used only with `float32_nchw`.
        size_hw: the fixed input size, or None where `multiple_of` governs.
        multiple_of: for dynamic networks, both sides are multiples of this.
        min_hw: smallest size of a dynamic network.
        max_hw: largest size of a dynamic network.
        resize: `stretch` (fill, aspect changes), `keep_aspect` (dynamic size of the image's
            aspect) or `pad` (keep aspect, fill the rest with the mean colour).
    """

    name: str
    layout: str
    colour: str = 'rgb'
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size_hw: tuple[int, int] | None = None
    multiple_of: int | None = None
    min_hw: tuple[int, int] | None = None
    max_hw: tuple[int, int] | None = None
    resize: str = 'stretch'


@dataclass(frozen=True)
class OutputSpec:
    """What the numbers in the network's output tensor mean.

    Attributes:
        name: tensor name in the ONNX graph; shape (1, 1, h, w) or (1, h, w).
        kind: one of `OUTPUT_KINDS`.  `canonical_depth` is metric depth as a camera of
            `canonical_focal_px` (at network resolution) would need it: depth = raw * f /
            canonical_focal_px (Yin et al., Metric3D, ICCV 2023, section 3.1, CSTM_label).
        unit: `m` for the metric kinds, `none` for the relative ones.
        range_m: (near, far), metres, the depths the network was trained on; None if relative.
        canonical_focal_px: only with `canonical_depth`.
        assumed_hfov_deg: horizontal field of view taken when the camera is not known.
        confidence: name of a confidence output (0..1, larger is better), or None.
        confidence_meaning: what its numbers mean, in words, where that is known.
        sky: name of a sky probability output, or None.
    """

    name: str
    kind: str
    unit: str = 'm'
    range_m: tuple[float, float] | None = None
    canonical_focal_px: float | None = None
    assumed_hfov_deg: float | None = None
    confidence: str | None = None
    sky: str | None = None
    confidence_meaning: str | None = None

    @property
    def metric(self) -> bool:
        """True where the output becomes metres without outside help."""
        return self.kind in METRIC_KINDS


@dataclass(frozen=True)
class FileSpec:
    """One ONNX file of a card: its absolute path and `model_sha256`."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class CheckSpec:
    """Reference statistics of the FP32 network on the seeded `check_input`.

    Attributes:
        seed: seed of `check_input`.
        size_hw: size of the check picture, a size that the network accepts.
        mean: mean of the output tensor, in the network's own unit.
        std: standard deviation of the output tensor.
        percentiles: values at the named percentiles (0..100).
        tolerance: per precision, the largest allowed deviation of each statistic as a share of
            the reference mean's magnitude.
        confidence_mean: mean of the confidence output, to which the same tolerance applies in
            full; None where it is not checked.
    """

    seed: int
    size_hw: tuple[int, int]
    mean: float
    std: float
    percentiles: dict[int, float]
    tolerance: dict[str, float]
    confidence_mean: float | None = None

    def statistics(self) -> dict[str, float]:
        """Return name -> reference value, in the order they are reported."""
        named = {'mean': self.mean, 'std': self.std}
        named.update({f'p{rank}': value for rank, value in self.percentiles.items()})
        return named


@dataclass(frozen=True)
class ModelCard:
    """Everything the package knows about one network."""

    name: str
    path: Path
    licence: str
    input: InputSpec
    output: OutputSpec
    precisions: dict[str, FileSpec]
    check: CheckSpec | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> ModelCard:
        """Read and validate a card; its files are hashed only by `verify_file`.

        Args:
            name_or_path: a card's name (`small`), its YAML file, or an ONNX file with a card of
                the same stem beside it or with a card inside.

        Raises:
            CardError: not found, not readable, the card contradicts itself, or the cards beside
                and inside an ONNX file contradict each other.
        """
        path = find_card(name_or_path)
        if path.suffix == '.onnx':
            return cls.from_onnx_metadata(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CardError(f'{path}: not a readable YAML card: {error}') from error
        card = cls.from_dict(raw, path)
        named = Path(os.fspath(name_or_path)).expanduser()
        if named.suffix == '.onnx':
            card._agree_with_embedded(named)
        return card

    @classmethod
    def from_onnx_metadata(cls, path: str | os.PathLike[str]) -> ModelCard:
        """Read the card that the exporter put into an ONNX file; needs no onnx package.

        Its only file is this one, under the precision that it was made for, with the hash that
        it has now.

        Raises:
            CardError: the file cannot be read as ONNX, has no card inside, or a broken one.
        """
        path = Path(path).expanduser()
        text = read_onnx_metadata(path).get(METADATA_KEY)
        if text is None:
            raise CardError(f'{path}: no card inside; write one beside it with: '
                            f'depth-node models add {path}')
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise CardError(f'{path}: the card inside is not JSON: {error}') from error
        precision = raw.pop('precision', None) if isinstance(raw, dict) else None
        if precision not in PRECISIONS:
            raise CardError(f'{path}: the card inside says precision {precision!r}, expected one '
                            f'of {", ".join(PRECISIONS)}')
        files = {precision: {'file': path.name, 'sha256': model_sha256(path)}}
        return cls.from_dict({**raw, 'files': files}, path, reference=precision)

    def embedded_text(self, precision: str) -> str:
        """Return what `from_onnx_metadata` reads: the card without files and measurements."""
        raw = self.to_dict()
        for key in ('files', 'metrics'):
            del raw[key]
        return json.dumps({**raw, 'precision': precision}, ensure_ascii=False)

    def _agree_with_embedded(self, path: Path) -> None:
        """Refuse an ONNX file whose card inside gives its numbers another meaning.

        Tolerances, provenance and measurements may grow after the file was written; what the
        network takes and what its output means may not.
        """
        if METADATA_KEY not in _metadata_or_none(path):
            return
        inside = ModelCard.from_onnx_metadata(path)
        mine, other = self.to_dict(), inside.to_dict()
        for section in ('name', 'licence', 'input', 'output', 'check'):
            a, b = _leaves(mine.get(section), section), _leaves(other.get(section), section)
            differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
            if differing:
                key = differing[0]
                raise CardError(
                    f'{path}: the card inside says {key} {b.get(key)!r}, the card {self.path} '
                    f'says {a.get(key)!r}; one of the files is of another model: remove the '
                    'card that is wrong, or export again')

    @classmethod
    def from_dict(cls, raw: Any, path: Path, *, reference: str = 'fp32') -> ModelCard:
        """Build a card from its parsed YAML; `path` anchors relative file names.

        Args:
            raw: the mapping.
            path: the card's file.
            reference: the precision whose file must be there; not fp32 only where a file that
                was made from one travels alone.
        """
        top = _Section(raw, path, '')
        version = top.integer('card_version')
        if version != CARD_VERSION:
            raise CardError(
                f'{path}: card_version {version}, this package reads {CARD_VERSION}; '
                're-export the model with this version of depth-node')
        precisions: dict[str, FileSpec] = {}
        files = top.section('files')
        for key in files.keys():
            if key not in PRECISIONS:
                raise CardError(f'{path}: files.{key}: unknown precision, '
                                f'expected one of {", ".join(PRECISIONS)}')
            entry = files.section(key)
            digest = entry.text('sha256').lower()
            if len(digest) != 64 or set(digest) - set('0123456789abcdef'):
                raise CardError(f'{path}: files.{key}.sha256: found {digest!r}, '
                                'expected 64 hexadecimal digits')
            precisions[key] = FileSpec((path.parent / entry.text('file')).absolute(), digest)
        if reference not in precisions:
            raise CardError(f'{path}: files.{reference} is missing: every card needs the FP32 '
                            'file, it is the reference of all others')
        card = cls(
            name=top.text('name'),
            path=path.absolute(),
            licence=top.text('licence'),
            input=_input_spec(top.section('input'), path),
            output=_output_spec(top.section('output'), path),
            precisions=precisions,
            check=_check_spec(top.section('check'), path) if 'check' in top.keys() else None,
            provenance=top.mapping('provenance'),
            metrics=top.mapping('metrics'),
        )
        check = card.check
        if check is not None and card.input.size_hw not in (None, check.size_hw):
            raise CardError(f'{path}: check.size_hw {check.size_hw} is not the input size '
                            f'{card.input.size_hw}')
        return card

    def verify_file(self, precision: str) -> Path:
        """Return the path of one precision's file after comparing its SHA-256.

        Raises:
            CardError: no such precision, missing file (of weights beside it too), another hash,
                or a card inside the file that contradicts this one.
        """
        spec = self.precisions.get(precision)
        if spec is None:
            raise CardError(f'model {self.name} has no {precision} file; '
                            f'it has: {", ".join(self.precisions)}')
        try:
            digest = model_sha256(spec.path)
        except OSError as error:
            raise CardError(f'{spec.path}: named by {self.path}, cannot be read: '
                            f'{error.strerror or error}') from error
        if digest != spec.sha256:
            raise CardError(
                f'{_with_weights(spec.path)}: SHA-256 is {digest[:12]}..., the card {self.path} '
                f'says {spec.sha256[:12]}...; the file or the card was changed: restore the file, '
                'or write a new card with: depth-node models add')
        if spec.path.suffix == '.onnx':
            self._agree_with_embedded(spec.path)
        return spec.path

    def to_dict(self) -> dict[str, Any]:
        """Return the plain mapping that `from_dict` reads."""
        inputs: dict[str, Any] = {
            'name': self.input.name, 'layout': self.input.layout, 'colour': self.input.colour,
            'resize': self.input.resize}
        if self.input.layout == 'float32_nchw':
            inputs.update(mean=list(self.input.mean), std=list(self.input.std))
        for key in ('size_hw', 'min_hw', 'max_hw'):
            value = getattr(self.input, key)
            if value is not None:
                inputs[key] = list(value)
        if self.input.multiple_of is not None:
            inputs['multiple_of'] = self.input.multiple_of
        outputs: dict[str, Any] = {
            'name': self.output.name, 'kind': self.output.kind, 'unit': self.output.unit}
        if self.output.range_m is not None:
            outputs['range_m'] = list(self.output.range_m)
        for key in ('canonical_focal_px', 'assumed_hfov_deg', 'confidence', 'confidence_meaning',
                    'sky'):
            value = getattr(self.output, key)
            if value is not None:
                outputs[key] = value
        files = {
            key: {'file': os.path.relpath(spec.path, self.path.parent), 'sha256': spec.sha256}
            for key, spec in self.precisions.items()}
        card: dict[str, Any] = {
            'card_version': CARD_VERSION, 'name': self.name, 'licence': self.licence,
            'files': files, 'input': inputs, 'output': outputs}
        if self.check is not None:
            card['check'] = {
                'seed': self.check.seed, 'size_hw': list(self.check.size_hw),
                'mean': self.check.mean, 'std': self.check.std,
                'percentiles': dict(self.check.percentiles),
                'tolerance': dict(self.check.tolerance)}
            if self.check.confidence_mean is not None:
                card['check']['confidence_mean'] = self.check.confidence_mean
        card['provenance'] = self.provenance
        card['metrics'] = self.metrics
        return card

    def save(self, path: Path | None = None) -> Path:
        """Write the card as YAML, atomically; returns where it was written.

        A card from inside an ONNX file goes beside it.

        Raises:
            CardError: it has no FP32 file: nothing could read such a card.
        """
        target = Path(path) if path is not None else self.path
        if target.suffix == '.onnx':
            target = target.with_suffix('.yaml')
        if 'fp32' not in self.precisions:
            raise CardError(f'{target}: a card needs the FP32 file; this one has: '
                            f'{", ".join(self.precisions)}')
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, width=99, allow_unicode=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f'.{target.name}.')
        try:
            with os.fdopen(handle, 'w', encoding='utf-8') as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def model_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a model: that of its file, or of all that it consists of.

    Where weights lie in files beside the ONNX file (external data), it is that of lines of
    `<SHA-256>  <name>`, as sha256sum prints them: the ONNX file first, then the others by name.

    Raises:
        OSError: the file cannot be read.
        CardError: a file of weights is missing, or lies elsewhere than beside the ONNX file.
    """
    own = file_sha256(path)
    others = external_files(path)
    if not others:
        return own
    folder, lines = Path(path).parent, [f'{own}  {Path(path).name}']
    for other in others:
        try:
            lines.append(f'{file_sha256(other)}  {other.relative_to(folder).as_posix()}')
        except OSError as error:
            raise CardError(f'{other}: weights of {path}, cannot be read: '
                            f'{error.strerror or error}; copy it beside the ONNX file') from error
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def external_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files in which an ONNX file keeps weights, sorted; none for other files.

    Raises:
        OSError: the file cannot be read.
        CardError: one lies elsewhere than beside the ONNX file or below.
    """
    folder = Path(path).parent
    if Path(path).suffix != '.onnx':
        return []
    try:
        with open(path, 'rb') as stream:
            names = set(_locations(stream, os.path.getsize(path), 'model'))
    except (ValueError, RecursionError):  # no ONNX: whoever opens the graph says more about it
        return []
    for name in names:
        if not name or '\0' in name or os.path.isabs(name) or '..' in Path(name).parts:
            raise CardError(f'{path}: its weights are in {name!r}, which is not beside it; save '
                            'the model with its weights in the same folder, or inside')
    return sorted(folder / name for name in names)


def read_onnx_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata_props of an ONNX file; robots have no onnx package.

    Walks over the fields of the ModelProto message (protobuf wire format; metadata_props is
    field 14, its entries have key 1 and value 2) without reading the graph.

    Raises:
        CardError: the file cannot be read, or is not a protobuf message.
    """
    found: dict[str, str] = {}
    try:
        size = os.path.getsize(path)
        with open(path, 'rb') as stream:
            for number, content in _fields(stream, size, wanted=14):
                if number == 14:
                    entry = dict(_fields(io.BytesIO(content), len(content), wanted=None))
                    found[entry.get(1, b'').decode()] = entry.get(2, b'').decode()
    except OSError as error:
        raise CardError(f'{path}: cannot be read: {error.strerror or error}') from error
    except ValueError as error:  # UnicodeDecodeError is one
        raise CardError(f'{path}: not an ONNX file, or truncated: {error}') from error
    return found


def statistics_of(raw: NDArray[Any]) -> tuple[float, float, dict[int, float]]:
    """Return mean, standard deviation and percentiles of a network output, for `CheckSpec`."""
    values = np.asarray(raw, np.float64).ravel()
    ranks = (5, 25, 50, 75, 95)
    found = np.percentile(values, ranks)
    return (float(values.mean()), float(values.std()),
            {rank: float(value) for rank, value in zip(ranks, found, strict=False)})


def check_input(seed: int, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the seeded picture of the self-check, (1, H, W, 3) uint8 RGB.

    Smooth colour waves over a floor-like brightness ramp: natural enough to excite a trained
    network, and computed from NumPy's bit-stable PCG64 stream so that every machine sees the
    same bytes up to rounding of sines.
    """
    height, width = size_hw
    generator = np.random.Generator(np.random.PCG64(seed))
    v = np.linspace(0.0, 1.0, height)[:, None]
    u = np.linspace(0.0, 1.0, width)[None, :]
    picture = np.empty((height, width, 3))
    for channel in range(3):
        ramp = 90.0 + 60.0 * v
        for _ in range(6):
            fu, fv = generator.uniform(0.5, 6.0, 2)
            phase, size = generator.uniform(0.0, 2 * np.pi), generator.uniform(8.0, 30.0)
            ramp = ramp + size * np.sin(2 * np.pi * (fu * u + fv * v) + phase)
        picture[..., channel] = ramp
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)[None]


def card_folders() -> list[Path]:
    """Return the folders searched for cards, first match wins.

    `$DEPTH_NODE_MODELS`, the user's data folder, then what is installed: beside the package (a
    checkout), the ament prefixes and this Python's `share/`.
    """
    folders: list[Path] = []
    if os.environ.get('DEPTH_NODE_MODELS'):
        folders.extend(Path(part) for part in os.environ['DEPTH_NODE_MODELS'].split(os.pathsep))
    data_home = os.environ.get('XDG_DATA_HOME') or os.path.join('~', '.local', 'share')
    folders.append(Path(data_home).expanduser() / 'depth_node' / 'models')
    folders.extend(folder / 'models' for folder in share_folders())
    return list(dict.fromkeys(folders))


def share_folders() -> list[Path]:
    """Return the folders that may hold the package's models, configuration and demo clip.

    The checkout that this file belongs to, if any, then `share/depth_node` of the ament prefixes,
    of the prefix that this package is installed in, and of this Python's.
    """
    package = Path(__file__).resolve().parent
    checkout = [package.parent] if (package.parent / 'package.xml').is_file() else []
    prefixes = [part for part in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if part]
    # an installed package lies in <prefix>/lib/pythonX.Y/(site|dist)-packages/depth_node
    prefixes.extend(str(parent) for parent in package.parents[2:6])
    prefixes.append(sys.prefix)
    return checkout + [Path(prefix) / 'share' / 'depth_node' for prefix in prefixes]


def list_cards() -> list[Path]:
    """Return every card file in `card_folders`, the first of each name, sorted by name."""
    found: dict[str, Path] = {}
    for folder in card_folders():
        if folder.is_dir():
            for path in sorted(folder.glob('*.yaml')):
                found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def find_card(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the card file for a name, a YAML path or an ONNX path (which may be the card).

    Raises:
        CardError: nothing found; says where it looked and which cards there are.
    """
    text = os.fspath(name_or_path)
    if not text:
        raise CardError('no model named: give a card name (depth-node models) or a path')
    path = Path(text).expanduser()
    if path.suffix == '.onnx':
        card = path.with_suffix('.yaml')
        if card.is_file():
            return card
        if path.is_file() and METADATA_KEY in _metadata_or_none(path):
            return path
        raise CardError(f'{path}: no card {card.name} beside it and none inside; write one with: '
                        f'depth-node models add {path}')
    if path.suffix in ('.yaml', '.yml') or os.sep in text:
        if path.is_file():
            return path
        raise CardError(f'{path}: no such model card')
    for folder in card_folders():
        if (folder / f'{text}.yaml').is_file():
            return folder / f'{text}.yaml'
    known = ', '.join(card.stem for card in list_cards()) or 'none'
    raise CardError(f'no model card named {text!r}; found: {known}; looked in: '
                    + ', '.join(str(folder) for folder in card_folders()))


def _metadata_or_none(path: Path) -> dict[str, str]:
    try:
        return read_onnx_metadata(path)
    except CardError:  # whoever opens the graph says more about what is wrong with it
        return {}


def _fields(stream: BinaryIO, size: int, wanted: int | None) -> Iterator[tuple[int, bytes]]:
    """Walk over a protobuf message; contents of the wanted field (None: of all) are read."""
    for number, _, behind in _walk(stream, size):
        length = behind - stream.tell()
        if wanted in (None, number):
            if length > _MAX_METADATA_BYTES:
                raise ValueError(f'field {number} has {length} bytes')
            yield number, stream.read(length)


def _walk(stream: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, wire type and end of a message's fields that have contents.

    The stream stands at the contents then, and goes on behind them whatever is read of it.
    """
    while stream.tell() < end:
        tag = _varint(stream)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _varint(stream)
            continue
        if wire not in (1, 2, 5) or number == 0:
            raise ValueError(f'field {number} of wire type {wire} at byte {stream.tell()}')
        length = {1: 8, 5: 4}[wire] if wire != 2 else _varint(stream)
        behind = stream.tell() + length
        if behind > end:
            raise ValueError(f'field {number} ends beyond its message')
        yield number, wire, behind
        stream.seek(behind)


# Where tensors may stand in an ONNX file: message and field number to message (onnx.proto).
_PARTS = {
    ('model', 7): 'graph', ('model', 25): 'function', ('graph', 1): 'node',
    ('graph', 5): 'tensor', ('graph', 15): 'sparse', ('function', 7): 'node',
    ('node', 5): 'attribute', ('attribute', 5): 'tensor', ('attribute', 6): 'graph',
    ('attribute', 10): 'tensor', ('attribute', 11): 'graph', ('attribute', 22): 'sparse',
    ('attribute', 23): 'sparse', ('sparse', 1): 'tensor', ('sparse', 2): 'tensor'}
_EXTERNAL_DATA = 13  # of a tensor: entries of key (1) and value (2)


def _locations(stream: BinaryIO, end: int, kind: str) -> Iterator[str]:
    """Yield the file names in the tensors of a message that ends at `end`; weights are skipped."""
    for number, wire, behind in _walk(stream, end):
        length = behind - stream.tell()
        inner = _PARTS.get((kind, number)) if wire == 2 else None
        if inner is not None:
            yield from _locations(stream, behind, inner)
        elif (kind, number, wire) == ('tensor', _EXTERNAL_DATA, 2) and length <= 1 << 16:
            entry = dict(_fields(io.BytesIO(stream.read(length)), length, wanted=None))
            if entry.get(1) == b'location':
                yield entry.get(2, b'').decode()


def _with_weights(path: Path) -> str:
    """Name a file, and those that its hash covers as well."""
    return ', '.join([str(path), *(other.name for other in external_files(path))])


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError('the file ends within a number')
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f'a number of more than 10 bytes at byte {stream.tell()}')


def _leaves(value: Any, prefix: str) -> dict[str, Any]:
    """Return the leaves of nested mappings as dotted key -> value; tolerances are left out."""
    if not isinstance(value, dict):
        return {} if value is None else {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key != 'tolerance':
            found.update(_leaves(item, f'{prefix}.{key}'))
    return found


class _Section:
    """A mapping inside a card, with typed access and errors that name the full key."""

    def __init__(self, raw: Any, path: Path, prefix: str) -> None:
        if not isinstance(raw, dict):
            raise CardError(f'{path}: {prefix or "the card"} is {type(raw).__name__}, '
                            'expected a mapping')
        self._raw, self._path, self._prefix = raw, path, prefix

    def keys(self) -> list[str]:
        return [str(key) for key in self._raw]

    def _get(self, key: str, kinds: tuple[type, ...], expected: str) -> Any:
        if key not in self._raw:
            raise CardError(f'{self._path}: {self._prefix}{key} is missing ({expected})')
        value = self._raw[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CardError(f'{self._path}: {self._prefix}{key}: found {value!r}, '
                            f'expected {expected}')
        return value

    def text(self, key: str) -> str:
        value: str = self._get(key, (str,), 'a text')
        if not value.strip():
            raise CardError(f'{self._path}: {self._prefix}{key} is empty')
        return value

    def integer(self, key: str) -> int:
        value: int = self._get(key, (int,), 'a whole number')
        return value

    def number(self, key: str) -> float:
        value = float(self._get(key, (int, float), 'a number'))
        if not np.isfinite(value):
            raise CardError(f'{self._path}: {self._prefix}{key}: found {value}, '
                            'expected a finite number')
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise CardError(f'{self._path}: {self._prefix}{key}: found {value!r}, '
                            f'expected one of {", ".join(allowed)}')
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        value = self._get(key, (list,), f'{count} numbers')
        if len(value) != count or not all(
                isinstance(item, (int, float)) and not isinstance(item, bool)
                and np.isfinite(item) for item in value):
            raise CardError(f'{self._path}: {self._prefix}{key}: found {value!r}, '
                            f'expected {count} finite numbers')
        return tuple(float(item) for item in value)

    def size_hw(self, key: str) -> tuple[int, int]:
        value = self._get(key, (list,), '[height, width]')
        if len(value) != 2 or not all(
                isinstance(item, int) and not isinstance(item, bool) and 8 <= item <= 8192
                for item in value):
            raise CardError(f'{self._path}: {self._prefix}{key}: found {value!r}, expected '
                            '[height, width] in pixels, 8 to 8192')
        return int(value[0]), int(value[1])

    def section(self, key: str) -> _Section:
        return _Section(self._get(key, (dict,), 'a mapping'), self._path,
                        f'{self._prefix}{key}.')

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._raw.get(key) or {}
        if not isinstance(value, dict):
            raise CardError(f'{self._path}: {self._prefix}{key}: found '
                            f'{type(value).__name__}, expected a mapping')
        return value


def _input_spec(raw: _Section, path: Path) -> InputSpec:
    layout = raw.choice('layout', LAYOUTS)
    keys = raw.keys()
    colour = raw.choice('colour', ('rgb', 'bgr'))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if layout == 'float32_nchw':
        m, s = raw.numbers('mean', 3), raw.numbers('std', 3)
        mean, std = (m[0], m[1], m[2]), (s[0], s[1], s[2])
        if min(std) <= 0:
            raise CardError(f'{path}: input.std: found {std}, expected positive numbers '
                            '(0..255 units)')
    size_hw = raw.size_hw('size_hw') if 'size_hw' in keys else None
    multiple = raw.integer('multiple_of') if 'multiple_of' in keys else None
    if (size_hw is None) == (multiple is None):
        raise CardError(f'{path}: input needs exactly one of size_hw (fixed) and multiple_of '
                        '(dynamic)')
    if multiple is not None and not 1 <= multiple <= 1024:
        raise CardError(f'{path}: input.multiple_of: found {multiple}, expected 1 to 1024')
    resize = raw.choice('resize', RESIZE_POLICIES)
    limits: dict[str, tuple[int, int] | None] = {'min_hw': None, 'max_hw': None}
    if multiple is not None:
        limits = {key: raw.size_hw(key) for key in limits}
        for key, limit in limits.items():
            if limit is not None and (limit[0] % multiple or limit[1] % multiple):
                raise CardError(f'{path}: input.{key} {limit} is not a multiple of {multiple}')
        low, high = limits['min_hw'], limits['max_hw']
        if low is not None and high is not None and (low[0] > high[0] or low[1] > high[1]):
            raise CardError(f'{path}: input.min_hw {low} exceeds max_hw {high}')
    elif resize == 'keep_aspect':
        raise CardError(f'{path}: input.resize keep_aspect needs a dynamic network '
                        '(multiple_of); with a fixed size_hw use stretch or pad')
    return InputSpec(name=raw.text('name'), layout=layout, colour=colour, mean=mean, std=std,
                     size_hw=size_hw, multiple_of=multiple, min_hw=limits['min_hw'],
                     max_hw=limits['max_hw'], resize=resize)


def _output_spec(raw: _Section, path: Path) -> OutputSpec:
    kind = raw.choice('kind', OUTPUT_KINDS)
    keys = raw.keys()
    metric = kind in METRIC_KINDS
    unit = raw.choice('unit', ('m',) if metric else ('none',))
    range_m: tuple[float, float] | None = None
    if metric:
        near, far = raw.numbers('range_m', 2)
        if not 0 <= near < far:
            raise CardError(f'{path}: output.range_m: found [{near}, {far}], '
                            'expected 0 <= near < far, metres')
        range_m = (near, far)
    focal = raw.number('canonical_focal_px') if 'canonical_focal_px' in keys else None
    if (kind == 'canonical_depth') != (focal is not None):
        raise CardError(f'{path}: output.canonical_focal_px goes with kind canonical_depth, and '
                        f'only with it; the kind is {kind}')
    if focal is not None and focal <= 0:
        raise CardError(f'{path}: output.canonical_focal_px: found {focal}, expected > 0')
    hfov = raw.number('assumed_hfov_deg') if 'assumed_hfov_deg' in keys else None
    if hfov is not None and not 5 <= hfov <= 170:
        raise CardError(f'{path}: output.assumed_hfov_deg: found {hfov}, expected 5 to 170')
    confidence = raw.text('confidence') if 'confidence' in keys else None
    if 'confidence_meaning' in keys and confidence is None:
        raise CardError(f'{path}: output.confidence_meaning goes with output.confidence, which is '
                        'missing')
    return OutputSpec(
        name=raw.text('name'), kind=kind, unit=unit, range_m=range_m, canonical_focal_px=focal,
        assumed_hfov_deg=hfov, confidence=confidence,
        confidence_meaning=raw.text('confidence_meaning')
        if 'confidence_meaning' in keys else None,
        sky=raw.text('sky') if 'sky' in keys else None)


def _check_spec(raw: _Section, path: Path) -> CheckSpec:
    percentiles = {}
    for key, value in raw.mapping('percentiles').items():
        try:
            percentiles[int(key)] = float(value)
        except (TypeError, ValueError) as error:
            raise CardError(f'{path}: check.percentiles.{key}: found {value!r}, '
                            'expected rank: number') from error
    tolerance = {}
    for key, value in raw.mapping('tolerance').items():
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            raise CardError(f'{path}: check.tolerance.{key}: found {value!r}, '
                            'expected a share between 0 and 1')
        tolerance[str(key)] = float(value)
    if 'fp32' not in tolerance:
        raise CardError(f'{path}: check.tolerance.fp32 is missing')
    confidence_mean = None
    if 'confidence_mean' in raw.keys():
        confidence_mean = raw.number('confidence_mean')
        if not 0 <= confidence_mean <= 1:
            raise CardError(f'{path}: check.confidence_mean: found {confidence_mean}, expected 0 '
                            'to 1')
    return CheckSpec(seed=raw.integer('seed'), size_hw=raw.size_hw('size_hw'),
                     mean=raw.number('mean'), std=raw.number('std'), percentiles=percentiles,
                     tolerance=tolerance, confidence_mean=confidence_mean)
