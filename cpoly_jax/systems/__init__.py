"""The systems side by side: what trains, what a task uses and what it costs, and equal budgets.

    python -m cpoly_jax.systems --help

    configured.py   a model and a system as their gin files make them, without data, devices or checkpoints
    counts.py       parameters: what trains, and what one task can use of it
    costs.py        FLOPs that the skills add to a forward pass, as XLA counts them
    matching.py     the value of a macro that gives a system the budget of another
    tables.py       rows as a table, Markdown or CSV
"""
