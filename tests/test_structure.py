"""The folders show the design: which of them imports which, and CONTRIBUTING's map of them, are what stands."""

import ast
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Each imports from those before it, and from none beside or after it.
ORDER = (
    ('kernels_pallas',),
    ('gaussq_jax',),
    ('experiments.files', 'experiments.methods'),
    ('experiments.devices',),
    ('experiments.data', 'experiments.checkpoints'),
    ('experiments.processes', 'experiments.cli', 'configs'),
    ('experiments.training',),
    ('experiments.workdirs', 'experiments.cost', 'experiments.reports', 'experiments.sweeps'),
    ('experiments.benchmarks', 'experiments.laws', 'experiments.reliability', 'experiments.serving'),
    ('experiments',),  # the programs
)
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
FILES = [
    path for top in ('kernels_pallas', 'gaussq_jax', 'configs', 'experiments') for path in (ROOT / top).rglob('*.py')
]


def part_of(module: str) -> str | None:
    """The entry of ORDER that a module is of; None for those of others."""
    names = module.split('.')
    return next((name for n in (2, 1) if (name := '.'.join(names[:n])) in PLACE), None)


def imported(path: pathlib.Path):
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module_of(path: pathlib.Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


@pytest.mark.parametrize('path', FILES, ids=module_of)
def test_imports_go_one_way(path):
    mine = part_of(module_of(path))
    for name in imported(path):
        theirs = part_of(name)
        assert theirs in (None, mine) or PLACE[theirs] < PLACE[mine], f'{mine} imports {name}'


def test_no_program_is_imported():
    """But what several share, and what programs are started with, is no program."""
    programs = {f'experiments.{path.stem}' for path in (ROOT / 'experiments').glob('*.py')} - PLACE.keys()
    for path in FILES:
        for name in imported(path):
            assert '.'.join(name.split('.')[:2]) not in programs - {'experiments.__init__'}, f'{path} imports {name}'


@pytest.mark.parametrize('path', [*FILES, *(ROOT / 'tests').rglob('*.py')], ids=module_of)
def test_a_file_can_be_read_at_once(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 400


def test_the_map_is_the_tree():
    """Every module of every package has its place in the map, and nothing else has."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    drawn, folders = set(), []
    for line in re.search(r'## The map of the house\n\n```\n(.*?)```', text, re.S)[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = list(itertools.takewhile(re.compile(r'\w+(\.py|/)').fullmatch, line.split()))
        for name in names:
            folders[depth:] = [name] if name.endswith('/') else []
            drawn.add('/'.join([*(folder.rstrip('/') for folder in folders[:depth]), name.rstrip('/')]))
    stands = {str(path.relative_to(ROOT)) for path in FILES if path.name not in ('__init__.py', '__main__.py')}
    assert {name for name in drawn if name.endswith('.py')} == stands
