"""One file per method; a method is a frozen dataclass called `Method`, found by its file's name.

What it must answer is written in `shared/base.py`; where each call runs, in docs/architecture.md. The
encoder lies under the name `encoder` in `variables` and in every copy that `method_state` keeps.
"""

import importlib
import pkgutil

import jax.numpy as jnp

from mlvicx_jax.data.augment import Recipe
from mlvicx_jax.errors import UserError
from mlvicx_jax.models.resnet import ResNet18


def create(config):
    """The `Method` that a config describes; `config.method` is passed on as keyword arguments."""
    arguments = dict(config.method)
    name = arguments.pop('name')
    known = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    if name not in known:
        raise UserError(f'config.method.name is {name!r}; known methods are {", ".join(known)}')
    dtypes = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
    if config.dtype not in dtypes:
        raise UserError(f'config.dtype is {config.dtype!r}; expected one of {", ".join(dtypes)}')
    encoder = _build('config.model', ResNet18, **config.model, dtype=dtypes[config.dtype])
    recipes = {
        name: _build(f'config.views.{name}', Recipe, **config.views[name]) for name in sorted(config.views)
    }
    module = importlib.import_module(f'{__name__}.{name}')
    return _build(
        'config.method',
        module.Method,
        encoder=encoder,
        recipes=recipes,
        image_size=config.data.image_size,
        **arguments,
    )


def _build(section, constructor, **arguments):
    try:
        return constructor(**arguments)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f'{section}: {error}') from error
