"""Windows of tokens are views of the stream, with the next token of each as its target."""

import numpy as np
import pytest

from thinkml.data import token_windows
from thinkml.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ('count', 'length', 'stride'), [(8, 3, None), (7, 3, None), (20, 4, 2), (5, 4, 1)]
)
def test_each_target_is_the_token_after(count, length, stride):
    tokens = np.arange(100, 100 + count, dtype=np.uint16)
    x, y = token_windows(tokens, length, stride=stride)
    np.testing.assert_array_equal(x + 1, y)
    starts = x[:, 0] - 100
    np.testing.assert_array_equal(np.diff(starts), (stride or length))
    assert starts[0] == 0 and starts[-1] + length < count <= starts[-1] + length + (
        stride or length
    )
    assert np.shares_memory(x, tokens) and np.shares_memory(y, tokens)


def test_a_memory_map_stays_on_disk(tmp_path):
    np.arange(50, dtype=np.uint16).tofile(tmp_path / 'tokens.bin')
    tokens = np.memmap(tmp_path / 'tokens.bin', np.uint16, 'r')
    x, y = token_windows(tokens, 8)
    assert isinstance(x, np.memmap) and isinstance(y, np.memmap)
    assert x.shape == y.shape == (6, 8)


@pytest.mark.parametrize(
    ('tokens', 'length', 'error', 'match'),
    [
        (np.arange(4), 4, DataError, 'got 4 of them for windows of 4, expected at least 5'),
        (np.ones(9), 4, DataError, 'got float64'),
        (np.ones((3, 3), int), 2, DataError, r'shape \(3, 3\)'),
        (np.arange(9), 0, ConfigError, 'length: got 0'),
        (np.arange(9), 2.5, ConfigError, 'length: got 2.5'),
    ],
)
def test_other_values_are_refused(tokens, length, error, match):
    with pytest.raises(error, match=match):
        token_windows(tokens, length)
