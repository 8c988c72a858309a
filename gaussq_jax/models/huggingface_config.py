"""Fields of a Hugging Face configuration, as the models here take them."""

import sys

LARGEST = 2**24  # size of a model that a config may say


def field(config, name):
    """A field that has to be there."""
    if name not in config:
        raise ValueError(f'config lacks the field {name}')
    return config[name]


def size(config, name):
    """An integer of 1 to LARGEST."""
    value = field(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f'{name}={value!r:.80} must be an integer of 1 to {LARGEST:,}')
    return value


def size_or_none(config, name):
    """The same, or None where the field is that, or isn't there."""
    return None if config.get(name) is None else size(config, name)


def positive(config, name):
    """A finite number above 0, as a float."""
    number = field(config, name)
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number <= sys.float_info.max:
        raise ValueError(f'{name}={number!r:.80} must be a positive number')
    return float(number)


def check_fields(config, **allowed):
    """Refuses other values of these fields than those allowed, of which a missing field has the first."""
    for name, values in allowed.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f'{name}={config[name]!r:.80} must be {" or ".join(map(repr, values))}')


def flag(config, name):
    """True or False, which a missing field is."""
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f'{name}={value!r:.80} must be True or False')
    return value
