"""What a run leaves to read: metrics.jsonl, TensorBoard events and the lines on the terminal."""

import json
import math
import os
import pathlib

import jax
import tensorboardX


def say(line: str = '') -> None:
    """Prints a line on the terminal, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def write_json(path, content) -> None:
    """Writes a JSON file so that a reader finds the old one or the new one, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')
    os.replace(partial, path)


class MetricLog:
    """`metrics.jsonl` (one object a line, `step` in each) and TensorBoard events, from process 0.

    Opened at the step a run resumes from, it drops the lines of later steps: they are about to be
    written again.
    """

    def __init__(self, workdir, start_step: int):
        self._file = self._board = None
        if jax.process_index():
            return
        path = pathlib.Path(workdir) / 'metrics.jsonl'
        kept = [line for line in read_metrics(workdir) if line['step'] <= start_step]
        partial = path.with_name(path.name + '.partial')
        partial.write_text(''.join(json.dumps(line) + '\n' for line in kept))
        os.replace(partial, path)
        self._file = path.open('a')
        self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends scalars; a value that is not finite is written as null, which JSON can hold."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {'step': step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
                self._board.close()
            except OSError:  # a full disk: whoever wrote last says so, the board need not at exit
                writer = self._board.file_writer.event_writer
                writer._worker.stop()
                writer._closed = True


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


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 05 s` or `7.2 s`."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest:02d} s'
    return f'{minutes // 60} h {minutes % 60:02d} min'
