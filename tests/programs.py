"""The programs, imported into one process: each defines flags, some of them of the same name."""

import importlib
import types

import pytest
from absl import flags
from small_experiments import ONE_DEVICE, on_mesh


def import_program(name):
    """The module `experiments.<name>`; its flags are taken away again, so that the next program can have them."""
    for module in ('workdirs', 'training.loop'):  # the libraries' flags are defined before, and stay
        importlib.import_module(f'experiments.{module}')
    before = set(flags.FLAGS)
    module = importlib.import_module(f'experiments.{name}')
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module


def run_program(program, *, sizes=ONE_DEVICE, **given):
    """What `python -m experiments.<program>` does on a mesh of these sizes, after its flags are read."""
    with pytest.MonkeyPatch.context() as monkeypatch, on_mesh(sizes):
        for name in [name for name, value in vars(program).items() if isinstance(value, flags.FlagHolder)]:
            flag = types.SimpleNamespace(name=name.lower(), value=given.get(name), present=int(name in given))
            monkeypatch.setattr(program, name, flag)
        program.main([''])
