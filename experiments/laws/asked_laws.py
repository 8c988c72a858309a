"""The law that flags ask, or that they ask to be fitted, and to which runs."""

from typing import Any

from absl import flags

from experiments.laws import comparisons, known_laws, law_choices, stored_laws
from experiments.laws.known_laws import KnownLaw
from experiments.laws.law_choices import LawChoice
from experiments.laws.tables import reading
from experiments.laws.tables.run_tables import RunTable


def choice_of(args: flags.FlagValues) -> LawChoice:
    """The law to fit that the flags say."""
    choice = law_choices.find(args.law_name)
    return choice._replace(fixed={**choice.fixed, **law_choices.parse_fixed(args.fixed)})


def reading_of(args: flags.FlagValues) -> reading.Reading:
    """How the flags say that a table is read."""
    columns = reading.parse_columns(args.columns) if args.columns else {}
    recipes = reading.parse_recipes(args.recipes) if args.recipes else {}
    return reading.Reading(columns, reading.parse_where(args.where), args.best_of, recipes=recipes)


def table_of(args: flags.FlagValues, choice: LawChoice, path: str) -> RunTable:
    """The runs that the flags say a law is fitted to."""
    return known_laws.runs_for(choice, path, reading_of(args), exclude_e0=args.exclude_e0)


def ways_of(args: flags.FlagValues, table: RunTable) -> tuple[comparisons.Way, ...]:
    """How the flags say that runs are held out."""
    return comparisons.usual_ways(table) if args.held_out is None else comparisons.parse_ways(args.held_out, table)


def how_to_fit(args: flags.FlagValues) -> dict[str, Any]:
    """What the flags say of a fit.

    Raises:
      ValueError: for --robust beside another --objective.
    """
    if args.robust and args['objective'].present and args.objective != 'huber':
        raise ValueError(f'--robust is --objective=huber, and --objective={args.objective} is given: give one of them')
    return dict(objective='huber' if args.robust else args.objective, errors=args.errors)


def which_law(args: flags.FlagValues) -> KnownLaw:
    """The law that the flags say: fitted to runs, published, or stored."""
    if args.runs:
        choice = choice_of(args)
        table = table_of(args, choice, args.runs)
        return known_laws.fitted(known_laws.fit(choice, table, **how_to_fit(args)), table)
    name, is_named = args.law or 'capybara', args['law_name'].present
    if name in known_laws.PUBLISHED:
        if is_named:
            raise ValueError(f'--law_name is of a law that is fitted or stored, and --law={name} is published')
        return known_laws.PUBLISHED[name]
    if args.law and '.' not in name and '/' not in name:
        known = ', '.join(known_laws.PUBLISHED)
        raise ValueError(f'--law={name!r} must be a file that `fit --output` has written, or one of {known}')
    own = law_choices.find(args.law_name)
    known = stored_laws.read_law(name, own)
    if is_named and type(known.law) is not own.family:
        raise ValueError(f'--law_name={args.law_name}: the law in {name} is another, {known.name}')
    return known
