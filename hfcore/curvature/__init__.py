"""Curvature operators: products with flat vectors, activations cached once per operator."""
