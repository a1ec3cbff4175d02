"Long work is seen: a bar over each wait, on a real terminal too, and nothing where a user wants none."
import fcntl, io, json, os, pty, re, shutil, struct, subprocess, sys, termios, threading

import pytest, torch
from selfalign import bars
from selfalign.annotations import data_path
from selfalign.bars import doing, shown_on, waiting
from selfalign.checks import InputError
from selfalign.engines.local import TorchEngine
from selfalign.evals.harness import evaluate_models
from selfalign.evals.judging import judge_pairwise
from selfalign.evaluation import score_arms
from selfalign.generation import Sampling, ScriptedEngine, load_engine
from selfalign.principle_pairs import load_pairs, score_principles
from selfalign.runs import Run

SLOW = """import sys, time
from selfalign.bars import generating, progress, tell_tokens, waiting
for _ in progress(range(3), "rows"): time.sleep(1)
with waiting("merging"): time.sleep(3.5)
with generating("answers", 1) as ended:
    for _ in range(30):
        tell_tokens(8)
        time.sleep(.1)
    ended(240)
for _ in progress(range(9), "quick"): pass
"""

class Recorder(bars.tqdm):
    "A tqdm that keeps what came of each bar."
    seen = []
    def __init__(self, *args, **kw):
        super().__init__(*args, **dict(kw, delay=0, file=io.StringIO()))
    def close(self):
        if not self.disable and not getattr(self, "told", False): self.seen.append((self.desc, self.n, self.total))
        self.told = True
        super().close()

@pytest.fixture
def recorded(monkeypatch):
    "Bars that would appear, as (name, done, of how many)."
    monkeypatch.delenv("SELFALIGN_NO_PROGRESS")
    monkeypatch.setattr(bars, "tqdm", Recorder)
    monkeypatch.setattr(Recorder, "seen", [])
    return Recorder.seen

@pytest.fixture(scope="module")
def engine():
    with load_engine("torch:embedded", dtype="float32") as e: yield e

def on_a_terminal(code, **env):
    "What a process writes on the terminal that its stderr is."
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 110, 0, 0)) # lines, columns
    had = {k: v for k, v in os.environ.items() if k != "SELFALIGN_NO_PROGRESS"}
    p = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=had | env)
    os.close(theirs)
    out = []
    def read():
        try:
            while block := os.read(ours, 4096): out.append(block)
        except OSError: pass # the terminal's other end is closed
    t = threading.Thread(target=read)
    t.start()
    assert p.wait() == 0
    t.join(5)
    os.close(ours)
    return b"".join(out).decode()

def test_on_a_terminal_slow_steps_are_seen_and_quick_ones_are_not():
    said = on_a_terminal(SLOW)
    assert re.search(r"rows: +67%.*2/3 .*s/row", said), said
    assert re.search(r"merging: 00:0[23]", said) and "quick" not in said
    tokens = [int(n) for n in re.findall(r"0/1 \[.*? (\d+) tokens", said)]
    assert len(set(tokens)) >= 2 and tokens == sorted(tokens), said # they move before the first row ends
    assert "1/1" in said and "240 tokens" in said

def test_silence_is_kept():
    assert on_a_terminal(SLOW, SELFALIGN_NO_PROGRESS="1") == ""

def test_without_a_terminal_a_bar_that_stands_still_writes_little():
    "A log of an hour is not filled by a heartbeat each second."
    out = io.StringIO()
    b = bars.tqdm(total=3, file=out, disable=False, mininterval=1)
    over, waits = threading.Event(), []
    class Clock(threading.Event):
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) > 3
    bars._beat(b, Clock(), None, None)
    b.close()
    assert waits == [10]*4

def test_scores_of_every_kind_have_a_bar_that_counts_to_its_end(recorded, engine):
    evaluate_models(dict(m=engine), ["facts", "passages"], n=3, say=None)
    with doing("principles"): score_principles(engine, load_pairs()[:3], lambda p: p["instruction"])
    held = [dict(id="1", instruction="Why?", answer="Because it is so."), dict(id="2", instruction="How?", answer="So.")]
    score_arms("base", engine, held, lambda r: "Rules.\n" + r["instruction"], lambda r: r["instruction"])
    named = {d: (n, total) for d, n, total in recorded}
    wanted = ("m, facts, lm-eval: scoring", "m, facts, paper: scoring", "m, passages, text: scoring",
        "principles: scoring", "answers of base, with principles: scoring", "answers of base, without principles: scoring")
    assert set(wanted) <= set(named), sorted(named)
    assert all(n == total > 1 for n, total in named.values()), named

def test_judging_and_open_answers_have_a_bar(recorded):
    judge = ScriptedEngine(lambda p, i, s: "Verdict: A")
    judge_pairwise(judge, ["Why?", "How?"], ["a", "b"], ["c", "d"], say=None)
    evaluate_models(dict(m=ScriptedEngine(lambda p, i, s: "I cannot help.")), ["refusals"], n=4, say=None)
    assert [x[1:] for x in recorded] == [(4, 4), (4, 4)]
    assert recorded[0][0].startswith("verdicts of") and recorded[1][0] == "m, refusals, answer: writing"

def test_lm_eval_is_seen_though_its_chatter_is_not(capsys):
    from selfalign.evals.lm_eval_model import _quiet
    out = io.StringIO()
    with shown_on(out), _quiet():
        print("chatter", file=sys.stderr)
        assert bars._WHERE.get() is out
    with _quiet(): assert bars._WHERE.get() is not sys.stderr # the stream from before it was turned away
    assert "chatter" not in capsys.readouterr().err

def told(engine, plain=False, **kw):
    "(tokens told step by step, tokens of all rows, steps at which they were told)"
    steps = []
    engine.why_plain, before = ("a test" if plain else engine.why_plain), engine.why_plain
    try:
        with bars._during(bars._MADE, steps.append):
            outs = dict(engine.generate_iter(["One", "Two rivers are", "A"], Sampling(max_new_tokens=6, **kw)))
    finally: engine.why_plain = before
    return sum(steps), sum(c.n_tokens for c in outs.values()), len(steps)

def test_tokens_are_told_as_they_are_made(engine):
    for plain in (False, True):
        steps, made, times = told(engine, plain)
        assert steps == made > 6 and times >= 6, (plain, steps, made, times)

def test_rows_that_begin_anew_take_their_tokens_back(engine, monkeypatch):
    step, calls = TorchEngine._step, []
    def fails_once(self, *args):
        calls.append(1)
        if len(calls) == 3: raise torch.OutOfMemoryError("made up")
        return step(self, *args)
    monkeypatch.setattr(TorchEngine, "_step", fails_once)
    steps, made, _ = told(engine)
    assert steps == made and len(calls) > 3

def test_a_run_shows_tokens_while_no_row_has_ended(tmp_path, recorded, engine, monkeypatch):
    monkeypatch.setattr(bars, "_beat", lambda *a: None)
    said, plain = [], bars._Made.said
    monkeypatch.setattr(bars._Made, "step", lambda self, n: (setattr(self, "steps", self.steps + n), said.append(plain(self))))
    with Run(tmp_path / "r") as run:
        run.complete("s", [dict(id="1", prompt="One"), dict(id="2", prompt="Two")], engine, Sampling(max_new_tokens=5))
        run.complete("s", [dict(id="1", prompt="One")], engine, Sampling(max_new_tokens=5)) # all there: no bar
    assert [s.split(",")[0] for s in said[:3]] == ["2 tokens", "4 tokens", "6 tokens"]
    assert recorded == [("s", 2, 2), ("reading s.jsonl", 2, None)]

def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1))

def test_saving_merging_and_hashing_have_a_bar(tmp_path, recorded, recwarn):
    from peft import LoraConfig, get_peft_model
    from selfalign.model_files import save_weights, weights_sha256
    from selfalign.models import old_names, with_adapter
    model = tiny_llama()
    size = sum(p.numel()*4 for p in model.parameters())
    save_weights(model, tmp_path / "final")
    with old_names(): get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with_adapter(tiny_llama(), tmp_path / "adapter")
    weights_sha256(tmp_path / "final")
    there = (tmp_path / "final" / "model.safetensors").stat().st_size
    assert recorded == [("saving final", size, size), ("merging the adapter", 2, 2), ("hashing weights", there, there)]
    assert not [w for w in recwarn if "checkpointing" in str(w.message)], "a library's own warning is on the screen"

def test_loading_has_a_bar_of_its_own_and_no_other(recorded, capfd):
    from selfalign.models import load_model
    load_model("embedded", dtype=torch.float32, device="cpu")
    (name, n, total), (checked, m, of), *more = recorded
    assert (name, checked) == ("embedded: loading weights", "embedded: looking for NaN") and not more
    assert n == total > 100 and m == of > 100
    assert "%|" not in capfd.readouterr().err

def test_an_error_ends_the_bar_where_it_stood(recorded):
    with pytest.raises(InputError), waiting("saving", lambda: 3, 10): raise InputError("the disk is full")
    assert recorded[0][1] < 10

def test_the_report_has_a_bar(tmp_path, recorded):
    from selfalign.report import write_report
    shutil.copy(data_path("samples/prompts.jsonl"), tmp_path)
    stages = dict(prompts=dict(done=True, fingerprint="", settings={}, files=["prompts.jsonl"], seconds=1.0, kept=3))
    about = dict(config=dict(model="embedded", seed=0), versions={}, commit=None, stages=stages)
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    write_report(tmp_path)
    (name, n, total), = recorded
    assert name == "report" and n == total > 5
