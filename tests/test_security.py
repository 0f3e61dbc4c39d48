"""What the code must never do, read from the code itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atomdiffuser.workflow.config_file import CHECKOUT

SOURCES = [*(CHECKOUT / "atomdiffuser").rglob("*.py"), *(CHECKOUT / "benchmarks").rglob("*.py")]
RULES = [CHECKOUT / "Snakefile", *(CHECKOUT / "workflow" / "rules").glob("*.smk")]
NEVER_IMPORTED = {
    **dict.fromkeys(("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), "pickle"),
    **dict.fromkeys(("socket", "urllib.request", "http.client", "requests", "httpx", "aiohttp", "ftplib"), "network"),
}
NEVER_CALLED = {
    "eval": "code from text", "exec": "code from text", "os.system": "shell", "os.popen": "shell",
    "subprocess.getoutput": "shell", "torch.load": "pickle", "torch.save": "pickle", "pd.read_pickle": "pickle",
    "yaml.load": "yaml", "yaml.load_all": "yaml", "yaml.unsafe_load": "yaml", "yaml.full_load": "yaml",
    "tempfile.mktemp": "a name that another may take", "jinja2.Template": "no autoescape",
}  # fmt: skip
PLACEHOLDER = re.compile(r"(?<!\{)\{([a-z_][\w.\[\]]*)(:\w+)?\}(?!\})")
MADE_HERE = {"threads", "params.config_hash", "params.memory", "params.cluster"}  # numbers, and quoted options


def offences(source: str) -> Iterator[str]:
    """What a piece of Python does that it must not: `line: what`."""
    nodes = list(ast.walk(ast.parse(source)))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    safe_loaders = {c.name for c in classes if [ast.unparse(b) for b in c.bases] == ["yaml.SafeLoader"]}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            if names == ["socket"] and isinstance(node, ast.Import) and inside_the_machine(nodes):
                continue
            base = getattr(node, "module", None) or ""
            for name in [*names, base, *(f"{base}.{n}" for n in names)]:
                if name in NEVER_IMPORTED or name.split(".")[0] in NEVER_IMPORTED:
                    yield f"{node.lineno}: {NEVER_IMPORTED.get(name) or NEVER_IMPORTED[name.split('.')[0]]}"
                    break
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "yaml.load" and len(node.args) == 2 and ast.unparse(node.args[1]) in safe_loaders:
                continue
            if called in NEVER_CALLED:
                yield f"{node.lineno}: {NEVER_CALLED[called]}"
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if given.get("shell", "False") != "False":
                yield f"{node.lineno}: shell"
            if given.get("allow_pickle", "False") != "False":
                yield f"{node.lineno}: pickle"
            if called.endswith("Environment") and "autoescape" not in given:
                yield f"{node.lineno}: no autoescape"


def inside_the_machine(nodes: list[ast.AST]) -> bool:
    """Whether all sockets of a file are Unix ones, or one that was handed to the process open."""
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("socket."):
            given = [*map(ast.unparse, node.args), *(str(k.arg) for k in node.keywords)]
            unix = ast.unparse(node.func) == "socket.socket" and given in (["socket.AF_UNIX"], ["fileno"])
            if not unix and ast.unparse(node.func) not in ("socket.send_fds", "socket.recv_fds"):
                return False
    return True


def unquoted(rules: str) -> list[str]:
    """Placeholders of shell commands that a name with a blank or a `;` would break out of."""
    found = []
    for shell in re.findall(r"^    shell:\n((?:        .*\n?)+)", rules, re.MULTILINE):
        found += [m[0] for m in PLACEHOLDER.finditer(shell) if m[2] != ":q" and m[1] not in MADE_HERE]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_no_pickle_no_shell_no_network_no_unsafe_yaml(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.fault(
    fault="a file name with blanks, quotes, `$`, `;` or line breaks",
    happens="it reaches each job as one argument: every placeholder of every rule is quoted",
    user_sees="nothing",
)
@pytest.mark.parametrize("path", RULES, ids=lambda p: p.name)
def test_every_value_in_a_shell_command_is_quoted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert unquoted(text) == []
    assert text.count("shell:\n") == len(re.findall(r"^    shell:\n", text, re.MULTILINE))
    assert "run:" not in re.findall(r"^    \w+:", text, re.MULTILINE)


@pytest.mark.parametrize("key", ["memory_limit", "dask_scheduler"])
def test_an_option_that_holds_a_setting_is_quoted_where_it_is_made(key: str) -> None:
    rules = (CHECKOUT / "workflow" / "rules" / "common.smk").read_text(encoding="utf-8")
    assert f'{key.upper()} = shlex.join(["--{key.replace("_", "-")}", config["{key}"]])' in rules


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "from urllib import request",
        "import torch\ntorch.load('x')", "np.load(f, allow_pickle=True)", "subprocess.run('ls', shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class A(yaml.Loader): pass\nyaml.load(text, A)",
        "import socket\nsocket.socket()", "import socket\nsocket.create_connection(('a', 1))",
        "from socket import socket",
        "os.system('ls')", "eval('1')", "jinja2.Environment(loader=x)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(bad: str) -> None:
    assert list(offences(bad))


def test_the_search_for_unquoted_placeholders_finds_them() -> None:
    rule = 'rule a:\n    shell:\n        "x {input.a:q} {params.b} {threads}"\n        " {wildcards.series} {{c}}"\n'
    assert unquoted(rule) == ["{params.b}", "{wildcards.series}"]


def test_templates_escape_what_they_show() -> None:
    """What is marked as safe in a template is made by the package: pictures, styles, scripts and their data."""
    for template in (CHECKOUT / "atomdiffuser" / "report" / "templates").glob("*.html"):
        marked = re.findall(r"\{\{[^}]*\|\s*safe[^}]*\}\}", template.read_text(encoding="utf-8"))
        made = r"svg|figure|css|style|script|js|data|payload|image|\{\{ \"<br>\" \|"
        assert all(re.search(made, text) for text in marked), marked


def test_every_dependency_is_pinned_to_one_version() -> None:
    for name in ("lock", "demo", "distributed", "test", "lint", "peers", "quality", "docs"):
        lines = (CHECKOUT / "requirements" / f"{name}.txt").read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith(("#", "-"))]
        assert wanted
        assert [line for line in wanted if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[\w.+!]+.*", line)] == []
