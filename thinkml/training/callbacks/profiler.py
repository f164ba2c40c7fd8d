"""Profiler: a trace of some steps for TensorBoard's profile page or Perfetto."""

import dataclasses
from pathlib import Path

import jax
from jax._src import profiler

from thinkml.core.parallel.multiprocess import is_first_process
from thinkml.errors import ConfigError, is_whole, warn_user
from thinkml.paths import local_directory
from thinkml.training.callback import BuiltInCallback
from thinkml.training.run import Run


@dataclasses.dataclass(unsafe_hash=True)
class Profiler(BuiltInCallback):
    """A callback that traces one dispatch of steps with JAX's profiler.

    The first dispatches compile, so ``skip`` of them are not traced. View the trace with
    ``tensorboard --logdir logs`` (its profile plugin), or in https://ui.perfetto.dev.

    Attributes:
        directory: the directory of the trace.
        skip: the number of dispatches before the traced one.

    Raises:
        ConfigError: for impossible settings.

    Warns:
        ThinkMLWarning: when training ends, if it was too short for a trace.
    """

    directory: str | Path = 'logs/profile'
    skip: int = 2

    def __post_init__(self) -> None:
        if not (is_whole(self.skip) and self.skip >= 0):
            raise ConfigError(
                f'skip: got {self.skip!r}, expected a whole number of dispatches, 0 for none.'
            )

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if the path can't be a directory."""
        local_directory(self.directory)

    def on_train_start(self, run: Run) -> None:
        self._dispatches, self._is_tracing = 0, False
        self._directory = local_directory(self.directory)
        self._trace_if_due()

    def on_chunk_end(self, run: Run) -> None:
        if self._is_tracing:
            self._stop()
        self._dispatches += 1
        self._trace_if_due()

    def on_train_end(self, run: Run) -> None:
        if self._is_tracing:
            self._stop()
        if self._dispatches <= self.skip:
            warn_user(
                'callbacks: the profiler has no trace, since the run ended after '
                f'{self._dispatches} dispatches and it skips {self.skip}. Pass Profiler(skip=0), '
                'or train with steps_per_dispatch=1.'
            )

    def _trace_if_due(self) -> None:
        if self._dispatches == self.skip and is_first_process():
            jax.profiler.start_trace(str(self._directory))
            self._is_tracing = True

    def _stop(self) -> None:
        self._is_tracing = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # JAX raises a RuntimeError
            profiler._profile_state.reset()  # stop_trace resets it only if it succeeds
            warn_user(f'callbacks: the profiler could not write its trace ({error}).')
