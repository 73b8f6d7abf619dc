"""The Orbax handler that saves a dataset iterator as the item `dataset` of a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import orbax.checkpoint as ocp

from t5x import checkpoint_state


class DatasetHandler(ocp.CheckpointHandler):
  """Writes the iterator state of each process with the iterator's own `save`."""

  def save(self, directory, args: DatasetSave) -> None:
    args.iterator.save(directory / checkpoint_state.dataset_file_name())

  def restore(self, directory, args: Any = None) -> None:
    """Restoring is done by the iterator itself (`CheckpointRestorer.restore`)."""


@ocp.args.register_with_handler(DatasetHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DatasetSave(ocp.args.CheckpointArgs):
  """Arguments of `DatasetHandler.save`: an iterator with `save(path)`, e.g. of clu.data."""

  iterator: Any
