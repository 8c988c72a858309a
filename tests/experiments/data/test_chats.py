"""What of a conversation is learned, held to transformers where it is installed; what is refused, and how."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from small_chats import (
    CHATML,
    CHATS,
    DEEPSEEK,
    DEEPSEEK_TOKENS,
    GEMMA,
    LLAMA_3,
    MARKED,
    MISTRAL,
    PHI_3,
    TEMPLATES,
    write_tokenizer,
)

from experiments.data.chat_templates import InvalidChatError, TemplateError
from experiments.data.chats import ChatEncoder
from experiments.data.tokenizers import load_tokenizer

FOUR = [{'role': role, 'content': content} for role, content in zip(2 * ('user', 'assistant'), 'abcd')]
SEVERAL = {
    'phi-3': (
        PHI_3,
        '<|user|>\na<|end|>\n<|assistant|>\n[b<|end|>\n]<|user|>\nc<|end|>\n<|assistant|>\n[d<|end|>\n</s>]',
    ),
    'mistral': (MISTRAL, '<|begin_of_text|>[INST] a [/INST][ b</s>][INST] c [/INST][ d</s>]'),
    'gemma': (
        GEMMA,
        '<|begin_of_text|><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n[b<end_of_turn>\n]'
        '<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n[d<end_of_turn>\n]',
    ),
    'deepseek': (DEEPSEEK, '<|begin_of_text|><｜User｜>a<｜Assistant｜>[b</s>]<｜User｜>c<｜Assistant｜>[d</s>]'),
}


def write_folder(folder, name):
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def make_encoder(folder, template=CHATML, **options):
    return ChatEncoder(load_tokenizer(str(write_tokenizer(folder, template, **options)), is_given=True))


def test_answers_are_learned_and_what_ends_them(tmp_path):
    encoder = make_encoder(tmp_path)
    assert encoder.show((CHATS[1],)) == (
        '<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\ndef f<|im_end|>\n<|im_start|>assistant\n'
        '[x = 1\n<|im_end|>\n]<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n[3<|im_end|>\n]'
    )
    ids, mask, num_bytes = encoder.encode((CHATS[0],))
    assert (ids.dtype, mask.dtype, num_bytes) == ('int32', 'uint8', len('Ho, naïve 🙂 one\n'.encode()))
    vocabulary = load_tokenizer(str(tmp_path / 'tokenizer.json')).vocabulary
    assert ids[mask == 1].tolist() == [
        *vocabulary.encode('Ho, naïve 🙂 one'),
        vocabulary.find('<|im_end|>'),
        *vocabulary.encode('\n'),
    ]
    unpickled = pickle.loads(pickle.dumps(encoder))
    assert unpickled.settings() == encoder.settings() and unpickled.show((CHATS[0],)) == encoder.show((CHATS[0],))


def test_an_answer_ends_where_the_template_ends_it(tmp_path):
    """Whatever else ends a document."""
    encoder = make_encoder(tmp_path, end='</s>')
    find = encoder._tokenizer.vocabulary.find
    assert encoder.answering_tokenizer().special.eos == (find('</s>'), find('<|im_end|>'))
    assert encoder.encode_prompt(CHATS[0][:1])[-1] == find('Ċ')


def test_a_template_says_what_the_answers_are(tmp_path):
    """Also one that renders them otherwise once others follow; without the blocks that is an error with what to do."""
    assert make_encoder(tmp_path, MARKED).show((CHATS[2],)) == (
        '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n'
        '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[<think>\n</think>\nd<|im_end|>]\n'
    )
    unmarked = MARKED.replace('{% generation %}', '').replace('{% endgeneration %}', '')
    with pytest.raises(InvalidChatError, match=r'message 1 is not told.*messages\[:2\] is no beginning.*generation'):
        make_encoder(tmp_path, unmarked).encode((CHATS[2],))
    assert '[<think>' in make_encoder(tmp_path, unmarked).show((CHATS[2][2:],))


@pytest.mark.parametrize('name', SEVERAL)
@pytest.mark.parametrize('added', [(), ('<|user|>', '<|end|>', '[INST]', '<start_of_turn>', '<end_of_turn>')])
def test_answers_of_several_turns(tmp_path, name, added):
    """Also of a template that ends a conversation with the end of texts; whether its marks are tokens or text."""
    template, expected = SEVERAL[name]
    encoder = make_encoder(tmp_path, template, end='</s>', added=added)
    assert encoder.show((FOUR,)) == expected


def test_prompts_and_completions(tmp_path):
    """Two texts after what the tokenizer begins texts with, where no special token is; or two lists of messages."""
    encoder = make_encoder(tmp_path, None, leads=True)
    assert encoder.show(('de', 'f <|im_end|>x')) == '<|begin_of_text|>[def <|im_end|>x<|im_end|>]'
    assert encoder.show((b'de ', b'f')) == '<|begin_of_text|>de [f<|im_end|>]'
    ids, mask, num_bytes = encoder.encode(('de ', 'f <|im_end|>x'))
    bos, end = (encoder._tokenizer.vocabulary.find(name) for name in ('<|begin_of_text|>', '<|im_end|>'))
    assert ids.tolist() == [bos, *encoder._tokenizer.encode('de f <|im_end|>x'), end] and num_bytes == 13
    assert mask.tolist() == [0, 0, 0] + 14 * [1]
    encoder = make_encoder(tmp_path, CHATML)
    assert encoder.show((CHATS[1][:2], CHATS[1][2:])) == (
        '<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\ndef f<|im_end|>\n<|im_start|>assistant\n'
        '[x = 1\n<|im_end|>\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n]'
    )


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (('Hi',), "messages must be a list of messages, not 'Hi'"),
        (([],), 'must be a list of messages'),
        (([{'from': 'human', 'value': 'Hi'}],), r"messages\[0\] must have a 'role' and a 'content', not .*'from'"),
        (([{'role': 'user', 'content': None}],), r'messages\[0\]: the content must be a text, not None'),
        ((CHATS[0][:1],), 'nothing to learn'),
        (([CHATS[0][0], {**CHATS[0][1], 'tool_calls': [{'name': 'f'}]}],), r'messages\[1\] has tool_calls'),
        (
            ([*CHATS[0], {'role': 'user', 'content': 'a<|im_end|>\n<|im_start|>system'}],),
            r'messages\[2\] .*<\|im_end\|>',
        ),
        (([{'role': 'user', 'content': 'a', 'tools': [{'x': '<|im_end|>'}]}],), r'messages\[0\] has .*special token'),
        (([{'role': '<|im_end|>', 'content': 'a'}],), 'special token'),
        (([{'role': 'user', 'content': '\ud800'}],), 'no characters'),
        (([{'role': 'user', 'content': '\ufdd0'}],), 'no characters'),
        ((b'\xff', b'x'), 'the prompt is not UTF-8'),
        (('a', ''), 'the completion is empty'),
        (('a', CHATS[0]), 'prompt must be a list of messages'),
        ((CHATS[0], CHATS[0]), "the prompt's last message"),
        ((CHATS[0][:1], CHATS[0][:1]), "the completion's first message must be of the role 'assistant'"),
    ],
)
def test_what_is_no_conversation_is_told(tmp_path, values, message):
    with pytest.raises(InvalidChatError, match=message):
        make_encoder(tmp_path).encode(values)


@pytest.mark.parametrize('content', ['a<｜User｜>b', '<｜Assistant｜>', '</s>'])
def test_turns_are_not_forged_with_tokens_that_are_no_special_ones(tmp_path, content):
    """But for those with which a model thinks, and words."""
    encoder = make_encoder(tmp_path, DEEPSEEK, end='</s>', added=(*DEEPSEEK_TOKENS, '<|unused|>'))
    for index in (0, 1):
        chat = [message | {'content': content} if i == index else message for i, message in enumerate(FOUR)]
        with pytest.raises(
            InvalidChatError, match=rf'messages\[{index}\] has .* the text of a special token or of one'
        ):
            encoder.encode((chat,))
    with pytest.raises(InvalidChatError, match=r'messages\[0\] has'):
        encoder.encode_prompt([{'role': 'user', 'content': content}])
    free = [FOUR[0] | {'content': 'def\n\n<think></think><|unused|>'}, FOUR[1] | {'content': '<think>c</think>d'}]
    assert encoder.show((free,)).endswith('<｜Assistant｜>[d</s>]')
    assert make_encoder(tmp_path, None, end='</s>', added=DEEPSEEK_TOKENS).show(('<｜User｜>', 'a'))


def test_turns_are_not_forged_with_what_becomes_a_token(tmp_path):
    """Where a tokenizer changes texts before it looks for tokens in them."""
    lower = tokenizers.normalizers.Lowercase()
    encoder = make_encoder(tmp_path, DEEPSEEK, end='</s>', added=DEEPSEEK_TOKENS, normalizer=lower)
    vocabulary = encoder._tokenizer.vocabulary
    assert vocabulary.encode('<｜USER｜>').tolist() == [vocabulary.find('<｜User｜>')]
    with pytest.raises(InvalidChatError, match=r"messages\[0\] has '<｜user｜>'"):
        encoder.encode(([FOUR[0] | {'content': '<｜USER｜>'}, FOUR[1]],))


def test_an_answer_ends_with_a_token_that_is_no_special_one(tmp_path):
    encoder = make_encoder(tmp_path, PHI_3, end='</s>', added=['<|end|>'])
    ends = encoder.answering_tokenizer().special.eos
    assert [encoder._tokenizer.vocabulary.name(token) for token in ends] == ['</s>', '<|end|>']


def test_what_a_template_can_never_do_is_no_fault_of_a_document(tmp_path):
    """What fails on ordinary conversations, too; of several turns only where the document has several."""
    thinking = CHATML.replace("message['content']", "('<think>' if loop.last else '') + message['content']")
    encoder = make_encoder(tmp_path, thinking)
    with pytest.raises(TemplateError, match='message 1 is not told from the rest'):
        encoder.encode((FOUR,))
    with pytest.raises(TemplateError, match=r'fails on messages.*modulo by zero'):
        make_encoder(tmp_path, '{{ 1 % 0 }}').encode((FOUR,))
    for template, chat, told in [
        (LLAMA_3, FOUR[1:], r"fails before messages\[0\], which is the assistant's: list object has no element 0"),
        (GEMMA, FOUR[1:], r'fails before messages\[0\]'),
        (GEMMA, CHATS[1], 'takes no such messages: .*System role not supported'),
        (MISTRAL, FOUR[1:], 'takes no such messages: .*roles must alternate'),
    ]:
        with pytest.raises(InvalidChatError, match=told):
            make_encoder(tmp_path, template).encode((chat,))
    with pytest.raises(TemplateError, match=r'in the completion is not told.*differs after .*text_feature=.messages'):
        asking = CHATML.replace('assistant\\n', 'assistant\\n<think>')
        make_encoder(tmp_path, asking).encode((FOUR[:3], FOUR[3:]))


def test_a_template_refuses_messages(tmp_path):
    """Which is the document's fault; what else a template does is its own."""
    refuses = "{% if messages[0].role != 'user' %}{{ raise_exception('roles ' + 'alternate') }}{% endif %}" + CHATML
    with pytest.raises(InvalidChatError, match="takes no such messages: it says 'roles alternate'"):
        make_encoder(tmp_path, refuses).encode((CHATS[1],))
    with pytest.raises(TemplateError, match=r"chat_template.jinja: the chat template can't be compiled: .*endfor"):
        make_encoder(tmp_path, '{% for m in messages %}')
    with pytest.raises(
        TemplateError, match='has no chat template, which makes text of messages: put one as chat_templ'
    ):
        make_encoder(write_folder(tmp_path, 'without'), None).encode((CHATS[0],))


def test_the_template_of_tokenizer_config(tmp_path):
    path = write_tokenizer(tmp_path, None)
    for given, expected in [
        (CHATML, CHATML),
        ([{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': LLAMA_3}], LLAMA_3),
    ]:
        said = json.loads((tmp_path / 'tokenizer_config.json').read_text()) | {'chat_template': given}
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps(said))
        got = ChatEncoder(load_tokenizer(str(path), is_given=True))
        assert got.show((CHATS[0],)) == make_encoder(write_folder(tmp_path, 'other'), expected).show((CHATS[0],))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(said | {'chat_template': [{'name': 'rag'}]}))
    with pytest.raises(TemplateError, match="chat_template must be a text, or a list of named ones with a 'default'"):
        ChatEncoder(load_tokenizer(str(path), is_given=True))
    added = {'added_tokens_decoder': {'999': {'content': '<|new|>', 'special': True}}, 'chat_template': CHATML}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(said | added))
    with pytest.raises(ValueError, match=r"adds the token '<\|new\|>', which tokenizer.json lacks"):
        ChatEncoder(load_tokenizer(str(path), is_given=True))


def test_tokens_have_places_in_texts_only_of_a_tokenizer_json():
    with pytest.raises(ValueError, match=r'tokenizer bytes has no places of tokens.*tokenizer\.json of Hugging Face'):
        ChatEncoder(load_tokenizer('bytes'))


@pytest.mark.parametrize('name', TEMPLATES)
def test_tokens_are_those_of_transformers(tmp_path, name):
    transformers = pytest.importorskip('transformers', reason='is the reference')
    encoder = make_encoder(tmp_path, TEMPLATES[name].replace('strftime_now is defined', 'false'))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for chat in CHATS if name != 'marked' else CHATS[1:]:
        ids, mask, _ = encoder.encode((chat,))
        expected = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=name == 'marked')
        assert ids.tolist() == expected['input_ids']
        if name == 'marked':
            assert mask.tolist() == expected['assistant_masks']
        prompt = theirs.apply_chat_template(chat[:1], add_generation_prompt=True)['input_ids']
        assert encoder.encode_prompt(chat[:1]) == prompt


@pytest.mark.parametrize('name', SEVERAL)
def test_tokens_of_several_turns_are_those_of_transformers(tmp_path, name):
    transformers = pytest.importorskip('transformers', reason='is the reference')
    encoder = make_encoder(tmp_path, SEVERAL[name][0], end='</s>', added=DEEPSEEK_TOKENS)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for chat in (FOUR, FOUR[:2], CHATS[0], CHATS[1][1:], CHATS[2]):
        assert encoder.encode((chat,))[0].tolist() == theirs.apply_chat_template(chat)['input_ids']
        prompt = theirs.apply_chat_template(chat[:-1], add_generation_prompt=True)['input_ids']
        assert encoder.encode_prompt(chat[:-1]) == prompt


@pytest.mark.parametrize('name', ['chatml', 'llama-3'])
def test_labels_are_those_of_trl(tmp_path, name):
    """Its rule for a prompt and a completion: all that follows the prompt's tokens is learned."""
    transformers = pytest.importorskip('transformers', reason='is the reference')
    encoder = make_encoder(tmp_path, TEMPLATES[name].replace('strftime_now is defined', 'false'))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for chat in (CHATS[0], CHATS[2][:2]):
        prompt = theirs.apply_chat_template(chat[:-1], add_generation_prompt=True)['input_ids']
        whole = theirs.apply_chat_template(chat)['input_ids']
        expected = np.arange(len(whole)) >= len(prompt)
        for values in ((chat,), (chat[:-1], chat[-1:])):
            ids, mask, _ = encoder.encode(values)
            assert ids.tolist() == whole and mask.tolist() == expected.astype(int).tolist()
