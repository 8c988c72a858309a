"""Contents and tensors that contradict one another, under a right digest, are one clear error."""

import copy
import functools
import itertools
import json

import numpy as np
import numpy_float_formats as oracle
import pytest
from packed_files import INDICES, header_length, refused, rewritten

import gaussq_jax as gq

KERNEL_CHANGES = {
    'another shape': dict(shape=[2, 9, 7]),
    'a shape of fewer axes': dict(shape=[14, 9]),
    'a larger shape': dict(shape=[2, 7, 10]),
    'an immense shape': dict(shape=[2, 2**40, 2**40]),
    'an immense shape and tile': dict(shape=[2, 2**32, 2**32], tile=[2**31, 2**31]),
    'a negative shape': dict(shape=[2, -7, 9]),
    'a shape of fractions': dict(shape=[2, 7.0, 9.0]),
    'a shape that is none': dict(shape='text'),
    'another tile': dict(tile=[4, 5]),
    'a tile of nothing': dict(tile=[0, 4]),
    'a negative tile': dict(tile=[-4, 4]),
    'a tile of fractions': dict(tile=[4.0, 4.0]),
    'a tile of one side': dict(tile=[4]),
    'another dtype': dict(dtype='float32'),
    'an unknown dtype': dict(dtype='float128'),
    'formats in another order': dict(formats=['float8_e4m3', 'e2m1']),
    'a format fewer': dict(formats=['e2m1']),
    'no format': dict(formats=[]),
    'one format twice': dict(formats=['e2m1', 'e2m1']),
    'a format that is not listed': dict(formats=['e2m1', 'e3m2']),
    'an axis twice': dict(row_axes=[0]),
    'an axis too many': dict(batch_axes=[0, 3]),
    'axes that are none': dict(row_axes=None),
    'a field more': dict(more=1),
}


@pytest.mark.parametrize('change', KERNEL_CHANGES.values(), ids=KERNEL_CHANGES)
def test_a_description_that_contradicts_the_tensors(path, whole, change):
    data = rewritten(whole, lambda contents: contents['leaves']['kernel'].update(change))
    assert refused(path, data).startswith('is none that save_packed wrote: ')


@pytest.mark.parametrize('field', ['shape', 'dtype', 'batch_axes', 'row_axes', 'col_axes', 'tile', 'formats'])
def test_a_description_that_lacks_a_field(path, whole, field):
    data = rewritten(whole, lambda contents: contents['leaves']['kernel'].pop(field))
    assert refused(path, data).startswith('is none that save_packed wrote: ')


CONTENT_CHANGES = {
    'no formats': lambda contents: contents.pop('formats'),
    'no leaves': lambda contents: contents.pop('leaves'),
    'no other leaves': lambda contents: contents.pop('other_leaves'),
    'another leaf': lambda contents: contents['other_leaves'].append('more'),
    'leaves that are forgotten': lambda contents: contents.update(leaves={}),
    'a packed leaf among the others': lambda contents: contents['other_leaves'].append('single'),
    'other leaves that are none': lambda contents: contents.update(other_leaves=None),
    'no info': lambda contents: contents.pop('info'),
    'leaves that are none': lambda contents: contents.update(leaves=[1]),
    'formats that are none': lambda contents: contents.update(formats=None),
    'info that is none': lambda contents: contents.update(info=7),
    'a format of another maximum': lambda contents: contents['formats']['e2m1'].update(max=7.0),
    'a format of more bits': lambda contents: contents['formats']['e2m1'].update(bits=5),
    'an unknown format': lambda contents: contents['formats'].update(fp6={}),
    'a format too wide': lambda contents: contents['formats'].update(
        e7m10=dict(bits=18, exponent_bits=7, mantissa_bits=10, bias=63, max=1)
    ),
    'a leaf without tensors': lambda contents: contents['leaves'].update(other=contents['leaves']['kernel']),
    'a leaf that is not packed': lambda contents: contents['leaves'].update(bias=contents['leaves']['kernel']),
}


@pytest.mark.parametrize('change', CONTENT_CHANGES.values(), ids=CONTENT_CHANGES)
def test_contents_that_lack_or_contradict(path, whole, change):
    assert refused(path, rewritten(whole, change)).startswith('is none that save_packed wrote: ')


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def set_to(name, place, value):
    return lambda tensors: tensors[name].reshape(-1).__setitem__(place, value)


TENSOR_CHANGES = {
    'no codes': lambda tensors: tensors.pop('kernel.codes.e2m1'),
    'no scales': lambda tensors: tensors.pop('kernel.scales'),
    'no names of formats': lambda tensors: tensors.pop('kernel.formats'),
    'a code fewer': lambda tensors: tensors.update({'kernel.codes.e2m1': tensors['kernel.codes.e2m1'][:-1]}),
    'a code more': put('single.codes.e2m1', np.zeros(65, np.uint8)),
    'codes in rows': lambda tensors: tensors.update({'single.codes.e2m1': tensors['single.codes.e2m1'][None]}),
    'no codes at all': put('single.codes.e2m1', np.zeros(0, np.uint8)),
    'scales of another grid': put('kernel.scales', np.zeros((2, 3, 2), np.uint8)),
    'scales of another type': put('kernel.scales', np.zeros((2, 2, 3), np.float32)),
    'scales flattened': put('kernel.scales', np.zeros(12, np.uint8)),
    'names of another grid': put('kernel.formats', np.zeros((2, 3, 2), np.uint8)),
    'names of other formats': put('kernel.formats', 1 - INDICES),
    'a name beyond the list': set_to('kernel.formats', 3, 2),
    'a name of 255': set_to('kernel.formats', 0, 255),
    'a scale that is no number': set_to('kernel.scales', 5, 255),
    'a scale too large for its codes': lambda tensors: tensors['kernel.scales'].fill(254),
    'a code of infinity': set_to('kernel.codes.float8_e4m3', 3, 0b0_1111_000),
    'a code of minus infinity': set_to('kernel.codes.float8_e4m3', 3, 0b1_1111_000),
    'a code of NaN': set_to('kernel.codes.float8_e4m3', 3, 0b0_1111_101),
    'a tensor more': put('more', np.zeros(3, np.float32)),
    'a weight not there': lambda tensors: tensors.pop('bias'),
    'a weight packed and not packed': put('kernel', np.zeros(3, np.float32)),
    'a weight of a type that is not stored': put('bias', np.zeros(3, np.complex64)),
}


@pytest.mark.parametrize('change', TENSOR_CHANGES.values(), ids=TENSOR_CHANGES)
def test_tensors_that_lack_or_contradict(path, whole, change):
    data = rewritten(whole, change_tensors=lambda tensors: change(tensors))
    assert refused(path, data).startswith('is none that save_packed wrote: ')


@pytest.fixture(scope='module')
def other_scales(tmp_path_factory):
    """A file of float32 scales by channel, and of NVFP4's."""
    path = tmp_path_factory.mktemp('scales') / 'file'
    params = {name: {'kernel': oracle.heavy_tailed((32, 8))} for name in ('absmax', 'nvfp4')}
    of = lambda name, **settings: gq.uniform_layout({name: params[name]}, **settings)
    channels = of('absmax', fmt='float8_e4m3fn', block_size='channel', scale='absmax')
    gq.save_packed(path, params, channels | of('nvfp4', fmt='e2m1', block_size=16, scale='nvfp4'))
    return path.read_bytes()


SCALE_CHANGES = {
    'no scale': set_to('absmax/kernel.scales', 3, 0),
    'a negative scale': set_to('absmax/kernel.scales', 3, -1),
    'an infinite scale': set_to('absmax/kernel.scales', 3, np.inf),
    'a scale of NaN': set_to('absmax/kernel.scales', 3, np.nan),
    'a scale beyond what its codes allow': set_to('absmax/kernel.scales', 3, 3e38),
    'scales of a byte': put('absmax/kernel.scales', np.ones((1, 8), np.uint8)),
    'a negative code': set_to('nvfp4/kernel.scales', 3, 0x81),
    'a code of NaN': set_to('nvfp4/kernel.scales', 3, 0x7F),
    'no divisors': lambda tensors: tensors.pop('nvfp4/kernel.divisors'),
    'a divisor of zero': put('nvfp4/kernel.divisors', np.zeros((), np.float32)),
    'a divisor of NaN': put('nvfp4/kernel.divisors', np.full((), np.nan, np.float32)),
    'a divisor too small for its codes': put('nvfp4/kernel.divisors', np.full((), 1e-38, np.float32)),
    'divisors of another shape': put('nvfp4/kernel.divisors', np.ones(2, np.float32)),
    'divisors of another type': put('nvfp4/kernel.divisors', np.ones((), np.uint8)),
    'divisors of powers of two': put('absmax/kernel.divisors', np.ones((), np.float32)),
}


@pytest.mark.parametrize('change', SCALE_CHANGES.values(), ids=SCALE_CHANGES)
def test_scales_that_are_none(path, other_scales, change):
    data = rewritten(other_scales, change_tensors=change)
    assert refused(path, data).startswith('is none that save_packed wrote: ')


@pytest.mark.parametrize('scale', ['', 'max', None, 7, ['mx'], 'nvfp4', 'absmax'])
def test_kinds_of_scales_that_there_are_not(path, whole, scale):
    data = rewritten(whole, lambda contents: contents['leaves']['kernel'].update(scale=scale))
    assert refused(path, data).startswith('is none that save_packed wrote: ')


@pytest.mark.slow
def test_any_change_of_the_contents_is_refused_or_describes_weights(path, whole):
    """Any part of the contents replaced by any of what JSON has: never another error, never something half read.

    A tile of 4 x 3 in the place of 4 x 4 describes other weights of the same file, and only the digest knows better.
    """
    values = [None, True, 0, -1, 3, 2**70, 1.5, '', 'e2m1', '\ud800', [], [1], [[]], {}, {'e2m1': {}}, 'x' * 1000]
    places = [place for place in places_in(json.loads(metadata_of(whole))) if place[0] not in ('info', 'sha256')]
    read = 0
    for place, value in itertools.product(places, values):
        path.write_bytes(rewritten(whole, functools.partial(replace, place=place, value=value)))
        try:
            weights = gq.load_packed(path)
        except ValueError as error:
            assert str(error).startswith(f'{path} ') and '\n' not in str(error)
            continue
        read += 1
        assert {name: leaf.shape for name, leaf in weights.items()} == {
            'kernel': (2, 7, 9),
            'single': (2, 7, 9),
            'bias': (3,),
        }
        assert all(np.isfinite(leaf.astype(np.float32)).all() for leaf in weights.values())
    assert len(places) > 30 and read < len(places)


def metadata_of(data):
    return json.loads(data[8 : header_length(data)])['__metadata__']['gaussq_jax']


def places_in(contents, place=()):
    items = (
        contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from places_in(value, (*place, key))


def replace(contents, place, value):
    *parents, last = place
    for key in parents:
        contents = contents[key]
    contents[last] = copy.deepcopy(value)
