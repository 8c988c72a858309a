"""Write a report on a run, whatever its method, as one HTML file that needs no other.

    python -m experiments.report --workdir=runs/tiny-gaussws
    python -m experiments.report --workdir=runs/tiny-gaussws --output=report.html --prompt='class '

It has what was trained, and by which command; the losses, the learning rate and the speed; the learned bitwidths, by
layer and matrix and over steps; the formats that they ask for, and what other formats would take; the validation losses
with and without noise; and what the newest weights write after --prompt, unless --notext is given. It goes to
WORKDIR/report.html, or --output. A run that is still training is reported as far as it is, and one of an earlier
version as far as that wrote it. Nothing of the run is changed, and no data is needed.
"""

from absl import flags

from experiments import cli, workdirs
from experiments.checkpoints.step_directories import newest_step
from experiments.files import paths
from experiments.reports import run_report

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.", required=True)
OUTPUT = flags.DEFINE_string('output', None, 'The HTML file; WORKDIR/report.html if not given.')
PROMPT = flags.DEFINE_string('prompt', 'def ', 'How the sample of text begins.')
TEXT = flags.DEFINE_bool('text', True, 'Whether there is a sample of text; of a large model there is none.')


def main(argv):
    del argv
    with cli.user_errors():
        workdir = paths.parse(WORKDIR.value, '--workdir')
        output = paths.parse(OUTPUT.value, '--output') if OUTPUT.value else workdir / 'report.html'
        prompt = cli.typed(PROMPT.value, '--prompt') if TEXT.value else None
        if not workdir.is_dir():
            raise ValueError(f'--workdir={workdir}: there is no such folder')
        if not output.parent.is_dir():
            raise ValueError(f'--output={output}: there is no folder {output.parent}')
        has_checkpoint = newest_step(workdir / 'checkpoints') is not None
        opened = workdirs.open_run(workdir) if has_checkpoint else None
        checkpoint = opened and run_report.Checkpoint(opened.experiment, opened.state, opened.tokenizer)
        run_report.write(workdir, output, checkpoint, prompt=prompt)
    print(output)


if __name__ == '__main__':
    cli.start(main)
