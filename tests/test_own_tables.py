"""Tables as people have them are read right, or refused with the way out; nothing is passed over unsaid."""

import csv
import io
import pathlib

import numpy as np
import pytest
from worlds import write_film

from mlvicx_jax.commands import prepare as command
from mlvicx_jax.data.prepare import prepare, read_report
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import tables

FILMS = 6


def _own(tmp_path, table, encoding='utf-8', **options):
    """Prepares six films with a table: text, or columns {name: cells, repeated to six}."""
    root = tmp_path / 'raw'
    for i in range(FILMS):
        if not (path := root / f'images/{i:03}.png').exists():
            write_film(path, i)
    if isinstance(table, dict):
        table = _text(table)
    (root / 'table.csv').write_bytes(table if isinstance(table, bytes) else table.encode(encoding))
    return prepare('image_folder_cxr', tmp_path / 'data', root, {'size': 32, **options})


def _text(columns, separator=','):
    """A table whose first column names the films, unless it has one that does."""
    columns = {'image': [f'images/{i:03}.png' for i in range(FILMS)], **columns}
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(columns)
    writer.writerows([cells[i % len(cells)] for cells in columns.values()] for i in range(FILMS))
    return file.getvalue()


def _films(builder):
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


def _notes(builder):
    return '\n'.join(builder.info.metadata['notes'])


def _each(builder, key):
    return [film[key] for film in _films(builder)]


@pytest.mark.parametrize('separator', [';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252'])
def test_separators_and_encodings(tmp_path, separator, encoding):
    text = _text({'label': ['Ergüsse', 'Größe'], 'age': ['58,5']}, separator)
    builder = _own(tmp_path, text, encoding)
    assert _each(builder, 'labels') == [{'Ergüsse'}, {'Größe'}] * 3 and set(_each(builder, 'age')) == {58}
    assert 'separated by' in _notes(builder)
    assert ('Windows-1252' in _notes(builder)) == (encoding == 'cp1252')


def test_what_excel_adds(tmp_path):
    text = 'sep=;\r\n' + _text({'label': ['A, left', 'B']}, ';').replace('\r\n', ';\r\n') + ';;\r\n\r\n'
    assert _each(_own(tmp_path, text), 'labels') == [{'A', 'left'}, {'B'}] * 3


@pytest.mark.parametrize('sign', ['\u2028', '\x85', '\x0b', '\x1c', '\n', '\r\n'])
def test_a_sign_that_some_take_for_the_end_of_a_line(tmp_path, sign):
    builder = _own(tmp_path, {'report': [f'one{sign}two'], 'label': ['A']})
    assert _each(builder, 'labels') == [{'A'}] * FILMS and "1 columns not used: 'report'" in _notes(builder)


@pytest.mark.parametrize(
    'names',
    [
        ['Image Index', 'Finding Labels', 'Patient ID', 'Patient Gender', 'Patient Age', 'View Position'],
        ['Path', 'Label', 'PatientId', 'Sex', 'age', 'ViewPosition'],
        ['image_path', 'class', 'subject_id', 'gender', 'AGE', 'AP/PA'],
        ['Dateiname', 'Befund', 'Patienten-Nr.', 'Geschlecht', 'Alter', 'Ansicht'],
    ],
)
def test_headers(tmp_path, names):
    cells = [[f'images/{i:03}.png' for i in range(FILMS)], ['A'], ['p1', 'p2', 'p3'], ['f'], ['060Y'], ['pa']]
    rows = [','.join(names), *(','.join(c[i % len(c)] for c in cells) for i in range(FILMS))]
    films = _films(_own(tmp_path, '\n'.join(rows)))
    assert films == [
        {'labels': {'A'}, 'view': 'PA', 'sex': 'F', 'age': 60, 'patient': f'p{1 + i % 3}'} for i in range(FILMS)
    ]


def test_words_are_understood_and_the_rest_is_counted(tmp_path):
    builder = _own(
        tmp_path,
        {
            'sex': ['Male', 'f', 'Female', 'm', '3', ''],
            'view': ['pa', 'AP Supine', 'Frontal', 'LATERAL', 'sitting', 'ap'],
            'age': ['>89', 'NA', '45.5', '090Y', 'old', '5' * 5000],
        },
    )
    assert _each(builder, 'sex') == ['M', 'F', 'F', 'M', 'unknown', 'unknown']
    assert _each(builder, 'view') == ['PA', 'AP', 'unknown', 'unknown', 'unknown', 'AP']
    assert _each(builder, 'age') == [89, -1, 45, 90, -1, -1]
    for words in (
        "sex: 1 cells were not understood and count as unknown: '3' (1)",
        "view: 1 cells were not understood and count as unknown: 'sitting' (1)",
        "age: 2 cells were not understood and count as unknown: 'old' (1)",
        '1 films are lateral views',
    ):
        assert words in _notes(builder)
    assert (
        len(_notes(builder)) < 2000
        and read_report(builder.data_path)['notes'] == builder.info.metadata['notes']
    )


CHEXPERT = {
    'Sex': ['Female'],
    'Frontal/Lateral': ['Frontal', 'Lateral'],
    'AP/PA': ['AP', ''],
    'No Finding': ['1.0', '', ''],
    'Cardiomegaly': ['', '1.0', '0.0'],
    'Edema': ['nan', '-1.0', '1'],
}


@pytest.mark.parametrize(
    'uncertain,labels',
    [
        (None, [{'No Finding'}, {'Cardiomegaly'}, {'Edema'}] * 2),
        ('positive', [{'No Finding'}, {'Cardiomegaly', 'Edema'}, {'Edema'}] * 2),
        ('ignore', [{'No Finding'}, {'Edema'}] * 2),
    ],
)
def test_a_column_for_each_finding(tmp_path, uncertain, labels):
    builder = _own(tmp_path, CHEXPERT, **({'uncertain': uncertain} if uncertain else {}))
    assert builder.info.metadata['labels'] == ['Cardiomegaly', 'Edema', 'No Finding']
    assert _each(builder, 'labels') == labels
    assert 'uncertain (-1) are' in _notes(builder) and 'Edema 2' in _notes(builder)
    assert ('2 films are left out' in _notes(builder)) == (uncertain == 'ignore')


@pytest.mark.parametrize(
    'column,expected,names',
    [
        ({'label': ['1.0', '0.0', '-1.0', 'nan', '1.0', '0']}, [1, 0, 0, 0, 1, 0], ['label']),
        ({'Target': ['yes', 'no', '']}, [1, 0, 0] * 2, ['Target']),
        ({'pneumonia': ['x', '']}, [1, 0] * 3, ['pneumonia']),
    ],
)
def test_one_column_of_flags_is_one_finding(tmp_path, column, expected, names):
    builder = _own(tmp_path, column)
    assert builder.info.metadata['labels'] == names
    assert [int(labels == set(names)) for labels in _each(builder, 'labels')] == expected


@pytest.mark.parametrize(
    'cells,labels',
    [
        (['Nodule, Effusion', 'Nodule'], [{'Nodule', 'Effusion'}, {'Nodule'}]),
        (['Nodule;Effusion', 'Mass, left'], [{'Nodule', 'Effusion'}, {'Mass, left'}]),
        (["['pneumonia', 'COPD signs']", '[]'], [{'pneumonia', 'COPD signs'}, set()]),
        (['Pleural_Thickening', 'pleural thickening'], [{'Pleural_Thickening'}] * 2),
        (['No finding', 'no_finding'], [{'No Finding'}] * 2),
        (['2.0', '0'], [{'2'}, {'0'}]),
    ],
)
def test_names_in_cells(tmp_path, cells, labels):
    builder = _own(tmp_path, {'label': cells})
    assert _each(builder, 'labels') == labels * 3
    assert ('joins the spellings' in _notes(builder)) == (len(set(map(frozenset, labels))) == 1)


@pytest.mark.parametrize(
    'columns,words',
    [
        (
            {'Patient Code': ['a', 'b', 'c']},
            ["'Patient Code' looks like patients", '--column patient="Patient Code"'],
        ),
        ({'study_id': ['1', '2']}, ["'study_id' looks like patients", '--column ignore="study_id"']),
        ({'Fallnr': ['1', '2']}, ["'Fallnr' looks like patients"]),
        ({'group': ['train', 'test']}, ["'group' looks like the split", '--column split="group"']),
        ({'cv_fold': ['0', '1']}, ["'cv_fold' looks like the split"]),
        ({'ground_truth_label': ['sick', 'well']}, ["'ground_truth_label' looks like labels"]),
        ({'what': ['Cardiomegaly', 'Normal']}, ["'what' looks like labels", '--column label="what"']),
        ({'Edema': ['0', '1', '3']}, ["'Edema' looks like a finding, but 2 cells are '3'"]),
        ({'label': ['A'], 'Mass': ['0', '1']}, ["'Mass' looks like a finding", "only 'label' is meant with"]),
    ],
)
def test_a_column_that_looks_like_something_is_mapped_or_ignored(tmp_path, columns, words):
    with pytest.raises(UserError) as error:
        _own(tmp_path, columns)
    assert '\n' not in str(error.value)
    for word in (*words, 'table.csv', 'data.options.columns'):
        assert word in str(error.value)
    name = list(columns)[-1]
    builder = _own(tmp_path, columns, columns=f'ignore={name}')
    assert f"not used: '{name}'" in _notes(builder)


def test_columns_are_mapped_on_the_command_line(tmp_path, capsys):
    table = {'Code': ['a', 'b', 'c'], 'what': ['sick', 'well'], 'group': ['train', 'train', 'test']}
    with pytest.raises(UserError, match='looks like the split'):
        _own(tmp_path, table)
    arguments = [
        *('--dataset', 'image_folder_cxr', '--data_dir', str(tmp_path / 'data')),
        *('--manual_dir', str(tmp_path / 'raw'), '--option', 'size=32'),
    ]
    for column in ('patient=Code', 'label=what', 'split=group'):
        arguments += ['--column', column]
    command.main(arguments)
    printed = capsys.readouterr().out
    assert "label = 'what'" in printed and "patient = 'Code'" in printed and 'test: 2 images' in printed
    for column, words in (('who=Code', 'expected ROLE=NAME'), ('patient=Kode', "no column 'Kode'")):
        with pytest.raises(SystemExit) as exit_:
            command.main([*arguments[:8], '--option', 'split=random', '--column', column])
        assert words in str(exit_.value) and '\n' not in str(exit_.value)


def test_ids_that_differ_in_form_are_one_patient(tmp_path):
    ids = ['1', '1.0', '0002', '2', 'Ann', 'ANN ']
    builder = _own(tmp_path, {'label': ['A'], 'patient_id': ids})
    assert _each(builder, 'patient') == ['1', '1', '2', '2', 'ANN', 'ANN']
    assert 'spelled in several ways' in _notes(builder)
    for number, pair in enumerate((('3', '3.0'), ('007', '7'), ('bob', ' Bob'))):
        split = {'patient_id': [*pair, 'x', 'y', 'z', 'u'], 'split': ['train', 'test']}
        with pytest.raises(UserError, match=r'patient (3|7|bob) \(written .*\) both in train_val and test'):
            _own(tmp_path / str(number), split)


@pytest.mark.parametrize('blank', ['', 'nan', 'N/A', 'unknown', 'ANONYMOUS'])
def test_blank_patients_are_not_one_patient(tmp_path, blank):
    builder = _own(tmp_path, {'patient_id': [blank, 'ann', 'bob']})
    assert len(set(_each(builder, 'patient'))) == 4
    assert 'of 2 films no patient is given' in _notes(builder)


def test_names_of_films_in_other_forms(tmp_path):
    names = [
        'set/images/000.png',
        'images\\001.png',
        '002.png',
        '003',
        str(tmp_path / 'raw/images/004.png'),
        '005',
    ]
    builder = _own(tmp_path, {'image': names})
    assert sum(split.num_examples for split in builder.info.splits.values()) == FILMS
    assert '4 films were found in another folder' in _notes(builder)


def test_a_film_is_not_taken_for_two_rows(tmp_path):
    names = [
        'images/000.png',
        'p1/000.png',
        'p1/001.png',
        'other/p1/images/001.png',
        'more/images/001.png',
        '003',
    ]
    with pytest.raises(UserError, match='3 of 6 images can not be used'):
        _own(tmp_path, {'image': names})


def test_films_without_a_row_and_rows_without_a_film_are_told(tmp_path):
    names = [f'images/{i:03}.png' for i in range(4)] + ['gone.png', 'images/nul\0.png']
    with pytest.raises(UserError, match='2 of 6 images can not be used'):
        _own(tmp_path, {'image': names})
    (report,) = (tmp_path / 'data').rglob('prepare_report.json')
    report = read_report(report.parent)
    assert any('2 films have no row in table.csv' in note for note in report['notes'])
    assert {row['reason'].rpartition(': ')[2][:26] for row in report['bad']} > {'the image file does not ex'}


@pytest.mark.parametrize(
    'table,words',
    [
        ('image,label\nimages/000.png,"A\n', ['line', 'quote not closed']),
        (b'image,label\n' + b',' * (3 << 20), ['row of more than 1048576 characters']),
        (b'image,label\n' + b'\0' * (3 << 20), ['row of more than 1048576 characters']),
        (b'image,label\nimages/000.png,"' + b'a' * 200_000 + b'"', ['line 2', 'field limit']),
        (','.join(f'c{i}' for i in range(3000)) + '\n' + '1,' * 3000, ['3000 columns, expected 2000']),
        (b'PK\3\4' + bytes(100), ['an Excel or Calc workbook', 'save it as CSV']),
        ('image,label\nimages/000.png,Nodule, left\n', ['line 2', '3 fields, the header has 2', 'quotes']),
        ('image,label\nimages/000.png\n', ['line 2', '1 fields, the header has 2']),
        ('images/000.png;A\nimages/001.png;B\n', ['no column of images', 'semicolon', 'looks like a row']),
        ('', ['no rows']),
        ('image,' + 'b' * 600 + '\nimages/000.png,A\n', ['a name of 600 characters', 'is it the header?']),
        ('image,findings\n' + ''.join(f'images/{i:03}.png,text {i}\n' for i in range(60)), ['looks like text']),
        (
            'image,split\nimages/000.png,train\nimages/001.png,later\n',
            ["'later', expected one of", 'split=random'],
        ),
        ('image,patient_id\nimages/000.png,a\nimages/001.png,a\n', ['of one patient', '--column ignore']),
        ('image\n' + 'a' * 5000 + '\n', ['has 5000 characters']),
    ],
)
def test_bad_tables_end_in_one_line(tmp_path, table, words):
    with pytest.raises(UserError) as error:
        _own(tmp_path, table)
    assert '\n' not in str(error.value) and len(str(error.value)) < 1500
    for word in words:
        assert word in str(error.value)


def test_a_table_is_read_row_by_row(tmp_path):
    """Memory does not grow with the table: 50,000 rows of 200 characters pass in a few hundred kB."""
    import tracemalloc

    path = tmp_path / 'long.csv'
    path.write_text('image,text\n' + ''.join(f'{i}.png,{"x" * 200}\n' for i in range(50_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in tables.open_table(path).rows()) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
