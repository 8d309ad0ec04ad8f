"""What stands in the way of large messages, by the environment of this process."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

from depth_node.ros import qos
from depth_node.ros.launch_arguments import PROFILE_VARIABLES

PROFILE = Path(__file__).resolve().parents[3] / 'config' / 'fastdds_large_messages.xml'


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ROS_DISTRO', 'kilted')
    return monkeypatch


def shared_memory(machine: pytest.MonkeyPatch, megabytes: int) -> None:
    machine.setattr(os, 'statvfs', lambda path: SimpleNamespace(
        f_blocks=megabytes * 256, f_frsize=4096))


def test_without_a_profile_and_with_one_that_is_not_there(machine: pytest.MonkeyPatch) -> None:
    assert qos.large_message_note('rmw_cyclonedds_cpp') == ''
    assert 'no Fast DDS profile is set' in qos.large_message_note('rmw_fastrtps_cpp')
    machine.setenv(PROFILE_VARIABLES[1], '/no/such.xml')
    assert '/no/such.xml does not exist' in qos.large_message_note('rmw_fastrtps_cpp')


@pytest.mark.parametrize(('distribution', 'own', 'other_counts'), [
    ('humble', 1, False), ('jazzy', 1, False), ('kilted', 0, True)])
def test_the_variable_is_that_of_the_distribution(
        machine: pytest.MonkeyPatch, distribution: str, own: int, other_counts: bool) -> None:
    machine.setenv('ROS_DISTRO', distribution)
    machine.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_blocks=1 << 20, f_frsize=4096))
    machine.setenv(PROFILE_VARIABLES[1 - own], str(PROFILE))
    note = qos.large_message_note('rmw_fastrtps_cpp')
    assert (note == '') is other_counts
    assert other_counts or f'set {PROFILE_VARIABLES[own]} to' in note
    machine.setenv(PROFILE_VARIABLES[own], str(PROFILE))
    assert qos.large_message_note('rmw_fastrtps_cpp') == ''


def test_shared_memory_of_a_container_is_too_small(machine: pytest.MonkeyPatch) -> None:
    machine.setenv(PROFILE_VARIABLES[0], str(PROFILE))
    shared_memory(machine, 64)
    note = qos.large_message_note('rmw_fastrtps_cpp')
    assert '/dev/shm has 67 MB, and each process takes 67 MB of it' in note
    assert '--shm-size=512m or --ipc=host' in note
    shared_memory(machine, 256)
    assert qos.large_message_note('rmw_fastrtps_cpp') == ''


def test_profile_without_segments_needs_none(
        machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = tmp_path / 'udp.xml'
    profile.write_text('<dds/>')
    machine.setenv(PROFILE_VARIABLES[0], str(profile))
    shared_memory(machine, 1)
    assert qos.large_message_note('rmw_fastrtps_cpp') == ''
