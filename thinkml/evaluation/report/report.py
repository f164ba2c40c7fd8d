"""An evaluation in words, as a text, a page or data."""

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from thinkml.core.parallel.multiprocess import is_first_process
from thinkml.errors import ConfigError
from thinkml.evaluation.report.content import content_of, content_of_several
from thinkml.evaluation.report.embedded_plots import illustrated
from thinkml.evaluation.report.html import render_html
from thinkml.evaluation.report.markdown import render_markdown
from thinkml.evaluation.report.page import Page
from thinkml.evaluation.report.sections import lay_out
from thinkml.evaluation.report.text import render_text
from thinkml.evaluation.result import Evaluation
from thinkml.paths import local_file

_EXPECTED = (
    'expected what evaluate(model, X_test, y_test) returned: an Evaluation, or of several data '
    'sets a dict of them by name.'
)


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """An evaluation in words. Made by `ModelEvaluator.generate_report`.

    It holds the metrics with confidence intervals beside those of a baseline that knows nothing of
    the inputs, the table by class in scikit-learn's layout, the confusion matrix (up to 20 classes;
    the most frequent confusions of more), calibration, thresholds, the errors the model was surest
    of, slices, warnings, and what was evaluated with what. The baseline predicts the most frequent
    class of the evaluated data, with the shares of the classes as probabilities; in regression, the
    mean of the targets. Several data sets stand side by side first.

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
        evaluation: what is reported; of several data sets a dict by name.

    Raises:
        ConfigError: if ``evaluation`` is something else.
    """

    evaluation: Evaluation | Mapping[str, Evaluation]

    def __post_init__(self) -> None:
        _check(self.evaluation)

    def __str__(self) -> str:
        return render_text(self._page)

    def __repr__(self) -> str:
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON can take; NaN is None, classes are text.

        ``'schema'`` is a number that is raised when the meaning of a key changes. Of several data
        sets ``'data_sets'`` holds what there is of each, by name.
        """
        return copy.deepcopy(self._content)

    def to_json(self) -> str:
        """The same as strict JSON: NaN is null."""
        return json.dumps(self._content, allow_nan=False, indent=2) + '\n'

    def to_markdown(self) -> str:
        """The report as Markdown with GitHub's tables."""
        return render_markdown(self._page)

    def to_html(self) -> str:
        """The report with its plots as one web page, which needs no other file and no network."""
        found = self.evaluation
        evaluations = [found] if isinstance(found, Evaluation) else found.values()
        return render_html(illustrated(self._page, evaluations))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file, whole or not at all. Makes the directory if there is none.

        Of several processes the first one does.

        Args:
            path: its ending picks the format: ``.txt``, ``.md``, ``.html`` or ``.json``.

        Raises:
            ConfigError: for another ending, or if the path can not be a file.
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

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        if isinstance(self.evaluation, Evaluation):
            return content_of(self.evaluation)
        return content_of_several(self.evaluation)

    @functools.cached_property
    def _page(self) -> Page:
        return lay_out(self._content)


def _check(evaluation: Any) -> None:
    if isinstance(evaluation, Evaluation):
        return
    if not isinstance(evaluation, Mapping) or not evaluation:
        got = 'an empty dict' if isinstance(evaluation, Mapping) else type(evaluation).__name__
        raise ConfigError(f'evaluation: got {got}, {_EXPECTED}')
    for name, part in evaluation.items():
        if not isinstance(part, Evaluation):
            raise ConfigError(f'evaluation: got {type(part).__name__} under {name!r}, {_EXPECTED}')
