"""What setup.cfg cannot say: the configs of this checkout are a package of the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxunlearn*"]), "jaxunlearn.configs"],
    package_dir={"jaxunlearn.configs": "configs"},
)
