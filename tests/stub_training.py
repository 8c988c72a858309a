"""Trainings that take no time, for the tests of what runs them."""

import csv
import json
import pathlib
import sys

BASE = """
from ml_collections import ConfigDict

from configs import common

def get_config(argument=None):
    argument = common.parse(argument, steps=10, method='bf16')
    return ConfigDict(
        dict(
            name='base',
            seed=0,
            method=argument.method,
            parts='all',
            quantization=dict(format='e4m3', block_size='32', learning_rate=1e-3),
            optimizer=dict(learning_rate=6e-4, schedule='cosine', decay_steps=0),
            deterministic=True,
            total_steps=argument.steps,
            eval_batches=20,
            log_every=10,
            keep_period=0,
            branch_from='',
        )
    )
"""

# It notes that it was started; its action, from plan.json, is what it does before it is done.
TRAIN = """
import json, os, pathlib, signal, sys, time
folder, workdir = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[-1].removeprefix('--workdir='))
plan = json.loads((folder / 'plan.json').read_text())[workdir.name]
with open(folder / 'started', 'a') as file:
    file.write(workdir.name + '\\n')
print('starting', flush=True)
(workdir / 'config.json').write_text(json.dumps(plan['config']))
exec(plan['action'])
(workdir / 'summary.json').write_text(json.dumps({'step': 10, 'seconds': 1.5, 'validation/loss': 2.25, 'list': [1]}))
"""

# Ten steps, each a letter in its file, continued where they were stopped; at the third it waits to be released.
TEN_STEPS = """
(workdir / 'pid').write_text(str(os.getpid()))
with open(workdir / 'steps', 'a') as steps:
    while steps.tell() < 10:
        while steps.tell() == 3 and not (folder / 'released').exists():
            time.sleep(0.01)
        steps.write('.')
        steps.flush()
"""


def write(folder):
    """Writes base.py and the training; what to put in place of plans.TRAIN."""
    (folder / 'base.py').write_text(BASE)
    (folder / 'train.py').write_text(TRAIN)
    return (sys.executable, '-S', str(folder / 'train.py'), str(folder))


def write_plan(folder, runs, actions=(), configs=()):
    """What the trainings of these runs are to do; none of them has been started then."""
    configs = {run.name: run.config for run in runs} | dict(configs)
    plan = {name: {'action': dict(actions).get(name, ''), 'config': config} for name, config in configs.items()}
    (folder / 'plan.json').write_text(json.dumps(plan))
    (folder / 'started').write_text('')


def read_table(workdir):
    with open(workdir / 'results.csv', newline='') as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [row[name] for row in rows]


def is_alive(pid):
    """Whether a process is there and runs: not if it is gone, or dead and its end unread."""
    try:
        return 'State:\tZ' not in pathlib.Path(f'/proc/{pid}/status').read_text()
    except FileNotFoundError:
        return False
