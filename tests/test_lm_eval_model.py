"lm-eval's tasks through our engines: the real lm-eval, beside its own class for transformers' models."
import json, subprocess, sys

import pytest, torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from selfalign.app.cli import main
from selfalign.checks import InputError
from selfalign.engines.local import TorchEngine
from selfalign.evals.lm_eval_model import EngineLM, find_tasks, run_tasks
from selfalign.evals.sets import load_benchmark
from selfalign.generation import ScriptedEngine
from selfalign.models import load_tokenizer

CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, validation: {shots}}}}}
test_split: test
fewshot_split: validation
num_fewshot: 5
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, validation: {shots}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLL = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""

def question(row):
    choices = list(dict.fromkeys(row["mc1_targets"]["choices"] + row["mc2_targets"]["choices"]))[:4]
    return dict(question=row["question"], choices=choices[::-1], answer=len(choices) - 1)

@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    "Three small tasks of our own facts: choices behind five examples, a short answer, a whole text."
    folder = tmp_path_factory.mktemp("tasks")
    rows = [question(r) for r in load_benchmark("facts")[:17]]
    for name, part in (("shots", rows[:5]), ("rows", rows[5:])):
        (folder/f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    for name, text in (("pick", CHOICE), ("write", WRITE), ("roll", ROLL)):
        told = text.format(name=f"own_{name}", file=folder/"rows.jsonl", shots=folder/"shots.jsonl")
        (folder/f"{name}.yaml").write_text(told)
    return folder

@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM
    tok = load_tokenizer("embedded")
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    sizes.update(vocab_size=len(tok), max_position_embeddings=512, eos_token_id=tok.eos_token_id)
    net = LlamaForCausalLM(LlamaConfig(**sizes))
    return net.float().eval(), tok

def answers(lm, task, folder, **kw):
    "What lm-eval got for each row, and its scores."
    found = find_tasks([folder/f"{task}.yaml"])
    name, = found.found
    out = simple_evaluate(lm, tasks=[name], task_manager=found.manager, bootstrap_iters=0, **kw)
    rows = sorted(out["samples"][name], key=lambda s: s["doc_id"])
    scores = {k: v for k, v in out["results"][name].items() if isinstance(v, float)}
    return [s["filtered_resps"] for s in rows], scores

@pytest.fixture
def pair(model):
    "Ours and lm-eval's own, over the same weights and with the same context."
    import copy
    with TorchEngine((copy.deepcopy(model[0]), model[1])) as engine:
        ours = EngineLM(engine)
        yield ours, HFLM(pretrained=model[0], tokenizer=model[1], batch_size=4, max_length=ours.max_length)

@pytest.mark.parametrize("chat", [False, True])
def test_choices_score_as_in_lm_evals_own_class(pair, tasks, chat):
    (mine, a), (theirs, b) = (answers(lm, "pick", tasks, apply_chat_template=chat) for lm in pair)
    assert len(mine) == 12 and a == pytest.approx(b)
    for x, y in zip(mine, theirs, strict=True):
        assert [s for s, _ in x] == pytest.approx([s for s, _ in y], abs=1e-3)
        assert [g for _, g in x] == [g for _, g in y]

def test_whole_texts_score_as_in_lm_evals_own_class(pair, tasks):
    (mine, a), (theirs, b) = (answers(lm, "roll", tasks) for lm in pair)
    assert a == pytest.approx(b, rel=1e-5) and len(mine) == 12

@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_those_of_lm_evals_own_class(pair, tasks, chat):
    (mine, a), (theirs, b) = (answers(lm, "write", tasks, apply_chat_template=chat) for lm in pair)
    assert mine == theirs and a == b and len(mine) == 12

def asked(*args): return Instance(request_type="any", doc={}, arguments=args, idx=0)

def test_a_text_longer_than_the_context_is_windowed_or_cut_alike(pair):
    ours, hf = pair
    long = "the sun shines on the sea and the hill " * 200
    texts = [asked(long), asked("")]
    want = hf.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(want, rel=1e-5)
    pairs = [asked(long, " bright"), asked("", "Rain falls"), asked("two spaces  ", "here")]
    got, want = ours.loglikelihood(pairs), hf.loglikelihood(pairs, disable_tqdm=True)
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], abs=1e-3) and ours.cut == 1
    write = [asked(long, dict(until=[], max_gen_toks=5))]
    assert ours.generate_until(write) == hf.generate_until(write, disable_tqdm=True)

def test_greedy_continuations_are_told(pair):
    ours, _ = pair
    likeliest, = ours.generate_until([asked("Rain falls", dict(until=[], max_gen_toks=1))])
    told = ours.loglikelihood([asked("Rain falls", likeliest), asked("Rain falls", " purple")])
    assert [g for _, g in told] == [True, False]

def test_a_server_gets_messages_and_says_that_it_cannot_score(tasks):
    engine = ScriptedEngine(lambda prompt, i, seed: "red" if isinstance(prompt, list) else None)
    lm = EngineLM(engine)
    got, _ = answers(lm, "write", tasks, apply_chat_template=True, system_instruction="Be brief.")
    assert got == [["red"]] * 12 and engine.calls[0][0][0][0] == dict(role="system", content="Be brief.")
    with pytest.raises(InputError, match="gives no log-probabilities"): answers(lm, "pick", tasks)
    with pytest.raises(InputError, match="gen_prefix"): lm.apply_chat_template([], add_generation_prompt=False)

def test_results_hold_a_record_per_row_and_compare(model, tasks):
    from selfalign.evals.comparing import compare
    run = lambda **kw: run_tasks(lambda: TorchEngine(model), [tasks/"pick.yaml", tasks/"roll.yaml"], **kw)
    (pick, roll), (some, _) = run(name="a"), run(name="b", n=5, seed=3, fewshot=2)
    assert pick.acc == sum(r["right"] for r in pick.rows)/12 and pick.scores["acc"].n == 12 and pick.format == "5-shot"
    assert roll.word_perplexity > 1 and roll.rows[0]["id"] and some.n == 5 and some.format == "2-shot"
    assert {r["id"] for r in some.rows} < {r["id"] for r in pick.rows} and pick.config["task_version"] is not None
    assert compare(pick, run(name="b")[0])[0].n == 12

@pytest.mark.parametrize("sets, words", [("lm-eval:arc_eesy", "no task 'arc_eesy'; did you mean arc_easy"),
                                         ("lm-eval:no.yaml", "no.yaml: no such file")])
def test_an_unknown_task_is_one_line_before_any_model(sets, words, capsys, monkeypatch):
    monkeypatch.setattr("selfalign.generation.load_engine", lambda *a, **kw: pytest.fail("a model was loaded"))
    assert main(["evaluate", "embedded", "--sets", sets]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

def test_a_task_without_data_is_one_line(tasks, tmp_path):
    lost = tmp_path/"none.jsonl"
    (tmp_path/"lost.yaml").write_text(CHOICE.format(name="own_lost", file=lost, shots=lost))
    with pytest.raises(InputError, match="the data of own_lost cannot be had"): find_tasks([tmp_path/"lost.yaml"])

def test_the_command_scores_our_sets_and_lm_evals(tasks, tmp_path, capsys, model):
    model[0].save_pretrained(tmp_path/"m"); model[1].save_pretrained(tmp_path/"m")
    ask = ["evaluate", str(tmp_path/"m"), "--sets", "facts", f"lm-eval:{tasks}/pick.yaml"]
    ask += ["--n", "4", "--out", str(tmp_path/"out")]
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert "lm-eval:own_pick" in said and "facts" in said
    assert len(list((tmp_path/"out").glob("*.json"))) == 3 # ours is asked in two formats
    assert main(ask) == 0 and capsys.readouterr().out.count("read back from") == 3

def test_without_lm_eval_it_says_what_to_install(tmp_path):
    code = ("import sys; sys.modules['lm_eval'] = None\nfrom selfalign.app.cli import main\n"
            "import selfalign.evals.lm_eval_model\n"
            "sys.exit(main(['evaluate', 'embedded', '--sets', 'lm-eval:arc_easy']))")
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert got.returncode == 1 and "pip install lm-eval" in got.stderr and got.stderr.count("\n") == 1, got.stderr
