import math
import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from thinkml.monitoring import EventWriter


def read(path: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of the scalars in an event file, by the TFRecord format."""
    content, points = path.read_bytes(), []
    while content:
        (length,) = struct.unpack_from('<Q', content)
        event = Event.FromString(content[12 : 12 + length])  # length and its checksum come first
        points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[12 + length + 4 :]
    return points


def test_what_was_written_is_read_back(tmp_path):
    directory = tmp_path / 'deep' / 'er'
    writer = EventWriter(directory)
    writer.write(100, {'loss': 0.5, 'val_loss': 0.75})
    writer.write(2**40, {'loss': 0.25})
    writer.close()
    [path] = directory.iterdir()
    assert path.name.startswith('events.out.tfevents.')
    assert read(path) == [(100, 'loss', 0.5), (100, 'val_loss', 0.75), (2**40, 'loss', 0.25)]


def test_a_diverged_loss_is_written_too(tmp_path):
    writer = EventWriter(tmp_path)
    writer.write(1, {'loss': math.nan})
    writer.close()
    [(step, name, value)] = read(next(tmp_path.iterdir()))
    assert (step, name) == (1, 'loss') and math.isnan(value)


def test_two_runs_in_one_second_keep_their_own_files(tmp_path):
    for value in (0.5, 0.25):
        writer = EventWriter(str(tmp_path))
        writer.write(1, {'loss': value})
        writer.close()
    assert sorted(read(path)[0][2] for path in tmp_path.iterdir()) == [0.25, 0.5]
