"""Replies and servers as they come: reasoning, cut and empty replies, error bodies, dialects; over scripted servers on
the loopback."""
import email.utils, gzip, json, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest, yaml

from selfalign import evaluation as E
from selfalign.checks import InputError
from selfalign.engines.opening import Remembering
from selfalign.engines.served import retry_after
from selfalign.generation import Completion, Sampling, ScriptedEngine, load_engine, read_reply, split_reasoning
from selfalign.models import weights_sha256
from selfalign.rows import read_jsonl
from selfalign.runs import Run

# --- reasoning, cut and empty replies are no answers --------------------------------------------------------------

NO_ANSWER = [("<think>The user asks", "length"), ("<think>a</think>", "stop"), ("[THINK]Hm", "length"),
    ("\n<reasoning>Sure, here is how", "stop"), ("<|channel|>analysis<|message|>Sure", "length"), ("", "length"),
    ("  \n", "length"), ("thinking\n</think>\n\n", "stop"), ("<think>a</think><think>b", "length")]

@pytest.mark.parametrize("text, finish", NO_ANSWER)
def test_a_reply_without_an_answer_is_nowhere_one(tmp_path, text, finish):
    "Generation, refusals, open questions, truth, pairs: an error with its reason, and no share counts it."
    c = Completion(text, 7, finish, 3)
    why = read_reply(c).error
    assert ("within its 7 tokens" in why) if finish == "length" else "reasoning without an answer" in why
    say = lambda p, i, s: c if i == 0 else "I can't help with that."
    rows = [dict(kind=k, question=f"q{i}?") for i, k in enumerate(("harmful", "benign", "harmful"))]
    r = E.refusal_rates(ScriptedEngine(say), rows)
    assert (r.n, r.scores["answered_harmful"].n, r.refused_benign) == (2, 1, 1)
    assert [s["reason"] for s in r.skipped] == [why]
    a = E.evaluate_one(ScriptedEngine(say), E.load_benchmark("questions")[:3], "answer")
    assert a.n == 2 and [s["reason"] for s in a.skipped] == [why]
    yes = ScriptedEngine(lambda p, i, s: "Verdict: yes")
    assert E.truth_info_judge(yes, ["q", "r"], [c, "So."], say=None).n == 1
    p = E.judge_pairwise(ScriptedEngine(lambda p, i, s: "Verdict: A"), ["q", "r"], [c, "So."], ["x", "y"], say=None)
    assert p.scores["tie"].n == 1 and p.skipped[0]["reason"] == f"a: {why}"
    with Run(tmp_path/"run", say=lambda *a: None) as run:
        outs = run.complete("responses", [dict(id=str(i), prompt=f"p{i}") for i in range(3)],
            ScriptedEngine(say), Sampling())
        assert [o["error"] for o in outs] == [why, None, None]
        assert len(read_jsonl(run/"completions/responses.jsonl")) == 2

@pytest.mark.parametrize("text, answer", [("<think>No, I cannot.</think>\n\nBoil it.", "Boil it."),
    ("hm\n</think>Boil it.", "Boil it."), ("Boil it.", "Boil it."), (" Use `<think>` here.", " Use `<think>` here."),
    ("Close it with '</think>' as usual.", "Close it with '</think>' as usual."),
    ("[THINK]a[/THINK]b", "b"), ("<think></think>\n\nb", "b"),
    ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>b", "b")])
def test_an_answer_is_what_stands_behind_the_reasoning(tmp_path, text, answer):
    assert read_reply(Completion(text, 9, "stop", 1)).text == answer
    r = E.refusals_of([dict(kind="benign", question="q?")], [Completion(text, 9, "stop", 1)])
    assert (r.refused_benign, r.rows[0]["answer"]) == (0, answer)
    with Run(tmp_path/"run", say=lambda *a: None) as run:
        assert run.complete("responses", [dict(id="a", prompt="p")], ScriptedEngine([Completion(text, 9, "stop", 1)]),
            Sampling())[0]["text"] == answer

def test_reasoning_marks_without_end_take_linear_time():
    for text in ("<think>"*200_000, "<think></think>"*100_000, " "*1_000_000 + "<think>", "</think>"*200_000):
        split_reasoning(text)
        E.parse_verdict(text)

# --- verdicts -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["<think>Maybe. Verdict: A", "<think> Maybe Verdict: A\nbut then I wonder",
    "<reasoning>Verdict: A", "<thinking>\nVerdict: B\nNo, wait", "Let us see. <think>Verdict: A", "[THINK]Verdict: yes",
    "<think>Verdict: A</think>", None, ""])
def test_a_verdict_inside_reasoning_is_none(text): assert E.parse_verdict(text) is None

@pytest.mark.parametrize("text, want",
    [("<think>Verdict: A</think>\nVerdict: B", "B"), ("Verdict: A\n</think>\nVerdict: tie", "tie"),
    ("I weigh <think>Verdict: A</think> it. Verdict: B", "B"), ("[THINK]B[/THINK]A", "A")])
def test_a_verdict_behind_reasoning_counts(text, want): assert E.parse_verdict(text) == want

def test_a_verdict_cut_at_the_token_limit_is_unreadable_and_said_so():
    "In pairs, truth and refusals; a whole one counts."
    judge = lambda p, i, s: Completion("It is so. Verdict: "
        + ("A" if "[A]" in p or "answer A" in p.lower() else "yes"), 9, "length" if i == 0 else "stop", 3)
    r = E.judge_pairwise(ScriptedEngine(lambda p, i, s: Completion("Verdict: A", 9, "length" if i == 0 else "stop", 3)),
        ["q", "r"], ["a", "b"], ["c", "d"], say=None)
    assert r.unparsable == 1/4 or r.scores["unparsable"].value > 0
    assert [s["reason"] for s in r.skipped] == ["unparsable verdict: cut at its limit of 9 tokens"]
    assert [bool(x["verdict"]) for x in r.rows] == [False, True, True, True]
    yes = lambda p, i, s: Completion("Verdict: yes", 9, "length" if i == 0 else "stop", 3)
    t = E.truth_info_judge(ScriptedEngine(yes), ["q", "r"], ["a", "b"], say=None)
    assert t.unparsable == 1/4 and t.skipped[0]["reason"] == "unparsable verdict: cut at its limit of 9 tokens"
    f = E.refusals_of([dict(kind="benign", question=q) for q in "qr"], ["a", "b"], ScriptedEngine(yes), say=None)
    assert (f.n, f.unparsable) == (1, .5) and "cut at its limit" in f.skipped[0]["reason"]

def test_a_judge_that_only_thinks_ends_in_one_line():
    dead = ScriptedEngine(lambda p, i, s: Completion("", 80, "error", 3, error="row 0: no answer within its 80 tokens"))
    with pytest.raises(InputError, match="gave no verdict at all: row 0: no answer within its 80 tokens"):
        E.truth_info_judge(dead, ["q"], ["a"], say=None)

# --- ten kinds of servers, each in four uses -------------------------------------------------------------------

CASES = yaml.safe_load((Path(__file__).parent/"cases"/"servers.yaml").read_text(encoding="utf-8"))

class Served(BaseHTTPRequestHandler):
    "Answers as `self.server.case` says; `self.server.reply` (body → reply) goes first where it is set."
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass

    def send(self, status, body, headers=(), type="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in dict({"Content-Type": type, "Content-Length": str(len(data))}, **dict(headers)).items():
            self.send_header(k, v)
        self.end_headers(); self.wfile.write(data)

    def do_GET(self):
        case = self.server.case
        found = self.path in case.get("pages", {})
        self.send(200 if found else 404, case["pages"][self.path] if found else {},
            case.get("health_headers", {}) if self.path == "/health" else {})

    def do_POST(self):
        body, case = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server.case
        with self.server.lock:
            self.server.bodies.append(body)
            errors = self.server.errors
            error = errors.pop(0) if errors else None
        if self.server.reply and (r := self.server.reply(body)): return self.send(*r)
        if error: return self.send(error["status"], error["body"])
        for k, r in case.get("refuses", {}).items():
            if body.get(k) is not None: return self.send(r["status"], r["body"])
        chat = "messages" in body
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        text = "Verdict: A" if "verdict" in asked.lower() else " Four.\n\nUser: more"
        own = dict(message=dict(role="assistant", content=text)) if chat else dict(text=text)
        more = case.get("chat" if chat else "text", {})
        own = {**own, **more, **(dict(message={**own["message"], **more.get("message", {})}) if chat else {})}
        self.send(200, dict(id="x", object="chat.completion" if chat else "text_completion", created=0,
            model="m", choices=[dict(index=0, finish_reason=case.get("finish", "stop"), **own)],
            **dict(dict(usage=dict(prompt_tokens=4, completion_tokens=7, total_tokens=11)), **case.get("reply", {}))))

@pytest.fixture
def serve():
    servers = []
    def start(case=None, reply=None):
        s = ThreadingHTTPServer(("127.0.0.1", 0), Served)
        s.case, s.reply = case or dict(pages={}), reply
        s.errors, s.bodies, s.lock = list((case or {}).get("errors", ())), [], threading.Lock()
        s.daemon_threads = True
        s.handle_error = lambda *a: None # a client that has gone
        threading.Thread(target=s.serve_forever, daemon=True).start()
        servers.append(s); s.spec = f"openai:http://127.0.0.1:{s.server_address[1]}/v1#m"
        return s
    yield start
    for s in servers: s.shutdown(); s.server_close()

STOP = ("\n\nUser:",)

@pytest.mark.parametrize("use", ["generation", "chat", "judging", "scoring"])
@pytest.mark.parametrize("kind", CASES)
def test_every_server_in_every_use(serve, tmp_path, kind, use):
    case, s = CASES[kind], serve(CASES[kind])
    with load_engine(s.spec, concurrency=2, patience=20) as e:
        assert e.server == case["expect"] and e.max_context == case.get("context", 2**31)
        if use == "scoring":
            with pytest.raises(InputError, match="no log-probabilities"): e.score(["a"], ["b"])
            said = []
            with pytest.raises(InputError, match="nothing to evaluate"):
                E.evaluate_models({"served": e}, ["facts"], n=2, say=said.append)
            assert "left out" in said[0] and not s.bodies
            return
        if use == "generation":
            with Run(tmp_path/"run", say=lambda *a: None) as run:
                outs = run.complete("responses", [dict(id=str(i), prompt=f"What is {i} + 2?") for i in range(4)], e,
                    Sampling(max_new_tokens=24, temperature=.7, stop=STOP))
            assert [(o["text"], o["error"], o["stop"]) for o in outs] == [(" Four.", None, STOP[0])]*4
        if use == "chat":
            assert E.has_chat(e)
            outs = e.generate([[dict(role="user", content=f"What is {i} + 2?")] for i in range(4)],
                Sampling(max_new_tokens=24, temperature=.7, stop=STOP))
            assert [(o.text, o.error) for o in outs] == [(" Four.", None)]*4
        if use == "judging":
            r = E.judge_pairwise(e, ["q?"]*2, ["x"]*2, ["y"]*2, say=None,
                sampling=Sampling(max_new_tokens=24, temperature=.7, stop=STOP))
            assert (r.tie, r.unparsable, r.n) == (1, 0, 4) and not r.skipped
        body = s.bodies[-1]
        assert {k: body.get(k, "absent") for k in case.get("sent", {})} == case.get("sent", {})
        assert not [k for k in case.get("unsent", ()) if body.get(k) is not None]
        assert e.info["dropped"] == case.get("dropped", [])
        assert ("defaults" in e.info) == (e.server not in ("vllm", "llama.cpp", "transformers"))
        if e.server == "transformers":
            assert json.loads(body["generation_config"]) == dict(max_new_tokens=24, do_sample=True, top_k=0, top_p=1.0,
                temperature=.7)
        wasted = len([b for b in s.bodies if any(b.get(k) is not None for k in case.get("refuses", {}))])
        assert wasted <= 2*len(case.get("refuses", {})) + 2 # learned once, by the requests that were on their way

# --- oddities of the wire -----------------------------------------------------------------------------------------

def good(body, text="hello"):
    return dict(choices=[dict(index=0, finish_reason="stop", **(dict(message=dict(role="assistant", content=text))
        if "messages" in body else dict(text=text)))], usage=dict(prompt_tokens=1, completion_tokens=1))

def answers(serve, first, n=1, **options):
    "What the engine makes of a server whose first `n` replies are `first`."
    left = [n]
    def reply(body):
        if left[0] > 0: left[0] -= 1; return first(body)
        return 200, good(body)
    s = serve(reply=reply)
    with load_engine(s.spec, concurrency=1, **dict(dict(patience=5), **options)) as e:
        return e.generate(["a", "b"], Sampling(max_new_tokens=8)), s

@pytest.mark.parametrize("name, first", dict(
    gzip=lambda b: (200, gzip.compress(json.dumps(good(b)).encode()), {"Content-Encoding": "gzip"}),
    bom=lambda b: (200, b"\xef\xbb\xbf" + json.dumps(good(b)).encode()),
    plain=lambda b: (200, json.dumps(good(b)).encode(), {}, "text/plain"),
    untyped=lambda b: (200, json.dumps(good(b)).encode(), {}, ""),
    charset=lambda b: (200, json.dumps(good(b)).encode(), {}, "application/json; charset=latin-1"),
    unknown_charset=lambda b: (200, json.dumps(good(b)).encode(), {}, "application/json; charset=x-odd"),
    utf16_none=lambda b: (200, json.dumps(good(b), ensure_ascii=False).encode("utf-8"), {}, "application/json"),
    events=lambda b: (200, b'data: {"choices": [{"text": "hel"}]}\n\ndata: {"choices": [{"text": "lo", "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n', {}, "text/event-stream"),
    parts=lambda b: (200, dict(good(b), choices=[dict(finish_reason="stop",
        message=dict(content=[dict(type="text", text="hel"), dict(type="text", text="lo")]))])),
    no_usage=lambda b: (200, {k: v for k, v in good(b).items() if k != "usage"}),
    null_usage=lambda b: (200, dict(good(b), usage=dict(prompt_tokens=None, completion_tokens=None))),
    null_finish=lambda b: (200, dict(good(b), choices=[dict(text="hello", finish_reason=None)]))).items())
def test_replies_are_read_whatever_their_header_says(serve, name, first):
    outs, s = answers(serve, first)
    assert [(o.text, o.error) for o in outs] == [("hello", None)]*2 and len(s.bodies) == 2

@pytest.mark.parametrize("name, first", dict(
    cut_json=lambda b: (200, json.dumps(good(b)).encode()[:-9]),
    empty=lambda b: (200, b""),
    cut_stream=lambda b: (200, b'data: {"choices": [{"text": "hel"}]}\n\n', {}, "text/event-stream"),
    cut_in_an_event=lambda b: (200, b'data: {"choices": [{"text": "hel', {}, "text/event-stream"),
    stream_without_end=lambda b: (200, b'data: {"choices": [{"text": "hel"}]}\n\ndata: [DONE]\n\n', {},
        "text/event-stream"),
    short_body=lambda b: (200, json.dumps(good(b)).encode(), {"Content-Length": "99999", "Connection": "close"}),
    broken_gzip=lambda b: (200, b"not gzip", {"Content-Encoding": "gzip"}),
    busy=lambda b: (429, dict(error="busy"), {"Retry-After": "0.2"}),
    date=lambda b: (503, dict(error="busy"), {"Retry-After": email.utils.formatdate(time.time() + 1, usegmt=True)}),
    busy_in_200=lambda b: (200, dict(error=dict(code=429, message="busy")), {"Retry-After": "0.2"}),
    overloaded=lambda b: (529, dict(error="overloaded")),
    event_error=lambda b: (200, b'data: {"error": {"code": 502, "message": "gone"}}\n\ndata: [DONE]\n\n', {},
        "text/event-stream")).items())
def test_what_passes_is_asked_again(serve, name, first):
    timeout = dict(timeout=2) if name == "short_body" else {}
    outs, s = answers(serve, first, **timeout)
    assert [(o.text, o.error) for o in outs] == [("hello", None)]*2 and len(s.bodies) == 3

@pytest.mark.parametrize("name, first, told", [
    ("error in 200", lambda b: (200, dict(error=dict(code=400, message="bad prompt"))),
        "row 0: the server answers 400: bad prompt"),
    ("error as text", lambda b: (200, dict(error="context overflow")),
        "row 0: the server answers with an error: context overflow"),
    ("error in a choice", lambda b: (200, dict(choices=[dict(finish_reason="error", error=dict(code=403,
        message="flagged"), message=dict(content=""))])), "row 0: the server answers 403: flagged"),
    ("no choice", lambda b: (200, dict(choices=[])),
        "row 0: the server answers with an error: no choice in its answer"),
    ("detail", lambda b: (200, dict(detail="nope")), "row 0: the server answers with an error: nope"),
    ("too many tokens", lambda b: (400, dict(error=dict(message="max_tokens is too large: 8.", param="max_tokens"))),
        "row 0: the server answers 400"),
    ("out of tokens", lambda b: (400, dict(error=dict(message="Could not finish the message because max_tokens or "
        "model output limit was reached."))), "row 0: no answer within its 8 tokens, all of them reasoning"),
    ("hidden reasoning", lambda b: (200, dict(choices=[dict(finish_reason="length", message=dict(content=""))],
        usage=dict(prompt_tokens=1, completion_tokens=8, completion_tokens_details=dict(reasoning_tokens=8)))),
        "row 0: no answer within its 8 tokens, all of them reasoning"),
    ("reasoning beside it",
        lambda b: (200, dict(choices=[dict(finish_reason="length", message=dict(content=None, reasoning_content="Hm"))],
        usage=dict(completion_tokens=8))), "row 0: no answer within its 8 tokens, all of them reasoning"),
    ("reasoning, stopped", lambda b: (200, dict(choices=[dict(finish_reason="stop",
        message=dict(content="", reasoning="Hm"))])), "row 0: reasoning without an answer"),
    ("a refusal field", lambda b: (200, dict(choices=[dict(finish_reason="stop",
        message=dict(content=None, refusal="No."))])), "row 0: the server withholds its answer")])
def test_other_errors_are_their_rows(serve, name, first, told):
    outs, s = answers(serve, first)
    assert outs[0].error.startswith(told) and outs[1].text == "hello" and len(s.bodies) == 2

def test_the_time_that_a_server_asks_for_is_waited():
    assert retry_after({"retry-after": "3"}) == 3 and retry_after({"retry-after-ms": "250"}) == .25
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    assert 2 < retry_after({"retry-after": email.utils.formatdate(time.time() + 5, usegmt=True)}) < 6
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0

def test_retry_after_ends_with_the_patience_and_a_used_up_quota_at_once(serve):
    start = time.monotonic()
    with pytest.raises(InputError, match="no answer after [01] s"):
        answers(serve, lambda b: (429, dict(error="busy"), {"Retry-After": "600"}), n=99, patience=.5)
    with pytest.raises(InputError, match="quota is used up"):
        answers(serve, lambda b: (429, dict(error=dict(code="insufficient_quota", message="You exceeded your quota"))),
            n=99, patience=60)
    assert time.monotonic() - start < 20

@pytest.mark.parametrize("body, takes", [
    (dict(error=dict(message="Could not finish the message because max_tokens or model output limit was reached.")),
        True),
    (dict(error=dict(message="This model has no chat template")), False)])
def test_the_probe_reads_the_servers_words(serve, body, takes):
    with load_engine(serve(reply=lambda b: (400, body)).spec) as e: assert e.takes_messages == takes

def test_a_token_limit_that_is_refused_in_both_forms_is_named(serve):
    "Never left out: without it a reply has no end."
    def reply(b):
        k = next(k for k in ("max_tokens", "max_completion_tokens") if k in b)
        return 400, dict(error=dict(message=f"Unsupported parameter: '{k}'", param=k))
    s = serve(reply=reply)
    with load_engine(s.spec, concurrency=1) as e:
        with pytest.raises(InputError, match="turns down max_completion_tokens"): e.takes_messages
        out = e.generate(["a"], Sampling(max_new_tokens=8))[0]
        assert "max_completion_tokens" in out.error
        assert all("max_tokens" in b or "max_completion_tokens" in b for b in s.bodies)

def test_the_key_stays_out_of_errors_in_replies(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    outs, _ = answers(serve, lambda b: (200, dict(error=dict(code=400, message="key sk-secret is odd"))))
    assert "secret" not in outs[0].error
    with pytest.raises(InputError, match="rejects the key"):
        answers(serve, lambda b: (200, dict(error=dict(code=401, message="no"))))

def test_a_judge_behind_a_reasoning_server_ends_in_one_line_about_tokens(serve):
    s = serve(reply=lambda b: (200, dict(choices=[dict(finish_reason="length",
        message=dict(content=None, reasoning="Hm"))], usage=dict(completion_tokens=9))))
    with load_engine(s.spec) as e, pytest.raises(InputError,
            match="gave no verdict at all: row 0: no answer within its 9 tokens.*verdict_tokens"):
        E.truth_info_judge(e, ["q"], ["a"], chat=True, say=None)

# --- a score belongs to an identity -------------------------------------------------------------------------------

def rates(s, out, say=lambda *a: None): return E.evaluate_models({"served": s.spec}, ["refusals"], out, n=4, say=say)[0]

@pytest.mark.parametrize("change", ["words", "fingerprint", "list"])
def test_another_model_behind_the_same_name_gets_no_old_score(serve, tmp_path, change):
    "Asked each time; the same server is read back and said so."
    now = dict(text="Sure, here is how.", fingerprint="fp_1", root="a")
    s = serve(dict(pages={"/v1/models": dict(data=[dict(id="m", root="a", created=1)])}),
              lambda b: (200, dict(good(b, now["text"]), system_fingerprint=now["fingerprint"])))
    first, said = rates(s, tmp_path), []
    n = len(s.bodies)
    assert rates(s, tmp_path, said.append).scores == first.scores and len(s.bodies) <= n + 3
    assert "read back from" in said[-1]
    s.case["pages"]["/v1/models"] = dict(data=[dict(id="m", root="a" if change != "list" else "b", created=2)])
    if change == "words": now["text"] = "I can't help with that."
    if change == "fingerprint": now["fingerprint"] = "fp_2"
    n = len(s.bodies)
    again = rates(s, tmp_path, said.append)
    assert len(s.bodies) >= n + 4 and "read back" not in said[-1]
    assert (change != "words" or again.answered_harmful != first.answered_harmful)

def test_a_server_that_says_nothing_of_itself_is_asked_anew(serve, tmp_path):
    def reply(b):
        asked = (b["messages"][-1]["content"] if "messages" in b else b["prompt"])
        return (200, good(b, "")) if "about the sea" in asked else (200, good(b, "Sure."))
    s = serve(reply=reply)
    rates(s, tmp_path); n = len(s.bodies); said = []
    rates(s, tmp_path, said.append)
    assert len(s.bodies) >= n + 4 and not any("read back" in x for x in said)

def test_weights_have_an_identity_in_every_format(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin", "adapter_model.bin", "m.gguf"):
        d = tmp_path/name; d.mkdir()
        assert weights_sha256(d) is None
        (d/"training_args.bin").write_bytes(b"x"); assert weights_sha256(d) is None
        (d/name).write_bytes(b"a"); a = weights_sha256(d)
        (d/name).write_bytes(b"bb"); b = weights_sha256(d)
        assert a and b and a != b and weights_sha256(d) == b

# --- and so does a verdict ----------------------------------------------------------------------------------------

def verdicts(s, folder, say=lambda *a: None):
    "Three answers judged by the server; what it was asked for, beside who it is."
    n = len(s.bodies)
    with Run(folder, say=say) as run, load_engine(s.spec) as e:
        judge = Remembering(run, "verdicts", e, 0, s.spec)
        r = E.truth_info_judge(judge, ["q?", "r?", "s?"], ["a", "b", "c"], say=say, chat=True)
    return r.truthful, sum("verdict" in json.dumps(b).lower() for b in s.bodies[n:])

@pytest.mark.parametrize("change", ["words", "fingerprint", "list", None])
def test_verdicts_of_another_judge_behind_the_same_name_are_not_taken_for_its_own(serve, tmp_path, change):
    now = dict(says="yes", fingerprint="fp_1")
    def reply(b): return 200, dict(good(b, f"Verdict: {now['says']}"), system_fingerprint=now["fingerprint"])
    s = serve(dict(pages={"/v1/models": dict(data=[dict(id="m", root="a", created=1)])}), reply)
    assert verdicts(s, tmp_path/"r") == (1, 6)
    if change == "words": now["says"] = "no"
    if change == "fingerprint": now["fingerprint"] = "fp_2"
    s.case["pages"]["/v1/models"] = dict(data=[dict(id="m", root="b" if change == "list" else "a", created=2)])
    assert verdicts(s, tmp_path/"r") == (0 if change == "words" else 1, 6 if change else 0)

def test_a_judge_whose_words_vary_is_gone_on_with_by_name_and_that_is_said(serve, tmp_path):
    count, said = iter(range(10**6)), []
    s = serve(reply=lambda b: (200, good(b, f"{next(count)} Verdict: yes")))
    assert verdicts(s, tmp_path/"r", said.append) == (1, 6) and not any("by the server's address" in x for x in said)
    assert verdicts(s, tmp_path/"r", said.append) == (1, 0)
    assert "verdicts: 6 of 6 are there already, by the server's address and name alone" in said[-1]

def test_answers_of_an_ablation_belong_to_the_server_that_gave_them(serve, tmp_path):
    "Also where no engine string was handed over: the engine knows where it asks."
    now = dict(text="One.")
    s = serve(reply=lambda b: (200, good(b, now["text"])))
    def ask():
        with Run(tmp_path/"r", say=lambda *a: None) as run, load_engine(s.spec) as e:
            return Remembering(run, "ablation", e).generate(["p"], Sampling())[0].text
    assert ask() == ask() == "One."
    now["text"] = "Two."
    assert ask() == "Two."

# --- whatever a server sends --------------------------------------------------------------------------------------

ODD = [dict(choices=[dict(text=7)]), dict(choices=[dict(message="Hm.")]), dict(choices="x"), dict(choices=[dict()]),
       dict(choices=[None]),
       dict(choices=["x", dict(message=dict(content=dict(a=1)))]),
       dict(choices=[dict(text="a", finish_reason=[])], usage="many"),
       dict(choices=[dict(text="a")], usage=dict(completion_tokens="9", prompt_tokens=-1)),
       dict(error=[1, "two\nlines"]),
       dict(error=dict(code="two\nlines", message=5)),
       dict(error=dict(code=[4], message=5)), dict(error=True), dict(detail=[dict(msg="no field")])]

@pytest.mark.parametrize("body", ODD)
def test_no_shape_of_a_reply_ends_a_run_with_a_traceback(serve, body):
    "A row has its text or its error in one line, and the rows beside it are answered."
    s = serve(reply=lambda b: (200, body if "odd" in json.dumps(b) else good(b, "Four.")))
    with load_engine(s.spec, patience=1) as e:
        odd, even = e.generate(["odd", "even"], Sampling())
    assert even.text == "Four." and not even.error
    assert (odd.text == "a" and not odd.error) or (odd.error and "\n" not in odd.error)

@pytest.mark.parametrize("end",
    ['{"choices": 5}', '"words"', '{"choices": [5]}', '{"choices": [{"delta": "x"}]}', '{"error": "late"}'])
def test_no_event_of_a_stream_does_either(serve, end):
    first = 'data: {"choices": [{"delta": {"content": "Four."}, "finish_reason": "stop"}]}\n\n'
    s = serve(reply=lambda b: (200, f"{first}data: {end}\n\ndata: [DONE]\n\n".encode(), (), "text/event-stream"))
    with load_engine(s.spec, patience=1) as e: c, = e.generate(["q"], Sampling())
    assert c.text == "Four." if "late" not in end else "late" in c.error

@pytest.mark.parametrize("kind", ["torch", "openai"])
def test_an_engine_needs_no_other_page_to_be_whole(kind):
    "Imported alone, its class has every method that it calls."
    code = f"""
import importlib, inspect, re
from selfalign.generation import ENGINES
cls = ENGINES[{kind!r}]
mod = importlib.import_module(cls.__module__)
called, set_ = (set(re.findall(p, inspect.getsource(mod))) for p in (r"self\\.(_\\w+)\\(", r"self\\.(_\\w+)\\s*="))
missing = [m for m in called - set_ if not hasattr(cls, m)]
assert called and not missing, missing
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]
