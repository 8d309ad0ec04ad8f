"""`depth-node doctor`: what this machine can run, and why not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
import importlib
import importlib.util
import os
from pathlib import Path
import platform
import shutil
import sys
from typing import Final

from depth_node.cli import package_version
from depth_node.cli._common import print_json

HELP = 'what this machine can run, and why not'

_EPILOG = """\
Every line says ok, note (something is missing that only some uses need), or FAIL (pictures cannot
be turned into depth here). Exit status 1 if there is a FAIL.

examples:
  depth-node doctor
  depth-node doctor --json | jq '.checks[] | select(.status != "ok")'
"""
OK, NOTE, FAIL = 'ok', 'note', 'FAIL'

_MIB: Final = 1 << 20
# One 640x480 XYZRGB cloud of 16-byte points is 4.9 MB; the shipped profile's segments are 64 MiB.
_SHM_WANTED: Final = 256 * _MIB
_SOCKET_WANTED: Final = 4 * _MIB  # what the shipped profile asks the kernel for


@dataclass(frozen=True)
class Check:
    """A finding: `advice` is what to do about it, empty if nothing."""

    section: str
    name: str
    status: str
    found: str
    advice: str = ''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    checks: list[Check] = []
    for part in (_system, _packages, _backends, _models, _gpu, _ros, _transport):
        checks += _guarded(part)
    failed = [check for check in checks if check.status == FAIL]
    if args.json:
        print_json({'ok': not failed, 'checks': [asdict(check) for check in checks]})
    else:
        _print(checks)
    return 1 if failed else 0


def _tell(line: str) -> None:
    """Show what takes minutes, such as the build of an engine; stdout may be JSON."""
    print(line, file=sys.stderr)


def _guarded(part: Callable[[], Iterator[Check]]) -> list[Check]:
    """Run a part; a doctor that falls ill over a strange machine is of no use on it."""
    checks = []
    try:
        for check in part():
            checks.append(check)
    except Exception as error:
        checks.append(Check(part.__name__.strip('_'), 'doctor', NOTE,
                            f'this part failed: {type(error).__name__}: {error}',
                            'please report it'))
    return checks


def _system() -> Iterator[Check]:
    from depth_node.backends._base import default_threads
    from depth_node.cli.bench import cpu_name

    section = 'machine'
    version = platform.python_version()
    good = sys.version_info >= (3, 10)
    yield Check(section, 'Python', OK if good else FAIL, f'{version} ({sys.executable})',
                '' if good else 'Python 3.10 or newer is needed')
    yield Check(section, 'system', OK, f'{platform.platform()}')
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    yield Check(section, 'CPU', OK, f'{cpu_name()}: {cpus} CPUs, {default_threads()} threads '
                                    f'for a network; load {os.getloadavg()[0]:.1f}')
    memory = _meminfo('MemAvailable')
    if memory is not None:
        enough = memory > 1 << 30
        yield Check(section, 'memory', OK if enough else NOTE,
                    f'{memory / (1 << 30):.1f} GiB available',
                    '' if enough else 'the node takes 0.2 to 0.35 GB')


def _packages() -> Iterator[Check]:
    section = 'packages'
    package = Path(__file__).resolve().parents[1]
    yield Check(section, 'depth_node', OK, f'{package_version()} in {package}')
    yield _module(section, 'numpy', FAIL, 'pip install numpy')
    cv2 = _module(section, 'cv2', FAIL, "pip install '.[opencv]' in the clone, or apt install "
                                        'python3-opencv on a robot')
    if cv2.status == OK and not cv2.found.startswith('4.'):
        cv2 = Check(section, 'cv2', NOTE, cv2.found, "ROS's cv_bridge needs OpenCV 4: pip install "
                                                     "'opencv-python-headless>=4.8,<5'")
    yield cv2
    yield _module(section, 'yaml', FAIL, 'pip install PyYAML')
    yield _module(section, 'tqdm', NOTE, 'pip install tqdm, for progress bars')


def _backends() -> Iterator[Check]:
    from depth_node.backends import AUTO_ORDER, availability

    section = 'backends'
    found = [availability(name) for name in AUTO_ORDER]
    for item in found:
        yield Check(section, item.backend, OK if item.version else NOTE,
                    item.version or item.reason)
    usable = [item.backend for item in found if item.version]
    if usable:
        yield Check(section, 'auto', OK, f'tries {", then ".join(usable)}: the first that passes '
                                         "the model's self-check")
    else:
        yield Check(section, 'any', FAIL, 'no backend can run a network',
                    "pip install '.[cpu]' in the clone")


def _models() -> Iterator[Check]:
    from depth_node.backends import BackendError, open_backend, self_check
    from depth_node.model_card import CardError, ModelCard, card_folders, list_cards

    section = 'models'
    usable = 0
    for path in list_cards():
        try:
            card = ModelCard.load(path)
            for precision in card.precisions:
                card.verify_file(precision)
            with open_backend(card, tell=_tell) as backend:
                detail = self_check(backend).detail
                usable += 1
                yield Check(section, card.name, OK,
                            f'{backend.name} {backend.precision}: {detail} ({path})')
        except (CardError, BackendError) as error:
            yield Check(section, path.stem, NOTE, str(error), 'depth-node models verify '
                                                              f'{path.stem}')
    if not usable:
        yield Check(section, 'any', FAIL, 'no usable model card in '
                    + ', '.join(map(str, card_folders())),
                    'point DEPTH_NODE_MODELS to the folder of the cards')


def _gpu() -> Iterator[Check]:
    from depth_node.backends.cuda import Cuda, CudaError

    section = 'GPU'
    jetson = Path('/etc/nv_tegra_release')
    if jetson.is_file():
        yield Check(section, 'Jetson', OK, jetson.read_text().splitlines()[0].lstrip('# '))
    driver = Path('/proc/driver/nvidia/version')
    if driver.is_file():
        yield Check(section, 'NVIDIA driver', OK, driver.read_text().splitlines()[0])
    elif shutil.which('nvidia-smi') is None and not jetson.is_file():
        yield Check(section, 'NVIDIA driver', NOTE, 'none: networks run on the CPU')
    problem = ''
    try:
        with Cuda.open() as gpu:
            major, minor = gpu.compute_capability()
            yield Check(
                section, 'CUDA', OK, f'{gpu.device_name()}, SM {major}.{minor}, '
                f'{gpu.total_memory() / (1 << 30):.1f} GiB'
                + (' shared with the CPU' if gpu.integrated else '')
                + f'; runtime {gpu.runtime_version} ({gpu.library}), the driver supports '
                + gpu.driver_version, '' if gpu.graphs else 'CUDA 11.4 has graphs, which spare '
                                                            'the CPU some work per frame')
    except CudaError as error:
        problem = str(error)
        yield Check(section, 'CUDA', NOTE, problem)
    yield from _tensorrt(section, bool(problem))


def _tensorrt(section: str, no_gpu: bool) -> Iterator[Check]:
    """Describe what is installed; the line of the backend says whether it can be used."""
    from depth_node.backends.engine_cache import EngineCache, engines_folder
    from depth_node.backends.tensorrt_build import MODULES, is_typed

    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        if no_gpu:
            # not imported: without a usable driver its library may crash the process
            yield Check(section, name, NOTE, f'installed ({spec.origin}), of no use without CUDA')
            continue
        trt = importlib.import_module(name)
        yield Check(section, name, OK, f'{trt.__version__}: FP16 from ' + (
            "the card's fp16 file" if is_typed(trt) else 'the FP32 file, by builder flags'))
    engines = EngineCache(engines_folder()).entries()
    if engines:
        broken = sum(bool(entry.problem) for entry in engines)
        size_mb = sum(entry.nbytes for entry in engines) / 1e6
        yield Check(section, 'engines', NOTE if broken else OK,
                    f'{len(engines)} of {size_mb:.0f} MB in {engines_folder()}'
                    + (f', {broken} of them unusable' if broken else ''),
                    'depth-node engines prune' if broken else '')


def _ros() -> Iterator[Check]:
    section = 'ROS 2'
    distro = os.environ.get('ROS_DISTRO')
    if importlib.util.find_spec('rclpy') is None:
        yield Check(section, 'rclpy', NOTE, 'not found: the node cannot run, everything else can',
                    'source /opt/ros/<distro>/setup.bash, or in a clone: source scripts/env.sh '
                    'after make')
        return
    try:
        import rclpy
        rmw = str(rclpy.get_rmw_implementation_identifier())
        yield Check(section, 'rclpy', OK, f'{distro or "ROS_DISTRO is not set"}; middleware {rmw}')
    except Exception as error:  # a missing library shows as any of several errors
        yield Check(section, 'rclpy', NOTE, f'cannot be loaded: {type(error).__name__}: {error}',
                    'is ROS 2 sourced for this Python? RMW_IMPLEMENTATION is '
                    f'{os.environ.get("RMW_IMPLEMENTATION", "not set")}')
        return
    missing = [name for name in ('sensor_msgs', 'std_srvs', 'diagnostic_msgs', 'lifecycle_msgs',
                                 'rcl_interfaces') if importlib.util.find_spec(name) is None]
    yield Check(section, 'messages', NOTE if missing else OK,
                f'missing: {", ".join(missing)}' if missing else 'all that the node needs',
                f'install the ROS packages {", ".join(missing)}' if missing else '')
    try:
        importlib.import_module('depth_node.msg')
        yield Check(section, 'depth_node/DepthStatus', OK, 'built')
    except ImportError as error:
        yield Check(section, 'depth_node/DepthStatus', NOTE,
                    f'not built: the node runs without ~/status ({error})',
                    'build the package with colcon, or in a clone: make')
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE')
    local = os.environ.get('ROS_LOCALHOST_ONLY', '0') == '1'
    yield Check(section, 'discovery', OK, f'domain {domain}, '
                + (f'range {reach}' if reach else
                   'this machine only' if local else 'the whole subnet (the default)'))
    for name, use in (('launch_ros', 'ros2 launch'), ('tf2_ros', 'transforms')):
        if importlib.util.find_spec(name) is None:
            yield Check(section, name, NOTE, f'not found: no {use} here')
    yield _cv_bridge()


def _cv_bridge() -> Check:
    """Tell the real cv_bridge from PyPI's package of that name, and from an OpenCV mismatch."""
    section, name = 'ROS 2', 'cv_bridge'
    if importlib.util.find_spec(name) is None:
        return Check(section, name, OK, 'not installed; not needed, images.py does its work')
    from depth_node.ros import bridge

    real, why_not = bridge.load()
    if real is not None:
        return Check(section, name, OK, 'the real one, and it fits this OpenCV')
    return Check(section, name, NOTE, f'{why_not}; depth_node does without it',
                 'other nodes in this Python will read wrong images: pip uninstall cv-bridge')


def _transport() -> Iterator[Check]:
    section = 'large messages'
    if importlib.util.find_spec('rclpy') is None:
        return
    try:
        from depth_node.ros.launch_arguments import profile_given, profile_variable
        from depth_node.ros.qos import large_message_note
        import rclpy
        note = large_message_note(rclpy.get_rmw_implementation_identifier())
        if note:
            path = _shipped('config/fastdds_large_messages.xml')
            yield Check(section, 'Fast DDS profile', NOTE, note,
                        f'export {profile_variable(os.environ)}={path}' if path else '')
        else:
            yield Check(section, 'Fast DDS profile', OK,
                        profile_given(os.environ) or 'not needed by this middleware')
    except Exception as error:  # the finding on rclpy itself stands in its own section
        yield Check(section, 'Fast DDS profile', NOTE, f'not checked: {error}')
    shm = Path('/dev/shm')
    if shm.is_dir():
        usage = shutil.disk_usage(shm)
        small = usage.free < _SHM_WANTED
        yield Check(section, 'shared memory', NOTE if small else OK,
                    f'{usage.free / _MIB:.0f} of {usage.total / _MIB:.0f} MiB free in /dev/shm',
                    'in Docker: --shm-size=512m or --ipc=host' if small else '')
        segments = [p for p in shm.glob('fastrtps_*')] + [p for p in shm.glob('fastdds_*')]
        if len(segments) > 200:
            yield Check(section, 'old segments', NOTE, f'{len(segments)} Fast DDS files in '
                        '/dev/shm, mostly of processes that were killed',
                        'fastdds shm clean')
    limit = _read_int(Path('/proc/sys/net/core/rmem_max'))
    if limit is not None:
        low = limit < _SOCKET_WANTED
        yield Check(section, 'net.core.rmem_max', NOTE if low else OK, f'{limit / _MIB:.1f} MiB',
                    f'sudo sysctl -w net.core.rmem_max={_SOCKET_WANTED} (for cameras and viewers '
                    'on other machines)' if low else '')


def _module(section: str, name: str, otherwise: str, advice: str) -> Check:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Check(section, name, otherwise, f'cannot be imported: {error}', advice)
    return Check(section, name, OK, str(getattr(module, '__version__', 'installed')))


def _shipped(name: str) -> Path | None:
    """Find a file of share/depth_node, or of the checkout."""
    from depth_node.model_card import share_folders

    found = (folder / name for folder in share_folders())
    return next((path for path in found if path.is_file()), None)


def _meminfo(key: str) -> int | None:
    try:
        for line in Path('/proc/meminfo').read_text().splitlines():
            if line.startswith(f'{key}:'):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _print(checks: list[Check]) -> None:
    section = ''
    width = max(len(check.name) for check in checks)
    for check in checks:
        if check.section != section:
            section = check.section
            print(f'\n{section}' if section != checks[0].section else section)
        print(f'  {check.status:<4}  {check.name:<{width}}  {check.found}')
        if check.advice:
            print(f'  {"":<4}  {"":<{width}}  -> {check.advice}')
    failed = sum(check.status == FAIL for check in checks)
    print('\n' + (f'{failed} FAIL: pictures cannot be turned into depth here' if failed else
                  'this machine can turn pictures into depth'))
