"""Which column of a file is which of a table of runs: by our names, by those that others use, or as --columns says."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.files import csv_files
from experiments.laws.tables.reading import Reading


class Column(NamedTuple):
    """A column of a table of runs, and how files have it.

    Attributes:
      names: ours; a file has it by the first of these that is there.
      likes: what others call it, where a file has none of ours: patterns of a name's letters and digits, in lower case,
        without 'config.', 'metrics.' and the like before it. Where one of them is there, those after it don't count.
      near: a pattern of names that might be this one: not enough to take such a column, but to ask.
    """

    names: tuple[str, ...]
    likes: tuple[str, ...] = ()
    near: str | None = None


_COUNT = '(model|total|trainable|active|nonembedding|n|num|numberof)*'
_EXCEPT = '(no|non|without|excluding|excl)(embed|embeds|embedding|embeddings)'
_HELD_OUT = '(final|last)?(eval|evaluation|val|valid|validation|dev|test|heldout)(set)?'
OF_OUR_CONFIGS = tuple(
    f'quantization.{name}' for name in ('b_init', 'b_target', 'recipe', 'full_precision', 'start_step', 'end_step')
)
UNSETTABLE = *OF_OUR_CONFIGS, '_step'  # by --columns
COLUMNS = {
    'N': Column(
        ('N',),
        (rf'({_COUNT}(params?|parameters?)(count)?({_EXCEPT})?|{_COUNT}{_EXCEPT}(params?|parameters?)?|modelsize)',),
        'param|model.?size|embed',
    ),
    'D': Column(
        ('D',),
        ('(n|num|numberof|total|train|training|trained|consumed)*tokens(seen|trained|consumed|processed)?',),
        'token',
    ),
    'loss': Column(
        ('loss', 'validation/loss'),
        (
            f'{_HELD_OUT}(loss|crossentropy|nll)|loss{_HELD_OUT}',
            '(final|last)?(loss|crossentropy)',
            '(final|last)?train(ing)?(loss|crossentropy)|losstrain(ing)?',
        ),
        'loss|entropy|nll',
    ),
    'E': Column(('E',), ('(e|exp|exponent)bits',)),
    'M': Column(('M',), ('(m|man|mantissa)bits',)),
    'B': Column(('B', 'quantization.block_size'), ('(quant|quantization)?(block|group)size',)),
    'b': Column(('b', 'bits/mean')),
    'P': Column(('P',), ('(n|num|precision)?bits|bitwidth',)),
    'P_w': Column(('P_w',), ('(w|weights?)bits|bits(w|weights?)',)),
    'P_a': Column(('P_a',), ('(a|act|activations?)bits|bits(a|act|activations?)',)),
    'P_kv': Column(('P_kv',), ('(kv|kvcache)bits|bits(kv|kvcache)',)),
    'P_post': Column(('P_post',), ('(ptq|post|posttraining)bits|bits(ptq|post|posttraining)',)),
    'C': Column(('C',), ('(total|train|training|model)*(flops?|flos|compute)',)),
    'format': Column(
        ('format', 'quantization.format'),
        ('(number|num|data|quant|quantization)?format',),
        'precision|dtype|quant|recipe|fp8|fp4',
    ),
    'method': Column(('method',), ('method',)),
    'forward': Column(('forward',), ('(forward|fwd)(format|recipe)?',)),
    'backward': Column(('backward',), ('(backward|bwd)(format|recipe)?',)),
    'status': Column(('status',), ('(run)?(status|state)',)),
    'seed': Column(('seed',), ('(random|rng)?seed',)),
    'run': Column(('run', 'run_id', 'run_name'), ('run(id|name|uuid)?', 'id')),
    'name': Column(('name',), ('name|displayname', 'mlflowrunname')),
    'learning_rate': Column(('learning_rate',), ('(max|peak|base)?(lr|learningrate)',)),
    'dataset': Column(('dataset',), ('dataset(name)?|corpus',)),
    **{name: Column((name, name.split('.')[-1])) for name in OF_OUR_CONFIGS},
    '_step': Column(('_step',)),
}
NEEDED = 'N', 'D', 'loss'
LABELS = 'run', 'name', 'learning_rate', 'dataset'  # no law takes them: of several the first will do
UNTOLD = 'name', 'learning_rate', 'dataset'  # what a figure doesn't depend on
SETTABLE = tuple(name for name in COLUMNS if name not in UNSETTABLE)
OUTER = re.compile(r'((config|params?|metrics?|summary|summary_metrics|hparams|hyperparameters|args|tags)[./])+')
LONGEST = 200  # letters of a name that is like another
MOST_SHOWN = 10


class Found(NamedTuple):
    """The columns of a file, and what a reader must be told of them."""

    columns: dict[str, str]  # ours -> the file's
    several: dict[str, tuple[str, ...]]  # those of ours that may be any of these, unless all of them hold the same
    where: tuple[tuple[str, str], ...]  # a column of the file, and the value that runs must have
    remarks: tuple[str, ...]

    @property
    def used(self) -> set[str]:
        """All columns of the file that are looked at."""
        return {*self.columns.values(), *itertools.chain(*self.several.values()), *(name for name, _ in self.where)}


def find(path: object, names: Sequence[str], reading: Reading) -> Found:
    """The columns of a file by its names.

    Args:
      path: of the file, for errors.
      names: its columns.
      reading: which columns to take.

    Raises:
      ValueError: for names that aren't there, on either side; for a column that is needed and not there, or that only
        the reader can tell.
    """
    columns, extra = reading.columns, reading.extra
    settable = (*SETTABLE, *(name for name in extra if name not in COLUMNS))
    for ours, theirs in columns.items():
        if ours not in settable:
            raise ValueError(f'--columns={ours}={theirs}: {ours!r:.80} is none of {", ".join(settable)}')
        if theirs and theirs not in names:
            raise ValueError(f'--columns={ours}={theirs}: {path} has no column {theirs!r:.80}; {_told(names)}')
    free = {name: _inner(name) for name in names if name not in columns.values() and len(name) <= LONGEST}
    candidates = {
        ours: [*filter(None, [columns[ours]])] if ours in columns else _candidates(ours, names, free)
        for ours in (*COLUMNS, *extra)
    }
    _check_needed(path, names, candidates, extra)
    if candidates['D']:
        if columns.get('C'):
            raise ValueError(f'--columns=C={columns["C"]} would do nothing: D is {candidates["D"][0]!r:.80}')
        candidates['C'] = []
    found = {ours: theirs[0] for ours, theirs in candidates.items() if theirs}
    needed = [found[ours] for ours in (*NEEDED, 'C') if ours in found]
    if twice := [name for name in needed if needed.count(name) > 1]:
        raise ValueError(f'--columns: {twice[0]!r:.80} can be only one of N, D and loss')
    labels = {*LABELS, *OF_OUR_CONFIGS} - set(extra)
    several = {ours: tuple(names) for ours, names in candidates.items() if len(names) > 1 and ours not in labels}
    for name, value in reading.where:
        if name not in names and name not in found:
            raise ValueError(f'--where={name}={value}: {path} has no column {name!r:.80}; {_told(names)}')
    where = tuple((name if name in names else found[name], value) for name, value in reading.where)
    return Found(found, several, where, tuple(_remarks(found, columns, free)))


def names_of(column: str) -> tuple[str, ...]:
    """What we call a column in files."""
    return COLUMNS[column].names if column in COLUMNS else (column,)


def missing(path: object, names: Sequence[str], column: str) -> ValueError:
    """The error to raise for a column that a file hasn't."""
    of_format = COLUMNS['format'].names if column in ('E', 'M', 'P') else ()
    known = ' or '.join(map(repr, names_of(column) + of_format))
    return ValueError(f'{path} has no column {known}; {_told(names)} (--columns={column}=NAME says which it is)')


def ask(path: object, choices: Mapping[str, Sequence[str]]) -> ValueError:
    """The error to raise for columns that only the reader can tell."""
    told = '; '.join(f'{ours} may be {_either(theirs)}' for ours, theirs in choices.items())
    answer = ','.join(f'{ours}={theirs[0][:80]}' for ours, theirs in choices.items())
    return ValueError(f'{path}: {told}. Say which, as with --columns={answer}')


def _candidates(ours: str, names: Sequence[str], free: Mapping[str, str]) -> list[str]:
    """The columns that may be meant, none of them more than another."""
    column = COLUMNS.get(ours, Column((ours,)))
    for name in column.names:
        if name in names:
            return [name]
    for name in column.names:
        if not _is_like(column, name) and (alike := [outer for outer, inner in free.items() if inner == name]):
            return alike
    for like in column.likes:
        if alike := [outer for outer, inner in free.items() if re.fullmatch(like, _letters(inner))]:
            return alike
    return []


def _check_needed(path: object, names: Sequence[str], candidates: Mapping[str, Sequence[str]], extra: Sequence[str]):
    """Raises ValueError for what is needed and not there, telling all that is to be said by --columns."""
    choices = {}
    lacking = [ours for ours in (*NEEDED, *extra) if not candidates[ours]]
    if 'D' in lacking and candidates['C']:
        lacking.remove('D')
    for ours in lacking:
        near = COLUMNS[ours].near if ours in COLUMNS else None
        choices[ours] = [name for name in names if near and re.search(near, name.lower())]
        if not choices[ours]:
            raise missing(path, names, ours)
    if choices:
        choices |= {ours: candidates[ours] for ours in NEEDED if len(candidates[ours]) > 1}
        raise ask(path, {ours: choices[ours] for ours in NEEDED if ours in choices})


def _remarks(found: Mapping[str, str], columns: Mapping[str, str], free: Mapping[str, str]) -> Iterator[str]:
    for ours, theirs in found.items():
        if ours not in columns and ours not in UNTOLD and theirs not in names_of(ours):
            yield f'{ours} is the column {theirs!r:.80}'
    used = {theirs for ours, theirs in found.items() if ours not in OF_OUR_CONFIGS}
    near = [name for name in free if name not in used and re.search(COLUMNS['format'].near, name.lower())]
    if near and not found.keys() & {'format', 'forward', 'method', 'E', 'b', 'P', 'P_w', 'P_a'}:
        yield f'no column tells in what format runs are; if {_either(near)} does, --columns=format=NAME reads it'
    if 'loss' not in columns:
        held_out, _, training = COLUMNS['loss'].likes
        others = [outer for outer, inner in free.items() if re.fullmatch(held_out, _letters(inner))]
        if re.fullmatch(training, _letters(_inner(found['loss']))):
            yield f'{found["loss"]!r:.80} is a loss in training: there is none of held-out text'
        elif found['loss'] == 'loss' and others:
            yield f"loss is the column 'loss', and not {_either(others)}, which --columns=loss=NAME takes"


def _is_like(column: Column, name: str) -> bool:
    return any(re.fullmatch(like, _letters(name)) for like in column.likes)


def _inner(name: str) -> str:
    """A name without the part of a run that it is of, as MLflow and Weights & Biases write it."""
    match = OUTER.match(name)
    return name[match.end() if match else 0 :].removesuffix('.value')


def _letters(name: str) -> str:
    return re.sub('[^a-z0-9]', '', name.lower())


def _told(names: Sequence[str]) -> str:
    return f'its columns are {csv_files.in_words(names)}'


def _either(names: Sequence[str]) -> str:
    shown = [f'{name!r:.80}' for name in names[:MOST_SHOWN]] + ['another'] * (len(names) > MOST_SHOWN)
    return ' or '.join([', '.join(shown[:-1])] * (len(shown) > 1) + shown[-1:])
