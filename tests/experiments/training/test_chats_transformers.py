"""Chats in packed rows teach what transformers' models learn of each alone, with labels as TRL makes them."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_chats import CHATS, TEMPLATES, write_tokenizer

from experiments.data.chats import ChatEncoder
from experiments.data.packing import PackedRows
from experiments.data.token_data import TokenData
from experiments.data.tokenizers import load_tokenizer
from experiments.training.steps import token_losses
from gaussq_jax import models

SIZES = dict(vocab_size=272, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
IGNORED = -100


def labels_of_trl(tokenizer, chat):
    """The tokens, and of those that an answer adds to the conversation before it the labels; the others are ignored."""
    ids = tokenizer.apply_chat_template(chat)['input_ids']
    labels = np.full(len(ids), IGNORED)
    for index, message in enumerate(chat):
        if message['role'] == 'assistant':
            begin = len(tokenizer.apply_chat_template(chat[:index], add_generation_prompt=True)['input_ids'])
            end = len(tokenizer.apply_chat_template(chat[: index + 1])['input_ids'])
            labels[begin:end] = ids[begin:end]
    return ids, labels


@pytest.mark.parametrize('template', ['chatml', 'llama-3'])
@pytest.mark.parametrize('family', ['Llama', 'GPT2'])
def test_the_loss_of_a_batch_is_that_of_transformers(tmp_path, family, template):
    torch = pytest.importorskip('torch', reason='the models of transformers are in it')
    transformers = pytest.importorskip('transformers', reason='is the reference')
    torch.manual_seed(0)
    theirs = getattr(transformers, f'{family}Config')(**SIZES, initializer_range=0.3, max_position_embeddings=512)
    theirs = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation='eager').eval()
    model, params = models.from_huggingface(theirs.state_dict(), theirs.config.to_dict())

    source = TEMPLATES[template].replace('strftime_now is defined', 'false')
    encoder = ChatEncoder(load_tokenizer(str(write_tokenizer(tmp_path, source)), is_given=True))
    ids, masks, _ = zip(*(encoder.encode((chat,)) for chat in CHATS))
    data = TokenData(
        (np.concatenate(ids),),
        *(1, len(ids), '', 0),
        masks=(np.concatenate(masks),),
        document_lengths=np.array([len(one) for one in ids]),
    )
    rows = PackedRows(data, 300)
    assert len(rows) < len(CHATS)
    batch = rows.read(np.arange(len(rows)))
    losses = token_losses(model.clone(dtype=jnp.float32), params, {name: jnp.asarray(a) for name, a in batch.items()})

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    total = count = 0
    for chat in CHATS:
        tokens, labels = labels_of_trl(tokenizer, chat)
        with torch.no_grad():
            loss = theirs(torch.tensor([tokens]), labels=torch.tensor([labels.tolist()])).loss
        number = np.sum(labels[1:] != IGNORED)
        total, count = total + float(loss) * number, count + number
    assert batch['mask'].sum() == count
    np.testing.assert_allclose((losses * batch['mask']).sum() / batch['mask'].sum(), total / count, rtol=2e-5)
