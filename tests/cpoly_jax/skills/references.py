"""Reference computations for the tests of skills: explicit loops over examples, tokens, heads and skills, in float64."""

import numpy as np


def token_weights(group, num_skills, length):
  """A group's weights written out: [B, L, H, S]."""
  weights = np.asarray(group.weights, np.float64)
  batch, k = weights.shape[0], weights.shape[-1]
  heads = 1 if group.per_token else weights.shape[1]
  total = np.zeros((batch, length, heads, num_skills))
  for b in range(batch):
    for l in range(length):
      for h in range(heads):
        for i in range(k):
          s = group.start + i if group.ids is None else int(group.ids[b, i])
          total[b, l, h, s] += weights[b, l if group.per_token else h, i]
  return total


def _blocks(size, heads):
  return [slice(h * size // heads, (h + 1) * size // heads) for h in range(heads)]


def factors(x, groups, down, up):
  """x @ (sum w down) @ (sum w up) over the skills of all groups; head h has block h of down's inputs and up's outputs."""
  batch, length, d = x.shape
  o = up.shape[-1]
  weights = sum(token_weights(g, len(down), length) for g in groups)
  out = np.zeros((batch, length, o))
  heads = weights.shape[2]
  for b in range(batch):
    for l in range(length):
      mixed_down, mixed_up = np.zeros(down.shape[1:]), np.zeros(up.shape[1:])
      for h in range(heads):
        rows, columns = _blocks(d, heads)[h], _blocks(o, heads)[h]
        for s in range(len(down)):
          mixed_down[rows] += weights[b, l, h, s] * down[s][rows]
          mixed_up[:, columns] += weights[b, l, h, s] * up[s][:, columns]
      out[b, l] = x[b, l] @ mixed_down @ mixed_up
  return out


def group_factors(x, groups, down, up):
  """`factors` of each group, added."""
  return sum(factors(x, [group], down, up) for group in groups)


def kernels(x, groups, bank):
  """sum w (x @ kernel); head h has block h of the outputs."""
  batch, length, _ = x.shape
  o = bank.shape[-1]
  out = np.zeros((batch, length, o))
  for group in groups:
    weights = token_weights(group, len(bank), length)
    for b in range(batch):
      for l in range(length):
        for h, columns in enumerate(_blocks(o, weights.shape[2])):
          for s in range(len(bank)):
            out[b, l, columns] += weights[b, l, h, s] * (x[b, l] @ bank[s][:, columns])
  return out


def products(x, groups, down, up):
  """sum w (x @ down @ up)."""
  return kernels(x, groups, np.einsum('sdr,sro->sdo', down, up))


def vectors(groups, bank, length):
  """sum w vector, for each token [B, L, n]; head h has block h."""
  total = 0.
  for group in groups:
    weights = token_weights(group, len(bank), length)
    mixed = np.zeros((*weights.shape[:2], bank.shape[-1]))
    for b, l in np.ndindex(*weights.shape[:2]):
      for h, block in enumerate(_blocks(bank.shape[-1], weights.shape[2])):
        for s in range(len(bank)):
          mixed[b, l, block] += weights[b, l, h, s] * bank[s][block]
    total = total + mixed
  return total


MIX = dict(factors=factors, group_factors=group_factors, products=products)
