"""``python -m validate.kernels STUDY [options]``: the studies are the modules of this folder with a ``main``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

__all__ = ["STUDIES", "main"]

#: What can be studied, by the name of its module.
STUDIES = ("gemm",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one study; its own options follow its name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in STUDIES:
        print(f"which study? one of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"validate.kernels.{given[0]}").main(given[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
