"""A page to talk to the steered model and the unsteered one at once, on this machine. Knows the network, no rows."""
