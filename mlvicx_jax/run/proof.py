"""What is noted beside the state in a checkpoint, and compared when it is read back."""

import hashlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mlvicx_jax.errors import UserError
from mlvicx_jax.run.folder import LATER, differences


@jax.jit
def fingerprint(tree) -> jax.Array:
    """A uint32 that changes with any flipped bit of any leaf.

    Each 32-bit word is multiplied by an odd number that depends on its place; a single flipped bit
    k then changes the sum by an odd multiple of 2^k, which is never 0 modulo 2^32.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        place = jnp.arange(words.size, dtype=jnp.uint32) + jnp.uint32(number * 0x9E3779B9 % 2**32)
        total += jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
    return total


def encoder_of(state: dict) -> dict:
    """The encoder's variables {'params', 'batch_stats'} among those of a state."""
    return {kind: {'encoder': state[kind]['encoder']} for kind in ('params', 'batch_stats')}


def digest(about: dict) -> str:
    """sha256 of `about`, but for this field itself."""
    content = {name: value for name, value in about.items() if name != 'sha256'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prove(about: dict, name: str, tree) -> None:
    """Raises if `about` was changed, or if `tree` has not the fingerprint that it gives under `name`."""
    if about.get('sha256', digest(about)) != digest(about):  # older programs wrote none
        raise ValueError('what is noted beside the state was changed')
    if (found := int(fingerprint(tree))) != about[name]:
        raise ValueError(f'fingerprint {found}, expected {about[name]}')


def read_proved(manager: ocp.CheckpointManager, step: int, abstract):
    """`state` and `about` of a checkpoint; raises if the state is not the one that was saved."""
    read = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
    )
    prove(read.about, 'fingerprint', read.state)
    return read


def refuse_other_run(folder: pathlib.Path, about: dict, identity: dict | None) -> None:
    """Raises a UserError for the checkpoint of a run with another config.

    Args:
        folder: of the checkpoint.
        about: what is noted in it; older programs noted no identity.
        identity: what makes this run the run it is (`run.folder.fixed`); None is not compared.
    """
    if identity is None or not about.get('identity'):
        return
    later = {name: value for name, value in LATER.items() if name in identity}
    changed = differences(later | about['identity'], identity)
    if changed:
        raise UserError(
            f'checkpoint {folder} is of another run: {"; ".join(changed.values())}. Put the checkpoints of '
            'this run back, or give a new --workdir'
        )


def steps_in(directory: pathlib.Path) -> list[int]:
    """Of the checkpoints in a folder, sorted; whatever else lies there is left out."""
    return sorted(
        int(path.name) for path in directory.glob('*') if re.fullmatch('[0-9]+', path.name) and path.is_dir()
    )
