"""Every notebook in colabs/ runs from top to bottom without an error or a warning, and is saved with its outputs."""

import pathlib
import sys

import nbformat
import pytest
from compilation import xla_flags
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))


def run(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> nbformat.NotebookNode:
    """Executes the notebook in `folder`, with the interpreter that runs the tests, whatever kernels are installed."""
    own_interpreter = KernelSpecManager(kernel_dirs=[])  # looks for no kernel on the machine: ipykernel's own is left
    manager = AsyncKernelManager(kernel_name='python3', kernel_spec_manager=own_interpreter)
    client = NotebookClient(notebook, km=manager, timeout=300, resources={'metadata': {'path': str(folder)}})
    return client.execute(cleanup_kc=True)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get('outputs', ())]


def written_to_stderr(notebook: nbformat.NotebookNode) -> str:
    return ''.join(output.text for output in outputs(notebook) if output.get('name') == 'stderr')


@pytest.fixture(autouse=True)
def users_environment(monkeypatch):
    """What a user has: the repository importable, and the device of the machine; and memory as programs have it."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('XLA_FLAGS', xla_flags(devices=1))
    monkeypatch.delenv('MPLBACKEND', raising=False)
    monkeypatch.setenv('MALLOC_ARENA_MAX', '1')  # these four are `host_memory.SETTINGS`
    monkeypatch.setenv('MALLOC_MMAP_MAX_', '0')
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', str(2**31 - 1))
    monkeypatch.setenv('MALLOC_TOP_PAD_', str(64 * 2**20))


def test_there_are_notebooks():
    """An empty list of parameters would run nothing below."""
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs_without_error_or_warning(file, tmp_path):
    """A cell that raises fails in `run`; a warning, ours or of our use of a library, goes to stderr."""
    assert not written_to_stderr(run(nbformat.read(file, as_version=4), tmp_path))


@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_saved_as_it_ran(file):
    """A reader on a web page sees pictures, from one clean run, and nothing about the machine that made them."""
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == 'code']
    assert counts == list(range(1, len(counts) + 1))
    assert any('image/png' in output.get('data', ()) for output in outputs(notebook))
    assert not written_to_stderr(notebook)
    assert not any(output.output_type == 'error' for output in outputs(notebook))
    assert file.stat().st_size < 1_500_000
    assert set(notebook.metadata) <= {'kernelspec', 'language_info'}
    assert notebook.metadata.kernelspec.name == 'python3'


def test_errors_and_warnings_are_noticed_and_the_interpreter_is_ours(tmp_path):
    """What the tests above rely on; a kernel of another Python on the machine must not run the notebooks."""
    cells = ['import sys, warnings\nprint(sys.executable)', "warnings.warn('careful')", '1 / 0']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError, match='ZeroDivisionError'):
        run(notebook, tmp_path)
    assert outputs(notebook)[0].text.strip() == sys.executable
    assert 'careful' in written_to_stderr(notebook)
