"""Graphs on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import perfmodel as pm
from perfmodel.errors import FileError, PerfModelError
from perfmodel.graph import content_hash
from tests.graph.modules import TOKENS, Gpt, Mlp, ids
from tests.graph.stacked import Pattern, kinds, sequences


def test_round_trip(tmp_path: Path) -> None:
    graph = pm.capture(Gpt(dropout=0.1), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    pm.save_graph(graph, tmp_path / "g.json")
    loaded = pm.load_graph(tmp_path / "g.json")
    assert loaded == graph
    assert content_hash(loaded) == content_hash(graph)
    assert content_hash(graph.at(batch=7)) == content_hash(graph)
    assert list(tmp_path.iterdir()) == [tmp_path / "g.json"]


def test_layers_of_groups_are_kept_as_runs(tmp_path: Path) -> None:
    graph = pm.capture(Pattern(kinds(13, "am", prefix="p")), sequences(), optimizer="adamw")
    pm.save_graph(graph, tmp_path / "g.json")
    loaded = pm.load_graph(tmp_path / "g.json")
    assert loaded == graph
    written = json.loads((tmp_path / "g.json").read_text())["storages"]
    runs = {name: layers for name, _, _, _, _, layers, _, _ in written}
    assert runs["layers.*.products.0.weight"] == [[0, 13, 1]]
    # The first layer has two more products, and every second of the others has one more.
    assert runs["layers.*.products.1.weight"] == [[0, 7, 2]]
    assert runs["layers.*.products.2.weight"] == [[0, 1, 1]]


def test_the_hash_sees_what_is_computed() -> None:
    x = torch.randn(2, 16)
    hashes = {
        content_hash(pm.capture(Mlp(depth=depth), (x, x), optimizer=opt)) for depth in (2, 3) for opt in ("sgd", None)
    }
    assert len(hashes) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "perfmodel-graph"}',
        '{"format": "perfmodel-graph", "version": 99}',
        "[" * 100_000,
    ],
)
def test_damaged_files_are_one_line_errors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(FileError) as error:
        pm.load_graph(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_graph_with_a_missing_part_is_damaged(tmp_path: Path) -> None:
    x = torch.randn(2, 16)
    pm.save_graph(pm.capture(Mlp(), (x, x), optimizer=None), tmp_path / "g.json")
    whole = json.loads((tmp_path / "g.json").read_text())
    for key in ("tensors", "storages", "blocks", "bindings"):
        (tmp_path / "part.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(FileError, match="damaged"):
            pm.load_graph(tmp_path / "part.json")


def test_unreadable_places(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        pm.load_graph(tmp_path / "absent.json")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(FileError):
        pm.load_graph(tmp_path / "binary")
    x = torch.randn(2, 16)
    graph = pm.capture(Mlp(), (x, x), optimizer=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(PerfModelError, match="can't be written"):
        pm.save_graph(graph, tmp_path / "file" / "g.json")
