"""Who made the models that rendered scenes show: the notice that CC-BY asks for."""

from __future__ import annotations

from collections.abc import Iterable
import json
from pathlib import Path

from depth_node.synthesis.catalogue import Asset

LICENCE_URLS = {
    'CC0-1.0': 'https://creativecommons.org/publicdomain/zero/1.0/',
    'CC-BY-3.0': 'https://creativecommons.org/licenses/by/3.0/',
    'CC-BY-3.0-US': 'https://creativecommons.org/licenses/by/3.0/us/',
}
_TEXTURE_CREDIT = (
    'Photographs of surfaces on some walls, floors and tables come from MiniWorld '
    '(https://github.com/Farama-Foundation/Miniworld), Apache-2.0'
)


def used_assets(folders: Iterable[Path]) -> set[str]:
    """Keys of the assets in the scene.json and clip.json files below some folders."""
    used: set[str] = set()
    for folder in folders:
        notes = [*folder.glob('*/*/scene.json'), *folder.glob('clip.json')]
        for path in notes:
            used.update(json.loads(path.read_text())['assets'])
    return used


def records(assets: Iterable[Asset], used: set[str]) -> list[dict[str, str]]:
    """One record (key, name, creator, licence) for each used asset, by key."""
    rows = [
        {'key': asset.key, 'name': asset.name, 'creator': asset.creator,
         'licence': asset.licence}
        for asset in assets if asset.key in used
    ]
    missing = {key for key in used if not key.startswith('texture/')} - {r['key'] for r in rows}
    if missing:
        raise ValueError(f'{len(missing)} used models are not in the catalogue, such as '
                         f'{min(missing)}: name the catalogue that the scenes were made with')
    return sorted(rows, key=lambda row: row['key'])


def markdown(assets: Iterable[Asset], used: set[str]) -> str:
    """The attribution notice as a Markdown document, models grouped by licence."""
    rows = records(assets, used)
    lines = [
        '# Attribution', '',
        'The bundled network was trained on rendered scenes, and the demo clip shows one. Their '
        f'{len(rows)} furniture models come from the Sweet Home 3D furniture libraries 1.8 '
        '(https://www.sweethome3d.com, Debian package `sweethome3d-furniture`). They were scaled '
        'to their catalogue sizes, made opaque and partly recoloured, then rendered with Blender '
        'Cycles or by ray casting. No author endorses this project.', '',
        'Light, views through windows and the photographs on posters come from the CC0 '
        'environment pictures of Blender. All other surfaces are procedural.',
    ]
    pictures = sorted(key.partition('/')[2] for key in used if key.startswith('texture/'))
    if pictures:
        lines += ['', f'{_TEXTURE_CREDIT}: {", ".join(pictures)}.']
    for licence in sorted({row['licence'] for row in rows}):
        chosen = [row for row in rows if row['licence'] == licence]
        lines += ['', f'## {licence} ({len(chosen)} models)', '',
                  LICENCE_URLS.get(licence, 'See the archive.'), '',
                  '| Model | Author | Library entry |', '|---|---|---|']
        lines += [f'| {_cell(row["name"])} | {_cell(row["creator"])} | {_cell(row["key"])} |'
                  for row in chosen]
    return '\n'.join(lines) + '\n'


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '/').split())
