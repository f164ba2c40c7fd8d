import pytest

from thinkml.core.train import loop
from thinkml.training import run_parts, train_loop


class Clock:
    """Stands still but for what a test says takes time."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    time = perf_counter


@pytest.fixture
def clock(monkeypatch):
    """A training whose dispatches take 2 s, and whose epochs wait 3 s for their data."""
    clock = Clock()
    monkeypatch.setattr(loop, 'time', clock)
    monkeypatch.setattr(train_loop, 'time', clock)
    step_losses, make_feed = loop.Chunk.step_losses, run_parts.make_feed

    def slow_losses(chunk):
        if chunk.started_at == clock.now:  # not yet waited for
            clock.now += 2.0
        return step_losses(chunk)

    class SlowFeed:
        def __init__(self, feed):
            self.feed = feed
            self.steps_per_epoch, self.batch_size = feed.steps_per_epoch, feed.batch_size

        def blocks(self, *arguments):
            clock.now += 3.0
            yield from self.feed.blocks(*arguments)

    def make_slow_feed(*arguments):
        feed, validation = make_feed(*arguments)
        return SlowFeed(feed), validation

    monkeypatch.setattr(loop.Chunk, 'step_losses', slow_losses)
    monkeypatch.setattr(run_parts, 'make_feed', make_slow_feed)
    clock.feed_class = SlowFeed
    return clock
