"""The Sweet Home 3D furniture catalogue: which models there are, their true size and licence.

Debian's package sweethome3d-furniture installs five `.sh3f` files: zip archives with OBJ models
and a Java properties file that gives each model's name, category and size in centimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path
import re
import shutil
import tempfile
import zipfile

CATALOGUE_DIR = Path('/usr/share/sweethome3d/furniture')
PROPERTIES = 'PluginFurnitureCatalog.properties'
MAX_OBJ_BYTES = 1_100_000  # larger models take seconds to import and sync; 64 of 820 are

# Licence of each archive, from its LICENSE.TXT and the Debian copyright file.
LICENCES = {
    'BlendSwap-CC-0': 'CC0-1.0',
    'BlendSwap-CC-BY': 'CC-BY-3.0',
    'KatorLegaz': 'CC-BY-3.0-US',
    'Reallusion': 'CC-BY-3.0-US',
    'Scopia': 'CC-BY-3.0',
}
_DEFAULT_CREATORS = {
    'BlendSwap-CC-0': 'Blend Swap contributors',
    'BlendSwap-CC-BY': 'Blend Swap contributors',
    'KatorLegaz': 'Andrew Kator & Jennifer Legaz',
    'Reallusion': 'Reallusion',
    'Scopia': 'Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems',
}

# Models that would look wrong indoors (gardens, streets), are flat, hang from a ceiling or are
# see-through where the depth would then be wrong.
_EXCLUDED = re.compile(
    r'plug|socket|switch|\brug|carpet|doormat|tatami|bathmat|curtain|ceiling|hanging|pendant'
    r'|chandelier|street|lamppost|park light|porch|railing|column|swimming|crossing|arrow'
    r'|parking|\brails?\b|barnum|goal|garden|\bhut\b|hedge|tent\b|hammock|truck|ford focus|sedan'
    r'|beetle|seat leon|peugeot|renault|\bbus\b|\bvan\b|\bsuv\b|chevrolet|smart car|fork lift'
    r'|staircase|escalator|shower|jacuzzi|sandpit|trampoline|diving|mailbox|letters box'
    r'|dog house|stone lantern|rowboat|fountain|snow|hydrant|container|\bfence\b|glass door'
    r'|screen door|shutter|elevator|garage|little bank|smoke|cctv|antenna|\bbill\b|\bring\b'
    r'|\bpine\b|palm|coconut|poplar|cypress|maple|acacia|beech|hose reel|air conditioning'
    r'|track lights|coathanger|contemporary living|basketball net|pedestrian|\bhorse\b|chicken'
    r'|outdoor lamp|lying down|sidewalk|extension|yamaha|motorbike|\brock\b|bush|swing|seesaw'
    r'|aquarium|window blind|white board|wood logs|pool lounge|mezzanine|lawn|mower'
    r'|speech unit|bell ring|intercom|peach blossom|tower rack|island bath|wall hanger'
)
_TABLE = re.compile(r'table|\bdesk\b')
_NOT_TABLE = re.compile(
    r'lamp|tennis|bedside|changing|football|\bfan\b|remote|glass table|dressing|tablet|pool table'
)
_CHAIR = re.compile(r'chair|stool|class seat|\bpuff\b|piano bench|ottoman')
# Beside the 'small' models: what else people put on tables, desks and worktops.
_DESKTOP = re.compile(
    r'lamp|imac|monitor|laptop|printer|stereo|speaker|microwave|coffee|brewer|vase|orchid|bonsai'
    r'|plant$|letter tray|dvd|mp3|projector|bowl|tray|bread box|knife stand|kitchen tools'
    r'|utensils|cooker|fryer|chopping|candle|hat\b|helmet|backpack|briefcase|cardboard box'
    r'|folded|grinder|keyboard|xylophone|plate|tv\b|lantern|toaster|small oven|amplifier'
)
_DOOR = re.compile(r'^(exterior )?(double )?door$|window')


@dataclass(frozen=True)
class Asset:
    """One model of the catalogue.

    Attributes:
        key: archive and identifier, unique.
        obj: path of the OBJ file inside the archive.
        size_m: width, depth, height of the upright model [m].
        rotation: the catalogue's 3x3 `modelRotation`, row by row, or None.
        elevation_m: height above the floor at which the catalogue hangs the model [m].
        role: what the layout uses it for, '' when it is left out.
    """

    key: str
    name: str
    category: str
    archive: str
    obj: str
    size_m: tuple[float, float, float]
    rotation: tuple[float, ...] | None
    elevation_m: float
    creator: str
    licence: str
    role: str

    @property
    def desktop(self) -> bool:
        """Whether it stands on tables although it is larger than what is called 'small'."""
        return (
            self.role in ('floor', 'wall') and max(self.size_m) < 0.85
            and _DESKTOP.search(self.name.lower()) is not None
            and self.category not in ('Exterior', 'Vehicles'))


class CatalogueError(RuntimeError):
    """The furniture catalogue is missing or unreadable."""


def parse_properties(text: str) -> dict[str, str]:
    """Parse a Java properties file: `key=value`, comments, continuations, Unicode escapes."""
    values: dict[str, str] = {}
    logical = ''
    for line in text.splitlines():
        stripped = line.lstrip()
        if not logical and (not stripped or stripped[0] in '#!'):
            continue
        logical += stripped
        if (len(logical) - len(logical.rstrip('\\'))) % 2:
            logical = logical[:-1]
            continue
        key, separator, value = logical.partition('=')
        if separator:
            values[key.strip()] = re.sub(
                r'\\u([0-9a-fA-F]{4})', lambda m: chr(int(m[1], 16)), value.strip()
            ).replace('\\:', ':').replace('\\=', '=')
        logical = ''
    return values


def parse_catalogue(properties: str, archive: str) -> list[Asset]:
    """Read the assets of one archive's properties file.

    Args:
        properties: the text of PluginFurnitureCatalog.properties.
        archive: the archive's stem, such as 'Scopia'.
    """
    values = parse_properties(properties)
    assets = []
    numbers = sorted(int(key[3:]) for key in values if re.fullmatch(r'id#\d+', key))
    for number in numbers:
        entry = {
            key.partition('#')[0]: value
            for key, value in values.items()
            if key.endswith(f'#{number}')
        }
        if not {'model', 'width', 'depth', 'height'} <= entry.keys():
            continue
        identifier = entry['id'].rpartition('#')[2]
        name = entry.get('name') or identifier.replace('-', ' ').replace('_', ' ')
        size = tuple(float(entry[axis]) / 100 for axis in ('width', 'depth', 'height'))
        rotation = entry.get('modelRotation')
        category = entry.get('category', '')
        elevation = float(entry.get('elevation', 0)) / 100
        assets.append(
            Asset(
                key=f'{archive}/{identifier}',
                name=name,
                category=category,
                archive=archive,
                obj=entry['model'].lstrip('/'),
                size_m=size,  # type: ignore[arg-type]
                rotation=tuple(float(v) for v in rotation.split()) if rotation else None,
                elevation_m=elevation,
                creator=entry.get('creator') or _DEFAULT_CREATORS.get(archive, archive),
                licence=LICENCES.get(archive, 'see the archive'),
                role=role_of(name, category, size, elevation),  # type: ignore[arg-type]
            )
        )
    return assets


def role_of(
    name: str, category: str, size_m: tuple[float, float, float], elevation_m: float
) -> str:
    """What a model is good for.

    Returns:
        'small' (stands on tables), 'table', 'chair', 'wall' (furniture against a wall), 'floor'
        (stands free), 'person', 'mounted' (hangs on a wall), 'door' or '' (left out).
    """
    name = name.lower()
    width, depth, height = size_m
    largest = max(size_m)
    if category == 'Doors and windows':
        return 'door' if _DOOR.search(name) and height > 1.0 and depth < 0.6 else ''
    if _EXCLUDED.search(name) or largest > 3.6 or min(size_m) < 0.002:
        return ''
    if category == 'Characters':
        return 'person' if largest < 2.1 else ''
    if elevation_m > 0.3:
        return 'mounted' if depth < 0.7 and category != 'Lights' else ''
    if largest <= 0.35:
        return 'small' if largest >= 0.04 else ''
    if _CHAIR.search(name) and height < 1.5:
        return 'chair'
    if _TABLE.search(name) and not _NOT_TABLE.search(name) and 0.25 < height < 1.15:
        return 'table' if min(width, depth) > 0.3 else ''
    if height < 0.04:
        return ''
    if width >= 0.5 and height >= 0.35 and category not in ('Exterior', 'Vehicles'):
        return 'wall'
    if category == 'Exterior' and height > 1.2:
        return ''
    return 'floor' if largest < 2.3 else ''


def find_archives(directory: Path = CATALOGUE_DIR) -> list[Path]:
    """List the catalogue's archives.

    Raises:
        CatalogueError: there are none; says which package to install.
    """
    archives = sorted(directory.glob('*.sh3f'))
    if not archives:
        raise CatalogueError(
            f'{directory}: no .sh3f furniture archive found; install the Debian package '
            'sweethome3d-furniture (sudo apt install sweethome3d-furniture) or name the '
            'folder that holds the archives with --catalogue'
        )
    return archives


def default_cache_dir() -> Path:
    """Folder for the unpacked archives: $XDG_CACHE_HOME or ~/.cache, depth_node/assets."""
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(root).expanduser() / 'depth_node' / 'assets'


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Unpack an archive once; a half-finished unpacking never counts as done."""
    target = cache_dir / archive.stem
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{archive.stem}-', dir=cache_dir))
    with zipfile.ZipFile(archive) as source:
        source.extractall(partial)  # zipfile drops absolute names and '..' parts
    try:
        partial.rename(target)
    except OSError:  # another worker was faster
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load_catalogue(directory: Path = CATALOGUE_DIR) -> list[Asset]:
    """Read all archives: the usable assets (with a role, OBJ not too large), in a fixed order."""
    assets = []
    for path in find_archives(directory):
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(PROPERTIES)
            text = raw.decode('latin-1')  # what Java's properties files are
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        for asset in parse_catalogue(text, path.stem):
            if asset.role and 0 < sizes.get(asset.obj, 0) <= MAX_OBJ_BYTES:
                assets.append(asset)
    return assets
