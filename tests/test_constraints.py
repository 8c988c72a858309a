"""constraints.txt pins all that setup.py asks for, by hashes, in versions that it allows."""

import importlib.metadata
import pathlib
import re

from packaging.requirements import Requirement

PINS = re.findall(
    r'^([\w.-]+)==(\S+)(.*?)\\\n((?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)',
    (pathlib.Path(__file__).parents[1] / 'constraints.txt').read_text(),
    re.MULTILINE,
)


def normalized(name):
    return re.sub('[-_.]+', '-', name).lower()


def test_all_requirements_are_pinned_in_allowed_versions():
    requirements = map(Requirement, importlib.metadata.requires('gaussq-jax'))
    required = [one for one in requirements if not one.marker or one.marker.evaluate({'extra': 'experiments'})]
    assert len(required) > 15
    for requirement in required:
        versions = [version for name, version, *_ in PINS if normalized(name) == normalized(requirement.name)]
        assert versions and all(requirement.specifier.contains(version) for version in versions), requirement


def test_every_line_is_a_pin_with_hashes():
    text = (pathlib.Path(__file__).parents[1] / 'constraints.txt').read_text()
    assert len(PINS) == len(re.findall('^[^# ]', text, re.MULTILINE)) > 60
