import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import thinkml

NEWLY_IMPORTED = """
import sys
before = set(sys.modules)
import {module}
new = {{name.split('.')[0] for name in set(sys.modules) - before}}
print(*sorted(new - sys.stdlib_module_names))
"""


def newly_imported(module: str) -> set[str]:
    """Returns the third-party packages that a new interpreter imports for a module."""
    code = NEWLY_IMPORTED.format(module=module)
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize('module', ['thinkml', 'thinkml.errors'])
def test_importing_thinkml_imports_no_other_package(module):
    assert newly_imported(module) == {'thinkml'}


def test_plots_bars_and_checkpoints_wait_until_they_are_used():
    # Not 'orbax', because flax imports it.
    lazy = {'matplotlib', 'tqdm', 'tensorboardX', 'sklearn', 'tensorflow', 'torch'}
    modules = newly_imported('thinkml.training, thinkml.evaluation, thinkml.models')
    assert {'jax', 'flax'} <= modules
    assert not modules & lazy


def test_subpackages_are_attributes():
    assert thinkml.errors.ThinkMLWarning.__mro__[1] is UserWarning
    assert thinkml.monitoring.History().epochs == 0
    assert {'core', 'data', 'errors', 'evaluation', 'models', 'monitoring', 'training'} <= set(
        dir(thinkml)
    )


def test_unknown_attributes_are_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'thinkml' has no attribute 'trainning'"):
        _ = thinkml.trainning


def test_the_version_stands_in_one_place():
    settings = tomllib.loads((Path(__file__).parent.parent / 'pyproject.toml').read_text())
    assert settings['project']['dynamic'] == ['version']
    assert settings['tool']['hatch']['version']['path'] == 'thinkml/__init__.py'
    assert re.fullmatch(r'\d+\.\d+\.\d+', thinkml.__version__)


@pytest.mark.parametrize('package', ['core', 'monitoring', 'training'])
def test_type_checkers_read_the_names_that_are_imported_when_used(package):
    module = importlib.import_module(f'thinkml.{package}')
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (table,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    imported = {
        name: home for home, names in ast.literal_eval(table).items() for name in names.split()
    }
    assert imported == read
    assert set(imported) <= set(dir(module))
    found: dict = {}
    exec(f'from thinkml.{package} import *', found)
    assert set(imported) <= set(found)
    assert 'TYPE_CHECKING' not in found
    for name, home in imported.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match=f"module 'thinkml.{package}' has no attribute 'Plam'"):
        _ = module.Plam
