"""Depth networks by name; `build_network` is the only way others make one."""

from __future__ import annotations

import inspect
from typing import Any

from depth_node.training.networks.base import DepthNetwork
from depth_node.training.registry import construct, resolve

__all__ = ['NETWORKS', 'DepthNetwork', 'build_network', 'untrained']

_HERE = 'depth_node.training.networks'
NETWORKS = {
    'small': f'{_HERE}.small:SmallDepthNet',
    'eigen14': f'{_HERE}.eigen14:Eigen14',
    'eigen_fergus15': f'{_HERE}.eigen_fergus15:EigenFergus15',
    'fcrn': f'{_HERE}.fcrn:FCRN',
    'densedepth': f'{_HERE}.densedepth:DenseDepth',
    'diode_unet': f'{_HERE}.diode_unet:DiodeUNet',
    'two_streamed': f'{_HERE}.two_streamed:TwoStreamed',
    'hourglass': f'{_HERE}.hourglass:Hourglass',
    'redweb': f'{_HERE}.redweb:ReDWebNet',
    'semi_supervised': f'{_HERE}.semi_supervised:SemiSupervisedNet',
    'sfmlearner': f'{_HERE}.sfmlearner:SfMLearner',
    'geonet': f'{_HERE}.geonet:GeoNet',
    'ddvo': f'{_HERE}.ddvo:DDVO',
    'monodepth2': f'{_HERE}.monodepth2:Monodepth2',
    'fastdepth': f'{_HERE}.fastdepth:FastDepth',
}


def build_network(name: str, **options: Any) -> DepthNetwork:
    """Make a network by its name in the configuration.

    Raises:
        OptionError: no network has this name, or it refuses an option.
    """
    network = resolve(NETWORKS, name, 'network')
    built = construct(network, f'network.options of {name}', **options)
    assert isinstance(built, DepthNetwork)
    return built


def untrained(name: str) -> dict[str, Any]:
    """Return the options with which a network is built without reading any weights file."""
    known = inspect.signature(resolve(NETWORKS, name, 'network')).parameters
    files = {option: None for option in known if option.endswith('encoder_weights')}
    return {**files, **({'pretrained': False} if 'pretrained' in known else {})}
