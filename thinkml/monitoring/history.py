"""What a training run recorded: metrics by epoch, loss by step, what happened and when."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np


class History(Mapping[str, list[float]]):
    """The record of one training run, a mapping of metric name to its values by epoch.

    All lists have one value per epoch; a metric that was not measured in an epoch is NaN there.
    The training loop fills it as it goes, so it can be read at any time, also from another thread.
    Two histories are equal when they recorded the same numbers and events; the time they took is
    not compared.

    Attributes:
        epochs: epochs finished. Epochs are numbered from 1.
        epoch_ends: how many steps were done when each epoch ended.
        best_epoch: the epoch with the best validation (or training) score; None while unknown.
        events: ``(epoch, text)`` of what happened besides: early stopping, an interrupt.
        interrupted: whether the run was stopped from outside.
        seconds: how long the run took.

    Example:
        >>> import numpy as np
        >>> history = History()
        >>> history.add_steps(np.array([0.9, 0.7]))
        >>> history.add_epoch({'loss': 0.8, 'accuracy': 0.5})
        >>> history.add_steps(np.array([0.6, 0.4]))
        >>> history.add_epoch({'loss': 0.5, 'accuracy': 0.75})
        >>> history['loss']
        [0.8, 0.5]
        >>> history
        History(2 epochs, 4 steps: loss=0.5, accuracy=0.75)
    """

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}
        self._losses = np.empty(0, np.float32)  # with room to grow: only the first steps count
        self._steps = 0
        self.epoch_ends: list[int] = []
        self.best_epoch: int | None = None
        self.events: list[tuple[int, str]] = []
        self.interrupted = False
        self.seconds = 0.0

    def __getitem__(self, name: str) -> list[float]:
        return list(self._metrics[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.epoch_ends)

    @property
    def steps(self) -> int:
        """Steps recorded."""
        return self._steps

    @property
    def step_loss(self) -> np.ndarray:
        """The training loss of every step so far, float32 of shape ``(steps,)``."""
        steps = self._steps  # before the array: a writer may replace it by a longer one
        return self._losses[:steps].copy()

    def add_steps(self, losses: Any) -> None:
        """Appends the losses of the steps just done, an array of shape ``(n,)``."""
        losses = np.asarray(losses, np.float32).reshape(-1)
        steps = self._steps + len(losses)
        if steps > len(self._losses):
            grown = np.empty(max(steps, 2 * len(self._losses)), np.float32)
            grown[: self._steps] = self._losses[: self._steps]
            self._losses = grown
        self._losses[self._steps : steps] = losses
        self._steps = steps

    def add_epoch(self, metrics: Mapping[str, float]) -> None:
        """Closes an epoch with its metrics. Call it after the epoch's last `add_steps`."""
        missing = [math.nan] * self.epochs
        # A new dict, not new items: a reader in another thread sees the old one or the new one.
        self._metrics = {
            name: [*self._metrics.get(name, missing), float(metrics.get(name, math.nan))]
            for name in dict.fromkeys([*self._metrics, *metrics])
        }
        self.epoch_ends.append(self._steps)

    def last(self) -> dict[str, float]:
        """Returns each metric's value in the last epoch; empty before the first one ended."""
        return {name: values[-1] for name, values in self._metrics.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as values that strict JSON can hold: NaN becomes ``'nan'``."""
        return {
            'metrics': {name: [_encode(v) for v in values] for name, values in self.items()},
            # Through float32's own shortest decimals, a third of the digits and just as exact.
            'step_loss': [_encode(v) for v in self.step_loss.astype(str).astype(float).tolist()],
            'epoch_ends': list(self.epoch_ends),
            'best_epoch': self.best_epoch,
            'events': [list(event) for event in self.events],
            'interrupted': self.interrupted,
            'seconds': self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the history that `to_dict` was called on, before or after a trip through JSON.

        Example:
            >>> history = History()
            >>> history.add_epoch({'loss': float('inf')})
            >>> History.from_dict(history.to_dict()) == history
            True
        """
        history = cls()
        history._metrics = {
            name: [float(v) for v in series] for name, series in values['metrics'].items()
        }
        history.add_steps([float(v) for v in values['step_loss']])
        history.epoch_ends = [int(end) for end in values['epoch_ends']]
        history.best_epoch = values['best_epoch']
        history.events = [(int(epoch), str(text)) for epoch, text in values['events']]
        history.interrupted = bool(values['interrupted'])
        history.seconds = float(values['seconds'])
        return history

    def __eq__(self, other: object) -> bool:
        if isinstance(other, History):
            return {**self.to_dict(), 'seconds': 0} == {**other.to_dict(), 'seconds': 0}
        return super().__eq__(other)

    def __repr__(self) -> str:
        size = f'{_count(self.epochs, "epoch")}, {_count(self.steps, "step")}'
        if self.seconds:
            size += f', {self.seconds:.3g} s'
        if self.best_epoch is not None:
            size += f', best epoch {self.best_epoch}'
        if self.interrupted:
            size += ', interrupted'
        last = ', '.join(f'{name}={value:.4g}' for name, value in self.last().items())
        return f'History({size}: {last})' if last else f'History({size})'


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}{"" if number == 1 else "s"}'
