"""Whom judges ask: a server, a local model, an embedding. Knows no rubric."""
