"""The layers of the package: which module may import which."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'thinkml').rglob('*.py'))

# The lowest first. A part imports itself and what is below it, nothing beside it or above it.
LAYERS = (
    ('environment', 'errors', 'json_values', 'lazy', 'text_table', 'typing', 'versions'),
    ('compilation_cache', 'history', 'paths', 'task_types'),
    ('tasks',),
    ('model_record',),
    ('core', 'record'),
    ('checkpoint', 'data', 'figures'),
    ('evaluation', 'models', 'monitoring'),
    ('training',),
    ('optimization', 'sklearn'),
)
# The same for the folders of core.
LAYERS_OF_CORE = (('xla',), ('parallel',), ('objectives',), ('active', 'model'), ('train',))
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
LAYER_IN_CORE = {part: layer for layer, parts in enumerate(LAYERS_OF_CORE) for part in parts}
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


def is_above(path: str, name: str) -> bool:
    """Returns True if a file must not import this name of ThinkML."""
    part, *inner = Path(path).with_suffix('').parts[1:]
    other, *other_inner = name.split('.')[1:]
    if other != part:
        return LAYER_OF.get(other, -1) >= LAYER_OF[part]
    if part != 'core' or inner[0] == '__init__' or other_inner[:1] == inner[:1]:
        return False
    return LAYER_IN_CORE.get(other_inner[0] if other_inner else '', 99) >= LAYER_IN_CORE[inner[0]]


def violations(path: str, source: str) -> list[str]:
    part = Path(path).parts[1].removesuffix('.py')
    if part == '__init__':  # it names every part
        return []
    if part not in LAYER_OF:
        return [f'{path}: give {part!r} a layer in LAYERS']
    tree = ast.parse(source)
    eager = set(run_on_import(tree))
    found = []
    for node, name in imported(tree, path):
        where = f'{path}:{node.lineno}: imports {name}'
        package, *rest = name.split('.')
        if package == 'thinkml':
            if not rest:
                found.append(f'{where}: name the module, so that the dependency is seen')
            elif is_above(path, name):
                found.append(f'{where}: it is not below {part}')
        elif package == 'orbax' and path != 'thinkml/checkpoint/array_store.py':
            found.append(f'{where}: only checkpoint/array_store.py imports Orbax')
        elif package in LAZY and node in eager:
            found.append(f'{where}: import it inside the function that uses it')
    return found


@pytest.mark.parametrize('path', FILES)
def test_imports_point_downwards(path):
    assert violations(path, (ROOT / path).read_text()) == []


@functools.cache
def dependencies() -> dict[str, set[str]]:
    """Returns the modules that each module imports, inside functions too."""
    modules = {
        path.removesuffix('.py').removesuffix('/__init__').replace('/', '.'): path for path in FILES
    }
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported(ast.parse((ROOT / path).read_text()), path)}
        names = {name if name in modules else name.rpartition('.')[0] for name in names}
        graph[module] = names & modules.keys() - {module, 'thinkml'}
    return graph


def test_no_modules_import_each_other_in_a_circle():
    graph = dependencies()
    assert len(graph['thinkml.training.train_loop']) > 5
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


# The step and the loop are one thing each, and XLA sees them as one program.
MAY_BE_LONG = ('make_train_step', 'train_chunks')


@pytest.mark.parametrize('path', FILES)
def test_functions_are_at_most_60_lines(path):
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > 60 and node.name not in MAY_BE_LONG:
                found.append(f'{path}: {node.name} has {lines} lines')
    assert found == []


FOLDERS = sorted({Path(path).parent.as_posix().replace('/', '.') for path in FILES})


@pytest.mark.parametrize('folder', FOLDERS)
def test_nothing_in_a_folder_imports_each_other_in_a_circle(folder):
    """The modules of a folder, and the folders in it as a whole."""

    def within(module: str) -> str | None:
        is_inside = module.startswith(f'{folder}.')
        return module.removeprefix(f'{folder}.').split('.')[0] if is_inside else None

    graph: dict[str, set[str]] = {}
    for module, others in dependencies().items():
        if (name := within(module)) is not None:
            found = {within(other) for other in others} - {None, name}
            graph.setdefault(name, set()).update(each for each in found if each is not None)
    graphlib.TopologicalSorter(graph).prepare()


def test_every_part_of_the_package_has_a_layer():
    parts = {Path(path).parts[1].removesuffix('.py') for path in FILES} - {'__init__'}
    assert parts == set(LAYER_OF)
    assert {Path(p).parts[2] for p in FILES if p.startswith('thinkml/core/')} - {
        '__init__.py'
    } == set(LAYER_IN_CORE)


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
        ('thinkml/core/model/forward.py', 'from thinkml.core.train.step import Batch'),
        ('thinkml/core/model/forward.py', 'from thinkml.core import Batch'),
        ('thinkml/core/xla/jit.py', 'from thinkml.core.parallel.sharding import Layout'),
    ],
)
def test_an_import_that_points_up_is_seen(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('thinkml/core/train/step.py', 'from thinkml.core.train.state import TrainState'),
        ('thinkml/core/train/step.py', 'from .state import TrainState'),
        ('thinkml/core/train/step.py', 'from thinkml.core.model.forward import eval_outputs'),
        ('thinkml/core/__init__.py', 'from thinkml.core.train.step import Batch'),
        ('thinkml/core/train/step.py', 'from thinkml.errors import ConfigError'),
        ('thinkml/training/train_loop.py', 'from thinkml.monitoring import History'),
        ('thinkml/models/manager.py', 'from thinkml import __version__'),
        ('thinkml/checkpoint/array_store.py', 'def f():\n    import orbax.checkpoint as ocp'),
        ('thinkml/monitoring/plots.py', 'def f():\n    from matplotlib.figure import Figure'),
        ('thinkml/monitoring/plots.py', 'if TYPE_CHECKING:\n    from matplotlib.axes import Axes'),
    ],
)
def test_other_imports_are_allowed(path, source):
    assert violations(path, source) == []
