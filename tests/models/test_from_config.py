"""Models from a config.json of Hugging Face's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import perfmodel as pm
from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue
from perfmodel.models.config import huggingface_config
from perfmodel.models.dims import TransformerDims
from perfmodel.models.from_config import READERS, dims_from_config, entry_from_config, find
from tests.models.tiny import BERT, DECODERS

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip

#: As their authors published them, written by transformers 4: what says something of the model.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA,
    "mistral-7b-v0.1": {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_sliding_window": False, "vocab_size": 152064,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "attention_bias": False, "ep_size": 1, "first_k_dense_replace": 3,
        "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
        "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn",
        },
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
        "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
    },
    "gemma-3-4b": {
        "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    },
    "phi-2": {
        "model_type": "phi", "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new",
        "hidden_size": 2560, "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
        "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 51200,
    },
    "gpt-neox-20b": {
        "model_type": "gpt_neox", "attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0, "hidden_size": 6144, "intermediate_size": 24576, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 50432,
    },
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "vocab_size": 50257,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_the_model_of_the_catalogue(name: str) -> None:
    entry = entry_from_config(PUBLISHED[name])
    assert entry.dims == catalogue.get(name).dims
    assert entry.dtype == catalogue.get(name).dtype
    assert entry.parameters == catalogue.get(name).dims.parameters()


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_what_transformers_writes_comes_back(name: str) -> None:
    pytest.importorskip("transformers")
    from perfmodel.graph import huggingface

    dims = DECODERS.get(name, BERT)
    config = huggingface.config_for(huggingface_config(dims), "masked-lm" if name == "bert" else "causal-lm")
    assert dims_from_config(json.loads(config.to_json_string(use_diff=False))) == dims


def test_from_a_file_and_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    for where in (folder, folder / "config.json", str(folder)):
        entry = entry_from_config(where)
        assert (entry.name, entry.dtype) == ("my-llama", "bfloat16")
        assert entry.dims == catalogue.get("llama-3.1-8b").dims
    assert find(str(folder)) == entry_from_config(folder)
    assert find("gpt2") is catalogue.get("gpt2")


def test_a_config_is_captured_like_a_name(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "tiny.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    path.write_text(json.dumps({**LLAMA, **sizes, "intermediate_size": 96, "vocab_size": 100}), encoding="utf-8")
    graph = pm.capture(
        str(path), batch=2, seq_len=16, optimizer=None, implementation="reference", cache=False, folded=False
    )
    assert graph.name == "tiny"
    closed_form = pm.closed_form_flops(graph)
    assert closed_form is not None
    assert graph.flops(recompute=False) == pytest.approx(closed_form, rel=0.2)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"config\.json: No such file"):
        entry_from_config(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileError, match=r"config\.json: no JSON"):
        entry_from_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(FileError, match="holds no JSON object"):
        entry_from_config(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UnsupportedError, match="has no model_type"):
        entry_from_config(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown model 'gtp2'; did you mean 'gpt2'"):
        find("gtp2")


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("llama-3.1-8b", {"model_type": "lama"}, "unknown model_type 'lama'; did you mean 'llama'"),
        ("llama-3.1-8b", {"hidden_size": None}, "the dimensions lack hidden_size"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaled by 'dynamic'"),
        ("llama-3.1-8b", {"hidden_act": "swish2"}, "unknown hidden_act 'swish2'"),
        ("qwen2.5-7b", {"use_sliding_window": True}, "max_window_layers on isn't known here"),
        ("mixtral-8x7b", {"output_router_logits": True}, "a loss that balances the experts"),
        ("mixtral-8x7b", {"num_local_experts": None}, "the config of a mixtral lacks num_local_experts"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, r"mlp_only_layers=\[3\] aren't the first layers"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method='greedy' of a deepseek_v3 isn't known here"),
        ("phi-2", {"qk_layernorm": True}, "qk_layernorm=True of a phi isn't known here"),
        ("gpt2", {"n_embd": None}, "the config of a gpt2 lacks n_embd; give it"),
    ],
)
def test_what_is_not_known_is_refused(base: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UnsupportedError, UnknownNameError), match=message) as error:
        dims_from_config({**PUBLISHED[base], **changes})
    assert "\n" not in str(error.value)


def test_layers_in_no_pattern_are_refused() -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    text = {**PUBLISHED["gemma-3-4b"]["text_config"], "num_hidden_layers": 4}
    with pytest.raises(UnsupportedError, match="layer_types follow no pattern"):
        dims_from_config({**text, "layer_types": kinds})
    dims = dims_from_config({**text, "layer_types": [*kinds[:2], *kinds[:2]]})
    assert isinstance(dims, TransformerDims)
    assert [dims.window(layer) for layer in range(4)] == [1024, None, 1024, None]


def test_every_reader_reads() -> None:
    code = (
        "import sys; from perfmodel.models.from_config import READERS; import importlib; "
        "assert all(callable(importlib.import_module(module).from_huggingface) for module in READERS.values()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"llama", "t5", "vit", "mamba2"} <= set(READERS)
