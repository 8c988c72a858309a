"""Packaging of gaussq-jax: the library (`gaussq_jax`, `kernels_pallas`); programs run from a checkout."""

import pathlib

import setuptools

LIBRARY = ['jax>=0.10.2,<0.13', 'flax>=0.12.8,<0.13', 'numpy>=2.0', 'rich>=13.7', 'safetensors>=0.8', 'scipy>=1.15']
EXPERIMENTS = [
    'absl-py>=2.3',
    'array_record>=0.8.3',
    'etils[epath]>=1.13',
    'fsspec>=2024.6',
    'grain>=0.2.18,<0.3',
    'jinja2>=3.1.5',  # older ones let a chat template out of its sandbox
    'importlib_resources>=6',  # tensorflow-datasets prepares packaged builders with it, and doesn't ask for it
    'loky>=3.5',
    'matplotlib>=3.10',
    'ml_collections>=1.1,<2',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.8,<0.13',
    'protobuf>=5',
    'pyarrow>=14.0.1',  # older ones run code of hostile Parquet files
    'sentencepiece>=0.2.1',
    'tensorboardX>=2.6.4',
    'tensorflow-datasets>=4.9.10,<5',
    'tokenizers>=0.22',
    'tqdm>=4.67',
]
TEST = [
    'dm-haiku>=0.0.16',
    'equinox>=0.13',
    'gfloat>=0.5.2',
    'hypothesis>=6.150',
    'ipykernel>=7',
    'nbclient>=0.10.4',
    'nbformat>=5.10.4',
    'pytest>=9',
    'pytest-xdist>=3.8',
    'ruff>=0.17,<0.18',
    'zstandard>=0.23',
]

setuptools.setup(
    name='gaussq-jax',
    version='0.1.0',
    description='Low-precision training in JAX: Gaussian weight sampling and floating-point quantized training',
    long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['gaussq_jax', 'gaussq_jax.*', 'kernels_pallas', 'kernels_pallas.*']),
    install_requires=LIBRARY,
    extras_require={
        'experiments': EXPERIMENTS,
        'test': EXPERIMENTS + TEST,
        'parity': ['torch>=2.6', 'transformers>=5', 'adam-mini>=1.1.1'],
        'peers': ['qwix>=0.1.8'],
        'serving': [
            'accelerate>=1',  # of transformers' FP8
            'compressed-tensors>=0.20',
            'gguf>=0.19',
            'mlx[cpu]>=0.32',
            'mlx-lm>=0.32',
            'transformers>=5',
            'xllamacpp',
        ],
        'gpu': ['jax[cuda12]'],
        'lm_eval': ['lm_eval>=0.4.13'],  # experiments.lm_eval_model
        'cluster': ['ray>=2.60,<3'],  # --ray of experiments.sweep
        'compile': ['jax[cuda12-local]', 'nvidia-cuda-nvcc>=13', 'nvidia-cuda-nvdisasm>=13'],  # for a GPU without one
    },
)
