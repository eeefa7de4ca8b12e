"""What each tensor is called, and how it lies, in Flax, in PyTorch and in files from elsewhere."""

import hashlib
import importlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mlvicx_jax.errors import UserError
from mlvicx_jax.models.resnet import LEVELS

Tensors = dict[str, np.ndarray]

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
_CONTEXT = 'context_'
_NESTED = re.compile(r'^(layer\d|downsample)_(\d)$')


def torch_name(path: tuple[str, ...]) -> str:
    """('layer1_0', 'conv1', 'kernel') -> 'layer1.0.conv1.weight'."""
    *modules, leaf = path
    return '.'.join([_NESTED.sub(r'\1.\2', name) for name in modules] + [_LEAVES.get(leaf, leaf)])


def to_torch_layout(leaf: str, array: np.ndarray) -> np.ndarray:
    """Convolution kernels HWIO -> OIHW, dense ones [in, out] -> [out, in]; the rest as it is."""
    if leaf == 'kernel':
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}[array.ndim]
        return np.ascontiguousarray(array.transpose(axes))  # safetensors writes memory as it lies
    return array


def from_torch_layout(leaf: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`."""
    if leaf == 'kernel':
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
        return np.ascontiguousarray(array.transpose(axes)) if axes else array
    return array


def torch_tensors(path: tuple[str, ...], array: np.ndarray) -> Tensors:
    """The array under PyTorch's name and layout; with a BatchNorm's mean comes its counter.

    `num_batches_tracked` is 0; PyTorch reads it only where a BatchNorm has no momentum.
    """
    name = torch_name(path)
    tensors = {name: to_torch_layout(path[-1], array)}
    if path[-1] == 'mean':
        tensors[name.replace('running_mean', 'num_batches_tracked')] = np.zeros((), np.int64)
    return tensors


def to_torch(tree) -> Tensors:
    """A PyTorch state dict of any tree; its levels 'params' and 'batch_stats' leave no trace.

    Running variances stay Flax's, which are the biased ones: in evaluation mode both frameworks
    divide by the number they are given, so the features agree. (PyTorch would have collected the
    unbiased variance, larger by n / (n - 1) with n the batch's positions.)
    """
    tensors: Tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = tuple(name for name in path_names(path) if name not in ('params', 'batch_stats'))
        tensors |= torch_tensors(names, np.asarray(leaf))
    return tensors


def flat(tree) -> Tensors:
    """{'params/conv1/kernel': array} of any tree."""
    return {
        '/'.join(path_names(path)): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digest(tree) -> str:
    """sha256 of every array of a tree, with its name."""
    found = hashlib.sha256()
    for name, array in sorted(flat(tree).items()):
        found.update(name.encode() + b'\0' + array.tobytes())
    return found.hexdigest()


def path_names(path) -> tuple[str, ...]:
    """The names along a path of jax.tree_util."""
    return tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)


def without_context(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The same encoder without its context bottlenecks."""
    return {
        kind: {name: value for name, value in tree.items() if not name.startswith(_CONTEXT)}
        for kind, tree in variables.items()
    }


def read_tensors(path: pathlib.Path) -> Tensors:
    """The tensors of a safetensors file, or of a .pth file read with `weights_only=True`.

    A .pth file may hold them directly or under `online` (the authors' release), `state_dict` or
    `model`. Nothing in it is ever executed.

    Raises:
        UserError: the file is missing, damaged, unsafe, or holds something else.
    """
    try:
        path.open('rb').close()
    except OSError as error:
        raise UserError(
            f'{path}: can not be read ({error.strerror}); give a .safetensors or .pth '
            'file, an exported folder or the --workdir of a run'
        ) from error
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    found = _read_pickle(path)
    for key in ('online', 'state_dict', 'model'):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(name, str) and hasattr(value, 'numpy') for name, value in found.items())
    ):
        raise UserError(
            f'{path}: holds no state dict (names and tensors, directly or under '
            'online, state_dict or model); save model.state_dict()'
        )
    return {name: _numpy(path, name, value) for name, value in found.items()}


def _read_safetensors(path):
    safetensors = extra('safetensors.numpy')
    try:
        return safetensors.load_file(path)
    except Exception as error:  # SafetensorError, and KeyError or TypeError for types NumPy lacks
        raise UserError(
            f'{path}: can not be read as safetensors ({reason(error)}); fetch or write it again, in float32'
        ) from error


def _read_pickle(path):
    torch = extra('torch')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError: whatever is in the file
        raise UserError(
            f'{path}: can not be read as plain weights ({reason(error)}). A file with anything but '
            'tensors in it is not opened: it could run code. Save the state dict alone'
        ) from error


def _numpy(path, name: str, tensor) -> np.ndarray:
    try:
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse, quantised or empty ("meta") tensors, each in its own way
        raise UserError(
            f'{path}: {name[:80]} is no plain tensor ({reason(error)}); save dense tensors, in float32'
        ) from error


def reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip('. ')


def extra(module: str):
    """Imports a module of the `export` extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module.partition('.')[0]} is not installed; run pip install 'mlvicx-jax[export]'"
        ) from error


def is_release(tensors: Tensors) -> bool:
    """Whether these are the names of the authors' released checkpoints."""
    return 'encoder.0.weight' in tensors


def from_release(tensors: Tensors) -> Tensors:
    """The authors' released encoder under this project's PyTorch names.

    There the ResNet is a Sequential (`encoder.0` and `.1` the stem, `.4` to `.7` the stages) and
    level p's context bottleneck `cbt{p + 1}`, whose two shared layers are the 1 x 1 convolutions
    `cam.fc.0` and `cam.fc.2` and whose one other tensor is the 7 x 7 convolution.
    """
    modules = dict(zip('014567', ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')))
    renamed = {}
    for name, array in tensors.items():
        if match := re.match(r'encoder\.([014567])\.(.+)', name):
            name = f'{modules[match[1]]}.{match[2]}'
        elif match := re.match(r'cbt([1-5])\.(.+)', name):
            prefix = f'{_CONTEXT}{LEVELS[int(match[1]) - 1]}'
            if match[2] in ('cam.fc.0.weight', 'cam.fc.2.weight') and array.shape[2:] == (1, 1):
                part = 'channel_squeeze' if '.0.' in match[2] else 'channel_excite'
                name, array = f'{prefix}.{part}.weight', array[:, :, 0, 0]
            elif array.shape == (1, 2, 7, 7):
                name = f'{prefix}.spatial.weight'
        renamed[name] = array
    return renamed


def fill(
    like: Mapping[str, Any], tensors: Tensors, where, whole: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """An encoder's variables from tensors under any of the known names, and what there is to say.

    Args:
        like: {'params', 'batch_stats'} of arrays, the encoder as it is initialised.
        tensors: under PyTorch's names, the release's, or Flax's ('params/conv1/kernel').
        where: names the source in errors.
        whole: whether every tensor of `like` must be there.

    Returns:
        The variables, every tensor of the ResNet from `tensors`. Unless `whole`, context
        bottlenecks that the source lacks as a whole keep `like`'s values, and those that `like`
        lacks are left out; the sentences say so.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    if is_release(tensors):
        tensors = from_release(tensors)
    is_flax = any(name.startswith('params/') for name in tensors)
    wanted = {
        path: '/'.join(path) if is_flax else torch_name(path[1:]) for path in traverse_util.flatten_dict(like)
    }
    said = [f'{where}: fc, the classifier, is left out'] if 'fc.weight' in tensors else []
    tensors = {
        name: array
        for name, array in tensors.items()
        if not name.endswith('num_batches_tracked') and name not in ('fc.weight', 'fc.bias')
    }
    is_context = lambda name: _CONTEXT in name
    missing = sorted(set(wanted.values()) - tensors.keys())
    unexpected = sorted(tensors.keys() - set(wanted.values()))
    if missing and not any(map(is_context, tensors)):
        if whole and all(map(is_context, missing)):
            raise UserError(
                f'{where} has no context bottlenecks, config.model.context=True asks for '
                'them; give --config.model.context=False'
            )
        absent = [name for name in missing if is_context(name)]
        missing = [name for name in missing if not is_context(name)]
        if absent:
            said.append(
                f'{where} has no context bottlenecks: their {len(absent)} tensors stay at their initialisation'
            )
    if unexpected and not any(map(is_context, wanted.values())):
        left = [name for name in unexpected if is_context(name)]
        unexpected = [name for name in unexpected if not is_context(name)]
        if left:
            said.append(
                f'{where} has context bottlenecks and config.model.context is False: their '
                f'{len(left)} tensors are left out'
            )
    if missing or unexpected:
        raise UserError(
            f'{where}: not the weights of this ResNet-18; missing: {_some(missing)}; unexpected: '
            f"{_some(unexpected)}. Give ResNet-18 weights under torchvision's names or an export "
            'of this project, and the same config.model'
        )
    filled = {}
    for path, old in traverse_util.flatten_dict(like).items():
        if (name := wanted[path]) not in tensors:
            filled[path] = old
            continue
        array = tensors[name] if is_flax else from_torch_layout(path[-1], tensors[name])
        if array.shape != old.shape:
            raise UserError(
                f'{where}: {name} has shape {array.shape}, expected {old.shape} in '
                "Flax's order; set config.model.width and .reduction to its own"
            )
        if not np.isfinite(array).all():
            raise UserError(f'{where}: {name} has values that are not finite; take other weights')
        filled[path] = np.asarray(array, old.dtype)
    return traverse_util.unflatten_dict(filled), said


def _some(names):
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return ', '.join(names[:4]) + more or 'none'
