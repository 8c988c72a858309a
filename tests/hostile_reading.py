"""A process that reads hostile files: what becomes of each is a line of JSON.

    python tests/hostile_reading.py 'law:17:18' 'packed:0:30'          # kind, first number, end

A mutation is a function of its kind and its number alone. Reading is given SECONDS and BYTES, after which the process
ends; the line that says that a mutation has begun is then the last.
"""

import faulthandler
import json
import os
import pathlib
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # before what is installed
os.environ['JAX_PLATFORMS'] = 'cpu'

import compilation

os.environ['XLA_FLAGS'] = compilation.xla_flags(devices=1)

from hostile_kinds import KINDS, ROOT, Kind
from mutations import replace_by_link

from experiments.files import foreign_text

SECONDS, BYTES = 20, 2 << 30
LONGEST = 1000  # of an error's line
LISTING = re.compile(r'[^\n]+:(\n  [^\n]+)+\n[^\n]+')
LARGEST = sys.float_info.max
LINKS = 0.05  # of all mutations
# Events of sys.addaudithook that no reader causes: what runs code that was read, asks other machines for it, or writes
# elsewhere than beside what is read.
FORBIDDEN = re.compile(
    r'import hostile|pickle\.find_class|os\.(system|exec|spawn|posix_spawn|startfile)|subprocess\.|socket\.connect'
)
WRITING = {
    'os.mkdir': 0,
    'os.rename': 1,
    'os.truncate': 0,
    'os.remove': 0,
    'os.link': 1,
    'os.symlink': 1,
    'open': 0,
}  # which argument is the path


def main(parts: list[str]):
    warnings.simplefilter('ignore')
    faulthandler.enable()
    forbidden, allowed = [], []
    sys.addaudithook(lambda event, args: forbidden.append(event) if _is_forbidden(event, args, allowed) else None)
    for part in parts:
        name, first, end = part.split(':')
        kind = KINDS[name]
        with tempfile.TemporaryDirectory(dir=os.environ.get('HOSTILE_FILES')) as directory:
            valid, folder = pathlib.Path(directory, 'valid'), pathlib.Path(directory, 'mutated')
            valid.mkdir()
            kind.write(valid)
            shutil.copytree(valid, folder)
            expected = kind.read(folder)
            _limit_memory()
            for number in range(int(first), int(end)):
                what = mutate(kind, name, number, valid, folder)
                print(json.dumps({'kind': name, 'number': number, 'what': what}), flush=True)
                forbidden.clear()
                allowed[:] = [str(folder)]
                start = time.perf_counter()
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                outcome = judge(kind, folder, expected, what)
                faulthandler.cancel_dump_traceback_later()
                allowed.clear()
                if forbidden:
                    outcome['fault'] = f'caused {forbidden[0]}'
                seconds = round(time.perf_counter() - start, 3)
                print(json.dumps({'kind': name, 'number': number, 'seconds': seconds, **outcome}), flush=True)


def mutate(kind: Kind, name: str, number: int, valid: pathlib.Path, folder: pathlib.Path) -> str:
    """Makes the mutation of this number; says what it is, the file's name before a colon."""
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / 'elsewhere', ignore_errors=True)
    shutil.copytree(valid, folder)
    generator = random.Random(f'{name} {number}')
    pattern = generator.choice(list(kind.targets))
    path = generator.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))
    if generator.random() < LINKS:
        parents = () if kind.is_cache else path.parents
        path = generator.choice([path, *(parent for parent in parents if folder in parent.parents)])
        what = replace_by_link(generator, path, folder.parent / 'elsewhere')
    else:
        contents, what = generator.choice(kind.targets[pattern])(generator, path.read_bytes())
        path.write_bytes(contents)
    kind.seal(folder)
    return f'{path.relative_to(folder)}: {what}'


def _is_forbidden(event: str, args: tuple, allowed: list[str]) -> bool:
    """Whether what happens while a file is read, whose folder is allowed, must not."""
    if not allowed or FORBIDDEN.match(f'import {args[0]}' if event == 'import' else event):
        return bool(allowed)
    if event not in WRITING or (event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return False
    path = args[WRITING[event]]
    if not isinstance(path, str | os.PathLike) or (event == 'os.remove' and args[1] != -1):
        return False  # by a descriptor, or by a name in the folder of one
    folder, name = os.path.split(os.path.abspath(path))
    written = os.path.realpath(path) if event == 'open' else os.path.join(os.path.realpath(folder), name)
    return written != '/dev/null' and not f'{written}/'.startswith(f'{os.path.realpath(allowed[0])}/')


def judge(kind: Kind, folder: pathlib.Path, expected: dict, what: str) -> dict[str, str]:
    """Reads: {'read': ''} or {'refused': message}, and 'fault' if that isn't right."""
    try:
        found = kind.read(folder)
    except (ValueError, OSError) as error:
        message = foreign_text.printable(str(error))
        fault = _fault_of_message(message, folder)
        return {'refused': message[:LONGEST], **({'fault': f'{fault}: {_place(error)}'} if fault else {})}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        traceback.print_exc()
        return {'fault': f'{type(error).__name__}: {_place(error)}', 'message': str(error)[:LONGEST]}
    if faults := [*filter(None, (_fault_of_line(line, 'a remark') for line in found.get('told', ())))]:
        return {'read': '', 'fault': faults[0]}
    file = pathlib.PurePath(what.split(': ')[0])
    matches = lambda patterns: any(file.match(pattern) for pattern in patterns)
    exact = [*('arrays', 'settings') * matches(kind.exact), *('arrays',) * matches(kind.exact_arrays)]
    wrong = _difference(found, expected, exact)
    return {'read': '', **({'fault': f'read wrong: {wrong}'} if wrong else {})}


def _fault_of_message(message: str, folder: pathlib.Path) -> str:
    """What an error lacks that is one line for people, if anything."""
    lines = message.splitlines() if LISTING.fullmatch(message) else [message]
    faults = [*filter(None, (_fault_of_line(line, 'an error') for line in lines))]
    return (*faults, '' if str(folder) in message else 'an error that names no file')[0]


def _fault_of_line(line: str, what: str) -> str:
    if '\n' in line:
        return f'{what} of several lines'
    if not line.isprintable():
        return f'{what} with characters that are not printable'
    return f'{what} of more than {LONGEST} characters' if len(line) > LONGEST else ''


def _place(error: BaseException) -> str:
    """The innermost line of ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    ours = [frame for frame in frames if '/tests/' not in frame.filename] or frames
    return f'{pathlib.Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}, in {ours[-1].name}'


def _difference(found: dict, expected: dict, exact: list[str]) -> str:
    """What of that which was read is not what it may be; empty if nothing."""
    then, now = (read.get('arrays', {}) for read in (expected, found))
    for name in then:
        if 'arrays' in exact and (now[name].tobytes(), now[name].shape) != (then[name].tobytes(), then[name].shape):
            return 'an array has changed'
    if strange := [array.dtype for array in now.values() if array.dtype == object]:
        return f'an array is of {strange[0]}'
    then, now = (read.get('settings') for read in (expected, found))
    if 'settings' in exact and json.dumps(then) != json.dumps(now):
        return 'settings have changed'
    return _difference_of_types(then, now, '')


def _difference_of_types(then, now, path: str) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        inner = (_difference_of_types(then[key], now[key], f'{path}/{key}') for key in then if key in now)
        return next(filter(None, inner), '')
    kinds = [float if type(value) is int and type(then) is float else type(value) for value in (then, now)]
    if None not in (then, now) and kinds[0] is not kinds[1]:
        return f'{path} has become {kinds[1].__name__}'
    is_number = kinds[0] is kinds[1] and kinds[0] in (int, float)
    return f'{path} is not finite' if is_number and abs(then) <= LARGEST and not abs(now) <= LARGEST else ''


def _limit_memory():
    """To the data that the process has, and BYTES more; address space that JAX only reserves is not counted."""
    status = pathlib.Path('/proc/self/status').read_text()
    data = 1024 * int(re.search(r'VmData:\s+(\d+)', status)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (data + BYTES, resource.RLIM_INFINITY))


if __name__ == '__main__':
    main(sys.argv[1:])
