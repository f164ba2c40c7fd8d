"""Parameter paths: names of parameters, and regular expressions that match them."""

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

import jax

from thinkml.errors import ConfigError, problems
from thinkml.typing import PyTree

_MOST_LISTED = 5


def parameter_paths(params: PyTree) -> list[str]:
    """Returns the path of each parameter, in the order of the leaves.

    Example:
        >>> from thinkml.core.model.parameter_paths import parameter_paths
        >>> parameter_paths({'layers': {0: {'bias': 1, 'kernel': 2}}})
        ['layers/0/bias', 'layers/0/kernel']
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]


def check_patterns(patterns: Collection[Any]) -> None:
    """Raises a `ConfigError` if there are no patterns, or if one is not a regular expression."""
    if not patterns:
        raise ConfigError(
            "optimizer: got an empty dict, expected patterns, such as {'.*': 'adam'}."
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f'optimizer: got the pattern {pattern!r}, expected a regular expression such as '
                f"'head/.*': {error}."
            ) from error


def first_matches(patterns: Sequence[str], params: PyTree) -> PyTree:
    """Returns, for each parameter, the number of the first pattern that matches its whole path.

    Args:
        patterns: regular expressions.
        params: the parameters; their values are not used.

    Raises:
        ConfigError: for parameters that no pattern matches, and for patterns that no parameter is
            left for.

    Example:
        >>> from thinkml.core.model.parameter_paths import first_matches
        >>> first_matches(['head/.*', '.*'], {'base': {'kernel': 1}, 'head': {'kernel': 2}})
        {'base': {'kernel': 1}, 'head': {'kernel': 0}}
    """
    paths = parameter_paths(params)
    numbers = [
        next((n for n, pattern in enumerate(patterns) if re.fullmatch(pattern, path)), None)
        for path in paths
    ]
    found = [
        f'{pattern!r}: {_why_unused(pattern, patterns[:number], paths)}'
        for number, pattern in enumerate(patterns)
        if number not in numbers
    ]
    if unmatched := [path for path, number in zip(paths, numbers, strict=True) if number is None]:
        found.append(f"no pattern matches {_listed(unmatched)}. Add '.*' as the last pattern.")
    if found:
        headline = (
            'optimizer: a parameter gets the first pattern that matches its whole path, and each '
            'pattern needs a parameter:'
        )
        raise ConfigError(problems(headline, found))
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def _why_unused(pattern: str, earlier: Sequence[str], paths: list[str]) -> str:
    """Returns a sentence on a pattern that no parameter is left for."""
    matched = [path for path in paths if re.fullmatch(pattern, path)]
    if matched:
        taker = next(other for other in earlier if re.fullmatch(other, matched[0]))
        return f'earlier patterns such as {taker!r} match all of its parameters. Put it first.'
    for wider in (f'{pattern}/.*', f'.*/{pattern}', f'.*{pattern}.*'):
        if any(re.fullmatch(wider, path) for path in paths):
            return f'it matches no whole path, but {wider!r} does.'
    close = difflib.get_close_matches(pattern.removesuffix('.*'), paths, n=3, cutoff=0.4)
    meant = f'Did you mean {_listed(close)}?' if close else f'The paths are {_listed(paths)}.'
    return f'it matches no parameter. {meant}'


def _listed(paths: list[str]) -> str:
    shown = ', '.join(map(repr, paths[:_MOST_LISTED]))
    more = len(paths) - _MOST_LISTED
    return f'{shown} and {more} others' if more > 0 else shown
