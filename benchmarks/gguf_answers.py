"""The same greedy answers from transformers' weights and from the GGUF file that `selfalign export gguf` writes.

    make test-gguf                                               # the embedded model, 50 questions
    python benchmarks/gguf_answers.py --model runs/mine/final --llamacpp .peers/xllamacpp/bin/python

llama.cpp itself answers, in its own server, from an environment of its own: the package xllamacpp brings it as a wheel.
Asked are our open questions as chat messages. Four things are compared: the text that both make of the messages, its
token ids, the greedy tokens of the answer (float32 on both sides), and how many answers end by themselves.
"""
import argparse, contextlib, json, os, subprocess, sys, tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SERVER = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = sys.argv[1], 2048, 1, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
print("at", server.listening_address, flush=True)
sys.stdin.read()
"""

@contextlib.contextmanager
def llamacpp(python, file, threads):
    "llama.cpp's server over a file; its address."
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    p = subprocess.Popen([python, "-c", SERVER, str(file), str(threads)], **pipes)
    try:
        line = next((l for l in p.stdout if l.startswith("at ")), None)
        if line is None: sys.exit(f"{python}: llama.cpp did not load {file}; is xllamacpp installed there?")
        yield line.split()[1]
    finally:
        p.stdin.close()
        p.kill()
        p.wait()

def theirs(url, messages, n):
    "What llama.cpp makes of each conversation: text, ids, answer and whether it ended by itself."
    import httpx
    out = []
    with httpx.Client(base_url=url, timeout=600) as web:
        ask = lambda path, **body: web.post(path, json=body).raise_for_status().json()
        for m in messages:
            text = ask("/apply-template", messages=m)["prompt"]
            ids = ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
            greedy = dict(n_predict=n, temperature=0.0, repeat_penalty=1.0, return_tokens=True)
            got = ask("/completion", prompt=ids, cache_prompt=False, **greedy)
            out.append(dict(text=text, ids=ids, tokens=got["tokens"], ended=got["stop_type"] != "limit"))
    return out

def ours(model, messages, n):
    "The same by transformers' weights."
    from selfalign.generation import Sampling, load_engine
    with load_engine(f"torch:{model}", dtype="float32") as e:
        tok, out = e.prompts.tok, []
        write = lambda m: tok.apply_chat_template(m, tokenize=False, add_generation_prompt=True)
        for m, c in zip(messages, e.generate(messages, Sampling(max_new_tokens=n, temperature=0))):
            ended = c.finish_reason == "stop"
            ids = list(c.token_ids)
            if ended and ids and ids[-1] in e.eos | e.prompts.ends: ids.pop() # llama.cpp gives it no token
            out.append(dict(text=write(m), ids=e.prompts.encode(m), tokens=ids, ended=ended))
    return out

def same_before(a, b): return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

def compared(a, b):
    "Shares over all questions."
    n = len(a)
    share = lambda test: sum(test(x, y) for x, y in zip(a, b))/n
    before = [(same_before(x["tokens"], y["tokens"]), max(len(x["tokens"]), len(y["tokens"]))) for x, y in zip(a, b)]
    return dict(questions=n, same_text=share(lambda x, y: x["text"] == y["text"]),
                same_prompt_ids=share(lambda x, y: x["ids"] == y["ids"]),
                same_answer=share(lambda x, y: x["tokens"] == y["tokens"]),
                tokens_before_first_difference=sum(k for k, _ in before)/sum(k for _, k in before),
                ended=dict(torch=sum(x["ended"] for x in a)/n, llamacpp=sum(y["ended"] for y in b)/n))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded")
    p.add_argument("--llamacpp", default=".peers/xllamacpp/bin/python", help="a Python that has xllamacpp")
    p.add_argument("--questions", type=int, default=50)
    p.add_argument("--tokens", type=int, default=32, help="most tokens an answer")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default="data/results/gguf.json")
    o = p.parse_args()
    import torch
    from selfalign.evals.sets import load_benchmark, question_text
    from selfalign.gguf_export import write_gguf
    from selfalign.models import resolve_model
    from selfalign.provenance import hardware
    from selfalign.rows import write_json
    from selfalign.runs import git_commit, versions
    rows = (load_benchmark("questions", None, o.seed) + load_benchmark("facts", None, o.seed))[:o.questions]
    system = dict(role="system", content="You are a helpful assistant.")
    messages = [[system, dict(role="user", content=question_text(r))] for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        file = write_gguf(o.model, Path(folder)/"model.gguf", "f32")
        with llamacpp(o.llamacpp, file, torch.get_num_threads()) as url: b = theirs(url, messages, o.tokens)
    a = ours(o.model, messages, o.tokens)
    src = resolve_model(o.model)
    result = dict(command="python " + " ".join(sys.argv), model=src.name, sha256=src.sha256, commit=git_commit(),
                  machine=hardware(), tokens=o.tokens,
                  versions=versions(("selfalign", "torch", "transformers", "gguf")), **compared(a, b))
    write_json(o.out, result)
    print(json.dumps({k: v for k, v in result.items() if k not in ("versions", "sha256")}, indent=1))
    if result["same_text"] < 1 or result["same_prompt_ids"] < 1: sys.exit("the file's template or tokens differ")

if __name__ == "__main__": main()
