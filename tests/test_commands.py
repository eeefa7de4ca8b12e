"""The command lines of mlvicx: one spelling, one way to end."""

import importlib
import re

import pytest

from mlvicx_jax import __main__ as door
from mlvicx_jax.commands import _line

COMMANDS = sorted(_line.known())


def command(name):
    return importlib.import_module(f'mlvicx_jax.commands.{name}')


def test_the_door_lists_all_and_refuses_what_is_none(capsys):
    assert door.main([]) == door.main(['--help']) == 0
    said = capsys.readouterr().out
    assert all(f'\n  {name} ' in said for name in COMMANDS)
    assert door.main(['predicted']) == 2 and 'expected one of audit' in capsys.readouterr().err


@pytest.mark.parametrize('name', COMMANDS)
def test_help_ends_well_and_names_the_sisters(name, capsys):
    with pytest.raises(SystemExit) as end:
        door.main([name, '--help'])
    assert end.value.code in (0, None)
    options, _, sisters = capsys.readouterr().out.partition('Other commands:')
    assert not re.search(r'--\w+_', options), 'an option is spelled with an underscore'
    assert set(re.findall(r'\w+', sisters)) >= set(COMMANDS) - {name}


RUN = {  # command lines whose run is not there
    'export': ['--format=flax', '--out=out'],
    'heatmaps': ['--out=out', '--batch_size=4'],
    'predict': ['--batch_size=4', 'film.png'],
    'report': [],
}


@pytest.mark.parametrize('name', RUN)
def test_a_run_is_called_workdir_and_a_mistake_is_one_line_and_2(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(name).main(['--workdir', 'nowhere', *RUN[name]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and 'nowhere' in line


def test_older_spellings_are_understood(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command('predict').main(['--init=nowhere', 'film.png']) == 2
    assert command('report').main(['nowhere']) == 2
    assert command('audit').main(['nothing', '--data_dir=data', '--own_lists', '--split_seed=1']) == 2
    arguments = ['--dataset=none', '--data_dir=data', '--manual_dir', 'films_here', '--allow_bad=1']
    assert command('prepare').main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith('error: ') for line in lines)


def test_values_keep_their_underscores():
    parser = _line.Parser('audit', '', renamed={'--init': '--workdir'})
    parser.add_argument('--data-dir')
    parser.add_argument('--workdir')
    found = parser.read(['--data_dir=a_b', '--init', 'my_run'])
    assert (found.data_dir, found.workdir) == ('a_b', 'my_run')
