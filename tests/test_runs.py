"""Runs that survive: torn lines, damaged lines, two owners, changed settings."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from selfalign.checks import InputError
from selfalign.generation import Sampling, ScriptedEngine
from selfalign.rows import content_id, read_jsonl, write_jsonl
from selfalign.holder import _started
from selfalign.runs import Journal, Run


def answers(prompt, index, seed): return f"answer to {prompt} with {seed % 1000}"


def make(path, n=20, tone="plain", engine=None, **kw):
    with Run(path, config=dict(tone=tone), say=kw.pop("say", lambda s: None)) as run:
        with run.stage("shout", dict(tone=tone, n=n), files=["shouts.jsonl"]) as rec:
            if rec is None: return None
            jobs = [dict(id=content_id("shout", i), prompt=f"prompt {i}") for i in range(n)]
            rows = [{k: v for k, v in r.items() if k != "seconds"}
                for r in run.complete("shout", jobs, engine or ScriptedEngine(answers), Sampling())]
            rec["kept"] = write_jsonl(run / "shouts.jsonl", rows)
            return rows


@pytest.mark.parametrize("left", [30, -1])  # half a line, and a whole one that lacks only its end
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, left):
    whole = make(tmp_path / "a")
    make(tmp_path / "b")
    j = tmp_path / "b" / "completions" / "shout.jsonl"
    lines = j.read_bytes().splitlines(keepends=True)
    j.write_bytes(b"".join(lines[:7]) + lines[7][:left])  # killed while the eighth line was written
    (tmp_path / "b" / "shouts.jsonl").unlink()
    said = []
    assert make(tmp_path / "b", say=said.append) == whole
    # a torn line is no damage: it is cut and made again, silently
    assert not said and not (j.parent / "quarantine.jsonl").exists()
    assert len(read_jsonl(j)) == 20
    assert read_jsonl(tmp_path / "a" / "shouts.jsonl") == read_jsonl(tmp_path / "b" / "shouts.jsonl")


def test_a_damaged_middle_line_is_reported_and_made_again(tmp_path):
    whole = make(tmp_path / "a")
    j = tmp_path / "a" / "completions" / "shout.jsonl"
    lines = j.read_bytes().splitlines(keepends=True)
    j.write_bytes(b"".join(lines[:3]) + b'{"id": "x", \xff\n' + b"".join(lines[4:]))
    (tmp_path / "a" / "shouts.jsonl").unlink()
    said = []
    assert make(tmp_path / "a", say=said.append) == whole
    assert any("shout.jsonl:4" in s and "quarantine" in s for s in said)
    (q,) = read_jsonl(j.parent / "quarantine.jsonl")
    assert (q["file"], q["line"]) == ("shout.jsonl", 4) and q["raw"].startswith('{"id": "x", ')
    # its row was made again, none twice
    assert sorted(r["id"] for r in read_jsonl(j)) == sorted(r["id"] for r in whole)


def test_deeply_nested_json_is_a_damaged_line(tmp_path):
    whole = make(tmp_path / "a")
    j = tmp_path / "a" / "completions" / "shout.jsonl"
    j.write_bytes(j.read_bytes().replace(b"\n", b"\n" + b'{"a":' * 200_000 + b"\n", 1))
    (tmp_path / "a" / "shouts.jsonl").unlink()
    assert make(tmp_path / "a") == whole and len(read_jsonl(j.parent / "quarantine.jsonl")) == 1
    (tmp_path / "rows.jsonl").write_bytes(b'{"a":' * 200_000 + b"\n")
    with pytest.raises(InputError, match="rows.jsonl:1: not valid JSON"): read_jsonl(tmp_path / "rows.jsonl")


def test_changed_settings_refuse_and_overwrite_nothing(tmp_path):
    make(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.json*")}
    with pytest.raises(InputError, match=r"stage 'shout' was made with other settings \(tone\); use --redo shout"):
        make(tmp_path / "a", tone="loud")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.json*")} == before
    assert make(tmp_path / "a") is None  # and the old settings still find it done


def test_redo_keeps_the_old_files_aside(tmp_path):
    make(tmp_path / "a")
    with Run(tmp_path / "a") as run: run.redo("shout")
    assert (tmp_path / "a" / "shouts.jsonl.old").exists()
    assert make(tmp_path / "a", tone="loud") is not None


def test_one_owner_at_a_time_and_a_dead_owner_is_no_owner(tmp_path):
    code = (f"import time\nfrom selfalign.runs import Run\nr = Run({str(tmp_path / 'a')!r})\nprint('held', "
        f"flush=True)\ntime.sleep(60)")
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline().strip() == "held"
        with pytest.raises(InputError, match=f"in use by process {p.pid}"): Run(tmp_path / "a")
    finally:
        p.send_signal(signal.SIGKILL); p.wait()
    with Run(tmp_path / "a"): pass


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_told_at_once(tmp_path, monkeypatch, error):
    import selfalign.runs as runs
    def acquire(*a, **kw): raise error
    monkeypatch.setattr(runs.FileLock, "acquire", acquire)
    with pytest.raises(InputError, match="gives no lock .*choose a local folder"): Run(tmp_path / "r")


def test_files_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    import os
    from selfalign.rows import atomic_path
    log, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append("rename"), replace(a, b)))
    with atomic_path(tmp_path / "model") as tmp:
        tmp.mkdir()
        for f in "ab": (tmp / f).write_text(f)
    assert log == ["sync", "sync", "rename", "sync"]  # both files, the rename, the folder that holds the new name


def test_prompts_are_made_as_they_are_asked(tmp_path):
    "A million rendered prompts would not fit; each keeps its row's seed."
    made, asked = [], []
    class Asks(ScriptedEngine):
        def generate_iter(self, prompts, sampling, seeds=None):
            asked.append(len(prompts)); assert len(made) == sum(asked)
            yield from super().generate_iter(prompts, sampling, seeds)
    jobs = [dict(id=str(i), prompt=lambda i=i: made.append(i) or f"p{i}") for i in range(20)]
    with Run(tmp_path / "r") as run:
        got = list(run._ask(Asks(lambda p, i, s: f"{p} {s}"), jobs, Sampling(max_new_tokens=9),
            list(range(100, 120)), n=8))
    assert asked == [8, 8, 4] and [i for i, _ in got] == list(range(20))
    assert [c.text for _, c in got] == [f"p{i} {100+i}" for i in range(20)]


def test_long_work_shows_that_it_goes_on(tmp_path, monkeypatch):
    "Reading a journal and filtering have their bars, which appear after two seconds."
    from selfalign import bars as room
    bars, plain = [], room.bar
    monkeypatch.setattr(room, "bar",
        lambda desc, total=None, unit="row", **kw: bars.append((desc, total)) or plain(desc, total, unit, **kw))
    with Journal(tmp_path / "j.jsonl") as j: j.add(dict(id="1"))
    with Journal(tmp_path / "j.jsonl") as j: assert len(j) == 1
    with Run(tmp_path / "r") as run:
        got = run.decide("answers", "kept.jsonl",
            ((dict(id=str(i), raw="x", reason="even"), None if i % 2 else "even") for i in range(5)), 5)
    assert got == dict(kept=2, rejected={"even": 3})
    assert bars == [("reading j.jsonl", None), ("answers: filters", 5)]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run"): Run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"): Run(tmp_path / "file" / "run")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_broken_manifest_is_one_clear_line(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json: not valid JSON"): Run(tmp_path / "a")


@pytest.mark.parametrize("text",
    ["\ud800", "\x00", "\u202eabc", "<|im_end|>", "a\u2028b", "x" * 10**6, "\r\n", '"}\n{"id":"z"}'])
def test_any_text_comes_back(tmp_path, text):
    with Journal(tmp_path / "j.jsonl") as j: j.add(dict(id="1", text=text))
    with Journal(tmp_path / "j.jsonl") as j: assert len(j) == 1 and j["1"]["text"] == text


@pytest.mark.parametrize("raw, words", [(b'{"a": 1}\n{"a"\n', ":2: not valid JSON"),
    (b'[1]\n', ":1: expected an object"), (b'{"a": 1}\n\xff\xfe\n', "not UTF-8")])
def test_bad_lines_are_named(tmp_path, raw, words):
    p = tmp_path / "rows.jsonl"
    p.write_bytes(raw)
    with pytest.raises(InputError, match=words): read_jsonl(p)


def test_a_kill_at_any_moment_leaves_whole_lines(tmp_path):
    code = textwrap.dedent(f"""
        from selfalign.runs import Journal
        j, i = Journal({str(tmp_path / 'j.jsonl')!r}), 0
        while True: j.add(dict(id=str(len(j)), text="x" * 50)); print(len(j), flush=True)
    """)
    for _ in range(3):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(50): said = p.stdout.readline()
        p.send_signal(signal.SIGKILL); p.wait()
        with Journal(tmp_path / "j.jsonl") as j:
            assert len(j) >= int(said) and sorted(map(int, j.rows)) == list(range(len(j)))


def test_half_written_folders_are_never_seen(tmp_path):
    from selfalign.rows import atomic_path
    with pytest.raises(RuntimeError):
        with atomic_path(tmp_path / "model") as tmp:
            tmp.mkdir(); (tmp / "weights").write_text("half")
            raise RuntimeError("disk full")
    assert not (tmp_path / "model").exists() and not list(tmp_path.iterdir())


def test_seeds_belong_to_rows_not_to_places(tmp_path):
    seen = {}
    def note(prompt, index, seed): seen.setdefault(prompt, set()).add(seed); return "x"
    make(tmp_path / "a", n=5, engine=ScriptedEngine(note))
    make(tmp_path / "b", n=9, engine=ScriptedEngine(note))
    assert all(len(s) == 1 for s in seen.values()) and len(seen) == 9


def test_redo_after_redo_loses_nothing(tmp_path):
    for tone in ("plain", "loud", "soft"):
        make(tmp_path / "a", tone=tone)
        with Run(tmp_path / "a") as run: run.redo("shout")
    assert sorted(p.name
        for p in (tmp_path / "a").glob("shouts*")) == ["shouts.jsonl.old", "shouts.jsonl.old2", "shouts.jsonl.old3"]
    assert len(list((tmp_path / "a" / "completions").glob("*.old*"))) == 3


class Broken(ScriptedEngine):
    "Breaks off after some rows, or fails on some."
    after, fails = 10**9, lambda self, i: False
    def _one(self, prompt, i, seed, sampling):
        if i >= self.after: raise KeyboardInterrupt
        c = super()._one(prompt, i, seed, sampling)
        if self.fails(i): c.error, c.finish_reason = f"row {i}: the server answers 404", "error"
        return c


def test_tokens_made_before_a_kill_are_counted(tmp_path):
    for name, kw in (("whole", {}), ("broken", dict(engine=Broken(answers)))):
        if kw:
            kw["engine"].after = 7
            with pytest.raises(KeyboardInterrupt): make(tmp_path / name, **kw)
        make(tmp_path / name)
    use = lambda name: {k: v
        for k, v in Run(tmp_path / name).manifest["stages"]["shout"]["generation"].items() if k in ("rows", "tokens")}
    assert use("whole") == use("broken") and use("whole")["rows"] == 20


def test_a_resume_that_asks_nothing_does_not_claim_the_rows(tmp_path):
    e = ScriptedEngine(answers); e.info = dict(e.info, dropped=["ngram_penalty"])
    make(tmp_path / "a", engine=e)
    with Run(tmp_path / "a") as run: run.manifest["stages"]["shout"]["done"] = False; run.save()
    make(tmp_path / "a")
    with Run(tmp_path / "a") as run:
        assert run.manifest["stages"]["shout"]["generation"]["engine"]["dropped"] == ["ngram_penalty"]


def test_settings_of_a_stage_that_has_made_nothing_can_still_change(tmp_path):
    def stage(tone, fail):
        with Run(tmp_path / "a") as run, run.stage("shout", dict(tone=tone), files=["x.jsonl"]) as rec:
            if fail: raise InputError("no such file")
    with pytest.raises(InputError, match="no such file"): stage("typo", True)
    stage("right", False)
    with Run(tmp_path / "a") as run: assert run.manifest["stages"]["shout"]["settings"] == dict(tone="right")
    e = Broken(answers); e.after = 3
    with pytest.raises(KeyboardInterrupt): make(tmp_path / "b", engine=e)
    with pytest.raises(InputError, match="other settings"): make(tmp_path / "b", tone="loud") # three rows are there


def test_failures_are_told_and_too_many_leave_the_stage_open(tmp_path):
    said, outs = [], [dict(error=None)] * 6 + [dict(error="row 6: lost")] * 4
    with Run(tmp_path / "a", say=said.append) as run:
        run.tell_failures("shout", outs)
        assert said == ["shout: 4 of 10 rows failed and are left out, the first: row 6: lost"]
        with pytest.raises(InputError, match="8 of 14 rows of stage 'shout' failed, the first: row 6: lost; mend that"):
            run.tell_failures("shout", outs + outs[-4:])
        run.tell_failures("shout", [])


@pytest.mark.parametrize("text", ["[]", "{}", '{"stages": 5}'])
def test_a_manifest_of_something_else(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not the manifest of a run"): Run(tmp_path)


# ---- two owners where every lock is granted

@pytest.fixture
def granted(monkeypatch):
    "A file system that grants every lock."
    class Lock:
        is_locked = False
        def __init__(self, path): pass
        def acquire(self, timeout): self.is_locked = True
        def release(self): self.is_locked = False
    monkeypatch.setattr("selfalign.runs.FileLock", Lock)


def owned(folder, **who):
    "A run folder with another owner's file, and a temporary file of that owner."
    with Run(folder) as run: run.save(); me = run.holder.read()
    (folder / ".holder").write_text(json.dumps(me | who)); (folder / ".x.1.tmp").write_text("half")
    return folder


def living(): return dict(pid=os.getppid(), started=_started(os.getppid()))


def test_a_living_owner_keeps_its_folder_where_every_lock_is_granted(tmp_path, granted):
    r = owned(tmp_path / "r", **living())
    with pytest.raises(InputError, match=f"in use by process {os.getppid()} on "): Run(r)
    assert (r / ".x.1.tmp").exists() and (r / ".holder").exists() # nothing of the owner's is touched


@pytest.mark.parametrize("who", [dict(pid=2**22 + 7, started="5"), dict(living(), started="1"), dict(pid=os.getpid())])
def test_a_dead_owner_is_followed_at_once(tmp_path, granted, who):
    r = owned(tmp_path / "r", **who)
    with Run(r) as run: assert run.holder.read()["pid"] == os.getpid() and not (r / ".x.1.tmp").exists()
    assert not (r / ".holder").exists()


def test_an_owner_on_another_machine_is_alive_as_long_as_it_touches_its_file(tmp_path, granted):
    r = owned(tmp_path / "r", machine="another", host="node7", pid=1)
    with pytest.raises(InputError, match="in use by process 1 on node7"): Run(r)
    os.utime(r / ".holder", (time.time() - 500,)*2)
    with Run(r): pass


def test_the_owner_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("selfalign.runs.Holder.beat", 0.05)
    with Run(tmp_path / "r") as run:
        os.utime(run / ".holder", (5, 5)); time.sleep(0.5)
        assert (run / ".holder").stat().st_mtime > 5
    assert run.holder.ended.is_set()


@pytest.mark.parametrize("text", ["process 5 on x since y", "{}", "", "[]"])
def test_an_owner_file_that_says_nothing_is_replaced(tmp_path, granted, text):
    with Run(tmp_path / "r") as run: run.save()
    (tmp_path / "r" / ".holder").write_text(text)
    with Run(tmp_path / "r"): pass
