"""Run every training of a sweep on one machine, and gather the results in one table.

    python -m experiments.sweep --config=configs/sweeps/formats.py --workdir=runs/formats --jobs=2

A sweep is a config file: a base config, as experiments.train takes it, and grids over any of its fields.

    def get_config():
        grids = [
            {'method': ['fqt'], 'quantization.format': ['e4m3', 'e3m2', 'e2m1'], 'seed': range(3)},
            {'method': ['bf16'], 'seed': range(3)},
        ]
        return ConfigDict(dict(name='formats', config='configs/tiny.py', grids=grids))

A grid is the product of its lists, and the sweep is all its grids. Fields are set as by `--config.<field>=<value>`,
after the base config is made; a name with a colon, as ':size', is an argument of the base config itself, as in
`--config=configs/capybara.py:size=41m`. A run is named by what its grid sets, 'method=fqt,format=e4m3,seed=0', so
whatever is added to a sweep later, a finished run keeps its name. What no run varies belongs in the base config.

WORKDIR holds a directory a run, with all that train writes, its output in log.txt and, if it failed, why in error.txt;
and results.csv, with a row a run: the fields and the numbers of its summary.json. A run that fails stops no other.
The same command again runs what is missing, continues what was stopped, and tries again what failed.
"""

import collections
import csv
import fcntl
import heapq
import io
import itertools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tqdm
from absl import flags
from flax import traverse_util
from ml_collections import config_flags

from experiments import runs
from experiments.metrics import replace_file

CONFIG = config_flags.DEFINE_config_file('config', None, 'The sweep: a file with its name, base config and grids.')
WORKDIR = flags.DEFINE_string('workdir', None, "Where the runs' directories go; runs/<name of the sweep> if not given.")
JOBS = flags.DEFINE_integer('jobs', 1, 'How many runs at a time; if several, each has one GPU.', lower_bound=1)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'List the runs and what became of them; run nothing.')

TRAIN = (sys.executable, '-m', 'experiments.train')
BAR = '{n_fmt}/{total_fmt} |{bar}| {desc}'
SECONDS_BETWEEN_LOOKS = 0.2
LONGEST_NAME = 255  # of a directory, in bytes

# In these a finished run may differ from the present config: they change nothing that its summary.json tells.
FREE_FIELDS = set(runs.FREE_FIELDS) - {'eval_batches', 'tokenizer', 'data_dir'}


class Run(NamedTuple):
    """One training of a sweep."""

    name: str
    fields: dict[str, Any]  # what its grid sets; arguments of the base config with their colon
    arguments: list[str]  # --config=… --config.<field>=<value> …
    config: dict[str, Any]  # what train makes of them: every field by its dotted name
    workdir: pathlib.Path


class Result(NamedTuple):
    """What became of a run."""

    status: str  # 'done' | 'failed' | 'missing'
    summary: dict[str, Any]  # summary.json, if done, else empty
    error: str  # in one line, if failed


def main(argv):
    del argv
    with runs.user_errors():
        config = CONFIG.value
        if config is None or any(name not in config for name in ('name', 'config', 'grids')):
            raise ValueError('--config must be the file of a sweep, whose config has name, config and grids')
        workdir = pathlib.Path(WORKDIR.value or f'runs/{config.name}')
        sweep = make_runs(config.config, config.grids, workdir)
        results = {run.name: read_result(run) for run in sweep}
        if DRY_RUN.value:
            print('\n'.join(f'{results[run.name].status:<8}{run.name}' for run in sweep))
            return
        todo = sum(result.status != 'done' for result in results.values())
        print(f'sweep     {config.name}, {len(sweep)} runs of {config.config}: {todo} to do, {JOBS.value} at a time')
        print(f'results   {workdir}/results.csv', flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            with open(workdir / '.lock', 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                run_all(sweep, results, workdir / 'results.csv', JOBS.value, lock.fileno())
        except BlockingIOError:
            raise ValueError(f'another sweep, or a run that one left behind, is at work in {workdir}') from None
        except KeyboardInterrupt:
            sys.exit('\ninterrupted; the same command continues')
    if failed := [str(run.workdir / 'log.txt') for run in sweep if results[run.name].status == 'failed']:
        print(f'failed    {len(failed)} of {len(sweep)} runs, which the same command tries again; their output:')
        sys.exit('\n'.join(failed))
    print(f'done      {len(sweep)} runs')


def make_runs(base: str, grids: Iterable[Mapping[str, Iterable]], workdir: pathlib.Path) -> list[Run]:
    """The runs of a sweep, in the order of its grids; the last field of a grid varies fastest.

    Raises:
      ValueError: for a base config that can't be made, a field that it hasn't, a value of another type, an empty list
        or grid, a run that occurs twice, a name too long for a directory.
    """
    defaults = resolve([f'--config={base}'])
    last_parts = collections.Counter(field.split('.')[-1] for field in defaults)
    sweep = {}
    for number, grid in enumerate(grids):
        if not isinstance(grid, Mapping) or not grid:
            raise ValueError(f'grids[{number}]={grid!r} must map fields to lists of values')
        lists = [check_values(f'grids[{number}]', field, values, defaults) for field, values in grid.items()]
        for values in itertools.product(*lists):
            fields = dict(zip(grid, values))
            # The last part of a field where the base config has no other such, whatever the sweep's other fields are.
            short = {field: last if last_parts[last := field.split('.')[-1]] == 1 else field for field in fields}
            name = ','.join(
                f'{short[field].lstrip(":")}={urllib.parse.quote(str(fields[field]), safe="+")}' for field in fields
            )
            if len(name) > LONGEST_NAME:
                raise ValueError(f'grids[{number}]: {name} is too long for a directory; set fewer fields')
            of_base = [f'{field[1:]}={value}' for field, value in fields.items() if field.startswith(':')]
            config = base + (',' if ':' in base else ':') * bool(of_base) + ','.join(of_base)
            settings = {field: value for field, value in fields.items() if not field.startswith(':')}
            arguments = [f'--config={config}', *(f'--config.{field}={value}' for field, value in settings.items())]
            run = Run(name, fields, arguments, resolve(arguments), workdir / name)
            twin = sweep.setdefault(json.dumps(run.config), run)
            if twin is not run:
                raise ValueError(f'grids[{number}]: {name} is the same run as {twin.name}; a run may occur only once')
    if not sweep:
        raise ValueError(f'grids={grids!r} must be a list of mappings from fields to lists of values')
    return list(sweep.values())


def check_values(where: str, field: str, values: Any, defaults: Mapping[str, Any]) -> list:
    """The values of a field, in its type; ValueError where that can't be."""
    is_argument = field.startswith(':')  # which the base config itself checks
    if not is_argument and (field not in defaults or field == 'name'):
        allowed = ', '.join(name for name in defaults if name != 'name')
        raise ValueError(f'{where}: the base config has no field {field!r} to vary; it has {allowed}')
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        raise ValueError(f'{where}[{field!r}]={values!r} must be a list of values, and not empty')
    values = [value.item() if hasattr(value, 'item') else value for value in values]  # NumPy's
    if is_argument:
        return values
    kind = type(defaults[field])
    values = [float(value) if kind is float and type(value) is int else value for value in values]
    for value in values:
        if type(value) is not kind:
            raise ValueError(f'{where}[{field!r}]: {value!r} must be of type {kind.__name__}, as {defaults[field]!r}')
    return values


def resolve(arguments: list[str]) -> dict[str, Any]:
    """The config that train makes of these arguments, as JSON has it, every field by its dotted name."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    try:
        values(['train', *arguments])
    except flags.Error as error:  # what a config file raises comes with its traceback: the last line says it
        raise ValueError(' '.join(arguments) + ': ' + str(error).rstrip().splitlines()[-1]) from error
    return traverse_util.flatten_dict(json.loads(json.dumps(config.value.to_dict())), sep='.')


def read_result(run: Run) -> Result:
    """What the run's directory says; ValueError if it holds the finished run of another config."""
    if (path := run.workdir / 'error.txt').exists():
        return Result('failed', {}, path.read_text().strip())
    if not (path := run.workdir / 'summary.json').exists():
        return Result('missing', {}, '')
    stored = traverse_util.flatten_dict(read_json(run.workdir / 'config.json'), sep='.')
    differences = [
        f'{field}: stored {stored.get(field)!r}, present {run.config.get(field)!r}'
        for field in {**stored, **run.config}
        if field.split('.')[0] not in FREE_FIELDS and stored.get(field) != run.config.get(field)
    ]
    if differences:
        differences = '\n  '.join(differences)
        raise ValueError(
            f'{run.workdir} holds the finished run of another config:\n  {differences}\n'
            'Use another --workdir for this config, or give the stored values.'
        )
    return Result('done', read_json(path), '')


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """ValueError naming the file if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}); delete its directory to run it again') from error


def write_results(path: pathlib.Path, sweep: list[Run], results: dict[str, Result]):
    """Writes the table in one step: a reader, or a kill, finds the old one or the new."""
    rows = []
    for run in sweep:
        status, summary, error = results[run.name]
        numbers = {name: value for name, value in summary.items() if not isinstance(value, list | dict)}
        rows.append({**numbers, 'name': run.name, 'status': status, 'error': error})
    fields = {field: None for run in sweep for field in run.fields}
    columns = {'name': None, 'status': None, **fields, 'seconds': None, **{name: None for row in rows for name in row}}
    del columns['error']
    table = io.StringIO()
    writer = csv.DictWriter(table, [*(name.lstrip(':') for name in columns), 'error'])
    writer.writeheader()
    for run, row in zip(sweep, rows):
        row |= {field: run.config.get(field, run.fields.get(field, '')) for field in fields}
        writer.writerow({name.lstrip(':'): value for name, value in row.items()})
    replace_file(path, table.getvalue())


def run_all(sweep: list[Run], results: dict[str, Result], table: pathlib.Path, jobs: int, lock: int):
    """Runs what isn't done, `jobs` at a time; keeps `results` and the table up to date; leaves no process behind."""
    environments, width = job_environments(jobs), max(len(run.name) for run in sweep)
    waiting, running = [run for run in sweep if results[run.name].status != 'done'], {}
    durations, loss, total, done = [], '', len(sweep), len(sweep) - len(waiting)
    is_terminal = sys.stdout.isatty()
    bar = tqdm.tqdm(
        total=total, initial=done, bar_format=BAR, dynamic_ncols=True, file=sys.stdout, disable=not is_terminal
    )
    try:
        while waiting or running:
            for job in set(range(jobs)) - set(running):
                if waiting:
                    run = waiting.pop(0)
                    results[run.name] = Result('missing', {}, '')
                    running[job] = run, start(run, environments[job], lock), time.monotonic()
            write_results(table, sweep, results)
            while all(process.poll() is None for _, process, _ in running.values()):
                bar.set_description_str(loss + time_left(durations, running, len(waiting), jobs))
                time.sleep(SECONDS_BETWEEN_LOOKS)
            for job, (run, process, started) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                results[run.name] = result = finish(run, process.returncode)
                seconds = time.monotonic() - started
                outcome = f'failed: {result.error}'
                if result.status == 'done':
                    durations.append(seconds)
                    outcome = f'loss {float(result.summary["validation/loss"]):.4f}'  # it may be the text "NaN"
                    loss = f'{outcome}, '
                line = f'{run.name:<{width}}  {seconds:>5.0f} s  {outcome}'
                left = time_left(durations, running, len(waiting), jobs)
                if not is_terminal:
                    line = f'{total - len(waiting) - len(running):>{len(str(total))}}/{total}, {left}  {line}'
                tqdm.tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
                bar.set_description_str(loss + left, refresh=False)
                bar.update()
    finally:
        bar.close()
        stop([process for _, process, _ in running.values()])
        write_results(table, sweep, results)


def time_left(durations: list[float], running: Mapping[int, tuple], num_waiting: int, jobs: int) -> str:
    """As if every run took the median of those that this sweep has finished since its start."""
    if not durations:
        return '--:-- left'
    median, now = statistics.median(durations), time.monotonic()
    free = [max(started + median - now, 0.0) for _, _, started in running.values()]  # in so many seconds each job is
    free = sorted(free + [0.0] * (jobs - len(free)))
    for _ in range(num_waiting):
        heapq.heapreplace(free, free[0] + median)
    return f'{tqdm.tqdm.format_interval(max(free))} left'


def job_environments(jobs: int) -> list[dict[str, str]]:
    """What each job's environment has of its own: with several, a GPU, or its part of a GPU's memory.

    Cores are left to the operating system. With a share of its own a job was no faster, and its sums came out in
    another order: a run's bits would depend on the number of jobs.
    """
    devices = os.environ.get('CUDA_VISIBLE_DEVICES')
    if devices is None:
        devices = ','.join(str(i) for i, _ in enumerate(pathlib.Path('/dev').glob('nvidia[0-9]*')))
    if jobs == 1 or not devices:
        return [{}] * jobs
    devices = devices.split(',')
    memory = 0.75 / -(-jobs // len(devices))  # JAX takes 0.75 of it if nothing else is said
    return [
        {'CUDA_VISIBLE_DEVICES': devices[job % len(devices)], 'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{memory:.3f}'}
        for job in range(jobs)
    ]


def start(run: Run, environment: dict[str, str], lock: int) -> subprocess.Popen:
    """Starts a run, or continues it, in a session of its own: a terminal's Ctrl-C reaches it through us, once.

    It inherits the workdir's lock: should the sweep be killed, the next can't start the run beside itself.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / 'error.txt').unlink(missing_ok=True)
    with open(run.workdir / 'log.txt', 'w') as log:
        return subprocess.Popen(
            [*TRAIN, *run.arguments, f'--workdir={run.workdir}'],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
        )


def finish(run: Run, exit_status: int) -> Result:
    """The result of a run that has ended; why it failed stays in its directory until it is tried again."""
    try:
        if exit_status == 0 and (result := read_result(run)).status == 'done':
            return result
        error = describe_failure(exit_status, (run.workdir / 'log.txt').read_text(errors='replace'))
    except ValueError as mismatch:
        error = ' '.join(str(mismatch).split())
    (run.workdir / 'error.txt').write_text(error + '\n')
    return Result('failed', {}, error)


def describe_failure(exit_status: int, output: str) -> str:
    """Why a run failed, in one line: the last error in its output with what follows it, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ['no output']
    if exit_status < 0:
        return f'ended by {signal.Signals(-exit_status).name}, after: {lines[-1]}'
    if exit_status == 0:
        return f'ended without a summary.json, after: {lines[-1]}'
    errors = [i for i, line in enumerate(lines) if re.match(r'(error|[\w.]*(Error|Exception)): ', line)]
    return ' '.join(lines[errors[-1] if errors else -1 :])


def stop(processes: list[subprocess.Popen]):
    """Ends runs as Ctrl-C does, so that a save under way is finished; another Ctrl-C kills them."""
    if processes:
        print(f'\nstopping {len(processes)} run(s), whose checkpoints stay; Ctrl-C again kills them', flush=True)
    try:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == '__main__':
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it is ignored: the runs would inherit that
        signal.signal(number, signal.default_int_handler)
    runs.start(main)
