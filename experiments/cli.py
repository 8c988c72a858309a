"""How a program starts, and one line for what its user can mend."""

import contextlib
import os
import pathlib
import re
import select
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging

from experiments.devices import host_memory
from experiments.files import foreign_text

INTERRUPTED = 130  # the exit code that shells know
CHECKOUT = pathlib.Path(__file__).parents[1]


def start(main: Callable[[list[str]], None], *, default_config: str | None = None, takes_arguments: bool = False):
    """Runs a program's `main` with its flags; what the libraries log is shown with --verbosity=0 only.

    Before that, the process is told to keep the memory that it frees, if it computes on CPUs.

    Args:
      main: takes the arguments that are no flags, after the program's name.
      default_config: what --config means when it isn't given. It can't be the flag's default, which ml_collections
        reads, with all its overrides, before an error can be told well.
      takes_arguments: whether there may be such arguments.
    """
    host_memory.keep_freed_memory()
    _mend_streams()
    argv = list(sys.argv)
    if default_config and not any(re.match('--?config(=|$)', argument) for argument in argv):
        argv.insert(1, f'--config={default_config}')
    for index, text in enumerate(argv):
        if found := re.match('(--?config=)(.+)', text):
            argv[index] = found[1] + config_file(found[2])
        elif index and argv[index - 1] in ('--config', '-config'):
            argv[index] = config_file(text)

    def main_without_log(argv):
        if not flags.FLAGS['verbosity'].present:
            _be_quiet()
        if len(argv) > 1 and not takes_arguments:
            sys.exit(f'error: {" ".join(argv[1:])!r} is not understood; settings are given as --name=value')
        try:
            main(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            if not _has_no_reader(sys.stdout.fileno()):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)  # who reads it has seen enough, as `head`
        except KeyboardInterrupt:
            logging.info('interrupted here:', exc_info=True)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(INTERRUPTED)  # at once: at its usual end, Python crashes at times where JAX was interrupted

    def parse_flags(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:  # what a config file raises comes with its traceback: the last line says it
            sys.exit('error: ' + str(error).rstrip().splitlines()[-1].removeprefix('ValueError: '))
        except (AttributeError, KeyError) as error:  # of ml_collections, the former around a KeyError
            (reason,) = getattr(error.args[0], 'args', error.args)
            sys.exit(f'error: the config has no field {" ".join(str(reason).split())}')

    app.run(main_without_log, argv=argv, flags_parser=parse_flags)


def config_file(text: str) -> str:
    """A `file.py:arguments`; of this checkout, where the current directory has no such file."""
    path, *arguments = text.split(':', 1)
    with contextlib.suppress(OSError, ValueError):  # of what can't be a path: an error of its reader
        if not pathlib.Path(path).exists() and (CHECKOUT / path).is_file():
            return ':'.join([str(CHECKOUT / path), *arguments])
    return text


def typed(text: str, flag: str) -> str:
    """A text of the command line, in UTF-8 whatever the locale is; ValueError if it is none."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError as error:
        raise ValueError(f'{flag}={text!r} is no UTF-8: {error.reason}') from None


def _mend_streams():
    """What can't be written to is nowhere; what its encoding lacks is written as Python does in its strings."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # it was closed before the program began
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w', encoding='utf-8'))
        if hasattr(getattr(sys, name), 'reconfigure'):  # a notebook's has no encoding
            getattr(sys, name).reconfigure(errors='backslashreplace')


def _has_no_reader(descriptor: int) -> bool:
    """Whether it is of a pipe that was closed at its other end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _be_quiet():
    """Shows nothing but warnings, and nothing of what Orbax says of a save that fails: that error is raised, too."""
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(lambda record: 'orbax' not in record.pathname and record.name != 'asyncio')
    show = sys.unraisablehook
    sys.unraisablehook = lambda error: None if str(error.exc_value) == 'Event loop is closed' else show(error)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line for what its user can mend; --verbosity=0 shows where it arose."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        fail(error)


def fail(error: Exception, advice: str = '') -> NoReturn:
    """Ends the program with one line for an error that is being handled; --verbosity=0 shows where it arose."""
    logging.info('raised here:', exc_info=True)
    sys.exit(f'error: {foreign_text.printable(str(error))}{advice}')
