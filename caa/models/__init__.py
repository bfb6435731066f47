"""A live model: loading, fingerprints, blocks, hooks, adapters. The only room that registers hooks."""
