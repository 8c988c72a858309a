"""Write text with a run's newest checkpoint, or with a packed file of `experiments.export`.

    python -m experiments.generate --workdir=runs/tiny-gaussws --prompt='def '
    python -m experiments.generate --weights=runs/tiny-gaussws/learned.safetensors --prompt='def '
    python -m experiments.generate --workdir=runs/tiny-gaussws --prompt='def ' --prompt='class ' --top_p=0.9
    python -m experiments.generate --workdir=runs/chats --chat --prompt='What is JAX?'

With --chat each prompt is what a user says, rendered by the tokenizer's chat template, and the answer is written.
Several prompts are continued at the same time, each as if it were alone; but with fqt, activations whose scales span
tokens (block_size=tensor, tiles of several rows, NVFP4) depend on all texts. One text appears on a terminal as it is
written, and Ctrl-C ends it. A text ends where the model's window is full, or goes on with --slide. A seed gives other
texts than in version 0.1.0. In bfloat16, the likeliest token may be another one than that of a model that sees all of
the text anew, where two are likeliest within rounding.
"""

import sys
from collections.abc import Iterator

from absl import flags

from experiments import cli, methods, workdirs
from experiments.data import chats
from experiments.files import foreign_text
from experiments.methods import quantization_schedule
from experiments.training import generation
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import PromptTooLongError

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.")
WEIGHTS = flags.DEFINE_string('weights', None, 'A packed file, in place of --workdir.')
TOKENIZER = flags.DEFINE_string(
    'tokenizer', None, "With --weights, the tokenizer's file, if it isn't beside them or in the folder tokenizer there."
)
PROMPT = flags.DEFINE_multi_string('prompt', '', 'How the text begins; given several times, there are several texts.')
NUM_TOKENS = flags.DEFINE_integer('num_tokens', 256, 'How many tokens to write, if no document ends.', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 always takes the likeliest token.', lower_bound=0.0)
TOP_K = flags.DEFINE_integer('top_k', None, 'Only so many of the likeliest tokens are drawn from.')
TOP_P = flags.DEFINE_float(
    'top_p', None, 'Only the fewest of the likeliest tokens that have this probability together are drawn from.'
)
CHAT = flags.DEFINE_boolean('chat', False, 'Prompts are what a user says in a chat; the answers to them are written.')
SLIDE = flags.DEFINE_boolean(
    'slide', False, 'Go on beyond the window: the last tokens that fit are then seen anew for each token.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Another seed, another text.', lower_bound=0, upper_bound=2**32 - 1)


def main(argv):
    del argv
    with cli.user_errors():
        run = workdirs.open_either(WORKDIR.value, WEIGHTS.value, TOKENIZER.value)
        sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
        prompts = [cli.typed(prompt, '--prompt') for prompt in PROMPT.value]
        how = dict(num_tokens=NUM_TOKENS.value, sampling=sampling, seed=SEED.value, slides=SLIDE.value)
        tokenizer = run.tokenizer
        if CHAT.value:
            encoder = chats.ChatEncoder(tokenizer)
            prompts = [asked(encoder, prompt) for prompt in prompts]
            tokenizer, how['shows_prompts'] = encoder.answering_tokenizer(), False
        steps = generation.write_texts(run.experiment, run.state, tokenizer, prompts, **how)
        try:
            texts = next(steps)
        except PromptTooLongError as error:
            cli.fail(error, '; --slide sees the end of a longer one')
        now = quantization_schedule.when(run.experiment.config, int(run.state.step))
        if methods.scales_span_tokens(run.experiment.config, now):
            print(f'note: {methods.SPAN_TOKENS}', file=sys.stderr)
        show(steps, texts)


def asked(encoder: chats.ChatEncoder, prompt: str) -> list[int]:
    """The tokens of what a user says in a chat, up to where the answer begins."""
    try:
        return encoder.encode_prompt([{'role': 'user', 'content': prompt}])
    except chats.InvalidChatError as error:
        raise ValueError(f'--prompt={prompt!r:.80}: {error}') from None


def show(steps: Iterator[list[generation.Text]], texts: list[generation.Text]):
    """Prints the texts, one on a terminal as it is written; where it is interrupted, what there is."""
    is_terminal = sys.stdout.isatty()  # which obeys what it is told
    shown = foreign_text.escaped if is_terminal else str
    streams = is_terminal and len(texts) == 1
    interrupted = None
    try:
        show_piece = lambda: streams and print(shown(texts[0].new_piece()), end='', flush=True)
        show_piece()
        for _ in steps:
            show_piece()
    except KeyboardInterrupt as error:
        interrupted = error
    if streams:
        print(shown(texts[0].new_piece(is_last=True)))
    else:
        for number, text in enumerate(texts, 1):
            if len(texts) > 1:
                print(f'=== {number} of {len(texts)} ===')
            print(shown(str(text)))
    for number, text in enumerate(texts, 1):
        if text.fills_window and len(text.tokens) < NUM_TOKENS.value and not SLIDE.value:
            which = f'text {number}: ' * (len(texts) > 1)
            told = f'{which}the window of the model is full after {len(text.tokens)} tokens; --slide writes on'
            print(told, file=sys.stderr)
    if interrupted:
        raise interrupted


if __name__ == '__main__':
    cli.start(main)
