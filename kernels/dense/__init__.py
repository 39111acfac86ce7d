"""Layers of feed-forward nets: forward pass, R-op, backpropagation, parameter gradient."""
