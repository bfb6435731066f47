"""Words: what is contrasted and what is asked. This room knows no model."""
