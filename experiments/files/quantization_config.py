"""What `quantization_config` of a config.json says of its tensors: which modules are stored in how many bits, and how.

Read are compressed-tensors' MXFP4, MXFP6 (E2M3), MXFP8, NVFP4 and FP8, one of them or several, and FP8 as DeepSeek has
it. Of activations a field may say anything, since they aren't quantized here.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.files import json_files
from gaussq_jax.serving import storages
from gaussq_jax.serving.storages import Storage

FIELD, FORMER_FIELD = 'quantization_config', 'compression_config'
PACKED = {  # of compressed-tensors, whose codes are narrower than bytes
    'mxfp4-pack-quantized': storages.MXFP4,
    'mxfp6-pack-quantized': storages.MXFP6_E2M3,
    'nvfp4-pack-quantized': storages.NVFP4,
}
FLOAT = ('float-quantized', 'naive-quantized')  # FP8, if their type is float
FORMATS = (*PACKED, 'mxfp8-quantized', *FLOAT)
FP8_TENSOR = dataclasses.replace(storages.FP8_CHANNEL, name='FP8', tile=(None, None))
STRATEGIES = {'mx': 'group', 'nvfp4': 'tensor_group'}
LARGEST_SIDE = 2**24  # of a block
EMBEDDINGS = ('embed_tokens', 'wte', 'wpe')  # the last names of modules of the class Embedding; others are Linear
HEAD = 'lm_head'  # which FP8 of DeepSeek leaves out, said or not
BOUNDARY = r'(?:(?<=\.)|(?=\.|$))'  # where a regex of FP8 of DeepSeek may end in a module's name
ACTIVATIONS = 'activations were quantized when it was served; here they are not'
# Regexes are a stranger's: these bound what matching them can take.
MOST_REGEX_CHARACTERS, MOST_REPETITIONS, MOST_NAME_CHARACTERS = 1000, 3, 256


class Encoding(NamedTuple):
    """How the matrix of a module is stored, in tensors f'{module}.{part}'.

    Attributes:
      storage: its format, tiles and kind of scales; a tile of (None, None) is the matrix.
      weight: the part of its codes.
      scale: the part of the scales of its tiles.
      divisor: the part of the number that all scales are divided by; None without.
      of_activations: parts that may be there, too, and don't concern weights.
    """

    storage: Storage
    weight: str = 'weight'
    scale: str = 'weight_scale'
    divisor: str | None = None
    of_activations: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """All that have to be there."""
        return tuple(part for part in (self.weight, self.scale, self.divisor) if part)


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """What `read` has read.

    Attributes:
      software: whose files these are.
      encoding_of: name of a module with a matrix -> its encoding, None if it isn't quantized.
      remarks: what else its user should know.
    """

    software: str
    encoding_of: Callable[[str], Encoding | None]
    remarks: tuple[str, ...]


def read(config: Mapping[str, Any]) -> QuantizationConfig | None:
    """What a config.json says, None if it says nothing.

    Raises:
      ValueError: a quant_method, a format, or a value of a field that isn't read, by its name, with those that are.

    Example:
      >>> said = {'quant_method': 'fp8', 'weight_block_size': [128, 128], 'activation_scheme': 'dynamic'}
      >>> read({'quantization_config': said}).encoding_of('model.layers.0.mlp.up_proj').storage.name
      'FP8 in blocks of 128 x 128'

    Source: compressed-tensors 0.20 (`quantization/quant_config.py`); transformers 5 (`FineGrainedFP8Config`).
    """
    said = {name: config[name] for name in (FIELD, FORMER_FIELD) if config.get(name) is not None}
    if not said:
        return None
    if len(said) == 2:
        raise ValueError(f'{FIELD} and {FORMER_FIELD} are both there: take one away')
    (where, fields), readers = *said.items(), {'compressed-tensors': _of_compressed_tensors, 'fp8': _of_deepseek}
    method = json_files.require(fields, where, {'quant_method': str})['quant_method']
    if method not in readers:
        raise ValueError(f'{where}.quant_method={method!r:.80} must be {" or ".join(map(repr, readers))}')
    return readers[method](where, fields)


def _of_compressed_tensors(where: str, fields: Mapping[str, Any]) -> QuantizationConfig:
    json_files.require(fields, where, {'format': str, 'config_groups': dict})
    mixed = fields['format'] == 'mixed-precision'
    _check(
        where,
        fields,
        quant_method=..., config_groups=..., ignore=..., version=..., global_compression_ratio=...,
        format=(*FORMATS, 'mixed-precision'),
        quantization_status=(None, 'compressed', 'frozen'),
        kv_cache_scheme=(None,),
        moe_sparsity_config=(None,),
        transform_config=(None, {}, {'config_groups': {}}),
        sparsity_config=...,
    )  # fmt: skip
    sparsity = fields.get('sparsity_config') or {'format': 'dense'}
    if not isinstance(sparsity, dict) or sparsity.get('format') != 'dense':
        raise ValueError(f"{where}.sparsity_config={sparsity!r:.80} must be none, or of the format 'dense'")
    groups, remarks = [], ()
    for name, group in fields['config_groups'].items():
        place = f'{where}.config_groups[{name!r:.80}]'
        json_files.require(group, place, {'targets': list})
        _check(place, group, targets=..., weights=..., input_activations=..., output_activations=..., format=...)
        said = group.get('format')
        if said is None and mixed:
            raise ValueError(f'{place} lacks a format, though that of all is mixed-precision')
        if said is not None and not mixed and said != fields['format']:
            raise ValueError(f'{place}.format={said!r:.80} must be that of all, {fields["format"]!r}')
        quantized = [side for side in ('input', 'output') if group.get(f'{side}_activations')]
        encoding = None
        if group.get('weights') is not None:
            encoding = _encoding(place, said or fields['format'], group['weights'])
            of_activations = [f'{side}_{part}' for side in quantized for part in ('scale', 'global_scale')]
            encoding = encoding._replace(of_activations=tuple(of_activations))
        remarks = (ACTIVATIONS,) if quantized else remarks
        groups.append((_targets(f'{place}.targets', group['targets']), encoding))
    ignored = _targets(f'{where}.ignore', fields.get('ignore') or [])

    def encoding_of(module):
        if any(of_target(module) for of_targets in ignored for of_target in of_targets):
            return None
        for level in range(3):  # a module's own name decides, then a regex, then its class
            found = {encoding for targets, encoding in groups if any(match(module) for match in targets[level])}
            if len(found) > 1:
                raise ValueError(f'{module} is a target of several config_groups, which differ')
            if found:
                return found.pop()
        return None

    return QuantizationConfig('compressed-tensors', encoding_of, remarks)


def _encoding(place: str, form: Any, weights: Any) -> Encoding:
    """The encoding of a format, with what `weights` says of it."""
    if form not in FORMATS:
        raise ValueError(f'{place}.format={form!r:.80} must be {" or ".join(map(repr, FORMATS))}')
    place = f'{place}.weights'
    json_files.require(weights, place, {'num_bits': int, 'type': str, 'strategy': str})
    storage = storages.MXFP8 if form == 'mxfp8-quantized' else PACKED.get(form)
    is_float = storage is None
    _check(
        place,
        weights,
        num_bits=(8 if is_float else storage.fmt.bits,),
        type=('float',),
        symmetric=(True, None),
        dynamic=(False, None),
        actorder=(None, False, 'static', 'weight'),
        strategy=('tensor', 'channel', 'group', 'block') if is_float else (STRATEGIES[storage.scale],),
        group_size=... if is_float else (storage.tile[0],),
        block_structure=... if is_float else (None,),
        scale_dtype=(None, *SCALE_DTYPES['absmax' if is_float else storage.scale]),
        zp_dtype=..., observer=..., observer_kwargs=...,
    )  # fmt: skip
    if is_float:
        return Encoding(_float_storage(place, weights))
    if form not in PACKED:
        return Encoding(storage)
    return Encoding(storage, 'weight_packed', divisor='weight_global_scale' if storage.scale == 'nvfp4' else None)


def _float_storage(place: str, weights: Mapping[str, Any]) -> Storage:
    strategy, group, block = (weights.get(name) for name in ('strategy', 'group_size', 'block_structure'))
    unused = {'group_size': group} if strategy != 'group' else {}
    unused |= {'block_structure': block} if strategy != 'block' else {}
    for name, value in unused.items():
        if value not in ((None, -1) if strategy == 'channel' and name == 'group_size' else (None,)):
            raise ValueError(f'{place}.{name}={value!r:.80} says nothing of the strategy {strategy!r}')
    if strategy == 'tensor':
        return FP8_TENSOR
    if strategy == 'channel':
        return storages.FP8_CHANNEL
    return _blocks(*_sides(f'{place}.block_structure', block if strategy == 'block' else [1, group]))


def _of_deepseek(where: str, fields: Mapping[str, Any]) -> QuantizationConfig:
    _check(
        where,
        fields,
        quant_method=..., weight_block_size=..., modules_to_not_convert=..., ignored_layers=..., dequantize=...,
        fmt=(None, 'e4m3'),
        activation_scheme=(None, 'dynamic', 'static'),
        scale_fmt=(None, 'float', 'ue8m0'),
        expert_dtype=(None, 'fp8'),
        modules_to_convert=(None, []),
    )  # fmt: skip
    if 'weight_block_size' not in fields:
        raise ValueError(f'{where} lacks weight_block_size: two integers, or null for one scale a matrix')
    sides = fields['weight_block_size']
    storage = FP8_TENSOR if sides is None else _blocks(*_sides(f'{where}.weight_block_size', sides))
    is_static = fields.get('activation_scheme') == 'static'
    of_activations = ('activation_scale', 'input_scale') if is_static else ()
    encoding = Encoding(storage, scale='weight_scale_inv', of_activations=of_activations)
    ignored = []
    for name in ('modules_to_not_convert', 'ignored_layers'):
        place = f'{where}.{name}'
        for text in _strings(place, fields.get(name) or []):
            ignored.append((text, _regex(place, f'(?:{text}){BOUNDARY}')))

    def encoding_of(module):
        is_ignored = module.rpartition('.')[2] in (HEAD, *EMBEDDINGS) or any(
            regex.match(module) or module.endswith(text) for text, regex in ignored
        )
        return None if is_ignored else encoding

    return QuantizationConfig('DeepSeek', encoding_of, (ACTIVATIONS,))


SCALE_DTYPES = {
    'mx': ('torch.uint8', 'torch.float8_e8m0fnu'),
    'nvfp4': ('torch.float8_e4m3fn',),
    'absmax': ('torch.float32', 'torch.bfloat16', 'torch.float16'),
}


def _blocks(outputs: int, inputs: int) -> Storage:
    """FP8 with a float scale for each (outputs, inputs)."""
    return dataclasses.replace(
        storages.FP8_BLOCK, name=f'FP8 in blocks of {outputs} x {inputs}', tile=(inputs, outputs)
    )


def _sides(place: str, value: Any) -> tuple[int, int]:
    is_right = isinstance(value, list) and len(value) == 2
    if not is_right or not all(json_files.is_a(side, int) and 1 <= side <= LARGEST_SIDE for side in value):
        raise ValueError(f'{place}={value!r:.80} must be two integers of 1 to {LARGEST_SIDE:,}, (outputs, inputs)')
    return tuple(value)


def _check(place: str, fields: Mapping[str, Any], **allowed: Any):
    """Refuses fields and values other than those allowed; `...` allows all, a missing field is None."""
    if unknown := sorted(fields.keys() - allowed.keys()):
        raise ValueError(f'{place}: the field {unknown[0]!r:.80} is not known; known are {", ".join(allowed)}')
    for name, values in allowed.items():
        if values is not ... and fields.get(name) not in values:
            said = ' or '.join('null' if value is None else repr(value) for value in values)
            raise ValueError(f'{place}.{name}={fields.get(name)!r:.80} must be {said}')


def _strings(place: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f'{place}={value!r:.80} must be a list of strings')
    return value


def _targets(place: str, value: Any) -> tuple[list[Callable[[str], bool]], ...]:
    """What tells whether a module is one of these: by its name, by regexes, by its class."""
    strings = _strings(place, value)
    regexes = [_regex(place, text.removeprefix('re:')) for text in strings if text.startswith('re:')]
    return [set(strings).__contains__], [regex.match for regex in regexes], [lambda name: _class(name) in strings]


def _class(module: str) -> str:
    return 'Embedding' if module.rpartition('.')[2] in EMBEDDINGS else 'Linear'


def _regex(place: str, text: str) -> re.Pattern:
    """A regex whose matching takes a time that is bounded by a polynomial, for want of repeated groups."""
    tokens = re.findall(r'\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.', text, re.S)
    repeated = [i for i, token in enumerate(tokens) if token in ('*', '+', '{')]
    if len(text) > MOST_REGEX_CHARACTERS or len(repeated) > MOST_REPETITIONS:
        raise ValueError(
            f'{place}: {text!r:.80} must have at most {MOST_REGEX_CHARACTERS:,} characters and {MOST_REPETITIONS}'
            ' repetitions'
        )
    if any(i and tokens[i - 1] == ')' for i in repeated) or re.search(r'\(\?[aiLmsux-]', text):
        raise ValueError(f'{place}: {text!r:.80} must not repeat a group, nor set flags')
    try:
        with warnings.catch_warnings(action='ignore'):
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f'{place}: {text!r:.80} is no regex: {error}') from None
