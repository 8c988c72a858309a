"""Run every training of a sweep, on one machine or on many, and gather the results in one table.

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

With branches=True beside the grids, of runs that differ in total_steps alone, and in how they decay, only the longest
starts from the beginning. The others go on from what it keeps of its stable learning rate (schedule 'wsd'), as soon as
it has ended: configs/sweeps/wsd_branches.py. They come to the same results, in less time.

WORKDIR holds a directory a run, with all that train writes, its output in log.txt and, if it failed, why in error.txt;
and results.csv, with a row a run: the fields and the numbers of its summary.json. A run that fails stops no other.
The same command again runs what is missing, continues what was stopped, and tries again what failed. A run that
diverged, as diverged.txt or a validation loss that isn't finite tells, has its result: delete its directory to try it
again.

    python -m experiments.sweep … --shard=$SLURM_ARRAY_TASK_ID/8    # every 8th run, as one of 8 tasks
    python -m experiments.sweep … --ray=auto --gpus_per_run=1       # each run a task of a Ray cluster

Any number of these may be at work in one WORKDIR, from machines that share it: only one of them at a time trains a run,
and the table has them all.
"""

import fcntl
import heapq
import itertools
import pathlib
import re
import signal
import statistics
import sys
import time
from typing import Protocol

import tqdm
from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.files import csv_files, paths
from experiments.sweeps import sweep_runs
from experiments.sweeps.local_jobs import LocalJobs
from experiments.sweeps.plans import SweepRun, make_runs, with_branches
from experiments.sweeps.sweep_runs import Outcome
from gaussq_jax.atomic_files import open_own
from gaussq_jax.text_table import text_table

CONFIG = config_flags.DEFINE_config_file('config', None, 'The sweep: a file with its name, base config and grids.')
WORKDIR = flags.DEFINE_string('workdir', None, "Where the runs' directories go; runs/<name of the sweep> if not given.")
JOBS = flags.DEFINE_integer(
    'jobs', None, 'How many runs at a time, 1 if not given; of several each has one GPU.', lower_bound=1
)
SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: only every n-th run, from the i-th, 0 <= i < n.')
RAY = flags.DEFINE_string('ray', None, 'The address of the head of a Ray cluster to run on; auto on its nodes.')
GPUS_PER_RUN = flags.DEFINE_float('gpus_per_run', None, 'With --ray; 1 if the cluster has any, else 0.', lower_bound=0)
CPUS_PER_RUN = flags.DEFINE_float('cpus_per_run', 1, 'With --ray.', lower_bound=0)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'List the runs and what became of them; run nothing.')

BAR = '{n_fmt}/{total_fmt} |{bar}| {desc}'
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_TRIES = 5.0  # to start a run that another process is at


class Jobs(Protocol):
    """Where runs are trained: on this machine, or as tasks of a Ray cluster."""

    num_slots: int  # how many are trained at a time
    place: str  # in words
    is_full: bool  # no other can be started now
    running: dict  # what was started and hasn't ended
    starts: list[float]  # when (time.monotonic) each of them began to train, if that is known

    def start(self, run: SweepRun) -> bool:
        """Starts a run, or continues it; False if another process is at it."""

    def ended(self) -> list[tuple[SweepRun, Outcome, float]]:
        """The runs that have ended since the last call, and after how many seconds each."""

    def stop(self):
        """Ends all that run as Ctrl-C does, so that a save under way is finished; another Ctrl-C kills them."""


def main(argv):
    del argv
    with cli.user_errors():
        config = CONFIG.value
        if config is None or any(name not in config for name in ('name', 'config', 'grids')):
            raise ValueError('--config must be the file of a sweep, whose config has name, config and grids')
        index, num_shards = parse_shard(SHARD.value)
        workdir = paths.parse(WORKDIR.value or f'runs/{config.name}', '--workdir')
        sweep = make_runs(cli.config_file(config.config), config.grids, workdir)
        sweep = with_branches(sweep) if config.get('branches', False) else sweep
        ours = of_shard(sweep, index, num_shards)
        outcomes = {run.name: sweep_runs.read_outcome(run) for run in sweep}
        if DRY_RUN.value:
            print(text_table([(outcomes[run.name].status, run.name) for run in ours], left=(0, 1)))
            return
        jobs = make_jobs(JOBS.value, RAY.value, GPUS_PER_RUN.value, CPUS_PER_RUN.value)
        todo = sum(not outcomes[run.name].is_final for run in ours)
        part = f'{len(sweep)} runs' if num_shards == 1 else f'{len(ours)} of {len(sweep)} runs, shard {SHARD.value},'
        place = f'{jobs.num_slots} at a time{jobs.place}'
        print(f'sweep     {config.name}, {part} of {config.config}: {todo} to do, {place}')
        print(f'results   {workdir}/results.csv', flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            run_all(sweep, ours, outcomes, workdir / 'results.csv', jobs)
        except KeyboardInterrupt:
            sys.exit('\ninterrupted; the same command continues')
    if diverged := sum(outcomes[run.name].status == 'diverged' for run in ours):
        print(f'diverged  {diverged} of {len(ours)} runs; the table says when')
    if failed := [str(run.workdir / 'log.txt') for run in ours if outcomes[run.name].status == 'failed']:
        print(f'failed    {len(failed)} of {len(ours)} runs, which the same command tries again; their output:')
        sys.exit('\n'.join(failed))
    print(f'done      {len(ours)} runs')


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of 'i/n'."""
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f'--shard={text} must be i/n with 0 <= i < n, as 0/8')
    return int(match[1]), int(match[2])


def of_shard(sweep: list[SweepRun], index: int, num_shards: int) -> list[SweepRun]:
    """Every n-th run, from the i-th; branches count as one with their stem, for which they wait."""
    stems = dict.fromkeys(run.stem or run.name for run in sweep)
    ours = set(list(stems)[index::num_shards])
    return [run for run in sweep if (run.stem or run.name) in ours]


def make_jobs(num_jobs: int | None, ray: str | None, gpus_per_run: float | None, cpus_per_run: float) -> Jobs:
    """What the flags ask for; ValueError where they contradict one another."""
    if ray is None:
        if gpus_per_run is not None:
            raise ValueError(f'--gpus_per_run={gpus_per_run:g} is for --ray; on one machine there is --jobs')
        return LocalJobs(num_jobs or 1)
    if num_jobs:
        raise ValueError(f'--jobs={num_jobs} is for one machine; with --ray a run has --gpus_per_run, --cpus_per_run')
    from experiments.sweeps.ray_cluster import RayJobs

    return RayJobs(ray, gpus_per_run, cpus_per_run)


def run_all(sweep: list[SweepRun], ours: list[SweepRun], outcomes: dict[str, Outcome], table: pathlib.Path, jobs: Jobs):
    """Runs those of ours that have no result; keeps `outcomes` and the table up to date; leaves no process behind."""
    waiting = [run for run in ours if not outcomes[run.name].is_final]
    total, width = len(ours), max((len(run.name) for run in ours), default=0)
    durations, loss = [], ''
    unended = {run.name for run in waiting}  # for which their branches wait
    is_terminal = sys.stdout.isatty()
    num_ended = lambda: total - len(waiting) - len(jobs.running)
    left = lambda: time_left(durations, jobs.starts, total - num_ended() - len(jobs.starts), jobs.num_slots)
    bar = tqdm.tqdm(
        total=total, initial=num_ended(), bar_format=BAR, dynamic_ncols=True, file=sys.stdout, disable=not is_terminal
    )

    def show_progress():
        bar.n = num_ended()
        bar.set_description_str(loss + left())

    next_try = 0.0
    try:
        while waiting or jobs.running:
            if waiting and not jobs.is_full and time.monotonic() >= next_try:
                for run in list(waiting):
                    if jobs.is_full:
                        break
                    if run.stem in unended:
                        continue
                    if sweep_runs.look(run).is_final:  # by another process, meanwhile
                        unended.remove(run.name)
                        waiting.remove(run)
                    elif jobs.start(run):
                        waiting.remove(run)
                write_results(table, sweep, outcomes)
                next_try = time.monotonic() + SECONDS_BETWEEN_TRIES
            if not (ended := jobs.ended()):
                show_progress()
                time.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            for run, outcome, seconds in ended:
                unended.remove(run.name)
                told = f'{outcome.status}: {outcome.error}'
                if outcome.status == 'done':
                    durations.append(seconds)
                    told = f'loss {outcome.summary["validation/loss"]:.4f}'
                    loss = f'{told}, '
                line = f'{run.name:<{width}}  {seconds:>5.0f} s  {told}'
                if not is_terminal:
                    line = f'{num_ended():>{len(str(total))}}/{total}, {left()}  {line}'
                tqdm.tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            write_results(table, sweep, outcomes)
            next_try = 0.0
    finally:
        show_progress()
        bar.close()
        if jobs.running:
            print(f'\nstopping {len(jobs.running)} run(s), whose checkpoints stay; Ctrl-C again kills them', flush=True)
            jobs.stop()
        write_results(table, sweep, outcomes)


def write_results(path: pathlib.Path, sweep: list[SweepRun], outcomes: dict[str, Outcome]):
    """Writes the table in one step: a reader, or a kill, finds the old one or the new.

    Whatever other processes train of the sweep: before, `outcomes` are brought up to date with the directories.
    """
    with open_own(path.parent / '.lock', 'r+') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcomes |= {run.name: sweep_runs.look(run) for run in sweep if not outcomes[run.name].is_final}
        fields = dict.fromkeys(field for run in sweep for field in run.fields)
        rows = []
        for run in sweep:
            status, summary, error = outcomes[run.name]
            numbers = {name: value for name, value in summary.items() if not isinstance(value, list | dict)}
            settings = {field: run.config.get(field, run.fields.get(field, '')) for field in fields}
            rows.append({**numbers, **settings, 'name': run.name, 'status': status, 'error': error})
        columns = dict.fromkeys(['name', 'status', *fields, 'seconds', *itertools.chain(*rows)])
        del columns['error']
        columns = [*columns, 'error']
        lines = [[row.get(column, '') for column in columns] for row in rows]
        csv_files.write(path, [name.lstrip(':') for name in columns], lines)


def time_left(durations: list[float], starts: list[float], num_waiting: int, num_slots: int) -> str:
    """As if every run took the median of those that this sweep has finished since its start."""
    if not durations:
        return '--:-- left'
    median, now = statistics.median(durations), time.monotonic()
    free = [max(started + median - now, 0.0) for started in starts]  # in so many seconds each slot is
    free = sorted(free + [0.0] * (num_slots - len(free)))
    for _ in range(num_waiting):
        heapq.heapreplace(free, free[0] + median)
    return f'{tqdm.tqdm.format_interval(max(free))} left'


if __name__ == '__main__':
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it is ignored: the runs would inherit that
        signal.signal(number, signal.default_int_handler)
    cli.start(main)
