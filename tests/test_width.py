"""Width and rhythm of the house, as a ratchet: `python tests/test_width.py` prints where each limit is passed.

A limit below may only go down; behind some stands where it should end. What they count stands on the contributing page:
lines of at most 120 columns, at most three definitions and 50 lines of code a cell, 350 lines a module, no semicolon
between two ideas, imports in cells of their own, a sentence beside every exported name, and patterns as data
(`data/filters`, `data/phrases`) but for short ones. `chkstyle nbs` (package fastaistyle, its rules chosen in
pyproject.toml) counts the same and more."""
import ast, importlib.util, io, json, re, subprocess, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = { # what is counted → how often it may be
    "lines over 120 in nbs, in per cent": 1, "lines over 120 in tests, in per cent": 1,
    "lines over 120 in benchmarks, in per cent": 1, "lines over 160 in nbs": 0,
    "cells with more than 3 definitions": 5,
    "cells of more than 50 lines of code": 2,
    "modules of more than 350 lines": 0,
    "semicolons": 20, "cells that mix imports and work": 0,
    "exports without a sentence beside them": 19,
    "characters of patterns in exported code": 3000, # texts given to `re`, and other texts that only `re` would read
    "what chkstyle says of nbs": 90}                 # nothing where it is not installed

def code_cells(path):
    "(cell, source, its tree, does a text stand beside it); the tree of a cell that shows a command is empty."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = [c["cell_type"] == "markdown" for c in cells]
    for i, c in enumerate(cells):
        if c["cell_type"] != "code": continue
        source = "".join(c["source"])
        try: body = ast.parse(source).body
        except SyntaxError: body = []
        yield f"{path.relative_to(ROOT)}:{c['id']}", source, body, any(text[max(i-1, 0):i+2])

def pages():
    return [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if not {".ipynb_checkpoints", "_proc"} & {*p.parts}]

def lines_of(folder): # (where, line)
    if folder == "nbs": sources = [(w, s) for p in pages() for w, s, *_ in code_cells(p)]
    else: sources = [(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for p in (ROOT/folder).rglob("*.py")]
    return [(w, l) for w, s in sources for l in s.split("\n") if l.strip()]

def semicolons(source, body):
    if not body or ";" not in source: return 0
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(t.type == tokenize.OP and t.string == ";" for t in tokens)

def defined(body): return [n for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]

def mixes(source, body): # an exported cell's imports are carried to its module
    imports = sum(isinstance(n, ast.Import | ast.ImportFrom) for n in body)
    return 0 < imports < len(body) and not re.search(r"(?m)^#\| *export", source)

def bare(source, body, text): # exported, public, and nothing said
    return re.search(r"(?m)^#\| *export", source) and not text and any(n.name[0] != "_" for n in defined(body))

def patterns(tree):
    "(line, text) of what stands in the first argument of a function of `re`, or looks like a regular expression."
    given = [n for call in ast.walk(tree) if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("re.")
        for arg in call.args[:1] for n in ast.walk(arg)]
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    sign = re.compile(r"\\[bdsSwWAZ]|\(\?[:<i!=#m]|\[\^")
    return [(n.lineno, n.value) for n in texts if n in given or sign.search(n.value)]

def chkstyle():
    "Where a rule of chkstyle is broken, and which."
    if not importlib.util.find_spec("chkstyle"): return []
    done = subprocess.run([sys.executable, "-c", "from chkstyle.core import cli; cli()", "--show-rule", "nbs"], cwd=ROOT,
        capture_output=True, text=True)
    return re.findall(r"(?m)^# (nbs/.*)", done.stdout + done.stderr)

def modules():
    return [p for p in sorted((ROOT/"selfalign").rglob("*.py")) if p.name != "_modidx.py"]

def counted():
    "What is counted → (number, where)."
    out = {}
    for folder in ("nbs", "tests", "benchmarks"):
        lines = lines_of(folder)
        wide = [f"{w}: {len(l)} columns: {l.strip()[:60]}" for w, l in lines if len(l) > 120]
        out[f"lines over 120 in {folder}, in per cent"] = 100*len(wide)/len(lines), wide
    wider = [f"{w}: {len(l)} columns: {l.strip()[:60]}" for w, l in lines_of("nbs") if len(l) > 160]
    cells = [c for p in pages() for c in code_cells(p)]
    code = {w: sum(bool(re.match(r"\s*[^\s#]", l)) for l in s.split("\n")) for w, s, *_ in cells}
    written = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in modules()}
    size = {p: len(text.split("\n")) - 1 for p, text in written.items()}
    found_in = [(f"{p}:{line}", text) for p, code_of in written.items() for line, text in patterns(ast.parse(code_of))]
    found = (wider, [f"{w}: {n}" for w, _, b, _ in cells if (n := len(defined(b))) > 3],
        [f"{w}: {n} lines" for w, n in code.items() if n > 50], [f"{p}: {n} lines" for p, n in size.items() if n > 350],
        [w for w, s, b, _ in cells for _ in range(semicolons(s, b))], [w for w, s, b, _ in cells if mixes(s, b)],
        [w for w, s, b, text in cells if bare(s, b, text)])
    out |= {name: (len(x), x) for name, x in zip(list(LIMITS)[3:-2], found)}
    longest = sorted(found_in, key=lambda f: -len(f[1]))
    of_patterns = [f"{where}: {len(text)}: {text[:60]!r}" for where, text in longest[:20]]
    told = chkstyle()
    return out | {[*LIMITS][-2]: (sum(len(text) for _, text in found_in), of_patterns), [*LIMITS][-1]: (len(told), told)}

def test_no_limit_is_passed():
    over = {k: (n, where) for k, (n, where) in counted().items() if n > LIMITS[k]}
    assert not over, over

def test_a_wide_line_and_a_crowded_cell_are_seen():
    body = ast.parse("import os\ndef a(): x = 1; return x").body
    assert (semicolons("x = 1; y = ';'", body), mixes("import os\nx", body), len(defined(body))) == (1, True, 1)
    assert bare("#| export\ndef a(): 1", body, False) and not bare("#| export\ndef a(): 1", body, True)

def test_a_pattern_is_seen_whether_re_is_given_it_or_not():
    tree = ast.parse(r"""re.sub(rf"a{x}b", "new", y); WORD = r"\w+|\s"; SAYS = "A text? Yes (a long one)." """)
    assert {t for _, t in patterns(tree)} == {"a", "b", r"\w+|\s"}

def test_every_room_is_named_on_the_contributing_page():
    page = (ROOT/"nbs/guides/contributing.ipynb").read_text(encoding="utf-8")
    rows = dict.fromkeys(("app", "core/engines", "core/filters", "core/evals"), "")
    rows = {wing.rpartition("/")[2]: re.search(rf"\| `nbs/{wing}/` \|.*", page)[0] for wing in rows}
    for module in (ROOT/"selfalign").rglob("*.py"):
        if module.stem.startswith("_"): continue
        table = rows.get(module.parent.name) or page
        assert f"`{module.stem}`" in table, f"{module.relative_to(ROOT)} has no place in How to read the house"

if __name__ == "__main__":
    found = counted()
    for name, (n, where) in found.items():
        over = ", passed by:" if n > LIMITS[name] else ""
        if "--over" in sys.argv and not over: continue # nothing is said of limits that are kept
        print(f"{name}: {n:.4g}, at most {LIMITS[name]}{over}", *(where if over or "-v" in sys.argv else ()), sep="\n  ")
    sys.exit(any(n > LIMITS[k] for k, (n, _) in found.items()))
