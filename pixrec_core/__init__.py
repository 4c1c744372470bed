"""PixRec's core: data, model, retrieval, evaluation and report. It knows nothing of Dagster."""

__version__ = "0.1.0"
