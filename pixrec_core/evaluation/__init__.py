"""Evaluation of rankings: metrics per user, then their means with confidence intervals."""
