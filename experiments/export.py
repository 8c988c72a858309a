"""Write a run's newest weights to a packed low-bit file, as small on the disk as it says, and for other software.

    python -m experiments.export --workdir=runs/tiny-gaussws                      # each block in its learned bitwidth
    python -m experiments.export --workdir=runs/tiny-gaussws --budget=5.0         # at most 5 bits a weight
    python -m experiments.export --workdir=runs/tiny-bf16 --format=float6_e3m2fn  # MXFP6
    python -m experiments.export --workdir=runs/tiny-gaussws --budget=5.0 --to=compressed-tensors --output=runs/served

It prints what each leaf takes, and writes WORKDIR/<format>.safetensors, or --output, in one step: a file that is there
is replaced. The file holds all that evaluating it takes, but for the texts and the tokenizer's file:

    python -m experiments.evaluate --weights=runs/tiny-gaussws/learned.safetensors
    python -m experiments.generate --weights=runs/tiny-gaussws/learned.safetensors --prompt='def '

Without --format, the weights are those that the run was trained with. Learned bitwidths: each block in the narrowest
format that holds its own (`gaussq_jax.format_for_bitwidth`): a bitwidth of 4 takes the 6 bits of E3M2. Below the table
it says which bitwidths have which format, how far they are above what the next narrower one holds, and within which
budget they get that. With --budget, bits are taken away where they cost least. Of fqt and qat: the format and scales to
which they round weights, by a recipe or not, but for the layers that they keep, which are in bfloat16; of others, and
where the newest step quantizes nothing, bfloat16. Any other format is that of all weight matrices which the method
quantizes (of bf16, all of them), with a power-of-two scale for each 32 weights along the contracted axis, as MXFP8,
MXFP6 and MXFP4 have, or the scales that --block_size and --scale say, as of `gaussq_jax.Quantizer`. All other weights,
and with bfloat16 all weights, are stored in bfloat16.

--to writes the same weights, number by number, for other software too, to --output: a folder for transformers, in
bfloat16; for compressed-tensors (vLLM, SGLang, transformers), mlx, deepseek-fp8 or quark-mxfp6; or a file for gguf
(llama.cpp). What their formats don't hold exactly is refused, saying what would hold it; of learned bitwidths, each
matrix has the narrowest format that holds all of its blocks, or bfloat16. With --budget and no --format, each has the
format of the least squared error instead, within so many bits a weight, whatever was learned; with --format=learned,
bits are taken away as without --to. The packed file, then called WORKDIR/served-<budget>-<target>.safetensors, has
these weights, too. docs/serving.md says who reads what.
"""

import pathlib
import shutil
from typing import Any

from absl import flags

import gaussq_jax as gq
from experiments import cli, workdirs
from experiments.data import tokenizer_files
from experiments.files import paths
from experiments.reports import quantization as report
from experiments.reports import stored_formats
from experiments.serving import folders, gguf_file, layout_choice
from experiments.serving.layout_choice import LEARNED, SERVED
from experiments.serving.targets import GGUF, TARGETS, TRANSFORMERS, Target
from gaussq_jax.atomic_files import check_is_free
from gaussq_jax.packed import header_bytes

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.", required=True)
FORMAT = flags.DEFINE_string(
    'format', None, f"{LEARNED}, bfloat16, or a format's name, such as float6_e3m2fn; else the run's own."
)
BUDGET = flags.DEFINE_float('budget', None, 'The most bits that a quantized weight takes, scales and all included.')
BLOCK_SIZE = flags.DEFINE_string(
    'block_size', None, 'With --format, what shares a scale, such as 32, 128x128, channel.'
)
SCALE = flags.DEFINE_string('scale', None, 'With --format, the kind of scales: mx, if not given, absmax or nvfp4.')
TO = flags.DEFINE_enum('to', None, [*TARGETS], 'Whose format the weights are written in, besides the packed file.')
OUTPUT = flags.DEFINE_string('output', None, 'The packed file, or with --to what is written in its place.')
TO_HF = flags.DEFINE_string('to_hf', None, f'A folder, for --to={TRANSFORMERS.name}; --output is the packed file then.')


def main(argv):
    del argv
    with cli.user_errors():
        workdir = paths.parse(WORKDIR.value, '--workdir')
        target, place, file = target_and_outputs()
        asked = layout_choice.Asked(FORMAT.value, BUDGET.value, BLOCK_SIZE.value, SCALE.value, target)
        asked.check()
        run = workdirs.open_run(workdir)
        chosen = layout_choice.choose(run, asked)
        file = file or workdir / f'{chosen.name}.safetensors'
        check_outputs(file, place)
        unheld = 'bfloat16' if chosen.kept['layout'] in (LEARNED, SERVED) else 'error'
        of_modules = {}
        if target:
            of_modules = folders.storages(run.experiment.model, chosen.params, chosen.layout, target, unheld=unheld)
        info = describe_run(run, chosen)
        remarks = tokenizer_files.keep_if_missing(run.experiment.config.tokenizer, workdir)  # as version 0.1 did not
        if target == GGUF:
            longest = folders.longest_sequence(run, workdir)
            gguf_file.write(run, chosen.params, chosen.layout, place, longest=longest)
        elif target:
            remarks += folders.write(run, workdir, place, target, chosen.params, chosen.layout, unheld=unheld)
        try:
            gq.save_packed(file, chosen.params, chosen.layout, info=info)
        except BaseException:
            if target:  # both are there, or neither
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            raise
        header, on_disk = header_bytes(file), file.stat().st_size
        if on_disk != header + chosen.size.total_bytes:
            raise ValueError(f'{file} has {on_disk} bytes, not {chosen.size.total_bytes} and a header of {header}')
    print(f'{workdir.name}, step {info["step"]}: {report.describe_layout(info, chosen.layout)}')
    print(stored_formats.leaf_table(run.state.params, chosen.layout, chosen.size))
    if chosen.name == LEARNED:
        of_run = run.state.params, run.state.transform_state
        print(*stored_formats.reasons(run.experiment.transform, *of_run), sep='\n')
    share = 100 * on_disk / (4 * run.experiment.num_params)
    print(
        f'written to {file}: {on_disk:,} bytes, {chosen.size.total_bytes:,} as promised and a header of {header:,};'
        f' {share:.1f} % of float32'
    )
    tokenizer = run.experiment.config.tokenizer
    if tokenizer != 'bytes' and not tokenizer_files.copy_of(tokenizer, file.parent):
        remarks += [f'its tokenizer is not beside it, and has to be named: --tokenizer={tokenizer}']
    if target:
        remarks += [f'written to {place}: the same weights, for {target.name}', *folders.summary(of_modules)]
    print(''.join(f'{remark}\n' for remark in remarks), end='')


def target_and_outputs() -> tuple[Target | None, pathlib.Path | None, pathlib.Path | None]:
    """What is written besides the packed file, where that is written, and where the packed file is, if it is said.

    Raises:
      ValueError: for flags that contradict one another, or of which one is lacking.
    """
    output = None if OUTPUT.value is None else paths.parse(OUTPUT.value, '--output')
    if TO_HF.value is not None:
        if TO.value is not None:
            raise ValueError(f'--to={TO.value}, --to_hf={TO_HF.value}: give one of them')
        return TRANSFORMERS, paths.parse(TO_HF.value, '--to_hf'), output
    if TO.value and not output:
        raise ValueError(f'--to={TO.value} takes --output, where it is written')
    return (TARGETS[TO.value], output, None) if TO.value else (None, None, output)


def check_outputs(file: pathlib.Path, place: pathlib.Path | None):
    """Refuses what can't be written, before anything is.

    Args:
      file: the packed file.
      place: what is written besides, a folder or a GGUF file; None for nothing.

    Raises:
      ValueError: naming it, and why.
    """
    if not file.parent.is_dir():
        raise ValueError(f'{file} can not be written: there is no folder {file.parent}')
    if file.is_dir():
        raise ValueError(f'{file} is a folder; --output takes the name of a file')
    if place is None:
        return
    if place.resolve() == file.resolve() or file.resolve().is_relative_to(place.resolve()):
        raise ValueError(f'{place} would be in the place of the packed file, {file}; give another')
    if TO.value != GGUF.name:
        check_is_free(place)
    elif not place.parent.is_dir():
        raise ValueError(f'--output={place}: there is no folder {place.parent}')
    elif place.exists() and not gguf_file.is_one(place):
        raise ValueError(f'--output={place} is there already, and no GGUF file; give another')


def describe_run(run: workdirs.Run, chosen: layout_choice.Chosen) -> dict[str, Any]:
    """What a file keeps of its run: what `workdirs.open_packed` takes, and what quantization did to the weights."""
    return {
        'config': workdirs.packed_config(run.experiment.config, int(run.state.step)),
        'step': int(run.state.step),
        'vocab_size': run.experiment.vocab_size,
        'tokenizer': run.tokenizer.fingerprint,
        **chosen.kept,
        'report': report.to_json(report.measure_layout(run.state.params, chosen.layout)),
    }


if __name__ == '__main__':
    cli.start(main)
