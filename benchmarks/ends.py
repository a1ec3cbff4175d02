"""How often a fine-tuned model ends its answers by itself, where its chat template's end of turn was never trained.

    python benchmarks/ends.py    # writes data/results/ends.json; minutes on two cores

The embedded model gets a chat template whose end of turn, a token that no text holds, has a row of the vocabulary as a
model starts with: drawn at random, deviation 0.02. It is trained on the sample rows of stage 2 and asked open questions
of the package; counted is how many of its answers end within `--tokens` tokens. Arms: the row left alone; the row
trained beside LoRA, which is what one process does; and training in two processes, which take an end that the model
knows, and once more where it knows none well, its own `<|im_end|>` being drawn anew too. The last arm is the model as it
is, under its own template.
"""
import argparse
import contextlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch

from selfalign import sft
from selfalign.config import TrainConfig
from selfalign.encoding import plain_messages
from selfalign.evals.stats import wilson
from selfalign.generation import Sampling, load_engine
from selfalign.human import OURS
from selfalign.models import load_model
from selfalign.provenance import hardware
from selfalign.rows import content_id, read_jsonl, write_json
from selfalign.runs import git_commit, versions

ROOT = Path(__file__).resolve().parent.parent
END = "<gh_stars>" # in the embedded model's vocabulary, and in no text
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TWO = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
"""
ARMS = ("row left alone", "row trained, one process", "known end, two processes", "no end known, two processes",
    "its own template")


def untrained(folder, seed, forget):
    "The embedded model, with a template's end that it has never seen; forget: of these tokens nothing is known either."
    model, tok = load_model("embedded", dtype=torch.float32, device="cpu")
    tok.chat_template, tok.eos_token, tok.pad_token = TEMPLATE, "<|endoftext|>", "<|endoftext|>"
    drawn = torch.Generator().manual_seed(seed)
    rows = model.get_output_embeddings().weight.data
    for t in (END, *forget): rows[tok.convert_tokens_to_ids(t)] = torch.randn(rows.shape[1], generator=drawn) * .02
    for c in (model.config, model.generation_config):
        c.eos_token_id = c.pad_token_id = tok.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def trained(arm, o, work):
    "Where the trained model lies."
    forget = ("<|im_end|>",) if arm == ARMS[3] else ()
    base = "embedded" if arm == ARMS[4] else untrained(work/"base", o.seed, forget)
    file = work/"two.yaml"
    file.write_text(TWO)
    two = arm in ARMS[2:4]
    cfg = TrainConfig(epochs=o.epochs, global_batch=8, micro_batch=4, learning_rate=4e-4, max_length=512,
        accelerate_config=str(file) if two else None)
    unasked = patch.object(sft, "end_rank", lambda *a: 0.) if arm == ARMS[0] else contextlib.nullcontext()
    # accelerate starts several CPU processes only through its GPU launcher, told to stay off the GPU
    env = patch.dict(os.environ, ACCELERATE_USE_CPU="true") if two else contextlib.nullcontext()
    rows = read_jsonl(ROOT/"data/samples/responses.jsonl")
    with unasked, env: info = sft.train_model(rows, base, work/"out", work/"steps", cfg, o.seed)
    return work/"out", info


def ended(model, o):
    "Which of the answers to open questions ended by themselves."
    asked = [dict(id=content_id(q), instruction=q, input="")
        for r in read_jsonl(ROOT/"data/eval/questions.jsonl") for q in r["turns"]]
    chats = [plain_messages(r, OURS.systems) for r in asked]
    with load_engine(f"torch:{model}", dtype="float32", device="cpu") as e:
        got = [e.generate(chats, Sampling(temperature=.7, max_new_tokens=o.tokens, seed=k)) for k in range(o.samples)]
    return [c.finish_reason == "stop" for answers in got for c in answers]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--samples", type=int, default=2, help="answers to each of the 20 questions")
    p.add_argument("--tokens", type=int, default=120)
    p.add_argument("--epochs", type=float, default=3.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=ROOT/"data/results/ends.json")
    o = p.parse_args()
    command = f"python benchmarks/ends.py --samples {o.samples} --tokens {o.tokens} --epochs {o.epochs:g} --seed {o.seed}"
    about = dict(command=command, commit=git_commit(), hardware=hardware(),
        versions=versions(("selfalign", "torch", "transformers", "trl", "peft")))
    arms = {}
    for arm in ARMS:
        with tempfile.TemporaryDirectory() as work:
            model, info = trained(arm, o, Path(work))
            stopped = ended(model, o)
            said = json.loads((model/"tokenizer_config.json").read_text())["eos_token"]
        rate = wilson(sum(stopped), len(stopped))
        arms[arm] = dict(ended=sum(stopped), n=len(stopped), rate=asdict(rate), end=said, steps=info["steps"],
            last_loss=info["last_loss"])
        print(f"{arm}: {sum(stopped)} of {len(stopped)} answers end by themselves, turns end in {said}", flush=True)
        write_json(o.out, about | dict(arms=arms))


if __name__ == "__main__": main()
