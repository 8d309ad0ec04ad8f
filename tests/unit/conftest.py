"""Tiny networks with cards, whose output is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from depth_node.model_card import ModelCard, check_input, file_sha256, statistics_of
import numpy as np
import pytest

SIZE_HW = (24, 40)


def tiny_depth(rgb: np.ndarray, gain: float = 0.02, offset: float = 0.5) -> np.ndarray:
    """What the tiny network computes: gain times the mean of (r, 2g, 3b), plus offset, [m]."""
    return gain * (rgb.astype(np.float64) @ [1, 2, 3]) / 3 + offset


@pytest.fixture
def tiny_card(tmp_path: Path) -> Callable[..., ModelCard]:
    """Return a maker of cards with ONNX files; needs the onnx package."""
    onnx = pytest.importorskip('onnx')
    from onnx import TensorProto, helper, numpy_helper

    def graph(path: Path, *, layout: str, size_hw: tuple[int, int] | None, gain: float,
              offset: float, poison: float | None, work: int, identity: bool,
              outputs: dict[str, str]) -> None:
        height, width = size_hw or ('h', 'w')
        nodes, constants = [], []

        def constant(name: str, value: object) -> str:
            constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
            return name

        if layout == 'uint8_nhwc':
            source = helper.make_tensor_value_info(
                'image', TensorProto.UINT8, [1, height, width, 3])
            nodes += [helper.make_node('Cast', ['image'], ['real'], to=TensorProto.FLOAT),
                      helper.make_node('Transpose', ['real'], ['nchw'], perm=[0, 3, 1, 2])]
        else:
            source = helper.make_tensor_value_info(
                'image', TensorProto.FLOAT, [1, 3, height, width])
            nodes.append(helper.make_node('Identity', ['image'], ['nchw']))
        weights = constant('weights', gain / 3 * np.array([1, 2, 3]).reshape(1, 3, 1, 1))
        last = 'sum' if identity else 'depth'
        nodes.append(helper.make_node(
            'Conv', ['nchw', weights, constant('bias', [offset])], [last], kernel_shape=[1, 1]))
        if poison is not None:  # 0 / 0 or 1 / 0 in every pixel
            constants.append(numpy_helper.from_array(np.float32(poison), 'poison'))
            nodes += [helper.make_node('Mul', [last, constant('zero', 0.0)], ['zeros']),
                      helper.make_node('Add', ['zeros', 'poison'], ['poisoned']),
                      helper.make_node('Div', ['poisoned', 'zeros'], ['broken'])]
            last = 'broken'
        for step in range(work):  # costs time, changes nothing: wide layers times zero
            wide = constant(f'wide{step}', np.zeros((256, 256, 3, 3)))
            up = constant(f'up{step}', np.ones((256, 1, 1, 1)))
            down = constant(f'down{step}', np.ones((1, 256, 1, 1)))
            nodes += [
                helper.make_node('Conv', [last, up], [f'a{step}'], kernel_shape=[1, 1]),
                helper.make_node('Conv', [f'a{step}', wide], [f'b{step}'], kernel_shape=[3, 3],
                                 pads=[1, 1, 1, 1]),
                helper.make_node('Conv', [f'b{step}', down], [f'c{step}'], kernel_shape=[1, 1]),
                helper.make_node('Add', [last, f'c{step}'], [f'd{step}'])]
            last = f'd{step}'
        results = []
        for name, kind in outputs.items():
            if kind == 'depth':
                if last != name:
                    nodes.append(helper.make_node('Identity', [last], [name]))
                shape = [1, 1, height, width]
            elif kind == 'confidence':
                nodes.append(helper.make_node('Sigmoid', [last], [name]))
                shape = [1, 1, height, width]
            else:  # 'flat': a vector
                nodes.append(helper.make_node('Flatten', [last], [name]))
                shape = [1, height * width if size_hw else 'n']
            results.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        model = helper.make_model(
            helper.make_graph(nodes, 'tiny', [source], results, constants),
            opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
        onnx.save(model, str(path))

    def make(
        name: str = 'tiny', *, folder: Path = tmp_path, layout: str = 'uint8_nhwc',
        colour: str = 'rgb', size_hw: tuple[int, int] | None = SIZE_HW, dynamic: bool = False,
        gain: float = 0.02, offset: float = 0.5, int8_gain: float | None = None,
        poison: float | None = None, work: int = 0, check: bool = True, identity: bool = True,
        outputs: dict[str, str] | None = None, changes: dict[str, dict] | None = None,
    ) -> ModelCard:
        """Write <name>.onnx, <name>.yaml and perhaps <name>.int8.onnx; return the card.

        `changes` overrides keys of the card's sections, which makes it lie.
        """
        outputs = outputs or {'depth': 'depth'}
        model_hw = None if dynamic else size_hw
        parts = {'layout': layout, 'size_hw': model_hw, 'offset': offset, 'poison': poison,
                 'work': work, 'identity': identity, 'outputs': outputs}
        graph(folder / f'{name}.onnx', gain=gain, **parts)
        files = {'fp32': {'file': f'{name}.onnx',
                          'sha256': file_sha256(folder / f'{name}.onnx')}}
        if int8_gain is not None:  # 'int8' by name only: what counts here is the choice
            graph(folder / f'{name}.int8.onnx', gain=int8_gain, **parts)
            files['int8'] = {'file': f'{name}.int8.onnx',
                             'sha256': file_sha256(folder / f'{name}.int8.onnx')}
        spec = {'name': 'image', 'layout': layout, 'colour': colour, 'resize': 'stretch'}
        if layout == 'float32_nchw':
            spec.update(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 5.0])
        if dynamic:
            spec.update(resize='keep_aspect', multiple_of=8, min_hw=[16, 16], max_hw=[80, 80])
        else:
            spec['size_hw'] = list(size_hw)
        raw = {
            'card_version': 1, 'name': name, 'licence': 'Apache-2.0', 'files': files,
            'input': spec,
            'output': {'name': 'depth', 'kind': 'depth', 'unit': 'm', 'range_m': [0.2, 40.0]},
            'provenance': {'command': 'a test'}, 'metrics': {}}
        if 'confidence' in outputs:
            raw['output']['confidence'] = 'confidence'
        if check:
            picture = check_input(5, size_hw).astype(np.float64)[0]
            if colour == 'bgr':
                picture = picture[..., ::-1]
            if layout == 'float32_nchw':
                picture = (picture - spec['mean']) / spec['std']
            mean, std, percentiles = statistics_of(tiny_depth(picture, gain, offset))
            raw['check'] = {
                'seed': 5, 'size_hw': list(size_hw), 'mean': mean, 'std': std,
                'percentiles': percentiles, 'tolerance': {'fp32': 0.001, 'int8': 0.02}}
        for section, keys in (changes or {}).items():
            raw[section].update(keys)
        card = ModelCard.from_dict(raw, folder / f'{name}.yaml')
        card.save()
        return card

    return make
