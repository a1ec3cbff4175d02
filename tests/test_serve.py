"A run's model behind transformers' own server, by the command and the lines that it prints."
import json, os, shlex, shutil, signal, socket, subprocess, sys

import pytest

from selfalign.app.judge import Judge
from selfalign.app.cli import main
from selfalign.rows import write_json

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run's folder with a small final model."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from selfalign.models import load_tokenizer
    out, tok = tmp_path_factory.mktemp("run"), load_tokenizer("embedded")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), eos_token_id=tok.eos_token_id, **sizes))
    for part in (net, tok): part.save_pretrained(out/"final")
    write_json(out/"manifest.json", dict(config=dict(engine="torch:embedded")))
    return out

@pytest.mark.server
def test_the_printed_lines_use_the_served_model(run):
    for name in ("fastapi", "uvicorn"): pytest.importorskip(name)
    port = free_port()
    ask = [sys.executable, "-m", "selfalign.app.cli", "serve", str(run), "--server", "transformers"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} # as behind `| tee log`
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered)
    server = subprocess.Popen([*ask, "--port", str(port)], **pipes)
    try:
        curl, judge = lines_of(server, 2, "curl ", "selfalign judge ")
        if shutil.which("curl"):
            got = subprocess.run(shlex.split(curl) + ["-s"], capture_output=True, text=True, timeout=120)
            assert isinstance(json.loads(got.stdout)["choices"][0]["message"]["content"], str), got.stdout
        a = Judge.from_line("judge", shlex.split(judge)[2:])
        assert a.judge == f"openai:http://127.0.0.1:{port}/v1#{run/'final'}" and a.models[0] == a.judge
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    assert server.returncode == 130
    with socket.socket() as s: assert s.connect_ex(("127.0.0.1", port)), "the server outlives the command"

def lines_of(process, n, *starts):
    "The lines that begin so, as they come."
    found = {}
    for line in process.stdout:
        found |= {s: line.strip() for s in starts if line.startswith(s)}
        if len(found) == n: return [found[s] for s in starts]
    pytest.fail(f"no such lines: {process.stderr.read()}")

@pytest.mark.parametrize("more, words", [(["--arm", "engraved"], "has no such model yet; choose --arm final or base"),
                                         (["--server", "vllm"], "--server vllm: it is not installed here"),
                                         (["--arm", "best"], "arm is 'best'; give 'final'")])
def test_what_cannot_be_served_is_one_line(run, more, words, capsys, monkeypatch):
    monkeypatch.setattr("selfalign.app.serve._program", lambda name: None)
    assert main(["serve", str(run), "--port", str(free_port()), *more]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

def test_a_port_that_is_taken_and_a_server_that_falls_are_one_line(run, capsys, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        assert main(["serve", str(run), "--port", str(s.getsockname()[1])]) == 1
    assert "something answers there already" in capsys.readouterr().err
    falls = [sys.executable, "-c", "import sys; sys.exit('cannot load it')"]
    monkeypatch.setattr("selfalign.app.serve.server_command", lambda *a: falls)
    assert main(["serve", str(run), "--port", str(free_port())]) == 1
    assert "the server did not start (cannot load it)" in capsys.readouterr().err
