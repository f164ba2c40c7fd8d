"""The exceptions and warnings users see, and the helpers that find and word them.

Every message says what came, what was expected and how to fix it, and starts with the name of the
argument it is about.
"""

import difflib
import math
import numbers
import sys
import warnings
from collections.abc import Iterable
from typing import Any


class ThinkMLError(Exception):
    """Base of all exceptions ThinkML raises on purpose."""


class ConfigError(ThinkMLError, ValueError, TypeError):
    """A setting is unknown or impossible. Lists every problem found, not just the first."""


class DataError(ThinkMLError, ValueError):
    """Arrays that can't be trained on: lengths, shapes, NaN, labels."""


class ModelTypeError(ThinkMLError, TypeError):
    """An object that is not a model ThinkML can take apart."""


class NotTrainedError(ThinkMLError, ValueError):
    """Something was asked for that only training makes."""


class DivergedError(ThinkMLError, ValueError, FloatingPointError):
    """A loss became NaN or infinite in a training that was told to raise then."""


class ModelFileError(ThinkMLError, OSError):
    """A model directory that can't be written, or is damaged, foreign or not trusted."""


class ModelNotFoundError(ModelFileError, FileNotFoundError):
    """There is no model at a path, or no such version under a name."""


class ModelExistsError(ModelFileError, FileExistsError):
    """There is something at the path of a new model, which it may not replace."""


class NotStorableError(ModelFileError, TypeError, ValueError):
    """A value of the metadata, or of the model, that a model file can't hold."""


class ProcessError(ThinkMLError, OSError):
    """A run of several processes can't begin, or has lost one of them."""


class CheckpointError(ThinkMLError, OSError):
    """A checkpoint that can't be written or read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at a path."""


class SessionNotFoundError(DataError, FileNotFoundError):
    """There is no session of an active learning at a path."""


class SessionExistsError(DataError, FileExistsError):
    """There is something at the path of a new session, which it may not replace."""


class WeightsError(ThinkMLError, ValueError):
    """Weights of a file that don't fit the model. Names each tensor, with both shapes."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """There is no file of weights at a path."""


class ThinkMLWarning(UserWarning):
    """Base of all warnings ThinkML issues on purpose."""


class DeviceCountWarning(ThinkMLWarning):
    """A training runs on fewer devices than it was asked to."""


class PretrainedWeightsWarning(ThinkMLWarning):
    """A model that was to be pretrained has random weights."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'adam'?"`` where something known is close, else an empty string."""
    known = list(known)
    same = [other for other in known if other.casefold() == str(name).casefold()]
    close = same or difflib.get_close_matches(str(name), known, n=1)
    return f' Did you mean {close[0]!r}?' if close else ''


def unknown_name(argument: str, name: object, known: Iterable[str]) -> str:
    """Words the message for a name that is not among the known ones."""
    known = sorted(known)
    listed = ', '.join(known)
    return f'{argument}: got {name!r}, expected one of {listed}.{did_you_mean(name, known)}'


def problems(headline: str, found: list[str]) -> str:
    """Words several problems as one message."""
    return '\n'.join([headline, *(f'  - {problem}' for problem in found)])


def is_number(value: Any) -> bool:
    """Whether a setting is a finite real number, numpy's included; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a setting is an integer, numpy's included; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def warn_user(message: str, category: type[ThinkMLWarning] = ThinkMLWarning) -> None:
    """Issues a warning where ThinkML was called, however deep inside it arises."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get('__name__', '').startswith('thinkml.'):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
