"""Scores radiographs with a trained network, a CSV row per image.

    mlvicx predict --workdir workdirs/classify films/ one.dcm --out predictions.csv

Images are PNG, JPEG or DICOM files, or folders of them (in all their folders, by suffix). They pass
through the preprocessing of training data and of evaluation. Columns: path, then the probability of
each label (or with --embeddings the encoder's features e0, e1, ...), then error: the reason where
an image can not be read, whose numbers are empty. A label of which training showed one class alone
has no probability: its column is empty.

Exit code: 0, or 1 where an image could not be read (the others are scored), or 2 for a mistake that
leaves nothing scored (no CSV is written).
"""

import argparse
import contextlib
import csv
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm
from absl import logging

from mlvicx_jax import compilation
from mlvicx_jax.commands._line import Parser, end
from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.models.precision import wide
from mlvicx_jax.run.record import Run, Trained
from mlvicx_jax_datasets import dicom, radiograph
from mlvicx_jax_datasets.image_folder_cxr.image_folder_cxr_dataset_builder import SUFFIXES
from mlvicx_jax_datasets.progress import progress


def main(argv: list[str] | None = None) -> int:
    parser = Parser('predict', __doc__, renamed={'--init': '--workdir'})
    parser.add_argument('--workdir', required=True, metavar='W', help='of the run')
    parser.add_argument('images', nargs='+', help='files and folders')
    parser.add_argument('--out', help='the CSV; by default it is printed')
    parser.add_argument(
        '--embeddings', action='store_true', help="the encoder's pooled features instead of probabilities"
    )
    parser.add_argument('--batch-size', type=int, default=64, help='images (64)')
    return end(functools.partial(_run, parser.read(argv)))


def _run(args: argparse.Namespace) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    compilation.keep_programs()
    compilation.check_sums()
    return 1 if predict(args.workdir, args.images, args.out, args.embeddings, args.batch_size) else 0


def predict(workdir, images: list, out=None, embeddings: bool = False, batch_size: int = 64) -> int:
    """Writes the CSV to `out`, or prints it; returns how many images could not be read.

    Memory does not grow with the number of images, and all batches are of one compiled shape.

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
    read = functools.partial(_read, size=loaded.config.data.stored_size)
    bad = 0
    with _table(out) as table:
        table.writerow(['path', *columns, 'error'])
        rows = zip(paths, radiograph.parallel_map(read, paths, os.cpu_count() or 1))
        if out is not None:
            rows = progress(rows, len(paths), 'predict')
        while batch := list(itertools.islice(rows, batch_size)):
            numbers = iter(_scores(score, batch, batch_size, loaded.config.data.stored_size))
            for path, image in batch:
                if isinstance(image, str):
                    bad += 1
                    tqdm.tqdm.write(f'not scored: {image}', file=sys.stderr)
                    table.writerow([path, *[''] * len(columns), image])
                else:
                    shown = ['' if mute else str(number) for mute, number in zip(silent, next(numbers))]
                    table.writerow([path, *shown, ''])
    if bad:
        print(f'{bad} of {len(paths)} images could not be read; see the column error', file=sys.stderr)
    return bad


def find_images(arguments: list) -> list[str]:
    """The files that are given, and those of the folders that are, by suffix and sorted.

    Raises:
        UserError: a folder has none.
    """
    paths = []
    for argument in map(pathlib.Path, arguments):
        if not argument.is_dir():
            paths.append(str(argument))
            continue
        found = sorted(
            str(path) for path in argument.rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not found:
            raise UserError(
                f'{argument}: no image is there (looked for {", ".join(SUFFIXES)} in '
                'all its folders); give another folder, or name the files'
            )
        paths += found
    return paths


def scorer(loaded: Trained, embeddings: bool) -> tuple[list[str], Callable]:
    """The columns' names, and a function of uint8 [b, S, S, 1] to float32 [b, columns].

    Raises:
        UserError: probabilities of a network that has no classifier.
    """
    size = loaded.config.data.image_size
    if embeddings:
        encoder, variables = loaded.encoder, loaded.encoder_variables
        names = [f'e{i}' for i in range(8 * encoder.width)]
        return names, functools.partial(_outputs, encoder, variables, name='pooled', size=size)
    loaded.require_classifier()
    return list(loaded.run.label_names), functools.partial(
        _outputs, loaded.method.network, loaded.variables, name='logits', size=size
    )


@functools.partial(jax.jit, static_argnames=('network', 'name', 'size'))
def _outputs(network, variables, images, name, size):
    images = augment.standardise(augment.resize(images, size))
    found = wide(network.apply(variables, images, train=False)[name])
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
        return radiograph.resize(radiograph.read_image(path), size)
    except dicom.NotInstalled:
        raise
    except UserError as error:
        return ' '.join(str(error).split())


@contextlib.contextmanager
def _table(out) -> Iterator:
    """A CSV writer to a file that appears when it is whole, or to the terminal."""
    if out is None:
        try:
            yield csv.writer(sys.stdout, lineterminator='\n')
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read it has enough, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    out = pathlib.Path(out)
    partial = out.with_name(out.name + '.partial')
    try:
        with partial.open('w', newline='') as file:
            yield csv.writer(file, lineterminator='\n')
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f'{out}: can not be written ({error.strerror}); give another --out') from error
    finally:
        with contextlib.suppress(OSError):  # it has moved, or could not be made
            partial.unlink()
