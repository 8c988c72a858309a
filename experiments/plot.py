"""Draw the losses, the learned bitwidths, and the gap to bf16 of runs, from their metrics.jsonl.

    python -m experiments.plot --output=tiny.png runs/tiny-bf16 runs/tiny-gaussws runs/tiny-diffq
    python -m experiments.plot --panels=bits,gap runs/bf16-0 runs/bf16-1 runs/gaussws-0 runs/gaussws-1
    python -m experiments.plot --bits --output=bits.png runs/tiny-gaussws runs/tiny-diffq

Runs that differ in their seed only, by their config.json, are one curve: the mean, on a band from the least to the
largest. The legend has the last validation loss. The bitwidths are those of the first run that learned some, a heat map
of layers by matrices. Where there are runs of the method bf16, a panel has how far the others are above the one of
the same seed and settings, in percent of its validation loss.

--bits draws the bitwidths alone, a row a run: at the last step, and how they came to it.
"""

import sys

import matplotlib.pyplot as plt
from absl import flags

from experiments import cli
from experiments.files import paths
from experiments.reports import pictures, run_pictures, run_records

OUTPUT = flags.DEFINE_string('output', 'runs.png', 'The picture: .png, .svg or .pdf.')
PANELS = flags.DEFINE_list('panels', [], f'Of {", ".join(run_pictures.PANELS)}; all that there are if not given.')
BITS = flags.DEFINE_bool('bits', False, 'Draw the bitwidths of each matrix of each layer.')


def main(argv):
    if not argv[1:]:
        sys.exit('error: name the workdirs to draw')
    with cli.user_errors():
        workdirs = [paths.parse(name, 'workdir') for name in argv[1:]]
        output = paths.parse(OUTPUT.value, '--output')
        pictures.check(output)
        if len({workdir.name for workdir in workdirs}) < len(workdirs):
            raise ValueError(f'the last names of {", ".join(map(str, workdirs))} must differ: they name the curves')
        records = [run_records.read_record(workdir) for workdir in workdirs]
        if BITS.value and PANELS.value:
            raise ValueError('--panels has no meaning with --bits')
        with plt.rc_context(pictures.STYLE):
            if BITS.value:
                figure = run_pictures.bitwidths_figure(records)
            else:
                figure = run_pictures.runs_figure(records, PANELS.value)
            pictures.save(figure, output)
            plt.close(figure)
    print(output)


if __name__ == '__main__':
    cli.start(main, takes_arguments=True)
