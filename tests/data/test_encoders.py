"""Encoders of families that differ from BERT: which are used as they are, and what is said of the others, and when."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from debiasbench.data.encoders import tokenised, tokenizer_of
from debiasbench.errors import BenchmarkError
from debiasbench.nets.build import build_net, check_net

WORDS = ["<unk>", "</s>", "<pad>", "the", "day", "is", "nice", "you", "are", "a", "fool", "man", "woman", "black"]
SMALL = {"vocab_size": len(WORDS)}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, **SMALL}
POSITIONS = {"max_position_embeddings": 40}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, **SMALL}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, **SMALL}
FAMILIES = {
    "bert": (transformers.BertConfig, {**BERT, **POSITIONS}),
    "gpt2": (transformers.GPT2Config, {**GPT2, "bos_token_id": 1, "eos_token_id": 1}),  # it has no padding token
    "llama": (transformers.LlamaConfig, {**BERT, **POSITIONS, "eos_token_id": [1, 2]}),  # its last layer has no bias
    "llama of old": (transformers.LlamaConfig, {**BERT, **POSITIONS, "eos_token_id": 1, "pad_token_id": -1}),
    "t5": (transformers.T5Config, {**T5, "pad_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 2}),
    "deberta": (transformers.DebertaV2Config, {**BERT, **POSITIONS, "relative_attention": True}),
    "xlnet": (transformers.XLNetConfig, {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, **SMALL}),
    "fnet": (transformers.FNetConfig, {**BERT, **POSITIONS}),
}


@pytest.fixture
def save(tmp_path):
    """A function that saves a tiny encoder of a family, with a tokenizer that knows words alone -> its folder."""

    def save(family, **changes):
        kind, values = FAMILIES[family]
        words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = Whitespace()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
        assert tokenizer.pad_token is tokenizer.mask_token is tokenizer.eos_token is None
        folder = tmp_path / family.replace(" ", "-")
        tokenizer.save_pretrained(folder)
        config = kind(**{**values, "num_labels": 2, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForSequenceClassification.from_config(config)
            model.base_model.save_pretrained(folder)
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**text, **changes}), encoding="utf-8")
        return str(folder)

    return save


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "llama of old", "deberta", "t5"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by transformers of some versions
def test_encoders_without_tokens_for_padding_or_masks_are_used(family, save):
    folder = save(family)
    tokens = tokenizer_of(folder, 20)("the day is nice")["input_ids"]
    assert tokens == [WORDS.index(word) for word in ("the", "day", "is", "nice")]
    ending = [1] if family == "t5" else []  # its answer is read at the end of the text
    check_net("transformer", folder, inputs="text")
    net = build_net("transformer", (20,), 3, pretrained=folder).eval()
    text = torch.tensor([*tokens, *ending], dtype=torch.int32)
    padded = torch.cat([text, torch.full((5,), -1)])
    longer = torch.cat([torch.tensor([7, 8, 9, 10, 3]), text])
    with torch.no_grad():
        alone, (in_batch, other) = net(text[None])[0], net(torch.stack([padded, longer]))
    assert torch.allclose(alone, in_batch, atol=1e-5)
    assert not torch.allclose(alone, other, atol=1e-5)
    assert net.head.bias.tolist() == [0, 0, 0]  # which PGD's scores count


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"eos_token_id": None, "bos_token_id": None}),
        ("llama", {"eos_token_id": None}),
        ("gpt2", {"eos_token_id": 50_256}),  # of a larger vocabulary than there is
        ("llama", {"eos_token_id": -1, "pad_token_id": -1}),
    ],
)
def test_an_encoder_without_any_token_for_padding_is_told_before_texts_are_tokenised(family, changes, save):
    with pytest.raises(BenchmarkError, match=r"has neither a padding token nor .* cannot be in one batch"):
        tokenizer_of(save(family, **changes), 20)


@pytest.mark.parametrize("text", [" ", "\n\t", "\u2003"])
def test_a_text_without_any_token_is_named(text, save):
    """A batch of such texts would have no width."""
    tokenizer = tokenizer_of(save("gpt2"), 20)
    texts = ["the day", text, "fool"]
    with pytest.raises(BenchmarkError, match=r"gives no token for text 2 of some texts \('"):
        tokenised("some texts", f"of {text}", lambda: texts, 3, tokenizer, 20)


@pytest.mark.parametrize("family", ["t5", "xlnet"])
def test_relative_positions_have_no_end(family, save):
    """T5's configuration says nothing of positions, and XLNet's -1."""
    tokenizer_of(save(family), 10_000)


@pytest.mark.parametrize(("family", "longest"), [("bert", 40), ("gpt2", 40), ("llama", 40)])
def test_absolute_positions_have_one(family, longest, save):
    folder = save(family)
    tokenizer_of(folder, longest)
    with pytest.raises(BenchmarkError, match=rf"takes at most {longest} tokens\. Got max_length={longest + 1}"):
        tokenizer_of(folder, longest + 1)


@pytest.mark.parametrize(
    ("family", "words"),
    [("xlnet", "reads padding as text"), ("fnet", "does not run on texts of different lengths|reads padding as text")],
)
def test_networks_that_padding_changes_are_told_before_texts_are_tokenised(family, words, save):
    """XLNet reads a text's end, where the padding is here; FNet has no mask at all."""
    with pytest.raises(BenchmarkError, match=rf"cannot be used: its network ({words}).*encoder=FOLDER"):
        check_net("transformer", save(family), inputs="text")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_encoders_that_are_not_finite_are_told(value, family, save):
    folder = save(family)
    weights = load_file(f"{folder}/model.safetensors")
    name = max(weights)
    weights[name].view(-1)[0] = float(value)
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(BenchmarkError, match=r"cannot be used: 1 of its entries hold NaN or infinite values"):
        check_net("transformer", folder, inputs="text")
