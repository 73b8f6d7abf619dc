"""From the command line to a configured function: flags, gin files, and their mistakes explained.

Gin's own errors name the mistake in its terms; here they are turned into one line that says what to
write instead. Parsing imports what the gin files import, and nothing else.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import tokenize
from typing import Any
from collections.abc import Callable, Iterable, Sequence

from absl import app
from absl import flags
from absl import logging
import gin

from t5x import errors

# The flags defined below belong to the module that runs, which is what --help should show.
flags.disclaim_key_flags()

FLAGS = flags.FLAGS

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MAX_FOLDERS = 500  # looked into for gin files with a similar name

_FILE_NOT_FOUND = re.compile(r'Unable to open file: (.*)\. Searched config paths: ')
_NO_CONFIGURABLE = re.compile(r"No configurable matching (?:reference )?'@?([^']*?)(?:\(\))?'")
_NOT_IMPORTED = re.compile(r"'([^']+)' was not provided by an import statement")
_NO_ATTRIBUTE = re.compile(r"Couldn't resolve selector ([\w.]+); (.*) has no attribute (\w+)\.")
_NO_PARAMETER = re.compile(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'")
_MACRO_UNSET = re.compile(r"No bindings specified for '([^']+)' in config string")


def define_flags() -> None:
  """Defines the flags that train, eval and infer share."""
  flags.DEFINE_multi_string('gin_file', None, 'Path of a gin file; repeatable, later ones win.')
  flags.DEFINE_multi_string('gin_bindings', [], 'A gin binding, NAME = VALUE; repeatable. Short form: --gin.NAME=VALUE.')
  flags.DEFINE_list('gin_search_paths', ['.'], 'Comma-separated folders that gin files are searched in.')
  flags.DEFINE_string('tfds_data_dir', None, 'Folder of the data sets of TensorFlow Datasets.')
  flags.DEFINE_list('seqio_additional_cache_dirs', [], 'Comma-separated folders of cached SeqIO tasks.')
  flags.DEFINE_bool('dry_run', False, 'Check everything, print what would be read and written, and stop there.')
  flags.DEFINE_bool('multiprocess_gpu', False, 'Join the other processes of the run, whatever its devices: as the flags below '
                    'say, or as JAX finds out (Slurm, Open MPI, Kubernetes, Cloud TPU).')
  flags.DEFINE_string('coordinator_address', None, 'Address of the first process, host:port.')
  flags.DEFINE_integer('process_count', None, 'Number of processes.')
  flags.DEFINE_integer('process_index', None, 'Index of this process.')
  flags.DEFINE_integer('initialization_timeout', 300, 'Seconds to wait for all processes.')
  flags.DEFINE_integer('heartbeat_timeout', 100, 'Seconds after which a silent process counts as dead, and all others end.')


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=VALUE` to `--gin_bindings=NAME = VALUE`, leaving all else alone.

  Args:
    args: the command line, program name first.

  Returns:
    The rewritten command line.

  Raises:
    ValueError: for a `--gin.NAME` without a value.
  """

  def rewrite(arg: str) -> str:
    if not arg.startswith('--gin.'):
      return arg
    name, equals, value = arg.removeprefix('--gin.').partition('=')
    if not equals:
      raise ValueError(f"Gin bindings must be of the form '--gin.<param>=<value>', got: {arg}")
    return f'--gin_bindings={name} = {value}'

  return [rewrite(arg) for arg in args]


# Parsing


def parse_gin_flags(
  gin_search_paths: Sequence[str],
  gin_files: Sequence[str] | None,
  gin_bindings: Sequence[str] | None,
  skip_unknown: bool | Sequence[str] = False,
  finalize_config: bool = True,
) -> None:
  """Parses gin files, then bindings, and logs the result.

  Args:
    gin_search_paths: folders that relative paths are searched in; the folder that holds the t5x
      package comes after them.
    gin_files: paths of gin files; later ones win.
    gin_bindings: lines of gin; they win over the files.
    skip_unknown: whether, or for which names, unknown configurables are ignored.
    finalize_config: whether to check that everything required is set, and to lock the result.

  Raises:
    FileNotFoundError: for a gin file that is in none of the folders.
    ValueError: for a binding that cannot be parsed or names nothing, and for a macro left unset.
  """
  roots = [*gin_search_paths, _PACKAGE_PARENT]
  for root in roots:
    gin.add_config_file_search_path(root)
  bindings = list(gin_bindings or ())
  handler = logging.get_absl_handler()
  handler.addFilter(_is_no_search_noise)
  try:
    gin.parse_config_files_and_bindings(gin_files, bindings, skip_unknown=skip_unknown, finalize_config=False)
    if finalize_config:
      _check_command_line_macros(bindings)
      _check_required()
      gin.finalize()
  except tokenize.TokenError as exc:
    reason, (line, _) = exc.args
    raise ValueError(f'cannot parse: a bracket or a quote is not closed ({reason}, line {line})') from exc
  except (OSError, ValueError, NameError, AttributeError, SyntaxError) as exc:
    explained = _explain(exc, roots)
    if explained is None:
      raise
    raise explained from exc
  finally:
    handler.removeFilter(_is_no_search_noise)
  logging.info('Gin configuration:\n%s', gin.config_str())


def _is_no_search_noise(record: Any) -> bool:
  """Log filter: gin reports each folder in which it did not find a file as an error."""
  return record.module != 'resource_reader'


def _check_required() -> None:
  """Raises ValueError naming every macro and parameter still set to %gin.REQUIRED."""
  names = re.findall(r'^(\S+) = %gin\.REQUIRED$', gin.config_str(), re.MULTILINE)
  if names:
    example = ' '.join(f'--gin.{name}=...' for name in names)
    raise ValueError(f'{", ".join(names)} must be set: {example}')


def _check_command_line_macros(bindings: Iterable[str]) -> None:
  """Raises ValueError for a macro set on the command line that looks like a misspelt one."""
  used = set(re.findall(r'%(\w+)', gin.config_str()))
  for binding in bindings:
    match = re.match(r'\s*(\w+)\s*=', binding)
    if not match or match[1] in used:
      continue
    if difflib.get_close_matches(match[1], used, n=1, cutoff=0.85):
      raise ValueError(f'no gin file uses the macro {match[1]}{_hint(match[1], used)}')
    logging.warning('No gin file uses the macro %s.', match[1])


def _hint(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
  """Returns '; did you mean x or y?' with the candidates nearest to `name`, or ''."""
  matches = difflib.get_close_matches(name, sorted(set(candidates)), n=3, cutoff=cutoff)
  return f'; did you mean {" or ".join(matches)}?' if matches else ''


def _explain(exc: Exception, roots: Sequence[str]) -> Exception | None:
  """Returns an error that teaches in place of gin's, None for those that are not gin's.

  Args:
    exc: what parsing raised.
    roots: the folders gin files were searched in.

  Returns:
    The exception to raise instead, or None.
  """
  text = str(exc)
  where = errors.gin_location(text)
  where = f' ({where})' if where else ''

  if isinstance(exc, SyntaxError):
    return _explain_syntax_error(exc)
  if match := _FILE_NOT_FOUND.match(text):
    searched = ', '.join(dict.fromkeys(os.path.abspath(root) for root in roots))
    hint = _file_hint(match[1], roots)
    return FileNotFoundError(f'gin file {match[1]} not found{where}; searched {searched}{hint}')
  if match := _NO_CONFIGURABLE.match(text):
    return ValueError(f"gin knows no configurable '{match[1]}'{where}{_configurable_hint(match[1])}")
  if match := _NOT_IMPORTED.match(text):
    return ValueError(f"'{match[1]}' is not imported{where}: add an import of {match[1]} to the file")
  if match := _NO_ATTRIBUTE.match(text):
    module = re.match(r"<module '([^']+)'", match[2])
    owner = module[1] if module else match[1].rpartition('.')[0]
    candidates = dir(sys.modules[owner]) if owner in sys.modules else ()
    return ValueError(f"{owner} has no '{match[3]}'{where}{_hint(match[3], candidates)}")
  if match := _NO_PARAMETER.match(text):
    hint = _hint(match[2], _parameters(match[1]))
    return ValueError(f"{match[1]} has no parameter '{match[2]}'{where}{hint}")
  if match := _MACRO_UNSET.match(text):
    name = match[1].removesuffix('/gin.macro')
    hint = _hint(name, re.findall(r'^(\w+) = ', gin.config_str(), re.MULTILINE), 0.8)
    return ValueError(f'the macro {name} is used but set nowhere: give the gin file that sets it, or --gin.{name}=...{hint}')
  return None


def _explain_syntax_error(exc: SyntaxError) -> Exception | None:
  """Returns the error for a line of gin that cannot be parsed, None for one in Python code."""
  if (exc.filename or '').endswith('.py'):
    return None
  line = (exc.text or '').strip()
  name, _, value = (part.strip() for part in line.partition('='))
  where = f' ({exc.filename}, line {exc.lineno})' if exc.filename else ''
  if value and not re.search(r"""["'\[({@%]""", value):
    quoted = f"{name} = '{value}'" if where else f"""--gin.{name}="'{value}'\""""
    hint = f'a text needs quotes{"" if where else " inside those of the shell"}: {quoted}'
  else:
    hint = exc.msg.strip().splitlines()[0]
  return ValueError(f'cannot parse the binding {line}{where}; {hint}')


def _file_hint(path: str, roots: Sequence[str]) -> str:
  """Returns a hint at gin files below `roots` with the same name as, or one similar to, `path`."""
  found = {}  # by real path, since one root can lie below another
  for root in roots:
    # Beside the package lies whatever else is installed: look into the package only.
    top = os.path.join(root, 't5x') if root == _PACKAGE_PARENT else root
    for i, (folder, folders, names) in enumerate(os.walk(top)):
      folders[:] = sorted(f for f in folders if not f.startswith(('.', '_')))
      for file in (os.path.join(folder, n) for n in names if n.endswith('.gin')):
        relative = os.path.relpath(file, root)
        found[os.path.realpath(file)] = min(relative, found.get(os.path.realpath(file), relative), key=len)
      if i >= _MAX_FOLDERS:
        break
  found = list(found.values())
  same_name = [f for f in found if os.path.basename(f) == os.path.basename(path)]
  return _hint(path, same_name, 0.0) if same_name else _hint(path, found, 0.75)


def _configurable_hint(selector: str) -> str:
  """Returns a hint at the configurables that have bindings: whole selectors or their last part."""
  bound = set(re.findall(r'^(?:[\w/]+/)?([A-Za-z_][\w.]*)\.\w+ = ', gin.config_str(), re.MULTILINE))
  # The last part only: of train_script.train, whose first part is local to a file, the command line wants train.
  return _hint(selector.rpartition('.')[2], (name.rpartition('.')[2] for name in bound))


def _parameters(selector: str) -> list[str]:
  """Returns the parameters of a configurable, [] where its signature cannot be read."""
  try:
    configurable = gin.get_configurable(selector)
    # A configurable class is a subclass of the real one, made by gin, that takes anything.
    functions = (
      [vars(c)['__init__'] for c in configurable.__mro__ if '__init__' in vars(c)]
      if inspect.isclass(configurable)
      else [configurable]
    )
    return [name for fn in functions for name in inspect.signature(fn).parameters]
  except (ValueError, TypeError):
    return []


# The configuration as text


def get_gin_config_str(show_provenance: bool = False) -> str:
  """Returns the whole parsed configuration as gin text.

  Args:
    show_provenance: add where each binding came from, where the installed gin knows that.
  """
  if show_provenance and 'show_provenance' in inspect.signature(gin.config_str).parameters:
    return gin.config_str(show_provenance=True)
  return gin.config_str()


def summarize_gin_config(model_dir: str, summary_writer: Any, step: int) -> None:
  """Writes the configuration to `<model_dir>/config.gin` and to the event files.

  Args:
    model_dir: folder of the run; '' or None: no file.
    summary_writer: a clu MetricWriter, or None.
    step: the step at which the text shows in TensorBoard.
  """
  import jax

  if jax.process_index() != 0:
    return
  config = get_gin_config_str()
  if model_dir:
    from t5x import files

    files.write_text(os.path.join(model_dir, 'config.gin'), config)
  if summary_writer is not None:
    summary_writer.write_texts(step, {'config': gin.markdown(config)})
    summary_writer.flush()


# Running


def run(main: Callable[[list[str]], Any]) -> None:
  """Runs `main(argv)` with flags parsed, gin's short form included; a user's error is one line.

  Args:
    main: the entry point, as absl.app.run takes it. jax's own flags are defined and applied.
  """
  import jax

  def parse_flags(argv: list[str]) -> list[str]:
    try:
      return FLAGS(argv)
    except flags.UnrecognizedFlagError as exc:
      hint = _hint(f'--{exc.flagname}', [f'--{name}' for name in FLAGS], cutoff=0.85)
      return _fail(f'unknown flag --{exc.flagname}{hint}')
    except flags.Error as exc:
      return _fail(errors.report(exc))

  def _fail(line: str):
    print(f'error: {line}', file=sys.stderr)
    sys.exit(1)

  def reporting_main(argv: list[str]) -> Any:
    return errors.run_reporting(lambda: main(argv))

  jax.config.config_with_absl()
  argv = errors.run_reporting(lambda: rewrite_gin_args(sys.argv))
  app.run(reporting_main, argv=argv, flags_parser=parse_flags)


def run_entry_point(fn: Callable[..., Any]) -> None:
  """Runs `fn` of the running module, its arguments bound by gin: all there is to a `__main__`.

  Args:
    fn: `train`, `evaluate` or `infer`, defined in `__main__`, where gin files look for it.
  """
  define_flags()
  if fn.__name__ == 'infer':
    flags.DEFINE_integer('shard_id', None, 'Index of this shard, in place of infer.shard_id.')

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected argument {argv[1]}: options begin with --, values with =')
    if not FLAGS.gin_file and not FLAGS.gin_bindings:
      raise app.UsageError('nothing to do: give at least one --gin_file=<file>.gin')
    _set_up_process()
    bindings = list(FLAGS.gin_bindings)
    if 'shard_id' in FLAGS and FLAGS.shard_id is not None:
      bindings.append(f'infer.shard_id = {FLAGS.shard_id}')
    entry_point = fn
    if FLAGS.dry_run:
      from t5x import dry_run

      entry_point = dry_run.instead_of(fn)
    configured = gin.configurable(entry_point)
    parse_gin_flags(FLAGS.gin_search_paths, FLAGS.gin_file, bindings)
    _set_up_data()
    from t5x import multihost

    with multihost.naming_lost_processes():
      configured()

  from t5x import runtime

  runtime.leave_after(lambda: run(main))


def _set_up_process() -> None:
  """Applies the flags that must come before the first computation."""
  from t5x import runtime

  runtime.quiet_logging()
  _join_processes()
  runtime.enable_compilation_cache()


def _join_processes() -> None:
  """Joins the other processes of the run, where there are any: by the flags, or because this is a host of a TPU pod."""
  from t5x import multihost

  given = [f'--{name}' for name in ('coordinator_address', 'process_count', 'process_index') if FLAGS[name].value is not None]
  if FLAGS.multiprocess_gpu or multihost.is_tpu_pod():
    multihost.initialize(FLAGS.coordinator_address, FLAGS.process_count, FLAGS.process_index, FLAGS.initialization_timeout,
                         FLAGS.heartbeat_timeout)
  elif given:
    raise app.UsageError(f'{", ".join(given)} without --multiprocess_gpu would start a run of its own: add --multiprocess_gpu')


def _set_up_data() -> None:
  """Applies the flags on data folders; SeqIO is imported only if there are any."""
  from t5x import runtime

  runtime.hide_gpus_from_tensorflow()
  if FLAGS.tfds_data_dir:
    import seqio

    seqio.set_tfds_data_dir_override(FLAGS.tfds_data_dir)
  if FLAGS.seqio_additional_cache_dirs:
    import seqio

    seqio.add_global_cache_dirs(FLAGS.seqio_additional_cache_dirs)


# Small functions for gin files


def sum_fn(var1: Any, var2: Any) -> Any:
  """Returns var1 + var2, for sums of macros: `X = @gin_utils.sum_fn()`."""
  return var1 + var2


def bool_fn(var1: Any) -> bool:
  """Returns bool(var1)."""
  return bool(var1)


def string_split_fn(text: str, separator: str, maxsplit: int = -1, index: int | None = None) -> list[str] | str:
  """Returns `text` split at `separator`, or one part of it where `index` is given."""
  parts = text.split(separator, maxsplit)
  return parts if index is None else parts[index]
