"""The formats: how each is written, and the features that come out of what was written."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.weights import tensors as weights

OPSET = 18  # of the ONNX graph

Features = dict[str, np.ndarray]


def features(encoder, variables, images: np.ndarray, size: int) -> Features:
    """Named features of uint8 [n, H, W], in PyTorch's order of axes ([n, c, h, w])."""

    @jax.jit
    def apply(variables, images):
        views = augment.standardise(augment.resize(images, size))
        return encoder.apply(variables, views, train=False)

    with jax.default_matmul_precision('highest'):  # else GPUs and TPUs round inputs to 10 bits
        found = jax.device_get(apply(variables, images[..., None]))
    return {name: np.moveaxis(y, -1, 1) if y.ndim == 4 else y for name, y in found.items()}


def save(path: pathlib.Path, tensors: weights.Tensors, kind: str) -> None:
    """Writes a safetensors file. Raises a UserError where the disk does not take it."""
    safetensors = weights.extra('safetensors.numpy')
    try:
        safetensors.save_file(tensors, path, metadata={'format': kind})
        os.chmod(path, 0o644)
    except Exception as error:  # SafetensorError, also for a full disk
        raise UserError(
            f'{path}: can not be written ({weights.reason(error)}); free space or give another --out'
        ) from error


def _write_torch(folder, encoder, variables):
    save(folder / 'model.safetensors', weights.to_torch(variables), 'pt')
    shutil.copyfile(pathlib.Path(__file__).with_name('mlvicx_torch.py'), folder / 'mlvicx_torch.py')


def _write_torchvision(folder, encoder, variables):
    tensors = weights.to_torch(variables)
    # torchvision's own classifier, so that strict=True has every key: zeros, to be replaced.
    tensors |= {'fc.weight': np.zeros((1000, 512), np.float32), 'fc.bias': np.zeros(1000, np.float32)}
    save(folder / 'model.safetensors', tensors, 'pt')
    shutil.copyfile(pathlib.Path(__file__).with_name('mlvicx_torch.py'), folder / 'mlvicx_torch.py')


def _torch_features(folder, encoder, images, size):
    import torch

    from mlvicx_jax.export import mlvicx_torch

    with torch.inference_mode():
        found = mlvicx_torch.load(folder)(mlvicx_torch.preprocess(images, size))
    return {name: y.numpy() for name, y in found.items()}


def _write_onnx(folder, encoder, variables):
    import onnx

    from mlvicx_jax.export import graph

    model = graph.build(
        weights.to_torch(variables), encoder.context, {'input': 'see config.json: preprocessing'}
    )
    onnx.save(model, folder / 'model.onnx')


def _onnx_features(folder, encoder, images, size):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / 'model.onnx', providers=['CPUExecutionProvider'])
    views = np.asarray(augment.standardise(augment.resize(images[..., None], size)))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {'image': views.transpose(0, 3, 1, 2)})))


def _write_flax(folder, encoder, variables):
    save(folder / 'model.safetensors', weights.flat(variables), 'flax')


def _flax_features(folder, encoder, images, size):
    tensors = weights.read_tensors(folder / 'model.safetensors')
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), np.zeros((1, size, size, 3))))
    variables, _ = weights.fill(like, tensors, folder)
    return features(encoder, variables, images, size)


@dataclasses.dataclass(frozen=True)
class Format:
    """write(folder, encoder, variables), and features(folder, encoder, images, size) of that."""

    write: Callable
    features: Callable
    needs: tuple[str, ...]
    torch: bool  # whether tensors have PyTorch's names and layout


FORMATS = {
    'torchvision': Format(_write_torchvision, _torch_features, ('torch', 'safetensors'), True),
    'mlvicx': Format(_write_torch, _torch_features, ('torch', 'safetensors'), True),
    'onnx': Format(_write_onnx, _onnx_features, ('onnx', 'onnxruntime', 'safetensors'), True),
    'flax': Format(_write_flax, _flax_features, ('safetensors',), False),
}
