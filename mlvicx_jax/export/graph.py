"""The encoder as an ONNX graph, written node by node: nothing is traced, torch is not needed."""

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from mlvicx_jax.export.formats import OPSET
from mlvicx_jax.models.resnet import LEVELS
from mlvicx_jax.weights.tensors import Tensors

IR_VERSION = 8  # the one that came with opset 18; the newest would shut out older run times


def build(tensors: Tensors, context: bool, about: dict[str, str]):
    """An ONNX model of standardised images [n, 3, height, width], all three axes free.

    Its outputs are the encoder's named features, `pooled` [n, c] and the levels [n, c, h, w].

    Args:
        tensors: the encoder under PyTorch's names.
        context: whether it has context bottlenecks.
        about: text for the model's metadata.
    """
    graph = _Graph(tensors)
    x = graph.conv_norm('conv1', 'bn1', 'image', stride=2, padding=3)
    x = graph.level('stem', graph.add('Relu', x), context)
    x = graph.add('MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage in range(1, 5):
        for block in range(2):
            x = graph.block(f'layer{stage}.{block}', x, 2 if stage > 1 and not block else 1)
        x = graph.level(f'stage{stage}', x, context)
    graph.add('Flatten', graph.add('GlobalAveragePool', x), output='pooled')

    width = len(tensors['conv1.weight'])
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    outputs = [
        value(name, ['n', width * 2 ** max(i - 1, 0), f'height_{name}', f'width_{name}'])
        for i, name in enumerate(LEVELS)
    ] + [value('pooled', ['n', 8 * width])]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, 'encoder', [value('image', ['n', 3, 'height', 'width'])], outputs, graph.initializers
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='mlvicx_jax',
    )
    helper.set_model_props(model, about)
    checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Collects nodes; each method returns the name of its output."""

    def __init__(self, tensors):
        self._tensors = tensors
        self.nodes, self.initializers = [], []

    def constant(self, name, array=None):
        array = self._tensors[name] if array is None else array
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind, *inputs, output=None, **attributes):
        output = output or f'{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def conv_norm(self, conv, norm, x, stride, padding):
        y = self.add('Conv', x, self.constant(f'{conv}.weight'), strides=[stride] * 2, pads=[padding] * 4)
        parts = ('weight', 'bias', 'running_mean', 'running_var')
        return self.add('BatchNormalization', y, *(self.constant(f'{norm}.{p}') for p in parts), epsilon=1e-5)

    def block(self, name, x, stride):
        y = self.conv_norm(f'{name}.conv1', f'{name}.bn1', x, stride, 1)
        y = self.conv_norm(f'{name}.conv2', f'{name}.bn2', self.add('Relu', y), 1, 1)
        if stride > 1:
            x = self.conv_norm(f'{name}.downsample.0', f'{name}.downsample.1', x, stride, 0)
        return self.add('Relu', self.add('Add', x, y))

    def level(self, name, y, context):
        if not context:
            return self.add('Identity', y, output=name)
        squeeze, excite = (
            self.constant(
                f'context_{name}.{part}.weight',
                self._tensors[f'context_{name}.{part}.weight'][:, :, None, None],
            )
            for part in ('channel_squeeze', 'channel_excite')
        )
        shared = [
            self.add('Conv', self.add('Relu', self.add('Conv', self.add(pool, y), squeeze)), excite)
            for pool in ('GlobalAveragePool', 'GlobalMaxPool')
        ]
        y = self.add('Mul', y, self.add('Sigmoid', self.add('Add', *shared)))
        axis = self.constant(f'{name}_channel_axis', np.array([1], np.int64))
        pools = self.add('Concat', self.add('ReduceMean', y, axis), self.add('ReduceMax', y, axis), axis=1)
        spatial = self.add('Conv', pools, self.constant(f'context_{name}.spatial.weight'), pads=[3] * 4)
        return self.add('Mul', y, self.add('Sigmoid', spatial), output=name)
