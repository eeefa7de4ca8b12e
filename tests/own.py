"""Six films with a table of one's own, prepared, and what is in the set then."""

import csv
import io
import pathlib

import numpy as np
from worlds import write_film

from mlvicx_jax.data.prepare import prepare

FILMS = 6


def own(tmp_path, table, encoding='utf-8', **options):
    """Prepares six films with a table: text, or columns {name: cells, repeated to six}."""
    root = tmp_path / 'raw'
    for i in range(FILMS):
        if not (path := root / f'images/{i:03}.png').exists():
            write_film(path, i)
    if isinstance(table, dict):
        table = table_text(table)
    (root / 'table.csv').write_bytes(table if isinstance(table, bytes) else table.encode(encoding))
    return prepare('image_folder_cxr', tmp_path / 'data', root, {'size': 32, **options})


def table_text(columns, separator=','):
    """A table whose first column names the films, unless it has one that does."""
    columns = {'image': [f'images/{i:03}.png' for i in range(FILMS)], **columns}
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(columns)
    writer.writerows([cells[i % len(cells)] for cells in columns.values()] for i in range(FILMS))
    return file.getvalue()


def films_of(builder):
    """By number of the film: its labels, view, sex, age and patient."""
    names, features, found = builder.info.metadata['labels'], builder.info.features, {}
    for split in builder.info.splits:
        for e in builder.as_data_source(split):
            found[int(pathlib.PurePath(e['image_id'].decode()).stem)] = {
                'labels': {names[k] for k in np.flatnonzero(e['labels'])},
                'view': features['view'].int2str(e['view']),
                'sex': features['sex'].int2str(e['sex']),
                'age': int(e['age']),
                'patient': e['patient_id'].decode(),
            }
    return [found[i] for i in sorted(found)]


def notes(builder):
    return '\n'.join(builder.info.metadata['notes'])


def each(builder, key):
    return [film[key] for film in films_of(builder)]
