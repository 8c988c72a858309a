"""The programs, imported into one process: each defines flags, some of them of the same name."""

import importlib

from absl import flags


def import_program(name):
    """The module `experiments.<name>`; its flags are taken away again, so that the next program can have them."""
    importlib.import_module('experiments.runs')  # the libraries' flags are defined before, and stay
    before = set(flags.FLAGS)
    module = importlib.import_module(f'experiments.{name}')
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module
