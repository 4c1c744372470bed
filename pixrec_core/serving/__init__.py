"""Serving: the gate before it, the promoted artefacts, recommendations from them, and their export."""

from pixrec_core.serving.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
