"""Gin files of mT5, one a size."""
