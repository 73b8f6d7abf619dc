"""Routing: which skills a task uses, and how much.

    functions.py   the mathematics: Gumbel-sigmoid, normalisation, top-k, uniform shares
    sampling.py    from logits to weights: temperature, noise, hard values, annealing
    schedules.py   settings that change with the step
    router.py      the Router protocol, and rows of tables by task
    poly.py        Polytropon and multi-head routing; one skill; the plain average
    cpoly.py       C-Poly: common and specific skills
    expert.py      a fixed task x skill matrix from a file
    embedded.py    weights computed from a task embedding: HyperFormer, Task-MoE
    token.py       weights computed from the token: MoE-LoRA, MMoE, CGC
    priors.py      penalties on the routing: Indian buffet process, entropy, sparsity
"""

from cpoly_jax.routing.cpoly import FIXED
from cpoly_jax.routing.cpoly import GUMBEL
from cpoly_jax.routing.cpoly import LEARNED
from cpoly_jax.routing.cpoly import SPECIFIC_KINDS
from cpoly_jax.routing.cpoly import CPolyRouter
from cpoly_jax.routing.cpoly import block_diagonal
from cpoly_jax.routing.cpoly import own_skills
from cpoly_jax.routing.cpoly import specific_counts
from cpoly_jax.routing.embedded import HyperRouter
from cpoly_jax.routing.embedded import TaskMoERouter
from cpoly_jax.routing.expert import ExpertRouter
from cpoly_jax.routing.expert import expert_matrix
from cpoly_jax.routing.functions import gumbel_sigmoid
from cpoly_jax.routing.functions import normalise
from cpoly_jax.routing.functions import straight_through
from cpoly_jax.routing.functions import top_k
from cpoly_jax.routing.poly import PolyRouter
from cpoly_jax.routing.poly import SharedRouter
from cpoly_jax.routing.poly import UniformRouter
from cpoly_jax.routing.poly import uniform_start
from cpoly_jax.routing.router import AVERAGE
from cpoly_jax.routing.router import ERROR
from cpoly_jax.routing.router import RNG
from cpoly_jax.routing.router import UNKNOWN
from cpoly_jax.routing.router import Router
from cpoly_jax.routing.sampling import Sampling
from cpoly_jax.routing.token import TokenRouter

__all__ = [
    'AVERAGE', 'CPolyRouter', 'ERROR', 'ExpertRouter', 'FIXED', 'GUMBEL', 'HyperRouter', 'LEARNED', 'PolyRouter', 'RNG',
    'Router',
    'SPECIFIC_KINDS', 'Sampling', 'SharedRouter', 'TaskMoERouter', 'TokenRouter', 'UNKNOWN', 'UniformRouter', 'block_diagonal',
    'expert_matrix', 'gumbel_sigmoid', 'normalise', 'own_skills', 'specific_counts', 'straight_through', 'top_k',
    'uniform_start']
