"""Other intervals of AUROC over patients, for `coverage` to compare with: bootstraps, plain DeLong."""

import numpy as np
from scipy import special, stats

from mlvicx_jax.evaluation.contributions import area, taken_apart

OTHERS = ('percentile', 'BCa', 'studentised', 'DeLong, normal', 'DeLong, t')
RESAMPLES = 1000
FEWEST = 0.9  # share of resamples with both classes that an interval needs


def log_odds(value, error, quantile):
    middle, reach = special.logit(value), quantile * error / (value * (1 - value))
    return special.expit(middle - reach), special.expit(middle + reach)


def other_methods(rng, patient, labels, scores):
    """{method: (low, high)} [k] of AUROCs; NaN is n/a."""
    parts, available = taken_apart(area, labels, scores, patient)
    found = {name: np.full((2, labels.shape[1]), np.nan) for name in OTHERS}
    with np.errstate(all='ignore'):
        v = np.where(parts.patients.min(0) > 1, parts.variance, np.nan)
        v[v == 0] = np.nan
        for name, quantile in (('DeLong, normal', 1.96), ('DeLong, t', stats.t.ppf(0.975, parts.df))):
            found[name][:, available] = log_odds(parts.value, np.sqrt(v), quantile)
        times = rng.multinomial(patient.max() + 1, np.ones(patient.max() + 1) / (patient.max() + 1), RESAMPLES)
        for c in np.flatnonzero(available):
            for name, ends in bootstrap(times.astype(float), patient, labels[:, c], scores[:, c]).items():
                found[name][:, c] = ends
    return found


def bootstrap(times, patient, label, score):
    """Percentile, BCa and studentised intervals of an AUROC. times: [resamples, patients]."""
    right = (score[label][:, None] > score[~label][None]) + 0.5 * (score[label][:, None] == score[~label][None])
    count = times.shape[1]
    rows, columns = (np.eye(count)[patient[side]] for side in (label, ~label))
    pairs, p, n = rows.T @ right @ columns, rows.sum(0), columns.sum(0)  # of patient and patient

    def at(times):
        """Areas and their standard errors (Obuchowski's) where patients count `times`."""
        below, above, positives, negatives = times @ pairs.T, times @ pairs, times @ p, times @ n
        value = np.sum(below * times, 1) / (positives * negatives)
        a = below / (positives * negatives)[:, None] - value[:, None] * p / positives[:, None]
        b = above / (positives * negatives)[:, None] - value[:, None] * n / negatives[:, None]
        m, l = times @ (p > 0), times @ (n > 0)
        s = [np.sum(times * some, 1) for some in (a**2, b**2, a * b)]
        variance = m / (m - 1) * s[0] + l / (l - 1) * s[1] + 2 * count / (count - 1) * s[2]
        return value, np.sqrt(variance)

    (value,), (error,) = at(np.ones((1, count)))
    values, errors = at(times)
    none = dict.fromkeys(('percentile', 'BCa', 'studentised'), (np.nan, np.nan))
    if np.mean(np.isfinite(values)) < FEWEST:
        return none
    found = none | {'percentile': np.nanquantile(values, (0.025, 0.975))}
    jackknife = at(1 - np.eye(count))[0]
    pull = np.nanmean(jackknife) - jackknife
    acceleration = np.nansum(pull**3) / (6 * np.nansum(pull**2) ** 1.5)
    bias = stats.norm.ppf(
        np.nanmean(np.where(np.isfinite(values), (values < value) + 0.5 * (values == value), np.nan))
    )
    z = bias + stats.norm.ppf([0.025, 0.975])
    level = stats.norm.cdf(bias + z / (1 - acceleration * z))
    if np.isfinite(level).all():
        found['BCa'] = np.nanquantile(values, level)
    t = (special.logit(values) - special.logit(value)) / (errors / (values * (1 - values)))
    t = t[np.isfinite(t)]
    if 0 < value < 1 and error > 0 and len(t) > FEWEST * len(values):
        quantiles = np.quantile(t, (0.975, 0.025))
        found['studentised'] = special.expit(special.logit(value) - quantiles * error / (value * (1 - value)))
    return found
