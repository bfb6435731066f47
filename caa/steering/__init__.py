"""The network: the only room that touches a live model."""
