"""Scores radiographs with a trained network, a CSV row per image.

    mlvicx predict --workdir workdirs/classify films/ one.dcm --out predictions.csv

Images are PNG, JPEG, DICOM, TIFF, BMP or WebP files, or folders of them (in all their folders, told
by content; what is passed over is counted). They pass through the preprocessing of training data and
of evaluation. Columns: path, then the probability of each label (or with --embeddings the encoder's
features e0, e1, ...), then error: the reason where an image can not be read, whose numbers are empty.
A label of which training showed one class alone has no probability: its column is empty.

With --out, rows are kept as they come, in <out>.<hash>.partial: stopped at any moment, the same
command goes on behind the last of them, and ends in the same table.

Exit code: 0, or 1 where an image could not be read (the others are scored), or 2 for a mistake that
leaves nothing scored (no CSV is written).
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from absl import logging

from mlvicx_jax import compilation
from mlvicx_jax.commands import _kept_table
from mlvicx_jax.commands._line import Parser, end
from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.models import readout
from mlvicx_jax.models.precision import wide
from mlvicx_jax.run.record import Run, Trained
from mlvicx_jax.weights import tensors
from mlvicx_jax_datasets import dicom, discovery, radiograph
from mlvicx_jax_datasets.progress import progress


def main(argv: list[str] | None = None) -> int:
    parser = Parser('predict', __doc__, renamed={'--init': '--workdir'})
    parser.add_argument('--workdir', required=True, metavar='W', help='of the run')
    parser.add_argument('images', nargs='+', help='files and folders')
    parser.add_argument('--out', help='the CSV; by default it is printed')
    parser.add_argument(
        '--embeddings', action='store_true', help="the encoder's features instead of probabilities"
    )
    parser.add_argument('--readout', choices=readout.READOUTS, default='pooled', help='which features (pooled)')
    parser.add_argument('--batch-size', type=int, default=64, help='images (64)')
    return end(functools.partial(_run, parser.read(argv)))


def _run(args: argparse.Namespace) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    compilation.keep_programs()
    compilation.check_sums()
    embeddings = args.readout if args.embeddings else None
    return 1 if predict(args.workdir, args.images, args.out, embeddings, args.batch_size) else 0


def predict(workdir, images: list, out=None, embeddings: str | None = None, batch_size: int = 64) -> int:
    """Writes the CSV to `out`, or prints it; returns how many images could not be read.

    Rows are on disk as they come: the same call goes on with a table that was stopped.

    Memory does not grow with the number of images, and all batches are of one compiled shape.

    Args:
        embeddings: the read-out whose features take the place of the probabilities.

    Raises:
        UserError: no image is there, `workdir` holds no run or no classifier, `out` can not be
            written, a DICOM where pydicom is absent.
    """
    if batch_size < 1:
        raise UserError(f'--batch-size is {batch_size}, expected 1 or more')
    paths = find_images(images)
    loaded = Run.open(workdir).network()
    columns, score = scorer(loaded, embeddings)
    silent = np.isin(columns, loaded.run.labels_without_score)
    stored = loaded.config.data.stored_size
    names = list(map(discovery.printable, paths))
    with _kept_table.opened(
        out, ['path', *columns, 'error'], paths, names, _made_by(loaded, columns, embeddings)
    ) as table:
        bad, begun = sum(bool(row[-1]) for row in table.kept), len(table.kept)
        if begun:
            print(f'{begun} of {len(paths)} images were scored by an earlier start', file=sys.stderr)
        films = radiograph.parallel_map(
            functools.partial(_read, size=stored), paths[begun:], os.cpu_count() or 1
        )
        rows = zip(names[begun:], films)
        if out is not None:
            rows = progress(rows, len(paths) - begun, 'predict')
        while batch := list(itertools.islice(rows, batch_size)):
            numbers = iter(_scores(score, batch, batch_size, stored))
            found = []
            for name, image in batch:
                if isinstance(image, str):
                    bad += 1
                    tqdm.tqdm.write(f'not scored: {image}', file=sys.stderr)
                    found.append([name, *[''] * len(columns), image])
                else:
                    shown = ['' if mute else str(number) for mute, number in zip(silent, next(numbers))]
                    found.append([name, *shown, ''])
            table.write(found)
    if bad:
        print(f'{bad} of {len(paths)} images could not be read; see the column error', file=sys.stderr)
    return bad


def _made_by(loaded: Trained, columns: list[str], embeddings: str | None) -> str:
    """Eight letters that change with the network, with what is asked of it and with the films' sizes."""
    made_of = [tensors.digest(loaded.variables), columns, embeddings, loaded.config.data.to_json_best_effort()]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]


def find_images(arguments: list) -> list[str]:
    """The files that are given, and the films of the folders that are; says what is passed over.

    Raises:
        UserError: a folder has none.
    """
    found = discovery.find_films(arguments)
    if not found.paths:
        raise UserError(
            f'{", ".join(map(discovery.printable, arguments))}: no image is there (looked for '
            f'{discovery.FORMATS} in all folders; {found.describe()}); give another folder, or name the files'
        )
    if found.passed_over:
        print(found.describe(), file=sys.stderr)
    return list(map(str, found.paths))


def scorer(loaded: Trained, embeddings: str | None) -> tuple[list[str], Callable]:
    """The columns' names, and a function of uint8 [b, S, S, 1] to float32 [b, columns].

    Raises:
        UserError: probabilities of a network that has no classifier.
    """
    size = loaded.config.data.image_size
    if embeddings:
        score = functools.partial(
            _outputs, loaded.encoder, loaded.encoder_variables, name=embeddings, size=size
        )
        film = jax.ShapeDtypeStruct((1, size, size, 1), np.uint8)
        return [f'e{i}' for i in range(jax.eval_shape(score, images=film).shape[1])], score
    loaded.require_classifier()
    return list(loaded.run.label_names), functools.partial(
        _outputs, loaded.method.network, loaded.variables, name='logits', size=size
    )


@functools.partial(jax.jit, static_argnames=('network', 'name', 'size'))
def _outputs(network, variables, images, name, size):
    images = augment.standardise(augment.resize(images, size))
    found = wide(readout.read(network.apply(variables, images, train=False), name))
    return jax.nn.sigmoid(found) if name == 'logits' else found


def _scores(score: Callable, batch: list, batch_size: int, size: int) -> np.ndarray:
    """Numbers of the images of a batch that could be read; black ones fill it up."""
    images = [image for _, image in batch if not isinstance(image, str)]
    filled = np.zeros((batch_size, size, size, 1), np.uint8)
    if images:
        filled[: len(images), ..., 0] = images
    return np.asarray(score(images=filled))[: len(images)]


def _read(path: str, size: int) -> np.ndarray | str:
    """The image as `prepare` stores it, uint8 [size, size], or why it can not be read."""
    try:
        return radiograph.resize(radiograph.read_radiograph(path).image, size)
    except dicom.NotInstalled:
        raise
    except UserError as error:
        return ' '.join(str(error).split())
