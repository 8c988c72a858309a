"""The report on a run: one file that needs no other, with all its parts, of every method, at any time."""

import base64
import html
import html.parser
import json
import pathlib
import re
import shutil
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import pytest
from programs import import_program, run_program
from small_experiments import small_config
from small_records import config_of
from small_runs import STEPS, start

from experiments import methods, workdirs
from experiments.reports import run_report
from experiments.training import generation

report = import_program('report')

BEFORE = pathlib.Path(__file__).parents[1] / 'data' / 'version_0_1' / 'run'
PARTS = ('What was trained', 'How it was started', 'Loss, learning rate and speed', 'Validation', 'Bitwidths')
PARTS += ('Formats and sizes', 'A sample of text', 'Summary')
LEARN = [name for name, method in methods.METHODS.items() if method.learns_bitwidths]


@pytest.fixture(autouse=True)
def quick_text(monkeypatch):
    monkeypatch.setattr(run_report, 'NUM_TOKENS', 8)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The workdirs of finished runs, each trained when it is asked for, once."""
    found = {}

    def run_of(method):
        if method not in found:
            found[method] = tmp_path_factory.mktemp('runs') / method
            start(found[method], small_config(f'smoke,method={method}', **STEPS))
        return found[method]

    return run_of


def page_of(workdir, **given):
    """The page that the program writes, checked to be one, and to need no other file."""
    output = workdir.parent / f'{workdir.name}.html'
    run_program(report, WORKDIR=str(workdir), OUTPUT=str(output), **{'PROMPT': 'def ', 'TEXT': True, **given})
    page = output.read_text()
    Balanced().feed(page)
    for image in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page):
        xml.etree.ElementTree.fromstring(base64.b64decode(image))
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script|<link', page)
    return page


class Balanced(html.parser.HTMLParser):
    """Each element that begins ends, in its turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def feed(self, page):
        super().feed(page)
        self.close()
        assert not self.open


def headings(page):
    return re.findall('<h2>(.*?)</h2>', page)


def images(page):
    return re.findall('<img alt="([^"]+)"', page)


@pytest.mark.parametrize('method', methods.METHODS)
def test_a_run_of_each_method(runs, method):
    """All its parts; of bitwidths where some are learned, of rounding where weights are rounded."""
    page = page_of(runs(method))
    assert headings(page) == list(PARTS)
    assert f'<h1>{method}</h1>' in page and 'This run is complete: 12 steps.' in page
    assert 'python -m experiments.train' in page and 'on 1 x cpu:' in page
    learned = method in LEARN
    assert ('learns no bitwidths' in page) == (not learned)
    assert ('bitwidths of blocks, and over steps' in images(page)) == learned
    assert ('<td>learned</td>' in page) == ('% of the weights, with bitwidths of' in page) == learned
    assert ('gap by noise' in page) == learned
    assert ('bits, underflow, saturation and noise of each matrix' in images(page)) == (method != 'bf16')
    assert '<td>float4_e2m1fn</td><td>4.' in page and '<td>bfloat16</td><td>16.000</td>' in page
    summary = json.loads((runs(method) / 'summary.json').read_text())
    assert f'<td>{summary["validation/loss"]:.6g}</td>' in page  # of the summary
    assert f'<td>{summary["validation/loss"]:.4f}</td>' in page  # of the table of evaluations
    assert '<td>total_steps</td><td>12</td><td>1000</td>' in page
    assert '&quot;total_steps&quot;: 12' in page  # of the whole config
    assert f'<td>{summary["parameters"]:,}</td>' in page


def test_how_bitwidths_are_learned_is_told(runs, tmp_path):
    """By the fields that their optimizer uses, and no others."""
    of_method = lambda page: re.search('<td>method</td><td>(.*?)</td>', page)[1]
    shutil.copytree(runs('gaussws'), tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    adamw = dict(learning_rate=1e-3, weight_decay=2.0, penalty=0.0)
    for optimizer, used in (('descent', dict(start=0.7, price=0.04, fall=0.15)), ('adamw', dict(start=0.0, **adamw))):
        unused = dict.fromkeys((*adamw, 'start', 'price', 'fall'), 0.0)
        config['quantization'].update(unused | used | {'optimizer': optimizer})
        (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
        told = of_method(page_of(tmp_path / 'run', TEXT=False))
        words = ', '.join(f'{name} {value}' for name, value in used.items())
        assert told.endswith(f', optimizer {optimizer}, {words}')
    assert 'price' not in of_method(page_of(runs('qat'), TEXT=False))


@pytest.mark.parametrize(
    ('argument', 'told'),
    [
        ('method=bf16', 'in bfloat16.'),
        ('method=gaussws', 'in bfloat16, without noise.'),
        ('method=diffq,format=e4m3', 'rounded to e4m3, without noise.'),
        ('method=qat,format=e2m1', 'rounded to e2m1.'),
        ('method=qat,format=e2m1,start_step=2', 'rounded to e2m1, from step 3 on.'),
        ('method=qat,rounding=stochastic', 'rounded to e4m3; rounding is stochastic in training steps only, and here'),
        ('method=fqt', 'in bfloat16, with operands of the matmuls rounded to e4m3.'),
        ('method=fqt,recipe=mxfp8', 'in bfloat16, with operands of the matmuls quantized by the recipe mxfp8.'),
        (
            'method=fqt,recipe=nvfp4',
            'in bfloat16, with operands of the matmuls quantized by the recipe nvfp4; rounding',
        ),
        (
            'method=diffq,format=e4m3,recipe=mxfp8',
            'rounded to e4m3, with operands of the matmuls quantized by the recipe mxfp8, without noise.',
        ),
    ],
)
def test_of_which_weights_validation_losses_are(argument, told):
    text = run_report.of_validation(config_of(argument), has_noise=False)
    assert text.startswith(f'These are losses of the weights {told}') and 'experiments.evaluate --weights=FILE' in text


def test_losses_of_each_source():
    line = {'step': 4, 'validation/loss': 2.0, 'validation/web/loss': 1.75, 'validation/code/loss': 2.5}
    record = run_report.RunRecord('mixed', [line], config_of('method=bf16'))
    _, _, shown = run_report.validation_section(record)
    assert '<th>loss of code</th><th>loss of web</th>' in shown
    assert '<td>2.5000</td><td>1.7500</td>' in shown


def test_the_same_run_gives_the_same_page(runs):
    assert page_of(runs('bf16')) == page_of(runs('bf16'))


def test_a_run_of_version_0_1(tmp_path):
    """What it did not write is left out, and said."""
    shutil.copytree(BEFORE, tmp_path / 'run')
    page = page_of(tmp_path / 'run')
    assert headings(page) == list(PARTS)
    assert 'This run is not complete: it has logged step 10 of 20; the newest checkpoint is of step 10.' in page
    assert 'The command is not recorded' in page and '<td>not recorded</td>' in page
    assert 'There are no bitwidths of its matrices over steps: its version did not write them.' in page
    assert 'A run writes its summary at its end.' in page
    assert 'bitwidths by layer and matrix' in images(page)  # of the checkpoint


def test_a_run_that_was_resumed(runs, tmp_path):
    """Each of its starts."""
    shutil.copytree(runs('bf16'), tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
    start(tmp_path / 'run', small_config('smoke,method=bf16', **STEPS))
    page = page_of(tmp_path / 'run', TEXT=False)
    assert re.findall('<p>(from .*?):</p>', page) == ['from the beginning, on 1 x cpu', 'from step 8, on 1 x cpu']
    assert 'How it began is not recorded' not in page
    starts = json.loads((tmp_path / 'run' / 'command.json').read_text())['starts']
    (tmp_path / 'run' / 'command.json').write_text(json.dumps({'starts': starts[1:]}))
    assert 'How it began is not recorded' in page_of(tmp_path / 'run', TEXT=False)
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config | {'branch_from': 'runs/stem'}))
    page = page_of(tmp_path / 'run', TEXT=False)
    assert 'It branched off runs/stem: the steps before are of that run.' in page
    assert 'How it began is not recorded' not in page


def test_a_damaged_command_stops_no_run(runs, tmp_path, capsys):
    """It continues, and says that it has put the file aside."""
    shutil.copytree(runs('bf16'), tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
    (tmp_path / 'run' / 'command.json').write_text('{')
    start(tmp_path / 'run', small_config('smoke,method=bf16', **STEPS))
    assert 'command.json is now command.json.damaged' in capsys.readouterr().out
    assert re.findall('<p>(from .*?):</p>', page_of(tmp_path / 'run', TEXT=False)) == ['from step 8, on 1 x cpu']


def test_a_run_that_has_just_begun(runs, tmp_path):
    """Without a checkpoint, and then without a metric, as an imported model has none."""
    shutil.copytree(runs('gaussws'), tmp_path / 'run', ignore=shutil.ignore_patterns('checkpoints', 'summary.json'))
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    (tmp_path / 'run' / 'metrics.jsonl').write_text(lines[0] + '\n')
    page = page_of(tmp_path / 'run')
    assert 'it has logged step 3 of 12; there is no checkpoint.' in page
    assert 'There is no checkpoint whose weights could be stored.' in page and headings(page) == list(PARTS)
    (tmp_path / 'run' / 'metrics.jsonl').unlink()
    page = page_of(tmp_path / 'run')
    assert 'No loss has been logged yet.' in page and 'Nothing has been evaluated yet.' in page
    assert headings(page) == list(PARTS) and not images(page)


def test_what_a_run_says_is_text(runs, tmp_path, monkeypatch):
    """Its name, its config, its command, the prompt, what it writes and why it ended: none of it is HTML."""
    workdir = tmp_path / '<b>&'
    shutil.copytree(runs('bf16'), workdir)
    config = json.loads((workdir / 'config.json').read_text())
    (workdir / 'config.json').write_text(json.dumps(config | {'train_split': '<b>split'}))
    (workdir / 'diverged.txt').write_text('<b>why\n')
    starts = {'starts': [{'from_step': 0, 'arguments': ['--workdir=<b>'], 'devices': '<b>8'}]}
    (workdir / 'command.json').write_text(json.dumps(starts))
    monkeypatch.setattr(generation, 'write_text', lambda *_, **how: '<b>written\x1b')
    page = page_of(workdir, PROMPT='<b>prompt')
    assert '<b>' not in page and '\x1b' not in page
    for text in ('&', 'split', 'why', '8', 'prompt', 'written'):
        assert f'&lt;b&gt;{"&amp;" if text == "&" else text}' in page
    assert '--workdir=&lt;b&gt;' in page
    assert 'This run has diverged, and ended: &lt;b&gt;why.' in page


def test_rollbacks(runs, tmp_path):
    shutil.copytree(runs('bf16'), tmp_path / 'run')
    with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as file:
        line = {'step': 8, 'rollback/from_step': 11, 'rollback/loss': 'NaN', 'rollback/skipped_batches': 3}
        file.write(json.dumps(line) + '\n')
    page = page_of(tmp_path / 'run', TEXT=False)
    assert '<td>8</td><td>11</td><td>nan</td><td>3</td>' in page
    assert headings(page)[-2:] == ['Rollbacks and divergence', 'Summary']  # and no text


@pytest.fixture
def broken(runs, tmp_path):
    """A copy of a finished run of gaussws."""
    return pathlib.Path(shutil.copytree(runs('gaussws'), tmp_path / 'run'))


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def warnings(page):
    return [html.unescape(text) for text in re.findall('<p class="warning">(.*?)</p>', page)]


@pytest.mark.parametrize('what', ['params', 'transform_state'])
def test_what_is_not_a_number_leaves_the_rest(broken, monkeypatch, what):
    """A part that can't be made of it says why, and all others are there."""
    run = workdirs.open_run(broken)
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, getattr(run.state, what))
    monkeypatch.setattr(workdirs, 'open_run', lambda _: run._replace(state=run.state._replace(**{what: spoilt})))
    page = page_of(broken)
    assert headings(page) == list(PARTS)
    told = warnings(page)
    assert len(told) == 2 and all('NaN' in text for text in told)
    assert sum(text.startswith("This part can't be shown: ") for text in told) == (2 if what == 'params' else 1)
    assert ('What rounding does to the weights' in page) == (what == 'params')
    assert ('float4_e2m1fn' in page) == (what == 'params')


def test_a_fault_of_the_measurement_is_not_hidden(broken, monkeypatch):
    """Only a method that rounds no weights has no part on that."""

    def fail(config):
        raise ValueError('no such scale')

    monkeypatch.setattr(run_report.quantization, 'choose_quantizer', fail)
    assert warnings(page_of(broken, TEXT=False)) == ["This part can't be shown: no such scale."]


@pytest.mark.parametrize('metric', ['validation/loss', 'train/loss', 'bits/mean'])
def test_a_list_where_a_number_should_be(broken, metric):
    with open(broken / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps({'step': 12, metric: [1.0]}) + '\n')
    page = page_of(broken, TEXT=False)
    assert f'{metric!r} must be a number, not a list' in warnings(page)[0]
    assert headings(page) == [part for part in PARTS if part != 'A sample of text']


@pytest.mark.parametrize('damaged', ['{"starts": [', '[]', '{"starts": [{}]}'])
def test_a_damaged_command(broken, damaged):
    (broken / 'command.json').write_text(damaged)
    page = page_of(broken, TEXT=False)
    assert warnings(page)[0].startswith("The command can't be read: ") and '<td>not recorded</td>' in page


@pytest.mark.parametrize('missing', ['total_steps', 'model', 'model.family', 'optimizer.learning_rate', 'quantization'])
def test_a_config_that_lacks_something_is_told(broken, missing):
    config = json.loads((broken / 'config.json').read_text())
    *groups, name = missing.split('.')
    del (config[groups[0]] if groups else config)[name]
    (broken / 'config.json').write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=rf"^error: .*config\.json.* lacks '{name}'$"):
        page_of(broken, TEXT=False)


def test_no_gap_of_losses_that_are_not_finite(broken):
    with open(broken / 'metrics.jsonl', 'a') as file:
        for loss, noisy in ((1.0, 'Infinity'), ('Infinity', 1.0), ('NaN', 'NaN')):
            line = {'step': 12, 'validation/loss': loss, 'validation/loss_with_noise': noisy}
            file.write(json.dumps(line) + '\n')
    page = page_of(broken, TEXT=False)
    for loss, noisy in (('1.0000', 'inf'), ('inf', '1.0000'), ('nan', 'nan')):
        assert f'<td>{loss}</td><td></td><td>{noisy}</td><td></td>' in page


def test_evaluations_that_are_left_out_are_counted(broken):
    assert ' evaluations. ' not in page_of(broken, TEXT=False)
    with open(broken / 'metrics.jsonl', 'a') as file:
        for _ in range(20):
            file.write(json.dumps({'step': 12, 'validation/loss': 1.0}) + '\n')
    assert '12 of 22 evaluations. These are losses' in page_of(broken, TEXT=False)


def test_the_state_of_a_run(broken):
    """Complete is what has all steps of its config, whether or not its checkpoints are kept."""
    page = page_of(broken, TEXT=False)
    assert 'Its config, where it differs from the defaults of configs/common.py' in page
    shutil.rmtree(broken / 'checkpoints')
    page = page_of(broken)
    assert 'This run is complete: 12 steps.' in page and 'There is no checkpoint that could write.' in page
    change(broken / 'config.json', total_steps=24)
    told = 'This run is not complete: it has logged step 12 of 24; there is no checkpoint.'
    assert warnings(page_of(broken)) == [told]
    (broken / 'metrics.jsonl').unlink()
    assert warnings(page_of(broken)) == [told.replace('step 12', 'no step')]


def test_a_sample_of_text_is_as_long_as_it_may_cost(runs, monkeypatch):
    """Of a large model it is left out, and the page says how to get it."""
    workdir, found = runs('bf16'), []
    monkeypatch.setattr(generation, 'write_text', lambda *_, num_tokens, **how: found.append(num_tokens) or 'written')
    run = workdirs.open_run(workdir)
    of_token = 2 * run.experiment.num_params
    for most, tokens in ((100 * of_token, 8), (3.5 * of_token, 3)):
        monkeypatch.setattr(run_report, 'MOST_FLOP', most)
        assert f'{tokens} tokens at the most, and' in page_of(workdir)
    monkeypatch.setattr(run_report, 'MOST_FLOP', of_token - 1)
    page = page_of(workdir)
    assert f'python -m experiments.generate --workdir={workdir} ' in page and 'It is left out' in page
    assert found == [8, 3]
    monkeypatch.setattr(run_report.key_value_cache, 'keeps_cache', lambda model: False)
    monkeypatch.setattr(run_report, 'MOST_FLOP', 5 * of_token * run.experiment.config.sequence_length)
    assert '5 tokens at the most, and' in page_of(workdir)


def test_it_goes_to_the_workdir_if_not_told_otherwise(runs, tmp_path, capsys):
    shutil.copytree(runs('bf16'), tmp_path / 'run')
    run_program(report, WORKDIR=str(tmp_path / 'run'), PROMPT='', TEXT=False)
    assert capsys.readouterr().out == f'{tmp_path}/run/report.html\n' and (tmp_path / 'run' / 'report.html').is_file()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'WORKDIR': 'gone'}, '--workdir=gone: there is no such folder'),
        ({'WORKDIR': 'gone', 'OUTPUT': 'missing/report.html'}, '--workdir=gone: there is no such folder'),
        ({}, 'empty is no directory of a run: it has no config.json'),
        ({'OUTPUT': 'missing/report.html'}, '--output=missing/report.html: there is no folder missing'),
        ({'PROMPT': '\udce9'}, 'is no UTF-8'),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, given, message):
    """One line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_program(report, **{'WORKDIR': 'empty', 'PROMPT': 'def ', 'TEXT': True, **given})
    assert not list(tmp_path.rglob('*.html'))
