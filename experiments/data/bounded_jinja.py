"""Jinja for chat templates that somebody else has written: as transformers has it, with an end to what one may cost.

Jinja's sandbox keeps a template from everything but its arguments, and no more than that. Here each turn of a loop,
each call and each character that is made counts, and so does the clock; what makes much of little is refused before.
"""

import datetime
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any

import jinja2
from jinja2 import ext, filters, nodes, runtime, sandbox, utils, visitor

MOST_TURNS = 10**6  # of loops, and calls
MOST_CHARACTERS = 2**26  # that one rendering makes, in all of its strings and lists
MOST_SECONDS = 60.0  # for all renderings of a conversation
WIDEST = 1000  # of what is indented or justified, bits of a number, and digits of its text
PLACE = 8  # characters, for which a place in a list counts; one in a dictionary for more
# Filters that are random, or of no use in a chat and able to make much of little.
LEFT_OUT = (
    *('random', 'pprint', 'center', 'wordwrap', 'urlize', 'format', 'xmlattr', 'batch', 'slice', 'filesizeformat'),
    *('sum', 'round', 'striptags'),
)
METHODS_LEFT_OUT = ('encode', 'translate', 'maketrans', 'expandtabs', 'striptags')  # of texts, for the same reason
COMPARING = ('sort', 'dictsort', 'groupby', 'unique', 'min', 'max')  # filters, which make a key of each value
JUSTIFYING = ('ljust', 'rjust', 'center', 'zfill')  # methods
BEGIN, END = '\ufdd0', '\ufdd1'  # around an answer; Unicode promises that these are no characters of texts
TODAY = datetime.datetime(2024, 7, 26)  # of `strftime_now`: a text is the same on every day; Llama 3's own default


class RefusedError(jinja2.TemplateError):
    """What a template raises itself, of messages that it doesn't take."""


class TooSlowError(sandbox.SecurityError):
    """MOST_SECONDS have passed."""


class Environment(sandbox.ImmutableSandboxedEnvironment):
    """The environment of one template: `begin` before each rendering.

    Answers, what stands between {% generation %} and {% endgeneration %}, come out between BEGIN and END. What exceeds
    MOST_TURNS, MOST_CHARACTERS or MOST_SECONDS is a SecurityError, the last one a TooSlowError.
    """

    intercepted_binops = frozenset(['+', '*', '**', '%'])

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
        ours = {'join': _join, 'replace': _replace, 'indent': _indent, 'tojson': _to_json}
        ours |= {'string': _string, 'int': _int}
        theirs = {name: function for name, function in self.filters.items() if name not in LEFT_OUT}
        self.filters = {name: self._counted(function, name in COMPARING) for name, function in (theirs | ours).items()}
        self.filters |= {_TURNS: self._turns_of, _CHARACTERS: self._counted(lambda value: value), _KEPT: _kept}
        del self.globals['lipsum']
        self.globals |= {'raise_exception': _raise, 'strftime_now': TODAY.strftime}
        self.finalize = self.made
        self._pieces = 0  # of the template: how much a turn makes at the most without a call
        self.begin(deadline())

    def begin(self, end: float):
        """Counts from zero, up to a `deadline`."""
        self._turns = self._characters = 0
        self._end = end

    def turn(self):
        """Counts a turn of a loop, or a call."""
        self._turns += 1
        self.spend(self._pieces)
        if self._turns > MOST_TURNS:
            raise sandbox.SecurityError(f'it takes more than {MOST_TURNS:,} turns of loops and calls')
        if time.monotonic() > self._end:
            raise TooSlowError(f'it takes more than {MOST_SECONDS:g} seconds')

    def spend(self, characters: int):
        """Counts characters that are about to be made."""
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise sandbox.SecurityError(f'it makes more than {MOST_CHARACTERS:,} characters')

    def made(self, value: Any) -> Any:
        """A value that is about to be written as text, or put into another, counted as often as it is in there."""
        self.turn()
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, Mapping):
            for item in value.items():
                self.made(item)
        elif isinstance(value, list | tuple | Set | ValuesView):
            for item in value:
                self.made(item)
        elif isinstance(value, utils.Namespace):  # which may be within itself, and its text long
            raise sandbox.SecurityError('a namespace is neither written nor put into anything')
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As Jinja's; and no methods of numbers and bytes, and of texts none of METHODS_LEFT_OUT."""
        if isinstance(obj, bytes | int | float) or (isinstance(obj, str) and attr in METHODS_LEFT_OUT):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def concat(self, strings: Iterable[str]) -> str:
        """What a template, a block or a macro comes to."""
        strings = list(strings)
        self.spend(sum(map(len, strings)))
        return ''.join(strings)

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Of `intercepted_binops`; as Jinja's."""
        if operator == '%' and isinstance(left, str):
            raise sandbox.SecurityError("'%' of a text is not supported; ~ joins texts")
        sizes = [
            len(value) * (PLACE if isinstance(value, list | tuple) else 1)
            for value in (left, right)
            if isinstance(value, str | bytes | list | tuple)
        ]
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == '+':
            self.spend(sum(sizes))
        elif operator == '*' and sizes and numbers:
            self.spend(max(sizes[0] * numbers[0], 0))
        elif operator in ('*', '**') and len(numbers) == 2:
            bits = left.bit_length() * right if operator == '**' else left.bit_length() + right.bit_length()
            if bits > WIDEST:
                raise sandbox.SecurityError(f'it computes a number of more than {WIDEST:,} bits')
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: runtime.Context, __function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a function or a method; as Jinja's, with its names of arguments."""
        self, text, name = __self, getattr(__function, '__self__', None), getattr(__function, '__name__', '')
        self.turn()
        if isinstance(text, str):
            if name in JUSTIFYING and any(isinstance(value, int) and value > WIDEST for value in args):
                raise sandbox.SecurityError(f'{name} takes {WIDEST:,} at the most')
            if name == 'join':
                return _join(self, *args, d=text)
            if name == 'replace':
                return _replace(self, text, *args, **kwargs)
        if isinstance(__function, runtime.LoopContext):  # of a recursive loop
            args = (self._turns_of(args[0]), *args[1:])
        elif not isinstance(__function, runtime.Macro):
            self.made((args, kwargs))
        result = super().call(__context, __function, *args, **kwargs)
        self.spend(_weight(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Methods of texts that format, whatever they are called by."""
        if super().wrap_str_format(value) is not None:
            raise sandbox.SecurityError('format of a text is not supported; ~ joins texts')
        return None

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        self._pieces = sum(len(node.items) for node in template.find_all((nodes.List, nodes.Tuple, nodes.Dict)))
        self._pieces += sum(len(node.nodes) for node in template.find_all(nodes.Output))
        return _Counting().visit(template)

    def _counted(self, function: Callable, makes_keys: bool = False) -> Callable:
        """A filter whose results are counted, and as many keys as there are values."""

        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.turn()
            if makes_keys:
                args = [list(value) if isinstance(value, Iterator) else value for value in args]
                self.made([value for value in args if isinstance(value, list | tuple | Mapping | Set | ValuesView)])
            result = function(*args, **kwargs)
            self.spend(_weight(result))
            return result

        return counted

    def _turns_of(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.turn()
            yield value


_TURNS, _CHARACTERS, _KEPT = 'turns of', 'characters of', 'kept'  # filters, of which `_Counting` makes use


def deadline() -> float:
    """When what begins now has to end."""
    return time.monotonic() + MOST_SECONDS


def _weight(value: Any) -> int:
    """For how many characters a new value counts."""
    if isinstance(value, list | tuple):
        return sum(PLACE + (len(item) if isinstance(item, str) else 0) for item in value)
    return len(value) if isinstance(value, str) else 0


class _Counting(visitor.NodeTransformer):
    """Puts filters that count where Jinja's own code lets nothing in."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _TURNS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), 'join')

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, _KEPT)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _KEPT) if node.ctx == 'load' else node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef):
            node.node = _filtered(node.node, _KEPT)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _CHARACTERS) if isinstance(node.arg, nodes.Slice) else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


class _Generation(ext.Extension):
    """{% generation %}: what the assistant has written."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return nodes.CallBlock(self.call_method('answer'), [], [], body).set_lineno(line)

    def answer(self, caller: Callable[[], str]) -> str:
        return f'{BEGIN}{caller()}{END}'


def _raise(message: Any):
    raise RefusedError(f'it says {str(message)[:200]!r}')


@jinja2.pass_context  # so that Jinja computes none ahead
def _kept(context: runtime.Context, value: Any) -> Any:
    return context.environment.made(value)


@jinja2.pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = '', attribute: str | int | None = None) -> str:
    of = filters.make_attrgetter(environment, attribute) if attribute is not None else lambda item: item
    texts = [str(environment.made(of(item))) for item in value]
    environment.spend(len(str(d)) * len(texts))
    return str(d).join(texts)


@jinja2.pass_environment
def _replace(environment: Environment, text: Any, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(environment.made(text)), str(old), str(new)
    places = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    environment.spend(places * len(new))
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_environment
def _indent(environment: Environment, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    if size > WIDEST:
        raise sandbox.SecurityError(f'indent takes {WIDEST:,} at the most')
    environment.spend((text.count('\n') + 1) * size)
    return filters.do_indent(text, width, first, blank)


@jinja2.pass_environment
def _string(environment: Environment, value: Any) -> str:
    return str(environment.made(value))


def _int(value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > WIDEST:
        raise sandbox.SecurityError(f'int takes {WIDEST:,} digits at the most')
    return filters.do_int(value, default, base)


@jinja2.pass_environment
def _to_json(
    environment: Environment,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As JSON has it: unlike Jinja's, without HTML's entities."""
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16:
        raise sandbox.SecurityError('tojson takes an indent of 16 at the most')
    environment.made(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces = []
    for piece in encoder.iterencode(value):  # of which some may be white space for the most part
        environment.spend(PLACE + len(piece))
        pieces.append(piece)
    return ''.join(pieces)
