"""The record of a family that is built as Llama is: its axes, and Hugging Face's checkpoints of it."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from gaussq_jax.models import layers
from gaussq_jax.models.family import HEAD, HuggingFaceFormat, HuggingFaceTensor, ModelFamily
from gaussq_jax.models.huggingface_config import check_fields, flag, positive, size, size_or_none

FULL = 'full_attention'  # of `layer_types`
DEFAULT_LONGEST = 2**17  # the longest sequence of a Mistral that says nothing of it; a Qwen's is shorter


def llama_family(
    name: str,
    module: type[nn.Module],
    architecture: str,
    *,
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    written: Callable[[Any], Mapping[str, Any]],
    reads_sentencepiece: bool = True,
    window: Callable[[Mapping[str, Any]], int | None] = lambda config: None,
) -> ModelFamily:
    """A family whose module is a subclass of `Llama`, or that.

    Args:
      name: of the family, and Hugging Face's `model_type`.
      module: the class.
      architecture: the class in transformers.
      read: config -> fields of the module that not all of these families have; ValueError, naming the field, for a
        config that the module can't follow.
      written: model -> the fields of a config that `read` reads.
      reads_sentencepiece, window: see `HuggingFaceFormat`.
    """

    def build(config):
        _check_window(window(config), config)
        return module(**_read(config), **read(config))

    def describe(model):
        return dict(architectures=[architecture], model_type=name) | _written(model) | written(model)

    return ModelFamily(
        name=name,
        module=module,
        axes=layers.PARAMETER_AXES,
        huggingface=HuggingFaceFormat(
            prefix='model.',
            layers='layers',
            tensors=_TENSORS,
            build=build,
            describe=describe,
            longest='max_position_embeddings',
            reads_sentencepiece=reads_sentencepiece,
            window=window,
        ),
    )


def window_of_qwen(config):
    """How many tokens the layers of a Qwen see that have a window; None if none has one."""
    if not flag(config, 'use_sliding_window') or config.get('layer_types') is not None:  # by which all see all
        return None
    number = {'max_window_layers': 28, **config}
    first = 0 if number['max_window_layers'] == 0 else size(number, 'max_window_layers')
    if first >= size(config, 'num_hidden_layers'):
        return None
    return size_or_none({'sliding_window': 4096, **config}, 'sliding_window')


def _check_window(window, config):
    """A window that no sequence exceeds takes nothing away."""
    longest = size_or_none(config, 'max_position_embeddings') or DEFAULT_LONGEST
    if window is not None and window < longest:
        raise ValueError(
            f'sliding_window={window} must be None, or no less than max_position_embeddings={longest}: our models'
            ' attend to all tokens before'
        )


def _read(config):
    check_fields(config, hidden_act=('silu', 'swish'), partial_rotary_factor=(None, 1))
    kinds, num_layers = config.get('layer_types'), size(config, 'num_hidden_layers')
    if kinds is not None and not (
        isinstance(kinds, list | tuple) and len(kinds) == num_layers and all(kind == FULL for kind in kinds)
    ):
        raise ValueError(f'layer_types={kinds!r:.80} must be {FULL} for each of the {num_layers:,} layers')
    hidden_size, num_heads = size(config, 'hidden_size'), size(config, 'num_attention_heads')
    head_dim = size_or_none(config, 'head_dim')
    return dict(
        vocab_size=size(config, 'vocab_size'),
        num_layers=num_layers,
        hidden_size=hidden_size,
        mlp_size=size(config, 'intermediate_size'),
        num_heads=num_heads,
        num_kv_heads=size_or_none(config, 'num_key_value_heads'),
        head_dim=None if head_dim and head_dim * num_heads == hidden_size else head_dim,  # which follows
        norm_epsilon=positive(config, 'rms_norm_eps'),
        tie_embeddings=flag(config, 'tie_word_embeddings'),
        **_read_rope(config),
    )


def _read_rope(config):
    """What both fields say, that of before transformers 5 and that of since, if both are there."""
    names = [name for name in ('rope_scaling', 'rope_parameters') if config.get(name) not in (None, {})]
    said = [_read_rope_field(config, name) for name in names]
    if len(said) == 2 and said[0] != said[1]:
        raise ValueError(
            f'rope_scaling={config["rope_scaling"]!s:.80} and rope_parameters={config["rope_parameters"]!s:.80} differ'
        )
    return said[0] if said else {'rope_theta': _read_theta(config)}


def _read_rope_field(config, name):
    value = config[name]
    if not isinstance(value, Mapping) or any(isinstance(inner, Mapping) for inner in value.values()):
        raise ValueError(f'{name}={value!s:.80} must be an object of numbers and words, the same for all layers')
    fields = {f'{name}.{key}': number for key, number in value.items()}  # as errors name them
    check_fields(fields, **{f'{name}.partial_rotary_factor': (None, 1)})
    theta = f'{name}.rope_theta'
    rope = {'rope_theta': positive(fields, theta) if theta in fields else _read_theta(config)}
    kind = value.get('rope_type', value.get('type', 'default'))
    if kind not in ('default', 'llama3'):
        raise ValueError(f'{name}={value!s:.80}: its rope_type must be default or llama3, not {kind!r:.80}')
    if kind == 'default':
        return rope
    original = size(fields, f'{name}.original_max_position_embeddings')
    check_fields(config, original_max_position_embeddings=(None, original))  # which transformers prefers
    return rope | dict(
        rope_factor=positive(fields, f'{name}.factor'),
        rope_low_freq_factor=positive(fields, f'{name}.low_freq_factor'),
        rope_high_freq_factor=positive(fields, f'{name}.high_freq_factor'),
        rope_original_length=original,
    )


def _read_theta(config):
    return positive({'rope_theta': 10000.0, **config}, 'rope_theta')


def _written(model):
    return dict(
        vocab_size=model.vocab_size,
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.mlp_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads if model.num_kv_heads is None else model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads if model.head_dim is None else model.head_dim,
        hidden_act='silu',
        **_written_rope(model),
        rms_norm_eps=model.norm_epsilon,
        tie_word_embeddings=model.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )


def _written_rope(model):
    """For transformers before 5, and since."""
    if model.rope_scaling is None:
        rope = {'rope_type': 'default'}
        return dict(rope_theta=model.rope_theta, rope_parameters={**rope, 'rope_theta': model.rope_theta})
    rope = dict(
        rope_type='llama3',
        factor=model.rope_factor,
        low_freq_factor=model.rope_low_freq_factor,
        high_freq_factor=model.rope_high_freq_factor,
        original_max_position_embeddings=model.rope_original_length,
    )
    both = dict(rope_scaling=rope, rope_parameters={**rope, 'rope_theta': model.rope_theta})
    return dict(rope_theta=model.rope_theta, **both)


def _linear(path, name):
    return {
        f'layers/{path}/kernel': HuggingFaceTensor(f'{name}.weight', is_transposed=True),
        f'layers/{path}/bias': HuggingFaceTensor(f'{name}.bias'),
    }


_TENSORS = {  # of all models that there are; each has some of them
    'embed/embedding': HuggingFaceTensor('embed_tokens.weight'),
    'layers/attention_norm/scale': HuggingFaceTensor('input_layernorm.weight'),
    **_linear('attention/query', 'self_attn.q_proj'),
    **_linear('attention/key', 'self_attn.k_proj'),
    **_linear('attention/value', 'self_attn.v_proj'),
    **_linear('attention/out', 'self_attn.o_proj'),
    'layers/attention/query_norm/scale': HuggingFaceTensor('self_attn.q_norm.weight'),
    'layers/attention/key_norm/scale': HuggingFaceTensor('self_attn.k_norm.weight'),
    'layers/mlp_norm/scale': HuggingFaceTensor('post_attention_layernorm.weight'),
    **_linear('mlp/gate', 'mlp.gate_proj'),
    **_linear('mlp/up', 'mlp.up_proj'),
    **_linear('mlp/down', 'mlp.down_proj'),
    'final_norm/scale': HuggingFaceTensor('norm.weight'),
    'lm_head/kernel': HuggingFaceTensor(HEAD, is_transposed=True),
}
