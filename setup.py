"""Reads all metadata from settings.ini, so that they stand in one place."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
c = cfg["DEFAULT"]
version = re.search(r'__version__ = "([^"]+)"', Path("selfalign/__init__.py").read_text(encoding="utf-8"))[1]
extras = {"dev": c["dev_requirements"].split(), "vllm": c["vllm_requirements"].split(), "ray": c["ray_requirements"].split(), "diversity": c["diversity_requirements"].split()}

setup(
    name=c["lib_name"],
    version=version,
    description=c["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=c["author"],
    license=c["license"],
    license_files=["LICENSE"],
    url=c["git_url"],
    keywords=c["keywords"],
    python_requires=">=" + c["min_python"],
    install_requires=c["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": c["console_scripts"].split(), "nbdev": [f"{c['lib_name']} = {c['lib_path']}._modidx:d"]},
    # data/ of the checkout is selfalign/data of the installed package
    packages=[*find_packages(include=["selfalign", "selfalign.*"]), "selfalign.data"],
    package_dir={"selfalign": "selfalign", "selfalign.data": "data"},
    package_data={"selfalign": ["py.typed"], "selfalign.data": ["**/*"]},
    exclude_package_data={"selfalign.data": ["labels/*"]},  # for measuring the filters in a checkout
    zip_safe=False,
)
