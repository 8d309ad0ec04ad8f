#!/usr/bin/env python3
"""Make the CMake files of the ROS 2 wheels in this Python's environment usable.

The wheels' CMake exports name the include directories of the machine that built them. This
replaces these paths by the ones of the running interpreter. A second run changes nothing.

Usage: .venv/bin/python scripts/repair_ros_wheels.py
"""

from __future__ import annotations

from pathlib import Path
import re
import sys
import sysconfig

import numpy as np

BUILD_MACHINE_PYTHON = re.compile(r'/opt/python/cp3\d+-cp3\d+/include/python3\.\d+')
BUILD_MACHINE_NUMPY = re.compile(
    r'/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages/numpy/(?:_core|core)/include'
)


def repair(share: Path) -> int:
    """Repair every CMake file below `share`.

    Args:
        share: the `share` directory of the environment that holds the wheels.

    Returns:
        The number of files that changed.
    """
    python_include = sysconfig.get_paths()['include']
    changed = 0
    for path in sorted(share.glob('*/cmake/*.cmake')):
        text = path.read_text(encoding='utf-8')
        mended = BUILD_MACHINE_NUMPY.sub(lambda _: np.get_include(), text)
        mended = BUILD_MACHINE_PYTHON.sub(lambda _: python_include, mended)
        if mended != text:
            path.write_text(mended, encoding='utf-8')
            changed += 1
    return changed


def main() -> int:
    """Repair this environment and say what was done."""
    share = Path(sys.prefix) / 'share'
    if not (share / 'rosidl_default_generators').is_dir():
        print(
            f'{share}: no rosidl_default_generators here, so there are no ROS 2 wheels to repair; '
            'run this with the Python of the environment that holds them.',
            file=sys.stderr,
        )
        return 1
    headers = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not headers.is_file():
        print(
            f'{headers}: not found, and the messages cannot be compiled without it; install the '
            'development files of this Python (Debian, Ubuntu: python3.11-dev).',
            file=sys.stderr,
        )
        return 1
    print(f'{repair(share)} CMake files repaired below {share}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
