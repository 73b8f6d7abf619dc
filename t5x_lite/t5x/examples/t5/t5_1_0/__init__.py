"""Gin files of T5 1.0, one a size."""
