"""Markdown and HTML lay out the content of the text; names from users are escaped."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt  # which Flax's rich brings along

from thinkml.evaluation import Report
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.report import embedded_plots
from thinkml.evaluation.report import report as report_module
from thinkml.evaluation.result import Slice

from . import make_evaluations

NONE = Resampling(confidence=None)
HOSTILE = (
    '<script>window.hit = 1</script>',
    '"><img src=x onerror="window.hit = 1">',
    "' onmouseover='alert(1)",
    '&lt;b&gt; &amp; &#60;',
    'a | b || c',
    '**bold** _it_ __x__ `code` ~~gone~~',
    '[link](javascript:alert(1)) ![i](http://example.com/x.png)',
    '# heading',
    '1. list',
    '- list',
    '---',
    'http://example.com',
    '$x^2$ \\(y\\)',
    'back\\slash',
    '${title} $body',
)


def report_on(names, **fields):
    """Returns a report with these names wherever users choose names."""
    slices = {name: Slice(name, 50, {'f1': 0.5}, {}, {'f1': 0.1}, True) for name in names}
    part = make_evaluations.classification(
        names, n=30 * len(names), metrics=['f1'], resampling=NONE, slices=slices,
        warnings=tuple(names), data_fingerprint=dict.fromkeys(names, names[0]), **fields,
    )  # fmt: skip
    return Report({name: part for name in names[:2]})


class Outline(HTMLParser):
    """The parts of a page: tags with attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img', 'br', 'hr', 'link'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # everything is closed in order

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def page_of(report, monkeypatch):
    """Returns the page without its plots, which take long and are checked in a browser."""
    monkeypatch.setattr(embedded_plots, '_plots', lambda evaluation: {})
    return Outline(report.to_html())


# --- HTML -------------------------------------------------------------------------------------


def test_names_are_text_in_html(monkeypatch):
    page = page_of(report_on(HOSTILE), monkeypatch)
    assert {tag for tag, _ in page.tags} == {
        'html', 'head', 'meta', 'title', 'style', 'body', 'main', 'header', 'h1', 'h2', 'h3', 'nav',
        'ul', 'li', 'a', 'p', 'section', 'div', 'table', 'caption', 'thead', 'tbody', 'tfoot',
        'tr', 'th', 'td', 'span',
    }  # fmt: skip
    allowed = {'id', 'class', 'href', 'aria-label', 'role', 'tabindex', 'scope', 'style', 'lang'}
    allowed |= {'charset', 'name', 'content', 'http-equiv'}
    assert {name for _, attrs in page.tags for name in attrs} <= allowed
    assert all(attrs['href'].startswith('#') for attrs in page.named('a'))
    for name in HOSTILE:
        assert name in page.texts


def test_the_page_asks_for_nothing(monkeypatch):
    page = page_of(report_on(('no', 'yes')), monkeypatch)
    assert not page.named('script', 'link', 'iframe', 'object', 'embed', 'form', 'base')
    [policy] = [a['content'] for a in page.named('meta') if 'http-equiv' in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    [style] = [text for text in page.texts if ':root' in text]
    assert 'url(' not in style
    assert '@import' not in style


def test_the_page_can_be_read_without_seeing_it(monkeypatch):
    page = page_of(report_on(('no', 'yes')), monkeypatch)
    assert page.named('html')[0]['lang'] == 'en'
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch('h[1-6]', tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {attrs['scope'] for attrs in page.named('th')} == {'col', 'row'}
    boxes = [attrs for attrs in page.named('div') if attrs.get('class') == 'table']
    assert len(boxes) == len(page.named('table'))
    assert all(attrs['aria-label'] and attrs['tabindex'] == '0' for attrs in boxes)
    targets = {attrs['id'] for attrs in page.named('section')}
    assert len(targets) == len(page.named('section'))
    assert {attrs['href'][1:] for attrs in page.named('a')} <= targets


def test_plots_are_embedded_and_described():
    evaluation = make_evaluations.classification(('no', 'yes'), resampling=NONE)
    html = Report(evaluation).to_html()
    found = Outline(html).named('img')
    assert len(found) == 5
    for picture in found:
        assert picture['src'].startswith(('data:image/svg+xml,', 'data:image/png;base64,'))
        assert picture['alt'].endswith('.')
    assert f'The area below it is {evaluation["roc_auc"]:.4f}.' in found[0]['alt']
    assert len(html) < 500_000
    assert Report(evaluation).to_html() == html  # the same report is the same file


@pytest.mark.parametrize(
    ('evaluation', 'count'),
    [
        (lambda: make_evaluations.classification(tuple(range(25)), n=500, resampling=NONE), 4),
        (lambda: make_evaluations.multilabel(resampling=NONE), 3),
        (lambda: make_evaluations.regression(resampling=NONE), 1),
        (
            lambda: make_evaluations.without_probabilities(
                make_evaluations.classification(resampling=NONE)
            ),
            0,
        ),
    ],
)
def test_every_task_has_the_plots_that_fit_it(evaluation, count):
    assert len(Outline(Report(evaluation()).to_html()).named('img')) == count


# --- Markdown ---------------------------------------------------------------------------------


def tokens_of(text):
    """Returns the tokens of a Markdown parser for a text, with the parts of lines."""
    for token in MarkdownIt('commonmark').enable(['table', 'strikethrough']).parse(text):
        yield token
        yield from token.children or ()


def test_names_are_text_in_markdown():
    markdown = report_on(HOSTILE).to_markdown()
    found = list(tokens_of(markdown))
    assert {token.type.removesuffix('_open').removesuffix('_close') for token in found} <= {
        'heading', 'paragraph', 'inline', 'text', 'text_special', 'bullet_list', 'list_item',
        'table', 'thead', 'tbody', 'tr', 'th', 'td', 'strong', 'softbreak',
    }  # fmt: skip
    cells = {
        ''.join(child.content for child in cell.children)
        for before, cell in itertools.pairwise(found)
        if before.type in ('td_open', 'th_open')
    }
    assert cells >= set(HOSTILE)


def test_tables_of_markdown_have_as_many_cells_in_each_row():
    blocks = report_on(HOSTILE).to_markdown().split('\n\n')
    tables = [block.strip().split('\n') for block in blocks if block.startswith('|')]
    assert len(tables) > 5
    for rows in tables:
        assert len({len(re.findall(r'(?<!\\)\|', row)) for row in rows}) == 1


def test_markdown_stays_legible_where_nothing_is_special():
    evaluation = make_evaluations.classification(('no', 'yes'), resampling=NONE)
    markdown = Report(evaluation).to_markdown()
    assert markdown.startswith('# Evaluation report\n\nbinary, 2 classes (no, yes), 120 rows\n')
    assert f'| roc_auc | {evaluation["roc_auc"]:.4f} | 0.5000 |' in markdown
    assert '\\' not in markdown


# --- all of them ------------------------------------------------------------------------------


def test_every_format_tells_the_same_numbers(monkeypatch):
    evaluation = make_evaluations.classification(
        ('no', 'yes'), resampling=Resampling(num_resamples=20)
    )
    report = Report(evaluation)
    page = ' '.join(page_of(report, monkeypatch).texts)
    low, high = evaluation.confidence_intervals['f1']
    numbers = [f'{value:.4f}' for value in evaluation.metrics.values()]
    numbers += [f'{value:.4f}' for value in report.to_dict()['baseline'].values()]
    numbers += [f'[{low:.4f}, {high:.4f}]', f'{report.to_dict()["calibration"]["ece"]:.4f}']
    for text in (str(report), report.to_markdown(), page):
        assert all(number in text for number in numbers)


def test_the_evaluation_is_gone_through_once(monkeypatch):
    calls = []
    gather = report_module.describe_evaluation
    monkeypatch.setattr(
        report_module, 'describe_evaluation', lambda *args: calls.append(1) or gather(*args)
    )
    report = Report(make_evaluations.regression(resampling=NONE))
    for render in (str, Report.to_markdown, Report.to_html, Report.to_json, Report.to_dict):
        render(report)
    assert len(calls) == 1


def test_names_cannot_break_the_lines_of_a_text():
    names = ('two\nlines', 'tab\tand\x1b[31m', 'line\u2028separator')
    evaluation = make_evaluations.classification(names, n=90, metrics=['f1'], resampling=NONE)
    text = str(Report(evaluation))
    assert text.startswith('multiclass, 3 classes (two lines, tab and [31m, line separator), 90')
    assert '\x1b' not in text
