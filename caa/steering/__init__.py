"""Edits: which direction is added where, how strongly and to which tokens; the wrapper that does it."""
