"""The plots of an evaluation, as pictures inside a web page."""

import base64
import dataclasses
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from thinkml.evaluation import plots
from thinkml.evaluation.report.page import Page, Picture
from thinkml.evaluation.report.sections import MAX_MATRIX
from thinkml.evaluation.result import Evaluation, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plot = tuple[Callable[[Evaluation], 'Figure'], str]

_LARGE_SVG = 60_000  # characters from which on pixels may take less room
_DPI = 144
_SAFE = " /:;=,()!*@'$+?"  # what needs no escape in a data URL


def illustrated(page: Page, evaluations: Iterable[Evaluation]) -> Page:
    """Puts the plots of an evaluation into its sections, of several into those of their parts."""
    if page.parts:
        pairs = zip(page.parts, evaluations, strict=True)
        return dataclasses.replace(page, parts=[illustrated(part, [e]) for part, e in pairs])
    [evaluation] = evaluations
    found = _plots(evaluation)
    sections = [
        dataclasses.replace(section, pictures=_drawn(found.get(section.key, []), evaluation))
        for section in page.sections
    ]
    return dataclasses.replace(page, sections=sections)


def _plots(evaluation: Evaluation) -> dict[str, list[Plot]]:
    """What is to be drawn for each section, and what it shows in words."""
    classes, kind = evaluation.task.classes, evaluation.task.kind
    if classes is None:
        return {'errors': [(plots.residual_plot, 'Residuals over the predicted values.')]}
    found: dict[str, list[Plot]] = {}
    if kind == 'multiclass' and len(classes) > MAX_MATRIX:
        found['confusion'] = [(plots.confusion_matrix, 'Confusion matrix, true classes in rows.')]
    if evaluation.probabilities is not None:
        of = f' of class {classes[1]}' if kind == 'binary' else ''
        roc = f'ROC curve{of}: true over false positive rate.{_area(evaluation, "roc_auc")}'
        precision = f'Precision over recall{of}.{_area(evaluation, "average_precision")}'
        found |= {
            'curves': [(plots.roc_curve, roc), (plots.precision_recall_curve, precision)],
            'calibration': [
                (plots.calibration_curve, 'The share that came true over the probability.')
            ],
            'thresholds': [
                (plots.threshold_curves, f'Precision, recall and F1{of} over the threshold.'),
                (plots.gain_curve, f'The share{of} found over the share of rows called positive.'),
            ],
        }
    return found


def _area(evaluation: Evaluation, name: str) -> str:
    value = evaluation.metrics.get(name, math.nan)
    return '' if math.isnan(value) else f' The area below it is {number(value)}.'


def _drawn(found: list[Plot], evaluation: Evaluation) -> list[Picture]:
    return [_picture(draw(evaluation), alt) for draw, alt in found]


def _picture(figure: 'Figure', alt: str) -> Picture:
    """Lines, sharp at any size, unless they are so many that pixels take less room."""
    from matplotlib import rc_context

    settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': 'report'}
    with warnings.catch_warnings(), rc_context(settings):
        # The browser has letters that the font a figure is measured with may lack.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        source = _svg(_saved(figure, format='svg', metadata={'Date': None}).decode())
        if len(source) > _LARGE_SVG:
            source = min(source, _png(_saved(figure, format='png', dpi=_DPI)), key=len)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(source, alt, width, height)


def _svg(text: str) -> str:
    """A data URL, the points of lines rounded to a hundredth of a point."""
    lines = re.sub(r' d="[^"]*"', lambda path: re.sub(r'(\.\d\d)\d+', r'\1', path[0]), text)
    return f'data:image/svg+xml,{quote(" ".join(lines.split()), safe=_SAFE)}'


def _png(data: bytes) -> str:
    return f'data:image/png;base64,{base64.b64encode(data).decode()}'


def _saved(figure: 'Figure', **settings: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **settings)
    return buffer.getvalue()
