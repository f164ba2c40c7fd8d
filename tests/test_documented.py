"""What is public is documented: a docstring each, and a place in the API pages."""

import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    'thinkml.core',
    'thinkml.data',
    'thinkml.errors',
    'thinkml.evaluation',
    'thinkml.models',
    'thinkml.monitoring',
    'thinkml.optimization',
    'thinkml.sklearn',
    'thinkml.training',
)

METHODS = (types.FunctionType, classmethod, staticmethod, property, functools.cached_property)


def public(package: str) -> dict[str, object]:
    """The public names of a package that are not its modules."""
    module = importlib.import_module(package)
    names = getattr(module, '__all__', None) or [n for n in dir(module) if not n.startswith('_')]
    symbols = {name: getattr(module, name) for name in names}
    if package == 'thinkml.errors':  # a module, not a package: what it imports is not its own
        return {n: s for n, s in symbols.items() if getattr(s, '__module__', '') == package}
    return {name: symbol for name, symbol in symbols.items() if not inspect.ismodule(symbol)}


def without_docstring(name: str, symbol: object) -> list[str]:
    """The name, and those of its public methods, that say nothing about themselves."""
    if not (inspect.isclass(symbol) or inspect.isroutine(symbol)):
        return []  # a constant or a type alias: its docstring is that of its type
    text = symbol.__doc__ or ''
    # Where there is none, dataclass and NamedTuple write the signature.
    found = [] if text and not text.startswith(f'{name}(') else [name]
    for member, value in vars(symbol).items() if inspect.isclass(symbol) else ():
        # Hooks (on_epoch_end and the like) are described by their class.
        hidden = member.startswith(('_', 'on_'))
        if (
            not hidden
            and isinstance(value, METHODS)
            and not inspect.getdoc(getattr(symbol, member))
        ):
            found.append(f'{name}.{member}')
    return found


@pytest.mark.parametrize('package', PACKAGES)
def test_every_public_symbol_has_a_docstring(package):
    for name, symbol in public(package).items():
        assert without_docstring(name, symbol) == []


def test_a_missing_docstring_is_seen():
    @dataclasses.dataclass
    class Silent:
        number: int

        def method(self):
            return self.number

    assert without_docstring('Silent', Silent) == ['Silent', 'Silent.method']


@pytest.mark.parametrize('package', PACKAGES)
def test_every_package_has_an_api_page_that_groups_all_its_members(package):
    page = ROOT / 'docs' / 'api' / f'{package.removeprefix("thinkml.")}.md'
    introduction, *groups = re.split(r'^## ', page.read_text(), flags=re.MULTILINE)
    listed = [re.findall(r'^::: (\S+)$', group, flags=re.MULTILINE) for group in groups]
    members = [f'{package}.{name}' for name in public(package)]
    assert sorted(itertools.chain(*listed)) == sorted(members)
    assert all(listed)
    assert len(introduction.splitlines()) > 2 and ':::' not in introduction
    assert f'api/{page.name}' in (ROOT / 'mkdocs.yml').read_text()


@pytest.mark.parametrize('package', PACKAGES)
def test_every_package_says_what_it_is_for(package):
    assert importlib.import_module(package).__doc__
