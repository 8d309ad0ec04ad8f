"""The systems of the literature that this package trains, and the table of them in the docs.

`python -m depth_node.training.systems > docs/systems.md` writes the table; parameter counts and
sizes in it are counted from the networks that the presets build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from depth_node.model_card import share_folders
from depth_node.training.config import TrainConfig, load_config
from depth_node.training.networks import DepthNetwork, build_network, untrained
import torch


@dataclass(frozen=True)
class System:
    """What is published about a system.

    Attributes:
        key: number in the table.
        title: its name.
        source: the paper.
        presets: names of its files in config/train.
        published_m: parameters in the paper or its authors' code, millions; None = not stated.
        difference: why our count differs, or where the published one comes from; millions.
        results: what the paper reports.
        tolerance: share by which our count may differ from the published one.
    """

    key: str
    title: str
    source: str
    presets: tuple[str, ...]
    results: str
    published_m: float | None = None
    difference: str = ''
    tolerance: float = 0.01


SYSTEMS = (
    System(
        'S1', 'small and tiny (the bundled models)', 'this project',
        ('small_coarse', 'small', 'tiny', 'small_confidence'),
        'README and the model card have its measured errors',
    ),
    System(
        'S2', 'Eigen 2014, coarse + fine, NYU', 'arXiv:1406.2283',
        ('eigen14_coarse', 'eigen14_fine'),
        'NYU rel .215, RMS .907, delta1 .611', 70.8,
        "the published number is the sum of the layers in the paper's table (fc6 50.3, fc7 16.7, "
        'coarse convolutions 3.7, fine .12)', 0.005,
    ),
    System(
        'S2', 'Eigen 2014, coarse + fine, KITTI', 'arXiv:1406.2283',
        ('eigen14_kitti_coarse', 'eigen14_kitti_fine'),
        'KITTI rel .190, RMS 7.156, delta1 .692',
        difference='the wider picture enlarges fc6 from 50.3 to 71.3',
    ),
    System(
        'S3', 'Eigen & Fergus 2015, three scales', 'arXiv:1411.4734',
        ('eigen_fergus15_scale12', 'eigen_fergus15_scale3'),
        'NYU (VGG) rel .158, RMS .641, delta1 .769; normals mean 20.9 deg',
    ),
    System(
        'S4', 'FCRN, up-projection', 'arXiv:1606.00373', ('fcrn',),
        'NYU rel .127, RMS .573, log10 .055, delta1 .811; Make3D C1 .176 / .072 / 4.46', 63.6,
    ),
    System(
        'S4', 'FCRN, up-convolution', 'arXiv:1606.00373', ('fcrn_upconv',),
        'NYU rel .132, RMS .604, delta1 .789', 43.1,
    ),
    System(
        'S5', 'DenseDepth, full width', 'arXiv:1812.11941', ('densedepth',),
        'NYU rel .123, RMS .465 (released code and weights .1234, .5485), delta1 .846', 42.6,
        "Keras' summary counts the running statistics of the norms too, then it is 42.8",
    ),
    System(
        'S5', 'DenseDepth, half width', 'the released code', ('densedepth_half',),
        'the width that the authors advise', 21.5,
        "as Keras' summary counts, with the running statistics of the norms: 21.52 here too", 0.01,
    ),
    System(
        'S6', 'U-Net on DIODE', 'Keras depth_estimation example; Chapre & Deshpande',
        ('diode_unet_paper', 'diode_unet'), 'no depth metrics reported; loss .72 to .24',
    ),
    System(
        'S7', 'Li 2017, two streams and set loss', 'ICCV 2017', ('two_streamed',),
        'NYU (VGG-16) rel .152, RMS .611, delta1 .789',
    ),
    System(
        'S8', 'Chen 2016, depth in the wild', 'arXiv:1604.03901',
        ('diw_hourglass', 'nyu_relative_hourglass'),
        'DIW WHDR 22.14 % (DIW only), 14.39 % (NYU, then DIW)',
    ),
    System(
        'S9', 'MegaDepth', 'arXiv:1804.00607', ('megadepth',),
        'the hourglass of S8 with scale-invariant, gradient and ordinal losses',
    ),
    System(
        'S10', 'Xian 2018, ReDWeb', 'CVPR 2018', ('redweb', 'midas_redweb'),
        'DIW WHDR 14.33 % (ReDWeb only)',
    ),
    System(
        'S11', 'Kuznietsov 2017, stereo and sparse LiDAR', 'arXiv:1702.02706',
        ('semi_supervised',), 'KITTI (80 m) rel .113, RMS 4.621, delta1 .862',
    ),
    System(
        'S12', 'SfMLearner', 'arXiv:1704.07813', ('sfmlearner',),
        'KITTI rel .208 (released .183), RMS 6.856, delta1 .678',
    ),
    System(
        'S13', 'GeoNet', 'arXiv:1803.02276', ('geonet_rigid', 'geonet_flow'),
        'KITTI rel .155 (.149 normalised), RMS 5.857, delta1 .793',
    ),
    System(
        'S14', 'DDVO', 'arXiv:1712.00175', ('ddvo',),
        'KITTI rel .151, RMS 5.583, delta1 .810',
    ),
    System(
        '', 'Monodepth2', 'arXiv:1806.01260', ('monodepth2', 'monodepth2_stereo'),
        'KITTI (M, 640x192) rel .115, RMS 4.863, delta1 .877',
    ),
    System(
        '', 'FastDepth', 'arXiv:1903.03273', ('fastdepth',), 'NYU RMS .604, delta1 .771', 3.93,
        'the published number counts the weights of the convolutions, 3.93 here too; the rest '
        'are norms',
    ),
)  # fmt: skip


def presets_folder() -> Path:
    """Find config/train, in the clone or beside the installed package.

    Raises:
        FileNotFoundError: the package was installed without its configuration.
    """
    folders = [folder / 'config' / 'train' for folder in share_folders()]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f'no presets: none of {", ".join(map(str, folders))} exists')


def preset(name: str) -> TrainConfig:
    """Read a preset."""
    return load_config(presets_folder() / f'{name}.yaml')


def network_of_preset(config: TrainConfig) -> DepthNetwork:
    """Build a preset's network without weights or memory."""
    name = config.network.name
    with torch.device('meta'):
        return build_network(name, **{**config.network.options, **untrained(name)})


def parameters_m(network: DepthNetwork) -> float:
    """Count the parameters, millions, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def table() -> str:
    """Write the Markdown page."""
    lines = [
        '# Systems',
        '',
        'Written by `python -m depth_node.training.systems > docs/systems.md`. Parameters and',
        "sizes are counted from the networks that the presets build; the papers' results are",
        'quoted, not reproduced: their data sets cannot be had where this is built. What is',
        'checked here, by `make test` and `make sweep`: layer sizes and parameter counts, every',
        "loss against a closed form, falling loss on a small set in the data set's own format,",
        'evaluation, and the exported ONNX against torch in ONNX Runtime and OpenVINO.',
        '',
        '| system | source | preset | data set | parameters [M] | paper [M] | input -> output '
        '| output is | paper reports |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    notes = []
    for system in SYSTEMS:
        for name in system.presets:
            config = preset(name)
            network = network_of_preset(config)
            published = '-' if system.published_m is None else f'{system.published_m:g}'
            first = name == system.presets[0]
            lines.append(
                f'| {f"{system.key} {system.title}".strip() if first else ""} '
                f'| {system.source if first else ""} '
                f'| [{name}](../config/train/{name}.yaml) | {config.data.kind} '
                f'| {parameters_m(network):.2f} | {published if first else ""} '
                f'| {_size(network.size_hw)} -> {_size(network.output_hw)} '
                f'| {network.output_kind} | {system.results if first else ""} |'
            )
        if system.difference:
            notes.append(f'- {system.title}: {system.difference}.')
    if notes:
        lines += ['', *notes]
    return '\n'.join(lines) + '\n'


def _size(size_hw: tuple[int, int]) -> str:
    return f'{size_hw[0]}x{size_hw[1]}'


if __name__ == '__main__':
    print(table(), end='')
