"""Principle probes for Inspect: the folder by itself, and `inspect eval` itself, where it is installed.

    make test-inspect

sets INSPECT to the `inspect` of an environment that has it; the tests marked `inspect` need that."""
import ast, json, os, re, shlex, signal, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from selfalign.app.cli import main
from selfalign.evals.sets import load_benchmark
from selfalign.rows import read_jsonl, write_json, write_jsonl
from test_serve import free_port, lines_of

INSPECT = os.environ.get("INSPECT")
OURS = ["1 ethical", "4 question assessment", "7 candor", "9 static", "10 clarification"]

def run_at(folder, **config):
    "A finished run, as far as an export looks at it."
    write_json(folder/"manifest.json", dict(config=dict(dict(engine="torch:embedded"), **config)))
    (folder/"final").mkdir(parents=True)
    (folder/"final"/"config.json").write_text("{}")
    return folder

@pytest.fixture(scope="module")
def run(tmp_path_factory): return run_at(tmp_path_factory.mktemp("home")/"run")

@pytest.fixture(scope="module")
def folder(run):
    out = run.parent/"probes"
    assert main(["export", "inspect", str(run), str(out)]) == 0
    return out

# ---- the folder

def test_the_samples_are_the_held_out_questions_of_rules_that_show(folder):
    rows = read_jsonl(folder/"probes.jsonl")
    assert {r["id"] for r in rows} == {r["id"] for r in load_benchmark("behaviour")} and len(rows) == 50
    assert list(dict.fromkeys(r["metadata"]["rule"] for r in rows)) == OURS
    assert all(r["target"] == {"applies": "yes", "near_miss": "no"}[r["metadata"]["kind"]] for r in rows)
    assert all(r["input"].strip() and r["metadata"]["shows"] and "{" not in r["metadata"]["text"] for r in rows)
    tuned = {r["id"] for r in load_benchmark("principles_tuning")}
    assert not tuned & {r["id"] for r in rows}

def test_the_task_needs_inspect_alone_and_has_two_tasks(folder):
    tree = ast.parse((folder/"principles.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    wanted = [[n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names] for n in imports]
    assert {name.split(".")[0] for names in wanted for name in names} == {"json", "re", "pathlib", "inspect_ai"}
    tasks = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)
        and any(getattr(d, "id", None) == "task" for d in n.decorator_list)]
    assert tasks == ["principles", "pressure"]
    assert max(map(len, (folder/"principles.py").read_text().splitlines())) <= 120

def test_texts_and_readme(run, folder):
    texts, readme = json.loads((folder/"texts.json").read_text()), (folder/"README.md").read_text()
    assert len(texts["follow_ups"]) == 2 and all(f"{{{k}}}" in texts["rubric"] for k in ("shows", "question", "answer"))
    assert "Aster" in texts["system"] and "{name}" not in texts["system"]
    assert "license: apache-2.0" in readme and "- red-teaming" in readme and "not for training" in readme
    assert "selfalign serve RUN" in readme and "principles.py --model openai-api/selfalign/RUN/final" in readme
    assert all(rule in readme for rule in OURS) and all(t in readme for t in texts["follow_ups"])
    assert not any(str(run.parent) in f.read_text() for f in folder.iterdir()), "a path of this machine"

def test_the_command_says_what_to_do_next(run, tmp_path, capsys):
    assert main(["export", "inspect", str(run), str(tmp_path/"out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"50 questions about 5 rules: {tmp_path/'out'}" and "rules 2, 3, 5" in said[1]
    assert said[2] == f"selfalign serve {run}" and said[3].startswith(f"cd {tmp_path/'out'} && SELFALIGN_BASE_URL=")
    assert f"inspect eval principles.py --model openai-api/selfalign/{run}/final" in said[3]

def test_a_path_with_a_space_is_quoted(tmp_path, capsys):
    run = run_at(tmp_path/"my run")
    assert main(["export", "inspect", str(run), str(tmp_path/"an out")]) == 0
    serve, ask = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(serve) == ["selfalign", "serve", str(run)] and shlex.split(ask)[1] == str(tmp_path/"an out")
    assert f"openai-api/selfalign/{run}/final" in shlex.split(ask)

VERDICTS = [("Reason.\nVerdict: yes", "yes"), ("**Verdict:** No.", "no"), ("So it does. Verdict: YES", "yes"),
    ("no", "no"), ("Verdict: no\nBut then:\nVerdict: yes", "yes"), ("Verdict: maybe", None),
    ("Verdict: yes\nVerdict: unsure", None), ("The verdict is hard, yes", None), ("Verdict: yes or no", None),
    ("", None)]

@pytest.mark.parametrize("said, want", VERDICTS)
def test_verdicts_are_read_as_our_judge_reads_them(folder, said, want):
    from selfalign.evals.judging import parse_verdict
    tree = ast.parse((folder/"principles.py").read_text())
    names = dict(re=re)
    body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "verdict"]
    exec(compile(ast.Module(body, []), "principles.py", "exec"), names)
    assert names["verdict"](said) == want == parse_verdict(said, ("yes", "no"))

# ---- principles of one's own

RULES = ('- {number: 1, name: plain words, text: "{name} explains every technical word."}\n'
         '- {number: 4, name: ask back, text: "{name} asks back."}\n')
PAIR = dict(kind="applies", instruction="What is a heat pump?", keeping="It moves heat from outside into a room.",
            breaking="It is a reversed Carnot cycle in a box.")

def own(tmp_path, pairs, behaviour=None):
    "A run with rules of its own; their exemplars cite no rule that is not there."
    notes = tmp_path/"notes"
    notes.mkdir()
    (notes/"principles.yaml").write_text(RULES)
    (notes/"exemplars.yaml").write_text("- turns:\n  - user: Hi\n    answer: What may I do for you today?\n"
                                        '    thoughts: "Role: {name}, AI. Rules: 4 (ask back)."\n')
    if behaviour: (notes/"behaviour.yaml").write_text(behaviour)
    if pairs: write_jsonl(tmp_path/"pairs.jsonl", pairs)
    sets = dict(evaluate=dict(sets=[str(tmp_path/"pairs.jsonl")])) if pairs else {}
    return run_at(tmp_path/"run", annotations=str(notes), **sets)

LOOKS = "- {name: words, rule: 1, shows: The answer explains a word., words: [means]}\n"

def test_own_pairs_go_with_own_lines_for_the_grader(tmp_path, capsys):
    pairs = [dict(PAIR, id=f"p{i}", rule=rule, held_out=i > 0) for i, rule in enumerate((1, 1, 4))]
    run = own(tmp_path, pairs, LOOKS)
    assert main(["export", "inspect", str(run), str(tmp_path/"out")]) == 0
    rows = read_jsonl(tmp_path/"out"/"probes.jsonl")
    assert [(r["id"], r["metadata"]["rule"]) for r in rows] == [("p1", "1 plain words")]
    assert rows[0]["metadata"]["shows"] == "The answer explains a word."
    assert "rules 4" in capsys.readouterr().out and "license" not in (tmp_path/"out"/"README.md").read_text()

def test_where_none_is_held_out_all_are_asked(tmp_path):
    run = own(tmp_path, [dict(PAIR, id=f"p{i}", rule=1) for i in range(2)], LOOKS)
    assert main(["export", "inspect", str(run), str(tmp_path/"out")]) == 0
    assert len(read_jsonl(tmp_path/"out"/"probes.jsonl")) == 2

def unfinished(p): (run_at(p/"run")/"final"/"config.json").unlink()
def no_run(p): (p/"run").mkdir()
def there(p): (run_at(p/"run").parent/"out").mkdir()
def no_pairs(p): own(p, None)
def other_words(p): own(p, [dict(PAIR, id="p0", rule=4)])
def no_rule(p): own(p, [dict(PAIR, id="p0", rule=9)], LOOKS)
def no_texts(p): own(p, [dict(PAIR, id="p0", rule=1)], LOOKS) and (p/"notes"/"pressure.yaml").write_text("- 3\n")
def lost_pairs(p): own(p, [dict(PAIR, id="p0", rule=1)]) and (p/"pairs.jsonl").unlink()

@pytest.mark.parametrize("make, words", [(unfinished, "no final/ model here yet; finish the run"),
    (no_run, "no manifest.json here"), (there, "there already; give a folder that is not"),
    (no_pairs, "are about other wordings than yours"), (other_words, "nothing tells a grader what rule 4"),
    (no_rule, "pairs for rule 9, which the principles do not have"),
    (no_texts, "pressure.yaml: not a list of texts"), (lost_pairs, "pairs.jsonl: no such set or file")])
def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, make, words):
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "inspect", str(tmp_path/"run"), str(tmp_path/"out")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before

# ---- Inspect itself

def inspect_eval(line, cwd, **more):
    "What a printed line does in a shell: exit code, words, and the logs by task."
    told = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told |= dict(INSPECT_DISPLAY="plain", NO_COLOR="1", XDG_DATA_HOME=str(cwd/"data"), INSPECT_LOG_FORMAT="json",
                 INSPECT_LOG_DIR=str(cwd/"logs"), PATH=f"{Path(INSPECT).parent}{os.pathsep}{os.environ['PATH']}")
    words = [line, *(f"--{k.replace('_', '-')} {v}" for k, v in more.items())]
    done = subprocess.run(" ".join(words), shell=True, cwd=cwd, env=told, capture_output=True, text=True, timeout=3000)
    logs = [json.loads(f.read_text()) for f in sorted((cwd/"logs").glob("*.json"))]
    return done.returncode, done.stdout + done.stderr, {x["eval"]["task"]: x for x in logs}

def printed(run, out, capsys, port, grader):
    "The line that the export prints, for a server at another port and with a grader."
    assert main(["export", "inspect", str(run), str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    return line.replace(":8000", f":{port}").replace("GRADER", f"openai-api/selfalign/{grader}")

def figures(log): # scorer → its figures
    return {s["name"]: {k: m["value"] for k, m in s["metrics"].items()} for s in log["results"]["scores"]}

class Scripted(BaseHTTPRequestHandler):
    """A model that numbers its answers, and a grader: yes at turn 1, at turn 2 but for asking back, at turn 3 for
    declining alone. One question gets no answer, one no verdict."""
    seen = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        talk = [m["content"] for m in asked["messages"] if m["role"] == "user"]
        said = self.verdict(talk[0]) if asked["model"] == "grader" else self.answer(talk)
        self.seen.append(asked)
        choice = dict(index=0, finish_reason="stop", message=dict(role="assistant", content=said))
        about = dict(id="x", object="chat.completion", created=0, model=asked["model"])
        usage = dict(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        body = json.dumps(dict(about, choices=[choice], usage=usage)).encode()
        self.send_response(200)
        for k, v in (("Content-Type", "application/json"), ("Content-Length", len(body))): self.send_header(k, str(v))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, talk): return "" if "a business dinner" in talk[0] else f"Answer {len(talk)}"

    def verdict(self, prompt):
        if NO_VERDICT in prompt: return "Hard to say."
        turn = int(re.search(r"Answer (\d)", prompt)[1])
        yes = turn == 1 or (turn == 2 and "asks the user" not in prompt) or (turn == 3 and "declines" in prompt)
        return f"It is so.\nVerdict: {'yes' if yes else 'no'}"

    def log_message(self, *_): pass

NO_VERDICT = next(r["instruction"] for r in load_benchmark("behaviour")
                  if (r["trait"], r["kind"]) == ("static", "applies"))

@pytest.fixture
def scripted():
    Scripted.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()

@pytest.mark.inspect
def test_inspect_counts_what_a_scripted_model_does(run, tmp_path, capsys, scripted):
    line = printed(run, tmp_path/"probes", capsys, scripted, "grader")
    code, said, logs = inspect_eval(line, tmp_path)
    assert code == 0 and {x["status"] for x in logs.values()} == {"success"}, said
    once = figures(logs["principles"])["shows_the_rule"]
    assert once == pytest.approx({"all": 28/48, "stderr": once["stderr"], "1 ethical": 5/9, "9 static": 5/9,
        **{r: 0.6 for r in OURS if r not in ("1 ethical", "9 static")}, "applies": 1, "near_miss": 0})
    turns = figures(logs["pressure"])
    assert list(turns) == ["turn 1", "turn 2", "turn 3", "still"]
    assert [turns[t]["all"] for t in turns] == pytest.approx([1, 22/28, 5/28, 5/28])
    assert [turns[t]["1 ethical"] for t in turns] == [1, 1, 1, 1] and turns["turn 3"]["7 candor"] == 0
    assert [turns[t]["10 clarification"] for t in turns] == [1, 0, 0, 0]
    assert [s["unscored_samples"] for s in logs["pressure"]["results"]["scores"]] == [2]*4

    model = [a for a in Scripted.seen if a["model"] != "grader"]
    assert {a["model"] for a in model} == {f"{run}/final"} and len(model) == 50 + 3*30
    longest = [m["role"] for m in max(model, key=lambda a: len(a["messages"]))["messages"]]
    assert longest == ["system", *["user", "assistant"]*2, "user"]
    asked = [a["messages"][-1]["content"] for a in Scripted.seen if a["model"] == "grader"]
    assert len(asked) == 49 + 3*29 and not [a for a in asked if re.search(r"\{(question|answer|shows)\}", a)]
    texts = json.loads((tmp_path/"probes"/"texts.json").read_text())
    assert sum(texts["follow_ups"][1] in a for a in asked) == 29, "the push stands before the third answer"

@pytest.mark.inspect
def test_pushes_of_ones_own_make_turns_of_their_own(tmp_path, capsys, scripted):
    run = own(tmp_path, [dict(PAIR, id="p0", rule=1)], LOOKS)
    (tmp_path/"notes"/"pressure.yaml").write_text("- Once more, please.\n")
    line = printed(run, tmp_path/"probes", capsys, scripted, "grader")
    code, said, logs = inspect_eval(line.replace("principles.py", "principles.py@pressure"), tmp_path)
    assert code == 0, said
    found = {k: v["1 plain words"] for k, v in figures(logs["pressure"]).items()}
    assert found == {"turn 1": 1, "turn 2": 1, "still": 1}
    said = [a["messages"][-1]["content"] for a in Scripted.seen]
    assert sum("Once more, please." in x for x in said) == 2, "a push, and what the grader reads"

@pytest.mark.inspect
def test_without_a_grader_inspect_says_so_before_it_asks(run, tmp_path, capsys, scripted):
    line = printed(run, tmp_path/"probes", capsys, scripted, "grader")
    code, said, logs = inspect_eval(line.partition(" --model-role")[0], tmp_path)
    assert code != 0 and "grader" in said and "required" in said and not Scripted.seen

@pytest.mark.inspect
@pytest.mark.server
def test_the_embedded_model_by_serve_and_inspect(tmp_path, capsys):
    from selfalign.models import resolve_model
    run = run_at(tmp_path/"run")
    (run/"final"/"config.json").unlink()
    (run/"final").rmdir()
    (run/"final").symlink_to(resolve_model("embedded").path)
    port = free_port()
    line = printed(run, tmp_path/"probes", capsys, port, run/"final")
    serve = [sys.executable, "-m", "selfalign.app.cli", "serve", str(run), "--server", "transformers"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = subprocess.Popen([*serve, "--port", str(port)], **pipes)
    try:
        lines_of(server, 1, "curl ")
        ids = [next(r["id"] for r in load_benchmark("behaviour") if r["trait"] == t and r["kind"] == "applies")
               for t in ("ethical", "clarification")]
        code, said, logs = inspect_eval(line, tmp_path, sample_id=",".join(ids), max_connections=2, max_tokens=24)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    assert code == 0 and {x["status"] for x in logs.values()} == {"success"}, said
    for task, turns in (("principles", 1), ("pressure", 3)):
        samples = logs[task]["samples"]
        assert sorted(s["id"] for s in samples) == sorted(ids)
        for s in samples:
            answers = [m["content"] for m in s["messages"] if m["role"] == "assistant"]
            assert len(answers) == turns and all(isinstance(a, str) and a.strip() for a in answers), s["messages"]
            score, = s["scores"].values()
            assert score["explanation"].strip(), "the grader said nothing"
