"""Installs t5x-lite, which provides the import name `t5x` from registry packages only."""

from __future__ import annotations

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(r"__version__ = '(.+)'", (_HERE / 't5x/__init__.py').read_text(encoding='utf-8'))[1]

setuptools.setup(
    name='t5x-lite',
    version=_VERSION,
    description='The part of the T5X interface that fine-tuning encoder-decoders needs, on registry packages',
    long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['t5x', 't5x.*']),
    package_data={'': ['*.gin']},
    install_requires=[
        'absl-py>=2.1',
        'clu>=0.0.12',
        'etils[epath]>=1.7',
        'flax>=0.12,<0.13',
        'gin-config>=0.5',
        'jax>=0.10,<0.11',
        'numpy>=1.26',
        'optax>=0.2.4',
        'orbax-checkpoint>=0.12,<0.13',
        'seqio>=0.0.20,<0.1',
        'tensorboard>=2.16',
        'tensorflow>=2.16',
        'tensorstore>=0.1.64',
        'tqdm>=4.60',
    ],
    extras_require={
        'gcs': ['gcsfs', 'google-cloud-storage'],
        'test': ['pytest'],
    },
)
