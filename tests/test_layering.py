"""The house's walls: which part may import which."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'thinkml').rglob('*.py'))

# From the ground up. A part imports itself and what is below it, nothing beside or above it.
FLOORS = (
    ('compilation_cache', 'errors', 'lazy', 'versions'),
    ('history', 'paths'),
    ('record',),
    ('core',),
    ('checkpoint', 'data', 'figures'),
    ('evaluation', 'models', 'monitoring'),
    ('training',),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
LAZY = ('dm_pix', 'matplotlib', 'mlflow', 'orbax', 'tensorboardX', 'tqdm', 'wandb')


def imported(tree: ast.AST, path: str) -> Iterator[tuple[ast.stmt, str]]:
    """The full names that are imported anywhere in a file, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = path.removesuffix('.py').split('/')[: -node.level] if node.level else []
            module = '.'.join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f'{module}.{alias.name}'


def run_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            continue
        yield node
        yield from run_on_import(node)


def violations(path: str, source: str) -> list[str]:
    part = Path(path).parts[1].removesuffix('.py')
    if part == '__init__':  # the roof: it names every part
        return []
    if part not in FLOOR_OF:
        return [f'{path}: give {part!r} a floor in FLOORS']
    tree = ast.parse(source)
    eager = set(run_on_import(tree))
    found = []
    for node, name in imported(tree, path):
        where = f'{path}:{node.lineno}: imports {name}'
        package, *rest = name.split('.')
        if package == 'thinkml':
            if not rest:
                found.append(f'{where}: name the part, so that the arrow is seen')
            elif rest[0] != part and FLOOR_OF.get(rest[0], -1) >= FLOOR_OF[part]:
                found.append(f'{where}: {part} must not know {rest[0]}')
        elif package == 'orbax' and path != 'thinkml/checkpoint/array_store.py':
            found.append(f'{where}: only checkpoint/array_store.py imports Orbax')
        elif package in LAZY and node in eager:
            found.append(f'{where}: import it inside the function that uses it')
    return found


@pytest.mark.parametrize('path', FILES)
def test_imports_point_downwards(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_no_modules_import_each_other_in_a_circle():
    """Inside functions neither: who needs that has a part in the wrong room."""
    modules = {path.removesuffix('.py').replace('/', '.'): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported(ast.parse((ROOT / path).read_text()), path)}
        names |= {name.rpartition('.')[0] for name in names}
        graph[module] = names & modules.keys() - {module}
    assert len(graph['thinkml.training.train_loop']) > 5
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def test_every_part_of_the_package_has_a_floor():
    parts = {Path(path).parts[1].removesuffix('.py') for path in FILES} - {'__init__'}
    assert parts <= set(FLOOR_OF)


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('thinkml/core/train/step.py', 'from thinkml.data import place'),
        ('thinkml/core/train/step.py', 'from thinkml import training'),
        ('thinkml/core/train/step.py', 'import thinkml.training.train_loop as fit'),
        ('thinkml/core/train/step.py', 'import thinkml'),
        ('thinkml/core/train/step.py', 'from ..data import place'),
        ('thinkml/core/__init__.py', 'from ..data import place'),
        ('thinkml/model_record.py', 'from .data import place'),
        ('thinkml/model_record.py', 'def f():\n    from thinkml.core import Batch'),
        ('thinkml/model_record.py', 'if TYPE_CHECKING:\n    from thinkml.core import Batch'),
        ('thinkml/errors.py', 'from thinkml.model_record import Task'),
        ('thinkml/history.py', 'from thinkml.model_record import Task'),
        ('thinkml/data/place.py', 'from thinkml.checkpoint import Checkpointer'),
        ('thinkml/models/zoo.py', 'from thinkml.evaluation import ModelEvaluator'),
        ('thinkml/monitoring/plots.py', 'from thinkml.models import predict'),
        ('thinkml/evaluation/report.py', 'from thinkml.monitoring import History'),
        ('thinkml/training/train_loop.py', 'def f():\n    import orbax.checkpoint'),
        ('thinkml/checkpoint/array_store.py', 'import orbax.checkpoint as ocp'),
        ('thinkml/monitoring/plots.py', 'from matplotlib.figure import Figure'),
        ('thinkml/monitoring/plots.py', 'try:\n    import tqdm\nfinally:\n    x = 1'),
        ('thinkml/monitoring/writers.py', 'class A:\n    import tensorboardX'),
        ('thinkml/utils.py', 'import math'),
    ],
)
def test_a_crossed_wall_is_seen(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('thinkml/core/train/step.py', 'from thinkml.core.train.state import TrainState'),
        ('thinkml/core/train/step.py', 'from .state import TrainState'),
        ('thinkml/core/train/step.py', 'from thinkml.errors import ConfigError'),
        ('thinkml/training/train_loop.py', 'from thinkml.monitoring import History'),
        ('thinkml/models/manager.py', 'from thinkml import __version__'),
        ('thinkml/checkpoint/array_store.py', 'def f():\n    import orbax.checkpoint as ocp'),
        ('thinkml/monitoring/plots.py', 'def f():\n    from matplotlib.figure import Figure'),
        ('thinkml/monitoring/plots.py', 'if TYPE_CHECKING:\n    from matplotlib.axes import Axes'),
    ],
)
def test_an_open_door_is_left_open(path, source):
    assert violations(path, source) == []
