"""The environment, typed and read once: every GATEWAY_ variable with its default, and no secret ever in a message.

Values come from the process environment, then from `.env`; a secret may also come from the file that its `…_FILE`
variable names. Whatever is wrong raises `SettingsError`, which names the variable and the mend.
"""

import difflib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX: Final = "GATEWAY_"
DOTENV: Final = Path(".env")
SECRET_FIELDS: Final = ("admin_token", "database_url", "redis_url", "alert_webhook_url", "alert_webhook_secret")
ADMIN_TOKEN_LENGTH_MIN: Final = 16
ADMIN_TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file name
SECRET_FILE_BYTES_MAX: Final = 65_536

# A token made of nothing but these is one that somebody else would try first.
_WELL_KNOWN_PARTS: Final = (
    *("admin", "administrator", "bearer", "change", "changeit", "changeme", "default", "demo", "dev", "example", "foo"),
    *("gateway", "here", "hunter2", "insecure", "it", "key", "kimi", "letmein", "local", "master", "me", "my", "not"),
    *("pass", "passw0rd", "password", "please", "proxy", "qwerty", "replace", "root", "secret", "sk", "super"),
    *("test", "this", "to", "token", "user", "welcome", "with", "your", "abc", "abcdef", "a1b2c3d4"),
    *("0123456789"[:end] for end in range(3, 11)),
    *("1234567890"[:end] for end in range(2, 11)),
)
_WELL_KNOWN: Final = re.compile("|".join(sorted(_WELL_KNOWN_PARTS, key=len, reverse=True)) + r"|[\W_]", re.IGNORECASE)
_DISTINCT_CHARACTERS_MIN: Final = 6


class SettingsError(Exception):
    """The environment cannot be used as it is; the message names the variable and the way to mend it."""


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets from the files that `GATEWAY_…_FILE` variables name, in the environment or in `.env`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:  # noqa: ARG002
        return None, field_name, False

    def __call__(self) -> dict[str, str]:
        environ = environment()
        found: dict[str, str] = {}
        for field_name in SECRET_FIELDS:
            variable = _variable(field_name)
            path = environ.get(f"{variable}_FILE", "")
            if not path:
                continue
            if variable in environ:
                raise SettingsError(f"{variable} and {variable}_FILE are both set. Keep one of them.")
            found[field_name] = _secret_file(Path(path), named_by=f"{variable}_FILE")
        return found


class Settings(BaseSettings):
    """What the environment says. Each description is what the variable ought to be, and is quoted when it is not."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=DOTENV, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: Annotated[
        SecretStr | None, Field(description="a PostgreSQL URL such as postgresql://user:password@host:5432/gateway")
    ] = None
    redis_url: Annotated[SecretStr | None, Field(description="a Redis URL such as redis://host:6379/0")] = None
    data_dir: Annotated[Path, Field(description="a folder that the gateway may write to")] = Path("./var")
    archive_dir: Annotated[Path | None, Field(description="a folder for the files of archived months")] = None
    config_dir: Annotated[Path, Field(description="the folder with providers.toml, models.toml and prices.toml")] = (
        Path("./config")
    )
    admin_token: Annotated[SecretStr | None, Field(description="a long random token")] = None
    host: Annotated[str, Field(min_length=1, description="an address to listen on, such as 127.0.0.1")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535, description="a port number from 0 to 65535")] = 8080
    workers: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1
    concurrency_max: Annotated[int, Field(ge=1, le=1_000_000, description="a whole number from 1 to 1000000")] = 5000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="debug, info, warning or error")
    ] = "info"
    log_format: Annotated[Literal["json", "console"], Field(description="json or console")] = "json"
    auto_migrate: Annotated[bool | None, Field(description="true or false")] = None
    alert_webhook_url: Annotated[
        SecretStr | None,
        Field(description="an https address without credentials or fragment, or an http one on this machine"),
    ] = None
    alert_webhook_secret: Annotated[
        SecretStr | None, Field(description="a long random text that the receiver of alerts knows too")
    ] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours takes its place
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, _SecretFiles(settings_cls)

    @field_validator(
        *("database_url", "redis_url", "auto_migrate", "archive_dir", "alert_webhook_url", "alert_webhook_secret"),
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        """Compose files pass a variable on as an empty text when nobody has set it."""
        return None if value == "" else value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            text = value.get_secret_value()
            if not text.startswith(("postgresql://", "postgres://")):
                raise ValueError("not a PostgreSQL URL")
            _ = urlsplit(text).port  # raises ValueError for a port that is no number
            with _unquoted():
                conninfo_to_dict(text)
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("not a Redis URL")
        return value

    @field_validator("alert_webhook_url")
    @classmethod
    def _may_be_posted_to(cls, value: SecretStr | None) -> SecretStr | None:
        """Alerts and their signature travel encrypted, or not at all."""
        if value is None:
            return value
        text = value.get_secret_value()
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for a port that is no number
        is_plain = parts.scheme == "http" and _is_loopback(parts.hostname or "")
        if not parts.hostname or not (parts.scheme == "https" or is_plain):
            raise ValueError("neither https nor on this machine")
        if "@" in parts.netloc or "#" in text or not text.isprintable() or " " in text:
            raise ValueError("not a plain address")
        return value

    @model_validator(mode="after")
    def _alerts_are_signed(self) -> Self:
        if self.alert_webhook_url is not None:
            refuse_weak_admin_token(
                self.alert_webhook_secret or SecretStr(""),
                source=f"{PREFIX}ALERT_WEBHOOK_SECRET",
                mend="Set at least 16 random characters that the receiver of alerts knows too, for example from: "
                "openssl rand -base64 32. Or unset GATEWAY_ALERT_WEBHOOK_URL.",
            )
        return self

    @model_validator(mode="after")
    def _several_workers_share_state(self) -> Self:
        if self.workers > 1 and self.redis_url is None:
            raise SettingsError(
                f"GATEWAY_WORKERS is {self.workers}, and several workers can only keep common limits and budgets in "
                "Redis. Set GATEWAY_REDIS_URL, or GATEWAY_WORKERS=1."
            )
        return self

    @model_validator(mode="after")
    def _admin_token_is_strong(self) -> Self:
        if self.admin_token is not None:
            refuse_weak_admin_token(self.admin_token)
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the gateway brings its own PostgreSQL, in the data directory."""
        return self.database_url is None

    @property
    def archive_folder(self) -> Path:
        """Where the files of archived months are; in the data directory unless told."""
        return self.data_dir / "archive" if self.archive_dir is None else self.archive_dir

    @property
    def migrates_at_start(self) -> bool:
        """Whether `serve` migrates the schema: as told, else only where the database is the gateway's own."""
        return self.is_embedded if self.auto_migrate is None else self.auto_migrate


def load_settings(**overrides: object) -> Settings:
    """Read the environment once; `overrides` are command line options, by field name, and win over it.

    Raises `SettingsError` with one line per variable that cannot be used.
    """
    try:
        return Settings.model_validate({}) if not overrides else Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [_problem(str(each["loc"][0]), each["type"]) for each in error.errors(include_input=False)]
        raise SettingsError("\n".join(problems)) from None


def admin_token(settings: Settings) -> tuple[SecretStr, Path | None]:
    """The bootstrap administrator's token, and the file it is kept in when the environment did not give it.

    The file is written once: it appears whole, with mode 0600, or not at all, also when two processes start at once.
    """
    if settings.admin_token is not None:
        return settings.admin_token, None
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir.resolve() / ADMIN_TOKEN_FILE
    if not path.exists():
        _create_whole(path, secrets.token_urlsafe(32) + "\n")
    token = SecretStr(_secret_file(path, named_by="the admin token file"))
    refuse_weak_admin_token(token, source=str(path), mend=f"Delete {path} to have a new one generated.")
    return token, path


def refuse_weak_admin_token(
    token: SecretStr,
    *,
    source: str = f"{PREFIX}ADMIN_TOKEN",
    mend: str = "Unset it to have one generated, or set at least 16 random characters, "
    "for example from: openssl rand -base64 32",
) -> None:
    """Raise `SettingsError` for a token that is empty, short or one that everybody knows; never quotes the token."""
    value = token.get_secret_value()
    if not value.strip():
        raise SettingsError(f"{source} is empty. {mend}")
    if len(value) < ADMIN_TOKEN_LENGTH_MIN:
        raise SettingsError(f"{source} is shorter than {ADMIN_TOKEN_LENGTH_MIN} characters. {mend}")
    if len(set(value)) < _DISTINCT_CHARACTERS_MIN or not _WELL_KNOWN.sub("", value):
        raise SettingsError(f"{source} is well known or easily guessed. {mend}")


def read_secret(
    reference: Mapping[str, str], environ: Mapping[str, str], *, base: Path | None = None
) -> SecretStr | None:
    """Resolve a credential reference, `{"env": NAME}` or `{"file": path}`; a relative path starts from `base`.

    Answers None where the variable or file is absent or empty: such an account loads, and is not routable.
    Raises `SettingsError` for another shape, or for a file that is there and cannot be read.
    """
    match dict(reference):
        case {"env": str(name), **others} if not others:
            value = environ.get(name, "").rstrip("\r\n")
        case {"file": str(name), **others} if not others:
            path = (base or Path()) / name
            value = _secret_file(path, named_by="a credential") if path.exists() else ""
        case other:
            keys = ", ".join(sorted(other)) or "nothing"
            raise SettingsError(
                f'A credential is {{ env = "NAME" }} or {{ file = "path" }}, one of them and never a literal; '
                f"this one has {keys}."
            )
    return SecretStr(value) if value else None


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """One warning per GATEWAY_ variable that means nothing here, with the name that was probably meant."""
    known = {field_name.upper() for field_name in Settings.model_fields}
    known |= {f"{field_name.upper()}_FILE" for field_name in SECRET_FIELDS}
    warnings: list[str] = []
    for name in sorted(environ):
        suffix = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or suffix in known:
            continue
        close = difflib.get_close_matches(suffix, known, n=1, cutoff=0.7)
        hint = f"Did you mean {PREFIX}{close[0]}?" if close else "Remove it, or look up the settings in the README."
        warnings.append(f"{name} is not a setting of the gateway and has no effect. {hint}")
    return warnings


def environment() -> dict[str, str]:
    """The process environment over what `.env` says: where settings and provider credentials are looked up."""
    dotenv = {name: value for name, value in dotenv_values(DOTENV).items() if value is not None}
    return {**dotenv, **os.environ}


@contextmanager
def _unquoted() -> Iterator[None]:
    """What the driver says of a URL it cannot read may quote the password; nothing of it goes on."""
    try:
        yield
    except psycopg.Error:
        raise ValueError("not a PostgreSQL URL") from None


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name; nothing is looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _variable(field_name: str) -> str:
    return PREFIX + field_name.upper()


def _problem(field_name: str, kind: str) -> str:
    field = Settings.model_fields.get(field_name)
    if field is None:
        return f"{field_name} is not a setting of the gateway ({kind})."
    return f"{_variable(field_name)} cannot be used. Set it to {field.description}, or unset it."


def _secret_file(path: Path, *, named_by: str) -> str:
    """The content without its closing line break. Bounded, because a wrong path may name anything."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
        if len(content) > SECRET_FILE_BYTES_MAX:
            raise SettingsError(f"The file {path}, named by {named_by}, is far too long for a secret. Check the path.")
        return content.decode().rstrip("\r\n")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(f"The file {path}, named by {named_by}, cannot be read: {reason}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"The file {path}, named by {named_by}, is not UTF-8 text. Check the path.") from None


def _create_whole(path: Path, content: str) -> None:
    """Create `path` with mode 0600 and all its content at once; a file that is already there stays."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first; its token holds
    finally:
        draft.unlink(missing_ok=True)
