"""The T5 network and its gin files."""
