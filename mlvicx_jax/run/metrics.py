"""The numbers that a run logs: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import pathlib
import time

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mlvicx_jax.files import write_text


class MetricLog:
    """`metrics.jsonl` (one object a line, `step` in each) and TensorBoard events, from process 0.

    Opened at the step a run resumes from, it drops the lines of later steps: they are about to be
    written again. What it has kept is not written twice: the initial numbers where a start ended before
    its first checkpoint, the last ones where it ended before its results.
    """

    def __init__(self, workdir, start_step: int):
        self._file = self._board = None
        if jax.process_index():
            return
        path = pathlib.Path(workdir) / 'metrics.jsonl'
        kept = [line for line in read_metrics(workdir) if line['step'] <= start_step]
        self._kept = {(line['step'], frozenset(line)) for line in kept}
        write_text(path, ''.join(json.dumps(line) + '\n' for line in kept))
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
    """The lines of `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
