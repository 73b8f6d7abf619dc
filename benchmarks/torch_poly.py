"""The Poly of Hugging Face PEFT in PyTorch: what ours is measured beside."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

IGNORED = -100  # Targets that PyTorch's cross entropy leaves out.


class TorchStep:
  """Forward, backward and AdamW of PEFT's Poly on T5 1.1 small, with random weights, float32 and all CPUs.

  Attributes:
    name: of the step in tables.
    trainable: parameters that train.
    seconds: of each step that was made.
  """

  def __init__(self, name: str, batches: Sequence[Mapping[str, np.ndarray]], *, num_tasks: int, rank: int, num_skills: int,
               compiled: bool = False):
    """Builds the model.

    Args:
      name: of the step in tables.
      batches: as T5X's models take them, one after the other; 0 is padding.
      num_tasks: T.
      rank: rank of each skill.
      num_skills: skills of the inventory.
      compiled: through torch.compile.
    """
    import peft
    import torch
    import transformers
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    config = transformers.T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6, dropout_rate=0.,
        feed_forward_proj='gated-gelu', tie_word_embeddings=False, decoder_start_token_id=0, use_cache=False)
    poly = peft.PolyConfig(task_type='SEQ_2_SEQ_LM', poly_type='poly', r=rank, n_tasks=num_tasks, n_skills=num_skills,
                           n_splits=1, target_modules=['q', 'k', 'v', 'o'])
    self.model = peft.get_peft_model(transformers.T5ForConditionalGeneration(config), poly).train()
    self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
    self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)
    self.batches = [_torch_batch(batch) for batch in batches]
    self.forward = torch.compile(self.model) if compiled else self.model
    self.name = name
    self.seconds: list[float] = []

  def run(self, steps: int) -> None:
    """Makes steps, each over all batches, and notes the seconds that a batch of each took."""
    for _ in range(steps):
      start = time.perf_counter()
      for batch in self.batches:
        self.optimizer.zero_grad(set_to_none=True)
        self.forward(**batch).loss.backward()
        self.optimizer.step()
      self.seconds.append((time.perf_counter() - start) / len(self.batches))

  @property
  def median(self) -> float:
    """Median seconds of a step."""
    return statistics.median(self.seconds)


def _torch_batch(batch: Mapping[str, np.ndarray]):
  """Returns a batch as Transformers' T5 takes it; what is all padding needs no mask."""
  import torch
  inputs, targets = (torch.tensor(np.asarray(batch[key]), dtype=torch.long)
                     for key in ('encoder_input_tokens', 'decoder_target_tokens'))
  features = {'input_ids': inputs, 'labels': targets.masked_fill(targets == 0, IGNORED),
              'task_ids': torch.tensor(np.asarray(batch['task_id'])[:, 0], dtype=torch.long)}
  return {**features, 'attention_mask': (inputs > 0).long()} if (inputs == 0).any() else features


def trimmed(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns a batch [B, L] without the columns that are padding in every row: padded to its longest, as collators do."""
  longest = lambda name: int(np.max(np.sum(np.asarray(batch[name]) > 0, axis=1)))
  inputs, targets = longest('encoder_input_tokens'), longest('decoder_target_tokens')
  return {'encoder_input_tokens': batch['encoder_input_tokens'][:, :inputs],
          'decoder_target_tokens': batch['decoder_target_tokens'][:, :targets], 'task_id': batch['task_id']}
