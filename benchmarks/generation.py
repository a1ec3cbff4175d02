"""Generation behind one shared prompt: TorchEngine against its peers, same machine, same prompts, one process per
measurement.

    # all of it; writes data/results/generation.json
    python benchmarks/generation.py --llamacpp V1/bin/python --vllm V2/bin/python
    # about a minute
    python benchmarks/generation.py --queries 8 --tokens 8 --repeats 1 --no-growth --skip plain --out /tmp/generation.json
    python benchmarks/generation.py --device cuda --model random:8b --queries 64 256 --skip llamacpp  # on a GPU

Work: the stage-2 prompt of this project (principles and exemplars; its tokens stand in the results as n_prefix), N
queries behind it, 48 new tokens each, greedy, EOS banned, bfloat16 unless --dtype says otherwise. Every peer is
measured at its fastest setting we found and named as such in the results. `tokens_per_s` counts from the moment the
prefix is known to the engine (plain `generate` cannot know it: all its time counts); `tokens_per_s_with_prefix`
counts the prefix too. Ours and plain `generate` are measured once more behind the same prompt repeated up to 1,700
tokens (`paper_size`), the length of the paper's: plain `generate` computes it for every query, so its time grows with
it. Medians of the repeats; plain `generate` runs once, at 8 and 64 queries, llama.cpp in bfloat16 at 64. Each
measurement is noted in OUT.runs.jsonl as it ends; run the command again to go on after an interruption at the same
commit. Memory is the peak resident size (on CUDA the peak allocated) of the measuring process. """
import argparse, functools, json, os, resource, shlex, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ["tea", "the moon", "llamas", "rain", "a river", "salt", "bridges", "sleep"]
SETTING = dict(ours="shared prefix held once, all queries in one batch",
    plain="transformers generate, sdpa, full prompts in batches of --plain-batch",
    copied="transformers generate, sdpa, prefix cache computed once and copied for each query",
    llamacpp="llama.cpp batched, prefix shared by sequence copy, unified cache, the GGUF's own weights",
    llamacpp_bf16="llama.cpp as above, weights converted to bfloat16",
    vllm="vLLM CPU, prefix caching, prefix warmed, eager")
RANDOM = {"1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64), "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128)}

# --- in the measuring process -------------------------------------------------------------------------------------

def load(job): # (model, tokenizer); random:1b and random:8b are Llama shapes with random weights
    import torch
    from selfalign.models import load_model, load_tokenizer
    dtype = getattr(torch, job["dtype"])
    if not job["model"].startswith("random:"): return load_model(job["model"], dtype=dtype, device=job["device"])
    from transformers import AutoModelForCausalLM, LlamaConfig
    tok, old = load_tokenizer("embedded"), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(job["device"]):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**RANDOM[job["model"][7:]], vocab_size=128256,
                max_position_embeddings=8192))
    finally: torch.set_default_dtype(old)
    return model.eval(), tok

@functools.cache
def tokenizer():
    from selfalign.models import load_tokenizer
    return load_tokenizer("embedded") # random models have its vocabulary too

def sized(prefix, n, tok): # the prefix repeated or cut to n tokens
    ids = tok(prefix)["input_ids"]
    return tok.decode((ids * (n // len(ids) + 1))[:n])

def timed(f):
    start = time.perf_counter(); out = f()
    return time.perf_counter() - start, out

def measure_ours(job):
    from selfalign.generation import Sampling
    from selfalign.engines.local import TorchEngine
    random = job["model"].startswith("random:")
    e = TorchEngine(load(job) if random else job["model"],
        **({} if random else dict(dtype=job["dtype"], device=job["device"])), batch_size=job["batch"])
    tok = e.prompts.tok
    prefix, s = job["prefix"], Sampling(max_new_tokens=job["tokens"], temperature=0, ban_eos=True)
    e.generate(["warm up"], Sampling(max_new_tokens=2, temperature=0))
    ids = tok(prefix)["input_ids"]
    first, _ = timed(lambda: (e._prefix(ids), job["device"] == "cpu" or sync()))
    took, outs = timed(lambda: e.generate([prefix + q for q in job["queries"]], s))
    assert all(o.n_tokens == job["tokens"] for o in outs), outs[0]
    per_query = 2 * e.config.num_hidden_layers * e.config.num_key_value_heads * (getattr(e.config, "head_dim", None)
        or e.config.hidden_size // e.config.num_attention_heads) * len(ids) * 2
    return dict(took=took, prefix_s=first, n_prefix=len(ids), copied_prefix_bytes=per_query)

def sync():
    import torch; torch.cuda.synchronize()

def measure_plain(job):
    import torch
    model, tok = load(job)
    tok.padding_side, tok.pad_token = "left", tok.pad_token or tok.eos_token
    def run():
        for i in range(0, len(job["queries"]), job["plain_batch"]):
            x = tok([job["prefix"] + q for q in job["queries"][i:i+job["plain_batch"]]], return_tensors="pt",
                padding=True).to(model.device)
            model.generate(**x, max_new_tokens=job["tokens"], min_new_tokens=job["tokens"], do_sample=False)
    with torch.inference_mode(): return dict(took=timed(run)[0], prefix_s=0.0)

def measure_copied(job):
    import copy, torch
    from transformers import DynamicCache
    model, tok = load(job)
    tok.padding_side, tok.pad_token = "left", tok.pad_token or tok.eos_token
    ids = tok(job["prefix"], return_tensors="pt")["input_ids"].to(model.device)
    x = tok(job["queries"], return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    full = torch.cat([ids.expand(len(x.input_ids), -1), x.input_ids], 1)
    mask = torch.cat([torch.ones_like(ids).expand(len(x.input_ids), -1), x.attention_mask], 1)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        first, _ = timed(lambda: model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1))
        def run():
            own = copy.deepcopy(cache); own.batch_repeat_interleave(len(full))
            model.generate(full, attention_mask=mask, past_key_values=own, max_new_tokens=job["tokens"],
                min_new_tokens=job["tokens"], do_sample=False)
        return dict(took=timed(run)[0], prefix_s=first, n_prefix=ids.shape[1])

def measure_vllm(job):
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="4", HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND=f"0-{os.cpu_count()-1}",
        VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams
    llm = LLM(job["path"], dtype=job["dtype"], enable_prefix_caching=True, max_model_len=4096,
        max_num_seqs=len(job["queries"]), enforce_eager=True)
    s = SamplingParams(temperature=0, max_tokens=job["tokens"], min_tokens=job["tokens"], ignore_eos=True)
    first, _ = timed(lambda: llm.generate([job["prefix"] + " warm"], s, use_tqdm=False))
    took, outs = timed(lambda: llm.generate([job["prefix"] + q for q in job["queries"]], s, use_tqdm=False))
    assert all(len(o.outputs[0].token_ids) == job["tokens"] for o in outs)
    return dict(took=took, prefix_s=first)

def to_bf16(gguf): # a copy of the file with its weights in bfloat16, made once
    import llama_cpp as L
    out = Path(tempfile.gettempdir())/f"{Path(gguf).stem}-bf16.gguf"
    if not out.exists():
        p = L.llama_model_quantize_default_params()
        p.ftype, p.allow_requantize, part = L.LLAMA_FTYPE_MOSTLY_BF16, True, out.with_suffix(".part")
        assert L.llama_model_quantize(gguf.encode(), str(part).encode(), p) == 0
        part.rename(out)
    return str(out)

def measure_llamacpp_bf16(job): return measure_llamacpp(dict(job, gguf=to_bf16(job["gguf"])))

def measure_llamacpp(job):
    import llama_cpp as L, numpy as np
    L.llama_backend_init()
    model = L.llama_model_load_from_file(job["gguf"].encode(), L.llama_model_default_params())
    vocab = L.llama_model_get_vocab(model)
    def tokens(text):
        raw = text.encode(); buf = (L.llama_token * (len(raw) + 16))()
        return list(buf[:L.llama_tokenize(vocab, raw, len(raw), buf, len(buf), False, False)])
    prefix, suffixes, n = tokens(job["prefix"]), [tokens(q) for q in job["queries"]], len(job["queries"])
    cp = L.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch = len(prefix) + n * (job["tokens"] + 32) + 256, 2048, 512
    cp.n_seq_max, cp.n_threads, cp.n_threads_batch, cp.kv_unified = n + 1, os.cpu_count(), os.cpu_count(), True
    ctx = L.llama_init_from_model(model, cp)
    mem, size = L.llama_get_memory(ctx), L.llama_vocab_n_tokens(vocab)
    batch, eos = L.llama_batch_init(2048, 0, 1), L.llama_vocab_eos(vocab)
    batch.n_tokens = 0
    def add(t, pos, seq, want):
        i = batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i], batch.n_tokens = t, pos, 1, want, i + 1
        batch.seq_id[i][0] = seq
        return i
    def decode(): assert L.llama_decode(ctx, batch) == 0; batch.n_tokens = 0
    def best(i):
        x = np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), shape=(size,)); x[eos] = -np.inf
        return int(x.argmax())
    def fill():
        for i, t in enumerate(prefix):
            add(t, i, 0, 0)
            if batch.n_tokens == 2048: decode()
        if batch.n_tokens: decode()
    first, _ = timed(fill)
    def run():
        last, nexts = [0] * n, [0] * n
        for s in range(n): L.llama_memory_seq_cp(mem, 0, s + 1, -1, -1)
        part = []
        for s, x in enumerate(suffixes): # prompts in pieces of at most 2,048 tokens
            if batch.n_tokens + len(x) > 2048:
                decode()
                nexts[part[0]:part[-1]+1] = [best(last[p]) for p in part]
                part = []
            part.append(s)
            for j, t in enumerate(x): last[s] = add(t, len(prefix) + j, s + 1, j == len(x) - 1)
        decode(); nexts[part[0]:part[-1]+1] = [best(last[p]) for p in part]
        for k in range(job["tokens"] - 1):
            for s in range(n): last[s] = add(nexts[s], len(prefix) + len(suffixes[s]) + k, s + 1, 1)
            decode(); nexts = [best(i) for i in last]
    return dict(took=timed(run)[0], prefix_s=first, n_prefix=len(prefix))

def own_peak(): # bytes; ru_maxrss would begin at the parent's
    with open("/proc/self/status") as f: return next(int(l.split()[1]) for l in f if l.startswith("VmHWM")) * 1024

def one(path): # runs in a process of its own; the last line is the result
    job = json.loads(Path(path).read_text())
    out = globals()[f"measure_{job['peer']}"](job)
    n = len(job["queries"]) * job["tokens"]
    # vLLM's engine is a child
    peak = (own_peak() if job["peer"] != "vllm"
        else max(own_peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
    if job["device"] == "cuda": import torch; peak = torch.cuda.max_memory_allocated()
    print("\n" + json.dumps(dict(out, tokens_per_s=n / out["took"],
        tokens_per_s_with_prefix=n / (out["took"] + out["prefix_s"]), peak_bytes=peak)))

# --- in the main process ------------------------------------------------------------------------------------------

def spawn(python, job):
    with tempfile.TemporaryDirectory() as d:
        p = Path(d)/"job.json"; p.write_text(json.dumps(job))
        env = dict(os.environ, PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
        r = subprocess.run([python, __file__, "--one", str(p)], env=env, capture_output=True, text=True)
    if r.returncode: return dict(error=(r.stderr.strip().splitlines() or ["no message"])[-1][:300])
    return json.loads(r.stdout.strip().splitlines()[-1])

def measure(a, python, job, k): # once per setting and repeat: an interrupted benchmark goes on where it stopped
    log = Path(a.out + ".runs.jsonl")
    key = dict(peer=job["peer"], queries=len(job["queries"]), prefix_tokens=job["prefix_tokens"], k=k, model=a.model,
        dtype=a.dtype, device=a.device, tokens=a.tokens, commit=a.commit)
    for l in log.read_text().splitlines() if log.exists() else []:
        if (r := json.loads(l))["key"] == key: return r["out"]
    out = spawn(python, job)
    with log.open("a") as f: f.write(json.dumps(dict(key=key, out=out)) + "\n")
    return out

def median(runs, **extra):
    good = [r for r in runs if "error" not in r]
    if not good: return dict(extra, error=runs[0]["error"])
    out = {k: statistics.median(r[k] for r in good) for k in good[0]}
    return dict(extra, **{k: round(v, 3) if isinstance(v, float) else v for k, v in out.items()},
        all_tokens_per_s=[round(r["tokens_per_s"], 1) for r in good])

def job_for(a, peer, n, prefix, prefix_tokens=0, **kw):
    if prefix_tokens: prefix = sized(prefix, prefix_tokens, tokenizer())
    queries = [f"User: Tell me about {TOPICS[i % 8]}, version {i}.\n\nAster (internal thoughts):" for i in range(n)]
    return dict(dict(peer=peer, queries=queries, prefix=prefix, prefix_tokens=prefix_tokens, tokens=a.tokens,
        model=a.model, device=a.device, dtype=a.dtype, batch=n, plain_batch=a.plain_batch), **kw)

def peers(a): # (name, python, what the job needs) or the reason for leaving it out
    from selfalign import model_files
    from selfalign.models import resolve_model
    embedded = a.model == "embedded"
    found = dict(ours=(sys.executable, {}), copied=(sys.executable, {}), plain=(sys.executable, {}), skipped={})
    gguf = lambda: dict(gguf=str(model_files._gguf_file()))
    for name, python, need in (("llamacpp", a.llamacpp, gguf), ("llamacpp_bf16", a.llamacpp, gguf),
            ("vllm", a.vllm, lambda: dict(path=resolve_model(a.model).path))):
        if not python: found["skipped"][name] = f"no --{name.partition('_')[0]}: give the python of a venv that has it"
        elif not Path(python).exists(): found["skipped"][name] = f"{python} does not exist"
        elif not embedded: found["skipped"][name] = "measured with the embedded model only"
        else: found[name] = (python, need())
    for name in a.skip: found.pop(name, None); found["skipped"].setdefault(name, "left out by --skip")
    return found

def ratios(table):
    at = lambda peer, n: next((r["tokens_per_s"]
        for r in table if r["peer"] == peer and r["queries"] == n and "tokens_per_s" in r), None)
    return [dict(queries=n, peer=p, ours_over_peer=round(at("ours", n) / at(p, n), 2))
        for n in sorted({r["queries"] for r in table})
        for p in ("plain", "copied", "llamacpp", "llamacpp_bf16", "vllm") if at("ours", n) and at(p, n)]

def memory_growth(rows): # bytes per further query, as a share of one copied prefix
    rows = sorted((r for r in rows if "peak_bytes" in r), key=lambda r: r["queries"])
    if len(rows) < 2: return None
    per = (rows[-1]["peak_bytes"] - rows[0]["peak_bytes"]) / (rows[-1]["queries"] - rows[0]["queries"])
    return dict(from_queries=rows[0]["queries"], to_queries=rows[-1]["queries"], bytes_per_query=round(per),
        copied_prefix_bytes=rows[0]["copied_prefix_bytes"], share=round(per / rows[0]["copied_prefix_bytes"], 4))

# rows of the table; the peers take turns, so that a busy spell of the machine hits them all
def compare(a, found, n, prefix, size=0):
    todo = {p: (1 if p == "plain" else a.repeats)
        for p in found if n in dict(plain=(8, 64), llamacpp_bf16=(64,)).get(p, a.queries)}
    runs = {p: [] for p in todo}
    for k in range(a.repeats):
        for p in todo:
            if k < todo[p]: runs[p].append(measure(a, found[p][0], job_for(a, p, n, prefix, size, **found[p][1]), k))
    rows = [median(r, peer=p, queries=n, setting=SETTING[p]) for p, r in runs.items()]
    for r in rows:
        print(json.dumps(dict({k: r.get(k) for k in ("peer", "queries", "tokens_per_s", "tokens_per_s_with_prefix",
            "peak_bytes", "error")}, prefix_tokens=size or None)), flush=True)
    return rows

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--queries", type=int, nargs="+", default=[8, 32, 64, 128])
    ap.add_argument("--tokens", type=int, default=48, help="new tokens per query")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--model", default="embedded", help="embedded, a hub id, a path, random:1b or random:8b")
    ap.add_argument("--plain-batch", type=int, default=8, help="rows that plain generate takes at a time")
    ap.add_argument("--device", default="cpu"); ap.add_argument("--dtype", default="bfloat16")
    ap.add_argument("--llamacpp", help="python of a venv with llama-cpp-python")
    ap.add_argument("--vllm", help="python of a venv with vLLM")
    ap.add_argument("--skip", nargs="*", default=[], choices=["plain", "copied", "llamacpp", "llamacpp_bf16", "vllm"])
    ap.add_argument("--no-growth", action="store_true")
    ap.add_argument("--growth-repeats", type=int, default=3)
    ap.add_argument("--out", default=str(ROOT/"data"/"results"/"generation.json"))
    ap.add_argument("--one", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return one(a.one)
    sys.path.insert(0, str(ROOT))
    from selfalign.runs import git_commit
    a.commit = git_commit(ROOT)
    from selfalign.principle_engraving import PrincipleSet
    from selfalign.runs import versions
    from selfalign.provenance import hardware
    from selfalign.rows import write_json
    prefix, found, growth = PrincipleSet.load().prefix(), peers(a), []
    skipped = found.pop("skipped")
    table = [r for n in a.queries for r in compare(a, found, n, prefix)]
    paper = (compare(a, {p: found[p] for p in ("ours", "plain") if p in found}, 64, prefix, 1700)
        if 64 in a.queries else [])
    for n, size in [] if a.no_growth else [(n, 0) for n in (8, 16, 32, 64, 128, 256)] + [(64, s)
            for s in (250, 500, 1000, 2000, 4000)]:
        runs = [measure(a, sys.executable, job_for(a, "ours", n, prefix, size), k) for k in range(a.growth_repeats)]
        growth.append(median(runs, peer="ours", queries=n, prefix_tokens=size or None))
        print(json.dumps({k: growth[-1].get(k) for k in ("queries", "prefix_tokens", "tokens_per_s", "error")}),
            flush=True)
    ours = [r for r in growth if not r["prefix_tokens"]] or [r for r in table if r["peer"] == "ours"]
    write_json(a.out, dict(command=shlex.join(["python", *sys.argv]), commit=a.commit, hardware=hardware(),
        versions=versions(), model=a.model, dtype=a.dtype, device=a.device, new_tokens=a.tokens, repeats=a.repeats,
        table=table, ratios=ratios(table), paper_size=dict(prefix_tokens=1700, queries=64, table=paper,
        ratios=ratios(paper)) if paper else None, growth=growth, memory_growth=memory_growth(ours), skipped=skipped))

if __name__ == "__main__": main()
