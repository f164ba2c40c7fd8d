import math

import numpy as np
import pytest

from thinkml.monitoring import History, training_figure


def run(epochs: int, steps: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    history = History()
    for _ in range(epochs):
        losses = rng.random(steps)
        history.add_steps(losses)
        history.add_epoch(
            {'loss': losses.mean(), 'val_loss': rng.random(), 'accuracy': rng.random()}
        )
    return history


def curves(axes) -> list[tuple[str, str, list, list]]:
    """Returns label, style, x and y of the curves, without the lines that mark epochs."""
    return [
        (line.get_label(), line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_transform() == axes.transData
    ]


def marks(axes, label: str) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_label() == label]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_is_solid_and_validation_dashed():
    history = run(3, 4)
    loss, metric = training_figure([history]).axes
    assert curves(loss) == [
        ('loss', '-', [1, 2, 3], history['loss']),
        ('val_loss', '--', [1, 2, 3], history['val_loss']),
    ]
    assert curves(metric) == [('accuracy', '-', [1, 2, 3], history['accuracy'])]
    assert len({line.get_color() for line in loss.lines}) == 1
    assert (loss.get_ylabel(), metric.get_ylabel()) == ('loss', 'accuracy')
    assert (loss.get_xlabel(), metric.get_xlabel()) == ('epoch', 'epoch')


def test_runs_follow_one_another():
    first, second = run(3, 4), run(2, 4, seed=1)
    first.best_epoch, second.best_epoch = 2, 1
    loss, metric = training_figure([first, second]).axes
    assert [(label, x) for label, _, x, _ in curves(loss)] == [
        ('loss', [1, 2, 3]),
        ('val_loss', [1, 2, 3]),
        ('loss', [4, 5]),
        ('val_loss', [4, 5]),
    ]
    assert [y for *_, y in curves(metric)] == [first['accuracy'], second['accuracy']]
    assert marks(loss, 'best epoch') == marks(metric, 'best epoch') == [2, 4]
    assert legend(loss) == ['loss', 'val_loss', 'best epoch']


def test_interval_draws_the_loss_over_steps():
    first, second = run(2, 5), run(1, 5, seed=1)
    first.best_epoch = 1
    loss, metric = training_figure([first, second], interval=4).axes
    losses = first.step_loss.astype(float)
    means = [losses[:4].mean(), losses[4:8].mean(), losses[8:].mean()]
    (_, _, x, y), (_, _, val_x, val_y), (_, _, second_x, _), _ = curves(loss)
    assert x == [4, 8, 10]
    np.testing.assert_allclose(y, means, rtol=1e-12)
    assert (val_x, val_y) == ([5, 10], first['val_loss'])
    assert second_x == [14, 15]
    assert [x for _, _, x, _ in curves(metric)] == [[5, 10], [15]]
    assert marks(loss, 'best epoch') == [5]
    assert (loss.get_xlabel(), metric.get_xlabel()) == ('step', 'step')


def test_interval_shows_a_first_epoch_that_has_not_ended():
    history = History()
    history.add_steps(np.array([1.0, 0.5]))
    [loss] = training_figure([history], interval=1).axes
    assert curves(loss) == [('loss', '-', [1, 2], [1.0, 0.5])]


def test_names_choose_curves_and_panels():
    history = run(3, 4)
    history.add_epoch({'loss': 0.1, 'f1': 0.5, 'val_f1': 0.25})

    def shown(metrics):
        return [
            [label for label, *_ in curves(axes)]
            for axes in training_figure([history], metrics).axes
        ]

    assert shown(['loss']) == [['loss', 'val_loss']]
    assert shown(['val_loss']) == [['val_loss']]
    assert shown(['f1', 'loss']) == [['loss', 'val_loss'], ['f1', 'val_f1']]
    assert shown(None) == [['loss', 'val_loss'], ['accuracy', 'f1', 'val_f1']]


class Growing(History):
    """A history to which another thread adds an epoch whenever a value is read."""

    def grow(self):
        self.add_steps([1.0])
        self.add_epoch({'loss': 1.0, 'val_loss': 2.0, 'accuracy': 0.5})

    def __getitem__(self, name):
        self.grow()
        return super().__getitem__(name)

    @property
    def step_loss(self):
        self.grow()
        return super().step_loss


@pytest.mark.parametrize('interval', [None, 1, 3])
def test_a_history_that_grows_while_it_is_drawn(interval):
    history = Growing()
    history.grow()
    history.best_epoch = 1
    figure = training_figure([history, run(2, 4)], interval=interval)
    for axes in figure.axes:
        assert all(len(x) == len(y) for _, _, x, y in curves(axes))
        starts = {label: x for label, _, x, _ in reversed(curves(axes))}
        assert max(len(x) for x in starts.values()) <= 2  # from one snapshot


def test_epochs_without_a_value_are_bridged():
    history = History()
    for value in [0.5, math.nan, 0.25, math.inf]:
        history.add_epoch({'loss': 1.0, 'val_loss': value})
    [loss] = training_figure([history]).axes
    assert curves(loss)[1] == ('val_loss', '--', [1, 3], [0.5, 0.25])


@pytest.mark.parametrize(
    ('metrics', 'labels'),
    [(None, ['loss', 'metric']), (['loss'], ['loss']), (['loss', 'f1'], ['loss', 'f1'])],
)
def test_empty_axes_say_so(metrics, labels):
    axes = training_figure([], metrics).axes
    assert [panel.get_ylabel() for panel in axes] == labels
    assert [panel.texts[0].get_text() for panel in axes] == ['no data yet'] * len(labels)


# --- events, the best epoch, and values of other scales ---------------------------------------


def events(axes) -> list[tuple[float, str]]:
    return sorted((text.xy[0], text.get_text()) for text in axes.texts if hasattr(text, 'xy'))


def lines_at(axes) -> set[float]:
    """Returns the positions of the thin lines that mark events."""
    return {line.get_xdata()[0] for line in axes.lines if line.get_linewidth() < 1}


EVENTS = {
    'early stopping: val_loss has not improved for 10 epochs': 'early stopping',
    'the loss is nan at step 12 (epoch 3): training has diverged.': 'diverged',
    'the gradient is not finite at step 12 (epoch 3)': 'diverged',
    'learning rate lowered to 0.0001': 'rate lowered',
    'validation loss has risen since epoch 1': 'val_loss rises',
    'validation loss is nan': 'val_loss not finite',
    'max_time is over': 'time is over',
    'interrupted': 'interrupted',
    'something that takes many words to say': 'something that take…',
}


@pytest.mark.parametrize('text', EVENTS)
def test_events_are_marked_with_a_few_words(text):
    history = run(3, 4)
    history.events.append((2, text))
    loss, metric = training_figure([history]).axes
    assert events(loss) == events(metric) == [(2, EVENTS[text])]
    loss, metric = training_figure([history], interval=2).axes
    assert events(loss) == events(metric) == [(8, EVENTS[text])]


def test_what_ends_a_run_within_an_epoch_is_at_its_last_step():
    history = run(2, 4)
    history.add_steps([1.0, 2.0, math.nan])
    history.events += [(2, 'learning rate lowered to 0.1'), (2, 'the loss is nan at step 11')]
    assert events(training_figure([history], interval=1).axes[0]) == [
        (8, 'rate lowered'),
        (11, 'diverged'),
    ]
    assert events(training_figure([history]).axes[0]) == [(2, 'rate lowered, diverged')]


def test_where_it_was_resumed_is_marked():
    first, second = run(2, 4), run(4, 4, seed=1)
    second.resumed_at += [6, 8]
    loss, _ = training_figure([first, second]).axes
    assert events(loss) == [(3.5, 'resumed'), (4, 'resumed')]  # in its second epoch, and after it
    loss, _ = training_figure([first, second], interval=1).axes
    assert events(loss) == [(14, 'resumed'), (16, 'resumed')]


def test_crowded_events_keep_their_lines_and_lose_their_words():
    history = run(100, 1)
    history.events += [(epoch, 'learning rate lowered to 0.1') for epoch in (50, 51, 52, 97)]
    history.events.append((99, 'early stopping: enough'))
    loss, _ = training_figure([history]).axes
    assert events(loss) == [(52, 'rate lowered'), (99, 'early stopping')]
    assert lines_at(loss) == {50, 51, 52, 97, 99}


def test_the_best_epoch_has_a_star_on_what_was_validated():
    history = run(3, 4)
    history.best_epoch = 2
    loss, metric = training_figure([history]).axes
    (star,) = loss.collections
    assert star.get_offsets().tolist() == [[2, history['val_loss'][1]]]
    assert not metric.collections  # accuracy was not


def test_values_of_other_scales_have_panels_of_their_own():
    history = run(3, 4)
    history.best_epoch = 1
    history.events.append((2, 'interrupted'))
    extra = {
        'bytes_in_use': 1e9, 'peak_bytes_in_use': 2e9, 'learning_rate': 0.1, 'step_seconds': 2e-3,
        'input_wait': 0.25, 'grad_norm': 3.0, 'update_ratio': 1e-3, 'examples_per_second': 2e4,
        'elements_per_second': 3e6, 'mfu': 0.4,
    }  # fmt: skip
    history.add_epoch({'loss': 0.5} | extra)
    figure = training_figure([history])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        'loss', 'accuracy', 'learning_rate', 'grad_norm', 'update_ratio', 'step_seconds',
        'input_wait', 'examples_per_second', 'elements_per_second', 'mfu', 'device memory',
    ]  # fmt: skip
    figure.canvas.draw()
    ticks = [axes.get_yticklabels()[-1].get_text()[-1] for axes in figure.axes[-6:]]
    assert ticks == ['s', '%', 'k', 'M', '%', 'B']
    for axes in figure.axes[2:]:
        assert axes.get_ylim()[0] == 0 and not marks(axes, 'best epoch')
        assert lines_at(axes) == {2} and not events(axes)  # the words are above the top row
    assert legend(figure.axes[-1]) == ['bytes_in_use', 'peak_bytes_in_use']


def test_metrics_differ_without_colours():
    history = run(40, 1)
    for _ in range(3):
        history.add_epoch({'accuracy': 0.5, 'val_accuracy': 0.4, 'f1': 0.3})
    _, metric = training_figure([history]).axes
    looks = [
        (line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() == 'white')
        for line in metric.lines
    ]
    assert len(set(looks)) == len(looks) == 3


def test_panels_say_what_is_missing():
    def said(history, **options):
        return [axes.texts[0].get_text() for axes in training_figure([history], **options).axes]

    history = History()
    history.add_steps([1.0, math.nan])
    history.events.append((0, 'the loss is nan at step 2'))
    assert said(history) == ['no epoch has ended yet\ndiverged'] * 2
    assert said(run(2, 4), metrics=['acuracy']) == ['acuracy: not recorded']
