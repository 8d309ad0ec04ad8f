"""Nothing stays behind on the CPU, and nothing that needs digits is computed in half precision.

There is no GPU where these tests run. A tensor on the `meta` device mixes with one on the CPU as
little as one on a GPU does, so arithmetic that is run on it finds what was made on the CPU; where
values decide what happens next, the source is read instead.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
import depth_node.training as training  # noqa: E402
from depth_node.training import direct_vo, geometry  # noqa: E402
from depth_node.training.losses import LOSSES  # noqa: E402
from depth_node.training.losses.photometric import (  # noqa: E402
    consistent_flow,
    explainability_loss,
    minimum_reprojection,
    photometric_error,
)
from depth_node.training.losses.ranking import (  # noqa: E402
    chen_ranking_loss,
    megadepth_ordinal_loss,
    xian_ranking_loss,
)
from depth_node.training.losses.set_loss import set_loss  # noqa: E402
from depth_node.training.losses.smoothness import (  # noqa: E402
    edge_aware_smoothness,
    normalise_inv_depth,
    second_order_smoothness,
)
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.objectives.multi_task import normals_from_depth  # noqa: E402
from depth_node.training.objectives.semi_supervised import stereo_warp  # noqa: E402
from depth_node.training.objectives.two_streamed import Move  # noqa: E402
from depth_node.training.registry import resolve  # noqa: E402

ROOT = Path(training.__file__).parent
MAKERS = ('zeros', 'ones', 'full', 'empty', 'tensor', 'arange', 'eye', 'linspace', 'rand', 'randn')
# Draws of a generator of the CPU, which do not depend on the device, and are moved to it after.
DRAWN_ON_THE_CPU = {
    ('losses/ranking.py', 'rand'),
    ('objectives/two_streamed.py', 'rand'),
}
# Made with a module, and moved with it.
BUFFERS = {
    ('objectives/semi_supervised.py', 'zeros'), ('objectives/ordinal.py', 'zeros'),
    ('networks/confidence.py', 'zeros'), ('networks/confidence.py', 'ones'),
}  # fmt: skip


def test_every_tensor_is_made_on_the_device_of_its_inputs():
    places = [ROOT / 'geometry.py', ROOT / 'direct_vo.py']
    for folder in ('losses', 'objectives', 'networks'):
        places += sorted((ROOT / folder).rglob('*.py'))
    found = set()
    for path in places:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == 'torch'
                and node.func.attr in MAKERS
                and 'device' not in {keyword.arg for keyword in node.keywords}
            ):
                found.add((path.relative_to(ROOT).as_posix(), node.func.attr))
    assert found == DRAWN_ON_THE_CPU | BUFFERS


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device='meta')


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_registered_losses_stay_on_the_device(name):
    maps, valid = meta(2, 1, 24, 32), meta(2, 1, 24, 32, dtype=torch.bool)
    assert resolve(LOSSES, name, 'loss')(maps, maps, valid).is_meta


def test_the_other_losses_stay_on_the_device():
    pairs, known = meta(2, 9), meta(2, 9, dtype=torch.bool)
    picture, flow = meta(2, 3, 24, 32), meta(2, 2, 24, 32)
    errors, seen = meta(2, 4, 24, 32), meta(2, 4, 24, 32, dtype=torch.bool)
    results = [
        *(
            loss(pairs, pairs, meta(2, 9, dtype=torch.int8), known)
            for loss in (chen_ranking_loss, xian_ranking_loss, megadepth_ordinal_loss)
        ),
        photometric_error(picture, picture),
        minimum_reprojection(errors, seen, identity=errors).error,
        explainability_loss(flow),
        consistent_flow(flow, flow),
        set_loss(errors, seen),
        edge_aware_smoothness(flow, picture),
        second_order_smoothness(normalise_inv_depth(meta(2, 1, 24, 32))),
    ]
    assert all(result.is_meta for result in results)


def test_geometry_stays_on_the_device():
    depth, image, K = meta(2, 1, 24, 32), meta(2, 3, 24, 32), meta(2, 3, 3)
    pose = geometry.euler_pose(meta(2, 6))
    results = [
        geometry.axis_angle_pose(meta(2, 6)),
        geometry.invert_pose(pose),
        geometry.inverse_warp(image, depth, pose, K).image,
        geometry.rigid_flow(depth, pose, K)[0],
        geometry.flow_warp(image, meta(2, 2, 24, 32))[0],
        geometry.scale_intrinsics(K, (24, 32), (12, 16)),
        normals_from_depth(depth, K),
        stereo_warp(image, depth, K, K, meta(2))[0],
        *Move(True, 1, -2).of_map(depth),
        Move(True, 1, -2).of_picture(image, (12, 16)),
        direct_vo._no_motion(image),
        direct_vo._Level(image, image, depth, K, K).jacobian,
    ]
    assert all(result.is_meta for result in results)


def test_pictures_of_a_set_are_moved_by_whole_coordinates_in_mixed_precision():
    """Half a pixel off otherwise: coordinates of 300 columns in eight bits."""
    rgb = torch.rand(2, 3, 9, 301, generator=torch.Generator().manual_seed(0))
    move = Move(False, 3, 0)
    expected = move.of_picture(rgb, (9, 301))
    assert torch.allclose(expected[..., :-3], rgb[..., 3:], atol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(move.of_picture(rgb, (9, 301)), expected)


@pytest.mark.parametrize(
    ('name', 'options', 'head', 'largest', 'smallest'),
    [
        ('sfmlearner', {}, 'disp_net.heads.3', 10.01, 0.01),
        ('geonet', {'encoder': 'resnet50'}, 'disp_net.decoder.heads.3', 5.01, 0.01),
        ('monodepth2', {}, 'decoder.heads.3', 10.0, 0.01),
    ],
)
def test_inverse_depth_is_made_in_full_precision(name, options, head, largest, smallest):
    """Eight bits of an inverse depth are steps of a tenth of its second differences."""
    torch.manual_seed(0)
    network = build_network(name, size_hw=(64, 96), **options).eval()
    logits = []
    network.get_submodule(head).register_forward_hook(lambda *call: logits.append(call[-1]))
    batch = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        (found, *_) = network.inv_depths(batch)
    assert logits[0].dtype == torch.bfloat16
    assert found.dtype == torch.float32
    expected = smallest + (largest - smallest) * logits[0].double().sigmoid()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_log_depth_of_the_bundled_network_is_made_in_full_precision():
    """Log depth of 2 m in bfloat16 has steps of 0.4 %: a flat wall would become stairs."""
    torch.manual_seed(0)
    network = build_network('small', size_hw=(64, 96), pretrained=False).eval()
    maps = []
    network.head.register_forward_hook(lambda *call: maps.append(call[1:]))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found = network(torch.randn(1, 3, 64, 96))
    ((features,), log_depth), = maps
    assert features.dtype == log_depth.dtype == found.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())  # what leads there is half
    values = torch.nn.functional.pixel_shuffle(log_depth, 2)
    assert not torch.equal(values, values.bfloat16().float())
    torch.testing.assert_close(found, values.exp())
