"""Fine-tuning with this project's settings against TRL's default `SFTConfig`: same rows, same LoRA, same number of
steps, one process per measurement.

    python benchmarks/sft.py  # CPU, the embedded model; writes data/results/sft.json
    python benchmarks/sft.py --rows 16 --repeats 1 --out /tmp/sft.json   # about two minutes
    # on a GPU
    python benchmarks/sft.py --device cuda --model random:1b --length 768 --rows 2048 --out data/results/sft_gpu.json

Work: rows of the sample run (prompt and answer, loss on the answer), batches of 8, one epoch, LoRA as in the paper,
learning rate 4e-4, linear to 0. "TRL defaults" is what a user gets who gives SFTTrainer these rows, this LoRA and
this learning rate; each further line of the table changes one setting more, and then comes this project's own trainer
(`selfalign.training.trainer_for`), which on a CPU scores the answers' tokens alone. `tokens_per_s` counts the rows'
own tokens, not padding, over the time of `trainer.train()`; the loss is that of held-out rows after training, in
float32 without dropout, so that all settings are compared at the same loss. On a GPU the rows are random tokens of
uneven lengths and the model a Llama shape with random weights; MFU counts 4 FLOP per parameter and token (LoRA:
forward, and backward through the activations) against the card's dense bfloat16 peak. Medians of the repeats, the
settings taking turns; `cpu_seconds` beside `seconds` tells whether the machine was busy with something else (on N
threads they are up to N times the seconds). Each measurement is noted in OUT.runs.jsonl as it ends; run the command
again to go on after an interruption at the same commit. """
import argparse, json, os, random, shlex, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

from generation import RANDOM, own_peak

ROOT = Path(__file__).resolve().parent.parent
RANDOM = dict(RANDOM, tiny=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16))
# dense bfloat16 FLOP/s, makers' data sheets
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "4090": 165e12,
    "3090": 71e12}
LADDER = dict( # setting → what it changes; each line keeps the changes before it
    cpu=[("TRL defaults", {}), ("activations kept, not computed twice", dict(activation_checkpointing=False)),
        ("rows of like length together", dict(train_sampling_strategy="group_by_length"))],
    cuda=[("TRL defaults", {}), ("weights in bfloat16", dict(dtype="bfloat16")), ("rows packed", dict(packing=True)),
        ("Liger kernels", dict(use_liger_kernel=True))])
OURS, FLOAT32 = "selfalign", "selfalign, float32 throughout" # the second for comparison only

# --- in the measuring process -------------------------------------------------------------------------------------

def base_model(job, folder): # "embedded", or a folder with random weights
    if not job["model"].startswith("random:"): return job["model"]
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from selfalign.models import load_tokenizer
    tok = load_tokenizer("embedded"); torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**RANDOM[job["model"][7:]], vocab_size=len(tok),
        max_position_embeddings=8192), dtype=torch.bfloat16).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder

def data(job, tok, cfg): # (training rows, held-out rows)
    from selfalign.annotations import data_path
    from selfalign.rows import read_jsonl
    from selfalign.encoding import encode_rows
    if not job["model"].startswith("random:"):
        rows = encode_rows([r for n in ("responses", "verbose")
            for r in read_jsonl(data_path(f"samples/{n}.jsonl"))], tok, cfg)[0]
    else:
        rng = random.Random(0); rows = []
        for _ in range(job["rows"] + job["rows"]//8):
            n = min(max(int(rng.lognormvariate(5.7, .6)), 64), job["length"]) # around 300 tokens, as answers are
            ids = [rng.randrange(10, len(tok)) for _ in range(n)]
            rows.append(dict(input_ids=ids, labels=[-100]*(n//4) + ids[n//4:]))
    held = rows[::9][:16]
    return [r for i, r in enumerate(rows) if i % 9][:job["rows"]], held

def trl_trainer(job, rows, base, tok, cfg, work): # with TRL's defaults and the job's changes
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer
    from selfalign.models import load_model
    from selfalign.trainers import _lora
    change = dict(job["change"]); cuda = job["device"] == "cuda"
    # a model given by name is loaded in float32
    model, _ = load_model(base, dtype=getattr(torch, change.pop("dtype", "float32")), device=job["device"])
    args = SFTConfig(output_dir=str(work), max_length=job["length"], num_train_epochs=1,
        per_device_train_batch_size=cfg.micro_batch, learning_rate=cfg.learning_rate, use_cpu=not cuda, seed=0,
        data_seed=0, save_strategy="no", report_to="none", disable_tqdm=True, **change)
    torch.manual_seed(0)
    trainer = SFTTrainer(model=model, args=args,
        train_dataset=Dataset.from_list([dict(input_ids=r["input_ids"], labels=r["labels"]) for r in rows]),
        processing_class=tok, peft_config=_lora(model, cfg))
    trainer.remove_callback(PrinterCallback)
    return trainer

def held_loss(model, rows): # mean NLL per answer token
    import torch
    import torch.nn.functional as F
    total = n = 0
    model.eval()
    with torch.inference_mode():
        for r in rows:
            ids, labels = (torch.tensor([r[k]], device=model.device) for k in ("input_ids", "labels"))
            logits, want = model(input_ids=ids, use_cache=False).logits[0, :-1].float(), labels[0, 1:]
            total += F.cross_entropy(logits, want, ignore_index=-100, reduction="sum").item()
            n += int((want != -100).sum())
    return total / n

def measure(job):
    import torch
    from selfalign.models import load_tokenizer
    from selfalign.config import TrainConfig
    from selfalign.trainers import _rows_per_pack
    from selfalign.training import trainer_for
    from selfalign.tokens import with_chat_template
    cuda = job["device"] == "cuda"
    cfg = TrainConfig(epochs=1, global_batch=8, micro_batch=8, learning_rate=4e-4, warmup_steps=0,
        max_length=job["length"], save_steps=10**6, bf16=False if job["setting"] == FLOAT32 else None)
    with tempfile.TemporaryDirectory() as d:
        base = base_model(job, f"{d}/base"); tok = with_chat_template(load_tokenizer(base))
        rows, held = data(job, tok, cfg)
        # 8 packed sequences a step, as in the lines before
        if cuda: cfg = replace(cfg, global_batch=round(8*_rows_per_pack(rows, cfg)))
        trainer = (trainer_for(rows, base, tok, f"{d}/work", cfg) if job["setting"] in (OURS, FLOAT32)
            else trl_trainer(job, rows, base, tok, cfg, f"{d}/work"))
        start, used = time.perf_counter(), time.process_time(); trainer.train()
        if cuda: torch.cuda.synchronize()
        took, used = time.perf_counter() - start, time.process_time() - used
        peak = torch.cuda.max_memory_allocated() if cuda else own_peak()
        tokens = sum(len(r["input_ids"]) for r in rows)
        size = sum(p.numel()
            for n, p in trainer.model.named_parameters() if "lora_" not in n and "embed_tokens" not in n)
        return dict(tokens_per_s=tokens/took, seconds=took, cpu_seconds=used, tokens=tokens,
            rows=len(rows), steps=trainer.state.global_step, parameters=size, peak_bytes=peak,
            held_out_loss=held_loss(trainer.model.float(), held))

def one(path): # runs in a process of its own; the last line is the result
    print("\n" + json.dumps(measure(json.loads(Path(path).read_text()))))

# --- in the main process ------------------------------------------------------------------------------------------

def settings(device): # (name, all changes so far)
    out, change = [], {}
    for name, more in LADDER[device]: change = change | more; out.append((name, change))
    return [*out, (OURS, {}), *([(FLOAT32, {})] if device == "cpu" else [])]

def measured(a, setting, change, k): # once per setting and repeat: an interrupted benchmark goes on where it stopped
    log = Path(a.out + ".runs.jsonl")
    job = dict(setting=setting, change=change, model=a.model, device=a.device, rows=a.rows, length=a.length)
    key = dict(job, k=k, commit=a.commit)
    for l in log.read_text().splitlines() if log.exists() else []:
        if (r := json.loads(l))["key"] == key: return r["out"]
    out = spawn(job)
    with log.open("a") as f: f.write(json.dumps(dict(key=key, out=out)) + "\n")
    return out

def spawn(job):
    with tempfile.TemporaryDirectory() as d:
        p = Path(d)/"job.json"; p.write_text(json.dumps(job))
        env = dict(os.environ, PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1", SELFALIGN_NO_PROGRESS="1")
        r = subprocess.run([sys.executable, __file__, "--one", str(p)], env=env, capture_output=True, text=True)
    if r.returncode: return dict(error=(r.stderr.strip().splitlines() or ["no message"])[-1][:300])
    return json.loads(r.stdout.strip().splitlines()[-1])

def line(name, runs, first, before, peak): # one line of the table
    good = [r for r in runs if "error" not in r]
    if not good: return dict(setting=name, error=runs[0]["error"])
    m = {k: statistics.median(r[k] for r in good) for k in good[0]}
    out = dict(setting=name, tokens_per_s=round(m["tokens_per_s"], 1), seconds=round(m["seconds"], 2),
        cpu_seconds=round(m["cpu_seconds"], 2), peak_bytes=m["peak_bytes"],
        held_out_loss=round(m["held_out_loss"], 4), rows=m["rows"], tokens=m["tokens"], steps=m["steps"],
        all_tokens_per_s=[round(r["tokens_per_s"], 1) for r in good])
    if peak: out["mfu"] = round(4*m["parameters"]*m["tokens_per_s"]/peak, 4)
    for k, other in (("over_default", first), ("over_line_before", before)):
        if other and "error" not in other: out[k] = round(out["tokens_per_s"]/other["tokens_per_s"], 3)
    if first and "error" not in first:
        out["loss_difference"] = round(out["held_out_loss"]/first["held_out_loss"] - 1, 4)
    return out

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, default=80, help="training rows; the sample run has about 80")
    ap.add_argument("--length", type=int, default=512, help="most tokens of a row")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--model", default="embedded",
        help="embedded, a hub id, a path, random:1b, random:8b or random:tiny")
    ap.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ap.add_argument("--out", default=str(ROOT/"data"/"results"/"sft.json"))
    ap.add_argument("--one", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return one(a.one)
    sys.path.insert(0, str(ROOT))
    from selfalign.runs import git_commit, versions
    from selfalign.provenance import hardware
    from selfalign.rows import write_json
    a.commit = git_commit(ROOT); a.dtype = ""
    todo = settings(a.device)
    runs = {name: [] for name, _ in todo}
    for k in range(a.repeats): # the settings take turns, so that a busy spell of the machine hits them all
        for name, change in todo:
            runs[name].append(measured(a, name, change, k))
            print(json.dumps(dict(setting=name, repeat=k, **{x: runs[name][-1].get(x)
                for x in ("tokens_per_s", "held_out_loss", "peak_bytes", "error")})), flush=True)
    machine = hardware()
    peak = next((v for k, v in PEAK.items() if k in machine), None) if a.device == "cuda" else None
    table = []
    for name, _ in todo:
        table.append(line(name, runs[name], table[0] if table else None, table[-1] if table else None, peak))
    import torch
    ours = next(r for r in table if r["setting"] == OURS)
    write_json(a.out, dict(command=shlex.join(["python", *sys.argv]), commit=a.commit, hardware=machine,
        threads=torch.get_num_threads(), versions=versions(), model=a.model, device=a.device,
        length=a.length, repeats=a.repeats, table=table, ours_over_default=ours.get("over_default"),
        loss_difference=ours.get("loss_difference"), mfu=ours.get("mfu")))

if __name__ == "__main__": main()
