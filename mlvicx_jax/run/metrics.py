"""The numbers that a run logs: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import pathlib
import time
from typing import NamedTuple

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.files import parse_json, write_bytes
from mlvicx_jax.run.schema import is_number
from mlvicx_jax.terminal import say

FILE = 'metrics.jsonl'


class MetricLog:
    """`metrics.jsonl` (one object a line, `step` in each) and TensorBoard events, from process 0.

    Opened at the step a run resumes from, it drops the lines of later steps, and says so: they are
    about to be written again. Lines that are damaged stay as they are. Lines already in the file are
    not written twice: the initial numbers where a start ended before its first checkpoint, the last
    ones where it ended before its results.
    """

    def __init__(self, workdir, start_step: int):
        self._file = self._board = None
        if jax.process_index():
            return
        path = pathlib.Path(workdir) / FILE
        kept: list[_Line] = []
        dropped: list[_Line] = []
        for line in _lines(path):
            # A damaged line belongs to the lines before it.
            late = bool(dropped) if line.values is None else line.values['step'] > start_step
            (dropped if late else kept).append(line)
        steps = sorted({line.values['step'] for line in dropped if line.values})
        if steps:
            say(
                f'{path}: no checkpoint holds the steps {steps[0]} to {steps[-1]} that are logged there; '
                f'they are trained again, from step {start_step}'
            )
        self._kept = {(line.values['step'], frozenset(line.values)) for line in kept if line.values}
        write_bytes(path, b''.join(line.content + b'\n' for line in kept))
        self._file = path.open('a')
        # Not tensorboardX's SummaryWriter: on a full disk its thread dies, then its queue blocks.
        self._board = EventsWriter(str(path.with_name('events')))
        self._board.write_event(
            Event(  # TensorBoard hides what a killed run wrote from here on
                step=start_step + 1, session_log=SessionLog(status=SessionLog.START)
            )
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends scalars; one that is not finite is null in the file and left out of TensorBoard."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {'step': step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        if (step, frozenset(line)) in self._kept:
            return
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()
        self._board.write_event(
            Event(
                wall_time=time.time(),
                step=step,
                summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]),
            )
        )
        self._board.flush()

    def close(self) -> None:
        if self._file is not None:
            for file in (self._file, self._board):
                with contextlib.suppress(OSError):  # of a full disk: raised by the last write
                    file.close()


def read_metrics(workdir) -> list[dict]:
    """The whole lines of `metrics.jsonl`, each with its `step`; damaged ones are left out and said.

    A last line that a kill cut short is left out without a word: its step is trained again.

    Raises:
        UserError: the file can not be opened.
    """
    path = pathlib.Path(workdir) / FILE
    lines = _lines(path)
    for line in lines:
        if line.values is None:
            say(f'{path}: line {line.number} is damaged ({line.reason}) and left out')
    return [line.values for line in lines if line.values]


def evaluations(workdir, monitor: str, last_step: int) -> list[dict]:
    """The lines with `monitor` of the steps 1 to `last_step`: those that the best step is chosen by.

    Raises:
        UserError: a line is damaged that may be one of them.
    """
    path = pathlib.Path(workdir) / FILE
    found = []
    for line in _lines(path):
        if line.values is None:
            raise UserError(
                f'{path}: line {line.number} is damaged ({line.reason}); it may hold {monitor}, by which '
                'the best step is chosen. Restore a copy of the file, or give a new --workdir'
            )
        if line.values['step'] > last_step:
            break  # what follows is written again
        if monitor in line.values and line.values['step']:
            found.append(line.values)
    return found


class _Line(NamedTuple):
    """A line of the file; `values` is None where it is damaged, for `reason`."""

    number: int
    content: bytes
    values: dict | None
    reason: str = ''


def _lines(path: pathlib.Path) -> list[_Line]:
    """All lines but one without an end that can not be read: the last, which a kill cut short."""
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f'{path}: can not be read ({error.strerror}); mend the permissions, or give another --workdir'
        ) from error
    *whole, last = content.split(b'\n')
    lines = [_parse(number, line) for number, line in enumerate(whole, 1)]
    if last and (cut := _parse(len(lines) + 1, last)).values:
        lines.append(cut)
    return lines


def _parse(number: int, content: bytes) -> _Line:
    try:
        values = parse_json(content.decode())
    except (ValueError, RecursionError) as error:
        return _Line(number, content, None, first_line(error)[:100])
    if not isinstance(values, dict):
        return _Line(number, content, None, f'a {type(values).__name__}, expected an object')
    step = values.get('step')
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return _Line(number, content, None, 'no step')
    for name, value in values.items():
        if value is not None and not is_number(value):
            return _Line(number, content, None, f'{name[:40]} is no number')
    return _Line(number, content, values)
