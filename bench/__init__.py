"""How fast: every op, products and iterations against peers and the machine's own sgemm."""
