"""The progress bar of a training run."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from thinkml.history import split_name

_SHOWN_RATES = {'elements_per_second': '{:,.0f} elements/s', 'mfu': 'MFU {:.1%}'}
_FORMAT = '{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<LEFT{postfix}]'
_FORMAT_WITHOUT_TOTAL = '{desc}{n_fmt} steps [{elapsed}{postfix}]'
_REFRESH_SECONDS = 0.1


class ProgressBar:
    """A bar on stderr: steps done, time left, epoch, loss, val_loss and examples per second.

    `advance` may be called often: the bar is drawn at most ten times a second, and other calls only
    add numbers. The time left and the examples per second exclude the first steps, which include
    the compilation. Notebooks get the plain text bar too: the widget is slower, and warns if
    ipywidgets is not installed.

    Args:
        total_steps: steps of the run in total. None if unknown: then steps are counted without a
            bar.
        enabled: False for no output.
        initial: steps done before a resumed run.

    Example:
        >>> with ProgressBar(total_steps=200, enabled=False) as bar:
        ...     bar.advance(100, 3200, epoch=1, metrics={'loss': 0.7})
        ...     bar.advance(100, 3200, epoch=2, metrics={'loss': 0.4, 'val_loss': 0.5})
    """

    def __init__(self, total_steps: int | None, enabled: bool, initial: int = 0) -> None:
        self.total_steps = total_steps
        self.enabled = enabled
        self.initial = initial
        self._bar: Any = None
        self._metrics: dict[str, float] = {}
        self._epoch: int | None = None
        self._steps = self._timed_steps = self._examples = 0
        self._drawn_at = 0.0
        self._started_at: float | None = None

    def __enter__(self) -> Self:
        if self.enabled:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total_steps,
                initial=self.initial,
                unit='step',
                mininterval=0,
                miniters=1,
                dynamic_ncols=True,
                bar_format=self._format('?'),
            )
            self._drawn_at = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._draw(time.perf_counter())
            self._bar.close()
            self._bar = None

    def advance(
        self, num_steps: int, num_examples: int, epoch: int, metrics: Mapping[str, float]
    ) -> None:
        """Advances the bar.

        Args:
            num_steps: steps done since the last call.
            num_examples: examples in these steps.
            epoch: the epoch of these steps, counted from 1.
            metrics: the latest values; ``loss``, the loss of each validation set (``val_loss``),
                ``learning_rate``, ``elements_per_second`` and ``mfu`` are shown, each until a newer
                value comes.
        """
        if self._bar is None:
            return
        now = time.perf_counter()
        self._steps += num_steps
        self._epoch = epoch
        self._metrics.update(metrics)
        if self._started_at is None:
            self._started_at = now
        else:
            self._timed_steps += num_steps
            self._examples += num_examples
        if now - self._drawn_at >= _REFRESH_SECONDS:
            self._draw(now)

    def _draw(self, now: float) -> None:
        names = self._metrics
        losses = {name: name for name in names if split_name(name, names)[1] == 'loss'}
        shown = [
            f'{label}={names[name]:.4g}'
            for name, label in (losses | {'learning_rate': 'lr'}).items()
            if name in names
        ]
        seconds = 0.0 if self._started_at is None else now - self._started_at
        if seconds > 0:
            shown.append(f'{self._examples / seconds:,.0f} examples/s')
        rates = {name: self._metrics.get(name, math.nan) for name in _SHOWN_RATES}
        shown += [_SHOWN_RATES[name].format(rate) for name, rate in rates.items() if rate >= 0]
        self._bar.n += self._steps
        self._steps = 0
        if self._timed_steps and self.total_steps is not None:
            left = max(0, self.total_steps - self._bar.n) * seconds / self._timed_steps
            self._bar.bar_format = self._format(self._bar.format_interval(left))
        if self._epoch is not None:
            self._bar.set_description(f'epoch {self._epoch}', refresh=False)
        self._bar.set_postfix_str(', '.join(shown), refresh=False)
        self._bar.refresh()
        self._drawn_at = now

    def _format(self, left: str) -> str:
        # The time left that tqdm computes would include the compilation.
        return _FORMAT_WITHOUT_TOTAL if self.total_steps is None else _FORMAT.replace('LEFT', left)
