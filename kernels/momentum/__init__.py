"""One-pass updates of gradient descent with classical or Nesterov's momentum."""
