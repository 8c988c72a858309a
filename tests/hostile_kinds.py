"""Kinds of files that the programs read: how to write a valid one, how programs read it, what may be done to it.

What is read is {'arrays': {name: array}, 'settings': anything that JSON has, 'told': lines that programs print}, as far
as there is such.
"""

import csv
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import hostile_chats
import low_bit_checkpoints
import matplotlib.pyplot as plt
import numpy as np
import small_checkpoints
import small_datasets
import small_sources
import small_tokenizers
import token_folders
from ml_collections import ConfigDict
from mutations import Mutator, of_bytes, of_csv, of_json, of_json_lines, of_packed, of_paths, of_tensors
from programs import import_program
from pyarrow import Table, parquet

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import workdirs
from experiments.checkpoints.contents import CONTENTS
from experiments.checkpoints.manifests import write_manifest
from experiments.data import tokenizers
from experiments.files import huggingface_folder, json_files
from experiments.laws import known_laws, stored_laws
from experiments.laws.law_choices import LAWS
from experiments.laws.tables import run_tables
from experiments.reports import cast_losses, pictures, quantization, run_pictures, run_records, run_report
from experiments.serving import layout_choice
from experiments.sweeps import plans, sweep_runs
from experiments.training import metrics as run_metrics
from experiments.training import starts
from gaussq_jax.packed import read_packed

cast_down, compare, export, import_hf, sweep = map(
    import_program, ('cast_down', 'compare', 'export', 'import_hf', 'sweep')
)
ROOT = pathlib.Path(__file__).parents[1]
BEFORE = ROOT / 'tests/data/version_0_1'
LAW = gq.scaling_laws.PUBLISHED_CAPYBARA


class Kind(NamedTuple):
    """Files of a kind, in a folder."""

    write: Callable[[pathlib.Path], None]  # a valid one
    read: Callable[[pathlib.Path], dict[str, Any]]  # as programs do; its errors are of cli.user_errors
    targets: Mapping[str, tuple[Mutator, ...]]  # pattern of files -> what is done to them, besides links
    exact: tuple[str, ...] = ()  # patterns of files whose mutations are refused, or change nothing of what is read
    exact_arrays: tuple[str, ...] = ()  # the same, but for settings
    seal: Callable[[pathlib.Path], None] = lambda folder: None  # what somebody does who means it
    is_cache: bool = False  # of its user, whose links to folders are followed


def write_run(folder: pathlib.Path):
    shutil.copytree(BEFORE / 'run', folder, dirs_exist_ok=True)
    checkpoint = next(folder.glob('checkpoints/*'))
    config = json.loads((folder / 'config.json').read_text())
    config = stored_configs.read(config) | {'special_tokens': tokenizers.load_tokenizer('bytes').special.settings}
    (folder / 'config.json').write_text(json.dumps(config))
    small_checkpoints.change_json(checkpoint / CONTENTS, config=config | {'corpus': 64 * '0'})
    write_manifest(checkpoint)


def read_run(folder: pathlib.Path) -> dict[str, Any]:
    run = workdirs.open_run(folder)
    config = run.experiment.config
    workdirs.remarks_on_changes(config, folder)
    workdirs.settle_tokenizer(ConfigDict(config.to_dict()), folder)
    return {'arrays': arrays(run.state.params), 'settings': config.to_dict()}


def seal_run(folder: pathlib.Path):
    for checkpoint in folder.glob('checkpoints/[0-9]*'):
        if checkpoint.is_dir():
            write_manifest(checkpoint)


def write_packed(folder: pathlib.Path):
    write_run(folder / 'run')
    run = workdirs.open_run(folder / 'run')
    chosen = layout_choice.choose(run, layout_choice.Asked(budget=5.0))
    info = export.describe_run(run, chosen)
    gq.save_packed(folder / 'packed.safetensors', run.state.params, chosen.layout, info=info)
    shutil.rmtree(folder / 'run')


def read_packed_file(folder: pathlib.Path) -> dict[str, Any]:
    packed = read_packed(folder / 'packed.safetensors')
    return {'arrays': arrays(packed.params), 'settings': {'info': json.dumps(packed.info)}}


def open_packed_file(folder: pathlib.Path) -> dict[str, Any]:
    run = workdirs.open_packed(folder / 'packed.safetensors')
    with json_files.naming(folder / 'packed.safetensors'):
        quantization.describe_layout(run.packed.info, run.packed.layout)
        rows = quantization.from_json(run.packed.info['report'])
    if rows:
        quantization.table(rows)
        quantization.write_csv(rows, folder / 'quantization.csv')
        quantization.draw(rows, 'title', folder / 'quantization.png')
    settings = run.experiment.config.to_dict() | {'step': run.packed.info['step']}
    return {'arrays': arrays(run.state.params), 'settings': settings}


def write_huggingface(folder: pathlib.Path):
    shard_bytes, huggingface_folder.SHARD_BYTES = huggingface_folder.SHARD_BYTES, 30_000
    small_checkpoints.write_checkpoint(folder / 'hf', small_checkpoints.LLAMA_3)
    huggingface_folder.SHARD_BYTES = shard_bytes
    said = {
        'tokenizer_config.json': {
            'eos_token': '</s>',
            'bos_token': {'content': 'def', 'lstrip': False},
            'add_bos_token': True,
            'model_max_length': int(1e30),
            'added_tokens_decoder': {'258': {'content': '</s>', 'special': True}},
        },
        'special_tokens_map.json': {'eos_token': '</s>', 'pad_token': {'content': '</s>'}},
        'added_tokens.json': {'</s>': 258},
        'generation_config.json': {'eos_token_id': [258, 7], 'bos_token_id': 257},
    }
    for name, contents in said.items():
        (folder / 'hf' / name).write_text(json.dumps(contents))


def write_low_bit(folder: pathlib.Path):
    low_bit_checkpoints.write(folder / 'hf', 'mixed')


def write_tokenizers(folder: pathlib.Path):
    small_tokenizers.write_sentencepiece(folder / 'exact.model', num_threads=1)
    small_tokenizers.write_sentencepiece(folder / 'nfkc.model', num_threads=1, normalization_rule_name='nmt_nfkc')
    small_tokenizers.write_huggingface_kinds(folder, folder / 'nfkc.model')


def read_tokenizers(folder: pathlib.Path) -> dict[str, Any]:
    told = []
    for path in sorted([*folder.glob('*.json'), *folder.glob('*.model')]):
        told += use_tokenizer(tokenizers.load_tokenizer(str(path)))
    return {'told': told}


def use_tokenizer(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """What programs do with a tokenizer; what they print of it."""
    ids = tokenizer.encode_document('def f(x): </s> é 1')
    tokenizer.encode_prompt('')
    assert ids.dtype == np.int32 and 0 <= ids.min() <= ids.max() < tokenizer.vocab_size, 'ids out of the vocabulary'
    tokenizer.decode(ids)
    tokenizer.decode(range(min(tokenizer.vocab_size, 1000)))
    json.dumps(tokenizer.files())
    return [tokenizer.describe(), *tokenizer.remarks]


def read_huggingface(folder: pathlib.Path) -> dict[str, Any]:
    experiment, tokenizer, not_finite, remarks = import_hf.import_checkpoint(folder / 'hf', folder / 'imported')
    told = [*use_tokenizer(tokenizer), *remarks]
    params = arrays(workdirs.open_run(folder / 'imported').state.params)
    counts = {path: np.count_nonzero(~np.isfinite(leaf)) for path, leaf in params.items()}
    assert not_finite == {path: count for path, count in counts.items() if count}, 'not counted: values not finite'
    return {'arrays': params, 'settings': experiment.config.to_dict(), 'told': told}


def write_metrics(folder: pathlib.Path):
    lines = [json.loads(line) for line in (BEFORE / 'run/metrics.jsonl').read_text().splitlines()]
    matrices = {'bits/matrix/query': [4.5, 4.0], 'bits/matrix/up': [5.0, 6.0]}
    text = ''.join(json.dumps(line | (matrices if 'bits/mean' in line else {})) + '\n' for line in lines)
    (folder / 'metrics.jsonl').write_text(text)
    shutil.copy(BEFORE / 'run/config.json', folder)


def read_metrics(folder: pathlib.Path) -> dict[str, Any]:
    record = run_records.read_record(folder)
    with json_files.naming(folder):
        for draw in (run_pictures.runs_figure, run_pictures.bitwidths_figure):
            figure = draw([record])
            pictures.save(figure, folder / 'metrics.png')
            plt.close(figure)
    with open(folder / 'output', 'w') as stream, run_metrics.MetricWriter(folder, 20, resume_step=10, stream=stream):
        pass
    return {}


def write_reported(folder: pathlib.Path):
    write_run(folder)
    write_metrics(folder)
    shutil.rmtree(folder / 'checkpoints')
    (folder / 'summary.json').write_text((BEFORE / 'full_run.json').read_text())
    starts.add(folder, starts.Start(0, ['--config=configs/tiny.py', '--workdir=runs/tiny'], '1 x cpu'))


def read_reported(folder: pathlib.Path) -> dict[str, Any]:
    run_report.write(folder, folder / 'report.html', None, prompt=None)
    starts.add(folder, starts.Start(10, [], '1 x cpu'))
    return {}


def write_result(folder: pathlib.Path):
    write_run(folder)
    shutil.rmtree(folder / 'checkpoints')
    (folder / 'summary.json').write_text((BEFORE / 'full_run.json').read_text())


def read_result(folder: pathlib.Path) -> dict[str, Any]:
    config = plans.traverse_util.flatten_dict(result_config(), sep='.')
    run = plans.SweepRun('seed=0', {'seed': 0}, config, folder, [])
    assert sweep_runs.look(run).status in ('done', 'diverged', 'failed', 'missing')
    result = sweep_runs.read_outcome(run)
    if result.status == 'done':
        f'{result.summary["validation/loss"]:.4f}'
    sweep.write_results(folder / 'results.csv', [run], {run.name: result})
    compare.read_groups(folder / 'results.csv', 'validation/loss')
    return {'settings': {'status': result.status}}


def result_config() -> dict[str, Any]:
    stored = stored_configs.read(json.loads((BEFORE / 'run/config.json').read_text()))
    return stored | {'special_tokens': tokenizers.load_tokenizer('bytes').special.settings}


def write_comparison(folder: pathlib.Path):
    shutil.copy(ROOT / 'benchmarks/tiny_law.csv', folder / 'results.csv')


def read_comparison(folder: pathlib.Path) -> dict[str, Any]:
    compare.markdown(compare.read_groups(folder / 'results.csv', 'validation/loss'), 'validation/loss').encode()
    return {}


def write_casts(folder: pathlib.Path):
    shutil.copy(ROOT / 'benchmarks/cast_down.csv', folder)
    casts = cast_down.read_casts(folder / 'cast_down.csv')
    names = list(dict.fromkeys(cast.run for cast in casts))
    with open(folder / 'results.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['name', 'status', 'seconds'], *([name, 'done', '3'] for name in names)])


def read_casts(folder: pathlib.Path) -> dict[str, Any]:
    names, _ = cast_down.read_sweep(folder / 'results.csv')
    casts = [cast for cast in cast_down.read_casts(folder / 'cast_down.csv') if cast.run in names]
    with json_files.naming(folder / 'cast_down.csv'):
        cast_losses.markdown(cast_losses.group(casts)).encode()
    return {}


def write_table(folder: pathlib.Path):
    with open(ROOT / 'benchmarks/tiny_law.csv', newline='') as file:
        rows = list(csv.DictReader(file))[:40]
    with open(folder / 'runs.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    numbers = [{name: float(value) if name in 'ND' else value for name, value in row.items()} for row in rows]
    (folder / 'runs.json').write_text(json.dumps(numbers))
    (folder / 'runs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in numbers))
    parquet.write_table(Table.from_pylist(numbers), folder / 'runs.parquet')


def read_table(suffix: str) -> Callable[[pathlib.Path], dict[str, Any]]:
    def read(folder):
        table = known_laws.runs_for(LAWS['capybara'], folder / f'runs{suffix}')
        run_tables.seed_noise(table)
        return {}

    return read


def write_law(folder: pathlib.Path):
    names = ('n', 'alpha', 'd')
    determination = gq.scaling_laws.Determination(LAW, names, np.eye(3)[:1], np.eye(3) / 100, (LAW,))
    scatter = gq.scaling_laws.Scatter(np.linspace(-0.02, 0.02, 9), False)
    ranges = {'N': (4e7, 6e8), 'D': (1e10, 1e11)}
    known = known_laws.KnownLaw(LAW, 'runs', ranges, 20 * (LAW,), ('gamma',), 0.02, determination, scatter, 'cr3')
    stored_laws.write_law(folder / 'law.json', known)


def read_law(folder: pathlib.Path) -> dict[str, Any]:
    known = stored_laws.read_law(folder / 'law.json')
    columns = dict(zip(known.law.COLUMNS, (1e9, 1e11, 4.0, 3.0, 32.0)))
    loss = lambda law: law.loss(**columns)
    json.dumps([known.value(loss).tolist(), known.name, known.describe()])
    assert all(isinstance(of(loss), np.ndarray | None) for of in (known.interval, known.prediction_interval))
    noise = f'{known.noise:.2g}' if known.draws and known.scatter is None else ''
    told = [*known.remarks(N=1e9, D=1e11), known.says_unknown, known.says_assumed, noise]
    return {'settings': known.describe(), 'told': told}


def write_texts(folder: pathlib.Path):
    shutil.copytree(BEFORE / 'texts', folder / 'texts')


def write_tokens(folder: pathlib.Path):
    write_texts(folder)
    read_tokens(folder)


def read_tokens(folder: pathlib.Path) -> dict[str, Any]:
    bytes_tokenizer, where = tokenizers.load_tokenizer('bytes'), dict(data_dir=folder / 'texts', cache_dir=folder)
    data = small_datasets.load_tokens('documents', 'validation', bytes_tokenizer, **where)
    names = ('num_bytes', 'num_documents', 'num_empty', 'num_invalid', 'sha256')
    counts = {name: getattr(data, name) for name in names}
    return {'arrays': {'tokens': np.concatenate(data.shards)}, 'settings': counts}


def write_sources(folder: pathlib.Path):
    small_sources.write_files(
        folder, [f'document {i} naïve' for i in range(9)], 9 * [[{'role': 'user', 'content': 'x'}]]
    )


def read_source(name: str) -> Callable[[pathlib.Path], dict[str, Any]]:
    def read(folder):
        return {'settings': {'num_rows': len(small_sources.read_source(folder / name))}}

    return read


def arrays(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in gq.leaves_by_path(tree).items()}


JSON_OR_DAMAGE = (of_json, of_json, of_json, of_bytes)
CHECKPOINT = {
    'checkpoints/*/checkpoint.json': JSON_OR_DAMAGE,
    'checkpoints/*/state/**/*': (of_bytes,),
    'checkpoints/*/state/_*': JSON_OR_DAMAGE,
    'checkpoints/*/state/array_metadatas/*': (of_json,),
}
PACKED = {'packed.safetensors': (of_bytes, of_tensors)}
HUGGINGFACE = {
    'hf/config.json': JSON_OR_DAMAGE,
    'hf/*.safetensors': (of_bytes, of_tensors, of_tensors),
    'hf/*.index.json': (of_json,),
    'hf/tokenizer.json': JSON_OR_DAMAGE,
    'hf/tokenizer_config.json': (of_json,),
    'hf/special_tokens_map.json': (of_json,),
    'hf/added_tokens.json': (of_json,),
    'hf/generation_config.json': (of_json,),
}
LOW_BIT = {'hf/config.json': (of_json,), 'hf/*.safetensors': (of_bytes, of_tensors, of_tensors)}
TOKENIZER = ('hf/*token*', 'hf/generation_config.json')

KINDS = {
    'packed': Kind(write_packed, read_packed_file, PACKED, exact=('*',)),
    'packed, sealed': Kind(write_packed, read_packed_file, {'packed.safetensors': (of_packed,)}),
    'packed run, sealed': Kind(write_packed, open_packed_file, {'packed.safetensors': (of_packed,)}),
    'Hugging Face': Kind(write_huggingface, read_huggingface, HUGGINGFACE, exact_arrays=TOKENIZER),
    'Hugging Face, low-bit': Kind(write_low_bit, read_huggingface, LOW_BIT),
    'tokenizers': Kind(write_tokenizers, read_tokenizers, {'*.json': JSON_OR_DAMAGE, '*.model': (of_bytes,)}),
    'checkpoint': Kind(write_run, read_run, {'checkpoints/**/*': (of_bytes,)}, exact=('*',)),
    'checkpoint, sealed': Kind(write_run, read_run, CHECKPOINT, seal=seal_run),
    'config of a run': Kind(write_run, read_run, {'config.json': JSON_OR_DAMAGE}, exact=('*',)),
    'metrics': Kind(write_metrics, read_metrics, {'metrics.jsonl': (of_json_lines, of_json_lines, of_bytes)}),
    'report': Kind(
        write_reported, read_reported, {'*.json': JSON_OR_DAMAGE, 'metrics.jsonl': (of_json_lines, of_bytes)}
    ),
    'result': Kind(write_result, read_result, {'*.json': JSON_OR_DAMAGE}),
    'comparison': Kind(write_comparison, read_comparison, {'results.csv': (of_csv, of_csv, of_bytes)}),
    'casts': Kind(write_casts, read_casts, {'*.csv': (of_csv, of_csv, of_bytes)}),
    'table, CSV': Kind(write_table, read_table('.csv'), {'runs.csv': (of_csv, of_csv, of_bytes)}),
    'table, JSON': Kind(write_table, read_table('.json'), {'runs.json': JSON_OR_DAMAGE}),
    'table, JSONL': Kind(write_table, read_table('.jsonl'), {'runs.jsonl': (of_json_lines, of_json_lines, of_bytes)}),
    'table, Parquet': Kind(write_table, read_table('.parquet'), {'runs.parquet': (of_bytes,)}),
    'law': Kind(write_law, read_law, {'law.json': JSON_OR_DAMAGE}),
    'tokens': Kind(
        write_tokens,
        read_tokens,
        {'tokens/**/*.json': JSON_OR_DAMAGE, 'tokens/**/*.tokens': (of_bytes,)},
        exact=('*',),
        is_cache=True,
    ),
    'chats': Kind(hostile_chats.write, hostile_chats.read, hostile_chats.TARGETS),
    'source, lines': Kind(write_sources, read_source('a.jsonl'), {'a.jsonl': (of_json_lines, of_json_lines, of_bytes)}),
    **{
        f'source, {name}': Kind(write_sources, read_source(name), {name: (of_bytes,)})
        for name in ('a.jsonl.gz', 'a.jsonl.zst', 'a.txt', 'a.parquet')
    },
    'source, Hugging Face': Kind(
        write_sources, read_source('saved'), {'saved/*.arrow': (of_bytes,), 'saved/*.json': JSON_OR_DAMAGE}
    ),
    'texts': Kind(
        write_texts, read_tokens, {'**/*.json': (*JSON_OR_DAMAGE, of_paths), '**/*.array_record*': (of_bytes,)}
    ),
    **{
        f'tokens, {kind}': Kind(token_folders.write_all, token_folders.reader(kind), {f'{kind}/*': (of_bytes,)})
        for kind in token_folders.WRITERS
    },
}
