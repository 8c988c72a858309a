"""What a training says of itself before its first step and after its last: lines of text, most with a label."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence

import gaussq_jax as gq
from experiments import methods
from experiments.data import chats
from experiments.data.loading import Data, SourceData
from experiments.data.packing import PackedRows
from experiments.data.rows import Rows
from experiments.data.token_data import TokenData
from experiments.data.tokenizers import Tokenizer
from experiments.training import quantized_layers
from experiments.training.experiment import Experiment


def beginning(
    experiment: Experiment,
    data: Data,
    tokenizer: Tokenizer,
    workdir: pathlib.Path,
    *,
    rows: Mapping[str, Rows],
    start: int | None,
    remarks: Sequence[str] = (),
) -> str:
    """What is about to be trained, on what, and where; `start` is the step that it continues from, if it does.

    rows: of each source, by its name, as `loading.train_rows` makes them.
    """
    config, mesh = experiment.config, experiment.mesh
    leaves = len(experiment.abstract_state.transform_state)
    blocks_of = f'; {experiment.num_blocks:,} blocks in {leaves} leaves' if experiment.num_blocks else ''
    device = mesh.devices.flat[0]
    sizes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
    is_exact = config.deterministic and device.platform == 'gpu'
    exact = ['deterministic operations are on, so that a resumed run is exact (config.deterministic)'] * is_exact
    origin = data.initial_weights and f' from the weights of {config.init_from}, step {data.initial_weights["step"]}'
    action = f'starting{origin or ""}' if start is None else f'continuing from step {start}'
    matmuls = quantized_layers.describe(experiment)
    action += f', after a branch off {config.branch_from}' if config.branch_from else ''
    lines = [
        f'model     {config.model.family}, {experiment.num_params:,} parameters,'
        f' N = {experiment.num_linear_params:,} in linear layers',
        f'method    {config.method}: {methods.find(config.method).describe(config)}{blocks_of}',
        f'weights   {gq.describe(experiment.abstract_state.params, experiment.transform).summary}',
        *[f'matmuls   {line}' for line in matmuls[:1]],
        *_unlabelled(*matmuls[1:]),
        *([f'teacher   {experiment.teacher.describe()}'] if experiment.teacher else []),
        *_data(experiment, data),
        *_unlabelled(*_packed(experiment, data, rows)),
        *_unlabelled(tokenizer.describe(), *tokenizer.remarks),
        f'devices   {devices(experiment)}: {sizes}',
        *_unlabelled(*exact),
        f'run       {workdir}, {action}, {config.total_steps} steps',
        *_unlabelled(*remarks),
    ]
    return '\n'.join(lines)


def devices(experiment: Experiment) -> str:
    """How many there are, and of which kind: '8 x NVIDIA H100 80GB HBM3'."""
    return f'{experiment.mesh.size} x {experiment.mesh.devices.flat[0].device_kind}'


def end(experiment: Experiment, summary: Mapping[str, float], workdir: pathlib.Path, data: Data) -> str:
    """What the training came to, and what can be done with it."""
    loss, bits_per_byte = summary['validation/loss'], summary['validation/bits_per_byte']
    lines = [f'done      validation loss {loss:.3f} nats a token, {bits_per_byte:.3f} bits per byte, without noise']
    if 'validation/kl' in summary:
        lines += _unlabelled(f'KL(teacher || student) {summary["validation/kl"]:.4f} nats a token')
    if experiment.num_blocks:
        before = experiment.config.quantization.b_init
        lines += _unlabelled(
            f'with noise {summary["validation/loss_with_noise"]:.3f};'
            f' bitwidths went from {before:g} to {summary["bits/mean"]:.2f} bits on average;'
            f' 80 % of the blocks are between {summary["bits/p10"]:.2f} and {summary["bits/p90"]:.2f}',
            f'the formats of these bitwidths have {summary["bits/stored"]:.2f} bits a weight, mean of the blocks',
        )
    if not data.is_verified():
        lines += _unlabelled('not all files of its tokens were verified by now; a later start goes on with that')
    prompt = '--chat --prompt="Hi"' if experiment.config.text_feature in chats.FEATURES else '--prompt="def "'
    lines += _unlabelled(f'next: python -m experiments.generate --workdir={shlex.quote(str(workdir))} {prompt}')
    return '\n'.join(lines)


def _unlabelled(*lines: str) -> list[str]:
    return [f'          {line}' for line in lines]


def _data(experiment: Experiment, data: Data) -> list[str]:
    """What is trained on, each source on a line of its own if there are several."""
    config = experiment.config
    about = (
        f'tokenizer {config.tokenizer}, vocabulary {experiment.vocab_size};'
        f' D = {experiment.num_tokens:,} tokens in all steps'
    )
    if len(data.sources) == 1:
        train = data.sources[0].train
        told = f'data      {config.dataset}, {train.num_tokens:,} tokens to train on{_unusual(train)}; {about}'
        return [told, *_unlabelled(*_held_out(train))]
    lines = (line for source in data.sources for line in (_source(experiment, source), *_held_out(source.train)))
    return [f'data      {len(data.sources)} sources; {about}', *_unlabelled(*lines)]


def _source(experiment: Experiment, source: SourceData) -> str:
    train, share = source.train, float(source.weight)
    times = share * experiment.num_tokens / train.num_tokens
    return (
        f'{share:.2%} {source.name}: {source.dataset}, {train.num_tokens:,} tokens{_unusual(train)}, each seen'
        f' {times:.2g} times; {source.validation.num_tokens:,} tokens of validation'
    )


def _packed(experiment: Experiment, data: Data, rows: Mapping[str, Rows]) -> list[str]:
    """How the chats of each source lie in rows."""
    number = experiment.config.total_steps * experiment.config.batch_size
    return [
        f'{source.name + ": " if source.name else ""}{packed.describe()}; each is seen'
        f' {float(source.weight) * number / len(packed):.2g} times'
        for source in data.sources
        if isinstance(packed := rows[source.name], PackedRows)
    ]


def _held_out(tokens: TokenData) -> list[str]:
    if tokens.held_out is None:
        return []
    return [f'validation is {100 * tokens.held_out:g} % of the documents, by a hash of their text']


def _unusual(tokens: TokenData) -> str:
    """How many documents are empty, or are not UTF-8; of chats, are no conversations to learn from."""
    counts = {'empty': tokens.num_empty, 'not UTF-8' if tokens.masks is None else 'left out': tokens.num_invalid}
    told = ' and '.join(f'{count:,} {what}' for what, count in counts.items() if count)
    return f' ({told}, of {tokens.num_documents:,} documents)' if told else ''
