"""Cells that people write: sexes, views, ages, flags, lists of findings, ids."""

import pytest

from mlvicx_jax_datasets import identity, labels, words


@pytest.mark.parametrize(
    'sex,texts',
    [
        ('F', ['F', 'f', 'Female', ' FEMALE ', 'woman', 'weiblich', 'W', 'Mujer']),
        ('M', ['M', 'm', 'Male', 'MAN', 'männlich', 'hombre']),
        ('unknown', ['', 'nan', 'N/A', 'Other', 'O', 'unknown', '-', 'divers']),
        (None, ['0', '1', '2', 'Fe male?', 'M' * 5000]),
    ],
)
def test_sex(sex, texts):
    assert {text: words.sex(text) for text in texts} == dict.fromkeys(texts, sex)


@pytest.mark.parametrize(
    'view,texts',
    [
        (
            'PA',
            ['PA', 'pa', 'P.A.', 'p.a. stehend', 'Chest PA', 'PA_erect', 'Posteroanterior', 'postero-anterior'],
        ),
        (
            'AP',
            ['AP', 'ap', 'AP Supine', 'a.p. liegend', 'AP_horizontal', 'Anteroposterior', 'A/P', 'APSUPINE'],
        ),
        ('lateral', ['L', 'LL', 'Lateral', 'LATERAL ', 'left lateral', 'Lateral (LL)', 'seitlich', 'RLO']),
        ('unknown', ['', 'nan', 'Frontal', 'none', 'unknown']),
        (None, ['AP/PA', 'standing', '1', 'PAX', 'ap' * 3000]),
    ],
)
def test_view(view, texts):
    assert {text: words.view(text) for text in texts} == dict.fromkeys(texts, view)


@pytest.mark.parametrize(
    'age,texts',
    [
        (
            58,
            [
                '58',
                '58.0',
                '058',
                '058Y',
                '58,9',
                '58 years',
                '58 Jahre',
                '58yo',
                '58 y/o',
                '58-year-old',
                ' 58 Y ',
            ],
        ),
        (90, ['090Y', '90+', '>90', '> 90', '≥90', '>=90']),
        (1, ['018M', '18 months', '052W', '400D', '1.5']),
        (0, ['011M', '0', '3 weeks', '<1', '020D']),
        (-1, ['', 'NA', 'nan', 'unknown', '-1', '-1.0', '414', '999Y']),
        (None, ['old', '1956', '40-49', '12.03.1956', '5' * 5000, '-5', '58 parsecs', '²', '5e1']),
    ],
)
def test_age(age, texts):
    assert {text: words.years(text) for text in texts} == dict.fromkeys(texts, age)


@pytest.mark.parametrize(
    'flag,texts',
    [
        ('positive', ['1', '1.0', '1,0', '1.', 'yes', 'TRUE', 'Positive', 'ja', 'x']),
        ('negative', ['0', '0.0', '0,0', 'No', 'False', 'absent', '-0']),
        ('uncertain', ['-1', '-1.0', '-1,0', 'uncertain']),
        ('', ['', 'nan', 'NaN', 'NA', 'None', '#N/A', ' ']),
        (None, ['2', '0.5', '-2', 'Edema', '1 1', '1' * 5000]),
    ],
)
def test_flag(flag, texts):
    assert {text: words.flag(text) for text in texts} == dict.fromkeys(texts, flag)


@pytest.mark.parametrize(
    'cell,names',
    [
        ('Mass|Edema', ['Mass', 'Edema']),
        ('Mass | Edema|Mass', ['Mass', 'Edema']),
        ("['pleural effusion', ' loc  basal']", ['pleural effusion', 'loc basal']),
        ('["Mass", "Barrett\'s"]', ['Mass', "Barrett's"]),
        ("['it\\'s'  'two']", ["it's", 'two']),
        ('[Mass, Edema]', ['Mass', 'Edema']),
        ('[]', []),
        ('nan', []),
        ("['nan']", []),
        ('1.0', ['1']),
    ],
)
def test_lists_in_cells(cell, names):
    assert labels.split_cell(cell, '|') == tuple(names)


@pytest.mark.parametrize(
    'cells,sign',
    [
        (['Mass, left|Edema', 'Mass, left'], '|'),
        (['Mass; Edema', 'Edema, left'], ';'),
        (['Nodule, Effusion', 'Mass'], ','),
        (["['a|b', 'c']", 'Mass, Edema'], ','),
    ],
)
def test_one_sign_cuts_a_column(cells, sign):
    assert labels.separator(cells) == sign


def test_spellings_are_joined_to_the_most_frequent():
    counts = {
        'Pleural_Thickening': 3,
        'pleural thickening': 1,
        'no_finding': 5,
        'Edema': 2,
        'Mass': 1,
        'MASS': 1,
    }
    stored, notes = labels.join_spellings(counts)
    assert stored == {
        'Pleural_Thickening': 'Pleural_Thickening',
        'pleural thickening': 'Pleural_Thickening',
        'no_finding': 'No Finding',
        'Edema': 'Edema',
        'Mass': 'MASS',
        'MASS': 'MASS',
    }
    assert len(notes) == 3 and "'pleural thickening' (1)" in ' '.join(notes)


@pytest.mark.parametrize(
    'forms', [['3', '3.0', '0003', '3,0', ' 3 '], ['Ann', 'ANN ', ' ann'], ['A  1', 'a 1'], ['0', '000', '0.0']]
)
def test_spellings_of_one_id(forms):
    assert len({identity.normal(form) for form in forms}) == 1
    assert identity.join((identity.normal(f), f) for f in forms) == identity.join(
        (identity.normal(f), f) for f in forms[::-1]
    )


def test_other_ids_stay_apart():
    ids = ['3', '30', '3.5', '1.2.840.1', '1.2.840.10', 'a3', '-3', '3-0']
    assert len({identity.normal(text) for text in ids}) == len(ids)
    assert [
        text for text in ('', 'nan', 'Anonymous', 'XXX', 'none', '***', '0', 'ann') if identity.is_missing(text)
    ] == ['', 'nan', 'Anonymous', 'XXX', 'none', '***']
