"""Solvers on flat vectors, one per file."""
