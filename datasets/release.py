"""What the builders of downloaded sets share: their options, and records made the examples of a set.

A builder reads the text of its release into `Record`s, a list per split; the rest is here. A
mistake in the text is raised at once, before any image is read. An image that can not be read is
noted in `bad` and left out, so that one file does not end hours of work; `mlvicx_jax.data.prepare`
decides whether so many may be missing.
"""

import abc
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from . import archives, dicom, discovery, identity, pictures, radiograph, records, schema, words
from .copies import Copies, of_one_patient
from .pictures import Picture
from .progress import progress
from .records import Record
from .spool import Spool

_GENERAL = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """The options of every set; `name` derives from them.

    size: the side of the stored square images in pixels.
    pseudonymise: store patients' ids as salted hashes (`identity.Pseudonyms`).
    copies: refuse or keep a film of which an earlier split has the very pixels.
    """

    name: str = ''
    size: int = 256
    pseudonymise: bool = False
    copies: str = 'refuse'

    def __post_init__(self):
        if not isinstance(self.size, int) or self.size < 1:
            raise UserError(f'option size is {self.size!r}; give a number of pixels')
        self.expect('copies', ('refuse', 'keep'))
        parts = [f'size{self.size}']
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _GENERAL and field.name != 'size' and value != field.default:
                parts.append(f'{field.name}={_in_a_folder_name(str(value))}')
        self.name = '-'.join(parts)
        self.description = f'8-bit grey, {self.size} x {self.size} pixels'

    def expect(self, option: str, values: Sequence) -> None:
        """Refuses an option's value that is not one of `values`."""
        value = getattr(self, option)
        if value not in values:
            raise UserError(f'option {option} is {value!r}, expected one of {", ".join(map(str, values))}')


def _in_a_folder_name(value: str) -> str:
    """The value, or its hash where a folder can not be called so."""
    if re.fullmatch(r'[\w.,-]{1,40}', value, re.ASCII):
        return value
    return hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:8]


class ReleaseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits `train_val` and `test` from a release on disk.

    Attributes:
        bad: {'file', 'reason'} of every image left out, once prepared.
        archives: tar files to stream instead of `Record.path`.
        published: the split is the publisher's, so films that both splits hold stay in both.
        draw: draws the splits anew once the pixels are known, so that equal films stay together.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}
    PROCESSES = False  # decode in processes: for sets whose decoders keep the interpreter's lock

    bad: list[dict[str, str]]
    archives: Sequence[pathlib.Path] = ()
    published = False
    draw: Callable[[list[Record]], dict[str, list[Record]]] | None = None

    @abc.abstractmethod
    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        """The records of each split; checks all of the release but the pixels."""

    def note(self, text: str, names: Iterable[str] = ()) -> None:
        """Keeps a line in the metadata of the prepared set, for the user to read.

        Args:
            names: of files, folders or patients, of which some follow; under pseudonyms none.
        """
        listed = '' if self.builder_config.pseudonymise else records.some(names)
        self.info.metadata.setdefault('notes', []).append(f'{text}: {listed}' if listed else text)

    def note_passed_over(self, films: discovery.Films) -> None:
        """Notes what else lies where the films were found."""
        if films.passed_over and self.builder_config.pseudonymise:
            counts = (f'{len(names)} {reason}' for reason, names in films.passed_over.items())
            self.note(f'{len(films.paths)} films found; passed over: {"; ".join(counts)}')
        elif films.passed_over:
            self.note(films.describe())

    def find_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Films of a folder, or where it does not exist of the one it lies in, by names without suffix.

        Raises:
            UserError: there is none, or two have one name.
            dicom.NotInstalled: some are DICOM, and pydicom is absent.
        """
        films = discovery.find_films(folder if folder.is_dir() else folder.parent)
        files: dict[str, pathlib.Path] = {}
        for path in films.paths:
            stem = path.stem if path.suffix.lower() in discovery.SUFFIXES else path.name
            if stem in files:
                raise UserError(f'{path}: {files[stem]} has the same name; remove one of them')
            files[stem] = path
        if not files:
            raise UserError(
                f'{folder}: no film is there ({films.describe() or "it is empty"}); unpack the images of the '
                'release into manual_dir'
            )
        if any(path.suffix.lower() in ('.dcm', '.dicom') for path in films.paths):
            dicom.require()
        self.note_passed_over(films)
        return files

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        self.bad = []
        splits = self._read(pathlib.Path(dl_manager.manual_dir))
        records.check(self.name, splits)
        if self.builder_config.pseudonymise:
            self._pseudonyms = identity.Pseudonyms(pathlib.Path(self.data_path).parents[2])
            self.note('patient ids are pseudonyms, also where an image id holds one')
        if self.draw is not None:
            splits, found = self._drawn(splits)
        elif self.archives:
            stream = archives.Stream(self.archives, splits, self.builder_config.size, self.data_path)
            found = {split: stream.pictures(split) for split in splits}
        else:
            found = {split: self._pictures(part) for split, part in splits.items()}
        copies, last = Copies(keep=self.published or self.builder_config.copies == 'keep'), list(splits)[-1]
        return {
            split: self._examples(split, len(part), found[split], copies, split == last)
            for split, part in splits.items()
        }

    def _generate_examples(self):
        raise NotImplementedError('_split_generators returns the examples')

    def _drawn(self, splits: dict[str, list[Record]]) -> tuple[dict[str, list[Record]], dict[str, Iterator]]:
        """Reads all pictures, and draws splits in which equal ones are in one; returns both."""
        spool, everything = Spool(self.data_path), [record for part in splits.values() for record in part]
        for record, picture in progress(self._pictures(everything), len(everything), f'{self.name} reading'):
            spool.keep(record.image_id, picture)
        splits = self.draw(of_one_patient(everything, spool.equal()))
        return splits, {split: spool.read(part) for split, part in splits.items()}

    def _pictures(self, part: list[Record]) -> Iterator[tuple[Record, Picture | str]]:
        picture = functools.partial(pictures.read, size=self.builder_config.size)
        workers = os.cpu_count() or 1
        processes = self.PROCESSES and workers > 1 and len(part) > 100 * workers
        return zip(part, radiograph.parallel_map(picture, part, workers, processes=processes))

    def _examples(
        self, split: str, count: int, found: Iterable, copies: Copies, last: bool
    ) -> Iterator[tuple[str, dict]]:
        labels, stored = np.array(self.info.metadata['labels'], str), 0
        for told, picture in progress(found, count, f'{self.name} {split}'):
            record = self._pseudonyms.replace(told) if self.builder_config.pseudonymise else told
            reason = (
                picture if isinstance(picture, str) else copies.meet(split, record.image_id, picture.digest)
            )
            if reason:
                hidden = self.builder_config.pseudonymise  # a path may hold a patient's id
                file = str(told.path or told.image_id)
                self.bad.append(
                    {
                        'file': record.image_id if hidden else file,
                        'reason': reason.replace(file, record.image_id) if hidden else reason,
                    }
                )
                continue
            stored += 1
            yield record.image_id, _example(record, picture, labels)
        if not stored:
            raise UserError(
                f'{self.name}: no image of {split} can be used; the last reason: {self.bad[-1]["reason"]}'
            )
        if last:
            for line in copies.notes():
                self.note(line)


def _example(record: Record, picture: Picture, labels: np.ndarray) -> dict:
    """The features of `schema`; what the text of the release does not say is the DICOM header's."""
    view, sex, age = words.view(picture.view), words.sex(picture.sex), words.years(picture.age)
    example = {
        'image': picture.png,
        'image_id': record.image_id,
        'patient_id': record.patient_id,
        'labels': np.isin(labels, record.labels).astype(np.uint8),
        'view': _known(schema.VIEWS, record.view, view),
        'sex': _known(schema.SEXES, record.sex, sex),
        'age': record.age if record.age >= 0 else -1 if age is None else age,
        'bboxes': [
            {'bbox': tfds.features.BBox(ymin, xmin, ymax, xmax), 'label': label}
            for label, xmin, ymin, xmax, ymax in picture.boxes
        ],
    }
    if picture.mask is not None:
        example['mask'] = picture.mask
    return example


def _known(names: tuple[str, ...], *said: str | None) -> str:
    return next((name for name in said if name in names[:-1]), names[-1])
