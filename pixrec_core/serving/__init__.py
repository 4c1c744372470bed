"""What serves: the promoted checkpoint of each variant, and recommendations by it."""

from pixrec_core.serving.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
