"""One file for each kind of judge that settings can name: `kind: phrases` is `phrases.py`. Nothing else lists them.

Such a file has two functions:

    def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge
    def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]

The first makes the judge of one behavior; the second says, before anything is loaded, what would stop it.
"""
