"""The program that draws runs: from their directories to one picture, or one error."""

import json

import pytest
from programs import import_program
from small_records import bits, record, training

from configs import stored as stored_configs

plot = import_program('plot')


def write(folder, run):
    """The files of a record, in a directory of its name."""
    (folder / run.name).mkdir()
    (folder / run.name / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in run.lines))
    (folder / run.name / 'config.json').write_text(json.dumps(stored_configs.write(run.config)))
    return str(folder / run.name)


@pytest.fixture
def workdirs(tmp_path):
    runs = [record('b', lines=training(3)), record('g', 'method=gaussws', lines=training(3, 1.1) + bits(3))]
    return {run.name: write(tmp_path, run) for run in runs}


def run_plot(monkeypatch, output, *names, bits=False, panels=()):
    flag = lambda value: type('Flag', (), {'value': value})
    monkeypatch.setattr(plot, 'OUTPUT', flag(str(output)))
    monkeypatch.setattr(plot, 'BITS', flag(bits))
    monkeypatch.setattr(plot, 'PANELS', flag(list(panels)))
    plot.main(['plot', *names])


@pytest.mark.parametrize('suffix', ['.png', '.svg', '.pdf'])
def test_pictures_of_runs(tmp_path, monkeypatch, capsys, workdirs, suffix):
    output = tmp_path / f'picture{suffix}'
    run_plot(monkeypatch, output, workdirs['b'], workdirs['g'])
    assert output.stat().st_size > 1000 and capsys.readouterr().out == f'{output}\n'
    whole = output.read_bytes()
    run_plot(monkeypatch, output, workdirs['g'], bits=True)
    assert output.stat().st_size > 1000 and output.read_bytes() != whole


@pytest.mark.parametrize(
    ('names', 'how', 'message'),
    [
        ([], {}, 'name the workdirs to draw'),
        (['b', 'b'], {}, 'must differ: they name the curves'),
        (['missing'], {}, "No such file or directory: .*missing/metrics.jsonl'"),
        (['g'], {'bits': True, 'panels': ['loss']}, '--panels has no meaning with --bits'),
        (['b'], {'panels': ['gap']}, "of 'gap' there is nothing; there is loss"),
        (['g', 'b'], {'bits': True}, 'b learned no bitwidths: its method is bf16'),
        (['b'], {'output': 'picture.gif'}, r'--output=picture.gif must end in \.png, \.svg or \.pdf'),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, capsys, workdirs, names, how, message):
    """One line, and no picture."""
    monkeypatch.chdir(tmp_path)
    how = {'output': 'picture.png', **how}
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_plot(monkeypatch, how.pop('output'), *(workdirs.get(name, name) for name in names), **how)
    assert not list(tmp_path.glob('picture*')) and not capsys.readouterr().out
