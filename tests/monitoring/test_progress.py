import sys

import pytest

from thinkml.monitoring import ProgressBar, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, 'perf_counter', lambda: Clock.now)
    return Clock


def drawn(text: str) -> list[str]:
    return [line.strip() for line in text.split('\r') if line.strip()]


def test_it_shows_where_the_run_stands(clock, capsys):
    with ProgressBar(total_steps=100, enabled=True) as bar:
        clock.now = 2.0
        bar.advance(50, 1600, epoch=1, metrics={'loss': 0.75, 'accuracy': 0.5})
        clock.now = 4.0
        bar.advance(25, 800, epoch=2, metrics={'loss': 0.5, 'val_loss': 0.625})
        clock.now = 6.0
        bar.advance(25, 800, epoch=3, metrics={'loss': 0.25})
    out, err = capsys.readouterr()
    lines = drawn(err)
    assert out == ''
    assert '50/100 steps' in lines[1] and '50%' in lines[1] and lines[1].startswith('epoch 1')
    assert 'loss=0.75]' in lines[1]  # the first steps compile: no rate yet
    assert 'accuracy' not in err
    assert 'loss=0.5, val_loss=0.625, 400 examples/s' in lines[2]  # 800 in 2 s
    assert '100/100 steps' in lines[-1] and lines[-1].startswith('epoch 3')
    assert 'loss=0.25, val_loss=0.625' in lines[-1]  # the latest value


def test_it_draws_at_most_ten_times_a_second_and_loses_nothing(clock, capsys):
    with ProgressBar(total_steps=1000, enabled=True) as bar:
        for call in range(1000):
            clock.now = call / 1000
            bar.advance(1, 32, epoch=1, metrics={'loss': float(call)})
    lines = drawn(capsys.readouterr().err)
    assert len(lines) <= 1 + 10 + 2  # the empty bar, one every 0.1 s, the last one and its close
    assert '1000/1000 steps' in lines[-1] and 'loss=999' in lines[-1]


def test_it_is_closed_where_an_exception_passes(capsys):
    with pytest.raises(KeyboardInterrupt), ProgressBar(total_steps=10, enabled=True) as bar:
        bar.advance(4, 128, epoch=1, metrics={'loss': 0.5})
        raise KeyboardInterrupt
    err = capsys.readouterr().err
    assert '4/10 steps' in drawn(err)[-1] and err.endswith('\n')


def test_disabled_means_no_output_and_no_import(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tqdm', None)  # importing it would raise
    with ProgressBar(total_steps=10, enabled=False) as bar:
        bar.advance(10, 320, epoch=1, metrics={'loss': 0.5})
    assert capsys.readouterr() == ('', '')


def test_without_a_total_steps_are_counted(clock, capsys):
    with ProgressBar(total_steps=None, enabled=True) as bar:
        for call in (1, 2, 3):
            clock.now = float(call)
            bar.advance(50, 1600, epoch=1, metrics={'loss': 0.5})
    line = drawn(capsys.readouterr().err)[-1]
    assert line.startswith('epoch 1: 150 steps [')
    assert 'loss=0.5, 1,600 examples/s]' in line
    assert not set('%?|') & set(line)


def test_a_resumed_run_begins_where_it_was(clock, capsys):
    with ProgressBar(total_steps=100, enabled=True, initial=40) as bar:
        clock.now = 1.0
        bar.advance(10, 320, epoch=3, metrics={'loss': 0.5})
    first, *_, last = drawn(capsys.readouterr().err)
    assert '40/100 steps' in first and '40%' in first
    assert '50/100 steps' in last


def test_the_learning_rate_is_shown_where_it_is_given(clock, capsys):
    with ProgressBar(total_steps=10, enabled=True) as bar:
        bar.advance(5, 160, epoch=1, metrics={'learning_rate': 3e-4, 'loss': 0.5})
    assert 'loss=0.5, lr=0.0003]' in drawn(capsys.readouterr().err)[-1]


def test_rates_are_shown_once_they_are_known(clock, capsys):
    with ProgressBar(total_steps=10, enabled=True) as bar:
        clock.now = 1.0
        bar.advance(5, 160, epoch=1, metrics={'elements_per_second': float('nan'), 'loss': 0.5})
        clock.now = 3.0
        rates = {'elements_per_second': 12345.6, 'mfu': 0.4321}
        bar.advance(5, 160, epoch=2, metrics=rates)
    first, last = drawn(capsys.readouterr().err)[1:3]
    assert 'loss=0.5]' in first and 'elements' not in first
    assert '80 examples/s, 12,346 elements/s, MFU 43.2%]' in last


def test_the_time_left_counts_no_compilation(clock, capsys):
    with ProgressBar(total_steps=100, enabled=True) as bar:
        clock.now = 60.0  # the first step compiled for a minute
        bar.advance(1, 32, epoch=1, metrics={'loss': 0.75})
        clock.now = 64.0  # and 9 took 4 seconds: 90 are left
        bar.advance(9, 288, epoch=1, metrics={'loss': 0.5})
    _, first, second, *_ = drawn(capsys.readouterr().err)
    assert '<?, loss=0.75]' in first
    assert '<00:40, loss=0.5, 72 examples/s]' in second


def test_validation_is_shown_as_soon_as_it_is_known(clock, capsys):
    with ProgressBar(total_steps=100, enabled=True) as bar:
        for now, steps, metrics in [(1.0, 5, {'loss': 0.5}), (2.0, 0, {'val_loss': 0.25})]:
            clock.now = now
            bar.advance(steps, 32 * steps, epoch=1, metrics=metrics)
        assert 'val_loss=0.25' in drawn(capsys.readouterr().err)[-1]
