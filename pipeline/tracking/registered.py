"""The old name of `pipeline.tracking.load_model`, for this version."""

from pipeline.renamed import warn_renamed
from pipeline.tracking.load_model import load_model

__all__ = ["load_model"]
warn_renamed("pipeline.tracking.registered", "pipeline.tracking.load_model")
