"""Prints the lowest version of every dependency that pyproject.toml names, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for line in project["dependencies"]:
    found = re.match(r"([\w-]+)>=([\w.]+)", line)
    assert found, f"{line!r} names no lowest version"
    print(f"{found[1]}=={found[2]}")
