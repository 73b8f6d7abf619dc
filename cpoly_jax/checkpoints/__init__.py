"""Weights in files, without a run: what is in them, and from one format to another.

- `names`: T5X's parameter names and those of Hugging Face's T5, both ways.
- `sizes`: a T5's settings to the names and shapes of its parameters, and back.
- `safetensors_files`: reads parts of tensors from safetensors files.
- `folders`: new folders that are there as a whole or not at all, and safetensors files in them.
- `huggingface`: reads and writes Hugging Face T5 folders.
- `t5x_files`: finds and opens T5X checkpoints, and writes T5X's native format.
- `converting`, `describing`: the commands `convert` and `describe` of `python -m cpoly_jax.checkpoints --help`.
- `adapter_file`: skills and routing as a folder to share.
- `loading`: network, parameters and tasks of any of these.
- `merging`: one task's skills merged into the base.
- `peft`, `peft_targets`, `peft_export`, `peft_command`: adapters of Hugging Face PEFT, read and written.

Nothing here runs code of a file: no pickle, and a path found in a file may not leave its folder.
"""
