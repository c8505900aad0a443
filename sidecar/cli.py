"""The command line. Each command imports what it needs, so that the small ones start at once.

Exit codes: 0 done · 1 no (tampered, not ready, a port in use) · 2 the command was called wrongly · 78 a setting cannot
be used. What is not 0 says why on standard error, in one line but for a wrong call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sidecar.security.files import SettingError, read_file

if TYPE_CHECKING:
    from sidecar.config import Config, UserTokenSettings

EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h."""

DEFAULT_OPS_LISTEN: Final = "127.0.0.1:8081"
HEALTH_TIMEOUT_S: Final = 2.0
DEFAULT_TOKEN_TTL_S: Final = 3600

config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings (TOML); the environment beats them."
)


class _Commands(click.Group):
    """Answers a setting that cannot be used, wherever it is found."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SettingError as error:
            click.echo(str(error), err=True)
            ctx.exit(EXIT_CONFIG)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A sidecar that terminates WebSockets and gives each user an isolated manager, reached over gRPC."""


@main.command()
@config_option
@click.option("--dev", "development", is_flag=True, help="Development: loopback only, made-up keys, a demo page.")
@click.option("--no-agent", is_flag=True, help="In development: leave the demo page to an agent that you attach.")
@click.pass_context
def serve(ctx: click.Context, config_file: Path | None, development: bool, no_agent: bool) -> None:
    """Run the sidecar until SIGTERM."""
    if no_agent and not development:
        raise click.UsageError("--no-agent goes with --dev")
    from sidecar.config import development_config
    from sidecar.logs import configure_logging

    config = _load(config_file)
    if development:
        config = development_config(config)
    else:
        config.validate_for(development=False)
    configure_logging(config.log.format, config.log.level)
    # gRPC reads these on import. Its core writes lines of its own for what any stranger sends, without a limit.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if development:
        # The demo agent is a child that execs at once: gRPC need not prepare for a fork.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    from sidecar.app import run

    ctx.exit(exit_code_of(lambda: run(config, development=development, demo_agent=not no_agent)))


@main.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dev", "development", is_flag=True, help="Check for development.")
def check_config(file: Path, development: bool) -> None:
    """Say whether the sidecar would start with FILE and this environment; key files are read only at the start."""
    _load(file).validate_for(development)
    click.echo("ok")


@main.group()
def token() -> None:
    """Tokens for trying things out."""


@token.command("user")
@click.option("--sub", "subject", required=True, help="The user.")
@click.option("--tid", "tenant_id", help="The tenant; `default` where it is left out.")
@click.option("--sid", "session_id", help="The session.")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(1, 24 * 3600),
    default=DEFAULT_TOKEN_TTL_S,
    show_default=True,
    help="Seconds that it lives.",
)
@config_option
def mint_user(
    subject: str, tenant_id: str | None, session_id: str | None, ttl_s: int, config_file: Path | None
) -> None:
    """Mint a user token with the configured HMAC secret and print it."""
    from sidecar.core.errors import BadRequest
    from sidecar.security.keys import load_hmac_secret
    from sidecar.security.user_tokens import DEFAULT_TENANT, mint_user_token

    settings = _issuer_of(_load(config_file), tenant_id or DEFAULT_TENANT)
    assert settings.key_file is not None  # Config refuses an issuer without one.
    try:
        text = mint_user_token(
            load_hmac_secret(settings.key_file),
            issuer=settings.issuer,
            audience=settings.audience,
            subject=subject,
            tenant_id=tenant_id,
            session_id=session_id,
            ttl_s=ttl_s,
            now=time.time(),
            key_id=settings.key_id,
        )
    except BadRequest as error:
        raise click.UsageError("; ".join(f"--{name} {rule}" for name, rule in error.violations)) from None
    click.echo(text)


@main.group()
def audit() -> None:
    """The audit trail."""


@audit.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--head", "head_file", type=click.Path(path_type=Path), help='A head kept elsewhere: {"sequence":…,"hash":…}.'
)
@click.pass_context
def verify(ctx: click.Context, path: Path, head_file: Path | None) -> None:
    """Check the chain of the audit file at PATH; with a head also that it was not cut or written anew."""
    from sidecar.security.audit_record import AuditFileError
    from sidecar.security.audit_verify import parse_head, verify_file

    setting = "--head"
    try:
        head = None if head_file is None else parse_head(read_file(head_file, setting, private=False)[0])
        setting = "PATH"
        report = verify_file(path, head)
    except AuditFileError as error:
        raise SettingError(setting, str(error)) from None
    if not report.ok:
        click.echo(f"line {report.bad_line}: {report.fault}", err=True)
        ctx.exit(1)
    click.echo(f"ok: {report.records} records, head {report.last_sequence} {report.last_hash}")


@main.command()
@click.option("--url", help="Where to ask; else /readyz of the configured ops.listen.")
@config_option
@click.pass_context
def health(ctx: click.Context, url: str | None, config_file: Path | None) -> None:
    """Ask a running sidecar on this machine whether it is ready: exit 0 or 1."""
    problem = _ask(url or readiness_url(_ops_listen(config_file)))
    if problem is not None:
        click.echo(problem, err=True)
        ctx.exit(1)
    click.echo("ready")


@main.command()
def version() -> None:
    """Print the version."""
    from sidecar import __version__

    click.echo(f"sidecar {__version__}")


def _load(config_file: Path | None) -> Config:
    from sidecar.config import load_config

    return load_config(config_file, os.environ)


def exit_code_of(run: Callable[[], int]) -> int:
    """Run the sidecar; say why it could not start. Raises SettingError for a file that cannot be used."""
    from sidecar.config import StartError
    from sidecar.security.audit_record import AuditFileError

    try:
        return run()
    except AuditFileError as error:
        raise SettingError("audit.path", str(error)) from None
    except StartError as error:
        click.echo(str(error), err=True)
        return 1


def _issuer_of(config: Config, tenant_id: str) -> UserTokenSettings:
    """The issuer that may speak for the tenant, and whose secret we hold."""
    if not config.user_tokens:
        raise SettingError("user_tokens", "issuer, audience and key_file are required to mint a token")
    for settings in config.user_tokens:
        if settings.tenants is None or tenant_id in settings.tenants:
            if "HS256" not in settings.algorithms:
                raise SettingError("user_tokens.algorithms", "only with HS256 can a token be minted here")
            return settings
    raise click.UsageError("--tid must be a tenant of user_tokens.tenants")


def _ops_listen(config_file: Path | None) -> str:
    """Without a file, straight from the environment: a container asks often, and reading all settings takes longer."""
    if config_file is None:
        return os.environ.get("SIDECAR_OPS__LISTEN", DEFAULT_OPS_LISTEN)
    return _load(config_file).ops.listen


def readiness_url(listen: str) -> str:
    """Where a listener is reached from its own machine."""
    host, _, port = listen.rpartition(":")
    return f"http://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}/readyz"  # noqa: S104


def _ask(url: str) -> str | None:
    """None when the answer is 200, else what is wrong. Waits HEALTH_TIMEOUT_S at most for each step."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, build_opener

    if not url.startswith(("http://", "https://")):
        raise click.UsageError("--url must begin with http:// or https://")
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=HEALTH_TIMEOUT_S) as response:
            return None if response.status == 200 else f"not ready: HTTP {response.status}"
    except HTTPError as error:
        error.close()
        return f"not ready: HTTP {error.code}"
    except (OSError, HTTPException, ValueError):
        return "not ready: no answer"
