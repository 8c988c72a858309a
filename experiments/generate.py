"""Write text with a run's newest checkpoint, or with a packed file of `experiments.export`.

python -m experiments.generate --workdir=runs/tiny-gaussws --prompt='def '
python -m experiments.generate --weights=runs/tiny-gaussws/learned.safetensors --prompt='def '
"""

import sys

from absl import flags

from experiments import cli, workdirs
from experiments.files import foreign_text
from experiments.training import generation

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.")
WEIGHTS = flags.DEFINE_string('weights', None, 'A packed file, in place of --workdir.')
TOKENIZER = flags.DEFINE_string(
    'tokenizer', None, "With --weights, the tokenizer's file, if it isn't beside them or in the folder tokenizer there."
)
PROMPT = flags.DEFINE_string('prompt', '', 'How the text begins.')
NUM_TOKENS = flags.DEFINE_integer('num_tokens', 256, 'How many tokens to write, if no document ends.', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 always takes the likeliest token.', lower_bound=0.0)
SEED = flags.DEFINE_integer('seed', 0, 'Another seed, another text.', lower_bound=0, upper_bound=2**32 - 1)


def main(argv):
    del argv
    with cli.user_errors():
        run = workdirs.open_either(WORKDIR.value, WEIGHTS.value, TOKENIZER.value)
        prompt = cli.typed(PROMPT.value, '--prompt')
    how = dict(num_tokens=NUM_TOKENS.value, temperature=TEMPERATURE.value, seed=SEED.value)
    text = generation.write_text(run.experiment, run.state, run.tokenizer, prompt, **how)
    print(foreign_text.escaped(text) if sys.stdout.isatty() else text)  # a terminal obeys what it is told


if __name__ == '__main__':
    cli.start(main)
