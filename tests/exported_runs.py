"""Runs in the middle of a training, and what the program packs of them."""

import functools

import pytest
from programs import import_program, run_program
from small_experiments import ONE_DEVICE, on_mesh, random_state, small_config

import gaussq_jax as gq
from experiments import workdirs
from experiments.data import tokenizers
from experiments.training.experiment import make_experiment
from gaussq_jax.packed import read_packed

export = import_program('export')


def make_run(argument, **changes):
    """A run in the middle of a training, one kind of its layers quantized."""
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(small_config(f'smoke,{argument}', **changes), 257)
    return workdirs.Run(experiment, tokenizers.load_tokenizer('bytes'), random_state(experiment))


@functools.cache
def learned_run():
    """Bitwidths from 2 to 5."""
    return make_run('method=gaussws,parts=down', quantization__b_target=2.5, quantization__b_init=4.5)


def run_export(monkeypatch, run, workdir, **given):
    """The same of export, of this run; its directory has no checkpoint."""
    monkeypatch.setattr(workdirs, 'open_run', lambda _: run)
    run_program(export, WORKDIR=str(workdir), **given)


def write_learned(folder):
    """The packed file of `learned_run`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_export(monkeypatch, learned_run(), folder)
    return folder / 'learned.safetensors'


def save(file, tmp_path, without=(), **changes):
    """The same run's weights with other information."""
    info = {name: value for name, value in (read_packed(file).info | changes).items() if name not in without}
    gq.save_packed(tmp_path / 'file', learned_run().state.params, {}, info=info)
    return tmp_path / 'file'
