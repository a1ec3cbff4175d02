"""What only a GPU can tell, in one command: `make gpu-check`. Exit code 1 where a check fails.

    python benchmarks/gpu.py                                   # all parts; merged into data/results/gpu.json
    python benchmarks/gpu.py --parts engine,train --minutes 8  # some parts, each in at most 8 minutes
    python benchmarks/gpu.py --parts method --base FOLDER      # the demo on your own base model
    python benchmarks/gpu.py --small                           # the short form; on by itself where there is no card

Parts: engine (families, head sizes, recovery when memory ends, speed), train (losses beside a CPU's, resume, merged
models, memory and speed of a 4B shape), method (the demo, killed once in each stage) and vllm (where it is installed).
A part begins nothing new once its minutes are spent, and says what it left out. Weights are random but for the
embedded model. Numbers of a CPU go to a temporary file unless --out is given.
"""
import argparse, copy, importlib.util, json, os, random, shlex, signal, subprocess, sys, tempfile, time
from pathlib import Path

ENV = dict(os.environ)
os.environ.setdefault("SELFALIGN_NO_PROGRESS", "1")
import torch # noqa: E402
from selfalign.generation import Sampling # noqa: E402
from selfalign.engines.local import TorchEngine # noqa: E402
from selfalign.engines.vllm import VLLMEngine # noqa: E402
from selfalign.models import load_model, load_tokenizer, release # noqa: E402
from selfalign.runs import git_commit, versions # noqa: E402
from selfalign.rows import write_json # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()
TINY = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            initializer_range=.1, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2)
SCALED = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
FAMILIES = dict(llama={}, qwen2={}, qwen3=dict(head_dim=16), mistral=dict(sliding_window=8), gemma2=SCALED,
                gemma3_text=SCALED, phi3=dict(sliding_window=8))
SHAPES = {"135M": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64), "1B": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64), "8B": dict(hidden_size=4096, intermediate_size=14336,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128)}
QWEN_4B = dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=8192)
TEXTS = ["Why is the sky blue", "Name a river", "Salt and water and what else", "How old is the moon now", "Rain"]
PREFIX = "Below are answers of a helpful assistant, each true and short. "

class Part:
    "One part's checks, and the time it may take."
    def __init__(self, name, small, minutes, base=None):
        self.name, self.small, self.base, self.checks, self.left_out = name, small, base, {}, []
        self.end, self.device = time.monotonic() + 60*minutes, "cuda" if CUDA else "cpu"

    def check(self, what, ok, value, expected):
        self.checks[what] = dict(ok=bool(ok), value=value, expected=expected)
        print(f"{self.name}: {'ok  ' if ok else 'FAIL'} {what}: {value} (expected: {expected})", flush=True)

    def tries(self, what, f, *args, needs_card=False):
        "One group of checks; an error in it is a failed check, and time that is spent leaves it out."
        if needs_card and not CUDA: why = "needs a card"
        elif time.monotonic() > self.end: why = "no time left"
        else:
            print(f"{self.name}: {what} …", flush=True)
            try: f(self, *args)
            except Exception as e: self.check(what, False, f"{type(e).__name__}: {e}"[:300], "no error")
            return release()
        self.left_out.append(f"{what}: {why}"); print(f"{self.name}: left out: {what}: {why}", flush=True)

def random_model(kind, dtype, device, **config):
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0); old = torch.get_default_dtype(); torch.set_default_dtype(dtype)
    try:
        with torch.device(device): return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()
    finally: torch.set_default_dtype(old)

def read_json(path): return json.loads(Path(path).read_text())

# --- engine

def plain_scores(e, model, prompts, ends): # nats per continuation, one plain pass each
    out = []
    for p, c in zip(prompts, ends):
        ids, n = e.prompts.pair(p, c)
        with torch.inference_mode():
            x = model(torch.tensor([ids], device=model.device)).logits[0].float().log_softmax(-1)
        out.append(sum(x[i-1, ids[i]].item() for i in range(n, len(ids))))
    return out

def parts_at_tie(model, ids, got, want): # where two outputs part, were the two tokens as likely as each other?
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), None)
    if at is None: return len(got) == len(want)
    with torch.inference_mode(): x = model(torch.tensor([ids + want[:at]], device=model.device)).logits[0, -1].float()
    return abs(x[want[at]] - x[got[at]]).item() < 1e-3

def same_as_plain(part, name, kind, config):
    tok = load_tokenizer("embedded")
    n = 12
    prompts = [PREFIX + t for t in TEXTS]
    ends = [" is so", " it was", " and", " not", " the end"]
    for dtype in (torch.float32, torch.bfloat16):
        plain = random_model(kind, dtype, part.device, **dict(TINY, vocab_size=len(tok), **config))
        e = TorchEngine((copy.deepcopy(plain), tok), batch_size=4)
        want, got = plain_scores(e, plain, prompts, ends), [s.logprob for s in e.score(prompts, ends)]
        off = (max(abs(a - b) for a, b in zip(want, got)) if dtype == torch.float32
            else sum(abs(a - b) for a, b in zip(want, got))/len(want))
        limit = 1e-2 if dtype == torch.float32 else .1
        part.check(f"{name}: scores in {str(dtype)[6:]}", off < limit, round(off, 5),
            f"{'largest' if limit < .1 else 'mean'} difference < {limit}")
        if dtype == torch.bfloat16: continue
        part.check(f"{name}: shared prefix", e.info["shared_prefix"], e.info["shared_prefix"], True)
        ours = [c.token_ids for c in e.generate(prompts, Sampling(max_new_tokens=n, temperature=0, ban_eos=True))]
        same = 0
        for p, got in zip(prompts, ours):
            ids = e.prompts.encode(p); x = torch.tensor([ids], device=plain.device)
            out = plain.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n,
                do_sample=False, eos_token_id=sorted(e.eos))
            same += parts_at_tie(plain, ids, got, out[0, len(ids):].tolist())
        part.check(f"{name}: greedy tokens", same == len(ours), same, f"{len(ours)} rows as transformers' generate")

def memory_ends(part):
    tok = load_tokenizer("embedded"); s = Sampling(max_new_tokens=128, temperature=0, ban_eos=True)
    e = TorchEngine((random_model("llama", torch.bfloat16, "cuda", vocab_size=len(tok), **SHAPES["135M"]), tok),
        batch_size=256)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        min(1., (torch.cuda.memory_reserved() + 2**29) / torch.cuda.get_device_properties(0).total_memory))
    try: done = e.generate([f"{PREFIX}{i}" for i in range(256)], s)
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    whole = sum(c.n_tokens == 128 and not c.error for c in done)
    part.check("memory ends: rows finished", whole == 256, whole, 256)

def speed(part, shape, rows, n_prefix):
    tok = load_tokenizer("embedded"); n = 8 if part.small else 48; rng = random.Random(0)
    some = lambda k: [rng.randrange(10, len(tok)) for _ in range(k)]
    config = (dict(TINY, vocab_size=len(tok)) if part.small
        else dict(SHAPES[shape], vocab_size=128256, max_position_embeddings=8192))
    model = random_model("llama", torch.bfloat16, part.device, **config)
    first, s = some(n_prefix), Sampling(max_new_tokens=n, temperature=0, ban_eos=True)
    prompts = [first + some(24) for _ in range(rows)]
    def rate(f):
        f()
        if CUDA: torch.cuda.synchronize()
        start = time.perf_counter(); f()
        if CUDA: torch.cuda.synchronize()
        return round(rows * n / (time.perf_counter() - start), 1)
    x = torch.tensor(prompts[:64], device=model.device)
    plain = rate(lambda: model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n,
        do_sample=False, pad_token_id=2)) * len(x)/rows
    e = TorchEngine((model, tok), batch_size=rows)
    ours = rate(lambda: e.generate(prompts, s)); kernels = None
    if CUDA:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p: e.generate(prompts, s)
        kernels = round(sum(str(v.device_type).endswith("CUDA") for v in p.events()) / n)
    value = dict(ours_tokens_per_s=ours, generate_tokens_per_s=round(plain, 1), generate_rows=len(x),
        kernels_per_step=kernels)
    part.check(f"speed: {'tiny' if part.small else shape}, {rows} rows behind {n_prefix} tokens", ours > 0,
        value, "measured")

def engine(part):
    for name in ["llama", "gemma2"] if part.small else FAMILIES:
        part.tries(name, same_as_plain, name, name, FAMILIES[name])
    for d in [20] if part.small else [20, 64, 80, 128, 256]:
        part.tries(f"head size {d}", same_as_plain, f"head size {d}", "llama", dict(head_dim=d))
    part.tries("memory ends", memory_ends, needs_card=True)
    for shape, rows, n in [("135M", 8, 40)] if part.small else [(s, r, n) for s in SHAPES for r in (64, 256)
            for n in (0, 1200)]:
        part.tries(f"speed {shape} {rows} {n}", speed, shape, rows, n)

# --- train

def settings(**kw):
    from selfalign.config import TrainConfig
    return TrainConfig(**dict(dict(epochs=1, global_batch=4, micro_batch=2, warmup_steps=1, max_length=64,
        lora_dropout=0., save_steps=2, packing=False), **kw))

def saved_model(folder, dtype=torch.float32, **config):
    tok = load_tokenizer("embedded")
    random_model("llama" if dtype == torch.float32 else "qwen3", dtype, "cpu" if dtype == torch.float32 or not CUDA
        else "cuda", **dict(dict(TINY, vocab_size=len(tok)), **config)).save_pretrained(folder)
    tok.save_pretrained(folder); return str(folder)

def random_rows(n, length, vocab=49000):
    rng = random.Random(0)
    return [dict(input_ids=(ids := [rng.randrange(10, vocab) for _ in range(rng.randint(length//3, length))]),
        labels=[-100]*4 + ids[4:]) for _ in range(n)]

def losses(base, work, cfg):
    from selfalign.training import fit
    from selfalign.tokens import with_chat_template
    return fit(random_rows(24, 48), base, with_chat_template(load_tokenizer(base)), work, cfg)[1]

def as_on_cpu(part):
    with tempfile.TemporaryDirectory() as d:
        base = saved_model(Path(d)/"base"); here = losses(base, Path(d)/"a", settings(bf16=False))
        subprocess.run([sys.executable, __file__, "--one", d],
            env=dict(ENV, CUDA_VISIBLE_DEVICES="", SELFALIGN_NO_PROGRESS="1"), check=True, stdout=subprocess.DEVNULL)
        there = read_json(Path(d)/"losses.json")
    off = max(abs(a["loss"] - b["loss"]) for a, b in zip(here, there))
    part.check("losses beside a CPU's", len(here) == len(there) and off < .05, round(off, 5), "difference < 0.05")

def resumes(part):
    import shutil
    with tempfile.TemporaryDirectory() as d:
        d = Path(d); base, cfg = saved_model(d/"base"), settings(save_steps=4)
        whole = losses(base, d/"a", cfg)
        for name in ("checkpoint-4", "key"):
            (shutil.copytree if (d/"a"/name).is_dir() else shutil.copy)(d/"a"/name,
                (d/"b").mkdir(exist_ok=True) or d/"b"/name)
        again = losses(base, d/"b", cfg)
    off = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole, again))
    part.check("resumed at step 4 of 6", len(whole) == len(again) and off < 1e-2, round(off, 5),
        "same losses, within 0.01")

def merges(part, way):
    from peft import PeftModel
    from selfalign.sft import train_model
    rows = [dict(id=str(i), instruction=t, input="", answer=f"{t}, because it is so.", ended=True)
        for i, t in enumerate(TEXTS * 4)]
    with tempfile.TemporaryDirectory() as d:
        d = Path(d); base = saved_model(d/"base")
        info = train_model(rows, base, d/"out", d/"work", settings(epochs=2, learning_rate=4e-3, max_length=128,
            lora_r=0 if way == "full" else 8, load_in_4bit=way == "QLoRA"), identity=False)
        part.check(f"{way}: loss falls", info["last_loss"] < info["first_loss"],
            [info["first_loss"], info["last_loss"]], "last below first")
        merged, tok = load_model(str(d/"out"), dtype=torch.float32, device=part.device)
        if way == "full": return
        plain, _ = load_model(base, dtype=torch.float32, device=part.device)
        x = torch.tensor([tok(PREFIX)["input_ids"]], device=part.device)
        with torch.inference_mode():
            before = plain(x).logits; after = PeftModel.from_pretrained(plain, d/"out"/"adapter").eval()(x).logits
            off, learned = (merged(x).logits - after).abs().mean().item(), (after - before).abs().mean().item()
    part.check(f"{way}: merged beside adapter", off < learned/10, [round(off, 6), round(learned, 6)],
        "difference below a tenth of what the adapter changes")

def memory(part, base, length, packing, ckpt):
    from selfalign.training import trainer_for
    from selfalign.tokens import with_chat_template
    rows = random_rows(8 if part.small else 64, length)
    cfg = settings(max_length=length, micro_batch=8, global_batch=8, packing=packing, gradient_checkpointing=ckpt,
        save_steps=10**6)
    with tempfile.TemporaryDirectory() as d:
        trainer = trainer_for(rows, base, with_chat_template(load_tokenizer(base)), d, cfg)
        if CUDA: torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter(); trainer.train(); took = time.perf_counter() - start
    peak = round(torch.cuda.max_memory_allocated()/2**30, 2) if CUDA else None
    value = dict(peak_gib=peak, tokens_per_s=round(sum(len(r["input_ids"]) for r in rows)/took, 1))
    part.check(f"8 x {length}, {'packed' if packing else 'length groups'}, checkpointing {'on' if ckpt else 'off'}",
        True, value, "measured")

def train(part):
    part.tries("losses beside a CPU's", as_on_cpu)
    part.tries("resume", resumes)
    for way in ("LoRA", "full"): part.tries(way, merges, way)
    if importlib.util.find_spec("bitsandbytes"): part.tries("QLoRA", merges, "QLoRA", needs_card=True)
    else: part.left_out.append("QLoRA: bitsandbytes is not installed")
    with tempfile.TemporaryDirectory() as d:
        base = saved_model(Path(d)/"base", torch.bfloat16, **({} if part.small else QWEN_4B))
        for length in [48] if part.small else [512, 768]:
            for packing, ckpt in [(False, True)] if part.small else [(False, True), (True, True), (False, False)]:
                part.tries(f"8 x {length}, packing {packing}, checkpointing {ckpt}", memory, base, length,
                    packing, ckpt)

# --- method

def killed_in_each_stage(part):
    from reliability import at_work
    from selfalign.pipeline import STEPS
    with tempfile.TemporaryDirectory() as d:
        out, killed = Path(d)/"run", []
        cmd = [sys.executable, "-m", "selfalign.pipeline", "run", str(out), "--preset", "demo",
            *(["--model", part.base] if part.base else [])]
        while True:
            left = [s for s in STEPS if s not in killed]
            p = subprocess.Popen(cmd, env=dict(ENV, SELFALIGN_NO_PROGRESS="1"), start_new_session=True,
                stdout=subprocess.DEVNULL)
            try:
                while p.poll() is None and time.monotonic() < part.end:
                    if (out/"manifest.json").exists() and (at := at_work(out, list(STEPS))) in left:
                        time.sleep(1.5); killed.append(at); break
                    time.sleep(.02)
            finally:
                ended = p.poll()
                if ended is None: os.killpg(p.pid, signal.SIGKILL)
                p.wait()
            if ended is not None or time.monotonic() > part.end: break
    if ended is None:
        part.left_out.append(f"the end of the demo: no time left; killed so far in {', '.join(killed)}")
        return print(f"method: left out: {part.left_out[-1]}")
    part.check("the demo, killed in each stage", ended == 0, dict(killed_in=killed, exit_code=ended), "finishes with 0")

def method(part):
    if part.small:
        part.left_out.append("the demo with kills: minutes on a CPU, where `make soak` kills a small model's run")
        print(f"method: left out: {part.left_out[0]}")
    else: part.tries("the demo, killed in each stage", killed_in_each_stage)

# --- vllm

def vllm_as_torch(part):
    prompts, s = [PREFIX + t for t in TEXTS], Sampling(max_new_tokens=24, temperature=0)
    ends = [" is so", " it was", " and", " not", " the end"]
    with TorchEngine("embedded") as e:
        want, scores = [c.text for c in e.generate(prompts, s)], [x.logprob for x in e.score(prompts, ends)]
    release()
    for i in range(3):
        with VLLMEngine("embedded", memory_share=.5) as e:
            got = [c.text for c in e.generate(prompts, s)]
            part.check(f"opened, time {i+1}: first words as torch", all(a[:8] == b[:8] for a, b in zip(want, got)),
                sum(a == b for a, b in zip(want, got)), "same first 8 characters")
            if i: continue
            one, two = ([x.logprob for x in e.score(prompts[::k], ends[::k])][::k] for k in (1, -1))
            part.check("scores in two orders", max(abs(a-b) for a, b in zip(one, two)) < .1,
                max(abs(a-b) for a, b in zip(one, two)), "< 0.1")
            part.check("scores beside torch", sum(abs(a-b) for a, b in zip(one, scores))/5 < .5,
                sum(abs(a-b) for a, b in zip(one, scores))/5, "mean < 0.5")
            for rules in ({}, {2: 1.}):
                start = time.perf_counter()
                done = e.generate([f"{PREFIX}{i}" for i in range(256)],
                    Sampling(max_new_tokens=48, ngram_penalty=rules, ban_eos=True))
                part.check(f"speed, {'with' if rules else 'without'} rules", True,
                    round(sum(c.n_tokens for c in done)/(time.perf_counter() - start), 1), "tokens a second, measured")

def vllm(part):
    if importlib.util.find_spec("vllm"): part.tries("vLLM", vllm_as_torch, needs_card=True)
    else: part.left_out.append("all of it: vLLM is not installed"); print(f"vllm: left out: {part.left_out[0]}")

PARTS = dict(engine=engine, train=train, method=method, vllm=vllm)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", default=",".join(PARTS))
    p.add_argument("--minutes", type=float, default=6, help="most minutes in a part")
    p.add_argument("--small", action="store_true", default=not CUDA)
    p.add_argument("--base", help="base model of the method part")
    p.add_argument("--out"); p.add_argument("--one", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        return write_json(Path(a.one)/"losses.json",
            losses(str(Path(a.one)/"base"), Path(a.one)/"c", settings(bf16=False)))
    if unknown := set(a.parts.split(",")) - set(PARTS):
        p.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    out = Path(a.out) if a.out else ROOT/"data"/"results"/"gpu.json" if CUDA else Path(tempfile.mkdtemp())/"gpu.json"
    bad = 0
    for name in a.parts.split(","):
        part = Part(name, a.small, a.minutes, a.base); start = time.monotonic(); PARTS[name](part)
        found = read_json(out) if out.exists() else {}
        found[name] = dict(command="python benchmarks/gpu.py " + shlex.join(sys.argv[1:]), commit=git_commit(),
            hardware=torch.cuda.get_device_name() if CUDA else "CPU", versions=versions(), small=a.small,
            seconds=round(time.monotonic() - start), checks=part.checks, left_out=part.left_out)
        write_json(out, found); bad += sum(not c["ok"] for c in part.checks.values())
    print(f"{bad} checks failed; {out}"); return int(bad > 0)

if __name__ == "__main__": sys.exit(main())
