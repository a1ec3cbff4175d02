"""Training: going on after a kill, several processes, cards, and what is said when something is wrong."""
import errno, json, os, signal, subprocess, sys
from dataclasses import asdict, replace

import pytest

from selfalign import sft
from selfalign.annotations import data_path, example_rows
from selfalign.checks import InputError
from selfalign.config import EngraveConfig, TrainConfig
from selfalign.encoding import encode_rows, plain_messages
from selfalign.hub import _SCORES, push
from selfalign.models import load_model, load_tokenizer
from selfalign.rows import write_json, write_jsonl
from selfalign.sft import train_model
from selfalign.tokens import end_of_turn, takes_system, with_chat_template
from selfalign.trainers import _batches, _clear_other, _flash_attention, _last_checkpoint, _ordered_trainer
from selfalign.trainers import _row_order, _rows_per_pack, _sft_config, _trainer_class
from selfalign.training import _with_its_bar, fit, launch, save_model
import importlib.util

CFG = TrainConfig(epochs=2, global_batch=4, micro_batch=4, learning_rate=1e-3, warmup_steps=1, max_length=96,
    identity_share=0, save_steps=2, bf16=False)

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
    code = ("import json,os,signal,sys\nfrom transformers import TrainerCallback\nfrom selfalign import config, "
            "tokens, training\nfrom selfalign.models import load_tokenizer\n"
            "class Kill(TrainerCallback):\n def on_step_end(self, a, s, c, **k):\n  if s.global_step == 3: "
            "os.kill(os.getpid(), signal.SIGKILL)\n"
            "training._watch = Kill\nj = json.load(open(sys.argv[1]))\n"
            "cfg = config.TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in j['cfg'].items()})\n"
            "training.fit(j['rows'], 'embedded', tokens.with_chat_template(load_tokenizer('embedded')), "
            "sys.argv[2], cfg)\n")
    assert subprocess.run([sys.executable, "-c", code, str(job), str(work)],
        capture_output=True).returncode == -signal.SIGKILL
    assert _last_checkpoint(work).endswith("checkpoint-2")
    (work/"checkpoint-9").mkdir() # one that was cut short is passed over
    _, resumed = _fit(rows, work)
    assert [l["step"] for l in resumed] == [l["step"] for l in whole] == [1, 2, 3, 4]
    assert resumed[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-3)

def test_two_processes_give_the_loss_of_one_with_the_doubled_batch(rows, tmp_path, monkeypatch):
    cfg = replace(CFG, lora_dropout=0.0, epochs=1.0)
    _, one = _fit(rows, tmp_path/"one", cfg)
    file = tmp_path/"cpu.yaml"
    # accelerate starts several CPU processes only through its GPU launcher, told to stay off the GPU
    file.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: "
        "2\nmachine_rank: 0\nmixed_precision: 'no'\n")
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
    args = launch_command_parser().parse_args(["--config_file", str(data_path(f"training/{name}.yaml")), "-m",
        "selfalign.training"])
    if name == "fsdp": assert _validate_launch_command(args)[0].use_fsdp

def random_llama(folder, tok, **more): # tiny, with random weights
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, **more)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)

@pytest.mark.parametrize("lora_r, micro", [(16, 4), (0, 2)])
def test_scoring_answers_alone_gives_trls_loss(rows, tmp_path, monkeypatch, lora_r, micro):
    tok = with_chat_template(load_tokenizer("embedded")); base = random_llama(tmp_path/"base", tok)
    cfg = replace(CFG, lora_r=lora_r, lora_dropout=0.0, micro_batch=micro)
    assert _trainer_class(load_model(base)[0], _sft_config(cfg, tmp_path, 0, cuda=False)).__name__ == "AnswerTrainer"
    def losses(name): return [l["loss"] for l in fit(rows, base, tok, tmp_path/name, cfg)[1]]
    mine = losses("mine")
    monkeypatch.setattr("selfalign.training._trainer_class", lambda *a: _ordered_trainer()); theirs = losses("theirs")
    assert len(mine) == 4 and mine[0] != mine[-1] and mine == pytest.approx(theirs, abs=1e-4)

def test_scoring_answers_alone_keeps_a_models_own_scaling_of_its_logits(rows, tmp_path):
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    tok = with_chat_template(load_tokenizer("embedded")); torch.manual_seed(0)
    Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.1)).save_pretrained(
        tmp_path/"base")
    tok.save_pretrained(tmp_path/"base")
    trainer = sft.trainer_for(rows, str(tmp_path/"base"), tok, tmp_path/"work", CFG)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        mine = trainer.compute_loss(trainer.model, dict(batch))
        theirs = type(trainer).__mro__[1].compute_loss(trainer, trainer.model, dict(batch))
    assert type(trainer).__name__ == "AnswerTrainer" and mine.item() == pytest.approx(theirs.item(), abs=1e-4)

def test_rows_without_an_answer_token_give_a_loss_of_zero(rows, tmp_path):
    import torch
    tok = with_chat_template(load_tokenizer("embedded"))
    trainer = sft.trainer_for(rows, random_llama(tmp_path/"base", tok), tok, tmp_path/"work", CFG)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch, labels=torch.full_like(batch["labels"], -100)))
    loss.backward(); assert loss.item() == 0

def test_unknown_accelerate_config(rows, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        launch(rows, "embedded", tmp_path, replace(CFG, accelerate_config="nowhere"))

def test_a_loss_that_is_no_number_stops_and_names_the_step(rows, tmp_path, monkeypatch):
    from transformers import Trainer
    real, calls = Trainer.training_step, []
    def broken(self, *a, **k):
        out = real(self, *a, **k); calls.append(1)
        if len(calls) < 4: return out
        return out*float("nan")
    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(InputError, match=r"(loss|grad_norm) is nan at step 4.*checkpoint-2"):
        _fit(rows, tmp_path/"w", replace(CFG, save_steps=2))
    assert _last_checkpoint(tmp_path/"w").endswith("checkpoint-2")

def test_full_disk_leaves_no_half_model(tmp_path, monkeypatch):
    tok = with_chat_template(load_tokenizer("embedded"))
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(type(tok), "save_pretrained", full)
    model, _ = load_model("embedded")
    with pytest.raises(OSError):
        save_model(model, tok, "embedded", tmp_path/"engraved", replace(CFG, lora_r=0), [dict(step=1, loss=1.0)], {})
    assert list(tmp_path.iterdir()) == []

def test_lora_targets_that_do_not_exist_are_answered_with_those_that_do(rows, tmp_path):
    with pytest.raises(InputError, match="query_key_value do not exist.*q_proj"):
        _fit(rows, tmp_path/"w", replace(CFG, lora_targets=("query_key_value",)))

def test_logging_names_the_package_that_is_missing(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        _fit(rows, tmp_path/"w", replace(CFG, report_to=("tensorboard",)))

def test_four_bit_needs_a_gpu():
    import torch
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="needs a GPU"): sft._four_bit(replace(CFG, load_in_4bit=True))

def test_truncation_is_counted(tmp_path):
    tok = with_chat_template(load_tokenizer("embedded")); data = example_rows("responses")[:8]
    kept, counts = encode_rows(data, tok, replace(CFG, max_length=60))
    assert counts["rows"] + counts["lost"] == 8 and counts["truncated"] + counts["lost"] > 0
    assert counts["rows"] == len(kept)

def test_other_rows_do_not_go_on_from_a_checkpoint(rows, tmp_path):
    _clear_other(tmp_path/"w", rows, CFG, 0); (tmp_path/"w"/"checkpoint-1").mkdir()
    _clear_other(tmp_path/"w", rows, replace(CFG, micro_batch=1), 0); assert (tmp_path/"w"/"checkpoint-1").exists()
    _clear_other(tmp_path/"w", rows[1:], CFG, 0); assert not (tmp_path/"w"/"checkpoint-1").exists()

def test_push_sends_nothing_unless_asked(tmp_path, monkeypatch):
    import huggingface_hub
    sent = []
    class Api:
        def __getattr__(self, name): return lambda *a, **k: sent.append((name, k.get("repo_id"), a))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path/"final").mkdir(); (tmp_path/"final"/"config.json").write_text("{}")
    write_jsonl(tmp_path/"responses.jsonl", [dict(id="1")])
    write_json(tmp_path/"manifest.json", dict(stages=dict(responses=dict(asked=2, kept=1, rejected=dict(apology=1)))))
    plan = push(tmp_path, "me/aligned")
    assert ("me/aligned", "config.json", 2) in plan
    assert {"responses.jsonl", "README.md"} <= {f for r, f, _ in plan if r == "me/aligned-data"} and not sent
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

def test_identity_pairs_mix_all_questions_and_answers():
    from selfalign.annotations import load_identity
    every = load_identity(); few, many = sft.identity_pairs(len(every)//4), sft.identity_pairs(2*len(every))
    assert len({r["instruction"] for r in few}) > len({r["instruction"] for r in every[:len(few)]})
    assert [r["id"] for r in few] == [r["id"] for r in sft.identity_pairs(len(few))] != [r["id"]
        for r in sft.identity_pairs(len(few), seed=1)]
    assert sorted(r["id"] for r in many) == sorted(2*[r["id"] for r in every])

def test_identity_pairs_alone_are_no_training(tmp_path):
    long = [dict(id=str(i), instruction="word "*200, input="", answer="Yes.", ended=True) for i in range(8)]
    with pytest.raises(InputError, match="all 8 rows were lost.*max_length, which is 96"):
        train_model(long, "embedded", tmp_path/"out", tmp_path/"work", replace(CFG, identity_share=0.5))
    assert not (tmp_path/"out").exists()

@pytest.mark.parametrize("whole, micro, world, sizes",
    [(12, 8, 1, (6, 2)), (768, 8, 8, (8, 12)), (7, 4, 1, (1, 7)), (4, 8, 2, (2, 1)), (1, 8, 1, (1, 1))])
def test_a_step_takes_the_global_batch_exactly(whole, micro, world, sizes):
    got = _batches(TrainConfig(global_batch=whole, micro_batch=micro), world)
    assert got == sizes and got[0]*got[1]*world == whole

def test_a_global_batch_that_the_processes_cannot_share(rows, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="global_batch is 12, which 8 processes cannot share; give a multiple of 8"):
        _batches(TrainConfig(global_batch=12), 8)

def test_packed_rows_count_as_rows_of_the_global_batch(rows):
    cfg = TrainConfig(global_batch=64, packing=True, max_length=max(len(r["input_ids"]) for r in rows)*4)
    per_pack = _rows_per_pack(rows, cfg)
    args = _sft_config(cfg, "nowhere", 0, False, per_pack)
    assert per_pack >= 4
    assert abs(args.per_device_train_batch_size * args.gradient_accumulation_steps * per_pack - 64) <= 8*per_pack/2

@pytest.mark.parametrize("field, value",
    [("epochs", 0), ("epochs", float("nan")), ("global_batch", -1), ("global_batch", 2.5), ("micro_batch", 0),
    ("micro_batch", True), ("learning_rate", -1e-4), ("learning_rate", "fast"), ("warmup_steps", -1), ("max_length", 0),
    ("lora_r", -1), ("lora_alpha", 0), ("lora_dropout", 1), ("lora_targets", ()), ("lora_targets", "q_proj"),
    ("packing", "yes"), ("bf16", 1), ("identity_share", 1.5), ("save_steps", 0), ("held_out", 1)])
def test_settings_that_cannot_be_right_are_named(field, value):
    with pytest.raises(InputError,
            match=rf"^engrave.{field} is {value!r}; give ".replace("(", r"\(").replace(")", r"\)")) as e:
        EngraveConfig(**{field: value})
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("field, value",
    [("max_new_tokens", 0), ("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("penalty_3", -1), ("min_chars", -1),
    ("max_items", 0), ("max_repeated", 2), ("on_limit", "drop"), ("min_new_tokens", 513)])
def test_settings_of_stage_4_that_cannot_be_right_are_named(field, value):
    from selfalign.config import CloneConfig
    with pytest.raises(InputError, match=f"^clone.{field} is {value!r}; give "): CloneConfig(**{field: value})
    CloneConfig(on_limit="reject", min_new_tokens=512)

@pytest.mark.parametrize("lora_r", [16, 0])
def test_packed_documents_do_not_see_each_other(rows, tmp_path, lora_r):
    import torch
    tok = with_chat_template(load_tokenizer("embedded")); base = random_llama(tmp_path/"base", tok)
    cfg = replace(CFG, packing=True, max_length=4*96, lora_r=lora_r, lora_dropout=0.0)
    trainer = sft.trainer_for(rows, base, tok, tmp_path/"work", cfg)
    batch = next(iter(trainer.get_train_dataloader())); starts = (batch["position_ids"][0] == 0).sum().item()
    alone = sft.trainer_for(rows, base, tok, tmp_path/"alone", replace(cfg, packing=False))
    total = sum(sft._answer_size(r) for r in rows)
    trainer.model.eval(); alone.model.eval()
    with torch.no_grad():
        packed = sum(trainer.compute_loss(trainer.model, dict(b), num_items_in_batch=total)
            for b in trainer.get_train_dataloader())
        single = sum(alone.compute_loss(alone.model, {k: torch.tensor([r[k]]) for k in ("input_ids", "labels")}
            | dict(attention_mask=torch.ones(1, len(r["input_ids"]), dtype=torch.long)), num_items_in_batch=total)
            for r in rows)
    assert starts > 1 and packed.item() == pytest.approx(single.item(), abs=1e-5) and not trainer.model.config.use_cache

def test_a_dry_run_of_push_changes_nothing(tmp_path):
    (tmp_path/"final").mkdir(); (tmp_path/"final"/"config.json").write_text("{}")
    found = dict(done=True,
        scores=[dict(model=m, set="facts", format="lm-eval", mc1=[.5, .4, .6]) for m in ("base", "final")])
    write_json(tmp_path/"manifest.json", dict(stages=dict(evaluation=found)))
    card = tmp_path/"final"/"README.md"; card.write_text(before := f"# A\n\n{_SCORES}not measured yet\n\n## Limits\n")
    plan = push(tmp_path, "me/aligned")
    assert card.read_text() == before
    sft.refresh_cards(tmp_path)
    assert card.read_text() != before and ("me/aligned", "README.md", card.stat().st_size) in plan
    (tmp_path/"manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest.json here"): push(tmp_path, "me/aligned")

def test_the_control_arm_trains_on_as_many_answer_tokens(tmp_path, monkeypatch):
    tok, seen = with_chat_template(load_tokenizer("embedded")), []
    monkeypatch.setattr(sft, "fit", lambda rows, *a, **k: (seen.append(rows), (None, [dict(step=1, loss=1.0)]))[1])
    monkeypatch.setattr(sft, "save_model", lambda *a, **k: None)
    data = [dict(id=str(i), instruction="Tell me more.", input="",
        answer=" ".join(f"Ein Fluß {j} 木" for j in range(5*i+1)), ended=True) for i in range(9)]
    cfg = replace(CFG, identity_share=0.3, max_length=200)
    whole = train_model(data, "embedded", tmp_path/"out", tmp_path/"work", cfg)
    budget = whole["answer_tokens"]//2
    info = train_model(data, "embedded", tmp_path/"out", tmp_path/"work", cfg, answer_tokens=budget)
    assert info["identity"] == whole["identity"] == 3
    assert info["answer_tokens"] == budget == sum(sft._answer_size(r) for r in seen[-1])
    eot = sft.end_of_turn(tok)
    assert all(len(r["input_ids"]) == len(r["labels"]) for r in seen[-1])
    assert 0 < sum(r["labels"][-1] == eot for r in seen[-1]) < len(seen[-1])

def test_a_template_without_a_system_role_gets_the_system_text_in_the_users_turn(tmp_path):
    from selfalign.tokens import Prompts
    tok, row = load_tokenizer("embedded"), dict(id="1", instruction="Name a river.", input="", answer="The Elbe.")
    tok.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + sft.CHAT_TEMPLATE)
    assert not takes_system(tok)
    kept, _ = encode_rows([row], with_chat_template(tok), CFG)
    system, query = (m["content"] for m in plain_messages(row, sft.system_variants()))
    assert f"### User\n{system}\n\n{query}\n\n### Assistant\nThe Elbe." in tok.decode(kept[0]["input_ids"])
    before = tok.chat_template; assert with_chat_template(tok).chat_template == before # once
    tok.save_pretrained(tmp_path); again = load_tokenizer_from(tmp_path) # a saved model's template takes it too
    messages = plain_messages(dict(row, instruction="Say <|im_end|> now."), sft.system_variants())
    text = tok.decode(Prompts(again).messages(messages))
    assert all(m["content"] in text for m in messages)

def test_a_template_that_drops_the_system_text_gets_it_in_the_users_turn():
    tok = load_tokenizer("embedded")
    tok.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    assert not takes_system(tok)
    assert "Be brief." in with_chat_template(tok).apply_chat_template([dict(role="system", content="Be brief."),
        dict(role="user", content="Hi")], tokenize=False)

def load_tokenizer_from(folder):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder)

def test_the_system_text_of_a_row_depends_on_its_id_alone():
    variants = [f"System {i}." for i in range(5)]
    data = [dict(id=f"row {i}", instruction="Hi.", input="") for i in range(40)]
    told = {r["id"]: plain_messages(r, variants) for r in data}
    assert told == {r["id"]: plain_messages(r, variants) for r in reversed(data)}
    assert len({m[0]["content"] for m in told.values()}) == 5
    tok = with_chat_template(load_tokenizer("embedded")); data = example_rows("responses")[:8]
    assert encode_rows(data, tok, CFG)[0] == encode_rows(data[::-1], tok, CFG)[0][::-1]

def test_no_row_is_held_back_unseen_and_lost_ones_are_counted():
    tok = with_chat_template(load_tokenizer("embedded"))
    data = [dict(id=str(i), instruction="Name a river." if i % 3 else "word "*300, input="", answer="The Elbe.",
        ended=True) for i in range(30)]
    train, held = sft.split_held_out(data, 0)
    kept, counts = encode_rows(train, tok, CFG)
    assert held == [] and len(kept) == counts["rows"] == 20 and counts["lost"] == 10
    train, held = sft.split_held_out(data, 0.3)
    assert held and sorted(r["id"] for r in train + held) == sorted(r["id"] for r in data)

@pytest.mark.slow
def test_what_save_model_writes_loads_in_lm_eval_as_it_is(rows, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    tok = with_chat_template(load_tokenizer("embedded")); base = random_llama(tmp_path/"base", tok)
    model, losses = fit(rows, base, tok, tmp_path/"work", CFG)
    save_model(model, tok, base, tmp_path/"out", CFG, losses, {})
    lm = HFLM(pretrained=str(tmp_path/"out"), dtype="float32", device="cpu", batch_size=1)
    assert lm.tokenizer.chat_template == tok.chat_template
    (score, _), = lm.loglikelihood([Instance("loglikelihood", {}, ("A river:", " Elbe"), 0)])
    import torch
    p, a = tok("A river:")["input_ids"], tok(" Elbe")["input_ids"]
    with torch.no_grad():
        at = load_model(str(tmp_path/"out"), dtype=torch.float32,
            device="cpu")[0](torch.tensor([p+a])).logits[0].log_softmax(-1)
    assert score == pytest.approx(sum(at[len(p)+i-1, t].item() for i, t in enumerate(a)), abs=1e-3)


def test_control_answers_that_are_none_are_kept_with_their_reason(tmp_path):
    from selfalign.generation import ScriptedEngine
    from selfalign.runs import Run
    from selfalign.rows import read_jsonl
    rows = [dict(id=str(i), instruction=f"Name river {i}.", input="") for i in range(6)]
    says = lambda p, i, s: [" The Elbe.", "  ", None][i % 3]
    with Run(tmp_path/"r", say=lambda s: None) as run:
        write_jsonl(run/"responses.jsonl", rows)
        with run.stage("responses", {}, files=["responses.jsonl"]): pass
        rec = sft.answer_plainly(run, ScriptedEngine(says), EngraveConfig(held_out=0))
        assert rec["kept"] == 2 and rec["rejected"] == {"no answer": 2, "engine error": 2} and rec["asked"] == 6
        assert sorted(r["reason"] for r in read_jsonl(run/"rejects.jsonl")) == ["engine error"]*2 + ["no answer"]*2

class _Killed(Exception): "Stands for the end of a process in the middle of a training."

def _seen(rows, work, monkeypatch, cfg, stops=(), base="embedded"): # (step, row numbers), losses by step
    from transformers import TrainerCallback
    key, log, stop = {tuple(r["input_ids"]): i for i, r in enumerate(rows)}, [], [None]
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == stop[0]: raise _Killed
    ordered = _ordered_trainer
    def watched():
        class Watched(ordered()):
            def training_step(self, model, inputs, *args, **kw):
                for ids in inputs["input_ids"].tolist():
                    while tuple(ids) not in key: ids = ids[:-1] # padding
                    log.append((self.state.global_step + 1, key[tuple(ids)]))
                return super().training_step(model, inputs, *args, **kw)
        return Watched
    monkeypatch.setattr("selfalign.trainers._ordered_trainer", watched)
    monkeypatch.setattr("selfalign.training._watch", Kill)
    for at in (*stops, None):
        stop[0] = at
        try: losses = fit(rows, base, with_chat_template(load_tokenizer(base)), work, cfg)[1]
        except _Killed: log[:] = [x for x in log if x[0] <= int(_last_checkpoint(work).rpartition("-")[2])]
    monkeypatch.setattr("selfalign.trainers._ordered_trainer", ordered)
    return log, {l["step"]: l["loss"] for l in losses}

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("tiny")/"base", with_chat_template(load_tokenizer("embedded")))

@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("stops", [(5,), (8,), (11,), (3, 7, 9, 10, 14)])
def test_however_often_interrupted_each_epoch_shows_every_row_once(tiny, tmp_path, monkeypatch, by_length, stops):
    import trl
    words = "water tide bread apple garden winter letter window".split()
    rows = [dict(id=str(i), instruction=f"Row {i}.", input="",
        answer=" ".join(words[(i+k) % 8] for k in range(3 + 7*i % 31)), ended=True) for i in range(18)]
    # five steps an epoch, the last with two rows
    cfg = replace(CFG, epochs=4, micro_batch=2, save_steps=2, lora_dropout=0.1)
    rows = encode_rows(rows, with_chat_template(load_tokenizer(tiny)), cfg)[0]
    if not by_length:
        monkeypatch.setattr(trl, "SFTConfig",
            lambda config=trl.SFTConfig, **kw: config(**dict(kw, train_sampling_strategy="random")))
    monkeypatch.setattr("selfalign.trainers._checkpointing", lambda on: {}) # it asks the replaced class for its fields
    whole, straight = _seen(rows, tmp_path/"whole", monkeypatch, cfg, base=tiny)
    parts, resumed = _seen(rows, tmp_path/"parts", monkeypatch, cfg, stops, base=tiny)
    assert parts == whole and resumed == pytest.approx(straight, abs=1e-3)
    for epoch in range(4): assert sorted(i for step, i in parts if (step-1)//5 == epoch) == list(range(18))
    assert len({tuple(i for step, i in whole if (step-1)//5 == epoch) for epoch in range(4)}) == 4

@pytest.mark.parametrize("by_length", [True, False])
def test_the_order_of_rows_is_that_of_one_process_in_any_number(by_length):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler
    sizes = [5 + 7*i % 31 for i in range(48)]
    def steps(world): # rows of each step, over all processes
        micro, times = _batches(TrainConfig(global_batch=12, micro_batch=3), world)
        order = _row_order(sizes, micro*times*world, 0, 1, by_length)
        batches = BatchSampler(order, micro, False)
        shards = [list(BatchSamplerShard(batches, world, rank)) for rank in range(world)]
        return [sorted(i for s in shards for b in s[k*times:(k+1)*times] for i in b) for k in range(4)]
    assert steps(1) == steps(2) == steps(4)

def test_one_process_uses_one_of_several_cards_and_says_how_to_use_all(rows, tmp_path, monkeypatch, capsys):
    from functools import cached_property
    from transformers import TrainingArguments
    real = TrainingArguments.__dict__["_setup_devices"].func
    def devices(self): # as transformers finds them on a machine with two cards
        found = real(self); self._n_gpu = 2
        return found
    asked = cached_property(devices); asked.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", asked)
    _, losses = _fit(rows[:4], tmp_path, replace(CFG, epochs=1))
    said = [l for l in capsys.readouterr().err.splitlines() if "GPU" in l]
    assert losses
    assert said == ["training uses one of 2 GPUs; `--engrave.accelerate-config fsdp` (stage 4: "
        "`--clone.train.accelerate-config fsdp`) uses all of them"]

@pytest.mark.parametrize("packing, flash, packed, order", [(None, False, False, "group_by_length"),
    (None, True, True, "random"), (True, False, True, "random"), (False, True, False, "group_by_length")])
def test_rows_are_packed_where_flash_attention_is_there_or_where_it_is_asked_for(packing, flash, packed, order):
    args = _sft_config(TrainConfig(packing=packing, bf16=False), "nowhere", 0, False, 2, flash=flash)
    assert (args.packing, args.train_sampling_strategy) == (packed, order) and not args.use_liger_kernel

@pytest.mark.parametrize("lora_r, packing, flash, bf16",
    [(16, None, "flash_attention_2", None), (16, None, None, True), (0, None, None, None),
    (16, False, "flash_attention_2", None), (16, True, None, None), (16, None, None, False), (0, None, None, False)])
def test_on_a_card_the_model_comes_in_the_type_and_with_the_attention_that_fit(rows, tmp_path, monkeypatch, lora_r,
        packing, flash, bf16):
    import torch
    class Seen(Exception): pass
    def load(base, **kw): raise Seen(kw)
    real = _sft_config
    monkeypatch.setattr("selfalign.training.best_device", lambda: "cuda")
    for room in ("sft", "training"): monkeypatch.setattr(f"selfalign.{room}.load_model", load)
    monkeypatch.setattr("selfalign.training._flash_attention", lambda base: flash)
    monkeypatch.setattr("selfalign.training._sft_config",
        lambda cfg, work, seed, cuda, *a, **kw: real(replace(cfg, bf16=False), work, seed, False, *a, **kw))
    with pytest.raises(Seen) as e:
        sft.trainer_for(rows, "embedded", None, tmp_path, replace(CFG, lora_r=lora_r, packing=packing, bf16=bf16))
    got = e.value.args[0]
    assert got["dtype"] == (torch.bfloat16 if lora_r and bf16 is not False else torch.float32)
    assert got["device"] == "cuda:0"
    assert got["attn_implementation"] == (flash if packing is not False else None)

def test_flash_attention_is_used_where_card_package_and_model_have_it(monkeypatch):
    import transformers.utils
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    assert _flash_attention("embedded") is None # no card
    monkeypatch.setattr("selfalign.trainers.best_device", lambda: "cuda")
    assert _flash_attention("embedded") == "flash_attention_2"
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    assert _flash_attention("embedded") is None

def test_where_one_process_holds_the_weights_the_others_keep_a_frame(tiny, monkeypatch):
    import torch, transformers
    real = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained",
        lambda *args, **kw: (real(*args, **kw)[0].to("meta"), {}))
    assert all(p.is_meta for p in load_model(tiny, dtype=torch.float32, device="cpu")[0].parameters())

def test_the_paper_preset_trains_on_all_cards():
    import yaml
    from selfalign.config import load_config
    c = load_config("paper"); f = yaml.safe_load(data_path("training/fsdp.yaml").read_text())
    assert c.engrave.accelerate_config == c.clone.train.accelerate_config == "fsdp"
    assert c.engine_options == (f"tensor_parallel_size={f['num_processes']}",)
    assert _batches(c.engrave, f["num_processes"]) and _batches(c.clone.train, f["num_processes"])

def test_a_training_in_several_processes_shows_its_bar_and_keeps_its_error(rows, tmp_path, monkeypatch, capsys):
    said = (r"import sys; sys.stderr.write('noise\n\r 50%|#####     | 1/2 [00:01<00:01]\r100%|##########| 2/2 "
        r"[00:02<00:00]\nValueError: no card\n'); sys.exit(3)")
    real = _with_its_bar
    monkeypatch.setattr("selfalign.training._with_its_bar",
        lambda command, env: real([sys.executable, "-c", said], env))
    with pytest.raises(InputError, match="failed: ValueError: no card; its checkpoints are kept in"):
        launch(rows, "embedded", tmp_path, replace(CFG, accelerate_config="fsdp"))
    err = capsys.readouterr().err
    assert "1/2" in err and "2/2" in err and "noise" not in err

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

def with_template_end(folder, end, eos="<|endoftext|>", source="embedded"):
    "A model whose template ends turns in a token that its configuration does not name."
    model, tok = load_model(source, device="cpu")
    tok.chat_template, tok.eos_token, tok.pad_token = CHATML.replace("END", end), eos, "<|endoftext|>"
    for c in (model.config, model.generation_config):
        c.eos_token_id = c.pad_token_id = tok.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder); tok.save_pretrained(folder)
    return str(folder)

@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def unknown_end(request, tmp_path_factory):
    d = tmp_path_factory.mktemp("unknown")
    tiny = random_llama(d/"tiny", with_chat_template(load_tokenizer("embedded")), tie_word_embeddings=request.param)
    return with_template_end(d/"base", "<gh_stars>", source=tiny)

def test_an_end_is_known_where_the_model_would_write_it():
    import torch
    model, tok = load_model("embedded", dtype=torch.float32, device="cpu"); tok = with_chat_template(tok)
    rows, weights, eot = sft.identity_pairs(8), model.get_output_embeddings().weight.data, end_of_turn(tok)
    known, drawn = weights[eot].clone(), torch.randn(weights.shape[1], generator=torch.Generator().manual_seed(1))
    for row in (drawn * weights.std(), drawn * .02, drawn * 0,
            weights[tok.convert_tokens_to_ids("<gh_stars>")].clone()):
        weights[eot] = row # drawn at random, as a model starts, empty, never used
        assert sft.end_rank(model, tok, rows) > 2*sft._KNOWN_END
    weights[eot] = sft.end_row(model, tok, rows)
    assert sft.end_rank(model, tok, rows) < sft._KNOWN_END
    weights[eot] = known
    assert sft.end_rank(model, tok, rows) < sft._KNOWN_END/10

def ends_of(folder): # what the three files of a saved model say
    files = {n: json.loads((folder/f"{n}.json").read_text())
        for n in ("tokenizer_config", "config", "generation_config")}
    ids = [x if isinstance(x := files[n]["eos_token_id"], list) else [x] for n in ("config", "generation_config")]
    return files["tokenizer_config"]["eos_token"], *ids

def test_the_row_of_an_unknown_end_is_trained_and_saved(unknown_end, tmp_path, monkeypatch, capsys):
    import torch
    monkeypatch.setattr(sft, "end_rank", lambda *a: .9)
    info = train_model(example_rows("responses")[:4], unknown_end, tmp_path/"out", tmp_path/"work",
        replace(CFG, max_length=128))
    said = [l for l in capsys.readouterr().err.splitlines() if "never trained" in l]
    assert len(said) == 1 and "<gh_stars>" in said[0] and "90%" in said[0]
    assert said[0].endswith("is trained beside LoRA")
    assert info["unknown_end"] == "<gh_stars>"
    (before, _) = load_model(unknown_end, dtype=torch.float32, device="cpu")
    (after, tok) = load_model(str(tmp_path/"out"), dtype=torch.float32, device="cpu")
    eot = tok.convert_tokens_to_ids("<gh_stars>")
    for layer in ("get_input_embeddings", "get_output_embeddings"): # this row and no other
        assert (getattr(before, layer)().weight != getattr(after, layer)().weight).any(
            1).nonzero().flatten().tolist() == [eot], layer
    start = sft.end_row(before, with_chat_template(load_tokenizer(unknown_end)), sft.identity_pairs(8))
    assert 0 < (after.get_output_embeddings().weight[eot] - start).abs().max() < .01 # two steps from its start
    named, config, generation = ends_of(tmp_path/"out")
    assert end_of_turn(tok) == tok.eos_token_id == eot and named == "<gh_stars>" and config == generation
    assert eot in config

@pytest.mark.parametrize("rank, lora_r, named, asked",
    [(.9, 16, False, True), (.004, 16, False, True), (.9, 0, False, False), (.9, 16, True, False)])
def test_the_weights_are_asked_only_where_it_matters(unknown_end, tmp_path, monkeypatch, rank, lora_r, named, asked):
    import shutil
    was, base = [], unknown_end
    monkeypatch.setattr(sft, "end_rank", lambda *a: was.append(1) or rank)
    if named:
        base = shutil.copytree(unknown_end, tmp_path/"base"); file = base/"generation_config.json"
        config = json.loads(file.read_text()); end = load_tokenizer(str(base)).convert_tokens_to_ids("<gh_stars>")
        file.write_text(json.dumps(dict(config, eos_token_id=[config["eos_token_id"], end])))
    tok, end, unknown = sft.training_tokenizer(str(base), replace(CFG, lora_r=lora_r))
    assert bool(was) is asked and tok.convert_ids_to_tokens(end_of_turn(tok)) == "<gh_stars>"
    assert (end, unknown) == ((end_of_turn(tok), "<gh_stars>") if asked and rank == .9 else (None, None))

# the tokenizer's file may name the unknown end, the model's does not
@pytest.mark.parametrize("eos, known, end, said", [
    ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "turns end in <|endoftext|>"),
    ("<gh_stars>", "<|endoftext|>", "<|endoftext|>", "turns end in <|endoftext|>"),
    ("<|endoftext|>", "<|im_end|>", "<|im_end|>", "turns end in <|im_end|>"), # the named end is hardly known
    ("<|endoftext|>", None, "<|endoftext|>", "(90%), so answers may run on: full fine-tuning (lora_r 0) teaches it, and "
     "so does one process"), # no end is
])
def test_several_processes_train_with_our_template_and_an_end_that_is_known(tiny, tmp_path, monkeypatch, capsys, eos,
        known, end, said):
    known = load_tokenizer(tiny).convert_tokens_to_ids(known) if known else None
    monkeypatch.setattr(sft, "end_rank", lambda *a: .9)
    monkeypatch.setattr(sft, "end_ranks", lambda model, tok, rows, ids: {i: .001 if i == known else .9 for i in ids})
    base = with_template_end(tmp_path/"base", "<gh_stars>", eos=eos, source=tiny)
    tok, row, unknown = sft.training_tokenizer(base, replace(CFG, accelerate_config="fsdp"))
    assert (row, unknown) == (None, "<gh_stars>")
    assert tok.eos_token == end == tok.convert_ids_to_tokens(end_of_turn(tok))
    assert capsys.readouterr().err.strip().endswith(said)
    talk = [dict(role="user", content="a"), dict(role="assistant", content="b"), dict(role="user", content="c")]
    assert "<gh_stars>" not in tok.apply_chat_template(talk, tokenize=False)
    model, _ = load_model(base)
    sft.with_end(model, tok)
    model.save_pretrained(tmp_path/"out")
    tok.save_pretrained(tmp_path/"out")
    named, config, generation = ends_of(tmp_path/"out")
    assert named == end and config == generation and tok.eos_token_id in config

def test_an_instruct_model_does_not_end_our_turns_as_its_base_did():
    import torch
    model, tok = load_model("embedded", dtype=torch.float32, device="cpu")
    tok.chat_template, tok.eos_token = None, "<|endoftext|>"
    ended, text = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    ranks = sft.end_ranks(model, with_chat_template(tok), sft.identity_pairs(8), [ended, text])
    assert ranks[ended] < sft._KNOWN_END/10 and ranks[text] > 2*sft._KNOWN_END

SHARDED_ON_CPU = '''
import os
if "RANK" in os.environ and "SELFALIGN_JOB" in os.environ: # accelerate shards on GPUs only: here two CPU processes stand for them
    import accelerate.state as state
    import torch
    def backend(self, *args, **kw):
        if not torch.distributed.is_initialized(): torch.distributed.init_process_group("gloo")
        return "gloo", state.DistributedType.MULTI_GPU
    state.PartialState._prepare_backend = backend
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    import transformers
    real = transformers.AutoModelForCausalLM.from_pretrained
    def seen(*args, **kw):
        open(os.path.join(os.environ["SELFALIGN_JOB"], "read." + os.environ["RANK"]), "w").close()
        return real(*args, **kw)
    transformers.AutoModelForCausalLM.from_pretrained = seen
'''
def on_two_processes(name, code, folder, monkeypatch): # the shipped file, for two processes that run this code first
    shipped = data_path(f"training/{name}.yaml").read_text()
    file = folder/"two.yaml"
    file.write_text(shipped.replace("num_processes: 8", "num_processes: 2").replace("mixed_precision: bf16",
        "mixed_precision: 'no'"))
    (folder/"sitecustomize.py").write_text(code)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([before] if before else [])]))
    return str(file)

@pytest.mark.slow # two trainings in two processes
@pytest.mark.parametrize("lora_r", [16, 0])
def test_the_shipped_sharding_gives_the_loss_of_one_process_and_goes_on(tiny, tmp_path, monkeypatch, lora_r):
    import torch
    from transformers import AutoModelForCausalLM
    # four steps: the rate of the first is 0
    cfg = replace(CFG, lora_dropout=0.0, epochs=2.0, save_steps=1, lora_r=lora_r)
    tok = with_chat_template(load_tokenizer(tiny)); rows = encode_rows(example_rows("responses")[:8], tok, cfg)[0]
    _, one = fit(rows, tiny, tok, tmp_path/"one", cfg)
    file = on_two_processes("fsdp", SHARDED_ON_CPU, tmp_path, monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    work = tmp_path/"work"; cfg = replace(cfg, accelerate_config=file)
    trained, two = launch(rows, tiny, work, cfg)
    assert [l["loss"] for l in two] == pytest.approx([l["loss"] for l in one], abs=1e-2) # the log rounds under FSDP
    whole = sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(tiny).parameters())
    assert (work/"read.0").exists() and not (work/"read.1").exists()
    if lora_r: assert (work/"checkpoint-3"/"pytorch_model_fsdp.bin").stat().st_size < whole/2 # the adapter alone
    # the last checkpoint is lost, and the training goes on from the one before
    import shutil; shutil.rmtree(work/"checkpoint-4")
    _, again = launch(rows, tiny, work, cfg)
    assert [l["loss"] for l in again] == pytest.approx([l["loss"] for l in two], abs=1e-3)
    save_model(trained, tok, tiny, tmp_path/"out", cfg, two, {})
    assert torch.isfinite(load_model(str(tmp_path/"out"))[0].get_input_embeddings().weight).all()

ZERO_3_ON_CPU = '''
import os, sys
if "RANK" in os.environ and "SELFALIGN_JOB" in os.environ: # accelerate counts the processes where it is told of gloo
    import accelerate.state as state, deepspeed.comm.torch
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None # compiled, and only faster
    begin = state.PartialState.__init__
    def on_cpu(self, cpu=False, **kw): begin(self, cpu=False, **dict(kw, backend="gloo"))
    state.PartialState.__init__ = on_cpu
'''
@pytest.mark.slow # make test-deepspeed
@pytest.mark.parametrize("lora_r", [16, 0])
def test_the_shipped_zero_3_with_checkpointing_gives_the_loss_of_one_process_and_goes_on(tiny, tmp_path, monkeypatch,
        lora_r):
    pytest.importorskip("deepspeed")
    cfg = replace(CFG, lora_dropout=0.0, epochs=2.0, save_steps=1, lora_r=lora_r, gradient_checkpointing=True)
    tok = with_chat_template(load_tokenizer(tiny)); rows = encode_rows(example_rows("responses")[:8], tok, cfg)[0]
    _, one = fit(rows, tiny, tok, tmp_path/"one", cfg)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    file = on_two_processes("deepspeed", ZERO_3_ON_CPU, tmp_path, monkeypatch)
    work = tmp_path/"work"; cfg = replace(cfg, accelerate_config=file)
    trained, two = launch(rows, tiny, work, cfg)
    assert [l["loss"] for l in two] == pytest.approx([l["loss"] for l in one], abs=1e-3)
    shares = sorted(f.name for f in (work/"checkpoint-3"/"global_step3").glob("zero_pp_rank_*_optim_states.pt"))
    assert len(shares) == 2 # each process keeps its share
    import shutil; shutil.rmtree(work/"checkpoint-4") # lost: the training goes on from the one before
    _, again = launch(rows, tiny, work, cfg)
    assert [l["loss"] for l in again] == pytest.approx([l["loss"] for l in two], abs=1e-3)
    save_model(trained, tok, tiny, tmp_path/"out", cfg, two, {})
    before, after = load_model(tiny)[0].state_dict(), load_model(str(tmp_path/"out"))[0].state_dict()
    assert any((before[k] != after[k]).any() for k in before) and all(v.isfinite().all() for v in after.values())
