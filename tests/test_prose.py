"""Docstrings, comments and pages are written in plain English, as CONTRIBUTING asks."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'thinkml').rglob('*.py'))
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *ROOT.glob('benchmarks/*.md'))
)

# A sentence begins with its subject or its verb, not with a noun clause or a fronted genitive.
OPENING = re.compile(r'(What|Whether|Which|Where|Of)\b')
WORDS = {
    r'go(es|ing)? on\b|went on\b': 'continues, resumes',
    r'anew\b': 'again',
    r'whoever\b': 'you',
    r'no numbers?\b': 'not a number',
    r'own (loss|metric|optimizer|function|callback|loop)': 'custom',
    r'of one\'s own\b': 'custom',
    r'likewise\b': 'in the same way',
    r'besides\b': 'also',
    r'(is|are|was|were) told\b': 'is reported',
    r'rooms?\b': 'memory, space',
    r'houses?\b|floors\b|walls\b': 'package, layer, dependency',
}
BANNED = re.compile('|'.join(rf'(?:\b{word})' for word in WORDS), re.IGNORECASE)
# Entries of these sections are phrases behind a name.
ENTRY = re.compile(r'^\s*\**[\w.]+: ')
CODE = re.compile(r'``[^`]*``|`[^`]*`')


def prose_of(docstring: str) -> list[str]:
    """Returns the paragraphs and entries of a docstring, without code."""
    kept: list[str] = []
    is_example = False
    for line in docstring.splitlines():
        text = line.strip()
        if text.endswith(':') and text[:-1].replace(' ', '').isalpha() and len(text) < 24:
            is_example = text == 'Example:'
        if not text or is_example:
            kept.append('')
        elif kept and kept[-1] and not ENTRY.match(line):
            kept[-1] += f' {text}'
        else:
            kept.append(ENTRY.sub('', line).strip())
    return [CODE.sub('x', each) for each in kept if each]


def sentences(text: str) -> list[str]:
    """Returns the sentences of a paragraph."""
    return [each.strip('*_ ') for each in re.split(r'(?<=[.:?!])\s+(?=[A-Z`*])', text)]


def problems_of(text: str) -> Iterator[str]:
    """Yields what is wrong with a paragraph, one sentence each."""
    for sentence in sentences(text):
        is_question = sentence.endswith('?')
        if OPENING.match(sentence) and not is_question:
            yield f'begins with a noun clause: {sentence[:70]!r}'
    if found := BANNED.search(text):
        yield f'{found[0]!r} in {text[:70]!r}; see WORDS'


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yields what has a docstring, with it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text


@pytest.mark.parametrize('path', MODULES)
def test_docstrings_are_plain(path):
    found = []
    for node, text in documented(ast.parse((ROOT / path).read_text())):
        where = f'{path}:{getattr(node, "lineno", 1)}'
        found += [f'{where}: {problem}' for part in prose_of(text) for problem in problems_of(part)]
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and not re.match(r'[A-Z][a-z]+s\b', text):
            found.append(f'{where}: begins with no verb in the third person: {text[:50]!r}')
    assert found == []


def test_classes_are_described_by_a_noun():
    """Their first word is none of those that functions begin with."""
    verbs, classes = {'See'}, []
    for path in MODULES:
        for node, text in documented(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef):
                classes.append((f'{path}: {node.name}', text.split()[0]))
            elif not isinstance(node, ast.Module):
                verbs.add(text.split()[0])
    assert [name for name, word in classes if word in verbs] == []


@pytest.mark.parametrize('path', MODULES)
def test_comments_are_plain(path):
    found = []
    with tokenize.open(ROOT / path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                text = CODE.sub('x', token.string.lstrip('#: '))
                found += [f'{path}:{token.start[0]}: {each}' for each in problems_of(text)]
    assert found == []


def paragraphs(page: str) -> Iterator[str]:
    """Yields the paragraphs, list items and table cells of a page, without code."""
    text = re.sub(r'^( *)```.*?^\1```', '', page, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'^::: .*?(?=^\S|\Z)', '', text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r'\n\s*\n|\n\s*(?:[-*]|\d+\.) |\|', text):
        plain = ' '.join(CODE.sub('x', block).split()).lstrip('-*# ')
        if plain:
            yield plain


@pytest.mark.parametrize('path', PAGES)
def test_pages_are_plain(path):
    found = [each for part in paragraphs((ROOT / path).read_text()) for each in problems_of(part)]
    assert found == []


@pytest.mark.parametrize(
    'text',
    [
        'What a run records.',
        'Returns it. Of these the first is kept.',
        'The run goes on.',
        'An own metric is allowed.',
    ],
)
def test_stilted_prose_is_seen(text):
    assert len(list(problems_of(text))) == 1


@pytest.mark.parametrize('text', ['Returns what it computes.', 'Where is it?', 'The number is 0.'])
def test_plain_prose_is_left_alone(text):
    assert list(problems_of(text)) == []
