"""Served, clustered and vLLM engines, each against the real thing on this machine; deselected or skipped where it is
missing."""
import importlib.util, json, os, signal, socket, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfalign.checks import InputError
from selfalign.engines.cluster import _Replica as its_Replica
from selfalign.engines.served import OpenAIEngine
from selfalign.generation import Sampling, load_engine
from selfalign.models import resolve_model

def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

# --- a small HTTP server that misbehaves on demand ---------------------------------------------------------------

class Answers(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self): self.reply(*self.server.pages.get(self.path, (404, {})))
    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        status = self.server.plan.pop(0) if self.server.plan else 200
        if status == "hang": time.sleep(3); return
        if status == "page": return self.reply(200, "<html>Welcome</html>")
        if status not in (200, "withheld", "null"): return self.reply(status, dict(error=dict(message="no")))
        chat = "messages" in body
        choice = dict(index=0, finish_reason="content_filter" if status == "withheld" else "stop",
            **(dict(message=dict(role="assistant", content="hello")) if chat
            else dict(text=f"<{body['prompt']}> done.\n\nUser: more", logprobs=None)))
        if status == "null": choice["text"] = None
        self.reply(200, dict(id="x", object="chat.completion" if chat else "text_completion", created=0, model="m",
            choices=[choice], usage=dict(prompt_tokens=3, completion_tokens=5, total_tokens=8)))

@pytest.fixture
def served():
    s = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    s.seen, s.plan, s.pages, s.daemon_threads = [], [], {}, True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s, f"openai:http://127.0.0.1:{s.server_address[1]}/v1#m"
    s.shutdown(); s.server_close()

def test_openai_rows_retries_and_errors(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    s, spec = served
    s.plan[:] = [429, 503, 500, 400]
    with load_engine(spec, concurrency=1, patience=30) as e:
        outs = e.generate(["a", "b", "", "c<|im_end|>", [dict(role="user", content="hi")]],
            Sampling(max_new_tokens=9, temperature=0, stop="\n\nUser:"), seeds=[1, 2, 3, 4, 5])
        assert e.info["server"] == "openai" and "secret" not in json.dumps(e.info)
    assert outs[0].error == "row 0: the server answers 400: " + outs[0].error.split(": ", 2)[2]
    assert (outs[1].text, outs[1].stop, outs[1].n_tokens) == ("<b> done.", "\n\nUser:", 5)
    assert outs[2].error == "row 2: the prompt is empty" and "control token" in outs[3].error
    assert outs[4].text == "hello"
    assert len(s.seen) == 6 and s.seen[0][2] == "Bearer sk-secret" and s.seen[4][1]["seed"] == 2
    assert s.seen[5][0].endswith("/chat/completions")

def test_openai_refuses_what_the_server_cannot_do(served):
    s, spec = served
    with load_engine(spec) as e:
        for bad in (dict(ngram_penalty={3: 1.}), dict(banned_first="Sorry"), dict(ban_eos=True), dict(top_k=5)):
            with pytest.raises(InputError, match="cannot do.*allow"): e.generate(["a"], Sampling(**bad))
        with pytest.raises(InputError, match="log-prob"): e.score(["a"], ["b"])
    assert not s.seen
    with load_engine(spec, allow_degraded=True) as e:
        e.generate(["a"], Sampling(ngram_penalty={3: 1.})); assert e.info["dropped"] == ["ngram_penalty"]

def test_openai_server_that_never_answers(served):
    s, spec = served
    s.plan[:] = ["hang"] * 9
    with load_engine(spec, timeout=.3, patience=1) as e:
        with pytest.raises(InputError, match="no answer after [12] s"): e.generate(["a"], Sampling())
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0)); mute.listen()
        with pytest.raises(InputError, match="does not answer"):
            OpenAIEngine(f"http://127.0.0.1:{mute.getsockname()[1]}/v1#m", timeout=.3)

def test_openai_answers_that_are_none(served):
    "A page instead of an answer ends the call with its address; an answer that is withheld is its row's error."
    s, spec = served
    with load_engine(spec, concurrency=1) as e:
        s.plan[:] = ["withheld", "null"]
        outs = e.generate(["a", "b", "c"], Sampling())
        assert [o.error and o.error[:34]
            for o in outs] == ["row 0: the server withholds its an", "row 1: the server withholds its an", None]
        assert outs[2].text
        s.plan[:] = ["page"]
        with pytest.raises(InputError, match="no completions endpoint.*Welcome.*/v1"): e.generate(["a"], Sampling())

def test_the_context_of_a_vllm_server_is_asked_for(served):
    s, spec = served
    s.pages.update({"/version": (200, dict(version="1")),
        "/v1/models": (200, dict(data=[dict(id="other", max_model_len=7), dict(id="m", max_model_len=2048)]))})
    with load_engine(spec) as e: assert (e.server, e.max_context) == ("vllm", 2048)
    with load_engine(spec, max_context=99) as e: assert e.max_context == 99
    s.pages["/v1/models"] = 200, dict(data=[dict(id="m")])
    with load_engine(spec) as e: assert e.max_context == 2**31

@pytest.mark.parametrize("status, takes", [(200, True), (404, False), (400, False), (500, False), (429, True)])
def test_a_server_is_asked_once_whether_it_renders_messages(served, status, takes):
    from selfalign.evals.answers import has_chat
    s, spec = served
    with load_engine(spec) as e:
        s.plan[:] = [status]
        assert (has_chat(e), has_chat(e), len(s.seen)) == (takes, takes, 1)
        assert s.seen[0][0].endswith("/chat/completions") and s.seen[0][1]["max_tokens"] == 1

def test_a_server_that_rejects_the_key_is_told(served):
    s, spec = served
    s.plan[:] = [401]
    with load_engine(spec) as e, pytest.raises(InputError, match="rejects the key"): e.takes_messages

def test_tokens_of_a_server_are_estimated(served):
    with load_engine(served[1]) as e:
        assert (e.count_tokens("one two three"), e.count_tokens("猫" * 400),
            e.count_tokens([dict(role="user", content="word " * 999)]), e.count_tokens([1, 2, 3])) == (4, 300, 1332, 3)

def test_an_interrupted_run_does_not_wait_for_answers_on_their_way():
    with socket.socket() as mute: # takes connections and says nothing
        mute.bind(("127.0.0.1", 0)); mute.listen(64)
        # a background job of a shell begins with SIGINT ignored
        code = ("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                "from selfalign.generation import load_engine, Sampling\ne = "
                f"load_engine('openai:http://127.0.0.1:{mute.getsockname()[1]}/v1#m', server='openai', timeout=60)\n"
                "print('asking', flush=True)\ne.generate(['a']*40, Sampling())")
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert p.stdout.readline().strip() == "asking"
            time.sleep(1); p.send_signal(signal.SIGINT)
            assert p.wait(timeout=10) != 0
        finally: p.kill()

def test_answers_that_came_before_a_failure_are_kept(served):
    s, spec = served
    s.plan[:] = [200, 200, 401]
    with load_engine(spec, concurrency=1) as e:
        got = []
        with pytest.raises(InputError, match="rejects the key"):
            for i, c in e.generate_iter(list("abcdef"), Sampling()): got.append(i); time.sleep(.1)
        assert got[:2] == [0, 1] and 2 not in got
        assert not e.generate([], Sampling())

def test_openai_unreachable():
    with pytest.raises(InputError, match="no server there"):
        load_engine(f"openai:http://user:pw@127.0.0.1:{free_port()}/v1#m")
    with pytest.raises(InputError, match="BASE_URL#MODEL"): load_engine("openai:localhost")

# --- transformers serve ------------------------------------------------------------------------------------------

def start_serve(port):
    "transformers serve with the embedded model, once it answers."
    import httpx
    env = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    exe = os.path.join(os.path.dirname(sys.executable), "transformers")
    p = subprocess.Popen([exe, "serve", resolve_model("embedded").path, "--device", "cpu", "--dtype", "float32",
        "--port", str(port), "--host", "127.0.0.1"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and p.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200: return p
        except httpx.HTTPError: time.sleep(.5)
    p.kill(); p.wait()
    pytest.fail("transformers serve did not start")

@pytest.mark.server
def test_transformers_serve_killed_and_restarted():
    "Greedy text as ours; a server that is killed in the middle and started again loses and doubles no row."
    for name in ("fastapi", "uvicorn"):
        if not importlib.util.find_spec(name):
            pytest.skip(f"{name} is not installed: pip install 'transformers[serving]'")
    port, path = free_port(), resolve_model("embedded").path
    p = start_serve(port)
    try:
        with load_engine(f"openai:http://127.0.0.1:{port}/v1#{path}", concurrency=2, patience=180) as e:
            assert e.info["server"] == "transformers" and e.takes_messages
            s = Sampling(max_new_tokens=6, temperature=0, ban_eos=True)
            prompts = [f"{i} and {i} make" for i in range(12)]
            got = []
            for i, c in e.generate_iter(prompts, s):
                got.append((i, c))
                if len(got) == 4:
                    p.send_signal(signal.SIGKILL)
                    p.wait()
                    again = threading.Thread(target=lambda: globals().__setitem__("_second", start_serve(port)))
                    again.start()
            again.join(); p = globals().pop("_second")
            assert sorted(i for i, _ in got) == list(range(12)) and not any(c.error for _, c in got)
            with load_engine("torch:embedded", dtype="float32") as ours:
                want = {i: c.text for i, c in enumerate(ours.generate(prompts, s))}
            # both in float32: in bfloat16 nearly tied tokens part, on some processors every second row
            assert sum(want[i] == c.text for i, c in got) >= 11
            # it samples
            assert len({c.text
                for c in e.generate(["Once upon a time"] * 3, Sampling(max_new_tokens=12), seeds=[1, 2, 3])}) > 1
            stopped = e.generate(["Count: one, two,"], Sampling(max_new_tokens=20, temperature=0, stop=("four",)))[0]
            assert stopped.stop == "four" and "four" not in stopped.text
    finally: p.kill(); p.wait()

# --- Ray ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def ray_engine():
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    import ray
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(env_vars=dict(PYTHONPATH=os.getcwd(), OMP_NUM_THREADS="1")))
    with load_engine("ray:torch:embedded", workers=2, batch=3, dtype="float32") as e: yield e
    ray.shutdown()

@pytest.mark.ray
def test_ray_matches_one_engine_and_survives_a_killed_worker(ray_engine):
    prompts = [f"The number {i} is" for i in range(12)] + [""]
    s = Sampling(max_new_tokens=6, temperature=1.)
    with load_engine("torch:embedded", dtype="float32") as one:
        want = [o.token_ids for o in one.generate(prompts, s)]
        scores = one.score(prompts[:3], [" one", " two", " three"])
    got = {}
    for i, c in ray_engine.generate_iter(prompts, s):
        if not got:
            os.kill(worker_pids()[0], signal.SIGKILL)
        assert i not in got
        got[i] = c
    assert sorted(got) == list(range(13)) and got[12].error == "row 12: the prompt is empty"
    assert [got[i].token_ids for i in range(12)] == want[:12] and ray_engine.max_context == 8192
    assert [x.logprob for x in ray_engine.score(prompts[:3], [" one", " two", " three"])] == pytest.approx([x.logprob
        for x in scores], abs=1e-3)

def worker_pids(): # only below this process; Ray renames a worker's process after what it runs
    import psutil
    def lives(p): # what ends in between has no command line
        try: return p.status() != psutil.STATUS_ZOMBIE and "_Replica" in " ".join(p.cmdline())
        except psutil.Error: return False
    return [p.pid for p in psutil.Process().children(recursive=True) if lives(p)]

@pytest.fixture
def counted_ray(tmp_path, monkeypatch):
    "Ray with an engine that notes its starts in a file, ends its process at the row `poison`, and scores."
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    import ray
    import selfalign.generation as g
    starts = tmp_path/"starts"
    class _Replica(its_Replica): # defined in a function, so it travels by value
        def load(self):
            with open(starts, "a") as f: f.write(f"{os.getpid()}\n")
            def answer(prompt, i, seed):
                if prompt == "poison": os._exit(1)
                if prompt == "slow": time.sleep(.5)
                return g.Completion(f"{prompt}!", 1, "stop", 1) if prompt else None
            return g.ScriptedEngine(answer, scores=lambda p, c: -len(c))
    monkeypatch.setattr("selfalign.engines.cluster._Replica", _Replica)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(env_vars=dict(PYTHONPATH=os.getcwd(), OMP_NUM_THREADS="1")))
    yield lambda: starts.read_text().split() if starts.exists() else []
    ray.shutdown()

class ActorDied(Exception): pass

class Reference: # of a task that has run
    def __init__(self, out): self.out = out

class Actor:
    "An actor in this process: Ray's restart after a death, and one more try of the task."
    def __init__(self, cls, args): self.made = lambda: cls(*args); self.its = self.made()
    def __getattr__(self, name):
        from types import SimpleNamespace as N
        def remote(*args):
            for _ in range(2):
                try: return Reference(getattr(self.its, name)(*args))
                except ActorDied as e: self.its, died = self.made(), e
            return Reference(died)
        return N(remote=remote)

def test_one_pool_serves_every_round_and_a_poison_row_stands_alone(monkeypatch):
    "The engine's own part, with Ray's calls answered in this process; the tests marked ray ask Ray itself."
    import types
    import selfalign.generation as g
    starts, killed, N = [], [], types.SimpleNamespace
    class Replica(its_Replica):
        def load(self):
            starts.append(1)
            def answer(p, i, s):
                if p == "poison": raise ActorDied("gone")
                return g.Completion(f"{p}!", 1, "stop", 1) if p else None
            return g.ScriptedEngine(answer, scores=lambda p, c: -len(c))
    def get(ref):
        if isinstance(ref.out, Exception): raise ref.out
        return ref.out
    ray = types.ModuleType("ray")
    vars(ray).update(
        exceptions=N(RayTaskError=type("RayTaskError", (Exception,), {}), RayActorError=ActorDied), get=get,
        is_initialized=lambda: True,
        cluster_resources=lambda: dict(CPU=2.), nodes=lambda: [dict(Alive=True, Resources=dict(CPU=2.))],
        cancel=lambda ref: None,
        remote=lambda cls: N(options=lambda **kw: N(remote=lambda *args: Actor(cls, args))), kill=killed.append,
        wait=lambda refs, num_returns=1, timeout=None: (refs[-1:], refs[:-1])) # the last that was sent ends first
    monkeypatch.setitem(sys.modules, "ray", ray); monkeypatch.setattr("selfalign.engines.cluster._Replica", Replica)
    with load_engine("ray:torch:embedded", batch=4) as e:
        for n in (16, 20, 12):
            outs = e.generate([f"{n} {i}" for i in range(n)] + [""])
            assert [o.text for o in outs[:-1]] == [f"{n} {i}!" for i in range(n)]
            assert outs[-1].error.startswith(f"row {n}: ")
        assert [s.logprob for s in e.score(["a"]*9, ["b"*i for i in range(1, 10)])] == [-float(i) for i in range(1, 10)]
        assert len(starts) == 2, "one start per worker"
        outs = e.generate(["a", "b", "poison", *"defghijkl"])
        assert [o.error for o in outs if o.error] == ["row 2: the worker ended twice on this row"]
        assert outs[11].text == "l!"
        e.deaths = 2
        with pytest.raises(InputError, match="end again and again"): e.generate(["poison"] * 8)
    assert len(killed) == 2

@pytest.mark.ray
def test_ray_keeps_its_engines_over_rounds_and_a_poison_row_ends_in_an_error(counted_ray):
    with load_engine("ray:torch:embedded", batch=4) as e:
        assert e.workers == 2 and not counted_ray()
        for n in (16, 20, 12): # rounds, as stage 1 asks them
            outs = e.generate([f"{n} {i}" for i in range(n)] + [""])
            assert [o.text for o in outs[:-1]] == [f"{n} {i}!" for i in range(n)]
            assert outs[-1].error.startswith(f"row {n}: ")
        assert [s.logprob for s in e.score(["a"]*9, ["b"*i for i in range(1, 10)])] == [-float(i) for i in range(1, 10)]
        first = next(iter(e.generate_iter(["slow"]*12, Sampling()))) # the caller leaves; the next call is served
        assert first[1].text == "slow!" and len(e.generate(["x"]*4)) == 4
        assert len(counted_ray()) == 2 and len(worker_pids()) == 2, "one start per worker"
        outs = e.generate(["a", "b", "poison", *"defghijkl"])
        assert [o.error for o in outs if o.error] == ["row 2: the worker ended twice on this row"]
        assert outs[11].text == "l!"
        # two tries of its batch, two alone; the last one loads only when it is asked
        assert 4 <= len(counted_ray()) <= 2 + 4
        e.deaths = 2
        with pytest.raises(InputError, match="end again and again"): e.generate(["poison"] * 8)
    end = time.monotonic() + 20
    while worker_pids() and time.monotonic() < end: time.sleep(.2)
    assert not worker_pids(), "closing ends the processes"

def test_ray_places_are_counted_by_cards():
    "Tensor parallelism takes all its cards in one machine; what has no place is told before a model is loaded."
    from types import SimpleNamespace as N
    from selfalign.engines.cluster import _workers
    def cluster(*nodes):
        return N(cluster_resources=lambda: {k: sum(n[k] for n in nodes) for k in ("GPU", "CPU")},
            nodes=lambda: [dict(Alive=True, Resources=n) for n in nodes])
    two = cluster(dict(GPU=8., CPU=64.), dict(GPU=3., CPU=64.))
    assert (_workers(two, None, 1, 1), _workers(two, None, 4, 1), _workers(two, None, 2, 1),
        _workers(two, 1, 8, 1)) == (11, 2, 5, 1)
    assert _workers(cluster(dict(GPU=0, CPU=6.)), None, 0, 2) == 3
    for bad in ((two, 3, 4, 1), (cluster(dict(GPU=4., CPU=9.), dict(GPU=4., CPU=9.)), None, 8, 1)):
        with pytest.raises(InputError, match="do not fit into the cluster"): _workers(*bad)

# --- vLLM --------------------------------------------------------------------------------------------------------

@pytest.fixture
def fake_vllm(monkeypatch):
    """vLLM's interface as far as `VLLMEngine` uses it, with failures on demand; its words go to file descriptors 1 and
    2, as those of a child."""
    import types
    made, plan = [], {}
    class LLM:
        def __init__(self, path, **kw):
            made.append(kw)
            if "start" in plan:
                os.write(2, plan["start"].encode())
                raise RuntimeError(
                    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
            self.log, self.queue, self.asked = os.dup(2), [], []
            config = types.SimpleNamespace(max_model_len=4096 if kw["max_model_len"] == -1 else kw["max_model_len"],
                hf_config=None, dtype="torch.float32")
            self.llm_engine = types.SimpleNamespace(model_config=config, add_request=self.add, step=self.step,
                abort_request=lambda keys: None)
        def add(self, key, prompt, params):
            if "add" in plan:
                os.write(self.log, plan["add"].encode())
                raise type("EngineDeadError", (Exception,),
                    {})("EngineCore encountered an issue. See stack trace (above) for the root cause.")
            self.queue.append((key, params))
        def step(self):
            if "step" in plan:
                os.write(self.log, plan["step"].encode())
                raise type("EngineDeadError", (Exception,),
                    {})("EngineCore encountered an issue. See stack trace (above) for the root cause.")
            key, params = self.queue.pop(0)
            assert params["output_kind"] == "final"
            return [types.SimpleNamespace(finished=True, request_id=key,
                outputs=[types.SimpleNamespace(finish_reason="stop", text="ok", token_ids=[1], stop_reason=None)])]
        def generate(self, prompts, params, use_tqdm):
            self.asked.append(len(prompts))
            return [types.SimpleNamespace(prompt_logprobs=[{t: types.SimpleNamespace(logprob=-1., rank=1)}
                for t in p["prompt_token_ids"]]) for p in prompts]
    v, sp = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    v.LLM, v.SamplingParams, sp.RequestOutputKind = LLM, lambda **kw: kw, types.SimpleNamespace(FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", v); monkeypatch.setitem(sys.modules, "vllm.sampling_params", sp)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    yield made, plan
    os.environ.pop("VLLM_USE_V2_MODEL_RUNNER", None)

def test_vllm_is_asked_for_no_more_than_is_needed(fake_vllm):
    "Context fitted by vLLM, final outputs only, processors and the older runner only for rules, scores in parts."
    made, _ = fake_vllm
    with load_engine("vllm:embedded") as e:
        assert made[-1]["max_model_len"] == -1 and e.max_context == 4096 and made[-1]["logits_processors"]
        assert int(os.environ["VLLM_USE_V2_MODEL_RUNNER"]) == 0
        assert [c.text for c in e.generate(["a", "b"], Sampling(ban_eos=True))] == ["ok", "ok"]
        path = e.log.path
    assert not os.path.exists(path)
    with load_engine("vllm:embedded", rules=False, max_context=512) as e:
        assert made[-1]["max_model_len"] == 512 and "logits_processors" not in made[-1]
        assert "VLLM_USE_V2_MODEL_RUNNER" not in os.environ
        assert [s.logprob for s in e.score(["a"] * 300, [" b"] * 300)] == [-1.] * 300 and e.llm.asked == [128, 128, 44]
        assert e.generate(["a"])[0].text == "ok"
        with pytest.raises(InputError, match="rules=False"): e.generate(["a"], Sampling(ban_eos=True))

@pytest.mark.parametrize("words, told", [
    ("(EngineCore pid=7) ERROR ValueError: Free memory on device cuda:0 (9.1/23.5 GiB) on startup is less than desired "
        "GPU memory utilization (0.9, 21.2 GiB).", "memory_share=0.8 max_context=8192"),
    ("ValueError: No available memory for the cache blocks. "
        "Try increasing `gpu_memory_utilization` when initializing the engine.", "no room is left for the cache"),
    ("ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, "
        "which is larger than", "max_context=8192"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "out of GPU memory; give --engine-options memory_share=0.8"),
    ("/tmp/x/main.c:5:10: fatal error: Python.h: No such file or directory", "apt install python3-dev"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        "apt install build-essential"),
    ("RuntimeError: Cannot re-initialize CUDA in forked subprocess.", "VLLM_WORKER_MULTIPROC_METHOD=spawn"),
    ("Value error, User-specified max_model_len (99999) is greater than the derived max_model_len (8192)",
        "more than the model was made for"),
    ("Traceback\nKeyError: 'lm_head.weight'", "KeyError: 'lm_head.weight'")])
def test_vllm_failures_are_one_line_with_a_remedy(fake_vllm, words, told, capfd):
    "What a child wrote before it died, at the start and in the middle; none of it reaches the terminal."
    _, plan = fake_vllm
    plan["start"] = words
    with pytest.raises(InputError) as e: load_engine("vllm:embedded")
    assert told in str(e.value) and "\n" not in str(e.value) and str(e.value).startswith("vllm:embedded: ")
    del plan["start"]
    with load_engine("vllm:embedded") as engine:
        plan["step"] = words
        with pytest.raises(InputError) as e: engine.generate(["a"], Sampling())
        assert told in str(e.value) and "\n" not in str(e.value)
    out = capfd.readouterr()
    assert words not in out.out + out.err
    plan["step"] = ""
    with load_engine("vllm:embedded") as engine, pytest.raises(InputError,
            match="the engine's process ended without a word"):
        engine.generate(["a"], Sampling())
    plan.update(add=words); del plan["step"] # it died between two calls: already the first request meets a dead engine
    with load_engine("vllm:embedded") as engine:
        with pytest.raises(InputError) as e: engine.generate(["a"], Sampling())
        assert told in str(e.value) and "\n" not in str(e.value)

def test_cuda_is_not_started_by_asking_for_it():
    "vLLM forks: whether a GPU is there is asked of the driver."
    code = "import os, selfalign.models as m; m.best_device(); print(os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'])"
    env = {k: v for k, v in os.environ.items() if k != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout.strip() == "1"

@pytest.mark.vllm
def test_vllm_speaks_the_same_interface():
    "In a venv with vLLM; greedy text agrees with transformers' up to near ties, and penalties, bans and scores work."
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    prompts = ["The capital of France is", "Two plus two equals", "", "Hi<|im_end|>there"]
    with load_engine("torch:embedded", dtype="float32") as t:
        want = t.generate(prompts, Sampling(max_new_tokens=8, temperature=0, ban_eos=True))
        scores = t.score(prompts[:2], [" Paris.", " four"])
        free = t.prompts.decode(want[0].token_ids[:1])
    with load_engine("vllm:embedded", dtype="float32", max_context=512, eager=True, memory_share=0.3) as e:
        got = e.generate(prompts, Sampling(max_new_tokens=8, temperature=0, ban_eos=True))
        assert [g.text for g in got] == [w.text for w in want] and got[2].error == "row 2: the prompt is empty"
        assert [g.n_prompt for g in got] == [w.n_prompt for w in want]
        assert e.generate(prompts[:1],
            Sampling(max_new_tokens=4, temperature=0, banned_first=(free,)))[0].token_ids[0] != want[0].token_ids[0]
        out = e.generate(["a a a a"],
            Sampling(max_new_tokens=40, temperature=0, ban_eos=True, ngram_penalty={2: 1e4}))[0].token_ids
        assert len(set(zip(out, out[1:]))) == len(out) - 1
        assert e.generate(["a a a a"],
            Sampling(max_new_tokens=4, temperature=0, ngram_penalty={2: 1e4}, word_start_only=True))[0].n_tokens
        assert e.generate(["Count: one, two,"],
            Sampling(max_new_tokens=20, temperature=0, stop=("four",)))[0].stop == "four"
        a, b = (e.generate(prompts[:2], Sampling(max_new_tokens=8), seeds=[5, 6]) for _ in range(2)); assert a == b
        assert [s.logprob
            for s in e.score(prompts[:2], [" Paris.", " four"])] == pytest.approx([s.logprob for s in scores], abs=2e-2)

@pytest.mark.vllm
def test_vllm_without_rules_fits_its_context_and_tells_failures_in_one_line(capfd):
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    with load_engine("vllm:embedded", rules=False, dtype="float32", eager=True, memory_share=0.1) as e:
        assert 512 <= e.max_context <= 8192
        a, b = (e.generate(["The capital of France is"], Sampling(max_new_tokens=4, temperature=0)) for _ in range(2))
        assert a == b and e.score(["The capital of France is"] * 2, [" Paris.", " tea."])[0].logprob > -9
        log = e.log.path
    assert not os.path.exists(log)
    with pytest.raises(InputError, match="more than the model was made for.*vLLM's own words: /") as e:
        load_engine("vllm:embedded", max_context=99999)
    assert "\n" not in str(e.value)
    out = capfd.readouterr()
    assert "Traceback" not in out.out + out.err and "EngineCore" not in out.out
