"""Tasks added to a trained inventory, or dropped from it, while all others keep every bit of theirs.

- `plans`: which rows and skills a network has afterwards, from its description alone.
- `values`: parameters by such a plan: what is kept, and how what is new starts.
- `files`: from one checkpoint to another, or to a shared adapter.

The command: `python -m cpoly_jax.growth --help`. Training of the new tasks: `cpoly_jax.training.adaptation`.
"""
