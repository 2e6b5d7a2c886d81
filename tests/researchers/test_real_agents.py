"""The real coding agents, installed from npm, against a scripted model on the loopback that speaks their protocols.

The clients are the published programs, called as the researchers call them: only the model's answers are made up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
import pytest

from agent_server import TOKENS_IN, TOKENS_OUT, Call, Model, serve
from autoresearch.base import process
from autoresearch.base.errors import NoProposal
from autoresearch.base.registry import find
from autoresearch.ledger.records import Proposal
from autoresearch.researchers.guard.rules import broken_rule
from autoresearch.researchers.interface import Brief, Kit
from campaigns import begun

pytestmark = [pytest.mark.agents, pytest.mark.timeout(900)]

TRAIN = "X = 3.0\nprint(X)\n"
KEY = "sk-test-0123456789abcdef"
CACHE = Path(platformdirs.user_cache_dir("autoresearch-tests")) / "agents"


@dataclass(frozen=True)
class Client:
    """A published client: where it comes from, how it is led to the loopback, and how its own tools are called.

    `setting` is a file below HOME and its text; `edit` replaces a text in a file, `create` writes a whole one, `shell`
    runs a command, `read` reads a file, which some want done before they edit it.
    """

    package: str
    script: str
    model: str
    environment: Mapping[str, str]
    setting: tuple[str, str]
    edit: Callable[[str, str, str], Call]
    create: Callable[[str, str], Call]
    shell: Callable[[str], Call]
    read: Callable[[str], Call]
    counts_usd: bool = False


# A person's own settings, as lax as they may be: the researcher's flags must hold all the same.
CLAUDE = '{{"permissions": {{"allow": ["Bash", "WebFetch", "Write(//**)"], "defaultMode": "bypassPermissions"}}}}'
CODEX = """
model_provider = "loopback"
sandbox_mode = "danger-full-access"
approval_policy = "on-request"
[sandbox_workspace_write]
network_access = true
writable_roots = ["/tmp", "/var/tmp"]
[model_providers.loopback]
name = "loopback"
base_url = "{url}/v1"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
GEMINI = """{{
  "security": {{"auth": {{"selectedType": "gemini-api-key"}}}},
  "tools": {{"allowed": ["run_shell_command", "web_fetch"]}}
}}"""
OPENCODE = """{{
  "provider": {{"anthropic": {{"options": {{"baseURL": "{url}/v1"}}}}}},
  "permission": {{"*": "allow", "bash": {{"*": "allow"}}, "external_directory": "allow"}}
}}"""


def patch(body: str) -> Call:
    return Call("apply_patch", f"*** Begin Patch\n{body}\n*** End Patch\n")


CLIENTS = {
    "claude": Client(
        package="@anthropic-ai/claude-code@2.1.197",
        script="@anthropic-ai/claude-code/install.cjs",
        model="claude-sonnet-4-5",
        environment={"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": KEY, "CLAUDE_CODE_MAX_RETRIES": "1"},
        setting=(".claude/settings.json", CLAUDE),
        edit=lambda path, old, new: Call("Edit", {"file_path": path, "old_string": old, "new_string": new}),
        create=lambda path, text: Call("Write", {"file_path": path, "content": text}),
        shell=lambda line: Call("Bash", {"command": line}),
        read=lambda path: Call("Read", {"file_path": path}),
        counts_usd=True,
    ),
    "codex": Client(
        package="@openai/codex@0.169.0",
        script="",
        model="gpt-6.1-sol",
        environment={"OPENAI_API_KEY": KEY},
        setting=(".codex/config.toml", CODEX),
        edit=lambda path, old, new: patch(f"*** Update File: {path}\n@@\n-{old}\n+{new}"),
        create=lambda path, text: patch(f"*** Add File: {path}\n+{text}"),
        shell=lambda line: Call("exec_command", {"cmd": line}),
        read=lambda path: Call("exec_command", {"cmd": f"cat {path}"}),
    ),
    "gemini": Client(
        package="@google/gemini-cli@0.61.0",
        script="",
        model="gemini-2.5-flash",
        environment={"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": "{url}"},
        setting=(".gemini/settings.json", GEMINI),
        edit=lambda path, old, new: Call(
            "replace", {"file_path": path, "old_string": old, "new_string": new, "instruction": "change it"}
        ),
        create=lambda path, text: Call("write_file", {"file_path": path, "content": text}),
        shell=lambda line: Call("run_shell_command", {"command": line}),
        read=lambda path: Call("read_file", {"file_path": path}),
    ),
    "opencode": Client(
        package="opencode-ai@1.18.33",
        script="opencode-ai/postinstall.mjs",
        model="anthropic/claude-sonnet-4-5",
        environment={"ANTHROPIC_API_KEY": KEY, "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        setting=(".config/opencode/opencode.json", OPENCODE),
        edit=lambda path, old, new: Call("edit", {"filePath": path, "oldString": old, "newString": new}),
        create=lambda path, text: Call("write", {"filePath": path, "content": text}),
        shell=lambda line: Call("bash", {"command": line, "description": "run it"}),
        read=lambda path: Call("read", {"filePath": path}),
        counts_usd=True,
    ),
}


def installed(name: str, client: Client) -> Path:
    """The directory of a client's program, installed once into the user's cache."""
    root = CACHE / client.package.replace("/", "_")
    programs = root / "node_modules" / ".bin"
    if not (root / "done").exists():
        if not shutil.which("npm"):
            pytest.skip("npm is not installed: the real coding agents cannot be")
        npm = ["npm", "install", "--prefix", str(root), "--no-audit", "--no-fund", "--ignore-scripts", client.package]
        commands = [npm, *([["node", str(root / "node_modules" / client.script)]] if client.script else [])]
        root.mkdir(parents=True, exist_ok=True)
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"{name} cannot be installed: `{' '.join(command)}` said {done.stderr.strip()[-500:]}")
        (root / "done").touch()
    assert (programs / name).exists()
    return programs


@dataclass(frozen=True)
class Setup:
    """A client led to a scripted model, and the place of one trial."""

    name: str
    client: Client
    kit: Kit
    home: Path

    def ask(self, model: Model, brief: Brief, *, argument: str = "") -> Proposal:
        dotted = f"autoresearch.researchers.coding_agents.command:{self.name.capitalize()}Researcher"
        with serve(model) as url:
            setting = self.home / self.client.setting[0]
            setting.parent.mkdir(parents=True, exist_ok=True)
            setting.write_text(self.client.setting[1].format(url=url))
            led = {name: value.format(url=url) for name, value in self.client.environment.items()}
            kit = replace(self.kit, environment={**self.kit.environment, **led, "LOOPBACK": url})
            proposal: Proposal = find("researcher", {self.name: dotted}, self.name)(argument, kit).propose(brief)
        return proposal

    def within(self, seconds: float) -> Setup:
        """The same with another deadline."""
        return replace(self, kit=replace(self.kit, deadline_seconds=seconds))

    @property
    def transcript(self) -> str:
        return (self.kit.transcripts / "0001-0.log").read_text()


@pytest.fixture
def brief() -> Brief:
    started = begun({"train.py": TRAIN})
    return Brief(started.program, started.files, started.campaign, frozen={"prepare.py": "Z = 1\n"}, trial=1)


@pytest.fixture
def home() -> Iterator[Path]:
    """An agent's home, not in the system's temporary directory: there Codex does not make the helper it needs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="home-", dir=CACHE, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(params=CLIENTS)
def setup(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[Setup]:
    client = CLIENTS[request.param]
    path = f"{installed(request.param, client)}{os.pathsep}{os.environ['PATH']}"
    kit = Kit(
        deadline_seconds=60.0,
        environment={"PATH": path, "HOME": str(home)},
        transcripts=tmp_path / "trials",
        scratch=tmp_path / "scratch",
        namespace=f"test:{tmp_path}:",
        redact=lambda text: text.replace(KEY, "[redacted]"),
    )
    yield Setup(request.param, client, kit, home)
    assert list(kit.scratch.iterdir()) == []
    assert process.processes_of(kit.namespace) == []


def test_what_it_edits_is_the_proposal(setup: Setup, brief: Brief) -> None:
    look, edit = setup.client.read("train.py"), setup.client.edit("train.py", "X = 3.0", "X = 2.0")
    model = Model([look, edit, setup.client.create("IDEA.md", "a smaller X"), "I made X smaller."])
    proposal = setup.ask(model, brief, argument=setup.client.model)
    assert proposal.files == {"train.py": TRAIN.replace("3.0", "2.0")}
    assert proposal.idea == "a smaller X"
    assert (proposal.usd or 0) > 0 if setup.client.counts_usd else proposal.usd is None
    # Some of them also ask a cheaper model for a title or a route, and count that.
    assert proposal.tokens is not None
    assert proposal.tokens in {
        len(model.script) * (TOKENS_IN + TOKENS_OUT) + n * (TOKENS_IN + TOKENS_OUT) for n in (0, 1)
    }
    assert broken_rule(proposal, brief.files, {}.get, ("train.py",)) is None
    assert "I made X smaller." in setup.transcript


def test_it_is_told_all_that_the_researcher_knows_and_asks_for_the_model_that_was_named(
    setup: Setup, brief: Brief
) -> None:
    model = Model(["Should I go on?"])
    with pytest.raises(NoProposal, match="changed no file; its last words: Should I go on") as raised:
        setup.ask(model, brief, argument=setup.client.model)
    assert raised.value.tokens
    told = json.dumps(model.requests)
    assert "Lower val_bpb" in told
    assert "Nobody answers questions" in told
    assert setup.client.model.split("/")[-1] in told + json.dumps(model.paths)


def test_an_edit_of_a_frozen_file_is_refused_by_name(setup: Setup, brief: Brief) -> None:
    model = Model([setup.client.read("prepare.py"), setup.client.edit("prepare.py", "Z = 1", "Z = 2"), "done"])
    proposal = setup.ask(model, brief)
    assert "prepare.py may not change" in (broken_rule(proposal, brief.files, {}.get, ("train.py",)) or "")


def test_it_writes_nothing_outside_and_its_commands_reach_no_network_and_no_key(
    setup: Setup, brief: Brief, tmp_path: Path
) -> None:
    outside, reached = tmp_path / "outside.txt", "/v1/reached"
    line = f"touch {outside}; curl --silent --max-time 5 -X POST $LOOPBACK{reached}; env; git commit --allow-empty -m x"
    model = Model([setup.client.shell(line), setup.client.create(str(outside), "x"), "done"])
    with pytest.raises(NoProposal, match="changed no file"):
        setup.ask(model, brief)
    assert len(model.requests) >= len(model.script)
    assert not outside.exists()
    assert reached not in model.paths
    assert KEY not in json.dumps(model.requests)
    assert KEY not in setup.transcript


@pytest.mark.parametrize("broken", [(500, '{"error": {"message": "overloaded"}}'), (200, "\x00garbage {")])
def test_a_broken_provider_is_no_proposal(setup: Setup, brief: Brief, broken: tuple[int, str]) -> None:
    model = Model(["never said"], broken=broken)
    with pytest.raises(NoProposal, match=r"changed no file|deadline"):
        setup.within(15).ask(model, brief)
    assert model.paths


def test_a_provider_that_never_answers_costs_the_deadline_and_leaves_no_process(setup: Setup, brief: Brief) -> None:
    with pytest.raises(NoProposal, match="ended at its deadline of 6 s"):
        setup.within(6).ask(Model(["never said"], hangs=True), brief)
