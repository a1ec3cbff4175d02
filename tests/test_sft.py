"""Training: going on after a kill, several processes, cards, and what is said when something is wrong."""
import errno, signal, subprocess, sys
from dataclasses import asdict, replace

import pytest

from selfalign import sft
from selfalign.annotations import data_path, example_rows
from selfalign.models import load_model, load_tokenizer
from selfalign.runs import InputError, write_json, write_jsonl
from selfalign.sft import TrainConfig, encode_rows, fit, launch, push, save_model, with_chat_template

CFG = TrainConfig(epochs=2, global_batch=4, micro_batch=4, learning_rate=1e-3, warmup_steps=1, max_length=96, identity_share=0, save_steps=2, bf16=False)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("SELFALIGN_NO_PROGRESS", "1")

@pytest.fixture(scope="module")
def rows(): return encode_rows(example_rows("responses")[:8], with_chat_template(load_tokenizer("embedded")), CFG)[0]

def _fit(rows, work, cfg=CFG): return fit(rows, "embedded", with_chat_template(load_tokenizer("embedded")), work, cfg)

@pytest.mark.slow # a minute: three trainings
def test_goes_on_after_sigkill_with_the_same_loss(rows, tmp_path):
    _, whole = _fit(rows, tmp_path/"whole")
    job, work = tmp_path/"job.json", tmp_path/"killed"
    write_json(job, dict(rows=rows, cfg=asdict(CFG)))
    code = ("import json,os,signal,sys\nfrom transformers import TrainerCallback\nfrom selfalign import sft\nfrom selfalign.models import load_tokenizer\n"
            "class Kill(TrainerCallback):\n def on_step_end(self, a, s, c, **k):\n  if s.global_step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
            "sft._watch = Kill\nj = json.load(open(sys.argv[1]))\n"
            "cfg = sft.TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in j['cfg'].items()})\n"
            "sft.fit(j['rows'], 'embedded', sft.with_chat_template(load_tokenizer('embedded')), sys.argv[2], cfg)\n")
    assert subprocess.run([sys.executable, "-c", code, str(job), str(work)], capture_output=True).returncode == -signal.SIGKILL
    assert sft._last_checkpoint(work).endswith("checkpoint-2")
    (work/"checkpoint-9").mkdir() # one that was cut short is passed over
    _, resumed = _fit(rows, work)
    assert [l["step"] for l in resumed] == [l["step"] for l in whole] == [1, 2, 3, 4]
    assert resumed[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-3)

def test_two_processes_give_the_loss_of_one_with_the_doubled_batch(rows, tmp_path, monkeypatch):
    cfg = replace(CFG, lora_dropout=0.0, epochs=1.0)
    _, one = _fit(rows, tmp_path/"one", cfg)
    file = tmp_path/"cpu.yaml"
    # accelerate starts several CPU processes only through its GPU launcher, told to stay off the GPU
    file.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\nmachine_rank: 0\nmixed_precision: 'no'\n")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trained, two = launch(rows, "embedded", tmp_path/"two", replace(cfg, accelerate_config=str(file)))
    assert (trained/"adapter_config.json").exists()
    assert [l["loss"] for l in two] == pytest.approx([l["loss"] for l in one], abs=1e-3)

@pytest.mark.parametrize("name, kind", [("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_shipped_accelerate_configs_are_valid(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file
    c = load_config_from_file(str(data_path(f"training/{name}.yaml")))
    assert str(c.distributed_type).endswith(kind) and c.num_processes == 8 and c.mixed_precision == "bf16"
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    args = launch_command_parser().parse_args(["--config_file", str(data_path(f"training/{name}.yaml")), "-m", "selfalign.sft"])
    if name == "fsdp": assert _validate_launch_command(args)[0].use_fsdp

def random_llama(folder, tok, **more): # tiny, with random weights
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **more)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)

@pytest.mark.parametrize("lora_r, micro", [(16, 4), (0, 2)])
def test_scoring_answers_alone_gives_trls_loss(rows, tmp_path, monkeypatch, lora_r, micro):
    import trl
    tok = with_chat_template(load_tokenizer("embedded")); base = random_llama(tmp_path/"base", tok)
    cfg = replace(CFG, lora_r=lora_r, lora_dropout=0.0, micro_batch=micro)
    assert sft._trainer_class(load_model(base)[0], sft._sft_config(cfg, tmp_path, 0, cuda=False)).__name__ == "AnswerTrainer"
    def losses(name): return [l["loss"] for l in fit(rows, base, tok, tmp_path/name, cfg)[1]]
    mine = losses("mine")
    monkeypatch.setattr(sft, "_trainer_class", lambda *a: trl.SFTTrainer); theirs = losses("theirs")
    assert len(mine) == 4 and mine[0] != mine[-1] and mine == pytest.approx(theirs, abs=1e-4)

def test_scoring_answers_alone_keeps_a_models_own_scaling_of_its_logits(rows, tmp_path):
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    tok = with_chat_template(load_tokenizer("embedded")); torch.manual_seed(0)
    Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.1)).save_pretrained(tmp_path/"base")
    tok.save_pretrained(tmp_path/"base")
    trainer = sft.trainer_for(rows, str(tmp_path/"base"), tok, tmp_path/"work", CFG)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad(): mine, theirs = trainer.compute_loss(trainer.model, dict(batch)), type(trainer).__mro__[1].compute_loss(trainer, trainer.model, dict(batch))
    assert type(trainer).__name__ == "AnswerTrainer" and mine.item() == pytest.approx(theirs.item(), abs=1e-4)

def test_rows_without_an_answer_token_give_a_loss_of_zero(rows, tmp_path):
    import torch
    tok = with_chat_template(load_tokenizer("embedded"))
    trainer = sft.trainer_for(rows, random_llama(tmp_path/"base", tok), tok, tmp_path/"work", CFG)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch, labels=torch.full_like(batch["labels"], -100)))
    loss.backward(); assert loss.item() == 0

def test_unknown_accelerate_config(rows, tmp_path):
    with pytest.raises(InputError, match="nowhere"): launch(rows, "embedded", tmp_path, replace(CFG, accelerate_config="nowhere"))

def test_a_loss_that_is_no_number_stops_and_names_the_step(rows, tmp_path, monkeypatch):
    from transformers import Trainer
    real, calls = Trainer.training_step, []
    def broken(self, *a, **k):
        out = real(self, *a, **k); calls.append(1)
        if len(calls) < 4: return out
        return out*float("nan")
    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(InputError, match=r"(loss|grad_norm) is nan at step 4.*checkpoint-2"): _fit(rows, tmp_path/"w", replace(CFG, save_steps=2))
    assert sft._last_checkpoint(tmp_path/"w").endswith("checkpoint-2")

def test_full_disk_leaves_no_half_model(tmp_path, monkeypatch):
    tok = with_chat_template(load_tokenizer("embedded"))
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(type(tok), "save_pretrained", full)
    model, _ = load_model("embedded")
    with pytest.raises(OSError): save_model(model, tok, "embedded", tmp_path/"engraved", replace(CFG, lora_r=0), [dict(step=1, loss=1.0)], {})
    assert list(tmp_path.iterdir()) == []

def test_lora_targets_that_do_not_exist_are_answered_with_those_that_do(rows, tmp_path):
    with pytest.raises(InputError, match="query_key_value do not exist.*q_proj"): _fit(rows, tmp_path/"w", replace(CFG, lora_targets=("query_key_value",)))

def test_logging_names_the_package_that_is_missing(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda n: None)
    with pytest.raises(InputError, match="pip install tensorboard"): _fit(rows, tmp_path/"w", replace(CFG, report_to=("tensorboard",)))

def test_four_bit_needs_a_gpu():
    import torch
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="needs a GPU"): sft._four_bit(replace(CFG, load_in_4bit=True))

def test_truncation_is_counted(tmp_path):
    tok = with_chat_template(load_tokenizer("embedded")); data = example_rows("responses")[:8]
    kept, counts = encode_rows(data, tok, replace(CFG, max_length=60))
    assert counts["rows"] + counts["lost"] == 8 and counts["truncated"] + counts["lost"] > 0 and counts["rows"] == len(kept)

def test_other_rows_do_not_go_on_from_a_checkpoint(rows, tmp_path):
    sft._clear_other(tmp_path/"w", rows, CFG, 0); (tmp_path/"w"/"checkpoint-1").mkdir()
    sft._clear_other(tmp_path/"w", rows, replace(CFG, micro_batch=1), 0); assert (tmp_path/"w"/"checkpoint-1").exists()
    sft._clear_other(tmp_path/"w", rows[1:], CFG, 0); assert not (tmp_path/"w"/"checkpoint-1").exists()

def test_push_sends_nothing_unless_asked(tmp_path, monkeypatch):
    import huggingface_hub
    sent = []
    class Api:
        def __getattr__(self, name): return lambda *a, **k: sent.append((name, k.get("repo_id"), a))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path/"final").mkdir(); (tmp_path/"final"/"config.json").write_text("{}")
    write_jsonl(tmp_path/"responses.jsonl", [dict(id="1")]); write_json(tmp_path/"manifest.json", dict(stages=dict(responses=dict(asked=2, kept=1, rejected=dict(apology=1)))))
    plan = push(tmp_path, "me/aligned")
    assert ("me/aligned", "config.json", 2) in plan and {"responses.jsonl", "README.md"} <= {f for r, f, _ in plan if r == "me/aligned-data"} and not sent
    push(tmp_path, "me/aligned", dry_run=False)
    assert [n for n, *_ in sent].count("create_repo") == 2 and "upload_folder" in [n for n, *_ in sent]
    with pytest.raises(InputError, match="no final/"): push(tmp_path/"nothing", "me/x")

def test_a_card_names_the_base_models_licence_where_it_states_one(tmp_path, monkeypatch):
    from selfalign.models import ModelSource
    src = ModelSource(str(tmp_path), str(tmp_path), None, None)
    assert sft.base_licence(src) is None and "look it up" in sft.model_card(src, CFG, [dict(step=1, loss=1.0)], {})
    (tmp_path/"README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert sft.base_licence(src) == "mit" and "license: mit" in sft.model_card(src, CFG, [dict(step=1, loss=1.0)], {})
    (tmp_path/"README.md").write_text("---\nlicense: [broken\n---\n")
    assert sft.base_licence(src) is None
    assert sft.base_licence(ModelSource("no/where", "no/where", None, None)) is None # offline
