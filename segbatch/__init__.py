"""segbatch: batch semantic segmentation on a cluster."""

__version__ = "0.1.0"
