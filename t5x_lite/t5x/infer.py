"""Writes predictions or scores of a checkpoint for whole datasets: `python -m t5x.infer --gin_file=...`.

A dataset is worked off in chunks of `checkpoint_period` batches, each its own file; a process that starts
again goes on after the last finished chunk (`infer_chunks`). At the end the chunks become one file a task.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if __name__ == '__main__':
  # Read by C++ libraries when they are first imported, which the lines below may do.
  from t5x import runtime
  runtime.quiet_environment()

import jax
import numpy as np

from t5x import datasets
from t5x import files
from t5x import gin_utils
from t5x import infer_chunks
from t5x import infer_progress
from t5x import inference
from t5x import model_info
from t5x import restore
from t5x import utils
from t5x.infer_chunks import merge_chunks_to_file

if TYPE_CHECKING:
  import seqio
  import tensorflow as tf

_METHODS = {'predict': 'predict_batch', 'predict_with_aux': 'predict_batch_with_aux', 'score': 'score_batch'}


def create_task_from_tfexample_file(paths: Sequence[str], file_type: str, inputs_key: str, targets_key: str | None,
                                    features: Mapping[str, seqio.Feature], task_id: str | None = None) -> str:
  """Registers a task over files of tf.train.Example, with one split named 'infer'.

  Args:
    paths: files or patterns.
    file_type: 'tfrecord'.
    inputs_key: name of the inputs in the examples.
    targets_key: name of the targets in the examples; None: empty targets.
    features: 'inputs' and 'targets' of the task.
    task_id: ends the name; None: a digest of the paths.

  Returns:
    The name of the task, `infer_<task_id>`.

  Raises:
    ValueError: on another file type.
  """
  import seqio
  import tensorflow as tf
  if file_type != 'tfrecord':
    raise ValueError(f"file_type='{file_type}' is not known: use 'tfrecord'.")
  paths = [paths] if isinstance(paths, str) else list(paths)
  name = 'infer_' + (task_id or hashlib.sha256('\n'.join(paths).encode()).hexdigest()[:16])
  keys = [k for k in (inputs_key, targets_key) if k]

  def rename(ds):
    return ds.map(lambda ex: {'inputs': ex[inputs_key], 'targets': ex[targets_key] if targets_key else ''})

  if name not in seqio.TaskRegistry.names():
    parsed = {k: tf.io.FixedLenFeature([], tf.string) for k in keys}
    seqio.TaskRegistry.add(
        name, source=seqio.TFExampleDataSource({'infer': paths}, parsed, reader_cls=tf.data.TFRecordDataset),
        preprocessors=[rename, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=features, metric_fns=[])
  return name


def _selected_inputs(example: Mapping[str, Any], include_all_inputs: bool,
                     input_fields_to_include: Sequence[str] | None) -> dict[str, Any]:
  """Picks the fields of an example that go into its line."""
  if input_fields_to_include is not None:
    names = input_fields_to_include
  else:
    names = [k for k in example if include_all_inputs or k.endswith('_pretokenized')]
  return {k: example[k].tolist() if isinstance(example[k], np.ndarray) and example[k].dtype != object else example[k]
          for k in names}


def write_inferences_to_file(path: str, inferences: tuple[Sequence[Any], Mapping[str, Any]],
                             task_ds: tf.data.Dataset, mode: str, vocabulary: seqio.Vocabulary | None = None,
                             json_encoder_cls: type[json.JSONEncoder] | None = None, include_all_inputs: bool = False,
                             input_fields_to_include: Sequence[str] | None = None, output_ids: bool = False) -> None:
  """Writes one JSON line per example.

  Args:
    path: the file to write.
    inferences: (predictions or scores, {name: values}), in the order of `task_ds`.
    task_ds: the examples with the features of the task.
    mode: 'predict', 'predict_with_aux' or 'score'.
    vocabulary: decodes predictions; needed unless mode is 'score'.
    json_encoder_cls: None: seqio.TensorAndNumpyEncoder.
    include_all_inputs: write every feature of an example instead of `*_pretokenized`.
    input_fields_to_include: write these features only.
    output_ids: write the predicted token ids as well.

  Raises:
    ValueError: on an unknown mode, or a missing vocabulary.
  """
  import seqio
  _check_mode(mode)
  if mode != 'score' and vocabulary is None:
    raise ValueError(f"mode '{mode}' needs a vocabulary to decode its predictions.")
  outputs, auxiliary = inferences
  encoder = json_encoder_cls or seqio.TensorAndNumpyEncoder

  def decode(tokens):
    tokens = np.asarray(tokens)
    return vocabulary.decode(tokens.tolist()) if tokens.ndim == 1 else [decode(row) for row in tokens]

  lines = []
  for i, (example, output) in enumerate(zip(task_ds.as_numpy_iterator(), outputs)):
    line = {'inputs': _selected_inputs(example, include_all_inputs, input_fields_to_include)}
    if mode == 'score':
      line['score'] = np.asarray(output).tolist()
    else:
      line['prediction'] = decode(output)
      if output_ids:
        line['prediction_tokens'] = np.asarray(output).tolist()
    if auxiliary:
      line['aux'] = jax.tree.map(lambda values, i=i: values[i], dict(auxiliary),
                                 is_leaf=lambda x: isinstance(x, (list, np.ndarray)))
    lines.append(json.dumps(line, cls=encoder) + '\n')
  files.write_text(path, ''.join(lines))


def _check_mode(mode: str) -> None:
  if mode not in _METHODS:
    raise ValueError(f"mode '{mode}' is not known: use one of {', '.join(_METHODS)}.")


def infer(*, mode: str, model: Any, dataset_cfg: utils.DatasetConfig,
          restore_checkpoint_cfg: utils.RestoreCheckpointConfig, partitioner: Any, output_dir: str,
          checkpoint_period: int, shard_id: int = 0, num_shards: int = 1, merge_chunked_results: bool = True,
          write_fn: Callable[..., None] = write_inferences_to_file, checkpoint_ds_iter: bool = True,
          train_state_initializer_cls: type = utils.TrainStateInitializer, fallback_init_rng: int | None = None,
          merge_fn: Callable[..., None] = merge_chunks_to_file,
          summarize_config_fn: Callable[..., None] = gin_utils.summarize_gin_config,
          verify_matching_vocabs_fn: Callable[..., None] | None = datasets.verify_matching_vocabs,
          output_vocab_feature_name: str = 'targets', file_extension: str = 'jsonl',
          keep_aux_as_numpy: bool = False, use_orbax: bool = True) -> None:
  """Runs inference on every task of a mixture.

  Args:
    mode: 'predict', 'predict_with_aux' or 'score'.
    model: the model.
    dataset_cfg: mixture or task, split, lengths, batch size.
    restore_checkpoint_cfg: the checkpoint; with several, each gets a folder of its own.
    partitioner: owner of the mesh.
    output_dir: where results go.
    checkpoint_period: batches in a chunk.
    shard_id: the part of the data that this job works on.
    num_shards: the number of jobs that share the data.
    merge_chunked_results: join the chunks at the end; otherwise they stay in their folder.
    write_fn: writes a chunk.
    checkpoint_ds_iter: accepted for compatibility; a restart skips the examples that are done.
    train_state_initializer_cls: builds the shapes of the state.
    fallback_init_rng: seed for parameters that the checkpoint lacks; None: they are an error.
    merge_fn: joins the chunks.
    summarize_config_fn: fn(output_dir, summary_writer, step) that writes the configuration.
    verify_matching_vocabs_fn: fn(cfg, model) that raises where the vocabularies differ; None: unchecked.
    output_vocab_feature_name: the feature whose vocabulary decodes predictions.
    file_extension: of the result.
    keep_aux_as_numpy: hand auxiliary values to `write_fn` as numpy arrays.
    use_orbax: accepted for compatibility; both formats are read.

  Raises:
    ValueError: on an unknown mode, task or split, other vocabularies, or missing lengths.
    FileNotFoundError: where the checkpoint is absent.
  """
  del checkpoint_ds_iter
  _check_mode(mode)
  datasets.check_feature_lengths(dataset_cfg)
  if not 0 <= shard_id < num_shards:
    raise ValueError(f'shard_id={shard_id} must be one of 0 to {num_shards - 1} (infer.num_shards={num_shards}).')
  tasks = datasets.tasks_with_split(dataset_cfg)
  if verify_matching_vocabs_fn is not None:
    verify_matching_vocabs_fn(dataset_cfg, model)
  if hasattr(model, 'check_mixture'):
    model.check_mixture(datasets.get_mixture_or_task(dataset_cfg))
  partitioner.get_data_layout(dataset_cfg.batch_size)
  if jax.process_index() == 0:
    files.check_writable(output_dir, 'INFER_OUTPUT_DIR')
    summarize_config_fn(output_dir, None, 0)
  paths = restore.checkpoints_for_inference(restore_checkpoint_cfg, fallback_init_rng)

  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  convert = lambda ds: converter(ds, task_feature_lengths=dataset_cfg.task_feature_lengths)
  spec = convert(infer_chunks.TaskFiles(tasks[0], dataset_cfg, mode, output_dir, (0, 1), file_extension).dataset()).element_spec
  initializer = train_state_initializer_cls(
      optimizer_def=None, init_fn=model.get_initial_variables, partitioner=partitioner,
      input_shapes={k: (dataset_cfg.batch_size, *v.shape) for k, v in spec.items()},
      input_types={k: v.dtype.as_numpy_dtype for k, v in spec.items()})
  model_info.log_model_info(os.path.join(output_dir, 'model-info.txt'), initializer.global_train_state_shape,
                            partitioner)
  infer_fn = inference.get_infer_fn(getattr(model, _METHODS[mode]), dataset_cfg.batch_size,
                                    initializer.train_state_axes, partitioner, keep_aux_as_numpy)

  for path in paths:
    train_state, manager = utils.create_checkpoint_manager_and_restore(
        initializer, partitioner, restore_checkpoint_cfg, path, fallback_init_rng, use_orbax=use_orbax)
    folder = output_dir if len(paths) == 1 else os.path.join(output_dir, f'checkpoint_{int(train_state.step)}')
    for task in tasks:
      facts = {'checkpoint': os.fspath(path), infer_chunks.CHUNK: checkpoint_period * dataset_cfg.batch_size,
               'input': infer_chunks.content(task, dataset_cfg.split), 'decoding': _decoding(model, mode)}
      work = infer_chunks.TaskFiles(task, dataset_cfg, mode, folder, (shard_id, num_shards), file_extension, facts)
      _infer_task(work, mode, facts[infer_chunks.CHUNK], num_shards, convert, infer_fn, train_state, write_fn,
                  merge_fn if merge_chunked_results else None,
                  task.output_features[output_vocab_feature_name].vocabulary)
    manager.close()


def _decoding(model: Any, mode: str) -> str | None:
  """Tells how a model decodes, as far as its attributes do."""
  function = getattr(model, 'decode_fn', None)
  if mode == 'score' or function is None:
    return None
  name = getattr(getattr(function, 'func', function), '__name__', type(function).__name__)
  settings = ', '.join(f'{k}={v}' for k, v in sorted(getattr(function, 'keywords', {}).items()))
  return f'{name}({settings}) {getattr(model, "_default_decoder_params", "")}'.strip()


def _infer_task(work: infer_chunks.TaskFiles, mode: str, chunk_size: int, num_shards: int, convert: Callable[..., Any],
                infer_fn: Callable[..., Any], train_state: Any, write_fn: Callable[..., None],
                merge_fn: Callable[..., None] | None, vocabulary: seqio.Vocabulary) -> None:
  """Works off the chunks of one task that are not done yet."""
  is_first = jax.process_index() == 0
  if work.is_done():
    if is_first:
      print(f'{work.path} is complete already, left as it is.', flush=True)
    return
  ds, done = work.dataset(), work.num_chunks_done()
  if is_first:
    work.prepare(keep=done > 0)
  total = infer_chunks.num_examples(ds, work.task, work.cfg.split, num_shards)
  before = done * chunk_size if total is None else min(done * chunk_size, total)
  progress = infer_progress.InferProgress(work.task.name, total, before) if is_first else None
  for number, chunk_ds in infer_chunks.iterate(ds, chunk_size, done):
    rng = jax.random.fold_in(jax.random.PRNGKey(0), number)
    result = infer_fn(convert(chunk_ds).enumerate(), train_state, rng=rng, on_batch=progress)
    indexed, auxiliary = result if isinstance(result, tuple) else (result, {})
    if is_first:
      write_fn(work.chunk_path(number), ([output for _, output in indexed], auxiliary), chunk_ds, mode, vocabulary)
      work.mark_chunk(number)
  if is_first and merge_fn is not None:
    progress.show()
    merge_fn(work.output_dir, work.file_name, work.tmp_dir, int(train_state.step))
    work.mark_result()
    print(f'{work.task.name}: wrote {work.path}', flush=True)


if __name__ == '__main__':
  gin_utils.run_entry_point(infer)
