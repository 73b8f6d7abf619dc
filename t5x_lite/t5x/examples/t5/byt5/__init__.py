"""Gin files of ByT5, one a size."""
