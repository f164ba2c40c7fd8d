"""The labelling widget for notebooks."""

import numpy as np
import pytest

from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, LABELED, POOL, X, Y
from thinkml.errors import ConfigError
from thinkml.training import ActiveLearner


def learner_of(**options):
    learner = ActiveLearner(mlp(6, 3), 'margin', config=CONFIG, query_size=4, **options)
    learner.start(X[POOL], X[LABELED], Y[LABELED])
    return learner


def test_each_click_is_a_label():
    learner = learner_of(classes=[0, 1, 2])
    head, place, buttons = learner.ask_in_notebook(show=lambda row: f'this is {row}').children
    asked = learner.history[0].indices.tolist()
    texts = [button.description for button in buttons.children]
    assert texts == ['0', '1', '2', "can't tell"]
    for number, (row, click) in enumerate(zip(asked, (2, 0, 3, 1), strict=True)):
        assert head.value == f'Row {row}, {4 - number} to go'
        assert place.children[0].value == f'this is {row}'
        buttons.children[click].click()
    assert head.value == 'Done.' and not buttons.children
    assert learner.labels == {asked[0]: 2, asked[1]: 0, asked[3]: 1}
    assert not len(learner.waiting)


def test_rows_that_wait_come_first():
    learner = learner_of(classes=[0, 1, 2])
    waiting = learner.query(3).tolist()
    head, _, buttons = learner.ask_in_notebook(4).children
    for row in waiting:
        assert head.value.startswith(f'Row {row},')
        buttons.children[0].click()
    assert len(learner.history) == 2 and len(learner.waiting) == 1


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_images_are_shown(shape):
    learner = learner_of(classes=[0, 1, 2])
    image = np.random.default_rng(0).normal(size=shape)
    _, place, _ = learner.ask_in_notebook(show=lambda row: image).children
    assert bytes(place.children[0].value).startswith(b'\x89PNG')


def test_the_row_itself_is_shown_and_classes_must_be_known():
    _, place, _ = (learner := learner_of(classes=[0, 1, 2])).ask_in_notebook().children
    row = learner.history[0].indices[0]
    assert f'{X[POOL][row][0]:.4f}'[:5] in place.children[0].value
    _, _, buttons = learner_of().ask_in_notebook().children
    assert [button.description for button in buttons.children[:-1]] == ['0', '1', '2']
    learner = ActiveLearner(mlp(6, 3), config=CONFIG)
    learner.start(X[POOL])
    with pytest.raises(ConfigError, match='the possible labels are not known yet'):
        learner.ask_in_notebook()
    with pytest.raises(ConfigError, match='n: got 0'):
        learner_of().ask_in_notebook(0)
