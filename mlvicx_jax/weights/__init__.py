"""Weights from outside: what a tensor is called on either side, and the encoder that a run starts from."""
