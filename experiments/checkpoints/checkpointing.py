"""Checkpoints that resume a run bit for bit, and that notice when a bit of theirs has changed.

Orbax writes the arrays: in the background, each process its own shards, readable on another mesh. It restores
a data file with a flipped bit without noticing, so a manifest of SHA-256 digests is written last and verified
before a restore. Each process hashes its files while it writes the next ones, and verifies a share of all files:
Orbax then reads them from the page cache. Everything else is JSON; nothing that is read is ever executed.
A step's directory:

    <directory>/<step>/state/             the leaves of the train state (Orbax)
    <directory>/<step>/checkpoint.json    resolved config, data iterator's state, dtype and shape of each leaf
    <directory>/<step>/manifest.sha256    the digest of every file; `sha256sum -c manifest.sha256` checks them

A step is written as `<step>.writing`, and renamed once its manifest is there. So a step's directory was whole
when it got its name; one that is not whole now is damaged: skipped, with a warning, for the one before.

With several processes, `directory` is on a file system that all of them see, and each calls every method.
Process 0 alone picks the step, writes the JSON and the manifest of all digests, and deletes. The data iterator's
state is process 0's: where a batch is a function of (seed, step), every process has the same, whatever their number.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from experiments.checkpoints.agreement import (
    SECONDS_TO_WAIT,
    decided_by_first_process,
    find_damage_together,
    listed_by_first_process,
    new_barrier,
)
from experiments.checkpoints.contents import CONTENTS, check_leaves, make_contents, read_contents, stored_name
from experiments.checkpoints.file_digests import DigestsWhileWritten
from experiments.checkpoints.manifests import Verified, sha256_of_manifest, write_manifest
from experiments.checkpoints.process_shares import early_files, gather_digests
from experiments.checkpoints.step_directories import LAST_STEP, WRITING, all_steps, first_whole_step
from gaussq_jax.param_tree import leaves_by_path

DATA_FILE_BYTES = 64 * 2**20  # of a file that Orbax writes, about: it is hashed while the next ones are written


class SaveError(OSError):
    """A checkpoint could not be saved; the ones before it are as they were."""


class Restored(NamedTuple):
    """What a checkpoint held: the step, the train state, and the data iterator's state as it was given."""

    step: int
    state: Any
    data_state: Any


class Checkpointer(contextlib.AbstractContextManager):
    """Saves train states in the background, keeps the newest few whole ones, and restores the newest.

    Use it as a context manager, or call `close()`: a process that exits before loses the save under way.

    Args:
      directory: holds one directory a step; made at the first save.
      keep: how many whole checkpoints stay. Damaged ones don't count, and go when they are older than those.
        To count, those that were there before are read and verified in the background, once.
      keep_period: checkpoints of steps that this divides stay, too; 0 for none.

    Raises:
      ValueError: `keep` is less than 1, or `keep_period` less than 0.

    Example:
      with Checkpointer('/runs/tiny/checkpoints') as checkpointer:
          restored = checkpointer.restore(abstract_state, check_config)
          ...
          checkpointer.save(step, state, iterator.get_state(), config)
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3, keep_period: int = 0):
        if keep < 1:
            raise ValueError(f'keep={keep}: at least one checkpoint has to stay')
        if keep_period < 0:
            raise ValueError(f'keep_period={keep_period}: allowed are numbers of steps, or 0')
        self._directory = pathlib.Path(directory).absolute()
        self._keep, self._keep_period = keep, keep_period
        # Orbax's timeouts go by the time of day: a save in which the clock is set would end. That of the wait for a
        # directory, which another thread makes, can't be set.
        options = ocp.options.AsyncOptions(timeout_secs=SECONDS_TO_WAIT, create_directories_asynchronously=False)
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)  # saves 8% of float32, but takes 1.3 s a GB
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)
        self._verified = Verified()
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix='checkpoint')
        self._pending: tuple[int, concurrent.futures.Future] | None = None

    def save(
        self, step: int, state: Any, data_state: Any, config: Mapping[str, Any], *, protected: int | None = None
    ) -> bool:
        """Starts to save a step; returns when the arrays are copied, after which they may be donated.

        Waits for the save before it, if that is still under way.

        Args:
          step: names the checkpoint; not negative.
          state: a pytree of jax.Array (typed PRNG keys too; global arrays, with several processes).
          data_state: of the data iterator: a dict that JSON keeps as it is.
          config: the resolved config, JSON-able.
          protected: another step, which isn't deleted for this one.

        Returns:
          False if this step is there already, and whole: it is left as it is. A damaged one is replaced.

        Raises:
          SaveError: the save before this one failed, or this one at once; calling again tries this one.
          ValueError: a step below 0 or above LAST_STEP, a leaf with no elements, or something that JSON can't hold.
        """
        if not 0 <= step <= LAST_STEP:
            raise ValueError(f'step={step}: a step is of 0 to {LAST_STEP:,}')
        leaves = leaves_by_path(state)
        empty = [name for name, leaf in leaves.items() if leaf.size == 0]
        if empty:
            raise ValueError(f'state: Orbax cannot save leaves without elements: {", ".join(empty)}')
        contents = make_contents(step, leaves, data_state, config)
        self.wait()
        if decided_by_first_process(lambda: self._make_room(step)):
            return False
        arguments = ocp.args.PyTreeSave(leaves, ocdbt_target_data_file_size=DATA_FILE_BYTES)
        wait_for_all = new_barrier()  # before what may fail in this process alone: all have to count alike
        digests = DigestsWhileWritten(self._writing(step), early_files(jax.process_index()))
        try:
            self._orbax.save(self._writing(step) / 'state', args=arguments)
        except Exception as error:
            digests.close()
            raise self._failed(step, error) from error
        self._pending = step, self._executor.submit(self._finish, step, contents, protected, digests, wait_for_all)
        return True

    def raise_if_failed(self) -> None:
        """As `wait`, but doesn't wait for a save that is under way."""
        if self._pending and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk; raises SaveError, naming the step, if it failed."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits for the last save, as `wait()` does, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            with contextlib.suppress(Exception):  # which `wait` has told already
                self._orbax.close()

    def __exit__(self, *_) -> None:
        self.close()

    def restore(
        self,
        abstract_state: Any,
        check_config: Callable[[pathlib.Path, dict[str, Any]], None] = lambda directory, config: None,
        *,
        at_most: int | None = None,
    ) -> Restored | None:
        """Restores the newest whole checkpoint, bit for bit; None where nothing was saved.

        Args:
          abstract_state: the state's pytree, with a jax.ShapeDtypeStruct (or jax.Array) for each jax.Array:
            its sharding, on any mesh, says where the leaf goes; without one, this process's first device.
          check_config: called with the step's directory and the config that was saved there, before any array is
            read; raises ValueError if that is another run's.
          at_most: the newest step to consider; None is the newest there is.

        Raises:
          ValueError: there are checkpoints but none is whole; the checkpoint is another run's, by its config
            or by its leaves (all that differs is named).
        """
        self.wait()
        step = self._newest_whole_step(at_most)
        if step is None:
            return None
        directory = self._directory / str(step)
        contents = read_contents(directory)
        check_config(directory, contents['config'])
        leaves = {stored_name(contents, name): leaf for name, leaf in leaves_by_path(abstract_state).items()}
        check_leaves(directory, contents, leaves)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), _read_arrays(directory, leaves, are_all=True))
        return Restored(step, state, contents['data_state']['json'])

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints that are newer than a step, of a past that the run has gone back on."""
        self.wait()
        if jax.process_index() == 0:
            for newer in all_steps(self._directory):
                if newer > step:
                    self._delete(newer)

    def _newest_whole_step(self, at_most: int | None) -> int | None:
        """As that of step_directories; each process reads its share of the files, and process 0 warns."""
        find = lambda directory: self._verified.find_damage(directory, find_damage_together, again=True)
        tell = warnings.warn if jax.process_index() == 0 else lambda _: None
        steps = listed_by_first_process(lambda: all_steps(self._directory, at_most))
        return first_whole_step(self._directory, steps, find, tell)

    def _writing(self, step: int) -> pathlib.Path:
        return self._directory / f'{step}{WRITING}'

    def _make_room(self, step: int) -> bool:
        """Removes what interrupted saves left; True if the step is there already, whole."""
        for leftover in self._directory.glob(f'*{WRITING}'):
            shutil.rmtree(leftover)
        return self._verified.find_damage(self._directory / str(step)) is None

    def _delete(self, step: int) -> None:
        self._verified.forget(self._directory / str(step))
        shutil.rmtree(self._directory / str(step))

    def _failed(self, step: int, error: Exception) -> SaveError:
        """Gives back the room that a failed save has taken; what to raise."""
        if jax.process_index() == 0:
            shutil.rmtree(self._writing(step), ignore_errors=True)
        reported = re.search(r"os_error_code='(\d+)'", str(error))  # by TensorStore, in many words
        number = int(reported[1]) if reported else getattr(error, 'errno', None)
        reason = os.strerror(number) if number else ' '.join(str(error).split())
        return SaveError(f'saving the checkpoint {self._directory / str(step)} failed (older ones are whole): {reason}')

    def _finish(
        self,
        step: int,
        contents: dict[str, Any],
        protected: int | None,
        digests: DigestsWhileWritten,
        wait_for_all: Callable[[], None],
    ) -> None:
        directory, writing = self._directory / str(step), self._writing(step)
        with contextlib.closing(digests):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                (writing / CONTENTS).write_text(json.dumps(contents, indent=1), encoding='utf-8')
            files = gather_digests(writing, digests, wait_for_all)
        if jax.process_index() != 0:
            return
        write_manifest(writing, {name: file.sha256 for name, file in files.items()})
        if directory.exists():  # damaged, or `save` would have left it alone
            self._delete(step)
        writing.rename(directory)
        self._verified.add(directory, {name: file.stat for name, file in files.items()})
        whole = 0
        for older in all_steps(self._directory):
            if whole == self._keep:
                if older != protected and not (self._keep_period and older % self._keep_period == 0):
                    self._delete(older)
            elif self._verified.find_damage(self._directory / str(older)) is None:
                whole += 1


def load_part(directory: str | os.PathLike, step: int, sha256: str, name: str, abstract_part: Any) -> Any:
    """One field of the state of this very checkpoint, bit for bit; the others aren't read. Else as `restore`.

    Raises:
      ValueError: the checkpoint isn't there any more, or is damaged.
    """
    directory = pathlib.Path(directory).absolute() / str(step)
    damage = find_damage_together(directory)
    if damage is None and sha256_of_manifest(directory) != sha256:
        damage = 'another one was saved in its place'
    if damage:
        raise ValueError(f'the checkpoint {directory} is not what it was: {damage}')
    contents = read_contents(directory)
    leaves = {stored_name(contents, f'{name}/{path}'): leaf for path, leaf in leaves_by_path(abstract_part).items()}
    return jax.tree.unflatten(jax.tree.structure(abstract_part), _read_arrays(directory, leaves, are_all=False))


def _read_arrays(
    directory: pathlib.Path, leaves: Mapping[str, jax.Array | jax.ShapeDtypeStruct], *, are_all: bool
) -> list[jax.Array]:
    """These leaves of a step, each where it says, or else on this process's first device; the others aren't read.

    Raises:
      ValueError: whatever Orbax raises of files that are what the manifest says, and yet not what Orbax writes.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
        for name, leaf in leaves.items()
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
    arguments = ocp.args.PyTreeRestore(item=targets, restore_args=restore_args, partial_restore=not are_all)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(directory / 'state', args=arguments)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f"{directory / 'state'} can't be restored: {type(error).__name__}: {reason}") from error
    if absent := [name for name in leaves if not isinstance(restored[name], jax.Array)]:
        raise ValueError(f"{directory / 'state'} can't be restored: it lacks {absent[0]}")
    return [restored[name] for name in leaves]
