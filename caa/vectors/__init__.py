"""Directions: tensors with a history. This room knows no model."""
