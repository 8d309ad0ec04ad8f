"""Build for pip; colcon and CMake do not read this file.

Where ROS 2's message generators are found (a sourced installation, or the ROS 2 wheels in this
environment) and CMake is there, the build runs the package's own CMakeLists.txt and packs its
result: the message modules into the package, and the type support libraries into <prefix>/lib,
because the middleware loads them by bare name. Otherwise the package is built without messages; it
works, and its node runs without ~/status.

The environment variable DEPTH_NODE_MESSAGES decides: `auto` (default), `on` (fail if the
generators are not found) or `off`.
"""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

ROOT = Path(__file__).resolve().parent
NAME = 'depth_node'
SHARE_DIRS = ('launch', 'config', 'rviz', 'models', 'demo')


def package_version() -> str:
    """Read the version from package.xml, its only home."""
    version = ElementTree.parse(ROOT / 'package.xml').findtext('version')
    if not version:
        raise SystemExit(f'{ROOT / "package.xml"}: found no <version>')
    return version.strip()


def ros_prefixes() -> list[Path]:
    """List the prefixes that may hold ROS 2, the sourced ones first."""
    sourced = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    prefixes = [*sourced, Path(sys.prefix)]
    return [p for i, p in enumerate(prefixes) if p not in prefixes[:i]]


def messages_wanted() -> bool:
    """Decide whether this build generates the messages, and say why not."""
    mode = os.environ.get('DEPTH_NODE_MESSAGES', 'auto')
    if mode not in ('auto', 'on', 'off'):
        raise SystemExit(f'DEPTH_NODE_MESSAGES={mode}: expected auto, on or off')
    if mode == 'off':
        return False
    missing = []
    if not any((p / 'share/rosidl_default_generators').is_dir() for p in ros_prefixes()):
        missing.append("ROS 2's message generators (rosidl_default_generators)")
    missing += [tool for tool in ('cmake', 'c++') if shutil.which(tool) is None]
    if missing and mode == 'on':
        raise SystemExit(
            f'DEPTH_NODE_MESSAGES=on, but not found: {", ".join(missing)}; source ROS 2 or '
            'install the wheels of scripts/ros_wheels.txt and run scripts/repair_ros_wheels.py'
        )
    if missing:
        print(f'building without messages; not found: {", ".join(missing)}', file=sys.stderr)
    return not missing


def cmake_environment() -> dict[str, str]:
    """Give CMake the environment of the ROS 2 prefixes, without pip's isolation."""
    prefixes = ros_prefixes()
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    layouts = (f'lib/{version}/site-packages', f'local/lib/{version}/dist-packages')
    # pip's isolation hides the site-packages that hold the generators by a PYTHONPATH of its own.
    python_path = [p / layout for p in prefixes for layout in layouts if (p / layout).is_dir()]
    paths = [str(p) for p in prefixes]
    libraries = [str(p / 'lib') for p in prefixes]
    libraries += [p for p in os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep) if p]
    return {
        **os.environ,
        'AMENT_PREFIX_PATH': os.pathsep.join(paths),
        'CMAKE_PREFIX_PATH': os.pathsep.join(paths),
        'LD_LIBRARY_PATH': os.pathsep.join(libraries),
        'PYTHONPATH': os.pathsep.join(str(p) for p in python_path),
    }


def build_messages(staging: Path, build: Path) -> None:
    """Configure, compile and install the CMake package into `staging`."""
    environment = cmake_environment()
    for command in (
        [
            'cmake', '-S', str(ROOT), '-B', str(build), '-DBUILD_TESTING=OFF',
            f'-DCMAKE_INSTALL_PREFIX={staging}',
            f'-DPython3_EXECUTABLE={sys.executable}', '-DPython3_FIND_VIRTUALENV=FIRST',
        ],
        ['cmake', '--build', str(build), '--parallel', str(os.cpu_count() or 1)],
        ['cmake', '--install', str(build)],
    ):  # fmt: skip
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.stderr.write(result.stdout[-8000:] + result.stderr[-8000:])
            raise SystemExit(
                f'{" ".join(command)}: exit status {result.returncode}, see above; with the ROS 2 '
                'wheels run scripts/repair_ros_wheels.py first, or build without messages by '
                'DEPTH_NODE_MESSAGES=off'
            )


def data_files_below(top: Path, destination: str) -> list[tuple[str, list[str]]]:
    """List the files below `top` as setuptools' data_files, keeping the tree."""
    found: dict[str, list[str]] = {}
    for path in sorted(top.rglob('*')):
        if path.is_file() and '__pycache__' not in path.parts and path.suffix != '.pyc':
            folder = Path(destination) / path.parent.relative_to(top)
            found.setdefault(folder.as_posix(), []).append(os.path.relpath(path, ROOT))
    return list(found.items())


def plain_data_files() -> list[tuple[str, list[str]]]:
    """List what `ros2 launch` and the command line need outside of the Python package."""
    files: list[tuple[str, list[str]]] = [
        (f'share/{NAME}', ['package.xml']),
        (f'lib/{NAME}', ['scripts/mono_depth', 'scripts/depth-node']),
    ]
    for folder in SHARE_DIRS:
        files += data_files_below(ROOT / folder, f'share/{NAME}/{folder}')
    return files


class DepthNodeDistribution(Distribution):
    """A distribution that is bound to a platform if it carries the messages."""

    def has_ext_modules(self) -> bool:
        """Tell setuptools whether the wheel holds compiled code."""
        return MESSAGES


class BuildPython(build_py):
    """Copy the modules, then add the generated ones and the files for <prefix>."""

    def run(self) -> None:
        """Run the step."""
        super().run()
        target = Path(self.build_lib) / NAME
        scratch = Path(self.get_finalized_command('build').build_temp).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        data_files = plain_data_files()
        if MESSAGES:
            staging = Path(tempfile.mkdtemp(prefix='depth_node_', dir=scratch))
            build_messages(staging / 'install', staging / 'build')
            data_files += self.take_over(staging / 'install', target)
        else:
            marker = scratch / 'ament_index' / NAME
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text('', encoding='utf-8')
            data_files.append(
                ('share/ament_index/resource_index/packages', [os.path.relpath(marker, ROOT)])
            )
        self.distribution.data_files = data_files

    def take_over(self, staging: Path, target: Path) -> list[tuple[str, list[str]]]:
        """Copy the generated modules to `target`; return the other generated files."""
        [generated] = staging.glob(f'**/{NAME}/msg/__init__.py')
        package = generated.parent.parent
        unused = shutil.ignore_patterns('*.c', '*.pyc', '__pycache__')
        shutil.copytree(package / 'msg', target / 'msg', dirs_exist_ok=True, ignore=unused)
        for library in package.glob('*.so'):
            shutil.copy2(library, target / library.name)
        files = [('lib', [os.path.relpath(p, ROOT) for p in sorted(staging.glob('lib/*.so'))])]
        # Not the headers and the CMake exports: who compiles against the messages uses colcon.
        index = 'share/ament_index/resource_index'
        for folder in (f'{index}/packages', f'{index}/rosidl_interfaces', f'share/{NAME}/msg'):
            files += data_files_below(staging / folder, folder)
        return files


MESSAGES = messages_wanted()

setup(
    version=package_version(),
    distclass=DepthNodeDistribution,
    cmdclass={'build_py': BuildPython},
    data_files=plain_data_files(),
)
