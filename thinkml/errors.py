"""Exceptions and warnings that users see, and helpers that write their messages.

Every message begins with the name of the argument. It says what came, what was expected and how to
fix it.
"""

import difflib
import math
import numbers
import sys
import warnings
from collections.abc import Iterable


class ThinkMLError(Exception):
    """The base of all exceptions that ThinkML raises on purpose."""


class ConfigError(ThinkMLError, ValueError, TypeError):
    """An unknown or impossible setting. The message lists every problem, not just the first."""


class DataError(ThinkMLError, ValueError):
    """Arrays that can't be used because of their lengths, shapes, labels or NaN."""


class ModelTypeError(ThinkMLError, TypeError):
    """An object that is not a model, or not one that ThinkML can split into arrays and code."""


class NotTrainedError(ThinkMLError, ValueError):
    """A request for something that exists only after training."""


class DivergedError(ThinkMLError, ValueError, FloatingPointError):
    """A NaN or infinite loss in a training run that is set to raise on it."""


class ModelFileError(ThinkMLError, OSError):
    """A model directory that can't be written, is damaged, is not ThinkML's or is not trusted."""


class ModelNotFoundError(ModelFileError, FileNotFoundError):
    """A missing model: nothing at a path, or no such version under a name."""


class ModelExistsError(ModelFileError, FileExistsError):
    """An existing file or directory at the path of a new model, which may not replace it."""


class NotStorableError(ModelFileError, TypeError, ValueError):
    """A value of the metadata or the model that a model file can't store."""


class ProcessError(ThinkMLError, OSError):
    """A run of several processes that can't start, or has lost one of them."""


class CheckpointError(ThinkMLError, OSError):
    """A checkpoint that can't be written or read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A missing checkpoint."""


class SessionNotFoundError(DataError, FileNotFoundError):
    """A missing session of active learning."""


class SessionExistsError(DataError, FileExistsError):
    """An existing file or directory at the path of a new session, which may not replace it."""


class WeightsError(ThinkMLError, ValueError):
    """Weights of a file that don't fit the model. The message names each tensor and both shapes."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """A missing file of weights."""


class ThinkMLWarning(UserWarning):
    """The base of all warnings that ThinkML issues on purpose."""


class DeviceCountWarning(ThinkMLWarning):
    """A warning that a training run uses fewer devices than requested."""


class PretrainedWeightsWarning(ThinkMLWarning):
    """A warning that a model has random weights where pretrained ones were requested."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'adam'?"`` if a known name is close to ``name``, else ``""``."""
    known = list(known)
    same = [other for other in known if other.casefold() == str(name).casefold()]
    close = same or difflib.get_close_matches(str(name), known, n=1)
    return f' Did you mean {close[0]!r}?' if close else ''


def unknown_name(argument: str, name: object, known: Iterable[str]) -> str:
    """Returns the message for a name that is not one of the known ones."""
    known = sorted(known)
    listed = ', '.join(known)
    return f'{argument}: got {name!r}, expected one of {listed}.{did_you_mean(name, known)}'


def problems(headline: str, found: list[str]) -> str:
    """Returns one message that lists several problems."""
    return '\n'.join([headline, *(f'  - {problem}' for problem in found)])


def is_number(value: object) -> bool:
    """Returns True for a finite real number, including NumPy's, but not for True and False."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Returns True for an integer, including NumPy's, but not for True and False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def warn_user(message: str, category: type[ThinkMLWarning] = ThinkMLWarning) -> None:
    """Issues a warning at the user's line that called ThinkML, from any depth inside it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _is_internal(frame.f_globals.get('__name__', '')):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_internal(module: str) -> bool:
    # ThinkML's context managers are called through contextlib.
    return module.startswith('thinkml.') or module == 'contextlib'
