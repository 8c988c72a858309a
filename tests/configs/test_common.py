"""The parser of config arguments: every name and value is known, or it is an error that says what is."""

import pytest

from configs import common
from experiments.methods import METHODS
from experiments.methods.settings import SHARED

ALLOWED = dict(size=('small', 'large'), b_target=4.0, layers=2, note='', smoke=False)


@pytest.mark.parametrize(
    ('argument', 'changes'),
    [
        (None, {}),
        ('', {}),
        ('size=large', {'size': 'large'}),
        ('smoke', {'smoke': True}),
        ('smoke=false', {'smoke': False}),
        ('b_target=3,layers=5', {'b_target': 3.0, 'layers': 5}),
        ('note=a=b,size=small', {'note': 'a=b'}),
    ],
)
def test_parse(argument, changes):
    defaults = {'size': 'small', 'b_target': 4.0, 'layers': 2, 'note': '', 'smoke': False}
    parsed = common.parse(argument, **ALLOWED).to_dict()
    assert parsed == {**defaults, **changes}
    assert all(type(parsed[name]) is type(default) for name, default in defaults.items())


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('sise=large', "config argument 'sise' is unknown; allowed are size, b_target, layers, note, smoke"),
        ('size=huge', "config argument size='huge': allowed are small, large"),
        ('size', "config argument size='true': allowed are small, large"),
        ('layers=2.5', "config argument layers='2.5' is no int"),
        ('b_target=four', "config argument b_target='four' is no float"),
        ('smoke=yes', "config argument smoke='yes' is no bool"),
        ('smoke,smoke', "config argument 'smoke' is given twice in 'smoke,smoke'"),
        ('size =large', "config argument 'size ' is unknown"),
    ],
)
def test_parse_refuses(argument, message):
    with pytest.raises(ValueError) as error:
        common.parse(argument, **ALLOWED)
    assert str(error.value).startswith(message)


def test_arguments_reach_the_config():
    parsed = common.parse('method=diffq,b_init=7,b_target=3,parts=out', **common.ARGUMENTS)
    config = common.base_config(parsed)
    assert (config.method, config.quantization.b_init, config.quantization.b_target, config.quantization.parts) == (
        *('diffq', 7.0, 3.0, 'out'),
    )


def test_arguments_of_quantization_reach_the_config():
    argument = 'method=fqt,format=e5m2,block_size=channel,targets=P1+P5,scale=mx,rounding=stochastic'
    quantization = common.base_config(common.parse(argument, **common.ARGUMENTS)).quantization
    fields = ('format', 'block_size', 'targets', 'scale', 'rounding')
    assert tuple(quantization[field] for field in fields) == ('e5m2', 'channel', 'P1+P5', 'mx', 'stochastic')


def test_every_argument_is_for_some_method():
    used = {name for method in METHODS.values() for name in method.settings}
    assert used == set(common.ARGUMENTS) - {'method', 'bitwidths', 'smoke'} == set(SHARED)


@pytest.mark.parametrize(('way', 'b_init', 'b_target'), [('price', 8, 3), ('decay', 6, 4)])
def test_bitwidths_start_where_the_way_they_are_learned_begins(way, b_init, b_target):
    """Unless it is said where, the one or the other."""
    quantization = lambda argument: common.base_config(common.parse(argument, **common.ARGUMENTS)).quantization
    of = lambda fields: (fields.b_init, fields.b_target)
    assert of(quantization(f'bitwidths={way}')) == (b_init, b_target)
    assert of(quantization(f'bitwidths={way},b_init=9')) == (9, b_target)
    assert of(quantization(f'bitwidths={way},b_target=3.5')) == (b_init, 3.5)
    with pytest.raises(ValueError, match="b_init='nan' is no float"):
        quantization('b_init=nan')
