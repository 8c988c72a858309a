"""Damaged and hostile files: each mutator changes the contents of a valid one, and says what it has changed.

A mutator is a function (generator, contents) -> (contents, what it did), of bytes; `replace_by_link` is one of paths.
What it does is a function of the generator's state, and so of a seed.
"""

import csv
import hashlib
import io
import json
import pathlib
import random
import struct
from collections.abc import Callable
from typing import Any

from gaussq_jax.packed.checked_file import KEY

Mutator = Callable[[random.Random, bytes], tuple[bytes, str]]

VALUES = (  # of JSON, as they are written
    *('null', 'true', 'false', '[]', '{}', '""', '[null]', '[[]]', '{"": {}}', '"x"', '"../../../x"', '"channel"'),
    *('"hostile.Class"', r'"{\"type\": \"hostile.Class\", \"x\": 1e999}"', '1000000000000000019884624838656'),
    *('-1', '0', '1', '-0.0', '0.5', '1e-320', '2147483648', '4294967295', '9223372036854775808', '1e400', '-1e400'),
    *('NaN', 'Infinity', '-Infinity', '1' + 400 * '0', '1' + 5000 * '0', '1e308', '999999999'),
    *(r'"$\\frac{$"', r'"\u001b[31m"', r'"\ud800"', r'"\u0000"', r'"\n"', r'"\u2028x\u202e"', '"../../x"'),
    *('"' + 'x' * 10**6 + '"', '[' * 10**5 + ']' * 10**5, 300 * '{"x":' + '1' + 300 * '}'),
    *('[' + ','.join(5000 * ['1']) + ']', '"1e999"', '"0x10"', '"-1"', '"１"', '[1, "x", null]', '{"x": 1}'),
)
CELLS = (  # of CSV, as they are written
    *('', ' ', '=1+1', '@SUM(A1)', '"', '""', '"a\nb"', "'", '\0', '-1', '0', '1e400', 'nan', 'inf', '-inf', '１'),
    *('1_000', '1' + 400 * '0', '1' + 5000 * '0', '9' * 20, '1e308', '0x10', 'true', 'None', 'done', 'failed'),
    *('$\\frac{$', '\x1b[31m', '\u2028', 'x' * 10**6, 'a,b', 'e99m99', 'e4m3', '32x32', 'channel', 'é'),
)
NUMBERS = (0, 1, 7, 8, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
DTYPES = ('BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'I16', 'F16', 'BF16', 'I32', 'F32', 'F64', 'I64', 'U64', 'F4', 'X')
HOLE = '@hole@'


def of_bytes(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """Bits flipped, bytes set, lost, put in or repeated."""
    start = generator.randrange(len(contents) + 1)
    size = min(generator.choice((1, 2, 8, 64, 4096)), len(contents) - start)
    chunk, end = contents[start : start + size], start + size
    noise = generator.randbytes(max(size, 1))
    flipped = bytes([chunk[0] ^ 1 << generator.randrange(8)]) + chunk[1:] if chunk else b''
    choices = {
        'a bit flipped': contents[:start] + flipped + contents[end:],
        'other bytes': contents[:start] + noise + contents[end:],
        'zeros': contents[:start] + bytes(size) + contents[end:],
        'bytes put in': contents[:start] + noise + contents[start:],
        'a chunk twice': contents[:end] + chunk + contents[end:],
        'a chunk lost': contents[:start] + contents[end:],
        'cut off': contents[:start],
        'nothing but': b'',
        'all twice': contents + contents,
        'the start of a pickle': b'\x80\x02' + contents[2:],
        'a byte order mark': b'\xff\xfe' + contents,
    }
    weights = [4, 2, 2, 2, 2, 2, 3, 0.2, 0.2, 0.2, 0.2]
    what = generator.choices(list(choices), weights)[0]
    return choices[what], f'{what}, {size} bytes at {start}'


def of_json(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """A value replaced, a key lost, added or repeated."""
    tree = json.loads(contents)
    text, what = _mutated_json(generator, tree)
    return text.encode(), what


def of_paths(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """A text in JSON replaced by a path that leads out of the folder."""
    tree = json.loads(contents)
    while not (path := _path(generator, tree)) or not isinstance(_at(tree, path), str):
        pass
    _at(tree, path[:-1])[path[-1]] = text = generator.choice(('../../../x', '../../../../x', '../../../x/y'))
    return json.dumps(tree).encode(), f'{"/".join(map(str, path))} is {text!r}'


def of_json_lines(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """A line of JSON mutated, lost or repeated; or an empty one, or another object, put in."""
    lines = contents.decode().splitlines()
    number = generator.randrange(len(lines))
    what = generator.choice(('mutated', 'mutated', 'mutated', 'mutated', 'lost', 'twice', 'empty', 'no object'))
    if what == 'mutated':
        changed, what = _mutated_json(generator, json.loads(lines[number]))
    else:
        changed = {'lost': None, 'twice': 2 * f'{lines[number]}\n', 'empty': '', 'no object': '[1]'}[what]
    lines[number : number + 1] = [] if changed is None else [changed]
    return '\n'.join([*lines, '']).encode(), f'line {number + 1}: {what}'


def of_csv(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """A cell replaced, or more or fewer of them in a line; lines lost or repeated."""
    rows = list(csv.reader(io.StringIO(contents.decode(), newline='')))
    i = generator.choice((0, generator.randrange(len(rows))))
    j, row, cell = generator.randrange(len(rows[i])), rows[i], generator.choice(CELLS)
    what = generator.choices(('a cell', 'fewer', 'more', 'a column', 'lost', 'twice'), (10, 1, 1, 1, 1, 1))[0]
    lines = [_csv_line(row) for row in rows]
    if what == 'a cell':
        lines[i] = ','.join([*filter(None, [_csv_line(row[:j])]), cell, *filter(None, [_csv_line(row[j + 1 :])])])
    elif what == 'a column':
        lines = [_csv_line(row[:j] + row[j + 1 :]) for row in rows]
    else:
        changed = {'fewer': [_csv_line(row[:j])], 'more': [lines[i] + ',' + cell], 'lost': [], 'twice': 2 * [lines[i]]}
        lines[i : i + 1] = changed[what]
    text = generator.choice(('\n', '\n', '\n', '\r\n')).join([*lines, ''])
    return text.encode(), f'line {i + 1}, cell {j + 1}: {what} {_short(cell)}'


def of_tensors(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """The header of a safetensors file mutated: as JSON; its length; of a tensor the dtype, the shape or the place."""
    (length,) = struct.unpack('<Q', contents[:8])
    header, data = contents[8 : 8 + length], contents[8 + length :]
    if generator.random() < 0.1:
        number = generator.choice((*NUMBERS, length + 1, length - 1, len(contents)))
        return struct.pack('<Q', number) + contents[8:], f'the length of the header is {number}'
    if generator.random() < 0.3:
        text, what = _mutated_json(generator, json.loads(header))
        header = text.encode()
    else:
        tensors = json.loads(header)
        what = _mutate_tensor(generator, tensors)
        header = json.dumps(tensors).encode()
    return struct.pack('<Q', len(header)) + header + data, what


def of_packed(generator: random.Random, contents: bytes) -> tuple[bytes, str]:
    """A packed file mutated anywhere, its digest made anew: no damage, but somebody who means it."""
    (length,) = struct.unpack('<Q', contents[:8])
    header, data = json.loads(contents[8 : 8 + length]), contents[8 + length :]
    where = generator.choices(('metadata', 'tensors', 'data'), (6, 2, 2))[0]
    metadata = header['__metadata__'][KEY]
    if where == 'metadata':
        fields = json.loads(metadata)
        part = generator.choice([name for name in fields if name not in ('sha256', 'version')])
        text, what = _mutated_json(generator, fields[part])
        header['__metadata__'][KEY] = json.dumps(fields | {part: HOLE}).replace(json.dumps(HOLE), text)
        what = f'{part}: {what}'
    elif where == 'tensors':
        what = _mutate_tensor(generator, header)
    else:
        data, what = of_bytes(generator, data)
    digest = json.loads(metadata)['sha256'].encode()
    text = json.dumps(header).encode().replace(digest, 64 * b'0', 1)
    whole = struct.pack('<Q', len(text)) + text + data
    return whole.replace(64 * b'0', hashlib.sha256(whole).hexdigest().encode(), 1), f'{where}, digest made anew: {what}'


def replace_by_link(generator: random.Random, path: pathlib.Path, elsewhere: pathlib.Path) -> str:
    """Puts a link in the place of a file or a folder: to itself elsewhere, to another folder or file, to nothing."""
    targets = {'where it is now': elsewhere / path.name, 'nothing': elsewhere / 'nothing', 'itself': path}
    targets |= {'a folder': elsewhere, 'an empty device': pathlib.Path('/dev/null')}
    what = generator.choice([*targets, 'an empty folder'])
    elsewhere.mkdir()
    path.rename(targets['where it is now'] if what == 'where it is now' else elsewhere / 'moved')
    if what not in targets:
        path.mkdir()
        return what
    path.symlink_to(targets[what])
    return f'a link to {what}'


def _mutated_json(generator, tree) -> tuple[str, str]:
    """The text, of which a part may be no JSON."""
    path = _path(generator, tree)
    parent, before, key = _at(tree, path[:-1]), _at(tree, path), path[-1] if path else None
    value = generator.choice(generator.choice((VALUES, _alike(before))))
    what = generator.choices(('is', 'is lost', 'is twice, then', 'has beside it'), (16, 2, 1, 1))[0]
    what = what if path else 'is'
    told = f'{"/".join(map(str, path)) or "all"} {what}' + ('' if what == 'is lost' else f' {_short(value)}')
    if not path:
        return value, told
    if what == 'is lost':
        del parent[key]
        return json.dumps(tree), told
    parent[key] = HOLE
    name = json.dumps(key) if isinstance(parent, dict) else ''
    separator = f'{name}: ' if name else ''
    filling = {'is': value, 'is twice, then': f'{json.dumps(before)}, {separator}{value}'}
    filling['has beside it'] = f'{json.dumps(before)}, {name and json.dumps(f"{key}x") + ": "}{value}'
    return json.dumps(tree).replace(json.dumps(HOLE), filling[what], 1), told


def _alike(before: Any) -> tuple[str, ...]:
    """Of VALUES, those of the same type, which a check of types alone lets pass."""
    starts = '"' if isinstance(before, str) else '-0123456789' if isinstance(before, int | float) else ''
    return tuple(value for value in VALUES if value[0] in starts) or VALUES


def _path(generator, tree: Any) -> tuple:
    """Of a value: however many values there are elsewhere, what is near the root is as often met."""
    path = ()
    while isinstance(tree, dict | list) and tree and generator.random() < 0.9:
        path += (generator.choice(list(tree) if isinstance(tree, dict) else range(len(tree))),)
        tree = tree[path[-1]]
    return path


def _at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _mutate_tensor(generator, header) -> str:
    name = generator.choice([name for name in header if name != '__metadata__'])
    tensor, number = header[name], generator.choice(NUMBERS)
    what = generator.choice(('dtype', 'shape', 'turned', 'longer', 'offset', 'swapped', 'name', 'lost'))
    if what == 'dtype':
        tensor['dtype'] = number = generator.choice(DTYPES)
    elif what == 'shape' and tensor['shape']:
        tensor['shape'][generator.randrange(len(tensor['shape']))] = number
    elif what == 'turned':
        tensor['shape'], number = tensor['shape'][::-1], ''
    elif what == 'longer':
        tensor['shape'], number = [*tensor['shape'], 1], ''
    elif what == 'offset':
        tensor['data_offsets'][generator.randrange(2)] = number
    elif what == 'swapped':
        number = generator.choice([other for other in header if other != '__metadata__'])
        header[name], header[number] = header[number], header[name]
    elif what == 'name':
        number = generator.choice(('', '/', 'x', '../x', '__metadata__x', '\x1b[31m', f'{name}/x'))
        header[number] = header.pop(name)
    else:
        what, number = 'lost', ''
        del header[name]
    return f'tensor {name}: {what} {number!r}'


def _csv_line(cells) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator='').writerow(cells)
    return text.getvalue()


def _short(value: str) -> str:
    return ascii(value) if len(value) <= 40 else f'{value[:30]!a}… of {len(value)} characters'
