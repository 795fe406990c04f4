"""Whole networks assembled from the layers, one file per family."""
