"""Gin files: `runs/` says what to do (train, evaluate, infer), the examples say with which model."""
