"""Packaging. Tools' settings are in pyproject.toml, versions known to work in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

setup(
    name="carv3d",
    version="0.1.0",
    description="Text-to-3D by score distillation with fewer, better gradients: render once, resample often",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="the carv3d authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Environment :: Console",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Graphics :: 3D Modeling",
    ],
    python_requires=">=3.10",
    # The configs lie at the top of the repository, where they are found and edited; a wheel has them inside.
    packages=[*find_packages(include=["carv3d", "carv3d.*"]), "carv3d.configs"],
    package_dir={"carv3d.configs": "configs"},
    package_data={
        "carv3d": ["py.typed", "*/__init__.pyi"],
        "carv3d.configs": ["*.yaml", "*/*.yaml", "*/*.txt"],
        "carv3d.integrations.threestudio": ["extension/**"],
        "carv3d.reports": ["*.j2"],
        "carv3d.teachers": ["builtin/**"],
    },
    install_requires=[
        "diffusers>=0.36",
        "fast-simplification>=0.1.7",
        "imageio>=2.34",
        "imageio-ffmpeg>=0.5",
        "filelock>=3.16",
        "jinja2>=3",
        "lazy-loader>=0.4",
        "manifold3d>=3",
        "matplotlib>=3.8",
        "nerfacc>=0.5.3",
        "numba>=0.60",  # kernels for the CPU, compiled at the first use
        "numpy>=1.26",
        "omegaconf>=2.4",  # its dataclasses may have Literal fields
        "pillow>=10",
        "psutil>=5.9",
        "pydantic>=2.9",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.4.3",
        "scikit-image>=0.22",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "tokenizers>=0.19",
        "torch>=2.6",
        "transformers>=5",
        "trimesh>=4",
        "typer>=0.12",
        "xatlas>=0.0.9",
    ],
    extras_require={
        "cuda": ["gsplat>=1.5", "ninja>=1.11"],  # kernels that are built at the first use; nerfacc's need ninja too
        "t5": ["protobuf>=4", "sentencepiece>=0.2"],  # reads the tokenizers of Stable Diffusion 3 and DeepFloyd IF
        "test": ["hypothesis>=6", "plyfile>=1", "pytest>=8", "pytest-xdist>=3.6"],
        "dev": ["mypy>=1.11", "ruff>=0.6"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings-python>=1.10"],
    },
    entry_points={"console_scripts": ["carv3d = carv3d.cli:main"]},
)
