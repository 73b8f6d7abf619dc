"""Experiments: a grid of training runs from one file, each a process and a MODEL_DIR of its own, and what came of them.

    python -m cpoly_jax.experiments experiments/smoke.toml --out=outputs/smoke

    spec.py         what a file says, checked
    values.py       TOML values as gin
    reading.py      tables of TOML, whose mistakes are told with their key
    arms.py         a file's systems, variants and axes as arms: what is run once for each seed
    configuring.py  the gin configuration of an arm: checked, counted, told apart by a hash
    checks.py       what is wrong with arms, found before anything runs
    budgets.py      equal parameters
    plans.py        all runs, what each needs, and the folders that they have
    folders.py      the state of a run, as its folder tells it
    driver.py       runs n at a time, goes on after a kill
    cpus.py         which CPUs a run gets
    progress.py     what a person sees of it, times that are left
    bootstrap.py    means, intervals, paired differences
    measures.py     scores and steps from what a run wrote
    results.py      runs together: systems, tasks, differences, steps to a score, the front of accuracy over parameters
    figures.py  sections.py  output.py     tables and figures as Markdown, CSV and one HTML page

It works from files and processes alone: whichever package provides `t5x` trains.
"""
