"""The folder of a run: the contract between measuring and reporting. No torch."""
