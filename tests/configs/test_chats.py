"""Fine-tuning on chats: the model of a run, and none of how that run's text was read."""

import pytest
from gelu_family import GELU
from ml_collections import ConfigDict
from small_experiments import make_experiment, small_config

from configs import chats, common, from_run
from experiments import workdirs
from gaussq_jax import models


def test_the_model_is_a_run_s_and_the_text_is_not(tmp_path):
    of_run = small_config('smoke,method=bf16', train_split='train[:9%]', invalid_text='skip', text_feature='content')
    workdirs.write_config(tmp_path, of_run)
    config = chats.get_config(f'run={tmp_path},method=gaussws')
    assert config.model == of_run.model and config.init_from == str(tmp_path)
    defaults = common.base_config(common.parse('', **common.ARGUMENTS))
    differing = {name for name in from_run.TEXT if config[name] != defaults[name]}
    assert differing == {'dataset', 'held_out', 'text_feature'}
    assert (config.dataset, config.text_feature, config.held_out) == ('chats.jsonl', 'messages', 0.05)
    assert config.method == 'gaussws' and config.name == f'{tmp_path.name}-gaussws-chats'
    assert config.optimizer.learning_rate == 2e-5
    make_experiment(config)


@pytest.mark.parametrize('changes', [dict(text_feature='prompt+completion'), dict(packing='segmented')])
def test_a_family_without_segments_is_refused_before_anything_is_read(monkeypatch, changes):
    monkeypatch.setitem(models.FAMILIES, 'gelu', GELU)
    config = small_config('smoke,method=bf16', **changes)
    config.model = ConfigDict(dict(family='gelu', num_layers=2, hidden_size=32, wide_size=48))
    with pytest.raises(ValueError, match=r"config\.model\.family='gelu': its model takes no segment_ids"):
        make_experiment(config)
