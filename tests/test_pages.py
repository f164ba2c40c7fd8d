"""The pages for newcomers and some guides: their blocks run, their links and pictures exist."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / 'docs'
PAGES = (
    'index', 'getting-started', 'concepts', 'extending',
    'guides/monitoring/throughput-and-gradient-norms', 'guides/training/optimizers-by-parameter',
    'guides/training/objectives', 'guides/training/auxiliary-losses',
    'guides/training/custom-steps',
    'guides/optimization/cross-validation',
    'guides/data/labels-and-tasks', 'guides/data/multiple-inputs',
    'guides/training/multiple-outputs',
    'guides/optimization/search',
    'guides/optimization/scikit-learn',
)  # fmt: skip
# The pages that explain a script of the examples, which tests/test_examples.py runs.
TUTORIALS = {
    'tutorials/language-model': '09_language_model.py',
    'tutorials/segmentation': '10_segmentation.py',
    'tutorials/autoencoder': '11_autoencoder.py',
    'tutorials/vae': '12_vae.py',
    'tutorials/contrastive': '13_contrastive.py',
    'tutorials/gan': '14_gan.py',
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns the Python blocks of a page, each with the output shown below it."""
    text = (DOCS / f'{page}.md').read_text()
    return re.findall(r'```python\n(.*?)```(?:\n\n```text\n(.*?)```)?', text, re.DOTALL)


def in_general(output: str) -> str:
    """Returns an output without what differs between machines: its numbers and spaces."""
    return ' '.join(re.sub(r'-?\d[\d.,e+-]*', '0', output).split())


@pytest.mark.parametrize('page', PAGES)
def test_the_blocks_of_a_page_run_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert blocks(page)
    for code, output in blocks(page):
        exec(compile(code, f'{page}.md', 'exec'), names)
        printed = capsys.readouterr().out
        assert not output or (printed and in_general(printed) in in_general(output))


@pytest.mark.parametrize('page', TUTORIALS)
def test_the_blocks_of_a_tutorial_are_its_script(page):
    script = (DOCS.parent / 'examples' / TUTORIALS[page]).read_text()
    _, code = script.split('"""\n', maxsplit=1)  # behind the docstring
    shown = ''.join(block for block, _ in blocks(page))
    # Formatters ask for two blank lines beside functions, which a block need not have.
    assert [line for line in shown.splitlines() if line] == [
        line for line in code.splitlines() if line
    ]


@pytest.mark.parametrize('page', [*PAGES, *TUTORIALS])
def test_the_links_and_pictures_of_a_page_exist(page):
    path = DOCS / f'{page}.md'
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    found = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text)
    assert found
    assert [target for target in found if not (path.parent / target).exists()] == []
