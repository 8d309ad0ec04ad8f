"""What a network is trained for: from its outputs and a batch to one number and its parts."""

from __future__ import annotations

from typing import Any

from depth_node.training.objectives.base import Objective
from depth_node.training.registry import construct, resolve

__all__ = ['OBJECTIVES', 'Objective', 'build_objective']

_HERE = 'depth_node.training.objectives'
OBJECTIVES = {
    'supervised': f'{_HERE}.supervised:Supervised',
    'multi_task': f'{_HERE}.multi_task:MultiTask',
    'two_streamed': f'{_HERE}.two_streamed:TwoStreamedObjective',
    'ordinal': f'{_HERE}.ordinal:Ordinal',
    'semi_supervised': f'{_HERE}.semi_supervised:SemiSupervised',
    'confidence': f'{_HERE}.confidence:Confidence',
    'self_supervised': f'{_HERE}.self_supervised:SelfSupervised',
}


def build_objective(name: str, **options: Any) -> Objective:
    """Make an objective by its name in the configuration.

    Raises:
        OptionError: no objective has this name, or it refuses an option.
    """
    objective = resolve(OBJECTIVES, name, 'objective')
    built = construct(objective, f'objective.options of {name}', **options)
    assert isinstance(built, Objective)
    return built
