"""What a scaling law is asked: the loss of trainings, how many tokens are too many, what bits and layouts are worth."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from experiments.laws.answers import Answer, Point, Quantity, cells_of, columns_of, tabulate
from experiments.laws.known_laws import KnownLaw
from experiments.laws.law_choices import UNQUANTIZED
from experiments.laws.notation import UNKNOWN, format_name, human
from gaussq_jax.scaling_laws import CapybaraLaw

LOSS = '{:.4f}'.format
FAR = 30.0  # in ln N, of weights that are worth next to nothing


def predict(known: KnownLaw, points: Sequence[Point]) -> Answer:
    """The loss of trainings."""
    remarks = [remark for point in points for remark in known.remarks(N=point['N'], D=point['D'])]
    if known.draws and known.scatter is None:
        remarks.append(f'intervals are of the law; runs scatter about it by {known.noise:.2g} nats')
    loss = Quantity(lambda law, columns: law.loss(**columns), LOSS, is_loss=True)
    return tabulate(known, points, {'loss': loss}, remarks)


def critical(known: KnownLaw, points: Sequence[Point], tokens: Sequence[float]) -> Answer:
    """D_crit, past which more data hurts, and the loss there; a warning where `tokens` are more."""
    size = lambda law, columns: law.critical_data_size(**columns)
    loss = lambda law, columns: law.loss(**columns, D=np.minimum(size(law, columns), 1e100))  # where it is infinite
    remarks = [remark for point in points for remark in known.remarks(N=point['N'])]
    for point, D in itertools.product(points, tokens):
        columns = columns_of([point])
        most = known.value(functools.partial(size, columns=columns)).item()
        if most < D:
            there, least = known.law.loss(**columns, D=D).item(), loss(known.law, columns).item()
            remarks.append(
                f'TOO MANY TOKENS for {" ".join(cells_of(point).values())}: {human(D)} give a loss of {there:.4f},'
                f' {human(most)} one of {least:.4f}'
            )
    quantities = {'critical tokens': Quantity(size, human), 'loss there': Quantity(loss, LOSS)}
    answer = tabulate(known, points, quantities, remarks)
    if all(row['critical tokens'] == np.inf for row in answer.data['rows']):
        answer.lines.append(f'by the law {known.name}, more tokens never hurt here')
    return answer


def layout(known: KnownLaw, points: Sequence[Point]) -> Answer:
    """The best exponent and mantissa bits for each number of bits."""
    require_formats(known)
    quantities = {
        'best E': Quantity(lambda law, columns: law.optimal_layout(**columns)[0], '{:.2f}'.format),
        'best M': Quantity(lambda law, columns: law.optimal_layout(**columns)[1], '{:.2f}'.format),
    }
    points = [{**point, 'format': _best_format(known, point['P'])} for point in points]
    return tabulate(known, points, quantities)


def _best_format(known, P):
    if P % 1:
        return ''
    E, M = known.value(lambda law: law.best_format(P))
    return UNKNOWN if np.isnan(E) else format_name(int(E), int(M))


def worth(known: KnownLaw, points: Sequence[Point]) -> Answer:
    """The weights of an unquantized model that ends at the same loss after as many tokens: how much low bits cost.

    Raises:
      ValueError: for a law that knows no precision.
    """
    if not (unquantized := {name: UNQUANTIZED[name] for name in known.law.COLUMNS if name in UNQUANTIZED}):
        raise ValueError(f'the law {known.name} knows no precision: N weights are worth N')
    weights = lambda law, columns: _weights_of_the_same_loss(law, columns, unquantized)
    share = lambda law, columns: weights(law, columns) / columns['N']
    remarks = [remark for point in points for remark in known.remarks(N=point['N'], D=point['D'])]
    quantities = {'N unquantized': Quantity(weights, human), 'share of N': Quantity(share, '{:.3g}'.format)}
    return tabulate(known, points, quantities, remarks)


def _weights_of_the_same_loss(law, columns, unquantized):
    """By bisection of ln N: the loss falls with it. 0 or infinite where no N is far enough."""
    loss = law.loss(**columns)
    low, high = first, last = np.log(columns['N']) - FAR, np.log(columns['N']) + FAR
    for _ in range(60):
        middle = (low + high) / 2
        is_above = law.loss(**columns | unquantized | {'N': np.exp(middle)}) > loss
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.select([low == first, high == last], [0.0, np.inf], np.exp(low))


def exchange(known: KnownLaw, points: Sequence[Point]) -> Answer:
    """The N for which other bits are best at the cost at which these bits are best for this N."""
    require_formats(known)
    quantities = {'new N': Quantity(lambda law, columns: law.precision_model_exchange(**columns), human)}
    return tabulate(known, points, quantities)


def require_formats(known: KnownLaw):
    """ValueError for a law that knows no exponent and mantissa bits."""
    if not isinstance(known.law, CapybaraLaw):
        raise ValueError(f'this question is of exponent and mantissa bits, of which the law {known.name} knows nothing')
