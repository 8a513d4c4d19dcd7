"""What `import perfmodel` brings, and what it must not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import perfmodel

HEAVY = ("torch", "transformers", "matplotlib", "sympy", "networkx", "scipy")


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


@pytest.mark.parametrize(
    "code",
    [
        "import perfmodel",
        "import perfmodel.cli",
        "import perfmodel.predict",
        "import perfmodel as pm; [pm.load_device(n) for n in pm.device_names()]",
        "import perfmodel as pm; [pm.load_runtime(n) for n in pm.runtime_names()]",
    ],
)
def test_it_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert "matplotlib" in loaded_after("import perfmodel, matplotlib")


def test_exported_names() -> None:
    assert sorted(perfmodel.__all__) == [
        "Device",
        "Graph",
        "MemoryProfile",
        "PerfModelError",
        "Prediction",
        "Runtime",
        "capture",
        "closed_form_flops",
        "device_names",
        "from_fx",
        "largest_batch",
        "load_device",
        "load_graph",
        "load_runtime",
        "memory_profile",
        "model_names",
        "predict",
        "runtime_names",
        "save_graph",
    ]
    assert all(hasattr(perfmodel, name) for name in perfmodel.__all__)
