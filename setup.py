"""Package metadata, and the step that generates the protobuf code from protos/."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROTO_PACKAGE = "easyrec_mm/protos"


class GenerateProto(Command):
    """Generate easyrec_mm/protos/*_pb2.py; the sources stay in protos/ and the generated code is never committed."""

    description = "generate the protobuf code"
    user_options: list[tuple[str, str, str]] = []  # noqa: RUF012

    def initialize_options(self) -> None:
        """Nothing to set."""

    def finalize_options(self) -> None:
        """Nothing to derive."""

    def run(self) -> None:
        from grpc_tools import protoc

        target = ROOT / PROTO_PACKAGE
        for old in target.glob("*_pb2.py*"):
            old.unlink()
        (target / "__init__.py").write_text('"""Generated from protos/ by setup.py."""\n', encoding="utf-8")
        sources = [f"{PROTO_PACKAGE}/{path.name}" for path in sorted((ROOT / "protos").glob("*.proto"))]
        # The second is that of protobuf's own files.
        folders = [f"-I{PROTO_PACKAGE}={ROOT / 'protos'}", f"-I{files('grpc_tools') / '_proto'}"]
        flags = [*folders, f"--python_out={ROOT}", f"--pyi_out={ROOT}"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise SystemExit("protoc failed; see above")


class BuildPy(build_py):
    """build_py with the generated code in place."""

    def run(self) -> None:
        self.run_command("generate_proto")
        super().run()


def _version() -> str:
    text = (ROOT / "easyrec_mm/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "(.+)"', text)
    if not match:
        raise SystemExit("easyrec_mm/__init__.py has no __version__")
    return match.group(1)


def _requirements(name: str) -> list[str]:
    lines = (ROOT / f"requirements/{name}.in").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


# setuptools wants to see the package before build_py has filled it.
(ROOT / PROTO_PACKAGE).mkdir(exist_ok=True)

setup(
    name="easyrec-mm",
    version=_version(),
    description="End-to-end multimodal CTR training: one image pass per distinct picture, related task towers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # protos/ has no __init__.py before its code is generated.
    packages=sorted({*find_packages(include=["easyrec_mm*"]), "easyrec_mm.protos"}),
    package_data={
        "easyrec_mm": ["py.typed"],
        "easyrec_mm.pages": ["templates/*"],
        "easyrec_mm.weights": ["pictures/*"],
    },
    install_requires=_requirements("base"),
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "odps": ["pyodps>=0.12"],
        "spark": _requirements("spark"),
        "tune": _requirements("tune"),
    },
    entry_points={"console_scripts": ["easyrec-mm=easyrec_mm.cli.main:run"]},
    cmdclass={"generate_proto": GenerateProto, "build_py": BuildPy},
)
