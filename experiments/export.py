"""Write a run's newest weights to a packed low-bit file, as small on the disk as it says.

    python -m experiments.export --workdir=runs/tiny-gaussws                      # each block in its learned bitwidth
    python -m experiments.export --workdir=runs/tiny-gaussws --budget=5.0         # at most 5 bits a weight
    python -m experiments.export --workdir=runs/tiny-bf16 --format=float6_e3m2fn  # MXFP6
    python -m experiments.export --workdir=runs/tiny-bf16 --format=bfloat16 --to_hf=tiny-hf

It prints what each leaf takes, and writes WORKDIR/<format>.safetensors, or --output, in one step: a file that is there
is replaced. The file holds all that evaluating it takes, but for the texts and the tokenizer's file:

    python -m experiments.evaluate --weights=runs/tiny-gaussws/learned.safetensors
    python -m experiments.generate --weights=runs/tiny-gaussws/learned.safetensors --prompt='def '

`learned` stores each block in the narrowest format that holds its bitwidth (`gaussq_jax.format_for_bitwidth`): a
bitwidth of 4 takes the 6 bits of E3M2. Below the table it says which bitwidths have which format, how far they are
above what the next narrower one holds, and within which budget they get that. With --budget, bits are taken away where
they cost least. Any other format is that of all weight matrices which the method quantizes (of bf16, all of them), with
a power-of-two scale for each --block_size weights along the contracted axis, as MXFP8, MXFP6 and MXFP4 have. All other
weights, and with bfloat16 all weights, are stored in bfloat16. --to_hf writes the same weights, in bfloat16, also as a
folder for `transformers`, whatever the family of the model; those of `import_hf` go back to where they came from.
"""

import pathlib
import shutil
import tempfile
from typing import Any

from absl import flags

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import cli, workdirs
from experiments.data import tokenizer_files
from experiments.files import huggingface_folder, paths
from experiments.reports import quantization as report
from experiments.reports import stored_formats
from gaussq_jax import models
from gaussq_jax.packed import Layout, header_bytes

LEARNED, BFLOAT16 = 'learned', stored_formats.BFLOAT16

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.", required=True)
FORMAT = flags.DEFINE_string('format', LEARNED, f"{LEARNED}, {BFLOAT16}, or a format's name, such as float6_e3m2fn.")
BUDGET = flags.DEFINE_float('budget', None, f'With {LEARNED}, the most bits a weight, scales and all included.')
BLOCK_SIZE = flags.DEFINE_integer('block_size', None, 'With one format for all, how many weights share a scale: 32.')
OUTPUT = flags.DEFINE_string('output', None, 'The file; WORKDIR/<format>.safetensors if not given.')
TO_HF = flags.DEFINE_string('to_hf', None, 'A folder for transformers, which is not there yet.')


def main(argv):
    del argv
    with cli.user_errors():
        workdir = paths.parse(WORKDIR.value, '--workdir')
        directory = TO_HF.value and paths.parse(TO_HF.value, '--to_hf')
        check_settings(FORMAT.value, BUDGET.value, BLOCK_SIZE.value)
        file = output_file(workdir)
        run = workdirs.open_run(workdir)
        if directory:
            check_family(run.experiment.family, directory)
        remarks = tokenizer_files.keep_if_missing(run.experiment.config.tokenizer, workdir)  # as version 0.1 did not
        layout, promised = choose_layout(run, FORMAT.value, BUDGET.value, BLOCK_SIZE.value)
        info = describe_run(run, layout, FORMAT.value, BUDGET.value)
        gq.save_packed(file, run.state.params, layout, info=info)
        header, on_disk = header_bytes(file), file.stat().st_size
        if on_disk != header + promised.total_bytes:
            raise ValueError(f'{file} has {on_disk} bytes, not {promised.total_bytes} and a header of {header}')
        if directory:
            write_huggingface(run, workdir, gq.load_packed(file, like=run.state.params), directory)
    print(f'{workdir.name}, step {info["step"]}: {report.describe_layout(info, layout)}')
    print(stored_formats.leaf_table(run.state.params, layout, promised))
    if FORMAT.value == LEARNED and BUDGET.value is None:
        of_run = run.state.params, run.state.transform_state
        print(*stored_formats.reasons(run.experiment.transform, *of_run), sep='\n')
    share = 100 * on_disk / (4 * run.experiment.num_params)
    print(
        f'written to {file}: {on_disk:,} bytes, {promised.total_bytes:,} as promised and a header of {header:,};'
        f' {share:.1f} % of float32'
    )
    print(''.join(f'{remark}\n' for remark in remarks), end='')
    tokenizer = run.experiment.config.tokenizer
    if tokenizer != 'bytes' and not tokenizer_files.copy_of(tokenizer, file.parent):
        print(f'its tokenizer is not beside it, and has to be named: --tokenizer={tokenizer}')
    if directory:
        print(f'written to {directory}: the same weights in bfloat16, for transformers')


def check_settings(fmt: str, budget: float | None, block_size: int | None):
    """Refuses a flag that would do nothing, and a format that isn't there.

    Raises:
      ValueError: naming it.
    """
    if fmt != LEARNED:
        try:
            gq.parse_format(fmt)
        except ValueError as error:
            raise ValueError(f'--{error}, or {LEARNED}') from None
        if budget is not None:
            raise ValueError(f'--budget={budget:g} has a meaning only with --format={LEARNED}, not {fmt}')
    if block_size is not None and fmt in (LEARNED, BFLOAT16):
        reason = 'whose blocks are those of the bitwidths' if fmt == LEARNED else 'which has no scales'
        raise ValueError(f'--block_size={block_size} has no meaning with --format={fmt}, {reason}')


def check_family(family: models.ModelFamily, directory: pathlib.Path):
    """ValueError for one that there is no folder of."""
    if family.huggingface is None:
        raise ValueError(f'--to_hf={directory}: transformers has no models of the family {family.name}')


def output_file(workdir: pathlib.Path) -> pathlib.Path:
    """Where the file goes.

    Raises:
      ValueError: if no file can be there.
    """
    numbers = [f'{number:g}' for number in (BUDGET.value, BLOCK_SIZE.value) if number is not None]
    file = workdir / ('-'.join([FORMAT.value, *numbers]) + '.safetensors')
    if OUTPUT.value:
        file = paths.parse(OUTPUT.value, '--output')
    if OUTPUT.value and not file.parent.is_dir():
        raise ValueError(f'--output={file}: there is no folder {file.parent}')
    if file.is_dir():
        raise ValueError(f'--output={file} is a folder; give the name of a file')
    return file


def choose_layout(
    run: workdirs.Run, fmt: str, budget: float | None, block_size: int | None
) -> tuple[Layout, gq.ModelSize]:
    """How the weights are stored, and what that takes.

    Raises:
      ValueError: for learned bitwidths where none were learned; for a budget that can't be kept.
    """
    params, bitwidths, transform = run.state.params, run.state.transform_state, run.experiment.transform
    if fmt != LEARNED:
        layout = transform.uniform_layout(params, fmt, block_size=32 if block_size is None else block_size)
        return layout, gq.layout_size(params, layout)
    if not bitwidths:
        raise ValueError(
            f'--format={LEARNED}: the method of this run is {run.experiment.config.method}, which learns no bitwidths;'
            ' give a format for all weights, for example --format=float6_e3m2fn'
        )
    formats = gq.format_for_bitwidth
    if budget is not None:
        formats = transform.formats_within_budget(params, bitwidths, budget)
    layout = transform.learned_layout(params, bitwidths, formats=formats)
    return layout, transform.model_size(params, bitwidths, formats=formats)


def describe_run(run: workdirs.Run, layout: Layout, fmt: str, budget: float | None) -> dict[str, Any]:
    """What a file keeps of its run: what `workdirs.open_packed` takes, and what quantization did to the weights."""
    return {
        'config': workdirs.packed_config(run.experiment.config),
        'step': int(run.state.step),
        'vocab_size': run.experiment.vocab_size,
        'tokenizer': run.tokenizer.fingerprint,
        'layout': fmt,
        'budget': budget,
        'report': report.to_json(report.measure_layout(run.state.params, layout)),
    }


def write_huggingface(run: workdirs.Run, workdir: pathlib.Path, weights: Any, directory: pathlib.Path):
    """Writes these weights as a folder for transformers, with the tokenizer's files; an imported run has its own."""
    tokenizer, folder = paths.parse(run.experiment.config.tokenizer, 'tokenizer'), workdir / 'tokenizer'
    is_imported = (folder / huggingface_folder.CONFIG).is_file()
    with tempfile.TemporaryDirectory() as alone:
        if not folder.is_dir():
            folder = tokenizer.parent if tokenizer.is_file() else None  # of bytes
        if folder and tokenizer.is_file() and tokenizer.name not in huggingface_folder.TOKENIZERS:
            folder = pathlib.Path(alone)  # what lies beside it may be another's
            shutil.copyfile(tokenizer, folder / f'tokenizer{tokenizer.suffix}')
        said = what_files_say(run, folder, is_imported)
        huggingface_folder.write(directory, run.experiment.model, weights, folder, said=said)


def what_files_say(run: workdirs.Run, folder: pathlib.Path | None, is_imported: bool) -> dict[str, Any]:
    """What the files of a run's folder for transformers say that its tokenizer's folder doesn't, by their names."""
    config, special, eos = run.experiment.config, run.tokenizer.special, [*run.tokenizer.special.eos]
    if is_imported and config.special_tokens.to_dict() == stored_configs.MEANT_BEFORE[2]['special_tokens']:
        return {}  # by version 0.1, which knew nothing of them: they are the checkpoint's
    ids = {'bos_token_id': special.bos, 'eos_token_id': eos[0] if len(eos) == 1 else eos}
    own = {'pad_token_id': None}
    family = models.find_family(config.model.family)
    if family.huggingface.longest:
        own[family.huggingface.longest] = config.sequence_length
    said = {huggingface_folder.CONFIG: ids | ({} if is_imported else own)}
    has = lambda *names: folder is not None and any((folder / name).is_file() for name in names)
    is_said = has(huggingface_folder.TOKENIZER_CONFIG) and run.tokenizer.is_said_by(folder)
    if has(*huggingface_folder.TOKENIZERS) and not is_said:
        said |= run.tokenizer.files()
        if has('tokenizer.model') and not family.huggingface.reads_sentencepiece:
            said[huggingface_folder.TOKENIZER_CONFIG]['tokenizer_class'] = 'TokenizersBackend'
        if has(huggingface_folder.GENERATION):
            said[huggingface_folder.GENERATION] = ids
    return said


if __name__ == '__main__':
    cli.start(main)
