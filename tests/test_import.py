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


@pytest.mark.parametrize(
    "code",
    [
        "import perfmodel as pm",
        "import perfmodel.predict; import perfmodel as pm",
        "from perfmodel.predict import Prediction; import perfmodel as pm",
        "import perfmodel as pm; pm.predict; import perfmodel.predict",
        "import perfmodel as pm; pm.load_device; import perfmodel.predict, perfmodel.cli",
        "from perfmodel import predict; import perfmodel.predict; import perfmodel as pm",
        "import importlib; importlib.import_module('perfmodel.predict'); import perfmodel as pm",
    ],
)
def test_predict_is_the_function_in_every_order_of_imports(code: str) -> None:
    script = f"{code}\nfound = pm.predict\nimport sys\nassert found is sys.modules['perfmodel.predict'].predict"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'perfmodel' has no attribute 'predikt'"):
        _ = perfmodel.predikt
    assert set(perfmodel.__all__) <= set(dir(perfmodel))


def test_exported_names() -> None:
    assert sorted(perfmodel.__all__) == [
        "AdaLoRA",
        "BottleneckAdapter",
        "Cluster",
        "Device",
        "Fabric",
        "Graph",
        "Lengths",
        "LoRA",
        "MemoryProfile",
        "Node",
        "PerfModelError",
        "Plan",
        "Prediction",
        "PrefixTuning",
        "PromptTuning",
        "QLoRA",
        "Runtime",
        "balance",
        "capture",
        "closed_form_flops",
        "device_names",
        "dims_from_config",
        "from_fx",
        "largest_batch",
        "load_cluster",
        "load_device",
        "load_fabric",
        "load_graph",
        "load_machine",
        "load_node",
        "load_runtime",
        "memory_profile",
        "model_names",
        "predict",
        "runtime_names",
        "save_graph",
    ]
    assert all(hasattr(perfmodel, name) for name in perfmodel.__all__)
