"""Matching losses at the pre-nonlinearity outputs s: value, gradient and curvature."""
