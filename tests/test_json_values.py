"""Conversion of values to JSON."""

import datetime
import json

import numpy as np
import pytest

from thinkml.json_values import to_json_value


def test_arrays_scalars_and_containers_become_json_values():
    values = {
        'array': np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32),
        'scalars': (np.int64(3), np.bool_(True), np.str_('a'), np.float64(0.25)),
        'plain': [None, True, 7, 'b', float('nan')],
        1: {'nested': {}},
    }
    converted = to_json_value(values)
    assert converted == {
        'array': [[1.5, None], [None, None]],
        'scalars': [3, True, 'a', 0.25],
        'plain': [None, True, 7, 'b', None],
        '1': {'nested': {}},
    }
    assert json.loads(json.dumps(converted, allow_nan=False)) == converted


def test_other_values_are_converted_or_left_for_json_to_refuse():
    day = datetime.date(2026, 1, 2)
    assert to_json_value({'day': [day]}, str) == {'day': ['2026-01-02']}
    kept = to_json_value({'day': [day]})
    assert kept == {'day': [day]}
    with pytest.raises(TypeError, match='not JSON serializable'):
        json.dumps(kept)
