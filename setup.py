from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="glmft",
    version="0.1.0",
    description="Fine-tune ChatGLM-6B, 2, 3 and GLM-4 with a training loop that you can read and own",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["glmft", "glmft.*"]), "glmft.ds_configs", "glmft.examples.quickstart"],
    # What the commands fall back on travels with an installed package too; in a checkout it is found at the top level.
    package_dir={"glmft.ds_configs": "ds_configs", "glmft.examples.quickstart": "examples/quickstart"},
    package_data={
        "glmft.tokenizers.templates": ["*.jinja"],
        "glmft.web": ["*.css"],
        "glmft.ds_configs": ["*.json"],
        "glmft.examples.quickstart": ["*.json", "base/*"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.9,<6",
        "deepspeed>=0.19",
        "peft>=0.21",
        "accelerate>=1.0",
        "datasets>=4",
        "filelock>=3.30",
        "numpy>=1.26",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "tiktoken>=0.7",
        "jieba>=0.42",
        "nltk>=3.9",
        "rouge-chinese>=1.0.3",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "PyYAML>=6",
        "prompt_toolkit>=3",
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "nbclient>=0.10",
            "ipykernel>=6",
            "openai>=2",
            "httpx>=0.27",
        ],
        "quant": ["bitsandbytes>=0.50"],
        "web": ["gradio>=6", "fastapi>=0.115", "uvicorn>=0.30"],
        "browser": ["playwright>=1.50"],
        "ecosystem": ["trl>=1.16", "lm-eval>=0.4.13"],
    },
    entry_points={"console_scripts": ["glmft=glmft.cli:run_command"]},
)
