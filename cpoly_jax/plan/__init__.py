"""What a run needs before it has it: memory, FLOPs and time of its train step, without its devices and without its weights.

    python -m cpoly_jax.plan --help

    devices.py     published peak numbers of accelerators
    runs.py        a run as its gin files make it, as shapes
    train_step.py  its train step, compiled for devices that need not be there
    memory.py      bytes of each device: parameters, optimizer state, what the step needs besides; bytes of a checkpoint
    hlo.py         collectives, products and loops of a compiled program
    roofline.py    the least time that a step can take
    meshes.py      the meshes that fit a run, and an estimate of each
    report.py      all of this as text
"""
