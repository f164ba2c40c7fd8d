"""Embedded plots: the plots of an evaluation as images inside a web page."""

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
from thinkml.evaluation.report.example_rows import example_rows
from thinkml.evaluation.report.page import Page, Picture
from thinkml.evaluation.report.sections import MAX_MATRIX
from thinkml.evaluation.result import Evaluation, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plot = tuple[Callable[[Evaluation], 'Figure'], str]

_LARGE_SVG = 60_000  # characters; above this a PNG may be smaller
_DPI = 144
_SAFE = " /:;=,()!*@'$+?"  # characters that need no escape in a data URL


def add_plots(page: Page, evaluations: Iterable[Evaluation], inputs: Iterable[Any]) -> Page:
    """Returns the page with the plots of the evaluations in its sections.

    A page on several evaluations has parts, and each part gets the plots of its evaluation.

    Args:
        page: the page.
        evaluations: the evaluations it is on.
        inputs: the images that each was evaluated on; None to show none.
    """
    if page.parts:
        triples = zip(page.parts, evaluations, inputs, strict=True)
        parts = [add_plots(part, [evaluation], [images]) for part, evaluation, images in triples]
        return dataclasses.replace(page, parts=parts)
    [evaluation], [images] = evaluations, inputs
    by_section = _plots(evaluation)
    sections = []
    for section in page.sections:
        pictures = _draw(by_section.get(section.key, []), evaluation)
        if section.key == 'examples':
            pictures = [_example_picture(evaluation, images)]
        sections.append(dataclasses.replace(section, pictures=pictures))
    return dataclasses.replace(page, sections=sections)


def _example_picture(evaluation: Evaluation, inputs: Any) -> Picture:
    examples = example_rows(evaluation)
    assert examples is not None
    shown = 'Targets and predictions' if inputs is None else 'Inputs, targets and predictions'
    figure = plots.example_images(evaluation, examples, inputs)
    # In a PNG, the pixels of the images look the same in every browser.
    alt = f'{shown} of the best, median and worst rows.'
    return Picture(_png(figure), alt, *_size(figure), is_photo=True)


def _plots(evaluation: Evaluation) -> dict[str, list[Plot]]:
    """Returns the plots of each section, with a description of each."""
    classes, task_type = evaluation.task.classes, evaluation.task.type
    if classes is None:
        return {'errors': [(plots.residual_plot, 'Residuals over the predicted values.')]}
    by_section: dict[str, list[Plot]] = {}
    has_matrix = evaluation.confusion_matrix is not None
    if task_type.has_one_class and len(classes) > MAX_MATRIX and has_matrix:
        by_section['confusion'] = [
            (plots.confusion_matrix, 'Confusion matrix, true classes in rows.')
        ]
    if evaluation.probabilities is not None:
        name = f' of class {classes[1]}' if task_type.has_positive_class else ''
        roc = f'ROC curve{name}: true over false positive rate.{_area(evaluation, "roc_auc")}'
        precision = f'Precision over recall{name}.{_area(evaluation, "average_precision")}'
        by_section |= {
            'curves': [(plots.roc_curve, roc), (plots.precision_recall_curve, precision)],
            'calibration': [
                (plots.calibration_curve, 'The fraction of true cases over the probability.')
            ],
            'thresholds': [
                (plots.threshold_curves, f'Precision, recall and F1{name} over the threshold.'),
                (plots.gain_curve, f'Recall{name} over the fraction of rows predicted positive.'),
            ],
        }
    return by_section


def _area(evaluation: Evaluation, name: str) -> str:
    value = evaluation.metrics.get(name, math.nan)
    return '' if math.isnan(value) else f' The area below it is {number(value)}.'


def _draw(section_plots: list[Plot], evaluation: Evaluation) -> list[Picture]:
    return [_picture(draw(evaluation), alt) for draw, alt in section_plots]


def _picture(figure: 'Figure', alt: str) -> Picture:
    """Encodes a figure as SVG, which is sharp at any size, or as PNG if that is smaller."""
    from matplotlib import rc_context

    settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': 'report'}
    with warnings.catch_warnings(), rc_context(settings):
        # The browser has glyphs that the font used for the layout may lack.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        source = _svg(_save_bytes(figure, format='svg', metadata={'Date': None}).decode())
        if len(source) > _LARGE_SVG:
            source = min(source, _png(figure), key=len)
    return Picture(source, alt, *_size(figure))


def _size(figure: 'Figure') -> tuple[int, int]:
    """Returns the width and the height in CSS pixels."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return width, height


def _svg(text: str) -> str:
    """Returns a data URL, with the points of lines rounded to a hundredth of a point."""
    lines = re.sub(r' d="[^"]*"', lambda path: re.sub(r'(\.\d\d)\d+', r'\1', path[0]), text)
    return f'data:image/svg+xml,{quote(" ".join(lines.split()), safe=_SAFE)}'


def _png(figure: 'Figure') -> str:
    data = _save_bytes(figure, format='png', dpi=_DPI)
    return f'data:image/png;base64,{base64.b64encode(data).decode()}'


def _save_bytes(figure: 'Figure', **settings: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **settings)
    return buffer.getvalue()
