"""Columns are found by the names that others give them, told, and never guessed where two might be meant."""

import pytest

from experiments.laws.tables.column_names import find
from experiments.laws.tables.reading import Reading

OURS = 'N', 'D', 'loss'


def columns(*names, **reading):
    return find('runs.csv', names, Reading(**reading)).columns


def remarks(*names, **reading):
    return find('runs.csv', names, Reading(**reading)).remarks


@pytest.mark.parametrize(
    ('ours', 'names'),
    [
        ('N', 'params parameters n_params num_params numParams params.N model_size config.n_params config/parameters'),
        ('N', 'non_embedding_params params_no_embed n_params_non_embedding num_non_embedding_parameters'),
        ('D', 'tokens n_tokens num_tokens train_tokens tokens_seen train/tokens config.D params.D total_tokens'),
        ('loss', 'eval/loss eval_loss val_loss validation_loss test_loss metrics.val_loss Eval/Loss final_val_loss'),
        ('loss', 'metrics.loss summary.loss Loss train/loss train_loss metrics.train_loss loss_val'),
    ],
)
def test_what_others_call_it(ours, names):
    for name in names.split():
        all_names = [name if other == ours else other for other in OURS]
        assert columns(*all_names)[ours] == name
        assert f'{ours} is the column {name!r}' in remarks(*all_names)


@pytest.mark.parametrize(
    ('ours', 'name'),
    [
        *(('B', name) for name in ('block_size', 'group_size', 'config.B', 'quant_block_size')),
        *(('E', 'exponent_bits'), ('M', 'mantissa_bits'), ('b', 'config.b'), ('P', 'bits'), ('P', 'bitwidth')),
        *(('P_w', 'w_bits'), ('P_w', 'weight_bits'), ('P_a', 'act_bits'), ('P_kv', 'kv_cache_bits')),
        *(('P_post', 'ptq_bits'), ('P_post', 'params.P_post')),
        *(('format', 'number_format'), ('status', 'State'), ('seed', 'params.seed'), ('run', 'Run ID')),
    ],
)
def test_what_others_call_the_rest(ours, name):
    assert columns(*OURS, name)[ours] == name
    assert remarks(*OURS, name) == (f'{ours} is the column {name!r}',)


def test_what_no_law_takes_is_not_told():
    names = 'Name', 'lr', 'config.dataset'
    assert columns(*OURS, *names) == dict(zip((*OURS, 'name', 'learning_rate', 'dataset'), (*OURS, *names)))
    assert remarks(*OURS, *names) == ()


def test_ours_are_taken_before_those_of_others():
    """Those of a sweep's results.csv, too, which are not told."""
    names = 'N', 'D', 'validation/loss', 'parameters', 'train_tokens', 'train/loss', 'config.N'
    assert columns(*names) == {'N': 'N', 'D': 'D', 'loss': 'validation/loss'}
    assert remarks(*names) == ()


def test_a_flag_comes_before_all():
    names = *OURS, 'params', 'eval/loss'
    assert columns(*names, columns={'N': 'params', 'loss': 'eval/loss'})['N'] == 'params'
    assert remarks(*names, columns={'N': 'params', 'loss': 'eval/loss'}) == ()
    assert 'B' not in columns(*OURS, 'block_size', columns={'B': ''})
    assert columns(*OURS, 'config.epochs', extra=('epochs',))['epochs'] == 'config.epochs'


def test_a_loss_of_held_out_text_comes_before_one_of_training():
    assert columns('N', 'D', 'train/loss', 'eval/loss')['loss'] == 'eval/loss'
    assert columns('N', 'D', 'metrics.loss', 'metrics.val_loss')['loss'] == 'metrics.val_loss'
    told = remarks('N', 'D', 'train/loss')
    assert told == (
        "loss is the column 'train/loss'",
        "'train/loss' is a loss in training: there is none of held-out text",
    )
    (told,) = remarks('N', 'D', 'loss', 'eval/loss', 'val_loss')
    assert told == "loss is the column 'loss', and not 'eval/loss' or 'val_loss', which --columns=loss=NAME takes"


def test_a_format_that_is_not_read_is_told():
    (told,) = remarks(*OURS, 'precision', 'lr')
    assert told == "no column tells in what format runs are; if 'precision' does, --columns=format=NAME reads it"
    assert remarks(*OURS, 'precision', 'method') == remarks(*OURS, 'precision', columns={'format': 'precision'}) == ()


def test_what_may_be_several():
    found = find('runs.csv', ('params', 'params_no_embed', 'D', 'val_loss', 'test_loss', 'lr', 'max_lr'), Reading())
    assert found.several == {'N': ('params', 'params_no_embed'), 'loss': ('val_loss', 'test_loss')}


def test_flops_stand_for_tokens():
    assert columns('N', 'train_flops', 'loss') == {'N': 'N', 'C': 'train_flops', 'loss': 'loss'}
    assert columns(*OURS, 'C') == dict(zip(OURS, OURS))


@pytest.mark.parametrize(
    ('names', 'reading', 'error'),
    [
        (
            ('N', 'D'),
            {},
            r"^runs.csv has no column 'loss' or 'validation/loss'; its columns are N, D \(--columns=loss=",
        ),
        (('N', 'loss'), {}, r"has no column 'D'; .*\(--columns=D=NAME says which it is\)$"),
        (('N', 'D', 'a_loss'), {}, r"^runs.csv: loss may be 'a_loss'. Say which, as with --columns=loss=a_loss$"),
        (
            ('params', 'params_no_embed', 'tokens', 'loss_c4_val', 'loss_ptb'),
            {},
            "^runs.csv: N may be 'params' or 'params_no_embed'; loss may be 'loss_c4_val' or 'loss_ptb'. Say which, as"
            ' with --columns=N=params,loss=loss_c4_val$',
        ),
        (
            OURS,
            {'columns': {'N': 'params'}},
            "^--columns=N=params: runs.csv has no column 'params'; its columns are N,",
        ),
        (OURS, {'columns': {'n': 'N'}}, "^--columns=n=N: 'n' is none of N, D, loss, E, M, B, b, P,"),
        (OURS, {'columns': {'D': 'N'}}, "^--columns: 'N' can be only one of N, D and loss$"),
        ((*OURS, 'C'), {'columns': {'C': 'C'}}, "^--columns=C=C would do nothing: D is 'D'$"),
        (OURS, {'where': (('corpus', 'c4'),)}, "^--where=corpus=c4: runs.csv has no column 'corpus'; its columns are"),
        (OURS, {'extra': ('epochs',)}, "^runs.csv has no column 'epochs'; its columns are N, D, loss"),
        ((*OURS[:2], *map(str, range(60))), {}, r'46, 47, and 12 more \(--columns'),
    ],
)
def test_what_is_not_there_or_might_be_several(names, reading, error):
    with pytest.raises(ValueError, match=error):
        find('runs.csv', names, Reading(**reading))


def test_settings_of_our_configs_are_found_and_not_asked_for():
    """By their field, as sweeps write it or Weights & Biases does, or as an argument."""
    for name in ('quantization.recipe', 'recipe', 'config.quantization.recipe'):
        assert columns(*OURS, name)['quantization.recipe'] == name
    assert columns(*OURS, 'config.recipe', 'params.recipe')['quantization.recipe'] == 'config.recipe'
    told = "no column tells in what format runs are; if 'recipe' does, --columns=format=NAME reads it"
    assert remarks(*OURS, 'recipe') == (told,)
    with pytest.raises(ValueError, match=r'--columns=quantization\.recipe=recipe: .* is none of'):
        columns(*OURS, 'recipe', columns={'quantization.recipe': 'recipe'})
