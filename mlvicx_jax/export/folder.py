"""Writes the folder that users take away: weights, config.json and model card, proved before."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from mlvicx_jax import __version__, parallel
from mlvicx_jax.data import augment, source
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen
from mlvicx_jax.export import card, formats
from mlvicx_jax.export.formats import FORMATS, Features, features
from mlvicx_jax.files import write_json
from mlvicx_jax.models.resnet import LEVELS, ResNet18
from mlvicx_jax.run import trained
from mlvicx_jax.run.metrics import read_metrics
from mlvicx_jax.weights import tensors as weights
from mlvicx_jax_datasets.phantom_cxr import render

# Largest difference of a feature, exported against original, in float32; where a feature has
# entries above 1, in units of the largest. Without context bottlenecks they reach 1e3, and the last
# bit of 1e3 is 1e-4.
TOLERANCE = 1e-4
PROOF_IMAGES = 16
WHAT = ('encoder', 'all')


@dataclasses.dataclass(frozen=True)
class Run:
    """What one checkpoint of a run says.

    Attributes:
      config: of the run.
      encoder: its module, in float32 and free of the mesh.
      variables: of the encoder, {'params', 'batch_stats'}.
      rest: the other weights (heads, teachers): {'params', 'batch_stats', 'method_state'}.
      step: of the checkpoint.
      data_hash: SHA-256 of the training split's image ids.
      results: the newest evaluation found in the folder, with its `step`.
    """

    config: ConfigDict
    encoder: ResNet18
    variables: dict
    rest: dict
    step: int
    data_hash: str
    results: dict


def export(
    workdir, form: str, out, what: str = 'encoder', step: int | None = None, data_dir: str | None = None
) -> pathlib.Path:
    """Writes one checkpoint's encoder as the folder `out`, which appears whole or not at all.

    Args:
      workdir: of the run.
      form: one of `FORMATS`.
      out: the new folder.
      what: 'encoder', or 'all' to put the heads and teachers beside it.
      step: of the checkpoint; the newest where None.
      data_dir: where the run's prepared data set lies; with it, `torchvision` also measures what
        the linear probe loses without the context bottlenecks. '' takes the run's own.

    Raises:
        UserError: a name that is not known, a folder that exists, a run that can not be read or
            holds values that are not finite, an encoder that the format can not hold, or features
            that differ by more than `TOLERANCE`.
    """
    if form not in FORMATS:
        raise UserError(f'--format={form!r}, expected one of {", ".join(FORMATS)}')
    if what not in WHAT:
        raise UserError(f'--what={what!r}, expected one of {", ".join(WHAT)}')
    out = pathlib.Path(out).expanduser().absolute()
    if out.exists():
        raise UserError(f'--out={out} exists; give a folder that does not, or remove it')
    for module in FORMATS[form].needs:
        weights.extra(module)
    run = read_run(workdir, step)
    _require_finite(run, what)
    if form == 'torchvision' and run.encoder.width != 64:
        raise UserError(
            f'{workdir}: the encoder is {run.encoder.width} channels wide, '
            "torchvision's resnet18 is 64; take --format=mlvicx: it holds any width"
        )

    with _appearing(out) as folder:
        encoder, variables = _exported(run, form)
        FORMATS[form].write(folder, encoder, variables)
        config = _config(run, form, encoder)
        write_json(folder / 'config.json', config)
        if what == 'all':
            named, kind = (weights.to_torch, 'pt') if FORMATS[form].torch else (weights.flat, 'flax')
            formats.save(folder / 'heads.safetensors', named(run.rest), kind)
        images = proof_images(run.config.data.stored_size)
        size = run.config.data.image_size
        original = features(encoder, variables, images, size)
        proof = compare(original, FORMATS[form].features(folder, encoder, images, size))
        _require_parity(proof)
        loss = None
        if encoder.context != run.encoder.context:
            loss = _context_loss(run, original, images, data_dir)
        (folder / 'README.md').write_text(card.card(run, form, config, proof, loss, what))
    return out


def read_run(workdir, step: int | None = None) -> Run:
    """Reads and proves one checkpoint; the newest where `step` is None."""
    run = trained.load(workdir, step)
    trees = {kind: dict(tree) for kind, tree in run.variables.items()}
    variables = {kind: tree.pop('encoder') for kind, tree in trees.items()}
    return Run(
        run.config,
        run.method.encoder,
        variables,
        {**trees, 'method_state': run.method_state},
        run.step,
        run.data_hash,
        _results(pathlib.Path(workdir).expanduser()),
    )


def proof_images(size: int) -> np.ndarray:
    """Sixteen procedural radiographs, uint8 [16, size, size]: the same ones everywhere."""
    return np.stack([render.render(0, patient, 0, size).image for patient in range(PROOF_IMAGES)])


def compare(original: Features, exported: Features) -> dict[str, dict[str, float]]:
    """For each named feature: largest absolute difference, least cosine of an image, and the
    original's largest entry, against which the difference is to be read."""
    proof = {}
    for name in (*LEVELS, 'pooled'):
        a, b = (x[name].reshape(len(x[name]), -1).astype(np.float64) for x in (original, exported))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = np.all(a == b, axis=1)
        cosine = np.where(same, 1.0, np.sum(a * b, axis=1) / np.maximum(norms, 1e-30))
        proof[name] = {
            'difference': float(np.abs(a - b).max()),
            'cosine': float(cosine.min()),
            'largest': float(np.abs(a).max()),
        }
    return proof


def _require_parity(proof):
    for name, row in proof.items():
        if not row['difference'] <= TOLERANCE * max(1, row['largest']):  # NaN too
            raise UserError(
                f'the exported encoder differs from the original by {row["difference"]:.1e} in '
                f'{name} (largest entry {row["largest"]:.3g}), more than {TOLERANCE:.0e}; nothing '
                'was written. Report this with your versions of jax, torch and onnxruntime'
            )


def _require_finite(run, what):
    trees = {'encoder': run.variables} | ({'heads': run.rest} if what == 'all' else {})
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        if not np.isfinite(np.asarray(leaf)).all():
            raise UserError(
                f'{jax.tree_util.keystr(path)} of step {run.step} has values that are '
                'not finite; give an earlier --step'
            )


def _exported(run, form) -> tuple[ResNet18, dict]:
    """The encoder as the format holds it: torchvision's has no place for context bottlenecks."""
    if form == 'torchvision':
        return run.encoder.clone(context=False), weights.without_context(run.variables)
    return run.encoder, run.variables


def _config(run, form, encoder) -> dict:
    """config.json: how to rebuild the encoder, how to feed it, and where it comes from."""
    recipe = json.loads(run.config.to_json_best_effort())
    for private in ('data_dir', 'manual_dir'):
        recipe['data'].pop(private, None)
    recipe['init'] = pathlib.Path(recipe.get('init', '')).name  # not where it lay here
    return {
        'format': form,
        'architecture': 'resnet18',
        'width': encoder.width,
        'context': encoder.context,
        'reduction': encoder.reduction,
        'features': {name: encoder.width * 2 ** max(i - 1, 0) for i, name in enumerate(LEVELS)}
        | {'pooled': 8 * encoder.width},
        'preprocessing': {
            'input': 'grey, 8 bits, dense tissue bright',
            'size': run.config.data.image_size,
            'resize': 'whole image to size x size, bicubic (a = -1/2) with antialiasing, clipped',
            'scale': 1 / 255,
            'channels': 'grey repeated three times',
            'mean': list(augment.IMAGENET_MEAN),
            'std': list(augment.IMAGENET_STD),
        },
        'step': run.step,
        'train_split_sha256': run.data_hash,
        'recipe': recipe,
        'mlvicx_jax': __version__,
    } | ({'opset': formats.OPSET} if form == 'onnx' else {})


def _results(workdir) -> dict:
    """results.json of a finished run, else the newest evaluation of a running one."""
    if results := trained.read_results(workdir):
        return results
    lines = [line for line in read_metrics(workdir) if 'probe/auroc' in line]
    return lines[-1] if lines else {}


def _context_loss(run, plain: Features, images, data_dir) -> dict:
    """What the encoder is without its context bottlenecks: cosine of the pooled features with and
    without, and, given the data set, the mean AUROC of both probes."""
    size = run.config.data.image_size
    refined = features(run.encoder, run.variables, images, size)
    loss = {'cosine': compare(refined, plain)['pooled']['cosine']}
    if data_dir is None:
        return loss
    section = run.config.data
    data = source.open_dataset(
        section.name,
        data_dir or section.data_dir,
        section.manual_dir,
        {'size': section.stored_size, **section.options},
        section.validation_fraction,
        section.split_seed,
    )
    mesh = parallel.create_mesh(run.config.eval.batch_size)
    for name, encoder, variables in (
        ('with', run.encoder, run.variables),
        ('without', run.encoder.clone(context=False), weights.without_context(run.variables)),
    ):
        found = frozen.evaluate(encoder, variables, data, run.config, mesh)
        loss[name] = {probe: found[f'{probe}/auroc'] for probe in ('probe', 'knn')}
    loss['split'] = run.config.eval.split
    loss['images'] = len(data.splits[loss['split']])
    return loss


@contextlib.contextmanager
def _appearing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `out` that takes its name when all went well and is removed otherwise."""
    partial = out.with_name(f'.{out.name}.partial-{os.getpid()}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        os.rename(partial, out)
    except OSError as error:
        raise UserError(
            f'--out={out} can not be written ({error.strerror or error}); free space or give another folder'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
