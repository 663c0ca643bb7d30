"""Generate the Python code of every .proto under this folder, beside its source.

Run `make proto`. It needs the pinned pair of the dependency group `gen` (grpcio-tools 1.73.1, mypy-protobuf 5.1.0):
a newer generator would raise the protobuf floor of every buyer. CI runs this and asserts that nothing changed.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Return protoc's exit status: 0 when every file was generated."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tessera/**/*.proto"))
    return int(
        protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"--python_out={ROOT}",
                f"--grpc_python_out={ROOT}",
                f"--mypy_out=quiet:{ROOT}",
                f"--mypy_grpc_out=quiet,only_async:{ROOT}",
                *sources,
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
