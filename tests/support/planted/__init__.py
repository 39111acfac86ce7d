"""Kernels with one fault each, which the gates must find."""
