"""Plain nets, the recommender and pre-training against what others compute of the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfmodel.models.build import build  # noqa: E402
from tests.models.test_other_families import BASIC, DLRM, GRU, LSTM, PRETRAINING, RESNET, TRANSLATOR  # noqa: E402


def randomised(module: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return module


def ids(*shape: int, below: int = 31) -> Any:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


# -- ResNet --------------------------------------------------------------------------------


def resnet_name(name: str) -> str:
    for theirs, ours in (
        (r"^resnet\.embedder\.embedder\.convolution\.", "stem."),
        (r"^resnet\.embedder\.embedder\.normalization\.", "stem_norm."),
        (r"^resnet\.encoder\.stages\.(\d)\.layers\.", r"stages.\1."),
        (r"\.layer\.(\d)\.convolution\.", r".convolutions.\1."),
        (r"\.layer\.(\d)\.normalization\.", r".norms.\1."),
        (r"\.shortcut\.convolution\.", ".shortcut.0."),
        (r"\.shortcut\.normalization\.", ".shortcut.1."),
        (r"^classifier\.1\.", "classifier."),
    ):
        name = re.sub(theirs, ours, name)
    return name


@pytest.mark.parametrize("dims", [RESNET, BASIC], ids=["bottleneck", "basic"])
def test_resnet_gives_the_numbers_of_hugging_faces(dims: Any) -> None:
    pytest.importorskip("transformers")
    import transformers.models.resnet.modeling_resnet as resnet

    width = dims.width * (4 if dims.block == "bottleneck" else 1)
    config = resnet.ResNetConfig(
        embedding_size=dims.width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=list(dims.depths),
        layer_type=dims.block,
        num_labels=dims.num_labels,
    )
    theirs = randomised(resnet.ResNetForImageClassification(config).double().train())
    ours, _ = build(dims, device="cpu", dtype="float64")
    ours.load_state_dict({resnet_name(name): value for name, value in theirs.state_dict().items()}, strict=True)
    images, labels = torch.randn(4, 3, 33, 33, dtype=torch.float64), ids(4, below=7)
    mine, other = ours(images, labels), theirs(pixel_values=images, labels=labels)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-10, atol=0)
    mine.loss.backward()
    other.loss.backward()
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[resnet_name(name)].grad, parameter.grad, rtol=1e-7, atol=1e-10)


# -- recommender ---------------------------------------------------------------------------


def test_tables_take_the_step_that_sgd_takes_on_sparse_gradients() -> None:
    ours, _ = build(DLRM, device="cpu", dtype="float64")
    tables = [
        torch.nn.EmbeddingBag.from_pretrained(table.weight.detach().clone(), freeze=False, mode="sum", sparse=True)
        for table in ours.tables
    ]
    rows = torch.stack([ids(6, 2, below=size) for size in DLRM.table_sizes])
    dense, clicks = torch.rand(6, 5, dtype=torch.float64), ids(6, below=2).double()
    loss = ours(dense, rows, clicks).loss

    hidden = dense
    for layer in ours.bottom:
        hidden = layer(hidden).relu()
    vectors = torch.stack([hidden, *(table(rows[number]) for number, table in enumerate(tables))], dim=1)
    pairs = [(vectors[:, i] * vectors[:, j]).sum(-1) for i in range(4) for j in range(i)]
    hidden = torch.cat([hidden, torch.stack(pairs, dim=1)], dim=1)
    hidden = ours.top[1](ours.top[0](hidden).relu())
    expected = torch.nn.functional.binary_cross_entropy_with_logits(hidden[:, 0], clicks)
    torch.testing.assert_close(loss, expected)

    expected.backward()
    torch.optim.SGD([table.weight for table in tables], lr=0.1).step()
    loss.backward()
    for mine, other in zip(ours.tables, tables, strict=True):
        torch.testing.assert_close(mine.weight, other.weight)
        assert mine.weight.grad is None


# -- pre-training --------------------------------------------------------------------------


def bert_name(name: str) -> str:
    for theirs, ours in (
        (r"^cls\.seq_relationship\.", "next_sentence.classifier."),
        (r"^bert\.pooler\.", "next_sentence."),
        (r"^bert\.embeddings\.word_embeddings\.", "encoder.embeddings.tokens."),
        (r"^bert\.embeddings\.position_embeddings\.", "encoder.embeddings.places."),
        (r"^bert\.embeddings\.token_type_embeddings\.", "encoder.embeddings.types."),
        (r"^bert\.embeddings\.LayerNorm\.", "encoder.embeddings.norm."),
        (r"^bert\.encoder\.layer\.", "encoder.layers."),
        (r"\.attention\.self\.(.)\w+\.", r".attention.\1_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
        (r"\.intermediate\.dense\.", ".mlp.up_proj."),
        (r"\.output\.dense\.", ".mlp.down_proj."),
        (r"\.output\.LayerNorm\.", ".mlp_norm."),
        (r"^cls\.predictions\.transform\.dense\.", "encoder.head.dense."),
        (r"^cls\.predictions\.transform\.LayerNorm\.", "encoder.head.norm."),
        (r"^cls\.predictions\.(decoder\.)?", "encoder.head.decoder."),
    ):
        name = re.sub(theirs, ours, name)
    return name


def test_pretraining_gives_the_loss_of_hugging_faces_that_sees_every_position() -> None:
    pytest.importorskip("transformers")
    import transformers.models.bert.modeling_bert as bert

    encoder = PRETRAINING.encoder
    config = bert.BertConfig(
        vocab_size=97,
        hidden_size=24,
        num_hidden_layers=encoder.num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=30,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = randomised(bert.BertForPreTraining(config).double().train())
    ours, _ = build(PRETRAINING, device="cpu", dtype="float64")
    ours.load_state_dict({bert_name(name): value for name, value in theirs.state_dict().items()}, strict=True)
    tokens, halves, follows = ids(3, 16, below=97), ids(3, 16, below=2), torch.tensor([0, 1, 1])
    mask = torch.ones_like(tokens)
    mask[1, -4:] = 0
    positions = torch.tensor([[1, 4, 5, 9, 0], [2, 3, 7, 8, 10], [0, 1, 2, 3, 15]])
    labels = tokens.gather(1, positions)
    labels[0, 4] = -100
    everywhere = torch.full_like(tokens, -100).scatter(1, positions, labels)
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": halves, "next_sentence_label": follows}
    mine = ours(masked_positions=positions, labels=labels, **inputs)
    other = theirs(labels=everywhere, **inputs)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-12, atol=0)
    assert mine.logits.shape == (15, 97)
    mine.loss.backward()
    other.loss.backward()
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[bert_name(name)].grad, parameter.grad, rtol=1e-7, atol=1e-10)


# -- recurrent and translator --------------------------------------------------------------


@pytest.mark.parametrize("dims", [LSTM, GRU], ids=["lstm", "gru"])
def test_recurrent_models_predict_the_next_token(dims: Any) -> None:
    module, _ = build(dims, device="cpu", dtype="float64")
    tokens = ids(2, 8)
    output = module(tokens, tokens)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 31
    torch.testing.assert_close(module(changed, tokens).logits[:, :5], output.logits[:, :5])


def test_the_translator_sees_the_whole_source_and_earlier_targets_only() -> None:
    module, _ = build(TRANSLATOR, device="cpu", dtype="float64")
    source, target = ids(2, 9), ids(2, 7)
    logits = module(source, target).logits
    later = target.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 31
    changed = module(source, later).logits
    torch.testing.assert_close(changed[:, :5], logits[:, :5])
    assert not torch.allclose(changed[:, 5:], logits[:, 5:])
    source[:, -1] = (source[:, -1] + 1) % 31
    assert not torch.allclose(module(source, target).logits[:, 0], logits[:, 0])
