"""Laws by name and in files of one's own: the one of the documentation does all that others do; others are refused."""

import json
import pathlib
import re

import numpy as np
import pytest
from law_program import lines_of, run, write

from experiments.laws import law_choices
from gaussq_jax.scaling_laws import ChinchillaLaw

PAGE = pathlib.Path(__file__).parents[3] / 'docs/scaling_laws.md'
TRUE = dict(n=482.0, alpha=0.348, d=2085.4, beta=0.366, epsilon=1.817, worth=15.0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The law of the page, and runs that lie on it."""
    folder = tmp_path_factory.mktemp('own')
    (code,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    (folder / 'repeating_law.py').write_text(code)
    law = law_choices.find(f'{folder}/repeating_law.py:RepeatingLaw').family(**TRUE)
    rng, rows = np.random.default_rng(0), []
    for N in (1e8, 3e8, 1e9, 3e9):
        for D in (1e9, 1e10, 1e11):
            for epochs in (1, 4, 16, 64):
                loss = float(law.loss(N, D, epochs)) + rng.normal(0, 0.002)
                rows.append({'N': N, 'D': D, 'epochs': epochs, 'loss': loss})
    write(folder / 'runs.csv', rows)
    return folder


def test_a_law_of_ones_own_is_taken_by_every_command(folder, monkeypatch):
    monkeypatch.chdir(folder)
    own = '--law_name=repeating_law.py:RepeatingLaw'
    data = json.loads(run('fit', 'runs.csv', own, '--output=law.json', '--json'))
    for name, value in TRUE.items():
        low, high = data['constants'][name]['interval']
        assert low / 1.2 < value < high * 1.2, name
    asked = ('--model=7B', '--input=epochs=1,4,40')
    stored = json.loads(run('predict', '--law=law.json', own, *asked, '--tokens=100B', '--json'))['rows']
    assert [row['epochs'] for row in stored] == [1, 4, 40]
    assert stored[0]['loss'] < stored[1]['loss'] < stored[2]['loss']
    fitted = json.loads(run('predict', '--runs=runs.csv', own, *asked, '--tokens=100B', '--json'))['rows']
    assert fitted == stored
    assert json.loads(run('critical', '--law=law.json', own, *asked, '--json'))['rows'][0]['critical tokens'] is None
    plan = run('plan', '--law=law.json', own, '--compute=1e22', '--input=epochs=4', '--hardware=h100')
    assert ('method=bf16' in plan and 'of h100' in plan) or ' h100 at ' in plan
    table = lines_of(run('compare', 'runs.csv', f'--laws={own.partition("=")[2]},chinchilla', '--held_out=folds'))
    assert float(table['Repeating'][-1][:-1]) < 0.3 < 2 < float(table['Chinchilla'][-1][:-1])
    assert run('report', 'runs.csv', own, '--held_out=none') == 'written to runs.html\n'


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (
            'predict --law=law.json --model=7B --tokens=1T',
            r"law='RepeatingLaw' is none of .* takes --law_name=FILE\.py",
        ),
        ('predict --law=law.json OWN --model=7B --tokens=1T', r'the law RepeatingLaw needs --input=epochs='),
        ('predict --law=law.json OWN --model=7B --tokens=1T --input=epoch=1', r'takes by it epochs'),
        ('predict --law=law.json OWN --model=7B --tokens=1T --input=epochs', r"--input=epochs='' must be a number"),
        ('predict --law=law.json OWN --model=7B --tokens=1T --input=epochs=0', 'must be a number above 0'),
        ('predict --law=law.json OWN --model=7B --tokens=1T --input=epochs=1 --bits=4', '--bits has no meaning'),
        ('predict --model=7B --tokens=1T --input=epochs=1', r'the law capybara takes by it nothing'),
        ('predict --law_name=chinchilla --model=7B --tokens=1T', '--law_name is of a fit to --runs, which is not'),
        (
            'predict --law=chinchila --model=7B --tokens=1T',
            r"--law='chinchila' must be a file .*, or one of capybara, ",
        ),
        ('fit runs.csv --law_name=chinchila', r"--law_name='chinchila' must be one of capybara, .* my_laws\.py:MyLaw"),
        ('fit runs.csv --law_name=none.py:Law', r'none\.py'),
        ('fit runs.csv --law_name=repeating_law.py:Law', 'there is no dataclass Law in it that is a ScalingLaw'),
        ('fit runs.csv --law_name=repeating_law.py:np', 'there is no dataclass np in it that is a ScalingLaw'),
        ('fit runs.csv --law_name=broken.py:Law', r'broken\.py fails: NameError: '),
        ('fit runs.csv --law_name=half.py:Half', r"it needs _loss, and COLUMNS, of which the first are 'N' and 'D'"),
        ('fit runs.csv --law_name=startless.py:Law', r"Law\.STARTS has no 'worth', where a search"),
        ('fit runs.csv --law_name=sideways.py:Law', 'its _loss must take N, D, epochs, which are its COLUMNS'),
        ('fit runs.csv --law_name=twice.py:Law', "its COLUMNS must be different, and 'loss' none of them"),
        ('predict --law=law.json --law_name=startless.py:Law --model=7B --tokens=1T', "law='RepeatingLaw' is none of"),
        ('fit runs.csv --law_name=outer --fixed=gamma=1,gamma=2', '--fixed has gamma twice: 1.0 and 2'),
        ('plan --law=law.json OWN --compute=1e22 --input=epochs=4,2', '--input=epochs=4,2: plan takes one'),
        ('worth --law=law.json OWN --model=7B --tokens=1T --input=epochs=1', 'knows no precision'),
        ('fit runs.csv OWN --output=nowhere/law.json', '--output=nowhere/law.json: there is no folder nowhere'),
        ('report runs.csv OWN --output=nowhere/a.html', '--output=nowhere/a.html: there is no folder nowhere'),
        ('compare runs.csv --laws=chinchilla,kapln', r"--laws='kapln' must be one of"),
    ],
)
def test_what_is_wrong_with_it_is_one_error(folder, monkeypatch, arguments, error):
    monkeypatch.chdir(folder)
    own = '--law_name=repeating_law.py:RepeatingLaw'
    if not pathlib.Path('law.json').exists():
        run('fit', 'runs.csv', own, '--output=law.json')
    code = pathlib.Path('repeating_law.py').read_text()
    pathlib.Path('broken.py').write_text('nothing\n')
    pathlib.Path('half.py').write_text(
        'import dataclasses, gaussq_jax as gq\n@dataclasses.dataclass(frozen=True)\n'
        'class Half(gq.scaling_laws.PowerLaw):\n    COLUMNS = ("N", "D")\n'
    )
    pathlib.Path('startless.py').write_text(
        code.replace("STARTS = {'worth'", "OTHER = {'worth'").replace('Repeating', '')
    )
    pathlib.Path('sideways.py').write_text(code.replace('D, epochs)', 'D)').replace('Repeating', ''))
    pathlib.Path('twice.py').write_text(code.replace("'epochs')", "'D')").replace('Repeating', ''))
    with pytest.raises(SystemExit, match=f'^error: .*({error})') as exit_:
        run(*(own if word == 'OWN' else word for word in arguments.split()))
    assert '\n' not in str(exit_.value)


def test_fixed_constants_are_numbers_or_names():
    assert law_choices.parse_fixed(['gamma=1', ' beta = alpha ']) == {'gamma': 1.0, 'beta': 'alpha'}
    recipes = {'eff_N[k=v [x]]': 0.5, 'eff_N[a]': 'eff_D[k=v]'}
    assert law_choices.parse_fixed(['eff_N[k=v [x]]=0.5', 'eff_N[a]=eff_D[k=v]']) == recipes
    for text in ('gamma', '=1', 'gamma='):
        with pytest.raises(ValueError, match=r'^--fixed=.* must be a constant with a number or the name of another'):
            law_choices.parse_fixed([text])


def test_names_are_those_of_the_page():
    """Every law has a row there, and a source if it is not ours."""
    rows = re.findall(r'^\| (`.*?) \|', PAGE.read_text(encoding='utf-8'), re.MULTILINE)
    names = re.findall(r'`([a-z-]+)`', ' '.join(rows[: len(law_choices.LAWS)]))
    assert set(law_choices.LAWS) <= set(names)
    assert law_choices.LAWS['chinchilla-tied'] == law_choices.LawChoice(ChinchillaLaw, {'beta': 'alpha'})
