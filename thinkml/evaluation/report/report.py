"""Report: a written evaluation as text, Markdown, a web page or data."""

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from thinkml.core.parallel.multiprocess import is_first_process
from thinkml.errors import ConfigError
from thinkml.evaluation.report.content import describe_evaluation, describe_evaluations
from thinkml.evaluation.report.embedded_plots import add_plots
from thinkml.evaluation.report.example_rows import input_images
from thinkml.evaluation.report.html import render_html
from thinkml.evaluation.report.markdown import render_markdown
from thinkml.evaluation.report.page import Page
from thinkml.evaluation.report.sections import lay_out
from thinkml.evaluation.report.text import render_text
from thinkml.evaluation.result import Evaluation
from thinkml.paths import local_file

_EXPECTED = (
    'expected the result of evaluate(model, X_test, y_test): an Evaluation, or for several data '
    'sets or heads a dict of them by name.'
)


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """A written report on an evaluation, returned by `ModelEvaluator.generate_report`.

    It contains the metrics with confidence intervals and those of a baseline that ignores the
    inputs. The table by class has scikit-learn's layout. The confusion matrix is for up to 20
    classes; for more, the report lists the most frequent confusions. Calibration, thresholds, the
    most confident errors, slices, warnings, and the data, versions and seed follow. A report on
    tokens has the most surprising ones, and a report on pixels the best, median and worst rows.

    The baseline predicts the most frequent class of the evaluated data, with the classes'
    frequencies as probabilities; in regression, the mean of the targets. A report on several data
    sets or heads begins with a comparison.

    ``str(report)`` is plain text.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.evaluation import ModelEvaluator, Report
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> X, y = np.eye(2, dtype=np.float32), np.array([0.5, 1.5])
        >>> report = Report(ModelEvaluator().evaluate(model, X, y, ['mae'], confidence=None))
        >>> print(report)
        regression, 1 target, 2 rows
        ...
        >>> report.to_dict()['task']
        'regression'

    Attributes:
        evaluation: the evaluation; for several data sets or heads a dict of them by name.
        inputs: the inputs to show beside targets that are images, see
            `ModelEvaluator.generate_report`.

    Raises:
        ConfigError: if ``evaluation`` is something else, or ``inputs`` have nothing to stand
            beside.
        DataError: if ``inputs`` are not images, or not one for each row.
    """

    evaluation: Evaluation | Mapping[str, Evaluation]
    inputs: Any = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check(self.evaluation)
        input_images(self.inputs, self._by_name)

    def __str__(self) -> str:
        return render_text(self._page)

    def __repr__(self) -> str:
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values that JSON can hold; NaN is None, classes are text.

        ``'schema'`` is a number that increases when the meaning of a key changes. For several data
        sets or heads, ``'data_sets'`` holds the content of each, by name.
        """
        return copy.deepcopy(self._content)

    def to_json(self) -> str:
        """Returns the same as strict JSON: NaN is null."""
        return json.dumps(self._content, allow_nan=False, indent=2) + '\n'

    def to_markdown(self) -> str:
        """Returns the report as Markdown with GitHub's tables."""
        return render_markdown(self._page)

    def to_html(self) -> str:
        """Returns the report with its plots as one web page that needs no other file."""
        evaluations = self._by_name
        images = input_images(self.inputs, evaluations)
        return render_html(
            add_plots(self._page, evaluations.values(), [images.get(name) for name in evaluations])
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report to a file, atomically. Creates the directory if needed.

        With several processes, only the first writes.

        Args:
            path: its ending picks the format: ``.txt``, ``.md``, ``.html`` or ``.json``.

        Raises:
            ConfigError: for another ending, or if the path cannot be a file.
        """
        path = local_file(path)
        formats = {
            '.txt': lambda: f'{self}\n',
            '.md': self.to_markdown,
            '.html': self.to_html,
            '.json': self.to_json,
        }
        if path.suffix.lower() not in formats:
            raise ConfigError(
                f'path: got {str(path)!r}, expected a file name that ends in '
                f'{", ".join(formats)}: the ending picks the format.'
            )
        text = formats[path.suffix.lower()]()
        if not is_first_process():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            unfinished.write_text(text, encoding='utf-8')
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @property
    def _by_name(self) -> Mapping[str, Evaluation]:
        """Returns the evaluations by name, which is empty for a single one."""
        reported = self.evaluation
        return {'': reported} if isinstance(reported, Evaluation) else reported

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        if isinstance(self.evaluation, Evaluation):
            return describe_evaluation(self.evaluation)
        return describe_evaluations(self.evaluation)

    @functools.cached_property
    def _page(self) -> Page:
        return lay_out(self._content)


def _check(evaluation: Any) -> None:
    if isinstance(evaluation, Evaluation):
        _check_kind(evaluation)
        return
    if not isinstance(evaluation, Mapping) or not evaluation:
        got = 'an empty dict' if isinstance(evaluation, Mapping) else type(evaluation).__name__
        raise ConfigError(f'evaluation: got {got}, {_EXPECTED}')
    for name, part in evaluation.items():
        if not isinstance(part, Evaluation):
            raise ConfigError(f'evaluation: got {type(part).__name__} under {name!r}, {_EXPECTED}')
        _check_kind(part)


def _check_kind(evaluation: Evaluation) -> None:
    if evaluation.task.type.has_sequences:
        raise ConfigError(
            f'evaluation: got one of {evaluation.task.in_words}, expected classes, labels or '
            'numbers: reports have no part on sequences. Print evaluation.metrics and '
            'evaluation.predictions.'
        )
