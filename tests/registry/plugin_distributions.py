"""Small real plugin distributions: a folder with a dist-info and a module, as pip would leave them."""

import itertools
from pathlib import Path

_numbers = itertools.count()

WORKING = """
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.hookspecs import hookimpl

API_VERSION = 1


def architecture(name, *model_types, **more):
    return SupportedArchitecture(
        name=name, model_types=model_types, pipeline_model=object, huggingface_config=dict, weight_adapters={{}}, **more
    )


@hookimpl
def pipezoo_architectures():
    return [{architectures}]
"""


def working(*architectures: str) -> str:
    """The source of a plugin module; each architecture is the text of the arguments of `architecture` above."""
    return WORKING.format(architectures=", ".join(f"architecture({arguments})" for arguments in architectures))


def new_module_name() -> str:
    """An import name that no test has used, so that no test meets the module of another."""
    return f"pipezoo_test_plugin_{next(_numbers)}"


def install(
    site: Path,
    distribution: str,
    *types: str,
    source: str | None = None,
    version: str = "1.0",
    requires: tuple[str, ...] = ("pipezoo-core>=0.1",),
    metadata_folder: str = "dist-info",
    module: str | None = None,
) -> str:
    """Puts a distribution that serves `types` into the folder `site`, and returns the name of its module."""
    package = module or new_module_name()
    (site / package).mkdir(parents=True, exist_ok=True)
    (site / package / "__init__.py").touch()
    default = working(f"'{types[0].title()}ForCausalLM', {', '.join(map(repr, types))}")
    (site / package / "plugin.py").write_text(default if source is None else source)
    metadata = site / f"{distribution.replace('-', '_')}-{version}.{metadata_folder}"
    metadata.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (metadata / ("METADATA" if metadata_folder == "dist-info" else "PKG-INFO")).write_text("\n".join(lines) + "\n")
    claims = "".join(f"{name} = {package}.plugin\n" for name in types)
    (metadata / "entry_points.txt").write_text(f"[pipezoo.plugins]\n{claims}")
    return f"{package}.plugin"
