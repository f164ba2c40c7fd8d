"""The command line ``python -m thinkml.models``: inspects, checks and exports model files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkml.errors import ModelFileError, ThinkMLError
from thinkml.models.manager import ModelManager
from thinkml.models.model_table import Table
from thinkml.models.serialization.directories import models_in
from thinkml.paths import local_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 if it succeeds and 1 if there is a problem with the file."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ThinkMLError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m thinkml.models',
        description='Inspects, checks and exports model files.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    inspect = commands.add_parser(
        'inspect', help='shows the contents of a model, without reading its weights'
    )
    inspect.add_argument('path', help='the directory of a model, or NAME@VERSION with --root')
    inspect.set_defaults(run=_inspect)

    listing = commands.add_parser('list', help='lists the models in a folder, with their versions')
    listing.add_argument('root', help='the folder')
    listing.set_defaults(run=_list)

    verify = commands.add_parser('verify', help='compares every file with its hash')
    verify.add_argument('path', help='as for inspect')
    verify.set_defaults(run=_verify)

    export = commands.add_parser('export', help='writes a file for other programs')
    export.add_argument('path', help='as for inspect')
    export.add_argument('file', help='ends in .safetensors (weights) or .mlirbc (forward pass)')
    export.set_defaults(run=_export)

    for command in (inspect, verify, export):
        command.add_argument('--root', help='the folder of named models')
    return parser


def _inspect(options: argparse.Namespace) -> None:
    print(ModelManager(options.root).inspect(options.path))


def _list(options: argparse.Namespace) -> None:
    manager = ModelManager(options.root)
    tables = [manager.versions(name) for name in manager.list_models()]
    if paths := models_in(local_path(options.root, 'root')):  # saved by path, not by name
        tables.append(Table.of(_row(manager, path) for path in paths))
    if not tables:
        raise ModelFileError(f'root: there are no models in {options.root}.')
    print(*tables, sep='\n\n')


def _row(manager: ModelManager, path: Path) -> dict[str, Any]:
    try:
        (row,) = manager.compare(path)
    except ModelFileError as error:
        return {'model': path.name, 'problem': str(error)}
    return row | {'model': path.name}


def _verify(options: argparse.Namespace) -> None:
    ModelManager(options.root).verify(options.path)
    print(f'{options.path}: every file is unchanged since it was saved.')


def _export(options: argparse.Namespace) -> None:
    print(ModelManager(options.root).export(options.path, options.file))


if __name__ == '__main__':
    sys.exit(main())
