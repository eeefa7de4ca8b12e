"""Tables as people have them are read right, or refused with the way out; nothing is passed over unsaid."""

import pytest
from own import FILMS, each, films_of, notes, own

from mlvicx_jax.commands import prepare as command
from mlvicx_jax.data.prepare import read_report
from mlvicx_jax.errors import UserError


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
    films = films_of(own(tmp_path, '\n'.join(rows)))
    assert films == [
        {'labels': {'A'}, 'view': 'PA', 'sex': 'F', 'age': 60, 'patient': f'p{1 + i % 3}'} for i in range(FILMS)
    ]


def test_words_are_understood_and_the_rest_is_counted(tmp_path):
    builder = own(
        tmp_path,
        {
            'sex': ['Male', 'f', 'Female', 'm', '3', ''],
            'view': ['pa', 'AP Supine', 'Frontal', 'LATERAL', 'sitting', 'ap'],
            'age': ['>89', 'NA', '45.5', '090Y', 'old', '5' * 5000],
        },
    )
    assert each(builder, 'sex') == ['M', 'F', 'F', 'M', 'unknown', 'unknown']
    assert each(builder, 'view') == ['PA', 'AP', 'unknown', 'unknown', 'unknown', 'AP']
    assert each(builder, 'age') == [89, -1, 45, 90, -1, -1]
    for words in (
        "sex: 1 cells were not understood and count as unknown: '3' (1)",
        "view: 1 cells were not understood and count as unknown: 'sitting' (1)",
        "age: 2 cells were not understood and count as unknown: 'old' (1)",
        '1 films are lateral views',
    ):
        assert words in notes(builder)
    assert (
        len(notes(builder)) < 2000 and read_report(builder.data_path)['notes'] == builder.info.metadata['notes']
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
    builder = own(tmp_path, CHEXPERT, **({'uncertain': uncertain} if uncertain else {}))
    assert builder.info.metadata['labels'] == ['Cardiomegaly', 'Edema', 'No Finding']
    assert each(builder, 'labels') == labels
    assert 'uncertain (-1) are' in notes(builder) and 'Edema 2' in notes(builder)
    assert ('2 films are left out' in notes(builder)) == (uncertain == 'ignore')


@pytest.mark.parametrize(
    'column,expected,names',
    [
        ({'label': ['1.0', '0.0', '-1.0', 'nan', '1.0', '0']}, [1, 0, 0, 0, 1, 0], ['label']),
        ({'Target': ['yes', 'no', '']}, [1, 0, 0] * 2, ['Target']),
        ({'pneumonia': ['x', '']}, [1, 0] * 3, ['pneumonia']),
    ],
)
def test_one_column_of_flags_is_one_finding(tmp_path, column, expected, names):
    builder = own(tmp_path, column)
    assert builder.info.metadata['labels'] == names
    assert [int(labels == set(names)) for labels in each(builder, 'labels')] == expected


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
    builder = own(tmp_path, {'label': cells})
    assert each(builder, 'labels') == labels * 3
    assert ('joins the spellings' in notes(builder)) == (len(set(map(frozenset, labels))) == 1)


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
        own(tmp_path, columns)
    assert '\n' not in str(error.value)
    for word in (*words, 'table.csv', 'data.options.columns'):
        assert word in str(error.value)
    name = list(columns)[-1]
    builder = own(tmp_path, columns, columns=f'ignore={name}')
    assert f"not used: '{name}'" in notes(builder)


def test_columns_are_mapped_on_the_command_line(tmp_path, capsys):
    table = {'Code': ['a', 'b', 'c'], 'what': ['sick', 'well'], 'group': ['train', 'train', 'test']}
    with pytest.raises(UserError, match='looks like the split'):
        own(tmp_path, table)
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
        assert command.main([*arguments[:8], '--option', 'split=random', '--column', column]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count('\n') == 1


def test_ids_that_differ_in_form_are_one_patient(tmp_path):
    ids = ['1', '1.0', '0002', '2', 'Ann', 'ANN ']
    builder = own(tmp_path, {'label': ['A'], 'patient_id': ids})
    assert each(builder, 'patient') == ['1', '1', '2', '2', 'ANN', 'ANN']
    assert 'spelled in several ways' in notes(builder)
    for number, pair in enumerate((('3', '3.0'), ('007', '7'), ('bob', ' Bob'))):
        split = {'patient_id': [*pair, 'x', 'y', 'z', 'u'], 'split': ['train', 'test']}
        with pytest.raises(UserError, match=r'patient (3|7|bob) \(written .*\) both in train_val and test'):
            own(tmp_path / str(number), split)


@pytest.mark.parametrize('blank', ['', 'nan', 'N/A', 'unknown', 'ANONYMOUS'])
def test_blank_patients_are_not_one_patient(tmp_path, blank):
    builder = own(tmp_path, {'patient_id': [blank, 'ann', 'bob']})
    assert len(set(each(builder, 'patient'))) == 4
    assert 'of 2 films no patient is given' in notes(builder)


def test_names_of_films_in_other_forms(tmp_path):
    names = [
        'set/images/000.png',
        'images\\001.png',
        '002.png',
        '003',
        str(tmp_path / 'raw/images/004.png'),
        '005',
    ]
    builder = own(tmp_path, {'image': names})
    assert sum(split.num_examples for split in builder.info.splits.values()) == FILMS
    assert '4 films were found in another folder' in notes(builder)


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
        own(tmp_path, {'image': names})


def test_films_without_a_row_and_rows_without_a_film_are_told(tmp_path):
    names = [f'images/{i:03}.png' for i in range(4)] + ['gone.png', 'images/nul\0.png']
    with pytest.raises(UserError, match='2 of 6 images can not be used'):
        own(tmp_path, {'image': names})
    (report,) = (tmp_path / 'data').rglob('prepare_report.json')
    report = read_report(report.parent)
    assert any('2 films have no row in table.csv' in note for note in report['notes'])
    assert {row['reason'].rpartition(': ')[2][:26] for row in report['bad']} > {'the image file does not ex'}
