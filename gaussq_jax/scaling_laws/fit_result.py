"""A law fitted to runs, with what they say of it and what they don't."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gaussq_jax.scaling_laws.determination import Determination
from gaussq_jax.scaling_laws.errors import Scatter, degrees_of_freedom, quantile_interval, student_t
from gaussq_jax.scaling_laws.law import ScalingLaw


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A law fitted to runs.

    Attributes:
      law: with the fitted constants.
      fixed: constants that were not: their numbers, or the names of those that they equal.
      objective: what was made least, 'squares', 'huber' or 'log_huber'.
      names: the constants that were fitted, in the order of `covariance`.
      errors: what `covariance`, intervals and `bootstrap` assume, a key of `ERRORS`: 'cr3', 'hc3' or 'plain'.
      groups: the number of each run's group, (r,), which no other depends on; of 'hc3' and 'plain', a run is a group.
      covariance: of the logarithms of the constants, and of epsilon itself, (p, p); infinite on the diagonal where the
        runs don't see a constant, or one group of them alone, or a solution with another one is about as good.
      predicted: the law's loss of each run, (r,), and
      residuals: the runs' losses less that.
      scatter: the same of each run by the law without its group, times the root of its weight.
      rmse: the root mean square of the residuals.
      noise: the estimated standard deviation of a loss of weight 1, from r - p degrees of freedom; with log_huber, of
        one as large as the mean.
      undetermined: the constants that the runs don't determine, not to a factor of 7 at 95 %: by their standard errors,
        because they are at a bound, or because another solution found is about as good.
    """

    law: ScalingLaw
    fixed: dict[str, float | str]
    objective: str
    names: tuple[str, ...]
    errors: str
    groups: np.ndarray
    covariance: np.ndarray
    predicted: np.ndarray
    residuals: np.ndarray
    scatter: Scatter
    rmse: float
    noise: float
    undetermined: tuple[str, ...]
    _problem: Any = dataclasses.field(repr=False)  # whose solution it is
    _starts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)  # points

    @property
    def title(self) -> str:
        """Of the law, with what was fixed: 'Chinchilla, beta = alpha'."""
        fixed = (
            f'{name} = {value if isinstance(value, str) else format(value, "g")}' for name, value in self.fixed.items()
        )
        return ', '.join([type(self.law).title(), *fixed])

    @property
    def num_runs(self) -> int:
        """r, the runs that were fitted."""
        return len(self.residuals)

    @property
    def num_groups(self) -> int:
        """g, the groups of them that don't depend on each other."""
        return int(self.groups.max()) + 1

    @property
    def degrees_of_freedom(self) -> int:
        """Of Student's t: r - p; of 'cr3', g - 1 if that is less."""
        return degrees_of_freedom(self.num_runs, len(self.names), self.groups)

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of each fitted constant: the constant times the standard error of its logarithm; epsilon's own."""
        errors, constants = np.sqrt(np.diag(self.covariance)).tolist(), self.law.constants()
        return {name: error * (name == 'epsilon' or constants[name]) for name, error in zip(self.names, errors)}

    @functools.cached_property
    def determination(self) -> Determination:
        """What the runs leave open, by the laws that serve as well: searched for where constants are undetermined."""
        return self._problem.determination(self)

    @property
    def correlations(self) -> np.ndarray:
        """Of what `covariance` is of, (p, p); NaN where the runs don't see a constant."""
        errors = np.sqrt(np.diag(self.covariance))
        errors = np.where(np.isfinite(errors), errors, np.nan)
        return self.covariance / np.outer(errors, errors)

    def confidence_intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Of each fitted constant, by Student's t of `degrees_of_freedom`.

        exp(log c ± t standard errors of log c); of epsilon, epsilon ± t standard errors, and not below 0.
        """
        t = student_t(self.degrees_of_freedom, level)
        with np.errstate(over='ignore'):
            errors = t * np.sqrt(np.diag(self.covariance))
            factors = dict(zip(self.names, np.exp(errors).tolist()))
        constants = {name: self.law.constants()[name] for name in self.names}
        intervals = {name: (value / factors[name], value * factors[name]) for name, value in constants.items()}
        if 'epsilon' in intervals:
            value, error = constants['epsilon'], float(errors[self.names.index('epsilon')])
            intervals['epsilon'] = max(value - error, 0.0), value + error
        return intervals

    def bootstrap(self, num_draws: int = 200, *, seed: int = 0) -> list[ScalingLaw]:
        """Laws fitted to what might as well have been measured: the predicted losses and other residuals.

        Of 'cr3' and 'hc3', a draw multiplies the residuals of each group, those by the law without it, by one standard
        normal number; where outliers count less, by 1 or -1, which leaves them as large as they are. Of 'plain', each
        run gets one of all residuals, enlarged by sqrt(r / (r - p)), which the fit took from them. All residuals of a
        draw are multiplied by sqrt(v / chi^2), of v degrees of freedom: so laws spread as Student's t, where they are
        linear in the constants.

        Source: the wild bootstrap by clusters, Cameron, Gelbach and Miller, Bootstrap-based improvements for inference
        with clustered errors (Review of Economics and Statistics 90, 2008); its factors for medians, Feng, He and Hu,
        Wild bootstrap for quantile regression (Biometrika 98, 2011).
        """
        rng, problem, draws = np.random.default_rng(seed), self._problem, []
        point = problem.point(self.law)
        residuals = -problem.residuals(point) * np.sqrt(self.num_runs / (self.num_runs - len(self.names)))
        signs = lambda number: rng.choice((-1.0, 1.0), number)
        factors = rng.standard_normal if problem.delta is None else signs
        for _ in range(num_draws):
            if self.errors == 'plain':
                drawn = rng.choice(residuals, self.num_runs)
            else:
                drawn = self.scatter.residuals * factors(self.num_groups)[self.groups]
            drawn *= np.sqrt(self.degrees_of_freedom / rng.chisquare(self.degrees_of_freedom))
            draws.append(problem.redrawn(point, drawn))
        return draws

    def interval(
        self, quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw] | None = None, *, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """The interval of what follows from the law, as `lambda law: law.critical_data_size(1e9, 2, 1, 128)`.

        NaN where the runs say nothing of it, whatever the draws say: they stay where the search happened to end.

        Args:
          quantity: from a law to a number or an array.
          draws: of `bootstrap`, if several quantities are to share them.
          level: the part of the draws between the two ends.
        """
        ends = quantile_interval(quantity, self.bootstrap() if draws is None else draws, level=level)
        return self._known(quantity, ends)

    def prediction_interval(
        self, quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw] | None = None, *, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the loss of a run to come, of weight 1: that of the law, the noise, and what no law says.

        A draw's loss and any one of `scatter` make a run that is as likely as all others. It takes a run to be as these
        were: what the law misses far beyond them, they don't show.

        Args:
          quantity: from a law to losses, as `lambda law: law.loss(7e9, 2e12, 4, 3, 64)`.
          draws, level: as for `interval`.
        """
        ends = self.scatter.interval(quantity, self.bootstrap() if draws is None else draws, level=level)
        return self._known(quantity, ends)

    def _known(self, quantity, ends):
        """NaN for ends of what the runs leave open."""
        unknown = self.determination.is_unknown(quantity)
        return tuple(np.where(unknown, np.nan, end) for end in ends)
