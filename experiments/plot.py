"""Draw the loss and the mean bitwidth of runs, from their metrics.jsonl.

    python -m experiments.plot --output=docs/tiny.png runs/tiny-bf16 runs/tiny-gaussws runs/tiny-diffq

The legend has each run's last validation loss.
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from absl import flags

from experiments import cli
from experiments.files import paths
from experiments.reports import palette, pictures
from experiments.training.metrics import read_metrics

OUTPUT = flags.DEFINE_string('output', 'runs.png', 'The picture: .png, .svg or .pdf.')

STYLES = ('-', '--', ':', '-.')  # runs that coincide stay visible


def main(argv):
    if not argv[1:]:
        sys.exit('error: name the workdirs to draw')
    with cli.user_errors():
        workdirs = [paths.parse(name, 'workdir') for name in argv[1:]]
        output = paths.parse(OUTPUT.value, '--output')
        if len({workdir.name for workdir in workdirs}) < len(workdirs):
            raise ValueError(f'the last names of {", ".join(map(str, workdirs))} must differ: they name the curves')
        lines = {workdir.name: read_metrics(workdir / 'metrics.jsonl') for workdir in workdirs}
        draw(lines, output)
    print(output)


def draw(runs_by_name: dict[str, list[dict]], output: pathlib.Path):
    """Left: loss over steps, training as lines and validation as points; right: mean bitwidth, where learned.

    Raises:
      ValueError: for a run without a training loss; for another kind of picture.
    """
    pictures.check(output)
    with plt.rc_context(pictures.STYLE):
        figure, (loss, bits) = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
        for i, (name, lines) in enumerate(runs_by_name.items()):
            color, style = palette.color(i), STYLES[i % len(STYLES)]
            if not any('train/loss' in line for line in lines):
                raise ValueError(f'{name} has no training loss in its metrics.jsonl')
            loss.plot(*series(lines, 'train/loss'), color=color, alpha=0.35, linewidth=0.9)
            steps, values = series(lines, 'validation/loss')
            last = f'{name}: {values[-1]:.3f}' if len(values) else name
            last = last.replace('$', r'\$')  # a name is no formula
            loss.plot(steps, values, style, color=color, marker='o', markersize=4, linewidth=1.6, label=last)
            bits.plot(*series(lines, 'bits/mean'), style, color=color, linewidth=1.6)
        loss.set(xlabel='step', ylabel='loss (nats a token)', yscale='log')
        loss.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        loss.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter('%g'))
        loss.set_title('training (thin), validation without noise (points)', fontsize=10)
        loss.legend(frameon=False, title='validation at the end', alignment='left')
        bits.set(xlabel='step', ylabel='mean bitwidth (bits)')
        bits.set_title('learned bitwidths', fontsize=10)
        pictures.save(figure, output)
        plt.close(figure)


def series(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have the metric `name`."""
    points = [(line['step'], line[name]) for line in lines if name in line]
    return tuple(np.array(points, float).reshape(-1, 2).T)


if __name__ == '__main__':
    cli.start(main, takes_arguments=True)
