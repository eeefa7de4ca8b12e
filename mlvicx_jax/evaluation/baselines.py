"""What a pretrained encoder has to beat: itself before training, and a film's own pixels.

The line to beat is the best of them on the same films, through the same read-out and probes. Being
chosen on the films that it is judged on flatters the baseline, never the pretrained encoder.
"""

import dataclasses
import pathlib
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np

from mlvicx_jax.evaluation import frozen
from mlvicx_jax.evaluation.comparison import mean_auroc_difference
from mlvicx_jax.evaluation.statistics import Estimate
from mlvicx_jax.files import write_arrays
from mlvicx_jax.terminal import say

PIXELS = 32  # side of the films whose pixels are features
# Name to the ending that its numbers have in metrics.jsonl and results.json.
ENDINGS = {
    'initial, calibrated': '_init',
    'initial, uncalibrated': '_init_uncalibrated',
    f'{PIXELS} x {PIXELS} pixels': '_pixels',
}
PROBES = 'probe', 'knn'


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A network of no parameters whose `pixels` [b, h w] are the film, so that it is probed as one."""

    def apply(self, variables, images, train):
        return {'pixels': images[..., 0].reshape(len(images), -1).astype(jnp.float32)}


def scores(encoder, variables, data, config, mesh, workdir) -> dict[str, dict[str, np.ndarray]]:
    """{baseline: {'probe' | 'knn': scores [m, labels] of the films of `config.eval.split`}}.

    They are kept in `baselines.npz` of the run, which goes on after a stop without computing them.

    Args:
        variables: of the encoder as it was initialised.
    """
    path = pathlib.Path(workdir) / 'baselines.npz'
    found = _read(path)
    if found is not None:
        return found
    say('probing what is to beat: the initial encoder, and pixels ...')
    size = config.data.image_size
    readings = frozen.initial_readings(encoder, variables, data.splits['train'], size, config.batch_size, mesh)
    found = {
        f'initial, {reading}': frozen.scores(encoder, of, data, config, mesh, size, config.eval.readout)
        for reading, of in readings.items()
    }
    found[f'{PIXELS} x {PIXELS} pixels'] = frozen.scores(Pixels(), {}, data, config, mesh, PIXELS, 'pixels')
    write_arrays(path, {f'{name}/{probe}': array for name, of in found.items() for probe, array in of.items()})
    return found


def _read(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]] | None:
    """The scores that a run keeps, or None."""
    try:
        with np.load(path) as file:
            return {name: {probe: file[f'{name}/{probe}'] for probe in PROBES} for name in ENDINGS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # absent, or damaged: they are computed again


def numbers(found, data, config) -> dict[str, float]:
    """`probe/auroc` and `knn/auroc` of each baseline's scores, with its ending of `ENDINGS`."""
    result: dict[str, float] = {}
    for name, ending in ENDINGS.items():
        of = frozen.numbers(found[name], data, config)
        result |= {f'{probe}/auroc{ending}': of[f'{probe}/auroc'] for probe in PROBES}
    return result


def line_to_beat(found, probe: str = 'probe') -> str:
    """The baseline with the greatest mean AUROC of that probe, of the `numbers` of all."""
    return max(ENDINGS, key=lambda name: np.nan_to_num(found[f'{probe}/auroc{ENDINGS[name]}'], nan=-1.0))


def gain(scores: np.ndarray, baseline: np.ndarray, data, config) -> Estimate:
    """Mean AUROC over findings of `scores` minus that of `baseline`, with a paired 95 % interval.

    Args:
        scores, baseline: [m, labels], of the films of `config.eval.split`.

    Returns:
        Estimate of floats; NaN where no finding can be judged.
    """
    split, places = data.splits[config.eval.split], frozen.findings(data)
    return mean_auroc_difference(
        split.labels[:, places], scores[:, places], baseline[:, places], split.patient_ids
    )
