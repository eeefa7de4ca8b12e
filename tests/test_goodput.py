"""Where the time went: every second once, and a start's lost steps told apart from kept ones."""

import json

import pytest

from mlvicx_jax.run import goodput
from mlvicx_jax.run.goodput import PHASES, Goodput


@pytest.fixture
def clock(monkeypatch):
    """Seconds of both clocks, which a test sets."""

    class Clock:
        now = 1000.0
        time = monotonic = staticmethod(lambda: Clock.now)

    monkeypatch.setattr(goodput, 'time', Clock)
    return Clock


def counts(workdir):
    return json.loads((workdir / 'goodput.json').read_text())['seconds']


def test_a_killed_start_and_the_one_after_it(tmp_path, clock):
    first = Goodput(tmp_path)
    first.resume(0)
    clock.now += 7
    first.spent('start')
    clock.now += 20
    first.spent('compile')
    clock.now += 50
    assert first.spent('training', waited=5) == 50
    clock.now += 3
    first.spent('checkpoint')
    first.saved(10)
    clock.now += 30
    first.spent('training')
    first.write()  # and is killed

    clock.now += 100
    second = Goodput(tmp_path)
    clock.now += 2
    second.resume(10)
    second.spent('start')
    clock.now += 40
    second.spent('training')
    second.write()
    assert counts(tmp_path) == dict.fromkeys(PHASES, 0.0) | {
        'training': 45 + 40,
        'start': 7 + 2,
        'compile': 20,
        'data wait': 5,
        'checkpoint': 3,
        'repeated': 30,
        'down': 100,
    }
    assert sum(counts(tmp_path).values()) == clock.now - 1000
    assert sum(second.shares().values()) == pytest.approx(1)


def test_a_clock_that_was_set_back_gives_no_negative_time(tmp_path, clock):
    first = Goodput(tmp_path)
    first.write()
    clock.now -= 500
    second = Goodput(tmp_path)
    second.resume(0)
    second.write()
    assert min(counts(tmp_path).values()) == 0


def test_the_newest_saves_are_kept_whatever_their_number_of_digits(tmp_path, clock):
    first = Goodput(tmp_path)
    for step in range(5, 125, 5):
        first.saved(step)
    second = Goodput(tmp_path)
    second.resume(120)
    second.saved(125)
    kept = json.loads((tmp_path / 'goodput.json').read_text())['saved']
    assert sorted(map(int, kept)) == list(range(25, 130, 5))


def test_a_damaged_file_stops_no_run(tmp_path, clock):
    (tmp_path / 'goodput.json').write_text('{"seconds": ')
    again = Goodput(tmp_path)
    again.resume(5)
    clock.now += 1
    again.spent('start')
    again.write()
    assert counts(tmp_path)['start'] == 1


def test_the_table_names_every_phase(tmp_path, clock, capsys):
    told = Goodput(tmp_path)
    clock.now += 90
    told.spent('training', waited=9)
    told.tell()
    said = capsys.readouterr().out
    assert all(phase in said for phase in PHASES) and '90.0%' in said and '1 min 30 s' in said
