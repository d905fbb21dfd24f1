"""Everything that can change is read from settings.ini."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
lib = cfg["lib_name"]
readme = here / "README.md"
EXTRAS = ("pretrained", "cluster", "onnx", "explore")  # liverdis[onnx] and so on


def for_pypi(text):
    "Links into the repository made absolute: PyPI shows the README without it"
    return re.sub(
        r"\]\((?=nbs/(\S+?)\))",
        lambda m: f"]({cfg['git_url']}/{'blob' if m[1].endswith('.ipynb') else 'raw'}/{cfg['branch']}/",
        text,
    )


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": f"https://{cfg['user']}.github.io/{cfg['repo']}/",
        "Issues": f"{cfg['git_url']}/issues",
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    long_description=for_pypi(readme.read_text(encoding="utf-8")) if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    packages=find_namespace_packages(include=[lib, f"{lib}.*"], exclude=["*.__pycache__"]),
    package_data={lib: ["py.typed"], f"{lib}.templates": ["*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": " ".join(cfg[f"{of}_requirements"] for of in ("dev", "bench", *EXTRAS)).split(),
        **{of: cfg[f"{of}_requirements"].split() for of in EXTRAS},
    },
    python_requires=f">={cfg['min_python']}",
    # nbdev finds the API documentation of other libraries through the `nbdev` entry point
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Jupyter",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
