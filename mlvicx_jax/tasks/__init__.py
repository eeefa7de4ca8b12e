"""What a run is for: one file a task, whose class `Task` is found by what it says of itself.

What a task answers is written in `shared/base.py`. A task is a file here and a recipe of configs/.
"""

import functools
import importlib
import pkgutil

from mlvicx_jax.errors import UserError
from mlvicx_jax.tasks.shared.base import BaseTask


@functools.cache
def all_tasks() -> tuple[type[BaseTask], ...]:
    """Every `Task`, in the order of its file's name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(importlib.import_module(f'{__name__}.{name}').Task for name in names)


def find(config) -> type[BaseTask]:
    """The `Task` of `config.task` and `config.protocol`.

    Raises:
        UserError: there is none.
    """
    found = [task for task in all_tasks() if task.name == config.task]
    if not found:
        names = ', '.join(dict.fromkeys(task.name for task in all_tasks()))
        raise UserError(f'config.task is {config.task!r}, expected one of {names}')
    protocol = config.get('protocol')
    known = [name for task in found for name in task.protocols]
    if not known and not protocol:
        return found[0]
    for task in found:
        if protocol in task.protocols:
            return task
    raise UserError(
        f'config.protocol is {protocol!r}, expected {"one of " + ", ".join(known) if known else "none"}; '
        f'config.task={config.task} is for the recipes of that task, such as configs/{config.task}.py'
    )


def protocols() -> list[str]:
    """The protocols of all tasks, each once."""
    return list(dict.fromkeys(name for task in all_tasks() for name in task.protocols))
