"""What would stop a run hours later is told before its first token; a finished run is left alone."""
import json
import shutil
from dataclasses import replace

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from selfalign import evaluation, gate
from selfalign.checks import InputError
from selfalign.config import STAGES, config_from
from selfalign.models import load_tokenizer
from selfalign.pipeline import STEPS, check_inputs, run_steps

SIZE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=8192)
SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def tok(): return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def base(tok, tmp_path_factory):
    "A random model of a family, saved with the embedded model's tokenizer."
    def make(kind="llama", tok=tok, **more):
        folder = tmp_path_factory.mktemp(kind)/"model"
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind,
            **{**SIZE, "vocab_size": len(tok), **more})).save_pretrained(folder)
        tok.save_pretrained(folder)
        return str(folder)
    return make


@pytest.fixture(scope="module")
def llama(base): return base()


@pytest.fixture
def no_engine(monkeypatch):
    "Nothing may be generated."
    for room in ("app.ablate", "app.judge", "engines.opening", "generation"):
        monkeypatch.setattr(f"selfalign.{room}.load_engine", lambda *a, **k: pytest.fail("an engine was opened"))


def settings(model, **more): return config_from(dict(dict(model=model, evaluate=dict(sets=["facts"])), **more))
def refused(cfg, words, tmp_path, steps=("prompts",)):
    "Told by the real entry, before anything is made."
    with pytest.raises(InputError, match=words) as e:
        run_steps(tmp_path/"run", cfg, steps=steps, isolate=False, say=lambda s: None)
    assert "\n" not in str(e.value) and json.loads((tmp_path/"run"/"manifest.json").read_text())["stages"] == {}
    assert not [f for f in (tmp_path/"run").rglob("*") if not f.name.startswith(".") and f.name != "manifest.json"]


@pytest.mark.parametrize("kind, has",
    [("gpt_neox", "query_key_value"), ("gpt2", "c_attn"), ("bloom", "query_key_value"), ("phi", "dense")])
def test_targets_that_the_architecture_lacks_are_told_with_those_it_has(kind, has, base, tmp_path, no_engine):
    model = base(kind, **dict(n_embd=64, n_layer=2, n_head=4, n_positions=8192) if kind in ("gpt2", "bloom") else {})
    refused(settings(model), rf"engrave.lora_targets: LoRA targets .*(q_proj|o_proj).* do not exist in this model; "
        rf"it has .*{has}.*all-linear stands for all", tmp_path)
    for targets in (["all-linear"], [has]):
        train = dict(lora_targets=targets)
        check_inputs(settings(model, engrave=train, clone=dict(train=train)), tuple(STEPS), tmp_path/"run")


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_the_output_layer_is_no_target(kind, base, tmp_path, no_engine):
    model = base(kind, **dict(n_embd=64, n_layer=2, n_head=4, n_positions=8192) if kind == "gpt2" else {})
    train, words = dict(lora_targets=["lm_head"]), "LoRA targets lm_head: TRL trains no adapter on the output layer"
    refused(settings(model, engrave=train), f"engrave.lora_targets: {words}", tmp_path)
    refused(settings(model, engrave=dict(lora_targets=["all-linear"]), clone=dict(train=train)),
        f"clone.train.lora_targets: {words}", tmp_path)
    whole = dict(train, lora_r=0) # nothing is adapted
    check_inputs(settings(model, engrave=whole, clone=dict(train=whole)), tuple(STEPS), tmp_path/"run")


def test_all_linear_and_paths_train(llama, tok):
    from peft import get_peft_model
    from selfalign.config import EngraveConfig
    from selfalign.trainers import _lora
    for targets, n in ((("all-linear",), 14), (("self_attn.q_proj", "layers.1.mlp.up_proj"), 3)):
        model = AutoModelForCausalLM.from_pretrained(llama)
        adapted = get_peft_model(model, _lora(model, EngraveConfig(lora_targets=targets)))
        assert sum(n.endswith("lora_A.default.weight") for n, _ in adapted.named_parameters()) == n


def test_a_run_that_was_turned_down_goes_on_with_other_settings(llama, tmp_path, no_engine):
    from selfalign.app.run import parse_run
    from selfalign.report import write_report
    refused(settings(llama, engrave=dict(lora_targets=["c_attn"])), "LoRA targets c_attn", tmp_path)
    with pytest.raises(InputError, match="nothing to report yet"): write_report(tmp_path/"run")
    _, cfg, _ = parse_run("run", [str(tmp_path/"run"), "--engrave.lora-targets", "q_proj"])
    assert cfg.model == llama and cfg.engrave.lora_targets == ("q_proj",)
    check_inputs(cfg, tuple(STEPS), tmp_path/"run")


def test_clones_settings_are_read_too(llama, tmp_path, no_engine):
    refused(settings(llama, clone=dict(train=dict(lora_targets=["c_attn"]))),
        "clone.train.lora_targets: LoRA targets c_attn", tmp_path)
    refused(settings(llama, clone=dict(train=dict(report_to=["no_such_package"]))),
        "clone.train.report_to names no_such_package", tmp_path)


def config_file(tmp_path, **d):
    (tmp_path/"mine.yaml").write_text(yaml.safe_dump(d)); return str(tmp_path/"mine.yaml")


def test_settings_of_training_are_read(llama, tmp_path, no_engine, monkeypatch):
    for train, words in ((dict(report_to=["no_such_package"]),
            "engrave.report_to names no_such_package, which is not installed"),
            (dict(accelerate_config="no_such_file.yaml"), "no such file; give one of deepspeed, fsdp"),
            (dict(accelerate_config="fsdp", global_batch=12), "engrave.global_batch is 12, which the 8 processes"),
            (dict(accelerate_config=config_file(tmp_path, num_processes="many")), "num_processes is 'many'")):
        refused(settings(llama, engrave=train), words, tmp_path)
    find = gate.importlib.util.find_spec
    monkeypatch.setattr(gate.importlib.util, "find_spec", lambda n, *a: None if n in ("deepspeed", "papermill")
        else find(n, *a))
    refused(settings(llama, engrave=dict(accelerate_config="deepspeed")),
        "asks for DeepSpeed, which is not installed", tmp_path)
    refused(settings(llama), "the report needs papermill; pip install papermill", tmp_path, steps=tuple(STEPS))


def test_four_bits_and_the_disk_are_looked_at_where_the_command_trains(llama, tmp_path, no_engine, monkeypatch):
    four = settings(llama, engrave=dict(load_in_4bit=True))
    refused(four, "engrave.load_in_4bit needs a GPU", tmp_path, steps=tuple(STEPS))
    check_inputs(four, ("prompts",), tmp_path/"run")  # generated here, trained elsewhere
    full = settings(llama, engrave=dict(lora_r=0))
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(gate.shutil, "disk_usage", lambda p: room._replace(free=10_000_000))
    refused(full, r"0.0 GB free, and the models to come take 0.\d GB; make room", tmp_path, steps=tuple(STEPS))
    check_inputs(full, ("prompts",), tmp_path/"run")


def test_tokenizers_and_templates_are_read(tok, base, tmp_path, no_engine):
    import copy
    endless = copy.deepcopy(tok); endless.eos_token = None; endless.chat_template = None
    refused(settings(base(tok=endless)), "has no end-of-text token", tmp_path)
    deaf = copy.deepcopy(tok); deaf.chat_template = "{% for m in messages %}{{ m['role'] }}: {% endfor %}"
    refused(settings(base(tok=deaf)), "its chat template leaves out what", tmp_path)
    mute = copy.deepcopy(tok)
    mute.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}")
    refused(settings(base(tok=mute)), "its chat template leaves out what the assistant says", tmp_path)


def test_a_context_that_the_principles_do_not_fit(base, llama, tmp_path, no_engine):
    refused(settings(base(max_position_embeddings=1024)),
        "the principles and exemplars are .* tokens and the model's context is 1024", tmp_path)
    refused(settings(llama, engine_options=["max_context=900"]), "the model's context is 900", tmp_path)


def test_a_multimodal_checkpoint(tok, tmp_path, no_engine):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    text = dict(SMALL, vocab_size=len(tok), num_key_value_heads=2, head_dim=16, max_position_embeddings=8192)
    config = Gemma3Config(text_config=text, vision_config=dict(SMALL, image_size=56, patch_size=14),
        mm_tokens_per_image=4, image_token_index=10, boi_token_index=11, eoi_token_index=12)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path/"model"); tok.save_pretrained(tmp_path/"model")
    refused(settings(str(tmp_path/"model")), r"a multimodal checkpoint \(vision_config in its config.json\)", tmp_path)


def test_the_names_of_the_weights_are_read_before_a_server_is_asked(llama, tmp_path):
    folder = tmp_path/"model"; shutil.copytree(llama, folder)
    weights = load_file(folder/"model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1." not in k}, folder/"model.safetensors",
        metadata=dict(format="pt"))
    for engine in ("torch", f"openai:http://127.0.0.1:9/v1#{folder}"):
        refused(settings(None if "#" in engine else str(folder), engine=engine),
            "its weights lack model.layers.1", tmp_path)


def test_a_server_whose_model_is_not_here_may_generate(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "hub_answers", lambda: False)
    for name in ("gpt-large", "org/not-fetched-before"):
        cfg = settings(None, engine=f"openai:http://127.0.0.1:9/v1#{name}")
        check_inputs(cfg, ("prompts", "respond"), tmp_path/"run")
        with pytest.raises(InputError, match="training needs its weights|cannot be loaded"):
            check_inputs(cfg, tuple(STEPS), tmp_path/"run")


def test_sets_that_cannot_be_loaded(llama, tmp_path, no_engine, monkeypatch):
    monkeypatch.delenv("SELFALIGN_BENCHMARKS", raising=False)
    (tmp_path/"mine.jsonl").write_text('{"colour": "red"}\n')
    refused(settings(llama, evaluate=dict(sets=[str(tmp_path/"mine.jsonl")])),
        "evaluate.sets: .*mine.jsonl:1: not the schema of a known set", tmp_path)
    def script(name): raise RuntimeError("Dataset scripts are no longer supported, but found hhh_alignment.py")
    monkeypatch.setattr("selfalign.evals.sets._fetch", script)
    monkeypatch.setattr("selfalign.evals.sets.hub_answers", lambda: True)
    with pytest.raises(InputError,
            match="evaluate.sets: hhh: the hub answers, but .*Dataset scripts are no longer") as e:
        check_inputs(settings(llama, evaluate=dict(sets=["hhh"])))
    assert "go online" not in str(e.value)
    monkeypatch.setattr("selfalign.evals.sets.hub_answers", lambda: False)
    refused(settings(llama, evaluate=dict(sets=["hhh"])),
        "hhh: not fetched before, and the hub cannot be reached .* go online or set SELFALIGN_BENCHMARKS", tmp_path)
    monkeypatch.setattr("selfalign.evals.sets._from_hub",
        lambda name: (_ for _ in ()).throw(InputError(f"{name}: not to be had")) if name == "vicuna" else [])
    # its questions are asked beside TruthfulQA
    refused(settings(llama, evaluate=dict(sets=["truthfulqa"])), "vicuna: not to be had", tmp_path)


def test_hhh_is_read_from_the_hubs_parquet_files(tmp_path, monkeypatch):
    import huggingface_hub, pyarrow as pa, pyarrow.parquet as pq
    asked = []
    def download(repo, file, repo_type, revision):
        asked.append((repo, file, repo_type, revision))
        path = tmp_path/file; path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist([dict(input="Is it kind?", targets=dict(choices=["yes", "no"], labels=[1, 0]))]), path)
        return str(path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("selfalign.evals.sets.hub_answers", lambda: True)
    monkeypatch.delenv("SELFALIGN_BENCHMARKS", raising=False)
    rows = evaluation.load_benchmark("hhh")
    assert len(rows) == len(evaluation.SUBSETS) and {r["subset"] for r in rows} == set(evaluation.SUBSETS)
    assert asked[0][0] == "HuggingFaceH4/hhh_alignment"
    assert {a[2:] for a in asked} == {("dataset", "refs/convert/parquet")}


def test_a_finished_run_is_left_alone(llama, tmp_path):
    out = tmp_path/"run"; out.mkdir()
    done = {s: dict(done=True, files=[]) for names in STAGES.values()
        for s in names if not s.startswith(("evaluation ", "control"))}
    broken = settings(llama, engrave=dict(lora_targets=["c_attn"], report_to=["no_such_package"], load_in_4bit=True),
        evaluate=dict(sets=["no_such.jsonl"]))
    (out/"manifest.json").write_text(json.dumps(dict(stages=done)))
    for steps in (("evaluate",), ("report",), tuple(STEPS)): check_inputs(broken, steps, out)
    with pytest.raises(InputError, match="no_such_package"): check_inputs(broken, ("evaluate",), out, redo="engraved")
    with pytest.raises(InputError, match="no_such.jsonl: no such set or file"):
        check_inputs(broken, ("evaluate",), out, redo="evaluate")
    (out/"manifest.json").write_text(json.dumps(dict(stages={k: v for k, v in done.items() if k != "final"})))
    check_inputs(replace(broken, evaluate=replace(broken.evaluate, sets=("facts",))), ("verbose", "clone"), out)
