"""`depth-node`: everything that the package does, as commands.

One file per verb in this folder, with HELP, add_arguments(parser) and run(args); only the file of
the verb that is called is imported, and it imports what is heavy inside run(). INTERMIXED = True
lets options stand between its positional arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import difflib
import importlib
import importlib.util
import os
from pathlib import Path
import re
import sys
from typing import Final, NamedTuple
import xml.etree.ElementTree as ElementTree

__all__ = ['CommandError', 'UsageError', 'main', 'package_version']

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, what shells expect


class CommandError(RuntimeError):
    """Something that the user can understand and mend; printed without a traceback."""


class UsageError(CommandError):
    """The arguments contradict each other, beyond what argparse checks; exit status 2."""


class Verb(NamedTuple):
    """A row of the table: `extra` names what setup must add for the verb, '' for nothing."""

    name: str
    extra: str
    group: str

    @property
    def module(self) -> str:
        """Name of its file in this folder, without the suffix."""
        return self.name.replace('-', '_')


VERBS: Final = tuple(Verb(*row) for row in (
    ('demo', 'demo', 'Use a model'),
    ('infer', '', 'Use a model'),
    ('bench', '', 'Use a model'),
    ('calibrate', '', 'Use a model'),
    ('models', '', 'Use a model'),
    ('connect', '', 'Use a model'),
    ('doctor', '', 'Use a model'),
    ('data', 'data', 'Make a model'),
    ('evaluate', '', 'Make a model'),
    ('synthesize', 'synthesis', 'Make a model'),
    ('train', 'train', 'Make a model'),
    ('export', 'export', 'Make a model'),
    ('quantize', 'export', 'Make a model'),
    ('build-engine', '', 'Run on an NVIDIA GPU'),
    ('engines', '', 'Run on an NVIDIA GPU'),
))

# How to get a module that is missing, where the verb's extra is not the answer.
_CURES: Final = {
    'cv2': "pip install '.[opencv]' in the clone (on a robot: apt install python3-opencv)",
    'rosbags': "pip install '.[demo]' in the clone",
    'bpy': "pip install '.[synthesis]' in the clone",
    'h5py': "pip install '.[data]' in the clone",
    'scipy': "pip install '.[train]' in the clone",
    'torch': "pip install '.[train]' in the clone",
    'lightning': "pip install '.[train]' in the clone",
    'onnx': "pip install '.[export]' in the clone",
    'skimage': 'pip install scikit-image',
    'transformers': "pip install '.[hf]' in the clone",
    'tensorrt': "NVIDIA's wheel: pip install tensorrt (on a Jetson: apt install nvidia-jetpack)",
    'tensorrt_rtx': "pip install '.[rtx]' in the clone",
    'yaml': 'pip install PyYAML',
}
_ROS_MODULES: Final = ('rclpy', 'rcl_interfaces', 'sensor_msgs', 'std_msgs', 'std_srvs',
                       'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs',
                       'lifecycle_msgs', 'ament_index_python', 'launch', 'launch_ros')
_ROS_CURE: Final = ('source /opt/ros/<distro>/setup.bash, or in a clone: make, then source '
                    'scripts/env.sh')

_EXAMPLES: Final = """\
examples:
  depth-node doctor                              what this machine can run, and why not
  depth-node demo                                the whole thing at work, without a camera
  depth-node infer photo.jpg --hfov 69 -o out    depth, colours and a point cloud of a picture
  depth-node infer drive.mp4 -o out              a video beside its depth
  depth-node bench                               how fast this machine is
  depth-node <verb> --help                       options and examples of a verb

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. --debug shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = arguments[:1] == ['--debug']
    if debug:
        del arguments[0]
    if not arguments:
        print(_overview(), file=sys.stderr)
        return USAGE
    first = arguments[0]
    if first in ('-h', '--help', 'help'):
        print(_overview())
        return OK
    if first == '--version':
        print(f'depth-node {package_version()}')
        return OK
    verb = next((verb for verb in VERBS if verb.name == first and _exists(verb)), None)
    if verb is None:
        return _unknown(first)
    try:
        return _call(verb, arguments[1:], debug)
    except SystemExit as leaving:  # argparse's
        if leaving.code is None:
            return OK
        if isinstance(leaving.code, int):
            return leaving.code
        print(leaving.code, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `depth-node models | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def package_version() -> str:
    """Return the version that package.xml says, or the installed distribution's."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent, *(p / 'share/depth_node' for p in package.parents[2:6])):
        try:
            version = ElementTree.parse(folder / 'package.xml').findtext('version')
        except (OSError, ElementTree.ParseError):
            continue
        if version:
            return version.strip()
    from importlib import metadata
    try:
        return metadata.version('depth-node')
    except metadata.PackageNotFoundError:
        return 'unknown'


def _call(verb: Verb, arguments: list[str], debug: bool) -> int:
    """Import a verb, parse its arguments, run it, and turn what the user can mend into a line."""
    try:
        module = importlib.import_module(f'depth_node.cli.{verb.module}')
        parser = argparse.ArgumentParser(
            prog=f'depth-node {verb.name}', description=_sentence(module.HELP),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        module.add_arguments(parser)
        parser.add_argument('--debug', action='store_true', default=debug,
                            help='show the traceback of an error')
        # Verbs with several positional arguments let options stand between them.
        mixed = getattr(module, 'INTERMIXED', False)
        args = parser.parse_intermixed_args(arguments) if mixed else parser.parse_args(arguments)
        debug = args.debug
        status = module.run(args)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
        return int(status or OK)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        text, status = _explain(verb, error)
        print(f'depth-node {verb.name}: {text}', file=sys.stderr)
        return status


def _explain(verb: Verb, error: Exception) -> tuple[str, int]:
    """Turn an exception into a line for the user and an exit status."""
    if isinstance(error, UsageError):
        return f'{error}\n(depth-node {verb.name} --help)', USAGE
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.split('.')[0]
        if module in _ROS_MODULES:
            return f'it needs ROS 2 ({module} is not found): {_ROS_CURE}', FAILED
        if module != 'depth_node':
            default = f"pip install '.[{verb.extra}]' in the clone" if verb.extra else (
                f'pip install {module}')
            return (f'it needs the Python package {module!r}, which is not installed; '
                    f'install it with: {_CURES.get(module, default)}', FAILED)
    if isinstance(error, (CommandError, OSError)) or _is_ours(error):
        return _of_worker(str(error)) or type(error).__name__, FAILED
    return (f'unexpected {type(error).__name__}: {error}; '
            f'depth-node {verb.name} --debug ... shows where', FAILED)


def _of_worker(text: str) -> str:
    """Return an error's text without the traceback that a loader process puts before it."""
    if not text.startswith('Caught ') or 'Original Traceback' not in text:
        return text
    return re.split(r'^[\w.]+: ', text, flags=re.MULTILINE)[-1].strip()


def _is_ours(error: Exception) -> bool:
    """Tell whether an error class is the package's own: those messages are made for users."""
    return type(error).__module__.startswith('depth_node.')


def _exists(verb: Verb) -> bool:
    return importlib.util.find_spec(f'depth_node.cli.{verb.module}') is not None


def _unknown(name: str) -> int:
    names = [verb.name for verb in VERBS if _exists(verb)]
    close = difflib.get_close_matches(name, names, 1)
    hint = f'; did you mean {close[0]!r}?' if close else f'; known are {", ".join(names)}'
    print(f'depth-node: there is no verb {name!r}{hint}', file=sys.stderr)
    return USAGE


def _overview() -> str:
    lines = ['usage: depth-node VERB [options]', '',
             'Metric depth and point clouds from one RGB camera.']
    group = ''
    for verb in VERBS:
        if not _exists(verb):
            continue
        if verb.group != group:
            group = verb.group
            lines += ['', f'{group}:']
        try:
            text = importlib.import_module(f'depth_node.cli.{verb.module}').HELP
        except ImportError as error:
            text = _explain(verb, error)[0]
        lines.append(f'  {verb.name:<14}{text}')
    return '\n'.join([*lines, '', _EXAMPLES]).rstrip()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ('' if text.endswith('.') else '.')
