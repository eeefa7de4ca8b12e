"""benchmarks/faults.py: each fault can be planted, and every row of docs/trust.md has one."""

import collections
import re

import pytest
from conftest import ROOT

from benchmarks import mutants
from benchmarks.faults import FAULTS


def test_every_fault_can_be_planted_and_names_a_test():
    assert not [line for line in map(mutants.problem, FAULTS) if line]
    assert max(collections.Counter(fault.name for fault in FAULTS).values()) == 1
    for fault in FAULTS:
        path, name = fault.test.partition('[')[0].split('::')
        assert f'\ndef {name}(' in (ROOT / path).read_text(), fault.name
        assert fault.old != fault.new, fault.name


def test_every_row_of_the_page_has_a_fault():
    rows = re.findall(r'^\| ([DL]\d+) \|', (ROOT / 'docs/trust.md').read_text(), re.M)
    assert len(rows) == 33 and not set(rows) - {fault.row for fault in FAULTS}


@pytest.mark.parametrize('content,count', [('a = 1\n', 0), ('b = 2\nb = 2\n', 2)])
def test_a_stale_fault_is_one_line(content, count, tmp_path):
    (tmp_path / 'x.py').write_text(content)
    told = mutants.problem(FAULTS[0]._replace(file='x.py', old='b = 2'), tmp_path)
    assert f'stands {count} times in x.py' in told and '\n' not in told
    assert mutants.problem(FAULTS[0]._replace(file='absent.py'), tmp_path)


@pytest.mark.slow
def test_a_fault_that_no_test_notices_survives(capsys):
    caught = next(fault for fault in FAULTS if fault.name == 'zeros-make-patients')
    unnoticed = caught._replace(name='unnoticed', new=caught.old + ' ')
    assert mutants.run([caught, unnoticed], 2) == 1
    said = capsys.readouterr()
    assert '1 of 2 faults caught' in said.out and 'unnoticed: SURVIVED' in said.err
    assert caught.old in (ROOT / caught.file).read_text()
