"""A run and its directory: what data it reads, what it measures, and how it is opened again."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import traverse_util
from ml_collections import ConfigDict

from configs import common
from experiments import input_pipeline, json_files, partitioning, paths, tokenizer_files, tokenizers, training
from experiments.atomic_files import replace_file
from experiments.checkpointing import Checkpointer, Restored, load_config, newest_step
from gaussq_jax.export import Packed, read_packed

# Fields in which two starts of one run may differ: they change nothing of what is learned, unless it diverges; but for
# `microbatches`, by which sums are rounded otherwise. (The tokens' digest stands for the tokenizer, whose file may have
# moved.)
FREE_FIELDS = (
    *('mesh', 'microbatches', 'remat_policy', 'scan_unroll', 'resample_weights', 'deterministic', 'stall_timeout'),
    *('data_dir', 'cache_dir', 'tokenizer', 'eval_batches'),
    *('log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints', 'divergence'),
)

FILES = ('data_dir', 'cache_dir', 'tokenizer')  # fields that say where files are: each host may have its own


class Data(NamedTuple):
    """Both splits as token arrays, and where the weights come from that training starts from, if not at random."""

    train: input_pipeline.TokenData
    validation: input_pipeline.TokenData
    initial_weights: dict[str, Any] | None = None  # as initial_weights.find gives


class Run(NamedTuple):
    """A run opened again, with its newest state."""

    experiment: training.Experiment
    tokenizer: tokenizers.Tokenizer
    state: training.TrainState
    packed: Packed | None = None  # the file that it was opened from, if it wasn't from a workdir


def load_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
    """The tokenizer of a config; ValueError as `tokenizers.load_tokenizer`."""
    return tokenizers.load_tokenizer(config.tokenizer, config.special_tokens, vocab_size=config.vocab_size)


def settle_tokenizer(config: ConfigDict, workdir: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a training, whose config then says which tokens begin and end texts: those its run began with.

    Raises:
      ValueError: as `tokenizers.load_tokenizer` does.
    """
    spec = config.tokenizer
    if newest_step(workdir / 'checkpoints') is not None:
        if not paths.parse(spec, 'config.tokenizer').is_file():  # but the data's digest tells another
            spec = tokenizer_files.copy_of(spec, workdir) or spec
        config.special_tokens.update(common.as_begun(config.to_dict(), _begun(workdir))['special_tokens'])
    tokenizer = tokenizers.load_tokenizer(spec, config.special_tokens, vocab_size=config.vocab_size)
    asked = config.special_tokens
    asked.update({name: asked[name] or found for name, found in tokenizer.special.settings.items()})
    return tokenizer


def of_other_rounding(config: ConfigDict, workdir: pathlib.Path) -> str:
    """What a run goes on with that changes the order of its sums, and so its bits; empty if nothing does."""
    before = _begun(workdir).get('microbatches')
    if before == config.microbatches:
        return ''
    return f'microbatches={config.microbatches}, before {before}: the same steps, but for rounding'


def load_data(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> Data:
    """The data of a config, prepared and tokenised at its first use.

    Raises:
      ValueError: for a dataset, a split or a text feature that isn't there.
    """
    splits = (
        input_pipeline.load_tokens(
            config.dataset,
            split,
            tokenizer,
            text_feature=config.text_feature,
            invalid_text=config.invalid_text,
            data_dir=config.data_dir or None,
            cache_dir=config.cache_dir or None,
        )
        for split in (config.train_split, config.validation_split)
    )
    return Data(*splits)


def stored_config(config: ConfigDict, data: Data) -> dict[str, Any]:
    """The resolved config as checkpoints keep it, with what identifies the text and the initial weights."""
    stored = {**common.with_added(config.to_dict(), 'the config'), 'corpus': data.train.sha256}
    return stored | ({'initial_weights': data.initial_weights} if data.initial_weights else {})


def in_all_processes(config: ConfigDict, data: Data) -> str:
    """What has to be the same in all processes of a training: the config, and the text."""
    fields = {name: value for name, value in stored_config(config, data).items() if name not in FILES}
    return json.dumps({**fields, 'validation corpus': data.validation.sha256})


def restore(
    checkpointer: Checkpointer, experiment: training.Experiment, data: Data, *, at_most: int | None = None
) -> Restored | None:
    """The newest whole checkpoint of this very run, of step `at_most` or before; None if there is none yet.

    Raises:
      ValueError: if the checkpoint is of another run: another model, method, data or optimizer.
    """
    config = stored_config(experiment.config, data)
    identity = [name for name in config if name not in FREE_FIELDS]
    return checkpointer.restore(
        experiment.abstract_state, config=config, identity=identity, complete=common.with_added, at_most=at_most
    )


def open_run(workdir: pathlib.Path, **changes: Any) -> Run:
    """Opens a workdir with its newest checkpoint, to look at it; `changes` replace fields of its config.

    Whatever mesh it was trained on, the weights are sharded over the devices that there are. No text is needed.

    Raises:
      ValueError: if there is no whole checkpoint, its config lacks fields that version 0.1.0 had, or the tokenizer's
        file can't be read.
    """
    directory = workdir / 'checkpoints'
    stored = load_config(directory)
    stored = {name: value for name, value in stored.items() if name not in ('corpus', 'initial_weights')}
    config = _config_to_look_at(workdir, stored, changes)
    config.tokenizer = tokenizer_files.copy_of(config.tokenizer, workdir) or config.tokenizer
    with json_files.naming(directory):
        tokenizer = load_tokenizer(config)
        experiment = training.make_experiment(config, tokenizer.vocab_size)
    with Checkpointer(directory) as checkpointer:
        restored = checkpointer.restore(experiment.abstract_state, config=config.to_dict(), identity=())
    return Run(experiment, tokenizer, restored.state)


def open_packed(path: pathlib.Path, *, tokenizer: str = '', **changes: Any) -> Run:
    """Opens a packed file of `experiments.export`: the run with these weights, as they are. No workdir is needed.

    Args:
      path: of the file.
      tokenizer: the tokenizer's file, if it isn't beside the packed one, or in the folder `tokenizer` there.
      **changes: replace fields of the run's config.

    Raises:
      ValueError: if the file is damaged, of another origin or of a version before 0.1.0, or if its tokenizer can't be
        read or is another one.
    """
    packed = read_packed(path)
    types = {'config': dict, 'step': int, 'tokenizer': str, 'layout': str, 'report': list}
    wrong = [name for name, kind in types.items() if not json_files.is_a(packed.info.get(name), kind)]
    if wrong or not 0 <= packed.info['step'] < 2**31:
        raise ValueError(
            f'{path} was not written by experiments.export: it lacks {", ".join(wrong) or "step"}, or has another such.'
            ' It can be read, by gaussq_jax.load_packed, and no more'
        )
    nowhere = {'data_dir': '', 'cache_dir': ''}  # who opens a file says where text is read and written, not the file
    config = _config_to_look_at(path, packed.info['config'], nowhere | changes)
    named = pathlib.PurePath(config.tokenizer).name  # and which files are opened
    if not tokenizer and named != 'bytes':
        tokenizer = tokenizer_files.copy_of(named, path.parent) or tokenizer_files.of_run(named, path.parent)
        if not tokenizer:
            raise ValueError(
                f'{path} is of the tokenizer {named!r}, which is not beside it: say by --tokenizer where it is'
            )
    config.tokenizer = tokenizer or named
    with json_files.naming(path):
        loaded = load_tokenizer(config)
    if loaded.fingerprint != packed.info['tokenizer']:
        raise ValueError(
            f'tokenizer={config.tokenizer!r} is {loaded.fingerprint}, but {path} was trained with'
            f' {packed.info["tokenizer"]}; say by --tokenizer where that is'
        )
    with json_files.naming(path):
        experiment = training.make_experiment(config, loaded.vocab_size)
        experiment, state = training.with_fixed_weights(experiment, packed.params, packed.info['step'])
    return Run(experiment, loaded, state, packed._replace(params=state.params))


def open_either(workdir: str | None, weights: str | None, tokenizer: str | None = None, **changes: Any) -> Run:
    """`open_run(workdir)` or `open_packed(weights)`, whichever is given.

    Raises:
      ValueError: for both or neither, for a tokenizer with a workdir; as they do.
    """
    if workdir and weights:
        raise ValueError(f'workdir={workdir!r}, weights={weights!r}: give one of them')
    if weights:
        return open_packed(paths.parse(weights, 'weights'), tokenizer=tokenizer or '', **changes)
    if tokenizer:
        raise ValueError(f'tokenizer={tokenizer!r} has a meaning only with weights, a packed file')
    if not workdir:
        raise ValueError("give workdir, a run's directory, or weights, a packed file")
    return open_run(paths.parse(workdir, 'workdir'), **changes)


def make_validation(
    experiment: training.Experiment, data: Data, at_batch: Callable[[], None] = lambda: None
) -> Callable[[training.TrainState], dict[str, float]]:
    """A function state -> metrics on the validation split: `eval_batches` batches of it, -1 for all.

    'validation/loss' in nats a token and 'validation/bits_per_byte' with the weights rounded, noise off; and
    'validation/loss_with_noise' where the method has noise. The batches are processed in the parts of training;
    `at_batch` is called before each.
    """
    config = experiment.config
    evaluate = training.make_evaluation(experiment)
    part = partitioning.part_of_batch(experiment.mesh)
    batches = input_pipeline.validation_batches(
        data.validation.tokens,
        global_batch_size=config.batch_size // config.microbatches,
        sequence_length=config.sequence_length,
        max_batches=None if config.eval_batches == -1 else config.eval_batches * config.microbatches,
        process_index=part.index,
        process_count=part.count,
    )

    def read_batches():
        for batch in batches:
            at_batch()
            yield batch

    def validate(state: training.TrainState) -> dict[str, float]:
        loss = evaluate(state, read_batches())['loss']
        metrics = {
            'validation/loss': loss,
            'validation/bits_per_byte': training.bits_per_byte(loss, data.validation.bytes_per_token),
        }
        if experiment.num_blocks:
            metrics['validation/loss_with_noise'] = evaluate(state, read_batches(), noise=True)['loss']
        return metrics

    return validate


def _begun(workdir: pathlib.Path) -> dict[str, Any]:
    """The config with which a run was last started, from its config.json, or else from its newest checkpoint."""
    path = workdir / 'config.json'
    if path.is_file():
        return common.with_added(json_files.read(path), path)
    return common.with_added(load_config(workdir / 'checkpoints'), workdir / 'checkpoints')


def _config_to_look_at(source: pathlib.Path, stored: dict[str, Any], changes: dict[str, Any]) -> ConfigDict:
    """A stored config, changed, for whatever devices there are."""
    stored = common.with_added(stored, source)
    fields = traverse_util.flatten_dict(common.base_config(common.parse('', **common.ARGUMENTS)).to_dict(), sep='.')
    if missing := {*fields, 'model.family'} - set(traverse_util.flatten_dict(stored, sep='.')):
        raise ValueError(
            f'{source} is of another program or of a version before 0.1.0: its config lacks'
            f' {", ".join(sorted(missing))}'
        )
    config = ConfigDict(stored)
    config.update({'mesh': {'data': 1, 'fsdp': -1, 'tensor': 1}, **changes})
    return config


def write_config(workdir: pathlib.Path, config: ConfigDict):
    """Writes the resolved config to config.json."""
    replace_file(workdir / 'config.json', json.dumps(config.to_dict(), indent=2) + '\n')
