"""Skill inventories: banks of small modules, and how a weighted mix of them is applied to a batch.

    groups.py      SkillGroup: which skills are active for each example or token, and how much
    mixing.py      the mathematics: mixed low-rank factors, mixed products, mixed kernels
    inventory.py   what every inventory offers
    lora.py        low-rank skills
    kernels.py     skills that are whole kernels: dense, and sparse at a fixed random mask (SFT)
    ia3.py         (IA)^3: skills that scale activations
"""

from cpoly_jax.skills.groups import SkillGroup
from cpoly_jax.skills.ia3 import IA3
from cpoly_jax.skills.inventory import Inventory
from cpoly_jax.skills.kernels import SFT
from cpoly_jax.skills.kernels import Dense
from cpoly_jax.skills.lora import LoRA
from cpoly_jax.skills.lora import uniform_fan_in
from cpoly_jax.skills.mixing import FACTORS
from cpoly_jax.skills.mixing import GROUP_FACTORS
from cpoly_jax.skills.mixing import MIXINGS
from cpoly_jax.skills.mixing import PRODUCTS
from cpoly_jax.skills.mixing import low_rank
from cpoly_jax.skills.mixing import mix_factors
from cpoly_jax.skills.mixing import mix_group_factors
from cpoly_jax.skills.mixing import mix_kernels
from cpoly_jax.skills.mixing import mix_products

__all__ = ['FACTORS', 'GROUP_FACTORS', 'IA3', 'MIXINGS', 'PRODUCTS', 'SFT', 'Dense', 'Inventory', 'LoRA', 'SkillGroup',
           'low_rank', 'mix_factors', 'mix_group_factors', 'mix_kernels', 'mix_products', 'uniform_fan_in']
