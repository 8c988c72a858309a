"""Evaluate a run's newest checkpoint on the whole validation split.

python -m experiments.evaluate --workdir=runs/tiny-gaussws
"""

import json
import pathlib

from absl import flags

from experiments import runs, training

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.", required=True)
EVAL_BATCHES = flags.DEFINE_integer('eval_batches', -1, 'Batches to evaluate; -1 is all.', lower_bound=-1)


def main(argv):
    del argv
    with runs.user_errors():
        run = runs.open_run(pathlib.Path(WORKDIR.value), eval_batches=EVAL_BATCHES.value)
        data = runs.load_data(run.experiment.config, run.tokenizer)
        validate = runs.make_validation(run.experiment, data)
    metrics = validate(run.state)
    bitwidths = training.bitwidth_metrics(run.experiment.transform, run.state.bitwidths)
    metrics.update({name: float(value) for name, value in bitwidths.items()})
    print(json.dumps({'step': int(run.state.step), **metrics}, indent=2))


if __name__ == '__main__':
    runs.start(main)
