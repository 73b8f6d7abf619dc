"""Gin files of T5 1.1, one a size."""
