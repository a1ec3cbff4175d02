"""Trackers: what a run tells them, in the real packages where they are installed (`make test-trackers`), offline."""
import json, os, subprocess, sys
from dataclasses import asdict, replace

import pytest
from selfalign.checks import InputError
from selfalign.config import CloneConfig, EngraveConfig, RunConfig, TrainConfig, config_from
from selfalign.gate import check_before
from selfalign.runs import Run
from selfalign.trackers import asked_trackers, check_trackers, track, training_told
from selfalign.trainers import _recipe

FUNNEL = dict(kept=80, asked=93, rejected={"too short": 9, "next turn": 4}, seconds=61.5, done=True)
SCORES = [dict(model="final", set="facts", format="paper", mc1=[0.4, 0.3, 0.5])]

def made_run(folder):
    "A run's folder with two stages and a figure."
    import matplotlib
    matplotlib.use("Agg")
    from selfalign.plots import plot_funnel
    run = Run(folder)
    run.manifest["stages"] |= dict(responses=dict(FUNNEL), evaluation=dict(done=True, scores=SCORES))
    (run/"figures").mkdir()
    plot_funnel(80, FUNNEL["rejected"]).figure.savefig(run/"figures"/"funnel.png", dpi=50)
    return run

def told_all(run, cfg):
    for step in ("respond", "evaluate", "report"): track(run, cfg, step)

@pytest.fixture
def said(): return []

def test_without_a_tracker_nothing_is_imported_and_nothing_is_written(tmp_path):
    code = ("import sys; from selfalign.trackers import track; from selfalign.config import RunConfig; "
        "from selfalign.runs import Run; from pathlib import Path\n"
        f"with Run(Path({str(tmp_path/'r')!r})) as run: track(run, RunConfig(), 'respond')\n"
        "print([m for m in ('wandb', 'trackio', 'tensorboard') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]" and not (tmp_path/"r"/"tracking").exists(), out.stderr

def test_who_is_asked_for():
    cfg = RunConfig(report_to=("wandb",), engrave=EngraveConfig(report_to=("tensorboard", "mlflow")),
        clone=CloneConfig(train=TrainConfig(report_to=("wandb",))))
    assert asked_trackers(cfg) == ["wandb", "tensorboard"] # others get the losses alone
    with pytest.raises(InputError, match="report_to.*tensorboard.*wandb.*trackio"): config_from(dict(report_to=["x"]))

def test_a_missing_package_is_told_before_the_first_token(tmp_path, monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None)
    with pytest.raises(InputError, match="^report_to names trackio, which is not installed; pip install trackio"):
        check_before(RunConfig(model="embedded", report_to=("trackio",)), None, ["prompts"])

def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    "wandb writes into a folder ./wandb, which Python takes for a package."
    (tmp_path/"some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="some_tracker, which is not installed"): check_trackers(["some_tracker"])

def test_who_looks_on_does_not_change_what_a_stage_is():
    plain = EngraveConfig()
    assert _recipe(replace(plain, report_to=("tensorboard",))) == _recipe(plain)
    assert json.loads(json.dumps(_recipe(plain))) == { # runs that were made before go on
        k: v for k, v in json.loads(json.dumps(asdict(plain))).items()
        if k not in ("micro_batch", "accelerate_config", "objective", "distil_top", "seed_texts", "distil_from",
            "distil_weight")}

def test_a_tracker_that_fails_costs_a_line(tmp_path, monkeypatch, said):
    from selfalign import trackers
    def broken(*args): raise ConnectionError("no network\nhere")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken)
    with made_run(tmp_path/"r") as run:
        run.say = said.append
        track(run, RunConfig(report_to=("wandb",)), "respond")
        assert "wandb respond" not in run.manifest["tracked"] # the next command tries again
    assert said == ["wandb was not told (ConnectionError: no network here)"]

def test_the_environment_of_a_training_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    before = dict(os.environ)
    with training_told(("tensorboard",), tmp_path/"work"/"final"):
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path/"tracking"/"final")
    assert dict(os.environ) == before

def events(folder):
    "tag → values, and the tags of images, that TensorBoard itself reads there."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acc = EventAccumulator(str(folder))
    acc.Reload()
    return {t: [e.value for e in acc.Scalars(t)] for t in acc.Tags()["scalars"]}, acc.Tags()["images"]

def test_tensorboard_reads_rows_reasons_scores_and_figures(tmp_path):
    pytest.importorskip("tensorboard")
    with made_run(tmp_path/"mine") as run:
        for _ in range(2): told_all(run, RunConfig(report_to=("tensorboard",))) # twice: sent once
    numbers, images = events(tmp_path/"mine"/"tracking"/"run")
    assert numbers["responses/kept"] == [80] and numbers["responses/rejected/too short"] == [9]
    assert numbers["facts (paper) mc1/final"] == [pytest.approx(0.4)] and images == ["funnel"]

def test_wandb_offline_holds_rows_reasons_scores_and_figures(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_trackers(["wandb"])
    with made_run(tmp_path/"mine") as run: told_all(run, RunConfig(report_to=("wandb",)))
    folder = tmp_path/"mine"/"tracking"/"wandb"
    runs = list(folder.glob("offline-run-*"))
    assert runs and all(list(r.glob("*.wandb")) for r in runs)
    data = b"".join(f.read_bytes() for r in runs for f in r.glob("*.wandb"))
    for name in (b"responses/kept", b"too short", b"facts (paper) mc1/final"): assert name in data, name
    assert [p for r in runs for p in r.rglob("*.png")]

def test_wandb_without_a_key_is_told_before_the_first_token(tmp_path):
    pytest.importorskip("wandb")
    code = "from selfalign.trackers import check_trackers; check_trackers(['wandb'])"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    env |= dict(HOME=str(tmp_path), NETRC=str(tmp_path/"netrc"), PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    assert "has no key here; wandb login, or set WANDB_MODE=offline" in out.stderr

def test_trackio_keeps_it_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path/"trackio"))
    pytest.importorskip("trackio")
    import sqlite3
    with made_run(tmp_path/"mine") as run: told_all(run, RunConfig(report_to=("trackio",)))
    (db,) = (tmp_path/"trackio").rglob("*.db")
    rows = " ".join(str(r) for r in sqlite3.connect(db).execute("select metrics from metrics"))
    for name in ("responses/kept", "too short", "facts (paper) mc1/final", "figures/funnel"): assert name in rows, name

@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_training_tells_its_losses(tmp_path, monkeypatch, tracker):
    pytest.importorskip(tracker)
    from selfalign.encoding import encode_rows
    from selfalign.models import load_tokenizer
    from selfalign.tokens import with_chat_template
    from selfalign.training import fit
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = TrainConfig(global_batch=2, micro_batch=2, warmup_steps=1, max_length=64, report_to=(tracker,))
    tok = with_chat_template(load_tokenizer("embedded"))
    data = [dict(id=str(i), instruction=f"Name {i} rivers.", input="", answer="Rhine and Elbe.") for i in range(4)]
    rows, _ = encode_rows(data, tok, cfg)
    _, losses = fit(rows, "embedded", tok, tmp_path/"mine"/"work"/"engraved", cfg)
    folder = tmp_path/"mine"/"tracking"
    if tracker == "tensorboard":
        assert events(folder/"engraved")[0]["train/loss"][:2] == [pytest.approx(x["loss"], abs=1e-3) for x in losses]
    else:
        import wandb
        assert wandb.run is None # the next training is another
        (run,) = (folder/"wandb").glob("offline-run-*")
        data = next(run.glob("*.wandb")).read_bytes()
        assert b"train/loss" in data and b"mine engraved" in data
