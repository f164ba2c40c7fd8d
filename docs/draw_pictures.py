"""Draws the pictures of the README, of the pages for newcomers and of the tutorials.

    python docs/draw_pictures.py            # all of them
    python docs/draw_pictures.py concepts   # one of them

They are written to ``docs/images``. All except that of the concepts come from real runs: of the
README's example, of the blocks of ``getting-started.md``, and of the scripts of the tutorials.
"""

import contextlib
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
IMAGES = DOCS / 'images'
INK, LINE, PALE, STRONG = '#1f2933', '#52606d', '#f5f7fa', '#dceefb'

# The boxes of the picture of concepts: x, y, width, title, lines of text.
BOXES = {
    'model': (20, 20, 220, 'Model', ['layers and weights:', 'any flax.nnx.Module']),
    'task': (270, 20, 220, 'Task', ['the meaning of the outputs,', 'inferred from both']),
    'examples': (520, 20, 220, 'Examples', ['X: inputs', 'y: labels']),
    'run': (
        150, 150, 460, 'Run',
        ['epochs of steps, many steps in one dispatch;', 'callbacks act between dispatches'],
    ),
    'history': (20, 280, 220, 'History', ['metrics by epoch,', 'loss by step, events']),
    'record': (270, 280, 220, 'Record', ['task, inputs, histories;', 'stays with the model']),
    'checkpoint': (520, 280, 220, 'Checkpoint', ['the state on disk;', 'the run resumes from it']),
    'use': (20, 410, 470, 'Monitor, evaluator, predict, model files', ['read the record']),
    'resume': (520, 410, 220, 'train(resume=True)', ['continues the run']),
}  # fmt: skip
DERIVED = {'task', 'history', 'record', 'checkpoint'}
HEIGHT = 78
# Arrows from (x, y) to (x, y); a label beside the middle of some.
ARROWS = [
    ((240, 59), (270, 59), ''),
    ((520, 59), (490, 59), ''),
    ((200, 98), (200, 150), ''),
    ((560, 98), (560, 150), ''),
    ((380, 98), (380, 150), 'loss, metrics'),
    ((200, 228), (130, 280), ''),
    ((380, 228), (380, 280), 'writes'),
    ((560, 228), (630, 280), ''),
    ((240, 319), (270, 319), ''),
    ((380, 358), (380, 410), ''),
    ((630, 358), (630, 410), ''),
]


def concepts() -> None:
    """Draws the words of ``concepts.md`` and how they fit together."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 508" width="760" height="508" '
        'font-family="Helvetica, Arial, sans-serif" role="img" '
        'aria-label="Model, examples, task, run, history, record and checkpoint">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{LINE}"/></marker>'
        '</defs>',
        '<rect width="760" height="508" rx="8" fill="#ffffff"/>',
    ]
    for (x1, y1), (x2, y2), label in ARROWS:
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" stroke-width="1.6" '
            'marker-end="url(#tip)"/>'
        )
        if label:
            middle = (x1 + x2) / 2 + 8, (y1 + y2) / 2 + 4
            parts.append(_text(*middle, label, size=12, colour=LINE, anchor='start'))
    for name, (x, y, width, title, lines) in BOXES.items():
        colour = PALE if name in DERIVED else STRONG
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="{colour}" '
            f'stroke="{LINE}"/>'
        )
        top = y + (30 if len(lines) == 1 else 24)
        parts.append(_text(x + width / 2, top, title, size=16, weight='bold'))
        for number, line in enumerate(lines, start=1):
            parts.append(_text(x + width / 2, top + 4 + 18 * number, line, size=13))
    (IMAGES / 'concepts.svg').write_text('\n'.join([*parts, '</svg>', '']))


def _text(
    x: float, y: float, text: str, *, size: int, weight: str = 'normal', colour: str = INK,
    anchor: str = 'middle',
) -> str:  # fmt: skip
    escaped = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escaped}</text>'
    )


def first_model() -> None:
    """Draws the run of the README's example: loss, accuracy and confusion matrix."""
    from matplotlib.figure import Figure

    from thinkml.evaluation import ModelEvaluator

    with _temporary_directory():
        names = _run_blocks(DOCS.parent / 'README.md')
    history = names['history']
    figure = Figure(figsize=(12, 3.9), layout='constrained')
    for axes, name in zip(panels := figure.subplots(1, 3), ('loss', 'accuracy'), strict=False):
        epochs = range(1, history.epochs + 1)
        axes.plot(epochs, history[name], color='#0072B2', label='training')
        axes.plot(epochs, history[f'val_{name}'], '--', color='#0072B2', label='validation')
        axes.axvline(history.best_epoch, color='#009E73', linestyle=':', label='best epoch')
        axes.set(xlabel='epoch', title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    analysis = ModelEvaluator().analyze_performance(
        names['model'], names['X_test'], names['y_test']
    )
    analysis.plot_confusion_matrix(ax=panels[2])
    panels[2].set_title('confusion matrix, test data')
    figure.savefig(IMAGES / 'first_model.png', dpi=100)
    _reduce_colours(IMAGES / 'first_model.png')


def learning_curve() -> None:
    """Draws the plot that ``getting-started.md`` shows."""
    with _temporary_directory() as directory:
        _run_blocks(DOCS / 'getting-started.md')
        picture = (directory / 'progress.png').read_bytes()
    (IMAGES / 'learning_curve.png').write_bytes(picture)
    _reduce_colours(IMAGES / 'learning_curve.png')


def segmentation() -> None:
    """Draws the picture at the end of the tutorial on segmentation."""
    _picture_of('10_segmentation', 'segmentation.png')


def anomalies() -> None:
    """Draws the picture at the end of the tutorial on autoencoders."""
    _picture_of('11_autoencoder', 'anomalies.png')


def samples() -> None:
    """Draws the picture at the end of the tutorial on variational autoencoders."""
    _picture_of('12_vae', 'samples.png')


def embeddings() -> None:
    """Draws the picture at the end of the tutorial on contrastive learning."""
    _picture_of('13_contrastive', 'embeddings.png')


def gan() -> None:
    """Draws the picture at the end of the tutorial on generative adversarial networks."""
    _picture_of('14_gan', 'gan.png')


def _picture_of(example: str, name: str) -> None:
    with _temporary_directory() as directory:
        runpy.run_path(str(DOCS.parent / 'examples' / f'{example}.py'))
        picture = (directory / 'output' / name).read_bytes()
    (IMAGES / name).write_bytes(picture)
    _reduce_colours(IMAGES / name)


def _reduce_colours(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        reduced = picture.convert('RGB').quantize(64)
    reduced.save(path, optimize=True)


@contextlib.contextmanager
def _temporary_directory():
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        yield Path(directory)


def _run_blocks(page: Path) -> dict[str, object]:
    """Runs the Python blocks of a page, and returns the names they define."""
    names: dict[str, object] = {}
    for code in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
        exec(code, names)
    return names


if __name__ == '__main__':
    os.environ.setdefault('MPLBACKEND', 'agg')
    pictures = (concepts, first_model, learning_curve, segmentation, anomalies, samples, embeddings)
    draw = {picture.__name__: picture for picture in pictures}
    for name in sys.argv[1:] or draw:
        draw[name]()
