"""Speed and memory, side by side with peers; each file is a command of its own, `python -m benchmarks.<name>`."""
