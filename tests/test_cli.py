"""The command line from outside: exit codes, the one line, and what must not be printed."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer

import jwt
import pytest
from click.testing import CliRunner, Result

from sidecar import __version__
from sidecar.cli import exit_code_of, main, readiness_url
from sidecar.config import StartError
from sidecar.core.ports import AuditEvent
from sidecar.security.audit_record import (
    GENESIS,
    AuditFileError,
    AuditFileProblem,
    AuditRecord,
    build_record,
    hash_of,
)
from sidecar.security.files import SettingError

ROOT = Path(__file__).resolve().parent.parent
CANARY = "canary-7f3a"
SECRET = "0123456789abcdef-" + CANARY + "-0123456789abcdef"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def sidecar(*arguments: str | Path, **environ: str) -> Done:
    """`python -m sidecar` as its own process, warnings as errors."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("SIDECAR_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sidecar", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: str | Path, **environ: str) -> Result:
    """The same in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environ, prog_name="sidecar")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.upper().startswith("SIDECAR_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Settings fit for service, with an HMAC secret."""
    key_file = tmp_path / "user.key"
    key_file.touch(mode=0o600)
    key_file.write_text(SECRET + "\n")
    file = tmp_path / "sidecar.toml"
    file.write_text(
        f'[user_tokens]\nissuer = "https://issuer.example"\naudience = "chat"\nkey_file = "{key_file}"\nkey_id = "1"\n'
    )
    return file


# --- version, help ----------------------------------------------------------------------------------------------------


def test_version() -> None:
    assert sidecar("version") == Done(0, f"sidecar {__version__}\n", "")


def test_what_is_small_does_not_load_what_is_big() -> None:
    script = (
        "import sys; from sidecar.cli import main; main(['version'], standalone_mode=False); "
        "print([name for name in ('grpc', 'pydantic', 'cryptography', 'aiohttp', 'structlog', 'asyncio') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )
    assert done.stdout.splitlines()[1] == "[]"


def test_an_unknown_command_is_a_wrong_call() -> None:
    assert sidecar("sreve").code == 2


# --- check-config -----------------------------------------------------------------------------------------------------


def test_check_config_of_good_settings(config_file: Path) -> None:
    assert sidecar("check-config", config_file) == Done(0, "ok\n", "")


@pytest.mark.parametrize(
    ("toml", "environ", "line"),
    [
        (
            '[websocket]\nallowed_origins = ["*"]',
            {},
            'websocket.allowed_origins: "*" is allowed only in development',
        ),
        (
            f'[user_tokens]\nissuer = "{CANARY}"\naudience = "a"\nkey_file = "{CANARY}"\nalgorithms = ["none"]',
            {},
            "user_tokens.algorithms: must not allow unsigned tokens (none)",
        ),
        (f'[limits]\nmanagers_per_user = "{CANARY}"', {}, "limits.managers_per_user: must be an integer"),
        (f"listen = {CANARY}", {}, "config: the file must be TOML (see line 1, column 10)"),
        ("", {"SIDECAR_GRPC__LISTN": CANARY}, "grpc.listn: unknown key"),
        ("", {"SIDECAR_GRPC__LISTEN": CANARY}, None),
        ("", {}, "user_tokens: issuer, audience and key_file are required outside development"),
    ],
)
def test_check_config_refuses_in_one_line(tmp_path: Path, toml: str, environ: dict[str, str], line: str | None) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(toml)
    done = sidecar("check-config", file, **environ)
    assert (done.code, done.out) == (78, "")
    assert done.err == f"{line}\n" if line else re.fullmatch(r"grpc\.listen: must be [^\n]+\n", done.err)
    assert CANARY not in done.err


def test_check_config_for_development(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('[websocket]\nallowed_origins = ["*"]')
    assert invoke("check-config", "--dev", file).output == "ok\n"


def test_check_config_without_the_file(tmp_path: Path) -> None:
    done = invoke("check-config", tmp_path / CANARY)
    assert (done.exit_code, done.output) == (78, "config: the file cannot be read: No such file or directory\n")


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environ", "line"),
    [
        ([], {}, "user_tokens: issuer, audience and key_file are required outside development"),
        (["--dev"], {"SIDECAR_OPS__LISTEN": "0.0.0.0:8081"}, "ops.listen: must be on loopback in development"),
        (["--config", CANARY], {}, "config: the file cannot be read: No such file or directory"),
    ],
)
def test_serve_refuses_what_it_is_not_fit_for(arguments: list[str], environ: dict[str, str], line: str) -> None:
    assert sidecar("serve", *arguments, **environ) == Done(78, "", line + "\n")


def test_only_development_has_an_agent_to_leave_out() -> None:
    done = invoke("serve", "--no-agent")
    assert done.exit_code == 2
    assert "--no-agent goes with --dev" in done.output


def test_the_exit_code_is_the_sidecar_s_own() -> None:
    assert exit_code_of(lambda: 7) == 7


def test_what_keeps_it_from_starting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise StartError("ops.listen: 127.0.0.1:1 is in use")

    assert exit_code_of(run) == 1
    assert capsys.readouterr().err == "ops.listen: 127.0.0.1:1 is in use\n"


def test_another_error_of_the_system_is_not_hidden() -> None:
    def run() -> int:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        exit_code_of(run)


def test_an_audit_file_that_cannot_be_used_names_its_setting() -> None:
    def run() -> int:
        raise AuditFileError(AuditFileProblem.CANNOT_OPEN, "EACCES")

    with pytest.raises(SettingError, match=r"\Aaudit\.path: the file cannot be opened .* \(EACCES\)\Z"):
        exit_code_of(run)


def test_a_key_file_that_cannot_be_used_is_passed_on() -> None:
    def run() -> int:
        raise SettingError("user_tokens.key_file", "an HMAC secret must have at least 32 bytes")

    with pytest.raises(SettingError, match="at least 32 bytes"):
        exit_code_of(run)


# --- token user -------------------------------------------------------------------------------------------------------


def test_a_minted_token_says_who_the_user_is(config_file: Path) -> None:
    done = sidecar(
        "token", "user", "--sub", "alice", "--tid", "t", "--sid", "s", "--ttl", "60", "--config", config_file
    )
    assert (done.code, done.err) == (0, "")
    text = done.out.strip()
    claims = jwt.decode(text, SECRET, algorithms=["HS256"], audience="chat", issuer="https://issuer.example")
    assert (claims["sub"], claims["tid"], claims["sid"], claims["exp"] - claims["iat"]) == ("alice", "t", "s", 60)
    assert jwt.get_unverified_header(text)["kid"] == "1"
    assert CANARY not in done.out


def test_a_minted_token_needs_only_a_subject(config_file: Path) -> None:
    text = invoke("token", "user", "--sub", "alice", "--config", config_file).output.strip()
    claims = jwt.decode(text, SECRET, algorithms=["HS256"], audience="chat")
    assert {"tid", "sid"}.isdisjoint(claims)
    assert claims["exp"] - claims["iat"] == 3600


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sub", "al ice"], "--sub must match [A-Za-z0-9_.:@|-]{1,128}"),
        (["--sub", "alice", "--tid", "t/"], "--tid must match [A-Za-z0-9_.:@|-]{1,128}"),
        (["--sub", "alice", "--ttl", "0"], "Invalid value for '--ttl': 0 is not in the range 1<=x<=86400."),
        (["--sub", "alice", "--ttl", "86401"], "Invalid value for '--ttl': 86401 is not in the range 1<=x<=86400."),
        ([], "Missing option '--sub'."),
    ],
)
def test_what_no_token_may_say_is_a_wrong_call(config_file: Path, arguments: list[str], line: str) -> None:
    done = invoke("token", "user", *arguments, "--config", config_file)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"Error: {line}")


def test_each_of_several_issuers_speaks_for_its_tenants(config_file: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "user.key"
    table = '[[user_tokens]]\nissuer = "{0}"\naudience = "a"\nkey_file = "{1}"\ntenants = ["{2}"]\n'
    config_file.write_text(table.format("i", key_file, "t") + table.format("j", key_file, "s"))
    text = invoke("token", "user", "--sub", "a", "--tid", "s", "--config", config_file).output.strip()
    assert jwt.decode(text, SECRET, algorithms=["HS256"], audience="a")["iss"] == "j"
    done = invoke("token", "user", "--sub", "a", "--config", config_file)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, "Error: --tid must be a tenant of user_tokens.tenants")


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("", "user_tokens: issuer, audience and key_file are required to mint a token"),
        (
            '[user_tokens]\nissuer = "i"\naudience = "a"\nkey_file = "k"\nalgorithms = ["RS256"]',
            "user_tokens.algorithms: only with HS256 can a token be minted here",
        ),
        (
            f'[user_tokens]\nissuer = "i"\naudience = "a"\nkey_file = "{CANARY}"',
            "user_tokens.key_file: the file cannot be read: No such file or directory",
        ),
    ],
)
def test_without_a_secret_no_token_is_minted(config_file: Path, toml: str, line: str) -> None:
    config_file.write_text(toml)
    done = invoke("token", "user", "--sub", "alice", "--config", config_file)
    assert (done.exit_code, done.output) == (78, line + "\n")


@pytest.mark.parametrize(
    ("secret", "mode", "line"),
    [
        (CANARY, 0o600, "user_tokens.key_file: an HMAC secret must have at least 32 bytes"),
        (SECRET, 0o644, "user_tokens.key_file: the file must not be open to group or others (mode 0600)"),
    ],
)
def test_a_secret_that_is_none_is_refused(config_file: Path, secret: str, mode: int, line: str) -> None:
    key_file = config_file.with_name("user.key")
    key_file.write_text(secret)
    key_file.chmod(mode)
    assert sidecar("token", "user", "--sub", "alice", "--config", config_file) == Done(78, "", line + "\n")


# --- audit verify -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    """Three records and the head of the last."""
    lines, previous = [], GENESIS.hash
    for sequence in (1, 2, 3):
        lines.append(build_record(sequence, "boot", 0.0, AuditRecord(AuditEvent.SIDECAR_STARTED), previous))
        previous = hash_of(lines[-1])
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(lines))
    (tmp_path / "head.json").write_text(json.dumps({"sequence": 3, "hash": previous}))
    return path


def test_a_whole_trail_verifies(trail: Path) -> None:
    head = json.loads((trail.parent / "head.json").read_text())
    line = f"ok: 3 records, head 3 {head['hash']}\n"
    assert sidecar("audit", "verify", trail) == Done(0, line, "")
    assert sidecar("audit", "verify", trail, "--head", trail.parent / "head.json") == Done(0, line, "")


def test_a_changed_byte_is_found_where_it_is(trail: Path) -> None:
    trail.write_bytes(trail.read_bytes().replace(b'"sequence":2,"boot_id":"boot"', b'"sequence":2,"boot_id":"root"'))
    line = "line 2: the line is not a record, or its hash is not that of its bytes\n"
    assert sidecar("audit", "verify", trail) == Done(1, "", line)


def test_a_deleted_record_is_found(trail: Path) -> None:
    lines = trail.read_bytes().splitlines(keepends=True)
    trail.write_bytes(lines[0] + lines[2])
    line = "line 2: the record is out of its place: one is missing, doubled, moved or put in\n"
    assert sidecar("audit", "verify", trail) == Done(1, "", line)


def test_a_cut_tail_is_found_with_the_kept_head(trail: Path) -> None:
    trail.write_bytes(b"".join(trail.read_bytes().splitlines(keepends=True)[:2]))
    done = sidecar("audit", "verify", trail, "--head", trail.parent / "head.json")
    assert done == Done(1, "", "line 3: the file ends before the kept head\n")


@pytest.mark.parametrize(
    ("path", "head", "line"),
    [
        ("missing", None, "PATH: the file cannot be opened for reading and writing (ENOENT)"),
        (".", None, "PATH: the path is not a regular file"),
        ("audit.jsonl", "missing", "--head: the file cannot be read: No such file or directory"),
        ("audit.jsonl", "audit.jsonl", "--head: the kept head is not a JSON object with sequence and hash"),
    ],
)
def test_what_cannot_be_verified(trail: Path, path: str, head: str | None, line: str) -> None:
    options: list[str | Path] = [] if head is None else ["--head", trail.parent / head]
    done = invoke("audit", "verify", trail.parent / path, *options)
    assert (done.exit_code, done.output) == (78, line + "\n")


# --- health -----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """The port of a server that answers until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Readiness(BaseHTTPRequestHandler):
    """Ready at /readyz and nowhere else; /draining is not, /empty has no content."""

    def do_GET(self) -> None:
        self.send_response({"/readyz": 200, "/draining": 503, "/empty": 204}.get(self.path, 404))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Babble(StreamRequestHandler):
    """Answers what is not HTTP."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"babble\r\n")


@pytest.fixture
def http_port() -> Iterator[int]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Readiness)) as port:
        yield port


@pytest.mark.parametrize(
    ("path", "done"),
    [
        ("/readyz", Done(0, "ready\n", "")),
        ("/draining", Done(1, "", "not ready: HTTP 503\n")),
        ("/empty", Done(1, "", "not ready: HTTP 204\n")),
    ],
)
def test_health_is_what_the_server_answers(http_port: int, path: str, done: Done) -> None:
    assert sidecar("health", "--url", f"http://127.0.0.1:{http_port}{path}") == done


def test_health_asks_the_listener_of_the_environment(http_port: int) -> None:
    # A proxy of the environment is not asked: nobody answers there.
    environ = {"SIDECAR_OPS__LISTEN": f"0.0.0.0:{http_port}", "http_proxy": "http://127.0.0.1:1"}
    assert sidecar("health", **environ) == Done(0, "ready\n", "")


def test_health_asks_the_listener_of_the_file(http_port: int, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(f'[ops]\nlisten = "127.0.0.1:{http_port}"')
    assert invoke("health", "--config", file).output == "ready\n"


def test_nobody_there_is_not_ready() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        done = invoke("health", "--url", f"http://127.0.0.1:{unused.getsockname()[1]}/readyz")
    assert (done.exit_code, done.output) == (1, "not ready: no answer\n")


def test_what_is_not_http_is_not_ready() -> None:
    with serving(ThreadingTCPServer(("127.0.0.1", 0), Babble)) as port:
        done = invoke("health", "--url", f"http://127.0.0.1:{port}/readyz")
    assert (done.exit_code, done.output) == (1, "not ready: no answer\n")


def test_health_asks_by_http_only(tmp_path: Path) -> None:
    assert invoke("health", "--url", tmp_path.as_uri()).exit_code == 2


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:8081", "http://127.0.0.1:8081/readyz"),
        ("[::]:8081", "http://[::1]:8081/readyz"),
        ("10.0.0.1:9000", "http://10.0.0.1:9000/readyz"),
    ],
)
def test_a_listener_of_every_interface_is_asked_on_loopback(listen: str, url: str) -> None:
    assert readiness_url(listen) == url
