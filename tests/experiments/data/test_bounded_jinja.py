"""Templates that nobody should have to trust: what they may do, what they may cost, and that others render as ever."""

import jinja2
import pytest

from experiments.data import bounded_jinja
from experiments.data.bounded_jinja import Environment
from experiments.data.chat_templates import ChatTemplate, TemplateError

CHAT = [{'role': 'user', 'content': 'Hi'}]
DOUBLED = '{% set ns = namespace(x="0123456789") %}{% for i in range(60) %}{% set ns.x = DOUBLE %}{% endfor %}'
HOSTILE = {
    'loops': '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
    'recursion': '{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}',
    'calls': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}',
    'times': '{{ "a" * 9999999999 }}',
    'times, of a list': '{{ [1] * 9999999999 }}',
    'times, joined': '{{ (["a" * 1000000] * 1000000) | join }}',
    'doubled by +': DOUBLED.replace('DOUBLE', 'ns.x + ns.x'),
    'doubled by ~': DOUBLED.replace('DOUBLE', 'ns.x ~ ns.x'),
    'doubled by join': DOUBLED.replace('DOUBLE', '[ns.x, ns.x] | join'),
    'doubled by join, a method': DOUBLED.replace('DOUBLE', '"".join([ns.x, ns.x])'),
    'doubled by replace': DOUBLED.replace('DOUBLE', 'ns.x | replace("0", "00123456789")'),
    'doubled by replace, a method': DOUBLED.replace('DOUBLE', 'ns.x.replace("0", "00123456789")'),
    'doubled by a block': DOUBLED.replace('{% set ns.x = DOUBLE %}', '{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}'),
    'doubled lists': DOUBLED.replace('DOUBLE', '[ns.x, ns.x]') + '{{ ns.x }}',
    'doubled lists, as JSON': DOUBLED.replace('DOUBLE', '[ns.x, ns.x]') + '{{ ns.x | tojson }}',
    'doubled lists, as a string': DOUBLED.replace('DOUBLE', '[ns.x, ns.x]') + '{{ (ns.x | string) | length }}',
    'doubled slices': DOUBLED.replace('DOUBLE', '[ns.x, ns.x][:]') + '{{ ns.x | join }}',
    'nested namespaces': DOUBLED.replace('DOUBLE', 'namespace(a=ns.x, b=ns.x)') + '{{ ns.x | upper }}',
    'nested namespaces, set': '{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set new = namespace() %}'
    '{% set new.a = ns.x %}{% set new.b = ns.x %}{% set ns.x = new %}{% endfor %}{{ ns.x | upper }}',
    'compared lists': '{% set ns = namespace(x=1, y=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}'
    '{% set ns.y = {"a": ns.y, "b": ns.y}.values() | list %}{% endfor %}{{ ns.x == ns.y }}',
    'kept lists': DOUBLED.replace('60', '99999').replace('DOUBLE', '[ns.x, [' + '1, ' * 10_000 + ']]'),
    'split texts': DOUBLED.replace('60', '9999').replace('DOUBLE', '[ns.x, ("ab," * 100000).split(",")]'),
    'a recursive loop': '{% for i in range(9) recursive %}{{ loop(range(99999)) }}{% endfor %}',
    'sums of lists': '{{ ([[1] * 9999] * 9999) | sum(start=[]) | length }}',
    'keys': '{{ (["A" * 1000000] * 100000) | sort | length }}',
    'keys of a generator': '{{ (["A" * 1000000] * 100000) | map("default") | unique | list | length }}',
    'tags': '{{ ("<!---->" * 999999) | striptags }}',
    'tags, a method': '{{ ("<!---->" * 999999 | safe).striptags() }}',
    'format of marked text': '{{ ("{:>9999999999}" | safe).format(1) }}',
    'rounding': '{{ 1 | round(99999999, "ceil") }}',
    'bytes': '{{ ("a".encode() * 9999999999) | length }}',
    'bytes of numbers': '{{ (1).to_bytes(9999999999, "big") | length }}',
    'translation': '{{ ("a" * 1000000).translate({97: "a" * 1000000}) }}',
    'tabs': '{{ ("\t" * 1000000).expandtabs(tabsize=1000000) }}',
    'JSON, separated': '{{ ([1] * 9999) | tojson(separators=("a" * 1000000, ":")) }}',
    'JSON, indented by a text': '{{ [1] | tojson(indent="a" * 1000000) }}',
    'digits': '{{ ("f" * 9999999) | int(base=16) // (("f" * 999999) | int(base=16)) }}',
    'power': '{{ 9 ** 99999999 }}',
    'large numbers': DOUBLED.replace('"0123456789"', '3').replace('DOUBLE', 'ns.x * ns.x'),
    'justified': '{{ "a".rjust(9999999999) }}',
    'format': '{{ "{:>9999999999}".format(1) }}',
    'percent': '{{ "%9999999999d" % 1 }}',
    'indent': '{{ "a" | indent(9999999999, true) }}',
    'JSON, indented': '{{ [1] | tojson(indent=9999999999) }}',
    'filters': '{{ "a" | center(9999999999) }}',
    'lipsum': '{{ lipsum(n=1000000) }}',
    'range': '{{ range(9999999999) | list }}',
    'attributes': '{{ "".__class__.__mro__[1].__subclasses__() }}',
    'globals': '{{ raise_exception.__globals__["json"] }}',
    'changes': '{{ messages.append(1) }}',
    'imports': '{% include "/etc/passwd" %}',
    'deep': '(' * 100_000,
    'deep expressions': '{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}',
    'deep loops': '{% for i in [1] %}' * 40 + '{% endfor %}' * 40,
    'long': '{# #}' * 100_000,
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_template_is_one_line(name, monkeypatch):
    """Soon, and before the memory is full."""
    monkeypatch.setattr(bounded_jinja, 'MOST_TURNS', 20_000)
    try:
        rendered = ChatTemplate(HOSTILE[name], {}, 'FILE').render(CHAT)
    except TemplateError as error:
        assert str(error).startswith('FILE: ') and '\n' not in str(error) and len(str(error)) < 500
    else:
        assert len(rendered) <= len(HOSTILE[name]) and name.startswith('deep')


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(bounded_jinja, 'MOST_SECONDS', 0.0)
    with pytest.raises(TemplateError, match='more than 0 seconds'):
        ChatTemplate('{% for m in messages %}{% endfor %}', {}, 'FILE').render(CHAT)


@pytest.mark.parametrize(
    'source',
    [
        '{% for m in messages if m.role %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{% endfor %}',
        '{% for m in nothing %}a{% else %}b{% endfor %}',
        '{% for m in messages %}{% if m.n == 2 %}{% continue %}{% endif %}{{ loop.previtem }}{% endfor %}',
        '{% for name, value in messages[0] | dictsort %}{{ name ~ ":" ~ value ~ 1 ~ none }}{% endfor %}',
        '{{ messages | map(attribute="role") | join(", ") }}{{ messages | join("|", attribute="n") }}',
        '{{ messages | selectattr("role", "equalto", "user") | list | length }}{{ messages[1:] }}{{ messages[::-1] }}',
        '{{ ["b", "A", "b"] | sort | join }}{{ ["b", "A", "b"] | unique | list }}{{ [2, 3] | map("string") | max }}',
        '{{ "7" | int + 1 }}{{ {"a": 1}.items() | list }}{% set ns = namespace(x=messages) %}{{ ns.x[0].n in (1,) }}',
        '{% for m in [[1], [2]] recursive %}{{ m }}{{ loop(m) if m is iterable }}{% endfor %}',
        '{{ "a b"[1:] }}{{ "aXbX".replace("X", "-", 1) }}{{ "aXbX" | replace("X", "-") }}{{ "-".join(["a", "b"]) }}',
        '{{ "a\nb" | indent(2) }}{{ "a\nb" | indent(2, true) }}{{ 3 * 4 }}{{ 2 ** 10 }}{{ "ab" * 2 }}{{ 7 % 4 }}',
        '{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f("a") }}{% set y %}{{ f(1) }}{% endset %}{{ y | upper | string }}',
        '{{ missing }}{{ missing is defined }}{{ none }}{{ true }}{{ 1.5 }}{{ {"a": [1, "é"]} }}',
    ],
)
def test_other_templates_render_as_ever(source):
    """As Jinja's own sandbox."""
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    messages = [{'role': 'user', 'n': 1}, {'role': 'x', 'n': 2}, {'role': 'user', 'n': 3}]
    assert Environment().from_string(source).render(messages=messages) == plain.from_string(source).render(
        messages=messages
    )


def test_json_and_dates_are_as_transformers_has_them():
    """But the date is of no day: what is prepared again is the same."""
    render = lambda source: ChatTemplate(source, {}, 'FILE').render(CHAT)
    assert render('{{ {"b": "é<>\'&", "a": 1} | tojson }}') == '{"b": "é<>\'&", "a": 1}'
    assert render('{{ {"b": [1]} | tojson(indent=2) }}') == '{\n  "b": [\n    1\n  ]\n}'
    assert render('{{ strftime_now("%d %b %Y") }}') == '26 Jul 2024'


def test_time_is_bounded_for_a_conversation(monkeypatch):
    """All its renderings together, however many its answers are."""
    now = iter(range(1000))
    monkeypatch.setattr(bounded_jinja.time, 'monotonic', lambda: next(now))
    chat = [{'role': role, 'content': 'a'} for _ in range(8) for role in ('user', 'assistant')]
    template = ChatTemplate('{% for m in messages %}{{ m.content }}{% endfor %}', {}, 'FILE')
    template.render(chat)
    with pytest.raises(TemplateError, match='more than 60 seconds'):
        template.render_answers(chat)
