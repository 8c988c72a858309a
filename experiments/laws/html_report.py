"""A table of runs and the scaling laws fitted to it, as one HTML file that needs no other."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.files import foreign_text
from experiments.laws import comparisons, known_laws
from experiments.laws.law_choices import LAWS, LawChoice
from experiments.laws.page.law_page import law_page
from experiments.laws.page.rendering import render
from experiments.laws.studies import Study
from experiments.laws.tables.reading import AS_IT_IS, Reading
from experiments.laws.tables.run_tables import RunTable, read_runs
from gaussq_jax.atomic_files import replace_file

OF_ONE_METHOD = ('capybara', 'bitwidth')  # shown if no law is named: each of them that the runs serve;
OTHERWISE = ('effective', 'chinchilla')  # if they serve neither, the first of these that they do


def write(
    laws: Sequence[tuple[LawChoice, RunTable]],
    output: pathlib.Path,
    *,
    held_out: str | None = None,
    compute: float | None = None,
    **how: str,
) -> dict[str, Any]:
    """Fits laws, and writes the report; returns what it tells of each, by name, as JSON has it.

    A law that can't be fitted is left out, if another can.

    Args:
      laws: each with the runs that it is fitted to, as `laws_of` gives them.
      output: the HTML file.
      held_out: as for comparisons.parse_ways; by default the usual ways.
      compute: C = 6 N D of the plan; by default twice that of the largest run.
      **how: objective and errors, as for Study.of.

    Raises:
      ValueError: if none can be fitted.
    """
    described, pages, reasons = {}, [], []
    for choice, table in laws:
        ways = comparisons.usual_ways(table) if held_out is None else comparisons.parse_ways(held_out, table)
        try:
            study = Study.of(choice, table, **how)
        except ValueError as error:
            reasons.append(error)
            continue
        others = [other for other in LAWS.values() if other != choice and comparisons.serves(table, other)]
        comparison = comparisons.compare(others, table, ways, fitted=[study.result], **how).describe()
        known = known_laws.fitted(study.result, table)
        described[known.name] = study.describe() | {'comparison': comparison}
        pages.append(law_page(study, known, comparison, compute=compute))
    if not pages:
        raise reasons[0]
    remarks = dict.fromkeys(remark for law in described.values() for remark in law['remarks'])
    title = f'Scaling laws of {foreign_text.printable(pathlib.Path(laws[0][1].path).name)}'
    replace_file(output, render({'title': title, 'remarks': list(remarks), 'laws': pages}))
    return described


def laws_of(
    path: str | pathlib.Path,
    choice: LawChoice | None = None,
    reading: Reading = AS_IT_IS,
    *,
    exclude_e0: bool = False,
) -> list[tuple[LawChoice, RunTable]]:
    """The laws to show of a table, each with its runs: the one that is chosen, or those that the runs are for.

    Runs that have a format are for the Capybara law, and those with sampled weights for the bitwidth law. If there are
    none, recipes of another kind are for the effective law, and what has none for the Chinchilla law.

    Raises:
      ValueError: as known_laws.runs_for.
    """
    if choice is not None:
        return [(choice, known_laws.runs_for(choice, path, reading, exclude_e0=exclude_e0))]
    whole, found, reason = read_runs(path, reading), [], None
    for name in (*OF_ONE_METHOD, *OTHERWISE):
        if name in OTHERWISE and found:
            break
        usual = LAWS[name]
        try:
            table = known_laws.runs_of(usual, whole, exclude_e0=exclude_e0 and 'E' in usual.needs)
        except ValueError as error:
            reason = error
        else:
            found.append((usual, table))
    if not found:
        raise reason
    return found
