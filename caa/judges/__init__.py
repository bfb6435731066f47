"""Who scores texts: a judge reads a question and an answer, and says from 0 to 10 how much of a behavior is in it.

The names of the room, imported when they are first used: `from caa import judges; judges.make_judge(...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caa.lazy import lazy_names

if TYPE_CHECKING:
    from caa.judges.agreements import agreement as agreement
    from caa.judges.agreements import judged_again as judged_again
    from caa.judges.base import Judge as Judge
    from caa.judges.base import Verdict as Verdict
    from caa.judges.base import judge_all as judge_all
    from caa.judges.build import make_asker as make_asker
    from caa.judges.build import make_embedder as make_embedder
    from caa.judges.build import make_judge as make_judge
    from caa.judges.config import JudgeConfig as JudgeConfig
    from caa.judges.embedding import EmbeddingJudge as EmbeddingJudge
    from caa.judges.exemplar import ExemplarJudge as ExemplarJudge
    from caa.judges.kinds.phrases import PhraseJudge as PhraseJudge
    from caa.judges.kinds.sentiment import SentimentJudge as SentimentJudge
    from caa.judges.pairwise import PairwiseJudge as PairwiseJudge
    from caa.judges.pairwise import against_unsteered as against_unsteered
    from caa.judges.rating import RatingJudge as RatingJudge
    from caa.judges.summary import judge_summary as judge_summary

_HOME = {
    "agreement": "agreements",
    "judged_again": "agreements",
    "PhraseJudge": "kinds.phrases",
    "SentimentJudge": "kinds.sentiment",
    "Judge": "base",
    "Verdict": "base",
    "judge_all": "base",
    "make_asker": "build",
    "make_embedder": "build",
    "make_judge": "build",
    "JudgeConfig": "config",
    "EmbeddingJudge": "embedding",
    "ExemplarJudge": "exemplar",
    "PairwiseJudge": "pairwise",
    "against_unsteered": "pairwise",
    "RatingJudge": "rating",
    "judge_summary": "summary",
}
__all__ = sorted(_HOME)

if not TYPE_CHECKING:  # else a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
