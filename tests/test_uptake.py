"What each part of the prompt moves in the model, as `selfalign ablate` shows it."
import json
from dataclasses import replace
import pytest

from selfalign.app import ablate as room
from selfalign.app.cli import main
from selfalign.app.uptake import prompt_uptake, tuning_pairs, uptake_prompts
from selfalign.checks import InputError
from selfalign.config import RespondConfig
from selfalign.evals.sets import load_benchmark
from selfalign.generation import Score, ScriptedEngine
from selfalign.principle_engraving import PrincipleSet, load_principle_set

def a_run(path, **config):
    path.mkdir()
    (path/"prompts.jsonl").write_text('{"id": "1", "instruction": "Name a river.", "input": ""}\n')
    stages = dict(prompts=dict(done=True, fingerprint="x", settings={}, files=[]))
    (path/"manifest.json").write_text(json.dumps(dict(stages=stages, config=dict(dict(model="embedded"), **config))))
    return path

class Reads(ScriptedEngine):
    "A keeping answer gains 2 nats where its rule is in view, and a tenth for each exemplar."
    rule_of = {r["keeping"]: r["rule"] for r in load_benchmark("principles_tuning")}
    def loaded(self): return self
    def score(self, prompts, continuations):
        return [Score(-30. + self.gain(str(p), c.strip()), 9) for p, c in zip(prompts, continuations)]
    def gain(self, prompt, answer):
        n = self.rule_of.get(answer)
        return 0 if n is None else n/100 + 2*(f"\n{n} (" in prompt) + 0.1*max(0, prompt.count("### Example") - 1)

def test_the_uptake_of_each_prompt_without_an_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room, "open_engine", lambda *a: pytest.fail("an answer was asked for"))
    monkeypatch.setattr("selfalign.app.uptake.open_scorer", lambda cfg: Reads(lambda *a: ""))
    run = a_run(tmp_path/"r")
    assert main(["ablate", str(run), "--n", "0", "--pairs", "32", "--drop", "4+7"]) == 0
    said, got = capsys.readouterr().out, json.loads((run/"eval"/"uptake.json").read_text())
    moved = got["prompts"]
    assert got["pairs"] == 32 and len(moved) == 25 and not (run/"eval"/"ablation.json").exists()
    value = lambda name, key="shift": round(moved[name][key][0], 3)
    assert [value(k) for k in ("full", "4 exemplars", "1 exemplar", "no exemplars", "no principles")] == [
        2.5, 2.4, 2.1, 2.0, 0.5]
    assert value("neither", "plain") == 0 and "shift" not in moved["neither"] # it is what the others are measured against
    assert value("without 9", "minus_full") == -2/16 and value("without 4+7", "minus_full") == -4/16
    assert {k: round(v[0], 3) for k, v in moved["without 9"]["own"].items()} == {"full": 2.5, "without 9": 0.5}
    assert "own" not in moved["without 4+7"] and moved["full"]["tokens"] > moved["without 9"]["tokens"]
    assert "without 9 (static)" in said and "stand-in" in said and "rejected" not in said

def test_what_the_form_moves_is_no_uptake():
    "A model that dislikes one form is measured in each form against that form alone."
    class Likes(Reads):
        def score(self, prompts, continuations):
            cost = [0 if p == "plain" else 3 if isinstance(p, str) else 1 for p in prompts]
            return [Score(s.logprob - c*(a.strip() in self.rule_of), 9)
                for s, c, a in zip(super().score(prompts, continuations), cost, continuations)]
    pset, pairs = PrincipleSet.load(), load_benchmark("principles_tuning", 32, 0)
    every = uptake_prompts(pset, chat=True)
    got = prompt_uptake(Likes(lambda *a: ""), pairs, {k: every[k] for k in list(every)[:3] + ["neither"]},
        lambda r: "plain")["prompts"]
    at = lambda name, key: round(got[name][key][0], 1)
    assert [at("neither", "plain"), at("neither, form chat", "plain")] == [-3, -1]
    assert at("full", "shift") == 2.5 and at("full", "plain") == -0.5
    assert at("form chat", "plain") == round(at("form chat", "shift") - 1, 1)

@pytest.mark.parametrize("argv, words", [
    (("--n", "0", "--pairs", "0"), "--n and --pairs are both 0"),
    (("--pairs", "-1"), "pairs is -1; give a whole number"),
    (("--n", "0", "--pair-set", "nowhere.jsonl"), "nowhere.jsonl: no such set or file"),
    (("--n", "0", "--pair-set", "principles"), "all pairs are held out"),
    (("--n", "0", "--pairs", "4", "--drop", "77"), "no rule '77'")])
def test_what_cannot_be_measured_is_one_line(tmp_path, capsys, argv, words):
    code = main(["ablate", str(a_run(tmp_path/"r")), *argv])
    out, err = capsys.readouterr()
    if words.startswith("all pairs"): assert code == 0 and f"uptake: not measured: principles: {words}" in out
    else: assert code == 1 and words in err and len(err.strip().splitlines()) == 1

def test_pairs_of_ones_own_leave_out_those_held_out(tmp_path):
    pset, f = load_principle_set(RespondConfig()), tmp_path/"mine.jsonl"
    row = dict(rule=9, kind="applies", instruction="What time is it?", keeping="There is no clock in here.",
               breaking="It is a quarter past nine.")
    f.write_text("".join(json.dumps(dict(row, id=str(i), held_out=i > 1)) + "\n" for i in range(4)))
    assert [r["id"] for r in tuning_pairs(pset, str(f))] == ["0", "1"]
    f.write_text(json.dumps(dict(row, id="x", rule=99)))
    with pytest.raises(InputError, match="pairs for rule 99"): tuning_pairs(pset, str(f))

def test_a_prompt_of_other_principles_has_none_of_our_pairs():
    pset = load_principle_set(RespondConfig())
    other = tuple(replace(p, text=f"{p.text} Always.") for p in pset.principles)
    other = PrincipleSet(other, pset.exemplars)
    with pytest.raises(InputError, match="other wordings than yours"): tuning_pairs(other)
