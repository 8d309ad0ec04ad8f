"""Which space a loss of the objective compares in."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks.base import DepthNetwork  # noqa: E402
from depth_node.training.objectives.supervised import Supervised  # noqa: E402
from torch import nn  # noqa: E402

HEIGHT, WIDTH = 11, 18


class Given(DepthNetwork):
    """Returns the depth that the test chose."""

    output_kind = 'depth'

    def __init__(self, depth: torch.Tensor) -> None:
        super().__init__()
        self.size_hw = self.output_hw = (HEIGHT, WIDTH)
        self.depth_range_m = (1e-6, 1e6)
        self.depth = nn.Parameter(depth)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.depth + 0 * batch.sum()


@pytest.fixture
def case():
    rng = np.random.default_rng(8)
    depth, truth = (torch.tensor(rng.uniform(0.5, 4, (2, 1, HEIGHT, WIDTH)), dtype=torch.float32)
                    for _ in range(2))
    valid = torch.tensor(rng.random((2, 1, HEIGHT, WIDTH)) < 0.8)
    batch = {'rgb': torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8),
             'depth': torch.where(valid, truth, 0), 'K': torch.eye(3).expand(2, 3, 3)}
    return Given(depth), batch, depth, truth, valid


def test_each_loss_compares_in_its_own_space(case):
    network, batch, depth, truth, valid = case
    objective = Supervised(losses={
        'l1': {'weight': 2.0, 'space': 'inv_depth'},
        'l2': {'weight': 3.0, 'space': 'log_depth'},
        'log_l1': 0.5,
    })
    found = objective.losses(network, batch)
    apart = {
        'l1': (1 / depth - 1 / truth).abs()[valid].mean(),
        'l2': (depth.log() - truth.log()).square()[valid].mean(),
        'log_l1': (depth.log() - truth.log()).abs()[valid].mean(),
    }
    for name, expected in apart.items():
        assert found[name].item() == pytest.approx(expected.item(), rel=0.05), name
    total = 2 * found['l1'] + 3 * found['l2'] + 0.5 * found['log_l1']
    assert found['loss'].item() == pytest.approx(total.item(), rel=1e-5)
    assert abs(apart['l1'] - (depth - truth).abs()[valid].mean()) > 0.1, 'spaces differ'


@pytest.mark.parametrize(('space', 'term'), [('depth', 'metres'), ('raw', 'inv_depth')])
def test_a_space_that_cannot_be_is_refused(space, term):
    with pytest.raises(ValueError, match=r'losses\.l1: space'):
        Supervised(losses={'l1': {'space': term}}, space=space)
