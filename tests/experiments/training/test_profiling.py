"""A profile has the steps that were asked for and no others; a training with one ends with the same bits."""

import jax
import pytest
from parameter_trees import assert_identical_trees
from small_runs import change_steps, final_state, records, run_config, start, stub_steps

from experiments.training.profiling import Profile, Steps, parse_steps


def events_of(workdir, name):
    """The events of this name in the one trace of a workdir."""
    (path,) = (workdir / 'profile').glob('plugins/profile/*/*.xplane.pb')
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    return [event for plane in planes for line in plane.lines for event in line.events if event.name == name]


@pytest.mark.filterwarnings('ignore:builtin type .* has no __module__:DeprecationWarning')  # of jaxlib's statistics
def test_a_run_with_a_profile(tmp_path, monkeypatch, capsys):
    stub_steps(monkeypatch)
    start(tmp_path / 'without', run_config())
    start(tmp_path / 'with', run_config(), profile='5:7')
    steps = events_of(tmp_path / 'with', 'train')
    assert sorted(dict(event.stats)['step_num'] for event in steps) == [5, 6, 7]
    assert len(events_of(tmp_path / 'with', 'waiting for data')) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('profile ')]
    assert line == (
        f'profile   of steps 5 to 7; to see it: pip install xprof, xprof --logdir={tmp_path / "with" / "profile"}'
    )
    assert_identical_trees(final_state(tmp_path / 'with'), final_state(tmp_path / 'without'))
    assert records(tmp_path / 'with') == records(tmp_path / 'without')
    assert not (tmp_path / 'without' / 'profile').exists()


def test_a_profile_of_a_run_that_is_stopped(tmp_path, monkeypatch):
    """What was traced until then is there; the run that continues may trace later steps only."""
    stub_steps(monkeypatch)

    def stop_at_7(step, state, batch):
        if int(state.step) == 6:
            raise KeyboardInterrupt
        return step(state, batch)

    with monkeypatch.context() as context:
        change_steps(context, stop_at_7)
        with pytest.raises(SystemExit, match='interrupted'):
            start(tmp_path, run_config(), profile='6:12')
    assert len(events_of(tmp_path, 'train')) == 2
    before = records(tmp_path)
    with pytest.raises(SystemExit, match=r'--profile=4:6: .* from 5, where this run continues, to 12'):
        start(tmp_path, run_config(), profile='4:6')
    assert records(tmp_path) == before


@pytest.mark.parametrize('text, steps', [('1:1', (1, 1)), ('3:900', (3, 900)), ('900:900', (900, 900))])
def test_steps_of_a_run(text, steps):
    assert parse_steps(text, 0, 900) == steps


@pytest.mark.parametrize('text', ['', '5', '5:', ':5', '5-7', '5:7:9', 'a:b', '-1:5', '1.0:2', ' 5:7'])
def test_what_is_not_two_steps(text):
    with pytest.raises(ValueError, match=f'--profile={text}: allowed are two steps START:STOP'):
        parse_steps(text, 0, 900)


@pytest.mark.parametrize(
    'text, start, message',
    [
        ('0:5', 0, 'from 1 to 900'),
        ('7:5', 0, 'from 1 to 900'),
        ('890:901', 0, 'from 1 to 900'),
        ('40:50', 40, 'from 41, where this run continues, to 900'),
        ('50:45', 40, 'from 41, where this run continues, to 900'),
    ],
)
def test_steps_that_the_run_does_not_take(text, start, message):
    with pytest.raises(ValueError, match=f'--profile={text}: allowed are START <= STOP, steps {message}'):
        parse_steps(text, start, 900)


def test_without_the_flag_nothing_is_traced(tmp_path):
    with Profile(tmp_path / 'profile', parse_steps(None, 0, 900)) as profile:
        assert not (profile.awaits(1) or profile.begins_with(1) or profile.ends_with(1))
        profile.stop()
    assert not (tmp_path / 'profile').exists()


def test_a_trace_that_cannot_be_written(tmp_path, monkeypatch):
    """It is told, and the training goes on; there is no second try."""
    stop_trace = jax.profiler.stop_trace

    def fail():
        stop_trace()
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no space left on device')

    monkeypatch.setattr(jax.profiler, 'stop_trace', fail)
    shown = []
    with Profile(tmp_path, Steps(1, 1), shown.append) as profile:
        for _ in range(2):
            if profile.begins_with(1):
                profile.start()
            profile.stop(is_whole=True)
    assert shown == ['profile   of steps 1 to 1; could not be written: RESOURCE_EXHAUSTED: no space left on device']


def test_a_second_profile_of_the_same_steps(tmp_path):
    """After a rollback to before them."""
    shown = []
    with Profile(tmp_path, Steps(2, 3), shown.append) as profile:
        for step in (1, 2, 1, 2, 3):
            if step == 1:
                profile.stop()
            if profile.begins_with(step):
                profile.start()
            if profile.ends_with(step):
                profile.stop(is_whole=True)
    assert [text.partition(';')[0] for text in shown] == [
        'profile   from step 2, cut short',
        'profile   of steps 2 to 3',
    ]


def test_other_processes_wait_for_the_same_steps(tmp_path):
    """All decide alike when to wait, so that a step that has diverged is seen by all at once."""
    with Profile(tmp_path / 'profile', Steps(2, 3), traces=False) as profile:
        assert [profile.awaits(step) for step in (1, 2, 3, 4)] == [True, False, True, False]
        assert not any(profile.begins_with(step) or profile.ends_with(step) for step in (1, 2, 3, 4))
    assert not (tmp_path / 'profile').exists()
