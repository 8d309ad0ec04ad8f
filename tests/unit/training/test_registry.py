"""Names and options of configurations: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

from depth_node.training.registry import OptionError, check_options, construct, resolve
import numpy as np
import pytest


class Made:
    """Takes what a configuration can say."""

    def __init__(
        self,
        root: str = '',
        *,
        size_hw: tuple[int, int] = (2, 4),
        scale: float | None = None,
        steps: int = 1,
        flip: bool = False,
        weights: str | None = None,
        shares: tuple[float, ...] = (),
        anything: object = None,
    ) -> None:
        if size_hw[0] % 2:
            raise ValueError(f'size {size_hw}: must be even')
        self.given = (root, size_hw, scale, steps, flip, weights, shares, anything)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'sise_hw': [2, 4]}, "option 'sise_hw' is not known; expected some of ['anything',"),
        ({'size_hw': 48}, 'size_hw: found 48, expected [a whole number, a whole number]'),
        ({'size_hw': [2, 4, 6]}, 'size_hw: found [2, 4, 6], expected'),
        ({'size_hw': [2, 4.5]}, 'size_hw: found [2, 4.5], expected'),
        ({'size_hw': [3, 4]}, 'size [3, 4]: must be even'),
        ({'scale': 'abc'}, "scale: found 'abc', expected a number or null"),
        ({'scale': True}, 'scale: found True, expected a number or null'),
        ({'steps': 1.5}, 'steps: found 1.5, expected a whole number'),
        ({'flip': 1}, 'flip: found 1, expected true or false'),
        ({'weights': 3}, 'weights: found 3, expected text or null'),
        ({'shares': 'half'}, "shares: found 'half', expected [a number, ...]"),
        ({'shares': [0.5, 'x']}, "shares: found [0.5, 'x'], expected [a number, ...]"),
    ],
)
def test_a_wrong_option_is_refused_in_the_words_of_the_file(options, text):
    with pytest.raises(OptionError) as refused:
        construct(Made, 'network.options of made', **options)
    assert str(refused.value).startswith('network.options of made: ')
    assert text in str(refused.value)


def test_what_yaml_and_callers_give_is_taken():
    made = construct(Made, 'x', 'root', size_hw=[2, 6], scale=3, steps=np.int64(2), flip=True,
                     weights=Path('w.pth'), shares=[1, 0.5], anything={'a': 1})  # fmt: skip
    assert made.given == ('root', [2, 6], 3, 2, True, Path('w.pth'), [1, 0.5], {'a': 1})


def test_an_option_of_something_without_options_is_refused():
    with pytest.raises(OptionError, match="'k' is not known; it takes none"):
        check_options(lambda root: root, {'k': 1}, 'x')


def test_errors_that_are_made_for_users_pass_unchanged():
    class OwnError(ValueError):
        pass

    def refuse(*, size: int) -> None:
        raise OwnError(f'{size}: too large')

    with pytest.raises(OwnError, match=r'^3: too large$'):
        construct(refuse, 'x', size=3)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(OptionError, match=r"network 'smal' is not known; expected one of \['a'"):
        resolve({'small': 'x:y', 'a': 'x:y'}, 'smal', 'network')
