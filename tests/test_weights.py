"""Models that are whole, and folders whose parts do not fit each other."""
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForMaskedLM

from selfalign.checks import InputError
from selfalign.models import load_model, load_tokenizer

SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=4096)


@pytest.fixture(scope="module")
def tok(): return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def save(tok, tmp_path_factory):
    "A random model of two layers with the embedded model's tokenizer, saved."
    def make(kind="llama", auto=AutoModelForCausalLM, tokenizer=tok, **more):
        folder = tmp_path_factory.mktemp(kind)/"model"
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(kind, **{**SIZE, "vocab_size": len(tok),
            "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id, **more}))
        model.save_pretrained(folder); tokenizer.save_pretrained(folder)
        return folder
    return make


@pytest.fixture(scope="module")
def whole(save): return save(tie_word_embeddings=False)


def edited(source, folder, change):
    shutil.copytree(source, folder)
    weights = load_file(folder/"model.safetensors")
    save_file(change(weights), folder/"model.safetensors", metadata=dict(format="pt"))
    return folder


def without(pattern): return lambda w: {k: v for k, v in w.items() if not re.search(pattern, k)}
def with_values(name, value):
    def change(w): w[name].view(-1)[7] = value; return w
    return change


MISFITS = {
    "head": (without("lm_head"), r"its weights lack lm_head.weight, which would be filled at random"),
    "layer": (without(r"layers\.1\."), r"its weights lack model.layers.1.\S+, .* and 6 more"),
    "all but the embedding": (without("layers|norm|head"), r"its weights lack lm_head.weight"),
    "embedding": (without("embed_tokens"), r"lack model.embed_tokens.weight"),
    "shape": (lambda w: dict(w, **{"model.layers.0.mlp.up_proj.weight": torch.zeros(40, 32)}),
        r"model.layers.0.mlp.up_proj.weight is 40×32 and should be 48×32"),
    "left over": (lambda w: dict(w,
        **{"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32), "score.weight": torch.zeros(1, 32)}),
        r"hold model.layers.2.mlp.up_proj.weight, score.weight, which its config.json has no place for"),
    "other names": (lambda w: {k.replace("model.", "transformer."): v for k, v in w.items()},
        r"its weights lack model"),
    "NaN": (with_values("model.layers.1.mlp.down_proj.weight", float("nan")),
        r"model.layers.1.mlp.down_proj.weight holds NaN or infinity"),
    "infinity": (with_values("lm_head.weight", float("-inf")), r"lm_head.weight holds NaN or infinity"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_named(whole, name, tmp_path):
    change, words = MISFITS[name]
    folder = edited(whole, tmp_path/"model", change)
    with pytest.raises(InputError, match=words): load_model(str(folder), dtype=torch.float32, device="cpu")


def test_weights_that_fit_load(whole, save, tmp_path):
    tied = save(tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied/"model.safetensors")
    # as older versions saved it
    old = edited(whole, tmp_path/"old",
        lambda w: dict(w, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    for folder in (whole, tied, old, save("gpt2", n_embd=32, n_layer=2, n_head=4), save("gpt_neox"),
            save(vocab_size=60_000)):
        load_model(str(folder), dtype=torch.float32, device="cpu")


def test_what_is_no_causal_language_model_is_refused(save, tmp_path):
    for folder, words in ((save(auto=AutoModelForSequenceClassification, num_labels=1),
            "LlamaForSequenceClassification is no language model"),
            (save("bert", auto=AutoModelForMaskedLM), "BertForMaskedLM is no language model")):
        with pytest.raises(InputError, match=words): load_model(str(folder))
    for kind, more in (("t5", {}),
            ("bart", dict(architectures=["BartForConditionalGeneration"], is_encoder_decoder=True))):
        (tmp_path/kind).mkdir()
        (tmp_path/kind/"config.json").write_text(json.dumps(dict(AutoConfig.for_model(kind).to_dict(), **more)))
        with pytest.raises(InputError, match="is an encoder-decoder; give a causal language model"):
            load_model(str(tmp_path/kind))
    (tmp_path/"new").mkdir(); (tmp_path/"new"/"config.json").write_text('{"model_type": "not_yet_known"}')
    with pytest.raises(InputError, match="transformers has no code for this model"): load_model(str(tmp_path/"new"))


def test_tokens_beyond_the_embedding_are_refused_where_a_text_may_give_them(tok, save):
    import copy
    small = save(vocab_size=len(tok) - 100)
    with pytest.raises(InputError, match=f"ids beyond the {len(tok) - 100:,} rows of its embedding"):
        load_model(str(small))
    padded = copy.deepcopy(tok); padded.add_special_tokens(dict(pad_token="<|padding|>"))
    with pytest.raises(InputError, match=r"'<\|padding\|>' of its tokenizer"): load_model(str(save(tokenizer=padded)))
    # as Gemma 3's text models have it
    image = copy.deepcopy(tok); image.add_special_tokens(dict(additional_special_tokens=["<image>"]))
    load_model(str(save(tokenizer=image)))
