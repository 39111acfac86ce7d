"""Small trainings of ordinary torch modules; ``python -m hfcore.examples.cnn`` runs one."""
