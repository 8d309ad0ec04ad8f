"""A second DDS implementation talks with the node: nothing of the result depends on Fast DDS."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import ros_rig

pytest.importorskip('cyclonedds', reason='cyclonedds is not installed')

# Fast DDS must keep its XTypes object to itself: Cyclone calls it invalid and never matches.
FAST_DDS = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns="http://www.eprosima.com"><profiles>
<participant profile_name="plain_types" is_default_profile="true"><rtps>
<propertiesPolicy><properties><property>
<name>fastdds.type_propagation</name><value>disabled</value>
</property></properties></propertiesPolicy></rtps></participant></profiles></dds>
"""
CYCLONE = """<CycloneDDS><Domain id="any"><General>
<Interfaces><NetworkInterface name="lo" multicast="true"/></Interfaces></General>
<Discovery><Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""


def test_cyclone_sends_images_and_receives_depth_and_points(
        node_env: dict[str, str], tmp_path: Path,
        domain_id: int) -> None:
    if shutil.which('unshare') is None or shutil.which('ip') is None:
        pytest.skip('unshare or ip is not installed: no network of its own for this test')
    alone = ['unshare', '--map-root-user', '--net']
    allowed = subprocess.run([*alone, 'ip', 'link', 'set', 'lo', 'up'], capture_output=True,
                             text=True, check=False)
    if allowed.returncode:
        pytest.skip(f'no network namespace allowed here: {allowed.stderr.strip()}')
    profile = tmp_path / 'plain_types.xml'
    profile.write_text(FAST_DDS)
    env = {**os.environ, **node_env, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
           'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp',
           'FASTDDS_DEFAULT_PROFILES_FILE': str(profile), 'CYCLONEDDS_URI': CYCLONE}
    env.pop('ROS_LOCALHOST_ONLY', None)
    command = ros_rig.node_command({
        'model.name': 'tiny', 'backend.name': 'onnxruntime', 'backend.threads': 1})
    log = tmp_path / 'node.log'
    script = ('ip link set lo up; ip link set lo multicast on; ip route add 224.0.0.0/4 dev lo; '
              '"${@:4}" > "$1" 2>&1 & node=$!; '
              f'{sys.executable} {Path(__file__).with_name("cyclone_peer.py")} "$2" "$3"; '
              'code=$?; kill -TERM $node; wait $node; exit $code')
    done = subprocess.run(
        [*alone, 'bash', '-c', script, 'bash', str(log), str(domain_id), '40', *command],
        env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}\n{log.read_text()}'
    got = json.loads(done.stdout)
    encoding, height, width, low, high, frame, nanosec = got['depth']
    assert (encoding, height, width, frame, nanosec) == (
        '32FC1', 48, 64, 'cam_optical_frame', 5)
    assert (low, high) == (pytest.approx(1.6), pytest.approx(1.6))
    assert got['info'] == [48, 64, [60, 0, 30, 0, 70, 26, 0, 0, 1], [0] * 5]
    assert got['cloud'][:4] == [48, 64, 16, ['x', 'y', 'z', 'rgb']]
    assert got['cloud'][4:7] == pytest.approx([(20 - 30) / 60 * 1.6, (10 - 26) / 70 * 1.6, 1.6])
    assert got['cloud'][7] == 60 << 16 | 10 << 8 | 20
