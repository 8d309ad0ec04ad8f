"""Runs the rendering processes: settings, resume, progress, Ctrl-C, summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
import json
import os
from pathlib import Path
import queue
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

from depth_node.synthesis import attribution
from depth_node.synthesis.blender import RenderError
from depth_node.synthesis.catalogue import CATALOGUE_DIR, default_cache_dir, load_catalogue
from depth_node.synthesis.recipe import RECIPE, SPLITS
from depth_node.synthesis.worker import TABLE_SHARE
from depth_node.synthesis.writer import finished_scenes, scenes_of, summarise

PYTHON_VARIABLE = 'DEPTH_NODE_BPY_PYTHON'
# What must not change when a run is continued: the scenes on disk would not be its own.
_FIXED = ('recipe', 'renderer', 'seed', 'size_hw', 'spp', 'table_share', 'channels', 'sequence')
# folders that do not say so
_BEFORE = {'recipe': 1, 'renderer': 'cycles', 'channels': [], 'sequence': 1}


@dataclass(frozen=True)
class Settings:
    """One generation run; it is written to <out>/.settings.json for the workers."""

    out: Path
    seed: int = 1
    scenes: int = 1000
    workers: int = 2
    size_hw: tuple[int, int] = (192, 256)
    spp: int = 4
    table_share: float = TABLE_SHARE
    renderer: str = 'cycles'
    channels: tuple[str, ...] = ()
    sequence: int = 1
    catalogue: Path = CATALOGUE_DIR
    cache: Path = field(default_factory=default_cache_dir)
    textures: Path | None = None
    splits: tuple[str, ...] = SPLITS
    stop_at: float = float('inf')

    def to_json(self) -> dict[str, Any]:
        """Plain values; an endless run stops in the year 2286."""
        plain = {key: str(value) if isinstance(value, Path) else value
                 for key, value in asdict(self).items()}
        return {**plain, 'recipe': RECIPE, 'size_hw': list(self.size_hw),
                'channels': list(self.channels), 'splits': list(self.splits),
                'stop_at': min(self.stop_at, 1e10)}


def find_python(given: str | None, renderer: str = 'cycles') -> str:
    """The interpreter that can import bpy: the named one, $DEPTH_NODE_BPY_PYTHON or this one.

    Args:
        given: what the user named.
        renderer: of `recipe.RENDERERS`; 'raycast' needs embreex too.

    Raises:
        RenderError: it cannot; says what to install.
    """
    python = given or os.environ.get(PYTHON_VARIABLE) or sys.executable
    more = ', embreex' if renderer == 'raycast' else ''
    try:
        probe = subprocess.run(
            [python, '-c', f'import bpy, cv2, OpenEXR, numpy{more}'],
            capture_output=True, text=True, timeout=300)
        trouble = (probe.stderr.strip().splitlines() or [''])[-1] if probe.returncode else ''
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    if trouble:
        raise RenderError(
            f'{python} cannot render: {trouble}. Blender as a Python module needs Python 3.11 and '
            "best an environment of its own: python3.11 -m venv bpy-env; bpy-env/bin/pip install "
            "'bpy==5.0.1' OpenEXR 'opencv-python-headless<5' tqdm PyYAML (on Debian also "
            'libsm6 libxi6 libxkbcommon0 libxrender1 libxfixes3 libgl1); then add '
            f'--python bpy-env/bin/python or set {PYTHON_VARIABLE}')
    return python


def prepare(settings: Settings) -> set[int]:
    """Make the data folder, or check that it continues the same run.

    Returns:
        The scenes that are already complete.

    Raises:
        ValueError: no scene is asked for, or the folder holds scenes of other settings.
    """
    if not scenes_of(settings.scenes, settings.splits):
        raise ValueError(
            f'none of the scene numbers below {settings.scenes} is of the split '
            f'{" or ".join(settings.splits)} (of every 25 numbers 3 and 16 are val, 9 and 22 are '
            'test); ask for more --scenes')
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / '.settings.json'
    done = finished_scenes(settings.out)
    wanted = settings.to_json()
    if done and not path.is_file():
        raise ValueError(
            f'{settings.out}: holds {len(done)} scenes but no {path.name} that says how they were '
            'made; choose another --out')
    if done:
        found = {**_BEFORE, **json.loads(path.read_text())}
        for key in _FIXED:
            if found[key] != wanted[key]:
                raise ValueError(
                    f'{settings.out}: holds {len(done)} scenes with {key} = {found[key]}, asked '
                    f'for {wanted[key]}; continue with the same {key} or choose another --out')
    path.write_text(json.dumps({**wanted, 'parent': os.getpid()}))
    return done


def run_workers(
    settings: Settings, python: str, on_scene: Callable[[dict[str, Any]], None]
) -> None:
    """Start the workers and hand each finished scene's notes to `on_scene`.

    A worker's messages go to <out>/worker-N.log. Whatever ends this call, an interrupt too, ends
    the workers; unfinished scenes are thrown away.

    Raises:
        RenderError: a worker failed; says where its messages are.
    """
    package_root = Path(__file__).resolve().parents[2]
    path = [str(package_root), os.environ.get('PYTHONPATH', '')]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in path if p)}
    lines: queue.Queue[str | None] = queue.Queue()
    processes, logs = [], []

    def listen(process: subprocess.Popen[str]) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    try:
        for index in range(settings.workers):
            logs.append((settings.out / f'worker-{index}.log').open('w'))
            process = subprocess.Popen(
                [python, '-m', 'depth_node.synthesis.worker',
                 str(settings.out / '.settings.json'), str(index)],
                stdout=subprocess.PIPE, stderr=logs[-1], text=True, env=environment,
                start_new_session=True)  # Ctrl-C reaches this process only, which ends them
            processes.append(process)
            threading.Thread(target=listen, args=(process,), daemon=True).start()
        running = len(processes)
        while running:
            line = lines.get()
            if line is None:
                running -= 1
            elif line.startswith('{'):
                on_scene(json.loads(line))
        for index, process in enumerate(processes):
            if process.wait():
                log = settings.out / f'worker-{index}.log'
                last = (log.read_text().strip().splitlines() or ['no message'])[-1]
                raise RenderError(f'worker {index} ended with status {process.returncode}: {last} '
                                  f'(all messages: {log}); run the same command to continue')
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
        for log_file in logs:
            log_file.close()
        shutil.rmtree(settings.out / '.partial', ignore_errors=True)


def finish(settings: Settings) -> dict[str, Any]:
    """Write meta.json and the contact sheet of everything that is on disk."""
    assets = load_catalogue(settings.catalogue)
    used = attribution.used_assets([settings.out / ''])
    plain = settings.to_json()
    told = ('renderer', 'spp', 'table_share', 'channels', 'sequence')
    generator = {key: plain[key] for key in told}
    generator['photographs'] = sorted(
        key.partition('/')[2] for key in used if key.startswith('texture/'))
    return summarise(
        settings.out,
        {'seed': settings.seed, 'size_hw': plain['size_hw'], 'generator': generator,
         'written': time.strftime('%Y-%m-%d')},
        attribution.records(assets, used),
    )
