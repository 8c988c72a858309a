"""What every config shares: the parser of `config.py:size=…,method=…`, and the fields with their defaults."""

import math

from ml_collections import ConfigDict

from experiments.methods import METHODS
from experiments.methods.settings import BITWIDTHS, SHARED

NOT_GIVEN = math.nan  # of b_init and b_target: as BITWIDTHS has them
ARGUMENTS = dict(  # of every config
    method=METHODS, **{**SHARED, 'b_init': NOT_GIVEN, 'b_target': NOT_GIVEN}, bitwidths=BITWIDTHS, smoke=False
)


def parse(argument: str | None, **allowed) -> ConfigDict:
    """The values of a config argument such as 'size=1b,method=bf16,smoke'.

    Args:
      argument: comma-separated name=value pairs; a name alone means name=true. None or '' for the defaults.
      **allowed: for each name its default value, which sets its type (bool, int, float or str), or the allowed
        strings, a tuple or the keys of a dict, the first one the default.

    Returns:
      A ConfigDict of all names.

    Raises:
      ValueError: for an unknown name, a name given twice, or a value that isn't allowed; says what is.

    Example:
      >>> parse('method=bf16,smoke', method=('gaussws', 'bf16'), b_target=4.0, smoke=False).to_dict()
      {'b_target': 4.0, 'method': 'bf16', 'smoke': True}
    """
    values = {name: next(iter(of)) if isinstance(of, tuple | dict) else of for name, of in allowed.items()}
    given = set()
    for item in filter(None, (argument or '').split(',')):
        name, _, text = item.partition('=')
        if name not in allowed:
            raise ValueError(f'config argument {name!r} is unknown; allowed are {", ".join(allowed)}')
        if name in given:
            raise ValueError(f'config argument {name!r} is given twice in {argument!r}')
        given.add(name)
        values[name] = _convert(name, text or 'true', allowed[name])
    return ConfigDict(values)


def base_config(argument: ConfigDict) -> ConfigDict:
    """Every field that a program reads, with the defaults that the models share; a config fills in the rest.

    Args:
      argument: as parsed, with `ARGUMENTS`.
    """
    of_bitwidths = dict(BITWIDTHS[argument.bitwidths])
    for name in ('b_init', 'b_target'):
        if not math.isnan(argument[name]):
            of_bitwidths[name] = argument[name]
    return ConfigDict(
        dict(
            seed=0,
            method=argument.method,
            quantization=dict(
                # What is rounded to what. gaussws, diffq: the sampled weights, in square blocks, to a format if one is
                # named; qat: the weights; fqt: the GEMM operands.
                format=argument.format,  # '' is none for gaussws and diffq, e4m3 for qat and fqt
                block_size=argument.block_size,  # a number, and for qat and fqt also channel, tensor, ROWSxCOLS
                scale=argument.scale,  # qat, fqt
                rounding=argument.rounding,  # qat, fqt; outside of training steps, stochastic means nearest_even
                targets=argument.targets,  # fqt: of P1 .. P6
                recipe=argument.recipe,  # fqt: a name of gaussq_jax.recipes, in the place of these five; gaussws and
                # diffq: activations and gradients as it has them, under sampled weights
                full_precision=argument.full_precision,  # fqt, qat: linear layers that are not quantized, such as
                # '.*/down; first=1+last=15%'; '' are the recipe's own, 'none' are none
                start_step=argument.start_step,  # fqt, qat: steps before anything is quantized
                end_step=argument.end_step,  # fqt: after so many steps, nothing is; 0 is no end
                arithmetic=argument.arithmetic,  # fqt: 'simulated', or 'hardware', on the FP8 units of GPUs
                parts=argument.parts,  # gaussws, diffq, qat: linear layers, a name of SHARED, or a regex of leaf paths
                # How bitwidths are learned: gaussws, diffq.
                #   b_init         bits at the start
                #   b_target       the fewest bits
                #   optimizer      of b_i: 'descent', which is gq.bitwidth_descent, or 'adamw'
                #   start          share of the steps in which bitwidths stay at b_init
                # With descent:
                #   price          of a stored bit a weight, in nats a token
                #   fall           share of the steps in which a block that the loss doesn't hold falls to b_target
                # With adamw:
                #   learning_rate  of b_i, constant
                #   weight_decay   of b_i; alone, it makes them exp(-learning_rate weight_decay step)
                #   penalty        times the mean bitwidth, added to the loss
                **of_bitwidths,
                **METHODS[argument.method].own_settings,
            ),
            # Data: text and a tokenizer, 'bytes' or a SentencePiece .model or tokenizers .json file. The text is a TFDS
            # dataset; PATH/*.parquet, .jsonl, .jsonl.gz, .jsonl.zst or .txt; a folder of Hugging Face `datasets`, or of
            # `experiments.prepare`; token files, PATH/*.bin; or several, '0.7 web=DATASET; 0.3 code=DATASET'.
            dataset='python_stdlib',
            train_split='train',  # what {split} is in a path
            validation_split='validation',
            held_out=0.005,  # the share of documents that are for validation, where a dataset has no splits
            text_feature='text',  # or 'messages', or 'prompt+completion': chats, of which the answers are learned
            invalid_text='error',  # documents that are not UTF-8; or 'replace', or 'skip'
            packing='',  # or 'segmented': no attention across documents of text, as there is none across chats
            data_dir='',  # where TFDS keeps it; '' is TFDS's own default
            cache_dir='',  # for token arrays; '' is $GAUSSQ_CACHE or ~/.cache/gaussq_jax
            tokenizer='bytes',
            special_tokens=dict(  # by their ids; '' is what the tokenizer's file says, and those of a model beside it
                bos_token_id='',  # of the beginning of a text; or 'none'
                eos_token_id='',  # of the end of a document; if several, as '2,32007', any of them ends what is written
                add_bos_token='',  # 'true' or 'false': whether texts begin with it; no document does that follows it
            ),
            vocab_size=0,  # of the model; 0 is the tokenizer's, of which it may have more
            init_from='',  # a run's workdir, whose newest weights training starts from; '' is random weights
            # Distillation: the loss is (1 - weight) cross entropy + weight temperature^2 KL(teacher || student), of the
            # predictions at this temperature.
            teacher='',  # a run's workdir, whose newest weights teach, or a Hugging Face folder; '' is none
            distillation=dict(temperature=1.0, weight=1.0),
            branch_from='',  # a run's workdir: training goes on from its last state before either's decay
            batch_size=32,  # sequences a step, over all devices
            microbatches=1,  # the batch is processed in so many parts, their gradients summed
            sequence_length=256,
            # Training.
            total_steps=1000,
            dtype='bfloat16',  # of the computation
            remat_policy='',  # '' keeps activations; 'full', or a name of jax.checkpoint_policies
            scan_unroll=1,  # layers in a turn of the scan over them; on CPUs, more are faster and compile for longer
            resample_weights=False,  # draw a layer's W_hat again in the backward pass, instead of keeping all layers'
            gradient_reduction='float32',  # or 'bfloat16': in which the linear layers' dW_hat is summed over devices
            optimizer=dict(
                # 'adamw'; 'adam_mini', one second moment a head, neuron or token; or 'muon', for the matrices of the
                # linear layers, with AdamW for all else
                name='adamw',
                state_dtype='float32',  # of the moments; 'bfloat16' is rounded stochastically
                learning_rate=6e-4,
                final_learning_rate=6e-5,
                warmup_steps=100,
                schedule='cosine',  # or 'wsd', constant until it falls in the last decay_steps as 1 - sqrt
                decay_steps=0,  # of wsd; 0 is a fifth of total_steps
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,  # of the weights, not of norms and biases
                clip_norm=1.0,  # of the weights' gradient
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),  # sizes; -1 is what remains
            divergence=dict(
                max_rollbacks=0,  # to the last of checkpoint_every, skipping the batches since; 0 ends the training
                spike_sigmas=0.0,  # a loss so far above the last ones' mean has diverged; 0: only if it isn't finite
                spike_window=100,  # steps of that mean
            ),
            stall_timeout=1800.0,  # seconds without a finished step, after which the program ends itself; 0: never
            log_every=10,
            eval_every=250,
            eval_batches=20,  # spread evenly over the validation split; -1 is all of it
            checkpoint_every=250,
            keep_checkpoints=3,
            keep_period=0,  # checkpoints of steps that this divides are kept, too: for branches; 0 keeps none
            deterministic=True,  # on GPUs, for resuming bit by bit
        )
    )


def shrink(config: ConfigDict) -> ConfigDict:
    """The same config in seconds on any machine: two small layers, short sequences, few steps."""
    config.name += '-smoke'
    config.model.num_layers = 2
    config.model.hidden_size = 64
    config.model.num_heads = 2
    config.model.mlp_size = 128
    if 'max_length' in config.model:
        config.model.max_length = 64
    config.dataset, config.tokenizer = 'python_stdlib', 'bytes'
    config.scan_unroll = 1
    config.batch_size, config.microbatches, config.sequence_length = 8, 1, 64
    config.total_steps, config.optimizer.warmup_steps = 20, 5
    config.log_every, config.eval_every, config.eval_batches, config.checkpoint_every = 5, 10, 2, 10
    return config


def _convert(name, text, default):
    if isinstance(default, tuple | dict):
        if text in default:
            return text
        raise ValueError(f'config argument {name}={text!r}: allowed are {", ".join(default)}')
    try:
        if isinstance(default, bool):
            return {'true': True, 'false': False}[text.lower()]
        value = type(default)(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(text)
        return value
    except (KeyError, ValueError):
        raise ValueError(f'config argument {name}={text!r} is no {type(default).__name__}') from None
