"""Tokenizers with chat templates, as tokenizer.json and chat_template.jinja, and conversations for them."""

import json

import small_checkpoints
import tokenizers

SPECIAL = ('<|im_start|>', '<|im_end|>', '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
CHATML = """\
{%- for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}
    {%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
# With blocks; it says of all answers but the last one no more than that there was thinking.
MARKED = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}
{%- if loop.last %}{{ message.content }}{% else %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}{% endif -%}
<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif -%}
"""
# It ends a conversation with the end of texts, but for one that asks for an answer.
PHI_3 = """\
{%- for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
# It asks for thinking, which it leaves out of what was said; its tokens of turns are no special ones.
DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{ message['content'] }}
    {%- elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] + '<｜Assistant｜>' }}
    {%- else %}{% generation %}{{ message['content'].split('</think>')[-1] + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}
"""
DEEPSEEK_TOKENS = ('<｜User｜>', '<｜Assistant｜>', '<think>', '</think>', '\n\n', 'def')
TEMPLATES = {'chatml': CHATML, 'llama-3': LLAMA_3, 'marked': MARKED}
CHATS = [
    [('user', 'Hi'), ('assistant', 'Ho, naïve 🙂 one')],
    [('system', ' Be brief. '), ('user', 'def f'), ('assistant', 'x = 1\n'), ('user', '2?'), ('assistant', '3')],
    [('user', 'a'), ('assistant', '<think>\nwhy\n</think>\nb'), ('user', 'c'), ('assistant', '<think>\n</think>\nd')],
]
CHATS = [[{'role': role, 'content': content} for role, content in chat] for chat in CHATS]


def write_tokenizer(folder, template=CHATML, *, end='<|im_end|>', leads=False, added=(), normalizer=None):
    """Of bytes, two merges and SPECIAL, whose ids follow 258; what it says by its template ends with `end`.

    added: tokens that are no special ones, which are looked for in normalised text where there is a normalizer.
    """
    small_checkpoints.write_tokenizer(folder / 'tokenizer.json')
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=normalizer is not None) for name in added])
    if leads:
        bos = tokenizer.token_to_id('<|begin_of_text|>')
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            '<|begin_of_text|> $A', special_tokens=[('<|begin_of_text|>', bos)]
        )
    tokenizer.save(str(folder / 'tokenizer.json'))
    said = {'eos_token': end, 'bos_token': '<|begin_of_text|>', 'tokenizer_class': 'PreTrainedTokenizerFast'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(said))
    if template is not None:
        (folder / 'chat_template.jinja').write_text(template)
    return folder / 'tokenizer.json'
