"""Mixtures: what a config may say, and that each source has its share of every beginning."""

from fractions import Fraction

import numpy as np
import pytest

from experiments.data.mixtures import MOST_PARTS, Mixture, parse

MIXTURES = [
    '0.7 web=a; 0.3 code=b',
    '1 a=x; 1 b=y; 1 c=z',
    '0.96 a=x; .02 b=x; 0.0199 c=x; 0.0001 d=x',
    '123456789 a=x; 987654321 b=x; 3333333 c=x',
    ';'.join(f'{(i * 7919) % 101 + 1} s{i}=x' for i in range(25)),
]


def test_a_dataset_alone():
    for dataset in ('python_stdlib', 'wikipedia/20230601.simple', 'a=b/*.jsonl', '/data/1 2=3/*.txt', '7 days/x.bin'):
        ((name, weight, found),) = parse(dataset)
        assert (name, weight, found) == ('', 1, dataset)


def test_items():
    items = parse(' 3 web = c4/en:3.0.1 ;0.5 my.code-1=dir with space/*.jsonl; ')
    assert items == (
        ('my.code-1', Fraction(1, 7), 'dir with space/*.jsonl'),
        ('web', Fraction(6, 7), 'c4/en:3.0.1'),
    )
    assert parse('0.3 b=y; 0.7 a=x') == parse('0.7 a=x; 0.3 b=y')
    assert parse('2 a=x') == (('a', 1, 'x'),)


def test_weights_that_are_no_small_fractions_are_rounded():
    items = parse('0.12345678 a=x; 0.87654322 b=y')
    assert sum(item.weight for item in items) == 1
    assert items[0].weight == Fraction(round(0.12345678 * MOST_PARTS), MOST_PARTS)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('0.7 web=a; code=b', "'code=b' is no item of a mixture"),
        ('0.7 web=a; 0.3 co/de=b', 'is no item of a mixture'),
        ('0.7 web=; 0.3 code=b', "'0.7 web=' is no item of a mixture"),
        ('0.7 web=a; 0.3 web=b', "the name 'web' is given twice"),
        ('0.7 web=a; 0 code=b', "the weight of code is '0', no positive number"),
        ('0.7 web=a; -1 code=b', "the weight of code is '-1', no positive number"),
        ('0.7 web=a; nan code=b', "the weight of code is 'nan', no positive number"),
        ('0.7 web=a; 1/0 code=b', "the weight of code is '1/0', no positive number"),
        ('0.7 web=a; 1e999999999 code=b', "the weight of code is '1e999999999', no positive number"),
        ('1000000 web=a; 1 code=b', 'the weight of code is less than 1/65536 of the sum'),
    ],
)
def test_what_is_no_mixture(text, message):
    with pytest.raises(ValueError, match='dataset=') as error:
        parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize('text', MIXTURES)
def test_every_beginning_has_the_weights_to_within_one(text):
    """In exact integers: over two periods of the largest. A source's indices are 0, 1, 2, ..., none left out."""
    weights = {item.name: item.weight for item in parse(text)}
    mixture, positions = Mixture(weights), np.arange(2 * MOST_PARTS + 100)
    sources, indices = mixture.places(positions)
    for source, name in enumerate(mixture.names):
        is_here = sources == source
        off = np.cumsum(is_here) * weights[name].denominator - (positions + 1) * weights[name].numerator
        assert np.abs(off).max() < weights[name].denominator
        np.testing.assert_array_equal(indices[is_here], np.arange(is_here.sum()))


def test_any_position_can_be_asked_for():
    """Far away, and in any order."""
    mixture = Mixture({'a': Fraction(2, 5), 'b': Fraction(3, 5)})
    far = 5 * 10**15 + np.array([3, 0, 4])
    sources, indices = mixture.places(far)
    near, first = mixture.places(np.array([3, 0, 4]))
    np.testing.assert_array_equal(sources, near)
    np.testing.assert_array_equal(indices, first + 10**15 * np.array([2, 3])[near])
