"""MoCo v2: momentum contrast with a hidden layer in the head (arXiv:2003.04297)."""

import dataclasses

from mlvicx_jax.methods.shared.contrast import normalise
from mlvicx_jax.methods.shared.momentum_contrast import MomentumContrast


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(MomentumContrast):
    """MoCo v2, one direction: first views find second views (facebookresearch/moco)."""

    def forward(self, variables, method_state, views, key):
        (queries,), stats = self.embed(self.network, variables, views['first'])
        keys, method_state = self.key_pass(method_state, views['second'], key)
        out = {'embedding_1': normalise(queries), 'embedding_2': normalise(keys)}
        return out, stats, method_state

    def loss(self, out, method_state):
        return self.contrast(out, method_state)
