"""The objective of any torch module, its curvature by autograd: a cached trace, vjps or jvps."""
