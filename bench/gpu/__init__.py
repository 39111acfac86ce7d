"""How fast on a GPU: ops and products against their floors and against torch's own ways."""
