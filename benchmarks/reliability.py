"""What reliability is measured by: kills, fuzzing, large files. Each part writes its section of
data/results/reliability.json.

    python benchmarks/reliability.py soak --kills 60  # kill runs at random moments of all stages, resume, compare
    # random texts and bytes into every reader, a tenth of them into each of the world's formats
    python benchmarks/reliability.py fuzz --inputs 2000000
    python benchmarks/reliability.py load --rows 1000000     # a journal of a million rows: read, resume, filter
    # the report of a run with a million prompts, rejects, answers and verbose answers
    python benchmarks/reliability.py report --rows 1000000

Soak: a small Llama with random weights (the embedded model's tokenizer, float32) is trained, merged, loaded and asked
for real; its tokens choose words that are set into the form which each stage asks for, so that rows pass the filters
and yet every row depends on the tokens drawn. Each attempt is a process of its own, forked from one that has the
libraries loaded, and is ended by SIGKILL.
"""
import argparse, gc, itertools, json, os, random, resource, shlex, signal, sys, tempfile, time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("SELFALIGN_NO_PROGRESS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1") # the soak forks: no thread pool may be running
sys.path.insert(0, str(Path(__file__).resolve().parent))
import world # noqa: E402
from selfalign.checks import InputError # noqa: E402
from selfalign.provenance import hardware # noqa: E402
from selfalign.runs import Journal, Run, git_commit, versions # noqa: E402
from selfalign.rows import content_id, iter_jsonl, read_jsonl, write_json, write_jsonl # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT/"data"/"results"/"reliability.json"
LONG = ("A river carries water from the hills to the sea, and on its way it feeds fields, "
    "mills and towns that were built beside it long ago.")
WORDS = [f"{a}{b}" for a in "bal cor dim fen gul hap jov kel lum mor nel pov".split()
    for b in "ander ible oster ury ette ingo ward ame".split()]


# ---- soak

TRAIN = dict(epochs=1, global_batch=8, micro_batch=4, learning_rate=1e-3, warmup_steps=1, max_length=96,
    identity_share=0.1, save_steps=1, lora_dropout=0.0)

def settings(model): return dict(model=str(model), dtype="float32", batch_size=8,
    prompts=dict(self_instruct=6, self_instruct_calls=2, topics_per_type=1, topic_rounds=1, topics_per_call=3,
        balance="median"),
    respond=dict(max_new_tokens=64, min_chars=20, limit=16), engrave=dict(TRAIN, held_out=0.2),
    clone=dict(max_new_tokens=48, min_chars=10, train=TRAIN),
    evaluate=dict(sets=[], n_questions=2, max_new_tokens=32))

def small_llama(out):
    "A Llama of two layers with random weights, saved with the embedded model's tokenizer."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from selfalign.models import load_tokenizer
    torch.manual_seed(0)
    tok = load_tokenizer("embedded")
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id, tie_word_embeddings=True)).save_pretrained(out)
    tok.save_pretrained(out)

def in_form(prompt, drawn):
    "Text as the stage asks for it, from the model's own tokens."
    rng = random.Random(drawn)
    some = lambda k: " ".join(rng.sample(WORDS, k))
    if not isinstance(prompt, str): return f"{LONG} It passes {some(8)} first."
    if "(internal thoughts):" in prompt:
        return (f" Role: Aster, AI assistant. Request: a question. Rules: 2 (informative).\n\nAster: "
            f"{LONG} It passes {some(5)} first.")
    if "Topics about" in prompt: return f" {some(2)}\n2. {some(2)}\n3. {some(1)}\n4. cut"
    if "questions:" in prompt:
        hints = [l.split(". ", 1)[1] for l in prompt.split("Types and topics:\n")[1].split("\n\n")[0].splitlines()][5:]
        return "\n".join([f" Why is {some(5)} so?"] + [f"{i}. {h}, question: What colour was {some(5)} painted?"
            for i, h in enumerate(hints[1:], 7)]) + "\n99. cut"
    return (f" Explain {some(6)} to a child.\n6. Input:\n<noinput>\n###\n7. Instruction: Sort {some(5)} by weight.\n7. "
        f"Input:\nlead, feather\n###\n8. Instruction: cut")

def use_forms():
    "Let the run's engines answer in form."
    from dataclasses import replace
    from selfalign import evaluation, pipeline
    class Formed(pipeline.LazyEngine):
        def generate_iter(self, prompts, sampling, seeds=None):
            self.count_tokens("ready")
            short = replace(sampling, max_new_tokens=6, min_new_tokens=0, stop=(), ban_eos=True)
            for i, c in self.engine.generate_iter(prompts, short, seeds):
                yield i, replace(c, text=in_form(prompts[i], c.text), finish_reason="stop", stop="<eos>")
    pipeline.open_engine = evaluation.open_engine = lambda cfg, model=None, rules=None: Formed(
        pipeline.engine_string(cfg, model), dtype=cfg.dtype, batch_size=cfg.batch_size)

def attempt(out, cfg, steps, seconds=None, within=None):
    """One process that works on the run; killed after `seconds`, counted from the beginning of a stage where one is
    given. True where it ended by itself."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            from selfalign.pipeline import run_steps
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run_steps(out, cfg, steps, isolate=False, say=lambda s: None); code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally: os._exit(code)
    end, reached = None, lambda: within is None or steps.index(at_work(out, steps)) >= steps.index(within)
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status: raise SystemExit(f"the run failed by itself (status {status}), see above")
            return True
        if end is None and seconds is not None and reached(): end = time.monotonic() + seconds
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    return False

def at_work(out, steps):
    "The stage in which a run was killed."
    from selfalign.config import STAGES
    try: done = {s for s, r in json.loads((out/"manifest.json").read_text())["stages"].items() if r.get("done")}
    except FileNotFoundError: done = set()
    return next((s for s in steps[:-1] if STAGES[s][0] not in done), steps[-1])

def soak(kills, minutes, seed=0, keep=lambda got: None):
    import torch, transformers, trl, peft, datasets, accelerate # noqa: F401 loaded once, before the forks
    from selfalign import sft # noqa: F401
    from selfalign.config import STAGES, config_from
    from selfalign.pipeline import STEPS
    # a collection in a child then leaves the libraries' objects alone
    torch.set_num_threads(1); use_forms(); gc.freeze()
    steps, rng, per_stage = [s for s in STEPS if s != "report"], random.Random(seed), Counter()
    compared, differ, runs, start = Counter(), Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        pid = os.fork()
        if not pid: small_llama(d/"model"); os._exit(0)
        os.waitpid(pid, 0)
        cfg = config_from(settings(d/"model"))
        t = time.monotonic(); attempt(d/"whole", cfg, steps); whole = time.monotonic() - t
        took = {s: r["seconds"] for s, r in json.loads((d/"whole"/"manifest.json").read_text())["stages"].items()}
        print(f"undisturbed run: {whole:.0f} s", took, flush=True)
        losses, worst = lambda r, m: [l["loss"] for l in json.loads((r/m/"training.json").read_text())["losses"]], 0.0
        # first one in each stage, then anywhere
        planned = [(0.7*rng.random()*took[STAGES[s][0]], s) for s in steps][:kills]
        while sum(per_stage.values()) < kills and time.monotonic() - start < 60*minutes:
            out, again = d/f"run{runs}", 0
            while True:
                # some kills come soon, most late enough for the run to get on; a stage that cannot finish gets longer
                left = sum(per_stage.values()) < kills
                when = (planned.pop(0) if left and planned
                    else (rng.uniform(0.1, whole/5*(1 + again/10)) if left else None, None))
                if attempt(out, cfg, steps, *when): break
                per_stage[at_work(out, steps)] += 1; again += 1
            for f in ("prompts.jsonl", "responses.jsonl", "held_out.jsonl", "verbose.jsonl", "rejects.jsonl"):
                a, b = read_jsonl(out/f), read_jsonl(d/"whole"/f)
                compared["rows"] += len(b)
                differ["row ids"] += [r.get("id") for r in a] != [r.get("id") for r in b]
                ids = [r["id"] for r in a if "id" in r]
                differ["duplicate rows"] += (len(ids) - len(set(ids))) * (f != "rejects.jsonl")
                if f in ("prompts.jsonl", "responses.jsonl"):
                    compared["texts of stages 1 and 2"] += len(b)
                    differ["texts of stages 1 and 2"] += sum(x != y for x, y in itertools.zip_longest(a, b))
            for f in (out/"completions").glob("*.jsonl"): # whole lines, each id once
                ids = [r["id"] for r in read_jsonl(f)]
                differ["journal rows twice"] += len(ids) - len(set(ids))
                compared["journal rows"] += len(ids)
            for m in ("engraved", "final"): worst = max(worst, abs(losses(out, m)[-1] - losses(d/"whole", m)[-1]))
            differ["temporary files left"] += len(list(out.rglob(".*.tmp")))
            differ["quarantined lines"] += sum(1 for q in out.rglob("quarantine.jsonl") for _ in open(q))
            runs += 1
            print(f"run {runs}: {sum(per_stage.values())} kills so far, {again} in this one; "
                f"differences {dict(differ)}; loss {worst:.1e}", flush=True)
            got = dict(kills=sum(per_stage.values()), kills_in_stage={s: per_stage[s] for s in steps},
                runs_finished=runs, compared=dict(compared), differences=dict(differ),
                largest_difference_of_final_loss=worst, minutes=round((time.monotonic() - start)/60, 1))
            keep(got) # a soak that is stopped keeps the runs that it has finished
    return got


# ---- fuzz

PIECES = ["###", "\n", "1. Instruction:", "2. Input:", "<noinput>", "Output:", "Aster:", "Aster (internal thoughts):",
    "User:", "Role: Aster", "Rules: 2 (informative), 99", "<|im_end|>", "<|im_start|>", "```",
    "type: Art, topic: Murals, question:", "- ", "12. ", "Verdict: A", "[[B]]", "{", "}", '"', ":", "\ud800",
    "\u202e", "\x00", "\r\n", "é", "水", "Sorry", "rule ", "9"*30, '{"id": "a"}', "&a *a", "!!python/object:os.system",
    "<script>", "../"]

def some_text(rng):
    return "".join(rng.choice(PIECES) if rng.random() < 0.7
        else "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x2FFF), rng.randrange(0x10FFFF))))
        for _ in range(rng.randrange(8))) for _ in range(rng.randrange(22)))

WORLD = ("ShareGPT", "messages", "Alpaca", "CSV dialects", "server replies")
READERS = (*WORLD, "prompt lines", "journal", "stored row", "JSONL file", "YAML file", "principles file",
    "exemplars file", "task list", "topic list", "hint lines", "thoughts and answer", "verbose answer", "cited rules",
    "judge's verdict", "query in the prompt")

def readers(folder):
    """name → (share of the inputs, function of (text, rng) that gives True where the input is kept, False where it is
    rejected)."""
    from selfalign.annotations import load_exemplars, load_principles, read_yaml
    from selfalign.engines.replies import Final, Passing, reply_of, retry_after
    from selfalign.evals.judging import parse_verdict
    from selfalign.generation import Sampling
    from selfalign.filters.context import Context
    from selfalign.principle_engraving import PrincipleSet, cited_rules, judge
    from selfalign.filters.leakage import common_words
    from selfalign.filters.repetition import loop_start
    from selfalign.sources import opening_turn, read_prompts
    from selfalign.topic_prompting import PromptPool, parse_questions, parse_tasks, parse_topics
    from selfalign.config import PromptsConfig
    from selfalign.filters.context import VerboseContext
    from selfalign.verbose_cloning import judge_verbose
    pset, row, p = PrincipleSet.load(), dict(id="1", instruction="Tell me about rivers.", input=""), folder/"file"
    ctx, vctx = Context(pset, 20, common=common_words()), VerboseContext("Cover every side of the question.", 20)
    n, rules = len(pset.prefix()), len(pset.principles)
    # JSON joins the two halves of a surrogate pair that stand side by side
    units = lambda t: t.encode("utf-16", "surrogatepass")
    out = lambda t, rng: dict(text=t, n_tokens=9, n_prompt=9, finish_reason=rng.choice(("stop", "length")))
    def tasks(t, rng):
        pool, items = PromptPool(PromptsConfig(tokenizer="unicode"), []), parse_tasks(t, cut=rng.random() < .5)
        for instr, inp, raw, why in items: pool.offer(instr, inp, raw, "self_instruct", why)
        assert len(pool.kept) + len(pool.rejects) == len(items); return bool(pool.kept)
    def topics(t, rng):
        got = parse_topics(t, cut=rng.random() < .5)
        assert all(why or 0 < len(x.split()) <= 3 for x, raw, why in got); return any(not why for *_, why in got)
    def hints(t, rng):
        got = parse_questions(t, [("Art", "Murals"), ("Art history", "Murals")], cut=rng.random() < .5)
        assert all(why or q for *_, q, raw, why in got); return any(not why for *_, why in got)
    def thoughts(t, rng):
        at = loop_start(t); assert at is None or 0 <= at <= len(t)
        got, why = judge(row, o := out(t if rng.random() < .5
            else f" Role: Aster. Rules: 2 (informative).\n\nAster: {LONG} {t}", rng), ctx)
        assert got["raw"] == o["text"] # kept or not, nothing is lost
        if why is None:
            assert got["answer"].strip() and "\nUser:" not in got["answer"]
            assert all(1 <= k <= rules for k in got["cited"])
        return why is None
    def verbose(t, rng):
        got, why = judge_verbose(row, o := out(t if rng.random() < .5 else f"{LONG} {t}", rng), vctx)
        assert got["raw"] == o["text"] and (why or got["answer"].strip()); return why is None
    def query(t, rng):
        body = pset.render(t)[n:]
        assert sum(l.startswith(("User:", "Aster")) for l in body.split("\n")) == 2 and body.endswith(pset.thoughts_cue)
        return True
    def file(read):
        def f(t, rng):
            p.write_bytes(rng.randbytes(rng.randrange(80)) if rng.random() < .2 else t.encode("utf-8", "replace"))
            try: read(p); return True
            except InputError as e: assert "\n" not in str(e).strip(); return False
        return f
    def stored(t, rng):
        p.unlink(missing_ok=True)
        with Journal(p) as j: j.add(dict(id="1", text=t))
        assert p.read_bytes().count(b"\n") == 1 == len(p.read_text().splitlines())
        assert units(read_jsonl(p)[0]["text"]) == units(t)
        return True
    def journal(t, rng):
        p.write_bytes(rng.randbytes(rng.randrange(80)) if rng.random() < .2
            else f'{{"id": "a"}}\n{t}'.encode("utf-8", "replace"))
        with Journal(p, say=lambda s: None) as j: k = len(j); j.add(dict(id="new", text=t))
        with Journal(p, say=lambda s: None) as j: assert len(j) in (k, k+1) and units(j["new"]["text"]) == units(t)
        return k > 0
    def prompts(name, n=None): # every row is a prompt or has a reason
        try: got = list(read_prompts(str(folder/name)))
        except InputError as e: assert "\n" not in str(e).strip(); return False
        assert all((r.why is None) == bool(r.instruction) or r.why for r in got) and (n is None or len(got) == n)
        return any(r.why is None for r in got)
    def rows_of(make):
        def f(t, rng):
            text, why, system = opening_turn(next(iter(make(rng, t).values())), chat=rng.random() < .5)
            assert isinstance(system, bool) and (why and not text or text.strip() and why is None)
            name, data, n = world.row_file(rng, make, t)
            (folder/name).write_bytes(data)
            return prompts(name, n)
        return f
    def tables(t, rng):
        data, n = world.table(rng, t)
        (folder/"d.csv").write_bytes(data)
        return prompts("d.csv", n)
    server = a_server()
    def replies(t, rng):
        data, type, headers = world.reply(rng, t)
        assert (wait := retry_after(headers)) is None or 0 <= wait < float("inf")
        try: c = server._read(server._sound(reply_of(data, type), headers), Sampling(stop=("\n\nUser:",)), 0)
        except (InputError, Passing, Final) as e: assert "\n" not in str(e).strip(); return False
        assert isinstance(c.text, str) and isinstance(c.n_tokens, int) and isinstance(c.n_prompt, int)
        assert c.finish_reason in ("stop", "length", "error") and bool(c.error) == (c.finish_reason == "error")
        return not c.error
    def lines(t, rng):
        (folder/"d.txt").write_bytes(t.encode("utf-8", "replace")); return prompts("d.txt")
    verdict = lambda t, r: {"A": True, "B": True, "tie": True, None: False}[parse_verdict(t)]
    rows = map(rows_of, (world.sharegpt_row, world.messages_row, world.alpaca_row))
    return {name: (.10, read) for name, read in zip(WORLD, (*rows, tables, replies))} | {
        "prompt lines": (.02, lines), "journal": (.03, journal), "stored row": (.02, stored),
        "JSONL file": (.03, file(lambda p: list(iter_jsonl(p)))), "YAML file": (.01, file(read_yaml)),
        "principles file": (.005, file(load_principles)), "exemplars file": (.005, file(load_exemplars)),
        "task list": (.06, tasks), "topic list": (.04, topics), "hint lines": (.04, hints),
        "thoughts and answer": (.07, thoughts), "verbose answer": (.07, verbose),
        "cited rules": (.03, lambda t, r: bool(cited_rules(t))), "judge's verdict": (.05, verdict),
        "query in the prompt": (.02, query)}

def a_server():
    "The client of a server that is never asked."
    from selfalign.engines.served import OpenAIEngine
    e = OpenAIEngine.__new__(OpenAIEngine)
    e.url = "http://127.0.0.1:9/v1"
    return e

def fuzz_reader(name, n, seed):
    "(how many inputs are kept, slowest in seconds) of one reader; ends where one raises anything but `InputError`."
    def hang(*a): raise SystemExit("an input took more than 10 s of the processor's time")
    signal.signal(signal.SIGPROF, hang)
    rng, kept, slowest, begun = random.Random(f"{seed} {name}"), 0, 0.0, time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as d:
        read = readers(Path(d))[name][1]
        for _ in range(n):
            text = some_text(rng)
            signal.setitimer(signal.ITIMER_PROF, 10) # a busy machine is no hang
            start = time.process_time()
            try: kept += read(text, rng)
            except BaseException: print(f"{name}: {text!r}", flush=True); raise
            slowest = max(slowest, time.process_time() - start)
        signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"{name}: {n} inputs, {kept} kept, {n/(time.monotonic()-begun):.0f}/s", flush=True)
    return kept, slowest

def fuzz(inputs, seed=0, keep=lambda got: None, processes=1):
    "Every reader gets its share of the inputs, which do not depend on the number of processes."
    start, counts, slowest = time.monotonic(), {}, (0.0, "")
    with tempfile.TemporaryDirectory() as d: shares = {k: share for k, (share, _) in readers(Path(d)).items()}
    sizes = [max(1, round(inputs*x)) for x in shares.values()]
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        done = [pool.submit(fuzz_reader, name, n, seed) for name, n in zip(shares, sizes)]
        for name, n, future in zip(shares, sizes, done):
            try: kept, s = future.result()
            except BaseException: pool.shutdown(wait=False, cancel_futures=True); raise # told now, not at the end
            slowest = max(slowest, (s, name))
            counts[name] = dict(inputs=n, kept=kept, rejected=n-kept)
            got = dict(inputs=sum(c["inputs"] for c in counts.values()), crashes=0, hangs=0,
                slowest_seconds=round(slowest[0], 3), slowest_reader=slowest[1], readers=dict(counts),
                minutes=round((time.monotonic()-start)/60, 1))
            keep(got) # a fuzzing that is stopped keeps what it has done
    return got


# ---- load

def child(f, *args): # (what it gives, seconds, MB at its peak)
    "Run in a process of its own, so that its peak memory is its own."
    r, w = os.pipe(); pid = os.fork()
    if not pid:
        t = time.monotonic(); got = f(*args)
        # a report has a kernel of its own
        peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        os.write(w, json.dumps([got, time.monotonic()-t, peak/1024]).encode()); os._exit(0)
    os.close(w); os.waitpid(pid, 0)
    return json.loads(os.read(r, 65536) or "null")

def load(rows):
    from selfalign.generation import Sampling, ScriptedEngine
    from selfalign.filters.context import VerboseContext
    from selfalign.verbose_cloning import judge_verbose
    with tempfile.TemporaryDirectory() as d:
        d, out = Path(d), {}
        j = d/"run"/"completions"/"answers.jsonl"
        jobs = lambda: [dict(id=content_id("answer", i), prompt=f"prompt {i}") for i in range(rows)]
        def make():
            j.parent.mkdir(parents=True); write_json(d/"run"/"manifest.json", dict(stages={}))
            return write_jsonl(j, (dict(id=content_id("answer", i), text=f"{i}: {LONG}", n_tokens=30, n_prompt=9,
                finish_reason="stop", stop="<eos>", error=None) for i in range(rows)))
        def ids(): return sum(1 for n, r in iter_jsonl(j) if r["id"])
        def journal():
            with Journal(j) as x: return len(x)
        def resume():
            with Run(d/"run", say=lambda s: None) as run:
                return len(run.complete("answers", jobs(), ScriptedEngine(lambda *a: "never asked"), Sampling()))
        def filtered():
            ctx = VerboseContext("Cover every side of the question.", 20)
            row = dict(instruction="Tell me about rivers.", input="")
            with Run(d/"run", say=lambda s: None) as run:
                return run.decide("verbose", "kept.jsonl", (judge_verbose(dict(row, id=r["id"]), r, ctx)
                    for _, r in itertools.islice(iter_jsonl(j), rows//10)), rows//10)["kept"]
        for name, f in (("write", make), ("read ids", ids), ("journal", journal), ("resume", resume),
                ("filter", filtered)):
            n, s, mb = child(f); assert n == (rows//10 if f is filtered else rows), (name, n)
            out[name] = dict(rows=n, rows_per_second=round(n/s), peak_memory_MB=round(mb))
            print(name, out[name], flush=True)
        return dict(rows=rows, file_MB=round(j.stat().st_size/1e6), **out)


def report(rows):
    from selfalign.config import RunConfig
    from selfalign.report import write_report
    from dataclasses import asdict
    with tempfile.TemporaryDirectory() as d:
        run, rng = Path(d)/"run", random.Random(0)
        reasons = ("duplicate", "not novel", "topic known", "too few words")
        types = [f"questions about {w}" for w in WORDS[:20]]
        some = lambda k: " ".join(rng.choices(WORDS, k=k))
        row = lambda i: dict(id=content_id(i), instruction=f"Why is {some(rng.randrange(4, 16))} so?",
            input="", source=("tgrt", "self_instruct")[i % 2],
            **(dict(type=types[i % 20], topic=some(2)) if i % 2 == 0 else {}), raw=LONG)
        def make():
            write_jsonl(run/"prompts.jsonl", map(row, range(rows)))
            write_jsonl(run/"rejects.jsonl", (dict(stage="prompts", reason=reasons[i % 4], raw=LONG,
                source=("tgrt", "self_instruct")[i % 2], **(dict(pool=i) if i % 4 == 1 else {})) for i in range(rows)))
            for f in ("responses", "verbose"):
                write_jsonl(run/f"{f}.jsonl", (dict(id=content_id(i), instruction="Why is it so?", input="",
                    answer=LONG*(1 + i % 3), cited=[2], ended=True, raw=LONG) for i in range(rows)))
            rec = dict(done=True, fingerprint="", settings={}, files=[], seconds=1.0, asked=rows,
                kept=rows, rejected={})
            write_json(run/"manifest.json", dict(stages=dict(prompts=dict(rec, asked=2*rows,
                rejected={r: rows//4 for r in reasons}, sources={}, topics={}), responses=rec, verbose=rec),
                config=asdict(RunConfig(model="embedded")), versions=versions(), commit=None, human_lines=0))
            return sum(f.stat().st_size for f in run.glob("*.jsonl"))
        size, *_ = child(make)
        kb, seconds, mb = child(lambda: write_report(run).stat().st_size//1000)
        return dict(rows_of_each_kind=rows, files_MB=round(size/1e6), seconds=round(seconds),
            peak_memory_MB=round(mb), report_kB=kb)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=("soak", "fuzz", "load", "report"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=RESULT)
    p.add_argument("--kills", type=int, default=60)
    p.add_argument("--minutes", type=float, default=20, help="no new run is begun after this time")
    p.add_argument("--inputs", type=int, default=2_000_000); p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--processes", type=int, default=1, help="readers that are fuzzed at the same time")
    a = p.parse_args()
    def keep(got):
        whole = json.loads(a.out.read_text()) if a.out.exists() else {}
        write_json(a.out, whole | {a.part: dict(got, **made)})
    made = dict(command=shlex.join(["python", "benchmarks/reliability.py", *sys.argv[1:]]), commit=git_commit(ROOT),
        hardware=hardware(), versions=versions(("selfalign", "torch", "transformers", "trl", "peft")))
    parts = dict(soak=lambda: soak(a.kills, a.minutes, a.seed, keep),
        fuzz=lambda: fuzz(a.inputs, a.seed, keep, a.processes), load=lambda: load(a.rows),
        report=lambda: report(a.rows))
    got = parts[a.part]()
    keep(got)
    print(json.dumps({k: v for k, v in got.items() if k != "readers"}, indent=1))
    bad = (a.part == "soak" and (got["kills"] < a.kills or any(got["differences"].values())
        or got["largest_difference_of_final_loss"] > 1e-3))
    return 1 if bad else 0

if __name__ == "__main__": sys.exit(main())
