"""What the world sends, made at random: rows of ShareGPT, messages and Alpaca, tables, replies of servers.

Each maker takes a random generator and a text, and gives bytes that may be sound, odd or broken. Where all of it is
sound, it tells how many rows must come out, so that a reader that loses one is found.
"""
import csv, gzip, io, json

# ---- values and rows

def some_value(rng, text):
    "What may stand where a text should."
    parts = [dict(type="text", text=text)], [dict(type="image_url", image_url={}), dict(type="text", text="What?")]
    no_text = None, 7, float("nan"), float("inf"), True, [], {}, ["x", None]
    return rng.choice((text, text[:20], "Why?", "", *no_text, *parts))

def some_speaker(rng, *names): return rng.choice((*names, names[0].upper(), f"{names[0]} ", None, 5))

def sharegpt_row(rng, text):
    "`conversations` of `from` and `value`, as a list, as JSON, twice JSON or Python's repr, whole or cut."
    speak = lambda: some_speaker(rng, "human", "gpt", "system", "user", "assistant", "tool")
    turn = lambda: {"from": speak(), "value": some_value(rng, text)}
    return {rng.choice(("conversations", "Conversations ", "conversation")): stored(rng, some_turns(rng, turn))}

def messages_row(rng, text):
    "`messages` of `role` and `content`, which may be parts, or one dict of two lists."
    speak = lambda: some_speaker(rng, "user", "assistant", "system", "developer", "tool")
    turn = lambda: dict(role=speak(), content=some_value(rng, text))
    columns = dict(role=["user", "assistant"], content=[text, "x"])
    talk = columns if rng.random() < .1 else some_turns(rng, turn)
    return {rng.choice(("messages", "Messages", "chat")): stored(rng, talk), "system": some_value(rng, text)}

def some_turns(rng, turn):
    "A conversation, mostly."
    turns = [turn() for _ in range(rng.randrange(4))]
    return turns if rng.random() < .8 else rng.choice((turn(), [*turns, "and so on"], [*turns, None], None))

def stored(rng, talk):
    "A conversation as it lies in a column: itself, or a text."
    if rng.random() < .5: return talk
    text = rng.choice((json.dumps(talk), str(talk), json.dumps(json.dumps(talk))))
    return text if rng.random() < .8 else text[:rng.randrange(1, len(text) + 1)]

def alpaca_row(rng, text):
    "`instruction`, `input` and `output`, some missing."
    row = dict(instruction=some_value(rng, text), input=some_value(rng, text), output=some_value(rng, text))
    return row if rng.random() < .8 else {k: v for k, v in row.items() if k == "instruction" or rng.random() < .5}

# ---- files of rows

def row_file(rng, make, text):
    "(name, bytes, how many rows or None where the file is broken) of JSON in some form."
    rows = [make(rng, text) for _ in range(rng.randrange(1, 4))]
    name = rng.choice(("d.jsonl", "d.json", "d.jsonl.gz", "d.ndjson"))
    form = rows if rng.random() < .7 else dict(version=1, data=rows)
    lines = "".join(json.dumps(r, ensure_ascii=rng.random() < .5) + "\n" for r in rows)
    whole = lines if name != "d.json" else json.dumps(form, indent=rng.choice((None, 1)))
    data, n = whole.encode("utf-8", "replace"), len(rows)
    if rng.random() < .3: data, n = broken(rng, data), None
    return name, gzip.compress(data, 1) if name.endswith("gz") else data, n

def broken(rng, data):
    "A few bytes lost, and a few that were never there."
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(4)) + data[at + rng.randrange(9):]

# ---- tables

ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "mac-roman")

def table(rng, text):
    "(bytes, how many rows or None) of a table in some dialect, as spreadsheets and programs write it."
    text = text.encode("utf-8", "replace").decode()
    make = rng.choice((sharegpt_row, messages_row, alpaca_row, lambda rng, text: dict(text=text, id=1)))
    rows = [make(rng, text) for _ in range(rng.randrange(1, 4))]
    names = list(dict.fromkeys(k for r in rows for k in r))
    sep, end, code = rng.choice(",;\t|"), rng.choice(("\n", "\n", "\r\n", "\r")), rng.choice(ENCODINGS)
    out = io.StringIO(newline="")
    sound = rng.random() < .6
    if sound: _written(out, rng, names, rows, sep, end)
    else: _careless(out, rng, names, rows, sep, end)
    head = rng.choice(("", "", "", f"sep={sep}{end}")) if len(names) > 1 else ""
    data = (head + out.getvalue()).encode(code, "replace")
    told = sound and end != "\r" and code in ("utf-8", "utf-8-sig", "utf-16") # the others may be turned down in a line
    return data, len(rows) if told else None

def _written(out, rng, names, rows, sep, end):
    w = csv.writer(out, delimiter=sep, lineterminator=end, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    w.writerow(names)
    for r in rows: w.writerow(["-" if r.get(k) in (None, "") else str(r.get(k)) for k in names])

def _careless(out, rng, names, rows, sep, end):
    quote = lambda v: v if rng.random() < .3 else '"' + v.replace('"', '""') + '"'
    for line in (names, *([r.get(k) for k in names] for r in rows)):
        out.write(sep.join(quote("" if v is None else str(v)) for v in line) + end)

# ---- replies of servers

def reply(rng, text):
    "(bytes, content type, headers) of an answer under the status 200: whole, streamed, an error in it, odd, cut."
    body = _body(rng, text)
    kinds = ("application/json", "text/html; charset=latin-1", "text/event-stream", "x")
    types = (*kinds, "application/json; charset=utf-8")
    code = rng.choice(("utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"))
    data = (_stream(rng, text) if rng.random() < .25 else json.dumps(body)).encode(code, "replace")
    if rng.random() < .2: data = broken(rng, data)
    waits = ("", "3", "-1", "soon", "1e999", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", text[:9])
    return data, rng.choice(types), {"retry-after": rng.choice(waits)}

def _body(rng, text):
    odd = lambda *good: rng.choice(good) if rng.random() < .85 else some_value(rng, text)
    message = dict(role="assistant", content=odd(text, None, "", [dict(type="text", text=text)], ["a", text]))
    for k in ("reasoning_content", "reasoning", "refusal", "tool_calls"):
        if rng.random() < .2: message[k] = odd(text, None, [])
    choice = dict(index=0, finish_reason=odd("stop", "length", "content_filter", "eos_token", None))
    choice |= dict(message=odd(message)) if rng.random() < .6 else dict(text=odd(text, None, ""))
    if rng.random() < .1: choice["error"] = _error(rng, text)
    if rng.random() < .1: choice["stop_reason"] = odd("User:", 2, None)
    details = dict(completion_tokens_details=odd(dict(reasoning_tokens=5), None))
    usage = odd(dict(prompt_tokens=odd(4), completion_tokens=odd(7, 0, None), **details), None)
    whole = dict(id="x", model="m", choices=odd([choice], [choice], [], None, ["x", choice]), usage=usage)
    if rng.random() < .2: whole["error"] = _error(rng, text)
    others = dict(detail=odd(text, [dict(msg=text)])), dict(error=text), [whole], text, None
    return whole if rng.random() < .95 else rng.choice(others)

def _error(rng, text):
    codes = (400, 401, 429, 500, 503, "429", "rate_limit_exceeded", None, text[:5])
    return rng.choice((text, None, [text], dict(code=rng.choice(codes), message=rng.choice((text, None, 5))), 500))

def _stream(rng, text):
    cut = lambda k: text[k::3]
    chunks = [dict(choices=[dict(delta=dict(content=cut(k)), finish_reason=None)]) for k in range(3)]
    odd = some_value(rng, text)
    more = dict(choices=[]), dict(choices=None), dict(choices=[odd]), dict(choices=[dict(delta=odd)])
    chunks.append(rng.choice((*more, dict(error=_error(rng, text)), odd)))
    usage = rng.choice((None, dict(completion_tokens=3), 5))
    chunks.append(dict(choices=[dict(delta={}, finish_reason="stop")], usage=usage))
    lines = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks if rng.random() < .9)
    end = rng.choice(("data: [DONE]\n\n", "data: [DONE]", ""))
    return rng.choice(("", ": ping\n", "event: message\n")) + lines + end
