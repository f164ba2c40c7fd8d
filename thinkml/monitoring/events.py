"""Event files, which TensorBoard and others draw curves from."""

import os
import uuid
from collections.abc import Mapping


class EventWriter:
    """Writes scalars by step to an event file of its own in ``directory``.

    Args:
        directory: made where it does not exist. TensorBoard shows each directory as one run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     writer = EventWriter(directory)
        ...     writer.write(100, {'loss': 0.7, 'val_loss': 0.8})
        ...     writer.close()
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            os.fspath(directory),
            # A run that is killed should be missing seconds of its curve, not minutes.
            flush_secs=10,
            # By default the name is the second it was made, and a second file of that name
            # overwrites the first.
            filename_suffix=f'.{uuid.uuid4().hex[:8]}',
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to the curve of each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()
