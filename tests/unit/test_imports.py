"""The import rule of the architecture: the core knows neither ROS nor networks nor the shells."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / 'depth_node'

# Layers from the left to the right; a module may import its own layer and those named here.
BASE = {'camera', 'images', 'model_card'}
STEPS = {'preprocess', 'postprocess', 'scale', 'scale_fit', 'scale_points', 'scale_ranges',
         'scale_views', 'ground', 'filters', 'geometry', 'calibration', 'obstacles'}
CORE = BASE | STEPS | {'backends', 'pipeline'}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(STEPS, BASE | STEPS),
    'backends': BASE | STEPS | {'backends'},
    'pipeline': BASE | STEPS | {'backends', 'pipeline'},
    'evaluation': CORE | {'evaluation'},
    'ros': CORE | {'ros', 'msg'},
    'cli': None,  # the verbs start everything; what speaks ROS stands in ros/
    'training': {'camera', 'images', 'model_card', 'evaluation.metrics', 'training'},
    'export': BASE | STEPS | {'training.networks', 'backends', 'export'},
    'synthesis': {'camera', 'model_card', 'synthesis'},
}

# Third-party modules that only some layers may import, at the top of a module or inside of it.
ROS_MODULES = {
    'rclpy', 'rcl_interfaces', 'sensor_msgs', 'std_msgs', 'std_srvs', 'geometry_msgs', 'tf2_ros',
    'diagnostic_msgs', 'lifecycle_msgs', 'cv_bridge', 'launch', 'launch_ros', 'rosidl_runtime_py',
}  # fmt: skip
LEARNING_MODULES = {'torch', 'lightning', 'torchvision', 'transformers', 'safetensors'}
RUNTIMES = {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'}
# Asks, guarded, whether rclpy loads and what it says about itself.
PROBES = {'cli/doctor.py'}
CORE_BLOCKED = ('rclpy', 'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'openvino')


def sources() -> list[Path]:
    """List the Python files of the package."""
    return sorted(PACKAGE.rglob('*.py'))


def layer_of(path: Path) -> str:
    """Name the layer of a file: its top module or folder in the package."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """List (line, absolute dotted name) of every import in a file, those inside functions too."""
    package = ['depth_node', *path.relative_to(PACKAGE).parent.parts]
    found = []
    for statement in ast.walk(ast.parse(path.read_text(encoding='utf-8'), str(path))):
        if isinstance(statement, ast.Import):
            found += [(statement.lineno, alias.name) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            module = '.'.join([*base, *([statement.module] if statement.module else [])])
            # `from depth_node import camera` imports a module, `from depth_node.camera import X`
            # no depth_node.camera.X: keep the longest name that is a module.
            for alias in statement.names:
                whole = f'{module}.{alias.name}'
                found.append((statement.lineno, whole if is_own_module(whole) else module))
    return found


def is_own_module(name: str) -> bool:
    """Tell whether a dotted name is a module of this package's sources or its messages."""
    parts = name.split('.')
    if parts[0] != 'depth_node' or len(parts) < 2:
        return False
    path = PACKAGE.joinpath(*parts[1:])
    return parts[1] == 'msg' or path.is_dir() or path.with_suffix('.py').is_file()


def test_every_module_has_a_layer():
    layers = {layer_of(path) for path in sources()} - {'__init__'}
    unknown = layers - set(MAY_IMPORT)
    assert not unknown, f'{unknown}: name their layer in DESIGN and in MAY_IMPORT'
    assert BASE <= layers, 'the test looks at the wrong folder'


def test_package_init_is_empty():
    # The message generator installs a file of that name; whichever comes last must be the same.
    assert (PACKAGE / '__init__.py').read_bytes() == b''


@pytest.mark.parametrize(
    'path',
    [path for path in sources() if path != PACKAGE / '__init__.py'],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_point_left(path: Path):
    layer = layer_of(path)
    allowed = MAY_IMPORT[layer]
    wrong = []
    for line, name in imported(path):
        parts = name.split('.')
        if parts[0] == 'depth_node' and allowed is not None:
            own = '.'.join(parts[1:])
            if own and not any(own == a or own.startswith(f'{a}.') for a in allowed):
                wrong.append(f'{path}:{line}: {layer} may not import {name}')
        if parts[0] in ROS_MODULES or name.startswith('depth_node.msg'):
            if layer != 'ros' and path.relative_to(PACKAGE).as_posix() not in PROBES:
                wrong.append(f'{path}:{line}: only ros/ may import {name}')
        if parts[0] in LEARNING_MODULES and layer in CORE | {'ros', 'evaluation'}:
            if path.relative_to(PACKAGE).as_posix() != 'backends/torch.py':
                wrong.append(f'{path}:{line}: {layer} may not import {name}')
        if parts[0] in RUNTIMES and layer in (CORE - {'backends'}) | {'ros', 'evaluation'}:
            wrong.append(f'{path}:{line}: only backends/ may import {name}')
    assert not wrong, '\n'.join(wrong)


def test_rule_reads_every_kind_of_import(tmp_path, monkeypatch):
    (tmp_path / 'ros').mkdir()
    (tmp_path / 'camera.py').write_text('')
    file = tmp_path / 'ros' / 'node.py'
    file.write_text(
        'import depth_node.camera as c\nfrom depth_node import camera\n'
        'from ..camera import Camera\nfrom . import qos\n'
        'def f():\n    from depth_node.cli.infer import run\n    import torch\n'
    )
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', tmp_path)
    assert sorted(imported(file)) == [
        (1, 'depth_node.camera'),
        (2, 'depth_node.camera'),
        (3, 'depth_node.camera'),
        (4, 'depth_node.ros'),
        (6, 'depth_node.cli.infer'),
        (7, 'torch'),
    ]


def core_modules() -> list[str]:
    """Name the modules of the core, as far as they are files of their own."""
    files = [path for path in sources() if path.parent == PACKAGE and path.stem in CORE]
    return [*(f'depth_node.{path.stem}' for path in files), 'depth_node.backends']


@pytest.mark.parametrize('module', core_modules())
def test_core_imports_without_ros_and_runtimes(module: str):
    if importlib.util.find_spec('depth_node') is None:
        pytest.fail('depth_node is not on the path; source scripts/env.sh, or set PYTHONPATH')
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({CORE_BLOCKED!r})); import {module}; '
        f'print(sys.modules[{module!r}].__name__)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == module
