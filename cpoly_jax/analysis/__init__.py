"""What a run learned, from its files, and where asked from its data: `python -m cpoly_jax.analysis MODEL_DIR`.

    extraction.py  tables and weights of every router
    statistics.py  discreteness, sparsity, usage; tasks by the skills that they use
    hierarchy.py   which tasks are alike, and the tree of tasks
    borrowing.py   who borrows from whom in C-Poly
    diversity.py   cosines between skills
    truth.py       agreement with a known task x skill matrix
    comparison.py  scores against another run
    task_batches.py training examples of each task, for the next two
    conflict.py    cosines of tasks' gradients
    transfer.py    losses of tasks that are routed as others
    findings.py    all of these of a folder
    parts.py       what sections of a report are made of: sentences, tables, figures
    sections.py    the sections, in order: routing_, relation_ and comparison_sections.py
    figures.py     heat maps, trees, curves, bars
    svg.py         figures as files and inside of a page
    texts.py       names made safe for figures, pages and tables
    report.py      the page
    output.py      the folder
"""
