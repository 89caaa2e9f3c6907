"""The version, which all packages share: `python version.py` prints it, `python version.py 0.2.0` sets it.

Its one place is the pyproject.toml of the repository. Each package has to say it again, because it is built from its
own folder; this writes it there, and with it the versions of each other that they require.
"""

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
MEMBERS = [ROOT, *(ROOT / name for name in ("core", "kernels", "registry")), *sorted(ROOT.glob("plugins/*"))]
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


def current():
    """Returns the version of the repository."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def next_breaking(version):
    """Returns the first version that may break what works with this one: `0.3` for 0.2.1, `2` for 1.4.0."""
    major, minor = map(int, version.split(".")[:2])
    return str(major + 1) if major else f"0.{minor + 1}"


def rewritten(text, version):
    """Returns a pyproject.toml with this version, its own and those that it requires of ours."""
    text = re.sub(r'^version = ".*"$', f'version = "{version}"', text, count=1, flags=re.M)
    text = re.sub(r'"pipezoo-core>=[^"]*"', f'"pipezoo-core>={version},<{next_breaking(version)}"', text)
    return re.sub(r'"pipezoo-kernels==[^"]*"', f'"pipezoo-kernels=={version}"', text)


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?")
    version = parser.parse_args().version
    if version is None:
        print(current())
    elif not VERSION.fullmatch(version):
        parser.error(f"{version} is no version such as 0.2.0 or 1.0.0rc1")
    else:
        for path in (member / "pyproject.toml" for member in MEMBERS):
            path.write_text(rewritten(path.read_text("utf-8"), version), "utf-8")


if __name__ == "__main__":
    main()
