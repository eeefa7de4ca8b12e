"""Files of tables: any usual separator and encoding is read, and what is no table ends in one line."""

import tracemalloc

import pytest
from own import FILMS, each, notes, own, table_text

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import tables


@pytest.mark.parametrize('separator', [';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252'])
def test_separators_and_encodings(tmp_path, separator, encoding):
    text = table_text({'label': ['Ergüsse', 'Größe'], 'age': ['58,5']}, separator)
    builder = own(tmp_path, text, encoding)
    assert each(builder, 'labels') == [{'Ergüsse'}, {'Größe'}] * 3 and set(each(builder, 'age')) == {58}
    assert 'separated by' in notes(builder)
    assert ('Windows-1252' in notes(builder)) == (encoding == 'cp1252')


def test_what_excel_adds(tmp_path):
    text = 'sep=;\r\n' + table_text({'label': ['A, left', 'B']}, ';').replace('\r\n', ';\r\n') + ';;\r\n\r\n'
    assert each(own(tmp_path, text), 'labels') == [{'A', 'left'}, {'B'}] * 3


@pytest.mark.parametrize('sign', ['\u2028', '\x85', '\x0b', '\x1c', '\n', '\r\n'])
def test_a_sign_that_some_take_for_the_end_of_a_line(tmp_path, sign):
    builder = own(tmp_path, {'report': [f'one{sign}two'], 'label': ['A']})
    assert each(builder, 'labels') == [{'A'}] * FILMS and "1 columns not used: 'report'" in notes(builder)


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
        own(tmp_path, table)
    assert '\n' not in str(error.value) and len(str(error.value)) < 1500
    for word in words:
        assert word in str(error.value)


def test_a_table_is_read_row_by_row(tmp_path):
    """Memory does not grow with the table: 50,000 rows of 200 characters pass in a few hundred kB."""
    path = tmp_path / 'long.csv'
    path.write_text('image,text\n' + ''.join(f'{i}.png,{"x" * 200}\n' for i in range(50_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in tables.open_table(path).rows()) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
